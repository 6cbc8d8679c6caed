# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""From what all hosts said about themselves and their neighbours to one host's part in the fabric.

Note that this module util is PRIVATE to the collection. It can have breaking changes at any time.

The cables say what the topology is, the topology says which addresses are right, and with the addresses as they are,
or as they will be, `_fabric` chooses what the nodes meet on. A cluster whose owner names the interfaces himself, or
whose cables cannot be seen, skips the first two steps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypedDict

from ._addressing import Addressing, Setting, assign, differences, project
from ._fabric import Node, Overrides, Plan, Rail, check_given, plan, settle
from ._gate import Link, RailEnd, due, fingerprint, links
from ._netplan import conflicts, render
from ._roce import Roce, connectx_ports, in_a_line, usable_addresses
from ._topology import Cabling, Host, Wire, find_cablings, find_wires

# What NVIDIA's rules for the fabric forbid.
_FORBIDDEN = ("bonded_twins", "twins_one_subnet", "twin_down")


@dataclass(frozen=True)
class Options:
    """What the inventory says about a host's fabric."""

    overrides: Overrides = field(default_factory=Overrides)
    given: Mapping[str, object] = field(default_factory=dict)
    configure: str = "keep"
    subnets: Sequence[str] = ()
    gate: str = "auto"
    min_gbps: float = 0.0

    @property
    def manual(self) -> bool:
        """Whether the owner chose himself, so that cables and addresses are not judged."""
        chosen = self.overrides.interface or self.overrides.hcas or self.overrides.address
        return bool(self.given or chosen or self.configure == "none")


@dataclass(frozen=True)
class Known:
    """What is known of one host.

    `probe` is what fabric_probe returned, None if it could not run.
    """

    cluster: str
    roce: Roce
    probe: Mapping[str, Any] | None
    options: Options


class Part(TypedDict):
    """A host's part in the fabric. `node` is empty exactly if this host or its cluster has problems."""

    problems: list[str]
    notes: list[str]
    topology: str | None
    rails: list[Rail]
    node: Node | dict[str, Any]
    wires: list[Wire]
    settings: list[Setting]
    netplan: str
    configure_due: bool
    links: list[Link]
    gate_mode: str
    gate_fingerprint: str
    gate_due: bool
    gate: dict[str, Any] | None
    collective: dict[str, Any] | None


@dataclass(frozen=True)
class _View:
    """A cluster as its nodes see it: cables, addresses, and each node's facts as they are or will be."""

    nodes: Sequence[str]
    cabling: Cabling
    wires: Sequence[Wire]
    addressing: Addressing
    facts: Mapping[str, Roce]
    plans: Mapping[str, Plan]


def nothing() -> Part:
    """Return the part of a host that nothing is known of."""
    return Part(
        problems=[],
        notes=[],
        topology=None,
        rails=[],
        node={},
        wires=[],
        settings=[],
        netplan="",
        configure_due=False,
        links=[],
        gate_mode="off",
        gate_fingerprint="",
        gate_due=False,
        gate=None,
        collective=None,
    )


def probe_interfaces(roce: Roce) -> list[str]:
    """Return the interfaces on which to ask for the neighbours: ConnectX ports that carry Ethernet."""
    return [
        device["netdev"]
        for device in connectx_ports(roce["devices"])
        if device["netdev"]
        and device["carrier"]
        and device["link_layer"] in (None, "Ethernet")
        and device["netdev"] not in roce["management"]
    ]


def probe_targets(facts: Mapping[str, Roce]) -> list[str]:
    """Return addresses that belong to exactly one of the hosts: who answers for one of them is that host.

    A host answers on all of its interfaces for its management address. The addresses of its fabric ports are there
    for hosts that are told to answer only where an address is (arp_ignore).
    """
    holders: dict[str, int] = {}
    for roce in facts.values():
        ports = {device["netdev"] for device in connectx_ports(roce["devices"])} | set(roce["management"])
        named = [interface for interface in roce["interfaces"] if interface["name"] in ports]
        for address in {a.split("/")[0] for interface in named for a in usable_addresses(interface["addresses"])}:
            holders[address] = holders.get(address, 0) + 1
    return sorted(address for address, count in holders.items() if count == 1)


def part(known: Mapping[str, Known], clusters: Mapping[str, Sequence[str]], order: Sequence[str], host: str) -> Part:
    """Decide one host's part in the fabric.

    Args:
        known: what is known of each host of the run that could be read; `host` is among them.
        clusters: the nodes of each cluster, head first, also of those that could not be read.
        order: all hosts of the fleet in the inventory's order.
        host: the host to decide for.
    """
    own = known[host]
    nodes = clusters[own.cluster]
    view = _view(known, clusters, order, own.cluster)
    settled = settle(view.plans, host, nodes[0], [device["name"] for device in own.roce["devices"]])
    settings = view.addressing["settings"].get(host, [])
    problems = [*view.cabling["problems"].get(host, []), *view.addressing["problems"].get(host, [])]
    notes = [*view.cabling["notes"].get(host, [])]
    if settings:
        # Whatever configures a port takes its address away with the carrier: the cable is what is wrong.
        dead = {interface["name"] for interface in own.roce["interfaces"] if interface["carrier"] is False}
        problems += _setting_problems(own, [s for s in settings if s["interface"] not in dead])
        notes += [line for setting in settings if setting["reason"] == "mtu" for line in differences([setting])]
    if not own.options.manual and len(nodes) > 1:
        # Where the cables are known, addresses were judged by them; they do not say why a second subnet is wanted.
        problems += _forbidden(view.facts[host], _FORBIDDEN[1:2] if view.cabling["topology"] else _FORBIDDEN)
        problems += _dead_twins(view.facts[host], settings)
        notes += _unseen(own)
    # What is wrong with the cables or addresses explains why nothing could be chosen; both would say it twice. It may
    # be said on another node: then this one gets no addresses either, which is no fault of its own.
    waits = own.options.configure == "auto" and not settings and _refused_elsewhere(view)
    problems = list(dict.fromkeys(problems or ([] if waits else settled["problems"])))
    notes += [warning for warning in settled["warnings"] if not any(warning in problem for problem in problems)]
    result = nothing()
    result["problems"] = problems
    result["notes"] = list(dict.fromkeys(notes))
    result["topology"] = view.cabling["topology"] or settled["topology"]
    result["rails"] = settled["rails"]
    result["node"] = settled["node"] or {} if not problems and not waits else {}
    result["wires"] = [wire for wire in view.wires if any(end["host"] in nodes for end in wire["ends"])]
    result["settings"] = settings
    records = _records(own)
    result["gate"], result["collective"] = records["gate"], records["collective"]
    if own.options.configure == "auto" and own.probe:
        written = own.probe["netplan"]["own"]["text"]
        result["netplan"] = render(settings, written)
        # Without settings nothing is known to be wrong with what is written.
        result["configure_due"] = bool(settings) and (
            result["netplan"] != (written or "") or any(not setting["kept"] for setting in settings)
        )
    if result["node"]:
        _add_gate(result, view, known, host)
    return result


def _view(
    known: Mapping[str, Known], clusters: Mapping[str, Sequence[str]], order: Sequence[str], cluster: str
) -> _View:
    """Look at the cables of all clusters of the run, and plan the one that is asked for."""
    nodes = clusters[cluster]
    hosts = {
        name: Host(
            cluster=known[name].cluster,
            roce=known[name].roce,
            neighbours=(known[name].probe or {}).get("neighbours"),
        )
        for name in order
        if name in known
    }
    wires = find_wires(hosts)
    judged = {
        name: members
        for name, members in clusters.items()
        # One that could not be read, or whose owner chose himself, is not judged by its cables.
        if len(members) > 1 and all(m in known and not known[m].options.manual for m in members)
    }
    wanted = {name: known[members[0]].options.overrides.topology for name, members in judged.items()}
    cablings = find_cablings(hosts, wires, judged, wanted)
    cabling = cablings.get(cluster) or Cabling(topology="", wires=[], problems={}, notes={})
    sound = {name: c for name, c in cablings.items() if c["topology"] and not any(c["problems"].values())}
    addressing = Addressing(settings={}, problems={})
    if cluster in sound:
        subnets = {name: known[judged[name][0]].options.subnets for name in sound}
        addressing = assign(hosts, wires, sound, order, subnets)
        if known[nodes[0]].options.configure == "keep":
            addressing = _without_spare_cable(addressing, nodes)
    there = [name for name in nodes if name in known]
    facts = {name: _facts(known[name], addressing["settings"].get(name, [])) for name in there}
    plans = {}
    for name in there:
        options = known[name].options
        if options.given:
            plans[name] = check_given(known[name].roce, options.given)
            continue
        overrides = options.overrides
        if cabling["topology"]:
            overrides = replace(overrides, topology=cabling["topology"])
        plans[name] = plan(facts[name], overrides, len(nodes))
    return _View(nodes, cabling, wires, addressing, facts, plans)


def _without_spare_cable(addressing: Addressing, nodes: Sequence[str]) -> Addressing:
    """Leave a cable out that nobody gave an address, where another one has all: a second one adds no bandwidth."""
    own = [setting for name in nodes for setting in addressing["settings"].get(name, [])]
    ready = {s["wire"] for s in own} - {s["wire"] for s in own if s["reason"] not in ("", "mtu")}
    spare = {s["wire"] for s in own} - {s["wire"] for s in own if s["current"]}
    if not ready or len({s["wire"] for s in own}) != 2:
        return addressing
    kept = {
        name: [s for s in settings if name not in nodes or s["wire"] not in spare]
        for name, settings in addressing["settings"].items()
    }
    return Addressing(settings=kept, problems=addressing["problems"])


def _facts(own: Known, settings: Sequence[Setting]) -> Roce:
    """Return a host's facts as they will be, with only those ConnectX ports that lead to the cluster."""
    if not settings:
        return own.roce
    facts = project(own.roce, settings) if own.options.configure == "auto" else own.roce
    used = {setting["interface"] for setting in settings}
    others = {id(device) for device in connectx_ports(facts["devices"]) if device["netdev"] not in used}
    return {**facts, "devices": [device for device in facts["devices"] if id(device) not in others]}


def _setting_problems(own: Known, settings: Sequence[Setting]) -> list[str]:
    wrong = [setting for setting in settings if setting["reason"] not in ("", "mtu")]
    if own.options.configure == "keep":
        return [
            f"{line}; set fabric_configure: auto to have it set, or none to leave it as it is"
            for line in differences(wrong)
        ]
    if not any(not setting["kept"] for setting in settings):
        return []
    if own.probe is None:
        return ["the netplan files could not be read, so addresses cannot be set; check that sudo works"]
    netplan = own.probe["netplan"]
    if not netplan["installed"]:
        return [f"{line}, and netplan is not installed to set it; set it yourself" for line in differences(wrong)]
    return conflicts([setting for setting in settings if not setting["kept"]], netplan["files"])


def _forbidden(facts: Roce, codes: Sequence[str]) -> list[str]:
    return [in_a_line(problem) for problem in facts["problems"] if problem["code"] in codes]


def _dead_twins(facts: Roce, settings: Sequence[Setting]) -> list[str]:
    """Name the twins that are to be used and have no carrier; one that is only down is what the settings are for."""
    used = {setting["interface"] for setting in settings}
    dead = {d["name"] for d in facts["devices"] if d["netdev"] in used and d["carrier"] is False}
    without = {device["name"] for device in facts["devices"] if device["twin"] in dead}
    return [in_a_line(p) for p in facts["problems"] if p["code"] == "twin_down" and p["device"] in without]


def _refused_elsewhere(view: _View) -> bool:
    """Say whether no node of the cluster can get addresses, whichever of them the reason is said on."""
    found = (view.cabling["problems"], view.addressing["problems"])
    return any(problems.get(node) for problems in found for node in view.nodes)


def _unseen(own: Known) -> list[str]:
    """Say what kept the cables of a host from being seen."""
    if own.probe is None:
        return []
    if own.probe["neighbours"] is None:
        return [f"the cables were not checked: {own.probe['reason']}"]
    quiet = own.probe["arp_ignore"]
    if not quiet:
        return []
    return [
        f"{', '.join(quiet)}: arp_ignore is set, so others may not find the cable to it; "
        "set net.ipv4.conf.all.arp_ignore to 0, or fabric_configure: none"
    ]


def _records(own: Known) -> dict[str, dict[str, Any] | None]:
    """Return what a node kept of the gate; a file that is no mapping counts as none."""
    kept = (own.probe or {}).get("records", {})
    return {name: kept[name] if isinstance(kept.get(name), dict) else None for name in ("gate", "collective")}


# --- the gate -------------------------------------------------------------------------------------


def _add_gate(result: Part, view: _View, known: Mapping[str, Known], host: str) -> None:
    """Say which links of the host are to be measured, and whether that has been done.

    All nodes of a cluster come to the same mode and fingerprint, and measure together or not at all.
    """
    options = known[host].options
    nodes = [name for name in view.nodes if name in known]
    ends = {}
    for name in nodes:
        other = settle(view.plans, name, view.nodes[0])
        ends[name] = _rail_ends(view.facts[name], other["node"]) if other["node"] else []
    has_rdma = any(end["hca"] for rails in ends.values() for end in rails)
    mode = options.gate
    if mode in ("auto", "warn"):
        mode = "bandwidth" if has_rdma else "ping"
    if len(nodes) < 2:
        mode = "off"
    result["gate_mode"] = mode
    # Where there is RDMA, the network that the nodes merely meet on has to answer, not to be fast.
    result["links"] = [
        {**link, "measure": link["measure"] and bool(link["hca"] or not has_rdma)} for link in links(nodes, ends)[host]
    ]
    wanted = fingerprint(ends, mode, options.min_gbps)
    result["gate_fingerprint"] = wanted
    # Who only wants to be warned is not measured again, but told again.
    warn = options.gate == "warn"
    result["gate_due"] = any(due(_records(known[name])["gate"], wanted, mode, warn) for name in nodes)
    if warn and mode != "off" and not result["gate_due"] and not (result["gate"] or {}).get("passed"):
        result["notes"] += _own_lines(result["gate"], host)


def _own_lines(record: Mapping[str, Any] | None, host: str) -> list[str]:
    """Return what a record of the gate has to say about one of the hosts."""
    lines = (record or {}).get("problems")
    own = f"{host}: "
    return [str(line).removeprefix(own) for line in lines or [] if str(line).startswith(own)]


def _rail_ends(facts: Roce, node: Node) -> list[RailEnd]:
    interfaces = {interface["name"]: interface for interface in facts["interfaces"]}
    ends = []
    for name in node["interfaces"]:
        interface = interfaces.get(name)
        if interface is None:
            continue
        own = [address for address in interface["addresses"] if "." in address]
        chosen = [a for a in own if name == node["interface"] and a.split("/")[0] == node["address"]] or own
        device = next((d for d in facts["devices"] if d["netdev"] == name and d["name"] in node["hcas"]), None)
        if not chosen:
            continue
        ends.append(
            RailEnd(
                interface=name,
                address=chosen[0],
                mtu=interface["mtu"] or 1500,
                hca=device["name"] if device else None,
                gid_index=device["gid_index_v2_ipv4"] if device else None,
                mac=interface["mac"],
                rate_gbps=device["rate_gbps"] if device else None,
                pcie=f"{device['pcie_speed'] or '?'} x{device['pcie_width'] or '?'}" if device else "",
                firmware=device["fw_ver"] if device else None,
            )
        )
    return ends
