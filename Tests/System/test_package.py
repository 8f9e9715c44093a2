"""The package's life on a host: installed, upgraded, removed, purged."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import trees
from container import Container
from host import LISTEN, METRICS_SOCKET, SERVICE, SOCKET, Host, Load, exchange, target

# What package management and systemd write for themselves.
OTHERS = (
    r"/var/(log|cache|tmp)/|/var/lib/(dpkg|apt)/|/var/lib/systemd/catalog/database"
    r"|/etc/ld\.so\.cache"
)


@pytest.fixture
def fresh(release: trees.Release) -> Iterator[Container]:
    """A container for one test alone: these tests change what is installed."""
    with Container(trees.tree(release)) as booted:
        yield booted


def files(container: Container) -> set[str]:
    found = container.run("find", "/etc", "/usr", "/var", "-xdev", check=False).stdout
    return {path for path in found.splitlines() if not re.match(OTHERS, path)}


def install_newer(host: Host, package: Path) -> None:
    """The same package with a higher version, made from it."""
    host.container.shell(
        f"cd /root && rm -rf newer && dpkg-deb -R {package.name} newer"
        " && sed -i 's/^Version: .*/&+newer/' newer/DEBIAN/control"
        " && dpkg-deb -Znone -b newer newer.deb"
    )
    host.run("apt-get", "install", "--yes", "/root/newer.deb")


def listening_inode(host: Host) -> str:
    line = host.run("ss", "-Hltne", "sport = :3000").stdout
    found = re.search(r"\bino:(\d+)", line)
    assert found, line
    return found[1]


def test_nothing_is_enabled_or_started_by_the_installation(host: Host) -> None:
    for unit in (SERVICE, SOCKET, METRICS_SOCKET):
        enabled = host.systemctl("is-enabled", unit, check=False).stdout.strip()
        assert enabled == "disabled", unit
        assert host.container.state(unit) == "inactive", unit
    with pytest.raises(ConnectionRefusedError):
        host.container.connect(LISTEN)


@pytest.mark.parametrize(
    "path",
    [
        "/usr/bin/tcp-metrics-proxy",
        "/usr/lib/systemd/catalog/tcp-metrics-proxy.catalog",
        "/usr/share/bash-completion/completions/tcp-metrics-proxy",
        "/usr/share/zsh/vendor-completions/_tcp-metrics-proxy",
        "/usr/share/fish/vendor_completions.d/tcp-metrics-proxy.fish",
        "/usr/share/man/man1/tcp-metrics-proxy.1.gz",
        "/usr/share/man/man8/tcp-metrics-proxy.service.8.gz",
        "/usr/share/doc/tcp-metrics-proxy/README.md.gz",
        "/usr/share/doc/tcp-metrics-proxy/copyright",
    ],
)
def test_is_installed(host: Host, path: str) -> None:
    plain = path.removesuffix("README.md.gz") + "README.md"  # debhelper compresses long files
    found = [name for name in (path, plain) if host.container.exists(name)]
    assert found, path
    assert int(host.run("stat", "--format=%s", found[0]).stdout) > 0


def test_the_binary_runs_and_knows_the_packages_version(host: Host) -> None:
    version = host.run("dpkg-query", "--show", "--showformat=${Version}", "tcp-metrics-proxy")
    assert version.stdout in host.run("tcp-metrics-proxy", "--version").stdout


def test_an_upgrade_restarts_a_running_service_and_turns_no_client_away(
    fresh: Container, package: Path
) -> None:
    host = Host(fresh)
    host.install(package)
    host.enable(SOCKET, METRICS_SOCKET)
    with target(host.container):
        with host.container.connect(LISTEN) as client:
            assert exchange(client) == b"ping"
        pid, socket = host.main_pid(), listening_inode(host)
        with Load(host.container) as load:
            load.wait_for(5)
            install_newer(host, package)
            load.wait_for(5)
        assert load.failures == []
        assert host.main_pid() not in (0, pid)
        assert listening_inode(host) == socket


def test_an_upgrade_starts_nothing_that_did_not_run(fresh: Container, package: Path) -> None:
    host = Host(fresh)
    host.install(package)
    host.enable(SOCKET)
    install_newer(host, package)
    assert fresh.state(SERVICE) == "inactive"
    assert fresh.state(SOCKET) == "active"
    assert fresh.state(METRICS_SOCKET) == "inactive"
    assert host.systemctl("is-enabled", SOCKET).stdout.strip() == "enabled"


@pytest.mark.parametrize("command", ["remove", "purge"])
def test_removal_stops_the_service_and_all_its_sockets(
    fresh: Container, package: Path, command: str
) -> None:
    host = Host(fresh)
    host.install(package)
    host.write_route("mine", "127.0.0.1:3100", "Target=127.0.0.1:3001")
    host.enable(SOCKET, METRICS_SOCKET, "mine.socket")
    with target(fresh):
        for address in (LISTEN, ("127.0.0.1", 3100)):
            with fresh.connect(address) as client:
                assert exchange(client) == b"ping"
        host.run("apt-get", command, "--yes", "tcp-metrics-proxy")
    for port in (3000, 3002, 3100):
        with pytest.raises(ConnectionRefusedError):
            fresh.connect(("127.0.0.1", port))
    assert host.run("pgrep", "-f", "/usr/bin/tcp-metrics-proxy", check=False).stdout == ""
    assert host.systemctl("list-units", "--failed", "--plain", "--no-legend").stdout == ""


def test_purge_leaves_nothing(fresh: Container, package: Path) -> None:
    before = files(fresh)
    host = Host(fresh)
    host.install(package)
    assert files(fresh) > before
    host.enable(SOCKET, METRICS_SOCKET)
    host.systemctl("start", SERVICE)
    host.run("apt-get", "purge", "--yes", "tcp-metrics-proxy")
    assert sorted(files(fresh) - before) == []
    assert "tcp-metrics-proxy" not in host.run("dpkg-query", "--list").stdout
    users = host.run("getent", "passwd", "tcp-metrics-proxy", check=False)
    assert users.stdout == ""
