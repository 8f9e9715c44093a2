"""An urgent byte that arrives while its sender is held back hides neither bytes nor the FIN."""

from __future__ import annotations

import socket
import time

import pytest

from addresses import tcp_queue
from harness import KIB, MIB, Proxy, Stream, eventually, receive_all


def block(proxy: Proxy, source: socket.socket, stream: Stream) -> None:
    """Sends until the proxy no longer reads, and no more: the source has room for what follows."""

    def unread() -> int:
        return tcp_queue(proxy.pid, source.getpeername(), source.getsockname())

    def stays_unread() -> bool:
        if not unread():
            return False
        time.sleep(0.1)
        return unread() > 0

    while not stays_unread():
        assert stream.position < 64 * MIB, "no back-pressure"
        source.sendall(stream.read(32 * KIB))


@pytest.mark.parametrize("sender", ["client", "target"])
def test_urgent_byte_then_bytes_then_fin_while_held_back(lab, sender):
    """News of the source are off while it is held back: the urgent byte comes unreported, and a
    short read before the FIN is not the end of the stream."""
    target = lab.target(receive_buffer=4 * KIB)
    proxy = lab.proxy(target)
    client, server = lab.pair(proxy, target, receive_buffer=4 * KIB)
    source, destination = (client, server) if sender == "client" else (server, client)
    stream, copy = Stream("urgent"), Stream("urgent")
    block(proxy, source, stream)

    def unread() -> int:
        return tcp_queue(proxy.pid, source.getpeername(), source.getsockname())

    before = unread()
    source.sendall(stream.read(5000))
    source.send(b"!", socket.MSG_OOB)
    at = stream.position
    source.sendall(stream.read(5000))
    source.shutdown(socket.SHUT_WR)
    # All of it is in the proxy's socket, unread, before the destination gives way.
    eventually(lambda: unread() > before + 10_000, "bytes and FIN to wait in the proxy's socket")
    received = receive_all(destination)
    whole = copy.read(stream.position)
    expected = whole[:at] + b"!" + whole[at:]  # in its place, as with SO_OOBINLINE
    assert len(received) == len(expected), (
        f"{len(expected) - len(received)} of {len(expected)} bytes missing before the FIN"
    )
    assert received == expected
    destination.close()
    proxy.await_closed(**{f"{sender}_closed": 1})
