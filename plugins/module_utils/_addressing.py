# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which address each fabric interface is to have.

Note that this module util is PRIVATE to the collection. It can have breaking changes at any time.

`assign` gives every wire two IPv4 networks, one for each PCIe domain (rail), and every host a number in both. What
is right already stays, whoever chose it. Pure, and about linear in the number of hosts.
"""

from __future__ import annotations

import copy
import functools
import ipaddress
import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypedDict

from ._roce import SPARK_MTU, Gid, Interface, Roce, connectx_ports, find_problems, gid_index, usable_addresses
from ._topology import Cabling, End, Host, Wire

FIRST_NUMBER = 11
_SUBNET_PREFIX = 24
_FIRST_MULTICAST = 224 << 24

_TRAILING_NUMBER = re.compile(r"([0-9]{1,9})$", re.ASCII)

# Networks are (first address, last address) in here: a thousand hosts' worth of them is compared.
_Range = tuple[int, int]
# A wire, a rail, and the subnets to choose from.
_Key = tuple[int, int, tuple[str, ...]]


class Setting(TypedDict):
    """What one interface is to have, and what it has.

    `rail` is told by the network, not by the interface: twins may be crossed between hosts. `reason` says why it is
    not `kept`: "address" (missing, wrong or ambiguous), "down" (its twin carries), "mixed_mtu" (not 9000, while
    another end of its network has another MTU), "mtu" (not 9000, but equal on all ends, so it works), or "".
    `current` are the usable IPv4 addresses now.
    """

    interface: str
    address: str
    mtu: int
    wire: int
    rail: int
    kept: bool
    reason: str
    current: list[str]
    current_mtu: int | None


class Addressing(TypedDict):
    """The settings of each host, in the order of its wires and interfaces, and lines of problems by host."""

    settings: dict[str, list[Setting]]
    problems: dict[str, list[str]]


@dataclass(frozen=True)
class _Address:
    text: str
    number: int
    network: _Range
    prefix: int

    @property
    def is_host(self) -> bool:
        """Whether a host can have it: neither the network's own address nor its broadcast's."""
        return self.prefix >= 31 or self.number not in self.network


@dataclass
class _Member:
    """A host's port on a wire."""

    host: str
    interfaces: list[Interface]
    addresses: list[list[_Address]]
    # By rail: the position of its interface, and the address that it keeps.
    places: dict[int, int] = field(default_factory=dict)
    numbers: dict[int, int] = field(default_factory=dict)
    kept: set[int] = field(default_factory=set)

    def place(self, network: _Range) -> int | None:
        """Return the position of the first interface that has an address in `network`."""
        for position, addresses in enumerate(self.addresses):
            if any(address.network == network for address in addresses):
                return position
        return None

    def has(self, position: int, network: _Range) -> bool:
        return any(address.network == network for address in self.addresses[position])


@dataclass
class _Line:
    """A cluster's part of a wire: its members in the order of the inventory, and its networks by rail.

    `planned` is False for a cluster that uses the wire but is not to be planned now; others keep clear of it.
    """

    number: int
    cluster: str
    planned: bool
    members: list[_Member] = field(default_factory=list)
    networks: dict[int, _Range] = field(default_factory=dict)
    prefixes: dict[int, int] = field(default_factory=dict)


def assign(
    hosts: Mapping[str, Host],
    wires: Sequence[Wire],
    cablings: Mapping[str, Cabling],
    order: Sequence[str],
    subnets: Sequence[str] | Mapping[str, Sequence[str]] = (),
) -> Addressing:
    """Give every fabric interface of the cabled clusters an address.

    Args:
        hosts: the facts of all hosts of the run. No new subnet overlaps what any interface of any of them is in.
        wires: from `find_wires`.
        cablings: from `find_cablings`, by the name of the cluster. Only what these use gets settings. Clusters that
            share a wire share its subnets, unless they have subnets of their own on it already, or other `subnets`.
        order: all hosts of the fleet as the inventory lists them, also those that are not in `hosts`. It decides whose
            address is right where as many say this as that, and makes host numbers the same in every run.
        subnets: fabric_subnets, the fleet's or by cluster. Larger ones than a /24 are cut into /24s, or into larger
            ones for a wire with more hosts. Empty means 192.168.177.0/24 and up, then 10.177.0.0/24 and up.

    Returns:
        Settings for each host in `hosts`. Two wires may keep one and the same subnet as long as no cluster uses both;
        new subnets are unique.
    """
    return _Assignment(hosts, wires, cablings, order, subnets).result()


def differences(settings: Sequence[Setting]) -> list[str]:
    """Return a line for each setting that is not kept: what the interface has; what it should have."""
    lines = []
    for setting in settings:
        if setting["kept"]:
            continue
        should = f"it should be {setting['address']}, MTU {setting['mtu']}"
        has = f"has {', '.join(setting['current'])}" if setting["current"] else "has no IPv4 address"
        if setting["reason"] == "down":
            what = f"is down and {has}" if setting["address"] not in setting["current"] else "is down"
            should = f"it should be up with {setting['address']}, MTU {setting['mtu']}"
        elif setting["reason"] in ("mtu", "mixed_mtu"):
            what = f"has MTU {setting['current_mtu']}"
        else:
            what = has
        lines.append(f"{setting['interface']} {what}; {should}")
    return lines


def project(roce: Roce, settings: Sequence[Setting]) -> Roce:
    """Return the facts as they will be once the settings are applied.

    An interface that changes has its new address alone; a kept one has the right address first. A twin that was down
    carries as its sibling does. Which GID index the kernel will choose for a new address is not known: it is None,
    without this being a problem.

    Args:
        roce: the facts of one host; they are not changed.
        settings: the host's settings.
    """
    # As deep as it is changed: a deep copy of a thousand hosts takes seconds.
    projected = copy.copy(roce)
    projected["interfaces"] = [copy.copy(interface) for interface in roce["interfaces"]]
    projected["devices"] = [copy.copy(device) for device in roce["devices"]]
    wanted = {setting["interface"]: setting for setting in settings}
    for interface in projected["interfaces"]:
        if interface["name"] in wanted:
            setting = wanted[interface["name"]]
            interface["addresses"] = _projected_addresses(interface["addresses"], setting)
            interface["mtu"] = setting["mtu"] if not setting["kept"] else interface["mtu"]
            if setting["reason"] == "down":
                interface["carrier"], interface["operstate"] = True, "up"
    interfaces = {interface["name"]: interface for interface in projected["interfaces"]}
    devices = {device["name"]: device for device in projected["devices"]}
    changed = set()
    for device in projected["devices"]:
        if device["netdev"] not in wanted or device["netdev"] not in interfaces:
            continue
        setting, interface = wanted[device["netdev"]], interfaces[device["netdev"]]
        device["addresses"], device["mtu"] = list(interface["addresses"]), interface["mtu"]
        sibling = devices.get(device["twin"] or "")
        if setting["reason"] == "down":
            device["carrier"], device["operstate"], device["active"] = True, "up", True
            if sibling:
                device["state"], device["phys_state"] = sibling["state"], sibling["phys_state"]
                device["rate_gbps"], device["speed_mbps"] = sibling["rate_gbps"], sibling["speed_mbps"]
                interface["speed_mbps"] = sibling["speed_mbps"]
        if not setting["kept"]:
            device["gids"] = [gid for gid in device["gids"] if not _gone(gid, device["addresses"])]
            device["gid_index_v2_ipv4"] = gid_index(device["gids"], device["netdev"], device["addresses"])
            if setting["reason"] in ("address", "down"):
                changed.add(device["name"])
    # Problems of the reading itself, not of a port, stay; the ports are judged anew.
    projected["problems"] = [
        problem
        for problem in find_problems(projected["devices"], interfaces)
        if not (problem["code"] == "no_gid" and problem["device"] in changed)
    ] + [problem for problem in roce["problems"] if problem["code"] == "no_addresses_read"]
    return projected


def _projected_addresses(addresses: list[str], setting: Setting) -> list[str]:
    usable = set(usable_addresses(addresses))
    others = [address for address in addresses if address != setting["address"]]
    if not setting["kept"]:
        # Our netplan file takes IPv4 away, link-local too; what IPv6 does is not ours.
        others = [address for address in others if address not in usable and ":" in address]
    return [setting["address"], *others]


def _gone(gid: Gid, addresses: list[str]) -> bool:
    """Tell whether a GID is of an IPv4 address that its interface no longer has."""
    address = gid["address"] or ""
    return "." in address and address not in {own.split("/")[0] for own in addresses}


# --- numbers --------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=16384)
def _address(text: str) -> _Address:
    interface = ipaddress.IPv4Interface(text)
    return _Address(text, int(interface.ip), _range(interface.network), interface.network.prefixlen)


def _range(network: ipaddress.IPv4Network) -> _Range:
    return int(network.network_address), int(network.broadcast_address)


def _ipv4(interface: Interface) -> list[_Address]:
    """Return all addresses of an interface that networks of ours must keep away from."""
    return [_address(text) for text in interface["addresses"] if ":" not in text and not text.startswith("127.")]


def _usable(interface: Interface) -> list[_Address]:
    """Return the addresses that a rail can be built on."""
    found = []
    for text in interface["addresses"]:
        if ":" in text or text.startswith(("127.", "169.254.", "0.")):
            continue
        address = _address(text)
        if 1 <= address.prefix <= 31 and address.number < _FIRST_MULTICAST and address.is_host:
            found.append(address)
    return found


def _host_numbers(order: Iterable[str]) -> dict[str, int]:
    """Return the number of each host: 10 and its name's trailing number, else the lowest that is free."""
    numbers: dict[str, int] = {}
    taken: set[int] = set()
    rest = []
    for host in order:
        try:
            name = str(ipaddress.IPv4Address(host))
        except ValueError:
            name = host.split(".")[0]
        match = _TRAILING_NUMBER.search(name)
        number = FIRST_NUMBER - 1 + int(match.group(1)) if match else 0
        if match and number not in taken:
            numbers[host] = number
            taken.add(number)
        else:
            rest.append(host)
    free = FIRST_NUMBER
    for host in rest:
        while free in taken:
            free += 1
        numbers[host] = free
        taken.add(free)
    return numbers


def _free_numbers(network: _Range) -> Iterator[int]:
    """Return the addresses that hosts can have in a network, in the order in which they are given."""
    first, end = network if network[1] - network[0] > 1 else (network[0] - 1, network[1] + 1)
    yield from range(network[0] + FIRST_NUMBER, end)
    yield from range(first + 1, min(network[0] + FIRST_NUMBER, end))


def _capacity(network: _Range) -> int:
    size = network[1] - network[0] + 1
    return size if size <= 2 else size - 2


class _Ranges:
    """Ranges of addresses, united where they overlap."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []

    def overlap(self, new: _Range) -> _Range | None:
        """Return a range that overlaps `new`."""
        index = bisect_right(self._starts, new[1]) - 1
        if index >= 0 and self._ends[index] >= new[0]:
            return self._starts[index], self._ends[index]
        return None

    def add(self, new: _Range) -> None:
        begin = bisect_left(self._ends, new[0])
        end = bisect_right(self._starts, new[1])
        start, last = new
        if begin < end:
            start, last = min(start, self._starts[begin]), max(last, self._ends[end - 1])
        self._starts[begin:end] = [start]
        self._ends[begin:end] = [last]


# --- subnets --------------------------------------------------------------------------------------


def _default_pool() -> list[ipaddress.IPv4Network]:
    small = [ipaddress.IPv4Network(f"192.168.{n}.0/{_SUBNET_PREFIX}") for n in range(177, 255)]
    return small + [ipaddress.IPv4Network(f"10.{n}.0.0/16") for n in range(177, 255)]


class _Pool:
    """Gives out subnets, in order, that overlap nothing."""

    def __init__(self, networks: Sequence[ipaddress.IPv4Network], taken: _Ranges) -> None:
        self._networks = [(*_range(network), network.prefixlen) for network in networks]
        self._taken = taken
        self._next: dict[tuple[int, int], int] = {}
        self._first: dict[int, int] = {}

    def take(self, hosts: int) -> tuple[_Range, int] | None:
        """Return the first free subnet with room for a number of hosts, and the length of its prefix."""
        bits = max(32 - _SUBNET_PREFIX, (hosts + 1).bit_length())
        for position in range(self._first.get(bits, 0), len(self._networks)):
            start, end, prefix = self._networks[position]
            own = min(bits, 32 - prefix)
            size = 1 << own
            if _capacity((start, start + size - 1)) < hosts:
                continue
            candidate = self._next.get((position, own), start)
            while candidate + size - 1 <= end:
                hit = self._taken.overlap((candidate, candidate + size - 1))
                if hit is None:
                    found = (candidate, candidate + size - 1)
                    self._taken.add(found)
                    self._next[position, own] = candidate + size
                    return found, 32 - own
                # Behind what is in the way, which can be large.
                candidate += max(1, -(-(min(hit[1], end) + 1 - candidate) // size)) * size
            self._next[position, own] = candidate
            if self._first.get(bits, 0) == position:
                self._first[bits] = position + 1
        return None

    def largest(self) -> int:
        """Return how many hosts the largest subnet of the pool has room for."""
        return max((_capacity((start, end)) for start, end, _prefix in self._networks), default=0)


def _owners(subnets: Sequence[str]) -> tuple[list[ipaddress.IPv4Network], list[str]]:
    """Return fabric_subnets as networks, and what is wrong with them."""
    networks: list[ipaddress.IPv4Network] = []
    problems: list[str] = []
    for text in subnets:
        try:
            network = ipaddress.IPv4Network(text)
        except (ValueError, TypeError):
            problems.append(_unreadable(text))
            continue
        if network.prefixlen > 31:
            problems.append(f"fabric_subnets: {text} is a single address; give a /31 or larger")
        elif (
            network.is_link_local
            or network.is_multicast
            or network.is_loopback
            or network.network_address.packed[0]
            in (
                0,
                *range(240, 256),
            )
        ):
            problems.append(f"fabric_subnets: {text} is not for hosts; choose one of 10.0.0.0/8 or 192.168.0.0/16")
        elif network in networks:
            problems.append(f"fabric_subnets: {text} is given twice; take one of them out")
        else:
            hit = next((other for other in networks if other.overlaps(network)), None)
            if hit:
                problems.append(f"fabric_subnets: {text} overlaps {hit}, which is given too; take one of them out")
            networks.append(network)
    return networks, problems


def _unreadable(text: object) -> str:
    try:
        network = ipaddress.ip_network(str(text), strict=False)
    except ValueError:
        return f"fabric_subnets: {text!r} is no subnet; write it like 10.10.0.0/24"
    if isinstance(network, ipaddress.IPv6Network):
        return f"fabric_subnets: {text} is not IPv4; write it like 10.10.0.0/24"
    return f"fabric_subnets: {text} is an address in {network}; write {network}"


# --- the assignment -------------------------------------------------------------------------------


class _Assignment:
    """One run of `assign`: settles what is there, then what is missing."""

    def __init__(
        self,
        hosts: Mapping[str, Host],
        wires: Sequence[Wire],
        cablings: Mapping[str, Cabling],
        order: Sequence[str],
        subnets: Sequence[str] | Mapping[str, Sequence[str]],
    ) -> None:
        self._hosts = hosts
        self._wires = wires
        everybody = list(dict.fromkeys([*order, *sorted(set(hosts) - set(order))]))
        self._rank = {host: rank for rank, host in enumerate(everybody)}
        self._preferred = _host_numbers(everybody)
        self._interfaces = {
            name: {interface["name"]: interface for interface in host["roce"]["interfaces"]}
            for name, host in hosts.items()
        }
        clusters = {*cablings, *(host["cluster"] for host in hosts.values())}
        by_cluster = subnets if isinstance(subnets, Mapping) else dict.fromkeys(clusters, subnets)
        self._subnets = {cluster: tuple(by_cluster.get(cluster, ())) for cluster in clusters}
        self._problems: dict[str, list[str]] = {}
        # By wire: the addresses that are given.
        self._taken: dict[int, set[int]] = {}
        self._lines = self._used(cablings)
        self._planned = [line for line in self._lines if line.planned]
        self._foreign = self._others()
        self._keep()
        self._fill()

    def result(self) -> Addressing:
        settings: dict[str, list[Setting]] = {name: [] for name in self._hosts}
        for line in self._planned:
            mtus: list[set[int | None]] = [
                {m.interfaces[m.places[rail]]["mtu"] for m in line.members if rail in m.places} for rail in (0, 1)
            ]
            for member in line.members:
                by_place = sorted((place, rail) for rail, place in member.places.items() if rail in member.numbers)
                settings[member.host] += [
                    self._setting(line, member, rail, mixed=len(mtus[rail]) > 1) for _place, rail in by_place
                ]
        self._drop_ambiguous(settings)
        in_order = sorted(self._problems, key=lambda host: self._rank[host])
        return Addressing(settings=settings, problems={host: self._problems[host] for host in in_order})

    def _problem(self, host: str, line: str) -> None:
        lines = self._problems.setdefault(host, [])
        if line not in lines:
            lines.append(line)

    # --- what is there

    def _used(self, cablings: Mapping[str, Cabling]) -> list[_Line]:
        """Return the lines of all wires that are used, in the order of the inventory."""
        found = []
        planned = {(number, cluster) for cluster, cabling in cablings.items() for number in cabling["wires"]}
        for number in {number for number, _cluster in planned}:
            self._taken[number] = set()
            ends: dict[str, list[End]] = {}
            for end in self._wires[number]["ends"]:
                ends.setdefault(end["host"], []).append(end)
            lines: dict[str, _Line] = {}
            for host in sorted(ends, key=lambda host: self._rank[host]):
                cluster = self._hosts[host]["cluster"]
                line = lines.setdefault(cluster, _Line(number, cluster, (number, cluster) in planned))
                # A second port on the same switch is of no use: the one that has addresses is it.
                chosen = max(ends[host], key=lambda end: (self._addressed(end), -ends[host].index(end)))
                line.members.append(self._member(chosen, line.planned))
                for end in ends[host]:
                    if end is not chosen or not line.planned:
                        self._taken[number].update(address.number for address in self._at(end))
            places = sorted((self._rank[host], ends[host][0]["port"]) for host in ends)
            found += [(places[:2], rank, line) for rank, line in enumerate(lines.values())]
        return [line for _place, _rank, line in sorted(found, key=lambda item: item[:2])]

    def _at(self, end: End) -> list[_Address]:
        known = [self._interfaces[end["host"]].get(name) for name in end["interfaces"]]
        return [address for interface in known if interface for address in _usable(interface)]

    def _addressed(self, end: End) -> int:
        known = [self._interfaces[end["host"]].get(name) for name in end["interfaces"]]
        return sum(1 for interface in known if interface and _usable(interface))

    def _member(self, end: End, planned: bool) -> _Member:
        host = end["host"]
        found = [self._interfaces[host][name] for name in end["interfaces"] if name in self._interfaces[host]][:2]
        for master in sorted({interface["master"] for interface in found if interface["master"]}):
            names = ", ".join(interface["name"] for interface in found if interface["master"] == master)
            if planned:
                self._problem(
                    host, f"{names}: part of {master}; take it apart and give each of the twins its own subnet"
                )
        free = [interface for interface in found if not interface["master"]]
        return _Member(host, free, [_usable(interface) for interface in free])

    def _others(self) -> dict[str, list[tuple[str, _Address]]]:
        """Return what the interfaces have that get no settings: everything else is in the way."""
        own: dict[str, set[str]] = {}
        for line in self._planned:
            for member in line.members:
                own.setdefault(member.host, set()).update(interface["name"] for interface in member.interfaces)
        return {
            name: [
                (interface["name"], address)
                for interface in host["roce"]["interfaces"]
                if interface["name"] != "lo" and interface["name"] not in own.get(name, ())
                for address in _ipv4(interface)
            ]
            for name, host in self._hosts.items()
        }

    def _keep(self) -> None:
        """Settle the networks that wires have already, and who keeps an address in them."""
        used: dict[tuple[str, str], _Ranges] = {}
        for line in self._lines:
            keys = [("cluster", line.cluster), *(("host", member.host) for member in line.members)]
            there = [used.setdefault(key, _Ranges()) for key in keys]
            self._choose_networks(line, there)
        by_rail: dict[_Key, list[_Line]] = {}
        for line in self._lines:
            for rail in line.networks:
                by_rail.setdefault(self._key(line, rail), []).append(line)
        for line in self._lines:
            ranges = [used["cluster", line.cluster], *(used["host", member.host] for member in line.members)]
            for rail in (0, 1):
                self._join(line, rail, by_rail.get(self._key(line, rail), []), ranges)
            self._choose_places(line)
            if line.planned:
                self._keep_addresses(line)
                self._refuse_overlaps(line)

    def _key(self, line: _Line, rail: int) -> _Key:
        """Return what lines that can share a subnet have in common."""
        return line.number, rail, self._subnets[line.cluster]

    @staticmethod
    def _choose_networks(line: _Line, used: Sequence[_Ranges]) -> None:
        """Find the two networks that most members have; among equals the one of the first member.

        The second is one that a host can have beside the first: on its other interface.
        """

        def best(first: _Range | None, place: int) -> tuple[_Range, int, int] | None:
            votes: dict[_Range, list[int]] = {}
            earliest: dict[_Range, tuple[int, int, int]] = {}
            for rank, member in enumerate(line.members):
                taken = member.place(first) if first else None
                seen = set()
                for position, addresses in enumerate(member.addresses):
                    if first and (position == taken or (taken is None and position != place)):
                        continue
                    for address in addresses:
                        if address.network not in seen:
                            seen.add(address.network)
                            votes.setdefault(address.network, [0, 0])[position] += 1
                            earliest.setdefault(address.network, (rank, position, address.prefix))
            found = []
            for network, (at_first, at_twin) in votes.items():
                overlaps = (first and _meet(network, first)) or any(there.overlap(network) for there in used)
                if not overlaps and _capacity(network) >= len(line.members):
                    rank, position, prefix = earliest[network]
                    rail = position if at_first == at_twin else int(at_twin > at_first)
                    found.append((-at_first - at_twin, rank, position, network, rail, prefix))
            return min(found)[3:] if found else None

        chosen = best(None, 0)
        if chosen is not None:
            network, rail, prefix = chosen
            line.networks[rail], line.prefixes[rail] = network, prefix
            second = best(network, 1 - rail)
            if second is not None:
                line.networks[1 - rail], line.prefixes[1 - rail] = second[0], second[2]
        for network in line.networks.values():
            for there in used:
                there.add(network)

    @staticmethod
    def _join(line: _Line, rail: int, others: Sequence[_Line], used: Sequence[_Ranges]) -> None:
        """Take the network that another cluster has on the same wire, if there is room in it."""
        if rail in line.networks or not others:
            return
        network = others[0].networks[rail]
        users = sum(len(other.members) for other in others if other.networks[rail] == network)
        if _capacity(network) - users < len(line.members) or any(there.overlap(network) for there in used):
            return
        line.networks[rail], line.prefixes[rail] = network, others[0].prefixes[rail]
        for there in used:
            there.add(network)

    @staticmethod
    def _choose_places(line: _Line) -> None:
        """Decide which interface is on which rail: the one that is there already, else the first is on the first."""
        options: dict[int, list[dict[int, int]]] = {0: [{}], 1: [{0: 0}, {1: 0}], 2: [{0: 0, 1: 1}, {0: 1, 1: 0}]}
        for member in line.members:
            fits = [
                sum(rail in line.networks and member.has(place, line.networks[rail]) for rail, place in places.items())
                for places in options[len(member.interfaces)]
            ]
            member.places = options[len(member.interfaces)][fits.index(max(fits))]

    def _keep_addresses(self, line: _Line) -> None:
        taken = self._taken[line.number]
        for rail, network in line.networks.items():
            for member in line.members:
                own = member.addresses[member.places[rail]] if rail in member.places else []
                for address in own:
                    if address.network == network and address.number not in taken:
                        taken.add(address.number)
                        member.numbers[rail] = address.number
                        member.kept.add(rail)
                        break

    def _refuse_overlaps(self, line: _Line) -> None:
        for rail, network in sorted(line.networks.items()):
            for member in line.members:
                for name, address in self._foreign[member.host]:
                    if rail in member.places and _meet(address.network, network):
                        self._problem(
                            member.host,
                            f"{member.interfaces[member.places[rail]]['name']}: its subnet "
                            f"{_text(network[0], line.prefixes[rail])} overlaps {name} {address.text}; "
                            "give one of the two another subnet",
                        )

    # --- what is missing

    def _fill(self) -> None:
        taken = self._in_use()
        pools = {subnets: self._pool(subnets, taken) for subnets in sorted(set(self._subnets.values()))}
        for host, cluster in self._first_of_clusters():
            for text in pools[self._subnets[cluster]][1]:
                self._problem(host, text)
        hosts_on: dict[int, int] = {}
        for line in self._lines:
            hosts_on[line.number] = hosts_on.get(line.number, 0) + len(line.members)
        new: dict[_Key, _Line] = {}
        free: dict[tuple[int, _Range], Iterator[int]] = {}
        for line in self._planned:
            pool, wrong = pools[self._subnets[line.cluster]]
            for rail in (0, 1):
                key = self._key(line, rail)
                if rail in line.networks or wrong or not any(rail in member.places for member in line.members):
                    continue
                if key in new:
                    line.networks[rail], line.prefixes[rail] = new[key].networks[rail], new[key].prefixes[rail]
                    continue
                found = pool.take(hosts_on[line.number])
                if found:
                    line.networks[rail], line.prefixes[rail] = found
                    new[key] = line
                else:
                    self._refuse_small(line, pool, hosts_on[line.number])
            self._number(line, free)

    def _pool(self, subnets: Sequence[str], taken: _Ranges) -> tuple[_Pool, list[str]]:
        """Return what new subnets are taken from, and why it cannot be used."""
        if not subnets:
            return _Pool(_default_pool(), taken), []
        networks, problems = _owners(subnets)
        return _Pool(networks, taken), problems + self._overlaps(networks)

    def _in_use(self) -> _Ranges:
        """Return what new subnets must not overlap."""
        used = _Ranges()
        for others in self._foreign.values():
            for _name, address in others:
                used.add(address.network)
        for line in self._lines:
            for network in line.networks.values():
                used.add(network)
            for member in line.members:
                for rail in member.kept:
                    # An interface that keeps its address keeps the others too.
                    for address in member.addresses[member.places[rail]]:
                        used.add(address.network)
        return used

    def _overlaps(self, networks: Sequence[ipaddress.IPv4Network]) -> list[str]:
        """Find the owner's subnets that are in use off the fabric."""
        found = {}
        for host in sorted(self._foreign, key=lambda host: self._rank[host]):
            ports = {port["netdev"] for port in connectx_ports(self._hosts[host]["roce"]["devices"])}
            for name, address in self._foreign[host]:
                for network in networks:
                    if name not in ports and network not in found and _meet(address.network, _range(network)):
                        found[network] = f"{name} {address.text} of {host}"
        return [f"fabric_subnets: {network} overlaps {found[network]}; choose another" for network in found]

    def _first_of_clusters(self) -> list[tuple[str, str]]:
        """Return the first host of each cluster, with the cluster: what concerns all of it is said there."""
        hosts: dict[str, list[str]] = {}
        for line in self._planned:
            hosts.setdefault(line.cluster, []).append(line.members[0].host)
        return [(min(own, key=lambda host: self._rank[host]), cluster) for cluster, own in hosts.items()]

    def _refuse_small(self, line: _Line, pool: _Pool, count: int) -> None:
        ends = self._wires[line.number]["ends"]
        where = f"the switch of {count} nodes"
        if len(ends) == 2:
            where = "the cable of " + " and ".join(f"{end['host']} {end['port']}" for end in ends)
        if not self._subnets[line.cluster]:
            text = f"no subnet is free for {where}; give some as fabric_subnets"
        elif pool.largest() < count:
            text = f"fabric_subnets: {pool.largest()} addresses at most are too few for {where}; give larger ones"
        else:
            text = f"fabric_subnets: none is left for {where}; give two for each cable or switch"
        self._problem(line.members[0].host, text)

    def _number(self, line: _Line, free: dict[tuple[int, _Range], Iterator[int]]) -> None:
        taken = self._taken[line.number]
        for rail, network in line.networks.items():
            end = network[1] + (line.prefixes[rail] >= 31)
            rest = []
            for member in line.members:
                if rail not in member.places or rail in member.numbers:
                    continue
                number = network[0] + self._preferred[member.host]
                if number < end and number not in taken:
                    taken.add(number)
                    member.numbers[rail] = number
                else:
                    rest.append(member)
            numbers = free.setdefault((line.number, network), _free_numbers(network))
            for member in rest:
                found = next((number for number in numbers if number not in taken), None)
                if found is None:
                    self._problem(
                        member.host,
                        f"{member.interfaces[member.places[rail]]['name']}: no address is free in "
                        f"{_text(network[0], line.prefixes[rail])}; give the nodes a larger subnet",
                    )
                    continue
                taken.add(found)
                member.numbers[rail] = found

    # --- what comes out

    def _setting(self, line: _Line, member: _Member, rail: int, *, mixed: bool) -> Setting:
        interface = member.interfaces[member.places[rail]]
        reason = ""
        if interface["carrier"] is None and any(other["carrier"] for other in member.interfaces):
            reason = "down"
        elif rail not in member.kept:
            reason = "address"
        elif interface["mtu"] not in (None, SPARK_MTU):
            reason = "mixed_mtu" if mixed else "mtu"
        return Setting(
            interface=interface["name"],
            address=_text(member.numbers[rail], line.prefixes[rail]),
            mtu=SPARK_MTU,
            wire=line.number,
            rail=rail,
            kept=not reason,
            reason=reason,
            current=usable_addresses(interface["addresses"]),
            current_mtu=interface["mtu"],
        )

    @staticmethod
    def _drop_ambiguous(settings: Mapping[str, list[Setting]]) -> None:
        """Do not keep an interface that has a second address in the subnet of another one."""
        for own in settings.values():
            networks = [(setting["interface"], _address(setting["address"]).network) for setting in own]
            for setting in own:
                extra = [_address(text).network for text in setting["current"] if text != setting["address"]]
                if setting["kept"] and any(
                    name != setting["interface"] and _meet(network, there)
                    for network in extra
                    for name, there in networks
                ):
                    setting["kept"], setting["reason"] = False, "address"


def _meet(one: _Range, other: _Range) -> bool:
    return one[0] <= other[1] and other[0] <= one[1]


def _text(number: int, prefix: int) -> str:
    return f"{ipaddress.IPv4Address(number)}/{prefix}"
