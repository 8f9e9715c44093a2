"""A copy in the store keeps a socket open: close(2) alone would send nothing to the peer.

Each way in which the proxy itself ends a connection must reach both peers all the same, at once
and while the store still holds the copy.
"""

from __future__ import annotations

import signal
import socket

import pytest

from harness import (
    KIB, Lab, eventually, expect_end, expect_eof, expect_reset, fill, receive_all,
    receive_stream, reset,
)
from store import Service
from survival import ENDS, assert_alive, service_between

Pair = tuple[socket.socket, socket.socket]


def entered(lab: Lab, ends: str = "tcp>tcp", *arguments: str) -> tuple[Service, Pair]:
    service, target = service_between(lab, ends, "--preserve-after=0", *arguments)
    pair = lab.pair(service, target)
    assert_alive(*pair)
    service.await_entered(1)
    return service, pair


@pytest.mark.parametrize("resumed", [False, True], ids=["first life", "second life"])
@pytest.mark.parametrize("ends", ENDS)
def test_end_of_each_direction_arrives(lab, ends, resumed):
    service, (client, server) = entered(lab, ends)
    if resumed:
        service.kill()
    client.sendall(b"question")
    client.shutdown(socket.SHUT_WR)
    assert receive_all(server) == b"question"
    server.sendall(b"answer")
    server.close()
    assert receive_all(client) == b"answer"
    service.await_closed(client_closed=1)


@pytest.mark.parametrize("resumed", [False, True], ids=["first life", "second life"])
@pytest.mark.parametrize("side", ["client", "target"])
def test_reset_arrives_at_the_other_side(lab, side, resumed):
    service, (client, server) = entered(lab)
    if resumed:
        service.restart()
    actor, other = (client, server) if side == "client" else (server, client)
    reset(actor)
    expect_reset(other)
    service.await_closed(**{f"{side}_reset": 1})


@pytest.mark.parametrize("ends", ENDS)
def test_idle_timeout_ends_both_sides(lab, ends):
    service, pair = entered(lab, ends, "--idle-timeout=300ms")
    for sock in pair:
        expect_end(sock)
    service.await_closed(idle_timeout=1)


@pytest.mark.parametrize("resumed", [False, True], ids=["first life", "second life"])
@pytest.mark.parametrize("ends", ENDS)
def test_drain_timeout_ends_both_sides(lab, ends, resumed):
    service, pair = entered(lab, ends, "--drain-timeout=300ms")
    if resumed:
        service.kill()
    assert service.end(signal.SIGTERM) in (0, 1)
    assert service.store.stored, "the store still has the copies"
    for sock in pair:
        expect_end(sock)


def test_second_sigterm_ends_both_sides(lab):
    service, pair = entered(lab)
    service.process.send_signal(signal.SIGTERM)
    eventually(lambda: "STOPPING=1" in [text for _, text in service.store.messages],
               "STOPPING=1")
    assert service.end(signal.SIGTERM) == 1
    assert service.store.stored, "the store still has the copies"
    for sock in pair:
        expect_end(sock)


def test_start_after_a_stop_finds_nothing_to_go_on_with(lab):
    """FileDescriptorStorePreserve=yes keeps the store: what was drained or cut is not revived."""
    service, pair = entered(lab, "tcp>tcp", "--drain-timeout=300ms")
    service.end(signal.SIGTERM)
    service.start()
    assert service.value("tcp_proxy_connections_active") == 0
    assert service.lost() == {}
    for sock in pair:
        expect_end(sock)


def test_bytes_left_in_pipes_do_not_keep_an_ended_connection(lab):
    """The target resets while its pipe is full: the client hears of it, and the pipe is gone."""
    service, target = service_between(
        lab, "tcp>tcp", "--preserve-after=0", receive_buffer=64 * KIB)
    for act in (None, service.restart, service.kill):
        client, server = lab.pair(service, target, receive_buffer=64 * KIB)
        fill(client, "stuck", quiet=0.1)
        if act:
            act()
        reset(server)
        expect_reset(client)
        service.await_value(0, "tcp_proxy_connections_active")
        service.await_entered(0)
    service.crash()
    service.start()
    assert service.value("tcp_proxy_connections_active") == 0
    assert service.lost() == {}
    assert_alive(*lab.pair(service, target))


def test_idle_exit_waits_for_resumed_connections(lab):
    service, target = service_between(
        lab, "tcp>tcp", "--exit-idle-time=500ms", "--preserve-after=0")
    client, server = lab.pair(service, target)
    service.await_entered(1)
    service.kill()
    with pytest.raises(AssertionError):
        service.await_end(1.5)
    assert_alive(client, server)
    client.close()
    expect_eof(server)
    server.close()
    assert service.await_end() == 0
    service.start()
    assert service.lost() == {}
    assert_alive(*lab.pair(service, target))


def test_many_short_connections_leave_the_queue_short(lab):
    """Entered at once and ended at once: the dead are dropped, or the queue would be full."""
    service = Service(lab, lab.echo(), "--preserve-after=0", "--log-connections=none")
    keeper = lab.client(service)
    for _ in range(30):
        clients = [lab.client(service) for _ in range(100)]
        for client in clients:
            client.sendall(b"x")
        for client in clients:
            assert client.recv(1) == b"x"
            client.close()
    service.await_entered(1)
    service.crash()
    count = 0
    for ledger in service.ledgers():
        with ledger.entries() as entries:
            count += len(entries)
    assert count < 1000, f"{count} entries for one connection"
    service.start()
    assert service.resumed("crash") == 1
    keeper.sendall(b"y")
    assert keeper.recv(1) == b"y"
    assert not service.lines("not every connection")


def test_ipv6_goes_on(lab):
    target = lab.target(("::1", 0), receive_buffer=64 * KIB)
    service = Service(lab, target, "--preserve-after=0", listen=("::1", 0))
    client, server = lab.pair(service, target, receive_buffer=64 * KIB)
    assert_alive(client, server)
    count = fill(client, "six")
    for act in (service.restart, service.kill):
        act()
        assert service.lost() == {}
    receive_stream(server, "six", count)
    assert_alive(client, server)


def test_new_socket_in_the_place_of_an_old_one_is_not_mistaken_for_it(lab):
    """Slots are used again: an old entry in the queue must not revive as the new tenant."""
    service, target = service_between(lab, "tcp>tcp", "--preserve-after=0")
    for number in range(20):
        client, server = lab.pair(service, target)
        assert_alive(client, server, b"%05d" % number)
        if number % 3 == 0:
            service.kill()
            assert_alive(client, server, b"%05d" % number)
        client.close()
        expect_eof(server)
        server.close()
    pair = lab.pair(service, target)
    assert_alive(*pair)
    service.await_entered(1)
    service.kill()
    assert service.resumed("crash") == 1 and service.lost() == {}
    assert_alive(*pair)
