# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The fabric of a cluster as a person looks at it: one model out of what was read, and a drawing of it in text.

Note that this module util is PRIVATE to the collection. It can have breaking changes at any time.

A drawing is wanted most when something is wrong. So whatever is missing in the input is left out or shown as not
known, and nothing in here raises. `_drawing_svg` draws the same model as a picture.
"""

from __future__ import annotations

import ipaddress
import itertools
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypedDict

from ._status import rate as rate_text
from ._status import summarise_gate

# From the best to the worst; what is drawn of a cable is the worst of its rails.
GOOD, UNMEASURED, PLANNED, SLOW, DOWN = "good", "unmeasured", "planned", "slow", "down"
EMPTY, WRONG, MISSING = "empty", "wrong", "missing"
_ORDER = (GOOD, UNMEASURED, PLANNED, SLOW, DOWN)

WORDS = {
    GOOD: "measured, good",
    UNMEASURED: "not measured",
    PLANNED: "address not set yet",
    SLOW: "below the threshold",
    DOWN: "down",
    EMPTY: "no cable",
    WRONG: "cabled wrongly",
    MISSING: "cable missing",
}


class Figure(TypedDict):
    """What the gate measured in one direction; `gbps` is None for a ping alone."""

    sender: str
    interface: str
    receiver: str
    receiver_interface: str
    gbps: float | None
    wanted_gbps: float | None
    tool: str
    ok: bool | None


class Face(TypedDict):
    """One of the interfaces that a QSFP port shows up as. `planned` says that `address` is yet to be set."""

    interface: str
    device: str
    rail: int
    address: str
    planned: bool
    current: list[str]
    mtu: int | None
    planned_mtu: int | None
    carrier: bool | None
    rate_gbps: float | None
    state: str


class Port(TypedDict):
    """A QSFP port; `wire` is the index of what it is cabled to, or None."""

    name: str
    state: str
    rate_gbps: float | None
    wire: int | None
    faces: list[Face]


class Node(TypedDict):
    """A host of the cluster. `management` is "address interface", `error` says why it could not be read."""

    name: str
    head: bool
    management: str
    error: str
    ports: list[Port]
    problems: list[str]
    notes: list[str]


class Rail(TypedDict):
    """One of the links of a cable or switch: the interfaces of one PCIe half at all its ends."""

    rail: int
    network: str
    state: str
    figures: list[Figure]


class End(TypedDict):
    """Where a cable ends; `foreign` if its host is not of this cluster."""

    host: str
    port: str
    foreign: bool


class Wire(TypedDict):
    """A cable or a switch."""

    kind: str
    state: str
    ends: list[End]
    rails: list[Rail]


class Drawing(TypedDict):
    """All that is drawn of a cluster.

    `shape` is how it is laid out: single, pair, ring, chain, switch or graph. `order` has the nodes as one walks
    along the cables. `missing` has the ends of cables that ought to be there; "" stands for the switch.
    """

    name: str
    head: str
    topology: str
    shape: str
    order: list[str]
    nodes: list[Node]
    wires: list[Wire]
    missing: list[list[str]]
    problems: list[str]
    notes: list[str]
    gate: dict[str, Any]


def draw(cluster: Mapping[str, Any], hosts: Mapping[str, Mapping[str, Any]]) -> Drawing:
    """Put together what is known of one cluster's fabric.

    Args:
        cluster: the fact ``spark_cluster``: name, head, nodes.
        hosts: for each node what the fabric role's preflight registered, or ``{"error": why it could not be read}``.

    Returns:
        The model of the drawing; it can be written as JSON.
    """
    names = [str(name) for name in _list(cluster.get("nodes")) or list(hosts)]
    head = str(cluster.get("head") or (names[0] if names else ""))
    name = str(cluster.get("name") or "")
    read = {host: _dict(hosts.get(host)) for host in names}
    gates = {host: _dict(facts.get("gate")) or None for host, facts in read.items()}
    figures = _figures(gates)
    wires = _wires(read)
    nodes = [_node(host, host == head, read[host], wires, len(names)) for host in names]
    for wire in wires:
        _measure(wire, nodes, figures)
    problems = _unique(f"{node['name']}: {line}" for node in nodes for line in node["problems"])
    said = [(node["name"], line) for node in nodes for line in node["problems"]]
    _mark_wrong(wires, said)
    for node in nodes:
        _port_states(node, wires, figures, said, len(names))
    due = any(facts.get("gate_due") is True for facts in read.values())
    collectives = {host: _dict(facts.get("collective")) or None for host, facts in read.items()}
    gate = summarise_gate(gates, collectives, due)
    topologies = [str(facts.get("topology") or "") for facts in read.values()]
    topology = next((text for text in topologies if text not in ("", "auto")), "")
    shape, order = _shape(names, head, wires, topology)
    return Drawing(
        name=name,
        head=head,
        topology=topology,
        shape=shape,
        order=order,
        nodes=nodes,
        wires=wires,
        missing=_missing(shape, order, wires, problems),
        problems=_unique([*problems, *gate["problems"]]),
        notes=_unique(f"{node['name']}: {line}" for node in nodes for line in node["notes"]),
        gate=gate,
    )


# --- the model ------------------------------------------------------------------------------------


def _dict(value: object) -> dict[str, Any]:
    return dict(value) if isinstance(value, Mapping) else {}


def _list(value: object) -> list[Any]:
    return list(value) if isinstance(value, Sequence) and not isinstance(value, (str, bytes)) else []


def _dicts(value: object) -> list[dict[str, Any]]:
    return [dict(item) for item in _list(value) if isinstance(item, Mapping)]


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def _integer(value: object) -> int | None:
    number = _number(value)
    return None if number is None else int(number)


def _unique(lines: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(lines))


def _addresses(value: object) -> list[str]:
    """Return the IPv4 addresses that are of use, which link-local ones are not."""
    found = []
    for text in _list(value):
        try:
            address = ipaddress.IPv4Interface(str(text))
        except ValueError:
            continue
        if not address.ip.is_link_local:
            found.append(str(text))
    return found


def _wires(read: Mapping[str, Mapping[str, Any]]) -> list[Wire]:
    """Return the cables and switches that any node tells of; where none does, what the addresses tell."""
    found: dict[tuple[tuple[str, str], ...], Wire] = {}
    for facts in read.values():
        for wire in _dicts(facts.get("wires")):
            ends = [(str(end.get("host", "")), str(end.get("port", ""))) for end in _dicts(wire.get("ends"))]
            if len(ends) > 1 and any(host in read for host, _port in ends):
                found.setdefault(tuple(sorted(ends)), _wire(ends, read))
    if found:
        return list(found.values())
    for host, facts in read.items():
        for link in _dicts(facts.get("links")):
            peer = str(link.get("peer", ""))
            ends = [
                (host, _port_of(facts, link.get("interface"))),
                (peer, _port_of(_dict(read.get(peer)), link.get("peer_interface"))),
            ]
            if ends[0] != ends[1] and all(port for _host, port in ends):
                found.setdefault(tuple(sorted(ends)), _wire(ends, read))
    return _as_switches(list(found.values()), read)


def _wire(ends: Sequence[tuple[str, str]], read: Mapping[str, Any]) -> Wire:
    return Wire(
        kind="cable" if len(ends) == 2 else "switch",
        state=UNMEASURED,
        ends=[End(host=host, port=port, foreign=host not in read) for host, port in ends],
        rails=[],
    )


def _as_switches(wires: Sequence[Wire], read: Mapping[str, Any]) -> list[Wire]:
    """Join links that share a port: a port has one cable, so between several others there is a switch."""
    groups: list[list[tuple[str, str]]] = []
    for wire in wires:
        group = [(end["host"], end["port"]) for end in wire["ends"]]
        for other in [other for other in groups if set(other) & set(group)]:
            groups.remove(other)
            group = list(dict.fromkeys([*other, *group]))
        groups.append(group)
    return [_wire(group, read) for group in groups]


def _port_of(facts: Mapping[str, Any], interface: object) -> str:
    for device in _dicts(_dict(facts.get("roce")).get("devices")):
        if device.get("netdev") == interface:
            return str(device.get("physical_port") or "")
    return ""


def _node(name: str, head: bool, facts: Mapping[str, Any], wires: Sequence[Wire], nodes: int) -> Node:
    roce = _dict(facts.get("roce"))
    error = str(facts.get("error") or "")
    problems = [str(line).removeprefix(f"{name}: ") for line in _list(facts.get("problems"))]
    refusal = str(facts.get("refusal") or "")
    problems += [line.removeprefix(f"{name}: ") for line in refusal.splitlines() if line.startswith(f"{name}: ")]
    if not roce and not error:
        error = problems.pop(0) if problems else "could not be read; check that the host answers"
    if "problems" not in facts and nodes > 1:
        problems += [f"{item.get('message')}; {item.get('remedy')}" for item in _dicts(roce.get("problems"))]
    return Node(
        name=name,
        head=head,
        management=_management(roce),
        error=error,
        ports=_ports(name, facts, roce, wires),
        problems=_unique(([error] if error else []) + problems),
        notes=[str(line).removeprefix(f"{name}: ") for line in _list(facts.get("notes"))],
    )


def _management(roce: Mapping[str, Any]) -> str:
    """Return address and interface of the management network, "" if neither is known."""
    route = _dict(roce.get("default_route"))
    wanted = [str(name) for name in _list(roce.get("management"))]
    if not wanted and route.get("interface"):
        wanted = [str(route["interface"])]
    for interface in _dicts(roce.get("interfaces")):
        if interface.get("name") in wanted[:1]:
            usable = _addresses(interface.get("addresses"))
            if usable:
                return f"{usable[0].split('/')[0]} {interface['name']}"
    address = str(route.get("address") or "").split("/", maxsplit=1)[0]
    return " ".join(part for part in (address, *wanted[:1]) if part)


def _ports(host: str, facts: Mapping[str, Any], roce: Mapping[str, Any], wires: Sequence[Wire]) -> list[Port]:
    """Return the QSFP ports of a host, first port first, and primary PCIe domain first within a port."""
    interfaces = {str(item.get("name")): item for item in _dicts(roce.get("interfaces"))}
    settings = {str(item.get("interface")): item for item in _dicts(facts.get("settings"))}
    ports: dict[str, list[dict[str, Any]]] = {}
    for device in _dicts(roce.get("devices")):
        if device.get("connectx", True) and not device.get("virtual_function"):
            ports.setdefault(str(device.get("physical_port") or device.get("name") or "?"), []).append(device)
    found = []
    for name, devices in ports.items():
        devices.sort(key=lambda device: str(device.get("pci") or "~"))
        faces = []
        for index, device in enumerate(devices):
            interface = str(device.get("netdev"))
            faces.append(_face(index, device, _dict(interfaces.get(interface)), _dict(settings.get(interface))))
        found.append(Port(name=name, state=EMPTY, rate_gbps=None, wire=_wire_of(host, name, wires), faces=faces))
    for index, wire in enumerate(wires):
        # A host that could not be read, but that others see.
        for end in wire["ends"]:
            if end["host"] == host and end["port"] not in ports:
                ports[end["port"]] = []
                found.append(Port(name=end["port"], state=UNMEASURED, rate_gbps=None, wire=index, faces=[]))
    for port in found:
        rates = [face["rate_gbps"] for face in port["faces"] if face["rate_gbps"] is not None and face["carrier"]]
        port["rate_gbps"] = min(rates) if rates else None
    return sorted(found, key=lambda port: _natural(port["name"]))


def _natural(text: str) -> list[tuple[int, int, str]]:
    """Return a key that sorts p2 before p10."""
    parts = re.split(r"([0-9]{1,18})", text)
    return [(1, int(part), "") if part.isascii() and part.isdigit() else (0, 0, part) for part in parts]


def _wire_of(host: str, port: str, wires: Sequence[Wire]) -> int | None:
    for index, wire in enumerate(wires):
        if any(end["host"] == host and end["port"] == port for end in wire["ends"]):
            return index
    return None


def _face(index: int, device: dict[str, Any], interface: dict[str, Any], setting: dict[str, Any]) -> Face:
    current = _addresses(interface.get("addresses")) or _addresses(device.get("addresses"))
    planned = bool(setting) and setting.get("kept") is False
    mtu = _integer(interface.get("mtu")) or _integer(device.get("mtu"))
    carrier = interface.get("carrier", device.get("carrier"))
    rail = _integer(setting.get("rail"))
    wanted = _integer(setting.get("mtu"))
    return Face(
        interface=str(device.get("netdev") or ""),
        device=str(device.get("name") or ""),
        rail=index if rail is None else rail,
        address=str(setting.get("address") or (current[0] if current else "")),
        planned=planned and str(setting.get("address")) not in current,
        current=current,
        mtu=mtu,
        planned_mtu=wanted if planned and wanted != mtu else None,
        carrier=carrier if isinstance(carrier, bool) else None,
        rate_gbps=_number(device.get("rate_gbps")),
        state=UNMEASURED,
    )


def _figures(gates: Mapping[str, Any]) -> list[Figure]:
    """Return what was measured. Every node keeps the figures of all of them, so the same one is often there twice."""
    found: dict[tuple[str, str, str, str], Figure] = {}
    for host, gate in gates.items():
        record = _dict(gate)
        wanted = _number(_dict(record.get("thresholds")).get("min_gbps"))
        reasons = [str(line) for line in _list(record.get("problems"))]
        for link in _dicts(record.get("links")):
            sender, receiver = str(link.get("host") or host), str(link.get("peer") or "")
            interface, far = str(link.get("interface") or ""), str(link.get("peer_interface") or "")
            rail = f"{sender}: {interface} to {receiver}'s {far}: "
            measured = _number(link.get("gbps"))
            ok: bool | None = link.get("ok") if isinstance(link.get("ok"), bool) else None
            if ok is None:
                slow = measured is not None and wanted is not None and measured < wanted
                ok = not slow and link.get("mtu_ok") is not False and not any(line.startswith(rail) for line in reasons)
            found.setdefault(
                (sender, interface, receiver, far),
                Figure(
                    sender=sender,
                    interface=interface,
                    receiver=receiver,
                    receiver_interface=far,
                    gbps=measured,
                    wanted_gbps=wanted,
                    tool=str(link.get("tool") or ""),
                    ok=ok,
                ),
            )
    return list(found.values())


def _judged(figures: Sequence[Figure]) -> str:
    if any(figure["ok"] is False for figure in figures):
        return SLOW
    return GOOD if any(figure["ok"] for figure in figures) else UNMEASURED


def _worst(states: Iterable[str]) -> str:
    found = [state for state in states if state in _ORDER]
    return max(found, key=_ORDER.index, default=UNMEASURED)


def _faces_of(wire: Wire, nodes: Sequence[Node], rail: int) -> list[tuple[Node, Port, Face]]:
    ends = {(end["host"], end["port"]) for end in wire["ends"]}
    return [
        (node, port, face)
        for node in nodes
        for port in node["ports"]
        if (node["name"], port["name"]) in ends
        for face in port["faces"]
        if face["rail"] == rail
    ]


def _measure(wire: Wire, nodes: Sequence[Node], figures: Sequence[Figure]) -> None:
    """Fill in the rails of a wire."""
    ends = {(end["host"], end["port"]) for end in wire["ends"]}
    numbers = {face["rail"] for n in nodes for p in n["ports"] if (n["name"], p["name"]) in ends for face in p["faces"]}
    for number in sorted(numbers):
        faces = _faces_of(wire, nodes, number)
        members = {(node["name"], face["interface"]) for node, _port, face in faces}
        own = [figure for figure in figures if (figure["sender"], figure["interface"]) in members]
        states = [_judged(own)]
        states += [DOWN for _node, _port, face in faces if face["carrier"] is not True]
        states += [PLANNED for _node, _port, face in faces if face["planned"]]
        networks = _unique(_network(face["address"]) for _node, _port, face in faces if face["address"])
        wire["rails"].append(
            Rail(
                rail=number,
                network=networks[0] if len(networks) == 1 else " / ".join(networks),
                state=_worst(states),
                figures=own,
            )
        )
    wire["state"] = _worst(rail["state"] for rail in wire["rails"])


def _network(address: str) -> str:
    try:
        return str(ipaddress.ip_interface(address).network)
    except ValueError:
        return address


def _mentions(text: str, host: str, port: str, own: str) -> bool:
    """Tell whether a line about the host `own` names a port; its own ports are named without the host."""
    if re.search(rf"(?<![\w.-]){re.escape(host)}:? {re.escape(port)}(?![\w-])", text):
        return True
    if host != own:
        return False
    return (
        re.search(rf"(?:^|[,;:(] |\band |\bfrom |\bplug |\bcable |\bown ){re.escape(port)}(?![\w-])", text) is not None
    )


def _mark_wrong(wires: Sequence[Wire], said: Sequence[tuple[str, str]]) -> None:
    """Mark the cables that a problem names by both of their ends."""
    for wire in wires:
        ends = wire["ends"]
        if wire["kind"] != "cable":
            continue
        if any(all(_mentions(line, end["host"], end["port"], own) for end in ends) for own, line in said):
            wire["state"] = WRONG


def _port_states(
    node: Node, wires: Sequence[Wire], figures: Sequence[Figure], said: Sequence[tuple[str, str]], nodes: int
) -> None:
    """Set the state of each interface and port, once that of the wires is known."""
    text = "\n".join(node["problems"])
    carries = any(face["carrier"] for port in node["ports"] for face in port["faces"])
    for port in node["ports"]:
        wire = wires[port["wire"]] if port["wire"] is not None else None
        used = any(face["carrier"] for face in port["faces"]) or wire is not None
        for face in port["faces"]:
            own = [f for f in figures if (f["sender"], f["interface"]) == (node["name"], face["interface"])]
            named = re.search(rf"(?<![\w-]){re.escape(face['interface'] or face['device'])}(?![\w-])", text)
            if face["carrier"] is not True:
                # A port without a cable is no fault, unless the node needs it.
                face["state"] = DOWN if used or named or (nodes > 1 and not carries) else EMPTY
            elif face["planned"]:
                face["state"] = PLANNED
            else:
                face["state"] = _judged(own)
                if wire is not None and wire["kind"] == "cable" and face["state"] != SLOW:
                    rail = next((rail for rail in wire["rails"] if rail["rail"] == face["rail"]), None)
                    face["state"] = rail["state"] if rail and rail["state"] in (GOOD, SLOW) else face["state"]
        if port["faces"]:
            states = [face["state"] for face in port["faces"]]
            port["state"] = EMPTY if all(state == EMPTY for state in states) else _worst(states)
            lacks = any(_mentions(line, node["name"], port["name"], own) for own, line in said)
            if lacks and port["state"] == EMPTY:
                port["state"] = DOWN
                for face in port["faces"]:
                    face["state"] = DOWN
        if wire is not None and wire["state"] == WRONG:
            port["state"] = WRONG


# --- how it is laid out ---------------------------------------------------------------------------


def cables(wires: Sequence[Wire]) -> list[Wire]:
    """Return the cables between two nodes of the cluster."""
    return [w for w in wires if w["kind"] == "cable" and not any(end["foreign"] for end in w["ends"])]


def switches(wires: Sequence[Wire]) -> list[Wire]:
    """Return the switches."""
    return [wire for wire in wires if wire["kind"] == "switch"]


def _shape(names: Sequence[str], head: str, wires: list[Wire], topology: str) -> tuple[str, list[str]]:
    """Tell how the nodes are to be laid out, and in which order."""
    if topology == "switch" and len(names) <= 2 and not switches(wires):
        for wire in wires:
            wire["kind"] = "switch"  # two users only
    if switches(wires):
        return "switch", list(names)
    if len(names) <= 1:
        return "single", list(names)
    if len(names) == 2:
        return "pair", [head, *(name for name in names if name != head)] if head in names else list(names)
    ends = [sorted(wire["ends"], key=lambda end: _natural(end["port"])) for wire in cables(wires)]
    peers: dict[str, list[str]] = {name: [] for name in names}
    for near, far in sorted(ends, key=lambda pair: _natural(pair[0]["port"])):
        peers[near["host"]].append(far["host"])
        peers[far["host"]].append(near["host"])
    degrees = sorted(len(others) for others in peers.values())
    ring = degrees == [2] * len(names)
    if not ring and degrees != [1, 1] + [2] * (len(names) - 2):
        return "graph", list(names)
    # A chain is walked from the end that is nearer to the head, a ring from the head.
    start = head if ring else next(name for name in names if len(peers[name]) == 1)
    order = [start]
    while len(order) < len(names):
        following = [name for name in peers[order[-1]] if name not in order]
        if not following:
            return "graph", list(names)
        order.append(following[0])
    return ("ring" if ring else "chain"), order


def _missing(shape: str, order: Sequence[str], wires: Sequence[Wire], problems: Sequence[str]) -> list[list[str]]:
    """Return the ends of cables that ought to be there. Without a problem, nothing is missing."""
    if not problems:
        return []
    if shape == "chain":
        return [[order[-1], order[0]]]
    if shape == "pair" and not cables(wires):
        return [list(order)]
    if shape == "switch":
        there = {end["host"] for wire in wires for end in wire["ends"]}
        return [[name, ""] for name in order if name not in there]
    if shape == "graph" and not cables(wires):
        return [[a, b] for a, b in zip(order, [*order[1:], order[0]], strict=True)]
    return []


# --- words for both drawings ----------------------------------------------------------------------


def clean(text: str) -> str:
    """Return text without characters that a terminal or a page would act upon."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def width(text: str) -> int:
    """Return how many columns a text takes."""
    wide = sum(unicodedata.east_asian_width(c) in "WF" for c in text)
    return len(text) + wide - sum(unicodedata.combining(c) != 0 for c in text)


def gbps(value: float | None) -> str:
    """Return a figure as one reads it aloud, "" for none."""
    return "" if value is None else rate_text(value)


def title(drawing: Drawing) -> str:
    """Return what the cluster is, in one line."""
    count = len(drawing["nodes"])
    topology = drawing["topology"]
    parts = [topology or "cabling not understood"]
    if topology == "ring":
        parts = [f"ring of {count}"]
    elif topology not in ("single", "pair"):
        parts.append("1 node" if count == 1 else f"{count} nodes")
    number = len([wire for wire in drawing["wires"] if wire["kind"] == "cable"])
    if number:
        parts.append("1 cable" if number == 1 else f"{number} cables")
    if len(switches(drawing["wires"])) > 1:
        parts.append(f"{len(switches(drawing['wires']))} switches")
    return ", ".join(parts)


def gate_text(drawing: Drawing) -> str:
    """Return the gate's result in one line; its reasons are among the problems."""
    gate = drawing["gate"]
    return f"gate failed {gate['date']}; see the problems" if gate["state"] == "failed" else str(gate["text"])


def face_state(face: Face, rail: Rail | None) -> str:
    """Return in words what keeps an interface from carrying, "" if nothing does."""
    if face["carrier"] is False:
        return "no carrier"
    if face["carrier"] is None:
        return "interface is down"
    return "the other end is down" if rail is not None and rail["state"] == DOWN else ""


def figure_text(figure: Figure | None, state: str, receiver: str = "") -> str:
    """Return what was measured, and to whom if that is wanted, or that nothing was."""
    if figure is None or (figure["gbps"] is None and figure["ok"] is None):
        return WORDS[PLANNED] if state == PLANNED else WORDS[UNMEASURED]
    text = f"{gbps(figure['gbps'])} Gb/s" if figure["gbps"] is not None else ("ping ok" if figure["ok"] else "no ping")
    text += f" to {clean(receiver)}" if receiver else ""
    if figure["ok"] is False and figure["gbps"] is not None:
        wanted = gbps(figure["wanted_gbps"])
        text += f", below {wanted}" if wanted else ", too slow"
    return text


def sent(rail: Rail, host: str) -> Figure | None:
    """Return what a host was measured to send on a rail; a figure says more than a ping, and a failure most."""
    return telling([figure for figure in rail["figures"] if figure["sender"] == host])


def telling(figures: Sequence[Figure]) -> Figure | None:
    """Return the figure that says most, None if there is none."""
    return min(figures, key=lambda figure: (figure["ok"] is not False, figure["gbps"] is None), default=None)


# --- the drawing in text --------------------------------------------------------------------------

_TRACK = {GOOD: "┃", UNMEASURED: "│", PLANNED: "│", SLOW: "┇", DOWN: "╎", WRONG: "┇", MISSING: "╎"}


def render(drawing: Drawing) -> list[str]:
    """Return the drawing as lines of text, with problems and notes beneath."""
    columns = _columns(drawing)
    painter = {"switch": _text_switch, "ring": _text_chain, "chain": _text_chain, "pair": _text_chain}
    lines = [f"cluster {clean(drawing['name'])}: {title(drawing)}", clean(gate_text(drawing)), ""]
    lines += painter.get(drawing["shape"], _text_list)(drawing, columns)
    faces = [face for node in drawing["nodes"] for port in node["ports"] for face in port["faces"]]
    if any(face["planned"] or face["planned_mtu"] is not None for face in faces):
        lines += ["", "* not set yet"]
    lines.append("")
    lines += [f"problem: {clean(line)}" for line in drawing["problems"]]
    lines += [f"note: {clean(line)}" for line in drawing["notes"]]
    return [line.rstrip() for line in lines]


def _columns(drawing: Drawing) -> tuple[int, int, int]:
    faces = [face for node in drawing["nodes"] for port in node["ports"] for face in port["faces"]]
    return (
        max((width(clean(face["interface"])) for face in faces), default=0),
        max((width(clean(face["device"])) for face in faces), default=0),
        max((width(_address(face)) for face in faces), default=0),
    )


def _address(face: Face) -> str:
    return clean(face["address"] or "no address") + ("*" if face["planned"] else "")


def _mtu(face: Face) -> str:
    if face["planned_mtu"] is not None:
        return f"MTU {face['mtu'] or '?'}, {face['planned_mtu']}*"
    return f"MTU {face['mtu'] or '?'}"


def _pad(text: str, columns: int) -> str:
    return text + " " * max(0, columns - width(text))


def _face_text(face: Face, columns: tuple[int, int, int]) -> str:
    cells = (clean(face["interface"] or "-"), clean(face["device"]), _address(face))
    return "  ".join(_pad(cell, size) for cell, size in zip(cells, columns, strict=True)) + f"  {_mtu(face)}"


def _spread(left: str, right: str, columns: int) -> str:
    gap = columns - width(left) - width(right)
    return left + " " * max(2, gap) + right


def _heading(node: Node) -> tuple[str, str]:
    name = clean(node["name"]) + (" (head)" if node["head"] else "")
    return name, f"management {clean(node['management'])}" if node["management"] else ""


def _other_ports(node: Node, drawing: Drawing, drawn: set[int]) -> list[str]:
    """Return a line for each port that the drawing does not lead anywhere."""
    lines = ["could not be read"] if node["error"] else []
    if not node["ports"] and not node["error"]:
        lines.append("no ConnectX port")
    for port in node["ports"]:
        if port["wire"] in drawn:
            continue
        name = clean(port["name"])
        if port["wire"] is not None:
            far = [end for end in drawing["wires"][port["wire"]]["ends"] if end["host"] != node["name"]]
            where = ", ".join(clean(f"{end['host']} {end['port']}") for end in far)
            lines.append(f"{name}  cabled to {where}, not in this cluster")
        elif any(face["carrier"] for face in port["faces"]):
            lines.append(f"{name}  carries, but no node answers there")
        else:
            lines.append(f"{name}  {'NO CARRIER' if port['state'] == DOWN else 'no cable'}")
    return lines


def _box(node: Node, lines: Sequence[str], columns: int, top: str = "", bottom: str = "") -> list[str]:
    """Return a node's box; `top` and `bottom` are what is written into its edges."""
    inner = columns - 4
    heading = _spread(*_heading(node), inner)
    drawn = ["┌" + _pad(top, columns - 2).replace(" ", "─") + "┐"]
    drawn += ["│ " + _pad(line, inner) + " │" for line in (heading, *lines)]
    drawn.append("└" + _pad(bottom, columns - 2).replace(" ", "─") + "┘")
    return drawn


def _edge(names: Sequence[str]) -> str:
    """Return an edge with the names of the ports that cables leave from, 4 columns apart from each other."""
    return " " + " ".join(_pad(f"{name} ", 4) for name in names)


def _cable_lines(wire: Wire, upper: str, lower: str, drawing: Drawing, columns: tuple[int, int, int]) -> list[str]:
    """Return what is said beside a cable: first what the upper node sends, then the lower."""
    ports = {end["host"]: end["port"] for end in wire["ends"]}
    nodes = {node["name"]: node for node in drawing["nodes"]}
    rates = [p["rate_gbps"] for h, n in ports.items() for p in nodes[h]["ports"] if p["name"] == n and p["rate_gbps"]]
    parts = [clean(f"{upper} {ports[upper]} - {lower} {ports[lower]}")]
    parts += [f"{gbps(min(rates))} Gb/s"] if rates else []
    lines = [", ".join([*parts, WORDS[wire["state"]].upper() if wire["state"] in (DOWN, WRONG, SLOW)
                        else WORDS[wire["state"]]])]  # fmt: skip
    for rail in wire["rails"]:
        for host, arrow in ((upper, "↓"), (lower, "↑")):
            face = next((f for n, _p, f in _faces_of(wire, drawing["nodes"], rail["rail"]) if n["name"] == host), None)
            label = f"rail {rail['rail']}" if host == upper else ""
            if face is None:
                lines.append(f"{label:6} {arrow} not known")
                continue
            figure = face_state(face, rail) or figure_text(sent(rail, host), rail["state"])
            lines.append(f"{label:6} {arrow} {_face_text(face, columns)}  {figure}")
    return lines


def _text_chain(drawing: Drawing, columns: tuple[int, int, int]) -> list[str]:
    """Draw a pair, a ring or a chain from top to bottom; what closes a ring goes round on the left."""
    order = drawing["order"]
    nodes = {node["name"]: node for node in drawing["nodes"]}
    used = cables(drawing["wires"])
    drawn = {drawing["wires"].index(wire) for wire in used}
    steps = list(itertools.pairwise(order))
    lost = {tuple(pair) for pair in drawing["missing"]}
    last = (order[-1], order[0])
    closing = [last] if drawing["shape"] == "ring" or (last in lost and len(order) > 2) else []
    between = {
        pair: [wire for wire in used if {end["host"] for end in wire["ends"]} == set(pair)] for pair in steps + closing
    }
    texts = {pair: [_cable_lines(wire, *pair, drawing, columns) for wire in wires] for pair, wires in between.items()}
    longest = max((width(line) for cable in texts.values() for lines in cable for line in lines), default=0)
    others = {name: _other_ports(nodes[name], drawing, drawn) for name in order}
    size = max(
        longest + 9,
        *(width("  ".join(_heading(node))) + 6 for node in nodes.values()),
        *(width(line) + 4 for lines in others.values() for line in lines),
        60,
    )

    def edge(name: str, pair: tuple[str, str]) -> str:
        ports = [end["port"] for wire in between.get(pair, []) for end in wire["ends"] if end["host"] == name]
        return _edge([clean(port) for port in ports]) if ports else ""

    def tracks(pair: tuple[str, str]) -> list[str]:
        """Return the lines between two boxes."""
        wires = between[pair]
        if not wires:
            note = WORDS[MISSING].upper() if pair in lost else "no cable"
            return [f"   {_TRACK[MISSING]}", f"   {_TRACK[MISSING]}  {note}", f"   {_TRACK[MISSING]}"]
        side = "   " + "    ".join(_TRACK[wire["state"]] for wire in wires)
        return [f"{side}  {line}" for lines in texts[pair] for line in lines]

    blocks: list[str] = []
    start, stop = 0, 0
    for index, name in enumerate(order):
        above = (order[index - 1], name) if index else None
        below = (name, order[index + 1]) if index + 1 < len(order) else (closing[0] if closing else None)
        box = _box(
            nodes[name], others[name], size, edge(name, above) if above else "", edge(name, below) if below else ""
        )
        if index == 0:
            start = len(blocks) + 1
        blocks += box
        if below and below not in closing:
            blocks += tracks(below)
    if not closing:
        return blocks
    pair = closing[0]
    blocks += tracks(pair)
    stop = len(blocks)
    wires = between[pair]
    track = _TRACK[wires[0]["state"] if wires else MISSING]
    across = "━" if track == "┃" else "╌" if track == "╎" else "─"
    corner = "┏┗┛" if track == "┃" else "┌└┘"
    port = next((end["port"] for wire in wires for end in wire["ends"] if end["host"] == order[0]), "")
    side = corner[0] + across + (_pad(f"{clean(port)} ", 3) if port else across * 3)
    # The side of the first box says where the cable arrives.
    drawing_lines = []
    for number, line in enumerate(blocks):
        if number == start:
            drawing_lines.append(side + ("┥" if wires else "│") + line[1:])
        elif start < number < stop:
            drawing_lines.append(f"{track}    {line}")
        else:
            drawing_lines.append(f"     {line}")
    drawing_lines.append(corner[1] + across * 7 + corner[2])
    return drawing_lines


def _port_lines(node: Node, drawing: Drawing, columns: tuple[int, int, int]) -> list[tuple[int | None, str]]:
    """Return a node's ports on switches, with what each interface sends and where; first the index of the wire."""
    lines: list[tuple[int | None, str]] = []
    for port in node["ports"]:
        if port["wire"] is None or drawing["wires"][port["wire"]]["kind"] != "switch":
            continue
        wire = drawing["wires"][port["wire"]]
        rate = f", {gbps(port['rate_gbps'])} Gb/s" if port["rate_gbps"] else ""
        state = WORDS[port["state"]]
        lines.append(
            (port["wire"], f"{clean(port['name'])}{rate}, {state.upper() if port['state'] in (DOWN, SLOW) else state}")
        )
        for face in port["faces"]:
            rail = next((rail for rail in wire["rails"] if rail["rail"] == face["rail"]), None)
            figure = None
            if rail:
                own = (node["name"], face["interface"])
                figure = telling([f for f in rail["figures"] if (f["sender"], f["interface"]) == own])
            receiver = figure["receiver"] if figure else ""
            text = face_state(face, None) or figure_text(figure, face["state"], receiver)
            lines.append((None, f"rail {face['rail']}  {_face_text(face, columns)}  {text}"))
    return lines


def _text_switch(drawing: Drawing, columns: tuple[int, int, int]) -> list[str]:
    """Draw the switches as lines from top to bottom, with the nodes at their right."""
    nodes = {node["name"]: node for node in drawing["nodes"]}
    on = [index for index, wire in enumerate(drawing["wires"]) if wire["kind"] == "switch"]
    lines = []
    for number, index in enumerate(on):
        wire = drawing["wires"][index]
        name = "switch" if len(on) == 1 else f"switch {number + 1}"
        before = " " + "┃   " * number
        about = [f"rail {rail['rail']}: {rail['network'] or 'no network'}" for rail in wire["rails"]]
        strangers = sorted({clean(end["host"]) for end in wire["ends"] if end["foreign"]})
        about += ["also on it: " + ", ".join(strangers)] if strangers else []
        lines.append(f"{before}┏━ {name}   " + "   ".join(about))
    rows = {name: _port_lines(nodes[name], drawing, columns) for name in drawing["order"]}
    drawn = set(on) | {drawing["wires"].index(wire) for wire in cables(drawing["wires"])}
    others = {name: _other_ports(nodes[name], drawing, drawn) for name in drawing["order"]}
    size = max(
        *(width(line) + 4 for block in rows.values() for _wire, line in block),
        *(width(line) + 4 for block in others.values() for line in block),
        *(width("  ".join(_heading(node))) + 6 for node in nodes.values()),
        60,
    )
    lost = {name for name, _switch in drawing["missing"]}
    left = [(index, name) for name in drawing["order"] for index, _line in rows[name] if index is not None]
    for name in drawing["order"]:
        box = _box(nodes[name], [line for _wire, line in rows[name]] + others[name], size)
        leads = [None, None, *(wire for wire, _line in rows[name]), *(None for _line in others[name]), None]
        for row, (edge, lead) in enumerate(zip(box, leads, strict=True)):
            line = edge
            tracks = ""
            for index in on:
                remaining = [item for item in left if item[0] == index]
                if lead == index:
                    tracks += ("┣" if len(remaining) > 1 else "┗") + "━━━"
                elif tracks.endswith("━"):
                    tracks += ("╋" if remaining else "━") + "━━━"
                else:
                    tracks += "┃   " if remaining else "    "
            if lead is not None:
                left.remove((lead, name))
                line = "┥" + line[1:]
            if name in lost and row == 1:
                tracks = tracks[:-3] + "╌╌╌"
            lines.append(f" {tracks}{line}")
    return lines + _cable_list(drawing, columns)


def _cable_list(drawing: Drawing, columns: tuple[int, int, int]) -> list[str]:
    lines = []
    for wire in cables(drawing["wires"]):
        upper, lower = (end["host"] for end in wire["ends"])
        if upper != lower:
            side = _TRACK[wire["state"]]
            lines += ["", *(f"   {side}  {line}" for line in _cable_lines(wire, upper, lower, drawing, columns))]
        else:
            ports = " - ".join(end["port"] for end in wire["ends"])
            lines += ["", f"   {clean(upper)} is cabled to itself: {clean(ports)}"]
    return lines


def _text_list(drawing: Drawing, columns: tuple[int, int, int]) -> list[str]:
    """Draw nodes without an order between them, then their cables."""
    drawn = {drawing["wires"].index(wire) for wire in cables(drawing["wires"])}
    lines = []
    for node in drawing["nodes"]:
        others = _other_ports(node, drawing, drawn)
        size = max(60, width("  ".join(_heading(node))) + 6, *(width(line) + 4 for line in others or [""]))
        lines += _box(node, others, size)
    lost = [f"{clean(a)} - {clean(b)}" for a, b in drawing["missing"]]
    if lost:
        lines += ["", f"   {_TRACK[MISSING]}  {WORDS[MISSING].upper()}: {', '.join(lost)}"]
    return lines + _cable_list(drawing, columns)
