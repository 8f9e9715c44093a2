"""Ledgers of every layout that there ever was: today's proxy continues their connections."""

from __future__ import annotations

import re
import signal
import socket

import pytest

from harness import Lab, expect_eof, receive_all, receive_stream
from recorded_ledger import (
    BYTES_IN, BYTES_OUT, FOLDER, IN_PIPE, SCENES, Recording, path_of, rebuild, record,
)
from store import Service
from survival import assert_alive

RECORDINGS = sorted(FOLDER.glob("layout-*/*.json"))


def test_there_are_recordings():
    assert RECORDINGS, "make them: Tests/FaultTests/record_ledger.py"


@pytest.mark.parametrize("scene", SCENES)
def test_the_present_layout_is_recorded(lab, scene):
    """Who changes the layout records the new one, and keeps the old."""
    recording = record(lab, scene)
    path = path_of(recording.layout, scene)
    assert path.exists(), f"{path} is missing: run Tests/FaultTests/record_ledger.py"
    kept = Recording.load(path)
    assert kept.table_size == recording.table_size
    assert [datagram["descriptors"] for datagram in kept.datagrams] == [
        datagram["descriptors"] for datagram in recording.datagrams
    ]


@pytest.mark.parametrize(
    "path", RECORDINGS, ids=[f"{path.parent.name}/{path.stem}" for path in RECORDINGS]
)
def test_recorded_connection_goes_on(lab: Lab, path):
    recording = Recording.load(path)
    target = lab.target()
    service = Service(lab, target, "--log-connections=all")
    service.end(signal.SIGTERM)
    service.store.forget()
    rebuilt = rebuild(lab, recording)
    service.store.stored += [("proxy-ledger-0", number) for number in rebuilt.stored]
    service.start()
    cause = "restart" if recording.scene == "handed over" else "crash"
    assert service.lost() == {}
    assert service.resumed(cause) == 1
    client = rebuilt.client
    server = rebuilt.server or target.accept()
    bytes_in, bytes_out = (BYTES_IN, BYTES_OUT) if rebuilt.server else (0, 0)
    if recording.scene == "stalled":
        receive_stream(server, "stalled", IN_PIPE)
        bytes_in += IN_PIPE
    if recording.scene == "half-closed":
        server.sendall(b"reply")
        server.shutdown(socket.SHUT_WR)
        assert receive_all(client) == b"reply"
    else:
        assert_alive(client, server)
        bytes_in += len(b"there")
        client.close()
        expect_eof(server)
        server.close()
    bytes_out += 5
    line = service.await_line(r"connection \d+ ended")
    assert re.search(rf"connection {recording.connection} ended", line), line
    for part in ("route=web ", f"in={bytes_in} ", f"out={bytes_out} ", "reason=client-closed"):
        assert part in line + " ", line
