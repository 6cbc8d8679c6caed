# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Builds what is known about simulated hosts for a given cabling: their facts, and who answered their probes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from ansible_collections.sparkfleet.vllm.plugins.module_utils._addressing import Addressing, assign, project
from ansible_collections.sparkfleet.vllm.plugins.module_utils._roce import (
    DefaultRoute,
    Device,
    Gid,
    Interface,
    Roce,
    find_problems,
)
from ansible_collections.sparkfleet.vllm.plugins.module_utils._topology import (
    Cabling,
    Host,
    Wire,
    find_cablings,
    find_wires,
)

# Interface, RDMA device, PCI address, physical port, distance of the MAC address from the card's first.
FUNCTIONS = (
    ("enp1s0f0np0", "rocep1s0f0", "0000:01:00.0", "p0", 0),
    ("enp1s0f1np1", "rocep1s0f1", "0000:01:00.1", "p1", 1),
    ("enP2p1s0f0np0", "roceP2p1s0f0", "0002:01:00.0", "p0", 4),
    ("enP2p1s0f1np1", "roceP2p1s0f1", "0002:01:00.1", "p1", 5),
)
P0 = ("enp1s0f0np0", "enP2p1s0f0np0")
P1 = ("enp1s0f1np1", "enP2p1s0f1np1")
INTERFACES = {"p0": P0, "p1": P1}

Group = Sequence[str]  # what a cable or a switch connects: "spark-01:p0"


def mac(number: int, offset: int) -> str:
    """Return the MAC address of a function of the host with this number."""
    return f"4c:bb:{number >> 16 & 255:02x}:{number >> 8 & 255:02x}:{number & 255:02x}:{offset:02x}"


def spark(
    number: int,
    carrying: Iterable[str] = (),
    addresses: Mapping[str, list[str]] | None = None,
    mtu: Mapping[str, int] | None = None,
    others: Mapping[str, list[str]] | None = None,
) -> Roce:
    """Return the facts of a Spark.

    Args:
        number: tells its MAC addresses and its management address.
        carrying: the ports with a cable.
        addresses: addresses of fabric interfaces, as "address/prefix".
        mtu: MTUs of fabric interfaces that are not 9000.
        others: further interfaces and their addresses.
    """
    carrying = set(carrying)
    management = f"10.0.{number // 200}.{number % 200 + 10}/16"
    interfaces = [_interface("enP7s7", f"02:00:00:00:{number >> 8:02x}:{number & 255:02x}", [management], 1500)]
    interfaces += [_interface(name, None, own, 1500) for name, own in (others or {}).items()]
    devices = []
    for netdev, rdma, pci, port, offset in FUNCTIONS:
        up = port in carrying
        own = (addresses or {}).get(netdev, [])
        interface = _interface(netdev, mac(number, offset), own, (mtu or {}).get(netdev, 9000), up)
        interfaces.append(interface)
        devices.append(_device(interface, rdma, pci, port, up))
    roce = Roce(
        devices=devices,
        interfaces=sorted(interfaces, key=lambda interface: interface["name"]),
        default_route=DefaultRoute(interface="enP7s7", address=management.split("/", maxsplit=1)[0]),
        management=["enP7s7"],
        char_devices=[],
        problems=[],
    )
    return judged(roce)


def judged(roce: Roce) -> Roce:
    """Bring what follows from the interfaces in step with them, in place."""
    interfaces = {interface["name"]: interface for interface in roce["interfaces"]}
    for device in roce["devices"]:
        interface = interfaces[str(device["netdev"])]
        device["addresses"], device["mtu"] = list(interface["addresses"]), interface["mtu"]
        device["carrier"], device["operstate"] = interface["carrier"], interface["operstate"]
        device["active"] = interface["carrier"] is True
        device["gids"] = [
            Gid(index=3 + 2 * slot, type="RoCE v2", gid=f"::ffff:{own}", address=own, netdev=interface["name"])
            for slot, own in enumerate(a.split("/")[0] for a in interface["addresses"] if ":" not in a)
        ]
        device["gid_index_v2_ipv4"] = device["gids"][0]["index"] if device["gids"] else None
    roce["problems"] = find_problems(roce["devices"], interfaces)
    return roce


def interface_of(roce: Roce, name: str) -> Interface:
    """Return one interface of a host's facts."""
    return next(interface for interface in roce["interfaces"] if interface["name"] == name)


def take_down(roce: Roce, name: str) -> None:
    """Make an interface administratively down."""
    interface = interface_of(roce, name)
    interface["carrier"], interface["operstate"] = None, "down"
    judged(roce)


def _interface(name: str, address: str | None, addresses: list[str], mtu: int, up: bool = True) -> Interface:
    return Interface(
        name=name,
        kind=None,
        master=None,
        lower=[],
        carrier=up,
        operstate="up" if up else "down",
        mtu=mtu,
        speed_mbps=200_000 if up else None,
        mac=address,
        addresses=list(addresses),
    )


def _device(interface: Interface, rdma: str, pci: str, port: str, up: bool) -> Device:
    twin = next(other[1] for other in FUNCTIONS if other[3] == port and other[1] != rdma)
    return Device(
        name=rdma,
        port=1,
        netdev=interface["name"],
        upper=[],
        pci=pci,
        physical_port=port,
        card="4cbb:4703:0082:0e69",
        twin=twin,
        connectx=True,
        virtual_function=False,
        active=up,
        state="ACTIVE" if up else "DOWN",
        phys_state="LinkUp" if up else "Disabled",
        carrier=up,
        operstate=interface["operstate"],
        link_layer="Ethernet",
        rate_gbps=200.0 if up else 40.0,
        mtu=interface["mtu"],
        speed_mbps=interface["speed_mbps"],
        addresses=[],
        gids=[],
        gid_index_v2_ipv4=None,
        node_guid=None,
        fw_ver="28.45.4028",
        hca_type="MT4129",
        board_id="NVD0000000087",
        uverbs=None,
        pcie_speed="32.0 GT/s PCIe",
        pcie_width=4,
    )


# --- fleets ---------------------------------------------------------------------------------------


def name_of(number: int) -> str:
    """Return the name of the host with this number."""
    return f"spark-{number:02d}"


def names(*numbers: int) -> list[str]:
    """Return the names of the hosts with these numbers."""
    return [name_of(number) for number in numbers]


def pair(one: int, other: int, cables: int = 1) -> list[list[str]]:
    """Cable two hosts."""
    return [[f"{name_of(one)}:p{port}", f"{name_of(other)}:p{port}"] for port in range(cables)]


def ring(*numbers: int) -> list[list[str]]:
    """Cable hosts to a ring, each p0 to the next one's p1."""
    following = [*numbers[1:], numbers[0]]
    return [[f"{name_of(one)}:p0", f"{name_of(other)}:p1"] for one, other in zip(numbers, following, strict=True)]


def switch(*numbers: int, port: str = "p0") -> list[list[str]]:
    """Plug hosts into one switch."""
    return [[f"{name_of(number)}:{port}" for number in numbers]]


def cable(clusters: Mapping[str, Sequence[str]], groups: Iterable[Group], **facts: Roce) -> dict[str, Host]:
    """Return hosts that are cabled in this way.

    Args:
        clusters: their hosts, named spark-N.
        groups: what each cable or switch connects.
        facts: facts of hosts that are not as new, by name with an underscore for the dash; their carrier stays.
    """
    groups = list(groups)
    ports = {end for group in groups for end in group}
    hosts = {}
    for cluster, nodes in clusters.items():
        for node in nodes:
            own = [end.split(":")[1] for end in ports if end.split(":")[0] == node]
            roce = facts.get(node.replace("-", "_")) or spark(int(node.split("-")[1]), own)
            hosts[node] = Host(cluster=cluster, roce=roce, neighbours=None)
    probe(hosts, groups)
    return hosts


def probe(hosts: Mapping[str, Host], groups: Iterable[Group]) -> None:
    """Let every host probe its ports: all interfaces on the same cable or switch answer, its own twin too."""
    for host in hosts.values():
        carrying = [d for d in host["roce"]["devices"] if d["carrier"]]
        host["neighbours"] = {str(device["netdev"]): [] for device in carrying}
    for group in groups:
        there = [
            (node, interface_of(hosts[node]["roce"], name))
            for node, port in (end.split(":") for end in group)
            if node in hosts
            for name in INTERFACES[port]
        ]
        up = [(node, interface) for node, interface in there if interface["carrier"]]
        answers = sorted(str(interface["mac"]) for _node, interface in up)
        for node, interface in up:
            heard = hosts[node]["neighbours"]
            assert heard is not None
            heard[interface["name"]] = [address for address in answers if address != interface["mac"]]


def clusters_of(hosts: Mapping[str, Host]) -> dict[str, list[str]]:
    """Return the hosts of each cluster in order."""
    found: dict[str, list[str]] = {}
    for name, host in hosts.items():
        found.setdefault(host["cluster"], []).append(name)
    return found


def cablings_of(hosts: Mapping[str, Host]) -> tuple[list[Wire], dict[str, Cabling]]:
    """Return the wires and the cablings of all clusters."""
    wires = find_wires(hosts)
    return wires, find_cablings(hosts, wires, clusters_of(hosts))


def find_cabling(
    hosts: Mapping[str, Host], wires: Sequence[Wire], nodes: Sequence[str], wanted: str = "auto"
) -> Cabling:
    """Judge how one cluster is cabled.

    Args:
        hosts: as for `find_wires`.
        wires: what it returned.
        nodes: the cluster's hosts, head first.
        wanted: fabric_topology.
    """
    return find_cablings(hosts, wires, {"": nodes}, {"": wanted})[""]


def addressed(hosts: Mapping[str, Host], order: Sequence[str] | None = None, subnets: Sequence[str] = ()) -> Addressing:
    """Plan the addresses of all hosts."""
    return assign(hosts, *cablings_of(hosts), list(hosts) if order is None else order, subnets)


def applied(hosts: Mapping[str, Host], addressing: Addressing) -> dict[str, Host]:
    """Return the hosts as they are once the settings are applied."""
    return {
        name: Host(
            cluster=host["cluster"],
            roce=project(host["roce"], addressing["settings"][name]),
            neighbours=host["neighbours"],
        )
        for name, host in hosts.items()
    }
