"""Reads the Prometheus text format 0.0.4."""

from __future__ import annotations

import re

_SAMPLE = re.compile(r"([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(.*)\})? (\S+)$")
_LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\]|\\.)*)",?')


class Metrics:
    """One scrape in the text format 0.0.4."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.help: dict[str, str] = {}
        self.type: dict[str, str] = {}
        self.samples: list[tuple[str, dict[str, str], float]] = []
        for line in text.splitlines():
            if line.startswith("# HELP "):
                name, _, words = line[len("# HELP ") :].partition(" ")
                self.help[name] = words
            elif line.startswith("# TYPE "):
                name, _, kind = line[len("# TYPE ") :].partition(" ")
                self.type[name] = kind
            elif line and not line.startswith("#"):
                match = _SAMPLE.match(line)
                assert match, f"not a sample: {line!r}"
                labels = dict(_LABEL.findall(match[2] or ""))
                self.samples.append((match[1], labels, float(match[3])))

    def matching(self, name: str, **labels: str) -> list[tuple[dict[str, str], float]]:
        return [
            (found, value)
            for sample, found, value in self.samples
            if sample == name and labels.items() <= found.items()
        ]

    def value(self, name: str, **labels: str) -> float:
        """The sum over all samples that carry these labels; 0 where there is none."""
        return sum(value for _, value in self.matching(name, **labels))

    def labels(self, name: str) -> list[dict[str, str]]:
        return [labels for labels, _ in self.matching(name)]

    def closed(self) -> dict[str, int]:
        """Connections closed by reason, only those that happened."""
        counts: dict[str, int] = {}
        for labels, value in self.matching("tcp_proxy_connections_closed_total"):
            if value:
                counts[labels["reason"]] = counts.get(labels["reason"], 0) + int(value)
        return counts
