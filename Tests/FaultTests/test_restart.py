"""SIGUSR2, which `systemctl restart` sends: every connection goes on in the next process."""

from __future__ import annotations

import re
import signal
import socket
import time

import pytest

import survival
from harness import (
    KIB, MIB, always, echo_once, eventually, expect_eof, host_port, parallel, receive_exactly,
    receive_stream, send_stream,
)
from store import Service
from survival import DEEDS, ENDS, RESTART, assert_alive
from traffic import Bulk, PingPong


@pytest.mark.parametrize("count", [1, 100])
def test_ping_pong_goes_on(lab, count):
    survival.ping_pong_goes_on(lab, RESTART, count, times=3)


def test_twenty_restarts_in_a_row(lab):
    survival.ping_pong_goes_on(lab, RESTART, count=20, times=20)


def test_client_waits_for_no_longer_than_a_blink(lab):
    service = Service(lab, lab.echo())
    ping = PingPong(lab, service, 50)
    ping.longest = 0.0
    service.restart()
    ping.go_on()
    assert ping.longest < 1, f"an answer took {ping.longest:.3f} s"
    gap = service.value("tcp_proxy_handover_duration_seconds")
    assert 0 < gap <= ping.longest + 0.05, (gap, ping.longest)
    ping.stop()


# --- restarts that meet something else -----------------------------------------------------------


@pytest.mark.parametrize("delay", [0, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064])
def test_restart_while_the_successor_starts(lab, delay):
    """Before it listens to signals SIGUSR2 ends it as a crash would: the ledger is still there."""
    service = Service(lab, lab.echo())
    ping = PingPong(lab, service, 20)
    for _ in range(3):
        service.hand_over()
        service.spawn()
        time.sleep(delay)
        status = service.end(signal.SIGUSR2)
        assert status in (0, -signal.SIGUSR2), service.stderr()[-2000:]
        service.start()
        ping.go_on()
    assert service.lost() == {}
    ping.stop()
    ping.assert_whole()


def test_restart_as_soon_as_the_successor_is_ready(lab):
    service = Service(lab, lab.echo())
    ping = PingPong(lab, service, 20)
    for _ in range(10):
        service.hand_over()
        service.start()
    ping.go_on()
    assert service.resumed("restart") == 20
    ping.stop()
    ping.assert_whole()


def test_signal_sent_twice_is_one_restart(lab):
    service = Service(lab, lab.echo())
    ping = PingPong(lab, service, 20)
    for _ in range(5):
        service.process.send_signal(signal.SIGUSR2)
        service.process.send_signal(signal.SIGUSR2)
        assert service.await_end() == 0
        service.start()
        ping.go_on()
    ping.stop()
    ping.assert_whole()


def test_restart_in_the_middle_of_a_reload(lab):
    service = Service(lab, lab.echo())
    ping = PingPong(lab, service, 20)
    for _ in range(5):
        service.process.send_signal(signal.SIGHUP)
        service.hand_over()
        service.start()
        service.process.send_signal(signal.SIGHUP)
        ping.go_on()
    service.await_value(1, "tcp_proxy_config_reloads_total")
    ping.stop()
    ping.assert_whole()


def test_stop_after_a_restart_drains_what_was_resumed(lab):
    """SIGTERM in the next process waits for the connections that it took over."""
    target = lab.target()
    service = Service(lab, target)
    client, server = lab.pair(service, target)
    assert_alive(client, server)
    service.restart()
    service.process.send_signal(signal.SIGTERM)
    eventually(lambda: "STOPPING=1" in [text for _, text in service.store.messages],
               "STOPPING=1")
    assert_alive(client, server)
    client.close()
    expect_eof(server)
    server.close()
    assert service.await_end() == 0


def test_what_has_ended_leaves_nothing_in_the_store(lab):
    """A ledger that is empty for good is given back."""
    service = Service(lab, lab.echo())
    ping = PingPong(lab, service, 30)
    service.restart()
    ping.go_on()
    ping.stop()
    service.await_entered(0)
    service.restart()
    assert service.resumed("restart") == 0 and service.lost() == {}

    def no_socket_kept() -> bool:
        service.store.settle()
        kept = [len(entry.descriptors) for ledger in service.ledgers()
                for entry in _entries(ledger)]
        assert sum(kept) <= 8, f"descriptors still stored: {kept}"
        return True

    service.hand_over()
    no_socket_kept()
    service.start()


def _entries(ledger):
    with ledger.entries() as entries:
        return list(entries)


# --- connections of every age and state ----------------------------------------------------------


def test_connection_that_has_just_been_opened(lab):
    """Some are not even accepted yet: the backlog keeps those."""
    target = lab.target()
    service = Service(lab, target)
    clients = [lab.client(service) for _ in range(30)]
    service.restart()
    servers = [target.accept() for _ in clients]
    for number, client in enumerate(clients):
        client.sendall(b"%06d" % number)
    for server in servers:  # in whichever order they were dialled
        word = receive_exactly(server, 6)
        server.sendall(word)
    for number, client in enumerate(clients):
        assert receive_exactly(client, 6) == b"%06d" % number


@pytest.mark.parametrize("early", [0, 100_000], ids=["silent", "bytes already sent"])
def test_connection_whose_target_is_still_being_dialled(lab, early):
    target = lab.full_target()
    service = Service(lab, target, "--connect-timeout=60s")
    client = lab.client(service)
    send_stream(client, "early", early)
    service.await_value(1, "tcp_proxy_target_connect_attempts_total")
    service.restart()
    assert service.value("tcp_proxy_connections_active") == 1
    target.make_room()
    server = target.accept_live()
    receive_stream(server, "early", early)
    assert_alive(client, server)
    client.close()
    expect_eof(server)
    server.close()
    service.await_closed(client_closed=1)


def test_client_that_leaves_while_its_target_is_dialled_and_nobody_runs(lab):
    target = lab.full_target()
    service = Service(lab, target, "--connect-timeout=60s")
    client = lab.client(service)
    service.await_value(1, "tcp_proxy_target_connect_attempts_total")
    service.hand_over()
    survival.reset(client)
    service.start()
    service.await_value(0, "tcp_proxy_connections_active")
    target.make_room()
    assert_alive(lab.client(service), target.accept_live())


@pytest.mark.parametrize("first", ["client", "target"])
@pytest.mark.parametrize("times", [1, 3])
def test_half_closed_gets_its_reply(lab, first, times):
    survival.half_closed_gets_its_reply(lab, RESTART, first, times)


@pytest.mark.parametrize("first", ["client", "target"])
def test_half_closed_with_a_reply_in_the_pipe(lab, first):
    survival.half_closed_with_a_reply_in_the_pipe(lab, RESTART, first)


def test_both_directions_ended_but_for_bytes_in_the_pipe(lab):
    survival.both_directions_ended_but_for_bytes_in_the_pipe(lab, RESTART)


@pytest.mark.parametrize("ends", ENDS)
def test_bytes_in_pipes_arrive(lab, ends):
    survival.bytes_in_pipes_arrive(lab, RESTART, ends)


def test_stalled_reader_reads_on_little_by_little(lab):
    survival.stalled_reader_reads_on_little_by_little(lab, RESTART, times=6)


@pytest.mark.parametrize("ends", ENDS[1:])
def test_unix_sockets_go_on(lab, ends):
    service, target = survival.service_between(lab, ends)
    pairs = [lab.pair(service, target) for _ in range(10)]
    for _ in range(3):
        service.restart()
        for pair in pairs:
            assert_alive(*pair)
    for client, server in pairs:
        client.shutdown(socket.SHUT_WR)
        expect_eof(server)
    service.restart()
    for client, server in pairs:
        server.sendall(b"late")
        assert receive_exactly(client, 4) == b"late"
        server.close()
        expect_eof(client)
        client.close()
    service.await_value(0, "tcp_proxy_connections_active")


@pytest.mark.parametrize("pairs", [1, 4])
def test_bulk_at_full_speed_goes_on_with_every_byte(lab, pairs):
    cut = survival.bulk_goes_on(lab, RESTART, times=5, pairs=pairs)
    assert cut == 0, "no byte is in the process when it hands over"


def test_peers_that_talk_without_waiting_lose_nothing(lab):
    survival.talk_without_waiting(lab, RESTART, times=15)


# --- what the peers do meanwhile -----------------------------------------------------------------


@pytest.mark.parametrize("side", ["client", "target"])
@pytest.mark.parametrize("deed", DEEDS)
@pytest.mark.parametrize("ends", ["tcp>tcp", "unix>unix"])
def test_what_a_peer_does_while_it_is_down_is_passed_on(lab, deed, side, ends):
    survival.peer_acts_while_it_is_down(lab, RESTART, deed, side, ends)


@pytest.mark.parametrize("sender", ["client", "target"])
def test_reset_of_the_sender_comes_behind_its_bytes(lab, sender):
    survival.reset_of_the_sender_comes_behind_its_bytes(lab, RESTART, sender)


def test_both_peers_leave_while_it_is_down(lab):
    survival.both_peers_leave_while_it_is_down(lab, RESTART)


@pytest.mark.parametrize("delay", [0, 0.5])
def test_new_clients_are_neither_refused_nor_reset(lab, delay):
    churn, _ = survival.new_clients_are_served(lab, RESTART, times=3, delay=delay)
    assert churn.failures == []


# --- what the user sees --------------------------------------------------------------------------


def test_final_line_of_a_resumed_connection_tells_its_whole_life(lab):
    target = lab.target()
    service = Service(lab, target, "--log-connections=all")
    began = time.monotonic()
    client, server = lab.pair(service, target)
    name, other = host_port(client.getsockname()), host_port(target.address)
    second, second_server = lab.pair(service, target)

    def exchange(up: int, down: int) -> None:
        parallel(
            lambda: send_stream(client, "in", up), lambda: receive_stream(server, "in", up),
            lambda: send_stream(server, "out", down), lambda: receive_stream(client, "out", down),
        )

    exchange(12_347, 765_431)
    assert_alive(second, second_server)
    time.sleep(0.3)  # so that its duration tells the first start from the second
    service.restart()
    exchange(1_000_000, 3)
    service.restart()
    exchange(5, 6)
    elapsed = time.monotonic() - began
    client.close()
    expect_eof(server)
    server.close()
    line = service.await_line(r"ended.*client=" + re.escape(name))
    third, third_server = lab.pair(service, target)
    for one, two in ((second, second_server), (third, third_server)):
        assert_alive(one, two)
        one.close()
        expect_eof(two)
        two.close()
    for part in (f"in={12_347 + 1_000_000 + 5} ", f"out={765_431 + 3 + 6} ", "route=web ",
                 f"target={other} ", "reason=client-closed"):
        assert part in line + " ", line
    duration = float(re.search(r"duration=([0-9.]+)s", line)[1])
    assert elapsed <= duration + 0.002 < elapsed + 5, line
    lines = eventually(lambda: (found := service.lines("connection .* ended")) and
                       len(found) == 3 and found, "three final lines")
    ids = [int(re.search(r"connection (\d+) ended", line)[1]) for line in lines]
    assert len(set(ids)) == 3, "ids of resumed and of new connections are distinct"
    assert ids[0] < ids[1] < ids[2], "ids go on where they were"


def test_metrics_are_right_at_once(lab):
    target = lab.target()
    service = Service(lab, target)
    pairs = [lab.pair(service, target) for _ in range(7)]
    for pair in pairs:
        assert_alive(*pair)
    before = service.scrape()
    assert before.value("tcp_proxy_handover_duration_seconds") == 0
    service.restart()
    after = service.scrape()  # the very first: nothing has been moved since
    own_ids = [page.labels("inbound_connection_count")[0]["id"] for page in (before, after)]
    assert own_ids[0] != own_ids[1]
    assert after.value("tcp_proxy_connections_active") == 7
    assert after.value("active_inbound_connections") == 7
    assert after.value("active_outbound_connections") == 7
    assert after.value("tcp_proxy_connections_resumed_total", cause="restart") == 7
    assert after.value("tcp_proxy_connections_resumed_total", cause="crash") == 0
    assert after.value("tcp_proxy_connections_lost_total") == 0
    assert after.value("tcp_proxy_ledger_entries") == 7
    assert after.value("tcp_proxy_ledger_bytes") > 0
    assert 0 < after.value("tcp_proxy_handover_duration_seconds") < 5
    for counter in ("tcp_proxy_connections_accepted_total", "tcp_proxy_bytes_total",
                    "inbound_connection_count", "outbound_connection_count",
                    "inbound_bytes_count", "outbound_bytes_count",
                    "tcp_proxy_connections_closed_total"):
        assert after.value(counter) == 0, counter
    assert_alive(*pairs[0])
    assert service.value("tcp_proxy_bytes_total", direction="in") == len(b"there")
    for client, server in pairs:
        client.close()
        expect_eof(server)
        server.close()
    service.await_closed(client_closed=7)
    service.await_value(0, "active_inbound_connections")
    service.await_value(0, "active_outbound_connections")
    service.await_entered(0)


def test_log_and_status_tell_how_many_were_resumed(lab):
    target = lab.target()
    service = Service(lab, target)
    pairs = [lab.pair(service, target) for _ in range(3)]
    for pair in pairs:
        assert_alive(*pair)
    service.restart()
    service.await_line(r"handing over 3 connections to the next start")
    service.await_line(r"resumed 3 connections after a restart, gap \d+ ms$")
    eventually(
        lambda: [text for text in service.statuses()
                 if text.startswith("Resumed 3 connections after a restart; 3 open")],
        "a status that tells of the restart",
    )


def test_one_connection_is_told_of_in_the_singular(lab):
    target = lab.target()
    service = Service(lab, target)
    assert_alive(*lab.pair(service, target))
    service.restart()
    service.await_line(r"handing over 1 connection to the next start")
    service.await_line(r"resumed 1 connection after a restart, gap \d+ ms$")


def test_restart_with_nothing_open_serves_the_next_client(lab):
    service = Service(lab, lab.echo())
    service.restart()
    client = lab.client(service)
    echo_once(client)
    service.restart()
    echo_once(client)
    assert service.resumed("restart") == 1


# --- limits that hold across a restart -----------------------------------------------------------


def test_limit_of_connections_counts_the_resumed_ones(lab):
    target = lab.target()
    service = Service(lab, target, "--connections-max=3")
    pairs = [lab.pair(service, target) for _ in range(3)]
    service.restart()
    for pair in pairs:
        assert_alive(*pair)
    lab.expect_refusal(service)
    pairs[0][0].close()
    expect_eof(pairs[0][1])
    pairs[0][1].close()
    service.await_value(2, "tcp_proxy_connections_active")
    assert_alive(*lab.pair(service, target))


def test_idle_timeout_holds_in_the_next_process(lab):
    target = lab.target()
    service = Service(lab, target, "--idle-timeout=1s")
    client, server = lab.pair(service, target)
    assert_alive(client, server)
    service.restart()
    assert_alive(client, server)
    service.await_closed(idle_timeout=1)


@pytest.mark.parametrize("before, after", [(1, 3), (3, 1)])
def test_next_process_may_have_more_or_fewer_workers(lab, before, after):
    target = lab.target()
    service = Service(lab, target, f"--workers={before}")
    pairs = [lab.pair(service, target) for _ in range(40)]
    for pair in pairs:
        assert_alive(*pair)
    for workers in (after, before):
        service.command = [
            f"--workers={workers}" if word.startswith("--workers") else word
            for word in service.command
        ]
        service.restart()
        for pair in pairs:
            assert_alive(*pair)
        assert service.resumed("restart") == len(pairs)


def test_busy_workers_hand_over_all(lab):
    """Bulk, questions and answers, and new clients, on as many workers as there may be."""
    target, service_arguments = lab.target(), ["--workers=2"]
    service = Service(lab, target, *service_arguments)
    transfers = [Bulk(*lab.pair(service, target), seed=f"busy {n}") for n in range(4)]
    quiet = [lab.pair(service, target) for _ in range(40)]
    for _ in range(4):
        for transfer in transfers:
            transfer.go_on(256 * KIB)
        service.restart()
        for pair in quiet:
            assert_alive(*pair)
    for transfer in transfers:
        transfer.go_on(1 * MIB)
        transfer.finish()
    assert service.lost() == {}


def test_resumed_connections_use_no_cpu_while_they_are_idle(lab):
    target = lab.target()
    service = Service(lab, target)
    pairs = [lab.pair(service, target) for _ in range(50)]
    for pair in pairs:
        assert_alive(*pair)
    pairs[0][0].shutdown(socket.SHUT_WR)
    expect_eof(pairs[0][1])
    service.restart()
    always(lambda: service.running(), "the process runs", 0.2)
    service.assert_idle()
