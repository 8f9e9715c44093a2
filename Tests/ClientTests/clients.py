"""Finds the real programs that the client tests need, and runs their servers."""

from __future__ import annotations

import glob
import os
import pwd
import shutil
import socket
import subprocess
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Iterator

import pytest

from harness import DEADLINE, eventually


def tool(name: str) -> str:
    """The path of a program; a missing one fails the test unless ALLOW_MISSING_TOOLS is 1."""
    places = [os.environ.get("PATH", ""), "/usr/sbin", "/sbin"]
    # Debian keeps PostgreSQL's server programs out of PATH, by version: the newest counts.
    places += sorted(glob.glob("/usr/lib/postgresql/*/bin"), key=_version, reverse=True)
    found = shutil.which(name, path=os.pathsep.join(places))
    if found:
        return found
    if os.environ.get("ALLOW_MISSING_TOOLS") == "1":
        pytest.skip(f"{name} is not installed, and ALLOW_MISSING_TOOLS is 1")
    pytest.fail(f"{name} is not installed: run make setup")


def _version(path: str) -> float:
    try:
        return float(Path(path).parent.name)
    except ValueError:
        return 0


def free_port() -> int:
    """A port for a server that cannot be told to choose one itself."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return sock.getsockname()[1]


def unprivileged_user() -> dict[str, Any]:
    """Arguments for subprocess: who is root runs as nobody instead (PostgreSQL asks for that)."""
    if os.geteuid() != 0:
        return {}
    nobody = pwd.getpwnam("nobody")
    return {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}


def run(*command: str, deadline: float = 6 * DEADLINE, **options: Any) -> str:
    """Runs a client to its end; anything but status 0 shows all that it said."""
    result = subprocess.run(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, timeout=deadline, **options,
    )
    assert result.returncode == 0, f"{command[0]}: status {result.returncode}\n{result.stdout}"
    return result.stdout


@contextmanager
def server(log: Path, *command: str, port: int, **options: Any) -> Iterator[subprocess.Popen]:
    """A server that answers on the port; ended by its process id."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, **options
        )
    try:

        def answers() -> bool:
            if process.poll() is not None:
                raise RuntimeError(f"{command[0]} ended:\n{log.read_text(errors='replace')}")
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
            except OSError:
                return False
            return True

        eventually(answers, f"{command[0]} to answer on port {port}", 3 * DEADLINE)
        yield process
    finally:
        process.terminate()
        try:
            process.wait(DEADLINE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
