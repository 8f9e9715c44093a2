"""A name server that never answers: look-ups take for ever, and nobody else waits for them."""

from __future__ import annotations

import os
import socket
import time

import pytest

from harness import DEADLINE, PATIENCE, Lab, Proxy, expect_reset
from namespaces import own_files


@pytest.fixture
def prefix(lab, folder):
    """Names are asked of a socket that reads nothing."""
    silent = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    lab.sockets.append(silent)
    address = f"127.{os.getpid() % 200 + 10}.9.9"  # 127/8 is loopback: another one for each run
    silent.bind((address, 53))
    (folder / "resolv.conf").write_text(f"nameserver {address}\n")
    (folder / "nsswitch.conf").write_text("hosts: dns\n")
    return own_files({
        "/etc/resolv.conf": folder / "resolv.conf",
        "/etc/nsswitch.conf": folder / "nsswitch.conf",
    })


def slow(lab: Lab, prefix: list[str], *arguments: str) -> Proxy:
    return lab.proxy("slow.example:80", *arguments, prefix=prefix)


def test_start_does_not_wait_for_the_look_up(lab, prefix):
    began = time.monotonic()
    proxy = slow(lab, prefix)
    proxy.scrape()
    took = time.monotonic() - began
    assert took < 2 * PATIENCE, f"{took:.1f} s to listen; a look-up takes ten"


def test_clients_are_told_at_the_connect_timeout_and_threads_do_not_pile_up(lab, prefix):
    proxy = slow(lab, prefix, "--connect-timeout=1s")
    began = time.monotonic()
    clients = [lab.client(proxy) for _ in range(100)]
    for client in clients:
        expect_reset(client)
    took = time.monotonic() - began
    assert 0.9 <= took <= 3 * PATIENCE, f"told after {took:.1f} s instead of 1 s"
    proxy.await_closed(target_unresolved=100)
    threads = len(os.listdir(f"/proc/{proxy.pid}/task"))
    assert threads < 20, f"{threads} threads"
    proxy.assert_idle()


def test_client_that_leaves_during_the_look_up_is_let_go(lab, prefix):
    proxy = slow(lab, prefix)
    clients = [lab.client(proxy) for _ in range(5)]
    proxy.await_value(5, "tcp_proxy_connections_active")
    for client in clients:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        client.close()
    proxy.await_closed(client_left=5)


def test_drain_is_not_held_up_by_a_look_up(lab, prefix):
    """One look-up cannot be called off; the process must not wait for it."""
    proxy = slow(lab, prefix, "--connect-timeout=500ms")
    client = lab.client(proxy)
    proxy.await_value(1, "tcp_proxy_connections_active")
    began = time.monotonic()
    proxy.terminate()
    expect_reset(client)
    assert proxy.await_exit(0) - began < 0.3 * DEADLINE
