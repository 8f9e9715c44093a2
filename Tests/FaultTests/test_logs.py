"""The log: lines that a person can read and grep, and that never hold up the relay."""

from __future__ import annotations

import re
import socket
import time

import pytest

from harness import (
    DEADLINE, KIB, Lab, Proxy, always, echo_once, eventually, expect_eof, host_port, parallel,
    receive_exactly, receive_stream, reset, send_stream,
)

REASON = (
    r"client-closed|target-closed|client-reset|target-reset|client-left|target-refused|"
    r"idle-timeout|drain-timeout|stopped"
)


def one_connection(lab: Lab, proxy: Proxy, target, size_in: int, size_out: int) -> str:
    """A clean connection of at least 0.2 s; returns the client's address."""
    client, server = lab.pair(proxy, target)
    address = host_port(client.getsockname())
    parallel(
        lambda: send_stream(client, "in", size_in),
        lambda: receive_stream(server, "in", size_in),
        lambda: send_stream(server, "out", size_out),
        lambda: receive_stream(client, "out", size_out),
    )
    time.sleep(0.2)
    client.close()
    expect_eof(server)
    server.close()
    return address


def test_one_line_at_the_end_tells_client_target_bytes_duration_and_reason(lab):
    target = lab.target()
    proxy = lab.proxy(target, "--log-connections=all")
    address = one_connection(lab, proxy, target, 12347, 765_431)
    line = proxy.await_line(re.escape(address))
    assert host_port(target.address) in line
    assert "client-closed" in line
    plain = re.sub(r"[,_  ]", "", line)  # digits may be grouped for reading
    assert "12347" in plain and "765431" in plain, line
    duration = re.search(r"(\d+(?:\.\d+)?) ?(ms|s)\b", line)
    assert duration, f"no duration in {line!r}"
    seconds = float(duration[1]) / (1000 if duration[2] == "ms" else 1)
    assert 0.2 <= seconds < 5, line
    always(lambda: len(proxy.lines(re.escape(address))) == 1, "one line per connection", 0.5)


def test_default_logs_ends_of_connections(lab):
    target = lab.target()
    proxy = lab.proxy(target)
    address = one_connection(lab, proxy, target, 1, 1)
    proxy.await_line(re.escape(address) + ".*client-closed|client-closed.*" + re.escape(address))


def one_of_each(lab: Lab, proxy: Proxy, target) -> None:
    """One connection that ends well, then one that fails."""
    one_connection(lab, proxy, target, 1, 1)
    target.socket.close()
    lab.expect_refusal(proxy)
    proxy.await_closed(client_closed=1, target_refused=1)


@pytest.mark.parametrize("mode, clean, failed", [
    ("all", 1, 1), ("failures", 0, 1), ("none", 0, 0),
])
def test_mode_of_connection_lines(lab, mode, clean, failed):
    target = lab.target()
    proxy = lab.proxy(target, f"--log-connections={mode}")
    one_of_each(lab, proxy, target)

    def logged() -> bool:
        assert len(proxy.lines("client-closed")) == clean
        assert len(proxy.lines("target-refused")) == failed
        return True

    eventually(logged, f"the lines of mode {mode}")
    always(logged, f"the lines of mode {mode}", 0.5)
    assert proxy.lines("listening on"), "the line at start comes in every mode"


def test_lines_are_whole_under_load(lab):
    """Many connections end at once: each line is one line, none is lost or mixed."""
    echo = lab.echo()
    proxy = lab.proxy(echo, "--workers=2", "--log-connections=all")
    ports = []
    for _ in range(10):
        clients = [lab.client(proxy) for _ in range(50)]
        for client in clients:
            ports.append(host_port(client.getsockname()))
            echo_once(client)
        for client in clients:
            client.close()
    proxy.await_value(0, "tcp_proxy_connections_active")

    def complete() -> bool:
        lines = proxy.lines("client-closed")
        assert len(lines) == len(ports), f"{len(lines)} of {len(ports)} lines"
        return True

    eventually(complete, "a line for each connection")
    text = proxy.stderr()
    for port in ports:
        assert len(re.findall(re.escape(port) + r"\b", text)) >= 1, port
    assert all(len(re.findall(REASON, line)) <= 1 for line in proxy.lines())
    assert proxy.value("tcp_proxy_log_records_dropped_total") == 0


# --- <N> prefixes --------------------------------------------------------------------------------


def log_of_a_short_life(lab: Lab, journal: str | None) -> list[str]:
    """Every line from start to end, with $JOURNAL_STREAM as given."""
    environment = {} if journal is None else {"JOURNAL_STREAM": journal}
    target = lab.unlistened()
    proxy = lab.proxy(target, "--log-connections=all", environment=environment)
    lab.expect_refusal(proxy)
    proxy.await_line("target-refused")
    proxy.terminate()
    proxy.await_exit(0)
    return proxy.lines()


def test_priority_prefixes_when_stderr_is_the_journals_stream(lab):
    lines = log_of_a_short_life(lab, "{device}:{inode}")
    assert all(re.match(r"<[0-7]>\S", line) for line in lines), lines
    assert any(re.match(r"<[56]>", line) for line in lines if "listening on" in line)
    assert any(re.match(r"<[345]>", line) for line in lines if "target-refused" in line), lines


@pytest.mark.parametrize("journal", [None, "", "1:2", "{device}:1", "1:{inode}", "x", "{inode}"])
def test_no_prefixes_otherwise(lab, journal):
    """$JOURNAL_STREAM is inherited by children whose stderr goes elsewhere: systemd.exec(5)."""
    lines = log_of_a_short_life(lab, journal)
    assert not [line for line in lines if re.match(r"<\d>", line)], lines


# --- a log that nobody reads ---------------------------------------------------------------------


def test_log_that_nobody_reads_holds_up_nothing_and_drops_are_counted(lab):
    target = lab.unlistened()
    proxy = lab.proxy(target, "--log-connections=all", read_log=False)
    proxy.set_log_capacity(4 * KIB)
    dropped = 0.0
    for _ in range(60):
        parallel(*[lambda: _refusals(proxy, 60)] * 4)
        dropped = proxy.value("tcp_proxy_log_records_dropped_total")
        if dropped:
            break
    assert dropped > 0, "14,400 records were kept though nobody reads"
    target.socket.listen(16)
    client, server = lab.pair(proxy, target)
    client.sendall(b"x")
    assert receive_exactly(server, 1) == b"x"
    proxy.assert_idle()
    client.close()
    server.close()
    proxy.terminate()
    proxy.await_exit(0)


def _refusals(proxy: Proxy, count: int) -> None:
    for _ in range(count):
        try:
            with socket.create_connection(proxy.listen_address, timeout=DEADLINE) as client:
                assert not client.recv(1)
        except ConnectionError:
            pass


def test_closed_stderr_is_no_reason_to_end(lab):
    """The reader of the log went away: EPIPE, and no SIGPIPE."""
    echo = lab.echo()
    proxy = lab.proxy(echo, "--log-connections=all", read_log=False)
    proxy.close_log()
    for _ in range(20):
        with socket.create_connection(proxy.listen_address, timeout=DEADLINE) as client:
            echo_once(client)
    proxy.await_closed(client_closed=20)
    proxy.assert_idle()


def test_reset_is_logged_as_what_it_was(lab):
    target = lab.target()
    proxy = lab.proxy(target, "--log-connections=all")
    client, server = lab.pair(proxy, target)
    client.sendall(b"abc")
    assert receive_exactly(server, 3) == b"abc"
    address = host_port(client.getsockname())
    reset(client)
    line = proxy.await_line("client-reset")
    assert address in line and host_port(target.address) in line, line
