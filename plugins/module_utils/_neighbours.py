# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a node says when the controller looks for Sparks: who it is, its fabric, and who is at its other ends.

Note that this module util is PRIVATE to the collection. It can have breaking changes at any time.

The controller sends this file, `_roce` and `_arp` to the node's Python over ssh (see `_discover`); nothing is written
there. With root's rights it asks as role fabric does, by ARP probes, which need no address at either end. Without them
the kernel is made to ask in our place: a datagram that has to leave by a port makes it look for the receiver there, and
its neighbour table says who answered. That finds nobody where the other end has no address on the port and
filters by reverse path, as Ubuntu does.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TypedDict

from ._arp import ETHERTYPE, Link, probe
from ._roce import Roce, SysfsReader, connectx_ports, read

# Nobody listens at port 9 (discard), and if somebody does, the datagram is empty.
_DISCARD = 9
_SO_BINDTODEVICE = 25
_ALL_NODES = "ff02::1"
_TIMEOUT_S = 10


class Neighbour(TypedDict):
    """Somebody on a port; `address` is empty where only the MAC address is known."""

    mac: str
    address: str


class Answer(TypedDict):
    """All that a node says."""

    hostname: str
    machine: str
    product: str
    roce: Roce
    neighbours: dict[str, list[Neighbour]]
    root: bool


Ip = Callable[[Sequence[str]], "str | None"]


def run_ip(arguments: Sequence[str]) -> str | None:
    """Return the output of ``ip -j``, None where iproute2 is missing or refuses."""
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
    try:
        done = subprocess.run(
            ["ip", "-j", *arguments],
            check=False,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_TIMEOUT_S,
            env={**os.environ, "PATH": path, "LC_ALL": "C"},
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def ports(roce: Roce) -> dict[str, str]:
    """Return the fabric's interfaces that carry, with their MAC addresses; not those of management."""
    known = {interface["name"]: interface for interface in roce["interfaces"]}
    names = [str(device["netdev"]) for device in connectx_ports(roce["devices"]) if device["netdev"]]
    return {
        name: str(known[name]["mac"] or "")
        for name in dict.fromkeys(names)
        if name in known and known[name]["carrier"] and name not in roce["management"]
    }


def parse_neighbours(text: str | None, interfaces: Mapping[str, str]) -> dict[str, list[Neighbour]]:
    """Read ``ip -j neigh show``; whoever did not answer has no MAC address and is left out."""
    found: dict[str, list[Neighbour]] = {name: [] for name in interfaces}
    try:
        entries = json.loads(text or "[]")
    except (ValueError, RecursionError):
        return found
    for entry in entries if isinstance(entries, list) else []:
        if not isinstance(entry, dict) or entry.get("dev") not in found:
            continue
        mac, address, states = entry.get("lladdr"), entry.get("dst"), entry.get("state")
        if not isinstance(mac, str) or not isinstance(address, str):
            continue
        if isinstance(states, list) and {"FAILED", "NOARP"} & set(map(str, states)):
            continue
        found[entry["dev"]].append(Neighbour(mac=mac.lower(), address=address))
    return found


def _open(name: str) -> Link:
    """Return a packet socket that sees the ARP frames of an interface."""
    opened = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    try:
        opened.setblocking(False)
        opened.bind((name, ETHERTYPE))
    except OSError:
        opened.close()
        raise
    return opened


def _stir(interfaces: Mapping[str, str], targets: Sequence[str], seconds: float) -> None:
    """Have the kernel look for others on the interfaces, without root."""
    pings = []
    for name in interfaces:
        try:
            # Only answered where the ports have link-local IPv6 addresses, which NVIDIA's netplan files switch off.
            command = ["ping", "-6", "-c", "2", "-i", "0.3", "-W", "1", f"{_ALL_NODES}%{name}"]
            pings.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
        except OSError:
            pass
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as opened:
            opened.setblocking(False)
            try:
                opened.setsockopt(socket.SOL_SOCKET, _SO_BINDTODEVICE, name.encode() + b"\0")
            except OSError:
                continue  # before Linux 5.7 only root may
            for target in targets:
                try:
                    opened.sendto(b"", (target, _DISCARD))
                except OSError:
                    continue
    time.sleep(seconds)
    for ping in pings:
        try:
            ping.wait(timeout=2)
        except subprocess.TimeoutExpired:
            ping.kill()
            ping.wait()


def _first_line(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as stream:
            return stream.readline(256).strip()
    except OSError:
        return ""


def observe(address: str, targets: Sequence[str], seconds: float = 1.0, root: str = "/", ip: Ip = run_ip) -> Answer:
    """Look at this node.

    Args:
        address: the one that the node is managed by; empty if it is not known.
        targets: IPv4 addresses of the other hosts, of any of their interfaces.
        seconds: how long to wait for others to answer.
        root: where the file system is; another path than the default is for tests.
        ip: runs ``ip -j``.
    """
    reader = SysfsReader(os.path.join(root, "sys"), os.path.join(root, "dev"))
    roce = read(reader, ip(["-d", "addr", "show"]), ip(["-4", "route", "show", "default"]), address)
    carrying = ports(roce)
    own = {local.split("/")[0] for interface in roce["interfaces"] for local in interface["addresses"]}
    others = [target for target in targets if target not in own]
    heard: dict[str, list[str]] | None = None
    if carrying and os.geteuid() == 0:
        try:
            heard = probe(carrying, others, _open, timeout=seconds)
        except PermissionError:
            heard = None
    if carrying and heard is None:
        _stir(carrying, others, seconds)
    neighbours = parse_neighbours(ip(["neigh", "show"]) if carrying else None, carrying)
    for name, macs in (heard or {}).items():
        known = {neighbour["mac"] for neighbour in neighbours[name]}
        neighbours[name] += [Neighbour(mac=mac, address="") for mac in macs if mac not in known]
    machine = _first_line(os.path.join(root, "etc/machine-id"))
    return Answer(
        hostname=socket.gethostname(),
        # The id itself is meant to stay on the machine.
        machine=hashlib.sha256(f"sparkfleet {machine}".encode()).hexdigest()[:16] if machine else "",
        product=_first_line(os.path.join(root, "sys/class/dmi/id/product_name")),
        roce=roce,
        neighbours=neighbours,
        root=heard is not None,
    )
