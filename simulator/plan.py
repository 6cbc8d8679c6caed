# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a fleet consists of, worked out from its few options: nodes, cables, addresses. Nothing is changed here."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from simulator.errors import SimulatorError
from simulator.hardware import FUNCTIONS, PORTS, Function, twins

TOPOLOGIES = ("pair", "ring", "switch")
RENDERERS = ("NetworkManager", "networkd")
"""What netplan can leave the work to: as on DGX OS, and as on Ubuntu Server."""
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
    renderer: str = RENDERERS[0]

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
        if self.rate:
            check_rate(self.rate, "--rate")
        if self.renderer not in RENDERERS:
            raise SimulatorError(f"--renderer {self.renderer}: choose one of {', '.join(RENDERERS)}")


@dataclass(frozen=True)
class End:
    """Where a cable is plugged in: a QSFP port of a node. Both are counted as people do: nodes from 1, ports from 0."""

    node: int
    port: int

    def __str__(self) -> str:
        """As ``cable --ends`` takes it."""
        return f"{node_name(self.node)}:p{self.port}"


@dataclass(frozen=True)
class Cable:
    """A cable with its one end at a switch, or both at nodes."""

    name: str
    bridge: str
    ends: tuple[End, ...]
    rate: str = ""
    """At which each end sends and receives at most, as tc writes it; empty for no limit."""


def check_name(name: str) -> None:
    """See whether a fleet may have this name; it becomes part of container, network and path names.

    :raises SimulatorError: it may not.
    """
    if not _NAME.fullmatch(name):
        raise SimulatorError(f"--name {name}: use up to 20 lower-case letters, digits and hyphens")


def check_rate(rate: str, what: str) -> None:
    """See whether tc would take this rate.

    :param what: how to call it.
    :raises SimulatorError: it would not.
    """
    if not _RATE.fullmatch(rate):
        raise SimulatorError(f"{what} {rate or 'is empty'}: write it as tc does, like 1gbit or 500mbit")


def node_name(node: int) -> str:
    """Host name of a node."""
    return f"spark-{node:02d}"


def fabric_port(node: int, function: Function) -> str:
    """The fabric's end of a function's link."""
    return f"n{node}{'p2' if function.rail else ''}p{function.port}"


def lay(wires: Iterable[Sequence[End]], switched: bool = False, rate: str = "") -> list[Cable]:
    """Cables called c1, c2, … for wires: two ends are joined by one cable, more by a cable each to a switch.

    :param switched: two ends, or one, have a switch as well.
    """
    laid: list[Cable] = []
    switches = 0
    for ends in wires:
        if len(ends) > 2 or switched:
            switches += 1
            bridge = f"sw{switches}" if switches > 1 else "sw"
            laid += [Cable(f"c{number}", bridge, (end,), rate) for number, end in enumerate(ends, len(laid) + 1)]
        else:
            name = f"c{len(laid) + 1}"
            laid.append(Cable(name, name, tuple(ends), rate))
    return laid


def arrange(topology: str, nodes: Sequence[int], count: int = 1, rate: str = "") -> list[Cable]:
    """The cables of a topology; a bridge stands for each of them, or for the switch that they all lead to.

    :param nodes: in the order of the ring.
    :param count: cables between the nodes of a pair.
    """
    if topology == "pair":
        return lay([[End(node, port) for node in nodes] for port in range(count)], rate=rate)
    if topology == "ring":
        following = [*nodes[1:], *nodes[:1]]
        return lay([(End(node, 0), End(after, 1)) for node, after in zip(nodes, following, strict=True)], rate=rate)
    return lay([[End(node, 0) for node in nodes]], switched=True, rate=rate)


def cables(spec: Spec) -> list[Cable]:
    """The cables that a fleet starts with."""
    return arrange(spec.topology, range(1, spec.nodes + 1), spec.cables, spec.rate)


def find_node(word: str, spec: Spec) -> int:
    """Number of a node that is given by its name or number.

    :raises SimulatorError: there is no such node.
    """
    for number in range(1, spec.nodes + 1):
        if word in (str(number), node_name(number)):
            return number
    there = f"{node_name(1)} to {node_name(spec.nodes)}" if spec.nodes > 1 else node_name(1)
    raise SimulatorError(f"no node '{word}' in fleet '{spec.name}'; there are: {there}")


def cable_topology(spec: Spec, topology: str, nodes: str = "", count: int = 1) -> list[Cable]:
    """What ``cable pair|ring|switch`` asks for.

    :param nodes: numbers or names with commas between them; empty for all.
    :raises SimulatorError: that cannot be cabled.
    """
    chosen = [find_node(word.strip(), spec) for word in nodes.split(",")] if nodes else list(range(1, spec.nodes + 1))
    twice = [node_name(node) for node in dict.fromkeys(chosen) if chosen.count(node) > 1]
    if twice:
        raise SimulatorError(f"--nodes {nodes}: {', '.join(twice)} twice; name each node once")
    if topology == "pair" and len(chosen) != 2:
        raise SimulatorError(f"a pair has exactly 2 nodes, not {len(chosen)}; choose them, like --nodes 1,2")
    if topology == "ring" and len(chosen) < 3:
        raise SimulatorError(f"a ring has at least 3 nodes, not {len(chosen)}; for 2 there is cable pair")
    if count not in (1, 2) or (count == 2 and topology != "pair"):
        raise SimulatorError(f"--cables {count}: 1, or 2 between the nodes of a pair")
    return arrange(topology, chosen, count, spec.rate)


def find_end(word: str, spec: Spec) -> End:
    """The end that is written NODE:p0 or NODE:p1.

    :raises SimulatorError: it is written otherwise, or there is no such node or port.
    """
    node, colon, port = word.partition(":")
    if not node or not colon:
        raise SimulatorError(f"--ends: '{word}' is not an end; write NODE:PORT, like {End(1, 0)}")
    ports = [f"p{number}" for number in PORTS]
    if port not in ports:
        raise SimulatorError(f"--ends {word}: no port '{port}'; there are: {', '.join(ports)}")
    return End(find_node(node, spec), ports.index(port))


def cable_ends(spec: Spec, words: Sequence[str]) -> list[Cable]:
    """What ``cable --ends`` asks for.

    :param words: END=END for a cable, END=END=END… for a switch.
    :raises SimulatorError: that cannot be cabled.
    """
    wires = []
    for word in words:
        if "=" not in word:
            raise SimulatorError(f"--ends {word}: join the ends of a cable by =, like {End(1, 0)}={End(2, 0)}")
        wires.append([find_end(end, spec) for end in word.split("=")])
    every = [end for wire in wires for end in wire]
    for end in every:
        if every.count(end) > 1:
            raise SimulatorError(f"--ends: {end} is used twice; a port takes one cable")
    return lay(wires, rate=spec.rate)


def with_rate(cabling: Iterable[Cable], name: str, rate: str) -> list[Cable]:
    """The same cables, one of them with another limit."""
    return [replace(cable, rate=rate) if cable.name == name else cable for cable in cabling]


def wiring(cabling: Iterable[Cable]) -> list[tuple[str, str, tuple[End, ...]]]:
    """What is cabled to what, without limits: equal where nobody has to move a cable."""
    return [(cable.name, cable.bridge, cable.ends) for cable in cabling]


def drawing(cabling: Iterable[Cable]) -> str:
    """What is cabled to what, in one line."""
    return ", ".join(
        f"{cable.name} {'='.join([*map(str, cable.ends), *([cable.bridge] if cable.bridge != cable.name else [])])}"
        for cable in cabling
    )


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


def netplan_default(spec: Spec) -> tuple[str, str]:
    """Name and text of the file in /etc/netplan that names the renderer."""
    name = "01-network-manager-all.yaml" if spec.renderer == "NetworkManager" else "01-networkd-all.yaml"
    return name, f"network:\n  version: 2\n  renderer: {spec.renderer}\n"


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
