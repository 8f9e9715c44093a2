"""Sockets that a proxy finds at its start, as a service manager, inetd or a shell leaves them.

Each function gives a prefix for `lab.proxy`: a program that makes the sockets and then becomes
the proxy, so that the process id stays.
"""

from __future__ import annotations

import sys

_PASS = """
import os, socket, sys
announced, names, *addresses, separator = sys.argv[1 : sys.argv.index("--") + 1]
kept = []
for number, address in enumerate(addresses):
    if address.startswith("/"):
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(address)
    else:
        listener = socket.socket()
        listener.bind((address, 0))
    listener.listen(64)
    os.dup2(listener.fileno(), 50 + number)  # out of the way of what is to come
    kept.append(50 + number)
for number, descriptor in enumerate(kept):
    os.dup2(descriptor, 3 + number)
os.closerange(3 + len(kept), 100)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=announced, LISTEN_FDNAMES=names)
command = sys.argv[sys.argv.index("--") + 1 :]
os.execvp(command[0], command)
"""

_SOCKETPAIR = """
import os, socket, sys
ours, theirs = socket.socketpair()
ours.set_inheritable(True)  # the other end stays open: only the kind of socket counts
os.dup2(theirs.fileno(), 0)
os.execvp(sys.argv[1], sys.argv[1:])
"""

_CONNECTION = """
import os, socket, sys
listener = socket.create_server(("127.0.0.1", 0))
ours = socket.create_connection(listener.getsockname())
theirs, _ = listener.accept()
ours.set_inheritable(True)
os.dup2(theirs.fileno(), 0)
os.execvp(sys.argv[1], sys.argv[1:])
"""


def listening(*addresses: str, names: str, announced: int | None = None) -> list[str]:
    """Passes listeners as systemd does, sd_listen_fds(3).

    - addresses: a path, or an IPv4 host, of which the kernel chooses a port.
    - names: in the form of $LISTEN_FDNAMES.
    - announced: what $LISTEN_FDS says, by default the truth.
    """
    count = len(addresses) if announced is None else announced
    return [sys.executable, "-c", _PASS, str(count), names, *addresses, "--"]


def standard_input(kind: str) -> list[str]:
    """Standard input is one end of a "socketpair", or a TCP "connection"."""
    script = {"socketpair": _SOCKETPAIR, "connection": _CONNECTION}[kind]
    return [sys.executable, "-c", script]
