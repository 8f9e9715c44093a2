"""Nothing lost, doubled or reordered: every byte is compared with what its position asks for."""

import socket
import time

import pytest

from harness import (
    KIB, MIB, constant, cycle, expect_eof, parallel, receive_all, receive_stream, send_stream,
    Stream,
)

PATTERNS = {
    "one-byte writes": (4000, lambda: constant(1), 0.0),
    "three-byte writes with pauses": (600, lambda: constant(3), 0.001),
    "odd sizes": (3 * MIB, lambda: cycle(1, 2, 3, 1447, 1449, 4095, 4097, 65535, 65537), 0.0),
    "around the scratch buffer": (6 * MIB, lambda: cycle(65535, 65536, 65537, 131071), 0.0),
    "around the pipe": (12 * MIB, lambda: cycle(262143, 262144, 262145, 1), 0.0),
    "bulk with pauses": (4 * MIB, lambda: constant(512 * KIB), 0.02),
    "bulk and trickle in turn": (3 * MIB, lambda: cycle(1 * MIB, *[1] * 50), 0.0),
    "bulk": (48 * MIB, lambda: constant(1 * MIB), 0.0),
}


@pytest.mark.parametrize("pattern", PATTERNS)
def test_both_directions_at_once(lab, pattern):
    count, chunks, pause = PATTERNS[pattern]
    target = lab.target()
    proxy = lab.proxy(target)
    client, server = lab.pair(proxy, target)
    parallel(
        lambda: send_stream(client, "up", count, chunks(), pause, finish=True),
        lambda: receive_stream(server, "up", count, until_eof=True),
        lambda: send_stream(server, "down", count, chunks(), pause, finish=True),
        lambda: receive_stream(client, "down", count, until_eof=True),
    )
    proxy.await_value(count, "inbound_bytes_count")
    proxy.await_value(count, "outbound_bytes_count")


@pytest.mark.parametrize("workers", [1, 2])
def test_many_at_once_each_keeps_its_own_bytes(lab, workers):
    target = lab.target()
    proxy = lab.proxy(target, f"--workers={workers}")
    count = 1 * MIB
    pairs = [lab.pair(proxy, target) for _ in range(24)]
    patterns = [
        lambda: constant(64 * KIB), lambda: cycle(1, 50000, 1447), lambda: cycle(65537, 13),
        lambda: constant(1447),
    ]
    actions = []
    for number, (client, server) in enumerate(pairs):
        chunks = patterns[number % len(patterns)]
        for name, source, destination in (
            (f"up {number}", client, server), (f"down {number}", server, client),
        ):
            actions += [
                lambda s=source, n=name, c=chunks: send_stream(s, n, count, c(), finish=True),
                lambda d=destination, n=name: receive_stream(d, n, count, until_eof=True),
            ]
    parallel(*actions)
    proxy.await_value(len(pairs) * count, "inbound_bytes_count")
    proxy.await_value(len(pairs) * count, "outbound_bytes_count")


def test_slow_readers_many_at_once(lab):
    target = lab.target(receive_buffer=32 * KIB)
    proxy = lab.proxy(target)
    count = 512 * KIB
    pairs = [lab.pair(proxy, target, receive_buffer=32 * KIB) for _ in range(12)]
    actions = []
    for number, (client, server) in enumerate(pairs):
        for name, source, destination in (
            (f"up {number}", client, server), (f"down {number}", server, client),
        ):
            pause = 0.002 * (number % 3)
            actions += [
                lambda s=source, n=name: send_stream(s, n, count, finish=True),
                lambda d=destination, n=name, p=pause: receive_stream(
                    d, n, count, chunks=cycle(9000, 17, 20001), pause=p, until_eof=True
                ),
            ]
    parallel(*actions)


def test_conversation_that_changes_between_small_and_bulk(lab):
    """Copying and splicing take turns on one connection without overtaking each other."""
    target = lab.target()
    proxy = lab.proxy(target)
    client, server = lab.pair(proxy, target)
    for number in range(12):
        size = [1, 64, 64 * KIB, 3 * MIB, 65 * KIB + 1, 7][number % 6]
        parallel(
            lambda: send_stream(client, f"question {number}", size),
            lambda: receive_stream(server, f"question {number}", size),
        )
        parallel(
            lambda: send_stream(server, f"answer {number}", size),
            lambda: receive_stream(client, f"answer {number}", size),
        )
    client.close()
    expect_eof(server)


@pytest.mark.parametrize("bulk", [10, 2 * MIB], ids=["small", "bulk"])
@pytest.mark.parametrize("sender", ["client", "target"])
def test_urgent_byte_neither_stalls_nor_costs_other_bytes(lab, sender, bulk):
    """splice(2) stops before an urgent byte for ever; a relay must get past it."""
    target = lab.target()
    proxy = lab.proxy(target)
    client, server = lab.pair(proxy, target)
    source, destination = (client, server) if sender == "client" else (server, client)
    before, after = Stream("before").read(bulk), Stream("after").read(bulk)

    def send() -> None:
        source.sendall(before)
        source.send(b"!", socket.MSG_OOB)
        source.sendall(after)
        source.shutdown(socket.SHUT_WR)

    def receive() -> bytes:
        time.sleep(0.3)  # so that the relay meets the urgent byte with both sides full
        return receive_all(destination)

    _, received = parallel(send, receive)
    # The urgent byte may arrive in its place or not at all; the stream around it must.
    assert received in (before + b"!" + after, before + after), (
        f"{len(received)} bytes of {2 * bulk} and one urgent"
    )
    proxy.assert_idle()


def test_urgent_byte_alone_does_not_spin(lab):
    target = lab.target()
    proxy = lab.proxy(target)
    client, server = lab.pair(proxy, target)
    client.send(b"!", socket.MSG_OOB)
    proxy.assert_idle()
    client.sendall(b"next")
    server.settimeout(5)
    received = b""
    while not received.endswith(b"next"):
        received += server.recv(16)
    assert received in (b"next", b"!next")
