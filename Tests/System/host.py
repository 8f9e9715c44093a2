"""What an administrator of the proxy does on a host, in the words that the tests use."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from container import Container, Reply, wait_until

SERVICE = "tcp-metrics-proxy.service"
SOCKET = "tcp-metrics-proxy.socket"
METRICS_SOCKET = "tcp-metrics-proxy-metrics.socket"
LISTEN = ("127.0.0.1", 3000)
TARGET = ("127.0.0.1", 3001)
METRICS = ("127.0.0.1", 3002)
DEFAULT_ROUTE = "tcp-metrics-proxy"  # a route has the name of its .socket unit

SYSTEMD = Path(__file__).resolve().parents[2] / "packaging" / "systemd"

# The kinds of journal entries by name, as message-ids.txt lists them.
MESSAGE_IDS = dict(
    line.split()
    for line in (SYSTEMD / "message-ids.txt").read_text().splitlines()
    if line and not line.startswith("#")
)


class Host:
    """A container with the package installed."""

    def __init__(self, container: Container) -> None:
        self.container = container
        self.systemctl = container.systemctl
        self.run = container.run

    def install(self, package: Path) -> None:
        """With apt, as the README says. The container has no network: nothing else is fetched."""
        self.container.copy_in(package, f"/root/{package.name}")
        self.run("apt-get", "install", "--yes", f"/root/{package.name}")

    def enable(self, *units: str) -> None:
        self.systemctl("enable", "--now", *units)

    def write_route(self, name: str, listen: str, keys: str, socket_keys: str = "") -> None:
        """A route of the administrator's own, as the manual page shows it."""
        self.container.write(
            f"/etc/systemd/system/{name}.socket",
            f"[Unit]\nDescription=Route {name}\n\n"
            f"[Socket]\nListenStream={listen}\nService={SERVICE}\n"
            f"TriggerLimitIntervalSec=0\n{socket_keys}\n\n"
            f"[X-Proxy]\n{keys}\n\n"
            f"[Install]\nWantedBy=sockets.target {SERVICE}\n",
        )

    def drop_in(self, unit: str, text: str, name: str = "test.conf") -> None:
        self.container.write(f"/etc/systemd/system/{unit}.d/{name}", text)
        self.systemctl("daemon-reload")

    def status_text(self) -> str:
        return self.container.property(SERVICE, "StatusText")

    def main_pid(self) -> int:
        return self.container.main_pid(SERVICE)

    def entries(self, kind: str | None = None, *matches: str) -> list[dict[str, Any]]:
        """Journal entries of the service, all or of one kind of MESSAGE_IDS."""
        if kind is not None:
            matches = (f"MESSAGE_ID={MESSAGE_IDS[kind]}", *matches)
        # Not --after-cursor=: in 252 it skips one entry when matches are given, too.
        cursor = [f"--cursor={self.cursor}"] if self.cursor else []
        found = self.container.journal(*cursor, "--unit", SERVICE, *matches)
        return [entry for entry in found if entry["__CURSOR"] != self.cursor]

    def wait_entry(self, kind: str, *matches: str, seconds: float = 10) -> dict[str, Any]:
        """The newest entry of a kind, as soon as there is one."""
        what = f"the journal has {kind} {' '.join(matches)}"
        return wait_until(what, lambda: self.entries(kind, *matches), seconds)[-1]

    def wait_listening(self, port: int) -> None:
        wait_until(
            f"something listens on port {port}",
            lambda: self.run("ss", "-Hltn", f"sport = :{port}").stdout,
        )

    def metrics(self) -> Reply:
        reply = self.container.get(METRICS, "/metrics")
        assert reply.status == 200
        return reply

    cursor = ""

    def reset(self) -> None:
        """Back to after the installation. The journal stays, but tests see only what is new."""
        self.container.end_started()
        units = self.container.shell(
            f"systemctl show -p TriggeredBy --value {SERVICE};"
            " cd /etc/systemd/system && ls | grep -E '[.]socket$|^test-' || true"
        ).stdout.split()
        units = sorted({unit for unit in units if not unit.endswith(".d")} | {SERVICE})
        self.systemctl("stop", "--no-block", *units, SOCKET, METRICS_SOCKET, check=False)
        self.systemctl("kill", "--signal=KILL", SERVICE, check=False)  # no drain
        self.systemctl("stop", *units, SOCKET, METRICS_SOCKET, check=False)
        self.systemctl("disable", "--quiet", *units, SOCKET, METRICS_SOCKET, check=False)
        self.container.shell(
            "cd /etc/systemd/system && rm -rf test-* *.socket *.socket.d *.service.d"
        )
        self.systemctl("daemon-reload")
        self.systemctl("reset-failed", check=False)
        last = self.container.journal("--lines=1")
        self.cursor = last[-1]["__CURSOR"] if last else ""


def exchange(client: socket.socket, data: bytes = b"ping") -> bytes:
    """Sends, half-closes, and returns everything that comes back."""
    client.sendall(data)
    client.shutdown(socket.SHUT_WR)
    return read_all(client)


def read_all(client: socket.socket) -> bytes:
    chunks = []
    while chunk := client.recv(65536):
        chunks.append(chunk)
    return b"".join(chunks)


def read_exactly(client: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        chunk = client.recv(count - len(data))
        assert chunk, f"end of stream after {len(data)} of {count} bytes"
        data += chunk
    return data


class Load:
    """Clients that come one after another, in threads, until the block ends."""

    def __init__(self, container: Container, threads: int = 2) -> None:
        self.container = container
        self.count = 0
        self.failures: list[str] = []
        self.ended = threading.Event()
        self.lock = threading.Lock()
        self.threads = [threading.Thread(target=self.come_and_go) for _ in range(threads)]

    def come_and_go(self) -> None:
        while not self.ended.is_set():
            try:
                with self.container.connect(LISTEN) as client:
                    answer = exchange(client)
                failure = None if answer == b"ping" else f"answered {answer!r}"
            except OSError as error:
                failure = repr(error)
            with self.lock:
                self.count += 1
                if failure:
                    self.failures.append(failure)

    def wait_for(self, more: int, seconds: float = 20) -> None:
        """Until so many more clients have been served than by now."""
        goal = self.count + more
        wait_until(f"{more} more clients are served", lambda: self.count >= goal, seconds)

    def __enter__(self) -> Load:
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        for thread in self.threads:
            thread.join()


def echo(connection: socket.socket) -> None:
    while data := connection.recv(65536):
        connection.sendall(data)


def greet(text: bytes) -> Callable[[socket.socket], None]:
    """A target that says who it is and ends, so that a test sees where a route leads."""

    def serve(connection: socket.socket) -> None:
        connection.sendall(text)
        connection.shutdown(socket.SHUT_WR)
        read_all(connection)

    return serve


@contextmanager
def target(
    container: Container,
    address: tuple[str, int] | str = TARGET,
    serve: Callable[[socket.socket], None] = echo,
) -> Iterator[None]:
    """A target inside the container, one thread for each connection."""
    listener = container.listen(address)
    open_connections: set[socket.socket] = set()

    def one(connection: socket.socket) -> None:
        with connection:
            try:
                serve(connection)
            except OSError:
                pass  # the test has closed its side, or the target is being closed
            finally:
                open_connections.discard(connection)

    def accept() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            open_connections.add(connection)
            threading.Thread(target=one, args=(connection,), daemon=True).start()

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield
    finally:
        listener.shutdown(socket.SHUT_RDWR)  # wakes accept; close alone does not
        thread.join(timeout=5)
        listener.close()
        for connection in list(open_connections):
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
