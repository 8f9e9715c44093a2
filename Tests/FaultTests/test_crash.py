"""kill -9, and faults that a debug build injects: what was entered goes on, or is reset."""

from __future__ import annotations

import signal
import time

import pytest

import survival
from harness import (
    DEADLINE, KIB, Lab, echo_once, eventually, expect_end, expect_eof, expect_reset, fill,
    receive_stream, Stream,
)
from store import Service, debug_binary
from survival import CRASH, DEEDS, ENDS, assert_alive
from traffic import Chatter, PingPong

TIMES = 3


@pytest.mark.parametrize("count", [1, 100])
def test_ping_pong_goes_on(lab, count):
    survival.ping_pong_goes_on(lab, CRASH, count, TIMES)


@pytest.mark.parametrize("pairs", [1, 4])
def test_bulk_at_full_speed_goes_on_or_is_reset_and_never_has_a_hole(lab, pairs):
    """What is spliced is never in the process; what is copied is, for some microseconds."""
    cut = survival.bulk_goes_on(lab, CRASH, TIMES, pairs)
    assert cut <= pairs, f"{cut} resets in {TIMES} crashes of {pairs} transfers"


@pytest.mark.parametrize("ends", ENDS)
def test_peers_that_talk_without_waiting_are_whole_or_cut(lab, ends):
    """Little pieces are copied: the process has bytes in its hands more often than ever."""
    outer, _, inner = ends.partition(">")
    echo = lab.echo(survival.address(lab, inner, "target"))
    service = Service(
        lab, echo, *CRASH.arguments, listen=survival.address(lab, outer, "listen"))
    chatter = Chatter(lab, service, 8)
    service.await_entered(8)
    lost = 0
    for _ in range(2 * TIMES):
        time.sleep(0.1)  # so that each is in mid speech
        service.kill()
        assert set(service.lost()) <= {"bytes-lost"}
        lost += sum(service.lost().values())
    chatter.end()
    wrong = [text for text in chatter.failures if "at byte" in text]
    assert not wrong, wrong
    assert len(chatter.failures) == lost, chatter.failures
    if ends == "tcp>tcp":  # a unix socket knows no reset
        assert not [text for text in chatter.failures if "FIN" in text], chatter.failures


@pytest.mark.parametrize("ends", ENDS[1:])
def test_bulk_over_unix_sockets_goes_on_or_is_reset_and_never_has_a_hole(lab, ends):
    """The kernel counts no bytes there: what was under way in the process must be in the table."""
    cut = survival.bulk_goes_on(lab, CRASH, TIMES, pairs=4, ends=ends)
    assert cut <= 8, f"{cut} resets in {TIMES} crashes of 4 transfers"


@pytest.mark.parametrize("ends", ENDS)
def test_bytes_in_pipes_arrive(lab, ends):
    survival.bytes_in_pipes_arrive(lab, CRASH, ends, TIMES)


def test_stalled_reader_reads_on_little_by_little(lab):
    survival.stalled_reader_reads_on_little_by_little(lab, CRASH, TIMES)


@pytest.mark.parametrize("first", ["client", "target"])
def test_half_closed_gets_its_reply(lab, first):
    survival.half_closed_gets_its_reply(lab, CRASH, first, TIMES)


@pytest.mark.parametrize("first", ["client", "target"])
def test_half_closed_with_a_reply_in_the_pipe(lab, first):
    survival.half_closed_with_a_reply_in_the_pipe(lab, CRASH, first)


def test_both_directions_ended_but_for_bytes_in_the_pipe(lab):
    survival.both_directions_ended_but_for_bytes_in_the_pipe(lab, CRASH)


@pytest.mark.parametrize("side", ["client", "target"])
@pytest.mark.parametrize("deed", DEEDS)
@pytest.mark.parametrize("ends", ["tcp>tcp", "unix>unix"])
def test_what_a_peer_does_while_it_is_down_is_passed_on(lab, deed, side, ends):
    survival.peer_acts_while_it_is_down(lab, CRASH, deed, side, ends)


@pytest.mark.parametrize("sender", ["client", "target"])
def test_reset_of_the_sender_comes_behind_its_bytes(lab, sender):
    survival.reset_of_the_sender_comes_behind_its_bytes(lab, CRASH, sender)


def test_both_peers_leave_while_it_is_down(lab):
    survival.both_peers_leave_while_it_is_down(lab, CRASH)


@pytest.mark.parametrize("delay", [0, 0.5])
def test_new_clients_wait_in_the_backlog(lab, delay):
    """Those who are being served at that moment are too young to be entered, and are cut."""
    churn, _ = survival.new_clients_are_served(lab, CRASH, TIMES, delay)
    assert not [text for text in churn.failures if "ECONNREFUSED" in text], churn.failures
    assert len(churn.failures) <= 4 * TIMES, churn.failures


def test_churn_beside_old_connections_costs_none_of_them(lab):
    echo = lab.echo()
    service = Service(lab, echo, "--log-connections=none", "--preserve-after=0")
    ping = PingPong(lab, service, 50)
    churn = survival.Churn(service, 300)
    for _ in range(TIMES):
        churn.go_on(150)
        service.kill()
        ping.go_on(may_fail=True)
    churn.stop()
    # One that was between recv and send at the kill is cut by the hole check.
    assert len(ping.failures) <= TIMES, ping.failures
    assert not [text for text in churn.failures if "ECONNREFUSED" in text], churn.failures
    for client in ping.clients:
        client.close()
    eventually(lambda: service.value("tcp_proxy_connections_active") == 0, "all to end")
    service.await_entered(0)


# --- when it comes again and again ---------------------------------------------------------------


def test_eight_crashes_in_quick_succession(lab):
    service = Service(lab, lab.echo(), "--preserve-after=0")
    ping = PingPong(lab, service, 30)
    service.await_entered(30)
    for _ in range(8):
        service.kill()
    ping.go_on(may_fail=True)
    assert len(ping.failures) <= 2, ping.failures
    living = 30 - len(ping.failures)
    assert service.value("tcp_proxy_connections_active") == living
    service.kill()
    ping.go_on(may_fail=True)


@pytest.mark.parametrize("delay", [0, 0.002, 0.005, 0.01, 0.015, 0.02, 0.03])
def test_eight_crashes_of_a_successor_that_is_not_ready_yet(lab, delay):
    """None of them has come to handle a connection, or it was not that connection's fault."""
    target = lab.target()
    service = Service(lab, target, "--preserve-after=0")
    pairs = [lab.pair(service, target) for _ in range(10)]
    for pair in pairs:
        assert_alive(*pair)
    stalled_client, stalled_server = lab.pair(service, target)
    count = fill(stalled_client, "stalled")
    service.await_entered(11)
    for _ in range(8):
        service.crash()
        service.spawn()
        time.sleep(delay)
    service.crash()
    service.start()
    assert service.lost() == {}
    for pair in pairs:
        assert_alive(*pair)
    receive_stream(stalled_server, "stalled", count)
    assert_alive(stalled_client, stalled_server)


def test_crashes_and_restarts_in_turn(lab):
    target = lab.target()
    service = Service(lab, target, "--preserve-after=0")
    pairs = [lab.pair(service, target) for _ in range(20)]
    for pair in pairs:
        assert_alive(*pair)
    service.await_entered(20)
    for cause, act in 4 * [("restart", service.restart), ("crash", service.kill)]:
        act()
        assert service.resumed(cause) == 20
        other = "crash" if cause == "restart" else "restart"
        assert service.resumed(other) == 0
        pairs[0][0].close()  # one leaves, and another comes
        expect_eof(pairs[0][1])
        pairs.pop(0)[1].close()
        pairs.append(lab.pair(service, target))
        for pair in pairs:
            assert_alive(*pair)
        service.await_entered(20)
    service.await_line(r"resumed 20 connections after a crash, gap \d+ ms$")


# --- what is not entered -------------------------------------------------------------------------


def test_connection_too_young_to_be_entered_ends(lab):
    """An end, in whichever way, and not a connection that hangs for ever."""
    target = lab.target()
    service = Service(lab, target, "--preserve-after=1h")
    client, server = lab.pair(service, target)
    assert_alive(client, server)
    assert service.value("tcp_proxy_ledger_entries") == 0
    service.kill()
    expect_end(client)
    expect_end(server)
    assert service.value("tcp_proxy_connections_active") == 0
    assert_alive(*lab.pair(service, target))


def test_connection_is_entered_when_it_is_a_second_old(lab):
    target = lab.target()
    service = Service(lab, target)
    began = time.monotonic()
    client, server = lab.pair(service, target)
    assert service.value("tcp_proxy_ledger_entries") == 0
    service.await_entered(1)
    assert 0.9 < time.monotonic() - began < 3
    old = (client, server)
    young = lab.pair(service, target)
    assert_alive(*young)
    service.kill()
    assert_alive(*old)
    expect_end(young[0])
    expect_end(young[1])


def test_connection_being_dialled_leaves_nothing_behind(lab):
    """The client is entered or it is cut; in either case nobody waits for ever."""
    target = lab.full_target()
    service = Service(lab, target, "--connect-timeout=60s", "--preserve-after=0")
    client = lab.client(service)
    service.await_value(1, "tcp_proxy_target_connect_attempts_total")
    service.kill()
    if service.value("tcp_proxy_connections_active") == 0:
        expect_end(client)
        return
    target.make_room()
    assert_alive(client, target.accept_live())


# --- faults that a debug build injects -----------------------------------------------------------


def faulty(lab: Lab, fault: str, target) -> Service:
    return Service(
        lab, target, *CRASH.arguments, binary=debug_binary(), may_crash=True,
        environment={"TCP_PROXY_FAULT": fault, "SWIFT_BACKTRACE": "enable=no"},
    )


@pytest.mark.parametrize("side", ["client", "target"])
def test_bytes_that_died_with_the_process_cost_their_connection_a_reset(lab, side):
    target = lab.target()
    service = faulty(lab, "die-holding-bytes", target)
    pairs = [lab.pair(service, target) for _ in range(6)]
    for pair in pairs:
        assert_alive(*pair)
    service.await_entered(6)
    victim = pairs.pop(3)
    (victim[0] if side == "client" else victim[1]).sendall(b"hole! and more")
    assert service.await_end() == -signal.SIGKILL
    service.start()
    expect_reset(victim[0])
    expect_reset(victim[1])
    assert service.lost() == {"bytes-lost": 1}
    assert service.resumed("crash") == 5
    service.await_line(
        r"resumed 5 connections after a crash, gap \d+ ms; lost 1 \(bytes-lost 1\)"
    )
    service.await_line(r"reason=lost")
    assert "lost" not in service.scrape().closed(), "it was not resumed, so it did not end"
    for pair in pairs:
        assert_alive(*pair)
    service.await_entered(5)


def test_hole_over_unix_sockets_is_found_as_well(lab):
    """The kernel counts nothing there: the table knows that bytes were being copied."""
    service, target = survival.service_between(
        lab, "unix>unix", binary=debug_binary(), may_crash=True,
        environment={"TCP_PROXY_FAULT": "die-holding-bytes"},
    )
    pairs = [lab.pair(service, target) for _ in range(3)]
    for pair in pairs:
        assert_alive(*pair)
    service.await_entered(3)
    victim = pairs.pop()
    victim[0].sendall(b"hole!")
    service.await_end()
    service.start()
    assert service.lost() == {"bytes-lost": 1}
    expect_end(victim[0])
    expect_end(victim[1])
    for pair in pairs:
        assert_alive(*pair)


@pytest.mark.parametrize("side", ["client", "target"])
def test_poison_is_dropped_after_the_third_crash_and_the_others_live(lab, side):
    target = lab.target()
    service = faulty(lab, "crash-at-poison", target)
    pairs = [lab.pair(service, target) for _ in range(6)]
    for pair in pairs:
        assert_alive(*pair)
    service.await_entered(6)
    victim = pairs.pop(3)
    (victim[0] if side == "client" else victim[1]).sendall(b"poison")

    def dropped() -> bool:
        return service.lost().get("crashes") == 1

    crashes = service.supervise(dropped, "the poisonous connection to be dropped", 3 * DEADLINE)
    assert crashes == 3
    expect_reset(victim[0])
    expect_reset(victim[1])
    assert service.lost() == {"crashes": 1}
    for pair in pairs:
        assert_alive(*pair)
    service.kill()
    assert service.lost() == {} and service.resumed("crash") == 5
    for pair in pairs:
        assert_alive(*pair)


def test_poison_among_busy_connections_costs_none_of_them(lab):
    """They are at work at each of the crashes, but bytes go on in between."""
    echo = lab.echo()
    service = faulty(lab, "crash-at-poison", echo)
    victim = lab.client(service)
    echo_once(victim)
    ping = PingPong(lab, service, 20)
    service.await_entered(21)
    victim.sendall(b"poison")
    service.supervise(lambda: service.lost().get("crashes"), "the poison to be dropped",
                      3 * DEADLINE)
    ping.go_on(may_fail=True)
    # Only one that was between recv and send at a crash may be missing.
    assert len(ping.failures) <= 1, ping.failures


def test_without_the_mapping_of_pipes_stalled_bytes_are_lost(lab):
    """The negative control: had the mapping no effect, the test above would prove nothing."""
    with pytest.raises((AssertionError, OSError)):
        survival.bytes_in_pipes_arrive(
            lab, CRASH, "tcp>tcp", times=1, binary=debug_binary(),
            environment={"TCP_PROXY_FAULT": "no-pipe-mapping"},
        )
    assert "bytes-lost" in lab.proxies[0].lost()


def test_without_the_mapping_of_pipes_no_wrong_byte_is_delivered(lab):
    """What cannot be continued whole is reset, whatever the reason."""
    target = lab.target(receive_buffer=64 * KIB)
    service = faulty(lab, "no-pipe-mapping", target)
    client, server = lab.pair(service, target, receive_buffer=64 * KIB)
    fill(client, "up")
    service.await_entered(1)
    service.crash()
    assert service.bytes_in_pipes()
    service.start()
    assert service.lost() == {"bytes-lost": 1}
    stream = Stream("up")
    server.settimeout(DEADLINE)
    with pytest.raises(ConnectionResetError):
        while True:
            data = server.recv(256 * KIB)
            assert data, "FIN where bytes are missing"
            stream.check(data)
    expect_reset(client)
