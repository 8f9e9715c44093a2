"""Back-pressure: what a slow reader leaves unread stays in the kernel and slows its sender."""

import socket
import time

import pytest

from harness import (
    KIB, MIB, PATIENCE, Stream, cycle, fill, parallel, receive_exactly, receive_stream,
    send_stream,
)


@pytest.mark.parametrize("sender", ["client", "target"])
def test_sender_is_held_back_memory_stays_bounded_and_all_bytes_arrive(lab, sender):
    target = lab.target(receive_buffer=64 * KIB)
    proxy = lab.proxy(target)
    pairs = [lab.pair(proxy, target, receive_buffer=64 * KIB) for _ in range(4)]
    before = proxy.resident_bytes()
    if sender == "client":
        ways = pairs
    else:
        ways = [(server, client) for client, server in pairs]
    counts = parallel(*(
        (lambda source=source, name=name: fill(source, name))
        for name, (source, _) in enumerate(ways)
    ))
    grown = proxy.resident_bytes() - before
    assert min(counts) > 0
    # Far less than what it took: the kernel holds the bytes. Scratch buffers are shared.
    assert grown < 4 * MIB, f"{grown / MIB:.1f} MiB for {sum(counts) / MIB:.1f} MiB unread"
    proxy.assert_idle()
    parallel(*(
        (lambda destination=destination, name=name: receive_stream(destination, name, counts[name]))
        for name, (_, destination) in enumerate(ways)
    ))
    for source, destination in ways:
        source.sendall(b"then on")
        assert receive_exactly(destination, 7) == b"then on"


def test_others_are_served_as_ever_while_one_reader_sleeps(lab):
    target = lab.target(receive_buffer=64 * KIB)
    proxy = lab.proxy(target)
    stuck, _ = lab.pair(proxy, target)
    fill(stuck, "stuck")
    client, server = lab.pair(proxy, target)
    slowest = 0.0
    for number in range(200):
        began = time.monotonic()
        client.sendall(b"q")
        receive_exactly(server, 1)
        server.sendall(b"a")
        receive_exactly(client, 1)
        slowest = max(slowest, time.monotonic() - began)
    assert slowest < 0.5 * PATIENCE, f"a round trip took {slowest:.3f} s"


def test_others_are_served_while_one_connection_is_busy(lab):
    """One busy connection never starves the others: each wake-up has a budget."""
    target = lab.target()
    proxy = lab.proxy(target, "--workers=1")
    busy_client, busy_server = lab.pair(proxy, target)
    client, server = lab.pair(proxy, target)
    count = 192 * MIB
    block = Stream("busy").read(1 * MIB)
    times: list[float] = []

    def flood() -> None:
        for _ in range(count // len(block)):
            busy_client.sendall(block)

    def swallow() -> None:
        received = 0
        while received < count:
            received += len(busy_server.recv(1 * MIB))

    def ask() -> None:
        for _ in range(100):
            began = time.monotonic()
            client.sendall(b"q")
            receive_exactly(server, 1)
            server.sendall(b"a")
            receive_exactly(client, 1)
            times.append(time.monotonic() - began)

    parallel(flood, swallow, ask)
    assert max(times) < 1 * PATIENCE, f"a round trip took {max(times):.3f} s"


def test_reader_that_takes_little_pieces_with_pauses_gets_every_byte(lab):
    target = lab.target()
    proxy = lab.proxy(target)
    client, server = lab.pair(proxy, target, receive_buffer=8 * KIB)
    count = 1 * MIB
    parallel(
        lambda: send_stream(server, "slow", count, finish=True),
        lambda: receive_stream(
            client, "slow", count, chunks=cycle(1, 4095, 1, 8192, 333), pause=0.001,
            until_eof=True,
        ),
    )


def test_one_byte_writes_behind_a_full_pipe_arrive(lab):
    """A pipe has few slots: one-byte segments fill it while it holds next to nothing (pipe(7))."""
    target = lab.target(receive_buffer=16 * KIB)
    proxy = lab.proxy(target)
    client, server = lab.pair(proxy, target)
    first = fill(client, "first")
    small = 2000

    def trickle() -> None:
        stream = Stream("second")
        for _ in range(small):
            client.sendall(stream.read(1))

    def read() -> None:
        receive_stream(server, "first", first, chunks=cycle(100, 20000), pause=0)
        receive_stream(server, "second", small, chunks=cycle(7))

    parallel(trickle, read)
    echo = b"and back"
    server.sendall(echo)
    assert receive_exactly(client, len(echo)) == echo


@pytest.mark.parametrize("sender", ["client", "target"])
def test_idle_timeout_does_not_cut_what_a_slow_reader_still_drains(lab, sender):
    """A large send buffer feeds a slow reader for longer than the timeout: nothing is read
    meanwhile, yet bytes leave."""
    target = lab.target(receive_buffer=64 * KIB)
    proxy = lab.proxy(target, "--idle-timeout=1s")
    client, server = lab.pair(proxy, target, receive_buffer=64 * KIB)
    source, destination = (client, server) if sender == "client" else (server, client)
    count = fill(source, "slow")
    stream = Stream("slow")
    end = time.monotonic() + 5
    while time.monotonic() < end:
        data = destination.recv(8 * KIB)
        assert data, f"ended after {stream.position} of {count} bytes"
        stream.check(data)
        time.sleep(0.05)
    assert stream.position < count, "the reader was not slow enough to prove anything"
    source.shutdown(socket.SHUT_WR)
    while data := destination.recv(256 * KIB):
        stream.check(data)
    assert stream.position == count
    destination.close()
    proxy.await_closed(**{f"{sender}_closed": 1})


def test_idle_timeout_cuts_a_transfer_whose_reader_has_stopped(lab):
    """Bytes that wait in a send buffer do not keep a connection alive: they must leave."""
    target = lab.target(receive_buffer=64 * KIB)
    proxy = lab.proxy(target, "--idle-timeout=1s")
    client, _ = lab.pair(proxy, target)
    fill(client, "stuck")
    proxy.await_closed(idle_timeout=1, deadline=5 * PATIENCE)
    with pytest.raises(OSError):
        while True:
            client.sendall(b"x" * KIB)
