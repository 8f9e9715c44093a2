"""Byte streams that show where they were damaged, and the ways in which a connection ends."""

from __future__ import annotations

import hashlib
import select
import selectors
import socket
import struct
import time
from typing import Iterable, Iterator

from waiting import DEADLINE

KIB = 1024
MIB = 1024 * KIB


class Stream:
    """A pseudo-random byte stream that is a function of its seed and the position only.

    No two 64 KiB blocks are alike, so loss, doubling and reordering all show at the exact byte.
    """

    BLOCK = 64 * KIB

    def __init__(self, seed: str | int) -> None:
        self.seed = str(seed)
        self.position = 0
        self._block = b""
        self._index = -1

    def read(self, count: int) -> bytes:
        parts = []
        while count > 0:
            index, offset = divmod(self.position, self.BLOCK)
            if index != self._index:
                self._block = hashlib.shake_128(f"{self.seed}/{index}".encode()).digest(self.BLOCK)
                self._index = index
            part = self._block[offset : offset + count]
            parts.append(part)
            self.position += len(part)
            count -= len(part)
        return b"".join(parts)

    def check(self, data: bytes) -> None:
        """Asserts that `data` is what follows at this position."""
        start = self.position
        expected = self.read(len(data))
        if expected != data:
            first = next(i for i, (a, b) in enumerate(zip(expected, data)) if a != b)
            raise AssertionError(f"stream {self.seed}: wrong byte at offset {start + first}")


Chunks = Iterable[int]


def constant(size: int) -> Iterator[int]:
    while True:
        yield size


def cycle(*sizes: int) -> Iterator[int]:
    while True:
        yield from sizes


def send_stream(
    sock: socket.socket, seed: str | int, count: int, chunks: Chunks | None = None,
    pause: float = 0, finish: bool = False,
) -> None:
    """Sends `count` bytes of the stream in writes of the given sizes; `finish` sends FIN after."""
    stream = Stream(seed)
    sizes = iter(chunks or constant(64 * KIB))
    while stream.position < count:
        sock.sendall(stream.read(min(next(sizes), count - stream.position)))
        if pause:
            time.sleep(pause)
    if finish:
        sock.shutdown(socket.SHUT_WR)


def receive_stream(
    sock: socket.socket, seed: str | int, count: int, chunks: Chunks | None = None,
    pause: float = 0, until_eof: bool = False,
) -> None:
    """Receives `count` bytes and checks each; `until_eof` asks for a FIN right behind them."""
    stream = Stream(seed)
    sizes = iter(chunks or constant(256 * KIB))
    while stream.position < count:
        data = sock.recv(min(next(sizes), count - stream.position))
        assert data, f"stream {seed}: ended after {stream.position} of {count} bytes"
        stream.check(data)
        if pause:
            time.sleep(pause)
    if until_eof:
        expect_eof(sock)


def receive_exactly(sock: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        part = sock.recv(count - len(data))
        assert part, f"ended after {len(data)} of {count} bytes"
        data += part
    return data


def receive_all(sock: socket.socket) -> bytes:
    parts = []
    while part := sock.recv(256 * KIB):
        parts.append(part)
    return b"".join(parts)


def echo_once(sock: socket.socket, message: bytes = b"ping") -> None:
    """One request through an echoing target."""
    sock.sendall(message)
    answer = receive_exactly(sock, len(message))
    assert answer == message


# --- ends of connections -------------------------------------------------------------------------


def reset(sock: socket.socket) -> None:
    """Ends the connection with RST (SO_LINGER of 0 seconds: tcp(7), socket(7))."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def expect_eof(sock: socket.socket, within: float = DEADLINE) -> None:
    """The next thing to arrive is a FIN."""
    sock.settimeout(within)
    data = sock.recv(64)
    assert data == b"", f"bytes instead of the end: {data!r}"


def expect_reset(sock: socket.socket, within: float = DEADLINE) -> None:
    """The connection ends with RST; bytes before it are allowed, a FIN is not."""
    end = time.monotonic() + within
    while True:
        sock.settimeout(max(0.01, end - time.monotonic()))
        try:
            data = sock.recv(256 * KIB)
        except ConnectionResetError:
            return
        except socket.timeout:
            raise AssertionError(f"no reset within {within:g} s") from None
        assert data, "the connection ended with FIN instead of a reset"


def expect_end(sock: socket.socket, within: float = DEADLINE) -> str:
    """The connection ends in whichever way; bytes before it are allowed. Says "FIN" or "RST"."""
    end = time.monotonic() + within
    while True:
        sock.settimeout(max(0.01, end - time.monotonic()))
        try:
            if not sock.recv(256 * KIB):
                return "FIN"
        except (ConnectionResetError, BrokenPipeError):
            return "RST"
        except socket.timeout:
            raise AssertionError(f"the connection was still open after {within:g} s") from None


def is_open(sock: socket.socket) -> bool:
    """True exactly when neither FIN nor RST is next to be read."""
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    if not poll.poll(0):
        return True
    try:
        return bool(sock.recv(1, socket.MSG_PEEK))
    except OSError:
        return False


def fill(sock: socket.socket, seed: str | int, quiet: float = 0.3, limit: int = 512 * MIB) -> int:
    """Sends the stream until nothing has been taken for `quiet` seconds; returns bytes taken."""
    stream = Stream(seed)
    pending = b""
    sock.setblocking(False)
    try:
        with selectors.DefaultSelector() as selector:
            selector.register(sock, selectors.EVENT_WRITE)
            while stream.position - len(pending) < limit:
                pending = pending or stream.read(64 * KIB)
                try:
                    pending = pending[sock.send(pending) :]
                except BlockingIOError:
                    if not selector.select(quiet):
                        return stream.position - len(pending)
        raise AssertionError(f"no back-pressure: {limit} bytes were taken")
    finally:
        sock.settimeout(DEADLINE)
