# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which interface, address and RDMA devices a node of a cluster uses, and the environment that says so.

Note that this module util is PRIVATE to the collection. It can have breaking changes at any time.

Planning has two steps. `plan` looks at one host alone and lists the rails that it could use; `settle` looks at the
plans of all hosts of a cluster, chooses the rail that they share and writes the environment. Both are pure, and
report problems as lines of the form "what; what to do" in place of raising.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypedDict, cast

from ._roce import Device, Interface, Roce, connectx_ports, in_a_line, label, usable_addresses, why_no_ports

DEBUG_LEVELS = ("VERSION", "WARN", "INFO", "TRACE")
TOPOLOGIES = ("auto", "single", "pair", "ring", "switch")
NETPLAN_FILE = "/etc/netplan/40-cx7.yaml"

_ENV_NAME = re.compile(r"^[A-Za-z_][A-Za-z0-9_]*$", re.ASCII)

# Every library that opens sockets between the nodes has its own name for the interface to use.
_INTERFACE_VARIABLES = (
    "NCCL_SOCKET_IFNAME",
    "GLOO_SOCKET_IFNAME",
    "TP_SOCKET_IFNAME",
    "UCX_NET_DEVICES",
    "OMPI_MCA_btl_tcp_if_include",
    "MN_IF_NAME",
)
_ADDRESS_VARIABLES = ("VLLM_HOST_IP", "RAY_NODE_IP_ADDRESS", "RAY_OVERRIDE_NODE_IP_ADDRESS")


class Node(TypedDict):
    """What the fabric role hands on."""

    address: str
    interface: str
    interfaces: list[str]
    hcas: list[str]
    devices: list[str]
    nccl_env: dict[str, str]


class Rail(TypedDict):
    """An interface that the nodes of a cluster can meet on; `address` is "address/prefix"."""

    interface: str
    address: str
    mtu: int | None


class Plan(TypedDict):
    """What one host could do, before it is known what the others can.

    `rails` are in order of preference. `devices` are the character devices that exist. `node` is not empty if the
    inventory gave the result itself.
    """

    problems: list[str]
    warnings: list[str]
    topology: str
    nodes: int
    rails: list[Rail]
    interfaces: list[str]
    hcas: list[str]
    devices: list[str]
    nccl_debug: str
    extra_env: dict[str, str]
    node: Node | None


class Settled(TypedDict):
    """A host's part in the cluster's fabric. `node` is None exactly if there are problems."""

    problems: list[str]
    warnings: list[str]
    topology: str
    rails: list[Rail]
    node: Node | None


@dataclass(frozen=True)
class Overrides:
    """What an inventory says in place of detection; empty means: detect."""

    interface: str = ""
    hcas: Sequence[str] = ()
    address: str = ""
    nccl_debug: str = ""
    topology: str = "auto"
    extra_env: Mapping[str, object] = field(default_factory=dict)


class _Refusal(Exception):
    """A planning step that cannot go on; its text is the problem."""


# --- one host -------------------------------------------------------------------------------------


def plan(facts: Roce, overrides: Overrides, nodes: int) -> Plan:
    """Decide what one host of a cluster of `nodes` hosts can use.

    Args:
        facts: what roce_facts said about the host.
        overrides: the inventory's wishes.
        nodes: number of hosts in the cluster, 1 or more.

    Returns:
        The plan. Its problems make it unusable; warnings cost bandwidth.
    """
    draft = _empty_plan()
    draft["nodes"] = nodes
    draft["nccl_debug"] = overrides.nccl_debug
    draft["extra_env"] = {name: str(value) for name, value in overrides.extra_env.items()}
    draft["problems"] += _option_problems(overrides, nodes)
    draft["topology"] = _topology(overrides.topology, facts, nodes)
    try:
        named = _named_hcas(facts, overrides)
        draft["rails"] = _rails(facts, overrides, draft["topology"], named)
        hcas = named or _hcas_of(facts, overrides, draft)
        draft["hcas"] = [device["name"] for device in hcas]
        draft["interfaces"] = _interfaces_of(draft["rails"][0]["interface"], hcas)
        draft["devices"] = _char_devices(facts, hcas)
        draft["problems"] += _gid_problems(overrides.extra_env, hcas)
        draft["warnings"] += _warnings(facts, draft, hcas)
    except _Refusal as refusal:
        draft["problems"] += str(refusal).splitlines()
    return draft


def check_given(facts: Roce, given: Mapping[str, object]) -> Plan:
    """Check a `fabric_node` that came with the inventory against what the host has."""
    draft = _empty_plan()
    problems = draft["problems"]
    interfaces = {interface["name"]: interface for interface in facts["interfaces"]}
    unknown = sorted(set(given) - set(Node.__annotations__))
    if unknown:
        problems.append(
            f"fabric_node has unknown keys {', '.join(unknown)}; its keys are {', '.join(Node.__annotations__)}"
        )
    for key in ("address", "interface"):
        if not isinstance(given.get(key), str) or not given[key]:
            problems.append(f"fabric_node has no {key}; give it, or leave fabric_node out to have it found")
    for key in ("interfaces", "hcas", "devices"):
        value = given.get(key, [])
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            problems.append(f"fabric_node.{key} is not a list of names; write it as a YAML list")
    environment = given.get("nccl_env", {})
    if not isinstance(environment, dict):
        problems.append("fabric_node.nccl_env is not a mapping; write it as NAME: value pairs")
    else:
        problems += _env_problems("fabric_node.nccl_env", environment)
    if problems:
        return draft
    node = Node(
        address=str(given["address"]),
        interface=str(given["interface"]),
        interfaces=cast("list[str]", given.get("interfaces", [given["interface"]])),
        hcas=cast("list[str]", given.get("hcas", [])),
        devices=cast("list[str]", given.get("devices", [])),
        nccl_env={name: str(value) for name, value in cast("dict[str, object]", environment).items()},
    )
    try:
        _carrying(facts, node["interface"], "fabric_node.interface")
        draft["rails"] = [_rail(interfaces[node["interface"]], node["address"], "fabric_node.address")]
        _check_hcas(facts, node["hcas"], "fabric_node.hcas")
    except _Refusal as refusal:
        problems += str(refusal).splitlines()
    for name in sorted(set(node["interfaces"]) - set(interfaces) - {node["interface"]}):
        problems.append(f"fabric_node.interfaces: {name} does not exist; this host has {_listed(facts)}")
    for path in sorted(set(node["devices"]) - set(facts["char_devices"])):
        problems.append(f"fabric_node.devices: {path} does not exist; this host has {_or_none(facts['char_devices'])}")
    draft["node"] = node
    return draft


def _empty_plan() -> Plan:
    return Plan(
        problems=[],
        warnings=[],
        topology="auto",
        nodes=1,
        rails=[],
        interfaces=[],
        hcas=[],
        devices=[],
        nccl_debug="",
        extra_env={},
        node=None,
    )


def _option_problems(overrides: Overrides, nodes: int) -> list[str]:
    problems = []
    if overrides.topology not in TOPOLOGIES:
        problems.append(f"fabric_topology is {overrides.topology!r}; choose one of {', '.join(TOPOLOGIES)}")
    fits = {"single": nodes == 1, "pair": nodes == 2, "ring": nodes >= 3, "switch": nodes >= 2}
    if not fits.get(overrides.topology, True):
        count = "1 node" if nodes == 1 else f"{nodes} nodes"
        problems.append(
            f"fabric_topology is {overrides.topology}, but the cluster has {count}; "
            "a single has 1, a pair 2, a ring 3 or more, a switch 2 or more: use auto"
        )
    if overrides.nccl_debug and overrides.nccl_debug not in DEBUG_LEVELS:
        problems.append(
            f"fabric_nccl_debug is {overrides.nccl_debug!r}; leave it empty or choose one of {', '.join(DEBUG_LEVELS)}"
        )
    problems += _env_problems("fabric_env", overrides.extra_env)
    said = {
        **dict.fromkeys(_INTERFACE_VARIABLES, ("fabric_interface", overrides.interface)),
        **dict.fromkeys(_ADDRESS_VARIABLES, ("fabric_address", overrides.address.split("/")[0])),
        "NCCL_IB_HCA": ("fabric_hcas", ",".join(overrides.hcas)),
        "NCCL_DEBUG": ("fabric_nccl_debug", overrides.nccl_debug),
    }
    for name, (option, value) in said.items():
        extra = overrides.extra_env.get(name, value)
        if value and extra != value:
            problems.append(f"fabric_env sets {name} to {extra}, but {option} says {value}; keep only one of them")
    return problems


def _env_problems(where: str, environment: Mapping[str, object]) -> list[str]:
    problems = []
    for name, value in environment.items():
        if not _ENV_NAME.match(name):
            problems.append(f"{where}: {name!r} is no name for an environment variable; use letters, digits and _")
        elif isinstance(value, bool) or not isinstance(value, (str, int, float)):
            problems.append(f"{where}.{name} is {type(value).__name__}; write it as a quoted string")
        elif any(c in str(value) for c in "\n\r\0"):
            problems.append(f"{where}.{name} has more than one line; an environment file cannot hold it")
        elif name == "NCCL_IB_GID_INDEX" and not str(value).isdecimal():
            # NCCL reads what it cannot parse as 0, which is the link-local GID.
            problems.append(
                f"{where}.NCCL_IB_GID_INDEX is {value!r}; leave it out, which lets NCCL choose, or give a number"
            )
    return problems


def _gid_problems(environment: Mapping[str, object], hcas: Sequence[Device]) -> list[str]:
    """Compare a forced GID index with the GID tables: a reboot or a firmware update moves what it stood for."""
    forced = str(environment.get("NCCL_IB_GID_INDEX", ""))
    return [
        f"fabric_env.NCCL_IB_GID_INDEX is {forced}, but the RoCE v2 GID of {label(device)}'s IPv4 address is at index "
        f"{device['gid_index_v2_ipv4']}; leave it out, and NCCL finds the right one on each device"
        for device in hcas
        if forced.isdecimal() and device["gid_index_v2_ipv4"] not in (None, int(forced))
    ]


def _topology(wanted: str, facts: Roce, nodes: int) -> str:
    """Tell the topology.

    A ring cannot be told from a switch with both ports cabled; a ring's settings also work on such a switch.
    """
    if wanted in TOPOLOGIES and wanted != "auto":
        return wanted
    if nodes <= 2:
        return "single" if nodes <= 1 else "pair"
    return "ring" if len({device["physical_port"] for device in _usable_ports(facts)}) >= 2 else "switch"


def _usable_ports(facts: Roce) -> list[Device]:
    """Return the ConnectX ports that carry and have an address, in order of preference."""
    return [d for d in connectx_ports(facts["devices"]) if d["active"] and usable_addresses(d["addresses"])]


def _named_hcas(facts: Roce, overrides: Overrides) -> list[Device]:
    _check_hcas(facts, overrides.hcas, "fabric_hcas")
    wanted = dict.fromkeys(overrides.hcas)
    return [device for name in wanted for device in facts["devices"] if device["name"] == name and device["active"]]


def _check_hcas(facts: Roce, names: Sequence[str], option: str) -> None:
    problems = []
    for name in dict.fromkeys(names):
        ports = [device for device in facts["devices"] if device["name"] == name]
        if not ports:
            there = _or_none(sorted({device["name"] for device in facts["devices"]}))
            problems.append(f"{option}: there is no RDMA device {name}; this host has {there}")
        elif not any(port["active"] for port in ports):
            problems.append(
                f"{option}: {name} is down ({label(ports[0])}); plug a QSFP cable, or name one of "
                f"{_or_none(sorted({device['name'] for device in facts['devices'] if device['active']}))}"
            )
    if problems:
        raise _Refusal("\n".join(problems))


def _rails(facts: Roce, overrides: Overrides, topology: str, named: Sequence[Device]) -> list[Rail]:
    """List the interfaces that the nodes could meet on, best first; never returns an empty list."""
    interfaces = {interface["name"]: interface for interface in facts["interfaces"]}
    if overrides.interface:
        interface = _carrying(facts, overrides.interface, "fabric_interface")
        return [_rail(interface, overrides.address, "fabric_address")]
    if overrides.address:
        holder = _holder(facts, overrides.address)
        interface = _carrying(facts, holder["name"], "fabric_address")
        return [_rail(interface, overrides.address, "fabric_address")]
    if topology == "single":
        return [_alone(facts)]
    if topology == "ring":
        # No subnet of a ring reaches every node: they meet on the management network, and NCCL routes the data.
        if not named and not _usable_ports(facts):
            raise _Refusal(_no_rail(facts))
        if facts["default_route"] is None or facts["default_route"]["address"] is None:
            raise _Refusal(
                "a ring's nodes meet on the network of the default route, and there is none; "
                "set fabric_interface to an interface in a network that all nodes share"
            )
        return [_rail(interfaces[facts["default_route"]["interface"]], facts["default_route"]["address"], "")]
    names = {device["name"] for device in named}
    ports = [port for port in _usable_ports(facts) if not names or port["name"] in names] or [
        device for device in named if usable_addresses(device["addresses"])
    ]
    rails = [_rail(interfaces[label(port)], "", "") for port in ports if label(port) in interfaces]
    if not rails:
        raise _Refusal(_no_rail(facts, named))
    return rails


def _carrying(facts: Roce, name: str, option: str) -> Interface:
    interfaces = {interface["name"]: interface for interface in facts["interfaces"]}
    if name not in interfaces:
        raise _Refusal(f"{option}: there is no interface {name}; this host has {_listed(facts)}")
    carrier = interfaces[name]["carrier"]
    if carrier is None:
        raise _Refusal(f"{option}: {name} is administratively down; run 'ip link set {name} up' or name another one")
    if not carrier:
        raise _Refusal(f"{option}: {name} has no carrier; plug its cable or name another interface")
    return interfaces[name]


def _rail(interface: Interface, address: str, option: str) -> Rail:
    """Make a rail of an interface; an empty `address` means its first usable one."""
    usable = usable_addresses(interface["addresses"])
    if not usable:
        raise _Refusal(
            f"{interface['name']} has no IPv4 address; give it a static one in a netplan file ({NETPLAN_FILE}), "
            "or set fabric_interface to an interface that has one"
        )
    if not address:
        return Rail(interface=interface["name"], address=usable[0], mtu=interface["mtu"])
    wanted = _ipv4(address, option)
    for own in interface["addresses"]:
        if str(wanted) == own.split("/")[0]:
            return Rail(interface=interface["name"], address=own, mtu=interface["mtu"])
    raise _Refusal(
        f"{option}: {wanted} is not on {interface['name']}, which has {', '.join(usable)}; "
        "use one of these, or another interface"
    )


def _ipv4(address: str, option: str) -> ipaddress.IPv4Address:
    try:
        return ipaddress.IPv4Interface(address).ip
    except ValueError:
        raise _Refusal(f"{option}: {address!r} is no IPv4 address; write it like 192.168.177.11") from None


def _holder(facts: Roce, address: str) -> Interface:
    wanted = str(_ipv4(address, "fabric_address"))
    for interface in facts["interfaces"]:
        if wanted in (own.split("/")[0] for own in interface["addresses"]):
            return interface
    raise _Refusal(f"fabric_address: {wanted} is on no interface; this host has {_listed(facts)}")


def _alone(facts: Roce) -> Rail:
    """Choose for a cluster of one node, which needs no fabric: where the default route is, else loopback."""
    interfaces = {interface["name"]: interface for interface in facts["interfaces"]}
    route = facts["default_route"]
    if route and route["address"]:
        return _rail(interfaces[route["interface"]], route["address"], "")
    loopback = interfaces.get("lo")
    return Rail(interface="lo", address="127.0.0.1/8", mtu=loopback["mtu"] if loopback else None)


def _no_rail(facts: Roce, named: Sequence[Device] = ()) -> str:
    """Say why no ConnectX port can be used."""
    ports = list(named) or connectx_ports(facts["devices"])
    if not ports:
        return f"{in_a_line(why_no_ports(facts))}; or set fabric_interface to use another network without RDMA"
    active = [port for port in ports if port["active"]]
    denied = [port for port in ports if port["carrier"] and not port["active"]]
    if denied and not active:
        return _denied(denied[0])
    if not active:
        return "no ConnectX port has carrier; plug a QSFP cable or set fabric_interface"
    interfaces = {interface["name"]: interface for interface in facts["interfaces"]}
    names = [label(port) for port in active]
    masters = {interfaces[name]["master"] for name in names if name in interfaces} - {None}
    for master in sorted(str(m) for m in masters):
        return (
            f"{', '.join(names)}: up, but part of {master}; take it apart and give each an address in its own subnet "
            f"in a netplan file ({NETPLAN_FILE}), or set fabric_interface to {master}"
        )
    kind = "a static" if any("." in address for port in active for address in port["addresses"]) else "an"
    return (
        f"{', '.join(names)}: up, but without {kind} IPv4 address; give each a static one in its own subnet in a "
        f"netplan file ({NETPLAN_FILE}), or set fabric_interface to an interface that has one"
    )


def _denied(port: Device) -> str:
    return (
        f"{label(port)} has carrier, but its RDMA device {port['name']} is {port['state']}; "
        "reload mlx5_ib or reboot, or set fabric_interface to use another network"
    )


def _hcas_of(facts: Roce, overrides: Overrides, draft: Plan) -> list[Device]:
    """Find the RDMA devices for the chosen interface, or all that the topology can use."""
    if draft["topology"] == "single" and not overrides.interface and not overrides.address:
        return []
    ports = _usable_ports(facts)
    if not overrides.interface and not overrides.address:
        return ports
    chosen = draft["rails"][0]["interface"]
    if draft["topology"] == "ring" and chosen not in {label(port) for port in ports}:
        return ports
    lower = {interface["name"]: interface["lower"] for interface in facts["interfaces"]}
    below = {chosen, *lower[chosen]}
    there = [device for device in facts["devices"] if device["netdev"] in below]
    own = [device for device in there if device["active"]]
    if there and not own:
        raise _Refusal(_denied(there[0]))  # the interface carries, or it would not have been chosen
    twins = {device["twin"] for device in own if device["netdev"] == chosen}
    rank = {id(port): number for number, port in enumerate(connectx_ports(facts["devices"]))}
    both = own + [port for port in ports if port["name"] in twins and port not in own]
    return sorted(both, key=lambda device: rank.get(id(device), len(rank)))


def _interfaces_of(first: str, hcas: Sequence[Device]) -> list[str]:
    return list(dict.fromkeys([first, *(device["netdev"] for device in hcas if device["netdev"])]))


def _char_devices(facts: Roce, hcas: Sequence[Device]) -> list[str]:
    wanted = {device["uverbs"] for device in hcas} | {"/dev/infiniband/rdma_cm"}
    return [path for path in facts["char_devices"] if hcas and path in wanted]


def _warnings(facts: Roce, draft: Plan, hcas: Sequence[Device]) -> list[str]:
    used = {device["name"] for device in hcas}
    warnings = [in_a_line(p) for p in facts["problems"] if p["device"] in used]
    if not hcas and draft["topology"] != "single":
        warnings.append(
            f"{draft['rails'][0]['interface']} has no RDMA device: NCCL will use TCP sockets; "
            "use a ConnectX port for full speed"
        )
    twins = {device["twin"] for device in hcas} - used
    for port in connectx_ports(facts["devices"]):
        if port["name"] in twins and port["active"] and not usable_addresses(port["addresses"]):
            warnings.append(
                f"{label(port)}: up, but without a static IPv4 address, so half of its port's bandwidth is not used; "
                f"give it one in its own subnet in a netplan file ({NETPLAN_FILE})"
            )
    for device in hcas:
        if device["uverbs"] not in facts["char_devices"]:
            warnings.append(
                f"{device['name']} has no character device in /dev/infiniband; run 'modprobe ib_uverbs rdma_ucm'"
            )
    return warnings


def _listed(facts: Roce) -> str:
    """List the interfaces that an owner may have meant: those with an address or an RDMA device."""
    rdma = {device["netdev"] for device in facts["devices"]}
    named = []
    for interface in facts["interfaces"]:
        addresses = usable_addresses(interface["addresses"])
        if interface["name"] != "lo" and (addresses or interface["name"] in rdma):
            named.append(f"{interface['name']} ({', '.join(addresses) or 'no address'})")
    return _or_none(named)


def _or_none(names: Sequence[str]) -> str:
    return ", ".join(names) or "none"


# --- the hosts of a cluster -----------------------------------------------------------------------


def settle(plans: Mapping[str, Plan], host: str, head: str, all_devices: Sequence[str] = ()) -> Settled:
    """Choose for `host` the rail that the cluster shares, and check it against the head's.

    Args:
        plans: the plans of the cluster's hosts that could be read. Hosts that are missing are not compared with.
        host: the host to decide for; it is in `plans`.
        head: the cluster's head.
        all_devices: names of all RDMA devices of `host`, to tell names apart that begin alike.

    Returns:
        The host's part. Cross-host problems are reported on the host that differs from the head, never on the head.
    """
    own = plans[host]
    problems = list(own["problems"])
    usable = {name: other for name, other in plans.items() if other["rails"]}
    network = _shared_network(usable, head)
    if own["rails"]:
        rail = _rail_in(own, network)
        if head in usable and host != head:
            problems += _differences(own, rail, usable[head], _rail_in(usable[head], network), head)
        problems += _duplicates(usable, host, head)
    node = None
    if own["rails"] and not problems:
        node = own["node"] or _node(own, rail, all_devices)
    return Settled(problems=problems, warnings=own["warnings"], topology=own["topology"], rails=own["rails"], node=node)


def _network(rail: Rail) -> str:
    return str(ipaddress.ip_interface(rail["address"]).network)


def _shared_network(plans: Mapping[str, Plan], head: str) -> str | None:
    """Return the first of the head's subnets that all hosts have an address in."""
    first = plans.get(head)
    for rail in first["rails"] if first else []:
        network = _network(rail)
        if all(any(_network(other) == network for other in plan["rails"]) for plan in plans.values()):
            return network
    return None


def _rail_in(plan: Plan, network: str | None) -> Rail:
    for rail in plan["rails"]:
        if _network(rail) == network:
            return rail
    return plan["rails"][0]


def _differences(own: Plan, rail: Rail, heads: Plan, heads_rail: Rail, head: str) -> list[str]:
    if _network(rail) != _network(heads_rail):
        return [
            f"fabric address {rail['address']} is not in {head}'s subnet {_network(heads_rail)}; "
            "put both into one subnet, or choose by fabric_interface or fabric_address"
        ]
    return [
        f"{mine['interface']} has MTU {mine['mtu']}, but {head}'s {theirs['interface']} has {theirs['mtu']}; "
        "set the same MTU on all nodes, 9000 on a ConnectX fabric"
        for mine in own["rails"]
        for theirs in heads["rails"]
        if _network(mine) == _network(theirs) and mine["mtu"] != theirs["mtu"]
    ]


def _duplicates(plans: Mapping[str, Plan], host: str, head: str) -> list[str]:
    """Find addresses that another host has too; said once, on the later of two hosts, which is never the head."""
    found = []
    order = sorted(plans, key=lambda name: (name != head, name))
    for rail in plans[host]["rails"]:
        address = rail["address"].split("/")[0]
        for other in order[: order.index(host)]:
            if address in {theirs["address"].split("/")[0] for theirs in plans[other]["rails"]}:
                found.append(f"address {address} on {rail['interface']} is {other}'s too; give every node its own")
    return found


def _node(own: Plan, rail: Rail, all_devices: Sequence[str]) -> Node:
    address = rail["address"].split("/")[0]
    return Node(
        address=address,
        interface=rail["interface"],
        interfaces=list(dict.fromkeys([rail["interface"], *own["interfaces"]])),
        hcas=own["hcas"],
        devices=own["devices"],
        nccl_env=environment(
            address=address,
            interface=rail["interface"],
            hcas=own["hcas"],
            all_devices=all_devices,
            ring_of=own["nodes"] if own["topology"] == "ring" else 0,
            nccl_debug=own["nccl_debug"],
            extra=own["extra_env"],
        ),
    )


def environment(
    *,
    address: str,
    interface: str,
    hcas: Sequence[str],
    all_devices: Sequence[str] = (),
    ring_of: int = 0,
    nccl_debug: str = "",
    extra: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Return the environment of every container of a node, sorted by name.

    Args:
        address: the node's own IPv4 address.
        interface: the interface that has it.
        hcas: RDMA devices to use; none means TCP sockets.
        all_devices: all RDMA devices of the host.
        ring_of: number of nodes in a ring without a switch, 0 for any other topology.
        nccl_debug: NCCL's log level; empty leaves it unset.
        extra: the owner's additions, which win.
    """
    env = {
        **dict.fromkeys(_INTERFACE_VARIABLES, interface),
        **dict.fromkeys(_ADDRESS_VARIABLES, address),
        "NCCL_IGNORE_CPU_AFFINITY": "1",
        # Unified memory trips Ray's limit of 95 %: the host has its own guard.
        "RAY_memory_monitor_refresh_ms": "0",
    }
    if hcas:
        # NCCL_NET=IB makes NCCL fail where it would fall back to TCP without a word.
        env |= {"NCCL_IB_HCA": _hca_list(hcas, all_devices), "NCCL_IB_DISABLE": "0", "NCCL_NET": "IB"}
    else:
        env |= {"NCCL_IB_DISABLE": "1", "NCCL_NET": "Socket"}
    if ring_of:
        env |= {"NCCL_NET_PLUGIN": "none", "NCCL_IB_SUBNET_AWARE_ROUTING": "1", "NCCL_IB_MERGE_NICS": "0"}
    if ring_of >= 4:
        env["NCCL_ALGO"] = "Ring"
    if nccl_debug:
        env["NCCL_DEBUG"] = nccl_debug
    return dict(sorted({**env, **(extra or {})}.items()))


def _hca_list(hcas: Sequence[str], all_devices: Sequence[str]) -> str:
    """Write NCCL_IB_HCA. NCCL takes the names as prefixes unless told: mlx5_1 would also mean mlx5_10."""
    others = set(all_devices) - set(hcas)
    ambiguous = any(other.startswith(hca) for other in others for hca in hcas)
    return ("=" if ambiguous else "") + ",".join(hcas)
