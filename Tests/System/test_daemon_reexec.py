"""systemd itself is replaced, or reads all its units again, under load: no client notices."""

from __future__ import annotations

import pytest
from container import wait_until
from host import LISTEN, METRICS_SOCKET, SERVICE, SOCKET, Host, Load, exchange, target

TIMES = 3


@pytest.mark.parametrize("command", ["daemon-reexec", "daemon-reload"])
def test_no_client_notices(host: Host, command: str) -> None:
    host.drop_in(SERVICE, "[Service]\nWatchdogSec=2\n")
    host.enable(SOCKET, METRICS_SOCKET)
    with target(host.container):
        with host.container.connect(LISTEN) as held:
            with Load(host.container) as load:
                load.wait_for(20)
                pid = host.main_pid()
                for _ in range(TIMES):
                    host.systemctl(command)
                    load.wait_for(20)
            assert load.failures == []
            assert exchange(held) == b"ping"
        assert host.main_pid() == pid
        assert host.container.property(SERVICE, "NRestarts") == "0"
        # The new manager hears the service, and the service still has its sockets.
        wait_until("the status arrives", lambda: host.status_text().startswith("0 open"))
        with host.container.connect(LISTEN):
            wait_until("and changes", lambda: host.status_text().startswith("1 open"))
        host.systemctl("stop", SERVICE)
        with host.container.connect(LISTEN) as client:
            assert exchange(client) == b"ping"
