"""Many unlike connections at once, their lives drawn from a seed: clean ends, resets, slow readers.

Each receiver knows the stream that it must see: all of it and a FIN where both ends were clean,
and a prefix of it and a reset where the other end reset.
"""

from __future__ import annotations

import os
import random
import socket
import threading
import time
from dataclasses import dataclass

import pytest

from harness import (
    KIB, MIB, PATIENCE, Stream, cycle, eventually, parallel, receive_exactly, reset,
)

SEEDS = [int(seed) for seed in os.environ.get("CHAOS_SEEDS", "1 2 3").split()]
SIZES = [0, 1, 100, 5000, 64 * KIB, 64 * KIB + 1, 300 * KIB, 2 * MIB]


@dataclass
class Life:
    """What one connection does. `breaker` resets once it has received `break_after` bytes."""

    number: int
    sizes: dict[str, int]  # bytes that each side sends
    chunks: dict[str, list[int]]
    pauses: dict[str, float]
    reads: dict[str, list[int]]
    read_pauses: dict[str, float]
    small_buffers: bool
    breaker: str | None
    break_after: int

    @staticmethod
    def drawn(number: int, dice: random.Random) -> Life:
        sides = ("client", "target")
        sizes = {side: dice.choice(SIZES) for side in sides}
        breaker = dice.choice([None, None, None, "client", "target"])
        other = {"client": "target", "target": "client"}.get(breaker or "", "")
        return Life(
            number, sizes,
            {side: [dice.choice([1, 7, 1447, 4096, 65536, 200_000]) for _ in range(5)]
             + [64 * KIB] for side in sides},
            {side: dice.choice([0, 0, 0.0005, 0.003]) for side in sides},
            {side: [dice.choice([1, 100, 5000, 65536, 262144]) for _ in range(5)]
             + [64 * KIB] for side in sides},
            {side: dice.choice([0, 0, 0.0005, 0.003]) for side in sides},
            dice.random() < 0.3, breaker,
            dice.randint(0, sizes[other]) if other else 0,
        )


def live(life: Life, ends: dict[str, socket.socket]) -> None:
    """Plays the life; raises where bytes or the end are not as they must be."""
    closing = threading.Event()  # set when this test itself has reset the connection
    send_failed: set[str] = set()
    ended: dict[str, str] = {}

    def send(side: str) -> None:
        stream, sizes = Stream(f"{life.number} {side}"), cycle(*life.chunks[side])
        try:
            while stream.position < life.sizes[side] and not closing.is_set():
                ends[side].sendall(
                    stream.read(min(next(sizes), life.sizes[side] - stream.position))
                )
                time.sleep(life.pauses[side])
            if life.breaker != side:  # who will reset keeps its side open until then
                ends[side].shutdown(socket.SHUT_WR)
        except OSError:
            assert life.breaker, f"{life}: {side} could not send"
            send_failed.add(side)

    def receive(side: str) -> None:
        sender = "target" if side == "client" else "client"
        stream, sizes = Stream(f"{life.number} {sender}"), cycle(*life.reads[side])
        breaks = life.breaker == side
        while True:
            if breaks and stream.position >= life.break_after:
                closing.set()
                reset(ends[side])
                return
            limit = next(sizes)
            if breaks:
                limit = min(limit, life.break_after - stream.position)
            try:
                data = ends[side].recv(limit)
            except ConnectionResetError:
                ended[side] = "RST"
                return
            if not data:
                ended[side] = "FIN"
                break
            stream.check(data)
            time.sleep(life.read_pauses[side])
        if life.breaker != sender:
            assert stream.position == life.sizes[sender], f"{life}: {side} got {stream.position}"

    parallel(*(
        lambda side=side, action=action: action(side)
        for side in ("client", "target") for action in (send, receive)
    ))
    for side, end in ended.items():
        if side == life.breaker:
            continue
        # The kernel tells of a reset once: where send heard of it, recv sees an end like any other.
        clean = life.breaker is None
        assert end == ("FIN" if clean else "RST") or (not clean and side in send_failed), (
            f"{life}: {side} saw {end}"
        )
    for sock in ends.values():
        sock.close()


@pytest.mark.parametrize("seed", SEEDS)
def test_unlike_connections_at_once(lab, seed):
    dice = random.Random(seed)
    target = lab.target()
    proxy = lab.proxy(target, f"--workers={1 + seed % 2}")
    lives = [Life.drawn(number, dice) for number in range(60)]

    def run(own: list[Life]) -> None:
        for life in own:
            with pairing:  # so that the accepted connection is this client's
                buffers = {"receive_buffer": 16 * KIB} if life.small_buffers else {}
                client, server = lab.pair(proxy, target, **buffers)
                client.sendall(b"c")  # the dial is over once a byte has come through
                assert receive_exactly(server, 1) == b"c"
            for sock in (client, server):
                sock.settimeout(30 * PATIENCE)
            live(life, {"client": client, "target": server})

    pairing = threading.Lock()
    parallel(*(lambda part=part: run(lives[part::12]) for part in range(12)), deadline=120)

    eventually(lambda: proxy.value("tcp_proxy_connections_active") == 0, "all to end")
    metrics = proxy.scrape()
    closed = metrics.closed()
    expected = {side: sum(life.breaker == side for life in lives) for side in ("client", "target")}
    assert closed.get("client-reset", 0) == expected["client"], closed
    assert closed.get("target-reset", 0) == expected["target"], closed
    clean = closed.get("client-closed", 0) + closed.get("target-closed", 0)
    assert clean == len(lives) - sum(expected.values()), closed
    assert metrics.value("inbound_bytes_count") >= sum(
        life.sizes["client"] + 1 for life in lives if not life.breaker
    )
    proxy.check_descriptors_given_back()
    proxy.assert_idle()
    echo = lab.pair(proxy, target)
    echo[1].sendall(b"fresh")
    assert receive_exactly(echo[0], 5) == b"fresh"
