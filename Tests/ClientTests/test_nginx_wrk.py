"""nginx behind the proxy, wrk and curl in front of it: no error, no wrong byte."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess

import pytest

from clients import free_port, run, server, tool
from harness import MIB, Stream, parallel

CONFIGURATION = """
worker_processes 1;
daemon off;
{user}
pid {folder}/nginx.pid;
error_log {folder}/error.log warn;
events {{ worker_connections 1024; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    server {{
        listen 127.0.0.1:{port} backlog=1024;
        root {folder}/files;
        keepalive_requests 1000000;
        location = /hello {{ return 200 "hello\\n"; }}
    }}
}}
"""


@pytest.fixture
def nginx(folder):
    """Serves `files/large` and `/hello`; yields its port."""
    folder.chmod(0o755)
    (folder / "files").mkdir(mode=0o755)
    (folder / "files" / "large").write_bytes(Stream("large").read(64 * MIB))
    port = free_port()
    configuration = folder / "nginx.conf"
    configuration.write_text(CONFIGURATION.format(
        folder=folder, port=port, user="user nobody nogroup;" if os.geteuid() == 0 else "",
    ))
    with server(
        folder / "nginx.log", tool("nginx"), "-p", str(folder), "-e", str(folder / "error.log"),
        "-c", str(configuration), port=port,
    ):
        yield port


@pytest.mark.parametrize("header", [[], ["-H", "Connection: close"]], ids=["keep-alive", "close"])
def test_wrk_sees_no_error(lab, nginx, header):
    proxy = lab.proxy(("127.0.0.1", nginx))
    report = run(
        tool("wrk"), "-t2", "-c64", "-d3s", *header,
        f"http://127.0.0.1:{proxy.listen_address[1]}/hello",
    )
    requests = re.search(r"(\d+) requests in", report)
    assert requests and int(requests[1]) > 500, report
    assert "Socket errors" not in report and "Non-2xx" not in report, report
    proxy.await_value(0, "tcp_proxy_connections_active")
    metrics = proxy.scrape()
    assert metrics.value("tcp_proxy_target_connect_failures_total") == 0
    assert metrics.value("outbound_bytes_count") > int(requests[1]) * len("hello\n")


def test_large_files_arrive_whole_many_at_once(lab, nginx):
    proxy = lab.proxy(("127.0.0.1", nginx))
    expected = hashlib.sha256(Stream("large").read(64 * MIB)).hexdigest()
    url = f"http://127.0.0.1:{proxy.listen_address[1]}/large"

    def fetch(*arguments: str) -> str:
        output = subprocess.run(
            [tool("curl"), "--silent", "--show-error", "--fail", *arguments, url],
            stdout=subprocess.PIPE, check=True, timeout=120,
        ).stdout
        return hashlib.sha256(output).hexdigest()

    digests = parallel(*[lambda: fetch()] * 4, lambda: fetch("--limit-rate", "30M"))
    assert digests == [expected] * 5
