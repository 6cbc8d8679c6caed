# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_type_hints

import pytest
import yaml
from ansible_collections.sparkfleet.vllm.plugins.module_utils import _roce
from ansible_collections.sparkfleet.vllm.plugins.modules import roce_facts
from ansible_collections.sparkfleet.vllm.tests.unit.sysfs_tree import addr_json, build, route_json, spark

ROOT = Path(__file__).parents[4]


def run(tmp_path: Path, ip: str, check: bool = False, **options: str) -> dict[str, Any]:
    """Run the module as a process of its own, with `ip` as the text of the only program in PATH."""
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "ip").write_text(ip)
    (programs / "ip").chmod(0o755)
    arguments = {
        **options,
        "sysfs": build(tmp_path, spark()),
        "dev": str(tmp_path / "dev"),
        "_ansible_check_mode": check,
        "_ansible_remote_tmp": str(tmp_path),
    }
    done = subprocess.run(
        [sys.executable, "-m", "ansible_collections.sparkfleet.vllm.plugins.modules.roce_facts"],
        input=json.dumps({"ANSIBLE_MODULE_ARGS": arguments}),
        env={**os.environ, "PATH": str(programs), "PYTHONPATH": str(ROOT / ".collections")},
        capture_output=True,
        text=True,
        check=True,
    )
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def ip_program(tmp_path: Path) -> str:
    """Return a program that answers as iproute2 does."""
    (tmp_path / "addr").write_text(addr_json(spark()))
    (tmp_path / "route").write_text(route_json())
    return (
        f"#!{sys.executable}\nimport sys\n"
        f'what = "addr" if sys.argv[1:] == ["-j", "-d", "addr", "show"] else "route"\n'
        f'print(open("{tmp_path}/" + what).read())\n'
    )


@pytest.mark.parametrize("check", [False, True])
def test_the_whole_module(tmp_path: Path, check: bool) -> None:
    answer = run(tmp_path, ip_program(tmp_path), check)
    assert answer["changed"] is False
    assert answer["roce"]["problems"] == []
    assert answer["roce"]["default_route"] == {"interface": "enP7s7", "address": "10.0.0.11"}
    active = [device["name"] for device in answer["roce"]["devices"] if device["active"]]
    assert active == ["roceP2p1s0f0", "rocep1s0f0"]


@pytest.mark.parametrize("ip", ["#!/bin/sh\nexit 1\n", "#!/nonexistent/interpreter\n"])
def test_with_an_iproute2_that_does_not_work(tmp_path: Path, ip: str) -> None:
    answer = run(tmp_path, ip)
    assert "no_addresses_read" in [problem["code"] for problem in answer["roce"]["problems"]]


def test_without_iproute2() -> None:
    # Not through a process: the module also looks into the system's own directories, which are not empty.
    assert roce_facts._ip(SimpleNamespace(get_bin_path=lambda _name: None), []) is None  # type: ignore[arg-type]


def test_return_documents_exactly_what_is_returned() -> None:
    documented = yaml.safe_load(roce_facts.RETURN)["roce"]["contains"]
    assert list(documented) == list(get_type_hints(_roce.Roce))
    for key, kind in (("devices", _roce.Device), ("interfaces", _roce.Interface), ("problems", _roce.Problem)):
        assert sorted(documented[key]["contains"]) == sorted(get_type_hints(kind)), key
    assert list(documented["devices"]["contains"]["gids"]["contains"]) == list(get_type_hints(_roce.Gid))


def test_every_problem_code_is_documented_and_no_other() -> None:
    described = yaml.safe_load(roce_facts.RETURN)["roce"]["contains"]["problems"]["contains"]["code"]["description"]
    documented = [re.match(r"V\((\w+)\), ", line)[1] for line in described]  # type: ignore[index]
    source = Path(_roce.__file__).read_text()
    emitted = re.findall(r"(?:code=|_problem\(\s*)\"(\w+)\"", source)
    assert sorted(documented) == sorted(set(emitted))


def test_the_management_address_names_its_interface(tmp_path: Path) -> None:
    answer = run(tmp_path, ip_program(tmp_path), management_address="192.168.178.11")
    assert answer["roce"]["management"] == ["enP7s7", "enP2p1s0f0np0"]
