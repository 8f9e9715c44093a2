"""A real Prometheus scrapes the proxy, in the format that it prefers, and answers queries."""

from __future__ import annotations

import json
import subprocess
import urllib.error
import urllib.parse
import urllib.request

import pytest

from clients import free_port, server, tool
from harness import DEADLINE, echo_once, eventually, host_port


def test_promtool_finds_nothing_wrong_with_our_own_metrics(lab):
    """The seed's eight have fixed names, some of which promtool would rather see changed."""
    echo = lab.echo()
    proxy = lab.proxy(echo)
    client = lab.client(proxy)
    echo_once(client)
    client.close()
    proxy.await_closed(client_closed=1)
    own = []
    keep = False
    for line in proxy.scrape().text.splitlines(keepends=True):
        if line.startswith("# HELP "):
            keep = line.split()[2].startswith(("tcp_proxy_", "process_"))
        if keep:
            own.append(line)
    result = subprocess.run(
        [tool("promtool"), "check", "metrics"], input="".join(own), capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout + result.stderr == ""


@pytest.fixture
def prometheus(folder):
    """Starts Prometheus for one target; returns a function that asks it a query."""
    running = []

    def start(target: str):
        port = free_port()
        (folder / "prometheus.yml").write_text(json.dumps({  # JSON is YAML
            "global": {"scrape_interval": "1s", "scrape_timeout": "1s"},
            "scrape_configs": [{"job_name": "proxy", "static_configs": [{"targets": [target]}]}],
        }))
        context = server(
            folder / "prometheus.log", tool("prometheus"),
            f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data",
            f"--web.listen-address=127.0.0.1:{port}", "--log.level=warn", port=port,
            cwd=folder,
        )
        context.__enter__()
        running.append(context)

        def query(expression: str) -> float | None:
            url = f"http://127.0.0.1:{port}/api/v1/query?" + urllib.parse.urlencode(
                {"query": expression}
            )
            try:
                with urllib.request.urlopen(url, timeout=DEADLINE) as answer:
                    result = json.load(answer)["data"]["result"]
            except urllib.error.HTTPError as error:
                assert error.code == 503, f"{expression}: {error}"  # not ready yet
                return None
            return float(result[0]["value"][1]) if result else None

        return query

    yield start
    for context in running:
        context.__exit__(None, None, None)


def test_prometheus_scrapes_it_and_answers_queries(lab, prometheus):
    echo = lab.echo()
    proxy = lab.proxy(echo)
    query = prometheus(host_port(proxy.metrics_address))
    client = lab.client(proxy)
    echo_once(client, b"x" * 1234)

    def answers(expression: str, expected: float) -> None:
        eventually(
            lambda: query(expression) == expected, f"{expression} = {expected}", 3 * DEADLINE, 0.3
        )

    answers("up", 1)
    answers("inbound_bytes_count", 1234)
    answers("outbound_bytes_count", 1234)
    answers("active_inbound_connections", 1)
    answers('tcp_proxy_bytes_total{route="default",direction="in"}', 1234)
    answers("tcp_proxy_connections_active", 1)
    answers("count(tcp_proxy_build_info)", 1)
    client.close()
    answers("tcp_proxy_connections_active", 0)
    answers('tcp_proxy_connections_closed_total{reason="client-closed"}', 1)
    answers("tcp_proxy_connection_duration_seconds_count", 1)
    median = query("histogram_quantile(0.5, tcp_proxy_connection_duration_seconds_bucket)")
    assert median is not None and median > 0
    assert query("process_open_fds") > 0
    assert query("time() - process_start_time_seconds") < 120
