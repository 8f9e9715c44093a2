"""What must hold across a restart as well as across a crash: the same scenes for both."""

from __future__ import annotations

import socket
import time
from dataclasses import dataclass
from typing import Any

from harness import (
    KIB, MIB, Address, Lab, Stream, expect_eof, expect_reset, fill, parallel, receive_all,
    receive_exactly, receive_stream, reset, send_stream,
)
from store import Service
from streams import cycle
from targets import Target
from traffic import Bulk, Chatter, Churn, PingPong
from waiting import eventually


@dataclass(frozen=True)
class Fault:
    """How the process ends. `cause` is the metric's label."""

    cause: str

    @property
    def arguments(self) -> list[str]:
        """Nobody waits a second for each crash; that this is the default has a test of its own."""
        return ["--preserve-after=100ms"] if self.cause == "crash" else []

    def down(self, service: Service, entered: int | None = None) -> None:
        """Ends it. Before a crash it waits until that many connections are entered."""
        if self.cause == "crash":
            if entered is not None:
                service.await_entered(entered)
            service.crash()
        else:
            service.hand_over()

    def happen(self, service: Service, entered: int | None = None) -> None:
        self.down(service, entered)
        service.start()


RESTART = Fault("restart")
CRASH = Fault("crash")

# Where the client and the target are reached.
ENDS = ["tcp>tcp", "unix>tcp", "tcp>unix", "unix>unix"]


def address(lab: Lab, kind: str, name: str) -> Address:
    return ("127.0.0.1", 0) if kind == "tcp" else str(lab.folder / name)


def service_between(lab: Lab, ends: str, *arguments: str, receive_buffer: int | None = None,
                    **options: Any) -> tuple[Service, Target]:
    outer, _, inner = ends.partition(">")
    target = lab.target(address(lab, inner, "target"), receive_buffer=receive_buffer)
    service = Service(
        lab, target, *arguments, listen=address(lab, outer, "listen"), **options
    )
    return service, target


def assert_alive(client: socket.socket, server: socket.socket, word: bytes = b"there") -> None:
    client.sendall(word)
    assert receive_exactly(server, len(word)) == word
    server.sendall(word[::-1])
    assert receive_exactly(client, len(word)) == word[::-1]


def ping_pong_goes_on(lab: Lab, fault: Fault, count: int, times: int) -> None:
    service = Service(lab, lab.echo(), "--log-connections=failures", *fault.arguments)
    ping = PingPong(lab, service, count)
    for _ in range(times):
        fault.happen(service, entered=count)
        ping.go_on()
        assert service.resumed(fault.cause) == count
    assert service.lost() == {}
    ping.stop()
    ping.assert_whole()
    service.await_closed(client_closed=count)


def bytes_in_pipes_arrive(lab: Lab, fault: Fault, ends: str, times: int = 3, **options: Any
                          ) -> None:
    """Both readers are stalled: buffers and pipes are full in both directions."""
    service, target = service_between(
        lab, ends, *fault.arguments, receive_buffer=64 * KIB, **options)
    client, server = lab.pair(service, target, receive_buffer=64 * KIB)
    up, down = fill(client, "up"), fill(server, "down")
    for _ in range(times):
        fault.down(service, entered=1)
        held = service.bytes_in_pipes()
        assert len(held) == 2, f"bytes in the pipes: {held}"
        service.start()
        assert service.lost() == {}
    service.assert_idle()
    client.shutdown(socket.SHUT_WR)
    server.shutdown(socket.SHUT_WR)
    parallel(
        lambda: receive_stream(server, "up", up, cycle(7000, 100_000), until_eof=True),
        lambda: receive_stream(client, "down", down, cycle(100_000, 1), until_eof=True),
    )
    eventually(lambda: sum(service.scrape().closed().values()) == 1, "the connection to end")


def stalled_reader_reads_on_little_by_little(lab: Lab, fault: Fault, times: int = 3) -> None:
    """Between two faults some of what waits is read, so that each finds another state."""
    service, target = service_between(lab, "tcp>tcp", *fault.arguments, receive_buffer=64 * KIB)
    client, server = lab.pair(service, target, receive_buffer=64 * KIB)
    ways = {"up": (client, server), "down": (server, client)}
    counts = {name: fill(source, name) for name, (source, _) in ways.items()}
    streams = {name: Stream(name) for name in ways}
    for number in range(times):
        fault.happen(service, entered=1)
        for name, (_, sink) in ways.items():
            part = min(300_001 * (number + 1), (counts[name] - streams[name].position) // 2)
            for size in (part // 3, part - part // 3):
                streams[name].check(receive_exactly(sink, size))
    assert service.lost() == {}
    for name, (source, _) in ways.items():
        source.shutdown(socket.SHUT_WR)
    for name, (_, sink) in ways.items():
        streams[name].check(receive_exactly(sink, counts[name] - streams[name].position))
        expect_eof(sink)


def bulk_goes_on(lab: Lab, fault: Fault, times: int = 3, pairs: int = 1,
                 ends: str = "tcp>tcp") -> int:
    """Returns how many were reset by the hole check; of the others every byte arrived."""
    service, target = service_between(lab, ends, *fault.arguments)
    transfers = [Bulk(*lab.pair(service, target), f"bulk {number}") for number in range(pairs)]
    cut = 0
    for _ in range(times):
        for transfer in transfers:
            transfer.go_on(2 * MIB)
        fault.happen(service, entered=len(transfers))
        living = [transfer for transfer in transfers if transfer.goes_on(1 * MIB)]
        lost = service.lost()
        assert set(lost) <= {"bytes-lost"}, lost
        assert len(living) + sum(lost.values()) == len(transfers)
        cut += len(transfers) - len(living)
        transfers = living
    for transfer in transfers:
        transfer.finish()
    return cut


def half_closed_gets_its_reply(lab: Lab, fault: Fault, first: str, times: int = 1) -> None:
    """`first` ("client" or "target") has sent FIN before; the other side answers after."""
    target = lab.target()
    service = Service(lab, target, *fault.arguments)
    client, server = lab.pair(service, target)
    asker, answerer = (client, server) if first == "client" else (server, client)
    asker.sendall(b"request")
    asker.shutdown(socket.SHUT_WR)
    assert receive_all(answerer) == b"request"
    for number in range(times):
        fault.happen(service, entered=1)
        word = b"part %d" % number
        answerer.sendall(word)
        assert receive_exactly(asker, len(word)) == word
    parallel(
        lambda: send_stream(answerer, "reply", 3 * MIB, finish=True),
        lambda: receive_stream(asker, "reply", 3 * MIB, until_eof=True),
    )
    service.await_closed(**{f"{first}_closed": 1})


def half_closed_with_a_reply_in_the_pipe(lab: Lab, fault: Fault, first: str) -> None:
    """One direction has ended; the other stands still with bytes and then a FIN behind them."""
    service, target = service_between(lab, "tcp>tcp", *fault.arguments, receive_buffer=64 * KIB)
    client, server = lab.pair(service, target, receive_buffer=64 * KIB)
    asker, answerer = (client, server) if first == "client" else (server, client)
    asker.shutdown(socket.SHUT_WR)
    expect_eof(answerer)
    count = fill(answerer, "reply")
    answerer.shutdown(socket.SHUT_WR)
    fault.down(service, entered=1)
    assert len(service.bytes_in_pipes()) == 1
    service.start()
    receive_stream(asker, "reply", count, until_eof=True)
    service.await_closed(**{f"{first}_closed": 1})


def both_directions_ended_but_for_bytes_in_the_pipe(lab: Lab, fault: Fault) -> None:
    """Each side has sent all and its FIN; what is left to do is to deliver."""
    service, target = service_between(lab, "tcp>tcp", *fault.arguments, receive_buffer=64 * KIB)
    client, server = lab.pair(service, target, receive_buffer=64 * KIB)
    up, down = fill(client, "up"), fill(server, "down")
    client.shutdown(socket.SHUT_WR)
    server.shutdown(socket.SHUT_WR)
    fault.happen(service, entered=1)
    parallel(
        lambda: receive_stream(server, "up", up, until_eof=True),
        lambda: receive_stream(client, "down", down, until_eof=True),
    )
    eventually(lambda: sum(service.scrape().closed().values()) == 1, "the connection to end")


def reset_of_the_sender_comes_behind_its_bytes(lab: Lab, fault: Fault, sender: str) -> None:
    """One side has sent much, and resets while nobody runs; the other has not read it yet."""
    service, target = service_between(lab, "tcp>tcp", *fault.arguments, receive_buffer=64 * KIB)
    client, server = lab.pair(service, target, receive_buffer=64 * KIB)
    source, sink = (client, server) if sender == "client" else (server, client)
    count = fill(source, "much")
    fault.down(service, entered=1)
    reset(source)
    service.start()
    assert service.lost() == {}
    stream = Stream("much")
    try:
        while data := sink.recv(100_000):
            stream.check(data)
        raise AssertionError(f"FIN instead of a reset, after {stream.position} bytes")
    except ConnectionResetError:
        pass
    # A reset lets the kernel drop what its sender still had; what the proxy had taken arrives.
    assert 0 < stream.position <= count
    service.await_closed(**{f"{sender}_reset": 1})
    service.await_entered(0)


DEEDS = ["FIN", "RST", "data and FIN", "data and close", "data and RST"]


def peer_acts_while_it_is_down(lab: Lab, fault: Fault, deed: str, side: str, ends: str) -> None:
    """What one side does meanwhile reaches the other truthfully afterwards."""
    service, target = service_between(lab, ends, *fault.arguments)
    client, server = lab.pair(service, target)
    assert_alive(client, server)
    actor, other = (client, server) if side == "client" else (server, client)
    fault.down(service, entered=1)
    data = b"meanwhile" * 1000 if "data" in deed else b""
    actor.sendall(data)
    if "FIN" in deed:
        actor.shutdown(socket.SHUT_WR)
    elif "close" in deed:
        actor.close()
    else:
        reset(actor)
    service.start()
    if "RST" in deed:
        if ends == "tcp>tcp":
            expect_reset(other)
            service.await_closed(**{f"{side}_reset": 1})
        return
    assert receive_exactly(other, len(data)) == data
    expect_eof(other)
    if "FIN" in deed:
        other.sendall(b"and the answer")
        other.shutdown(socket.SHUT_WR)
        assert receive_all(actor) == b"and the answer"
    other.close()
    service.await_closed(**{f"{side}_closed": 1})


def both_peers_leave_while_it_is_down(lab: Lab, fault: Fault) -> None:
    target = lab.target()
    service = Service(lab, target, *fault.arguments)
    pairs = [lab.pair(service, target) for _ in range(3)]
    for pair in pairs:
        assert_alive(*pair)
    fault.down(service, entered=len(pairs))
    for sock in pairs[0]:
        sock.shutdown(socket.SHUT_WR)
    for sock in pairs[1]:
        reset(sock)
    for sock in pairs[2]:
        sock.sendall(b"farewell")
        sock.shutdown(socket.SHUT_WR)
    service.start()
    for sock in pairs[0]:
        expect_eof(sock)
    for sock in pairs[2]:
        assert receive_all(sock) == b"farewell"
    service.await_value(0, "tcp_proxy_connections_active")
    service.await_entered(0)
    assert sum(service.scrape().closed().values()) + sum(service.lost().values()) == len(pairs)


def new_clients_are_served(lab: Lab, fault: Fault, times: int, delay: float,
                           rate: float = 200) -> tuple[Churn, Service]:
    service = Service(lab, lab.echo(), "--log-connections=failures", *fault.arguments)
    churn = Churn(service, rate)
    churn.go_on(20)
    for _ in range(times):
        fault.down(service)
        time.sleep(delay)
        service.start()
        churn.go_on(100)
    churn.stop()
    return churn, service


def talk_without_waiting(lab: Lab, fault: Fault, times: int) -> None:
    """What arrives while the next process looks at the counts is not taken for a hole."""
    service = Service(lab, lab.echo().address, *fault.arguments)
    chatter = Chatter(lab, service, 8)
    for _ in range(times):
        fault.happen(service, entered=8)
        assert service.lost() == {}
    chatter.stop()
