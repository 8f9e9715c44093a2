"""The examples of systemd-socket-proxyd(8), taken from the manual page that systemd installs.

Our binary stands in place of theirs; nothing else in the units is changed.
"""

from __future__ import annotations

import gzip
import re
from collections.abc import Iterator

import pytest
from container import Container
from host import Host

PAGE = "usr/share/man/man8/systemd-socket-proxyd.8.gz"
UNITS = "/etc/systemd/system"
NGINX = "nginx.service"
# What the page's "[...]" stands for.
HTTP = """
error_log stderr;
events {{ }}
http {{
    access_log off;
    {server}
        location / {{ return 200 "hello from nginx"; }}
    }}
}}
"""


def examples(container: Container) -> list[tuple[str, str]]:
    """(title, text) of every example of the page, in its order."""
    page = gzip.decompress((container.tree / PAGE).read_bytes()).decode()
    page = page.replace("\\-", "-").replace("\\&", "").replace("\\ ", " ")
    found = re.findall(r"\\fBExample (\d+)\. (.*?)\\fR.*?\.nf\n(.*?)\.fi", page, re.S)
    assert [int(number) for number, _, _ in found] == list(range(1, len(found) + 1))
    return [(title, text) for _, title, text in found]


def set_up(host: Host, number: int, *, isolated: bool, options: str = "") -> str:
    """Writes the units and the nginx.conf of the page's first or second scenario."""
    titles = ["proxy-to-nginx.socket", "proxy-to-nginx.service", "nginx.conf", "Enabling the proxy"]
    scenario = examples(host.container)[4 * number : 4 * number + 4]
    assert [title for title, _ in scenario] == titles
    socket, service, nginx, enabling = (text for _, text in scenario)

    changed, count = re.subn(
        r"(?m)^(ExecStart=)\S*/systemd-socket-proxyd ",
        rf"\1/usr/bin/tcp-metrics-proxy {options}",
        service,
    )
    assert count == 1
    host.container.write(f"{UNITS}/proxy-to-nginx.socket", socket)
    host.container.write(f"{UNITS}/proxy-to-nginx.service", changed)
    server = re.search(r"server \{.*;", nginx, re.S)
    assert server, nginx
    host.container.write("/etc/nginx/nginx.conf", HTTP.format(server=server[0]))
    private = "PrivateTmp=yes\nPrivateNetwork=yes\n" if isolated else ""
    host.drop_in(NGINX, f"[Service]\nRuntimeDirectory=nginx\n{private}")
    return enabling


@pytest.fixture
def proxied(host: Host) -> Iterator[Host]:
    yield host
    host.systemctl("disable", "--now", "--quiet", "proxy-to-nginx.socket", check=False)
    host.systemctl("stop", "proxy-to-nginx.service", NGINX, check=False)
    host.run("rm", "-f", f"{UNITS}/proxy-to-nginx.service")


@pytest.mark.parametrize(
    ("number", "isolated"), [(0, False), (1, True)], ids=["simple", "namespace"]
)
def test_example(proxied: Host, number: int, isolated: bool) -> None:
    enabling = set_up(proxied, number, isolated=isolated)
    for line in enabling.strip().splitlines():
        prompt, command = line.split(" ", 1)
        assert prompt in "#$"
        done = proxied.container.shell(command)
    assert done.stdout == "hello from nginx"
    container = proxied.container
    assert container.state(NGINX) == container.state("proxy-to-nginx.service") == "active"
    executable = proxied.run(
        "readlink", f"/proc/{container.main_pid('proxy-to-nginx.service')}/exe"
    )
    assert executable.stdout.strip() == "/usr/bin/tcp-metrics-proxy"
    if isolated:
        proxy, nginx, own = (
            proxied.run("readlink", f"/proc/{pid}/ns/net").stdout
            for pid in (
                container.main_pid("proxy-to-nginx.service"),
                container.main_pid(NGINX),
                1,
            )
        )
        assert proxy == nginx != own


def test_both_services_stop_when_idle(proxied: Host) -> None:
    """What the page says of --exit-idle-time= and StopWhenUnneeded=."""
    set_up(proxied, 0, isolated=False, options="--exit-idle-time=1s ")
    proxied.drop_in(NGINX, "[Unit]\nStopWhenUnneeded=yes\n", "idle.conf")
    proxied.systemctl("start", "proxy-to-nginx.socket")
    for _ in range(2):
        assert proxied.run("curl", "-s", "http://localhost:80/").stdout == "hello from nginx"
        assert proxied.container.state(NGINX) == "active"
        proxied.container.wait_state("proxy-to-nginx.service", "inactive")
        proxied.container.wait_state(NGINX, "inactive")
