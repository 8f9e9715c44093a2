"""A pytest plugin: the tests of the relay once more, with every connection entered in a ledger.

A stored copy changes what the kernel does at an end (close sends nothing), and every step that is
written down is one that can be forgotten. Run it from the root of the repository:

    PYTHONPATH=Tests/FaultTests Tests/run-pytest -p under_store Tests/FaultTests
"""

from __future__ import annotations

from typing import Any

import pytest

from process import Proxy
from store import Service, Store

# Those in which bytes flow or ends are passed on; the others have nothing to do with a store.
CHOSEN = {
    f"test_{name}.py" for name in (
        "chaos", "descriptor_exhaustion", "drain", "flood", "half_close", "integrity", "limits",
        "logs", "metrics", "pipe_budget", "reset", "slow_reader", "target_down", "unix_sockets",
        "urgent", "vanished_peer",
    )
}

_start = Proxy.__init__
_finish = Proxy.finish


def _start_under_store(self: Proxy, lab: Any, target: Any, *arguments: str,
                       environment: dict[str, str] | None = None, **options: Any) -> None:
    lab.folder.chmod(0o755)
    path = str(lab.folder / f"notify-{len(lab.proxies)}")
    self.store = Store(path, 1024)  # type: ignore[attr-defined]
    own = {"NOTIFY_SOCKET": path, "FDSTORE": "1024", **(environment or {})}
    _start(self, lab, target, *arguments, "--preserve-after=0", environment=own, **options)
    # each worker keeps one ledger in reserve: a pair of sockets and a table
    self.baseline["socket"] += 4
    self.baseline["other"] += 2


def _finish_under_store(self: Proxy) -> None:
    store = getattr(self, "store", None)
    if store is None or isinstance(self, Service):
        _finish(self)
        return
    try:
        ended = self.lines(r"connection \d+ ended")
        _finish(self)
        store.settle()
        entered = [text for _, text in store.messages if "FDNAME=proxy-ledger" in text]
        assert entered or not ended, "nothing was entered: this run proves nothing"
        assert not store.complaints, store.complaints
    finally:
        store.close()


def pytest_configure(config: pytest.Config) -> None:
    Proxy.__init__ = _start_under_store  # type: ignore[method-assign]
    Proxy.finish = _finish_under_store  # type: ignore[method-assign]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    others = [item for item in items if item.path.name not in CHOSEN]
    config.hook.pytest_deselected(items=others)
    items[:] = [item for item in items if item not in others]
