"""Runs the real binary and plays both its clients and its targets.

A `Lab` owns everything that a test starts, and takes it down in the order that proves something:
sockets first, then the proxy must have given every descriptor back, then SIGTERM must end it
with status 0. Nothing here sleeps and hopes: each wait has a condition and a deadline.
"""

from __future__ import annotations

import hashlib
import socket
import threading
from pathlib import Path
from typing import Any, Callable

# What a test needs comes from here, so that it has one import.
from addresses import Address, family, host_port
from process import Proxy, proxy_binary
from scrape import Metrics
from streams import (
    KIB, MIB, Stream, constant, cycle, echo_once, expect_end, expect_eof, expect_reset, fill,
    is_open, receive_all, receive_exactly, receive_stream, reset, send_stream,
)
from targets import EchoServer, FullTarget, Server, Target
from waiting import DEADLINE, PATIENCE, always, eventually, parallel

__all__ = [
    "DEADLINE", "KIB", "MIB", "PATIENCE", "Address", "EchoServer", "FullTarget", "Lab", "Metrics",
    "Proxy", "Server", "Stream", "Target", "always", "constant", "cycle", "echo_once",
    "eventually", "expect_end", "expect_eof", "expect_reset", "fill", "host_port", "is_open",
    "parallel", "proxy_binary", "receive_all", "receive_exactly", "receive_stream", "reset",
    "send_stream",
]


class Lab:
    """Owns the proxies, clients and targets of one test."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.proxies: list[Proxy] = []
        self.sockets: list[socket.socket] = []

    def proxy(self, target: Target | Address | str | None, *arguments: str,
              **options: Any) -> Proxy:
        address = target.address if isinstance(target, Target) else target
        return Proxy(self, address, *arguments, **options)

    def client(self, proxy: Proxy, receive_buffer: int | None = None,
               send_buffer: int | None = None) -> socket.socket:
        """A connection to the proxy. Buffers are set first: later they no longer bind."""
        sock = socket.socket(family(proxy.listen_address), socket.SOCK_STREAM)
        self.sockets.append(sock)
        sock.settimeout(DEADLINE)
        if receive_buffer:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        if send_buffer:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
        sock.connect(proxy.listen_address)
        if sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return sock

    def expect_refusal(self, proxy: Proxy, within: float = DEADLINE) -> None:
        """A new connection ends with RST, which may arrive while connect(2) still waits."""
        try:
            client = self.client(proxy)
        except ConnectionResetError:
            return
        expect_reset(client, within)
        client.close()

    def pair(
        self, proxy: Proxy, target: Target, **buffers: int
    ) -> tuple[socket.socket, socket.socket]:
        """A client and, at the other end of the proxy, the target's side of its connection."""
        client = self.client(proxy, **buffers)
        server = target.accept()
        if server.family != socket.AF_UNIX:
            server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return client, server

    def target(self, address: Address = ("127.0.0.1", 0), backlog: int = 512,
               receive_buffer: int | None = None) -> Target:
        return Target(self, address, backlog, receive_buffer)

    def unlistened(self, address: Address = ("127.0.0.1", 0)) -> Target:
        """A bound port on which nobody listens: connecting is refused until `listen`."""
        return Target(self, address, -1, None)

    def full_target(self) -> FullTarget:
        return FullTarget(self)

    def echo(self, address: Address = ("127.0.0.1", 0)) -> EchoServer:
        return EchoServer(self, address)

    def serve(self, handler: Callable[[socket.socket], None],
              address: Address = ("127.0.0.1", 0), receive_buffer: int | None = None) -> Server:
        return Server(self, handler, address, receive_buffer)

    def silent(self) -> Server:
        """Accepts, reads nothing, says nothing."""
        never = threading.Event()
        return self.serve(lambda connection: never.wait(86400) and None)

    def sink(self, done: Callable[[bytes], None]) -> Server:
        """Reads to the end, then hands over the SHA-256 of what came."""

        def swallow(connection: socket.socket) -> None:
            digest = hashlib.sha256()
            while data := connection.recv(256 * KIB):
                digest.update(data)
            done(digest.digest())

        return self.serve(swallow)

    def source(self, seed: str | int, count: int) -> Server:
        """Sends `count` bytes of the stream and FIN."""
        return self.serve(lambda connection: send_stream(connection, seed, count, finish=True))

    def resetting(self) -> Server:
        """Resets each connection as soon as it is there."""
        return self.serve(reset)

    def close_sockets(self) -> None:
        for sock in self.sockets:
            # shutdown wakes a thread that is blocked in accept or recv; close alone does not
            try:
                if sock.fileno() != -1 and sock.type == socket.SOCK_STREAM:
                    sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
            sock.close()
        self.sockets.clear()

    def close(self) -> None:
        self.close_sockets()
        failures = []
        for proxy in self.proxies:
            try:
                proxy.finish()
            except AssertionError as error:
                failures.append(str(error))
        assert not failures, "; ".join(failures)

    def logs(self) -> str:
        return "\n".join(f"$ {' '.join(p.command)}\n{p.stderr()}" for p in self.proxies)
