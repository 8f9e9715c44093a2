"""Out of descriptors: it stays up, says so once, does not spin, and comes back by itself."""

import resource
import socket
import time

import pytest

from harness import (
    DEADLINE, KIB, MIB, Lab, Proxy, always, cycle, echo_once, eventually, fill, is_open, parallel,
    receive_exactly, receive_stream, reset, send_stream,
)

EXHAUSTION = r"out of descriptors|EMFILE|too many open files"


def crowd(lab: Lab, proxy: Proxy, count: int) -> list[socket.socket]:
    """Clients that sent one byte each; the proxy may serve, hold or refuse any of them."""
    clients = []
    for _ in range(count):
        try:
            client = lab.client(proxy)
            client.sendall(b"x")
        except OSError:
            continue  # refused
        clients.append(client)
    return clients


def answered(clients: list[socket.socket]) -> list[socket.socket]:
    """Those whose byte came back from the echo."""
    served = []
    for client in clients:
        try:
            if client.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT):
                served.append(client)
        except OSError:
            pass
    return served


def settle(clients: list[socket.socket]) -> list[socket.socket]:
    """Waits until the number of served clients has stopped growing."""
    for client in clients:
        client.setblocking(False)
    last, since = -1, time.monotonic()

    def quiet() -> bool:
        nonlocal last, since
        now = len(answered(clients))
        if now != last:
            last, since = now, time.monotonic()
        return time.monotonic() - since > 0.5

    eventually(quiet, "the number of served clients to settle")
    return answered(clients)


def assert_still_well(proxy: Proxy, served: list[socket.socket]) -> None:
    """What must hold while descriptors are out."""
    assert proxy.running()
    for _ in range(3):
        proxy.scrape(timeout=3)
    said = proxy.lines(EXHAUSTION)
    assert 1 <= len(said) <= 2, f"it should say so once: {said}"
    proxy.assert_idle(seconds=1)
    for client in served:
        client.settimeout(DEADLINE)
        assert receive_exactly(client, 1) == b"x"
        echo_once(client, b"still here")
    always(proxy.running, "the process is up", 0.5)
    assert len(proxy.lines(EXHAUSTION)) == len(said), "it says so again and again"


@pytest.mark.parametrize("nofile", [100, 101, 102, 103])
def test_low_limit_serves_what_fits_and_comes_back(lab, nofile):
    """Odd and even limits: accept, the dial or a pipe may be the one that wants the last one."""
    echo = lab.echo()
    proxy = lab.proxy(echo, nofile=nofile)
    clients = crowd(lab, proxy, 60)
    served = settle(clients)
    assert 5 <= len(served) < 50, f"{len(served)} served with {nofile} descriptors"
    assert_still_well(proxy, served)

    for client in served:
        client.close()
    # Those that were held in the backlog are served now; those refused have been told.
    waiting = [client for client in clients if client not in served]
    held = [client for client in waiting if is_open(client)]
    if held:
        eventually(lambda: answered(held), "clients in the backlog to be served", 3 * DEADLINE)
    for client in waiting:
        client.close()
    eventually(lambda: proxy.value("tcp_proxy_connections_active") == 0, "all to end")
    for _ in range(20):
        with socket.create_connection(proxy.listen_address, timeout=DEADLINE) as client:
            echo_once(client)
    assert len(proxy.lines(EXHAUSTION)) <= 4


def test_bulk_goes_on_when_there_is_no_descriptor_for_a_pipe(lab):
    """Without a pipe bytes are copied or wait; they are not lost and the connection lives."""
    echo = lab.echo()
    target = lab.target()
    proxy = lab.proxy(target, nofile=60)
    client, server = lab.pair(proxy, target, receive_buffer=32 * KIB)
    crowd(lab, proxy, 60)
    proxy.await_line(EXHAUSTION)
    count = 4 * MIB
    parallel(
        lambda: send_stream(client, "up", count, finish=True),
        lambda: receive_stream(
            server, "up", count, chunks=cycle(40000, 3), pause=0.0005, until_eof=True
        ),
        lambda: send_stream(server, "down", count, finish=True),
        lambda: receive_stream(
            client, "down", count, chunks=cycle(40000, 3), pause=0.0005, until_eof=True
        ),
    )
    del echo


def test_limit_that_shrinks_at_run_time_and_comes_back(lab):
    echo = lab.echo()
    proxy = lab.proxy(echo)
    first = [lab.client(proxy) for _ in range(10)]
    for client in first:
        echo_once(client)
    _, hard = resource.prlimit(proxy.pid, resource.RLIMIT_NOFILE)
    highest = max(proxy.descriptor_numbers())
    resource.prlimit(proxy.pid, resource.RLIMIT_NOFILE, (highest + 1, hard))

    late = crowd(lab, proxy, highest)
    served = settle(late)
    assert len(served) < len(late), "the limit had no effect"
    for client in first:
        echo_once(client, b"undisturbed")
    assert_still_well(proxy, served)

    resource.prlimit(proxy.pid, resource.RLIMIT_NOFILE, (hard, hard))
    held = [client for client in late if client not in served and is_open(client)]
    if held:
        eventually(
            lambda: len(answered(held)) == len(held), "all held clients to be served",
            3 * DEADLINE,
        )
    client = lab.client(proxy)
    echo_once(client)
    for client in first:
        echo_once(client, b"still undisturbed")


def test_resets_while_descriptors_are_out_do_not_confuse_it(lab):
    echo = lab.echo()
    proxy = lab.proxy(echo, nofile=60)
    for _ in range(3):
        clients = crowd(lab, proxy, 60)
        settle(clients)
        for client in clients:
            reset(client)
    eventually(lambda: proxy.value("tcp_proxy_connections_active") == 0, "all to end")
    with socket.create_connection(proxy.listen_address, timeout=DEADLINE) as client:
        echo_once(client)
    proxy.assert_idle()


def test_bulk_that_is_over_takes_no_descriptors_from_later_connections(lab):
    """Pipes kept for the next bulk give way to connections that need the descriptors."""
    echo = lab.echo()
    proxy = lab.proxy(echo, "--workers=1", nofile=64)

    def capacity() -> int:
        clients = crowd(lab, proxy, 40)
        served = len(settle(clients))
        assert served < len(clients), "the limit had no effect"
        for client in clients:
            reset(client)
        eventually(lambda: proxy.value("tcp_proxy_connections_active") == 0, "all to end")
        return served

    fresh = capacity()
    before = proxy.descriptors()["pipe"]
    bulk = [lab.client(proxy) for _ in range(4)]
    counts = parallel(*(
        (lambda client=client, name=name: fill(client, f"bulk {name}"))
        for name, client in enumerate(bulk)
    ))
    assert proxy.descriptors()["pipe"] >= before + 8, "the bulk phase used no pipes"
    for client in bulk:
        client.shutdown(socket.SHUT_WR)
    parallel(*(
        (lambda client=client, name=name, count=count: receive_stream(
            client, f"bulk {name}", count, until_eof=True
        ))
        for name, (client, count) in enumerate(zip(bulk, counts))
    ))
    for client in bulk:
        client.close()
    proxy.await_value(0, "tcp_proxy_connections_active")
    after = capacity()
    assert after >= fresh, f"{after} connections served after the bulk, {fresh} before"
