"""Bulk traffic for the tests of survival: every connection sends and receives as fast as it goes.

    bulk.py --connect 127.0.0.1:3000 --target 127.0.0.1:3001 --connections 4

Each direction carries an endless pattern, which the receiver compares as it comes: a byte that is
missing, doubled or changed is found within a period. When standard input ends the senders end
their streams, and the receivers must get exactly what was sent. A line on standard input, of
any text, prints a report: see Bulk.report.
"""

from __future__ import annotations

import argparse
import errno
import json
import random
import socket
import sys
import threading
import time

PERIOD = 1_000_003  # bytes; a prime, so that no buffer's size divides it
PATTERN = random.Random(1).randbytes(PERIOD) * 2  # any PERIOD bytes in a row without a seam
BLOCK = 256 * 1024
END_SECONDS = 20


class Stream:
    """One direction of one connection."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.sent = self.received = 0
        self.error: str | None = None
        self.ended = False  # the receiver has seen the end

    def send(self, source: socket.socket, block: int, stop: threading.Event) -> None:
        view = memoryview(PATTERN)
        try:
            while not stop.is_set():
                start = self.sent % PERIOD
                self.sent += source.send(view[start : start + block])
            source.shutdown(socket.SHUT_WR)
        except OSError as error:
            self.fail(f"send: {errno.errorcode.get(error.errno or 0, str(error))}")

    def receive(self, sink: socket.socket) -> None:
        buffer = bytearray(BLOCK)
        view = memoryview(buffer)
        try:
            while count := sink.recv_into(buffer):
                if not PATTERN.startswith(view[:count], self.received % PERIOD):
                    return self.fail(f"corrupted after {self.received} bytes")
                self.received += count
            self.ended = True
        except OSError as error:
            self.fail(f"receive: {errno.errorcode.get(error.errno or 0, str(error))}")

    def fail(self, what: str) -> None:
        if self.error is None or what.startswith("corrupted"):
            self.error = what

    def verdict(self) -> str | None:
        if self.error is None and not self.ended:
            return f"no end of stream ({self.received} of {self.sent} bytes)"
        if self.error is None and self.sent != self.received:
            return f"ended after {self.received} of {self.sent} bytes"
        return self.error


class Bulk:
    def __init__(
        self, connect: tuple[str, int], target: tuple[str, int], count: int, block: int
    ) -> None:
        self.streams: list[Stream] = []
        self.threads: list[threading.Thread] = []
        self.stop = threading.Event()
        with socket.create_server(target, backlog=count) as listener:
            for number in range(count):
                client = socket.create_connection(connect, timeout=10)
                listener.settimeout(10)
                server, _ = listener.accept()
                for one in (client, server):
                    one.settimeout(None)
                there, back = Stream(f"{number} there"), Stream(f"{number} back")
                self.streams += [there, back]
                self.run(there.send, client, block, self.stop)
                self.run(there.receive, server)
                self.run(back.send, server, block, self.stop)
                self.run(back.receive, client)

    def run(self, function: object, *arguments: object) -> None:
        thread = threading.Thread(target=function, args=arguments, daemon=True)  # type: ignore
        self.threads.append(thread)
        thread.start()

    def report(self) -> str:
        """Bytes and errors by stream: "0 there" is the first client's to the target."""
        received = {stream.name: stream.received for stream in self.streams}
        errors = {stream.name: stream.error for stream in self.streams if stream.error}
        return json.dumps({"received": received, "errors": errors})

    def end(self) -> None:
        self.stop.set()
        deadline = time.monotonic() + END_SECONDS
        for thread in self.threads:
            thread.join(max(0, deadline - time.monotonic()))
        for stream in self.streams:
            stream.error = stream.verdict()
        print(self.report(), flush=True)


def parse(address: str) -> tuple[str, int]:
    host, port = address.rsplit(":", 1)
    return host, int(port)


def main() -> None:
    parser = argparse.ArgumentParser(description="bulk both ways with verification")
    parser.add_argument("--connect", required=True, help="HOST:PORT of the proxy")
    parser.add_argument("--target", required=True, help="HOST:PORT to listen on")
    parser.add_argument("--connections", type=int, default=1)
    parser.add_argument("--block", type=int, default=BLOCK, help="bytes sent at a time, at most")
    given = parser.parse_args()
    bulk = Bulk(parse(given.connect), parse(given.target), given.connections, given.block)
    for _ in sys.stdin:
        print(bulk.report(), flush=True)
    bulk.end()


if __name__ == "__main__":
    sys.exit(main())
