"""The pytest side of the harness, shared by FaultTests and ClientTests."""

from __future__ import annotations

import resource
import tempfile
from pathlib import Path
from typing import Iterator

import pytest

from harness import Lab


@pytest.fixture(scope="session", autouse=True)
def all_descriptors_allowed() -> None:
    """The tests hold both far ends of every connection: they need the whole hard limit."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


@pytest.fixture
def folder() -> Iterator[Path]:
    """A short path: a unix socket's has 107 bytes at most (unix(7))."""
    with tempfile.TemporaryDirectory(prefix="proxy-test-") as path:
        yield Path(path)


@pytest.fixture
def lab(folder: Path) -> Iterator[Lab]:
    lab = Lab(folder)
    yield lab
    lab.close()


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    outcome = yield
    report = outcome.get_result()
    lab = getattr(item, "funcargs", {}).get("lab")
    if report.failed and lab is not None and lab.proxies:
        log = lab.logs()
        # a flood leaves thousands of lines; both ends of the log tell most
        if len(log) > 3000:
            log = f"{log[:1500]}\n[…]\n{log[-1500:]}"
        report.sections.append(("log of the proxy", log))
