"""PostgreSQL through the proxy: pgbench without a failed transaction, COPY without a lost byte."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import signal
import subprocess

import pytest

from clients import free_port, run, server, tool, unprivileged_user
from harness import eventually


@pytest.fixture
def postgres(folder):
    """A cluster of its own in a temporary folder; yields its port."""
    user = unprivileged_user()
    folder.chmod(0o755)
    data = folder / "data"
    data.mkdir()
    if user:
        os.chown(data, user["user"], user["group"])
    run(
        tool("initdb"), "--pgdata", str(data), "--auth=trust", "--username=tester", "--no-sync",
        "--no-locale", "--encoding=UTF8", cwd=data, **user,
    )
    port = free_port()
    with server(
        folder / "postgres.log", tool("postgres"), "-D", str(data), "-p", str(port),
        "-c", "listen_addresses=127.0.0.1", "-c", f"unix_socket_directories={data}",
        "-c", "fsync=off", "-c", "max_connections=60", port=port, cwd=data, **user,
    ) as process:
        eventually(
            lambda: subprocess.run(
                [tool("pg_isready"), "-h", "127.0.0.1", "-p", str(port)], capture_output=True
            ).returncode == 0,
            "PostgreSQL to be ready",
        )
        yield port
        process.send_signal(signal.SIGINT)  # "fast shutdown": it does not wait for clients
    shutil.rmtree(data, ignore_errors=True)


def assert_none_failed(report: str) -> None:
    failed = re.search(r"number of failed transactions: (\d+)", report)
    done = re.search(r"number of transactions actually processed: (\d+)", report)
    assert done and int(done[1]) > 0, report
    assert failed and int(failed[1]) == 0, report
    assert "aborted" not in report and "error" not in report.lower(), report


def test_pgbench_without_a_failed_transaction(lab, postgres):
    proxy = lab.proxy(("127.0.0.1", postgres))
    base = ["-h", "127.0.0.1", "-p", str(proxy.listen_address[1]), "-U", "tester", "postgres"]
    bench = tool("pgbench")
    run(bench, "--initialize", "--scale=2", "--quiet", *base)
    assert_none_failed(run(bench, "--client=8", "--jobs=2", "--time=3", *base))
    assert_none_failed(
        run(bench, "--select-only", "--connect", "--client=8", "--jobs=2", "--time=3", *base)
    )
    assert_none_failed(
        run(bench, "--protocol=prepared", "--select-only", "--client=16", "--time=2", *base)
    )
    proxy.await_value(0, "tcp_proxy_connections_active")
    metrics = proxy.scrape()
    # libpq ends a connection with a Terminate message and a close: the clean end.
    assert set(metrics.closed()) <= {"client-closed", "target-closed"}, metrics.closed()
    assert metrics.value("inbound_bytes_count") > 1_000_000  # the initial load alone
    assert metrics.value("outbound_bytes_count") > 100_000


def test_copy_gives_the_same_bytes_through_the_proxy(lab, postgres):
    proxy = lab.proxy(("127.0.0.1", postgres))
    query = "COPY (SELECT i, md5(i::text) FROM generate_series(1, 400000) AS i) TO STDOUT"

    def digest(port: int) -> str:
        command = [
            tool("psql"), "-X", "-h", "127.0.0.1", "-p", str(port), "-U", "tester", "-c", query,
            "postgres",
        ]
        output = subprocess.run(command, capture_output=True, check=True).stdout
        assert len(output) > 10_000_000
        return hashlib.sha256(output).hexdigest()

    assert digest(proxy.listen_address[1]) == digest(postgres)
