# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A TCP connect scan of all ports of an address."""

from __future__ import annotations

import ipaddress
import resource
import select
import socket
import subprocess
import time
from collections.abc import Iterable
from contextlib import ExitStack, suppress
from pathlib import Path

ALL_PORTS = range(1, 65536)
PATIENCE_S = 3.0
"""How long a port may take to answer: time for a second packet. One that drops packets never does."""
_AT_ONCE = 4000
_TRACKED = Path("/proc/sys/net/netfilter/nf_conntrack_count")
_TRACKED_AT_MOST = Path("/proc/sys/net/netfilter/nf_conntrack_max")


def open_ports(address: str, ports: Iterable[int] = ALL_PORTS) -> set[int]:
    """Return the ports of an address, IPv4 or IPv6, that accept a connection."""
    every = list(ports)
    files, _most = resource.getrlimit(resource.RLIMIT_NOFILE)
    step = min(_AT_ONCE, files // 4)
    found: set[int] = set()
    for first in range(0, len(every), step):
        part = every[first : first + step]
        _wait_for_room(len(part))
        found |= _connected(address, part)
    return found


def _wait_for_room(connections: int) -> None:
    """Wait until the kernel has forgotten enough attempts: it tracks each for two minutes, and only so many."""
    while _TRACKED.exists() and int(_TRACKED.read_text()) + connections > 0.7 * int(_TRACKED_AT_MOST.read_text()):
        time.sleep(1)


def _connected(address: str, ports: list[int]) -> set[int]:
    """Knock at all ports at once, and return those that let us in."""
    family, *target = _target(address)
    poll = select.poll()
    with ExitStack() as stack:
        knocking: dict[int, socket.socket] = {}
        for port in ports:
            client = stack.enter_context(socket.socket(family, socket.SOCK_STREAM))
            client.setblocking(False)
            client.connect_ex((target[0], port, *target[1:]))
            poll.register(client, select.POLLOUT)
            knocking[port] = client
        waiting, end = len(knocking), time.monotonic() + PATIENCE_S
        while waiting and (left := end - time.monotonic()) > 0:
            for descriptor, _event in poll.poll(left * 1000):
                poll.unregister(descriptor)
                waiting -= 1
        # The kernel knows, however late we look.
        return {port for port, client in knocking.items() if _has_peer(client)}


def _has_peer(client: socket.socket) -> bool:
    with suppress(OSError):
        client.getpeername()
        return True
    return False


def _target(address: str) -> tuple[socket.AddressFamily, str, int, int] | tuple[socket.AddressFamily, str]:
    """Return the family, and what a socket of it connects to, without the port."""
    plain, _percent, interface = address.partition("%")
    if ipaddress.ip_address(plain).version == 4:
        return socket.AF_INET, plain
    return socket.AF_INET6, plain, 0, socket.if_nametoindex(interface) if interface else 0


def reachable(address: str, over: str) -> str:
    """Return an IPv6 address as this machine has to write it; `over` is an IPv4 address in the same network."""
    if not ipaddress.ip_address(address).is_link_local:
        return address
    said = subprocess.run(["ip", "route", "get", over], capture_output=True, text=True, check=True).stdout.split()
    return f"{address}%{said[said.index('dev') + 1]}"
