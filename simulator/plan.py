# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a fleet consists of, worked out from its few options: nodes, cables, addresses. Nothing is changed here."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass

from simulator.errors import SimulatorError
from simulator.hardware import FUNCTIONS, Function, twins

TOPOLOGIES = ("pair", "ring", "switch")
MAX_NODES = 32
FIRST_HOST = 10
"""Node 1 gets host number 11 in every network."""
FABRIC_NET = 177
"""Third octet of the fabric's first subnet, 192.168.177.0/24."""
MTU = 9000
MANAGEMENT_NETS = tuple(ipaddress.IPv4Network(f"10.77.{number}.0/24") for number in range(256))
IPNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network

_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,19}")
_RATE = re.compile(r"([1-9][0-9]*(?:\.[0-9]+)?)([kmg])bit")


@dataclass(frozen=True)
class Spec:
    """What the user asked for."""

    name: str
    nodes: int
    topology: str
    cables: int = 1
    rate: str = ""
    addresses: bool = True

    def check(self) -> None:
        """See whether such a fleet can be built.

        :raises SimulatorError: it cannot.
        """
        check_name(self.name)
        if self.topology not in TOPOLOGIES:
            raise SimulatorError(f"--topology {self.topology}: choose one of {', '.join(TOPOLOGIES)}")
        if self.topology == "pair" and self.nodes != 2:
            raise SimulatorError(
                f"--nodes {self.nodes}: a pair has exactly 2 nodes; use --nodes 2 or another --topology"
            )
        if self.topology == "ring" and self.nodes < 3:
            raise SimulatorError(f"--nodes {self.nodes}: a ring has at least 3 nodes; use --topology pair for 2")
        if not 1 <= self.nodes <= MAX_NODES:
            raise SimulatorError(f"--nodes {self.nodes}: choose 1 to {MAX_NODES}")
        if self.cables not in (1, 2) or (self.cables == 2 and self.topology != "pair"):
            raise SimulatorError(f"--cables {self.cables}: 1, or 2 between the nodes of a pair")
        if self.rate and not _RATE.fullmatch(self.rate):
            raise SimulatorError(f"--rate {self.rate}: write it as tc does, like 1gbit or 500mbit")


@dataclass(frozen=True)
class End:
    """Where a cable is plugged in: a QSFP port of a node. Both are counted as people do: nodes from 1, ports from 0."""

    node: int
    port: int


@dataclass(frozen=True)
class Cable:
    """A cable with its one end at a switch, or both at nodes."""

    name: str
    bridge: str
    ends: tuple[End, ...]


def check_name(name: str) -> None:
    """See whether a fleet may have this name; it becomes part of container, network and path names.

    :raises SimulatorError: it may not.
    """
    if not _NAME.fullmatch(name):
        raise SimulatorError(f"--name {name}: use up to 20 lower-case letters, digits and hyphens")


def node_name(node: int) -> str:
    """Host name of a node."""
    return f"spark-{node:02d}"


def fabric_port(node: int, function: Function) -> str:
    """The fabric's end of a function's link."""
    return f"n{node}{'p2' if function.rail else ''}p{function.port}"


def cables(spec: Spec) -> list[Cable]:
    """All cables of a fleet; a bridge stands for each of them, or for the switch that they all lead to."""
    nodes = range(1, spec.nodes + 1)
    if spec.topology == "pair":
        return [Cable(f"c{port + 1}", f"c{port + 1}", (End(1, port), End(2, port))) for port in range(spec.cables)]
    if spec.topology == "ring":
        return [Cable(f"c{node}", f"c{node}", (End(node, 0), End(node % spec.nodes + 1, 1))) for node in nodes]
    return [Cable(f"c{node}", "sw", (End(node, 0),)) for node in nodes]


def fabric_ports(cable: Cable) -> list[str]:
    """The fabric's ends of a cable: both twins of every port that it is plugged into."""
    return [fabric_port(end.node, function) for end in cable.ends for function in twins(end.port)]


def addresses(spec: Spec, node: int) -> dict[str, str]:
    """Address with prefix length for each netdev of a node that gets one.

    A pair and a switch have one subnet per rail, on port 0; in a ring every cable has its own two.
    """
    if not spec.addresses:
        return {}
    if spec.topology == "ring":
        links = {end.port: at for at, cable in enumerate(cables(spec)) for end in cable.ends if end.node == node}
    else:
        links = {0: 0}
    return {
        function.netdev: f"192.168.{FABRIC_NET + 2 * links[function.port] + function.rail}.{FIRST_HOST + node}/24"
        for function in FUNCTIONS
        if function.port in links
    }


def netplan(spec: Spec, node: int) -> str:
    """A node's /etc/netplan/40-cx7.yaml, as NVIDIA's playbooks write it; empty where no address is given."""
    lines = ["network:", "  version: 2", "  ethernets:"]
    plan = addresses(spec, node)
    for netdev, address in plan.items():
        lines += [f"    {netdev}:", "      dhcp4: no", "      link-local: []", f"      mtu: {MTU}"]
        lines += ["      addresses:", f"        - {address}"]
    return "\n".join(lines) + "\n" if plan else ""


def management_address(subnet: str, node: int) -> str:
    """Address of a node in the management network."""
    return str(ipaddress.IPv4Network(subnet)[FIRST_HOST + node])


def free_subnet(used: Iterable[str]) -> str:
    """The first management network that overlaps none of these.

    :param used: subnets in CIDR notation.
    :raises SimulatorError: all are taken.
    """
    taken: list[IPNetwork] = [ipaddress.ip_network(subnet, strict=False) for subnet in used]
    for candidate in MANAGEMENT_NETS:
        if not any(net.version == 4 and net.overlaps(candidate) for net in taken):
            return str(candidate)
    raise SimulatorError("all of 10.77.0.0/16 is in use; remove a fleet with: down --name NAME")


def burst_kib(rate: str) -> int:
    """Token bucket size for a rate: a millisecond of it, which must hold a few jumbo frames."""
    match = _RATE.fullmatch(rate)
    if match is None:
        raise SimulatorError(f"--rate {rate}: write it as tc does, like 1gbit or 500mbit")
    bits = float(match[1]) * {"k": 1e3, "m": 1e6, "g": 1e9}[match[2]]
    return max(256, int(bits / 8 / 1000 / 1024))
