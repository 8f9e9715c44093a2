"""One running proxy: its log, its metrics, and what /proc says about it."""

from __future__ import annotations

import ctypes
import fcntl
import http.client
import os
import re
import selectors
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path
from typing import Any, Iterable

from addresses import Address, host_port, listening_sockets, links, tcp_table
from scrape import Metrics
from streams import KIB
from waiting import DEADLINE, PATIENCE, eventually

_LISTENING = re.compile(r"listening on (\S+)")
_SYS_PIDFD_GETFD = 438
_CRASH_WORDS = (
    "Fatal error", "AddressSanitizer", "ThreadSanitizer", "LeakSanitizer", "runtime error:",
    "Precondition failed", "Assertion failed",
)


def proxy_binary() -> Path:
    """The program under test: PROXY_BINARY, or bin/proxy at the root of the repository."""
    configured = os.environ.get("PROXY_BINARY")
    path = Path(configured) if configured else Path(__file__).parents[2] / "bin" / "proxy"
    path = path.resolve()
    assert path.exists(), f"{path} is missing: run make, or set PROXY_BINARY"
    return path


class Proxy:
    """One running proxy, its log, its metrics and what /proc says about it."""

    def __init__(
        self, lab: Any, target: Address | str | None, *arguments: str,
        listen: str = "127.0.0.1:0", metrics: str = "127.0.0.1:0",
        nofile: int | None = None, prefix: Iterable[str] = (),
        environment: dict[str, str] | None = None, await_metrics: bool = True,
        read_log: bool = True, binary: Path | None = None,
    ) -> None:
        """
        - target: None leaves the option away (it is then among `arguments`).
        - nofile: soft and hard limit of descriptors; by default the hard limit of this process.
        - prefix: a command that ends in exec of its arguments, so that the process id stays.
        - environment: added; {device} and {inode} in a value become those of its stderr.
        - binary: a copy of it, where another user may run it.
        - read_log: False reads the line at start and then leaves its stderr to fill up.
        """
        self.lab = lab
        command = list(prefix)
        if nofile is not None:
            command += ["prlimit", f"--nofile={nofile}:{nofile}"]
        command += [str(binary or proxy_binary()), f"-listen={listen}", f"-metrics={metrics}"]
        if target is not None:
            is_text = isinstance(target, str) and ":" in target  # a name and a port
            command += [f"-target={target if is_text else host_port(target)}"]
        command += arguments
        self.command = command
        self._log: list[tuple[float, str]] = []
        self._signalled = False
        self._end_checked = False
        self._log_pipe, stderr = os.pipe()
        status = os.fstat(stderr)
        added = {
            name: value.format(device=status.st_dev, inode=status.st_ino)
            for name, value in (environment or {}).items()
        }
        self.process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=stderr,
            env={**os.environ, **added},
        )
        os.close(stderr)
        self.pid = self.process.pid
        lab.proxies.append(self)
        self.pidfd = os.pidfd_open(self.pid)
        self._read_on = threading.Event()
        if read_log:
            self._read_on.set()
        self._reader = threading.Thread(target=self._collect, daemon=True)
        self._reader.start()
        self.listen_text = eventually(self._listening_text, "a line with “listening on”")
        self.listen_address: Address = None
        self.metrics_address: Address = None
        eventually(self._find_addresses, "listening sockets of the process")
        if await_metrics and isinstance(self.metrics_address, tuple):
            self.scrape()
        self.baseline = eventually(self._settled_descriptors, "a settled set of descriptors")

    # - start

    def _listening_text(self) -> str | None:
        self._fail_if_gone()
        for _, line in list(self._log):
            if match := _LISTENING.search(line):
                return match[1].rstrip(",;.")
        return None

    def _fail_if_gone(self) -> None:
        if self.process.poll() is not None:
            raise RuntimeError(
                f"{' '.join(self.command)} ended with {self.process.returncode}:\n{self.stderr()}"
            )

    def _find_addresses(self) -> bool:
        """The kernel's word on where the process listens: the log's wording plays no part."""
        self._fail_if_gone()
        wanted = _argument(self.command, "-listen=")
        metrics = _argument(self.command, "-metrics=")
        listening = listening_sockets(self.pid)
        unix = [a for a in listening if isinstance(a, str)]
        tcp = [a for a in listening if not isinstance(a, str)]
        if _is_unix(wanted):
            self.listen_address = unix[0] if unix else None
        else:
            named = self.listen_text.rpartition(":")[2]
            candidates = [address for address in tcp if str(address[1]) == named]
            if not candidates:
                return False
            self.listen_address = _reachable(candidates)
        rest = [address for address in tcp if address[1] != _port(self.listen_address)]
        self.metrics_address = _reachable(rest) if rest else None
        return self.listen_address is not None and (rest != [] or metrics == "")

    def _settled_descriptors(self) -> dict[str, int] | None:
        before = self.descriptors()
        time.sleep(0.05)
        return before if before == self.descriptors() else None

    # - log

    def _collect(self) -> None:
        pending = b""
        while part := os.read(self._log_pipe, 64 * KIB):
            *whole, pending = (pending + part).split(b"\n")
            self._log += [(time.monotonic(), line.decode(errors="replace")) for line in whole]
            if self.lines(_LISTENING.pattern):
                self._read_on.wait()
        if pending:
            self._log.append((time.monotonic(), pending.decode(errors="replace")))

    def close_log(self) -> None:
        """The reader of its stderr goes away (start it with `read_log=False`)."""
        os.close(self._log_pipe)
        self._log_pipe = -1

    def set_log_capacity(self, size: int) -> None:
        """Bytes that its stderr takes while nobody reads."""
        fcntl.fcntl(self._log_pipe, fcntl.F_SETPIPE_SZ, size)

    def lines(self, pattern: str = "") -> list[str]:
        """Lines of the log so far that match the pattern (case does not matter)."""
        return [line for _, line in list(self._log) if re.search(pattern, line, re.IGNORECASE)]

    def stderr(self) -> str:
        return "\n".join(self.lines())

    def await_line(self, pattern: str, deadline: float = DEADLINE) -> str:
        return eventually(lambda: self.lines(pattern), f"a line like /{pattern}/", deadline)[0]

    # - metrics

    def request(self, method: str = "GET", path: str = "/metrics", timeout: float = DEADLINE,
                headers: dict[str, str] | None = None) -> tuple[int, dict[str, str], bytes]:
        host, port = self.metrics_address[:2]
        connection = http.client.HTTPConnection(host, port, timeout=timeout)
        try:
            connection.request(method, path, headers={"Connection": "close", **(headers or {})})
            answer = connection.getresponse()
            return answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read()
        finally:
            connection.close()

    def scrape(self, timeout: float = DEADLINE) -> Metrics:
        status, _, body = self.request(timeout=timeout)
        assert status == 200, f"/metrics answered {status}"
        return Metrics(body.decode())

    def value(self, name: str, **labels: str) -> float:
        return self.scrape().value(name, **labels)

    def await_value(self, expected: float, name: str, deadline: float = DEADLINE,
                    **labels: str) -> None:
        def equal() -> bool:
            found = self.value(name, **labels)
            assert found == expected, f"{name}{labels or ''} is {found:g}, not {expected:g}"
            return True

        eventually(equal, f"{name}{labels or ''} = {expected:g}", deadline)

    def await_closed(self, deadline: float = DEADLINE, **reasons: int) -> None:
        """Waits until exactly these connections were closed, by reason (`_` stands for `-`)."""
        expected = {reason.replace("_", "-"): count for reason, count in reasons.items()}

        def equal() -> bool:
            found = self.scrape().closed()
            assert found == expected, f"closed: {found}, expected: {expected}"
            return True

        eventually(equal, f"connections closed as {expected}", deadline)

    # - what /proc says

    def descriptors(self) -> dict[str, int]:
        """Open descriptors by kind: socket, pipe, other."""
        counts = {"socket": 0, "pipe": 0, "other": 0}
        for link in links(self.pid).values():
            kind = link.partition(":")[0]
            counts[kind if kind in counts else "other"] += 1
        return counts

    def descriptor_numbers(self) -> list[int]:
        return sorted(links(self.pid))

    def cpu_seconds(self) -> float:
        """CPU time of all threads so far (nanosecond counters of the scheduler)."""
        total = 0
        for task in Path(f"/proc/{self.pid}/task").iterdir():
            try:
                total += int((task / "schedstat").read_text().split()[0])
            except OSError:
                pass  # the thread ended in between
        return total / 1e9

    def assert_idle(self, seconds: float = 0.3, share: float = 0.05, deadline: float = 5) -> None:
        """Within the deadline there is an interval in which it uses next to no CPU."""

        def calm() -> bool:
            before = self.cpu_seconds()
            time.sleep(seconds)
            used = (self.cpu_seconds() - before) / seconds
            assert used < share, f"{used:.0%} of a CPU while nothing is to be done"
            return True

        eventually(calm, "an idle interval", deadline * PATIENCE)

    def resident_bytes(self) -> int:
        fields = Path(f"/proc/{self.pid}/statm").read_text().split()
        return int(fields[1]) * os.sysconf("SC_PAGE_SIZE")

    def socket_option(self, number: int, level: int, option: int) -> int:
        """An option of one of the proxy's own sockets, read through a duplicate of it."""
        libc = ctypes.CDLL(None, use_errno=True)
        copy = libc.syscall(_SYS_PIDFD_GETFD, self.pidfd, number, 0)
        if copy == -1:
            raise OSError(ctypes.get_errno(), "pidfd_getfd")
        with socket.socket(fileno=copy) as duplicate:
            return duplicate.getsockopt(level, option)

    def connected(self, *states: str) -> list[int]:
        """Descriptor numbers of its TCP sockets in these states (hex, as in /proc/net/tcp)."""
        rows = {
            link: state
            for link, local, _, state in tcp_table(self.pid)
            if local[1] != _port(self.metrics_address)
        }
        return [number for number, link in links(self.pid).items() if rows.get(link) in states]

    # - end

    def running(self) -> bool:
        return self.process.poll() is None

    def terminate(self, number: int = signal.SIGTERM) -> None:
        self._signalled = True
        self.process.send_signal(number)

    def await_exit(self, *statuses: int, deadline: float = DEADLINE) -> float:
        """Waits for the end, asserts its status, returns the time at which it was seen."""
        with selectors.DefaultSelector() as selector:
            selector.register(self.pidfd, selectors.EVENT_READ)
            assert selector.select(deadline), f"still running after {deadline:g} s"
        ended = time.monotonic()
        self.process.wait()
        self._end_checked = True
        if self._read_on.is_set():
            self._reader.join(DEADLINE)  # so that the last lines can be asked for
        self._check_status(statuses)
        return ended

    def _check_status(self, statuses: tuple[int, ...]) -> None:
        status = self.process.returncode
        if status < 0:
            raise AssertionError(f"killed by {signal.Signals(-status).name}")
        assert status in statuses, f"exit status {status}, expected {statuses}"

    def check_descriptors_given_back(self) -> None:
        """After all connections ended only pooled pipes may be left (they come in pairs)."""

        def given_back() -> bool:
            now = self.descriptors()
            assert now["socket"] <= self.baseline["socket"], (
                f"sockets at start {self.baseline}, now {now}: {links(self.pid)}"
            )
            # Threads that came with the load may keep their epoll, timer and event descriptors.
            spare = 8 * (os.cpu_count() or 1)
            assert now["other"] <= self.baseline["other"] + spare, (
                f"other descriptors at start {self.baseline}, now {now}: {links(self.pid)}"
            )
            assert (now["pipe"] - self.baseline["pipe"]) % 2 == 0, f"half a pipe: {now}"
            return True

        eventually(given_back, "descriptors given back", 1.5 * DEADLINE)

    def finish(self) -> None:
        """The end of every test: no leak, no crash, status 0 on SIGTERM."""
        try:
            if self._end_checked:
                return
            if not self._signalled:  # else the test failed in mid drain
                assert self.running(), f"ended by itself, status {self.process.returncode}"
                self.check_descriptors_given_back()
                self.terminate()
            self.await_exit(0)
        finally:
            if self.running():
                self.process.kill()
                self.process.wait()
            if self._log_pipe != -1:
                self._read_on.set()
                self._reader.join(DEADLINE)
                os.close(self._log_pipe)
            os.close(self.pidfd)
        for word in _CRASH_WORDS:
            assert word not in self.stderr(), f"{word!r} in the log"


def _argument(command: list[str], option: str) -> str:
    return next((word[len(option) :] for word in command if word.startswith(option)), "")


def _is_unix(text: str) -> bool:
    return text.startswith(("unix:", "/", "@"))


def _port(address: Address) -> int | None:
    return address[1] if isinstance(address, tuple) else None


def _reachable(addresses: list[Address]) -> Address:
    """Loopback in place of a wildcard, IPv4 first."""
    first = sorted(addresses, key=lambda address: ":" in address[0])[0]
    return ({"0.0.0.0": "127.0.0.1", "::": "::1"}.get(first[0], first[0]), first[1])
