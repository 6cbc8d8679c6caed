# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import json
import typing as t

import pytest
from ansible_collections.sparkfleet.vllm.plugins.action.fabric_judge import ActionModule
from ansible_collections.sparkfleet.vllm.plugins.module_utils._gate import collective_key

Make = t.Callable[..., t.Any]
NODES = ["s1", "s2"]
CLUSTER = {"name": "atlas", "head": "s1", "nodes": NODES}
INVENTORY = {"sparks": {"hosts": {"s1": {}, "s2": {}}}}


def measured(peer: str, gbps: float) -> dict[str, t.Any]:
    """What fabric_measure registered on a node with one link."""
    link = {
        "interface": "enp1s0f0np0",
        "address": "192.168.177.11",
        "peer": peer,
        "peer_interface": "enp1s0f0np0",
        "peer_address": "192.168.177.12",
        "mtu": 9000,
        "measure": True,
    }
    return {
        "changed": False,
        "measured": [
            {
                "link": link,
                "mtu_ok": True,
                "small_ok": None,
                "carrier": None,
                "mtu": 9000,
                "ping_error": "",
                "wrong_mac": "",
                "gbps": gbps,
                "tool": "ib_write_bw",
                "why_tcp": "",
                "error": "",
            }
        ],
    }


@pytest.fixture(name="made")
def fixture_made(controller: Make) -> t.Any:
    made = controller(INVENTORY)
    made.facts = {
        "s1": {"__m": measured("s2", 95), "__l": {"problems": []}},
        "s2": {"__m": measured("s1", 13), "__l": {"skipped": True}},
    }
    return made


def judge(made: t.Any, host: str = "s1", play: str = "sparks", **arguments: t.Any) -> dict[str, t.Any]:
    given = {"cluster": CLUSTER, "results": "__m", "listeners": "__l", "fingerprint": "f", **arguments}
    result: dict[str, t.Any] = made.run(ActionModule, host, play=play, arguments=given)
    assert result["changed"] is False and not result.get("failed")
    return result


def test_a_shut_gate_is_explained_once(made: t.Any) -> None:
    result = judge(made)
    assert result["passed"] is False
    assert result["refusal"].endswith("\n") and result["refusal"].count("\n") == 1
    assert result["refusal"].startswith("s2: enp1s0f0np0 to s1's enp1s0f0np0: 13 Gb/s by ib_write_bw, below 90")
    assert "warnings" not in result
    other = judge(made, "s2")
    assert other["refusal"] == "s2: the fabric does not carry; see s1's message\n"
    assert other["record"]["fingerprint"] == "f" and other["record"]["passed"] is False
    json.dumps(other["record"])


def test_warn_keeps_the_gate_open(made: t.Any) -> None:
    result = judge(made, warn=True)
    assert (result["passed"], result["refusal"]) == (False, "")
    assert result["warnings"] == result["lines"] != []
    assert judge(made, "s2", warn=True)["warnings"] == []


def test_an_open_gate_says_nothing(made: t.Any) -> None:
    result = judge(made, min_gbps=10)
    assert (result["passed"], result["refusal"], result["lines"]) == (True, "", [])
    assert judge(made, mode="ping")["passed"] is True


def test_a_node_of_the_play_that_did_not_measure_shuts_the_gate(made: t.Any) -> None:
    made.facts["s2"] = {"__m": {"failed": True, "msg": "boom"}}
    assert [line.partition(";")[0] for line in judge(made)["lines"]] == ["s2: its links could not be measured"]


def test_a_node_outside_of_the_play_is_not_asked(made: t.Any) -> None:
    assert judge(made, play="s1")["passed"] is True


def test_a_listeners_problem_is_told(made: t.Any) -> None:
    made.facts["s2"]["__l"] = {"problems": ["port 18515 is taken; set fabric_gate_port"]}
    assert "s2: port 18515 is taken; set fabric_gate_port" in judge(made)["lines"]


# --- the collective -------------------------------------------------------------------------------

IMAGE = {"fingerprint": "f", "image": "i@sha256:1"}
KEY = collective_key("f", "i@sha256:1", 0)


def due(made: t.Any, play: str = "sparks", **arguments: t.Any) -> bool:
    given = {"stage": "collective_due", "results": "__fabric_preflight", **IMAGE, **arguments}
    return bool(judge(made, play=play, **given)["due"])


def keep(made: t.Any, **records: t.Any) -> None:
    made.facts = {name: {"__fabric_preflight": {"collective": records[name]}} for name in records}


def test_the_collective_is_due_until_every_node_keeps_a_passed_one(made: t.Any) -> None:
    assert due(made)
    record = {"version": 1, "key": KEY, "passed": True}
    keep(made, s1=record, s2=record)
    assert not due(made)
    assert due(made, image="i@sha256:2")
    assert due(made, fingerprint="g")
    assert due(made, min_busbw=5)
    for other in (None, "x", {**record, "passed": False}, {**record, "key": "k"}, {**record, "version": 0}):
        keep(made, s1=record, s2=other)
        assert due(made), other
    keep(made, s1=record, s2={**record, "passed": False})
    assert not due(made, warn=True)
    assert due(made, warn=True, fingerprint="g")


def test_the_collective_needs_all_nodes_and_more_than_one(made: t.Any) -> None:
    assert not due(made, play="s1")
    assert not due(made, cluster={"name": "atlas", "head": "s1", "nodes": ["s1"]})


def test_the_record_of_a_collective_that_passed_is_not_due(made: t.Any) -> None:
    for number, name in enumerate(NODES):
        said = {"rank": str(number), "backend": "gloo", "correct": True, "busbw": 0.5}
        made.facts[name] = {"__c": {"stdout": json.dumps(said), "stderr": "a warning"}}
    given = {"stage": "collective", "results": "__c", "min_busbw": 0.4, "gpu": False, **IMAGE}
    result = judge(made, **given)
    assert result["passed"] is True and result["record"]["busbw"] == 0.5
    keep(made, s1=result["record"], s2=result["record"])
    assert not due(made, min_busbw=0.4)


def test_the_collectives_mark_follows_the_topology(made: t.Any) -> None:
    for name in NODES:
        said = {"rank": "0", "backend": "nccl", "correct": True, "busbw": 12}
        made.facts[name] = {"__c": {"stdout": json.dumps(said)}}
    given = {"stage": "collective", "results": "__c", **IMAGE}
    assert judge(made, topology="ring", **given)["passed"] is True
    assert "all_gather reaches 12 GB/s, below 21.875" in judge(made, topology="pair", **given)["refusal"]
