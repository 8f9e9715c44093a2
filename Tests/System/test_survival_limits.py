"""More connections than systemd's store, the queues or the limits can hold, and damage: a clear
line in the log, no crash loop, and as many connections kept as possible."""

from __future__ import annotations

import random
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from mmap import mmap
from pathlib import Path
from typing import Any

import pytest
from bulk import PATTERN
from container import Container, wait_until
from descriptors import bytes_in_pipes, sockets_entered, tables
from host import LISTEN, SERVICE, TARGET, Host, exchange, target
from survival import (
    ACTIVE,
    ENTRIES,
    LOST,
    RESUMED,
    PingPong,
    enable,
    kill,
    lost_connections,
    resumed,
    wait_entered,
    wait_replaced,
)

# What a client sees whose connection is not kept: the process's end, or a reset.
ENDED = {f"{side}: {what}" for side in ("kept", "target") for what in ("ECONNRESET", "EPIPE")} | {
    "kept: end of stream"
}


def shortages(host: Host) -> list[dict[str, Any]]:
    return host.entries("PRESERVATION_LIMITED") + host.entries("PRESERVATION_OFF")


# ---- the store


@pytest.mark.parametrize("places", [3, 1])
def test_a_store_that_is_too_small(host: Host, places: int) -> None:
    """Three places are one ledger, one is none. The rest is served, and ends with the process."""
    count = 700
    host.drop_in(SERVICE, f"[Service]\nFileDescriptorStoreMax={places}\n")
    enable(host)
    with PingPong(host.container, count, period=0.5) as load:
        load.wait_round()
        entry = wait_until("the log tells of it", lambda: shortages(host))[0]
        print(entry["MESSAGE"])
        assert "FileDescriptorStoreMax=" in entry["MESSAGE"]
        load.wait_round()
        load.expected = ENDED
        entered = host.metrics().metric(ENTRIES)
        assert (entered > 0) == (places >= 3)
        kill(host)
        load.wait_round()
        assert host.metrics().metric(RESUMED) + lost_connections(host) >= entered
        assert load.broken() == count - host.metrics().metric(RESUMED)
        load.finish()
    assert len(shortages(host)) <= 4  # not one for each connection
    assert host.container.property(SERVICE, "NRestarts") == "1"


def test_without_a_store_a_restart_drains(host: Host) -> None:
    host.drop_in(SERVICE, "[Service]\nFileDescriptorStoreMax=0\n")
    enable(host)
    with target(host.container):
        with host.container.connect(LISTEN) as client:
            client.sendall(b"a")
            assert client.recv(1) == b"a"
            entry = host.wait_entry("PRESERVATION_OFF")
            assert entry["MESSAGE"].startswith("connections end with this process: ")
            assert "FileDescriptorStoreMax=" in entry["MESSAGE"]
            assert entry["PRIORITY"] == "6"
            pid = host.main_pid()
            host.systemctl("restart", "--no-block", SERVICE)
            wait_until("it drains", lambda: host.status_text().startswith("Draining: 1 left"))
            assert exchange(client) == b"ping"
        wait_replaced(host, pid)
    assert host.entries("CONNECTIONS_RESUMED") == []


def test_more_connections_than_a_queue_holds(host: Host) -> None:
    count = 1200
    enable(host)
    with PingPong(host.container, count, period=0.3) as load:
        wait_entered(host, count)
        stored = int(host.container.property(SERVICE, "NFileDescriptorStore"))
        assert stored >= 9 and stored % 3 == 0
        for _ in range(2):
            kill(host)
            load.expected = ENDED - {"kept: end of stream"}
            load.wait_round()
        assert host.metrics().metric(ACTIVE) == count - lost_connections(host)
        assert load.broken() == lost_connections(host) <= 2
        load.finish()
    assert host.entries("PRESERVATION_LIMITED") == []
    wait_until(
        "what the ledgers held is given back",
        lambda: int(host.container.property(SERVICE, "NFileDescriptorStore")) <= stored
        and host.metrics().metric(ENTRIES) == 0,
    )


# ---- descriptors in flight


# Puts 400 descriptors on their way as another process of the same user.
HOG = """
import array, os, socket, time
pair = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
passed = array.array("i", [0] * 200)
for _ in range(2):
    pair[0].sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, passed)])
print("on their way", flush=True)
time.sleep(1000)
"""


def test_too_many_descriptors_in_flight(host: Host) -> None:
    """The kernel counts what is stored against the user's RLIMIT_NOFILE. To meet that limit before
    the one of open descriptors, most of it is taken by somebody else."""
    count, limit, hogged = 200, 600, 400
    room = (limit - hogged) / 2  # connections, two descriptors each
    host.drop_in(SERVICE, f"[Service]\nLimitNOFILE={limit}\n")
    enable(host)
    host.systemctl("start", SERVICE)
    status = Path(f"/proc/{host.container.host_pid(host.main_pid())}/status").read_text()
    user = status.split("Uid:")[1].split()[0]
    host.container.write("/tmp/hog.py", HOG)
    hog = subprocess.Popen(
        host.container.command("setpriv", f"--reuid={user}", "python3", "/tmp/hog.py"),
        stdout=subprocess.PIPE,
    )
    try:
        assert hog.stdout and hog.stdout.readline() == b"on their way\n"
        with PingPong(host.container, count) as load:
            load.wait_round()
            entry = host.wait_entry("PRESERVATION_LIMITED")
            print(entry["MESSAGE"])
            assert entry["MESSAGE"].startswith("not every connection will survive this process: ")
            assert "LimitNOFILE=" in entry["MESSAGE"]
            assert entry["PRIORITY"] == "4"
            load.expected = ENDED
            host.systemctl("restart", SERVICE)
            load.wait_round()
            kept, lost = resumed(host)
            assert lost == 0  # of those that were entered
            assert room - 20 <= kept <= room + 1
            assert load.broken() == count - kept
            load.finish()
        assert len(host.entries("PRESERVATION_LIMITED")) <= 2
    finally:
        host.run("pkill", "-f", "/tmp/hog.py")
        hog.wait()
        assert hog.stdout
        hog.stdout.close()
    assert host.container.property(SERVICE, "NRestarts") == "0"


# ---- pipes


@pytest.fixture
def small_buffers(container: Container) -> Iterator[None]:
    """So that a thousand stalled connections do not fill the machine's memory."""
    names = ("tcp_rmem", "tcp_wmem")
    paths = [f"/proc/sys/net/ipv4/{name}" for name in names]
    with container.network():
        before = [open(path).read() for path in paths]
        for path in paths:
            with open(path, "w") as file:
                file.write("4096 16384 65536")
    yield
    with container.network():
        for path, text in zip(paths, before):
            with open(path, "w") as file:
                file.write(text)


def test_more_stalled_connections_than_pipes(host: Host, small_buffers: None) -> None:
    """What a user's pipes may hold (pipe-user-pages-soft, 64 MiB) is spent. No byte is lost, be it
    in a pipe or not."""
    count = 1100
    enable(host)
    with host.container.listen(TARGET) as listener, ExitStack() as stack:
        clients, servers = [], []
        for _ in range(count):
            clients.append(stack.enter_context(host.container.connect(LISTEN)))
            servers.append(stack.enter_context(listener.accept()[0]))
        sent = fill(servers)
        wait_entered(host, count)
        pid = host.main_pid()
        host.run("kill", "-STOP", str(pid))  # so that nobody else looks at the same queue
        held = bytes_in_pipes(host.container)
        host.run("kill", "-KILL", str(pid))
        print(f"{len(held)} pipes entered, {sum(size > 0 for size in held)} of them with bytes")
        assert sum(size > 0 for size in held) > 200
        wait_replaced(host, pid)
        assert resumed(host) == (count, 0)
        for server in servers:
            server.shutdown(socket.SHUT_WR)
        for number, client in enumerate(clients):
            received = 0
            while data := client.recv(65536):
                assert PATTERN.startswith(data, received), f"{number} after {received}"
                received += len(data)
            assert received == sent[number], number
    assert host.container.property(SERVICE, "NRestarts") == "1"


def fill(senders: list[socket.socket]) -> list[int]:
    """Sends the pattern on each until nothing moves any more, at most its first period; returns
    how many bytes each took."""
    sent = [0] * len(senders)
    for sender in senders:
        sender.setblocking(False)
    since = time.monotonic()
    while time.monotonic() - since < 0.5:
        for number, sender in enumerate(senders):
            try:
                while True:
                    sent[number] += sender.send(PATTERN[sent[number] : sent[number] + 16384])
                    since = time.monotonic()
            except BlockingIOError:
                pass
    assert max(sent) < len(PATTERN) // 2
    return sent


# ---- damage


def other_layout(table: mmap) -> None:
    """Of a version that nobody has written yet: the number after the eight bytes of magic."""
    table[8:12] = (1_000_000).to_bytes(4, sys.byteorder)


def bit_flips(table: mmap) -> None:
    """One in every line of the table."""
    dice = random.Random(4)
    for start in range(0, len(table), 64):
        table[start + dice.randrange(64)] ^= 1 << dice.randrange(8)


def noise(table: mmap) -> None:
    """All but the header."""
    table[64:] = random.Random(5).randbytes(len(table) - 64)


def everything(table: mmap) -> None:
    table[:] = random.Random(6).randbytes(len(table))


@pytest.mark.parametrize("damage", [other_layout, bit_flips, noise, everything])
def test_a_damaged_table(host: Host, damage: Callable[[mmap], None]) -> None:
    """What it says is not believed. Which connections go on is for the damage to decide; none of
    them gets a wrong byte, none hangs, and new clients are served."""
    count = 60
    host.drop_in(SERVICE, "[Service]\nRestartSec=1\n")
    enable(host)
    with PingPong(host.container, count) as load:
        wait_entered(host, count)
        pid = host.main_pid()
        host.run("kill", "-KILL", str(pid))
        wait_until("it is down", lambda: host.main_pid() == 0)
        load.expected = ENDED
        assert sockets_entered(host.container) >= 2 * count
        for table in tables(host.container):
            damage(table)
        wait_replaced(host, pid)
        load.wait_round()
        went_on, lost = resumed(host)
        print(host.entries("CONNECTIONS_RESUMED")[-1]["MESSAGE"])
        assert went_on + lost == count
        assert load.broken() == lost
        assert host.metrics().metric(LOST, reason="crashes") == 0
        load.finish()
    with target(host.container), host.container.connect(LISTEN) as client:
        assert exchange(client) == b"ping"
    assert host.container.property(SERVICE, "NRestarts") == "1"
    entry = host.entries("CONNECTIONS_RESUMED")[0]
    assert entry["PROXY_LOST"] == str(int(lost))
    if damage is other_layout:
        assert lost == count and "unknown-layout" in entry["MESSAGE"]
    if lost:
        assert entry["PRIORITY"] == "4"
        ended = host.entries("CONNECTION_FAILED", "PROXY_CLOSE_REASON=lost")
        assert len(ended) == lost
