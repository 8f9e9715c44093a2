#!/usr/bin/env python3
"""What clients notice when the service is restarted or killed. See README.md for the columns.

For each release: a booted container with the package installed, clients that play ping-pong
through the proxy with a target, and round after round of `systemctl restart` or `kill -9`.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import platform
import resource
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from bench import BenchError, Process, figure, machine_busy_s, table

HERE = Path(__file__).resolve().parent
PINGPONG = HERE / "build" / "pingpong"
sys.path.insert(0, str(HERE.parent / "Tests" / "System"))

import trees  # noqa: E402
from container import Container, Reply, wait_until  # noqa: E402
from host import LISTEN, METRICS, METRICS_SOCKET, SERVICE, SOCKET, TARGET, Host  # noqa: E402

COUNTS = (1, 100, 1_000, 4_000, 9_000)
EVENTS = ("restart", "kill -9")
# All clients together; two CPUs are then a sixth busy, so a wait is the proxy's doing, and what
# has gathered in a gap is answered in a fraction of it.
EXCHANGES_PER_SECOND = 10_000
ENTERED_SECONDS = 15  # a connection is entered after its first second
BACK_SECONDS = 60
GAP_GOAL_MS, MANAGER_GOAL_MS = 250, 50


def pause_ms(count: int) -> float:
    return max(1.0, count * 1e3 / EXCHANGES_PER_SECOND)


def process_cpu_ns(pid: int) -> int:
    """User and kernel time of all its threads: clock_getcpuclockid(3), to the nanosecond."""
    return time.clock_gettime_ns((~pid << 3) | 2)


# ---- the service ------------------------------------------------------------------------------


def metric(host: Host, name: str, **labels: str) -> float:
    """Waits for the service, as its clients do: a scrape stays in the backlog until it is back."""
    def scraped() -> Reply | None:
        try:
            return host.metrics()
        except (OSError, http.client.HTTPException):  # it was being killed
            return None
    return wait_until("metrics are served", scraped, BACK_SECONDS).metric(name, **labels)


def wait_entered(host: Host, count: int) -> None:
    wait_until(f"{count} connections are entered",
               lambda: metric(host, "tcp_proxy_ledger_entries") >= count, ENTERED_SECONDS)


@contextlib.contextmanager
def service(release: trees.Release, package: Path) -> Iterator[Host]:
    with Container(trees.tree(release)) as container:
        host = Host(container)
        host.install(package)
        host.enable(SOCKET, METRICS_SOCKET)
        host.systemctl("start", SERVICE)
        yield host


@contextlib.contextmanager
def ranked_first() -> Iterator[None]:
    """What is started inside goes before what else the machine does; among itself it is equal.

    By a cgroup for the CPU, where that is of version 1 and we may make one. Not by nice values:
    each service is a session, and its niceness then counts within that alone, sched(7).
    """
    root = Path("/sys/fs/cgroup/cpu")
    group = root / f"restart-bench-{os.getpid()}"
    try:
        group.mkdir()
        (group / "cpu.shares").write_text("262144")  # the most; others have 1,024
        (group / "cgroup.procs").write_text(str(os.getpid()))
    except OSError:
        yield
        return
    try:
        yield
    finally:
        (root / "cgroup.procs").write_text(str(os.getpid()))
        with contextlib.suppress(OSError):  # a process of it is still ending
            group.rmdir()


class Clients:
    """The load program of one count, with its target, inside the container's network."""

    def __init__(self, host: Host, count: int, directory: Path, cpus: set[int]) -> None:
        net = f"--net=/proc/{host.container.leader}/ns/net"
        self.target = Process(["nsenter", net, str(PINGPONG), "target", str(TARGET[1])],
                              directory / "target.log", cpus, preferred=False)
        self.clients = Process(
            ["nsenter", net, str(PINGPONG), "clients", str(LISTEN[1]), str(count),
             str(pause_ms(count))], directory / "clients.log", cpus, preferred=False)

    def __enter__(self) -> Clients:
        try:
            for process, words in ((self.target, ["ready"]), (self.clients, ["ready", "marked"])):
                for word in words:
                    line = process.line().strip()
                    assert line == word, line
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.clients.__exit__()
        self.target.__exit__()

    def order(self, word: str) -> str:
        self.clients.child.stdin.write(word + "\n")
        self.clients.child.stdin.flush()
        return self.clients.line()


# ---- measuring --------------------------------------------------------------------------------


def restart(host: Host, _: int) -> None:
    host.systemctl("restart", SERVICE)


def kill(host: Host, pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    wait_until("the killed process is gone", lambda: not Path(f"/proc/{pid}").exists())


ACTIONS: dict[str, Callable[[Host, int], None]] = {"restart": restart, "kill -9": kill}
CAUSES = {"restart": "restart", "kill -9": "crash"}


def one_round(host: Host, clients: Clients, event: str, count: int) -> dict[str, Any]:
    """One restart or crash with what the clients, systemd and the proxy say of it."""
    container = host.container
    # A dead client is no longer entered; the round then shows what becomes of the others.
    alive = json.loads(clients.order("report"))["open"]
    wait_entered(host, alive)
    pid = container.host_pid(host.main_pid())
    usual_s = max(0.3, 2 * pause_ms(count) / 1e3)
    clients.order("mark")
    time.sleep(usual_s)
    usual = json.loads(clients.order("report"))

    clients.order("mark")
    busy, manager, began = machine_busy_s(), process_cpu_ns(container.leader), time.monotonic()
    ACTIONS[event](host, pid)
    # Metrics are served before the connections are: this figure is there when all go on.
    wait_until("the service has resumed",
               lambda: metric(host, "tcp_proxy_handover_duration_seconds") > 0, BACK_SECONDS)
    time.sleep(usual_s)  # every client asks again, and those who wait are answered
    manager_ns = process_cpu_ns(container.leader) - manager
    took_s, busy_s = time.monotonic() - began, machine_busy_s() - busy
    seen = json.loads(clients.order("report"))

    # systemd's clock is ours: CLOCK_MONOTONIC, in microseconds.
    ready_s = int(container.property(SERVICE, "ActiveEnterTimestampMonotonic")) / 1e6 - began
    if ready_s <= 0:
        raise BenchError(f"{event}: {SERVICE} did not start again")
    return {
        "longest_ms": seen["longest_ms"], "hit_p50_ms": seen["hit_p50_ms"], "hit": seen["hit"],
        "usual_longest_ms": usual["longest_ms"], "manager_cpu_ms": manager_ns / 1e6,
        "ready_ms": ready_s * 1e3, "expected": alive,
        "resumed": metric(host, "tcp_proxy_connections_resumed_total", cause=CAUSES[event]),
        "errors": seen["errors"], "first_error": seen["first_error"],
        "handover_ms": metric(host, "tcp_proxy_handover_duration_seconds") * 1e3,
        "lost": metric(host, "tcp_proxy_connections_lost_total"),
        "machine_busy_cpus": busy_s / took_s,
    }


def measure(host: Host, event: str, count: int, rounds: int, directory: Path,
            cpus: set[int]) -> dict[str, Any]:
    with Clients(host, count, directory, cpus) as clients:
        runs = [one_round(host, clients, event, count) for _ in range(rounds)]
    wait_until("the clients' connections are closed",
               lambda: metric(host, "tcp_proxy_connections_active") == 0)
    keys = [key for key, value in runs[0].items() if not isinstance(value, str)]
    return {
        "event": event, "connections": count, "runs": runs,
        "median": {key: statistics.median(run[key] for run in runs) for key in keys},
        "worst_ms": max(run["longest_ms"] for run in runs),
        "lost": sum(run["lost"] for run in runs),
        "errors": runs[-1]["errors"],  # the load program counts them from its start
        "first_error": runs[-1]["first_error"],
        "all_resumed": all(run["resumed"] + run["lost"] == run["expected"] for run in runs),
    }


# ---- the report -------------------------------------------------------------------------------


def report(results: list[dict[str, Any]]) -> str:
    rows = [["systemd", "event", "connections", "longest gap ms", "(worst)", "p50 ms",
             "usual ms", "ready ms", "PID 1 CPU ms", "resumed", "lost", "errors"]]
    for result in results:
        median = result["median"]
        rows.append([
            str(result["systemd"]), result["event"], f"{result['connections']:,}",
            figure(median["longest_ms"]), f"({figure(result['worst_ms'])})",
            figure(median["hit_p50_ms"]), figure(median["usual_longest_ms"]),
            figure(median["ready_ms"]), figure(median["manager_cpu_ms"]),
            f"{median['resumed']:,.0f}", f"{result['lost']:.0f}", str(result["errors"]),
        ])
    return table(rows)


def goals(results: list[dict[str, Any]]) -> list[str]:
    """A sentence for each goal that was missed."""
    missed = []
    for result in results:
        where = f"systemd {result['systemd']}, {result['event']}, {result['connections']}"
        median = result["median"]
        if median["longest_ms"] > GAP_GOAL_MS:
            missed.append(f"{where}: gap {median['longest_ms']:.0f} ms (at most {GAP_GOAL_MS})")
        if median["manager_cpu_ms"] >= MANAGER_GOAL_MS:
            missed.append(f"{where}: PID 1 {median['manager_cpu_ms']:.0f} ms of CPU "
                          f"(below {MANAGER_GOAL_MS})")
        # Killed between recv and send, it has bytes that nobody else has: such a connection is
        # reset, and that is no error as long as the proxy says so.
        allowed = result["lost"] if result["event"] == "kill -9" else 0
        if result["errors"] > allowed:
            missed.append(f"{where}: {result['errors']} errors (at most {allowed:.0f}), "
                          f"first: {result['first_error']}")
        if not result["all_resumed"]:
            worst = min(result["runs"], key=lambda run: run["resumed"])
            missed.append(f"{where}: {worst['resumed']:.0f} of {worst['expected']} resumed, "
                          f"{worst['lost']:.0f} lost")
    return missed


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="of each event at each count")
    parser.add_argument("--connections", metavar="N,…", default=",".join(map(str, COUNTS)))
    parser.add_argument("--event", choices=EVENTS, action="append", help="default: both")
    parser.add_argument("--release", choices=[release.name for release in trees.RELEASES],
                        action="append", help="default: all")
    parser.add_argument("--package", type=Path, default=os.environ.get("DEB"),
                        help="default: $DEB, or the one in dist/")
    parser.add_argument("--json", type=Path, default=HERE / "results" / "restart.json")
    parser.add_argument("--check", action="store_true", help="status 1 if a goal is missed")
    options = parser.parse_args()
    options.connections = [int(word) for word in options.connections.split(",")]
    options.event = options.event or list(EVENTS)
    return options


def chosen_package(named: Path | None) -> Path:
    found = [named.resolve()] if named else sorted(
        (trees.REPOSITORY / "dist").glob("tcp-metrics-proxy_*.deb"))
    if len(found) != 1 or not found[0].is_file():
        raise BenchError(f"expected one package in dist/ or $DEB, found {found}: run `make deb`")
    return found[0]


def main() -> int:
    options = parse_arguments()
    if not PINGPONG.exists():
        raise BenchError(f"{PINGPONG} is missing: make -C {HERE}")
    package = chosen_package(options.package)
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    # Two descriptors a connection in the service, whose limit is the container's: this one.
    counts = [count for count in options.connections if 2 * count + 500 <= hard]
    for count in sorted(set(options.connections) - set(counts)):
        print(f"{count:,} connections: left out, the limit is {hard:,} descriptors",
              file=sys.stderr)
    cpus = os.sched_getaffinity(0)
    results: list[dict[str, Any]] = []
    failures: list[str] = []
    began = time.monotonic()
    with ranked_first(), tempfile.TemporaryDirectory(prefix="restart-bench-") as directory:
        for release in trees.RELEASES:
            if options.release and release.name not in options.release:
                continue
            for event in options.event:
                # A new container for each: what one count leaves behind must not reach the next
                # event, and a failure costs no more than the rest of its own column.
                with service(release, package) as host:
                    for count in counts:
                        what = f"systemd {release.systemd}, {event}, {count} connections"
                        print(f"  {what}", file=sys.stderr, flush=True)
                        try:
                            result = measure(host, event, count, options.rounds,
                                             Path(directory), cpus)
                        except (AssertionError, BenchError) as error:
                            failures.append(f"{what}: {str(error).splitlines()[0]}")
                            print(f"  {failures[-1]}", file=sys.stderr)
                            break
                        results.append({"systemd": release.systemd} | result)
    print(report(results))
    missed = goals(results) + failures
    print("\n" + ("\n".join(f"MISSED  {text}" for text in missed) or "every goal is met"))
    took_s = round(time.monotonic() - began)
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps({
        "machine": {"kernel": platform.release(), "cpus": os.cpu_count()},
        "package": package.name, "rounds": options.rounds, "took_s": took_s,
        "results": results, "missed": missed}, indent=1) + "\n")
    print(f"\n{options.rounds} rounds, {took_s} s, kernel {platform.release()}, "
          f"{os.cpu_count()} CPUs; {options.json}")
    return 1 if failures or (options.check and missed) else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (AssertionError, BenchError) as error:
        sys.exit(f"restart.py: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
