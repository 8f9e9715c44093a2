"""A flood of connections in one instant: each is served."""

import errno
import selectors
import socket
import time

import pytest

from harness import DEADLINE, Stream, echo_once, eventually, reset


def connect_all(address, count: int) -> list[socket.socket]:
    """Starts every connect before waiting for any."""
    sockets = []
    for _ in range(count):
        sock = socket.socket()
        sock.setblocking(False)
        assert sock.connect_ex(address) in (0, errno.EINPROGRESS)
        sockets.append(sock)
    return sockets


def exchange_all(sockets: list[socket.socket], size: int, within: float) -> None:
    """Each socket sends its own bytes as soon as it can and must get exactly them back."""
    end = time.monotonic() + within
    expected = {sock: Stream(number).read(size) for number, sock in enumerate(sockets)}
    received = {sock: b"" for sock in sockets}
    with selectors.DefaultSelector() as selector:
        for sock in sockets:
            selector.register(sock, selectors.EVENT_WRITE)
        while selector.get_map():
            left = end - time.monotonic()
            assert left > 0, f"{len(selector.get_map())} of {len(sockets)} not served"
            for key, mask in selector.select(left):
                sock = key.fileobj
                if mask & selectors.EVENT_WRITE:
                    error = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                    assert error == 0, f"connect: {errno.errorcode[error]}"
                    assert sock.send(expected[sock]) == size
                    selector.modify(sock, selectors.EVENT_READ)
                else:
                    data = sock.recv(size)
                    assert data, "closed before the answer"
                    received[sock] += data
                    if len(received[sock]) >= size:
                        assert received[sock] == expected[sock]
                        selector.unregister(sock)


@pytest.mark.parametrize("workers", [(), ("--workers=2",)], ids=["default", "two workers"])
def test_every_connection_of_a_flood_is_served(lab, workers):
    count = 1500
    echo = lab.echo()
    proxy = lab.proxy(echo, *workers)
    sockets = connect_all(proxy.listen_address, count)
    lab.sockets += sockets
    exchange_all(sockets, 64, within=3 * DEADLINE)
    proxy.await_value(count, "tcp_proxy_connections_active")
    assert proxy.value("active_inbound_connections") == count
    assert proxy.value("active_outbound_connections") == count
    proxy.assert_idle()
    for sock in sockets:
        sock.close()
    proxy.await_closed(client_closed=count)
    assert proxy.value("inbound_bytes_count") == 64 * count
    assert proxy.value("outbound_bytes_count") == 64 * count


@pytest.mark.bare
def test_floods_that_come_and_go_leave_nothing_behind(lab):
    echo = lab.echo()
    proxy = lab.proxy(echo)
    resident = 0
    for round_number in range(4):
        sockets = connect_all(proxy.listen_address, 500)
        exchange_all(sockets, 16, within=3 * DEADLINE)
        for number, sock in enumerate(sockets):
            reset(sock) if number % 2 else sock.close()
        proxy.await_value(0, "tcp_proxy_connections_active")
        if round_number == 0:
            resident = proxy.resident_bytes()
    proxy.check_descriptors_given_back()
    grown = proxy.resident_bytes() - resident
    assert grown < 1 << 20, f"{grown} bytes more after three floods like the first"


def test_clients_that_connect_and_vanish_do_not_keep_others_waiting(lab):
    echo = lab.echo()
    proxy = lab.proxy(echo)
    for sock in connect_all(proxy.listen_address, 500):
        reset(sock)
    echo_once(lab.client(proxy))
    eventually(lambda: proxy.value("tcp_proxy_connections_active") == 1, "all others to be gone")
