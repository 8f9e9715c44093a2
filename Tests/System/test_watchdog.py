"""A proxy that is stuck, or one stuck worker of it, is restarted; a proxy that is well is not."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from container import libc, wait_until
from host import LISTEN, SERVICE, SOCKET, Host, exchange, read_exactly, target

PTRACE_SEIZE, PTRACE_INTERRUPT = 0x4206, 0x4207  # linux/ptrace.h
WALL = 0x40000000  # __WALL, linux/wait.h: threads are children too


@pytest.fixture
def running(host: Host) -> Iterator[Host]:
    host.drop_in(SERVICE, "[Service]\nWatchdogSec=1\n")
    host.enable(SOCKET)
    with target(host.container):
        with host.container.connect(LISTEN) as client:
            assert exchange(client) == b"ping"
        yield host


def is_replaced(host: Host, pid: int) -> None:
    """The watchdog killed it, systemd started another, and that one serves."""
    wait_until("another process runs", lambda: host.main_pid() not in (0, pid), 20)
    said = [entry["MESSAGE"] for entry in host.container.journal("--unit", SERVICE, "_PID=1")]
    assert any("Watchdog timeout" in message for message in said), said
    with host.container.connect(LISTEN) as client:
        assert exchange(client) == b"ping"
    assert host.container.state(SOCKET) == "active"


def test_a_stopped_process_is_replaced(running: Host) -> None:
    pid = running.main_pid()
    running.run("kill", "-STOP", str(pid))
    is_replaced(running, pid)


@contextlib.contextmanager
def stopped_thread(thread: int) -> Iterator[None]:
    """Holds one thread still, as a debugger does, until it ends or the block does."""
    for request in (PTRACE_SEIZE, PTRACE_INTERRUPT):
        libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
        if libc.ptrace(request, thread, None, None) == -1:
            raise OSError(ctypes.get_errno(), f"ptrace of {thread}")
    os.waitpid(thread, WALL)  # until it has stopped
    # A traced thread that has ended stays, and its process with it, until its tracer looks.
    undertaker = threading.Thread(target=wait_for_end, args=(thread,), daemon=True)
    undertaker.start()
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(thread, signal.SIGKILL)
        undertaker.join(timeout=10)


def wait_for_end(thread: int) -> None:
    with contextlib.suppress(ChildProcessError):
        while not os.WIFSIGNALED(os.waitpid(thread, WALL)[1]):
            pass  # it has stopped once more


def test_one_stuck_worker_gets_the_service_replaced(running: Host) -> None:
    """The main thread lives and could go on sending WATCHDOG=1: it must not."""
    pid = running.main_pid()
    tasks = Path(f"/proc/{running.container.host_pid(pid)}/task")
    workers = [
        int(task.name)
        for task in tasks.iterdir()
        if task.joinpath("comm").read_text().startswith("worker")
    ]
    assert workers, [task.joinpath("comm").read_text() for task in tasks.iterdir()]
    with stopped_thread(workers[0]):
        is_replaced(running, pid)


def test_a_proxy_that_is_well_is_left_alone(running: Host) -> None:
    """Idle and busy, for several of the watchdog's intervals."""
    pid = running.main_pid()
    with running.container.connect(LISTEN) as client:
        for _ in range(30):
            client.sendall(b"x" * 1000)
            assert read_exactly(client, 1000) == b"x" * 1000
            with pytest.raises(AssertionError, match="not within"):
                wait_until("it is replaced", lambda: running.main_pid() != pid, 0.1)
    assert running.container.property(SERVICE, "NRestarts") == "0"
