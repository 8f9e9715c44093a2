"""The shipped units: systemd reads them without complaint, and they give the service little."""

from __future__ import annotations

import re

from host import METRICS_SOCKET, SERVICE, SOCKET, SYSTEMD, Host

HIGHEST_EXPOSURE = 1.0  # systemd-analyze counts from 0, locked up, to 10


def test_systemd_reads_the_units_without_complaint(host: Host) -> None:
    folder = "/usr/lib/systemd/system"
    units = [f"{folder}/{unit}" for unit in (SERVICE, SOCKET, METRICS_SOCKET)]
    done = host.run("systemd-analyze", "verify", "--man=no", *units)
    assert done.stdout + done.stderr == ""


def test_systemd_reads_the_example_route_without_complaint(host: Host) -> None:
    example = "/usr/share/doc/tcp-metrics-proxy/examples/example-route.socket"
    assert host.container.read(example) == (SYSTEMD / "example-route.socket").read_text()
    host.run("cp", example, "/etc/systemd/system/postgres.socket")
    done = host.run("systemd-analyze", "verify", "--man=no", "/etc/systemd/system/postgres.socket")
    assert done.stdout + done.stderr == ""


def test_verify_would_complain_about_a_wrong_unit(host: Host) -> None:
    wrong = "/etc/systemd/system/test-wrong.socket"
    host.run("cp", f"/usr/lib/systemd/system/{SOCKET}", wrong)
    host.run("sed", "-i", "s/^Backlog=.*/Backlog=many/", wrong)
    done = host.run("systemd-analyze", "verify", "--man=no", wrong, check=False)
    assert "many" in done.stdout + done.stderr


def test_exposure_is_low(host: Host, record_property) -> None:
    limit = f"--threshold={HIGHEST_EXPOSURE * 10:.0f}"
    table = host.run("systemd-analyze", "security", "--offline=yes", limit, SERVICE).stdout
    exposure = re.search(r"exposure level for \S+: ([\d.]+)", table)
    assert exposure, table
    record_property("exposure", exposure[1])
    assert float(exposure[1]) <= HIGHEST_EXPOSURE


def test_the_sandbox_is_in_force_and_not_in_the_way(host: Host) -> None:
    """The settings that could be ignored in silence, as the running process has them."""
    host.systemctl("start", SOCKET)
    host.systemctl("start", SERVICE)
    status = host.container.read(f"/proc/{host.main_pid()}/status")
    assert re.search(r"^CapBnd:\t0+$", status, re.M)
    assert re.search(r"^NoNewPrivs:\t1$", status, re.M)
    assert re.search(r"^Seccomp:\t2$", status, re.M)
    assert not re.search(r"^Uid:\t0\t", status, re.M)
