"""A throw-away Debian booted by systemd-nspawn, and what a test does with one.

The tree stays as it is: what the container writes goes to a tmpfs that ends with it. A client
socket of a test is an ordinary Python socket, made inside the container's network namespace.
"""

from __future__ import annotations

import contextlib
import ctypes
import http.client
import itertools
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

CLONE_NEWNET = 0x40000000  # linux/sched.h
CGROUPS = Path("/sys/fs/cgroup")
BOOT_SECONDS = 60  # it takes 0.5 s on an idle machine
COMMAND_SECONDS = 60

T = TypeVar("T")
libc = ctypes.CDLL(None, use_errno=True)
serial = itertools.count(1)


class CommandFailed(AssertionError):
    """A command in the container ended with another status than the test expects."""


def wait_until(what: str, condition: Callable[[], T], seconds: float = 10) -> T:
    """Polls `condition` until it is true and returns its value; fails when the time is up."""
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds} s: {what} (last seen: {value!r})")
        time.sleep(0.02)  # the poll's interval


class Container:
    """One booted container, as a context manager: leaving kills it and removes its traces."""

    def __init__(self, tree: Path) -> None:
        self.tree = tree
        self.name = f"proxy-test-{os.getpid()}-{next(serial)}"
        self.leader = 0  # the container's systemd, as a process id of the host
        self.started: list[subprocess.Popen[bytes]] = []
        self.log = tempfile.NamedTemporaryFile(prefix=self.name, suffix=".console")
        self.cgroups = [CGROUPS / hierarchy / self.name for hierarchy in hierarchies()]

    # ---- boot and end

    def __enter__(self) -> Container:
        command = [
            "systemd-nspawn",
            f"--directory={self.tree}",
            f"--machine={self.name}",
            "--volatile=overlay",
            "--private-network",
            "--boot",
            "--register=no",
            "--keep-unit",
            "--console=read-only",
            "--kill-signal=SIGKILL",
            # Without these SocketBindDeny= and IPAddressDeny= are accepted and have no effect.
            "--capability=CAP_BPF,CAP_NET_ADMIN,CAP_PERFMON",
            "--system-call-filter=bpf",
        ]
        if shutil.which(command[0]) is None:
            raise SystemExit("systemd-nspawn is missing: apt-get install systemd-container")
        for cgroup in self.cgroups:
            cgroup.mkdir()
        # A cgroup of its own: with --keep-unit, containers of one cgroup see each other's units.
        # The lock is off because several containers share one tree, which none of them writes to.
        enter = "".join(f"echo $$ > {cgroup}/cgroup.procs; " for cgroup in self.cgroups)
        self.nspawn = subprocess.Popen(
            ["sh", "-ec", enter + 'exec "$@"', "boot", *command],
            env=os.environ
            | {"SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1", "SYSTEMD_NSPAWN_LOCK": "0"},
            stdin=subprocess.DEVNULL,
            stdout=self.log,
            stderr=self.log,
            start_new_session=True,
        )
        try:
            self.leader = wait_until("systemd-nspawn starts init", self.find_leader, BOOT_SECONDS)
            wait_until("the container is up", self.is_up, BOOT_SECONDS)
        except BaseException:
            self.end()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def end(self) -> None:
        """Kills by process id; the kernel ends the rest of the container with its first process."""
        for pid in filter(None, (self.leader, self.nspawn.pid)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.nspawn.wait()
        for process in self.started:
            process.wait()
        self.log.close()
        with contextlib.suppress(OSError):  # nspawn leaves it when it is killed
            Path("/run/systemd/nspawn/propagate", self.name).rmdir()
        for cgroup in self.cgroups:
            wait_until(f"{cgroup} is empty", lambda: remove_cgroup(cgroup))

    def find_leader(self) -> int:
        if self.nspawn.poll() is not None:
            raise AssertionError(f"systemd-nspawn ended:\n{self.console()}")
        children = Path(f"/proc/{self.nspawn.pid}/task/{self.nspawn.pid}/children").read_text()
        for pid in children.split():
            # A child that has ended meanwhile is not the one; reading then fails with ESRCH.
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                if Path(f"/proc/{pid}/comm").read_text() == "systemd\n":
                    return int(pid)
        return 0

    def is_up(self) -> bool:
        """True when every job of the boot is done. A failed unit ends the wait, too."""
        if self.nspawn.poll() is not None:
            raise AssertionError(f"systemd-nspawn ended:\n{self.console()}")
        state = self.run("systemctl", "is-system-running", check=False).stdout.strip()
        if state == "degraded":
            raise AssertionError(self.run("systemctl", "--failed", check=False).stdout)
        return state == "running"

    def console(self) -> str:
        return Path(self.log.name).read_text(errors="replace")

    # ---- commands and files

    def command(self, *arguments: str) -> list[str]:
        """The command as the host runs it: in all of the container's namespaces and its root."""
        path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        clean = ["env", "-i", path, "HOME=/root", "LANG=C.UTF-8", "TERM=dumb"]
        clean += ["SYSTEMD_PAGER=", "SYSTEMD_COLORS=0", "DEBIAN_FRONTEND=noninteractive"]
        return ["nsenter", "-t", str(self.leader), "-a", *clean, *arguments]

    def run(
        self,
        *arguments: str,
        check: bool = True,
        input: str | bytes | None = None,
        seconds: float = COMMAND_SECONDS,
    ) -> subprocess.CompletedProcess[str]:
        data = input.encode() if isinstance(input, str) else input
        done = subprocess.run(
            self.command(*arguments),
            input=data if data is not None else b"",
            capture_output=True,
            timeout=seconds,
        )
        out = done.stdout.decode(errors="replace")
        err = done.stderr.decode(errors="replace")
        if check and done.returncode != 0:
            raise CommandFailed(f"{' '.join(arguments)}: status {done.returncode}\n{out}{err}")
        return subprocess.CompletedProcess(arguments, done.returncode, out, err)

    def shell(self, script: str, **options: Any) -> subprocess.CompletedProcess[str]:
        return self.run("bash", "-ec", script, **options)

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        """A command that goes on, until the test or end_started() ends it."""
        process = subprocess.Popen(
            self.command(*arguments),
            stdin=subprocess.DEVNULL,
            stdout=self.log,
            stderr=self.log,
        )
        self.started.append(process)
        return process

    def end_started(self) -> None:
        for process in self.started:
            if process.poll() is None:
                self.kill(process, signal.SIGKILL)
                process.wait()
        self.started.clear()

    def kill(self, process: subprocess.Popen[bytes], number: signal.Signals) -> None:
        """Signals a command of start(): the process inside, which is the child of nsenter."""
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        for pid in wait_until("nsenter has a child", lambda: children.read_text().split(), 5):
            os.kill(int(pid), number)

    def write(self, path: str, text: str | bytes, mode: str = "0644") -> None:
        self.shell(
            f'mkdir -p "$(dirname {path})"; cat > {path}; chmod {mode} {path}', input=text
        )

    def read(self, path: str) -> str:
        return self.run("cat", path).stdout

    def exists(self, path: str) -> bool:
        return self.run("test", "-e", path, check=False).returncode == 0

    def copy_in(self, source: Path, path: str) -> None:
        self.write(path, source.read_bytes())

    # ---- systemd

    def systemctl(self, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
        return self.run("systemctl", *arguments, **options)

    def show(self, unit: str, *properties: str) -> dict[str, str]:
        out = self.systemctl("show", unit, "--property=" + ",".join(properties)).stdout
        return dict(line.split("=", 1) for line in out.splitlines() if "=" in line)

    def property(self, unit: str, name: str) -> str:
        return self.show(unit, name)[name]

    def state(self, unit: str) -> str:
        return self.property(unit, "ActiveState")

    def main_pid(self, unit: str) -> int:
        return int(self.property(unit, "MainPID"))

    def wait_state(self, unit: str, state: str, seconds: float = 10) -> None:
        try:
            wait_until(f"{unit} is {state}", lambda: self.state(unit) == state, seconds)
        except AssertionError as error:
            status = self.systemctl("status", "--full", unit, check=False).stdout
            raise AssertionError(f"{error}\n{status}") from None

    def journal(self, *matches: str) -> list[dict[str, Any]]:
        """Entries that match, oldest first, every field as journalctl -o json gives it."""
        self.run("journalctl", "--sync", check=False)
        out = self.run("journalctl", "--output=json", "--all", "--no-pager", *matches, check=False)
        return [json.loads(line) for line in out.stdout.splitlines()]

    def host_pid(self, pid: int) -> int:
        """The host's number of a process of the container."""
        namespace = os.readlink(f"/proc/{self.leader}/ns/pid")
        for status in Path("/proc").glob("[0-9]*/status"):
            with contextlib.suppress(OSError):
                numbers = re.search(r"^NSpid:(.*)$", status.read_text(), re.M)
                if numbers and numbers[1].split()[-1] == str(pid):
                    if os.readlink(status.parent / "ns/pid") == namespace:
                        return int(status.parent.name)
        raise AssertionError(f"the container has no process {pid}")

    # ---- network

    @contextlib.contextmanager
    def network(self) -> Iterator[None]:
        """Sockets made inside belong to the container's network for as long as they live."""
        own = "/proc/thread-self/ns/net"  # /proc/self is the main thread's
        with open(own) as ours, open(f"/proc/{self.leader}/ns/net") as theirs:
            set_network_namespace(theirs.fileno())
            try:
                yield
            finally:
                set_network_namespace(ours.fileno())

    def connect(self, address: tuple[str, int] | str, seconds: float = 10) -> socket.socket:
        """A client of the container: (host, port), a path in its file system, or @abstract."""
        with self.network():
            if isinstance(address, tuple):
                return socket.create_connection(address, timeout=seconds)
            client = socket.socket(socket.AF_UNIX)
            client.settimeout(seconds)
            try:
                client.connect(self.unix_address(address))
            except BaseException:
                client.close()
                raise
            return client

    def listen(self, address: tuple[str, int] | str, backlog: int = 1024) -> socket.socket:
        """A listening socket inside the container, served by the test itself (see peers.py)."""
        with self.network():
            family = socket.AF_UNIX
            if isinstance(address, tuple):
                family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
            listener = socket.socket(family)
            try:
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                umask = os.umask(0)  # a unix socket that any user may connect to
                listener.bind(
                    address if isinstance(address, tuple) else self.unix_address(address)
                )
                os.umask(umask)
                listener.listen(backlog)
            except BaseException:
                listener.close()
                raise
            return listener

    def unix_address(self, address: str) -> str:
        if address.startswith("@"):
            return "\0" + address[1:]
        return f"/proc/{self.leader}/root{address}"

    def get(self, address: tuple[str, int] | str, path: str = "/", method: str = "GET") -> Reply:
        """One HTTP request to a server inside."""
        connection = http.client.HTTPConnection("localhost")
        connection.sock = self.connect(address)
        try:
            connection.request(method, path)
            reply = connection.getresponse()
            return Reply(reply.status, dict(reply.getheaders()), reply.read().decode())
        finally:
            connection.close()


class Reply:
    def __init__(self, status: int, headers: dict[str, str], body: str) -> None:
        self.status, self.headers, self.body = status, headers, body

    def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric's series that have these labels; fails when there is none."""
        values = []
        for line in self.body.splitlines():
            match = re.fullmatch(r"([a-zA-Z_:][\w:]*)(\{.*\})? (\S+)", line)
            if match and match[1] == name:
                has = dict(re.findall(r'(\w+)="((?:[^"\\]|\\.)*)"', match[2] or ""))
                if labels.items() <= has.items():
                    values.append(float(match[3]))
        assert values, f"no {name} with {labels} in:\n{self.body}"
        return sum(values)


def set_network_namespace(descriptor: int) -> None:
    """setns(2) of the calling thread alone; Python's os.setns came with 3.12."""
    if libc.setns(descriptor, CLONE_NEWNET) == -1:
        code = ctypes.get_errno()
        raise OSError(code, "setns: " + os.strerror(code))


def hierarchies() -> list[str]:
    """The cgroup hierarchies that systemd uses here: one, or two on a hybrid host."""
    if (CGROUPS / "cgroup.controllers").exists():
        return ["."]
    return [name for name in ("unified", "systemd") if (CGROUPS / name).is_dir()]


def remove_cgroup(cgroup: Path) -> bool:
    """True when the cgroup and all below it are gone; false while a process is still ending."""
    for folder, _, _ in os.walk(cgroup, topdown=False):
        try:
            os.rmdir(folder)
        except FileNotFoundError:
            pass
        except OSError:
            return False
    return True
