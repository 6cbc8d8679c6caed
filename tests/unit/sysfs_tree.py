# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Builds the part of a host's sysfs that roce_facts reads, as a real kernel lays it out.

`build` makes a DGX Spark from a list of functions, `lay` any host from a file in data/roce.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import yaml

DATA = Path(__file__).parent / "data/roce"
CARD = "4cbb:4703:0082:0e69"


@dataclass
class Function:
    """One PCIe function of the adapter; `gid_slot` is where the GID table of its first address begins."""

    pci: str
    netdev: str
    hca: str
    port: int
    addresses: list[str] = field(default_factory=list)
    up: bool = True
    mtu: int = 9000
    width: int = 4
    gid_slot: int = 2
    card: str = CARD
    rate: str = "200 Gb/sec (2X NDR)"
    link_layer: str = "Ethernet"
    master: str | None = None


def spark(p0: bool = True, p1: bool = False, host: int = 11) -> list[Function]:
    """Return a Spark's four functions, with both twins of the cabled ports up and addressed."""
    return [
        Function("0000:01:00.0", "enp1s0f0np0", "rocep1s0f0", 0, [f"192.168.177.{host}/24"] if p0 else [], p0),
        Function("0000:01:00.1", "enp1s0f1np1", "rocep1s0f1", 1, [f"192.168.187.{host}/24"] if p1 else [], p1),
        Function("0002:01:00.0", "enP2p1s0f0np0", "roceP2p1s0f0", 0, [f"192.168.178.{host}/24"] if p0 else [], p0),
        Function("0002:01:00.1", "enP2p1s0f1np1", "roceP2p1s0f1", 1, [f"192.168.188.{host}/24"] if p1 else [], p1),
    ]


def put(path: Path, text: str) -> None:
    """Write one attribute."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n", encoding="utf-8")


def link(path: Path, target: Path) -> None:
    """Make a symbolic link."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(target)


def build(root: Path, functions: list[Function]) -> str:
    """Build a tree under `root` and return it as SysfsReader wants it."""
    sysfs = root / "sys"
    for name in ("infiniband", "infiniband_verbs", "net"):
        (sysfs / "class" / name).mkdir(parents=True, exist_ok=True)
    for number, function in enumerate(functions):
        _function(sysfs, number, function)
    netdev(sysfs, "lo", up=True, mtu=65536)
    netdev(sysfs, "enP7s7", up=True, mtu=1500)
    put(sysfs / "class/net/bonding_masters", "bond0")
    return str(sysfs)


def netdev(sysfs: Path, name: str, *, up: bool, mtu: int) -> Path:
    """Add an interface; carrier is an unreadable directory, as EINVAL is unreadable, where it is None."""
    path = sysfs / "class/net" / name
    put(path / "carrier", "1" if up else "0")
    put(path / "operstate", "up" if up else "down")
    put(path / "mtu", str(mtu))
    put(path / "speed", "200000" if up else "-1")
    put(path / "address", "4c:bb:47:82:0e:69")
    return path


def _function(sysfs: Path, number: int, function: Function) -> None:
    device = sysfs / "devices" / f"pci{function.pci[:4]}:00" / function.pci
    put(device / "vendor", "0x15b3")
    put(device / "current_link_speed", "32.0 GT/s PCIe")
    put(device / "current_link_width", str(function.width))
    hca = device / "infiniband" / function.hca
    put(hca / "node_guid", CARD)
    put(hca / "sys_image_guid", function.card)
    put(hca / "fw_ver", "28.45.4028")
    put(hca / "hca_type", "MT4129")
    put(hca / "board_id", "NVD0000000087")
    link(hca / "device", Path("../.."))
    port = hca / "ports/1"
    put(port / "state", "4: ACTIVE" if function.up else "1: DOWN")
    put(port / "phys_state", "5: LinkUp" if function.up else "3: Disabled")
    put(port / "rate", function.rate if function.up else "40 Gb/sec (4X QDR)")
    put(port / "link_layer", function.link_layer)
    gids = [("fe80:0000:0000:0000:4ebb:47ff:fe82:0e69", slot) for slot in (0, 1)]
    for offset, address in enumerate(function.addresses):
        value = int(IPv4Address(address.split("/")[0]))
        gid = f"0000:0000:0000:0000:0000:ffff:{value >> 16:04x}:{value & 0xFFFF:04x}"
        gids += [(gid, function.gid_slot + 2 * offset + slot) for slot in (0, 1)]
    for slot in range(16):
        put(port / "gids" / str(slot), "0000:0000:0000:0000:0000:0000:0000:0000")
    for gid, slot in gids:
        put(port / "gids" / str(slot), gid)
        put(port / "gid_attrs/types" / str(slot), "RoCE v2" if slot % 2 else "IB/RoCE v1")
        put(port / "gid_attrs/ndevs" / str(slot), function.netdev)
    verbs = device / "infiniband_verbs" / f"uverbs{number}"
    put(verbs / "ibdev", function.hca)
    link(sysfs / "class/infiniband" / function.hca, hca)
    link(sysfs / "class/infiniband_verbs" / f"uverbs{number}", verbs)
    if function.netdev:
        path = netdev(sysfs, function.netdev, up=function.up, mtu=function.mtu)
        put(path / "phys_port_name", f"p{function.port}")
        link(path / "device", device)
        link(device / "net" / function.netdev, path)


def addr_json(functions: list[Function], management: str = "10.0.0.11/24") -> str:
    """Return what `ip -j -d addr show` says about the same host."""
    links: list[dict[str, object]] = [
        _link("lo", ["127.0.0.1/8", "::1/128"]),
        _link("enP7s7", [management, "fe80::1/64"]),
        *(_link(f.netdev, f.addresses, f.master) for f in functions if f.netdev),
    ]
    return json.dumps(links)


def _link(name: str, addresses: list[str], master: str | None = None) -> dict[str, object]:
    entries = []
    for address in addresses:
        local, prefix = address.split("/")
        family = "inet6" if ":" in local else "inet"
        entries.append({"family": family, "local": local, "prefixlen": int(prefix), "scope": "global"})
    described: dict[str, object] = {"ifname": name, "addr_info": entries}
    return described | ({"master": master} if master else {})


def route_json() -> str:
    """Return what `ip -j -4 route show default` says."""
    return json.dumps([{"dst": "default", "gateway": "10.0.0.1", "dev": "enP7s7", "flags": []}])


def load(name: str) -> dict[str, Any]:
    """Load a host of data/roce."""
    # The C loader, where there is one, reads these files ten times as fast.
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    host: dict[str, Any] = yaml.load((DATA / f"{name}.yml").read_text(encoding="utf-8"), Loader=loader)
    return host


def lay(path: Path, tree: dict[str, Any] | str) -> None:
    """Lay one entry of a host's tree and all below it; see the data's README."""
    if isinstance(tree, dict):
        path.mkdir()
        for name, child in tree.items():
            lay(path / name, child)
    elif tree.startswith("-> "):
        path.symlink_to(tree.removeprefix("-> "))
    elif tree == "EINVAL":
        path.mkdir()  # reading it fails with EISDIR, as a kernel's read fails with EINVAL
    else:
        path.write_text(f"{tree}\n", encoding="utf-8")
