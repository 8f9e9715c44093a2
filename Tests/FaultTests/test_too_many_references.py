"""ETOOMANYREFS: the kernel lets a user send no more descriptors, unix(7)."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest

from harness import Lab, eventually, expect_end
from namespaces import require_root
from process import proxy_binary
from store import Service
from survival import assert_alive
from test_ledger_damage import lives

USER = 61235  # owns nothing, so that nobody else's descriptors count
LIMIT = 200  # of the proxy's descriptors, which is also that of the ones that are under way

# Puts descriptors under way as the same user, as another service of it might.
HOG = """
import array, os, socket, sys
pairs = []
null = os.open("/dev/null", os.O_RDONLY)
for line in sys.stdin:
    wanted = int(line)
    while sum(count for *_, count in pairs) < wanted:
        count = min(50, wanted - sum(count for *_, count in pairs))
        a, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        rights = array.array("i", count * [null])
        a.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
        pairs.append((a, b, count))
    if not wanted:
        pairs.clear()
    print(wanted, flush=True)
"""

PREFIX = [
    "setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups", "--bounding-set=-all",
    "--inh-caps=-all",
]


class Hog:
    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [*PREFIX, sys.executable, "-c", HOG], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            text=True,
        )

    def hold(self, count: int) -> None:
        assert self.process.stdin and self.process.stdout
        print(count, file=self.process.stdin, flush=True)
        assert int(self.process.stdout.readline()) == count


@pytest.fixture
def hog():
    require_root()
    hog = Hog()
    try:
        yield hog
    finally:
        hog.process.communicate()


def service_of_the_user(lab: Lab, target) -> Service:
    binary = lab.folder / "proxy"
    shutil.copy(proxy_binary(), binary)
    binary.chmod(0o755)
    lab.folder.chmod(0o755)
    return Service(
        lab, target, "--preserve-after=0", prefix=PREFIX, binary=binary, nofile=LIMIT
    )


def test_when_nothing_more_can_be_entered_clients_are_served_all_the_same(lab, hog):
    hog.hold(2 * LIMIT)
    target = lab.target()
    service = service_of_the_user(lab, target)
    client, server = lab.pair(service, target)
    assert_alive(client, server)
    service.await_line("not every connection will survive this process")
    assert service.value("tcp_proxy_ledger_entries") == 0
    service.hand_over()  # nothing to hand over, and no barrier gets through: it ends all the same
    expect_end(client)
    expect_end(server)
    service.start()
    client, server = lab.pair(service, target)
    assert_alive(client, server)
    hog.hold(0)
    service.await_entered(1)  # it tries again
    service.kill()
    assert_alive(client, server)


def test_as_many_as_can_be_are_kept(lab, hog):
    hog.hold(LIMIT - 40)
    target = lab.target()
    service = service_of_the_user(lab, target)
    pairs = [lab.pair(service, target) for _ in range(50)]
    for pair in pairs:
        assert_alive(*pair)
    service.await_line("not every connection will survive this process.*NOFILE")
    kept = int(service.value("tcp_proxy_ledger_entries"))
    assert 10 <= kept < 40
    service.hand_over()
    service.start()
    living = [pair for pair in pairs if lives(pair)]
    assert len(living) == kept == service.resumed("restart")
    hog.hold(0)
    service.kill()
    for pair in living:
        assert_alive(*pair)


def test_the_hog_does_what_the_other_tests_rely_on(hog):
    """A check that could not fail would prove nothing: this user can send no descriptor."""
    script = (
        "import array, socket\n"
        "a, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)\n"
        "rights = array.array('i', [0])\n"
        "try: a.sendmsg([b'x'], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])\n"
        "except OSError as error: print(error.errno)\n"
        "else: print('sent')\n"
    )

    def outcome() -> str:
        return subprocess.run(
            [*PREFIX, "prlimit", f"--nofile={LIMIT}:{LIMIT}", sys.executable, "-c", script],
            capture_output=True, text=True, check=True,
        ).stdout.strip()

    assert outcome() == "sent"
    hog.hold(2 * LIMIT)
    assert outcome() == "109"  # ETOOMANYREFS
    hog.hold(0)
    eventually(lambda: outcome() == "sent", "the hog to let go")
