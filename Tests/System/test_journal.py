"""What the journal holds: fields to search by, and texts that explain (journalctl -x)."""

from __future__ import annotations

import re
import socket
import struct

import pytest
from container import wait_until
from host import (
    DEFAULT_ROUTE,
    LISTEN,
    MESSAGE_IDS,
    METRICS_SOCKET,
    SERVICE,
    SOCKET,
    Host,
    exchange,
    greet,
    read_exactly,
    target,
)

FIELDS = {
    "PROXY_ROUTE",
    "PROXY_CLIENT_ADDRESS",
    "PROXY_CLIENT_PORT",
    "PROXY_LISTEN_ADDRESS",
    "PROXY_TARGET",
    "PROXY_BYTES_IN",
    "PROXY_BYTES_OUT",
    "PROXY_DURATION_USEC",
    "PROXY_CONNECT_USEC",
    "PROXY_CLOSE_REASON",
    "PROXY_CONNECTION_ID",
}
# More than journald takes from one service by default: 10,000 entries in 30 s.
MORE_THAN_THE_JOURNAL_TAKES = 11_000


def test_a_connection_leaves_one_entry_with_every_field(host: Host) -> None:
    host.enable(SOCKET)
    with target(host.container), host.container.connect(LISTEN) as client:
        port = client.getsockname()[1]
        assert exchange(client, b"x" * 1000) == b"x" * 1000
    entry = host.wait_entry("CONNECTION_ENDED")
    assert len(host.entries("CONNECTION_ENDED")) == 1
    assert FIELDS <= entry.keys()
    assert entry["PROXY_ROUTE"] == DEFAULT_ROUTE
    assert entry["PROXY_CLIENT_ADDRESS"] == "127.0.0.1"
    assert entry["PROXY_CLIENT_PORT"] == str(port)
    assert entry["PROXY_LISTEN_ADDRESS"] == "127.0.0.1:3000"
    assert entry["PROXY_TARGET"] == "127.0.0.1:3001"
    assert entry["PROXY_BYTES_IN"] == entry["PROXY_BYTES_OUT"] == "1000"
    assert 0 < int(entry["PROXY_CONNECT_USEC"]) <= int(entry["PROXY_DURATION_USEC"]) < 10_000_000
    assert entry["PRIORITY"] == "6"
    assert entry["SYSLOG_IDENTIFIER"] == "tcp-metrics-proxy"
    assert entry["_SYSTEMD_UNIT"] == SERVICE
    assert entry["_TRANSPORT"] == "journal"


def test_connection_ids_differ(host: Host) -> None:
    host.enable(SOCKET)
    with target(host.container):
        for _ in range(3):
            with host.container.connect(LISTEN) as client:
                exchange(client)
    wait_until("three entries", lambda: len(host.entries("CONNECTION_ENDED")) == 3)
    assert len({entry["PROXY_CONNECTION_ID"] for entry in host.entries("CONNECTION_ENDED")}) == 3


def test_a_refusing_target_is_a_warning_with_its_reason(host: Host) -> None:
    host.drop_in(SOCKET, "[X-Proxy]\nConnectTimeoutSec=200ms\n")
    host.enable(SOCKET)
    with host.container.connect(LISTEN) as client, pytest.raises(ConnectionResetError):
        client.recv(1)
    entry = host.wait_entry("CONNECTION_FAILED", "PROXY_CLOSE_REASON=target-refused")
    assert entry["PRIORITY"] == "4"
    assert FIELDS - entry.keys() == {"PROXY_CONNECT_USEC"}  # it never connected
    assert entry["PROXY_TARGET"] == "127.0.0.1:3001"
    assert "\n" not in entry["MESSAGE"] and "127.0.0.1:3001" in entry["MESSAGE"]


def test_a_reset_says_who_sent_it(host: Host) -> None:
    host.enable(SOCKET)
    with target(host.container):
        client = host.container.connect(LISTEN)
        client.sendall(b"a")
        assert read_exactly(client, 1) == b"a"
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
        entry = host.wait_entry("CONNECTION_FAILED")
    assert entry["PROXY_CLOSE_REASON"] == "client-reset"


def test_journalctl_selects_a_route_as_documented(host: Host) -> None:
    host.write_route("postgres", "127.0.0.1:5432", "Target=127.0.0.1:3001")
    host.enable(SOCKET, "postgres.socket")
    with target(host.container):
        for address in (LISTEN, ("127.0.0.1", 5432)):
            with host.container.connect(address) as client:
                exchange(client)
    host.wait_entry("CONNECTION_ENDED", "PROXY_ROUTE=postgres")
    host.run("journalctl", "--sync")
    lines = host.run("journalctl", "-u", "tcp-metrics-proxy", "-q", "PROXY_ROUTE=postgres").stdout
    assert len(lines.splitlines()) == 1 and "postgres" in lines


def test_log_connections_decides_per_route(host: Host) -> None:
    host.write_route("quiet", "127.0.0.1:3100", "Target=@quiet\nLogConnections=none")
    host.write_route("failing", "127.0.0.1:3101", "Target=@quiet\nLogConnections=failures")
    host.enable(SOCKET, "quiet.socket", "failing.socket")
    with target(host.container), target(host.container, "@quiet"):
        for address in (("127.0.0.1", 3100), ("127.0.0.1", 3101), LISTEN):
            with host.container.connect(address) as client:
                exchange(client)
    host.wait_entry("CONNECTION_ENDED")  # the last of the three
    assert {entry["PROXY_ROUTE"] for entry in host.entries("CONNECTION_ENDED")} == {DEFAULT_ROUTE}


def test_the_start_is_logged_with_version_and_listeners(host: Host) -> None:
    host.enable(SOCKET)
    host.systemctl("start", SERVICE)
    entry = host.wait_entry("STARTED")
    version = host.run("tcp-metrics-proxy", "--version").stdout.strip()
    assert version in entry["MESSAGE"] and "listening on" in entry["MESSAGE"]


def test_journalctl_explains_an_entry(host: Host) -> None:
    host.drop_in(SOCKET, "[X-Proxy]\nConnectTimeoutSec=200ms\n")
    host.enable(SOCKET)
    with host.container.connect(LISTEN) as client, pytest.raises(ConnectionResetError):
        client.recv(1)
    host.wait_entry("CONNECTION_FAILED")
    shown = host.run("journalctl", "-x", "-u", SERVICE, "--lines=50", "--no-pager").stdout
    assert f"Subject: Connection on route {DEFAULT_ROUTE} failed: target-refused" in shown
    assert "tcp-metrics-proxy check" in shown
    assert "@PROXY_" not in shown  # every field that the text names was there


def test_every_message_id_has_a_text_and_every_text_an_id(host: Host) -> None:
    for kind, message_id in MESSAGE_IDS.items():
        text = host.run("journalctl", "--dump-catalog", message_id).stdout
        assert re.search(r"^Subject: \S", text, re.M), kind
        assert "Defined-By: tcp-metrics-proxy" in text, kind
    catalog = host.container.read("/usr/lib/systemd/catalog/tcp-metrics-proxy.catalog")
    assert sorted(re.findall(r"^-- (\S+)", catalog, re.M)) == sorted(MESSAGE_IDS.values())


def test_what_comes_too_fast_is_summarised_and_nothing_is_suppressed(host: Host) -> None:
    host.enable(SOCKET, METRICS_SOCKET)
    with target(host.container, serve=greet(b"")):
        for _ in range(MORE_THAN_THE_JOURNAL_TAKES):
            with host.container.connect(LISTEN) as client:
                client.shutdown(socket.SHUT_WR)
                assert client.recv(1) == b""

        def told() -> int:
            summaries = host.entries("CONNECTIONS_SUMMARISED")
            summarised = sum(int(entry["PROXY_CONNECTIONS"]) for entry in summaries)
            return len(host.entries("CONNECTION_ENDED")) + summarised

        wait_until(
            "entries and summaries account for every connection",
            lambda: told() == MORE_THAN_THE_JOURNAL_TAKES,
            30,
        )
    assert host.entries("CONNECTIONS_SUMMARISED")
    suppressed = host.container.journal("--unit=systemd-journald.service", "--grep=Suppressed")
    assert not [entry for entry in suppressed if SERVICE in entry["MESSAGE"]]
    assert host.metrics().metric("tcp_proxy_log_records_dropped_total") == 0
