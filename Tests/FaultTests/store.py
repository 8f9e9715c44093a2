"""A stand-in for the service manager, so that survival can be tested without booting systemd.

It keeps what systemd keeps: the listening sockets, and the descriptors that the service has sent
with FDSTORE=1 (sd_notify(3), sd_pid_notify_with_fds(3), sd_listen_fds(3)). It starts the proxy
with them, and starts it again after a restart or a crash.
"""

from __future__ import annotations

import fcntl
import http.client
import os
import random
import selectors
import signal
import socket
import threading
import time
from pathlib import Path
from typing import Any, Callable, Iterable

from addresses import Address, family, host_port
from ledger import Datagram, Ledger, receive
from process import Proxy, proxy_binary
from streams import KIB
from targets import Target
from waiting import DEADLINE, eventually

_FIRST_PASSED = 3  # SD_LISTEN_FDS_START
_ANNOUNCE = 'export LISTEN_PID=$$; exec "$@"'  # exec keeps the process id
_CRASH_WORDS = (
    "Fatal error", "AddressSanitizer", "ThreadSanitizer", "LeakSanitizer", "runtime error:",
    "Precondition failed", "Assertion failed", "Swift/",
)


def debug_binary() -> Path:
    """The build that can be told to fail: PROXY_DEBUG_BINARY, or what `swift build` makes."""
    configured = os.environ.get("PROXY_DEBUG_BINARY")
    default = Path(__file__).parents[2] / ".build" / "debug" / "proxy"
    path = (Path(configured) if configured else default).resolve()
    assert path.exists(), f"{path} is missing: run swift build, or set PROXY_DEBUG_BINARY"
    return path


class Child:
    """A process with chosen descriptors from 3 on; the few calls of subprocess that are needed."""

    def __init__(self, command: list[str], environment: dict[str, str], stderr: int,
                 passed: list[int]) -> None:
        # out of the way of the numbers that they shall have
        sources = [_above(descriptor, _FIRST_PASSED + len(passed)) for descriptor in passed]
        actions: list[Any] = [
            (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDWR, 0),
            (os.POSIX_SPAWN_DUP2, 0, 1),
            (os.POSIX_SPAWN_DUP2, stderr, 2),
        ] + [
            (os.POSIX_SPAWN_DUP2, source, _FIRST_PASSED + number)
            for number, source in enumerate(sources)
        ]
        try:
            self.pid = os.posix_spawn(
                "/bin/sh", ["sh", "-c", _ANNOUNCE, "sh", *command], environment,
                file_actions=actions,
                setsigdef=[signal.SIGPIPE, signal.SIGXFSZ],  # Python ignores them
            )
        finally:
            for source in sources:
                os.close(source)
        self.returncode: int | None = None

    def poll(self) -> int | None:
        return self._wait(os.WNOHANG)

    def wait(self) -> int:
        status = self._wait(0)
        assert status is not None
        return status

    def _wait(self, options: int) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, options)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def _above(descriptor: int, lowest: int) -> int:
    return fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, lowest)


class Store:
    """$NOTIFY_SOCKET and the descriptors that came over it."""

    def __init__(self, path: str, places: int) -> None:
        self.path = path
        self.places = places
        self.stored: list[tuple[str, int]] = []
        self.messages: list[tuple[float, str]] = []
        self.complaints: list[str] = []
        self.dropped = 0
        self.is_ready = False
        self._settled = 0
        self._lock = threading.Lock()
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(path)
        os.chmod(path, 0o777)  # as systemd's own
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while True:
            message = receive(self.socket)
            try:
                text = message.payload.decode()
            except UnicodeDecodeError:
                self.complaints.append(f"not text: {message.payload!r}")
                continue
            if text == "CLOSE":
                return
            if text == "SETTLE":
                self._settled += 1
                continue
            with self._lock:
                self._take(text, message)

    def _take(self, text: str, message: Datagram) -> None:
        self.messages.append((time.monotonic(), text))
        lines = [line.partition("=") for line in text.splitlines()]
        fields = {name: value for name, _, value in lines}
        if fields.get("READY") == "1":
            self.is_ready = True
        if fields.get("FDSTOREREMOVE") == "1":
            self._remove(fields.get("FDNAME", ""))
        elif fields.get("FDSTORE") == "1":
            if fields.get("FDPOLL") != "0":
                self.complaints.append(f"stored without FDPOLL=0: {text!r}")
            while message.descriptors:
                self._add(fields.get("FDNAME", "stored"), message.descriptors.pop(0))
        if "BARRIER" in fields and (len(fields) != 1 or len(message.descriptors) != 1):
            self.complaints.append(f"barrier with {message.descriptors}: {text!r}")
        message.close()  # this is the answer to a barrier: all before it has been handled

    def _add(self, name: str, descriptor: int) -> None:
        if any(os.path.sameopenfile(descriptor, other) for _, other in self.stored):
            os.close(descriptor)
        elif len(self.stored) >= self.places:
            self.dropped += 1
            os.close(descriptor)
        else:
            self.stored.append((name, descriptor))

    def _remove(self, name: str) -> None:
        for found, descriptor in list(self.stored):
            if found == name:
                self.stored.remove((found, descriptor))
                os.close(descriptor)

    def settle(self) -> None:
        """Returns when all that was sent so far has been handled."""
        before = self._settled
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.sendto(b"SETTLE", self.path)
        eventually(lambda: self._settled > before, "messages to be handled", interval=0.001)

    def replace(self, descriptor: int, other: int | None) -> None:
        """Puts `other` in the place of a stored descriptor; None takes it out."""
        index = [number for _, number in self.stored].index(descriptor)
        if other is None:
            del self.stored[index]
        else:
            self.stored[index] = (self.stored[index][0], other)
        os.close(descriptor)

    def forget(self) -> None:
        """Closes all that is stored, as systemd does when a service has stopped."""
        while self.stored:
            os.close(self.stored.pop()[1])

    def close(self) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.sendto(b"CLOSE", self.path)
        self._thread.join(DEADLINE)
        self.forget()
        self.socket.close()


class Service(Proxy):
    """A proxy whose listening sockets and stored descriptors outlive its process."""

    ROUTE = "web"

    def __init__(
        self, lab: Any, target: Address | Target, *arguments: str,
        listen: Address = ("127.0.0.1", 0), store_max: int = 1024, announced: int | None = None,
        notify: bool = True, binary: Path | None = None, prefix: Iterable[str] = (),
        environment: dict[str, str] | None = None, nofile: int | None = None,
        may_crash: bool = False,
    ) -> None:
        """
        - store_max: FileDescriptorStoreMax=; 0 is systemd's own default.
        - announced: what $FDSTORE says, by default the truth.
        - notify: False starts it with no service manager, though with sockets.
        - may_crash: its log may tell of crashes, which the test brings about.
        """
        self.lab = lab
        self.command = [
            *prefix, *(["prlimit", f"--nofile={nofile}:{nofile}"] if nofile else []),
            str(binary or proxy_binary()),
            f"-target={host_port(target.address if isinstance(target, Target) else target)}",
            *arguments,
        ]
        self.environment = {**os.environ, **(environment or {})}
        self.may_crash = may_crash
        self._dice = random.Random(4)
        self._log: list[tuple[float, str]] = []
        self._log_pipe, self._stderr = os.pipe()
        self._reader = threading.Thread(target=self._collect, daemon=True)
        self._reader.start()
        self._listener = _listening(listen)
        self._metrics = _listening(("127.0.0.1", 0))
        self.listen_address = self._listener.getsockname()
        if isinstance(self.listen_address, bytes):
            self.listen_address = self.listen_address.decode()
        self.metrics_address = self._metrics.getsockname()
        # not in the folder of the test: a path of a socket is short, and more than one may be
        path = str(lab.folder / f"notify-{len(lab.proxies)}")
        lab.folder.chmod(0o755)
        self.store = Store(path, store_max)
        if notify:
            self.environment["NOTIFY_SOCKET"] = path
            stored = store_max if announced is None else announced
            if stored:  # systemd says nothing where it stores nothing
                self.environment["FDSTORE"] = str(stored)
        self.notify = notify
        self.process: Any = None
        self.pidfd = -1
        self.starts = 0
        self._finished = False
        lab.proxies.append(self)
        self.start()
        self.baseline = eventually(self._settled_descriptors, "a settled set of descriptors")

    # - life

    def spawn(self) -> None:
        """Starts a process with the sockets and all that is stored, and does not wait for it."""
        assert self.process is None or self.process.poll() is not None, "it still runs"
        passed = [(self.ROUTE, self._listener.fileno()), ("metrics", self._metrics.fileno())]
        stored = list(self.store.stored)
        self._dice.shuffle(stored)  # systemd promises no order, and has none
        passed += stored
        self.store.is_ready = False
        self.process = Child(
            self.command,
            {
                **self.environment, "LISTEN_FDS": str(len(passed)),
                "LISTEN_FDNAMES": ":".join(name for name, _ in passed),
            },
            self._stderr, [descriptor for _, descriptor in passed],
        )
        self.pid = self.process.pid
        if self.pidfd != -1:
            os.close(self.pidfd)
        self.pidfd = os.pidfd_open(self.pid)
        self.starts += 1

    def start(self) -> None:
        self.spawn()
        self.await_ready()

    def await_ready(self) -> None:
        def ready() -> bool:
            self._fail_if_gone()
            return self.store.is_ready if self.notify else self._accepts()

        eventually(ready, "READY=1", interval=0.002)

    def _accepts(self) -> bool:
        return len(self.lines("listening on")) >= self.starts

    def _fail_if_gone(self) -> None:
        if self.process.poll() is not None:
            raise RuntimeError(f"ended with {self.process.returncode}:\n{self.stderr()[-3000:]}")

    def end(self, number: int, deadline: float = DEADLINE) -> int:
        """Sends the signal, waits for the end, returns the exit status (or minus a signal)."""
        self.process.send_signal(number)
        return self.await_end(deadline)

    def await_end(self, deadline: float = DEADLINE) -> int:
        with selectors.DefaultSelector() as selector:
            selector.register(self.pidfd, selectors.EVENT_READ)
            assert selector.select(deadline), f"still running after {deadline:g} s"
        status = self.process.wait()
        self.store.settle()
        return status

    def hand_over(self) -> None:
        """The first half of `systemctl restart`."""
        status = self.end(signal.SIGUSR2)
        assert status == 0, f"SIGUSR2 ended it with {status}:\n{self.stderr()[-3000:]}"

    def crash(self) -> None:
        """kill -9."""
        status = self.end(signal.SIGKILL)
        assert status == -signal.SIGKILL, f"ended with {status} before it could be killed"

    def restart(self, delay: float = 0) -> None:
        self.hand_over()
        time.sleep(delay)
        self.start()

    def kill(self, delay: float = 0) -> None:
        """A crash and what follows; the delay is RestartSec=."""
        self.crash()
        time.sleep(delay)
        self.start()

    def supervise(self, until: Callable[[], Any], what: str, deadline: float = DEADLINE) -> int:
        """Starts it again whenever it ends by itself, until the condition holds.

        Returns how often it ended.
        """
        ends = 0
        over = threading.Event()

        def keep_up() -> None:
            nonlocal ends
            while not over.wait(0.005):
                if self.process.poll() is not None:
                    self.store.settle()
                    ends += 1
                    self.spawn()

        def step() -> Any:
            try:
                return until()
            except (OSError, http.client.HTTPException):
                return False  # it ended while it was asked

        keeper = threading.Thread(target=keep_up, daemon=True)
        keeper.start()
        try:
            eventually(step, what, deadline)
        finally:
            over.set()
            keeper.join()
        return ends

    # - what it has stored

    def ledgers(self) -> list[Ledger]:
        self.store.settle()
        names = sorted({name for name, _ in self.store.stored})
        return [
            Ledger(name, [number for found, number in self.store.stored if found == name])
            for name in names
        ]

    def await_entered(self, count: int) -> None:
        """Waits until as many connections would outlive a crash."""
        self.await_value(count, "tcp_proxy_ledger_entries")

    def bytes_in_pipes(self) -> list[int]:
        """What stands in each stored pipe that is not empty. Only while it is down."""
        return [count for ledger in self.ledgers() for count in ledger.pipes() if count]

    # - what it says

    def _collect(self) -> None:
        pending = b""
        while part := os.read(self._log_pipe, 64 * KIB):
            *whole, pending = (pending + part).split(b"\n")
            self._log += [(time.monotonic(), line.decode(errors="replace")) for line in whole]
        if pending:
            self._log.append((time.monotonic(), pending.decode(errors="replace")))

    def statuses(self) -> list[str]:
        return [
            line[len("STATUS="):] for _, text in list(self.store.messages)
            for line in text.splitlines() if line.startswith("STATUS=")
        ]

    def lost(self) -> dict[str, int]:
        """Connections that were not continued, by reason, only those that there are."""
        return {
            labels["reason"]: int(value)
            for labels, value in self.scrape().matching("tcp_proxy_connections_lost_total")
            if value
        }

    def resumed(self, cause: str) -> int:
        return int(self.value("tcp_proxy_connections_resumed_total", cause=cause))

    # - end

    def finish(self) -> None:
        """The end of every test: no leak, no crash, status 0 on SIGTERM, nothing of note said."""
        if self._finished:
            return
        self._finished = True
        try:
            if self.process.poll() is None:
                self._check_leaks()
                status = self.end(signal.SIGTERM)
                assert status == 0, f"SIGTERM ended it with {status}"
        finally:
            if self.process.poll() is None:
                self.process.kill()
                self.process.wait()
            os.close(self.pidfd)
            self.store.close()
            self._listener.close()
            self._metrics.close()
            os.close(self._stderr)
            self._reader.join(DEADLINE)
            os.close(self._log_pipe)
        assert not self.store.complaints, self.store.complaints
        if not self.may_crash:
            for word in _CRASH_WORDS:
                assert word not in self.stderr(), f"{word!r} in the log"

    def _check_leaks(self) -> None:
        def given_back() -> bool:
            assert self.value("tcp_proxy_connections_active") == 0
            self.store.settle()
            # The process has each of them, too; what the store dropped it may still have.
            own = len(self.store.stored) + min(self.store.dropped, 3)
            now = self.descriptors()
            spare = 4 * (os.cpu_count() or 1)
            assert now["socket"] <= self.baseline["socket"] + own, f"{self.baseline}, now {now}"
            assert now["other"] <= self.baseline["other"] + own + spare, (
                f"{self.baseline}, now {now}"
            )
            return True

        eventually(given_back, "descriptors given back", 1.5 * DEADLINE)


def _listening(address: Address) -> socket.socket:
    listener = socket.socket(family(address), socket.SOCK_STREAM)
    if not isinstance(address, str):
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(address)
    listener.listen(4096)
    return listener
