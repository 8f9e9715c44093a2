"""The harness itself, on plain units: without these, a failure elsewhere proves nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
from container import CommandFailed, Container, wait_until
from host import echo, exchange, target
from trees import Release


def test_boots_the_expected_version_of_systemd(container: Container, release: Release) -> None:
    version = container.run("systemctl", "--version").stdout.split()[1]
    assert int(version.split(".")[0]) == release.systemd


def test_sees_a_command_fail(container: Container) -> None:
    with pytest.raises(CommandFailed, match="status 3"):
        container.shell("exit 3")


def test_sees_a_failed_unit(container: Container) -> None:
    container.run("systemd-run", "--unit=test-fails", "false")
    container.wait_state("test-fails.service", "failed")
    with pytest.raises(AssertionError, match="not within"):
        container.wait_state("test-fails.service", "active", seconds=0.1)
    container.systemctl("reset-failed")


def test_reads_fields_of_the_journal(container: Container) -> None:
    container.run("systemd-run", "--unit=test-says", "--wait", "echo", "said so")
    entries = container.journal("_SYSTEMD_UNIT=test-says.service")
    assert [entry["MESSAGE"] for entry in entries] == ["said so"]


def test_reaches_a_socket_unit_of_the_container_and_nothing_outside(container: Container) -> None:
    unit = "[Socket]\nListenStream=127.0.0.1:7\nAccept=yes\n"
    container.write("/etc/systemd/system/test-cat.socket", unit)
    service = "[Service]\nExecStart=cat\nStandardInput=socket\n"
    container.write("/etc/systemd/system/test-cat@.service", service)
    container.systemctl("daemon-reload")
    container.systemctl("start", "test-cat.socket")
    assert exchange(container.connect(("127.0.0.1", 7)), b"there and back") == b"there and back"
    container.systemctl("stop", "test-cat.socket")
    with pytest.raises(OSError):
        container.connect(("127.0.0.1", 7))
    assert "eth" not in container.run("ip", "-brief", "link").stdout


def test_serves_targets_inside_the_container(container: Container) -> None:
    with target(container, ("127.0.0.1", 3001), echo):
        reply = container.shell("echo hello | socat -t 5 - TCP:127.0.0.1:3001").stdout
        assert reply == "hello\n"
    with target(container, "/run/test-target", echo):
        assert exchange(container.connect("/run/test-target"), b"x" * 100_000) == b"x" * 100_000
    with target(container, "@test-target", echo):
        assert exchange(container.connect("@test-target")) == b"ping"


def test_finds_a_process_of_the_container_on_the_host(container: Container) -> None:
    container.run("systemd-run", "--unit=test-waits", "sleep", "infinity")
    pid = container.host_pid(container.main_pid("test-waits.service"))
    command = Path(f"/proc/{pid}/cmdline")  # systemd's own until it has called execve
    wait_until("it is sleep", lambda: command.read_text().split("\0")[1:2] == ["infinity"])
    container.systemctl("stop", "test-waits.service")


def test_two_containers_of_one_tree_know_nothing_of_each_other(container: Container) -> None:
    container.run("systemd-run", "--unit=test-here", "sleep", "infinity")
    with Container(container.tree) as other:
        assert other.state("test-here.service") == "inactive"
        other.write("/etc/written-in-the-other", "")
    assert not container.exists("/etc/written-in-the-other")
    assert not (container.tree / "etc/written-in-the-other").exists()
    assert container.state("test-here.service") == "active"
    container.systemctl("stop", "test-here.service")
