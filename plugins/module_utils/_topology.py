# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who is cabled to whom, and whether that is a fabric.

Note that this module util is PRIVATE to the collection. It can have breaking changes at any time.

`find_wires` puts together what the hosts' probes heard: a MAC address that answered on one port and belongs to
another one's interface is a cable between them, or a switch if there are more. `find_cablings` judges what each
cluster makes of these. Both are pure; what is wrong is a line of the form "what; which plug goes where", said on the
host at which somebody has to act.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypedDict

from ._roce import Device, Roce, connectx_ports, in_a_line, why_no_ports

_NO_MAC = "00:00:00:00:00:00"


class Host(TypedDict):
    """What is known about one host of the fleet; `neighbours` is None where it could not be probed."""

    cluster: str
    roce: Roce
    neighbours: dict[str, list[str]] | None


class End(TypedDict):
    """A QSFP port that a wire ends at, with its interfaces: the one of the primary PCIe domain first."""

    host: str
    port: str
    interfaces: list[str]


class Wire(TypedDict):
    """What connects ports: a cable (or a switch with two users) if it has two ends, a switch if it has more."""

    ends: list[End]


class Cabling(TypedDict):
    """How a cluster is cabled.

    `topology` is "single", "pair", "ring", "switch", or "" if it could not be told. `wires` are indices of the wires
    that the cluster uses, none if there are problems. `problems` and `notes` are lines by host.
    """

    topology: str
    wires: list[int]
    problems: dict[str, list[str]]
    notes: dict[str, list[str]]


@dataclass(frozen=True)
class _Port:
    host: str
    name: str
    interfaces: tuple[str, ...]
    macs: tuple[str, ...]
    carrying: str | None  # the first interface with carrier


# --- ports ----------------------------------------------------------------------------------------


def _ports(host: str, roce: Roce) -> list[_Port]:
    """Return the QSFP ports that a fabric can use: ethernet, physical, and not management's."""
    devices = [d for d in connectx_ports(roce["devices"]) if d["netdev"] and d["link_layer"] in (None, "Ethernet")]
    several = len({device["card"] for device in devices if device["card"]}) > 1
    groups: dict[tuple[str, str], list[Device]] = {}
    for device in devices:
        card = (device["card"] or "") if several else ""
        groups.setdefault((card, device["physical_port"] or str(device["netdev"])), []).append(device)
    names = [name for _card, name in groups]
    interfaces = {interface["name"]: interface for interface in roce["interfaces"]}
    management = set(roce["management"])
    found = []
    for (_card, name), group in groups.items():
        netdevs = tuple(dict.fromkeys(str(device["netdev"]) for device in group))
        if management.intersection(netdevs):
            continue
        known = [interfaces[netdev] for netdev in netdevs if netdev in interfaces]
        macs = (str(interface["mac"]).lower() for interface in known if interface["mac"])
        found.append(
            _Port(
                host=host,
                # A second card has a p0 too.
                name=name if names.count(name) == 1 else netdevs[0],
                interfaces=netdevs,
                macs=tuple(mac for mac in macs if mac != _NO_MAC),
                carrying=next((i["name"] for i in known if i["carrier"]), None),
            )
        )
    return found


def _claims(ports: Sequence[_Port]) -> dict[str, list[int]]:
    """Map MAC addresses to the positions of the ports that have them."""
    claims: dict[str, list[int]] = {}
    for position, port in enumerate(ports):
        for mac in dict.fromkeys(port.macs):
            claims.setdefault(mac, []).append(position)
    return claims


# --- wires ----------------------------------------------------------------------------------------


def find_wires(hosts: Mapping[str, Host]) -> list[Wire]:
    """Tell which ports are connected.

    Args:
        hosts: all hosts that were probed, of all clusters. One end's word is enough, so a host whose `neighbours` are
            None still gets into the wires of those that heard it. A MAC address that several ports claim says nothing.

    Returns:
        The wires, and the ends of each, in the order of `hosts` and of the ports. A port that nobody answers on is in
        none of them.
    """
    ports = [port for name, host in hosts.items() for port in _ports(name, host["roce"])]
    groups = _Groups(ports)
    for position, port in enumerate(ports):
        neighbours = hosts[port.host]["neighbours"] or {}
        for interface in port.interfaces:
            groups.join(position, neighbours.get(interface) or [])
    return [
        Wire(ends=[End(host=p.host, port=p.name, interfaces=list(p.interfaces)) for p in (ports[i] for i in members)])
        for members in groups.several()
    ]


class _Groups:
    """Ports that are connected.

    On a switch every port hears every other one, so this looks up the square of the number of hosts. The table maps
    MAC addresses to groups, not to ports: a list's look-ups are one call, and nearly all give the group that it is in.
    """

    def __init__(self, ports: Sequence[_Port]) -> None:
        self._group = list(range(len(ports)))
        self._members = [[position] for position in self._group]
        self._macs: list[list[str]] = [[] for _port in ports]
        self._of_mac: dict[str, int] = {}
        for mac, claimants in _claims(ports).items():
            if len(claimants) == 1:
                self._of_mac[mac] = claimants[0]
                self._macs[claimants[0]].append(mac)

    def join(self, position: int, heard: Sequence[str]) -> None:
        """Connect a port with those whose MAC addresses it heard."""
        groups = set(map(self._of_mac.get, heard))
        if None in groups:
            # Strangers, or written in another case.
            groups |= set(map(self._of_mac.get, map(str.lower, heard)))
        for group in sorted(group for group in groups if group is not None):
            self._unite(self._group[position], group)

    def _unite(self, one: int, other: int) -> None:
        if one == other:
            return
        if len(self._members[one]) < len(self._members[other]):
            one, other = other, one
        for position in self._members[other]:
            self._group[position] = one
        for mac in self._macs[other]:
            self._of_mac[mac] = one
        self._members[one] += self._members[other]
        self._macs[one] += self._macs[other]
        self._members[other], self._macs[other] = [], []

    def several(self) -> list[list[int]]:
        """Return the groups of two and more, in order."""
        return sorted(sorted(members) for members in self._members if len(members) > 1)


# --- cablings -------------------------------------------------------------------------------------


def find_cablings(
    hosts: Mapping[str, Host],
    wires: Sequence[Wire],
    clusters: Mapping[str, Sequence[str]],
    wanted: Mapping[str, str] | None = None,
) -> dict[str, Cabling]:
    """Judge how each cluster is cabled.

    Two nodes are a "pair" whatever is between them: a cable, two cables, or a switch that others use too. NCCL's
    settings are the same for all three; `wanted` "switch" gives such a cluster that name. A cluster with a node that
    is not in `hosts`, whose nodes could not be probed, or that is cabled by InfiniBand cannot be told: its topology
    is "" and it has no problems, so that the caller can go by addresses.

    Args:
        hosts: as for `find_wires`.
        wires: what it returned.
        clusters: the hosts of each cluster, head first.
        wanted: fabric_topology of each cluster; "auto" if it is missing, or if it does not fit the number of nodes.
    """
    fleet = _Fleet(hosts, wires)
    return {
        cluster: _Judge(fleet, list(nodes), (wanted or {}).get(cluster, "auto")).cabling()
        for cluster, nodes in clusters.items()
    }


class _Fleet:
    """What all clusters' judgements look things up in."""

    def __init__(self, hosts: Mapping[str, Host], wires: Sequence[Wire]) -> None:
        self.hosts = hosts
        self.wires = wires
        self.ports = {name: _ports(name, host["roce"]) for name, host in hosts.items()}
        self.wire_of = {(end["host"], end["port"]): number for number, wire in enumerate(wires) for end in wire["ends"]}
        self.hosts_on = [dict.fromkeys(end["host"] for end in wire["ends"]) for wire in wires]
        self.clones = self._clones()

    def _clones(self) -> dict[str, list[tuple[str, str]]]:
        """Find MAC addresses of several hosts: by host, what it shares and with whom, which comes before it."""
        found: dict[str, list[tuple[str, str]]] = {}
        ports = [port for ports in self.ports.values() for port in ports]
        for mac, claimants in _claims(ports).items():
            first = ports[claimants[0]]
            for port in (ports[position] for position in claimants[1:]):
                if port.host == first.host:
                    continue
                found.setdefault(port.host, []).append((f"{port.name} has the MAC address {mac} of", first.host))
                if self.hosts[port.host]["cluster"] != self.hosts[first.host]["cluster"]:
                    found.setdefault(first.host, []).append((f"{first.name} has the MAC address {mac} of", port.host))
        return found


@dataclass
class _Judge:
    """The judgement of one cluster."""

    fleet: _Fleet
    nodes: list[str]
    wanted: str
    problems: dict[str, list[str]] = field(default_factory=dict)
    notes: dict[str, list[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.members = set(self.nodes)

    def cabling(self) -> Cabling:
        if len(self.nodes) <= 1:
            return Cabling(topology="single", wires=[], problems={}, notes={})
        if self._unknown():
            return Cabling(topology="", wires=[], problems={}, notes={})
        topology, wires = self._told()
        if self.problems:
            return Cabling(topology=topology, wires=[], problems=self.problems, notes={})
        self._note_unused(wires)
        return Cabling(topology=topology, wires=sorted(wires), problems={}, notes=self.notes)

    def _unknown(self) -> bool:
        hosts = self.fleet.hosts
        if any(node not in hosts for node in self.nodes) or all(hosts[n]["neighbours"] is None for n in self.nodes):
            return True
        return any(
            not self.fleet.ports[node]
            and any(port["link_layer"] == "InfiniBand" for port in connectx_ports(hosts[node]["roce"]["devices"]))
            for node in self.nodes
        )

    def _told(self) -> tuple[str, set[int]]:
        for node in self.nodes:
            for what, other in self.fleet.clones.get(node, []):
                self._problem(node, f"{what} {self._host(other)} too; give each its own, as 'ethtool -P' shows it")
            if not self.fleet.ports[node]:
                self._problem(node, self._portless(node))
        common = {
            number for number in self._wires_at(self.nodes[0]) if self.members <= self.fleet.hosts_on[number].keys()
        }
        if len(self.nodes) == 2:
            if not common and not self.problems:
                self._pair_problems()
            return ("switch" if self.wanted == "switch" else "pair"), common
        if self.problems:
            return "", set()
        if common:
            if self.wanted == "ring":
                self._problem(
                    self.nodes[0],
                    "fabric_topology is ring, but all nodes are on one switch; set it to switch or auto, or cable the "
                    "nodes to each other",
                )
            return "switch", common
        ring = _Ring(self)
        if self.wanted == "switch" and not ring.problems:
            self._problem(
                self.nodes[0],
                "fabric_topology is switch, but the nodes are cabled as a ring; set it to ring or auto, or plug each "
                "node into the switch",
            )
        elif self.wanted == "switch" or (self.wanted != "ring" and self._shared() is not None):
            self._switch_problems()
            return "switch", set()
        for node, line in ring.problems:
            self._problem(node, line)
        return "ring", ring.wires

    # --- what is there

    def _wires_at(self, node: str) -> list[int]:
        found = (self.wire_at(node, port) for port in self.fleet.ports[node])
        return list(dict.fromkeys(number for number in found if number is not None))

    def wire_at(self, node: str, port: _Port) -> int | None:
        """Return the number of the wire that ends at a port."""
        return self.fleet.wire_of.get((node, port.name))

    def _shared(self) -> int | None:
        """Return the wire, a switch by its number of ends, that most of the nodes are on."""
        count: dict[int, int] = {}
        for node in self.nodes:
            for number in self._wires_at(node):
                count[number] = count.get(number, 0) + 1
        switches = [n for n in count if len(self.fleet.wires[n]["ends"]) > 2 and count[n] > 1]
        return max(switches, key=lambda n: count[n], default=None)  # the first of equals, which is the head's

    def other_end(self, node: str, port: _Port) -> End | None:
        """Return the end of a cable that is at another node of the cluster."""
        number = self.wire_at(node, port)
        ends = self.fleet.wires[number]["ends"] if number is not None else []
        if len(ends) != 2:
            return None
        other = ends[0] if (ends[1]["host"], ends[1]["port"]) == (node, port.name) else ends[1]
        return other if other["host"] in self.members and other["host"] != node else None

    def occupant(self, node: str, port: _Port) -> str | None:
        """Say what a port is cabled to, None if it has no cable."""
        number = self.wire_at(node, port)
        if number is None:
            return f"{port.carrying} has carrier, but no node of the cluster answers on it" if port.carrying else None
        others = [e for e in self.fleet.wires[number]["ends"] if (e["host"], e["port"]) != (node, port.name)]
        if len(others) > 1:
            names = [name for name in self.fleet.hosts_on[number] if name != node]
            return f"{port.name} is on a switch with {_listed([self._host(name) for name in names])}"
        if others[0]["host"] == node:
            return f"{port.name} is cabled to its own {others[0]['port']}"
        place = f"{others[0]['host']} {others[0]['port']}"
        return f"{port.name} is cabled to {place}{self._of_cluster(others[0]['host'])}"

    def _of_cluster(self, host: str) -> str:
        return "" if host in self.members else f" of cluster {self.fleet.hosts[host]['cluster']}"

    def _host(self, host: str) -> str:
        return f"{host}{self._of_cluster(host)}"

    # --- what is wrong

    def _problem(self, node: str, line: str) -> None:
        self.problems.setdefault(node, []).append(line)

    def _portless(self, node: str) -> str:
        roce = self.fleet.hosts[node]["roce"]
        ports = connectx_ports(roce["devices"])
        if not ports:
            return in_a_line(why_no_ports(roce))
        if any(port["netdev"] for port in ports):
            return "its ConnectX ports carry management; leave one to the fabric, or set fabric_configure: none"
        return "its ConnectX ports have no interface; load mlx5_core's ethernet part, or reboot"

    def _best_port(self, node: str) -> _Port:
        """Return the port whose cable is the one to move: one that goes elsewhere, else one that carries, else p0."""

        def rank(port: _Port) -> int:
            return 0 if self.wire_at(node, port) is not None else 1 if port.carrying else 2

        return min(self.fleet.ports[node], key=rank)

    def _pair_problems(self) -> None:
        for node, other in (self.nodes, reversed(self.nodes)):
            port = self._best_port(node)
            place = f"{other} {self._best_port(other).name}"
            occupant = self.occupant(node, port)
            if occupant is None:
                self._problem(node, f"no cable of the cluster ends at this node; plug one into it and {other}")
            elif " is cabled to its own " in occupant:
                self._problem(node, f"{occupant}; plug one of the ends into {place}")
            else:
                self._problem(node, f"{occupant}; cable {port.name} to {place}")

    def _switch_problems(self) -> None:
        shared = self._shared()
        on_it = self.fleet.hosts_on[shared] if shared is not None else {}
        there = [node for node in self.nodes if node in on_it]
        switch = f"the switch of {_listed(there)}" if there else "the switch of the cluster"
        for node in self.nodes:
            if node in on_it:
                continue
            port = self._best_port(node)
            occupant = self.occupant(node, port)
            if occupant is None:
                self._problem(node, f"no cable of the cluster ends at this node; plug one into it and {switch}")
            else:
                self._problem(node, f"{occupant}; plug {port.name} into {switch}")

    def _note_unused(self, wires: set[int]) -> None:
        for node in self.nodes:
            used: dict[int, str] = {}
            for port in self.fleet.ports[node]:
                number = self.wire_at(node, port)
                if number is None or number not in wires:
                    occupant = self.occupant(node, port)
                    if occupant:
                        self._note(node, f"{occupant}; the cluster does not use it")
                elif number in used:
                    self._note(
                        node,
                        f"{used[number]} and {port.name} are on one switch; a second cable to it adds no bandwidth, "
                        "and only one of the ports is used",
                    )
                else:
                    used[number] = port.name
        if len(self.nodes) == 2 and len(wires) > 1:
            self._note(
                self.nodes[0],
                f"{len(wires)} cables to {self.nodes[1]}; more than one adds no bandwidth",
            )

    def _note(self, node: str, line: str) -> None:
        self.notes.setdefault(node, []).append(line)


# --- rings ----------------------------------------------------------------------------------------


# One side of a node: its number among the nodes, and 0 or 1 for p0 or p1.
_Side = tuple[int, int]


class _Ring:
    """The ring that needs the fewest plugs to be moved, and the moves.

    Every node has two sides at most, so the cables between the nodes make chains and closed rings. First each of these
    is given one direction (p0 to p1 all along), then they are joined, in the order of the nodes.
    """

    def __init__(self, judge: _Judge) -> None:
        self._judge = judge
        self._nodes = judge.nodes
        self.problems: list[tuple[str, str]] = []
        self.wires: set[int] = set()
        self._sides = [self._two_ports(node) for node in self._nodes]
        for node, sides in zip(self._nodes, self._sides, strict=True):
            if len(sides) < 2:
                self._problem(node, "only one ConnectX port is there for the fabric; a ring needs two of each node")
        if self.problems:
            return
        self._cables = self._found()
        self._alone = [not {(number, 0), (number, 1)} & set(self._cables) for number in range(len(self._nodes))]
        for chain in self._chains():
            self._direct(chain)
        self._join()

    def _two_ports(self, node: str) -> list[_Port]:
        ports = self._judge.fleet.ports[node]
        named = sorted((port for port in ports if port.name in ("p0", "p1")), key=lambda port: port.name)
        return named if len(named) == 2 else ports[:2]

    def _found(self) -> dict[_Side, _Side]:
        """Return the cables between the nodes, each from both of its ends."""
        place = {
            (node, port.name): (number, side)
            for number, node in enumerate(self._nodes)
            for side, port in enumerate(self._sides[number])
        }
        cables = {}
        for (node, name), own in place.items():
            port = self._sides[own[0]][own[1]]
            other = self._judge.other_end(node, port)
            far = place.get((other["host"], other["port"])) if other else None
            number = self._judge.wire_at(node, port)
            if far is not None and number is not None and name == port.name:
                cables[own] = far
                self.wires.add(number)
        return cables

    def _chains(self) -> list[tuple[bool, list[_Side]]]:
        """Follow the cables: for each chain whether it is closed, and the sides by which its nodes are entered."""
        found = []
        seen: set[int] = set()
        # Open chains begin at a node with a free side; what is left then is closed.
        loose = [n for n in range(len(self._nodes)) if {(n, 0), (n, 1)} - set(self._cables)]
        for start in [*loose, *range(len(self._nodes))]:
            if start in seen:
                continue
            enter: _Side | None = (start, 0 if (start, 0) not in self._cables and (start, 1) in self._cables else 1)
            chain: list[_Side] = []
            while enter is not None and enter[0] not in seen:
                seen.add(enter[0])
                chain.append(enter)
                enter = self._cables.get((enter[0], 1 - enter[1]))
            found.append((enter is not None, chain))
        return sorted(found, key=lambda item: min(item[1]))

    def _direct(self, found: tuple[bool, list[_Side]]) -> None:
        """Turn the parts of a chain around that run against the rest of it.

        A cable that joins two p0 or two p1 lies between two parts of different direction. To turn a part around is to
        exchange the plugs at its two ends, however long it is: one plug for each wrong cable, which is the least.
        """
        closed, chain = found
        entered = [side for _node, side in chain]
        head = entered[chain.index(min(chain))]
        zeros = entered.count(0)
        against = 1 - head if zeros * 2 == len(entered) else (0 if zeros * 2 < len(entered) else 1)
        if against not in entered:
            return
        if closed:
            # Begin where the right direction begins, so that no part goes over the end of the list.
            begin = next(i for i, side in enumerate(entered) if side != against and entered[i - 1] == against)
            chain = chain[begin:] + chain[:begin]
        part: list[_Side] = []
        for enter in [*chain, None]:
            if enter is not None and enter[1] == against:
                part.append(enter)
            elif part:
                self._turn(part[0], (part[-1][0], 1 - part[-1][1]))
                part = []

    def _turn(self, first: _Side, last: _Side) -> None:
        """Exchange the plugs at two sides, one of which may be free."""
        before, after = self._cables.get(first), self._cables.get(last)
        for plug, other, far in ((first, last, before), (last, first, after)):
            self._cables.pop(plug, None)
            if far is not None:
                target = self._port(other) if other[0] == plug[0] else self._place(other)
                self._problem(
                    self._nodes[plug[0]],
                    f"{self._place(far)} is cabled to {self._place(plug)}; a ring needs p0-p1: "
                    f"move the plug at {self._nodes[plug[0]]} to {target}",
                )
        for side, far in ((last, before), (first, after)):
            if far is not None:
                self._cables[side], self._cables[far] = far, side

    def _join(self) -> None:
        chains = []
        for closed, chain in self._chains():
            # All one way by now: from p1 to p0, or the other way round, which is the same seen from its end.
            nodes = [node for node, side in (chain if chain[0][1] == 1 else reversed(chain))]
            chains.append((closed, nodes))
        if len(chains) == 1 and chains[0][0]:
            return
        missing = []
        for number, (closed, nodes) in enumerate(chains):
            next_side = (chains[(number + 1) % len(chains)][1][0], 1)
            if closed:
                outside = [node for i, node in enumerate(self._nodes) if i not in nodes]
                self._problem(
                    self._nodes[nodes[0]],
                    f"{self._place((nodes[-1], 0))} is cabled to {self._place((nodes[0], 1))}, which closes a ring "
                    f"without {_listed(outside)}; move the plug at {self._nodes[nodes[0]]} to {self._place(next_side)}",
                )
            else:
                missing.append(((nodes[-1], 0), next_side))
        self._report(missing)

    def _report(self, missing: Iterable[tuple[_Side, _Side]]) -> None:
        """Say which cables are to be added, or moved to there from elsewhere."""
        to_bare: dict[int, list[str]] = {}
        for cable in missing:
            said = False
            for own, far in (cable, cable[::-1]):
                # A port of the ring's own that was to be moved is free by now, whatever it was cabled to.
                node, port = self._nodes[own[0]], self._sides[own[0]][own[1]]
                occupant = None if self._judge.other_end(node, port) else self._judge.occupant(node, port)
                if occupant:
                    self._problem(node, f"{occupant}; a ring needs {port.name} cabled to {self._place(far)}")
                    said = True
            if said:
                continue
            bare = [own[0] for own in cable if self._bare(own[0])]
            for number in bare:
                to_bare.setdefault(number, []).append(f"{self._place(cable[0])} to {self._place(cable[1])}")
            if not bare:
                own, far = cable
                self._problem(
                    self._nodes[own[0]],
                    f"no cable from {self._port(own)} to {self._place(far)}, which a ring needs; plug one in",
                )
        for number, cables in sorted(to_bare.items()):
            switch = "" if self._judge.wanted == "ring" else ", or any port of it to the switch if there is one"
            self._problem(
                self._nodes[number],
                f"no cable of the cluster ends at this node; for a ring, cable {' and '.join(cables)}{switch}",
            )

    def _bare(self, number: int) -> bool:
        return self._alone[number] and not any(port.carrying for port in self._sides[number])

    def _port(self, side: _Side) -> str:
        return self._sides[side[0]][side[1]].name

    def _place(self, side: _Side) -> str:
        return f"{self._nodes[side[0]]} {self._port(side)}"

    def _problem(self, node: str, line: str) -> None:
        self.problems.append((node, line))


def _listed(names: Sequence[str]) -> str:
    shown = list(names) if len(names) <= 4 else [*names[:3], f"{len(names) - 3} others"]
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}"
