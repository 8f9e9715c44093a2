"""A start that fails while connections wait for it: they wait on, and go on once it succeeds."""

import pytest

from store import Service
from streams import echo_once

EX_TEMPFAIL = 75  # sysexits(3): not among the unit's RestartPreventExitStatus=


@pytest.mark.parametrize(("mistake", "said"), [
    ("--idle-timeout=soon", "soon"),
    ("--connections-max=none", "none"),
])
def test_connections_wait_until_the_mistake_is_mended(lab, mistake, said):
    service = Service(lab, lab.echo().address)
    client = lab.client(service)
    echo_once(client, b"before")
    right = list(service.command)
    service.hand_over()
    service.command.append(mistake)
    for _ in range(2):  # systemd tries again and again
        service.spawn()
        assert service.await_end() == EX_TEMPFAIL
    assert any(said in line for line in service.lines("expected"))
    service.command = right
    service.start()
    echo_once(client, b"after")
    assert service.resumed("restart") == 1 and service.lost() == {}


def test_without_connections_a_mistake_ends_with_its_own_status(lab):
    service = Service(lab, lab.echo().address)
    service.hand_over()
    service.command.append("--idle-timeout=soon")
    service.spawn()
    assert service.await_end() == 2
    del service.command[-1]
    service.start()
