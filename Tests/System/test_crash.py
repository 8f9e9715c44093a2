"""The process is killed with connections open: they go on in the next one, and no byte is amiss.

Where the process dies between taking bytes from one side and giving them to the other they are
gone, and that connection is reset: a few at most, counted, and none with a hole in it.
"""

from __future__ import annotations

import socket
import threading
import time
from contextlib import ExitStack

import pytest
from bulk import PATTERN, PERIOD
from container import wait_until
from descriptors import bytes_in_pipes
from host import LISTEN, SERVICE, SOCKET, Host, read_all, target
from survival import (
    ACTIVE,
    ENTRIES,
    GAP,
    GAP_SECONDS,
    RESUMED,
    Bulk,
    PingPong,
    enable,
    kill,
    lost_connections,
    meanwhile,
    wait_entered,
    wait_replaced,
)

KILLS = 3
FEW = 2  # connections that all the kills of a test may catch with bytes in the process
MEGABYTE = 1_000_000
RESETS = {"kept: ECONNRESET", "kept: EPIPE", "target: ECONNRESET", "target: EPIPE"}
# What a client may see that the crash meets in its first second.
YOUNG = {"short: ECONNRESET", "short: EPIPE", "short: end of stream"}


def lose_few(host: Host, load: PingPong | Bulk) -> None:
    """What broke is what the proxy tells of, and little."""
    lost = lost_connections(host)
    print(f"{lost} connections were reset by the hole check")
    assert load.broken() == lost <= FEW, load.last


@pytest.mark.parametrize("signal", ["KILL", "SEGV", "ABRT"])
def test_ping_pong_goes_on(host: Host, signal: str) -> None:
    enable(host)
    with PingPong(host.container, 200) as load:
        load.expected = RESETS
        for number in range(KILLS):
            wait_entered(host, 200 - load.broken() if number else 200)
            kill(host, signal)
            report = load.wait_round()
            print(f"longest gap {report['longest_gap'] * 1000:.0f} ms")
        reply = host.metrics()
        lost = lost_connections(host)
        assert reply.metric(ACTIVE) == 200 - lost
        assert reply.metric(RESUMED, cause="crash") >= 200 - FEW
        assert reply.metric(RESUMED, cause="restart") == 0
        assert 0 < reply.metric(GAP) < GAP_SECONDS
        load.finish()
        lose_few(host, load)
    entries = host.entries("CONNECTIONS_RESUMED")
    assert len(entries) == KILLS
    for entry in entries:
        assert entry["PROXY_CAUSE"] == "crash"
        assert "connections after a crash, gap " in entry["MESSAGE"]
        assert 0 < int(entry["PROXY_GAP_USEC"]) < GAP_SECONDS * 1e6, entry["MESSAGE"]
    assert host.container.property(SERVICE, "NRestarts") == str(KILLS)


def test_the_watchdog_costs_no_connection(host: Host) -> None:
    host.drop_in(SERVICE, "[Service]\nWatchdogSec=1\n")
    enable(host)
    with PingPong(host.container, 100) as load:
        wait_entered(host, 100)
        pid = host.main_pid()
        host.run("kill", "-STOP", str(pid))
        wait_replaced(host, pid, 20)
        load.expected = RESETS
        load.wait_round()
        load.finish()
        lose_few(host, load)
    assert [entry["PROXY_CAUSE"] for entry in host.entries("CONNECTIONS_RESUMED")] == ["crash"]


def test_bulk_both_ways_at_full_speed_keeps_every_byte(host: Host) -> None:
    enable(host)
    with Bulk(host.container, 4) as load:
        load.resets_are_expected = True
        wait_entered(host, 4)
        for _ in range(KILLS):
            load.wait_bytes(20 * MEGABYTE)
            kill(host)
        load.wait_bytes(20 * MEGABYTE)
        load.finish()
        lose_few(host, load)


# ---- a reader that stalls


class Pour:
    """Sends the pattern on a connection until the receiver has what it wants, and then ends."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.sent = 0
        self.lock = threading.Lock()

    def __call__(self, connection: socket.socket) -> None:
        sent = 0
        while sent < self.total:
            start = sent % PERIOD
            count = connection.send(PATTERN[start : start + min(65536, self.total - sent)])
            sent += count
            with self.lock:
                self.sent += count
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(65536):
            pass

    def wait_stall(self) -> None:
        """Until nothing has been sent for a while: every buffer on the way is full."""
        seen, since = -1, 0.0

        def still() -> bool:
            nonlocal seen, since
            if self.sent != seen:
                seen, since = self.sent, time.monotonic()
            return seen > 0 and time.monotonic() - since > 0.3

        wait_until("the sender stalls", still, 20)


def read_pattern(client: socket.socket, start: int, count: int) -> int:
    """Reads so many bytes, or to the end of the stream; all must be the pattern's."""
    received = 0
    while received < count:
        data = client.recv(min(65536, count - received))
        if not data:
            break
        assert PATTERN.startswith(data, (start + received) % PERIOD), f"after {start + received}"
        received += len(data)
    return received


def test_what_a_stalled_reader_has_not_read_is_not_lost(host: Host) -> None:
    """The bytes are in the buffers of both sockets and in the pipe between; all are still there
    after each of the kills."""
    count, total = 10, 40 * MEGABYTE
    enable(host)
    pour = Pour(total)
    with target(host.container, serve=pour), ExitStack() as stack:
        clients = [stack.enter_context(host.container.connect(LISTEN)) for _ in range(count)]
        read = [0] * count
        wait_entered(host, count)
        for _ in range(KILLS):
            pour.wait_stall()
            pid = host.main_pid()
            host.run("kill", "-STOP", str(pid))  # so that nobody else looks at the same queue
            held = bytes_in_pipes(host.container)
            host.run("kill", "-KILL", str(pid))
            assert sum(size > 0 for size in held) >= count, held
            wait_replaced(host, pid)
            for number, client in enumerate(clients):
                read[number] += read_pattern(client, read[number], 2 * MEGABYTE)
        for number, client in enumerate(clients):
            read[number] += read_pattern(client, read[number], total + 1)
        assert read == [total] * count
        assert lost_connections(host) == 0


# ---- half-closed


def test_a_reply_that_is_still_to_come_arrives_on_a_half_closed_connection(host: Host) -> None:
    """Of either side: the client has ended its request, or the target its greeting."""
    count = 20
    asked, answer = threading.Semaphore(0), threading.Event()
    request, reply = PATTERN[:10_000], PATTERN[: 2 * PERIOD]

    def serve(connection: socket.socket) -> None:
        assert read_all(connection) == request
        asked.release()
        answer.wait()
        connection.sendall(reply)

    def greet(connection: socket.socket) -> None:
        connection.sendall(b"welcome")
        connection.shutdown(socket.SHUT_WR)
        assert read_all(connection) == reply
        asked.release()

    host.write_route("greeting", "127.0.0.1:3100", "Target=@greeting")
    host.enable("greeting.socket")
    enable(host)
    with (
        target(host.container, serve=serve),
        target(host.container, "@greeting", serve=greet),
        ExitStack() as stack,
    ):
        clients, greeted = (
            [stack.enter_context(host.container.connect(address)) for _ in range(count)]
            for address in (LISTEN, ("127.0.0.1", 3100))
        )
        for client in clients:
            client.sendall(request)
            client.shutdown(socket.SHUT_WR)
            assert asked.acquire(timeout=10)
        for client in greeted:
            assert read_all(client) == b"welcome"
        wait_entered(host, 2 * count)
        for _ in range(KILLS):
            kill(host)
        answer.set()
        for client in clients:
            assert read_all(client) == reply
        for client in greeted:
            client.sendall(reply)
            client.shutdown(socket.SHUT_WR)
            assert asked.acquire(timeout=10)
        assert lost_connections(host) == 0


# ---- at the same time


def test_new_clients_wait_while_there_is_no_process(host: Host) -> None:
    """None is refused. Those few that are being served at the kill, and too young to be entered,
    may be cut."""
    enable(host)
    with PingPong(host.container, 100, churn=300) as load:
        load.expected = RESETS | YOUNG
        for _ in range(KILLS):
            wait_entered(host, 100 - load.broken() if load.last else 100)
            kill(host)
            load.wait_round()
        report = load.finish()
        lose_few(host, load)
        cut = sum(report["errors"].get(name, 0) for name in YOUNG)
        print(f"{cut} of {report['completed']} short connections were cut")
        assert cut <= 10 * KILLS, report
        assert report["completed"] > 300


def test_connections_that_come_and_go_all_the_while(host: Host) -> None:
    """Each lives for three seconds, so that a kill meets them at every age, and ledgers in which
    entries of the living and the dead are mixed."""
    enable(host)
    with PingPong(host.container, 10, churn=100, messages=30) as load:
        load.expected = RESETS | YOUNG
        wait_entered(host, 150)
        for _ in range(2 * KILLS):
            kill(host)
            load.wait_round()
            wait_until("some are old enough", lambda: host.metrics().metric(ENTRIES) > 150)
        report = load.finish()
        print(report["errors"])
        assert lost_connections(host) <= FEW
        assert report["completed"] > 200
    wait_until("the ledgers are empty", lambda: host.metrics().metric(ENTRIES) == 0)


@pytest.mark.parametrize("command", ["daemon-reload", "daemon-reexec"])
def test_systemd_may_reload_at_the_same_time(host: Host, command: str) -> None:
    enable(host)
    with PingPong(host.container, 200) as load:
        load.expected = RESETS
        wait_entered(host, 200)
        with meanwhile(lambda: host.systemctl(command)):
            for _ in range(KILLS):
                kill(host)
                load.wait_round()
        load.finish()
        lose_few(host, load)


def test_eight_crashes_in_quick_succession(host: Host) -> None:
    """Most of them meet a process that is still taking over."""
    enable(host)
    with PingPong(host.container, 200) as load:
        load.expected = RESETS
        wait_entered(host, 200)
        pid = host.main_pid()
        for _ in range(8):
            host.run("kill", "-KILL", str(pid))
            before = pid
            pid = wait_until("the next", lambda: changed(host.main_pid(), before))
        host.container.wait_state(SERVICE, "active")
        load.wait_round()
        load.finish()
        lose_few(host, load)
    assert host.container.property(SERVICE, "NRestarts") == "8"
    assert host.container.state(SOCKET) == "active"


def changed(pid: int, before: int) -> int:
    return pid if pid != before else 0
