"""`systemctl stop` waits for open connections, tells how many are left, and loses no client."""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from container import wait_until
from host import (
    LISTEN,
    METRICS_SOCKET,
    SERVICE,
    SOCKET,
    Host,
    exchange,
    read_exactly,
    target,
)

STOP_SECONDS = 2  # TimeoutStopSec= of these tests, shorter than the drains


@contextmanager
def one_open(host: Host, options: str = "--drain-timeout=infinity") -> Iterator[socket.socket]:
    host.drop_in(
        SERVICE,
        f"[Service]\nTimeoutStopSec={STOP_SECONDS}\nExecStart=\n"
        f"ExecStart=/usr/bin/tcp-metrics-proxy {options}\n",
    )
    host.enable(SOCKET)
    with target(host.container), host.container.connect(LISTEN) as client:
        client.sendall(b"a")
        assert read_exactly(client, 1) == b"a"
        yield client


def test_a_drain_outlasts_timeout_stop_sec_and_tells_its_progress(host: Host) -> None:
    with one_open(host) as client:
        host.systemctl("stop", "--no-block", SERVICE)
        begin = "Draining: 1 left"
        wait_until("status tells of the drain", lambda: host.status_text().startswith(begin))
        deadline = time.monotonic() + 2.5 * STOP_SECONDS
        while time.monotonic() < deadline:  # relayed all the while, not only at the end
            client.sendall(b"b")
            assert read_exactly(client, 1) == b"b"
            assert host.container.state(SERVICE) == "deactivating"
        assert exchange(client) == b"ping"
        host.container.wait_state(SERVICE, "inactive", seconds=2)
    assert host.container.property(SERVICE, "Result") == "success"
    assert host.container.property(SERVICE, "ExecMainStatus") == "0"
    assert host.entries("DRAIN_BEGUN") and host.entries("DRAIN_PROGRESS")
    assert host.entries("DRAIN_ENDED")


def test_status_tells_the_age_of_the_oldest(host: Host) -> None:
    with one_open(host) as client:
        host.systemctl("stop", "--no-block", SERVICE)

        def age() -> int:
            found = re.fullmatch(r"Draining: 1 left, the oldest for (\d+) s", host.status_text())
            return int(found[1]) if found else -1

        wait_until("status tells an age that grows", lambda: age() >= 2)
        exchange(client)
        host.container.wait_state(SERVICE, "inactive")


def test_without_connections_a_stop_is_immediate(host: Host) -> None:
    with one_open(host) as client:
        exchange(client)
        client.close()
        wait_until("none is open", lambda: host.status_text().startswith("0 open"))
        began = time.monotonic()
        host.systemctl("stop", SERVICE)
        assert time.monotonic() - began < 1.5


def test_the_drain_timeout_cuts_what_is_open(host: Host) -> None:
    with one_open(host, "--drain-timeout=1s") as client:
        began = time.monotonic()
        host.systemctl("stop", SERVICE)
        assert 0.8 < time.monotonic() - began < 5
        with pytest.raises(ConnectionResetError):
            client.recv(1)
    assert host.container.property(SERVICE, "ExecMainStatus") == "1"
    assert host.entries("DRAIN_ENDED")


def test_a_second_signal_ends_the_drain(host: Host) -> None:
    with one_open(host):
        host.systemctl("stop", "--no-block", SERVICE)
        wait_until("it drains", lambda: host.status_text().startswith("Draining"))
        host.systemctl("kill", SERVICE)
        host.container.wait_state(SERVICE, "failed", seconds=2)
    assert host.container.property(SERVICE, "ExecMainStatus") == "1"


def test_clients_that_come_during_a_drain_are_served_after_it(host: Host) -> None:
    """The socket stays open: they wait in the backlog and start the service again."""
    with one_open(host) as client:
        first = host.main_pid()
        host.systemctl("stop", "--no-block", SERVICE)
        wait_until("it drains", lambda: host.status_text().startswith("Draining"))
        with host.container.connect(LISTEN) as late:
            late.sendall(b"late")
            late.settimeout(0.5)
            with pytest.raises(TimeoutError):
                late.recv(1)
            assert exchange(client) == b"ping"
            client.close()
            late.settimeout(10)
            assert read_exactly(late, 4) == b"late"
            assert host.main_pid() not in (0, first)


def test_nothing_but_the_proxys_own_entries_is_in_the_log(host: Host) -> None:
    """No library complains on stderr about what the sandbox denies."""
    host.enable(SOCKET, METRICS_SOCKET)
    with target(host.container), host.container.connect(LISTEN) as client:
        assert host.metrics().status == 200
        assert exchange(client) == b"ping"
    host.systemctl("reload", SERVICE)
    host.systemctl("stop", SERVICE)
    host.wait_entry("DRAIN_ENDED")
    assert host.entries(None, "_TRANSPORT=stdout") == []


def test_stopping_the_sockets_too_turns_clients_away(host: Host) -> None:
    with one_open(host) as client:
        host.systemctl("stop", "--no-block", SOCKET, SERVICE)
        wait_until("it drains", lambda: host.status_text().startswith("Draining"))
        assert exchange(client) == b"ping"
        client.close()
        host.container.wait_state(SOCKET, "inactive")
        with pytest.raises(ConnectionRefusedError):
            host.container.connect(LISTEN)
    assert host.container.state(SERVICE) == "inactive"
