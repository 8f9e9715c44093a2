"""A FIN closes one direction only, and only behind the last byte."""

import socket
import time

import pytest

from harness import (
    KIB, MIB, always, eventually, expect_eof, fill, is_open, parallel, receive_all,
    receive_exactly, receive_stream, send_stream, Stream,
)


def test_reply_after_the_clients_fin_is_delivered_whole(lab):
    target = lab.target()
    proxy = lab.proxy(target)
    client, server = lab.pair(proxy, target)
    client.sendall(b"request")
    client.shutdown(socket.SHUT_WR)
    assert receive_all(server) == b"request"
    parallel(
        lambda: send_stream(server, "reply", 3 * MIB, finish=True),
        lambda: receive_stream(client, "reply", 3 * MIB, until_eof=True),
    )
    proxy.await_closed(client_closed=1)


def test_client_may_go_on_sending_after_the_targets_fin(lab):
    target = lab.target()
    proxy = lab.proxy(target)
    client, server = lab.pair(proxy, target)
    server.sendall(b"banner")
    server.shutdown(socket.SHUT_WR)
    assert receive_all(client) == b"banner"
    parallel(
        lambda: send_stream(client, "upload", 3 * MIB, finish=True),
        lambda: receive_stream(server, "upload", 3 * MIB, until_eof=True),
    )
    proxy.await_closed(target_closed=1)


def test_fin_alone_closes_only_its_own_direction(lab):
    target = lab.target()
    proxy = lab.proxy(target)
    client, server = lab.pair(proxy, target)
    client.shutdown(socket.SHUT_WR)
    expect_eof(server)
    always(lambda: is_open(client), "the client's reading side is open", 0.3)
    assert proxy.value("tcp_proxy_connections_active") == 1
    proxy.assert_idle()
    server.sendall(b"late")
    assert receive_exactly(client, 4) == b"late"
    server.close()
    expect_eof(client)


@pytest.mark.parametrize("sender", ["client", "target"])
def test_bytes_in_flight_at_fin_arrive_before_it(lab, sender):
    target = lab.target(receive_buffer=16 * KIB)
    proxy = lab.proxy(target)
    client, server = lab.pair(proxy, target, receive_buffer=16 * KIB)
    source, destination = (client, server) if sender == "client" else (server, client)
    count = fill(source, "stuck")  # the far side reads nothing: buffers and pipes are full now
    source.shutdown(socket.SHUT_WR)
    time.sleep(0.2)  # lets the FIN overtake, if it can
    receive_stream(destination, "stuck", count, until_eof=True)


def test_half_closed_with_much_left_for_a_slow_reader(lab):
    count = 4 * MIB
    target = lab.target()
    proxy = lab.proxy(target)
    client, server = lab.pair(proxy, target, receive_buffer=32 * KIB)
    client.shutdown(socket.SHUT_WR)
    expect_eof(server)

    def send() -> None:
        send_stream(server, "large", count)
        server.close()  # FIN with most of it still under way

    parallel(
        send,
        lambda: receive_stream(
            client, "large", count, chunks=iter(lambda: 48 * KIB, None), pause=0.005,
            until_eof=True,
        ),
    )
    proxy.await_closed(client_closed=1)


def test_small_request_and_fin_in_one_segment_never_lose_the_fin(lab):
    """A short read together with EPOLLRDHUP: the FIN brings no event of its own later."""
    target = lab.target()
    proxy = lab.proxy(target)
    rounds = 200
    for number in range(rounds):
        client = lab.client(proxy)
        message = Stream(number).read(1 + number)
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 1)
        client.sendall(message)
        client.shutdown(socket.SHUT_WR)
        server = target.accept()
        assert receive_all(server) == message
        server.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 1)
        server.sendall(message)
        server.close()
        assert receive_all(client) == message
        client.close()
    proxy.await_closed(client_closed=rounds)


def test_both_ends_close_at_the_same_time(lab):
    target = lab.target()
    proxy = lab.proxy(target)
    rounds = 50
    for _ in range(rounds):
        client, server = lab.pair(proxy, target)
        client.sendall(b"to target")
        server.sendall(b"to client")
        client.shutdown(socket.SHUT_WR)
        server.shutdown(socket.SHUT_WR)
        assert receive_all(server) == b"to target"
        assert receive_all(client) == b"to client"
        client.close()
        server.close()

    def all_counted_as_clean() -> bool:
        closed = proxy.scrape().closed()
        assert set(closed) <= {"client-closed", "target-closed"}, closed
        return sum(closed.values()) == rounds

    eventually(all_counted_as_clean, f"{rounds} clean ends")


def test_bytes_and_fin_sent_before_the_target_answers_the_dial(lab):
    """Everything, FIN included, is there before the relay begins: no event will announce it."""
    target = lab.full_target()
    proxy = lab.proxy(target)
    client = lab.client(proxy)
    send_stream(client, "early", 100 * KIB, finish=True)
    proxy.await_value(1, "tcp_proxy_target_connect_attempts_total")
    target.make_room()
    server = target.accept_live()
    receive_stream(server, "early", 100 * KIB, until_eof=True)
    server.sendall(b"reply")
    server.close()
    assert receive_all(client) == b"reply"
