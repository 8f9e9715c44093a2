"""Traffic for the tests of survival, as a program of its own: clients and their echoing target.

    load.py --connect 127.0.0.1:3000 --target 127.0.0.1:3001 --connections 100 --churn 200

It keeps `connections` open and sends a numbered message on each every `period` seconds, as soon as
the last one has come back byte for byte; and it opens `churn` new connections a second, each for
`messages` messages. It runs until standard input ends. A line there is a command:

    report    prints a line of JSON: see Load.report
    mark      reports, having started `longest_gap` and `quiet` afresh

One thread and one epoll for both sides: what it measures contains its own time, some 30 µs a
message.
"""

from __future__ import annotations

import argparse
import errno
import heapq
import json
import os
import select
import socket
import struct
import sys
import time
from collections import Counter

HEADER = struct.Struct("!QQ")  # the connection's number, the message's number
# Errors of connections that were meant to be short are told apart by their age since the first
# answer: before that, nobody may have accepted them.
YOUNG_SECONDS = 2
END_SECONDS = 15  # for the last messages to come back, and for every end of stream
EXAMPLES = 10  # of errors, told in full


class Client:
    """One connection: at most one message is on its way."""

    __slots__ = ("socket", "number", "size", "sent", "sent_at", "answered", "awaited")
    __slots__ += ("born", "short", "state")

    def __init__(self, number: int, size: int, short: bool) -> None:
        self.number, self.size, self.short = number, size, short
        self.socket = socket.socket()
        self.socket.setblocking(False)
        self.sent = 0  # messages
        self.born = 0.0  # when the first answer came
        self.sent_at = time.monotonic()  # of the last message; of the connect, before the first
        self.answered = 0.0  # when the newest of those that have come back was sent
        self.awaited = b""  # the rest of the message that has not come back yet
        self.state = "connecting"  # then "idle" or "waiting", at last "ending"

    def message(self) -> bytes:
        text = HEADER.pack(self.number, self.sent)
        return (text * (self.size // len(text) + 1))[: self.size]


class Load:
    def __init__(self, arguments: argparse.Namespace) -> None:
        self.period, self.size, self.churn = arguments.period, arguments.size, arguments.churn
        self.address = parse(arguments.connect)
        self.poll = select.epoll()
        self.clients: dict[int, Client] = {}
        self.echoes: dict[int, socket.socket] = {}
        self.due: list[tuple[float, int, Client]] = []  # idle connections by their next message
        self.kept, self.messages = arguments.connections, arguments.messages
        self.number = 0
        self.round_trips = self.completed = 0
        self.bytes = 0  # that came back as they were sent
        self.errors: Counter[str] = Counter()
        self.examples: list[str] = []
        self.marked_at = time.monotonic()
        self.longest_gap = self.gap_before = 0.0
        self.ending = False
        self.listener = socket.create_server(
            parse(arguments.target), backlog=4096, reuse_port=False
        )
        self.listener.setblocking(False)
        self.poll.register(self.listener, select.EPOLLIN)
        self.poll.register(0, select.EPOLLIN)
        self.commands = b""

    # ---- clients

    def open(self, short: bool) -> None:
        client = Client(self.number, self.size, short)
        self.number += 1
        self.clients[client.socket.fileno()] = client
        code = client.socket.connect_ex(self.address)
        if code not in (0, errno.EINPROGRESS):
            return self.fail(client, errno.errorcode[code])
        self.poll.register(client.socket, select.EPOLLOUT)

    def send(self, client: Client, now: float) -> None:
        client.awaited = client.message()
        client.sent += 1
        client.sent_at, client.state = now, "waiting"
        try:
            count = client.socket.send(client.awaited)
        except OSError as error:
            return self.fail(client, errno.errorcode[error.errno])
        if count != self.size:
            self.fail(client, "send buffer full")

    def advance(self, client: Client, now: float) -> None:
        """What an event on a client's socket asks for."""
        if client.state == "connecting":
            code = client.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if code:
                return self.fail(client, errno.errorcode[code])
            self.poll.modify(client.socket, select.EPOLLIN)
            return self.send(client, now)
        try:
            data = client.socket.recv(65536)
        except BlockingIOError:
            return
        except OSError as error:
            return self.fail(client, errno.errorcode[error.errno])
        if not data:
            if client.state == "ending":
                return self.close(client)
            return self.fail(client, "end of stream")
        if not client.awaited.startswith(data):
            sample = f"{data[:24].hex()} instead of {client.awaited[:24].hex()}"
            return self.fail(client, f"corrupted: {sample}")
        self.bytes += len(data)
        client.awaited = client.awaited[len(data) :]
        if client.awaited:
            return
        self.round_trips += 1
        self.longest_gap = max(self.longest_gap, now - client.sent_at)
        client.state, client.answered = "idle", client.sent_at
        client.born = client.born or now
        if client.short and client.sent == self.messages:
            self.completed += 1
            self.close(client)
        elif self.ending:
            self.half_close(client)
        else:
            # Spread over the period, so that at any moment some message is on its way.
            share = client.number % 97 / 97 if client.sent == 1 else 1
            due = client.sent_at + self.period * share
            heapq.heappush(self.due, (due, client.number, client))

    def half_close(self, client: Client) -> None:
        client.state = "ending"
        try:
            client.socket.shutdown(socket.SHUT_WR)
        except OSError as error:
            self.fail(client, errno.errorcode[error.errno])

    def fail(self, client: Client, what: str) -> None:
        kind = "kept"
        if client.short:
            is_old = client.born and time.monotonic() - client.born > YOUNG_SECONDS
            kind = "old" if is_old else "short"
        self.errors[f"{kind}: {what.split(':')[0]}"] += 1
        if len(self.examples) < EXAMPLES:
            self.examples.append(
                f"connection {client.number} ({kind}, {client.state}) after {client.sent} messages:"
                f" {what}"
            )
        self.close(client)

    def close(self, client: Client) -> None:
        client.state = "closed"
        del self.clients[client.socket.fileno()]
        client.socket.close()

    # ---- target

    def accept(self) -> None:
        while True:
            try:
                echo, _ = self.listener.accept()
            except BlockingIOError:
                return
            echo.setblocking(False)
            self.echoes[echo.fileno()] = echo
            self.poll.register(echo, select.EPOLLIN)

    def answer(self, echo: socket.socket) -> None:
        try:
            data = echo.recv(65536)
            if data:
                count = echo.send(data)
                if count == len(data):
                    return
                self.errors["target: send buffer full"] += 1
        except BlockingIOError:
            return
        except OSError as error:
            self.errors[f"target: {errno.errorcode[error.errno]}"] += 1
        del self.echoes[echo.fileno()]
        echo.close()

    # ---- both

    def report(self) -> str:
        """`quiet` counts the kept connections on which no message sent since the mark has come
        back; `longest_gap` is the longest time, in seconds, that any took that came back since the
        mark, and `gap_before` the same of the time before it."""
        kept = [client for client in self.clients.values() if not client.short]
        quiet = sum(client.answered < self.marked_at for client in kept)
        return json.dumps(
            {
                "open": len(kept),
                "quiet": quiet + self.kept - len(kept),
                "opened": self.number,
                "completed": self.completed,
                "round_trips": self.round_trips,
                "bytes": self.bytes,
                "errors": dict(self.errors),
                "examples": self.examples,
                "longest_gap": round(self.longest_gap, 4),
                "gap_before": round(self.gap_before, 4),
            }
        )

    def command(self) -> bool:
        """Reads commands; false at the end of them."""
        data = os.read(0, 4096)
        self.commands += data
        *lines, self.commands = self.commands.split(b"\n")
        for line in lines:
            if line == b"mark":
                self.gap_before, self.longest_gap = self.longest_gap, 0.0
                self.marked_at = time.monotonic()
            print(self.report(), flush=True)
        return bool(data)

    def events(self, timeout: float) -> bool:
        """Serves what is ready within `timeout` seconds; false when standard input has ended."""
        goes_on = True
        for descriptor, _ in self.poll.poll(timeout):
            if descriptor == self.listener.fileno():
                self.accept()
            elif descriptor == 0:
                goes_on = self.command()
            elif descriptor in self.clients:
                self.advance(self.clients[descriptor], time.monotonic())
            elif descriptor in self.echoes:
                self.answer(self.echoes[descriptor])
        return goes_on

    def run(self) -> None:
        began = time.monotonic()
        left, opened = self.kept, 0
        while True:
            # Not all at once: it is not the backlog that is tested here.
            for _ in range(min(left, 100)):
                left -= 1
                self.open(short=False)
            now = time.monotonic()
            while self.churn and opened < (now - began) * self.churn:
                opened += 1
                self.open(short=True)
            while self.due and self.due[0][0] <= now:
                client = heapq.heappop(self.due)[2]
                if client.state == "idle":
                    self.send(client, now)
            next_due = [self.due[0][0]] if self.due else []
            if self.churn:
                next_due.append(began + opened / self.churn)
            timeout = min(next_due, default=now + 1) - time.monotonic()
            if not self.events(0 if left else max(0, timeout)):
                return

    def end(self) -> None:
        """Waits for every answer, then closes from the client's side and waits for the target's."""
        self.ending = True
        self.poll.unregister(0)
        for client in list(self.clients.values()):
            if client.state == "idle":
                self.half_close(client)
        deadline = time.monotonic() + END_SECONDS
        while (self.clients or self.echoes) and time.monotonic() < deadline:
            self.events(0.1)
        for client in list(self.clients.values()):
            self.fail(client, "no answer at the end")
        self.errors.update({"target: no end of stream": len(self.echoes)} if self.echoes else {})
        print(self.report(), flush=True)


def parse(address: str) -> tuple[str, int]:
    host, port = address.rsplit(":", 1)
    return host, int(port)


def main() -> None:
    parser = argparse.ArgumentParser(description="ping-pong and churn with verification")
    parser.add_argument("--connect", required=True, help="HOST:PORT of the proxy")
    parser.add_argument("--target", required=True, help="HOST:PORT to listen on")
    parser.add_argument("--connections", type=int, default=0, help="kept open")
    parser.add_argument("--period", type=float, default=0.1, help="seconds between messages")
    parser.add_argument("--size", type=int, default=64, help="bytes of a message")
    parser.add_argument("--churn", type=float, default=0, help="new connections a second")
    parser.add_argument("--messages", type=int, default=1, help="on each of these")
    load = Load(parser.parse_args())
    load.run()
    load.end()


if __name__ == "__main__":
    sys.exit(main())
