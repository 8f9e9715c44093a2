"""What the proxy connects to: servers with good and bad manners."""

from __future__ import annotations

import errno
import selectors
import socket
import threading
import time
from typing import TYPE_CHECKING, Callable

from addresses import Address, family
from streams import KIB, MIB, is_open, reset
from waiting import DEADLINE, eventually

if TYPE_CHECKING:
    from harness import Lab


class Target:
    """A listening socket whose connections the test drives by hand."""

    def __init__(
        self, lab: Lab, address: Address, backlog: int, receive_buffer: int | None
    ) -> None:
        self.lab = lab
        self.socket = socket.socket(family(address), socket.SOCK_STREAM)
        lab.sockets.append(self.socket)
        if not isinstance(address, str):
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if receive_buffer:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.bind(address)
        if backlog >= 0:
            self.socket.listen(backlog)
        self.address: Address = address if isinstance(address, str) else self.socket.getsockname()

    def accept(self, within: float = DEADLINE) -> socket.socket:
        self.socket.settimeout(within)
        connection, _ = self.socket.accept()
        connection.settimeout(DEADLINE)
        self.lab.sockets.append(connection)
        return connection

    def is_pending(self) -> bool:
        with selectors.DefaultSelector() as selector:
            selector.register(self.socket, selectors.EVENT_READ)
            return bool(selector.select(0))


class Server(Target):
    """Runs `handler` on each connection, in a thread of its own; closes it afterwards."""

    def __init__(self, lab: Lab, handler: Callable[[socket.socket], None], address: Address,
                 receive_buffer: int | None) -> None:
        super().__init__(lab, address, 512, receive_buffer)
        self.handler = handler
        self.errors: list[BaseException] = []
        self.accepted = 0
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        while True:
            try:
                connection = self.accept(within=86400)
            except OSError:
                return  # the lab closed the socket
            self.accepted += 1
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        try:
            with connection:
                self.handler(connection)
        except BaseException as error:  # kept for the test, which may have caused it on purpose
            self.errors.append(error)


class EchoServer(Target):
    """Sends everything back, for thousands of connections, in one thread; passes a FIN back."""

    HIGH_WATER = 1 * MIB  # bytes held per connection before it stops reading

    def __init__(self, lab: Lab, address: Address) -> None:
        super().__init__(lab, address, 4096, None)
        self.accepted = 0
        self._wake, self._waker = socket.socketpair()
        lab.sockets += [self._waker]
        self.socket.setblocking(False)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        selector = selectors.DefaultSelector()
        selector.register(self.socket, selectors.EVENT_READ, None)
        selector.register(self._wake, selectors.EVENT_READ, None)
        buffers: dict[socket.socket, tuple[bytearray, list[bool]]] = {}
        while True:
            for key, mask in selector.select():
                sock: socket.socket = key.fileobj  # type: ignore[assignment]
                if sock is self._wake:
                    for connection in buffers:
                        connection.close()
                    self._wake.close()
                    selector.close()
                    return
                try:
                    if sock is self.socket:
                        for _ in range(64):
                            connection, _ = sock.accept()
                            self.accepted += 1
                            connection.setblocking(False)
                            buffers[connection] = (bytearray(), [False])
                            selector.register(connection, selectors.EVENT_READ)
                        continue
                    self._step(selector, sock, mask, *buffers[sock])
                except BlockingIOError:
                    continue
                except OSError:
                    if sock is self.socket:
                        selector.unregister(sock)
                        continue
                    selector.unregister(sock)
                    sock.close()
                if sock.fileno() == -1:
                    buffers.pop(sock, None)

    def _step(self, selector: selectors.BaseSelector, sock: socket.socket, mask: int,
              held: bytearray, ended: list[bool]) -> None:
        if mask & selectors.EVENT_READ and not ended[0] and len(held) < self.HIGH_WATER:
            data = sock.recv(256 * KIB)
            held += data
            ended[0] = not data
        if held:
            try:
                del held[: sock.send(held)]
            except BlockingIOError:
                pass
        if ended[0] and not held:
            selector.unregister(sock)
            sock.close()
            return
        wanted = selectors.EVENT_WRITE if held else 0
        if not ended[0] and len(held) < self.HIGH_WATER:
            wanted |= selectors.EVENT_READ
        if selector.get_key(sock).events != wanted:
            selector.modify(sock, wanted)


class FullTarget(Target):
    """Listens, but its accept queue is full: the kernel drops each further SYN unanswered."""

    def __init__(self, lab: Lab) -> None:
        super().__init__(lab, ("127.0.0.1", 0), 0, None)
        for _ in range(4):  # a backlog of 0 holds one connection; the others stay in SYN-SENT
            filler = socket.socket()
            filler.setblocking(False)
            result = filler.connect_ex(self.address)
            assert result in (0, errno.EINPROGRESS)
            lab.sockets.append(filler)
        self.fillers = lab.sockets[-4:]
        eventually(self.is_pending, "the accept queue to fill")

    def make_room(self) -> None:
        """Gives up the fillers and raises the backlog, so that the next SYN gets through."""
        for filler in self.fillers:
            reset(filler)
        self.socket.listen(64)

    def accept_live(self) -> socket.socket:
        """The next connection that is not one of the fillers."""
        end = time.monotonic() + DEADLINE
        while time.monotonic() < end:
            connection = self.accept()
            time.sleep(0.05)
            if is_open(connection):
                return connection
        raise AssertionError("no connection but the fillers'")
