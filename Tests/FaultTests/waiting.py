"""Waiting with a condition and a deadline; nothing here sleeps and hopes."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Callable, TypeVar

T = TypeVar("T")

# Multiplies every deadline; sanitizer builds and crowded machines need more time, not other tests.
PATIENCE = float(os.environ.get("TEST_PATIENCE", "1"))
DEADLINE = 10 * PATIENCE  # seconds: far above what any step needs, far below a run's patience


def eventually(
    condition: Callable[[], T], what: str = "", deadline: float = DEADLINE, interval: float = 0.02
) -> T:
    """Returns the first truthy value of `condition`; an AssertionError in it means "not yet"."""
    __tracebackhide__ = True
    end = time.monotonic() + deadline
    while True:
        failure: AssertionError | None = None
        value: Any = None
        try:
            value = condition()
        except AssertionError as error:
            failure = error
        if failure is None and value:
            return value
        if time.monotonic() >= end:
            reason = f": {failure}" if failure else f" (last value: {value!r})"
            raise AssertionError(f"not within {deadline:g} s: {what or condition}{reason}")
        time.sleep(interval)


def always(condition: Callable[[], Any], what: str, seconds: float) -> None:
    """Fails as soon as `condition` is falsy during the next `seconds`."""
    __tracebackhide__ = True
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        assert condition(), f"no longer true: {what}"
        time.sleep(0.02)


def parallel(*actions: Callable[[], T], deadline: float = 6 * DEADLINE) -> list[T]:
    """Runs the actions at once, each in a thread; raises the first failure in argument order."""
    pool = ThreadPoolExecutor(max_workers=len(actions))
    try:
        end = time.monotonic() + deadline
        futures = [pool.submit(action) for action in actions]
        return [future.result(timeout=max(0.1, end - time.monotonic())) for future in futures]
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
