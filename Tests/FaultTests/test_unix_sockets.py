"""AF_UNIX on either side: the same relay, with the kernel's other rules."""

from __future__ import annotations

import os
import socket
import time

import pytest

from harness import (
    KIB, MIB, PATIENCE, Address, Lab, cycle, echo_once, eventually, expect_end, expect_eof,
    fill, host_port, parallel, receive_all, receive_exactly, receive_stream, reset, send_stream,
)


def address(lab: Lab, kind: str, name: str) -> Address:
    if kind == "tcp":
        return ("127.0.0.1", 0)
    if kind == "path":
        return str(lab.folder / name)
    return f"\0proxy-test-{os.getpid()}-{lab.folder.name}-{name}"


@pytest.fixture(params=["path>tcp", "tcp>path", "path>path", "abstract>abstract"])
def ends(lab, request):
    """A proxy and its target for each combination of the two sides."""
    outer, _, inner = request.param.partition(">")
    target = lab.target(address(lab, inner, "target"), receive_buffer=64 * KIB)
    proxy = lab.proxy(target, listen=host_port(address(lab, outer, "listen")))
    return proxy, target


def test_both_directions_at_once(lab, ends):
    proxy, target = ends
    client, server = lab.pair(proxy, target)
    count = 6 * MIB
    parallel(
        lambda: send_stream(client, "up", count, cycle(1, 65537, 4096, 300000), finish=True),
        lambda: receive_stream(server, "up", count, until_eof=True),
        lambda: send_stream(server, "down", count, cycle(7, 100000), finish=True),
        lambda: receive_stream(client, "down", count, until_eof=True),
    )
    proxy.await_value(count, "inbound_bytes_count")
    proxy.await_value(count, "outbound_bytes_count")


def test_half_close_and_reply(lab, ends):
    proxy, target = ends
    client, server = lab.pair(proxy, target)
    client.sendall(b"request")
    client.shutdown(socket.SHUT_WR)
    assert receive_all(server) == b"request"
    parallel(
        lambda: send_stream(server, "reply", 1 * MIB, finish=True),
        lambda: receive_stream(client, "reply", 1 * MIB, until_eof=True),
    )
    proxy.await_closed(client_closed=1)


def test_bytes_in_flight_at_the_end_arrive_before_it(lab, ends):
    proxy, target = ends
    client, server = lab.pair(proxy, target)
    count = fill(client, "stuck", quiet=0.3)
    client.shutdown(socket.SHUT_WR)
    receive_stream(server, "stuck", count, until_eof=True)
    proxy.assert_idle()


def test_peer_that_closes_with_bytes_unread_ends_the_connection(lab, ends):
    """A unix socket has no RST, but closing it with bytes unread gives ECONNRESET: unix(7)."""
    proxy, target = ends
    client, server = lab.pair(proxy, target)
    fill(client, "unread", quiet=0.2)
    server.close()
    expect_end(client)
    client.close()
    proxy.await_value(0, "tcp_proxy_connections_active")


def test_many_connections(lab, ends):
    proxy, target = ends
    for number in range(100):
        client, server = lab.pair(proxy, target)
        message = b"%d" % number
        client.sendall(message)
        client.shutdown(socket.SHUT_WR)
        assert receive_all(server) == message
        server.close()
        expect_eof(client)
        client.close()
    proxy.await_closed(client_closed=100)


@pytest.mark.parametrize("kind", ["path", "abstract"])
def test_target_that_is_not_there_yet(lab, kind):
    where = address(lab, kind, "target")
    proxy = lab.proxy(where)
    lab.expect_refusal(proxy)
    eventually(lambda: sum(proxy.scrape().closed().values()) == 1, "the failure to be counted")
    (reason,) = proxy.scrape().closed()
    assert reason in ("target-refused", "target-unreachable", "target-connect-failed"), reason
    assert proxy.value("tcp_proxy_target_connect_failures_total") == 1
    lab.echo(where)
    echo_once(lab.client(proxy))


def test_path_without_a_listener_is_refused(lab, folder):
    target = lab.unlistened(str(folder / "target"))
    proxy = lab.proxy(target)
    lab.expect_refusal(proxy)
    proxy.await_closed(target_refused=1)


def test_target_with_a_full_backlog_neither_spins_nor_hangs(lab, folder):
    """connect(2) on a unix socket says EAGAIN, not EINPROGRESS, when the queue is full."""
    target = lab.target(str(folder / "target"), backlog=0)
    proxy = lab.proxy(target, "--connect-timeout=1s")
    clients = []
    for _ in range(6):
        client = lab.client(proxy)
        client.sendall(b"x")
        clients.append(client)
    proxy.assert_idle()
    time.sleep(1.2 * PATIENCE)
    # What got into the queue waits for its turn; the others have been told by now.
    eventually(
        lambda: proxy.value("tcp_proxy_connections_active") <= 2, "dials to end at their timeout"
    )
    server = target.accept()
    assert receive_exactly(server, 1) == b"x"
    assert proxy.running()


def test_full_backlog_that_empties_in_time_serves_all(lab, folder):
    """Either at once refused, or served when there is room; never lost in between."""
    target = lab.target(str(folder / "target"), backlog=1)
    proxy = lab.proxy(target, "--connect-timeout=5s")
    clients = [lab.client(proxy) for _ in range(8)]
    for number, client in enumerate(clients):
        client.sendall(b"%d" % number)
    served = 0
    while True:
        try:
            server = target.accept(within=1.5)
        except socket.timeout:
            break
        digit = receive_exactly(server, 1)
        server.sendall(digit)
        server.close()
        served += 1
    refused = 0
    for number, client in enumerate(clients):
        try:
            if client.recv(1) != b"%d" % number:
                refused += 1
        except ConnectionError:
            refused += 1
    assert served + refused == len(clients)
    assert served >= 2


def test_access_to_the_path_follows_the_umask(lab, folder):
    echo = lab.echo()
    proxy = lab.proxy(echo, listen=f"unix:{folder}/listen")
    mode = (folder / "listen").stat().st_mode & 0o777
    umask = os.umask(0)
    os.umask(umask)
    assert mode & umask == 0, f"{mode:o} with a umask of {umask:o}"
    echo_once(lab.client(proxy))


def test_client_that_resets_after_the_target_stopped_reading_ends_the_connection(lab, folder):
    """Writes to a unix socket fail at once after its peer's shutdown(SHUT_RD), reads go on."""
    target = lab.target(str(folder / "target"))
    proxy = lab.proxy(target)
    client, server = lab.pair(proxy, target)
    server.shutdown(socket.SHUT_RD)
    client.sendall(b"x")
    proxy.await_value(1, "inbound_bytes_count")
    server.sendall(b"still talking")
    assert receive_exactly(client, 13) == b"still talking"
    reset(client)
    proxy.await_value(0, "tcp_proxy_connections_active", deadline=3 * PATIENCE)
    expect_end(server)
