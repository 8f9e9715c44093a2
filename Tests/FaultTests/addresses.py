"""Socket addresses: as the command line writes them, and as /proc shows them (proc(5))."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path
from typing import Any

Address = Any  # (host, port), (host, port, flow, scope), or a str for AF_UNIX ("\0name": abstract)


def host_port(address: Address) -> str:
    """An address in the form that the command line takes."""
    if isinstance(address, str):
        return "@" + address[1:] if address.startswith("\0") else "unix:" + address
    host, port = address[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def family(address: Address) -> int:
    if isinstance(address, str):
        return socket.AF_UNIX
    return socket.AF_INET6 if ":" in address[0] else socket.AF_INET


def links(pid: int) -> dict[int, str]:
    links = {}
    for name in os.listdir(f"/proc/{pid}/fd"):
        try:
            links[int(name)] = os.readlink(f"/proc/{pid}/fd/{name}")
        except OSError:
            pass  # closed in between
    return links


def tcp_table(pid: int) -> list[tuple[str, Address, Address, str]]:
    """(link, local, remote, state in hex) of each TCP socket, as in proc(5)."""

    def decode(text: str) -> Address:
        host, _, port = text.partition(":")
        raw = bytes.fromhex(host)
        words = b"".join(raw[i : i + 4][::-1] for i in range(0, len(raw), 4))
        family = socket.AF_INET if len(raw) == 4 else socket.AF_INET6
        return socket.inet_ntop(family, words), int(port, 16)

    rows = []
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            field = line.split()
            rows.append((f"socket:[{field[9]}]", decode(field[1]), decode(field[2]), field[3]))
    return rows


def tcp_queue(pid: int, local: Address, remote: Address) -> int:
    """Bytes that an IPv4 connection has received and nobody has read (rx_queue in proc(5))."""
    ends = ["%08X:%04X" % (int.from_bytes(socket.inet_aton(host), sys.byteorder), port)
            for host, port in (local, remote)]
    for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]:
        field = line.split()
        if field[1:3] == ends:
            return int(field[4].partition(":")[2], 16)
    raise AssertionError(f"no connection between {local} and {remote}")


def listening_sockets(pid: int) -> list[Address]:
    """Addresses on which the process listens: TCP as tuples, AF_UNIX as strings."""
    own = set(links(pid).values())
    found: list[Address] = [
        local for link, local, _, state in tcp_table(pid) if state == "0A" and link in own
    ]
    for line in Path(f"/proc/{pid}/net/unix").read_text().splitlines()[1:]:
        field = line.split(maxsplit=7)
        accepts = int(field[3], 16) & 0x10000  # __SO_ACCEPTCON
        if accepts and len(field) == 8 and f"socket:[{field[6]}]" in own:
            path = field[7]
            found.append("\0" + path[1:] if path.startswith("@") else path)
    return found
