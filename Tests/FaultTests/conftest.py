import pytest

from fixtures import *  # noqa: F401,F403  pytest finds fixtures and hooks by their names here
from fixtures import pytest_runtest_makereport  # noqa: F401


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "bare: counts memory or threads, to which a sanitizer adds its own"
    )
