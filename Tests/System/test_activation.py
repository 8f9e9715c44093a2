"""Socket activation: what systemd hands over is served, whatever it is, and stays systemd's."""

from __future__ import annotations

import re
import signal
import time

import pytest
from container import wait_until
from host import (
    DEFAULT_ROUTE,
    LISTEN,
    MESSAGE_IDS,
    METRICS,
    METRICS_SOCKET,
    SERVICE,
    SOCKET,
    Host,
    echo,
    exchange,
    read_exactly,
    target,
)


def test_first_connection_starts_the_service_and_is_served(host: Host, record_property) -> None:
    host.enable(SOCKET)
    assert host.container.state(SERVICE) == "inactive"
    with target(host.container):
        began = time.monotonic()
        with host.container.connect(LISTEN) as client:
            client.sendall(b"first")
            assert read_exactly(client, 5) == b"first"
        first_byte = time.monotonic() - began
    assert host.container.state(SERVICE) == "active"
    record_property("cold_first_byte_ms", round(first_byte * 1000))
    assert first_byte < 3


@pytest.mark.parametrize(
    ("listen", "address"),
    [
        ("127.0.0.1:3100", ("127.0.0.1", 3100)),
        ("[::1]:3101", ("::1", 3101)),
        ("3102", ("127.0.0.1", 3102)),
        ("/run/test-listen", "/run/test-listen"),
        ("@test-listen", "@test-listen"),
    ],
    ids=["v4", "v6", "all", "path", "abstract"],
)
def test_every_kind_of_stream_socket_is_served(host: Host, listen: str, address) -> None:
    host.write_route("various", listen, "Target=127.0.0.1:3001")
    host.enable("various.socket")
    with target(host.container), host.container.connect(address) as client:
        assert exchange(client, b"through") == b"through"


def test_one_unit_may_have_several_sockets(host: Host) -> None:
    host.write_route("several", "127.0.0.1:3100\nListenStream=@several", "Target=@behind")
    host.enable("several.socket")
    with target(host.container, "@behind"):
        for address in (("127.0.0.1", 3100), "@several"):
            with host.container.connect(address) as client:
                assert exchange(client) == b"ping"


@pytest.mark.parametrize("key", ["ListenDatagram=127.0.0.1:3100", "ListenFIFO=/run/test-fifo"])
def test_a_descriptor_that_is_no_stream_socket_is_refused_by_name(host: Host, key: str) -> None:
    host.container.write(
        "/etc/systemd/system/wrong.socket",
        f"[Socket]\n{key}\nService={SERVICE}\n[X-Proxy]\nTarget=127.0.0.1:3001\n",
    )
    host.systemctl("daemon-reload")
    host.systemctl("start", "wrong.socket", SOCKET)
    with target(host.container), host.container.connect(LISTEN) as client:
        assert exchange(client) == b"ping"
    refused = host.entries("ROUTE_REFUSED")
    assert len(refused) == 1 and "wrong" in refused[0]["MESSAGE"]
    assert "\n" not in refused[0]["MESSAGE"]


def test_metrics_are_served_by_the_socket_of_this_name(host: Host) -> None:
    host.enable(SOCKET, METRICS_SOCKET)
    with target(host.container), host.container.connect(LISTEN) as client:
        assert exchange(client) == b"ping"
    served = host.metrics().metric("tcp_proxy_connections_accepted_total", route=DEFAULT_ROUTE)
    assert served == 1


def test_metrics_can_be_served_on_a_unix_socket(host: Host) -> None:
    host.drop_in(METRICS_SOCKET, "[Socket]\nListenStream=\nListenStream=/run/test-metrics\n")
    host.enable(METRICS_SOCKET, SOCKET)
    assert host.container.get("/run/test-metrics", "/metrics").status == 200


def test_without_a_metrics_socket_none_is_opened_and_the_log_says_so(host: Host) -> None:
    host.enable(SOCKET)
    host.systemctl("start", SERVICE)
    with pytest.raises(ConnectionRefusedError):
        host.container.connect(METRICS)
    assert any("metrics" in entry["MESSAGE"] for entry in host.entries())


def test_listeners_stay_when_the_service_ends(host: Host) -> None:
    """Neither shut down nor unlinked: the next client starts the service again."""
    host.write_route("path", "/run/test-listen", "Target=127.0.0.1:3001")
    host.enable(SOCKET, "path.socket")
    with target(host.container):
        for address in (LISTEN, "/run/test-listen") * 2:
            with host.container.connect(address) as client:
                assert exchange(client) == b"ping"
            host.systemctl("stop", SERVICE)
            host.container.wait_state(SERVICE, "inactive")
            assert host.container.state(SOCKET) == "active"
            assert host.container.state("path.socket") == "active"


def test_options_of_the_unit_stay_on_its_socket(host: Host) -> None:
    host.drop_in(SOCKET, "[Socket]\nReceiveBuffer=96K\n")
    host.enable(SOCKET)

    def buffer() -> str:
        listeners = host.run("ss", "--listening", "--tcp", "--memory", "sport = :3000").stdout
        found = re.search(r"\brb(\d+)", listeners)
        assert found, listeners
        return found[1]

    assert buffer() == str(2 * 96 * 1024)  # socket(7): the kernel doubles the value
    with target(host.container), host.container.connect(LISTEN) as client:
        assert exchange(client) == b"ping"
    assert buffer() == str(2 * 96 * 1024)


@pytest.mark.parametrize("extra", ["", "StandardInput=socket\n"], ids=["accept", "inetd"])
def test_an_accepted_connection_is_relayed_and_ends_its_process(host: Host, extra: str) -> None:
    host.container.write(
        "/etc/systemd/system/test-accept.socket",
        "[Socket]\nListenStream=127.0.0.1:3100\nAccept=yes\n",
    )
    host.container.write(
        "/etc/systemd/system/test-accept@.service",
        f"[Service]\nExecStart=/usr/bin/tcp-metrics-proxy 127.0.0.1:3001\n{extra}",
    )
    host.systemctl("daemon-reload")
    host.systemctl("start", "test-accept.socket")

    def instances() -> list[str]:
        listed = host.systemctl("list-units", "--plain", "--no-legend", "test-accept@*").stdout
        return [line.split()[0] for line in listed.splitlines() if line]

    with target(host.container):
        first = host.container.connect(("127.0.0.1", 3100))
        second = host.container.connect(("127.0.0.1", 3100))
        for client in (first, second):
            client.sendall(b"there")
            assert read_exactly(client, 5) == b"there"
        assert len(instances()) == 2
        assert exchange(first) == b"ping"
        wait_until("one instance is left", lambda: len(instances()) == 1)
        assert exchange(second) == b"ping"
        wait_until("no instance is left", lambda: not instances())
    host.systemctl("stop", "test-accept.socket")
    # With inetd's standard streams the log must go round the client.
    ended = host.container.journal("MESSAGE_ID=" + MESSAGE_IDS["CONNECTION_ENDED"])
    assert [one["PROXY_ROUTE"] for one in ended if "test-accept@" in one["_SYSTEMD_UNIT"]][-2:] == [
        "test-accept",
        "test-accept",
    ]
    failed = host.systemctl("list-units", "--failed", "--plain", "--no-legend").stdout
    assert failed == ""


def test_an_accepted_connection_without_a_target_is_reset_and_ends_its_process(
    host: Host,
) -> None:
    host.container.write(
        "/etc/systemd/system/test-accept.socket",
        "[Socket]\nListenStream=127.0.0.1:3100\nAccept=yes\n",
    )
    host.container.write(
        "/etc/systemd/system/test-accept@.service",
        "[Service]\nExecStart=/usr/bin/tcp-metrics-proxy\n",
    )
    host.systemctl("daemon-reload")
    host.systemctl("start", "test-accept.socket")
    with host.container.connect(("127.0.0.1", 3100)) as client:
        with pytest.raises(ConnectionResetError):
            client.recv(1)
    listed = ("list-units", "--plain", "--no-legend", "test-accept@*")
    wait_until("no instance is left", lambda: not host.systemctl(*listed).stdout)
    host.systemctl("stop", "test-accept.socket")


def test_works_under_systemd_socket_activate(host: Host) -> None:
    command = ["systemd-socket-activate", "-l", "3000", "tcp-metrics-proxy", "127.0.0.1:3001"]
    tool = host.container.start(*command)
    host.wait_listening(3000)
    with target(host.container, serve=echo), host.container.connect(LISTEN) as client:
        assert exchange(client, b"by hand") == b"by hand"
    host.container.kill(tool, signal.SIGTERM)
    assert tool.wait(timeout=10) == 0


def test_exits_when_idle_and_comes_back(host: Host) -> None:
    host.drop_in(
        SERVICE,
        "[Service]\nExecStart=\nExecStart=/usr/bin/tcp-metrics-proxy --exit-idle-time=500ms\n",
    )
    host.enable(SOCKET)
    with target(host.container):
        for _ in range(2):
            with host.container.connect(LISTEN) as client:
                assert exchange(client) == b"ping"
                assert host.container.state(SERVICE) == "active"
            host.container.wait_state(SERVICE, "inactive")
            assert host.container.property(SERVICE, "ExecMainStatus") == "0"


def test_does_not_exit_while_a_silent_connection_is_open(host: Host) -> None:
    host.drop_in(
        SERVICE,
        "[Service]\nExecStart=\nExecStart=/usr/bin/tcp-metrics-proxy --exit-idle-time=300ms\n",
    )
    host.enable(SOCKET)
    with target(host.container), host.container.connect(LISTEN) as silent:
        silent.sendall(b"a")
        assert read_exactly(silent, 1) == b"a"
        deadline = time.monotonic() + 1.5
        with pytest.raises(AssertionError, match="not within"):
            wait_until("it ends", lambda: host.container.state(SERVICE) != "active", 1.5)
        assert time.monotonic() >= deadline
        assert exchange(silent) == b"ping"
    host.container.wait_state(SERVICE, "inactive")
