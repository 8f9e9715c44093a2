"""Debian trees to boot: one per release, built once with mmdebstrap and kept in a cache folder.

A tree is never written to after it is built; containers boot an overlay of it (container.py). It is
rebuilt when its recipe, below, changes. Run this file to build the trees beforehand.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Release:
    """A Debian release and the version of systemd that it has."""

    name: str
    systemd: int


RELEASES = (Release("bookworm", 252), Release("trixie", 257))

# Everything that a test runs inside must be in the tree: containers have no network but loopback.
PACKAGES = (
    "systemd",
    "systemd-sysv",
    "dbus",
    "init-system-helpers",
    "libsystemd0",  # what our package depends on
    "libbpf1",  # without it systemd leaves out SocketBindDeny= in silence
    "python3",  # small peers, and what the documentation's examples call
    "nginx-light",
    "socat",
    "netcat-openbsd",
    "curl",
    "procps",
    "iproute2",
    # Real clients and their servers (test_real_clients.py)
    "openssh-server",
    "postgresql",
    "rsync",
    "python3-websockets",
)

# Undone by the release's own postinst scripts or by Debian's defaults; the rest of the tree is
# what `apt-get install` leaves. Services of the tree are off, so that a test starts what it needs.
CUSTOMIZE = (
    'rm -f "$1"/etc/systemd/system/multi-user.target.wants/*',
    'rm -f "$1"/etc/systemd/system/sockets.target.wants/*',
    'rm -f "$1"/etc/systemd/system/timers.target.wants/*',
    'echo proxy-test > "$1"/etc/hostname',
    'printf "127.0.0.1 localhost proxy-test\\n::1 localhost\\n" > "$1"/etc/hosts',
    ': > "$1"/etc/machine-id',
    # mmdebstrap leaves the host's resolver here; a container that has no network must not wait.
    ': > "$1"/etc/resolv.conf',
)


def cache_folder() -> Path:
    return Path(os.environ.get("SYSTEM_TEST_CACHE", REPOSITORY / ".cache" / "trees"))


def recipe(release: Release) -> str:
    """All that decides what the tree holds, so that a change of it rebuilds the tree."""
    return json.dumps([release.name, PACKAGES, CUSTOMIZE])


def tree(release: Release) -> Path:
    """The unpacked tree of a release, built now if it is missing or stale."""
    cache = cache_folder()
    cache.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256(recipe(release).encode()).hexdigest()[:12]
    path = cache / f"{release.name}-{digest}"
    with (cache / f"{release.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two test runs may share the cache
        if not path.exists():
            for stale in cache.glob(f"{release.name}-*"):
                shutil.rmtree(stale)
            build(release, path)
    return path


def build(release: Release, path: Path) -> None:
    unfinished = path.with_name(path.name + ".unfinished")
    command = [
        "mmdebstrap",
        "--mode=root",
        "--variant=minbase",
        "--format=directory",
        "--quiet",
        f"--include={','.join(PACKAGES)}",
        *(f"--customize-hook={hook}" for hook in CUSTOMIZE),
        release.name,
        str(unfinished),
    ]
    if shutil.which(command[0]) is None:
        raise SystemExit("mmdebstrap is missing: apt-get install mmdebstrap systemd-container")
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
    unfinished.rename(path)


if __name__ == "__main__":
    for wanted in RELEASES:
        began = time.monotonic()
        print(f"{tree(wanted)}  ({time.monotonic() - began:.1f} s)", file=sys.stderr)
