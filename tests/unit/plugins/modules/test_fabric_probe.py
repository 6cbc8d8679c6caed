# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The probe as a module: what it reads besides the answers, and what it does where it may not ask."""

from __future__ import annotations

import errno
import json
import socket
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.sparkfleet.vllm.plugins.modules import fabric_probe
from ansible_collections.sparkfleet.vllm.tests.unit.module_process import program, run_module


def tree(root: Path, files: dict[str, str]) -> None:
    """Write files."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def look(root: Path, tmp_path: Path, **given: Any) -> dict[str, Any]:
    """Return what the module finds on a host of files."""
    arguments = {"root": str(root), "directory": str(root / "etc/sparkfleet/atlas"), **given}
    return run_module("fabric_probe", arguments, tmp_path, path=given.pop("path", None))


@pytest.fixture(name="root")
def fixture_root(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    root.mkdir()
    return root


def test_an_empty_host_is_no_failure(root: Path, tmp_path: Path) -> None:
    answer = look(root, tmp_path)
    assert answer["changed"] is False
    installed = answer["probe"]["netplan"].pop("installed")
    assert isinstance(installed, bool)
    assert answer["probe"] == {
        "neighbours": {},
        "reason": "",
        "arp_ignore": [],
        "netplan": {"own": {"text": None}, "files": {}, "notes": []},
        "records": {"gate": None, "collective": None},
    }


def test_what_only_root_can_read_is_read(root: Path, tmp_path: Path) -> None:
    tree(
        root,
        {
            "sys/class/net/enp1s0f0np0/address": "4c:bb:47:00:01:00\n",
            "etc/netplan/40-cx7.yaml": "network: {ethernets: {enp1s0f0np0: {addresses: [1.2.3.4/24]}, no0: {mtu: 1}}}",
            "etc/netplan/50-bad.yaml": "network: [",
            "etc/netplan/95-sparkfleet.yaml": "# ours\n",
            "etc/sparkfleet/atlas/gate.json": json.dumps({"passed": True}),
            "etc/sparkfleet/atlas/collective.json": "[1, ",
        },
    )
    program(tmp_path / "bin", "netplan", "exit 1")
    arguments = {"root": str(root), "directory": str(root / "etc/sparkfleet/atlas")}
    probe = run_module("fabric_probe", arguments, tmp_path, path=str(tmp_path / "bin"))["probe"]
    assert probe["netplan"] == {
        "installed": True,
        "own": {"text": "# ours\n"},
        "files": {"/etc/netplan/40-cx7.yaml": {"enp1s0f0np0": {"addresses": ["1.2.3.4/24"], "mtu": None}}},
        "notes": ["/etc/netplan/50-bad.yaml is no YAML that can be read; correct it, see 'netplan get'"],
    }
    assert probe["records"] == {"gate": {"passed": True}, "collective": None}


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        ({"all": "0", "a": "0", "b": "0"}, []),
        ({"all": "0", "a": "1", "b": "0"}, ["a"]),
        ({"all": "2", "a": "0", "b": "0"}, ["a", "b"]),
        ({"a": "8"}, ["a"]),
    ],
)
def test_who_answers_for_own_addresses_only_is_named(root: Path, settings: dict[str, str], found: list[str]) -> None:
    tree(root, {f"proc/sys/net/ipv4/conf/{name}/arp_ignore": f"{value}\n" for name, value in settings.items()})
    assert fabric_probe.ignoring(str(root), ["a", "b"]) == found


def test_an_interface_that_is_no_ethernet_is_not_asked_on(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree(root, {"sys/class/net/ib0/type": "32\n", "sys/class/net/ib0/address": "4c:bb:47:00:01:00\n"})
    monkeypatch.setattr(fabric_probe, "_open", lambda name: pytest.fail(f"{name} is opened"))
    assert fabric_probe.neighbours(str(root), ["ib0", "gone"], ["10.0.0.1"], 1, 0.01) == {
        "neighbours": {"ib0": [], "gone": []},
        "reason": "",
    }


def test_a_missing_permission_is_a_reason(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_given: object) -> socket.socket:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    tree(root, {"sys/class/net/a/type": "1\n", "sys/class/net/a/address": "4c:bb:47:00:01:00\n"})
    monkeypatch.setattr(fabric_probe.socket, "socket", refuse)
    assert fabric_probe.neighbours(str(root), ["a"], ["10.0.0.1"], 1, 0.01) == {
        "neighbours": None,
        "reason": "packet sockets are not allowed (Operation not permitted); run it as root",
    }


def test_a_name_that_is_a_path_is_not_followed(root: Path, tmp_path: Path) -> None:
    assert look(root, tmp_path, interfaces=["../../x", "..", ""])["probe"]["neighbours"] == {}


def test_a_target_that_is_no_address_is_one_line(root: Path, tmp_path: Path) -> None:
    answer = look(root, tmp_path, targets=["10.0.0.1", "spark-01"])
    assert (answer["failed"], answer["msg"]) == (True, "targets: 'spark-01' is no IPv4 address; give one")


def test_check_mode_returns_the_same(root: Path, tmp_path: Path) -> None:
    arguments = {"root": str(root), "directory": str(root)}
    first = run_module("fabric_probe", arguments, tmp_path, check=True)
    assert first["probe"] == run_module("fabric_probe", arguments, tmp_path)["probe"]
