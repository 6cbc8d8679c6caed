# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whole hosts: the trees of tests/unit/data/roce, laid out on disk and read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.sparkfleet.vllm.plugins.module_utils._roce import Device, Roce, SysfsReader, read
from ansible_collections.sparkfleet.vllm.tests.unit.sysfs_tree import DATA, lay, load

HOSTS = sorted(path.stem for path in DATA.glob("*.yml"))


def facts(root: Path, host: dict[str, Any]) -> Roce:
    lay(root / "sys", host["tree"])
    devices = root / "dev/infiniband"
    devices.mkdir(parents=True)
    for name in host["dev"]:
        (devices / name).symlink_to("/dev/null")
    reader = SysfsReader(str(root / "sys"), str(root / "dev"))
    return read(reader, json.dumps(host["addr"]), json.dumps(host["route"]), host.get("management_address", ""))


def key(device: Device) -> str:
    return device["name"] + (f"/{device['port']}" if device["port"] > 1 else "")


@pytest.mark.parametrize("name", HOSTS)
def test_a_host_is_read_as_what_it_is(tmp_path: Path, name: str) -> None:
    host = load(name)
    expected = host["expected"]
    roce = facts(tmp_path, host)
    devices = {key(device): dict(device) for device in roce["devices"]}
    assert sorted(devices) == sorted(expected["devices"])
    for device, row in expected["devices"].items():
        wanted = expected.get("every_device", {}) | row
        assert {k: devices[device][k] for k in wanted} == wanted, device
    interfaces = {interface["name"]: dict(interface) for interface in roce["interfaces"]}
    assert sorted(interfaces) == sorted(link["ifname"] for link in host["addr"])
    for interface, row in expected.get("interfaces", {}).items():
        assert {k: interfaces[interface][k] for k in row} == row, interface
    assert roce["default_route"] == expected["default_route"]
    assert roce["management"] == expected["management"]
    assert roce["char_devices"] == expected.get("char_devices", [f"/dev/infiniband/{d}" for d in host["dev"]])
    assert [[p["code"], p["device"], p["message"]] for p in roce["problems"]] == expected["problems"]
    assert all(problem["remedy"] for problem in roce["problems"])


def test_one_host_is_compared_in_full() -> None:
    expected = load("pair")["expected"]
    for row in expected["devices"].values():
        assert sorted(expected["every_device"] | row) == sorted(Device.__annotations__)


def test_the_trees_are_whole(tmp_path: Path) -> None:
    """No link in them dangles, or a test would pass for the wrong reason."""
    assert len(HOSTS) >= 16
    for name in HOSTS:
        lay(tmp_path / name, load(name)["tree"])
        links = [path for path in (tmp_path / name).rglob("*") if path.is_symlink()]
        assert links
        assert [str(path) for path in links if not path.exists()] == []
