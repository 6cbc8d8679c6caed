# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The RDMA sysfs of a simulated node, laid into a temporary directory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from simulator.hardware import FUNCTIONS, card_guid
from simulator.node import rdma_sysfs

MAC = "4c:bb:47:82:0e:69"
FIRST = FUNCTIONS[0]


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(rdma_sysfs, "RUN", str(tmp_path))
    monkeypatch.setattr(rdma_sysfs, "TREE", f"{tmp_path}/sysfs")
    for index, function in enumerate(FUNCTIONS):
        rdma_sysfs.lay_pci(index, function)
        rdma_sysfs.lay_rdma(index, function, card_guid(MAC))
        rdma_sysfs.lay_netdev(function, card_guid(MAC))
    return tmp_path


def interface(*addresses: str, up: bool = True) -> dict[str, Any]:
    return {
        "address": MAC,
        "flags": ["UP", "LOWER_UP"] if up else ["NO-CARRIER", "UP"],
        "addr_info": [{"local": address} for address in addresses],
    }


def read(tree: Path, path: str) -> str:
    return (tree / "sysfs/class/infiniband" / path).read_text().strip()


def test_devices_are_found_where_tools_look(tree: Path) -> None:
    assert {path.name for path in (tree / "sysfs/class/infiniband").iterdir()} == {f.hca for f in FUNCTIONS}
    assert read(tree, "rocep1s0f0/hca_type") == "MT4129"
    assert read(tree, "rocep1s0f0/node_guid") == "4cbb:4703:0082:0e69"
    assert read(tree, "roceP2p1s0f1/node_guid") == "4cbb:4703:0082:0e6e"
    assert {read(tree, f"{f.hca}/sys_image_guid") for f in FUNCTIONS} == {"4cbb:4703:0082:0e69"}
    assert read(tree, "roceP2p1s0f0/device/current_link_speed") == "32.0 GT/s PCIe"
    assert read(tree, "rocep1s0f1/ports/1/gids/0") == rdma_sysfs.EMPTY_GID


def test_switch_id_is_the_guid_reversed_on_all_ports(tree: Path) -> None:
    ids = {(tree / "netdev" / f.netdev / "phys_switch_id").read_text() for f in FUNCTIONS}
    assert ids == {"690e82000347bb4c\n"}
    assert (tree / "netdev/enP2p1s0f1np1/phys_port_name").read_text() == "p1\n"


def test_port_follows_carrier(tree: Path) -> None:
    rdma_sysfs.show(FIRST, True, {}, {})
    assert read(tree, "rocep1s0f0/ports/1/state") == "4: ACTIVE"
    assert read(tree, "rocep1s0f0/ports/1/rate") == "200 Gb/sec (2X NDR)"
    assert (tree / "netdev/enp1s0f0np0/speed").read_text() == "200000\n"
    rdma_sysfs.show(FIRST, False, {}, {})
    assert read(tree, "rocep1s0f0/ports/1/state") == "1: DOWN"
    assert read(tree, "rocep1s0f0/ports/1/phys_state") == "3: Disabled"
    assert (tree / "netdev/enp1s0f0np0/speed").read_text() == "-1\n"


def test_gids_come_and_go_with_addresses(tree: Path) -> None:
    slots = rdma_sysfs.assign({}, rdma_sysfs.gids(interface("192.168.177.11")))
    rdma_sysfs.show(FIRST, True, {}, slots)
    port = "rocep1s0f0/ports/1"
    assert read(tree, f"{port}/gids/0") == "fe80:0000:0000:0000:4ebb:47ff:fe82:0e69"
    assert read(tree, f"{port}/gids/3") == "0000:0000:0000:0000:0000:ffff:c0a8:b10b"
    assert read(tree, f"{port}/gid_attrs/types/2") == "IB/RoCE v1"
    assert read(tree, f"{port}/gid_attrs/types/3") == "RoCE v2"
    assert read(tree, f"{port}/gid_attrs/ndevs/3") == "enp1s0f0np0"
    rdma_sysfs.show(FIRST, True, slots, rdma_sysfs.assign(slots, rdma_sysfs.gids(interface())))
    assert read(tree, f"{port}/gids/3") == rdma_sysfs.EMPTY_GID
    assert not (tree / "sysfs/class/infiniband" / port / "gid_attrs/types/3").exists()


def test_a_kept_address_keeps_its_slot() -> None:
    slots = rdma_sysfs.assign({}, ["a", "b", "c"])
    assert slots == {"a": 0, "b": 2, "c": 4}
    assert rdma_sysfs.assign(slots, ["a", "c", "d"]) == {"a": 0, "c": 4, "d": 2}


def test_link_local_address_of_the_default_gid_is_not_shown_twice() -> None:
    assert len(rdma_sysfs.gids(interface("fe80::4ebb:47ff:fe82:e69", "fd00::1"))) == 2


def test_carrier_is_the_links_and_not_the_interfaces() -> None:
    assert rdma_sysfs.has_carrier(interface())
    assert not rdma_sysfs.has_carrier(interface(up=False))


def test_unchanged_file_is_not_written_again(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b"
    rdma_sysfs.write(str(path), "x")
    before = path.stat().st_ino
    rdma_sysfs.write(str(path), "x")
    assert path.stat().st_ino == before
    rdma_sysfs.write(str(path), "y")
    assert path.read_text() == "y\n"
