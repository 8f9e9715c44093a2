from fixtures import *  # noqa: F401,F403  pytest finds fixtures and hooks by their names here
from fixtures import pytest_runtest_makereport  # noqa: F401
