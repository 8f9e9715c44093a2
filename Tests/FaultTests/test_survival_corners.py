"""Survival where several things come together: refused entries, pending dials, early crashes."""

from __future__ import annotations

import errno
import os
import selectors
import shutil
import signal
import socket
import sys
import time
from typing import Any

import pytest

from harness import (
    KIB, Lab, Stream, eventually, expect_end, expect_eof, expect_reset, fill, is_open,
    receive_all, receive_exactly, receive_stream, reset,
)
from namespaces import require_root
from process import proxy_binary
from store import Service
from survival import CRASH, RESTART, Fault, assert_alive
from targets import FullTarget, Target
from test_too_many_references import LIMIT, PREFIX, hog  # noqa: F401  a fixture

REFUSED = "not every connection will survive this process: sendmsg"


def service_of_the_user(lab: Lab, target: Target, *arguments: str, nofile: int = LIMIT,
                        **options: Any) -> Service:
    """Without privileges, so that the limits of a user bind."""
    binary = lab.folder / "proxy"
    shutil.copy(proxy_binary(), binary)
    binary.chmod(0o755)
    lab.folder.chmod(0o755)
    if isinstance(target.address, str):
        os.chmod(target.address, 0o777)
    return Service(
        lab, target, "--preserve-after=0", *arguments, prefix=PREFIX, binary=binary,
        nofile=nofile, **options
    )


# --- a pipe that could not be entered ------------------------------------------------------------


def stalled_with_a_pipe_that_is_not_entered(
    lab: Lab, hog
) -> tuple[Service, socket.socket, socket.socket, int]:
    """Nobody counts bytes of unix sockets: only the table can tell that some were in a pipe."""
    target = lab.target(str(lab.folder / "target"))
    service = service_of_the_user(lab, target, listen=str(lab.folder / "listen"))
    client, server = lab.pair(service, target)
    assert_alive(client, server)
    service.await_entered(1)
    hog.hold(2 * LIMIT)
    count = fill(client, "up")
    service.await_line(REFUSED)
    assert service.value("tcp_proxy_pipes") == 1
    assert service.value("tcp_proxy_ledger_entries") == 1
    return service, client, server, count


def test_bytes_in_a_pipe_that_could_not_be_entered_are_no_silent_hole_after_a_crash(lab, hog):
    service, client, server, count = stalled_with_a_pipe_that_is_not_entered(lab, hog)
    service.crash()
    assert service.bytes_in_pipes() == [], "it was entered, and this proves nothing"
    hog.hold(0)
    service.start()
    stream = Stream("up")
    try:
        while data := server.recv(256 * KIB):
            stream.check(data)
    except ConnectionResetError:
        pass
    assert 0 < stream.position < count
    expect_end(client)
    assert service.lost() == {"bytes-lost": 1}
    assert service.resumed("crash") == 0
    service.await_entered(0)


def test_pipe_that_could_not_be_entered_is_entered_by_a_restart_when_there_is_room(lab, hog):
    service, client, server, count = stalled_with_a_pipe_that_is_not_entered(lab, hog)
    hog.hold(0)
    service.hand_over()
    assert len(service.bytes_in_pipes()) == 1
    service.start()
    assert service.lost() == {}
    assert service.resumed("restart") == 1
    receive_stream(server, "up", count)
    assert_alive(client, server)


# --- redials that end while a ledger is adopted --------------------------------------------------


@pytest.mark.parametrize("fault", [RESTART, CRASH], ids=["restart", "crash"])
def test_redials_that_fail_at_once_cost_no_established_connection(lab, fault: Fault):
    """Their ends leave dead entries among those of connections that are not adopted yet."""
    path = str(lab.folder / "target")
    target = lab.target(path, backlog=0)
    service = Service(
        lab, target, "--preserve-after=0", "--log-connections=none",
        "--workers=1",  # so that all are in one ledger
    )
    pairs = [lab.pair(service, target) for _ in range(20)]
    for pair in pairs:
        assert_alive(*pair)
    waiting = [lab.client(service) for _ in range(70)]  # the backlog takes one of them
    service.await_entered(90)
    service.hand_over()
    os.unlink(path)
    wrong = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    lab.sockets.append(wrong)
    wrong.bind(path)
    service.start()
    service.await_closed(target_connect_failed=69)
    assert service.resumed("restart") == 90
    for pair in pairs:
        assert_alive(*pair)
    fault.happen(service, entered=21)
    assert service.resumed(fault.cause) == 21
    assert service.lost() == {}
    for pair in pairs:
        assert_alive(*pair)
    assert sum(is_open(client) for client in waiting) == 1


# --- ends of connections of which there are copies ------------------------------------------------


def ends_are_passed_on(service: Service, client: socket.socket, server: socket.socket,
                       end: str) -> None:
    """A close alone would send nothing as long as a copy of the socket is in some queue."""
    if end == "FIN":
        client.sendall(b"question")
        client.shutdown(socket.SHUT_WR)
        assert receive_all(server) == b"question"
        server.sendall(b"answer")
        server.close()
        assert receive_exactly(client, 6) == b"answer"
        expect_eof(client)
        service.await_closed(client_closed=1)
    elif end == "RST of the client":
        reset(client)
        expect_reset(server)
        service.await_closed(client_reset=1)
    else:
        reset(server)
        expect_reset(client)
        service.await_closed(target_reset=1)


def fill_again(lab: Lab, target: FullTarget) -> None:
    assert not target.is_pending()
    target.socket.listen(0)
    for filler in (fillers := [socket.socket() for _ in target.fillers]):
        filler.setblocking(False)
        assert filler.connect_ex(target.address) in (0, errno.EINPROGRESS)
    lab.sockets += fillers
    target.fillers = fillers
    eventually(target.is_pending, "the accept queue to fill")


@pytest.mark.parametrize("end", ["FIN", "RST of the target"])  # of the client there is a copy
def test_ends_are_passed_on_though_the_entry_of_the_target_was_refused(lab, hog, end):
    """The client was entered while its target was dialled. That copy stays in the queue, behind
    another's, which cannot be moved out of the way either."""
    target = lab.full_target()
    target.make_room()
    service = service_of_the_user(lab, target)
    other = lab.client(service)
    assert_alive(other, target.accept_live())
    service.await_entered(1)
    fill_again(lab, target)
    client = lab.client(service)
    service.await_entered(2)
    hog.hold(2 * LIMIT)
    target.make_room()
    server = target.accept_live()
    assert_alive(client, server)
    service.await_line(REFUSED)
    ends_are_passed_on(service, client, server, end)


@pytest.mark.parametrize("end", ["FIN", "RST of the client", "RST of the target"])
def test_ends_are_passed_on_by_a_process_that_has_no_store(lab, end):
    """It goes on with what it was given, copies and all, and can enter nothing itself."""
    target = lab.target()
    service = Service(lab, target, "--preserve-after=0")
    client, server = lab.pair(service, target)
    assert_alive(client, server)
    service.await_entered(1)
    service.hand_over()
    for name in ("NOTIFY_SOCKET", "FDSTORE"):
        del service.environment[name]
    service.notify = False
    service.start()
    assert_alive(client, server)
    ends_are_passed_on(service, client, server, end)


# --- entered while it is dialled -----------------------------------------------------------------


def test_connection_is_entered_at_its_age_though_its_target_is_silent(lab):
    target = lab.full_target()
    service = Service(lab, target, "--preserve-after=700ms", "--connect-timeout=60s")
    began = time.monotonic()
    client = lab.client(service)
    service.await_value(1, "tcp_proxy_target_connect_attempts_total")
    service.await_entered(1)
    assert 0.6 < time.monotonic() - began < 3
    service.kill()
    assert service.resumed("crash") == 1
    assert service.value("tcp_proxy_connections_active") == 1
    assert is_open(client)
    target.make_room()
    assert_alive(client, target.accept_live())


# --- pipes of a user -----------------------------------------------------------------------------


def stall(service: Service, pairs: list[tuple[socket.socket, socket.socket]]) -> list[int]:
    """Sends until each connection has a pipe for what its reader does not take.

    Returns the bytes that each of them was sent.
    """
    sent = [0] * len(pairs)
    for client, _ in pairs:
        client.setblocking(False)

    def send() -> bool:
        for index, (client, _) in enumerate(pairs):
            try:
                while True:
                    sent[index] += client.send(bytes(64 * KIB))
            except BlockingIOError:
                pass
        found = service.value("tcp_proxy_pipes")
        assert found == len(pairs), f"{found:g} pipes for {len(pairs)} readers"
        return True

    eventually(send, "a pipe for each reader that is stalled")
    return sent


def read_on(pairs: list[tuple[socket.socket, socket.socket]], counts: list[int]) -> None:
    missing = {server: count for (_, server), count in zip(pairs, counts)}
    with selectors.DefaultSelector() as selector:
        for server in missing:
            selector.register(server, selectors.EVENT_READ)
        while missing:
            ready = selector.select(5)
            assert ready, f"{len(missing)} readers wait for bytes"
            for key, _ in ready:
                data = key.fileobj.recv(256 * KIB)
                assert data
                missing[key.fileobj] -= len(data)
                if not missing[key.fileobj]:
                    selector.unregister(key.fileobj)
                    del missing[key.fileobj]


def test_second_crowd_of_stalled_readers_gets_as_many_pipes_as_the_first(lab):
    """A closed pipe counts against its user's pages as long as a copy is in a ledger: pipe(7)."""
    require_root()
    target = lab.target(str(lab.folder / "target"))
    service = service_of_the_user(
        lab, target, "--workers=1", "--log-connections=none", nofile=8000,
        listen=str(lab.folder / "listen"))
    pairs = [lab.pair(service, target) for _ in range(480)]  # the living outnumber dead pipes
    service.await_entered(len(pairs))
    for crowd in (pairs[:200], pairs[200:400]):
        read_on(crowd, stall(service, crowd))
        eventually(lambda: service.value("tcp_proxy_pipes") < 64, "pipes to be closed")
    assert service.value("tcp_proxy_pipes_refused_total") == 0
    assert service.value("tcp_proxy_copied_without_pipe_bytes_total") == 0


# --- crashes of a start that follows a planned restart --------------------------------------------

# Ends in exec of a program that dies by SIGSYS as soon as it makes a unix stream socket, which a
# proxy with inherited listeners does only to dial: seccomp(2), filters of prctl(2).
DIE_DIALLING = f"""
import ctypes, os, resource, struct, sys
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # SIGSYS would leave one behind
LOAD, AND, EQUAL, RETURN = 0x20, 0x54, 0x15, 0x06
program = [
    (LOAD, 0, 0, 0), (EQUAL, 0, 5, int(sys.argv[1])),  # the number of socket(2)
    (LOAD, 0, 0, 16), (EQUAL, 0, 3, {int(socket.AF_UNIX)}),
    (LOAD, 0, 0, 24), (AND, 0, 0, 0xf),  # without SOCK_CLOEXEC and SOCK_NONBLOCK
    (EQUAL, 1, 0, {int(socket.SOCK_STREAM)}),
    (RETURN, 0, 0, 0x7fff0000),  # SECCOMP_RET_ALLOW
    (RETURN, 0, 0, 0x80000000),  # SECCOMP_RET_KILL_PROCESS
]
code = b"".join(struct.pack("HBBI", *line) for line in program)
buffer = ctypes.create_string_buffer(code, len(code))
filter = ctypes.create_string_buffer(struct.pack("HxxxxxxQ", len(program),
                                                 ctypes.addressof(buffer)))
libc = ctypes.CDLL(None, use_errno=True)
for arguments in ((38, 1, 0, 0, 0), (22, 2, filter, 0, 0)):  # NO_NEW_PRIVS, SECCOMP
    if libc.prctl(*arguments): sys.exit("prctl: " + os.strerror(ctypes.get_errno()))
os.execv(sys.argv[2], sys.argv[2:])
"""
SOCKET_NUMBERS = {"x86_64": 41, "aarch64": 198}


def test_crashes_while_resuming_after_a_planned_restart_are_counted(lab):
    """The third costs the connection with which it comes, and none but it."""
    target = lab.target(str(lab.folder / "target"), backlog=0)
    service = Service(lab, target, "--preserve-after=0", may_crash=True)
    pairs = [lab.pair(service, target) for _ in range(5)]
    for pair in pairs:
        assert_alive(*pair)
    queued = lab.client(service)  # the backlog takes it
    service.await_value(6, "tcp_proxy_connections_active")
    eventually(target.is_pending, "the backlog to be full")
    victim = lab.client(service)
    service.await_entered(7)
    service.hand_over()
    plain = service.command
    number = SOCKET_NUMBERS[os.uname().machine]
    service.command = [sys.executable, "-c", DIE_DIALLING, str(number), *plain]
    for _ in range(3):
        service.spawn()
        assert service.await_end() == -signal.SIGSYS
        assert not service.store.is_ready, "it crashed later than it should"
    service.start()
    assert service.lost() == {"crashes": 1}
    assert service.resumed("crash") == 6
    expect_reset(victim)
    for pair in pairs:
        assert_alive(*pair)
    assert_alive(queued, target.accept())
    service.command = plain
    service.kill()
    assert service.lost() == {} and service.resumed("crash") == 6
    for pair in pairs:
        assert_alive(*pair)
