# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a host's kernel says about its RDMA devices and interfaces.

Note that this module util is PRIVATE to the collection. It can have breaking changes at any time.

Everything is read through a small `Reader`, so the same code runs over /sys, over a tree in a test and
over a tree that a broken driver left behind. Nothing in here raises: what cannot be read is None.
"""

from __future__ import annotations

import ipaddress
import json
import os
import re
import stat
from collections.abc import Mapping, Sequence
from typing import Protocol, TypedDict

SPARK_MTU = 9000
SPARK_RATE_GBPS = 200.0
SPARK_PCIE_GBPS = 4 * 32.0 * 128 / 130
DEGRADED_PCIE_GBPS = 20.0
MELLANOX = "0x15b3"

# An attribute is one short line; a GID table has at most a few hundred slots.
_MAX_BYTES = 4096
_MAX_ENTRIES = 1024

_NUMBER = re.compile(r"^[0-9]{1,15}$", re.ASCII)
_LEADING_NUMBER = re.compile(r"^[0-9]{1,9}(\.[0-9]{1,6})?", re.ASCII)
_PHYSICAL_PORT = re.compile(r"^p[0-9]{1,3}$", re.ASCII)
_NETDEV_PORT = re.compile(r"^(?:en|ib)[A-Za-z0-9]*n(p[0-9]{1,3})$", re.ASCII)
_PCI_ADDRESS = re.compile(r"^[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.([0-7])$", re.ASCII | re.IGNORECASE)


class Gid(TypedDict):
    """One used slot of a port's GID table."""

    index: int
    type: str | None
    gid: str
    address: str | None
    netdev: str | None


class Device(TypedDict):
    """One port of one RDMA device."""

    name: str
    port: int
    netdev: str | None
    upper: list[str]
    pci: str | None
    physical_port: str | None
    card: str | None
    twin: str | None
    connectx: bool
    virtual_function: bool
    active: bool
    state: str | None
    phys_state: str | None
    carrier: bool | None
    operstate: str | None
    link_layer: str | None
    rate_gbps: float | None
    mtu: int | None
    speed_mbps: int | None
    addresses: list[str]
    gids: list[Gid]
    gid_index_v2_ipv4: int | None
    node_guid: str | None
    fw_ver: str | None
    hca_type: str | None
    board_id: str | None
    uverbs: str | None
    pcie_speed: str | None
    pcie_width: int | None


class Interface(TypedDict):
    """One network interface, whatever it is made of."""

    name: str
    kind: str | None
    master: str | None
    lower: list[str]
    carrier: bool | None
    operstate: str | None
    mtu: int | None
    speed_mbps: int | None
    mac: str | None
    addresses: list[str]


class DefaultRoute(TypedDict):
    """The IPv4 default route with the lowest metric."""

    interface: str
    address: str | None


class Problem(TypedDict):
    """Something that costs bandwidth or keeps the fabric from working."""

    code: str
    device: str | None
    message: str
    remedy: str


class Roce(TypedDict):
    """All that is known about a host's fabric."""

    devices: list[Device]
    interfaces: list[Interface]
    default_route: DefaultRoute | None
    management: list[str]
    char_devices: list[str]
    problems: list[Problem]


class Reader(Protocol):
    """Read access to a sysfs-like tree. No method raises."""

    def text(self, path: str) -> str | None:
        """Return the stripped text of the attribute `path`, None if it cannot be read or is empty."""

    def entries(self, path: str) -> list[str]:
        """Return the sorted names in directory `path`, none if it cannot be listed."""

    def target(self, path: str) -> str | None:
        """Return the last part of the path that `path` resolves to, None if there is nothing."""

    def char_devices(self) -> list[str]:
        """Return the sorted paths of the character devices in /dev/infiniband."""


class SysfsReader:
    """A `Reader` of a real file system.

    Args:
        sysfs: where sysfs is mounted.
        dev: where device nodes are.
    """

    def __init__(self, sysfs: str = "/sys", dev: str = "/dev") -> None:
        self._sysfs = sysfs
        self._dev = dev

    def text(self, path: str) -> str | None:
        """See Reader."""
        try:
            # Not blocking: a FIFO in the place of an attribute must not hang the read.
            descriptor = os.open(f"{self._sysfs}/{path}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
        except (OSError, ValueError):
            return None
        try:
            data = os.read(descriptor, _MAX_BYTES)
        except OSError:
            return None
        finally:
            os.close(descriptor)
        return clean_text(data)

    def entries(self, path: str) -> list[str]:
        """See Reader."""
        return self._names(f"{self._sysfs}/{path}")

    def target(self, path: str) -> str | None:
        """See Reader."""
        try:
            resolved = os.path.realpath(f"{self._sysfs}/{path}", strict=True)
        except (OSError, ValueError):
            return None
        name = os.path.basename(resolved)
        return name if name.isprintable() else None

    def char_devices(self) -> list[str]:
        """See Reader."""
        found = []
        for name in self._names(f"{self._dev}/infiniband"):
            try:
                mode = os.stat(f"{self._dev}/infiniband/{name}").st_mode
            except (OSError, ValueError):
                continue
            if stat.S_ISCHR(mode):
                found.append(f"/dev/infiniband/{name}")
        return found

    @staticmethod
    def _names(path: str) -> list[str]:
        try:
            names = os.listdir(path)
        except (OSError, ValueError):
            return []
        return clean_names(names)


def clean_text(data: bytes) -> str | None:
    """Return an attribute's bytes as one printable line, None if there is nothing in them."""
    text = data.decode("utf-8", errors="replace").replace("\0", "").strip()
    return "".join(c if c.isprintable() else " " for c in text).strip() or None


def clean_names(names: list[str]) -> list[str]:
    """Sort a directory's names, once each, and leave out those that are no text."""
    # A directory that changes while it is listed can show a name twice. Undecodable names carry surrogates, which are
    # not printable and which JSON would choke on.
    return sorted({name for name in names if name.isprintable()})[:_MAX_ENTRIES]


def read(reader: Reader, addr_json: str | None, route_json: str | None, management_address: str = "") -> Roce:
    """Read the whole truth about a host's fabric.

    Args:
        reader: access to sysfs and /dev.
        addr_json: output of ``ip -j -d addr show``, None if it could not be had.
        route_json: output of ``ip -j -4 route show default``, None if it could not be had.
        management_address: the address that the host is managed by; empty if it is not known.

    Returns:
        The facts; never raises, whatever the tree and the texts hold.
    """
    interfaces = _interfaces(reader, addr_json)
    by_name = {interface["name"]: interface for interface in interfaces}
    devices = _devices(reader, by_name)
    default_route = _default_route(route_json, by_name)
    problems = find_problems(devices, by_name)
    if not connectx_ports(devices):
        problems = [no_connectx([n for n in by_name if reader.text(f"class/net/{n}/device/vendor") == MELLANOX])]
    if not any(interface["addresses"] for interface in interfaces):
        problems.append(
            Problem(
                code="no_addresses_read",
                device=None,
                message="'ip -j addr' gave no addresses",
                remedy="install iproute2, or check that 'ip -j addr' works for the user of the connection",
            )
        )
    return Roce(
        devices=devices,
        interfaces=interfaces,
        default_route=default_route,
        management=_management(by_name, default_route, management_address),
        char_devices=reader.char_devices(),
        problems=problems,
    )


# --- interfaces -----------------------------------------------------------------------------------


def _interfaces(reader: Reader, addr_json: str | None) -> list[Interface]:
    links = _links(addr_json)
    # class/net also holds plain files such as bonding_masters.
    in_sysfs = [name for name in reader.entries("class/net") if reader.entries(f"class/net/{name}")]
    found = []
    for name in sorted(set(in_sysfs) | set(links)):
        link = links.get(name, {})
        path = f"class/net/{name}"
        found.append(
            Interface(
                name=name,
                kind=_kind(link),
                master=_string(link.get("master")),
                lower=[],
                carrier=_carrier(reader.text(f"{path}/carrier")),
                operstate=reader.text(f"{path}/operstate"),
                mtu=whole_number(reader.text(f"{path}/mtu")),
                speed_mbps=whole_number(reader.text(f"{path}/speed")),
                mac=reader.text(f"{path}/address"),
                addresses=_addresses(link),
            )
        )
    for interface in found:
        below = {other["name"] for other in found if other["master"] == interface["name"]}
        # A veth's "link" is its other end, which it does not lie on.
        parent = None if interface["kind"] == "veth" else _string(links.get(interface["name"], {}).get("link"))
        if parent in {other["name"] for other in found} - {interface["name"]}:
            below.add(parent)
        interface["lower"] = sorted(below)
    return found


def _links(addr_json: str | None) -> dict[str, dict[str, object]]:
    """Index ``ip -j addr``'s list by interface; whatever is not as expected is left out."""
    links: dict[str, dict[str, object]] = {}
    for link in _json_list(addr_json):
        name = _string(link.get("ifname"))
        if name:
            links[name] = link
    return links


def _json_list(text: str | None) -> list[dict[str, object]]:
    try:
        data = json.loads(text or "[]")
    except (ValueError, RecursionError):
        return []
    return [item for item in data if isinstance(item, dict)] if isinstance(data, list) else []


def _kind(link: Mapping[str, object]) -> str | None:
    info = link.get("linkinfo")
    return _string(info.get("info_kind")) if isinstance(info, dict) else None


def _addresses(link: Mapping[str, object]) -> list[str]:
    """Addresses as "address/prefix" in the kernel's order, which puts an interface's primary one first."""
    found: list[str] = []
    entries = link.get("addr_info")
    for entry in entries if isinstance(entries, list) else []:
        if not isinstance(entry, dict):
            continue
        try:
            address = ipaddress.ip_interface(f"{entry.get('local')}/{entry.get('prefixlen')}")
        except ValueError:
            continue
        found.append(address.with_prefixlen)  # without an IPv6 address's zone, which may be any text
    return found


def _default_route(route_json: str | None, interfaces: Mapping[str, Interface]) -> DefaultRoute | None:
    def metric(route: Mapping[str, object]) -> int:
        value = route.get("metric", 0)
        return value if isinstance(value, int) else 0

    for route in sorted(_json_list(route_json), key=metric):
        name = _leaves_by(route)
        if name not in interfaces:
            continue
        source = _string(route.get("prefsrc"))
        own = [_ip(a) for a in usable_addresses(interfaces[name]["addresses"])]
        return DefaultRoute(interface=name, address=source if source in own else (own[0] if own else None))
    return None


def _leaves_by(route: Mapping[str, object]) -> str:
    """Name the interface of a route; one with several next hops has it in the first of them."""
    hops = route.get("nexthops")
    first = hops[0] if isinstance(hops, list) and hops else None
    return _string(route.get("dev")) or (_string(first.get("dev")) if isinstance(first, dict) else None) or ""


def _management(
    interfaces: Mapping[str, Interface], default_route: DefaultRoute | None, management_address: str
) -> list[str]:
    """Name the interfaces that carry management, those of the default route first.

    What a bond, a bridge or a VLAN among them is made of follows it: to change it cuts the host off just as well.
    """
    found = [default_route["interface"]] if default_route else []
    try:
        wanted = ipaddress.ip_interface(management_address.strip()).ip
    except ValueError:
        wanted = None
    for interface in interfaces.values():
        if wanted in [ipaddress.ip_interface(address).ip for address in interface["addresses"]]:
            found.append(interface["name"])
    for name in found:
        found += [below for below in interfaces[name]["lower"] if below in interfaces and below not in found]
    return list(dict.fromkeys(found))


def _upper(interfaces: Mapping[str, Interface], netdev: str | None) -> list[str]:
    """Name all interfaces that lie on `netdev`, nearest first."""
    found = [netdev] if netdev else []
    for name in found:
        found += [i["name"] for i in interfaces.values() if name in i["lower"] and i["name"] not in found]
    return found[1:]


def usable_addresses(addresses: list[str]) -> list[str]:
    """Return those of `addresses` ("address/prefix") that a cluster can be built on.

    These are IPv4 and not link-local: 169.254/16, which a Spark's NICs have as delivered, changes by itself and
    puts all rails into one subnet.
    """
    interfaces = [ipaddress.ip_interface(address) for address in addresses]
    return [i.with_prefixlen for i in interfaces if i.version == 4 and not i.is_link_local]


# --- RDMA devices ---------------------------------------------------------------------------------


def _devices(reader: Reader, interfaces: Mapping[str, Interface]) -> list[Device]:
    uverbs = _uverbs(reader)
    devices = []
    for name in reader.entries("class/infiniband"):
        ports = [int(port) for port in reader.entries(f"class/infiniband/{name}/ports") if _NUMBER.match(port)]
        several = len(ports) > 1
        devices += [_device(reader, interfaces, name, port, several, uverbs.get(name)) for port in sorted(set(ports))]
    _pair_twins(devices)
    return devices


def _uverbs(reader: Reader) -> dict[str, str]:
    """Map RDMA devices to the character devices that open them."""
    found = {}
    for name in reader.entries("class/infiniband_verbs"):
        device = reader.text(f"class/infiniband_verbs/{name}/ibdev")
        if device:
            found[device] = f"/dev/infiniband/{name}"
    return found


def _device(
    reader: Reader, interfaces: Mapping[str, Interface], name: str, port: int, several: bool, uverbs: str | None
) -> Device:
    path = f"class/infiniband/{name}"
    port_path = f"{path}/ports/{port}"
    pci = reader.target(f"{path}/device")
    pci_match = _PCI_ADDRESS.match(pci) if pci else None
    gids = _gids(reader, port_path)
    netdev = _netdev(reader, path, port, gids)
    interface = interfaces.get(netdev) if netdev else None
    carrier = interface["carrier"] if interface else None
    state = _enum(reader.text(f"{port_path}/state"))
    hca_type = reader.text(f"{path}/hca_type")
    vendor = reader.text(f"{path}/device/vendor")
    virtual = reader.target(f"{path}/device/physfn") is not None
    # One function with several ports does not tell them apart.
    numbered = f"p{port - 1}" if several and port else f"p{pci_match.group(1)}" if pci_match else None
    return Device(
        name=name,
        port=port,
        netdev=netdev,
        upper=_upper(interfaces, netdev),
        pci=pci if pci_match else None,
        physical_port=None if virtual else _physical_port(reader, netdev, numbered),
        card=reader.text(f"{path}/sys_image_guid"),
        twin=None,
        connectx=vendor == MELLANOX or (vendor is None and (hca_type or "").startswith("MT")),
        virtual_function=virtual,
        active=_active(state, interface is not None, carrier),
        state=state,
        phys_state=_enum(reader.text(f"{port_path}/phys_state")),
        carrier=carrier,
        operstate=interface["operstate"] if interface else None,
        link_layer=reader.text(f"{port_path}/link_layer"),
        rate_gbps=_rate(reader.text(f"{port_path}/rate")),
        mtu=interface["mtu"] if interface else None,
        speed_mbps=interface["speed_mbps"] if interface else None,
        addresses=list(interface["addresses"]) if interface else [],
        gids=gids,
        gid_index_v2_ipv4=gid_index(gids, netdev, interface["addresses"] if interface else []),
        node_guid=reader.text(f"{path}/node_guid"),
        fw_ver=reader.text(f"{path}/fw_ver"),
        hca_type=hca_type,
        board_id=reader.text(f"{path}/board_id"),
        uverbs=uverbs,
        pcie_speed=reader.text(f"{path}/device/current_link_speed"),
        # 0 lanes are what the kernel shows where it does not know, as for virtual functions.
        pcie_width=whole_number(reader.text(f"{path}/device/current_link_width")) or None,
    )


def _active(state: str | None, has_interface: bool, carrier: bool | None) -> bool:
    """Tell whether a port carries: carrier where there is an interface, and a state that does not deny it."""
    if has_interface:
        return carrier is True and state in (None, "ACTIVE")
    return state == "ACTIVE"


def _netdev(reader: Reader, path: str, port: int, gids: list[Gid]) -> str | None:
    """Find the interface of a port.

    A function can have several interfaces: one per port on old cards, representors in switchdev mode. The GID table
    names the right one, but also VLANs on top of it, so it only chooses among the function's own.
    """
    names = reader.entries(f"{path}/device/net")
    in_gids = [gid["netdev"] for gid in gids if gid["netdev"]]
    if not names:
        # Virtual devices (a bond's, soft RoCE's) have no PCI function.
        return in_gids[0] if in_gids else reader.text(f"{path}/parent")
    for name in in_gids:
        if name in names:
            return name
    if len(names) == 1:
        return names[0]
    of_port = [n for n in names if whole_number(reader.text(f"class/net/{n}/dev_port")) == port - 1] or names
    uplinks = [n for n in of_port if _PHYSICAL_PORT.match(reader.text(f"class/net/{n}/phys_port_name") or "")]
    return (uplinks or of_port)[0]


def _physical_port(reader: Reader, netdev: str | None, numbered: str | None) -> str | None:
    """Name the QSFP port: by the driver, else by the interface's predictable name, else as `numbered`."""
    if netdev:
        said = reader.text(f"class/net/{netdev}/phys_port_name") or ""
        if _PHYSICAL_PORT.match(said):
            return said
        named = _NETDEV_PORT.search(netdev)
        if named:
            return named.group(1)
    return numbered


def _pair_twins(devices: list[Device]) -> None:
    """Set `twin` where exactly two functions of one card show the same physical port."""
    ports: dict[tuple[str, str, int], list[Device]] = {}
    for device in devices:
        if device["card"] and device["physical_port"] and device["pci"]:
            ports.setdefault((device["card"], device["physical_port"], device["port"]), []).append(device)
    for same in ports.values():
        if len(same) == 2:
            same[0]["twin"], same[1]["twin"] = same[1]["name"], same[0]["name"]


def _gids(reader: Reader, port_path: str) -> list[Gid]:
    """Read the used slots. An empty slot is all zeros, or its type cannot be read (EINVAL or ENOENT)."""
    found = []
    for index in sorted(int(slot) for slot in reader.entries(f"{port_path}/gids") if _NUMBER.match(slot)):
        text = reader.text(f"{port_path}/gids/{index}")
        try:
            gid = ipaddress.IPv6Address(text or "::")
        except ValueError:
            continue
        if int(gid) == 0:
            continue
        found.append(
            Gid(
                index=index,
                type=reader.text(f"{port_path}/gid_attrs/types/{index}"),
                gid=str(gid),
                address=str(gid.ipv4_mapped) if gid.ipv4_mapped else str(gid),
                netdev=reader.text(f"{port_path}/gid_attrs/ndevs/{index}"),
            )
        )
    # InfiniBand ports have GIDs without a type or an interface; elsewhere those are leftovers.
    typed = [gid for gid in found if gid["type"]]
    return typed or found


def gid_index(gids: list[Gid], netdev: str | None, addresses: list[str]) -> int | None:
    """Return the first RoCE v2 slot that holds an IPv4 address of the interface itself, not of a VLAN on it.

    Where the interface has addresses that a cluster can use, a slot of a link-local or former one is of no use.
    """
    usable = {_ip(address) for address in usable_addresses(addresses)}
    for gid in gids:
        is_v2 = gid["type"] == "RoCE v2" and ipaddress.IPv6Address(gid["gid"]).ipv4_mapped is not None
        if is_v2 and gid["netdev"] in (None, netdev) and (not usable or gid["address"] in usable):
            return gid["index"]
    return None


def _string(value: object) -> str | None:
    return value if isinstance(value, str) and value and value.isprintable() else None


def whole_number(text: str | None) -> int | None:
    """Return an attribute that is a whole number, None for anything else."""
    return int(text) if text and _NUMBER.match(text) else None


def _carrier(text: str | None) -> bool | None:
    return {"0": False, "1": True}.get(text or "")


def _enum(text: str | None) -> str | None:
    """Return the name in sysfs' "4: ACTIVE"."""
    return text.split(":", 1)[-1].strip() or None if text else None


def _rate(text: str | None) -> float | None:
    """Return Gb/s from "200 Gb/sec (2X NDR)"."""
    match = _LEADING_NUMBER.match(text or "")
    return float(match.group(0)) if match else None


# --- problems -------------------------------------------------------------------------------------


def label(device: Device) -> str:
    """Name a port the way its owner knows it: by its interface, else by its RDMA device."""
    return device["netdev"] or device["name"]


def in_a_line(problem: Problem) -> str:
    """Say what is wrong and what to do."""
    return f"{problem['message']}; {problem['remedy']}"


def connectx_ports(devices: list[Device]) -> list[Device]:
    """Return the physical ConnectX ports: first port first, primary PCIe domain first."""
    own = [device for device in devices if device["connectx"] and not device["virtual_function"]]
    return sorted(own, key=lambda d: (_port_number(d["physical_port"]), d["pci"] or "~", d["name"], d["port"]))


def _port_number(physical_port: str | None) -> int:
    return int(physical_port[1:]) if physical_port and _PHYSICAL_PORT.match(physical_port) else 1_000


def find_problems(devices: list[Device], interfaces: Mapping[str, Interface]) -> list[Problem]:
    """Judge the ports.

    A port without carrier is no problem as long as another one has it: one cable is the usual case.
    """
    ports = connectx_ports(devices)
    active = [port for port in ports if port["active"]]
    if not ports:
        return [no_connectx()]
    if not active:
        return _idle_problems(ports)
    problems = []
    twinned = any(port["twin"] for port in ports)
    by_name = {(port["name"], port["port"]): port for port in ports}
    for port in active:
        twin = by_name.get((port["twin"] or "", port["port"]))
        problems += _port_problems(port, twin, interfaces)
        if twin and not twin["active"]:
            problems.append(_twin_down(port, twin))
        elif twin:
            # What both share is said once, of the one that comes first.
            if active.index(port) < active.index(twin):
                problems += _twin_problems(port, twin, interfaces)
        elif twinned:
            problems.append(
                _problem(
                    "twin_missing",
                    port,
                    "its twin on the other PCIe link is missing: half of the port's bandwidth is lost",
                    "take the machine off its power supply for a minute and check 'lspci -d 15b3:'",
                )
            )
    return problems + _mixed_mtu(active, problems)


def no_connectx(there: Sequence[str] = ()) -> Problem:
    """Tell a host without an adapter from one whose adapter, with interfaces `there`, only lacks the RDMA driver."""
    if not there:
        return Problem(
            code="no_connectx",
            device=None,
            message="no ConnectX adapter is visible in /sys/class/infiniband",
            remedy="take the machine off its power supply for a minute and check 'lspci -d 15b3:'",
        )
    return Problem(
        code="no_rdma",
        device=None,
        message=f"{', '.join(there)}: a ConnectX adapter, but without an RDMA device in /sys/class/infiniband",
        remedy="run 'modprobe mlx5_ib'; if there is no such module, install all modules of the running kernel",
    )


def why_no_ports(facts: Roce) -> Problem:
    """Return the problem of a host without ConnectX ports, as its own facts tell it."""
    own = (problem for problem in facts["problems"] if problem["code"] in ("no_connectx", "no_rdma"))
    return next(own, no_connectx())


def _idle_problems(ports: list[Device]) -> list[Problem]:
    """Say why none of the ports carries."""
    denied = [port for port in ports if port["carrier"]]
    if denied:
        return [
            _problem(
                "rdma_down",
                port,
                f"carrier, but its RDMA device {port['name']} is {port['state'] or 'in an unknown state'}",
                "reload mlx5_ib, or reboot",
            )
            for port in denied
        ]
    waiting = [port for port in ports if port["link_layer"] == "InfiniBand" and port["phys_state"] == "LinkUp"]
    if waiting:
        return [
            _problem(
                "no_subnet_manager",
                port,
                f"the InfiniBand link is up, but its state is {port['state'] or 'unknown'}",
                "start a subnet manager (opensm) on one host or switch of the fabric",
            )
            for port in waiting
        ]
    downed = [label(port) for port in ports if port["netdev"] and port["carrier"] is None]
    if len(downed) == len(ports):
        return [
            Problem(
                code="no_carrier",
                device=None,
                message="all ConnectX interfaces are administratively down",
                remedy=f"run 'ip link set NAME up' for {', '.join(downed)}",
            )
        ]
    return [
        Problem(
            code="no_carrier",
            device=None,
            message="no ConnectX port has carrier",
            remedy="plug a QSFP cable, and check that the other end is powered",
        )
    ]


def _twin_down(port: Device, twin: Device) -> Problem:
    """Say how the twin is down: by command, without carrier, or for its RDMA device only."""
    lost = "half of the port's bandwidth is lost"
    if twin["netdev"] is None:
        how, remedy = "is down: it has no network interface", "reload mlx5_core, or reboot"
    elif twin["carrier"] is None:
        how = "is down administratively"
        remedy = f"run 'ip link set {label(twin)} up' and name it in /etc/netplan/40-cx7.yaml"
    elif twin["carrier"]:
        how = f"is down: its RDMA device is {twin['state'] or 'in an unknown state'}"
        remedy = "reload mlx5_ib, or reboot"
    else:
        how = "is down: it has no carrier"
        remedy = "plug the QSFP cable in again at both ends; if it stays, take the machine off its power supply"
    return _problem("twin_down", port, f"its twin {label(twin)} {how}; {lost}", remedy)


def _mixed_mtu(active: list[Device], problems: list[Problem]) -> list[Problem]:
    """Compare the ports with the first one; twins that differ have been named already."""
    ethernet = [port for port in active if _is_ethernet(port) and port["mtu"] is not None]
    if any(problem["code"] == "twin_mtu" for problem in problems):
        return []
    for port in ethernet:
        if port["mtu"] != ethernet[0]["mtu"]:
            return [
                _problem(
                    "mtu_mixed",
                    port,
                    f"MTU {port['mtu']}, but {ethernet[0]['mtu']} on {label(ethernet[0])}",
                    f"set mtu: {SPARK_MTU} on all fabric interfaces in /etc/netplan/40-cx7.yaml",
                )
            ]
    return []


def _is_ethernet(port: Device) -> bool:
    return port["link_layer"] in (None, "Ethernet")


def _problem(code: str, port: Device, message: str, remedy: str) -> Problem:
    return Problem(code=code, device=port["name"], message=f"{label(port)}: {message}", remedy=remedy)


def _port_problems(port: Device, twin: Device | None, interfaces: Mapping[str, Interface]) -> list[Problem]:
    found = []
    ethernet = _is_ethernet(port)
    usable = usable_addresses(port["addresses"])
    gid_addresses = {gid["address"] for gid in port["gids"]}
    if port["netdev"] is None:
        driver = "mlx5_core" if ethernet else "ib_ipoib"
        found.append(
            _problem("no_interface", port, "no network interface", f"run 'modprobe {driver}'; see 'rdma link show'")
        )
    elif not usable and not (twin and _bond_of_both(port, twin, interfaces)):
        found.append(_no_address(port, interfaces))
    elif usable and ethernet and port["gid_index_v2_ipv4"] is None:
        found.append(
            _problem(
                "no_gid",
                port,
                f"no RoCE v2 GID for {usable[0]}"
                + (", only one of RoCE v1" if _ip(usable[0]) in gid_addresses else ""),
                f"run 'ip link set {label(port)} down', then 'up', to have the kernel fill the GID table",
            )
        )
    if ethernet and port["mtu"] is not None and port["mtu"] != SPARK_MTU:
        found.append(_problem("mtu", port, f"MTU {port['mtu']}", f"set mtu: {SPARK_MTU} in /etc/netplan/40-cx7.yaml"))
    if port["rate_gbps"] is not None and port["rate_gbps"] < SPARK_RATE_GBPS:
        found.append(
            _problem("rate", port, f"link of {port['rate_gbps']:g} Gb/s", "use a 200 Gb/s QSFP cable or switch port")
        )
    return found + _pcie_problems(port)


def _no_address(port: Device, interfaces: Mapping[str, Interface]) -> Problem:
    link_local = [address for address in port["addresses"] if "." in address]
    message = f"only a link-local address, {link_local[0]}" if link_local else "no IPv4 address"
    remedy = "give it a static one in /etc/netplan/40-cx7.yaml"
    for name in port["upper"]:
        above = usable_addresses(interfaces[name]["addresses"])
        if above:
            message += f" of its own; {name} on top of it has {above[0]}"
            remedy += f", or set fabric_interface to {name}"
            break
    return _problem("no_address", port, message, remedy)


def pcie_gbps(port: Device) -> float | None:
    """Return what the PCIe link of a port carries in Gb/s before protocol overhead, None if it is not known."""
    match = _LEADING_NUMBER.match(port["pcie_speed"] or "")
    if not match or port["pcie_width"] is None:
        return None
    transfers = float(match.group(0))
    # The first two generations spend 2 bits of 10 on encoding, the later ones 2 of 130.
    return transfers * port["pcie_width"] * (0.8 if transfers < 8 else 128 / 130)


def _pcie_problems(port: Device) -> list[Problem]:
    """Judge the PCIe link by what it carries.

    More lanes of an older generation are as good, and a slow port needs less.
    """
    trained = f"PCIe link trained at {port['pcie_speed'] or 'unknown speed'} x{port['pcie_width'] or '?'}"
    capacity = pcie_gbps(port)
    needed = min(SPARK_PCIE_GBPS, port["rate_gbps"] or SPARK_PCIE_GBPS)
    if capacity is not None and capacity <= min(DEGRADED_PCIE_GBPS, needed):
        return [
            _problem(
                "pcie_degraded",
                port,
                f"{trained}, which carries {capacity:.1f} Gb/s: the card is degraded (owners measured 13 Gb/s)",
                "power-cycle: shut down, take the machine off its power supply for a minute; a reboot does not help",
            )
        ]
    if capacity is None:
        # Half of it may be known all the same.
        speed = _LEADING_NUMBER.match(port["pcie_speed"] or "")
        too_slow = speed is not None and float(speed.group(0)) < 32.0
        too_slow = too_slow or (port["pcie_width"] is not None and port["pcie_width"] < 4)
    else:
        too_slow = capacity < needed
    if not too_slow:
        return []
    return [
        _problem(
            "pcie_link",
            port,
            f"{trained}, not 32.0 GT/s x4",
            "take the machine off its power supply for a minute; ask for service if it stays",
        )
    ]


def _ip(address: str) -> str:
    return address.split("/")[0]


def _bond_of_both(port: Device, twin: Device, interfaces: Mapping[str, Interface]) -> str | None:
    masters = [interfaces[label(d)]["master"] if label(d) in interfaces else None for d in (port, twin)]
    return masters[0] if masters[0] == masters[1] else None


def _twin_problems(port: Device, twin: Device, interfaces: Mapping[str, Interface]) -> list[Problem]:
    found = []
    bond = _bond_of_both(port, twin, interfaces)
    if bond:
        found.append(
            _problem(
                "bonded_twins",
                port,
                f"bonded with its twin {label(twin)} in {bond}",
                "take the bond apart and give each of the twins an address in its own subnet",
            )
        )
    networks = [{ipaddress.ip_interface(a).network for a in usable_addresses(d["addresses"])} for d in (port, twin)]
    for network in sorted(networks[0] & networks[1], key=str):
        found.append(
            _problem(
                "twins_one_subnet",
                port,
                f"its twin {label(twin)} is in the same subnet {network}: only one of them carries",
                "give each of the twins an address in its own subnet",
            )
        )
    if port["mtu"] != twin["mtu"]:
        found.append(
            _problem(
                "twin_mtu",
                port,
                f"MTU {port['mtu']}, but {twin['mtu']} on its twin {label(twin)}",
                f"set mtu: {SPARK_MTU} on both",
            )
        )
    return found
