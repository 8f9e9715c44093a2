"""A peer whose packets stop coming: the kernel gives up on it, and the reason says which side."""

from __future__ import annotations

import socket

from harness import DEADLINE, Lab, PATIENCE, expect_end, receive_exactly
from namespaces import in_network, own_network, run_in_network

# The kernel gives up after two retransmissions instead of a quarter of an hour: ip-sysctl.
SETUP = "sysctl -q -w net.ipv4.tcp_retries2=2"


def cut(pid: int) -> None:
    """A queue that holds no packet: all that loopback should carry is dropped."""
    run_in_network(pid, "tc", "qdisc", "add", "dev", "lo", "root", "tbf", "rate", "1kbit",
                   "burst", "1", "limit", "1")


def heal(pid: int) -> None:
    run_in_network(pid, "tc", "qdisc", "del", "dev", "lo", "root")


def test_target_that_vanishes_in_mid_relay(lab: Lab):
    """The client sits on a unix socket, which the cut does not touch."""
    proxy = lab.proxy(
        "127.0.0.1:7777", prefix=own_network(SETUP), listen=f"unix:{lab.folder}/listen",
        await_metrics=False,
    )
    target = in_network(proxy.pid, lambda: lab.target(("127.0.0.1", 7777)))
    client, server = lab.pair(proxy, target)
    client.sendall(b"hello")
    assert receive_exactly(server, 5) == b"hello"
    cut(proxy.pid)
    client.sendall(b"into the void")
    expect_end(client, within=3 * DEADLINE)
    line = proxy.await_line("reason=")
    assert "target-timeout" in line, line
    proxy.assert_idle()
    heal(proxy.pid)


def test_client_that_vanishes_in_mid_relay(lab: Lab):
    target = lab.target(str(lab.folder / "target"))
    proxy = lab.proxy(target, prefix=own_network(SETUP), await_metrics=False)
    client = in_network(proxy.pid, lambda: lab.client(proxy))
    server = target.accept()
    client.sendall(b"hello")
    assert receive_exactly(server, 5) == b"hello"
    cut(proxy.pid)
    server.sendall(b"into the void")
    expect_end(server, within=3 * DEADLINE)
    line = proxy.await_line("reason=")
    assert "client-timeout" in line, line
    heal(proxy.pid)


def test_out_of_local_ports_is_an_error_of_the_dial_and_passes(lab: Lab):
    """Four local ports for one target: the fifth connection finds none (EADDRNOTAVAIL)."""
    ports = 4
    proxy = lab.proxy(
        "127.0.0.1:7777",
        prefix=own_network('sysctl -q -w net.ipv4.ip_local_port_range="40000 40003"'),
        listen=f"unix:{lab.folder}/listen", metrics="127.0.0.1:9999", await_metrics=False,
    )
    target = in_network(proxy.pid, lambda: lab.target(("127.0.0.1", 7777)))
    pairs = [lab.pair(proxy, target) for _ in range(ports)]
    for _ in range(3):
        expect_end(lab.client(proxy))
    proxy.await_line("target-connect-failed")
    assert len(proxy.lines("target-connect-failed")) <= 3
    for number, (client, server) in enumerate(pairs):
        client.sendall(b"%d" % number)
        assert receive_exactly(server, 1) == b"%d" % number
    client, server = pairs.pop()
    client.setblocking(True)
    socket.socket.setsockopt(server, socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    server.close()  # a reset leaves no TIME-WAIT, so that the port is free at once
    expect_end(client)
    client, server = lab.pair(proxy, target)
    client.sendall(b"again")
    assert receive_exactly(server, 5) == b"again"
    proxy.assert_idle(deadline=5 * PATIENCE)
