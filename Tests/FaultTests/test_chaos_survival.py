"""Unlike connections, their lives drawn from a seed, while the process ends again and again.

Across restarts each of them ends as it would have without. Across crashes one may be cut, by a
reset to both sides and with every byte before it right; a FIN is a FIN that somebody sent.
"""

from __future__ import annotations

import os
import random
import socket
import threading
import time

import pytest

from harness import KIB, PATIENCE, Lab, Stream, cycle, eventually, parallel, receive_exactly
from store import Service
from survival import CRASH, RESTART, Fault
from test_chaos import SEEDS, Life, live

LIVES = 60
FAULTS = int(os.environ.get("CHAOS_FAULTS", "8"))


class Reaper:
    """Ends the process at moments drawn from a seed, as long as it is asked to."""

    def __init__(self, service: Service, fault: Fault, dice: random.Random) -> None:
        self.service, self.fault, self.dice = service, fault, dice
        self.lost = 0
        self.happened = 0
        self.failure: BaseException | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            while self.happened < FAULTS and not self._stop.wait(self.dice.uniform(0.0, 0.15)):
                self.fault.down(self.service)
                time.sleep(self.dice.choice([0, 0, 0.05]))
                self.service.start()
                self.lost += sum(self.service.lost().values())
                self.happened += 1
        except BaseException as error:  # shown by `stop`
            self.failure = error

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(30 * PATIENCE)
        if self.failure:
            raise self.failure


@pytest.mark.parametrize("seed", SEEDS)
def test_unlike_connections_across_restarts(lab: Lab, seed):
    dice = random.Random(f"restart {seed}")
    target = lab.target()
    service = Service(
        lab, target, f"--workers={1 + seed % 2}", f"--preserve-after={dice.choice(['0', '1s'])}")
    lives = [Life.drawn(number, dice) for number in range(4 * LIVES)]
    pairing = threading.Lock()

    def run(own: list[Life]) -> None:
        for life in own:
            with pairing:  # so that the accepted connection is this client's
                buffers = {"receive_buffer": 16 * KIB} if life.small_buffers else {}
                client, server = lab.pair(service, target, **buffers)
                client.sendall(b"c")
                assert receive_exactly(server, 1) == b"c"
            for sock in (client, server):
                sock.settimeout(30 * PATIENCE)
            live(life, {"client": client, "target": server})

    reaper = Reaper(service, RESTART, dice)
    parallel(*(lambda part=part: run(lives[part::12]) for part in range(12)), deadline=120)
    reaper.stop()
    assert reaper.happened >= 2 and reaper.lost == 0
    eventually(lambda: service.value("tcp_proxy_connections_active") == 0, "all to end")
    service.await_entered(0)
    service.assert_idle()


def live_or_be_cut(life: Life, ends: dict[str, socket.socket]) -> bool:
    """Plays the life; True where it came to its end, False where it was cut for both sides."""
    cut: set[str] = set()

    def send(side: str) -> None:
        stream, sizes = Stream(f"{life.number} {side}"), cycle(*life.chunks[side])
        try:
            while stream.position < life.sizes[side]:
                part = stream.read(min(next(sizes), life.sizes[side] - stream.position))
                ends[side].sendall(part)
                time.sleep(life.pauses[side])
            ends[side].shutdown(socket.SHUT_WR)
        except (ConnectionResetError, BrokenPipeError):
            cut.add(side)
        except OSError:  # ENOTCONN: reset since the last byte
            cut.add(side)

    def receive(side: str) -> None:
        sender = "target" if side == "client" else "client"
        stream, sizes = Stream(f"{life.number} {sender}"), cycle(*life.reads[side])
        while True:
            try:
                data = ends[side].recv(next(sizes))
            except ConnectionResetError:
                cut.add(side)
                return
            if not data:
                break
            stream.check(data)
            time.sleep(life.read_pauses[side])
        if side not in cut:  # a reset is told once, perhaps to the sender
            eventually(lambda: side in cut or stream.position == life.sizes[sender],
                       f"{life}: {side} saw FIN after {stream.position} bytes, or a reset", 2)

    parallel(*(
        lambda side=side, action=action: action(side)
        for side in ends for action in (send, receive)
    ))
    for sock in ends.values():
        sock.close()
    return not cut


@pytest.mark.parametrize("seed", SEEDS)
def test_unlike_connections_across_crashes(lab: Lab, seed):
    dice = random.Random(f"crash {seed}")
    target = lab.target()
    service = Service(lab, target, f"--workers={1 + seed % 2}", "--preserve-after=50ms")
    lives = [Life.drawn(number, dice) for number in range(LIVES)]
    for life in lives:
        life.breaker = None
        life.sizes = {side: 8 * size for side, size in life.sizes.items()}
    pairs = []
    for life in lives:  # all are entered before the first crash
        buffers = {"receive_buffer": 16 * KIB} if life.small_buffers else {}
        pairs.append(lab.pair(service, target, **buffers))
        for sock in pairs[-1]:
            sock.settimeout(30 * PATIENCE)
    service.await_entered(len(pairs))
    reaper = Reaper(service, CRASH, dice)

    def run(own: list[int]) -> int:
        return sum(
            not live_or_be_cut(
                lives[number], {"client": pairs[number][0], "target": pairs[number][1]})
            for number in own
        )

    cut = sum(parallel(
        *(lambda part=part: run(list(range(LIVES))[part::12]) for part in range(12)),
        deadline=120,
    ))
    reaper.stop()
    assert reaper.happened >= 2
    assert cut == reaper.lost, f"{cut} were cut, and the proxy knows of {reaper.lost}"
    assert cut <= 2 * FAULTS, f"{cut} of {LIVES} were cut in {reaper.happened} crashes"
    eventually(lambda: service.value("tcp_proxy_connections_active") == 0, "all to end")
    service.await_entered(0)
    service.assert_idle()
