"""The command line: bad input gives one line that shows it, good input works in each form."""

from __future__ import annotations

import os
import re
import shutil
import socket
import stat
import subprocess

import pytest

from harness import DEADLINE, echo_once, host_port, proxy_binary
from namespaces import own_files, require_root

OPTIONS = [
    "listen", "target", "metrics", "connections-max", "exit-idle-time", "connect-timeout",
    "drain-timeout", "idle-timeout", "workers", "log-connections", "no-preserve", "preserve-after",
    "help", "version",
]


def run(*arguments: str, prefix: list[str] = []) -> subprocess.CompletedProcess[str]:
    """Runs it to its end; ports are free ones unless given, so that only the arguments can fail."""
    given = " ".join(arguments)
    free = [
        f"-{name}=127.0.0.1:0" for name in ("listen", "metrics")
        if f"-{name}" not in given
    ]
    return subprocess.run(
        [*prefix, str(proxy_binary()), *free, *arguments], stdin=subprocess.DEVNULL,
        capture_output=True, text=True, timeout=DEADLINE,
    )


def assert_one_line(result: subprocess.CompletedProcess[str], status: int, value: str) -> str:
    assert result.returncode == status, result
    lines = result.stderr.splitlines()
    assert len(lines) == 1, f"one line, not {len(lines)}: {result.stderr}"
    assert value in lines[0], f"{value!r} is not in {lines[0]!r}"
    assert result.stdout == ""
    return lines[0]


@pytest.mark.parametrize("arguments, value", [
    (["--no-such-flag"], "no-such-flag"),
    (["-no-such-flag=1"], "no-such-flag"),
    (["-x"], "-x"),
    (["-listen=nonsense"], "nonsense"),
    (["-listen=127.0.0.1"], "127.0.0.1"),
    (["-listen=127.0.0.1:70000"], "70000"),
    (["-listen=127.0.0.1:-1"], "-1"),
    (["-listen=127.0.0.1:http!"], "http!"),
    (["-listen=127.0.0.1:3000x"], "3000x"),
    (["-listen=127.0.0.1: 3000"], "127.0.0.1: 3000"),
    (["-listen=[::1:3000"], "[::1:3000"),
    (["-listen=[::1]3000"], "[::1]3000"),
    (["-listen=::1:3000"], "::1:3000"),
    (["-listen=[not-v6]:3000"], "not-v6"),
    (["-target=127.0.0.1:"], "127.0.0.1:"),
    (["-target=127.0.0.1:0"], "127.0.0.1:0"),
    (["-target=127.0.0.1:99999999999999999999"], "99999999999999999999"),
    (["-target=half a name:80"], "half a name:80"),
    (["-target=unix:"], "unix:"),
    (["-target=@"], "@"),
    (["-metrics=nope"], "nope"),
    (["--connections-max=many"], "many"),
    (["--connections-max=-1"], "-1"),
    (["-c", "1.5"], "1.5"),
    (["--connect-timeout=5parsecs"], "5parsecs"),
    (["--connect-timeout=-1s"], "-1s"),
    (["--drain-timeout=soon"], "soon"),
    (["--idle-timeout=1fortnight"], "1fortnight"),
    (["--exit-idle-time=x"], "x"),
    (["--preserve-after=soon"], "soon"),
    (["--preserve-after=-1s"], "-1s"),
    (["--preserve-after="], "--preserve-after"),
    (["--no-preserve=maybe"], "no-preserve"),
    (["--preserve"], "preserve"),
    (["--workers=two"], "two"),
    (["--workers=-2"], "-2"),
    (["--log-connections=some"], "some"),
    (["127.0.0.1:3001", "127.0.0.1:3009"], "127.0.0.1:3009"),
    (["127.0.0.1:65536"], "65536"),
], ids=lambda value: " ".join(value) if isinstance(value, list) else "")
def test_bad_input_gives_one_line_with_the_value_and_status_2(arguments, value):
    assert_one_line(run(*arguments), 2, value)


@pytest.mark.parametrize("option", [
    "listen", "target", "metrics", "connect-timeout", "workers", "preserve-after",
])
def test_option_without_its_value_is_named(option):
    assert_one_line(run(f"--{option}"), 2, option)


def test_bad_value_says_what_was_expected():
    """Words, not only the value: the line must be longer than an echo of the input."""
    for argument in ("--log-connections=some", "--connect-timeout=5parsecs", "-listen=nonsense"):
        line = assert_one_line(run(argument), 2, argument.partition("=")[2])
        assert re.search(r"expect|must|should|not|allowed|one of", line), line
    line = run("--log-connections=some").stderr
    assert all(word in line for word in ("all", "failures", "none")), line


@pytest.mark.parametrize("option", ["listen", "metrics"])
def test_taken_port_gives_one_line_and_status_1(option):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = host_port(taken.getsockname())
        line = assert_one_line(run(f"-{option}={address}"), 1, address)
        assert re.search("in use", line, re.IGNORECASE), line


def test_second_proxy_on_the_same_address_is_refused_and_the_first_goes_on(lab, folder):
    """No SO_REUSEPORT between processes, and nobody's unix socket is taken away."""
    echo = lab.echo()
    for listen in ("127.0.0.1:0", f"unix:{folder}/listen"):
        proxy = lab.proxy(echo, listen=listen)
        address = host_port(proxy.listen_address)
        assert_one_line(run(f"-listen={address}"), 1, address.removeprefix("unix:"))
        echo_once(lab.client(proxy))


def test_listen_and_metrics_on_the_same_port_give_one_line():
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = host_port(free.getsockname())
    result = run(f"-listen={address}", f"-metrics={address}")
    assert result.returncode in (1, 2), result
    assert len(result.stderr.splitlines()) == 1 and address in result.stderr, result


def test_address_that_is_not_ours_gives_one_line_and_status_1():
    assert_one_line(run("-listen=192.0.2.1:3000"), 1, "192.0.2.1:3000")


def test_listen_name_that_does_not_resolve_gives_one_line(tmp_path):
    (tmp_path / "nsswitch.conf").write_text("hosts: files\n")
    prefix = own_files({"/etc/nsswitch.conf": tmp_path / "nsswitch.conf"})
    result = run("-listen=no-such-host.invalid:3000", prefix=prefix)
    assert result.returncode in (1, 2), result
    assert len(result.stderr.splitlines()) == 1, result.stderr
    assert "no-such-host.invalid" in result.stderr


def test_unix_path_in_a_missing_folder_gives_one_line_and_status_1(folder):
    assert_one_line(run(f"-listen=unix:{folder}/missing/socket"), 1, f"{folder}/missing/socket")


def test_unix_path_that_is_too_long_gives_one_line():
    path = "/tmp/" + "x" * 200
    result = run(f"-listen=unix:{path}")
    assert result.returncode in (1, 2), result
    assert len(result.stderr.splitlines()) == 1 and "xxx" in result.stderr, result.stderr


def test_missing_privilege_gives_one_line_and_status_1(folder):
    require_root()
    first = int(open("/proc/sys/net/ipv4/ip_unprivileged_port_start").read())
    if first <= 1:
        pytest.skip("this host lets everybody bind every port")
    binary = shutil.copy(proxy_binary(), folder / "proxy")  # where nobody may read it
    folder.chmod(0o755)
    os.chmod(binary, 0o755)
    address = f"127.0.0.1:{first - 1}"
    result = subprocess.run(
        ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--bounding-set=-all",
         binary, f"-listen={address}", "-metrics=127.0.0.1:0"],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=DEADLINE,
    )
    line = assert_one_line(result, 1, address)
    assert re.search("denied|permitted|privilege", line, re.IGNORECASE), line


def test_help_names_every_option_on_stdout():
    result = run("--help")
    assert result.returncode == 0 and result.stderr == "", result
    for option in OPTIONS:
        assert f"-{option}" in result.stdout, f"--{option} is not in --help"
    assert max(map(len, result.stdout.splitlines())) <= 100, "lines too long to read"


def test_version_is_one_line_on_stdout(lab):
    result = run("--version")
    assert result.returncode == 0 and result.stderr == "", result
    assert len(result.stdout.splitlines()) == 1
    version = re.search(r"\d+\.\d+(\.\d+)?\S*", result.stdout)
    assert version, result.stdout
    proxy = lab.proxy(lab.echo())
    assert proxy.lines(re.escape(version[0])), "the line at start names the version"
    labels = proxy.scrape().labels("tcp_proxy_build_info")
    assert labels and labels[0]["version"] == version[0]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_script(shell):
    result = run("--generate-completion-script", shell)
    assert result.returncode == 0, result
    assert "drain-timeout" in result.stdout and "log-connections" in result.stdout
    if shutil.which(shell):
        check = subprocess.run([shell, "-n"], input=result.stdout, capture_output=True, text=True)
        assert check.returncode == 0, check.stderr


# --- good forms ----------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["-target={}", "--target={}", "-target {}", "--target {}", "{}"])
def test_each_form_of_the_target_is_understood(lab, form):
    echo = lab.echo()
    proxy = lab.proxy(None, *form.format(host_port(echo.address)).split())
    echo_once(lab.client(proxy))


@pytest.mark.parametrize("arguments", [
    "--connections-max=5", "-connections-max 5", "-c 5", "-c5", "--exit-idle-time=5min",
    "--exit-idle-time infinity", "--connect-timeout=1min 30s", "--connect-timeout=500ms",
    "--drain-timeout=infinity", "--idle-timeout=2h", "-idle-timeout=1d", "--workers=2",
    "--log-connections=all", "--log-connections=failures", "--log-connections none",
    "--connect-timeout=90", "--drain-timeout=1h30min", "--no-preserve", "-no-preserve",
    "--preserve-after=0", "-preserve-after 500ms", "--preserve-after=infinity",
])
def test_option_is_understood(lab, arguments):
    name, _, value = arguments.partition(" ")
    words = [arguments] if "=" in arguments else [name, value] if value else [name]
    echo = lab.echo()
    proxy = lab.proxy(echo, *words)
    echo_once(lab.client(proxy))


@pytest.mark.parametrize("form", ["-listen={0} -metrics={1}", "--listen {0} --metrics {1}"])
def test_listen_and_metrics_forms(lab, form):
    """Given twice, the last one counts: the harness passes its own first."""
    echo = lab.echo()
    result = subprocess.Popen(
        [str(proxy_binary()), *form.format("127.0.0.1:0", "127.0.0.1:0").split(),
         f"-target={host_port(echo.address)}"],
        stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )
    try:
        assert result.stderr
        line = next(line for line in result.stderr if "listening on" in line)
        port = re.search(r"listening on 127\.0\.0\.1:(\d+)", line)
        assert port and int(port[1]) > 0, line
        with socket.create_connection(("127.0.0.1", int(port[1])), timeout=DEADLINE) as client:
            echo_once(client)
        result.terminate()
        assert result.wait(DEADLINE) == 0
    finally:
        result.kill()
        result.wait()
        result.stderr.close()


def test_defaults_are_those_of_the_seed(lab):
    """In a network namespace of its own, where the ports 3000 to 3002 are surely free."""
    require_root()
    script = f"""
        ip link set lo up
        {proxy_binary()} 2> {lab.folder}/log & pid=$!
        for i in $(seq 100); do grep -q 'listening on' {lab.folder}/log && break; sleep 0.05; done
        curl -s -o /dev/null -w '%{{http_code}}\\n' http://127.0.0.1:3002/metrics
        grep -o 'listening on [^ ]*' {lab.folder}/log
        kill -TERM $pid; wait $pid; echo "status $?"
        cat {lab.folder}/log
    """
    result = subprocess.run(
        ["unshare", "--net", "sh", "-c", script], capture_output=True, text=True, timeout=30,
    )
    assert "200\n" in result.stdout, result
    assert "listening on 127.0.0.1:3000" in result.stdout, result
    assert "127.0.0.1:3001" in result.stdout, "the line at start names the target"
    assert "status 0" in result.stdout, result


def test_line_at_start_names_the_real_ports_and_the_target(lab):
    echo = lab.echo()
    proxy = lab.proxy(echo)
    start = proxy.stderr()
    assert f"listening on 127.0.0.1:{proxy.listen_address[1]}" in start
    assert f"127.0.0.1:{proxy.metrics_address[1]}" in start, "the metrics address"
    assert host_port(echo.address) in start, "the target"
    assert not re.search(r"127\.0\.0\.1:0\b", start), start


# --- addresses -----------------------------------------------------------------------------------


def test_ipv6_on_both_sides_and_for_metrics(lab):
    echo = lab.echo(("::1", 0))
    proxy = lab.proxy(echo, listen="[::1]:0", metrics="[::1]:0")
    assert proxy.listen_address[0] == "::1" and proxy.metrics_address[0] == "::1"
    echo_once(lab.client(proxy))


def test_port_alone_listens_on_every_address(lab):
    echo = lab.echo()
    proxy = lab.proxy(echo, listen=":0")
    port = proxy.listen_address[1]
    for host in ("127.0.0.1", "::1"):
        with socket.create_connection((host, port), timeout=DEADLINE) as client:
            echo_once(client)


def test_host_names_on_both_sides(lab):
    echo = lab.echo()
    proxy = lab.proxy(f"localhost:{echo.address[1]}", listen="localhost:0")
    echo_once(lab.client(proxy))


def test_host_name_target_that_listens_on_ipv6_only(lab, folder):
    """`localhost` as 127.0.0.1 and ::1; only the second one answers."""
    (folder / "hosts").write_text("127.0.0.1 both.example\n::1 both.example\n")
    (folder / "nsswitch.conf").write_text("hosts: files\n")
    echo = lab.echo(("::1", 0))
    proxy = lab.proxy(f"both.example:{echo.address[1]}", prefix=own_files({
        "/etc/hosts": folder / "hosts", "/etc/nsswitch.conf": folder / "nsswitch.conf",
    }))
    echo_once(lab.client(proxy))


@pytest.mark.parametrize("form", ["unix:{}", "{}"])
def test_unix_path_on_both_sides(lab, folder, form):
    lab.echo(str(folder / "target"))
    proxy = lab.proxy(
        None, f"-target={form.format(folder / 'target')}", listen=form.format(folder / "listen")
    )
    assert stat.S_ISSOCK((folder / "listen").stat().st_mode)
    echo_once(lab.client(proxy))


def test_abstract_on_both_sides(lab):
    name = f"proxy-test-{os.getpid()}"
    lab.echo(f"\0{name}-target")
    proxy = lab.proxy(None, f"-target=@{name}-target", listen=f"@{name}-listen")
    echo_once(lab.client(proxy))
