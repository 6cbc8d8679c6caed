# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The stand-in for runc inside a node."""

from __future__ import annotations

import json
import os
import resource
from pathlib import Path
from typing import Any

import pytest

from simulator.node import runc_shim

ALL = (1 << 41) - 1
UNLIMITED = (1 << 64) - 1


@pytest.fixture(autouse=True)
def poor(monkeypatch: pytest.MonkeyPatch) -> None:
    """A node without CAP_SYS_RESOURCE whose hard limits are 100."""
    monkeypatch.setattr(runc_shim, "CAN_RAISE", "/nonexistent")
    monkeypatch.setattr(resource, "getrlimit", lambda _: (50, 100))


def process(**more: Any) -> dict[str, Any]:
    return {"rlimits": [{"type": "RLIMIT_MEMLOCK", "hard": UNLIMITED, "soft": UNLIMITED}], **more}


@pytest.mark.parametrize(
    ("arguments", "value"),
    [
        (["exec", "--process", "/p", "id"], "/p"),
        (["exec", "--process=/p", "id"], "/p"),
        (["exec", "-p", "/p", "id"], "/p"),
        (["exec", "id"], None),
        (["exec", "--process"], None),
    ],
)
def test_option_is_found_in_each_spelling(arguments: list[str], value: str | None) -> None:
    assert runc_shim.option(arguments, "--process", "-p") == value


def test_limits_are_lowered_to_what_can_be_had() -> None:
    wanted = process(oomScoreAdj=-999)
    runc_shim.clamp_process(wanted, ALL)
    assert wanted["rlimits"] == [{"type": "RLIMIT_MEMLOCK", "hard": 100, "soft": 100}]
    assert wanted["oomScoreAdj"] == 0


def test_limits_stay_where_they_can_be_raised(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(runc_shim, "CAN_RAISE", str(tmp_path))
    wanted = process(oomScoreAdj=-999)
    runc_shim.clamp_process(wanted, ALL)
    assert wanted == process(oomScoreAdj=-999)


def test_only_lacking_capabilities_are_left_out() -> None:
    wanted = process(capabilities={"bounding": ["CAP_SYS_RESOURCE", "CAP_SYS_TIME", "CAP_NET_RAW"]})
    runc_shim.clamp_process(wanted, ALL & ~(1 << 24))
    assert wanted["capabilities"]["bounding"] == ["CAP_SYS_TIME", "CAP_NET_RAW"]


@pytest.mark.parametrize(
    ("namespaces", "host"),
    [
        ([], True),
        ([{"type": "network", "path": "/proc/self/ns/net"}], True),
        ([{"type": "network", "path": "/proc/self/ns/mnt"}], False),
        ([{"type": "network"}], False),
        ([{"type": "pid"}], True),
    ],
)
def test_rdma_is_shown_in_the_hosts_network_only(namespaces: list[dict[str, str]], host: bool) -> None:
    config = {"process": process(), "linux": {"namespaces": namespaces}, "mounts": []}
    runc_shim.fix_container(config, ALL)
    assert bool(config["mounts"]) is host


@pytest.mark.parametrize(
    ("arguments", "file", "content"),
    [
        (["--root", "/r", "create", "--bundle", "{}", "id"], "config.json", {"process": process(), "mounts": []}),
        (["--root", "/r", "exec", "--process", "{}/process.json", "id"], "process.json", process()),
    ],
)
def test_create_and_exec_are_both_fixed_and_handed_on(
    arguments: list[str],
    file: str,
    content: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    handed: list[list[str]] = []
    monkeypatch.setattr(os, "execv", lambda _, words: handed.append(words))
    (tmp_path / file).write_text(json.dumps(content))
    given = [word.format(tmp_path) for word in arguments]
    runc_shim.main(given)
    assert handed == [[runc_shim.REAL, *given]]
    fixed = json.loads((tmp_path / file).read_text())
    assert fixed.get("process", fixed)["rlimits"][0]["hard"] == 100


def test_other_calls_and_broken_files_are_handed_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    handed: list[list[str]] = []
    monkeypatch.setattr(os, "execv", lambda _, words: handed.append(words))
    (tmp_path / "config.json").write_text("{")
    for arguments in (["delete", "id"], ["create", "--bundle", str(tmp_path), "id"]):
        runc_shim.main(arguments)
    assert len(handed) == 2
    assert (tmp_path / "config.json").read_text() == "{"
