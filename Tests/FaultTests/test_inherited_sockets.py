"""Sockets that are there at start: those meant for the proxy, those not, and those missing."""

from __future__ import annotations

import shutil
import socket
import subprocess

import pytest

from harness import DEADLINE, Lab, echo_once, eventually, expect_eof, host_port, proxy_binary
from inherited import listening, standard_input
from test_command_line import assert_one_line, run


@pytest.mark.parametrize("kind", ["socketpair", "connection"])
def test_socket_on_standard_input_does_not_keep_it_from_listening(lab, kind):
    """Who says -listen wants a listener, whatever a parent has put on standard input."""
    proxy = lab.proxy(lab.echo(), prefix=standard_input(kind))
    echo_once(lab.client(proxy))
    echo_once(lab.client(proxy))


@pytest.mark.parametrize("announced, names", [
    (2, "a:b"),  # one more than there are
    (1, "a:b"),  # one name too many
])
def test_announcement_that_is_not_true_is_refused_in_one_line(announced, names):
    prefix = listening("127.0.0.1", names=names, announced=announced)
    assert_one_line(run("127.0.0.1:9", prefix=prefix), 1, "LISTEN_FDS")


def test_announcement_that_is_true_is_served(lab):
    """The counterpart: what is refused above is refused for the announcement alone."""
    proxy = lab.proxy(lab.echo(), prefix=listening("127.0.0.1", names="a"))
    assert proxy.lines(r"listening on \S+ \(a to ")
    echo_once(lab.client(proxy))


@pytest.fixture
def activated(lab: Lab):
    """Starts the proxy as systemd would, at its first client, with no time to be idle."""
    if shutil.which("systemd-socket-activate") is None:
        pytest.skip("systemd-socket-activate is not installed")
    path = str(lab.folder / "listen")
    process = subprocess.Popen(
        [
            "systemd-socket-activate", f"--listen={path}", str(proxy_binary()),
            "--exit-idle-time=0", "-metrics=none", f"-target={host_port(lab.echo().address)}",
        ],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )
    try:
        yield path, process
    finally:
        process.kill()
        process.communicate()


def test_exit_idle_time_of_zero_serves_the_client_that_started_it(lab, activated):
    path, process = activated

    def connected() -> socket.socket | None:
        client = socket.socket(socket.AF_UNIX)
        try:
            client.connect(path)
        except OSError:
            client.close()
            return None
        return client

    client = eventually(connected, "systemd-socket-activate to listen")
    lab.sockets.append(client)
    client.settimeout(DEADLINE)
    echo_once(client)
    echo_once(client, b"and again")
    assert process.poll() is None
    client.shutdown(socket.SHUT_WR)
    expect_eof(client)
    client.close()
    _, log = process.communicate(timeout=DEADLINE)
    assert process.returncode == 0, log
