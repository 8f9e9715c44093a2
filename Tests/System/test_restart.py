"""`systemctl restart` with open connections: they go on in the next process, whatever happens."""

from __future__ import annotations

import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import pytest
import trees
from container import wait_until
from host import (
    DEFAULT_ROUTE,
    LISTEN,
    SERVICE,
    SOCKET,
    Host,
    exchange,
    read_all,
    read_exactly,
    target,
)
from survival import (
    ACTIVE,
    ENTRIES,
    GAP,
    GAP_SECONDS,
    LOST,
    RESUMED,
    Bulk,
    PingPong,
    enable,
    kill,
    lost_connections,
    meanwhile,
    resumed,
    wait_entered,
    wait_replaced,
)

def restart(host: Host) -> None:
    pid = host.main_pid()
    host.systemctl("restart", SERVICE)
    assert host.main_pid() not in (0, pid)


def restart_somehow(host: Host) -> None:
    """The same while systemd replaces itself, which cuts systemctl's own connection to it."""
    pid = wait_replaced(host, 0)

    def done() -> bool:
        if host.systemctl("restart", SERVICE, check=False).returncode == 0:
            return True
        seen = host.systemctl("show", SERVICE, "-P", "MainPID", check=False).stdout.strip()
        return seen.isdigit() and int(seen) not in (0, pid)

    wait_until("it is restarted", done)
    wait_replaced(host, pid)


# ---- ping-pong


@pytest.mark.parametrize("count", [1, 100, 1000, 4000])
def test_every_connection_goes_on(host: Host, count: int) -> None:
    enable(host)
    with PingPong(host.container, count, period=0.1 if count < 1000 else 0.4) as load:
        load.wait_round()
        restart(host)
        report = load.wait_round()
        assert resumed(host) == (count, 0)
        assert host.metrics().metric(ACTIVE) == count
        print(f"{count} connections: longest gap {report['longest_gap'] * 1000:.0f} ms")
        assert report["longest_gap"] < GAP_SECONDS
        load.finish()


def test_twenty_restarts_in_a_row_under_new_clients_lose_and_refuse_nobody(host: Host) -> None:
    """Connections of any age: the kept ones, those that live for a fifth of a second, and those
    that a restart meets in their first millisecond."""
    enable(host)
    with PingPong(host.container, 100, churn=200, messages=3) as load:
        load.wait_round()
        for _ in range(20):
            restart(host)
        load.wait_round()
        report = load.finish()
        assert report["completed"] > 200
    entries = host.entries("CONNECTIONS_RESUMED")
    assert len(entries) == 20
    assert {entry["PROXY_LOST"] for entry in entries} == {"0"}
    assert host.container.property(SERVICE, "NRestarts") == "0"


def test_bulk_at_full_speed_goes_on_and_none_is_reset(host: Host) -> None:
    """Bytes move all the while that the next process takes its connections over."""
    enable(host)
    with Bulk(host.container, 4) as load:
        for _ in range(10):
            load.wait_bytes(5_000_000)
            restart(host)
        load.wait_bytes(5_000_000)
        load.finish()
    assert lost_connections(host) == 0


def test_a_restart_during_a_restart(host: Host) -> None:
    """The second finds the process that is to hand over, or the one that is taking over."""
    enable(host)
    with PingPong(host.container, 200, churn=50) as load:
        load.wait_round()
        for pause in (0, 0.01, 0.03, 0.06, 0.1):
            for _ in range(3):
                host.systemctl("restart", "--no-block", SERVICE)
                time.sleep(pause)  # where in the restart the next one comes
            host.container.wait_state(SERVICE, "active")
            load.wait_round()
        load.finish()


@pytest.mark.parametrize("command", ["reload", "daemon-reload", "daemon-reexec"])
def test_a_reload_at_the_same_time(host: Host, command: str) -> None:
    enable(host)
    arguments = [command, SERVICE] if command == "reload" else [command]

    def reload() -> None:
        """May be refused, while the service starts or stops: only the clients count here."""
        host.systemctl(*arguments, check=False)

    with PingPong(host.container, 200, churn=50) as load:
        load.wait_round()
        with meanwhile(reload):
            for _ in range(5):
                restart_somehow(host)
        load.wait_round()
        assert resumed(host)[1] == 0
        load.finish()


# ---- what peers do while there is no process


class Peers:
    """Connections of which the test has both ends."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.arrived: list[socket.socket] = []
        self.kept = threading.Event()

    def serve(self, connection: socket.socket) -> None:
        self.arrived.append(connection)
        self.kept.wait()  # the connection is the test's until the end

    def pair(self) -> tuple[socket.socket, socket.socket]:
        """A client and its target's end, established and used once each way."""
        before = len(self.arrived)
        client = self.host.container.connect(LISTEN)
        wait_until("the target has it", lambda: len(self.arrived) > before)
        server = self.arrived[-1]
        server.settimeout(10)
        for one, other in ((client, server), (server, client)):
            one.sendall(b"hello")
            assert read_exactly(other, 5) == b"hello"
        return client, server


@contextmanager
def peers(host: Host) -> Iterator[Peers]:
    made = Peers(host)
    with target(host.container, serve=made.serve):
        try:
            yield made
        finally:
            made.kept.set()


def fin(sender: socket.socket, receiver: socket.socket) -> Callable[[], None]:
    sender.shutdown(socket.SHUT_WR)

    def check() -> None:
        assert receiver.recv(1) == b""
        receiver.sendall(b"still here")  # half-closed, no more
        assert read_exactly(sender, 10) == b"still here"
        receiver.shutdown(socket.SHUT_WR)
        assert sender.recv(1) == b""

    return check


def data_and_fin(sender: socket.socket, receiver: socket.socket) -> Callable[[], None]:
    sender.sendall(b"last words")
    sender.shutdown(socket.SHUT_WR)

    def check() -> None:
        assert read_all(receiver) == b"last words"
        receiver.sendall(b"answer")
        receiver.shutdown(socket.SHUT_WR)
        assert read_all(sender) == b"answer"

    return check


def reset(sender: socket.socket, receiver: socket.socket) -> Callable[[], None]:
    sender.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sender.close()

    def check() -> None:
        with pytest.raises(ConnectionResetError):
            while receiver.recv(100):
                pass

    return check


def both_fins(sender: socket.socket, receiver: socket.socket) -> Callable[[], None]:
    sender.sendall(b"from one")
    receiver.sendall(b"from the other")
    for end in (sender, receiver):
        end.shutdown(socket.SHUT_WR)

    def check() -> None:
        assert read_all(receiver) == b"from one"
        assert read_all(sender) == b"from the other"

    return check


EVENTS = [fin, data_and_fin, reset, both_fins]


def test_what_peers_do_while_the_service_is_down_is_passed_on(host: Host) -> None:
    host.drop_in(SERVICE, "[Service]\nRestartSec=2\n")
    enable(host)
    with peers(host) as made, ExitStack() as stack:
        pairs = [(event, side, made.pair()) for event in EVENTS for side in ("client", "target")]
        idle = made.pair()
        for one in (*(pair for _, _, pair in pairs), idle):
            for end in one:
                stack.enter_context(end)
        wait_entered(host, len(pairs) + 1)
        pid = host.main_pid()
        host.run("kill", "-KILL", str(pid))
        wait_until("it is down", lambda: host.main_pid() == 0)
        checks = []
        for event, side, (client, server) in pairs:
            ends = (client, server) if side == "client" else (server, client)
            checks.append((event, side, event(*ends)))
        assert host.main_pid() == 0  # all of that was while it was down
        wait_replaced(host, pid)
        for event, side, check in checks:
            try:
                check()
            except (AssertionError, OSError, pytest.fail.Exception) as error:
                raise AssertionError(f"{event.__name__} from the {side}: {error!r}") from error
        client, server = idle
        server.sendall(b"unhurt")
        assert read_exactly(client, 6) == b"unhurt"
        assert resumed(host) == (len(pairs) + 1, 0)


def test_a_client_whose_target_is_not_there_yet_waits_on(host: Host) -> None:
    """Through a restart and a crash; what it has sent meanwhile arrives."""
    enable(host)
    with host.container.connect(LISTEN) as client:
        client.sendall(b"early")
        wait_entered(host, 1)  # while it is being dialled
        restart(host)
        kill(host)
        with target(host.container):
            assert exchange(client, b" bird") == b"early bird"
    assert lost_connections(host) == 0


def test_unix_sockets_on_either_side(host: Host) -> None:
    """The kernel counts no bytes of theirs; the table does."""
    host.write_route("from", "/run/test-from", "Target=127.0.0.1:3001")
    host.write_route("both", "/run/test-both", "Target=@test-echo")
    host.write_route("to", "127.0.0.1:3100", "Target=@test-echo")
    host.enable("from.socket", "both.socket", "to.socket")
    enable(host)
    addresses: dict[str, tuple[str, int] | str] = {
        "from": "/run/test-from",
        "both": "/run/test-both",
        "to": ("127.0.0.1", 3100),
    }
    with target(host.container), target(host.container, "@test-echo"), ExitStack() as stack:
        clients = {
            name: stack.enter_context(host.container.connect(address))
            for name, address in addresses.items()
        }
        for name, client in clients.items():
            client.sendall(name.encode())
            assert read_exactly(client, len(name)) == name.encode()
        wait_entered(host, len(clients))
        for end in (restart, kill):
            end(host)
            for name, client in clients.items():
                data = name.encode() * 1000
                client.sendall(data)
                assert read_exactly(client, len(data)) == data
        for name, client in clients.items():
            assert exchange(client) == b"ping", name
    for name in clients:
        entry = host.wait_entry("CONNECTION_ENDED", f"PROXY_ROUTE={name}")
        total = str(len(name) * 2001 + 4)
        assert (entry["PROXY_BYTES_IN"], entry["PROXY_BYTES_OUT"]) == (total, total)
    assert lost_connections(host) == 0


# ---- what the administrator sees


def test_status_journal_and_metrics_tell_of_a_restart(host: Host) -> None:
    enable(host)
    with PingPong(host.container, 30) as load:
        wait_entered(host, 30)
        restart(host)
        wait_until(
            "the status tells of it",
            lambda: host.status_text().startswith("Resumed 30 connections after a restart"),
        )
        assert "; 30 open, " in host.status_text()
        assert "Resumed 30 connections" in host.systemctl("status", SERVICE).stdout
        load.wait_round()
        reply = host.metrics()
        assert reply.metric(RESUMED, cause="restart") == 30
        assert reply.metric(RESUMED, cause="crash") == 0
        assert reply.metric(LOST) == 0
        assert 0 < reply.metric(GAP) < GAP_SECONDS
        assert reply.metric(ENTRIES) == 30
        assert 0 < reply.metric("tcp_proxy_ledger_bytes") < 1_000_000
        assert reply.metric(ACTIVE, route=DEFAULT_ROUTE) == 30
        load.finish()
    began = host.wait_entry("HANDOVER_BEGAN")
    assert "handing over 30 connections to the next start" in began["MESSAGE"]
    entry = host.wait_entry("CONNECTIONS_RESUMED")
    text = r"resumed 30 connections after a restart, gap [\d.]+ (ms|s)"
    assert re.fullmatch(text, entry["MESSAGE"]), entry["MESSAGE"]
    assert (entry["PROXY_CAUSE"], entry["PROXY_RESUMED"], entry["PROXY_LOST"]) == (
        "restart",
        "30",
        "0",
    )
    assert 0 < int(entry["PROXY_GAP_USEC"]) < GAP_SECONDS * 1e6
    assert entry["PRIORITY"] == "5"
    shown = host.run("journalctl", "-x", "-u", SERVICE, "--lines=200", "--no-pager").stdout
    assert "Connections go on after a restart" in shown
    assert "@PROXY_" not in shown


def test_the_gap_in_the_metrics_is_0_before_the_first_restart(host: Host) -> None:
    enable(host)
    with target(host.container), host.container.connect(LISTEN) as client:
        assert exchange(client) == b"ping"
    reply = host.metrics()
    assert reply.metric(GAP) == reply.metric(RESUMED) == reply.metric(LOST) == 0
    assert host.entries("CONNECTIONS_RESUMED") == []


def test_the_last_entry_of_a_resumed_connection_tells_of_its_whole_life(host: Host) -> None:
    host.write_route("other", "127.0.0.1:3100", "Target=127.0.0.1:3001")
    host.enable("other.socket")
    enable(host)
    earliest = time.monotonic()
    with target(host.container), host.container.connect(("127.0.0.1", 3100)) as client:
        port = client.getsockname()[1]
        for number in range(3):
            data = bytes([number]) * 1000
            client.sendall(data)
            assert read_exactly(client, 1000) == data
            latest = time.monotonic() if number == 0 else latest
            if number < 2:
                restart(host)
        wait_until("it is older than a second", lambda: time.monotonic() > latest + 1)
        least = time.monotonic() - latest
        assert exchange(client, b"") == b""
    entry = host.wait_entry("CONNECTION_ENDED", "PROXY_ROUTE=other")
    most = time.monotonic() - earliest
    assert (entry["PROXY_BYTES_IN"], entry["PROXY_BYTES_OUT"]) == ("3000", "3000")
    assert entry["PROXY_CLIENT_ADDRESS"] == "127.0.0.1"
    assert entry["PROXY_CLIENT_PORT"] == str(port)
    assert entry["PROXY_LISTEN_ADDRESS"] == "127.0.0.1:3100"
    assert entry["PROXY_TARGET"] == "127.0.0.1:3001"
    assert entry["PROXY_CLOSE_REASON"] == "client-closed"
    assert least <= int(entry["PROXY_DURATION_USEC"]) / 1e6 <= most
    assert len(host.entries("CONNECTION_ENDED", "PROXY_ROUTE=other")) == 1


def test_a_routes_limits_hold_for_resumed_connections(host: Host) -> None:
    host.drop_in(SOCKET, "[X-Proxy]\nConnectionsMax=2\nIdleTimeoutSec=2s\n")
    enable(host)
    with target(host.container), ExitStack() as stack:
        clients = [stack.enter_context(host.container.connect(LISTEN)) for _ in range(2)]
        for client in clients:
            client.sendall(b"a")
            assert read_exactly(client, 1) == b"a"
        restart(host)
        with pytest.raises(ConnectionResetError), host.container.connect(LISTEN) as third:
            third.recv(1)
        for client in clients:  # idle since before the restart
            with pytest.raises(ConnectionResetError):
                client.recv(1)
    reason = "PROXY_CLOSE_REASON=idle-timeout"
    wait_until("both are told", lambda: len(host.entries(None, reason)) == 2)
    for entry in host.entries(None, reason):
        assert 2 <= int(entry["PROXY_DURATION_USEC"]) / 1e6 < 4


# ---- what is not handed over


def test_a_stop_drains_resumed_connections_as_any(host: Host) -> None:
    enable(host)
    with target(host.container), host.container.connect(LISTEN) as client:
        client.sendall(b"a")
        assert read_exactly(client, 1) == b"a"
        restart(host)
        host.systemctl("stop", "--no-block", SERVICE)
        wait_until("it drains", lambda: host.status_text().startswith("Draining: 1 left"))
        assert exchange(client) == b"ping"
    host.container.wait_state(SERVICE, "inactive")
    assert host.container.show(SERVICE, "NFileDescriptorStore", "Result") == {
        "NFileDescriptorStore": "0",
        "Result": "success",
    }


def test_a_stop_and_a_start_carry_over_where_the_administrator_asks_for_it(
    host: Host, release: trees.Release
) -> None:
    if release.systemd < 254:
        pytest.skip("FileDescriptorStorePreserve= came with systemd 254")
    host.drop_in(SERVICE, "[Service]\nFileDescriptorStorePreserve=yes\nKillSignal=SIGUSR2\n")
    enable(host)
    try:
        with PingPong(host.container, 20, period=0.5) as load:
            load.wait_round()
            host.systemctl("stop", SERVICE)
            assert host.container.state(SERVICE) == "inactive"
            host.systemctl("start", SERVICE)
            load.wait_round()
            assert resumed(host) == (20, 0)
            load.finish()
    finally:
        host.systemctl("stop", SOCKET, SERVICE, check=False)
        host.systemctl("clean", "--what=fdstore", SERVICE, check=False)


def test_a_route_may_let_its_connections_end_with_the_process(host: Host) -> None:
    host.write_route("mortal", "127.0.0.1:3100", "Target=127.0.0.1:3001\nPreserve=no")
    host.enable("mortal.socket")
    enable(host)
    with target(host.container), host.container.connect(LISTEN) as immortal:
        with host.container.connect(("127.0.0.1", 3100)) as mortal:
            for client in (immortal, mortal):
                client.sendall(b"a")
                assert read_exactly(client, 1) == b"a"
            wait_entered(host, 1)
            kill(host)
            with pytest.raises((ConnectionResetError, AssertionError)):
                read_exactly(mortal, 1)
        immortal.sendall(b"b")
        assert read_exactly(immortal, 1) == b"b"
        assert resumed(host) == (1, 0)


def test_the_connections_of_a_route_that_is_gone_go_on(host: Host) -> None:
    """All that they need is in the ledger. One that had no target yet has nowhere to go."""
    host.write_route("gone", "127.0.0.1:3100", "Target=127.0.0.1:3001")
    host.write_route("lost", "127.0.0.1:3101", "Target=127.0.0.1:3099")
    host.enable("gone.socket", "lost.socket")
    host.drop_in(SERVICE, "[Service]\nRestartSec=1\n")
    enable(host)
    with (
        target(host.container),
        host.container.connect(("127.0.0.1", 3100)) as client,
        host.container.connect(("127.0.0.1", 3101)) as undialled,
    ):
        client.sendall(b"a")
        assert read_exactly(client, 1) == b"a"
        wait_entered(host, 2)
        pid = host.main_pid()
        host.run("kill", "-KILL", str(pid))
        wait_until("it is down", lambda: host.main_pid() == 0)
        host.systemctl("disable", "--now", "gone.socket", "lost.socket")
        host.run("rm", "/etc/systemd/system/gone.socket", "/etc/systemd/system/lost.socket")
        host.systemctl("daemon-reload")
        wait_replaced(host, pid)
        assert exchange(client) == b"ping"
        with pytest.raises(ConnectionResetError):
            undialled.recv(1)
        assert host.metrics().metric(LOST, reason="no-route") == 1
    entry = host.wait_entry("CONNECTION_ENDED", "PROXY_ROUTE=gone")
    assert (entry["PROXY_BYTES_IN"], entry["PROXY_TARGET"]) == ("5", "127.0.0.1:3001")
    assert host.wait_entry("CONNECTIONS_RESUMED")["PRIORITY"] == "4"
    (lost,) = host.entries("CONNECTION_FAILED", "PROXY_CLOSE_REASON=lost")
    assert lost["PROXY_ROUTE"] == "lost"


def test_preserve_after_0_enters_a_connection_at_once(host: Host) -> None:
    host.drop_in(SOCKET, "[X-Proxy]\nPreserveAfterSec=0\n")
    enable(host)
    with target(host.container):
        for _ in range(3):
            with host.container.connect(LISTEN) as client:
                client.sendall(b"a")
                assert read_exactly(client, 1) == b"a"
                kill(host)
                assert exchange(client) == b"ping"


def test_no_preserve_makes_a_restart_drain(host: Host) -> None:
    command = "/usr/bin/tcp-metrics-proxy --drain-timeout=90s --no-preserve"
    host.drop_in(SERVICE, f"[Service]\nExecStart=\nExecStart={command}\n")
    enable(host)
    with target(host.container):
        with host.container.connect(LISTEN) as client:
            client.sendall(b"a")
            assert read_exactly(client, 1) == b"a"
            pid = host.main_pid()
            host.systemctl("restart", "--no-block", SERVICE)
            wait_until("it drains", lambda: host.status_text().startswith("Draining: 1 left"))
            with host.container.connect(LISTEN) as late:
                assert exchange(client) == b"ping"
                client.close()
                assert exchange(late) == b"ping"
        assert wait_replaced(host, pid)
    assert host.entries("DRAIN_ENDED")
    assert host.entries("CONNECTIONS_RESUMED") == host.entries("PRESERVATION_OFF") == []
