import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "FaultTests"))

from fixtures import *  # noqa: E402,F401,F403  the harness is that of the fault tests
from fixtures import pytest_runtest_makereport  # noqa: E402,F401
