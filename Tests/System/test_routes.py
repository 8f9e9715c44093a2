"""Routes are .socket units: each leads where its own [X-Proxy] says, a bad one harms no other."""

from __future__ import annotations

import re
import time

import pytest
from container import wait_until
from host import (
    DEFAULT_ROUTE,
    LISTEN,
    METRICS_SOCKET,
    SERVICE,
    SOCKET,
    Host,
    exchange,
    greet,
    read_all,
    read_exactly,
    target,
)

ONE = ("127.0.0.1", 3100)
TWO = ("127.0.0.1", 3200)


def said(host: Host, address: tuple[str, int] | str) -> bytes:
    with host.container.connect(address) as client:
        return read_all(client)


def test_routes_are_added_while_the_service_runs(host: Host) -> None:
    """Write the units, enable, restart the service: the sockets that were there are not touched."""
    host.enable(SOCKET, METRICS_SOCKET)
    with (
        target(host.container, serve=greet(b"default")),
        target(host.container, "@one", greet(b"one")),
        target(host.container, "@two", greet(b"two")),
    ):
        assert said(host, LISTEN) == b"default"
        before = host.container.property(SOCKET, "InvocationID")

        host.write_route("one", "127.0.0.1:3100", "Target=@one")
        host.write_route("two", "127.0.0.1:3200", "Target=@two")
        host.systemctl("daemon-reload")
        host.systemctl("enable", "one.socket", "two.socket")
        host.systemctl("restart", SERVICE)

        assert said(host, ONE) == b"one"
        assert said(host, TWO) == b"two"
        assert said(host, LISTEN) == b"default"
    assert host.container.property(SOCKET, "InvocationID") == before
    wait_until("status tells 3 routes", lambda: "3 routes" in host.status_text())
    for name in ("one", "two", DEFAULT_ROUTE):
        host.wait_entry("CONNECTION_ENDED", f"PROXY_ROUTE={name}")
    accepted = "tcp_proxy_connections_accepted_total"
    assert host.metrics().metric(accepted, route="one") == 1
    assert host.metrics().metric(accepted, route="two") == 1


def test_a_drop_in_overrides_the_unit(host: Host) -> None:
    """An empty value clears the list that the shipped unit began."""
    host.drop_in(SOCKET, "[X-Proxy]\nTarget=\nTarget=@other\n")
    host.enable(SOCKET)
    with (
        target(host.container, serve=greet(b"shipped")),
        target(host.container, "@other", greet(b"drop-in")),
    ):
        assert said(host, LISTEN) == b"drop-in"


def test_drop_ins_of_all_sockets_and_of_other_folders_count_in_systemds_order(host: Host) -> None:
    """As systemd.unit(5) has it: by file name, whatever the folder; /etc over /run over /usr."""
    folders = ("/usr/lib/systemd/system", "/run/systemd/system", "/etc/systemd/system")
    names = ("tcp-metrics-proxy.socket.d", "socket.d")
    host.container.write(f"{folders[2]}/{names[1]}/10-all.conf", "[X-Proxy]\nTarget=@all\n")
    host.container.write(f"{folders[1]}/{names[0]}/20-mine.conf", "[X-Proxy]\nTarget=\n")
    host.container.write(f"{folders[0]}/{names[0]}/30-mine.conf", "[X-Proxy]\nTarget=@hidden\n")
    host.container.write(f"{folders[2]}/{names[0]}/30-mine.conf", "[X-Proxy]\nTarget=@shown\n")
    try:
        host.systemctl("daemon-reload")
        host.enable(SOCKET)
        with (
            target(host.container, "@all", greet(b"all")),
            target(host.container, "@hidden", greet(b"hidden")),
            target(host.container, "@shown", greet(b"shown")),
        ):
            assert said(host, LISTEN) == b"shown"
    finally:
        for folder in folders:
            host.run("rm", "-rf", *(f"{folder}/{name}" for name in names))


def test_the_first_target_that_connects_is_used(host: Host) -> None:
    host.write_route("one", "127.0.0.1:3100", "Target=@missing\nTarget=@second\nTarget=@third")
    host.enable("one.socket")
    with (
        target(host.container, "@second", greet(b"second")),
        target(host.container, "@third", greet(b"third")),
    ):
        assert said(host, ONE) == b"second"
    entry = host.wait_entry("CONNECTION_ENDED")
    assert entry["PROXY_TARGET"] == "@second"


def test_a_faulty_route_is_refused_alone_with_file_and_line(host: Host) -> None:
    host.write_route("one", "127.0.0.1:3100", "Target=no-port-here")
    host.enable(SOCKET, "one.socket")
    with target(host.container, serve=greet(b"default")):
        assert said(host, LISTEN) == b"default"
    refused = host.wait_entry("ROUTE_REFUSED")
    assert refused["PROXY_ROUTE"] == "one"
    assert re.search(r"/etc/systemd/system/one\.socket:\d+", refused["MESSAGE"])
    assert "no-port-here" in refused["MESSAGE"]
    with pytest.raises(ConnectionResetError):
        said(host, ONE)
    turned_away = host.wait_entry("CLIENTS_REFUSED", "PROXY_ROUTE=one")
    assert "route 'one' was refused" in turned_away["MESSAGE"]
    assert host.container.state(SERVICE) == "active"


def test_a_route_without_a_target_is_refused_alone(host: Host) -> None:
    host.write_route("one", "127.0.0.1:3100", "IdleTimeoutSec=1h")
    host.enable(SOCKET, "one.socket")
    with target(host.container, serve=greet(b"default")):
        assert said(host, LISTEN) == b"default"
    assert "Target=" in host.wait_entry("ROUTE_REFUSED", "PROXY_ROUTE=one")["MESSAGE"]


def test_an_unknown_key_is_reported_and_ignored(host: Host) -> None:
    host.write_route("one", "127.0.0.1:3100", "Target=@one\nTagret=@typo")
    host.enable("one.socket")
    with target(host.container, "@one", greet(b"one")):
        assert said(host, ONE) == b"one"
    wait_until(
        "the log names the key, the file and the line",
        lambda: [
            entry
            for entry in host.entries(None, "PRIORITY=4")
            if re.search(r"one\.socket:\d+.*Tagret", entry["MESSAGE"])
        ],
    )


def test_a_descriptor_name_of_its_own_finds_its_route(host: Host) -> None:
    host.write_route("one", "127.0.0.1:3100", "Target=@one", "FileDescriptorName=special")
    host.enable("one.socket")
    with target(host.container, "@one", greet(b"one")):
        assert said(host, ONE) == b"one"
    host.wait_entry("CONNECTION_ENDED", "PROXY_ROUTE=one")


def test_the_command_line_stands_in_for_a_socket_that_no_unit_describes(host: Host) -> None:
    host.write_route("one", "127.0.0.1:3100", "")
    command = "/usr/bin/tcp-metrics-proxy --route one=@one --target @rest"
    host.drop_in(SERVICE, f"[Service]\nExecStart=\nExecStart={command}\n")
    host.container.shell("sed -i '/X-Proxy/d' /etc/systemd/system/one.socket")
    host.write_route("two", "127.0.0.1:3200", "")
    host.container.shell("sed -i '/X-Proxy/d' /etc/systemd/system/two.socket")
    host.systemctl("daemon-reload")
    host.enable("one.socket", "two.socket")
    with (
        target(host.container, "@one", greet(b"one")),
        target(host.container, "@rest", greet(b"rest")),
    ):
        assert said(host, ONE) == b"one"
        assert said(host, TWO) == b"rest"


def test_connections_max_turns_further_clients_of_its_route_away(host: Host) -> None:
    host.write_route("one", "127.0.0.1:3100", "Target=127.0.0.1:3001\nConnectionsMax=1")
    host.enable(SOCKET, METRICS_SOCKET, "one.socket")
    with target(host.container):
        first = host.container.connect(ONE)
        first.sendall(b"a")
        assert read_exactly(first, 1) == b"a"
        with pytest.raises(ConnectionResetError), host.container.connect(ONE) as second:
            second.recv(1)
        with host.container.connect(LISTEN) as other:  # of another route
            assert exchange(other) == b"ping"
        assert exchange(first) == b"ping"
        first.close()
        host.wait_entry("CONNECTION_ENDED", "PROXY_ROUTE=one")
        with host.container.connect(ONE) as third:
            assert exchange(third) == b"ping"
    rejected = "tcp_proxy_connections_rejected_total"
    assert host.metrics().metric(rejected, route="one", reason="limit") == 1
    assert host.metrics().metric(rejected, route=DEFAULT_ROUTE, reason="limit") == 0
    refused = host.wait_entry("CLIENTS_REFUSED", "PROXY_ROUTE=one")
    assert "at its limit, 1 open connection" in refused["MESSAGE"]


def test_idle_timeout_closes_a_silent_connection_of_its_route_alone(host: Host) -> None:
    host.write_route("one", "127.0.0.1:3100", "Target=127.0.0.1:3001\nIdleTimeoutSec=300ms")
    host.enable(SOCKET, "one.socket")
    with target(host.container):
        other = host.container.connect(LISTEN)
        other.sendall(b"a")
        assert read_exactly(other, 1) == b"a"
        client = host.container.connect(ONE)
        client.sendall(b"a")
        assert read_exactly(client, 1) == b"a"
        began = time.monotonic()
        try:
            assert client.recv(1) == b""
        except ConnectionResetError:
            pass  # as the proxy's choice: the test is about when
        assert 0.2 < time.monotonic() - began < 5
        assert exchange(other) == b"ping"
        other.close()
    reason = host.wait_entry("CONNECTION_FAILED", "PROXY_ROUTE=one")["PROXY_CLOSE_REASON"]
    assert reason == "idle-timeout"
