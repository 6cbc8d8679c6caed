# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Fabrics as the preflight reports them, for the tests of the drawing and for the pictures in docs/images.

``python -m tests.unit.plugins.module_utils.fabric_examples`` writes those pictures, in the checkout, with .collections
in PYTHONPATH. A test compares them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ansible_collections.sparkfleet.vllm.plugins.module_utils import _drawing, _drawing_svg

IMAGES = Path(__file__).resolve().parents[4] / "docs" / "images"
PORTS = {
    "p0": [("enp1s0f0np0", "rocep1s0f0", "0000:01:00.0"), ("enP2p1s0f0np0", "roceP2p1s0f0", "0002:01:00.0")],
    "p1": [("enp1s0f1np1", "rocep1s0f1", "0000:01:00.1"), ("enP2p1s0f1np1", "roceP2p1s0f1", "0002:01:00.1")],
}
GOOD = (92.57, 97.28)

Hosts = dict[str, dict[str, Any]]
Cable = Sequence[tuple[str, str]]


def node(number: int) -> str:
    return f"spark-{number:02d}"


def interfaces(port: str) -> list[str]:
    return [interface for interface, _device, _pci in PORTS[port]]


def fleet(topology: str, count: int, cables: Sequence[Cable], *, measured: bool = True) -> Hosts:
    """Return the preflight of `count` nodes with these cables, addressed, and measured if wanted."""
    hosts: Hosts = {node(number): preflight(number, topology) for number in range(1, count + 1)}
    wires = [
        {"ends": [{"host": host, "port": port, "interfaces": interfaces(port)} for host, port in cable]}
        for cable in cables
    ]
    links = []
    for index, cable in enumerate(cables):
        for rail in (0, 1):
            network = f"192.168.{177 + 2 * index + rail}"
            ends = [(host, interfaces(port)[rail]) for host, port in cable if host in hosts]
            for host, interface in ends:
                plug(hosts[host], interface, f"{network}.{10 + int(host[-2:])}/24", index, rail)
            for (host, interface), (peer, far) in zip(ends, ends[1:] + ends[:1], strict=True):
                figure = round(GOOD[rail] + 0.13 * (index + int(host[-2:])), 2)
                link = {"host": host, "interface": interface, "peer": peer, "peer_interface": far}
                links.append(link | {"mtu": 9000, "mtu_ok": True, "gbps": figure, "tool": "ib_write_bw"})
    for name, facts in hosts.items():
        facts["wires"] = [wire for wire in wires if name in {end["host"] for end in wire["ends"]}]
        if measured and cables:
            facts["gate"] = {
                "version": 1,
                "passed": True,
                "mode": "bandwidth",
                "thresholds": {"min_gbps": 90.0},
                "date": "2026-11-23T10:11:12Z",
                "links": links,
                "problems": [],
            }
            facts["collective"] = {"version": 1, "passed": True, "busbw": 23.7, "problems": []}
    return hosts


def preflight(number: int, topology: str) -> dict[str, Any]:
    """Return what is registered of a node without any cable."""
    devices = []
    links: list[dict[str, Any]] = [
        {"name": "enP7s7", "carrier": True, "mtu": 1500, "addresses": [f"10.0.0.{10 + number}/24"]}
    ]
    for port, halves in PORTS.items():
        for interface, device, pci in halves:
            links.append({"name": interface, "carrier": False, "mtu": 1500, "addresses": []})
            devices.append(
                {
                    "name": device,
                    "netdev": interface,
                    "pci": pci,
                    "physical_port": port,
                    "connectx": True,
                    "virtual_function": False,
                    "carrier": False,
                    "active": False,
                    "rate_gbps": 40.0,
                    "mtu": 1500,
                    "addresses": [],
                }
            )
    return {
        "roce": {
            "devices": devices,
            "interfaces": links,
            "default_route": {"interface": "enP7s7", "address": f"10.0.0.{10 + number}/24"},
            "management": ["enP7s7"],
            "problems": [],
        },
        "problems": [],
        "notes": [],
        "topology": topology,
        "settings": [],
        "wires": [],
        "links": [],
        "gate": None,
        "collective": None,
        "refusal": "",
    }


def of(facts: dict[str, Any], interface: str) -> list[dict[str, Any]]:
    """Return the interface and the RDMA device that belong together."""
    roce = facts["roce"]
    return [item for item in roce["interfaces"] if item["name"] == interface] + [
        item for item in roce["devices"] if item["netdev"] == interface
    ]


def plug(facts: dict[str, Any], interface: str, address: str, wire: int, rail: int) -> None:
    """Give an interface carrier and an address."""
    for item in of(facts, interface):
        item |= {"carrier": True, "active": True, "rate_gbps": 200.0, "mtu": 9000, "addresses": [address]}
    facts["settings"].append(
        {
            "interface": interface,
            "address": address,
            "mtu": 9000,
            "wire": wire,
            "rail": rail,
            "kept": True,
            "current": [address],
            "current_mtu": 9000,
        }
    )


def unplug(facts: dict[str, Any], interface: str) -> None:
    for item in of(facts, interface):
        item |= {"carrier": False, "active": False, "rate_gbps": 40.0}


def ring(count: int) -> list[Cable]:
    return [[(node(n), "p0"), (node(n % count + 1), "p1")] for n in range(1, count + 1)]


def switch(count: int, port: str = "p0") -> list[Cable]:
    return [[(node(n), port) for n in range(1, count + 1)]]


def cluster(count: int, name: str = "atlas") -> dict[str, Any]:
    return {"name": name, "head": node(1), "nodes": [node(number) for number in range(1, count + 1)]}


def pair(cables: int = 1, *, measured: bool = True) -> Hosts:
    ports = ["p0", "p1"][:cables]
    return fleet("pair", 2, [[(node(1), port), (node(2), port)] for port in ports], measured=measured)


def unaddressed() -> Hosts:
    """Return a pair before the first run: nothing has an address yet."""
    hosts = pair(measured=False)
    for facts in hosts.values():
        for setting in facts["settings"]:
            setting |= {"kept": False, "current": [], "current_mtu": 1500}
            for item in of(facts, setting["interface"]):
                item |= {"addresses": [], "mtu": 1500}
    return hosts


def twin_down() -> Hosts:
    hosts = pair(measured=False)
    unplug(hosts[node(2)], "enP2p1s0f0np0")
    hosts[node(2)]["problems"] = [
        "enp1s0f0np0: its twin enP2p1s0f0np0 is down: half of the port's bandwidth is lost; run 'ip link set "
        "enP2p1s0f0np0 up', or set fabric_configure: auto"
    ]
    return hosts


def slow() -> Hosts:
    """Return a ring of 3 in which one rail failed the gate."""
    hosts = fleet("ring", 3, ring(3))
    line = (
        "spark-02: enp1s0f0np0 to spark-03's enp1s0f1np1: 13.1 Gb/s by ib_write_bw, below 90 (fabric_gate_min_gbps); "
        "a degraded card shows 13 Gb/s: shut both nodes down, take them off power for a minute, and start them"
    )
    for facts in hosts.values():
        facts["gate"] |= {"passed": False, "problems": [line]}
        facts["collective"] = None
        for link in facts["gate"]["links"]:
            if (link["host"], link["interface"]) == (node(2), "enp1s0f0np0"):
                link["gbps"] = 13.1
    return hosts


def missing(count: int = 3) -> Hosts:
    """Return a ring without its last cable."""
    hosts = fleet("", count, ring(count)[:-1], measured=False)
    line = f"{node(count)} p0 and {node(1)} p1 have no cable between them; a ring needs one, plug it in"
    hosts[node(1)]["problems"] = [line]
    hosts[node(count)]["problems"] = [line]
    return hosts


def miscabled() -> Hosts:
    cables = ring(3)
    cables[2] = [(node(3), "p1"), (node(1), "p1")]
    cables[1] = [(node(2), "p0"), (node(3), "p0")]
    hosts = fleet("", 3, cables, measured=False)
    hosts[node(3)]["problems"] = [
        "spark-03 p1 is cabled to spark-01 p1; a ring needs p0-p1: exchange the two plugs of spark-03"
    ]
    return hosts


def swapped() -> Hosts:
    """Return a pair one of whose cables leads to a node of another cluster."""
    hosts = fleet("", 2, [[(node(1), "p0"), (node(5), "p0")], [(node(2), "p0"), (node(6), "p0")]], measured=False)
    hosts[node(1)]["problems"] = ["spark-01 p0 is cabled to spark-05 p0, which is not in atlas; move the cable"]
    hosts[node(2)]["problems"] = ["spark-02 p0 is cabled to spark-06 p0, which is not in atlas; move the cable"]
    return hosts


def no_carrier() -> Hosts:
    hosts = fleet("", 2, [], measured=False)
    for facts in hosts.values():
        facts["problems"] = ["no ConnectX port has carrier; plug a QSFP cable, and check that the other end is powered"]
    return hosts


def off_switch(count: int = 4) -> Hosts:
    """Return a switch that one node is not plugged into, and another one cannot be read."""
    hosts = fleet("switch", count, [[(node(n), "p0") for n in range(1, count)]], measured=False)
    hosts[node(count)]["problems"] = ["no ConnectX port has carrier; plug a QSFP cable"]
    hosts[node(2)] = {"error": "unreachable over SSH"}
    return hosts


EXAMPLES: dict[str, tuple[Hosts, int]] = {
    "fabric-single": (fleet("single", 1, []), 1),
    "fabric-pair": (pair(), 2),
    "fabric-pair2": (pair(2), 2),
    "fabric-ring3": (fleet("ring", 3, ring(3)), 3),
    "fabric-switch4": (fleet("switch", 4, switch(4)), 4),
    "fabric-ring3-slow": (slow(), 3),
    "fabric-ring3-missing": (missing(), 3),
}


HEADER = """<!-- Copyright (c) 2026, the sparkfleet.vllm authors
     GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
     SPDX-License-Identifier: GPL-3.0-or-later -->
"""


def pictures() -> dict[str, str]:
    """Return the pictures of the documentation by file name."""
    found = {}
    for name, (hosts, count) in EXAMPLES.items():
        first, _newline, rest = _drawing_svg.svg([_drawing.draw(cluster(count), hosts)]).partition("\n")
        found[f"{name}.svg"] = f"{first}\n{HEADER}{rest}"
    return found


if __name__ == "__main__":
    for file, text in pictures().items():
        (IMAGES / file).write_text(text, encoding="utf-8")
