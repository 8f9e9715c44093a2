"""Socket activation starts proxies before backends: the client is held until its target listens."""

from __future__ import annotations

import time

import pytest
from container import wait_until
from host import LISTEN, SERVICE, SOCKET, TARGET, Host, exchange, read_exactly, target


@pytest.mark.parametrize("address", [TARGET, "/run/test-late", "@late"], ids=str)
def test_a_client_is_held_until_the_target_listens(host: Host, address) -> None:
    named = address if isinstance(address, str) else f"{address[0]}:{address[1]}"
    host.drop_in(SOCKET, f"[X-Proxy]\nTarget=\nTarget={named}\n")
    host.enable(SOCKET)
    with host.container.connect(LISTEN) as client:
        client.sendall(b"early")
        host.container.wait_state(SERVICE, "active")
        wait_until("the client is in", lambda: host.status_text().startswith("1 open"))
        client.settimeout(0.5)
        with pytest.raises(TimeoutError):
            client.recv(1)
        client.settimeout(10)
        with target(host.container, address):
            assert read_exactly(client, 5) == b"early"
            assert exchange(client) == b"ping"
    host.run("rm", "-f", "/run/test-late")


def test_the_wait_ends_with_the_connect_timeout(host: Host) -> None:
    host.drop_in(SOCKET, "[X-Proxy]\nConnectTimeoutSec=1s\n")
    host.enable(SOCKET)
    host.systemctl("start", SERVICE)
    began = time.monotonic()
    with host.container.connect(LISTEN) as client, pytest.raises(ConnectionResetError):
        client.recv(1)
    assert 0.8 < time.monotonic() - began < 4
