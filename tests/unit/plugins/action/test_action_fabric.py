# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The controller's side of role fabric: what happens when nodes do not answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
from ansible.errors import AnsibleConnectionFailure, AnsibleError
from ansible_collections.sparkfleet.vllm.plugins.action import fabric_plan, fabric_settle
from ansible_collections.sparkfleet.vllm.plugins.module_utils._roce import SysfsReader, read
from ansible_collections.sparkfleet.vllm.tests.unit.sysfs_tree import addr_json, build, route_json, spark

CLUSTER = {"name": "atlas", "head": "spark-01", "nodes": ["spark-01", "spark-02"]}


def action(module: Any, args: dict[str, Any]) -> Any:
    """Return the action plugin of `module` as a task with `args` has it."""
    task = MagicMock(args=args, async_val=0, check_mode=False, diff=False)
    return module.ActionModule(task, MagicMock(), MagicMock(), MagicMock(), MagicMock(), MagicMock())


def plan_with(answer: dict[str, Any] | Exception, **options: Any) -> dict[str, Any]:
    """Run fabric_plan on a node whose roce_facts gives `answer`."""
    plugin = action(fabric_plan, {"nodes": 2, **options})
    plugin._execute_module = MagicMock(side_effect=[answer])
    result: dict[str, Any] = plugin.run(task_vars={})
    return result


def settle_with(host: str, plans: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Run fabric_settle for `host`, where each node has registered what `plans` says."""
    hostvars = MagicMock(raw_get=lambda name: {"__fabric_plan": plans[name]} if name in plans else {})
    plugin = action(fabric_settle, {"cluster": CLUSTER, "plan": "__fabric_plan"})
    result: dict[str, Any] = plugin.run(task_vars={"inventory_hostname": host, "hostvars": hostvars})
    return result


@pytest.fixture
def answers(tmp_path: Path) -> dict[str, dict[str, Any]]:
    """Return what roce_facts says on the two nodes of a good pair."""
    found = {}
    for number, host in ((11, "spark-01"), (12, "spark-02")):
        functions = spark(host=number)
        sysfs = build(tmp_path / host, functions)
        found[host] = {"roce": read(SysfsReader(sysfs, "/nonexistent"), addr_json(functions), route_json())}
    return found


def test_a_good_pair(answers: dict[str, dict[str, Any]]) -> None:
    plans = {host: plan_with(answer) for host, answer in answers.items()}
    result = settle_with("spark-02", plans)
    assert (result["problems"], result["refusal"], result["changed"]) == ([], "", False)
    assert result["node"]["address"] == "192.168.177.12"
    assert result["roce"] == answers["spark-02"]["roce"]
    # Ansible takes away the key that it shows, so the same is kept under another one.
    assert [f"spark-02: {note}" for note in result["notes"]] == result["warnings"]
    assert len(result["notes"]) == 2


def test_an_unreachable_node_is_not_reported_here(answers: dict[str, dict[str, Any]]) -> None:
    plans = {"spark-01": plan_with(answers["spark-01"]), "spark-02": plan_with(AnsibleConnectionFailure("no route"))}
    gone = settle_with("spark-02", plans)
    assert (gone["problems"], gone["node"]) == ([], {})
    assert gone["refusal"] == "spark-02: the fabric could not be read; check that the host answers"
    assert settle_with("spark-01", plans)["node"]["address"] == "192.168.177.11"


@pytest.mark.parametrize("answer", [{"failed": True, "msg": "no Python.\nmore"}, AnsibleError("no Python")])
def test_a_node_that_cannot_run_the_module_is_one_line(answer: dict[str, Any] | Exception) -> None:
    result = settle_with("spark-01", {"spark-01": plan_with(answer)})
    assert len(result["problems"]) == 1
    assert result["problems"][0].startswith("the fabric could not be read: no Python; ")
    assert result["refusal"] == f"spark-01: {result['problems'][0]}"


def test_a_node_outside_of_the_limit_is_not_compared_with(answers: dict[str, dict[str, Any]]) -> None:
    result = settle_with("spark-02", {"spark-02": plan_with(answers["spark-02"])})
    assert result["node"]["address"] == "192.168.177.12"


def test_options_reach_the_plan(answers: dict[str, dict[str, Any]]) -> None:
    result = plan_with(answers["spark-01"], interface="enP7s7", nccl_debug="INFO", extra_env={"A": "1"})
    assert result["plan"]["rails"][0]["interface"] == "enP7s7"
    assert (result["plan"]["nccl_debug"], result["plan"]["extra_env"]) == ("INFO", {"A": "1"})


def test_a_given_node_is_checked(answers: dict[str, dict[str, Any]]) -> None:
    given = {"address": "192.168.177.12", "interface": "enp1s0f0np0"}
    assert len(plan_with(answers["spark-01"], given=given)["plan"]["problems"]) == 1
    assert settle_with("spark-02", {"spark-02": plan_with(answers["spark-02"], given=given)})["node"] == {
        **given,
        "interfaces": ["enp1s0f0np0"],
        "hcas": [],
        "devices": [],
        "nccl_env": {},
    }
