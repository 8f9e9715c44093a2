#!/usr/bin/env python3
"""Measures the proxy against a C floor and its peers. See README.md for what the columns mean.

Every measurement has a network namespace of its own under one congestion control, in which the
target, the relay and the load are started afresh. Relays take turns within a round.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import fcntl
import json
import os
import platform
import resource
import shutil
import signal
import socket
import stat
import statistics
import struct
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent
FLOOR = HERE / "build" / "floor"
LOAD = HERE / "build" / "load"
PROXY = Path(os.environ.get("PROXY_BINARY", HERE.parent / "bin" / "proxy"))

# Each namespace is new, so the numbers need not be found free.
LISTEN, METRICS, ECHO, SINK, SOURCE = 3000, 3002, 3101, 3102, 3103

PRIORITY = -15  # nice value
IDLE_CONNECTIONS = 4000
GIB = 1 << 30
FLOOR_GOAL = 1.05
LEVEL = 1.03  # "level with": within the noise between two runs of the same program
START_GOAL_MS, START_GOAL_MIB, IDLE_GOAL_KIB = 15, 12, 0.5
ENTER_GOAL_US, ENTERED_GOAL_KIB = 30, 1


@dataclass(frozen=True)
class Workload:
    name: str
    title: str
    mode: str  # of the load program
    target: int
    unit: str  # of the CPU column
    rate: str
    below: tuple[str, ...] = ()  # peers whose CPU the proxy must not reach
    level: tuple[str, ...] = ()  # peers whose CPU it must not exceed
    needs_cpus: int = 1  # for load and target, lest they be what is measured
    relays: tuple[str, ...] = ()  # only these; none named: all
    hold: float | None = None  # seconds that idle connections are held, if not options.hold


WORKLOADS = [
    Workload("bulk-to", "bulk to the target, 4 connections", "bulk-to", SINK,
             "ms/GiB", "GiB/s", ("haproxy", "socket-proxyd"), needs_cpus=2),
    Workload("bulk-from", "bulk from the target, 4 connections", "bulk-from", SOURCE,
             "ms/GiB", "GiB/s", ("haproxy", "socket-proxyd"), needs_cpus=2),
    Workload("request-response", "request-response, 64 connections, 64 bytes",
             "request-response", ECHO, "µs/op", "op/s",
             ("haproxy", "socket-proxyd"), ("nginx",)),
    Workload("connect", "connect, request, response, close; 32 at once", "connect", ECHO,
             "µs/op", "op/s", ("haproxy", "socket-proxyd"), ("nginx",)),
    Workload("idle", f"{IDLE_CONNECTIONS} idle connections: open each, one exchange",
             "idle", ECHO, "µs/conn", "conn/s", ("haproxy", "socket-proxyd")),
    # The first second, after which they are entered, and the time that this takes.
    Workload("preserved", f"{IDLE_CONNECTIONS} connections that stay: what preserving them costs",
             "idle", ECHO, "µs/conn", "conn/s", relays=("proxy", "proxy+store"), hold=2),
]


class BenchError(Exception):
    pass


# ---- relays -----------------------------------------------------------------------------------


@dataclass
class Relay:
    name: str
    # Files the relay needs are written into the directory; returns the command.
    command: Callable[[Path, int], list[str]] | None
    only: tuple[str, ...] = ()  # workloads; none named: all
    has_start: bool = True  # False where another program listens before the relay runs
    descriptors_each: int = 2  # per connection, where the hard limit may bind
    environment: dict[str, str] = field(default_factory=dict)
    is_service: bool = False  # true: as systemd starts it, with a store for its descriptors

    def idle_connections(self) -> int:
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        return min(IDLE_CONNECTIONS, (hard - 500) // self.descriptors_each)


def proxy_command(log: str, *more: str) -> Callable[[Path, int], list[str]]:
    return lambda _, target: [
        str(PROXY), f"-listen=127.0.0.1:{LISTEN}", f"-target=127.0.0.1:{target}",
        f"-metrics=127.0.0.1:{METRICS}", f"--log-connections={log}", *more]


def service_command(*more: str) -> Callable[[Path, int], list[str]]:
    """Its listener is passed to it; metrics it opens itself."""
    return lambda _, target: [
        str(PROXY), f"-target=127.0.0.1:{target}", f"-metrics=127.0.0.1:{METRICS}",
        "--log-connections=none", *more]


def haproxy_command(threads: int | None) -> Callable[[Path, int], list[str]]:
    def command(directory: Path, target: int) -> list[str]:
        config = directory / "haproxy.cfg"
        config.write_text("\n".join([
            "global",
            "    maxconn 7500",
            *([f"    nbthread {threads}"] if threads else []),
            "defaults",
            "    mode tcp",
            "    timeout connect 10s",
            "    timeout client 1h",
            "    timeout server 1h",
            "    option splice-request",
            "    option splice-response",
            "listen relay",
            f"    bind 127.0.0.1:{LISTEN} backlog 4096",
            f"    server target 127.0.0.1:{target}",
            ""]))
        return ["haproxy", "-db", "-f", str(config)]
    return command


def nginx_command(directory: Path, target: int) -> list[str]:
    module = next(path for path in NGINX_STREAM_MODULES if path.exists())
    config = directory / "nginx.conf"
    config.write_text(f"""
load_module {module};
daemon off;
worker_processes 1;
pid {directory}/nginx.pid;
error_log {directory}/error.log crit;
events {{ worker_connections 9000; }}
stream {{
    server {{
        listen 127.0.0.1:{LISTEN} backlog=4096;
        proxy_pass 127.0.0.1:{target};
        proxy_timeout 1h;
    }}
}}
""")
    return ["nginx", "-c", str(config), "-p", str(directory), "-e", f"{directory}/error.log"]


NGINX_STREAM_MODULES = [
    Path("/usr/lib/nginx/modules/ngx_stream_module.so"),
    Path("/usr/lib64/nginx/modules/ngx_stream_module.so"),
]
SOCKET_PROXYD = next((path for path in (Path("/lib/systemd/systemd-socket-proxyd"),
                                        Path("/usr/lib/systemd/systemd-socket-proxyd"))
                      if path.exists()), None)


def installed_relays(options: argparse.Namespace) -> list[Relay]:
    relays = [
        Relay("direct", None),
        Relay("floor", lambda _, target: [str(FLOOR), str(LISTEN), str(target)]),
    ]
    if PROXY.exists():
        relays.append(Relay("proxy", proxy_command("none")))
        relays.append(Relay("proxy-logged", proxy_command("all"), only=("connect",)))
        exchanges = ("bulk-to", "bulk-from", "request-response", "connect")
        relays.append(Relay("proxy+store", service_command(), only=(*exchanges, "preserved"),
                            is_service=True))
        relays.append(Relay("proxy+entered", service_command("--preserve-after=0"),
                            only=exchanges, is_service=True))
    if shutil.which("haproxy"):
        relays.append(Relay("haproxy", haproxy_command(1)))
        if len(options.relay_cpus) > 1:
            relays.append(Relay("haproxy-threads", haproxy_command(None)))
    if shutil.which("nginx") and any(path.exists() for path in NGINX_STREAM_MODULES):
        relays.append(Relay("nginx", nginx_command))
    if SOCKET_PROXYD and shutil.which("systemd-socket-activate"):
        relays.append(Relay("socket-proxyd", lambda _, target: [
            "systemd-socket-activate", "-l", f"127.0.0.1:{LISTEN}", str(SOCKET_PROXYD),
            "--connections-max=100000", f"127.0.0.1:{target}"],
            has_start=False, descriptors_each=6))
    if options.go_proxy:
        relays.append(Relay("go-tcp-metrics-proxy", lambda _, target: [
            options.go_proxy, f"-listen=127.0.0.1:{LISTEN}", f"-target=127.0.0.1:{target}",
            f"-metrics=127.0.0.1:{METRICS}"], descriptors_each=6))
    for text in options.relay:
        name, _, command = text.partition("=")
        if not command:
            raise BenchError(f"--relay {text}: expected NAME=COMMAND")
        relays.append(Relay(name, lambda _, target, words=command.split(): [
            word.format(listen=LISTEN, target=target, metrics=METRICS) for word in words]))
    return relays


# ---- the system -------------------------------------------------------------------------------


def enter_new_network(congestion: str) -> None:
    """Moves this process, and so its children, into an empty network namespace."""
    clone_newnet = 0x40000000
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(clone_newnet) != 0:
        raise BenchError(f"unshare(CLONE_NEWNET): {os.strerror(ctypes.get_errno())}")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        get_flags, set_flags, interface_up = 0x8913, 0x8914, 1  # netdevice(7)
        request = struct.pack("16sH22x", b"lo", 0)
        flags = struct.unpack("16sH22x", fcntl.ioctl(control, get_flags, request))[1]
        fcntl.ioctl(control, set_flags, struct.pack("16sH22x", b"lo", flags | interface_up))
    settings = Path("/proc/sys/net/ipv4")
    try:
        (settings / "tcp_congestion_control").write_text(congestion)
    except OSError as error:  # ENOENT: no such module; EPERM: not allowed in a namespace
        raise BenchError(
            f"congestion control {congestion}: {error.strerror}; as root, try modprobe "
            f"tcp_{congestion} and sysctl -w net.ipv4.tcp_allowed_congestion_control="
            f"'reno {congestion}'") from None
    # A second of connect-per-request leaves tens of thousands of sockets in TIME_WAIT.
    (settings / "ip_local_port_range").write_text("4096 65535")
    (settings / "tcp_tw_reuse").write_text("1")
    (settings / "tcp_max_syn_backlog").write_text("4096")
    Path("/proc/sys/net/core/somaxconn").write_text("4096")


def descendants(root: int) -> list[int]:
    """The process and all below it."""
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                stat = Path("/proc", entry, "stat").read_text()
            except OSError:
                continue
            children.setdefault(int(stat.rpartition(")")[2].split()[1]), []).append(int(entry))
    found = [root]
    for pid in found:
        found.extend(children.get(pid, []))
    return found


def memory_kib(pids: list[int]) -> dict[str, int]:
    """Sums over the processes of Rss, Pss, private and anonymous memory."""
    total = {"rss": 0, "pss": 0, "private": 0, "anonymous": 0}
    for pid in pids:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
            key, value, *_ = line.split()
            if key in ("Rss:", "Pss:", "Anonymous:"):
                total[key[:-1].lower()] += int(value)
            elif key in ("Private_Dirty:", "Private_Clean:"):
                total["private"] += int(value)
    return total


def machine_busy_s() -> float:
    """CPU seconds that the whole machine has worked since boot."""
    fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    busy = sum(map(int, fields[:3])) + sum(map(int, fields[5:8]))
    return busy / os.sysconf("SC_CLK_TCK")


def prefer(pid: int) -> None:
    """Ranks a process that leads a session before what else the machine does, if we may."""
    try:
        os.setpriority(os.PRIO_PROCESS, pid, PRIORITY)
        Path(f"/proc/{pid}/autogroup").write_text(str(PRIORITY))  # sched(7)
    except OSError:
        pass


class Process:
    """A child in a process group of its own; nothing of the group outlives the block."""

    def __init__(self, command: list[str], log: Path, cpus: set[int],
                 environment: dict[str, str] | None = None, passed: tuple[int, ...] = (),
                 preferred: bool = True):
        self.command, self.log = command, log
        ours = os.sched_getaffinity(0)
        os.sched_setaffinity(0, cpus)  # before exec: programs count their CPUs at start
        with log.open("wb") as stderr:
            self.child = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr,
                text=True, start_new_session=True, env={**os.environ, **(environment or {})},
                pass_fds=passed)
        os.sched_setaffinity(0, ours)
        if preferred:
            prefer(self.child.pid)

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            os.killpg(self.child.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.child.wait()
        for stream in (self.child.stdin, self.child.stdout):
            try:
                stream.close()
            except BrokenPipeError:
                pass

    def line(self) -> str:
        """The next line of stdout."""
        text = self.child.stdout.readline()
        if not text:
            self.child.wait()
            raise BenchError(f"{' '.join(self.command)}: {self.complaint()}")
        return text

    def complaint(self) -> str:
        text = self.log.read_text(errors="replace").strip()
        return text.splitlines()[-1] if text else f"ended with status {self.child.returncode}"


def wait_until_it_relays(relay: Process) -> None:
    """One exchange, or a failed one with a bulk target, so that lazy starts are over."""
    deadline = time.monotonic() + 10
    while True:
        try:
            socket.create_connection(("127.0.0.1", LISTEN), timeout=5).close()
            break
        except OSError:
            if relay.child.poll() is not None:
                raise BenchError(f"{relay.command[0]}: {relay.complaint()}") from None
            if time.monotonic() > deadline:
                raise BenchError(f"{relay.command[0]} does not listen on {LISTEN}") from None
            time.sleep(0.002)
    time.sleep(0.05)


class ServiceManager:
    """What a service meets of systemd: a listener passed to it, $NOTIFY_SOCKET, and a store that
    keeps descriptors, sd_pid_notify_with_fds(3). A thread of this process serves it."""

    def __init__(self, directory: Path) -> None:
        self.listener = socket.socket()
        self.listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # NoDelay=yes
        self.listener.bind(("127.0.0.1", LISTEN))
        self.listener.listen(4096)
        self.path = directory / "notify"
        self.path.unlink(missing_ok=True)
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(self.path))
        self.stored: dict[str, list[int]] = {}
        self.is_ready = threading.Event()
        self.thread = threading.Thread(target=self.serve, daemon=True)
        self.environment = {"NOTIFY_SOCKET": str(self.path), "FDSTORE": "1024",
                            "LISTEN_FDS": "1", "LISTEN_FDNAMES": "bench.socket"}

    def command(self, command: list[str]) -> list[str]:
        """The listener is to be descriptor 3, and $LISTEN_PID the process that takes it."""
        shim = ("import os, sys; os.dup2(int(sys.argv[1]), 3); "
                "os.environ['LISTEN_PID'] = str(os.getpid()); os.execv(sys.argv[2], sys.argv[2:])")
        return [sys.executable, "-S", "-c", shim, str(self.listener.fileno()), *command]

    def __enter__(self) -> ServiceManager:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end:
            end.sendto(b"", str(self.path))
        self.thread.join()
        self.socket.close()
        self.listener.close()
        for descriptors in self.stored.values():
            self.close(descriptors)

    def serve(self) -> None:
        size = struct.calcsize("i")
        while True:
            message, ancillary, _, _ = self.socket.recvmsg(65536, socket.CMSG_SPACE(253 * size))
            if not message:
                return
            descriptors = [number for _, kind, data in ancillary if kind == socket.SCM_RIGHTS
                           for number in struct.unpack(f"{len(data) // size}i", data)]
            lines = message.decode().split("\n")
            fields = dict(line.split("=", 1) for line in lines if "=" in line)
            name = fields.get("FDNAME", "stored")
            if fields.get("FDSTOREREMOVE") == "1":
                self.close(self.stored.pop(name, []))
            elif fields.get("FDSTORE") == "1":
                self.stored.setdefault(name, []).extend(descriptors)
            else:
                self.close(descriptors)  # who waits behind BARRIER=1 sees its pipe hang up
            if fields.get("READY") == "1":
                self.is_ready.set()

    @staticmethod
    def close(descriptors: list[int]) -> None:
        for number in descriptors:
            os.close(number)

    def table_kib(self) -> float:
        """The memory of the memfds in the store, mapped by the service or not."""
        states = [os.fstat(number) for names in self.stored.values() for number in names]
        return sum(state.st_blocks for state in states if stat.S_ISREG(state.st_mode)) / 2


def own_metric(name: str) -> float:
    """A metric without labels of the proxy that runs."""
    with urllib.request.urlopen(f"http://127.0.0.1:{METRICS}/metrics", timeout=5) as reply:
        for line in reply.read().decode().splitlines():
            key, _, value = line.rpartition(" ")
            if key == name:
                return float(value)
    raise BenchError(f"the proxy has no metric {name}")


# ---- measuring --------------------------------------------------------------------------------


def measure(relay: Relay, workload: Workload, options: argparse.Namespace,
            directory: Path) -> dict[str, float]:
    enter_new_network(options.congestion)
    load_cpus, relay_cpus = options.load_cpus, options.relay_cpus
    if workload.needs_cpus > len(load_cpus):
        load_cpus = relay_cpus = options.all_cpus
    target_command = [str(LOAD), "target", str(ECHO), str(SINK), str(SOURCE)]
    with Process(target_command, directory / "target.log", load_cpus) as target:
        target.line()
        neighbours = [-target.child.pid]
        if not relay.command:
            return run_load(workload, options, directory, workload.target, [], neighbours,
                            IDLE_CONNECTIONS, load_cpus)
        command = relay.command(directory, workload.target)
        log = directory / f"{relay.name}.log"
        with contextlib.ExitStack() as stack:
            manager = None
            if relay.is_service:
                manager = stack.enter_context(ServiceManager(directory))
                process = stack.enter_context(Process(
                    manager.command(command), log, relay_cpus,
                    relay.environment | manager.environment, (manager.listener.fileno(),)))
                if not manager.is_ready.wait(10):
                    raise BenchError(f"{relay.name} does not become ready: {process.complaint()}")
            else:
                process = stack.enter_context(Process(command, log, relay_cpus,
                                                      relay.environment))
            wait_until_it_relays(process)
            pids = descendants(process.child.pid)
            result = run_load(workload, options, directory, LISTEN, pids, neighbours,
                              relay.idle_connections(), load_cpus, manager)
            if descendants(process.child.pid) != pids:
                raise BenchError(f"{relay.name}: processes came or went during the measurement")
            result["resident_mib"] = memory_kib(pids)["rss"] / 1024
            return result


def run_load(workload: Workload, options: argparse.Namespace, directory: Path, port: int,
             pids: list[int], neighbours: list[int], idle_connections: int,
             cpus: set[int], manager: ServiceManager | None = None) -> dict[str, float]:
    command = [str(LOAD), workload.mode, str(port)]
    if workload.name.startswith("bulk"):
        command += ["4", str(int(options.gib * GIB))]
    elif workload.mode == "idle":
        command += [str(idle_connections)]
    else:
        command += ["64" if workload.name == "request-response" else "32",
                    str(options.warmup), str(options.seconds)]
    busy, began = machine_busy_s(), time.monotonic()
    before = memory_kib(pids)
    command += [str(pid) for pid in pids + neighbours]
    with Process(command, directory / "load.log", cpus) as load:
        report = json.loads(load.line())
        result = {"wall_s": report["wall_ns"] / 1e9, "cpu_s": report["cpu_ns"] / 1e9,
                  "others_cpu_s": report["others_cpu_ns"] / 1e9,
                  "operations": report["operations"], "bytes": report["bytes"],
                  "p50_us": report["p50_us"], "p99_us": report["p99_us"]}
        if workload.mode == "idle":
            after = memory_kib(pids)
            time.sleep(workload.hold or options.hold)
            load.child.stdin.write("\n")
            load.child.stdin.flush()
            held = json.loads(load.line())
            result["held_cpu_ms_per_s"] = held["cpu_ns"] / held["wall_ns"] * 1e3
            if workload.hold:
                result |= preserved(held, before, memory_kib(pids), idle_connections, manager)
            again = json.loads(load.line())
            if again["operations"] != idle_connections:
                raise BenchError("not every idle connection lived")
            for kind in ("rss", "pss", "private"):
                result[f"idle_kib_{kind}"] = (after[kind] - before[kind]) / idle_connections
        if load.child.wait() != 0:
            raise BenchError(load.complaint())
    bulk = workload.name.startswith("bulk")
    units = result["bytes"] / GIB if bulk else result["operations"]
    scale = 1e3 if bulk else 1e6
    result["rate"] = units / result["wall_s"]
    result["cpu_per_unit"] = result["cpu_s"] * scale / units
    result["all_cpu_per_unit"] = (result["cpu_s"] + result["others_cpu_s"]) * scale / units
    # Not exact (the load's start is in it), but it shows when others were at work.
    result["machine_busy_cpus"] = (machine_busy_s() - busy) / (time.monotonic() - began)
    return result


def preserved(held: dict, before: dict[str, int], after: dict[str, int], connections: int,
              manager: ServiceManager | None) -> dict[str, float]:
    """What the connections took since they were opened, when all of them have been entered."""
    if manager and own_metric("tcp_proxy_ledger_entries") != connections:
        raise BenchError("not every connection is entered")
    memory = (after["anonymous"] - before["anonymous"]) / connections
    table = manager.table_kib() / connections if manager else 0.0
    return {"held_cpu_us_each": held["cpu_ns"] / 1e3 / connections, "process_kib_each": memory,
            "table_kib_each": table, "preserved_kib_each": memory + table,
            "stored": sum(map(len, manager.stored.values())) if manager else 0}


def measure_start(relay: Relay, options: argparse.Namespace,
                  directory: Path) -> dict[str, float]:
    enter_new_network(options.congestion)
    command = relay.command(directory, ECHO)
    target_command = [str(LOAD), "target", str(ECHO), str(SINK), str(SOURCE)]
    result: dict[str, float] = {}
    with Process(target_command, directory / "target.log", options.load_cpus) as target:
        target.line()
        if relay.has_start:
            start = [str(LOAD), "start", str(LISTEN), str(options.starts), *command]
            with Process(start, directory / "start.log", options.all_cpus,
                         relay.environment) as process:
                report = json.loads(process.line())
                process.child.wait()
            result = {"start_ms": report["median_ms"], "start_ms_min": report["min_ms"]}
        with Process(command, directory / f"{relay.name}.log", options.relay_cpus,
                     relay.environment) as process:
            wait_until_it_relays(process)
            time.sleep(0.2)
            memory = memory_kib(descendants(process.child.pid))
    return result | {f"start_{kind}_mib": value / 1024 for kind, value in memory.items()}


def middle(runs: list[dict[str, float]]) -> dict[str, float]:
    return {key: statistics.median(run[key] for run in runs) for key in runs[0]}


def ratios(runs: list[dict[str, float]], base: list[dict[str, float]]) -> list[float]:
    """CPU against the floor's in the same round, sorted."""
    return sorted(a["cpu_per_unit"] / b["cpu_per_unit"]
                  for a, b in zip(runs, base) if b["cpu_per_unit"] > 0)


# ---- the report -------------------------------------------------------------------------------


def table(rows: list[list[str]]) -> str:
    """Markdown; numbers to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for number, row in enumerate(rows):
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:])]
        lines.append("| " + " | ".join(cells) + " |")
        if number == 0:
            rule = ["-" * widths[0]] + ["-" * (width - 1) + ":" for width in widths[1:]]
            lines.append("| " + " | ".join(rule) + " |")
    return "\n".join(lines)


def figure(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def workload_table(workload: Workload, results: dict[str, dict]) -> str:
    rows = [["relay", f"CPU {workload.unit}", "× floor", "(min–max)", "with load", workload.rate,
             "p50 µs", "p99 µs", "resident MiB"]]
    for name, result in results.items():
        if not result:
            continue
        median, against = result["median"], result.get("ratio")
        has_cpu = name != "direct"
        latency = not workload.name.startswith("bulk")
        rows.append([
            name,
            figure(median["cpu_per_unit"]) if has_cpu else "–",
            f"{against['median']:.2f}" if against else "–",
            f"{against['min']:.2f}–{against['max']:.2f}" if against else "–",
            figure(median["all_cpu_per_unit"]),
            figure(median["rate"]),
            figure(median["p50_us"]) if latency else "–",
            figure(median["p99_us"]) if latency else "–",
            figure(median.get("resident_mib")),
        ])
    return table(rows)


def preserved_table(_: Workload, results: dict[str, dict]) -> str:
    rows = [["relay", "CPU µs per connection held", "KiB in the process", "KiB in the table",
             "KiB in all", "descriptors stored"]]
    for name, result in results.items():
        if result:
            median = result["median"]
            rows.append([name, *(figure(median[key]) for key in (
                "held_cpu_us_each", "process_kib_each", "table_kib_each", "preserved_kib_each",
                "stored"))])
    return table(rows)


def footprint_table(summary: dict) -> str:
    rows = [["relay", "resident at start MiB", "start to listening ms",
             "KiB per idle connection", "CPU ms/s while 4,000 idle"]]
    names = list(dict.fromkeys([*summary["start"], *summary["workloads"].get("idle", {})]))
    for name in names:
        start = summary["start"].get(name, {})
        idle = summary["workloads"].get("idle", {}).get(name) or {"median": {}}
        if name != "direct":
            rows.append([name, figure(start.get("start_rss_mib")), figure(start.get("start_ms")),
                         figure(idle["median"].get("idle_kib_private")),
                         figure(idle["median"].get("held_cpu_ms_per_s"))])
    return table(rows)


def goals(summary: dict, subject: str) -> list[dict]:
    """What the project set itself, each with the figure and whether it is reached."""
    found: list[dict] = []

    def add(text: str, value: float, limit: float, strict: bool = False) -> None:
        met = value < limit if strict else value <= limit
        found.append({"goal": text, "value": value, "limit": limit, "strict": strict,
                      "met": met})

    for workload in WORKLOADS:
        results = summary["workloads"].get(workload.name, {})
        own = results.get(subject)
        if not own:
            continue
        if own.get("ratio"):
            add(f"{workload.name}: CPU × floor", own["ratio"]["median"], FLOOR_GOAL)
        for peer in (*workload.below, *workload.level):
            if results.get(peer):
                value = statistics.median(ratios(own["runs"], results[peer]["runs"]))
                if peer in workload.below:
                    add(f"{workload.name}: CPU below {peer}", value, 1.0, strict=True)
                else:
                    add(f"{workload.name}: CPU level with {peer}", value, LEVEL)
    for name, results in summary["workloads"].items():
        plain, stored = results.get(subject), results.get(f"{subject}+store")
        if not plain or not stored:
            continue
        if name == "preserved":
            median = stored["median"]
            add("preserved: CPU µs per connection", median["held_cpu_us_each"], ENTER_GOAL_US)
            add("preserved: KiB per connection", median["preserved_kib_each"], ENTERED_GOAL_KIB)
        else:
            value = statistics.median(ratios(stored["runs"], plain["runs"]))
            add(f"{name}: CPU with a store against without", value, LEVEL)
    idle = summary["workloads"].get("idle", {}).get(subject)
    if idle:
        add("KiB per idle connection", idle["median"]["idle_kib_private"], IDLE_GOAL_KIB)
    start = summary["start"].get(subject)
    if start:
        add("start to listening, ms", start["start_ms"], START_GOAL_MS)
        add("resident at start, MiB", start["start_rss_mib"], START_GOAL_MIB)
    return found


def version_of(*command: str) -> str | None:
    if not shutil.which(command[0]):
        return None
    run = subprocess.run(command, capture_output=True, text=True)
    return ((run.stdout or run.stderr).splitlines() or [""])[0]


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="short runs, three rounds")
    parser.add_argument("--rounds", type=int, help="default 9, with --quick 3")
    parser.add_argument("--only", metavar="WORKLOAD,…", help=", ".join(w.name for w in WORKLOADS))
    parser.add_argument("--relays", metavar="NAME,…", help="default: all that are installed")
    parser.add_argument("--relay", metavar="NAME=COMMAND", action="append", default=[],
                        help="one more; {listen}, {target}, {metrics} stand for ports")
    parser.add_argument("--go-proxy", metavar="FILE", default=os.environ.get("GO_PROXY_BINARY"),
                        help="the binary of go-tcp-metrics-proxy (or $GO_PROXY_BINARY)")
    parser.add_argument("--congestion", choices=["reno", "cubic", "bbr"], default="reno")
    parser.add_argument("--pin", choices=["split", "none"], default="split",
                        help="split (default): load and target on one half of the CPUs, the relay "
                             "on the other; none: as the scheduler likes")
    parser.add_argument("--json", type=Path, default=HERE / "results" / "latest.json")
    parser.add_argument("--check", action="store_true", help="status 1 if a goal is missed")
    options = parser.parse_args()
    cpus = sorted(os.sched_getaffinity(0))
    options.all_cpus = set(cpus)
    options.load_cpus = options.relay_cpus = set(cpus)
    if options.pin == "split" and len(cpus) > 1:
        options.load_cpus = set(cpus[:len(cpus) // 2])
        options.relay_cpus = options.all_cpus - options.load_cpus
    options.rounds = options.rounds or (3 if options.quick else 9)
    options.gib = 1 if options.quick else 4
    options.seconds = 0.25 if options.quick else 0.4
    options.warmup = 0.1
    options.hold = 0.1 if options.quick else 0.2
    options.starts = 5 if options.quick else 11
    return options


def chosen(all_: list, names: str | None, kind: str) -> list:
    if not names:
        return all_
    known = {item.name: item for item in all_}
    for name in names.split(","):
        if name not in known:
            raise BenchError(f"no {kind} {name}; there are {', '.join(known)}")
    return [item for item in all_ if item.name in names.split(",")]


def run(options: argparse.Namespace, directory: Path) -> dict:
    relays = chosen(installed_relays(options), options.relays, "relay")
    workloads = chosen(WORKLOADS, options.only, "workload")
    summary: dict = {
        "machine": {"kernel": platform.release(), "cpus": os.cpu_count(),
                    "congestion_control": options.congestion,
                    "relay_cpus": sorted(options.relay_cpus),
                    "load_cpus": sorted(options.load_cpus),
                    "haproxy": version_of("haproxy", "-v"), "nginx": version_of("nginx", "-v"),
                    "systemd": version_of("systemd-socket-activate", "--version")},
        "rounds": options.rounds, "began": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "workloads": {}, "start": {}, "failures": [],
    }

    def attempt(name: str, what: str, action: Callable[[], dict]) -> dict | None:
        try:
            return action()
        except BenchError as error:
            summary["failures"].append(f"{name}, {what}: {error}")
            print(f"  {name}, {what}: {error}", file=sys.stderr)
            return None

    for workload in workloads:
        here = [relay for relay in relays
                if (not relay.only or workload.name in relay.only)
                and (not workload.relays or relay.name in workload.relays)]
        if not here:
            continue
        runs: dict[str, list] = {relay.name: [] for relay in here}
        for number in range(options.rounds):
            if sys.stderr.isatty():
                print(f"\r\033[K{workload.name}, round {number + 1}", end="", file=sys.stderr)
            # Whoever is first in a round is another one each time.
            turn = number % len(here)
            for relay in here[turn:] + here[:turn]:
                runs[relay.name].append(attempt(
                    relay.name, workload.name,
                    lambda relay=relay: measure(relay, workload, options, directory)))
        if sys.stderr.isatty():
            print("\r\033[K", end="", file=sys.stderr)
        results: dict[str, dict | None] = {}
        for relay in here:
            # A relay that failed once has no figures: a part of a row would mislead.
            complete = all(run is not None for run in runs[relay.name])
            results[relay.name] = {"median": middle(runs[relay.name]),
                                   "runs": runs[relay.name]} if complete else None
        floor = results.get("floor")
        for name, result in results.items():
            if result and floor and name != "direct":
                against = ratios(result["runs"], floor["runs"])
                result["ratio"] = {"median": statistics.median(against),
                                   "min": against[0], "max": against[-1]}
        summary["workloads"][workload.name] = results
        rows = preserved_table if workload.hold else workload_table
        print(f"\n### {workload.title}\n\n{rows(workload, results)}", flush=True)

    if not options.only or "idle" in options.only.split(","):
        for relay in relays:
            if relay.command and not relay.only:
                result = attempt(relay.name, "start",
                                 lambda relay=relay: measure_start(relay, options, directory))
                if result:
                    summary["start"][relay.name] = result
        print(f"\n### Footprint\n\n{footprint_table(summary)}", flush=True)
    summary["goals"] = goals(summary, "proxy")
    return summary


def main() -> int:
    options = parse_arguments()
    if os.geteuid() != 0:
        # In a user namespace of our own we may make network namespaces.
        os.execvp("unshare", ["unshare", "--map-root-user", sys.executable, *sys.argv])
    for program in (FLOOR, LOAD):
        if not program.exists():
            raise BenchError(f"{program} is missing: make -C {HERE}")
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    enter_new_network(options.congestion)  # what the system refuses, it refuses here
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="relay-bench-") as directory:
        summary = run(options, Path(directory))
    if summary["goals"]:
        print("\n### Goals\n")
        for goal in summary["goals"]:
            mark = "met   " if goal["met"] else "MISSED"
            bound = "below" if goal["strict"] else "at most"
            print(f"{mark}  {goal['goal']}: {goal['value']:.3g} ({bound} {goal['limit']})")
    summary["took_s"] = round(time.monotonic() - began)
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(summary, indent=1, ensure_ascii=False) + "\n")
    print(f"\n{options.congestion}, {options.rounds} rounds, {summary['took_s']} s, kernel "
          f"{summary['machine']['kernel']}, {summary['machine']['cpus']} CPUs, "
          f"{len(options.relay_cpus)} for the relay; {options.json}")
    missed = any(not goal["met"] for goal in summary["goals"])
    return 1 if summary["failures"] or (options.check and missed) else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except BenchError as error:
        sys.exit(f"bench.py: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
