"""500 clients in one instant on a socket whose service is not running yet."""

from __future__ import annotations

import errno
import socket

from host import (
    DEFAULT_ROUTE,
    LISTEN,
    METRICS_SOCKET,
    SERVICE,
    SOCKET,
    Host,
    exchange,
    target,
)

CLIENTS = 500


def connect_all_at_once(host: Host) -> list[socket.socket]:
    clients = []
    with host.container.network():
        for _ in range(CLIENTS):
            client = socket.socket()
            client.setblocking(False)
            assert client.connect_ex(LISTEN) in (0, errno.EINPROGRESS)
            clients.append(client)
    for client in clients:
        client.settimeout(20)
    return clients


def test_every_client_of_a_burst_on_a_cold_socket_is_served(host: Host) -> None:
    host.enable(SOCKET, METRICS_SOCKET)
    assert host.container.state(SERVICE) == "inactive"
    with target(host.container):
        for round_number in (1, 2):  # cold, then warm
            clients = connect_all_at_once(host)
            try:
                for number, client in enumerate(clients):
                    message = f"client {number}".encode()
                    assert exchange(client, message) == message
            finally:
                for client in clients:
                    client.close()
            name = "tcp_proxy_connections_accepted_total"
            assert host.metrics().metric(name, route=DEFAULT_ROUTE) == round_number * CLIENTS
    assert host.container.state(SOCKET) == "active"
    assert host.container.property(SERVICE, "NRestarts") == "0"


def test_bursts_on_a_stopped_service_never_fail_the_socket_for_good(host: Host) -> None:
    """More starts in a row than systemd's default limits allow (5 in 10 s, 20 in 2 s)."""
    host.enable(SOCKET)
    with target(host.container):
        for _ in range(25):
            with host.container.connect(LISTEN) as client:
                assert exchange(client) == b"ping"
            host.systemctl("stop", SERVICE)
    assert host.container.state(SOCKET) == "active"
