"""`tcp-metrics-proxy check` says everything that is wrong, where, and what to do."""

from __future__ import annotations

import re

import pytest
from host import SERVICE, SOCKET, Host

UNIT = "/etc/systemd/system/one.socket"


def check(host: Host, *units: str) -> tuple[int, str]:
    done = host.run("tcp-metrics-proxy", "check", *units, check=False)
    return done.returncode, done.stdout + done.stderr


def test_the_installed_package_has_no_fault(host: Host) -> None:
    status, said = check(host)
    assert status == 0, said


def test_a_sound_route_has_no_fault(host: Host) -> None:
    host.write_route("one", "127.0.0.1:3100", "Target=127.0.0.1:3001\nIdleTimeoutSec=1h 30min")
    host.systemctl("daemon-reload")
    status, said = check(host)
    assert status == 0, said


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        ("Target=no-port-here", "no-port-here"),
        ("Target=127.0.0.1:99999", "99999"),
        ("Target=127.0.0.1:3001\nConnectTimeoutSec=soon", "soon"),
        ("Target=127.0.0.1:3001\nConnectionsMax=-1", "-1"),
        ("Target=127.0.0.1:3001\nLogConnections=some", "some"),
        ("Target=127.0.0.1:3001\nTagret=x", "Tagret"),
        ("Target=nowhere.invalid:80", "nowhere.invalid"),
    ],
)
def test_a_fault_is_told_with_file_and_line(host: Host, keys: str, named: str) -> None:
    host.write_route("one", "127.0.0.1:3100", keys)
    host.systemctl("daemon-reload")
    line = 1 + host.container.read(UNIT).splitlines().index(keys.splitlines()[-1])
    status, said = check(host)
    assert status == 1
    assert re.search(rf"^{UNIT}:{line}: .*{re.escape(named)}", said, re.M), said


def test_every_fault_is_told_in_one_go(host: Host) -> None:
    host.write_route("one", "127.0.0.1:3100", "Target=bad\nTagret=x\nIdleTimeoutSec=soon")
    host.write_route("two", "127.0.0.1:3200", "Target=worse")
    host.systemctl("daemon-reload")
    status, said = check(host)
    assert status == 1
    for word in ("bad", "Tagret", "soon", "worse"):
        assert word in said


def test_a_fault_in_a_drop_in_names_the_drop_in(host: Host) -> None:
    host.drop_in(SOCKET, "[X-Proxy]\nTarget=bad\n")
    status, said = check(host)
    assert status == 1
    assert f"/etc/systemd/system/{SOCKET}.d/test.conf:2: " in said


@pytest.mark.parametrize(
    ("unit", "named"),
    [
        ("[Socket]\nListenStream=3100\nService=dbus.service\n", "dbus.service"),
        (f"[Socket]\nListenDatagram=3100\nService={SERVICE}\n", "ListenDatagram="),
        (f"[Socket]\nListenStream=3100\nAccept=yes\nService={SERVICE}\n", "Accept="),
        (f"[Socket]\nListenStream=3100\nService={SERVICE}\n", "TriggerLimit"),
    ],
    ids=["service", "datagram", "accept", "trigger-limit"],
)
def test_traps_of_the_socket_section_are_told(host: Host, unit: str, named: str) -> None:
    if named != "TriggerLimit":
        unit += "TriggerLimitIntervalSec=0\n"
    host.container.write(UNIT, unit + "[X-Proxy]\nTarget=127.0.0.1:3001\n")
    host.systemctl("daemon-reload")
    status, said = check(host, "one.socket")
    assert status == 1
    assert named in said, said


def test_two_routes_on_one_port_are_told(host: Host) -> None:
    host.write_route("one", "3000", "Target=127.0.0.1:3001")
    host.systemctl("daemon-reload")
    status, said = check(host)
    assert status == 1
    assert re.search(rf"^/.*/{SOCKET}:\d+: error: .*one\.socket", said, re.M), said


def test_a_misspelt_section_is_told(host: Host) -> None:
    host.write_route("one", "127.0.0.1:3100", "Target=127.0.0.1:3001\n\n[X-Porxy]")
    host.systemctl("daemon-reload")
    status, said = check(host)
    assert status == 1
    assert "did you mean [X-Proxy]?" in said, said


def test_what_the_manager_has_not_read_yet_is_told(host: Host) -> None:
    host.enable(SOCKET)
    host.container.write(
        f"/etc/systemd/system/{SOCKET}.d/test.conf", "[Socket]\nListenStream=127.0.0.1:3009\n"
    )
    status, said = check(host)
    assert status == 1
    assert "daemon-reload" in said
    host.systemctl("daemon-reload")


def test_a_file_is_checked_without_a_manager(host: Host) -> None:
    host.container.write("/root/draft.socket", "[Socket]\nListenStream=1\n[X-Proxy]\nTarget=bad\n")
    isolated = ["unshare", "--mount", "sh", "-c"]
    script = "mount -t tmpfs none /run && exec tcp-metrics-proxy check /root/draft.socket"
    done = host.run(*isolated, script, check=False)
    assert done.returncode == 1
    assert "/root/draft.socket:4: " in done.stdout + done.stderr


def test_an_unknown_unit_is_told(host: Host) -> None:
    status, said = check(host, "nowhere.socket")
    assert status == 1 and "nowhere.socket" in said
