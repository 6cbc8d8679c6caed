# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which Sparks there are and which of them are cabled together, from what each of them says.

Note that this module util is PRIVATE to the collection. It can have breaking changes at any time.

`program` is what a node's Python is given, `read_answer` what it makes of that. `merge` tells machines from addresses,
`find_clusters` makes clusters of the cables. All are pure; what is wrong is one line for each host.
"""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypedDict

from ._neighbours import Answer, Neighbour
from ._roce import Device, Interface, Roce, connectx_ports
from ._topology import Host, Wire, find_cablings, find_wires

PARENT = "sparks"
"""The group whose children are the clusters."""

MARK = "sparkfleet-discover "
"""Begins the line with the answer; a shell's start-up files may print others."""

MAX_NETWORK = 1024
"""Addresses of a network that are asked at most."""

_PACKAGE = "sparkfleet_discover"
_PRODUCT = re.compile(r"dgx.?spark|gb10|gx10", re.ASCII | re.IGNORECASE)
_HOSTNAME = re.compile(r"^[A-Za-z0-9]([A-Za-z0-9-]{0,62})$", re.ASCII)
_GROUP = re.compile(r"^[A-Za-z_][A-Za-z0-9_]*$", re.ASCII)
_NO_MAC = "00:00:00:00:00:00"


class Observation(TypedDict):
    """A node that has answered, and how it was reached."""

    address: str
    port: int
    answer: Answer


class Cluster(TypedDict):
    """Sparks that are cabled together, head first. `topology` is empty where it could not be told."""

    name: str
    topology: str
    hosts: list[str]


@dataclass(frozen=True)
class Fleet:
    """All that was found. `notes` are lines for the user."""

    hosts: dict[str, Observation] = field(default_factory=dict)
    clusters: list[Cluster] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


# --- candidates -----------------------------------------------------------------------------------


class Expanded(NamedTuple):
    """What entries stand for: `named` are single hosts, `possible` are the addresses of networks."""

    named: list[str]
    possible: list[str]
    wrong: list[str]


def expand(entries: Sequence[str]) -> Expanded:
    """Return the hosts that `entries` stand for, and lines about those that stand for none.

    An entry is an address, a name, or a network, of which every host is meant.
    """
    named: dict[str, None] = {}
    possible: dict[str, None] = {}
    wrong = []
    for entry in (str(given).strip() for given in entries):
        if "/" not in entry:
            # ssh would take it for an option.
            if not entry or entry.startswith("-") or not entry.isprintable() or " " in entry:
                wrong.append(f"hosts: {entry!r} is neither an address nor a name; give one")
            else:
                named[entry] = None
            continue
        try:
            network = ipaddress.ip_network(entry, strict=False)
        except ValueError:
            wrong.append(f"hosts: {entry!r} is no network; write it like 192.0.2.0/24")
            continue
        if network.num_addresses > MAX_NETWORK:
            wrong.append(
                f"hosts: {entry} has {network.num_addresses} addresses; give networks of {MAX_NETWORK} or fewer"
            )
        else:
            possible.update(dict.fromkeys(map(str, network.hosts())))
    return Expanded(list(named), list(possible), wrong)


# --- asking ---------------------------------------------------------------------------------------


def program(sources: Mapping[str, str], address: str, targets: Sequence[str], seconds: float, sudo: bool) -> str:
    """Return the Python program that a node runs.

    Args:
        sources: the text of the module utils `_arp`, `_roce` and `_neighbours`, in the order of their imports.
        address: the node's management address; empty if it is not known.
        targets: addresses of the other hosts.
        seconds: how long the node waits for others to answer.
        sudo: have it become root with ``sudo -n``, where that needs no password.
    """
    inner = "\n".join(
        [
            "import json, sys, types",
            f"sources = json.loads({json.dumps(dict(sources))!r})",
            f"package = types.ModuleType({_PACKAGE!r})",
            "package.__path__ = []",
            f"sys.modules[{_PACKAGE!r}] = package",
            "for name, source in sources.items():",
            f"    module = types.ModuleType({_PACKAGE!r} + '.' + name)",
            f"    module.__package__ = {_PACKAGE!r}",
            "    sys.modules[module.__name__] = module",
            "    exec(compile(source, name, 'exec'), module.__dict__)",
            f"answer = module.observe({address!r}, {list(targets)!r}, {float(seconds)!r})",
            f"sys.stdout.write({MARK!r} + json.dumps(answer) + '\\n')",
        ]
    )
    if not sudo:
        return inner + "\n"
    return "\n".join(
        [
            "import subprocess, sys",
            f"inner = {inner!r}",
            "def root(*command, **more):",
            "    try:",
            "        return subprocess.run(['sudo', '-n', *command], capture_output=True, text=True, **more)",
            "    except OSError:",
            "        return None",
            "done = root('python3', '-', input=inner)",
            "if done is not None and done.returncode == 0:",
            "    sys.stdout.write(done.stdout)",
            "else:",
            "    exec(compile(inner, 'inner', 'exec'), {'__name__': 'inner'})",
            "",
        ]
    )


def read_answer(text: str) -> Answer | None:
    """Return what a node has printed, None where that is no answer."""
    line = next((line for line in reversed(text.splitlines()) if line.startswith(MARK)), "")
    try:
        data = json.loads(line[len(MARK) :] or "null")
    except (ValueError, RecursionError):
        return None
    return data if is_answer(data) else None


def is_answer(data: object) -> bool:
    """Tell whether this has the shape of an answer: it comes from another machine, or from an older release's cache."""
    if not isinstance(data, dict) or not set(Answer.__annotations__) <= set(data):
        return False
    roce, neighbours = data["roce"], data["neighbours"]
    return (
        all(isinstance(data[key], str) for key in ("hostname", "machine", "product"))
        and isinstance(roce, dict)
        and set(Roce.__annotations__) <= set(roce)
        and _rows(roce["devices"], Device.__annotations__)
        and _rows(roce["interfaces"], Interface.__annotations__)
        and isinstance(roce["management"], list)
        and (roce["default_route"] is None or isinstance(roce["default_route"], dict))
        and isinstance(neighbours, dict)
        and all(
            _rows(rows, Neighbour.__annotations__) and all(isinstance(v, str) for row in rows for v in row.values())
            for rows in neighbours.values()
        )
    )


def _rows(value: object, keys: Iterable[str]) -> bool:
    wanted = set(keys)
    return isinstance(value, list) and all(isinstance(row, dict) and wanted <= set(row) for row in value)


def is_observation(data: object) -> bool:
    """Tell whether this is what a cache should hold."""
    if not isinstance(data, dict):
        return False
    try:
        ipaddress.IPv4Address(str(data.get("address")))
    except ValueError:
        return False
    return isinstance(data.get("port"), int) and is_answer(data.get("answer"))


def is_spark(answer: Answer) -> bool:
    """Tell a DGX Spark: by what the firmware calls the machine, or by QSFP ports that show up twice.

    The makers call the same board differently, and a Spark may have lost its adapter.
    """
    if _PRODUCT.search(answer["product"]):
        return True
    return any(device["twin"] for device in connectx_ports(answer["roce"]["devices"]))


def failure(address: str, rc: int | None, stderr: str) -> str:
    """Say in one line why a host could not be asked; `rc` is None where ssh was ended as it took too long."""
    said = [line.strip() for line in stderr.splitlines() if line.strip() and not line.startswith("Warning:")]
    text = "\n".join(said)
    last = said[-1].rstrip(".") if said else ""
    if rc is None:
        return f"{address}: took too long to answer; raise timeout_s, or see 'ssh {address}'"
    if "REMOTE HOST IDENTIFICATION HAS CHANGED" in text:
        return f"{address}: its host key is another one than known; see 'ssh {address}'"
    if "Host key verification failed" in text:
        return f"{address}: its host key is not known; accept it with 'ssh {address}'"
    if "Permission denied" in text:
        return f"{address}: does not let us in ({last}); set user and private_key_file, or copy your key there"
    if rc == 255:
        return f"{address}: cannot be reached with ssh ({last or 'it says nothing'})"
    if rc == 127:
        return f"{address}: has no python3; is it a Spark?"
    return f"{address}: answered nothing of use ({last or f'exit status {rc}'}); it needs Python 3.10 or newer"


# --- machines -------------------------------------------------------------------------------------


def _macs(answer: Answer) -> list[str]:
    """Return the MAC addresses of the adapter's interfaces."""
    netdevs = {device["netdev"] for device in connectx_ports(answer["roce"]["devices"])}
    found = (str(i["mac"] or "").lower() for i in answer["roce"]["interfaces"] if i["name"] in netdevs)
    return sorted({mac for mac in found if mac and mac != _NO_MAC})


def _identity(seen: Observation) -> tuple[str, ...]:
    """What is the same however a machine is reached; cloned disks have one machine id, so the adapter counts too."""
    answer = seen["answer"]
    identity = (answer["machine"], *_macs(answer))
    return identity if any(identity) else (answer["hostname"], seen["address"])


def same_machine(one: Observation, other: Observation) -> bool:
    """Tell whether two answers came from one machine."""
    return _identity(one) == _identity(other)


def route_address(answer: Answer) -> str:
    """Return the node's address on the interface of its default route; empty if there is none."""
    route = answer["roce"]["default_route"]
    return str(route.get("address") or "") if route else ""


def merge(seen: Iterable[Observation]) -> dict[str, Observation]:
    """Return the machines by name, in the order of their names.

    A machine that was reached by several addresses has that of its default route, else the first.
    """
    machines: dict[tuple[str, ...], list[Observation]] = {}
    for one in seen:
        machines.setdefault(_identity(one), []).append(one)
    chosen = [
        next((one for one in same if one["address"] == route_address(one["answer"])), same[0])
        for same in machines.values()
    ]
    short = [_short_name(one) for one in chosen]
    named = {}
    for one, name in zip(chosen, short, strict=True):
        named[name if short.count(name) == 1 else f"{name}-{_suffix(one)}"] = one
    return {name: named[name] for name in sorted(named, key=natural)}


def _short_name(seen: Observation) -> str:
    name = seen["answer"]["hostname"].split(".")[0]
    return name if _HOSTNAME.match(name) else re.sub(r"[^A-Za-z0-9]", "-", seen["address"])


def _suffix(seen: Observation) -> str:
    """Tell machines of one name apart, by something that stays."""
    macs = _macs(seen["answer"])
    return "".join(macs[0].split(":")[-3:]) if macs else re.sub(r"[^A-Za-z0-9]", "-", seen["address"])


def natural(name: str) -> list[tuple[int, int, str]]:
    """Sort key by which spark-2 comes before spark-10."""
    parts = re.split(r"([0-9]+)", name)
    return [(0, int(part), part) if part.isdigit() else (1, 0, part) for part in parts if part]


# --- clusters -------------------------------------------------------------------------------------


def _as_hosts(hosts: Mapping[str, Observation], clusters: Mapping[str, str] | None = None) -> dict[str, Host]:
    return {
        name: Host(
            cluster=(clusters or {}).get(name, ""),
            roce=seen["answer"]["roce"],
            neighbours={port: [n["mac"] for n in heard] for port, heard in seen["answer"]["neighbours"].items()},
        )
        for name, seen in hosts.items()
    }


def strangers(hosts: Mapping[str, Observation]) -> dict[str, dict[str, list[Neighbour]]]:
    """Return by host and interface the neighbours on the fabric that are none of `hosts`."""
    known = {
        str(interface["mac"] or "").lower()
        for seen in hosts.values()
        for interface in seen["answer"]["roce"]["interfaces"]
    }
    found: dict[str, dict[str, list[Neighbour]]] = {}
    for name, seen in hosts.items():
        for port, heard in seen["answer"]["neighbours"].items():
            unknown = [neighbour for neighbour in heard if neighbour["mac"].lower() not in known]
            if unknown:
                found.setdefault(name, {})[port] = unknown
    return found


def stranger_addresses(hosts: Mapping[str, Observation]) -> list[str]:
    """Return the IPv4 addresses of strangers on the fabric, which can be asked if the controller is on it too."""
    found: dict[str, None] = {}
    for by_port in strangers(hosts).values():
        for neighbour in (one for heard in by_port.values() for one in heard):
            try:
                address = ipaddress.ip_address(neighbour["address"])
            except ValueError:
                continue
            if address.version == 4 and not address.is_link_local and not address.is_multicast:
                found[str(address)] = None
    return list(found)


def _components(names: Sequence[str], wires: Sequence[Wire]) -> list[list[str]]:
    """Return who is connected with whom over any number of wires, all in the order of `names`."""
    group = {name: name for name in names}
    for wire in wires:
        ends = {group[end["host"]] for end in wire["ends"]}
        first = min(ends, key=names.index)
        group.update({name: first for name, own in group.items() if own in ends})
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(group[name], []).append(name)
    return list(found.values())


def check_names(given: Mapping[str, Sequence[str]]) -> list[str]:
    """Say what is wrong with the clusters that the user has named."""
    wrong = [
        f"clusters: {name!r} cannot be a cluster's name; take letters, digits and underscores"
        for name in given
        if not _GROUP.match(str(name)) or name in ("all", "ungrouped", PARENT)
    ]
    every = [host for hosts in given.values() for host in hosts]
    return wrong + [f"clusters: {host} is in two clusters; leave it in one" for host in _doubles(every)]


def _doubles(names: Sequence[str]) -> list[str]:
    return [name for name in dict.fromkeys(names) if names.count(name) > 1]


def find_fleet(seen: Iterable[Observation], given: Mapping[str, Sequence[str]] | None = None) -> Fleet:
    """Make hosts and clusters of what was seen.

    Args:
        seen: whoever has answered, the same machine possibly several times.
        given: clusters that the user has named, with their hosts, head first. The cables decide about all other hosts.

    Returns:
        The fleet. Without a name of the user's a cluster is called after its head, the first host by name.
    """
    given = given or {}
    hosts = merge(seen)
    notes = []
    for name, wanted in given.items():
        missing = [host for host in wanted if host not in hosts]
        if missing:
            notes.append(f"cluster {name}: not found: {', '.join(missing)}; the cluster lacks it")
    members = {name: [host for host in wanted if host in hosts] for name, wanted in given.items()}
    named = {host for wanted in members.values() for host in wanted}
    wires = find_wires(_as_hosts(hosts))
    free = [name for name in hosts if name not in named]
    between = [
        Wire(ends=ends) for ends in ([e for e in wire["ends"] if e["host"] not in named] for wire in wires) if ends
    ]
    for together in _components(free, between):
        base = "cluster_" + re.sub(r"[^A-Za-z0-9]", "_", together[0])
        name = base
        number = 2
        while name in members:
            name, number = f"{base}_{number}", number + 1
        members[name] = together
    members = {name: together for name, together in members.items() if together}
    of_host = {host: name for name, together in members.items() for host in together}
    cablings = find_cablings(_as_hosts(hosts, of_host), wires, members)
    clusters = [
        Cluster(name=name, topology=cablings[name]["topology"], hosts=members[name])
        for name in sorted(members, key=lambda one: natural(members[one][0]))
    ]
    return Fleet(
        hosts=hosts, clusters=clusters, notes=notes + _alone_notes(hosts, clusters, named) + _stranger_notes(hosts)
    )


def _alone_notes(hosts: Mapping[str, Observation], clusters: Sequence[Cluster], named: set[str]) -> list[str]:
    """Say who may be alone only because nobody was root."""
    alone = [cluster["hosts"][0] for cluster in clusters if len(cluster["hosts"]) == 1]
    return [
        f"{name}: has a cable, but nobody was seen at its other end, and sudo asks for a password there; "
        "if it is not alone, say so with clusters"
        for name in alone
        if name not in named
        and not hosts[name]["answer"]["root"]
        and hosts[name]["answer"]["neighbours"]
        and not any(hosts[name]["answer"]["neighbours"].values())
    ]


def _stranger_notes(hosts: Mapping[str, Observation]) -> list[str]:
    notes = []
    for name, by_port in strangers(hosts).items():
        macs = list(dict.fromkeys(neighbour["mac"] for heard in by_port.values() for neighbour in heard))
        shown = ", ".join(macs[:4]) + (f" and {len(macs) - 4} more" if len(macs) > 4 else "")
        notes.append(
            f"{name}: somebody answers on {', '.join(by_port)} ({shown}) who was not found; "
            "if it is a Spark, add its management address to hosts"
        )
    return notes


def host_facts(fleet: Fleet, name: str) -> dict[str, object]:
    """Return what expressions in the inventory file may use about a host; it does not become variables."""
    seen = fleet.hosts[name]
    answer = seen["answer"]
    cluster = next(one for one in fleet.clusters if name in one["hosts"])
    netdevs = {device["netdev"] for device in connectx_ports(answer["roce"]["devices"])}
    interfaces = [i for i in answer["roce"]["interfaces"] if i["name"] in netdevs]
    return {
        "hostname": answer["hostname"],
        "address": seen["address"],
        "product": answer["product"],
        "cluster": cluster["name"],
        "head": cluster["hosts"][0] == name,
        "topology": cluster["topology"],
        "cluster_size": len(cluster["hosts"]),
        "fabric_addresses": [address for interface in interfaces for address in interface["addresses"]],
        "fabric_macs": _macs(answer),
    }
