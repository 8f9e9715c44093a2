"""A downgrade, and an upgrade, with connections open: nobody notices."""

from __future__ import annotations

import re
from pathlib import Path

from container import wait_until
from host import METRICS_SOCKET, SERVICE, SOCKET, Host
from survival import Bulk, PingPong, enable, resumed

OLD_VERSION = "0.0.1"
ROUTE = ("127.0.0.1", 3100)


def older(host: Host, package: Path) -> str:
    """The path, inside, of the same package with a lower version, made from it."""
    host.container.shell(
        f"cd /root && rm -rf older && dpkg-deb -R {package.name} older"
        f" && sed -i 's/^Version: .*/Version: {OLD_VERSION}/' older/DEBIAN/control"
        " && dpkg-deb -Znone -b older older.deb && rm -r older"
    )
    return "/root/older.deb"


def version(host: Host) -> str:
    return host.run("dpkg-query", "--show", "--showformat=${Version}", "tcp-metrics-proxy").stdout


def listeners(host: Host) -> set[str]:
    """The inodes of the listening sockets: they differ when a socket was made anew."""
    return set(re.findall(r"\bino:(\d+)", host.run("ss", "-Hltne").stdout))


def test_a_downgrade_and_an_upgrade_under_load(host: Host, package: Path) -> None:
    present = version(host)
    old_package = older(host, package)
    host.write_route("bulk", "{}:{}".format(*ROUTE), "Target=127.0.0.1:3101")
    host.enable("bulk.socket")
    enable(host)
    with (
        PingPong(host.container, 200, churn=100) as load,
        Bulk(host.container, 2, connect=ROUTE, target=("127.0.0.1", 3101)) as bulk,
    ):
        load.wait_round()
        bulk.wait_bytes(1_000_000)
        before = listeners(host)
        for path, now in ((old_package, OLD_VERSION), (f"/root/{package.name}", present)):
            pid = host.main_pid()
            host.run("dpkg", "-i", path)
            assert version(host) == now
            wait_until("it was restarted", lambda: host.main_pid() not in (0, pid))
            load.wait_round()
            bulk.wait_bytes(1_000_000)
            assert resumed(host)[0] >= 202
            assert resumed(host)[1] == 0
            assert before <= listeners(host)
        bulk.finish()
        assert load.finish()["completed"] > 100
    for unit in (SERVICE, SOCKET, METRICS_SOCKET, "bulk.socket"):
        assert host.container.state(unit) == "active"
    assert host.container.property(SERVICE, "NRestarts") == "0"
    assert len(host.entries("CONNECTIONS_RESUMED")) == 2
