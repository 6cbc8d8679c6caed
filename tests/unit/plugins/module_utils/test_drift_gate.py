# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

from typing import Any

from ansible_collections.sparkfleet.vllm.plugins.module_utils import _drift_gate
from ansible_collections.sparkfleet.vllm.tests.unit.plugins.module_utils import drift_examples as example

SINGLE = {**example.CLUSTER, "models": [{**example.MODEL, "nodes": ["s1"]}]}


def hosts(**changes: Any) -> dict[str, Any]:
    return {node: {**example.found(node)["host"], **(changes if node == "s2" else {})} for node in example.NODES}


def about() -> dict[str, Any]:
    return {node: {"reference": example.IMAGE, "found": example.found(node)} for node in example.NODES}


def test_equal_hosts_are_fine() -> None:
    assert _drift_gate.host_drift(example.CLUSTER, hosts(), "refuse") == {"problems": {}, "warnings": []}


def test_another_branch_of_the_driver_is_refused() -> None:
    judged = _drift_gate.host_drift(example.CLUSTER, hosts(driver="590.44"), "refuse")
    (line,) = judged["problems"]["s2"]
    assert line.startswith(
        "NVIDIA driver is 590.44, 580.95.05 on s1, and ranks of a model on both do not work together"
    )
    assert "lock_host_drift: warn" in line and judged["warnings"] == []


def test_the_rest_is_only_said() -> None:
    judged = _drift_gate.host_drift(
        example.CLUSTER, hosts(driver="580.96", kernel="7.0", firmware={"NVD1": "28.46"}), "refuse"
    )
    assert judged["problems"] == {}
    assert judged["warnings"] == [
        "s2: kernel is 7.0, 6.11.0-1016-nvidia on s1",
        "s2: NVIDIA driver is 580.96, 580.95.05 on s1",
        "s2: network card firmware is 28.46, 28.45.4028 on s1",
    ]


def test_the_owner_decides() -> None:
    judged = _drift_gate.host_drift(example.CLUSTER, hosts(driver="590.44", kernel="7.0"), "warn")
    assert judged["problems"] == {}
    assert [line.partition(" is ")[0] for line in judged["warnings"]] == ["s2: NVIDIA driver", "s2: kernel"]
    for off in ("off", False):
        judged = _drift_gate.host_drift(example.CLUSTER, hosts(driver="590.44"), off)
        assert judged == {"problems": {}, "warnings": []}


def test_hosts_that_share_no_model_may_differ() -> None:
    assert _drift_gate.host_drift(SINGLE, hosts(driver="590.44"), "refuse") == {"problems": {}, "warnings": []}
    apart = hosts()
    apart["s3"]["driver"] = "590.44"
    assert _drift_gate.host_drift(example.CLUSTER, apart, "refuse")["problems"] == {}


def test_a_driver_that_is_absent_or_a_host_that_was_not_read_is_no_difference() -> None:
    assert _drift_gate.host_drift(example.CLUSTER, hosts(driver=""), "refuse")["problems"] == {}
    read = hosts(driver="590.44")
    del read["s1"]
    assert _drift_gate.host_drift(example.CLUSTER, read, "refuse")["problems"] == {}


def test_a_group_with_the_same_may_start() -> None:
    assert _drift_gate.gate(example.CLUSTER, about()) == []
    assert _drift_gate.gate(example.CLUSTER, {**about(), "s3": {}}) == []


def test_another_image_is_refused_with_what_is_in_it() -> None:
    states = about()
    other = {"id": example.OTHER, "content": "content-b", "description": {"versions": {"vllm": "0.31.0"}}}
    states["s2"].update(reference=example.OTHER)
    states["s2"]["found"]["images"] = {example.OTHER: other}
    assert _drift_gate.gate(example.CLUSTER, states) == [
        "s2: its image is bbbbbbbbbbbb with vLLM 0.31.0, aaaaaaaaaaaa on s1; run site.yml without --tags and --limit"
    ]
    assert _drift_gate.gate(SINGLE, states) == []
    ray = {**SINGLE, "ray": [["s1", "s2"]]}
    assert len(_drift_gate.gate(ray, states)) == 1, "one Ray"


def test_another_model_is_refused_with_its_directory() -> None:
    states = about()
    states["s2"]["found"]["models"]["chat"]["manifest"] = "f" * 64
    (line,) = _drift_gate.gate(example.CLUSTER, states)
    assert line == "s2: model chat is ffffffffffff, eeeeeeeeeeee on s1; run site.yml -e model_verify=full"
    for node, digit in (("s1", "1"), ("s2", "2")):
        states[node]["found"]["models"]["chat"].update(manifest="", quick=digit * 64)
    (line,) = _drift_gate.gate(example.CLUSTER, states)
    assert line == "s2: model chat is 222222222222, 111111111111 on s1; put the same files into /models/chat"


def test_an_engine_that_does_not_answer_is_refused() -> None:
    states = about()
    states["s2"]["found"].update(error="Docker does not answer", images={})
    assert _drift_gate.gate(example.CLUSTER, states) == [
        "s2: Docker cannot be asked (Docker does not answer); correct that"
    ]
