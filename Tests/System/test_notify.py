"""Every message that the proxy sends to $NOTIFY_SOCKET, read in systemd's place."""

from __future__ import annotations

import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from container import Container, wait_until
from host import LISTEN, Host, exchange, read_exactly, target


class Manager:
    """The receiving end of sd_notify(3) and the process that it watches."""

    def __init__(self, container: Container, address: str, **environment: str) -> None:
        self.container = container
        with container.network():
            self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(container.unix_address(address))
        if not address.startswith("@"):
            container.run("chmod", "0666", address)
        self.socket.setblocking(False)
        self.messages: list[dict[str, str]] = []
        variables = [f"{name}={value}" for name, value in environment.items()]
        self.process = container.start(
            "env",
            f"NOTIFY_SOCKET={address}",
            *variables,
            "tcp-metrics-proxy",
            "-listen=127.0.0.1:3000",
            "-target=127.0.0.1:3001",
            "-metrics=127.0.0.1:0",
        )

    def received(self) -> list[dict[str, str]]:
        """All messages so far, one dictionary each."""
        while True:
            try:
                text = self.socket.recv(65536).decode()
            except BlockingIOError:
                return self.messages
            lines = [line.split("=", 1) for line in text.splitlines() if line]
            self.messages.append(dict(lines) | {"received": str(time.monotonic())})

    def wait(self, key: str, value: str | None = None, after: int = 0) -> dict[str, str]:
        """The first message, from number `after` on, that has this key and value."""

        def find() -> dict[str, str] | None:
            for message in self.received()[after:]:
                if key in message and value in (None, message[key]):
                    return message
            return None

        return wait_until(f"a message has {key}={value}", find)

    def signal(self, number: signal.Signals) -> None:
        self.container.kill(self.process, number)


@contextmanager
def manager(host: Host, address: str = "@test-notify", **environment: str) -> Iterator[Manager]:
    made = Manager(host.container, address, **environment)
    try:
        yield made
    finally:
        if made.process.poll() is None:
            host.container.kill(made.process, signal.SIGKILL)
        made.process.wait()
        made.socket.close()
        host.run("rm", "-f", "/run/test-notify")


@pytest.mark.parametrize("address", ["@test-notify", "/run/test-notify"])
def test_ready_comes_when_the_listener_accepts(host: Host, address: str) -> None:
    with manager(host, address) as systemd, target(host.container):
        ready = systemd.wait("READY", "1")
        assert "STATUS" in ready or systemd.wait("STATUS")
        with host.container.connect(LISTEN) as client:
            assert exchange(client) == b"ping"
        first = next(m for m in systemd.received() if "READY" in m)
        assert systemd.messages.index(first) == 0


def test_status_is_refreshed_at_most_once_a_second(host: Host) -> None:
    with manager(host) as systemd, target(host.container):
        systemd.wait("READY", "1")
        for _ in range(200):
            with host.container.connect(LISTEN) as client:
                assert exchange(client) == b"ping"
        wait_until(
            "the status tells of all",
            lambda: any("200 served" in m.get("STATUS", "") for m in systemd.received()),
        )
        times = [float(m["received"]) for m in systemd.messages if "STATUS" in m]
        for earlier, later in zip(times[1:], times[2:]):  # the first comes with READY=1
            assert later - earlier > 0.9


def test_reload_is_announced_with_its_time_and_ended(host: Host) -> None:
    with manager(host) as systemd:
        systemd.wait("READY", "1")
        before = len(systemd.received())
        asked = time.monotonic_ns() // 1000
        systemd.signal(signal.SIGHUP)
        reloading = systemd.wait("RELOADING", "1", after=before)
        assert asked <= int(reloading["MONOTONIC_USEC"]) <= time.monotonic_ns() // 1000
        after = systemd.messages.index(reloading)
        systemd.wait("READY", "1", after=after)


def test_drain_is_announced_and_asks_for_time_while_a_connection_is_open(host: Host) -> None:
    with manager(host) as systemd, target(host.container):
        systemd.wait("READY", "1")
        client = host.container.connect(LISTEN)
        client.sendall(b"a")
        assert read_exactly(client, 1) == b"a"
        before = len(systemd.received())
        systemd.signal(signal.SIGTERM)
        systemd.wait("STOPPING", "1", after=before)
        first = systemd.wait("EXTEND_TIMEOUT_USEC", after=before)
        again = systemd.messages.index(first) + 1
        second = systemd.wait("EXTEND_TIMEOUT_USEC", after=again)
        # Each must come before the time that the last one asked for has passed.
        gap = float(second["received"]) - float(first["received"])
        assert gap * 1e6 < int(first["EXTEND_TIMEOUT_USEC"])
        assert any(m.get("STATUS", "").startswith("Draining: 1 left") for m in systemd.messages)
        assert exchange(client) == b"ping"
        client.close()
        assert systemd.process.wait(timeout=5) == 0


def test_watchdog_is_fed_at_half_of_its_interval(host: Host) -> None:
    with manager(host, WATCHDOG_USEC="1000000") as systemd:
        systemd.wait("READY", "1")
        wait_until(
            "four signs of life",
            lambda: sum("WATCHDOG" in m for m in systemd.received()) >= 4,
        )
        times = [float(m["received"]) for m in systemd.messages if "WATCHDOG" in m]
        assert all(later - earlier < 0.9 for earlier, later in zip(times, times[1:]))


def test_watchdog_is_not_fed_unasked(host: Host) -> None:
    with manager(host) as systemd:
        systemd.wait("READY", "1")
        with pytest.raises(AssertionError, match="not within"):
            wait_until("fed", lambda: any("WATCHDOG" in m for m in systemd.received()), 1.5)


def test_a_failed_start_tells_the_error(host: Host) -> None:
    taken = host.container.listen(LISTEN)
    try:
        with manager(host) as systemd:
            assert systemd.process.wait(timeout=10) == 1
            messages = systemd.received()
            assert not any("READY" in message for message in messages)
            told = [message for message in messages if "ERRNO" in message]
            assert [(one["ERRNO"], one["EXIT_STATUS"]) for one in told] == [("98", "1")]
            assert "127.0.0.1:3000" in told[0]["STATUS"]  # EADDRINUSE
    finally:
        taken.close()


def test_runs_without_a_manager(host: Host) -> None:
    command = ["tcp-metrics-proxy", "-listen=127.0.0.1:3000", "-metrics=127.0.0.1:0"]
    process = host.container.start("env", "-u", "NOTIFY_SOCKET", *command)
    host.wait_listening(3000)
    host.container.kill(process, signal.SIGTERM)
    assert process.wait(timeout=10) == 0
