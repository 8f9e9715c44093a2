"""The metrics port trusts nobody, and nothing done to it slows the relay."""

import contextlib
import socket
import time

import pytest

from harness import (
    DEADLINE, KIB, MIB, PATIENCE, Lab, Metrics, Proxy, echo_once, eventually, expect_end, parallel,
)


def dial(lab: Lab, proxy: Proxy) -> socket.socket:
    sock = socket.create_connection(proxy.metrics_address, timeout=DEADLINE)
    lab.sockets.append(sock)
    return sock


def ask(lab: Lab, proxy: Proxy, request: bytes) -> bytes:
    """Sends raw bytes, returns all that comes until the end; a reset is an end too."""
    sock = dial(lab, proxy)
    answer = b""
    try:
        with contextlib.suppress(ConnectionError):
            sock.sendall(request)
        while part := sock.recv(64 * KIB):
            answer += part
    except ConnectionError:
        pass
    sock.close()
    return answer


def test_half_requests_time_out_after_ten_seconds_and_the_relay_does_not_notice(lab):
    """All kinds of slowness at once, so that the ten seconds are waited for once."""
    echo = lab.echo()
    proxy = lab.proxy(echo)
    began = time.monotonic()
    silent = dial(lab, proxy)
    half_line = dial(lab, proxy)
    half_line.sendall(b"GET /metr")
    half_header = dial(lab, proxy)
    half_header.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\nX-Long: ")
    half_body = dial(lab, proxy)
    half_body.sendall(b"POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nhalf")
    drip = dial(lab, proxy)
    drip.sendall(b"GET /metrics HTTP/1.1\r\nX: ")

    def dripping() -> float:
        """A byte now and then is no excuse: the whole request has ten seconds."""
        with contextlib.suppress(OSError):
            while time.monotonic() - began < 20 * PATIENCE:
                drip.sendall(b"x")
                drip.settimeout(0.5)
                with contextlib.suppress(socket.timeout):
                    if not drip.recv(4096):
                        break
        return time.monotonic() - began

    def ended(sock: socket.socket) -> float:
        expect_end(sock, within=16 * PATIENCE)
        return time.monotonic() - began

    def relay() -> float:
        client = lab.client(proxy)
        slowest = 0.0
        while time.monotonic() - began < 11:
            asked = time.monotonic()
            echo_once(client)
            slowest = max(slowest, time.monotonic() - asked)
            proxy.scrape(timeout=3)
            time.sleep(0.1)
        return slowest

    times = parallel(
        lambda: ended(silent), lambda: ended(half_line), lambda: ended(half_header), dripping,
        lambda: ended(half_body), relay,
    )
    *ends, body_end, slowest = times
    names = ["silent", "half a request line", "half a header", "a dripping header"]
    for name, took in zip(names, ends):
        assert 8 <= took <= 13 * PATIENCE, f"{name}: ended after {took:.1f} s instead of 10 s"
    # POST may be answered (405) and closed before its body is there.
    assert body_end <= 13 * PATIENCE, f"half a body: ended after {body_end:.1f} s"
    assert slowest < 0.5 * PATIENCE, f"an echo took {slowest:.2f} s meanwhile"
    proxy.assert_idle()


def test_more_than_64_connections_push_out_the_oldest_idle_one(lab):
    echo = lab.echo()
    proxy = lab.proxy(echo)
    idle = [dial(lab, proxy) for _ in range(64)]
    proxy.scrape(timeout=3)
    gone = [sock for sock in idle if _ended(sock)]
    assert gone, "a 65th connection was let in without dropping one"
    assert idle[0] in gone, "it was not the oldest that was dropped"
    more = [dial(lab, proxy) for _ in range(200)]
    for _ in range(5):
        proxy.scrape(timeout=3)

    def bounded() -> bool:
        open_now = sum(not _ended(sock) for sock in idle + more)
        assert open_now <= 64, f"{open_now} open at once"
        return True

    eventually(bounded, "at most 64 connections")
    echo_once(lab.client(proxy))
    assert proxy.running()


def _ended(sock: socket.socket) -> bool:
    sock.setblocking(False)
    try:
        return not sock.recv(1)
    except BlockingIOError:
        return False
    except OSError:
        return True


@pytest.mark.parametrize("garbage", [
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(256)),
    b"\x00" * 4096,
    b"hello there\r\n\r\n",
    b"GET\r\n\r\n",
    b"GET /metrics HTTP/9.9\r\n\r\n",
    b"GET /metrics HTTP/1.1\r\nno colon here\r\n\r\n",
    b"GET /metrics HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"\xff\xfe\xfd\r\n\r\n",
], ids=["tls", "zeros", "words", "method only", "version", "header", "length", "http2", "binary"])
def test_garbage_is_answered_400_or_closed(lab, garbage):
    proxy = lab.proxy(lab.echo())
    answer = ask(lab, proxy, garbage + b"\r\n\r\n")
    assert not answer or answer.split()[1] in (b"400", b"431", b"505"), answer[:200]
    proxy.scrape()
    proxy.assert_idle()


def test_head_404_and_405(lab):
    proxy = lab.proxy(lab.echo())
    status, headers, body = proxy.request("HEAD")
    assert (status, body) == (200, b"")
    assert headers["content-type"].startswith("text/plain; version=0.0.4")
    for path in ("/nope", "/metrics/x", "/metricsx"):
        assert proxy.request("GET", path)[0] == 404, path
    for method in ("POST", "PUT", "DELETE"):
        assert proxy.request(method)[0] == 405, method
    raw = ask(lab, proxy, b"HEAD /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    head, _, rest = raw.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200") and rest == b""
    assert proxy.request("GET", "/metrics?name=x")[0] == 200


def test_one_connection_may_scrape_many_times(lab):
    proxy = lab.proxy(lab.echo())
    sock = dial(lab, proxy)
    for _ in range(20):
        sock.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
        head = b""
        while b"\r\n\r\n" not in head:
            head += sock.recv(1)
        length = int(head.lower().partition(b"content-length:")[2].split()[0])
        body = b""
        while len(body) < length:
            body += sock.recv(length - len(body))
        Metrics(body.decode())


def test_http_1_0_is_answered_and_closed(lab):
    proxy = lab.proxy(lab.echo())
    answer = ask(lab, proxy, b"GET /metrics HTTP/1.0\r\n\r\n")
    assert b" 200 " in answer.partition(b"\r\n")[0] + b" "
    assert b"tcp_proxy_build_info" in answer


@pytest.mark.bare
def test_huge_requests_do_not_fill_the_memory(lab):
    echo = lab.echo()
    proxy = lab.proxy(echo)
    before = proxy.resident_bytes()
    huge = [
        b"GET /metrics HTTP/1.1\r\nX: " + b"x" * (16 * MIB) + b"\r\n\r\n",
        b"GET /" + b"x" * (16 * MIB) + b" HTTP/1.1\r\n\r\n",
        b"GET /metrics HTTP/1.1\r\n" + b"X-Many: y\r\n" * 500_000 + b"\r\n",
    ]
    for request in huge:
        answer = ask(lab, proxy, request)
        status = answer.split()[1:2]
        assert not answer or status[0] in (b"400", b"414", b"431"), answer[:100]
    grown = proxy.resident_bytes() - before
    assert grown < 4 * MIB, f"{grown / MIB:.1f} MiB more after huge requests"
    echo_once(lab.client(proxy))
    proxy.scrape()


def test_pipelined_requests_that_nobody_reads_do_not_fill_the_memory(lab):
    proxy = lab.proxy(lab.echo())
    proxy.scrape()
    before = proxy.resident_bytes()
    sock = socket.socket()
    lab.sockets.append(sock)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 * KIB)
    sock.connect(proxy.metrics_address)
    sock.settimeout(1)
    request = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n" * 100
    with contextlib.suppress(OSError):  # held back, or closed
        for _ in range(300):
            sock.sendall(request)
    proxy.scrape(timeout=3)
    grown = proxy.resident_bytes() - before
    assert grown < 16 * MIB, f"{grown / MIB:.1f} MiB for answers that nobody reads"


def test_client_that_sends_half_and_resets_or_closes_is_forgotten(lab):
    proxy = lab.proxy(lab.echo())
    for number in range(100):
        sock = dial(lab, proxy)
        sock.sendall(b"GET /metrics HTTP/1.1\r\n" + b"\r\n" * (number % 2))
        if number % 3 == 0:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        sock.close()
    proxy.check_descriptors_given_back()
    proxy.scrape()
