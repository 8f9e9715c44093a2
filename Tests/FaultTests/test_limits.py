"""--connections-max is exact: N are served, the next is refused, a free place is taken again."""

import socket

import pytest

from harness import DEADLINE, echo_once, eventually, expect_end, reset
from test_flood import connect_all


@pytest.mark.parametrize("option", ["--connections-max=3", "-connections-max=3"])
def test_n_are_served_and_the_next_is_refused(lab, option):
    echo = lab.echo()
    proxy = lab.proxy(echo, option)
    clients = [lab.client(proxy) for _ in range(3)]
    for client in clients:
        echo_once(client)
    for refused in range(1, 4):
        assert _refused(lab, proxy)
        proxy.await_value(refused, "tcp_proxy_connections_rejected_total", reason="limit")
    for client in clients:
        echo_once(client)
    assert proxy.value("tcp_proxy_connections_active") == 3
    assert echo.accepted == 3

    clients.pop().close()
    proxy.await_value(2, "tcp_proxy_connections_active")
    again = lab.client(proxy)
    echo_once(again)
    assert _refused(lab, proxy)


def _refused(lab, proxy) -> bool:
    try:
        client = lab.client(proxy)
    except ConnectionResetError:
        return True
    expect_end(client)
    return True


def test_short_form(lab):
    echo = lab.echo()
    proxy = lab.proxy(echo, "-c", "1")
    echo_once(lab.client(proxy))
    assert _refused(lab, proxy)


@pytest.mark.parametrize("workers", [1, 2])
def test_limit_is_exact_in_a_flood(lab, workers):
    echo = lab.echo()
    limit = 10
    proxy = lab.proxy(echo, f"--connections-max={limit}", f"--workers={workers}")
    for _ in range(3):
        clients = connect_all(proxy.listen_address, 100)
        lab.sockets += clients
        served, refused = _sort(clients)
        assert (len(served), len(refused)) == (limit, 100 - limit)
        for client in served:
            reset(client)
        proxy.await_value(0, "tcp_proxy_connections_active")
    assert echo.accepted == 3 * limit
    metrics = proxy.scrape()
    assert metrics.value("tcp_proxy_connections_rejected_total", reason="limit") == 270
    assert metrics.value("inbound_connection_count") in (30, 300)


def _sort(clients: list[socket.socket]) -> tuple[list[socket.socket], list[socket.socket]]:
    """Those that get an echo, and those that are told no; each must be one of the two."""
    served, refused = [], []
    for client in clients:
        client.settimeout(DEADLINE)
        try:
            client.sendall(b"x")
            (served if client.recv(1) else refused).append(client)
        except OSError as error:
            assert not isinstance(error, socket.timeout), "neither served nor refused"
            refused.append(client)
    return served, refused


def test_failed_dials_do_not_use_up_the_limit(lab):
    target = lab.unlistened()
    proxy = lab.proxy(target, "--connections-max=2")
    for _ in range(20):
        lab.expect_refusal(proxy)
    eventually(lambda: proxy.value("tcp_proxy_connections_active") == 0, "all dials to end")
    target.socket.listen(8)
    for _ in range(2):
        client, server = lab.pair(proxy, target)
        client.sendall(b"x")
        assert server.recv(1) == b"x"
    assert _refused(lab, proxy)
