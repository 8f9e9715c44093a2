"""Targets that say nothing: while being dialled, and after they accepted."""

import time

import pytest

from harness import (
    PATIENCE, always, expect_end, expect_reset, is_open, receive_exactly, receive_stream,
    send_stream, KIB,
)


def test_target_that_accepts_and_says_nothing_costs_nothing(lab):
    target = lab.silent()
    proxy = lab.proxy(target)
    clients = [lab.client(proxy) for _ in range(20)]
    for client in clients:
        client.sendall(b"anyone there?")
    proxy.await_value(20 * 13, "inbound_bytes_count")
    proxy.assert_idle()
    always(lambda: all(is_open(client) for client in clients), "silent connections stay open", 1)


def test_idle_timeout_ends_a_connection_without_bytes_in_either_direction(lab):
    target = lab.target()
    proxy = lab.proxy(target, "--idle-timeout=1s")
    client, server = lab.pair(proxy, target)
    client.sendall(b"x")
    began = time.monotonic()
    assert receive_exactly(server, 1) == b"x"
    expect_end(client)
    took = time.monotonic() - began
    expect_end(server)
    assert 0.9 <= took <= 2.5 * PATIENCE, f"ended after {took:.2f} s instead of 1 s"
    proxy.await_closed(idle_timeout=1)


@pytest.mark.parametrize("talker", ["client", "target"])
def test_bytes_in_one_direction_keep_the_connection_alive(lab, talker):
    target = lab.target()
    proxy = lab.proxy(target, "--idle-timeout=1s")
    client, server = lab.pair(proxy, target)
    source, destination = (client, server) if talker == "client" else (server, client)
    began = time.monotonic()
    for _ in range(6):
        source.sendall(b"t")
        assert receive_exactly(destination, 1) == b"t"
        time.sleep(0.4)
    assert time.monotonic() - began > 2
    assert is_open(destination) and is_open(source)
    expect_end(client, within=4 * PATIENCE)
    proxy.await_closed(idle_timeout=1)


def test_half_closed_connection_is_idle_too(lab):
    target = lab.target()
    proxy = lab.proxy(target, "--idle-timeout=500ms")
    client, server = lab.pair(proxy, target)
    client.shutdown(1)
    expect_end(server)
    expect_end(client)
    proxy.await_closed(idle_timeout=1)


def test_without_idle_timeout_a_connection_may_be_silent_then_talk(lab):
    target = lab.target()
    proxy = lab.proxy(target)
    client, server = lab.pair(proxy, target)
    time.sleep(2)
    send_stream(client, "late", 100 * KIB)
    receive_stream(server, "late", 100 * KIB)


def test_connect_timeout_resets_the_client(lab):
    target = lab.full_target()
    proxy = lab.proxy(target, "--connect-timeout=1s")
    began = time.monotonic()
    clients = [lab.client(proxy) for _ in range(3)]
    for client in clients:
        expect_reset(client)
    took = time.monotonic() - began
    assert 0.9 <= took <= 2.5 * PATIENCE, f"reset after {took:.2f} s instead of 1 s"
    proxy.await_closed(target_connect_timeout=3)
    assert proxy.value("tcp_proxy_target_connect_failures_total") == 3
    assert proxy.value("active_inbound_connections") == 0
    proxy.assert_idle()


def test_connect_timeout_is_ten_seconds_by_default(lab):
    target = lab.full_target()
    proxy = lab.proxy(target)
    began = time.monotonic()
    client = lab.client(proxy)
    expect_reset(client, within=14 * PATIENCE)
    took = time.monotonic() - began
    assert 9.5 <= took <= 12 * PATIENCE, f"reset after {took:.2f} s instead of 10 s"
    proxy.await_closed(target_connect_timeout=1)


def test_dial_that_is_answered_late_is_served(lab):
    target = lab.full_target()
    proxy = lab.proxy(target)
    client = lab.client(proxy)
    client.sendall(b"patient")
    proxy.await_value(1, "tcp_proxy_target_connect_attempts_total")
    target.make_room()
    server = target.accept_live()
    assert receive_exactly(server, 7) == b"patient"


def test_dials_that_hang_do_not_delay_those_that_do_not(lab):
    """Two proxies would prove nothing: the same one has hanging and quick connections."""
    target = lab.full_target()
    proxy = lab.proxy(target)
    hanging = [lab.client(proxy) for _ in range(10)]
    proxy.await_value(10, "tcp_proxy_target_connect_attempts_total")
    target.make_room()
    served = 0
    for _ in hanging:
        target.accept_live()
        served += 1
    assert served == 10
    client, server = lab.pair(proxy, target)
    client.sendall(b"x")
    assert receive_exactly(server, 1) == b"x"
