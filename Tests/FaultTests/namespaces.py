"""Linux namespaces for one proxy: its own network, or its own files under /etc. Needs root."""

from __future__ import annotations

import ctypes
import os
import subprocess
import threading
from pathlib import Path
from typing import Callable, TypeVar

import pytest

T = TypeVar("T")
_CLONE_NEWNET = 0x40000000


def require_root() -> None:
    if os.geteuid() != 0:
        pytest.fail("needs root: it makes namespaces")


def own_network(setup: str = "") -> list[str]:
    """A prefix for `lab.proxy`: loopback only, after the shell commands of `setup`."""
    require_root()
    return ["unshare", "--net", "sh", "-ec", f'ip link set lo up\n{setup}\nexec "$@"', "sh"]


def own_files(files: dict[str, Path]) -> list[str]:
    """A prefix for `lab.proxy` that sees other files at these paths.

    A bind mount shows an inode: change such a file in place, never by renaming another over it.
    """
    require_root()
    mounts = "\n".join(f"mount --bind {source} {path}" for path, source in files.items())
    return ["unshare", "--mount", "sh", "-ec", f'{mounts}\nexec "$@"', "sh"]


def run_in_network(pid: int, *command: str) -> None:
    subprocess.run(["nsenter", f"--target={pid}", "--net", *command], check=True)


def in_network(pid: int, action: Callable[[], T]) -> T:
    """Runs `action` in the network of the process; sockets made there stay in it."""
    result: list[T] = []
    errors: list[BaseException] = []

    def enter() -> None:
        try:
            libc = ctypes.CDLL(None, use_errno=True)
            with open(f"/proc/{pid}/ns/net") as namespace:
                if libc.setns(namespace.fileno(), _CLONE_NEWNET) == -1:
                    raise OSError(ctypes.get_errno(), "setns")
            result.append(action())
        except BaseException as error:  # shown to the caller
            errors.append(error)

    thread = threading.Thread(target=enter)  # setns(2) moves this thread alone
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return result[0]
