"""The means of the tests of survival, tried on their own: they see what is there, and can fail."""

from __future__ import annotations

import contextlib
import socket
import threading

import pytest
from container import Container
from descriptors import bytes_in_pipes, sockets_entered, tables
from host import LISTEN, TARGET, Host, target
from survival import Bulk, PingPong, enable, kill

STORER = """
import array, os, socket, subprocess
PAIR = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
def passing(*descriptors):
    return [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))]
client, server = socket.socketpair()
reading, writing = os.pipe()
os.write(writing, b"x" * 1234)
PAIR[0].sendmsg([b"connection"], passing(client.fileno(), server.fileno()))
PAIR[0].sendmsg([b"pipe"], passing(reading, writing))
table = os.memfd_create("table")
os.truncate(table, 4096)
manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
manager.connect(os.environ["NOTIFY_SOCKET"])
stored = passing(PAIR[0].fileno(), PAIR[1].fileno(), table)
manager.sendmsg([b"FDSTORE=1\\nFDNAME=test\\nFDPOLL=0\\nREADY=1"], stored)
"""


def test_the_store_is_seen_from_the_host_and_stays_as_it_was(container: Container) -> None:
    container.write("/root/storer.py", STORER)
    container.run(
        "systemd-run",
        "--unit=test-storer",
        "--property=FileDescriptorStoreMax=8",
        "--property=NotifyAccess=all",
        "--property=Type=notify",
        "--property=RemainAfterExit=yes",
        "--property=ExecStop=true",
        "sh",
        "-c",
        "python3 /root/storer.py; sleep infinity",
    )
    try:
        for _ in range(2):
            assert bytes_in_pipes(container) == [1234]
            assert sockets_entered(container) == 2
        for table in tables(container):
            table[0] = 77
        assert [table[0] for table in tables(container)] == [77]
    finally:
        container.systemctl("stop", "test-storer", check=False)


def test_ping_pong_and_bulk_pass_without_a_crash_and_fail_with_a_cut(host: Host) -> None:
    host.drop_in("tcp-metrics-proxy.socket", "[X-Proxy]\nPreserve=no\n")
    enable(host)
    with PingPong(host.container, 20, churn=100) as load:
        load.wait_round()
        assert load.finish()["completed"] > 0
    with PingPong(host.container, 20) as load:
        load.wait_round()
        kill(host)
        with pytest.raises(AssertionError, match="kept: "):
            load.wait_round()
    with Bulk(host.container, 2) as bulk:
        bulk.wait_bytes(5_000_000)
        bulk.finish()
    with Bulk(host.container, 2) as bulk:
        bulk.wait_bytes(1_000_000)
        kill(host)
        with pytest.raises(AssertionError, match="ECONNRESET|end of stream|ended after|EPIPE"):
            bulk.wait_bytes(5_000_000)
            bulk.finish()


@pytest.mark.parametrize("damage", ["dropped", "doubled", "flipped"])
def test_bulk_finds_a_single_byte(host: Host, damage: str) -> None:
    """Through a relay of the test's own that harms one byte in a million."""

    def relay(connection: socket.socket) -> None:
        with host.container.connect(TARGET) as onward:
            threading.Thread(target=drain, args=(onward,), daemon=True).start()
            left = 1_000_000
            while data := connection.recv(65536):
                left -= len(data)
                if left <= 0:
                    left = 1_000_000
                    middle = {"dropped": b"", "doubled": data[5:6] * 2}
                    data = data[:5] + middle.get(damage, bytes([data[5] ^ 1])) + data[6:]
                onward.sendall(data)

    with target(host.container, LISTEN, serve=relay):
        with Bulk(host.container, 1) as bulk:
            with pytest.raises(AssertionError, match="corrupted after"):
                bulk.wait_bytes(3_000_000)


def drain(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while connection.recv(65536):
            pass
