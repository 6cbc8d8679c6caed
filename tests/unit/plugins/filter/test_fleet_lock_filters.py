# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import json
from pathlib import Path

import pytest
from ansible.errors import AnsibleFilterError
from ansible_collections.sparkfleet.vllm.plugins.filter import drift, fleet_lock
from ansible_collections.sparkfleet.vllm.tests.unit.plugins.module_utils import drift_examples as example

FLEET = json.dumps({"schema": 1, "changed": "", "nodes": {"far": {"node": "far", "changed": ""}}})


def test_a_node_has_the_models_that_run_on_it_with_their_directories() -> None:
    assert fleet_lock.fleet_lock_models([example.MODEL], "s3", {}) == []
    (model,) = fleet_lock.fleet_lock_models([example.MODEL], "s2", {"chat": "/models/chat"})
    assert model["path"] == "/models/chat" and model["max_num_seqs"] == 8
    assert fleet_lock.fleet_lock_models([example.MODEL], "s2", {})[0]["path"] == ""


def test_hosts_are_judged_by_what_role_host_has_read() -> None:
    read = {
        node: {
            "facts": {
                "os": {"name": "DGX OS 7"},
                "kernel": "6",
                "architecture": "aarch64",
                "gpu": {"driver_version": driver, "toolkit_version": ""},
                "docker": {"engine_version": "28"},
                "firmware": {},
            }
        }
        for node, driver in (("s1", "580.1"), ("s2", "590.1"))
    }
    judged = fleet_lock.fleet_lock_hosts(example.CLUSTER, {**read, "s3": {"problems": ["x"]}}, "refuse")
    assert list(judged["problems"]) == ["s2"]


def test_a_file_that_is_none_of_ours_is_named_and_never_written_over(tmp_path: Path) -> None:
    path = tmp_path / "x.sparkfleet-lock.json"
    assert fleet_lock.fleet_lock_problem("") == fleet_lock.fleet_lock_problem(str(path)) == ""
    path.write_text(FLEET)
    assert fleet_lock.fleet_lock_problem(str(path)) == ""
    path.write_text("mine")
    line = fleet_lock.fleet_lock_problem(str(path))
    assert line == f"lock_file is {path}, which is no lock of a fleet (it is no JSON); move it away, or set lock_file"
    with pytest.raises(AnsibleFilterError, match="it is no JSON"):
        fleet_lock.fleet_lock_merge(str(path), [], ["s1"])
    nowhere = str(tmp_path / "no" / "x.json")
    assert f"{tmp_path / 'no'} is no directory that can be written to" in fleet_lock.fleet_lock_problem(nowhere)


def test_the_file_is_merged_where_it_is_there(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    locks = [example.lock("s1")]
    assert list(json.loads(fleet_lock.fleet_lock_merge(str(path), locks, ["s1", "far"]))["nodes"]) == ["s1"]
    path.write_text(FLEET)
    assert list(json.loads(fleet_lock.fleet_lock_merge(str(path), locks, ["s1", "far"]))["nodes"]) == ["far", "s1"]


def test_a_wrong_question_ends_before_any_play() -> None:
    assert drift.drift_hosts({}) == "localhost"
    with pytest.raises(AnsibleFilterError, match="drift_verify is ful; give cached or full"):
        drift.drift_hosts({"drift_verify": "ful"})
