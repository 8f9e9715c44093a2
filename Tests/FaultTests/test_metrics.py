"""What /metrics says: the seed's eight word for word, and ours, to the byte."""

from __future__ import annotations

import math
import re
import socket
import subprocess
import time
import uuid

import pytest

from harness import (
    MIB, Lab, Metrics, Proxy, echo_once, eventually, expect_end, expect_eof, expect_reset,
    parallel, receive_exactly, receive_stream, reset, send_stream,
)
from namespaces import own_network

SEED = {  # name: (type, help, labelled with the id)
    "active_inbound_connections":
        ("gauge", "The number of currently active inbound connections", True),
    "active_outbound_connections":
        ("gauge", "The number of currently active outbound connections", True),
    "inbound_bytes_count":
        ("counter", "The total number of bytes sent and received on inbound connections", True),
    "outbound_bytes_count":
        ("counter", "The total number of bytes sent and received on outbound connections", True),
    "inbound_connection_count":
        ("counter", "The total number of inbound connections established", True),
    "outbound_connection_count":
        ("counter", "The total number of outbound connections established", True),
    "promhttp_metric_handler_requests_in_flight":
        ("gauge", "Current number of scrapes being served.", False),
    "promhttp_metric_handler_requests_total":
        ("counter", "Total number of scrapes by HTTP status code.", False),
}

OURS = {  # name: (type, further labels)
    "tcp_proxy_connections_accepted_total": ("counter", set()),
    "tcp_proxy_connections_active": ("gauge", set()),
    "tcp_proxy_connections_closed_total": ("counter", {"reason"}),
    "tcp_proxy_connections_rejected_total": ("counter", {"reason"}),
    "tcp_proxy_bytes_total": ("counter", {"direction"}),
    "tcp_proxy_spliced_bytes_total": ("counter", None),
    "tcp_proxy_target_connect_attempts_total": ("counter", set()),
    "tcp_proxy_target_connect_failures_total": ("counter", {"error"}),
    "tcp_proxy_connection_duration_seconds": ("histogram", set()),
    "tcp_proxy_target_connect_duration_seconds": ("histogram", set()),
    "tcp_proxy_accept_errors_total": ("counter", {"error"}),
}

PROCESS = [
    "process_cpu_seconds_total", "process_open_fds", "process_max_fds",
    "process_virtual_memory_bytes", "process_resident_memory_bytes",
    "process_start_time_seconds",
]

REASONS = {
    "client-closed", "target-closed", "client-reset", "target-reset", "client-timeout",
    "target-timeout", "client-left", "target-refused", "target-unreachable",
    "target-connect-timeout", "target-unresolved", "target-connect-failed", "idle-timeout",
    "drain-timeout", "stopped", "no-descriptors", "no-memory", "internal-error", "lost",
}


def test_the_seeds_eight_are_there_at_zero_from_the_first_scrape(lab):
    proxy = lab.proxy(lab.echo(), await_metrics=False)
    metrics = proxy.scrape()
    ids = set()
    for name, (kind, words, has_id) in SEED.items():
        assert metrics.type.get(name) == kind, name
        assert metrics.help.get(name) == words, name
        assert metrics.matching(name), f"{name} has no sample"
        if has_id:
            ((labels, value),) = metrics.matching(name)
            assert set(labels) == {"id"} and value == 0, (name, labels, value)
            ids.add(labels["id"])
    assert len(ids) == 1
    assert str(uuid.UUID(ids.pop())), "the id is a UUID"
    codes = {labels["code"] for labels in metrics.labels("promhttp_metric_handler_requests_total")}
    assert codes == {"200", "500", "503"}
    assert metrics.labels("promhttp_metric_handler_requests_in_flight") == [{}]


def test_id_is_another_one_in_each_process_and_the_same_in_each_scrape(lab):
    echo = lab.echo()
    first, second = lab.proxy(echo), lab.proxy(echo)

    def identity(proxy: Proxy) -> str:
        return proxy.scrape().labels("inbound_bytes_count")[0]["id"]

    assert identity(first) == identity(first) != identity(second)


def test_scrapes_are_counted_by_code(lab):
    proxy = lab.proxy(lab.echo(), await_metrics=False)
    name = "promhttp_metric_handler_requests_total"
    assert proxy.scrape().value(name, code="200") in (0, 1)  # promhttp counts after the answer
    before = proxy.value(name, code="200")
    for _ in range(5):
        proxy.scrape()
    assert proxy.value(name, code="200") == before + 6
    assert proxy.scrape().value("promhttp_metric_handler_requests_in_flight") in (0, 1)


def test_ours_are_there_with_help_type_and_route(lab):
    target = lab.unlistened()
    proxy = lab.proxy(target)
    lab.expect_refusal(proxy)  # so that labelled families have a sample
    proxy.await_closed(target_refused=1)
    metrics = proxy.scrape()
    for name, (kind, further) in OURS.items():
        assert metrics.type.get(name) == kind, name
        assert len(metrics.help.get(name, "").split()) >= 3, f"HELP of {name}"
        sample = f"{name}_count" if kind == "histogram" else name
        for labels in metrics.labels(sample):
            assert labels["route"] == "default", (name, labels)
            if further is not None:
                assert set(labels) == {"route"} | further, (name, labels)
    for name in ("tcp_proxy_draining", "tcp_proxy_log_records_dropped_total"):
        assert metrics.matching(name), name
        assert metrics.value(name) == 0
    assert metrics.value("tcp_proxy_build_info") == 1
    assert metrics.labels("tcp_proxy_build_info")[0]["version"]
    reasons = {labels["reason"] for labels in metrics.labels("tcp_proxy_connections_closed_total")}
    assert reasons <= REASONS, reasons - REASONS
    directions = {labels["direction"] for labels in metrics.labels("tcp_proxy_bytes_total")}
    assert directions == {"in", "out"}


def test_process_metrics_agree_with_proc(lab):
    echo = lab.echo()
    proxy = lab.proxy(echo)
    metrics = proxy.scrape()
    for name in PROCESS:
        assert name in metrics.help and metrics.matching(name), name
    descriptors = len(proxy.descriptor_numbers())
    assert abs(metrics.value("process_open_fds") - descriptors) <= 3
    resident = proxy.resident_bytes()
    assert 0.7 * resident <= metrics.value("process_resident_memory_bytes") <= 1.3 * resident
    assert abs(metrics.value("process_start_time_seconds") - time.time()) < 60
    assert metrics.value("process_cpu_seconds_total") <= proxy.cpu_seconds() + 0.05
    clients = [lab.client(proxy) for _ in range(10)]
    for client in clients:
        echo_once(client)
    assert proxy.value("process_open_fds") >= descriptors + 20 - 3


def test_promtool_finds_nothing_wrong(lab):
    echo = lab.echo()
    proxy = lab.proxy(echo)
    for state in ("at start", "with traffic"):
        text = proxy.scrape().text
        result = subprocess.run(
            ["promtool", "check", "metrics"], input=text, capture_output=True, text=True,
        )
        complaints = [
            line for line in (result.stdout + result.stderr).splitlines()
            # The seed's names are not ours to choose; promtool dislikes counters without _total
            # and names that end in _count.
            if line and line.split()[0] not in SEED
        ]
        assert complaints == [], f"{state}: {complaints}"
        assert result.returncode in (0, 3), result.stderr
        client = lab.client(proxy)
        echo_once(client)
        client.close()
        proxy.await_closed(client_closed=1) if state == "at start" else None


def test_text_is_well_formed(lab):
    proxy = lab.proxy(lab.echo())
    status, headers, body = proxy.request()
    assert status == 200
    assert re.fullmatch(
        r"text/plain; version=0\.0\.4(; charset=utf-8)?.*", headers["content-type"]
    )
    text = body.decode()
    assert text.endswith("\n")
    metrics = Metrics(text)
    seen = set()
    current = None
    for line in text.splitlines():
        if line.startswith("# HELP "):
            current = line.split()[2]
            assert current not in seen, f"{current} appears twice"
            seen.add(current)
        elif not line.startswith("#"):
            name = re.split(r"[{ ]", line)[0]
            base = re.sub(r"_(bucket|sum|count)$", "", name)
            assert current in (name, base), f"{name} outside its family"
    assert set(metrics.type) == set(metrics.help)
    samples = [(name, tuple(sorted(labels.items()))) for name, labels, _ in metrics.samples]
    assert len(samples) == len(set(samples)), "a sample appears twice"


def test_bytes_count_to_the_byte_while_the_connection_is_open(lab):
    target = lab.target()
    proxy = lab.proxy(target)
    client, server = lab.pair(proxy, target)
    sent_in = sent_out = 0
    for size_in, size_out in [(1, 0), (0, 1), (12345, 54321), (5 * MIB, 3 * MIB), (7, 7)]:
        parallel(
            lambda: send_stream(client, "in", size_in),
            lambda: receive_stream(server, "in", size_in),
            lambda: send_stream(server, "out", size_out),
            lambda: receive_stream(client, "out", size_out),
        )
        sent_in += size_in
        sent_out += size_out
        proxy.await_value(sent_in, "inbound_bytes_count")
        proxy.await_value(sent_out, "outbound_bytes_count")
        metrics = proxy.scrape()
        assert metrics.value("tcp_proxy_bytes_total", direction="in") == sent_in
        assert metrics.value("tcp_proxy_bytes_total", direction="out") == sent_out
    spliced = proxy.value("tcp_proxy_spliced_bytes_total")
    assert 0 < spliced <= sent_in + sent_out, "bulk did not go through a pipe"
    for name in ("active_inbound_connections", "active_outbound_connections"):
        assert proxy.value(name) == 1
    client.close()
    server.close()
    proxy.await_value(0, "active_inbound_connections")
    proxy.await_value(0, "active_outbound_connections")
    metrics = proxy.scrape()
    assert metrics.value("inbound_bytes_count") == sent_in
    assert metrics.value("outbound_bytes_count") == sent_out


def test_counters_never_go_down_and_connections_add_up(lab):
    echo = lab.echo()
    proxy = lab.proxy(echo)
    last: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}
    for round_number in range(30):
        clients = [lab.client(proxy) for _ in range(4)]
        for number, client in enumerate(clients):
            echo_once(client)
            reset(client) if number == 0 else client.close()
        metrics = proxy.scrape()
        counters = {name for name, kind in metrics.type.items() if kind == "counter"}
        for name, labels, value in metrics.samples:
            if name in counters:
                key = (name, tuple(sorted(labels.items())))
                assert value >= last.get(key, 0), f"{key} went down"
                last[key] = value
    proxy.await_value(0, "tcp_proxy_connections_active")
    metrics = proxy.scrape()
    assert metrics.value("tcp_proxy_connections_accepted_total") == 120
    assert sum(metrics.closed().values()) == 120
    assert metrics.value("inbound_connection_count") == 120
    assert metrics.value("outbound_connection_count") == 120
    assert metrics.value("tcp_proxy_connection_duration_seconds_count") == 120
    assert metrics.value("tcp_proxy_target_connect_duration_seconds_count") == 120


@pytest.mark.parametrize("name", [
    "tcp_proxy_connection_duration_seconds", "tcp_proxy_target_connect_duration_seconds",
])
def test_histogram_is_cumulative_and_closed_by_infinity(lab, name):
    target = lab.target()
    proxy = lab.proxy(target)
    client, server = lab.pair(proxy, target)
    time.sleep(0.3)
    client.close()
    expect_eof(server)
    server.close()
    proxy.await_value(1, f"{name}_count")
    metrics = proxy.scrape()
    buckets = [
        (float(labels["le"].replace("+Inf", "inf")), value)
        for labels, value in metrics.matching(f"{name}_bucket")
    ]
    assert buckets == sorted(buckets), "bounds and counts rise"
    assert buckets[-1] == (math.inf, 1)
    total = metrics.value(f"{name}_sum")
    assert all(count == (total <= bound) for bound, count in buckets), (total, buckets)
    if name == "tcp_proxy_connection_duration_seconds":
        assert 0.3 <= total < 5, f"a duration of {total} s"
    else:
        assert 0 < total < 1, f"a dial of {total} s"


# --- reasons: each scenario ends one connection --------------------------------------------------


def client_closed(lab: Lab) -> Proxy:
    target = lab.target()
    proxy = lab.proxy(target)
    client, server = lab.pair(proxy, target)
    client.close()
    expect_eof(server)
    server.close()
    return proxy


def target_closed(lab: Lab) -> Proxy:
    target = lab.target()
    proxy = lab.proxy(target)
    client, server = lab.pair(proxy, target)
    server.close()
    expect_eof(client)
    client.close()
    return proxy


def client_reset(lab: Lab) -> Proxy:
    target = lab.target()
    proxy = lab.proxy(target)
    client, server = lab.pair(proxy, target)
    client.sendall(b"x")  # once it has arrived, the dial is surely over
    assert receive_exactly(server, 1) == b"x"
    reset(client)
    expect_reset(server)
    return proxy


def target_reset(lab: Lab) -> Proxy:
    target = lab.target()
    proxy = lab.proxy(target)
    client, server = lab.pair(proxy, target)
    client.sendall(b"x")  # once it has arrived, the dial is surely over
    assert receive_exactly(server, 1) == b"x"
    reset(server)
    expect_reset(client)
    return proxy


def target_refused(lab: Lab) -> Proxy:
    proxy = lab.proxy(lab.unlistened())
    lab.expect_refusal(proxy)
    return proxy


def target_connect_timeout(lab: Lab) -> Proxy:
    proxy = lab.proxy(lab.full_target(), "--connect-timeout=300ms")
    lab.expect_refusal(proxy)
    return proxy


def client_left(lab: Lab) -> Proxy:
    target = lab.full_target()
    proxy = lab.proxy(target)
    client = lab.client(proxy)
    proxy.await_value(1, "tcp_proxy_target_connect_attempts_total")
    reset(client)
    return proxy


def idle_timeout(lab: Lab) -> Proxy:
    target = lab.target()
    proxy = lab.proxy(target, "--idle-timeout=300ms")
    client, server = lab.pair(proxy, target)
    expect_end(client)
    expect_end(server)
    return proxy


@pytest.mark.parametrize("scenario", [
    client_closed, target_closed, client_reset, target_reset, target_refused,
    target_connect_timeout, client_left, idle_timeout,
], ids=lambda scenario: scenario.__name__.replace("_", "-"))
def test_reason_of_the_end(lab, scenario):
    proxy = scenario(lab)
    proxy.await_closed(**{scenario.__name__: 1})
    metrics = proxy.scrape()
    assert metrics.value("tcp_proxy_connections_accepted_total") == 1
    assert metrics.value("tcp_proxy_connections_active") == 0
    failed = metrics.value("tcp_proxy_target_connect_failures_total")
    assert failed == scenario.__name__.startswith(("target_refused", "target_connect"))
    assert metrics.value("tcp_proxy_connection_duration_seconds_count") in (0, 1)


def test_unreachable_target(lab, folder):
    """A network namespace whose routing table rejects the target: no packet leaves."""
    proxy = lab.proxy(
        "192.0.2.1:80", prefix=own_network("ip route add unreachable 192.0.2.0/24"),
        listen=f"unix:{folder}/listen", await_metrics=False,  # a path works across namespaces
    )
    expect_end(lab.client(proxy))  # a unix client: AF_UNIX knows no RST
    host, port = proxy.metrics_address
    result = subprocess.run(
        ["nsenter", f"--target={proxy.pid}", "--net", "curl", "-s",
         f"http://{host}:{port}/metrics"],
        capture_output=True, text=True, check=True,
    )
    assert Metrics(result.stdout).closed() == {"target-unreachable": 1}


def test_no_label_carries_a_clients_address(lab):
    echo = lab.echo()
    proxy = lab.proxy(echo)
    client = lab.client(proxy)
    echo_once(client)
    port = client.getsockname()[1]
    reset(client)
    proxy.await_value(0, "tcp_proxy_connections_active")
    for name, labels, _ in proxy.scrape().samples:
        for value in labels.values():
            assert str(port) not in value and "127.0.0.1" not in value, (name, labels)


def test_scrapes_while_the_relay_is_busy_see_numbers_that_rise(lab):
    target = lab.target()
    proxy = lab.proxy(target)
    client, server = lab.pair(proxy, target)
    count = 64 * MIB
    seen: list[float] = []

    def watch() -> None:
        while not seen or seen[-1] < count:
            seen.append(proxy.value("inbound_bytes_count"))

    parallel(
        lambda: send_stream(client, "busy", count, finish=True),
        lambda: receive_stream(server, "busy", count, until_eof=True),
        watch,
    )
    assert seen == sorted(seen) and seen[-1] == count
    assert any(0 < value < count for value in seen), "bytes count only at the end"


def test_socket_options_of_both_sides(lab):
    """TCP_NODELAY at once; keep-alive once a connection has lived a while: tcp(7)."""
    echo = lab.echo()
    proxy = lab.proxy(echo)
    client = lab.client(proxy)
    echo_once(client)
    numbers = proxy.connected("01")
    assert len(numbers) == 2, f"one socket for each side, not {numbers}"

    def option(level: int, name: int) -> list[int]:
        return [proxy.socket_option(number, level, name) for number in numbers]

    assert option(socket.IPPROTO_TCP, socket.TCP_NODELAY) == [1, 1]
    eventually(
        lambda: option(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == [1, 1], "keep-alive on both sides"
    )
    # How long a peer that is gone is believed in; the kernel's own default is two hours.
    assert max(option(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE)) < 7200


@pytest.mark.parametrize("finisher", ["client", "target"])
def test_half_closed_connection_does_not_wait_for_ever_for_a_peer_that_is_gone(lab, finisher):
    """TCP_USER_TIMEOUT bounds how long bytes stay unacknowledged: tcp(7)."""
    target = lab.target()
    proxy = lab.proxy(target)
    client, server = lab.pair(proxy, target)
    first, other = (client, server) if finisher == "client" else (server, client)
    first.shutdown(socket.SHUT_WR)
    expect_eof(other)

    def bounded() -> bool:
        numbers = _tcp_descriptors(proxy)
        assert len(numbers) == 2, numbers
        for number in numbers:
            assert proxy.socket_option(number, socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
            assert proxy.socket_option(number, socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) > 0
        return True

    eventually(bounded, "keep-alive and a bound on both sides")
    other.close()
    expect_eof(first)


def _tcp_descriptors(proxy: Proxy) -> list[int]:
    return proxy.connected("01", "04", "05", "08")  # established, FIN-WAIT-1 and -2, CLOSE-WAIT


def test_metrics_off_the_relays_port(lab):
    """An HTTP request to the listening port is relayed like any bytes."""
    target = lab.target()
    proxy = lab.proxy(target)
    client, server = lab.pair(proxy, target)
    request = b"GET /metrics HTTP/1.1\r\n\r\n"
    client.sendall(request)
    assert receive_exactly(server, len(request)) == request
    eventually(lambda: proxy.value("inbound_bytes_count") == len(request), "the bytes to count")
