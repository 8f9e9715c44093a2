"""`systemctl reload`: new connections take changed routes; a faulty change changes nothing."""

from __future__ import annotations

from host import (
    DEFAULT_ROUTE,
    LISTEN,
    METRICS_SOCKET,
    SERVICE,
    SOCKET,
    Host,
    echo,
    exchange,
    greet,
    read_all,
    read_exactly,
    target,
)

RELOADS = "tcp_proxy_config_reloads_total"


def said(host: Host) -> bytes:
    with host.container.connect(LISTEN) as client:
        return read_all(client)


def test_new_connections_take_the_new_target_and_open_ones_go_on(host: Host) -> None:
    host.drop_in(SOCKET, "[X-Proxy]\nTarget=\nTarget=@old\n")
    host.enable(SOCKET, METRICS_SOCKET)
    with target(host.container, "@old", echo), target(host.container, "@new", greet(b"new")):
        old = host.container.connect(LISTEN)
        old.sendall(b"before")
        assert read_exactly(old, 6) == b"before"
        pid = host.main_pid()

        host.drop_in(SOCKET, "[X-Proxy]\nTarget=\nTarget=@new\n")
        host.systemctl("reload", SERVICE)
        host.wait_entry("ROUTES_RELOADED")

        assert said(host) == b"new"
        assert exchange(old, b"after") == b"after"
        old.close()
    assert host.main_pid() == pid
    assert host.container.property(SERVICE, "SubState") == "running"
    assert host.metrics().metric(RELOADS, result="success") == 1
    assert host.metrics().metric(RELOADS, result="failure") == 0


def test_a_faulty_route_keeps_its_last_good_form_and_the_others_change(host: Host) -> None:
    host.write_route("one", "127.0.0.1:3100", "Target=@first")
    host.enable(SOCKET, METRICS_SOCKET, "one.socket")
    with (
        target(host.container, serve=greet(b"default")),
        target(host.container, "@first", greet(b"first")),
        target(host.container, "@second", greet(b"second")),
    ):
        assert said(host) == b"default"
        host.drop_in(SOCKET, "[X-Proxy]\nTarget=\nTarget=no-port-here\n")
        host.write_route("one", "127.0.0.1:3100", "Target=@second")
        host.systemctl("reload", SERVICE)
        failed = host.wait_entry("RELOAD_FAILED")
        assert said(host) == b"default"
        with host.container.connect(("127.0.0.1", 3100)) as client:
            assert read_all(client) == b"second"
    assert int(failed["PRIORITY"]) <= 4
    assert failed["PROXY_ROUTE"] == DEFAULT_ROUTE
    assert f"'{DEFAULT_ROUTE}' stays as it was" in failed["MESSAGE"]
    assert f"/etc/systemd/system/{SOCKET}.d/test.conf:3" in failed["MESSAGE"]
    assert host.metrics().metric(RELOADS, result="failure") == 1
    assert host.container.property(SERVICE, "SubState") == "running"


def test_mending_a_faulty_route_takes_effect(host: Host) -> None:
    host.drop_in(SOCKET, "[X-Proxy]\nTarget=no-port-here\n")
    host.write_route("one", "127.0.0.1:3100", "Target=@one")
    host.enable(SOCKET, "one.socket")
    host.systemctl("start", SERVICE)
    host.wait_entry("ROUTE_REFUSED")
    host.drop_in(SOCKET, "[X-Proxy]\nTarget=127.0.0.1:3001\n")
    host.systemctl("reload", SERVICE)
    host.wait_entry("ROUTES_RELOADED")
    with target(host.container, serve=greet(b"mended")):
        assert said(host) == b"mended"
