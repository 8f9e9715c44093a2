"""Every example of the documentation, executed from the documentation itself.

README.md: a ```console block is a transcript. Lines that begin with "$ " or "# " are run, a
trailing "&" leaves the command running, and the lines below are what it must print, "…" standing
for anything. An ```ini block that begins with "# /path" is a file to write. Blocks run in their
order on one fresh host, with the package in the current folder. Other blocks are for a developer's
machine.
"""

from __future__ import annotations

import re
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trees
from container import Container, wait_until
from host import LISTEN, METRICS_SOCKET, SERVICE, SOCKET, Host, exchange, read_all, target

README = trees.REPOSITORY / "README.md"
PAGES = trees.REPOSITORY / "packaging" / "man"
DATABASE = 5432
# These only look, and a reader who is quicker than what they look at repeats them.
LOOKS = ("systemctl status", "journalctl", "curl")


def fences(text: str) -> list[tuple[str, str]]:
    """(info string, content) of every fenced block."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", text, re.M | re.S)


def literal_blocks(page: str) -> list[str]:
    """The displays of a manual page in mdoc, in their order."""
    text = (PAGES / page).read_text()
    return [
        block.replace("\\e\n", "\\\n")
        for block in re.findall(r"^\.Bd -literal[^\n]*\n(.*?)^\.Ed$", text, re.M | re.S)
    ]


def transcript(text: str) -> list[tuple[str, list[str]]]:
    """(command, lines that it must print) of a transcript."""
    steps: list[tuple[str, list[str]]] = []
    for line in text.splitlines():
        if line.startswith(("$ ", "# ")):
            steps.append((line[2:].removeprefix("sudo "), []))
        elif steps and steps[-1][0].endswith("\\"):
            steps[-1] = (steps[-1][0] + "\n" + line.removeprefix("> "), [])
        else:
            steps[-1][1].append(line)
    return steps


def matches(expected: list[str], printed: str) -> bool:
    """As written, but for trailing blanks and "…", which stands for anything, lines included."""
    wanted = "\n".join(line.rstrip() for line in expected).strip()
    actual = "\n".join(line.rstrip() for line in printed.splitlines()).strip()
    pattern = ".*".join(re.escape(part) for part in wanted.split("…"))
    return re.fullmatch(pattern, actual, re.S) is not None


def test_the_comparison_sees_a_difference() -> None:
    assert matches(["a … c"], "a b c\n")
    assert not matches(["a … c"], "a b\n")
    assert not matches(["a"], "a\nb\n")


@pytest.fixture
def fresh(release: trees.Release, package: Path) -> Iterator[Container]:
    with Container(trees.tree(release)) as container:
        container.copy_in(package, f"/root/{package.name}")
        yield container


def test_readme(fresh: Container) -> None:
    blocks = [(kind, text) for kind, text in fences(README.read_text()) if kind != "sh"]
    assert sum(kind == "console" for kind, _ in blocks) >= 1, "README.md has no transcript"
    going_on: list[subprocess.Popen[bytes]] = []
    for kind, text in blocks:
        path = re.match(r"# (/\S+)\n", text)
        if kind == "ini" and path:
            fresh.write(path[1], text)
        if kind != "console":
            continue
        for command, expected in transcript(text):
            script = f"cd /root; {command}"
            if command.endswith("&"):
                going_on.append(fresh.start("bash", "-ec", "exec " + command.rstrip(" &")))
                wait_until("it has started", lambda: is_settled(fresh, going_on[-1]))
                continue
            step = Step(fresh, script)
            deadline = time.monotonic() + (5 if command.startswith(LOOKS) else 0)
            while not step.run_again(expected):
                said = f"{step.printed}\nexpected:\n" + "\n".join(expected)
                assert time.monotonic() < deadline, said
                time.sleep(0.1)  # the poll's interval


class Step:
    """One command of the transcript."""

    def __init__(self, container: Container, script: str) -> None:
        self.container, self.script = container, script
        self.printed = ""

    def run_again(self, expected: list[str]) -> bool:
        done = self.container.shell(self.script, check=False)
        self.printed = f"{self.script}\n{done.stdout}{done.stderr}status {done.returncode}"
        said = done.stdout + done.stderr
        return done.returncode == 0 and (not expected or matches(expected, said))


def is_settled(container: Container, process: subprocess.Popen[bytes]) -> bool:
    """True when a background command has ended or waits for a client."""
    if process.poll() is not None:
        return True
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    if not children:
        return False
    inside = Path(f"/proc/{children[0]}/status").read_text()
    pid = re.search(r"^NSpid:.*\t(\d+)$", inside, re.M)
    return pid is not None and f"pid={pid[1]}," in container.run("ss", "-Hlxtnp").stdout


def test_man_page_of_the_command(host: Host) -> None:
    by_hand, activated, check = literal_blocks("tcp-metrics-proxy.1")[-3:]

    proxy, curl = re.sub(r"\\\n\s*", "", by_hand).strip().splitlines()
    process = host.container.start("bash", "-ec", f"exec {proxy}")
    host.wait_listening(3002)
    with target(host.container), host.container.connect(LISTEN) as client:
        assert exchange(client) == b"ping"
    assert "inbound_connection_count" in host.container.shell(curl).stdout
    host.container.kill(process, signal.SIGTERM)
    assert process.wait(timeout=10) == 0

    process = host.container.start("bash", "-ec", f"exec {activated.strip()}")
    host.wait_listening(3000)
    with target(host.container), host.container.connect(LISTEN) as client:
        assert exchange(client) == b"ping"
    host.container.kill(process, signal.SIGTERM)
    assert process.wait(timeout=10) == 0

    assert host.container.shell(check, check=False).returncode == 0


@contextmanager
def databases(container: Container) -> Iterator[None]:
    """Two hosts of the example's names, in a network namespace of their own."""
    container.shell(
        "ip netns add far && ip link add near0 type veth peer far0 netns far"
        " && ip address add 10.99.0.1/24 dev near0 && ip link set near0 up"
        " && ip -n far address add 10.99.0.2/24 dev far0"
        " && ip -n far address add 10.99.0.3/24 dev far0 && ip -n far link set far0 up"
        " && cp /etc/hosts /root/hosts"
        " && printf '10.99.0.2 db1.internal\\n10.99.0.3 db2.internal\\n' >> /etc/hosts"
    )
    try:
        yield
    finally:
        container.shell("ip netns delete far; cat /root/hosts > /etc/hosts")


@contextmanager
def database(container: Container, address: str, name: str) -> Iterator[None]:
    listen = f"TCP-LISTEN:{DATABASE},bind={address},fork,reuseaddr"
    process = container.start(
        *("ip", "netns", "exec", "far", "socat", listen, f"SYSTEM:echo {name}")
    )
    listening = ("ip", "netns", "exec", "far", "ss", "-Hltn", f"src {address}:{DATABASE}")
    try:
        wait_until(f"{name} listens", lambda: container.run(*listening).stdout)
        yield
    finally:
        container.kill(process, signal.SIGKILL)
        process.wait()


def said(host: Host) -> bytes:
    with host.container.connect(("127.0.0.1", DATABASE)) as client:
        return read_all(client)


def test_man_page_of_the_service(host: Host) -> None:
    """The example route is added while the service runs, used, searched for, and edited."""
    add, edit, drain, unit, search = literal_blocks("tcp-metrics-proxy.service.8")
    container = host.container
    host.enable(SOCKET, METRICS_SOCKET)
    host.systemctl("start", SERVICE)

    path = re.match(r"# (/\S+)\n", unit)
    assert path
    container.write(path[1], unit)
    container.shell(add)
    with databases(container):
        with database(container, "10.99.0.2", "db1"), database(container, "10.99.0.3", "db2"):
            assert said(host) == b"db1\n"
        with database(container, "10.99.0.3", "db2"):
            assert said(host) == b"db2\n"
        host.wait_entry("CONNECTION_ENDED", "PROXY_ROUTE=postgres")

        # `systemctl edit` wants a terminal, and an editor that writes between its two comments.
        text = r"[X-Proxy]\nConnectTimeoutSec=200ms"
        editor = f"for file; do :; done\nsed -i '/^### Anything between/a {text}' \"$file\"\n"
        container.write("/root/editor", "#!/bin/sh\n" + editor, "0755")
        edit_command, reload_command = edit.strip().splitlines()
        container.shell(f"SYSTEMD_EDITOR=/root/editor script -qec '{edit_command}' /dev/null")
        assert "ConnectTimeoutSec=200ms" in host.systemctl("cat", "postgres.socket").stdout
        container.shell(reload_command)
        host.wait_entry("ROUTES_RELOADED")
        began = time.monotonic()
        with pytest.raises(ConnectionResetError):  # no database runs
            said(host)
        assert time.monotonic() - began < 5  # the default is 10 s
        host.wait_entry("CONNECTION_FAILED", "PROXY_ROUTE=postgres")
        explained, as_json = search.strip().splitlines()
        assert "Subject: Connection on route postgres failed" in container.shell(explained).stdout
        assert '"PROXY_ROUTE":"postgres"' in container.shell(as_json).stdout

    command, text = drain.split("\n\n", 1)
    assert command == f"systemctl edit {SERVICE}"
    host.drop_in(SERVICE, text)
    host.systemctl("restart", SERVICE)
    assert "--drain-timeout=infinity" in container.read(f"/proc/{host.main_pid()}/cmdline")


@pytest.mark.parametrize("page", ["tcp-metrics-proxy.1", "tcp-metrics-proxy.service.8"])
def test_man_page_and_help_name_the_same_options(host: Host, page: str) -> None:
    """Long options of --help are all in tcp-metrics-proxy(1), and no page names one that is not."""
    help_text = host.run("tcp-metrics-proxy", "--help").stdout
    known = set(re.findall(r"(?<![\w-])--?([a-z][a-z-]{2,})\b", help_text))
    text = (PAGES / page).read_text()
    named = set(re.findall(r"(?:Fl (?:Fl )?|--)([a-z][a-z-]{2,})", text))
    assert named - known <= {"now", "route", "generate-completion-script"}
    if page == "tcp-metrics-proxy.1":
        assert known - named == set()


def test_the_manual_lists_every_route_key_and_field() -> None:
    text = (PAGES / "tcp-metrics-proxy.service.8").read_text()
    example = (trees.REPOSITORY / "packaging/systemd/example-route.socket").read_text()
    section = example.split("[X-Proxy]")[1].split("[Install]")[0]
    keys = set(re.findall(r"^#?([A-Z]\w+)=", section, re.M))
    assert len(keys) >= 5
    assert keys == set(re.findall(r"^\.It Li (\w+)= Ta", text, re.M))
