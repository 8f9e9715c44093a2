"""What the proxy has stored: looked at, and falsified, while nobody serves it.

Of a ledger this knows what the kernel knows: a pair of datagram sockets, a queue of datagrams with
descriptors in it, and a memfd. What the bytes mean is the proxy's business.
"""

from __future__ import annotations

import array
import contextlib
import fcntl
import os
import socket
import stat
import termios
from dataclasses import dataclass, field
from typing import Callable, Iterator

from streams import KIB

SO_PEEK_OFF = 42
F_ADD_SEALS, F_GET_SEALS = 1033, 1034
MOST_DESCRIPTORS = 253  # in one message: SCM_MAX_FD


@dataclass
class Datagram:
    """One message of a queue, with its descriptors, which it owns."""

    payload: bytes
    descriptors: list[int] = field(default_factory=list)

    def close(self) -> None:
        while self.descriptors:
            os.close(self.descriptors.pop())

    def copy(self) -> Datagram:
        return Datagram(self.payload, [duplicate(number) for number in self.descriptors])


def duplicate(descriptor: int) -> int:
    return fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 0)


def receive(sock: socket.socket, flags: int = 0) -> Datagram:
    """One datagram with all that came along. socket.recv_fds does not pass flags on."""
    space = socket.CMSG_SPACE(MOST_DESCRIPTORS * array.array("i").itemsize)
    payload, ancillary, received, _ = sock.recvmsg(
        64 * KIB, space, flags | socket.MSG_CMSG_CLOEXEC
    )
    descriptors = array.array("i")
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            descriptors.frombytes(data[: len(data) - len(data) % descriptors.itemsize])
    datagram = Datagram(payload, list(descriptors))
    if received & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
        datagram.close()
        raise AssertionError("a datagram was cut")
    return datagram


def send(sock: socket.socket, datagram: Datagram) -> None:
    rights = array.array("i", datagram.descriptors)
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)] if rights else []
    sock.sendmsg([datagram.payload], ancillary, socket.MSG_DONTWAIT)


def is_socket(descriptor: int) -> bool:
    return stat.S_ISSOCK(os.fstat(descriptor).st_mode)


def is_pipe(descriptor: int) -> bool:
    return stat.S_ISFIFO(os.fstat(descriptor).st_mode)


def bytes_waiting(descriptor: int) -> int:
    """FIONREAD: ioctl_pipe(2), tcp(7)."""
    count = array.array("i", [0])
    fcntl.ioctl(descriptor, termios.FIONREAD, count)
    return count[0]


class Ledger:
    """A stored ledger. Its descriptors belong to the store."""

    def __init__(self, name: str, descriptors: list[int]) -> None:
        self.name = name
        self.ends = [number for number in descriptors if is_socket(number)]
        self.tables = [number for number in descriptors if not is_socket(number)]

    # - queue

    @contextlib.contextmanager
    def entries(self) -> Iterator[list[Datagram]]:
        """What its queue holds, looked at without taking it out."""
        found: list[Datagram] = []
        try:
            for end in self._borrowed_ends():
                end.setsockopt(socket.SOL_SOCKET, SO_PEEK_OFF, 0)
                try:
                    while True:
                        found.append(receive(end, socket.MSG_PEEK | socket.MSG_DONTWAIT))
                except BlockingIOError:
                    pass
                finally:
                    end.setsockopt(socket.SOL_SOCKET, SO_PEEK_OFF, -1)
            yield found
        finally:
            for datagram in found:
                datagram.close()

    def rewrite(self, change: Callable[[list[Datagram]], list[Datagram]]) -> None:
        """Takes all out and puts in what `change` makes of it."""
        first, second = self._borrowed_ends()
        for receiver, sender in ((first, second), (second, first)):
            receiver.setsockopt(socket.SOL_SOCKET, SO_PEEK_OFF, -1)
            taken: list[Datagram] = []
            with contextlib.suppress(BlockingIOError):
                while True:
                    taken.append(receive(receiver, socket.MSG_DONTWAIT))
            if not taken:
                continue
            changed = change(list(taken))
            for datagram in changed:
                send(sender, datagram)
            for datagram in {id(one): one for one in taken + changed}.values():
                datagram.close()

    def _borrowed_ends(self) -> list[socket.socket]:
        return [socket.socket(fileno=duplicate(end)) for end in self.ends]

    def pipes(self) -> list[int]:
        """The bytes that stand in each of its pipes."""
        with self.entries() as entries:
            counts = {
                os.fstat(number).st_ino: bytes_waiting(number)
                for entry in entries for number in entry.descriptors if is_pipe(number)
            }
        return list(counts.values())

    # - table

    def table(self) -> bytes:
        (descriptor,) = self.tables
        return os.pread(descriptor, os.fstat(descriptor).st_size, 0)

    def write_table(self, offset: int, data: bytes) -> None:
        """Changes the table in its place; its size stays."""
        (descriptor,) = self.tables
        assert offset + len(data) <= os.fstat(descriptor).st_size
        assert os.pwrite(descriptor, data, offset) == len(data)

    def flip(self, position: int, bit: int) -> None:
        self.write_table(position, bytes([self.table()[position] ^ (1 << bit)]))

    def seals(self) -> int:
        (descriptor,) = self.tables
        return fcntl.fcntl(descriptor, F_GET_SEALS)

    def new_table(self, data: bytes, seals: int | None = None) -> int:
        """A memfd of that content, sealed as the present one is unless told otherwise."""
        descriptor = os.memfd_create("falsified", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(descriptor, len(data))
        assert os.pwrite(descriptor, data, 0) == len(data)
        fcntl.fcntl(descriptor, F_ADD_SEALS, self.seals() if seals is None else seals)
        return descriptor
