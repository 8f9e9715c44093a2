"""No more threads: at start that is an error with one line, later it costs look-ups only."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
from pathlib import Path

import pytest

from harness import (
    DEADLINE, MIB, Lab, host_port, parallel, proxy_binary, receive_exactly, receive_stream,
    send_stream,
)
from inherited import listening
from namespaces import require_root

# A user of our own: RLIMIT_NPROC counts the threads of all processes of a user, and binds neither
# root nor who has CAP_SYS_RESOURCE (setrlimit(2)).
USER = 100_000 + os.getpid() % 100_000

pytestmark = pytest.mark.bare


def as_user(limit: int | None = None) -> list[str]:
    require_root()
    limiting = [] if limit is None else ["prlimit", f"--nproc={limit}:{limit}"]
    return [
        "setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups", "--bounding-set=-all",
        "--inh-caps=-all", *limiting,
    ]


@pytest.fixture
def binary(lab: Lab) -> Path:
    """A copy that the other user may run."""
    copy = lab.folder / "proxy"
    shutil.copy(proxy_binary(), copy)
    copy.chmod(0o755)
    lab.folder.chmod(0o755)
    return copy


def threads(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/task"))


@pytest.mark.parametrize("metrics", ["127.0.0.1:0", "none"])
def test_start_at_the_limit_is_refused_in_one_line(lab, binary, metrics):
    """Whichever thread it is that there is no room for: each limit refuses another one."""
    needed = _threads_at_start(binary, metrics)
    assert needed >= 3, "the limit would have nothing to refuse"
    outcomes = {}
    for limit in range(1, needed):
        result = subprocess.run(
            [
                *as_user(limit), str(binary), "-listen=127.0.0.1:0", f"-metrics={metrics}",
                "-target=127.0.0.1:9", "--workers=1",
            ],
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=DEADLINE,
        )
        outcomes[limit] = (result.returncode, result.stderr)
    for limit, (status, log) in outcomes.items():
        assert status == 1, f"status {status} with {limit} of {needed} threads: {outcomes}"
        assert len(log.splitlines()) == 1, f"not one line with {limit} threads: {log!r}"
        assert re.search("Resource temporarily unavailable|limit on threads", log), log


def _threads_at_start(binary: Path, metrics: str) -> int:
    """How many it has without a limit, once it listens."""
    with subprocess.Popen(
        [
            *as_user(), str(binary), "-listen=127.0.0.1:0", f"-metrics={metrics}",
            "-target=127.0.0.1:9", "--workers=1",
        ],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    ) as process:
        assert process.stderr
        line = process.stderr.readline()
        assert "listening on" in line, line
        count = threads(process.pid)
        process.terminate()
        process.stderr.read()
    assert process.returncode == 0
    return count


def test_look_up_at_the_limit_resets_its_client_and_spares_the_others(lab, binary):
    """One route has an address and goes on; the other has a name, for which there is no thread."""
    limit = _threads_at_start(binary, "127.0.0.1:0")
    echo, target = lab.echo(), lab.target()
    path = str(lab.folder / "fixed")
    proxy = lab.proxy(
        None, f"--route=named=localhost:{echo.address[1]}",
        f"--route=fixed={host_port(target.address)}", "--workers=1",
        prefix=[*listening("127.0.0.1", path, names="named:fixed"), *as_user(limit)],
        binary=binary,
    )
    assert os.stat(f"/proc/{proxy.pid}").st_uid == USER
    assert threads(proxy.pid) == limit, "there is room for another thread"
    client = socket.socket(socket.AF_UNIX)
    lab.sockets.append(client)
    client.settimeout(DEADLINE)
    client.connect(path)
    server = target.accept()

    tries = 20
    count = 8 * MIB
    parallel(
        lambda: send_stream(client, "up", count),
        lambda: receive_stream(server, "up", count),
        lambda: send_stream(server, "down", count),
        lambda: receive_stream(client, "down", count),
        lambda: [lab.expect_refusal(proxy) for _ in range(tries)] and None,
    )
    proxy.await_closed(target_unresolved=tries)
    client.sendall(b"x")
    assert receive_exactly(server, 1) == b"x"
    assert echo.accepted == 0
    assert threads(proxy.pid) == limit
