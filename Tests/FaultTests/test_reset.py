"""A reset passes as a reset, and leaves nothing behind."""

import os
import signal
import socket

import pytest

from harness import (
    DEADLINE, KIB, MIB, eventually, expect_end, expect_eof, expect_reset, fill, parallel,
    receive_all, receive_exactly, receive_stream, reset, send_stream, echo_once,
)


def test_reset_by_the_client_reaches_the_target(lab):
    target = lab.target()
    proxy = lab.proxy(target)
    client, server = lab.pair(proxy, target)
    client.sendall(b"x")
    assert receive_exactly(server, 1) == b"x"
    reset(client)
    expect_reset(server)
    proxy.await_closed(client_reset=1)


def test_reset_by_the_target_reaches_the_client(lab):
    target = lab.target()
    proxy = lab.proxy(target)
    client, server = lab.pair(proxy, target)
    client.sendall(b"x")
    assert receive_exactly(server, 1) == b"x"
    reset(server)
    expect_reset(client)
    proxy.await_closed(target_reset=1)


def test_reset_by_the_target_after_the_clients_fin_reaches_the_client(lab):
    target = lab.target()
    proxy = lab.proxy(target)
    client, server = lab.pair(proxy, target)
    client.sendall(b"request")
    client.shutdown(socket.SHUT_WR)
    assert receive_all(server) == b"request"
    reset(server)
    expect_reset(client)
    proxy.await_closed(target_reset=1)


def test_reset_by_the_client_after_the_targets_fin_reaches_the_target(lab):
    target = lab.target()
    proxy = lab.proxy(target)
    client, server = lab.pair(proxy, target)
    server.sendall(b"reply")
    server.shutdown(socket.SHUT_WR)
    assert receive_all(client) == b"reply"
    reset(client)
    # The target has sent its FIN: it hears of the reset when it next writes, or as EPIPE/RST.
    expect_end(server)
    eventually(
        lambda: _write_fails(server), "the target's writes to fail after the client's reset"
    )
    proxy.await_closed(client_reset=1)


def _write_fails(sock: socket.socket) -> bool:
    try:
        sock.send(b"x")
        return False
    except OSError:
        return True


@pytest.mark.parametrize("leaver", ["client", "target"])
def test_reset_with_bytes_in_pipes_frees_all_and_spoils_no_later_connection(lab, leaver):
    """A pipe that goes back to the pool with bytes in it would show in the next stream."""
    target = lab.target(receive_buffer=16 * KIB)
    proxy = lab.proxy(target)
    for round_number in range(4):
        client, server = lab.pair(proxy, target, receive_buffer=16 * KIB)
        parallel(
            lambda: fill(client, f"up {round_number}"),
            lambda: fill(server, f"down {round_number}"),
        )
        if leaver == "client":
            reset(client)
            expect_reset(server)
            server.close()
        else:
            reset(server)
            expect_reset(client)
            client.close()
    proxy.await_value(0, "tcp_proxy_connections_active")
    proxy.check_descriptors_given_back()
    reason = f"{leaver}-reset"
    assert proxy.scrape().closed() == {reason: 4}

    client, server = lab.pair(proxy, target)
    size = 4 * MIB
    parallel(
        lambda: send_stream(client, "up", size, finish=True),
        lambda: receive_stream(server, "up", size, until_eof=True),
        lambda: send_stream(server, "down", size, finish=True),
        lambda: receive_stream(client, "down", size, until_eof=True),
    )


def test_client_that_resets_while_the_target_is_dialled_is_let_go(lab):
    target = lab.full_target()
    proxy = lab.proxy(target)
    clients = [lab.client(proxy) for _ in range(5)]
    proxy.await_value(5, "tcp_proxy_target_connect_attempts_total")
    for client in clients:
        reset(client)
    proxy.await_closed(client_left=5)
    proxy.await_value(0, "tcp_proxy_connections_active")
    proxy.check_descriptors_given_back()


def test_clients_that_reset_at_once_do_no_harm(lab):
    """Some are gone before accept(2), some before the dial, some in the relay."""
    echo = lab.echo()
    proxy = lab.proxy(echo)
    for number in range(500):
        client = socket.create_connection(proxy.listen_address, timeout=DEADLINE)
        if number % 2:
            client.sendall(b"x")
        reset(client)
    proxy.await_value(0, "tcp_proxy_connections_active")
    echo_once(lab.client(proxy))
    proxy.assert_idle()


def test_target_that_resets_at_once_resets_its_clients(lab):
    target = lab.resetting()
    proxy = lab.proxy(target)
    count = 50
    for _ in range(count):
        lab.expect_refusal(proxy)

    def counted() -> bool:
        # The reset may overtake the end of the dial: then it is the dial that failed.
        closed = proxy.scrape().closed()
        assert sum(closed.values()) == count
        assert closed.get("client-closed", 0) == closed.get("target-closed", 0) == 0, closed
        return True

    eventually(counted, "every reset counted")


def test_fin_of_the_client_and_reset_of_the_target_end_the_connection(lab):
    target = lab.target()
    proxy = lab.proxy(target)
    client, server = lab.pair(proxy, target)
    client.shutdown(socket.SHUT_WR)
    expect_eof(server)
    server.sendall(b"half an ans")
    assert receive_exactly(client, 11) == b"half an ans"
    reset(server)
    expect_reset(client)
    proxy.await_value(0, "tcp_proxy_connections_active")


def test_what_the_target_sent_before_it_reset_reaches_the_client(lab):
    """A target that is full says so and resets, before the proxy has seen the end of its dial."""
    banner = b"too many connections\n"
    target = lab.full_target()
    proxy = lab.proxy(target)
    clients = [lab.client(proxy) for _ in range(60)]
    proxy.await_value(len(clients), "tcp_proxy_target_connect_attempts_total")
    os.kill(proxy.pid, signal.SIGSTOP)  # so that each dial's success and reset are one event
    try:
        target.make_room()
        for _ in clients:
            server = target.accept_live()
            server.sendall(banner)
            reset(server)
    finally:
        os.kill(proxy.pid, signal.SIGCONT)
    lost = 0
    for client in clients:
        try:
            assert receive_exactly(client, len(banner)) == banner
            expect_reset(client)
        except ConnectionResetError:
            lost += 1
    assert lost == 0, f"{lost} of {len(clients)} clients were reset without the banner"
    proxy.await_closed(target_reset=len(clients))
    assert proxy.value("tcp_proxy_target_connect_failures_total") == 0
