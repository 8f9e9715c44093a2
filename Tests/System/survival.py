"""What the tests of survival share: load in programs of their own, and ways to end the service."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from container import Container, wait_until
from host import LISTEN, METRICS_SOCKET, SERVICE, SOCKET, TARGET, Host

# The blink that a client may see. The benchmark has the figures; this is for a busy machine.
GAP_SECONDS = 2.5

HERE = Path(__file__).parent
Report = dict[str, Any]

RESUMED = "tcp_proxy_connections_resumed_total"
LOST = "tcp_proxy_connections_lost_total"
ENTRIES = "tcp_proxy_ledger_entries"
GAP = "tcp_proxy_handover_duration_seconds"
ACTIVE = "tcp_proxy_connections_active"


class Program:
    """load.py or bulk.py in the container's network, as long as the block lasts."""

    def __init__(
        self,
        container: Container,
        script: str,
        *options: str,
        connect: tuple[str, int] = LISTEN,
        target: tuple[str, int] = TARGET,
    ) -> None:
        self.command = [
            "nsenter",
            f"--net=/proc/{container.leader}/ns/net",
            sys.executable,
            str(HERE / script),
            "--connect={}:{}".format(*connect),
            "--target={}:{}".format(*target),
            *options,
        ]
        self.last: Report = {}

    def __enter__(self) -> Program:
        self.process = subprocess.Popen(
            self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        return self

    def ask(self, command: str = "report") -> Report:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        assert line, f"{self.command[3]} ended with status {self.process.wait()}"
        self.last = json.loads(line)
        return self.last

    def finish(self) -> Report:
        """Lets every stream come to its end, and returns the last report."""
        assert self.process.stdin and self.process.stdout
        self.process.stdin.close()
        self.last = json.loads(self.process.stdout.read().splitlines()[-1])
        self.process.wait()
        return self.last

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            if stream:
                stream.close()


class PingPong(Program):
    """`count` kept connections with a message each `period` seconds, and `churn` new ones a second
    that end after so many `messages`."""

    def __init__(
        self,
        container: Container,
        count: int,
        period: float = 0.1,
        churn: float = 0,
        messages: int = 1,
        **to: Any,
    ) -> None:
        options = [f"--connections={count}", f"--period={period}"]
        options += [f"--churn={churn}", f"--messages={messages}"]
        super().__init__(container, "load.py", *options, **to)
        self.count = count
        # Errors that the test expects, as load.py names them: it looks at their number itself.
        self.expected: set[str] = set()

    def check(self, report: Report) -> None:
        assert set(report["errors"]) <= self.expected, report

    def broken(self) -> int:
        """How many of the kept connections have been reset."""
        errors = self.last["errors"]
        return sum(count for name, count in errors.items() if name.startswith("kept: "))

    def wait_round(self, seconds: float = 15) -> Report:
        """Until every kept connection has had an answer to a message sent from now on. Fails at
        the first error; returns the report, whose `longest_gap` is since the last round."""

        def done() -> bool:
            self.check(self.ask())
            return self.last["quiet"] <= self.broken() and self.last["opened"] >= self.count

        began = self.ask("mark")
        wait_until("every connection answers", done, seconds)
        gap = max(began["gap_before"], self.last["longest_gap"])
        return self.last | {"longest_gap": gap}

    def finish(self) -> Report:
        report = super().finish()
        self.check(report)
        return report


class Bulk(Program):
    """`count` connections that are busy both ways with writes of `block` bytes, each compared."""

    def __init__(
        self, container: Container, count: int, block: int = 256 * 1024, **to: Any
    ) -> None:
        options = [f"--connections={count}", f"--block={block}"]
        super().__init__(container, "bulk.py", *options, **to)
        self.resets_are_expected = False

    def check(self, report: Report) -> None:
        for error in report["errors"].values():
            reset = error.endswith((": ECONNRESET", ": EPIPE"))
            assert reset and self.resets_are_expected, report

    def broken(self) -> int:
        """How many connections have been reset."""
        return len({name.split()[0] for name in self.last["errors"]})

    def wait_bytes(self, more: int, seconds: float = 20) -> Report:
        """Until each stream that lives has moved so many more bytes than by now."""
        goal = {name: received + more for name, received in self.ask()["received"].items()}

        def done() -> bool:
            self.check(self.ask())
            received, errors = self.last["received"], self.last["errors"]
            return all(received[name] >= goal[name] for name in goal if name not in errors)

        wait_until(f"{more} more bytes each way", done, seconds)
        return self.last

    def finish(self) -> Report:
        report = super().finish()
        self.check(report)
        return report


def enable(host: Host) -> None:
    host.enable(SOCKET, METRICS_SOCKET)


def wait_entered(host: Host, count: int, seconds: float = 15) -> None:
    """Until so many connections are in the ledgers and would survive a crash."""
    wait_until(
        f"{count} connections are entered",
        lambda: host.metrics().metric(ENTRIES) >= count,
        seconds,
    )


def resumed(host: Host) -> tuple[float, float]:
    """The connections that the running process has taken over, and those that it could not."""
    reply = host.metrics()
    return reply.metric(RESUMED), reply.metric(LOST)


def lost_connections(host: Host) -> int:
    """How many could not go on, by all the starts of this test, as the journal tells. Fails if
    there was another reason than bytes that were in the process alone."""
    lost = 0
    for entry in host.entries("CONNECTIONS_RESUMED"):
        count = int(entry["PROXY_LOST"])
        assert count == 0 or entry["MESSAGE"].endswith(f"; lost {count} (bytes-lost {count})")
        lost += count
    return lost


def kill(host: Host, signal: str = "KILL") -> int:
    """Ends the service's process and waits for the next one; returns its pid."""
    pid = wait_replaced(host, 0)
    host.run("kill", f"-{signal}", str(pid))
    return wait_replaced(host, pid)


def wait_replaced(host: Host, pid: int, seconds: float = 10) -> int:
    def successor() -> int:
        # Not show(): while systemd replaces itself, systemctl may find nobody to ask.
        command = ("show", SERVICE, "--property=MainPID,ActiveState")
        seen = host.systemctl(*command, check=False).stdout
        found = re.search(r"^MainPID=([1-9]\d*)$", seen, re.M)
        now = int(found[1]) if found else 0
        return now if "ActiveState=active\n" in seen and now != pid else 0

    return wait_until("another process serves", successor, seconds)


@contextmanager
def meanwhile(*actions: Callable[[], object]) -> Iterator[None]:
    """Repeats each action in a thread of its own until the block ends; their errors are raised."""
    ended = threading.Event()
    errors: list[BaseException] = []

    def repeat(action: Callable[[], object]) -> None:
        try:
            while not ended.is_set():
                action()
                ended.wait(0.05)
        except BaseException as error:  # noqa: BLE001 - raised again below
            errors.append(error)

    threads = [threading.Thread(target=repeat, args=(action,)) for action in actions]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        ended.set()
        for thread in threads:
            thread.join()
    if errors:
        raise errors[0]
