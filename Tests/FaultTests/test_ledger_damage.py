"""A stored ledger that is not as it was left: what cannot be continued whole is reset.

Whatever is in it, the next process neither crashes nor hangs, no connection delivers a wrong byte
or a FIN that nobody sent, and new clients are served.
"""

from __future__ import annotations

import os
import random
import select
import socket
from typing import Callable

import pytest

import survival
from harness import (
    DEADLINE, KIB, Lab, Stream, eventually, expect_end, expect_reset, fill,
    receive_exactly,
)
from ledger import Datagram, Ledger, duplicate, is_pipe, send
from store import Service
from survival import CRASH, RESTART, assert_alive
from targets import Target

Pair = tuple[socket.socket, socket.socket]

# Faults drawn from a seed; more of them, or others, by the environment.
ROUNDS = int(os.environ.get("DAMAGE_ROUNDS", "40"))
SEED = os.environ.get("DAMAGE_SEED", "1")


class Stalled:
    """A connection whose target reads a little at a time: bytes of it stand in a pipe."""

    def __init__(self, lab: Lab, service: Service, target: Target, seed: str) -> None:
        self.client, self.server = lab.pair(service, target, receive_buffer=64 * KIB)
        self.stream = Stream(seed)
        self.count = fill(self.client, seed, quiet=0.1)

    def was_reset(self) -> bool:
        """As its client sees it, who has nothing to read; the other may have bytes to read yet."""
        poll = select.poll()
        poll.register(self.client, 0)
        return bool(poll.poll(0))

    def read(self, count: int = 4 * KIB) -> bool:
        """False where it was reset. A wrong byte or a FIN fails the test."""
        try:
            data = self.server.recv(min(count, self.count - self.stream.position))
        except ConnectionResetError:
            return False
        assert data, "FIN though bytes are missing"
        self.stream.check(data)
        return True

    def read_all(self) -> bool:
        while self.stream.position < self.count:
            if not self.read(256 * KIB):
                return False
        return True


def lives(pair: Pair, word: bytes = b"there") -> bool:
    """True where it goes on both ways; False where both sides were reset. A FIN fails."""
    for source, sink in (pair, pair[::-1]):
        for sock, other in ((source, sink), (sink, source)):
            try:
                if sock is source:
                    sock.sendall(word)
                else:
                    assert receive_exactly(sock, len(word)) == word
            except (ConnectionResetError, BrokenPipeError):
                expect_reset(other)
                return False
    return True


class Scene:
    """Some connections at rest, and one with bytes in a pipe, all of them entered."""

    def __init__(self, lab: Lab, count: int = 3, stalled: bool = True,
                 after: str = "50ms") -> None:
        """
        - after: at 0 a connection is entered while its target is being dialled, and the target's
          socket has a datagram of its own.
        """
        self.lab = lab
        self.target = lab.target(receive_buffer=64 * KIB)
        self.service = Service(lab, self.target, f"--preserve-after={after}")
        self.count, self.with_stalled = count, stalled
        self.pairs: list[Pair] = []
        self.stalled: Stalled | None = None
        self.made = 0
        self.refill()

    def refill(self) -> None:
        """New connections in the place of those that were reset."""
        while len(self.pairs) < self.count:
            self.pairs.append(self.lab.pair(self.service, self.target))
            assert_alive(*self.pairs[-1])
        if self.with_stalled and self.stalled is None:
            self.made += 1
            self.stalled = Stalled(
                self.lab, self.service, self.target, f"stalled {self.made}")
        self.service.await_entered(self.count + self.with_stalled)

    def damage(self, change: Callable[[Ledger], None]) -> None:
        """A crash, the change while it is down, and the next start."""
        self.service.crash()
        (ledger,) = self.service.ledgers()
        change(ledger)
        self.service.start()

    def judge(self) -> int:
        """How many were reset; the others go on."""
        before = len(self.pairs) + (self.stalled is not None)
        self.pairs = [pair for pair in self.pairs if lives(pair)]
        if self.stalled and self.stalled.was_reset():
            assert not self.stalled.read_all(), "every byte, and then a reset"
            self.stalled = None
        if self.stalled:
            assert self.stalled.read()
        gone = before - len(self.pairs) - (self.stalled is not None)
        assert sum(self.service.lost().values()) <= gone
        return gone

    def expect_all_lost(self, reason: str) -> None:
        total = len(self.pairs) + (self.stalled is not None)
        assert self.judge() == total
        assert self.service.lost() == {reason: total}
        self.service.await_line(rf"lost {total} \({reason} {total}\)")
        assert self.service.value("tcp_proxy_connections_active") == 0
        self.serves_on()

    def serves_on(self) -> None:
        """What comes after the damage is preserved as ever."""
        self.refill()
        before = sum(self.service.lost().values())
        self.service.kill()
        assert self.service.lost() == {}, before
        assert self.judge() == 0
        assert len(self.service.ledgers()) == 1, "the damaged ledger is still in the store"


# --- the table -----------------------------------------------------------------------------------


def replaced(scene: Scene, data: Callable[[bytes], bytes], seals: int | None = None
             ) -> Callable[[Ledger], None]:
    def change(ledger: Ledger) -> None:
        (table,) = ledger.tables
        scene.service.store.replace(table, ledger.new_table(data(ledger.table()), seals))

    return change


SIZES = {
    "nothing": lambda size: 0, "one byte": lambda size: 1, "a slot's size": lambda size: 64,
    "a byte less than the header": lambda size: 4095, "the header": lambda size: 4096,
    "half": lambda size: size // 2, "a byte less": lambda size: size - 1,
    "a page more": lambda size: size + 4096,
}


@pytest.mark.parametrize("size", SIZES)
def test_table_of_another_size_is_not_used(lab, size):
    scene = Scene(lab)

    def cut(data: bytes) -> bytes:
        return (data + bytes(8192))[: SIZES[size](len(data))]

    scene.damage(replaced(scene, cut))
    scene.expect_all_lost("damaged")


@pytest.mark.parametrize("content", ["zeros", "random", "ones"])
def test_foreign_memory_of_the_right_size_is_not_used(lab, content):
    scene = Scene(lab)
    make = {
        "zeros": lambda data: bytes(len(data)),
        "random": lambda data: random.Random(1).randbytes(len(data)),
        "ones": lambda data: b"\xff" * len(data),
    }[content]
    scene.damage(replaced(scene, make))
    scene.expect_all_lost("damaged")


def test_table_that_could_shrink_under_its_reader_is_not_used(lab):
    """Reading behind the end of a mapped file is a SIGBUS."""
    scene = Scene(lab)
    scene.damage(replaced(scene, lambda data: data, seals=0))
    scene.expect_all_lost("damaged")


@pytest.mark.parametrize("path", ["/dev/null", "/dev/zero", "/proc/self/exe", "/"])
def test_descriptor_that_is_no_memory_at_all_is_not_used(lab, path):
    scene = Scene(lab)

    def change(ledger: Ledger) -> None:
        other = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        scene.service.store.replace(ledger.tables[0], other)

    scene.damage(change)
    scene.expect_all_lost("damaged")


def test_missing_table_is_not_missed_by_new_clients(lab):
    scene = Scene(lab)
    scene.damage(lambda ledger: scene.service.store.replace(ledger.tables[0], None))
    scene.expect_all_lost("damaged")


@pytest.mark.parametrize("layout", [0, 2, 99, 0xFFFF_FFFF])
def test_layout_of_a_version_to_come_is_told_of(lab, layout):
    """The layout number is the 32-bit word behind the magic, in every version."""
    scene = Scene(lab)
    scene.damage(lambda ledger: ledger.write_table(8, layout.to_bytes(4, "little")))
    scene.expect_all_lost("unknown-layout")


def interesting_positions(table: bytes, slots: int) -> list[int]:
    return list(range(64)) + list(range(4096, 4096 + 64 * (slots + 1)))


def test_any_bit_of_the_table_may_be_flipped(lab):
    scene = Scene(lab)
    dice = random.Random(f"bits {SEED}")
    for _ in range(ROUNDS):
        service = scene.service
        service.crash()
        (ledger,) = service.ledgers()
        position = dice.choice(interesting_positions(ledger.table(), scene.count + 1))
        bit = dice.randrange(8)
        ledger.flip(position, bit)
        print(f"byte {position}, bit {bit}")  # shown where the test fails
        service.start()
        scene.judge()
        scene.refill()
    assert scene.stalled and scene.stalled.read_all()


@pytest.mark.parametrize("side", [1, 2])
@pytest.mark.parametrize("code", [0, 104])
def test_side_that_is_said_to_be_broken_and_is_not(lab, side, code):
    """Bytes for it must not vanish without a word. Layout 1 has the errno and the side there."""
    scene = Scene(lab, stalled=False)
    scene.damage(lambda ledger: ledger.write_table(
        4096 + 48, code.to_bytes(2, "little") + bytes([side])))
    scene.judge()
    scene.serves_on()


def test_many_random_bytes_in_the_table(lab):
    """Words of extreme values, where sums overflow and indexes run out."""
    scene = Scene(lab)
    dice = random.Random(f"words {SEED}")
    words = [0, 1, 2, 3, 127, 128, 255, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1]
    for _ in range(ROUNDS):
        service = scene.service
        service.crash()
        (ledger,) = service.ledgers()
        done = []
        for _ in range(dice.randint(1, 3)):
            position = dice.choice(interesting_positions(ledger.table(), scene.count + 1)[:-8])
            size = dice.choice([1, 2, 4, 8])
            position -= position % size
            value = dice.choice(words) % 256**size
            ledger.write_table(position, value.to_bytes(size, "little"))
            done.append((position, size, value))
        print(done)
        service.start()
        scene.judge()
        scene.refill()
    assert scene.stalled and scene.stalled.read_all()


# --- the queue -----------------------------------------------------------------------------------


@pytest.mark.parametrize("after", ["0", "50ms"])
def test_any_bit_of_an_entry_may_be_flipped(lab, after):
    scene = Scene(lab, after=after)
    dice = random.Random(f"entries {SEED}")
    for _ in range(ROUNDS):
        service = scene.service
        service.crash()
        (ledger,) = service.ledgers()

        def flip(entries: list[Datagram]) -> list[Datagram]:
            entry = dice.choice([one for one in entries if one.payload])
            position, bit = dice.randrange(len(entry.payload)), dice.randrange(8)
            print(f"byte {position}, bit {bit} of {entry.payload.hex()}")
            changed = bytearray(entry.payload)
            changed[position] ^= 1 << bit
            entry.payload = bytes(changed)
            return entries

        ledger.rewrite(flip)
        service.start()
        scene.judge()
        scene.refill()
    assert scene.stalled and scene.stalled.read_all()


@pytest.mark.parametrize("after", ["0", "50ms"])
def test_entries_may_be_cut_anywhere(lab, after):
    scene = Scene(lab, after=after)
    dice = random.Random(f"cuts {SEED}")
    for _ in range(ROUNDS // 2):
        service = scene.service
        service.crash()
        (ledger,) = service.ledgers()

        def cut(entries: list[Datagram]) -> list[Datagram]:
            entry = dice.choice(entries)
            if dice.random() < 0.7:
                entry.payload = entry.payload[: dice.randrange(len(entry.payload) or 1)]
            else:
                entry.payload += dice.randbytes(dice.choice([1, 8, 900, 5000]))
            return entries

        ledger.rewrite(cut)
        service.start()
        scene.judge()
        scene.refill()
    assert scene.stalled and scene.stalled.read_all()


def foreign(kind: str) -> list[int]:
    """Descriptors that nobody has entered; the caller owns them."""
    if kind == "pipe":
        return list(os.pipe())
    if kind == "null":
        return [os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC) for _ in range(2)]
    if kind == "listener":
        return [socket.create_server(("127.0.0.1", 0)).detach() for _ in range(2)]
    if kind == "unconnected":
        return [socket.socket().detach() for _ in range(2)]
    if kind == "datagram":
        return [socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).detach() for _ in range(2)]
    return []


GARBAGE = {
    "an empty datagram": lambda: Datagram(b""),
    "one byte": lambda: Datagram(b"\1"),
    "words": lambda: Datagram(b"GET / HTTP/1.1\r\n\r\n"),
    "random bytes": lambda: Datagram(random.Random(3).randbytes(200)),
    "a long datagram": lambda: Datagram(bytes(20_000)),
    "bytes with pipes": lambda: Datagram(b"\1\3" + bytes(8), foreign("pipe")),
    "bytes with a listener": lambda: Datagram(b"\1\1" + bytes(60), foreign("listener")),
    "many descriptors": lambda: Datagram(b"\1\1", [n for _ in range(50) for n in foreign("null")]),
}


@pytest.mark.parametrize("place", ["first", "last"])
@pytest.mark.parametrize("kind", GARBAGE)
def test_garbage_in_the_queue_costs_no_connection(lab, kind, place):
    scene = Scene(lab)
    rubbish = GARBAGE[kind]()
    scene.damage(lambda ledger: ledger.rewrite(
        lambda entries: [rubbish, *entries] if place == "first" else [*entries, rubbish]))
    assert scene.judge() == 0
    scene.serves_on()
    assert scene.stalled and scene.stalled.read_all()


@pytest.mark.parametrize("kind", ["pipe", "null", "listener", "unconnected", "datagram", "none"])
def test_entry_with_foreign_descriptors_costs_its_own_connection_alone(lab, kind):
    scene = Scene(lab, count=3, stalled=False)

    def exchange(entries: list[Datagram]) -> list[Datagram]:
        entries[1].close()
        entries[1].descriptors = foreign(kind)
        return entries

    scene.damage(lambda ledger: ledger.rewrite(exchange))
    # Nobody has its sockets any more: the kernel closes them, and no process can say more.
    ended = [pair for pair in scene.pairs if not _goes_on(pair)]
    assert len(ended) == 1
    scene.pairs = [pair for pair in scene.pairs if pair not in ended]
    scene.serves_on()


def _goes_on(pair: Pair) -> bool:
    """The same where a FIN is no fault: the kernel has closed what nobody holds."""
    try:
        return lives(pair)
    except AssertionError:
        for sock in pair:
            expect_end(sock)
        return False


@pytest.mark.parametrize("way", ["client only", "target only", "twice the same"])
def test_entry_with_a_part_of_its_descriptors_is_reset(lab, way):
    scene = Scene(lab, count=3, stalled=False)

    def drop(entries: list[Datagram]) -> list[Datagram]:
        client, target = entries[1].descriptors
        if way == "client only":
            os.close(target)
            entries[1].descriptors = [client]
        elif way == "target only":
            os.close(client)
            entries[1].descriptors = [target]
        else:
            os.close(target)
            entries[1].descriptors = [client, duplicate(client)]
        return entries

    scene.damage(lambda ledger: ledger.rewrite(drop))
    ended = [pair for pair in scene.pairs if not _goes_on(pair)]
    assert len(ended) == 1
    scene.pairs = [pair for pair in scene.pairs if pair not in ended]
    scene.serves_on()


def test_target_that_is_missing_though_bytes_have_been_relayed_is_not_dialled_again(lab):
    """Another connection to the target would get the second half of a stream."""
    scene = Scene(lab, count=3, stalled=False, after="0")
    dropped: list[int] = []

    def drop(entries: list[Datagram]) -> list[Datagram]:
        lonely = [entry for entry in entries if len(entry.descriptors) == 1]
        with socket.socket(fileno=duplicate(lonely[0].descriptors[0])) as sock:
            dropped.append(sock.getpeername()[1])
        assert lonely[1].payload != lonely[0].payload
        return [entry for entry in entries if entry is not lonely[1]]

    scene.damage(lambda ledger: ledger.rewrite(drop))
    (victim,) = [pair for pair in scene.pairs if pair[0].getsockname()[1] in dropped]
    expect_reset(victim[0])
    expect_end(victim[1])  # nobody held its other end any more
    assert scene.service.lost() == {"damaged": 1}
    scene.pairs.remove(victim)
    scene.serves_on()


@pytest.mark.parametrize("after", ["0", "50ms"])
def test_missing_pipe_costs_its_own_connection_alone(lab, after):
    scene = Scene(lab, after=after)

    def drop(entries: list[Datagram]) -> list[Datagram]:
        return [
            entry for entry in entries
            if not (entry.descriptors and is_pipe(entry.descriptors[0]))
        ]

    scene.damage(lambda ledger: ledger.rewrite(drop))
    assert scene.service.lost() == {"bytes-lost": 1}
    assert scene.judge() == 1 and scene.stalled is None
    scene.serves_on()


def test_pipe_with_too_few_or_too_many_bytes_costs_its_own_connection_alone(lab):
    scene = Scene(lab)
    for change in ("taken", "added"):
        def tamper(entries: list[Datagram]) -> list[Datagram]:
            for entry in entries:
                if entry.descriptors and is_pipe(entry.descriptors[0]):
                    if change == "taken":
                        os.read(entry.descriptors[0], 1)
                    else:
                        os.read(entry.descriptors[0], 64 * KIB)
                        os.write(entry.descriptors[1], b"x")
            return entries

        scene.damage(lambda ledger: ledger.rewrite(tamper))
        assert scene.service.lost() == {"bytes-lost": 1}
        assert scene.judge() == 1 and scene.stalled is None
        scene.refill()
    scene.serves_on()


def test_order_of_the_entries_does_not_matter(lab):
    scene = Scene(lab)
    dice = random.Random(5)
    for _ in range(5):
        def shuffle(entries: list[Datagram]) -> list[Datagram]:
            dice.shuffle(entries)
            return entries

        scene.damage(lambda ledger: ledger.rewrite(shuffle))
        assert scene.judge() == 0
    assert scene.stalled and scene.stalled.read_all()


@pytest.mark.parametrize("after", ["0", "50ms"])
def test_entries_that_are_there_twice_are_one_connection(lab, after):
    """A process may die between re-entering an entry and dropping the old one."""
    scene = Scene(lab, after=after)
    for _ in range(3):
        scene.damage(lambda ledger: ledger.rewrite(
            lambda entries: entries + [entry.copy() for entry in entries]))
        assert scene.service.resumed("crash") == 4
        assert scene.judge() == 0
    assert scene.stalled and scene.stalled.read_all()
    assert_alive(scene.stalled.client, scene.stalled.server)


# --- what the store passes -----------------------------------------------------------------------


@pytest.mark.parametrize("number", [0, 1])
def test_one_end_of_the_pair_is_missing(lab, number):
    scene = Scene(lab, stalled=False)
    scene.damage(lambda ledger: scene.service.store.replace(ledger.ends[number], None))
    for pair in scene.pairs:
        for sock in pair:
            expect_end(sock)
    scene.pairs = []
    scene.serves_on()


def copy_of(ledger: Ledger) -> list[int]:
    """The descriptors of a ledger with the same content."""
    ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    ends[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    with ledger.entries() as entries:
        for entry in entries:
            send(ends[0], entry)
    return [ends[0].detach(), ends[1].detach(), ledger.new_table(ledger.table())]


@pytest.mark.parametrize("name", ["the same name", "another name"])
def test_ledger_that_is_there_twice_resumes_each_connection_once(lab, name):
    """Two readers of one socket would tear its stream apart."""
    scene = Scene(lab)
    scene.service.crash()
    (ledger,) = scene.service.ledgers()
    other = ledger.name if name == "the same name" else ledger.name + "9"
    scene.service.store.stored += [(other, number) for number in copy_of(ledger)]
    scene.service.start()
    gone = scene.judge()
    assert scene.service.value("tcp_proxy_connections_active") == 4 - gone
    for _ in range(20):
        assert scene.judge() == 0
    assert scene.stalled is None or scene.stalled.read_all()


@pytest.mark.parametrize("names", [
    "proxy-ledger-", "proxy-ledger-x", "proxy-ledger-99999999999999999999", "something-else",
    "proxy-ledger--1", "stored",
])
def test_stored_descriptors_of_other_names_do_no_harm(lab, names):
    """FileDescriptorStoreMax= is the unit's, and so are the names in it."""
    scene = Scene(lab)
    scene.service.crash()
    scene.service.store.stored += [
        (names, number) for kind in ("null", "pipe", "datagram") for number in foreign(kind)
    ]
    scene.service.start()
    assert scene.service.resumed("crash") == 4
    assert scene.judge() == 0


# --- limits --------------------------------------------------------------------------------------


@pytest.mark.parametrize("places", [1, 2])
def test_store_too_small_for_a_ledger_is_said_and_clients_are_served(lab, places):
    target = lab.target()
    service = Service(lab, target, "--preserve-after=0", store_max=places)
    client, server = lab.pair(service, target)
    assert_alive(client, server)
    service.await_line("not every connection will survive this process")
    assert service.value("tcp_proxy_ledger_entries") == 0
    service.hand_over()
    expect_end(client)
    expect_end(server)
    service.start()
    assert_alive(*lab.pair(service, target))
    eventually(lambda: len(service.lines("not every connection will survive")) == 2,
               "a line of each process")


@pytest.mark.parametrize("places", [1, 2])
def test_store_that_takes_less_than_it_says_leaves_no_crash_behind(lab, places):
    """Somebody else's descriptors may have its places: parts of a ledger come back."""
    target = lab.target()
    service = Service(lab, target, "--preserve-after=0", store_max=places, announced=1024)
    for act in (service.kill, service.restart, service.kill):
        client, server = lab.pair(service, target)
        assert_alive(client, server)
        act()
        expect_end(client)
        expect_end(server)
    assert_alive(*lab.pair(service, target))


@pytest.mark.parametrize("places", [3, 4, 5])
def test_store_with_room_for_one_ledger_keeps_what_fits(lab, places):
    count = 600
    target = lab.target()
    service = Service(lab, target, "--preserve-after=0", store_max=places)
    pairs = [lab.pair(service, target) for _ in range(count)]
    for pair in pairs:
        assert_alive(*pair)
    service.await_line("not every connection will survive this process")
    kept = int(service.value("tcp_proxy_ledger_entries"))
    assert 400 <= kept < count
    assert len(service.lines("not every connection will survive")) == 1
    service.hand_over()
    service.start()
    living = [pair for pair in pairs if lives(pair)]
    assert len(living) == kept == service.resumed("restart")
    service.kill()
    for pair in living:
        assert_alive(*pair)


def test_more_connections_than_one_queue_holds(lab):
    count = 1200
    service = Service(lab, lab.echo(), "--log-connections=failures")
    ping = survival.PingPong(lab, service, count, interval=0.5)
    RESTART.happen(service)
    ping.go_on(1)
    assert service.resumed("restart") == count
    assert len(service.ledgers()) >= 2
    CRASH.happen(service, entered=count)
    ping.go_on(1, may_fail=True)
    assert len(ping.failures) <= 1, ping.failures  # one between recv and send
    ping.stop()
    eventually(lambda: service.value("tcp_proxy_connections_active") == 0, "all to end")
    service.await_entered(0)
    # Ledgers that are empty for good are given back, all but one that is kept in reserve.
    eventually(lambda: len(service.ledgers()) <= 2, "ledgers to be given back", 2 * DEADLINE)


def test_more_than_1024_pipes(lab):
    """Over unix sockets, whose buffers are small and of a fixed size."""
    count, size = 560, 320_000
    service, target = survival.service_between(
        lab, "unix>unix", "--preserve-after=0", "--log-connections=failures")
    pairs = [lab.pair(service, target) for _ in range(count)]
    pattern = random.Random(7).randbytes(size + count * 64)
    ways = [way for client, server in pairs for way in ((client, server), (server, client))]
    offsets = [32 * number for number in range(len(ways))]
    for (source, _), offset in zip(ways, offsets):
        source.settimeout(DEADLINE)
        source.sendall(pattern[offset : offset + size])
    service.assert_idle()
    for act in (CRASH, RESTART):
        act.down(service, entered=count)
        held = service.bytes_in_pipes()
        assert len(held) > 1024, f"{len(held)} pipes hold bytes"
        service.start()
        assert service.lost() == {}
        assert service.resumed(act.cause) == count
    for (_, sink), offset in zip(ways, offsets):
        received = receive_exactly_fast(sink, size)
        assert received == pattern[offset : offset + size], "a wrong byte"


def receive_exactly_fast(sock: socket.socket, count: int) -> bytes:
    data = bytearray(count)
    view, received = memoryview(data), 0
    while received < count:
        part = sock.recv_into(view[received:])
        assert part, f"ended after {received} of {count} bytes"
        received += part
    return bytes(data)
