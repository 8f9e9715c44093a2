"""Fixtures: a release of Debian, a container of it, and the package installed in one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import trees
from container import Container
from host import Host


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--release",
        action="append",
        choices=[release.name for release in trees.RELEASES],
        help="run on this Debian release alone (may be given several times)",
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "release" in metafunc.fixturenames:
        chosen = metafunc.config.getoption("--release")
        releases = [one for one in trees.RELEASES if not chosen or one.name in chosen]
        metafunc.parametrize("release", releases, ids=lambda one: one.name, scope="module")


@pytest.fixture(scope="session")
def package() -> Path:
    """The .deb under test: $DEB, or the one that `make deb` left in dist/."""
    named = os.environ.get("DEB")
    if named:
        found = [Path(named).resolve()]
    else:
        found = sorted((trees.REPOSITORY / "dist").glob("tcp-metrics-proxy_*.deb"))
    if len(found) != 1 or not found[0].is_file():
        pytest.exit(f"expected one package in dist/ or $DEB, found {found}: run `make deb`", 1)
    return found[0]


@pytest.fixture(scope="module")
def container(release: trees.Release) -> Iterator[Container]:
    """A container without the package, shared by the tests of one file."""
    with Container(trees.tree(release)) as booted:
        yield booted


@pytest.fixture(scope="module")
def installed(container: Container, package: Path) -> Host:
    """A container in which an administrator has installed the package, shared likewise."""
    host = Host(container)
    host.install(package)
    return host


@pytest.fixture
def host(installed: Host) -> Iterator[Host]:
    """The same, put back to how it was after installation when the test has ended."""
    yield installed
    installed.reset()
