"""The journal restarts, or hangs, under load: no client notices, and nothing is lost in silence."""

from __future__ import annotations

from container import wait_until
from host import LISTEN, METRICS_SOCKET, SERVICE, SOCKET, Host, Load, exchange, target

RESTARTS = 3


def test_journald_restarts_under_load(host: Host) -> None:
    host.enable(SOCKET, METRICS_SOCKET)
    with target(host.container):
        with Load(host.container) as load:
            load.wait_for(20)
            pid = host.main_pid()
            for _ in range(RESTARTS):
                host.systemctl("restart", "systemd-journald.service")
                load.wait_for(20)
        assert load.failures == []
        assert host.main_pid() == pid

        def accounted() -> int:
            """Entries in either form, connections in summaries, and what was dropped, counted."""
            summaries = host.entries("CONNECTIONS_SUMMARISED")
            return (
                len(host.entries("CONNECTION_ENDED"))
                + sum(int(entry["PROXY_CONNECTIONS"]) for entry in summaries)
                + len(host.entries(None, "_TRANSPORT=stdout"))
                + int(host.metrics().metric("tcp_proxy_log_records_dropped_total"))
            )

        wait_until("every connection is accounted for", lambda: accounted() >= load.count)
        before = len(host.entries("CONNECTION_ENDED"))

        def one_more_is_logged() -> bool:
            with host.container.connect(LISTEN) as client:
                exchange(client)
            return len(host.entries("CONNECTION_ENDED")) > before

        wait_until("entries with fields are back", one_more_is_logged)


def test_a_journal_that_hangs_holds_up_nobody(host: Host) -> None:
    """Its socket's buffer fills after some hundred entries; from then on writing would block."""
    host.enable(SOCKET, METRICS_SOCKET)
    journald = str(host.container.main_pid("systemd-journald.service"))
    with target(host.container), Load(host.container) as load:
        load.wait_for(20)
        host.run("kill", "-STOP", journald)
        try:
            load.wait_for(2000, seconds=60)
            assert host.metrics().status == 200
        finally:
            host.run("kill", "-CONT", journald)
        load.wait_for(20)
    assert load.failures == []
    assert host.container.property(SERVICE, "NRestarts") == "0"
