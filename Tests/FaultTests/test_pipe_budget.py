"""The user's pipe budget is spent: new pipes hold two pages, and bytes are copied instead.

For who is not root the kernel cuts pipes beyond /proc/sys/fs/pipe-user-pages-soft: pipe(7).
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys

import pytest

from harness import (
    KIB, MIB, Proxy, cycle, fill, parallel, proxy_binary, receive_stream, send_stream,
)
from namespaces import require_root

USER = 61234  # a user id that owns nothing, so that no other program spends or needs its budget

# Spends the budget on empty pipes: the kernel counts their size, not what is in them.
HOG = """
import fcntl, os, sys
pipes = []
while True:
    pipes.append(os.pipe())
    try:
        if fcntl.fcntl(pipes[-1][0], fcntl.F_SETPIPE_SZ, 1 << 20) < 1 << 20: break
    except OSError: break
    if len(pipes) > 4000: break
while fcntl.fcntl(pipes[-1][0], fcntl.F_GETPIPE_SZ) > 8192: pipes.append(os.pipe())
print(len(pipes), flush=True)
sys.stdin.read()
"""


@pytest.fixture
def spent_budget(folder):
    """Runs the hog; yields a prefix that runs a program as the same user."""
    require_root()
    soft = int(open("/proc/sys/fs/pipe-user-pages-soft").read())
    if soft == 0:
        pytest.skip("this host has no soft limit of pipe pages")
    prefix = [
        "setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups", "--bounding-set=-all",
        "--inh-caps=-all",
    ]
    hog = subprocess.Popen(
        [*prefix, sys.executable, "-c", HOG], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert hog.stdout and int(hog.stdout.readline()) > 0
        yield prefix
    finally:
        hog.communicate()


def unprivileged(lab, target, prefix: list[str], *arguments: str) -> Proxy:
    binary = lab.folder / "proxy"
    shutil.copy(proxy_binary(), binary)
    binary.chmod(0o755)
    lab.folder.chmod(0o755)
    return lab.proxy(target, *arguments, prefix=prefix, binary=binary)


def test_bulk_is_copied_when_pipes_are_too_small_and_no_byte_is_lost(lab, spent_budget):
    target = lab.target()
    proxy = unprivileged(lab, target, spent_budget)
    assert os.stat(f"/proc/{proxy.pid}").st_uid == USER
    client, server = lab.pair(proxy, target)
    count = 32 * MIB
    parallel(
        lambda: send_stream(client, "up", count, finish=True),
        lambda: receive_stream(server, "up", count, until_eof=True),
        lambda: send_stream(server, "down", count, cycle(300_000, 1), finish=True),
        lambda: receive_stream(client, "down", count, until_eof=True),
    )
    metrics = proxy.scrape()
    assert metrics.value("inbound_bytes_count") == count
    spliced = metrics.value("tcp_proxy_spliced_bytes_total")
    assert spliced < count / 4, f"{spliced / MIB:.0f} MiB went through pipes of two pages"


def test_slow_readers_without_pipes_get_every_byte(lab, spent_budget):
    """Remainders have no pipe to wait in: they must wait elsewhere, or not be read at all."""
    target = lab.target(receive_buffer=16 * KIB)
    proxy = unprivileged(lab, target, spent_budget)
    pairs = [lab.pair(proxy, target, receive_buffer=16 * KIB) for _ in range(8)]
    counts = parallel(*(
        (lambda sock=sock, name=name: fill(sock, name))
        for number, pair in enumerate(pairs)
        for name, sock in ((f"up {number}", pair[0]), (f"down {number}", pair[1]))
    ))
    proxy.assert_idle()
    for pair in pairs:
        for sock in pair:
            sock.shutdown(1)
    parallel(*(
        (lambda sock=sock, name=name, count=count: receive_stream(
            sock, name, count, chunks=cycle(7000, 100), until_eof=True
        ))
        for number, pair in enumerate(pairs)
        for name, sock, count in (
            (f"up {number}", pair[1], counts[2 * number]),
            (f"down {number}", pair[0], counts[2 * number + 1]),
        )
    ))


def test_the_hog_does_what_the_other_tests_rely_on(spent_budget):
    """A check that could not fail would prove nothing: this user's new pipe has two pages."""
    script = "import fcntl, os; print(fcntl.fcntl(os.pipe()[0], fcntl.F_GETPIPE_SZ))"
    size = subprocess.run(
        [*spent_budget, sys.executable, "-c", script], capture_output=True, text=True, check=True
    ).stdout
    assert int(size) == 2 * os.sysconf("SC_PAGE_SIZE")
    reading, writing = os.pipe()  # root's own are as large as ever
    assert fcntl.fcntl(reading, fcntl.F_GETPIPE_SZ) == 64 * KIB
    os.close(reading)
    os.close(writing)
