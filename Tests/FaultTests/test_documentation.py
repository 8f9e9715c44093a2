"""README, manual pages, `--help` and the program agree on options, keys and metrics."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from process import proxy_binary

BINARY = str(proxy_binary())
ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
COMMAND_PAGE = (ROOT / "packaging/man/tcp-metrics-proxy.1").read_text()
SERVICE_PAGE = (ROOT / "packaging/man/tcp-metrics-proxy.service.8").read_text()


def table(first: str) -> list[list[str]]:
    """The rows of the table in README whose header begins so."""
    start = README.index(f"| {first} |")
    rows = README[start:].split("\n\n", 1)[0].splitlines()[2:]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]


def help_text() -> str:
    return subprocess.run(
        [BINARY, "--help"], check=True, capture_output=True, text=True
    ).stdout


def options_of_help() -> dict[str, str | None]:
    """Each long option with its default, None where it has none."""
    found: dict[str, str | None] = {}
    for option, words in re.findall(
        r"^  (?:-\w, )?--([\w-]+)((?:.|\n(?!  -|\n))*)", help_text(), re.M
    ):
        default = re.search(r"\(default:\s+([^,;)\s]+)", words)
        found[option] = default[1] if default else None
    found.pop("version", None)
    found.pop("help", None)
    found.pop("generate-completion-script", None)
    return found


def test_readme_lists_the_options_and_defaults_of_help():
    documented = {}
    for names, default, _ in table("option"):
        option = re.search(r"--([\w-]+)", names)
        assert option, names
        documented[option[1]] = default.strip("`") or None
    assert documented == options_of_help()


def test_manual_page_lists_the_options_of_help():
    documented = set(re.findall(r"^\.It .*?Fl (?:Fl )?([\w-]{4,})", COMMAND_PAGE, re.M))
    documented -= {"help", "version", "generate-completion-script"}
    assert documented == set(options_of_help())


def keys_of_the_program(tmp_path: Path) -> set[str]:
    unit = tmp_path / "x.socket"
    unit.write_text(
        "[Socket]\nListenStream=1\nService=tcp-metrics-proxy.service\n"
        "TriggerLimitIntervalSec=0\n[X-Proxy]\nTarget=127.0.0.1:1\nQ=1\n"
    )
    done = subprocess.run([BINARY, "check", str(unit)], capture_output=True, text=True)
    line = next(line for line in done.stdout.splitlines() if "unknown key" in line)
    return set(re.findall(r"(\w+)=", line.split("expected", 1)[1]))


def test_readme_and_manual_page_list_the_keys_of_a_route(tmp_path):
    keys = keys_of_the_program(tmp_path)
    assert "Target" in keys
    assert {re.search(r"(\w+)=", row[0])[1] for row in table("key of `[X-Proxy]`")} == keys
    assert set(re.findall(r"^\.It Li (\w+)= Ta", SERVICE_PAGE, re.M)) == keys


def test_readme_lists_the_metrics_with_their_types_and_labels(lab):
    page = lab.proxy(lab.echo()).scrape().text
    types = dict(re.findall(r"^# TYPE (tcp_proxy_\w+) (\w+)$", page, re.M))
    labels: dict[str, set[str]] = {name: set() for name in types}
    for name, inside in re.findall(r"^(tcp_proxy_\w+)\{([^}]*)\}", page, re.M):
        family = name if name in types else re.sub(r"_(bucket|sum|count)$", "", name)
        labels[family] |= set(re.findall(r'(\w+)="', inside)) - {"le"}
    documented = {
        row[0].strip("`"): (row[1], {label.strip() for label in row[2].split(",")} - {""})
        for row in table("metric")
    }
    assert documented == {name: (types[name], labels[name]) for name in types}


def test_readme_names_every_reason(lab):
    page = lab.proxy(lab.echo()).scrape().text
    reasons = set(re.findall(r'connections_closed_total\{[^}]*reason="([\w-]+)"', page))
    paragraph = README[README.index("The reasons are") :].split("The `process_*`", 1)[0]
    assert set(re.findall(r"`([\w-]+)`", paragraph)) == reasons


@pytest.mark.parametrize("name", [
    "active_inbound_connections", "active_outbound_connections", "inbound_bytes_count",
    "outbound_bytes_count", "inbound_connection_count", "outbound_connection_count",
    "promhttp_metric_handler_requests_in_flight", "promhttp_metric_handler_requests_total",
])
def test_readme_names_the_metrics_of_the_go_program(name):
    assert f"`{name}`" in README
