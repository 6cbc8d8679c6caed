# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import typing as t

from ansible_collections.sparkfleet.vllm.plugins.action.verdict import ActionModule

Make = t.Callable[..., t.Any]
INVENTORY = {"sparks": {"hosts": {"s1": {}, "s2": {}, "s3": {}}}}


def seen(low: float, high: float, machine: str) -> dict[str, t.Any]:
    """What host_facts registered."""
    facts = {"machine_id": machine, "boot_id": machine, "management": {"address": machine}}
    return {"problems": [], "interval": [low, high], "facts": facts}


def verdict(controller: t.Any, **how: t.Any) -> list[str]:
    result = controller.run(ActionModule, "s1", **how)
    assert result["changed"] is False
    assert result.get("failed", False) == ("msg" in result)
    return str(result.get("msg", "")).splitlines()


def test_nothing_registered_is_nothing_wrong(controller: Make) -> None:
    assert verdict(controller(INVENTORY)) == []


def test_the_problems_of_all_roles_and_hosts_come_sorted(controller: Make) -> None:
    made = controller(INVENTORY)
    made.facts = {
        "s2": {"__fabric_preflight": {"problems": ["b; y", "a; x"]}, "__host_preflight": {"problems": ["c; z"]}},
        "s1": {"__host_preflight": {"problems": ["z; z"]}, "__image_preflight": {"skipped": True}},
        "s3": {"__host_preflight": {"problems": []}, "__preflight": {"problems": ["not ours"]}},
    }
    assert verdict(made) == ["s1: z; z", "s2: a; x", "s2: b; y", "s2: c; z"]


def test_a_preflight_that_looped_answers_for_each_item(controller: Make) -> None:
    made = controller(INVENTORY)
    results = [
        {"problems": ["b; y"], "transfer": False},
        {"problems": []},
        {"skipped": True},
        {"problems": ["a; x", "b; y"]},
    ]
    made.facts = {
        "s2": {"__model_preflight": {"results": results, "changed": False}},
        "s1": {"__model_preflight": {"results": [], "skipped": True}},
    }
    assert verdict(made) == ["s2: a; x", "s2: b; y"]


def test_clocks_are_compared_by_what_is_certain(controller: Make) -> None:
    made = controller(INVENTORY)
    made.facts = {
        "s1": {"__host_preflight": seen(0, 1, "a")},
        "s2": {"__host_preflight": seen(2.9, 3, "b")},
        "s3": {"__host_preflight": seen(30, 31, "c")},
    }
    lines = verdict(made)
    assert [line.partition(";")[0] for line in lines] == ["s3: its clock differs from s1's by 29.0 s or more"]
    assert len(verdict(made, arguments={"max_clock_skew_s": 1})) == 2
    assert verdict(made, arguments={"max_clock_skew_s": 60}) == []


def test_the_limit_is_the_variable_of_the_inventory(controller: Make) -> None:
    made = controller({"sparks": {**INVENTORY["sparks"], "vars": {"host_max_clock_skew_s": 5}}})
    made.facts = {"s1": {"__host_preflight": seen(0, 0, "a")}, "s2": {"__host_preflight": seen(4, 4, "b")}}
    assert verdict(made) == []


def test_one_machine_twice(controller: Make) -> None:
    made = controller(INVENTORY)
    made.facts = {"s1": {"__host_preflight": seen(0, 0, "a")}, "s2": {"__host_preflight": seen(0, 0, "a")}}
    assert verdict(made) == ["s2: is the same machine as s1; give each node its own ansible_host"]


def test_a_host_that_was_lost_on_the_way_counts(controller: Make) -> None:
    assert verdict(controller(INVENTORY), gone=["s2"]) == [
        "s2: failed or became unreachable during the preflight; see above"
    ]
