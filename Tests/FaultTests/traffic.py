"""Load that goes on by itself while something is done to the proxy, and tells what it suffered."""

from __future__ import annotations

import errno
import selectors
import socket
import threading
import time
from collections import deque
from typing import Any

from harness import Lab, Stream
from process import Proxy
from streams import KIB
from waiting import DEADLINE, eventually


class PingPong:
    """Clients of an echoing target: each sends a numbered message and waits for its echo."""

    def __init__(self, lab: Lab, proxy: Proxy, count: int, interval: float = 0.01) -> None:
        """
        - interval: seconds between an answer and the next question of the same client.
        """
        self.interval = interval
        self.clients = [lab.client(proxy) for _ in range(count)]
        self.rounds = [0] * count
        self.failures: dict[int, str] = {}  # what came instead of the answer, by client
        self.longest = 0.0  # seconds that an answer took
        self._asked = [0.0] * count
        self._received = [b""] * count
        self._stop = threading.Event()
        self._selector = selectors.DefaultSelector()
        self._due: deque[tuple[float, int]] = deque()
        for index, client in enumerate(self.clients):
            client.setblocking(False)
            self._selector.register(client, selectors.EVENT_READ, index)
            self._due.append((0.0, index))
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        self.go_on()

    def _message(self, index: int) -> bytes:
        return b"%06d asks %08d\n" % (index, self.rounds[index])

    def _run(self) -> None:
        # At the end each waits for its last answer: a close with bytes unread is a reset.
        while not self._stop.is_set() or len(self._due) < len(self.clients) - len(self.failures):
            now = time.monotonic()
            while self._due and self._due[0][0] <= now and not self._stop.is_set():
                self._ask(self._due.popleft()[1])
            pause = self._due[0][0] - now if self._due and not self._stop.is_set() else 0.05
            for key, _ in self._selector.select(min(max(pause, 0), 0.05)):
                self._hear(key.data)

    def _ask(self, index: int) -> None:
        self._asked[index] = time.monotonic()
        try:
            self.clients[index].send(self._message(index))
        except OSError as error:
            self._fail(index, error)

    def _hear(self, index: int) -> None:
        try:
            data = self.clients[index].recv(4 * KIB)
        except BlockingIOError:
            return
        except OSError as error:
            self._fail(index, error)
            return
        if not data:
            self._fail(index, "FIN")
            return
        self._received[index] += data
        expected = self._message(index)
        if not expected.startswith(self._received[index]):
            self._fail(index, f"{self._received[index]!r} instead of {expected!r}")
        elif self._received[index] == expected:
            now = time.monotonic()
            self.longest = max(self.longest, now - self._asked[index])
            self.rounds[index] += 1
            self._received[index] = b""
            self._due.append((now + self.interval, index))

    def _fail(self, index: int, what: Any) -> None:
        name = errno.errorcode.get(what.errno, "?") if isinstance(what, OSError) else what
        self.failures.setdefault(index, f"{name} after {self.rounds[index]} rounds")
        if self.clients[index].fileno() == -1:  # the test is over, and nobody waits for answers
            self._stop.set()
        else:
            self._selector.unregister(self.clients[index])

    def go_on(self, rounds: int = 2, may_fail: bool = False) -> None:
        """Waits until each client has had so many more answers (the first of them may have been
        asked for before)."""
        before = list(self.rounds)

        def further() -> bool:
            if not may_fail:
                self.assert_whole()
            behind = [
                index for index, count in enumerate(self.rounds)
                if index not in self.failures and count < before[index] + rounds
            ]
            assert not behind, f"clients {behind[:5]} ({len(behind)}) wait for an answer"
            return True

        eventually(further, f"{rounds} rounds of each client")

    def assert_whole(self) -> None:
        if self.failures:  # outside of an assertion, so that waiting ends at once
            first = dict(list(self.failures.items())[:5])
            raise RuntimeError(f"{len(self.failures)} of {len(self.clients)} ended: {first}")

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(DEADLINE)
        assert not self._thread.is_alive(), "clients wait for an answer"
        for client in self.clients:
            client.close()


class Bulk:
    """Both directions of one connection as fast as they go, every byte checked."""

    def __init__(self, client: socket.socket, server: socket.socket, seed: str = "bulk") -> None:
        self.ends = {"up": (client, server), "down": (server, client)}
        self.seed = seed
        self.sent = {"up": 0, "down": 0}
        self.received = {"up": 0, "down": 0}
        self.failures: list[BaseException] = []
        self._stop = threading.Event()
        for sock in (client, server):
            sock.settimeout(2 * DEADLINE)
        self._threads = [
            threading.Thread(target=self._guard, args=(action, way), daemon=True)
            for way in self.ends for action in (self._send, self._receive)
        ]
        for thread in self._threads:
            thread.start()

    def _guard(self, action: Any, way: str) -> None:
        try:
            action(way)
        except BaseException as error:  # shown by `check`
            self.failures.append(error)

    def _send(self, way: str) -> None:
        stream = Stream(f"{self.seed} {way}")
        source = self.ends[way][0]
        while not self._stop.is_set():
            source.sendall(stream.read(64 * KIB))
            self.sent[way] = stream.position
        source.shutdown(socket.SHUT_WR)

    def _receive(self, way: str) -> None:
        stream = Stream(f"{self.seed} {way}")
        while data := self.ends[way][1].recv(256 * KIB):
            stream.check(data)
            self.received[way] = stream.position

    def check(self) -> None:
        if self.failures:
            raise self.failures[0]

    def go_on(self, count: int) -> None:
        """Waits until so many more bytes have arrived in both directions."""
        before = dict(self.received)

        def further() -> bool:
            if self.failures:
                raise self.failures[0]
            return all(self.received[way] >= before[way] + count for way in before)

        eventually(further, f"{count} more bytes each way", 3 * DEADLINE)

    def goes_on(self, count: int) -> bool:
        """The same; False where the connection was reset, and both of its ends saw that."""
        try:
            self.go_on(count)
            return True
        except (ConnectionResetError, BrokenPipeError):
            pass
        for thread in self._threads:
            thread.join(DEADLINE)
            assert not thread.is_alive(), "one side has not heard of the reset"
        # A sender is told once, by either error; a wrong byte is no OSError.
        for failure in self.failures:
            if not isinstance(failure, (ConnectionResetError, BrokenPipeError)):
                raise failure
        return False

    def finish(self) -> None:
        """Ends both directions with FIN; all that was sent must have arrived before it."""
        self._stop.set()
        for thread in self._threads:
            thread.join(3 * DEADLINE)
            assert not thread.is_alive(), "a transfer did not come to its end"
        self.check()
        assert self.received == self.sent


class Churn:
    """New clients at a steady rate; each asks an echoing target once and leaves."""

    def __init__(self, proxy: Proxy, rate: float = 200) -> None:
        self.address = proxy.listen_address
        self.family = socket.AF_UNIX if isinstance(self.address, str) else socket.AF_INET
        self.pause = 1 / rate
        self.served = 0
        self.failures: list[str] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        selector = selectors.DefaultSelector()
        next_start = time.monotonic()
        number = 0
        while not self._stop.is_set() or selector.get_map():
            now = time.monotonic()
            if now >= next_start and not self._stop.is_set():
                next_start += self.pause
                number += 1
                client = socket.socket(self.family, socket.SOCK_STREAM)
                client.setblocking(False)
                code = client.connect_ex(self.address)
                if code not in (0, errno.EINPROGRESS):
                    self._fail(code, now, now)
                    client.close()
                else:
                    selector.register(client, selectors.EVENT_WRITE, [b"%08d" % number, b"", now])
            wait = 0.02 if self._stop.is_set() else min(0.02, max(0, next_start - now))
            for key, _ in selector.select(wait):
                self._step(selector, key)
            for key in list(selector.get_map().values()) if number % 50 == 0 else []:
                if now - key.data[2] > DEADLINE:
                    self.failures.append("no answer in time")
                    selector.unregister(key.fileobj)
                    key.fileobj.close()
        selector.close()

    def _step(self, selector: selectors.BaseSelector, key: selectors.SelectorKey) -> None:
        client: socket.socket = key.fileobj  # type: ignore[assignment]
        message, answer, began = key.data
        try:
            if key.events == selectors.EVENT_WRITE:
                code = client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                if code:
                    raise OSError(code, "connect")
                client.send(message)
                selector.modify(client, selectors.EVENT_READ, key.data)
                return
            data = client.recv(64)
            if not data:
                self.failures.append("FIN instead of an answer")
            elif answer + data != message:
                key.data[1] += data
                if not message.startswith(key.data[1]):
                    self.failures.append(f"{key.data[1]!r} instead of {message!r}")
                else:
                    return
            else:
                self.served += 1
        except OSError as error:
            self._fail(error.errno, began, time.monotonic())
        selector.unregister(client)
        client.close()

    def _fail(self, code: int | None, began: float, ended: float) -> None:
        name = errno.errorcode.get(code or 0, str(code))
        self.failures.append(f"{name} after {1000 * (ended - began):.0f} ms")

    def go_on(self, count: int) -> None:
        before = self.served
        eventually(lambda: self.served >= before + count, f"{count} more clients", 2 * DEADLINE)

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(2 * DEADLINE)
        assert not self._thread.is_alive(), "clients wait for an answer"


class Chatter:
    """Clients that go on talking to an echoing target without waiting for its answers, in little
    pieces: at every moment something is on its way to some socket."""

    def __init__(self, lab: Lab, proxy: Proxy, count: int, piece: int = 16) -> None:
        self.piece = piece
        self.clients = [lab.client(proxy) for _ in range(count)]
        self.failures: list[str] = []
        self.sent = [0] * count
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, args=(index,), daemon=True)
            for index in range(count)
        ]
        for thread in self._threads:
            thread.start()

    def _run(self, index: int) -> None:
        client = self.clients[index]
        client.settimeout(DEADLINE)
        ahead = 20_000  # pieces: more than it says while nobody listens
        received = 0
        try:
            while not self._stop.is_set() or received < self.sent[index]:
                if not self._stop.is_set() and self.sent[index] - received < ahead * self.piece:
                    client.sendall(self._bytes(index, self.sent[index], self.piece))
                    self.sent[index] += self.piece
                    continue
                data = client.recv(64 * KIB)
                assert data, "FIN"
                assert data == self._bytes(index, received, len(data)), f"at byte {received}"
                received += len(data)
        except (OSError, AssertionError) as error:
            self.failures.append(f"client {index} after {received} bytes: {error}")

    @staticmethod
    def _bytes(index: int, start: int, count: int) -> bytes:
        return bytes((index * 31 + position * 7 + position // 251) % 256
                     for position in range(start, start + count))

    def end(self) -> None:
        """Waits for the last answers."""
        self._stop.set()
        for thread in self._threads:
            thread.join(DEADLINE)
            assert not thread.is_alive(), "a client waits for an answer"

    def stop(self) -> None:
        """The same; whatever was missing or wrong on the way fails."""
        self.end()
        assert not self.failures, self.failures
