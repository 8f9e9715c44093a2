"""SIGTERM: the port refuses at once, open connections finish, and the end comes right behind."""

import signal
import socket
import threading
import time

import pytest

from harness import (
    DEADLINE, MIB, PATIENCE, Lab, Proxy, echo_once, eventually, expect_end, expect_eof, parallel,
    receive_all, receive_exactly, receive_stream, reset, send_stream,
)


def await_refusal(proxy: Proxy, deadline: float = 1) -> None:
    """The port refuses: what was connecting in that very instant may still get in or be reset."""

    def refused() -> bool:
        try:
            reset(socket.create_connection(proxy.listen_address, timeout=DEADLINE))
        except ConnectionRefusedError:
            return True
        except OSError:
            pass
        return False

    eventually(refused, "the port to refuse", deadline * PATIENCE)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_without_connections_it_ends_at_once(lab, number):
    proxy = lab.proxy(lab.echo())
    began = time.monotonic()
    proxy.terminate(number)
    ended = proxy.await_exit(0)
    assert ended - began < 1 * PATIENCE


def test_under_load_every_transfer_is_finished_then_it_ends(lab):
    count = 3 * MIB
    target = lab.target()
    proxy = lab.proxy(target)
    pairs = [lab.pair(proxy, target) for _ in range(10)]
    for client, server in pairs:
        client.sendall(b"x")
        assert receive_exactly(server, 1) == b"x"
    started = threading.Barrier(2 * len(pairs) + 1)

    def send(sock: socket.socket, name: str) -> None:
        half = count // 2
        started.wait(DEADLINE)
        send_stream(sock, name + " before", half)
        await_drain.wait(DEADLINE)
        send_stream(sock, name + " after", half, finish=True)

    def receive(sock: socket.socket, name: str) -> None:
        half = count // 2
        receive_stream(sock, name + " before", half)
        receive_stream(sock, name + " after", half, until_eof=True)

    await_drain = threading.Event()

    def conduct() -> None:
        started.wait(DEADLINE)
        proxy.terminate()
        await_refusal(proxy)
        assert proxy.running()
        await_drain.set()

    actions = [conduct]
    for number, (client, server) in enumerate(pairs):
        actions += [
            lambda s=client, n=number: send(s, f"up {n}"),
            lambda s=server, n=number: receive(s, f"up {n}"),
            lambda s=server, n=number: send(s, f"down {n}"),
            lambda s=client, n=number: receive(s, f"down {n}"),
        ]
    parallel(*actions)
    proxy.await_exit(0)


def test_it_ends_within_100_ms_of_the_last_close(lab):
    """Up to three tries: another process may hold the CPU for longer than that."""
    delays = []
    for _ in range(3):
        target = lab.target()
        proxy = lab.proxy(target)
        pairs = [lab.pair(proxy, target) for _ in range(3)]
        proxy.terminate()
        proxy.await_line("drain")
        time.sleep(0.3)
        for client, server in pairs:
            client.close()
            expect_eof(server)
            server.close()
        closed = time.monotonic()
        delays.append(proxy.await_exit(0) - closed)
        if delays[-1] <= 0.1 * PATIENCE:
            return
    raise AssertionError(f"ended {[f'{delay * 1000:.0f} ms' for delay in delays]} after the last")


def test_metrics_answer_until_the_end_and_show_the_drain(lab):
    target = lab.target()
    proxy = lab.proxy(target)
    client, server = lab.pair(proxy, target)
    assert proxy.scrape().matching("tcp_proxy_draining"), "missing before the drain"
    assert proxy.value("tcp_proxy_draining") == 0
    proxy.terminate()
    await_refusal(proxy)
    proxy.await_value(1, "tcp_proxy_draining")
    for number in range(10):
        client.sendall(b"bytes")
        assert receive_exactly(server, 5) == b"bytes"
        proxy.await_value(5 * (number + 1), "inbound_bytes_count")
    assert proxy.value("tcp_proxy_connections_active") == 1
    server.close()
    expect_eof(client)
    assert proxy.running()
    proxy.scrape()
    client.close()
    proxy.await_exit(0)


def test_half_closed_connection_is_waited_for(lab):
    target = lab.target()
    proxy = lab.proxy(target)
    client, server = lab.pair(proxy, target)
    client.shutdown(socket.SHUT_WR)
    expect_eof(server)
    proxy.terminate()
    await_refusal(proxy)
    send_stream_then_close(server)
    receive_stream(client, "reply", 1 * MIB, until_eof=True)
    client.close()
    proxy.await_exit(0)


def send_stream_then_close(sock: socket.socket) -> None:
    def send() -> None:
        send_stream(sock, "reply", 1 * MIB)
        sock.close()

    threading.Thread(target=send, daemon=True).start()


def test_connection_that_is_being_dialled_is_waited_for(lab):
    target = lab.full_target()
    proxy = lab.proxy(target)
    client = lab.client(proxy)
    client.sendall(b"accepted before the signal")
    proxy.await_value(1, "tcp_proxy_target_connect_attempts_total")
    proxy.terminate()
    await_refusal(proxy)
    target.make_room()
    server = target.accept_live()
    assert receive_exactly(server, 26) == b"accepted before the signal"
    server.sendall(b"served")
    server.close()
    assert receive_all(client) == b"served"
    client.close()
    proxy.await_exit(0)


def test_second_signal_ends_at_once_with_status_1(lab):
    target = lab.target()
    proxy = lab.proxy(target)
    client, server = lab.pair(proxy, target)
    client.sendall(b"x")
    assert receive_exactly(server, 1) == b"x"
    proxy.terminate()
    proxy.await_line("drain")
    await_refusal(proxy)
    began = time.monotonic()
    proxy.terminate()
    ended = proxy.await_exit(1)
    assert ended - began < 1 * PATIENCE
    expect_end(client)
    expect_end(server)


def test_drain_timeout_cuts_what_is_left(lab):
    target = lab.target()
    proxy = lab.proxy(target, "--drain-timeout=1s")
    client, server = lab.pair(proxy, target)
    began = time.monotonic()
    proxy.terminate()
    ended = proxy.await_exit(0, 1)
    assert 0.9 <= ended - began <= 2 * PATIENCE, f"ended after {ended - began:.2f} s, not 1 s"
    expect_end(client)
    expect_end(server)
    assert proxy.lines("drain-timeout"), "no line tells who was cut off and why"


def test_drain_timeout_does_not_delay_a_drain_that_is_done(lab):
    target = lab.target()
    proxy = lab.proxy(target, "--drain-timeout=1min")
    client, server = lab.pair(proxy, target)
    began = time.monotonic()
    proxy.terminate()
    client.close()
    expect_eof(server)
    server.close()
    assert proxy.await_exit(0) - began < 5 * PATIENCE


def test_progress_is_reported_every_few_seconds(lab):
    target = lab.target()
    proxy = lab.proxy(target)
    pairs = [lab.pair(proxy, target) for _ in range(3)]
    before = len(proxy.lines("drain"))
    proxy.terminate()
    eventually(lambda: len(proxy.lines("drain")) >= before + 3, "progress lines", 20 * PATIENCE)
    assert any("3" in line for line in proxy.lines("drain")[before:]), "it does not say how many"
    assert len(proxy.lines("drain")) - before < 12, "more lines than a person wants"
    proxy.assert_idle()
    for client, server in pairs:
        client.close()
        server.close()
    proxy.await_exit(0)


def test_idle_drain_does_not_spin_and_relays_with_the_same_delay(lab):
    echo = lab.echo()
    proxy = lab.proxy(echo)
    client = lab.client(proxy)
    echo_once(client)
    proxy.terminate()
    await_refusal(proxy)
    proxy.assert_idle(seconds=1)
    began = time.monotonic()
    for _ in range(50):
        echo_once(client)
    assert time.monotonic() - began < 2 * PATIENCE
    client.close()
    proxy.await_exit(0)


def test_clients_in_the_backlog_at_the_signal_are_served_or_told(lab: Lab):
    """None may hang: a client is relayed, or its connection ends."""
    echo = lab.echo()
    proxy = lab.proxy(echo)
    clients = []
    for number in range(100):
        try:
            clients.append(lab.client(proxy))
        except ConnectionError:
            pass
        if number == 50:
            proxy.terminate()
    for client in clients:
        try:
            client.sendall(b"ping")
            assert client.recv(4, socket.MSG_WAITALL) in (b"ping", b"")
        except ConnectionError:
            pass
        client.close()
    proxy.await_exit(0)


def test_restart_on_the_same_port_at_once(lab):
    """Connections in TIME-WAIT do not hold the port (SO_REUSEADDR: socket(7))."""
    echo = lab.echo()
    proxy = lab.proxy(echo)
    address = proxy.listen_address
    client = lab.client(proxy)
    echo_once(client)
    proxy.terminate()
    proxy.await_line("drain")
    proxy.terminate()  # the proxy closes first, so that TIME-WAIT is on its side
    proxy.await_exit(1)
    again = lab.proxy(echo, listen=f"{address[0]}:{address[1]}")
    echo_once(lab.client(again))
