"""iperf3 through the proxy in each direction; its count of bytes and ours agree."""

from __future__ import annotations

import json

import pytest

from clients import free_port, run, server, tool

SIZE = 256 * 1024 * 1024  # bytes per run
CONTROL = 256 * 1024  # bytes: more than iperf3's control connection ever carries


@pytest.fixture
def iperf3(folder):
    port = free_port()
    with server(
        folder / "iperf3.log", tool("iperf3"), "--server", "--bind", "127.0.0.1", "--port",
        str(port), port=port,
    ):
        yield port


@pytest.mark.parametrize("streams", [1, 4])
@pytest.mark.parametrize("way", ["to the target", "from the target"])
def test_bulk_in_each_direction(lab, iperf3, way, streams):
    proxy = lab.proxy(("127.0.0.1", iperf3))
    report = json.loads(run(
        tool("iperf3"), "--client", "127.0.0.1", "--port", str(proxy.listen_address[1]),
        "--bytes", str(SIZE), "--parallel", str(streams), "--json",
        *(["--reverse"] if way == "from the target" else []),
    ))
    assert "error" not in report, report["error"]
    sent = report["end"]["sum_sent"]["bytes"]
    received = report["end"]["sum_received"]["bytes"]
    assert 0 < received <= sent
    proxy.await_value(0, "tcp_proxy_connections_active")
    metrics = proxy.scrape()
    data, other = "inbound_bytes_count", "outbound_bytes_count"
    if way == "from the target":
        data, other = other, data
    # The receiver stops counting when the control connection says so, before the last bytes.
    assert received <= metrics.value(data) <= sent + CONTROL
    assert metrics.value(other) < CONTROL
    assert metrics.value("tcp_proxy_connections_accepted_total") == streams + 1


def test_both_directions_at_once(lab, iperf3):
    proxy = lab.proxy(("127.0.0.1", iperf3))
    report = json.loads(run(
        tool("iperf3"), "--client", "127.0.0.1", "--port", str(proxy.listen_address[1]),
        "--time", "2", "--bidir", "--json",
    ))
    assert "error" not in report, report["error"]
    metrics = proxy.scrape()
    assert metrics.value("inbound_bytes_count") >= report["end"]["sum_received"]["bytes"] > 0
    assert (
        metrics.value("outbound_bytes_count")
        >= report["end"]["sum_received_bidir_reverse"]["bytes"] > 0
    )
