"""A look into systemd's store of descriptors, from the host: PID 1's descriptors are duplicated.

The ledger's queue is read as the proxy's successor reads it, without taking anything from it.
"""

from __future__ import annotations

import array
import fcntl
import mmap
import os
import socket
import stat
import struct
import termios
from collections.abc import Iterator
from pathlib import Path

from container import Container, libc

PIDFD_GETFD = 438  # the same number on every architecture
SO_PEEK_OFF = 42
SCM_MAX_FD = 253
NO_OFFSET = -1


def stored(container: Container) -> Iterator[tuple[str, int]]:
    """(what it is, a duplicate) of each descriptor of the container's systemd. The duplicate is
    closed when the next one is asked for."""
    pidfd = os.pidfd_open(container.leader)
    try:
        for entry in Path(f"/proc/{container.leader}/fd").iterdir():
            try:
                kind = os.readlink(entry)
            except OSError:
                continue  # closed meanwhile
            duplicate = libc.syscall(PIDFD_GETFD, pidfd, int(entry.name), 0)
            if duplicate == -1:
                continue
            try:
                yield kind, duplicate
            finally:
                os.close(duplicate)
    finally:
        os.close(pidfd)


def queues(container: Container) -> Iterator[socket.socket]:
    """Each queue that holds a ledger's entries: an unnamed datagram socket with datagrams in it."""
    for kind, descriptor in stored(container):
        if not kind.startswith("socket:"):
            continue
        with socket.socket(fileno=os.dup(descriptor)) as queue:
            if (queue.family, queue.type & 0xF) != (socket.AF_UNIX, socket.SOCK_DGRAM):
                continue
            if queue.getsockname() == "" and waiting_bytes(queue.fileno()) > 0:
                yield queue


def waiting_bytes(descriptor: int) -> int:
    """FIONREAD: what could be read from a pipe, or from a socket's first datagram."""
    answer = array.array("i", [0])
    fcntl.ioctl(descriptor, termios.FIONREAD, answer)
    return answer[0]


def entries(queue: socket.socket) -> Iterator[tuple[bytes, list[int]]]:
    """Every datagram and its descriptors, which are closed when the next one is asked for.
    Only while nobody else peeks: the position belongs to the queue, not to who reads."""
    queue.setsockopt(socket.SOL_SOCKET, SO_PEEK_OFF, 0)
    flags = socket.MSG_PEEK | socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC
    room = socket.CMSG_SPACE(SCM_MAX_FD * 4)
    try:
        while True:
            try:
                data, ancillary, _, _ = queue.recvmsg(65536, room, flags)
            except BlockingIOError:
                return
            passed = array.array("i")
            for level, kind, content in ancillary:
                if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                    passed.frombytes(content[: len(content) - len(content) % passed.itemsize])
            try:
                yield data, list(passed)
            finally:
                for descriptor in passed:
                    os.close(descriptor)
    finally:
        queue.setsockopt(socket.SOL_SOCKET, SO_PEEK_OFF, struct.pack("i", NO_OFFSET))


def bytes_in_pipes(container: Container) -> list[int]:
    """What each pipe of the stored ledgers holds; a pipe of which both ends are entered counts
    once."""
    found: dict[int, int] = {}
    for queue in queues(container):
        for _, descriptors in entries(queue):
            for descriptor in descriptors:
                status = os.fstat(descriptor)
                if stat.S_ISFIFO(status.st_mode):
                    found[status.st_ino] = waiting_bytes(descriptor)
    return list(found.values())


def sockets_entered(container: Container) -> int:
    """How many descriptors of sockets the stored ledgers hold."""
    return sum(
        stat.S_ISSOCK(os.fstat(descriptor).st_mode)
        for queue in queues(container)
        for _, descriptors in entries(queue)
        for descriptor in descriptors
    )


def tables(container: Container) -> Iterator[mmap.mmap]:
    """Each ledger's table, mapped so that a test may damage it."""
    for kind, descriptor in stored(container):
        if kind.startswith("/memfd:") and os.fstat(descriptor).st_size > 0:
            with mmap.mmap(descriptor, 0) as mapped:
                yield mapped
