"""Where and when connections are preserved, and where they are not."""

from __future__ import annotations

import signal

import pytest

from harness import always, eventually, expect_end, expect_eof, receive_exactly
from store import Service
from survival import assert_alive

OFF = "connections end with this process: systemd stores no descriptors for it"


def assert_drains_at_sigusr2(lab, service: Service, target) -> None:
    """SIGUSR2 as SIGTERM: what is open finishes, nothing new comes in, then it ends."""
    client, server = lab.pair(service, target)
    assert_alive(client, server)
    service.process.send_signal(signal.SIGUSR2)
    service.await_value(1, "tcp_proxy_draining")
    assert_alive(client, server)
    client.close()
    expect_eof(server)
    server.close()
    assert service.await_end() == 0
    service.start()
    assert service.lost() == {}
    assert service.resumed("restart") == 0


def test_switched_off_it_stores_nothing_and_sigusr2_drains(lab):
    target = lab.target()
    service = Service(lab, target, "--no-preserve", "--preserve-after=0")
    pair = lab.pair(service, target)
    assert_alive(*pair)
    always(lambda: not service.store.stored, "nothing is stored", 0.5)
    for sock in pair:
        sock.close()
    service.await_value(0, "tcp_proxy_connections_active")
    assert_drains_at_sigusr2(lab, service, target)
    assert not service.lines(OFF), "who switches it off knows"
    assert not [text for _, text in service.store.messages if "FDSTORE" in text]


def test_switched_off_a_crash_ends_connections(lab):
    target = lab.target()
    service = Service(lab, target, "--no-preserve")
    client, server = lab.pair(service, target)
    assert_alive(client, server)
    service.kill()
    expect_end(client)
    expect_end(server)


def test_without_a_service_manager_one_line_says_so_and_sigusr2_drains(lab):
    target = lab.target()
    service = Service(lab, target, notify=False)
    service.await_line(OFF)
    assert len(service.lines(OFF)) == 1
    client, server = lab.pair(service, target)
    assert_alive(client, server)
    service.process.send_signal(signal.SIGUSR2)
    service.await_value(1, "tcp_proxy_draining")
    client.close()
    expect_eof(server)
    server.close()
    assert service.await_end() == 0


def test_started_by_hand_one_line_says_so(lab):
    """No sockets from anybody either."""
    proxy = lab.proxy(lab.echo())
    proxy.await_line(OFF)
    assert len(proxy.lines(OFF)) == 1


def test_manager_that_stores_nothing_is_told_of_in_one_line(lab):
    """FileDescriptorStoreMax=0, systemd's default: $FDSTORE is not set."""
    target = lab.target()
    service = Service(lab, target, store_max=0)
    service.await_line(OFF)
    assert len(service.lines(OFF)) == 1
    assert_drains_at_sigusr2(lab, service, target)


def test_with_a_store_nothing_is_said(lab):
    service = Service(lab, lab.target())
    assert not service.lines("connections end with this process")


@pytest.mark.parametrize("span", ["0", "0s"])
def test_preserved_at_once(lab, span):
    target = lab.target()
    service = Service(lab, target, f"--preserve-after={span}")
    for _ in range(3):
        client, server = lab.pair(service, target)
        client.sendall(b"first")
        assert receive_exactly(server, 5) == b"first"
        service.kill()
        assert service.resumed("crash") == 1
        assert_alive(client, server)
        client.close()
        expect_eof(server)
        server.close()
        service.await_entered(0)


def test_preserved_only_at_a_restart(lab):
    target = lab.target()
    service = Service(lab, target, "--preserve-after=infinity")
    client, server = lab.pair(service, target)
    assert_alive(client, server)
    always(lambda: service.value("tcp_proxy_ledger_entries") == 0, "nothing is entered", 1.5)
    service.restart()
    assert_alive(client, server)
    assert service.resumed("restart") == 1


@pytest.mark.parametrize("option", [
    "--preserve-after=never", "--preserve-after=-1s", "--preserve-after=", "--no-preserve=yes",
])
def test_value_that_makes_no_sense_is_refused_in_one_line(option):
    from test_command_line import assert_one_line, run

    assert_one_line(run(option, "127.0.0.1:9"), 2, "preserve")


def test_connection_entered_later_than_it_began_is_entered_once(lab):
    """Idle meanwhile: a timer enters it, no byte of it has to come."""
    target = lab.target()
    service = Service(lab, target, "--preserve-after=300ms")
    client, server = lab.pair(service, target)
    service.await_entered(1)
    service.crash()
    entries = []
    for ledger in service.ledgers():
        with ledger.entries() as found:
            entries += [len(entry.descriptors) for entry in found]
    assert entries == [2]
    service.start()
    eventually(lambda: service.resumed("crash") == 1, "one connection resumed")
    assert_alive(client, server)
