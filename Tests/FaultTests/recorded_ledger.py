"""Ledgers that older versions of the proxy have left, kept as files, and how they come to life.

A recording holds what a version of the proxy wrote: the datagrams' bytes and the table's. Sockets
and pipes cannot be kept in a file; they are made anew in the state that the recording tells of.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from harness import (
    DEADLINE, KIB, Lab, expect_eof, fill, receive_exactly, reset, send_stream,
)
from ledger import F_ADD_SEALS, Datagram, Ledger, is_pipe, send
from store import Service
from streams import Stream

FOLDER = Path(__file__).parent / "ledgers"

# What the connection of each scene was doing.
SCENES = ["at rest", "half-closed", "stalled", "dialling", "target apart", "handed over"]
BYTES_IN, BYTES_OUT = 1000, 2000  # that it had moved, where it had moved any
IN_PIPE = 5000  # bytes that stand in the pipe of the rebuilt one

_F_SEAL_SHRINK, _F_SEAL_GROW, _F_SEAL_SEAL = 2, 4, 1


@dataclass
class Recording:
    """One ledger with one connection."""

    scene: str
    layout: int  # the word behind the table's magic
    connection: int  # its id
    seals: int
    table_size: int
    table: dict[str, str]  # hex by offset; all else is zero
    datagrams: list[dict[str, Any]]  # "payload" in hex, "descriptors" by role

    @staticmethod
    def load(path: Path) -> Recording:
        return Recording(**json.loads(path.read_text()))

    def save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(self), indent=2) + "\n")

    def table_bytes(self) -> bytes:
        data = bytearray(self.table_size)
        for offset, text in self.table.items():
            part = bytes.fromhex(text)
            data[int(offset) : int(offset) + len(part)] = part
        return bytes(data)


def path_of(layout: int, scene: str) -> Path:
    return FOLDER / f"layout-{layout}" / f"{scene.replace(' ', '-')}.json"


# --- recording -----------------------------------------------------------------------------------


def record(lab: Lab, scene: str) -> Recording:
    """Brings a connection into that state, ends the proxy and reads what it has left."""
    being_dialled = scene in ("dialling", "target apart")
    arguments = (f"--preserve-after={'0' if being_dialled else '50ms'}", "--connect-timeout=1h")
    if being_dialled:
        full = lab.full_target()
        service = Service(lab, full, *arguments)
        client = lab.client(service)
        service.await_entered(1)
        service.await_value(1, "tcp_proxy_target_connect_attempts_total")
        server = None
        if scene == "target apart":
            full.make_room()
            server = full.accept_live()
    else:
        target = lab.target(receive_buffer=64 * KIB)
        service = Service(lab, target, *arguments)
        client, server = lab.pair(service, target, receive_buffer=64 * KIB)
        service.await_entered(1)
    if server is not None:
        send_stream(client, "in", BYTES_IN)
        receive_exactly(server, BYTES_IN)
        send_stream(server, "out", BYTES_OUT)
        receive_exactly(client, BYTES_OUT)
    if scene == "stalled":
        assert server
        fill(client, "stalled")
    elif scene == "half-closed":
        assert server
        client.shutdown(socket.SHUT_WR)
        expect_eof(server)
    if scene == "handed over":
        service.hand_over()
    else:
        service.crash()
    (ledger,) = service.ledgers()
    recording = _read(ledger, scene, client)
    service.start()  # whose log tells the connection's id
    reset(client)
    recording.connection = int(service.await_line(r"connection \d+ ended").split()[1])
    return recording


def _read(ledger: Ledger, scene: str, client: socket.socket) -> Recording:
    table = ledger.table()
    extents: dict[str, str] = {}
    for offset in range(0, len(table), 64):
        part = table[offset : offset + 64].rstrip(b"\0")
        if part:
            extents[str(offset)] = part.hex()
    datagrams = []
    with ledger.entries() as entries:
        for entry in entries:
            roles = []
            for number in entry.descriptors:
                if is_pipe(number):
                    writable = fcntl.fcntl(number, fcntl.F_GETFL) & os.O_ACCMODE == os.O_WRONLY
                    roles.append("pipe to write" if writable else "pipe to read")
                    continue
                with socket.socket(fileno=os.dup(number)) as sock:
                    is_client = sock.getpeername() == client.getsockname()
                    roles.append("client" if is_client else "target")
            datagrams.append({"payload": entry.payload.hex(), "descriptors": roles})
    layout = int.from_bytes(table[8:12], "little")
    return Recording(
        scene, layout, 0, ledger.seals(), len(table), extents, datagrams
    )


# --- rebuilding ----------------------------------------------------------------------------------


@dataclass
class Rebuilt:
    """A connection as an older proxy has left it, and the far ends that the test plays."""

    client: socket.socket
    server: socket.socket | None
    stored: list[int]  # the ledger's descriptors, for a store to own


def rebuild(lab: Lab, recording: Recording) -> Rebuilt:
    """Does by hand what the older proxy did, and puts the sockets around its bytes."""
    has_target = recording.scene != "dialling"
    client, ours = _accepted(lab)
    server = theirs = None
    parts: dict[str, socket.socket | int] = {"client": ours}
    if has_target:
        server, theirs = _connected(lab)
        parts["target"] = theirs
        _move(client, ours, theirs, server, "in", BYTES_IN)
        _move(server, theirs, ours, client, "out", BYTES_OUT)
    if recording.scene == "half-closed":
        assert theirs and server
        client.shutdown(socket.SHUT_WR)
        expect_eof(ours)
        theirs.shutdown(socket.SHUT_WR)
        expect_eof(server)
    if recording.scene == "stalled":
        parts["pipe to read"], parts["pipe to write"] = os.pipe()
        os.set_blocking(parts["pipe to read"], False)
        os.set_blocking(parts["pipe to write"], False)
        send_stream(client, "stalled", IN_PIPE)
        assert os.write(parts["pipe to write"], receive_exactly(ours, IN_PIPE)) == IN_PIPE
    ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    for datagram in recording.datagrams:
        numbers = [
            part if isinstance(part, int) else part.fileno()
            for part in (parts[role] for role in datagram["descriptors"])
        ]
        send(ends[0], Datagram(bytes.fromhex(datagram["payload"]), numbers))
    for part in parts.values():
        if isinstance(part, int):
            os.close(part)
        else:
            part.close()
    for end in ends:
        end.setblocking(False)
    return Rebuilt(client, server, [ends[0].detach(), ends[1].detach(), _table(recording)])


def _table(recording: Recording) -> int:
    descriptor = os.memfd_create("recorded", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(descriptor, recording.table_size)
    os.pwrite(descriptor, recording.table_bytes(), 0)
    fcntl.fcntl(descriptor, F_ADD_SEALS, recording.seals)
    return descriptor


def _accepted(lab: Lab) -> tuple[socket.socket, socket.socket]:
    """A client, and the socket that a proxy has accepted from it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        ours, _ = listener.accept()
    return _owned(lab, client), _prepared(ours)


def _connected(lab: Lab) -> tuple[socket.socket, socket.socket]:
    """A server's connection, and the socket that a proxy has connected to it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ours = socket.create_connection(listener.getsockname())
        server, _ = listener.accept()
    return _owned(lab, server), _prepared(ours)


def _owned(lab: Lab, sock: socket.socket) -> socket.socket:
    lab.sockets.append(sock)
    sock.settimeout(DEADLINE)
    return sock


def _prepared(sock: socket.socket) -> socket.socket:
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def _move(source: socket.socket, ours: socket.socket, theirs: socket.socket,
          sink: socket.socket, seed: str, count: int) -> None:
    send_stream(source, seed, count)
    theirs.sendall(receive_exactly(ours, count))
    Stream(seed).check(receive_exactly(sink, count))

