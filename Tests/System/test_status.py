"""`systemctl status` tells an administrator what the proxy does."""

from __future__ import annotations

import re

import pytest
from container import wait_until
from host import LISTEN, SERVICE, SOCKET, Host, exchange, read_exactly, target


def test_status_shows_the_sentence_and_the_main_process(host: Host) -> None:
    host.enable(SOCKET)
    with target(host.container), host.container.connect(LISTEN) as client:
        client.sendall(b"here")
        assert read_exactly(client, 4) == b"here"
        sentence = "1 open, 0 served, 1 route; 4 B in, 4 B out"
        wait_until("status tells of it", lambda: host.status_text() == sentence)
        shown = host.systemctl("status", SERVICE).stdout
    assert f'Status: "{sentence}"' in shown
    assert re.search(rf"Main PID: {host.main_pid()} \(tcp-metrics-pro", shown), shown
    assert "active (running)" in shown


def test_status_follows_within_a_few_seconds(host: Host) -> None:
    host.enable(SOCKET)
    with target(host.container):
        for served in range(1, 4):
            with host.container.connect(LISTEN) as client:
                assert exchange(client) == b"ping"
            begin = f"0 open, {served} served, "
            wait_until(f"status begins {begin!r}", lambda: host.status_text().startswith(begin), 5)


def test_start_returns_when_every_listener_accepts(host: Host) -> None:
    """Type=notify: `systemctl start` waits for READY=1."""
    assert host.container.property(SERVICE, "Type") == "notify"
    host.enable(SOCKET)
    with target(host.container):
        host.systemctl("start", SERVICE)
        assert host.container.show(SERVICE, "SubState", "StatusText")["SubState"] == "running"
        with host.container.connect(LISTEN, seconds=2) as client:
            assert exchange(client) == b"ping"


def test_a_start_without_sockets_says_what_to_enable(host: Host) -> None:
    """It does not listen on the default port instead, and is not tried again and again."""
    done = host.systemctl("start", SERVICE, check=False)
    assert done.returncode != 0
    assert host.container.state(SERVICE) == "failed"
    assert "systemctl enable --now tcp-metrics-proxy.socket" in host.status_text()
    assert host.container.property(SERVICE, "NRestarts") == "0"
    host.enable(SOCKET)
    with target(host.container), host.container.connect(LISTEN) as client:
        assert exchange(client) == b"ping"


def test_a_wrong_command_line_says_why_and_does_not_keep_the_host_busy(host: Host) -> None:
    """The client stays in the backlog, so that systemd starts the service again and again."""
    command = "/usr/bin/tcp-metrics-proxy --nonsense"
    host.drop_in(SERVICE, f"[Service]\nExecStart=\nExecStart={command}\n")
    host.enable(SOCKET)
    with host.container.connect(LISTEN):
        wait_until("it says why", lambda: "--nonsense" in host.status_text())
        seconds = 3
        starts = len(host.entries(None, "_TRANSPORT=stdout"))
        with pytest.raises(AssertionError, match="not within"):
            wait_until("it runs", lambda: host.container.state(SERVICE) == "active", seconds)
        assert len(host.entries(None, "_TRANSPORT=stdout")) - starts <= seconds + 1
        assert any("status=2/" in entry["MESSAGE"] for entry in host.entries())
        host.drop_in(SERVICE, "")
        with target(host.container), host.container.connect(LISTEN) as client:
            assert exchange(client) == b"ping"


def test_a_start_that_fails_says_why(host: Host) -> None:
    command = "/usr/bin/tcp-metrics-proxy -listen=127.0.0.1:3000"
    drop_in = f"[Service]\nRestart=no\nExecStart=\nExecStart={command}\n"
    host.drop_in(SERVICE, drop_in)
    with host.container.listen(LISTEN):
        assert host.systemctl("start", SERVICE, check=False).returncode != 0
    assert host.container.state(SERVICE) == "failed"
    assert host.container.property(SERVICE, "ExecMainStatus") == "1"
    pid = host.container.property(SERVICE, "ExecMainPID")
    lines = [entry["MESSAGE"] for entry in host.entries(None, f"_PID={pid}")]
    assert len(lines) == 1 and "127.0.0.1:3000" in lines[0], lines
