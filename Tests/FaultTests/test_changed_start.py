"""The next process is started in another way than the last: options, routes and limits change."""

from __future__ import annotations

import socket
import threading

import pytest

from harness import (
    KIB, Lab, always, eventually, expect_end, expect_eof, expect_reset, fill, receive_exactly,
    receive_stream,
)
from store import Service
from survival import CRASH, RESTART, Fault, assert_alive

FAULTS = pytest.mark.parametrize("fault", [RESTART, CRASH], ids=["restart", "crash"])


def change(service: Service, *options: str, without: str = "") -> None:
    """Other options from the next start on."""
    service.command = [
        word for word in service.command if not (without and word.startswith(without))
    ] + list(options)


@FAULTS
def test_switched_off_meanwhile_what_is_there_goes_on_for_this_life(lab: Lab, fault: Fault):
    target = lab.target()
    service = Service(lab, target, "--preserve-after=0")
    pairs = [lab.pair(service, target) for _ in range(5)]
    for pair in pairs:
        assert_alive(*pair)
    change(service, "--no-preserve")
    fault.happen(service, entered=5)
    assert service.lost() == {}
    for pair in pairs:
        assert_alive(*pair)
    service.store.settle()
    assert not service.store.stored, "nothing is kept that nobody keeps up"
    pairs[0][0].close()  # the copies are gone: a close is a close
    expect_eof(pairs[0][1])
    service.kill()
    for client, server in pairs[1:]:
        expect_end(client)
        expect_end(server)


@FAULTS
def test_route_that_is_gone_keeps_its_connections(lab: Lab, fault: Fault):
    """An administrator removes a route: who is connected stays so, nobody new comes in."""
    target = lab.target()
    service = Service(lab, target, "--preserve-after=0", "--log-connections=all")
    client, server = lab.pair(service, target)
    assert_alive(client, server)
    service.ROUTE = "another"
    fault.happen(service, entered=1)
    assert service.lost() == {}
    assert_alive(client, server)
    fault.happen(service, entered=1)
    assert_alive(client, server)
    client.close()
    expect_eof(server)
    server.close()
    service.await_line(r"connection \d+ ended: route=web .*reason=client-closed")


def test_connection_being_dialled_for_a_route_that_is_gone_is_reset(lab: Lab):
    target = lab.full_target()
    service = Service(lab, target, "--preserve-after=0", "--connect-timeout=60s")
    client = lab.client(service)
    service.await_value(1, "tcp_proxy_target_connect_attempts_total")
    service.ROUTE = "another"
    service.restart()
    expect_reset(client)
    assert service.lost() == {"no-route": 1}
    assert service.value("tcp_proxy_connections_active") == 0


def test_route_with_another_target_keeps_its_connections_to_the_old_one(lab: Lab):
    old, new = lab.target(), lab.target()
    service = Service(lab, old, "--preserve-after=0")
    client, server = lab.pair(service, old)
    assert_alive(client, server)
    change(service, f"-target=127.0.0.1:{new.address[1]}", without="-target=")
    service.restart()
    assert_alive(client, server)
    assert_alive(*lab.pair(service, new))


@pytest.mark.parametrize("limit", [60, 100])
def test_fewer_descriptors_than_connections_at_the_next_start(lab: Lab, limit: int):
    """What finds no place is cut and counted, and nobody hangs; the others go on."""
    count = 60
    target = lab.target()
    service = Service(lab, target, "--preserve-after=0", "--log-connections=none")
    pairs = [lab.pair(service, target) for _ in range(count)]
    for pair in pairs:
        assert_alive(*pair)
    service.hand_over()
    service.command = ["prlimit", f"--nofile={limit}:{limit}", *service.command]
    service.start()
    lost = service.lost()
    assert set(lost) == {"no-descriptors"}, lost
    resumed = service.resumed("restart")
    assert resumed + lost["no-descriptors"] == count
    assert resumed > 0
    living = []
    for client, server in pairs:
        try:
            assert_alive(client, server)
            living.append((client, server))
        except (ConnectionError, AssertionError):
            expect_end(client)
            expect_end(server)
    assert len(living) == resumed
    for client, server in living:
        client.close()
        server.close()
    service.await_value(0, "tcp_proxy_connections_active")
    assert_alive(*lab.pair(service, target))


@FAULTS
def test_as_many_connections_as_descriptors_allow_go_on(lab: Lab, fault: Fault):
    """The same limit, and nothing to spare: the next process must not need more than the last."""
    target = lab.target()
    service = Service(
        lab, target, "--preserve-after=0", "--log-connections=none", nofile=200)
    clients = {lab.client(service) for _ in range(200)}  # more than it can serve: others wait
    pairs: dict[socket.socket, socket.socket] = {}  # a client's, and the target's

    def take_all() -> None:
        """Pairs those that are served by what their clients say."""
        names = {client.getsockname()[1]: client for client in clients}
        for client in clients:
            if client not in told:
                client.sendall(b"%06d" % client.getsockname()[1])
                told.add(client)
        while True:
            try:
                server = target.accept(within=0.3)
            except socket.timeout:
                return
            pairs[names[int(receive_exactly(server, 6))]] = server

    told: set[socket.socket] = set()
    take_all()
    assert len(pairs) > 50
    eventually(lambda: service.value("tcp_proxy_descriptors_exhausted") == 1, "the shortage")
    for client in list(pairs)[:28]:  # their entries stay in the queue for now
        server = pairs.pop(client)
        clients.remove(client)
        client.close()
        expect_eof(server)
        server.close()
    take_all()  # others have come in their place
    assert len(clients) > len(pairs) > 50
    entered = int(service.value("tcp_proxy_ledger_entries"))
    assert entered >= len(pairs)
    fault.happen(service)
    assert service.lost() == {}
    for pair in pairs.items():
        assert_alive(*pair)
    lab.close_sockets()
    eventually(lambda: service.value("tcp_proxy_connections_active") == 0, "all to end")


@FAULTS
def test_connections_beyond_a_lowered_limit_go_on(lab: Lab, fault: Fault):
    target = lab.target()
    service = Service(lab, target, "--preserve-after=0")
    pairs = [lab.pair(service, target) for _ in range(5)]
    for pair in pairs:
        assert_alive(*pair)
    change(service, "--connections-max=2")
    fault.happen(service, entered=5)
    for pair in pairs:
        assert_alive(*pair)
    lab.expect_refusal(service)


@FAULTS
@pytest.mark.parametrize("sender", ["client", "target"])
@pytest.mark.parametrize("after", [0, 100], ids=["urgent last", "bytes behind it"])
def test_urgent_byte_is_not_taken_for_a_hole(lab: Lab, fault: Fault, sender: str, after: int):
    """The kernel counts it among the bytes received, though a relay may skip it."""
    target = lab.target()
    service = Service(lab, target, "--preserve-after=0")
    client, server = lab.pair(service, target)
    source, sink = (client, server) if sender == "client" else (server, client)
    source.sendall(b"before")
    source.send(b"!", socket.MSG_OOB)
    source.sendall(after * b"a")
    received = b""
    sink.settimeout(1)
    try:
        while True:
            received += sink.recv(4 * KIB)
    except socket.timeout:
        pass
    assert received.replace(b"!", b"") == b"before" + after * b"a"
    for _ in range(2):
        fault.happen(service, entered=1)
        assert service.lost() == {}
        client.sendall(b"on")
        got = receive_exactly(server, 2)
        assert got in (b"on", b"!o"), got
        if got == b"!o":
            receive_exactly(server, 1)
        server.sendall(b"back")
        assert b"back".startswith(receive_exactly(client, 4).lstrip(b"!"))
        always(service.running, "it runs", 0.1)


@FAULTS
def test_more_than_4_gib_is_counted_right(lab: Lab, fault: Fault):
    """Counters of 32 bits would have gone round. Bytes are not looked at: speed is all."""
    target = lab.target()
    service = Service(lab, target, "--preserve-after=0")
    client, server = lab.pair(service, target)
    block = bytes(1 << 20)
    total = (4 << 30) + 12_345

    def send() -> None:
        left = total
        while left:
            part = min(left, len(block))
            client.sendall(block[:part])
            left -= part

    sender = threading.Thread(target=send, daemon=True)
    sender.start()
    received, buffer = 0, bytearray(1 << 20)
    while received < total:
        count = server.recv_into(buffer)
        assert count
        received += count
    sender.join()
    fault.happen(service, entered=1)
    assert service.lost() == {}
    assert_alive(client, server)
    client.close()
    expect_eof(server)
    server.close()
    line = service.await_line(r"connection \d+ ended")
    assert f"in={total + 5} " in line, line


@FAULTS
def test_stalled_pipe_larger_than_what_is_left_of_its_connection(lab: Lab, fault: Fault):
    """The client has sent all and closed, its bytes stand in the pipe, then the fault."""
    target = lab.target(receive_buffer=64 * KIB)
    service = Service(lab, target, "--preserve-after=0")
    client, server = lab.pair(service, target)
    count = fill(client, "all")
    client.close()
    fault.happen(service, entered=1)
    assert service.lost() == {}
    receive_stream(server, "all", count, until_eof=True)
    server.close()
    eventually(lambda: service.value("tcp_proxy_connections_active") == 0, "the end")
    service.await_closed(client_closed=1)
