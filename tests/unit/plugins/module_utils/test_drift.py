# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.sparkfleet.vllm.plugins.module_utils import _drift, _drift_report
from ansible_collections.sparkfleet.vllm.tests.unit.plugins.module_utils import drift_examples as example

SINCE = "when site.yml proved it (2026-11-24)"


def lines(states: dict[str, Any], cluster: dict[str, Any] | None = None) -> list[str]:
    report = _drift_report.report([cluster or example.CLUSTER], states)
    assert report["drift"] == bool(report["lines"])
    return list(report["lines"])


def test_a_fleet_as_it_was_proven_has_no_drift() -> None:
    report = _drift_report.report([example.CLUSTER], example.states())
    assert report["drift"] is False and report["lines"] == []
    text = "\n".join(_drift_report.render(report))
    assert "no drift" in text and "*" not in text and "580.95.05" in text and "0.32.0" in text


def test_a_name_that_means_another_image_is_named() -> None:
    states = example.states()
    states["s2"]["found"]["images"][example.TAG] = {"id": example.OTHER, "content": "content-b", "description": {}}
    (line,) = lines(states)
    assert line == (
        f"s2: image sparkfleet/vllm:1 is bbbbbbbbbbbb, aaaaaaaaaaaa on s1, s3; aaaaaaaaaaaa {SINCE}; run site.yml"
    )
    states["s2"]["found"]["images"][example.TAG] = {}
    assert "image sparkfleet/vllm:1 is none, aaaaaaaaaaaa on s1, s3" in lines(states)[0]


def test_a_container_of_another_image_is_one_line_with_what_follows_marked() -> None:
    states = example.states()
    container = states["s2"]["found"]["containers"]["spark-vllm-chat"]
    container.update(image=example.OTHER, content="content-b", description={"versions": {"vllm": "0.31.0"}})
    (line,) = lines(states)
    assert line.startswith("s2: image is bbbbbbbbbbbb, aaaaaaaaaaaa on s1, s3; ")
    text = _drift_report.render(_drift_report.report([example.CLUSTER], states))
    (row,) = [row for row in text if row.startswith("vLLM")]
    assert row.split() == ["vLLM", "0.32.0", "0.31.0", "*", "0.32.0"]


def test_equal_images_of_two_stores_do_not_differ() -> None:
    states = example.states()
    states["s2"]["found"]["containers"]["spark-vllm-chat"]["image"] = example.OTHER
    assert lines(states) == []


def test_the_one_that_changed_is_named_and_not_the_one_that_stayed() -> None:
    states = example.states()
    del states["s3"]
    cluster = {**example.CLUSTER, "nodes": ["s1", "s2"]}
    states["s1"]["found"]["host"]["kernel"] = "7.0"
    (line,) = lines(states, cluster)
    assert line == (
        f"s1: kernel is 7.0, 6.11.0-1016-nvidia on s2; 6.11.0-1016-nvidia {SINCE}; "
        "bring the nodes to the same kernel, then run site.yml"
    )


def test_an_upgrade_of_all_nodes_is_drift_from_the_locks_alone() -> None:
    states = example.states()
    for state in states.values():
        state["found"]["host"]["driver"] = "590.44"
    assert lines(states) == [
        f"{node}: NVIDIA driver is 590.44, 580.95.05 {SINCE}; run site.yml, which proves it and notes it"
        for node in example.NODES
    ]


def test_what_is_absent_is_no_difference() -> None:
    states = example.states()
    for key in ("driver", "toolkit"):
        states["s3"]["found"]["host"][key] = ""
    states["s3"]["found"]["host"]["firmware"] = {}
    assert lines(states) == []


def test_another_firmware_is_drift() -> None:
    states = example.states()
    states["s3"]["found"]["host"]["firmware"] = {"NVD1": "28.46"}
    assert lines(states)[0].startswith("s3: network card firmware is 28.46, 28.45.4028 on s1, s2; ")


def test_another_model_is_drift_and_a_look_is_not_compared_with_hashes() -> None:
    states = example.states()
    model = states["s2"]["found"]["models"]["chat"]
    model["manifest"] = "f" * 64
    (line,) = lines(states)
    assert line.startswith("s2: model chat is ffffffffffff, eeeeeeeeeeee on s1; ")
    assert line.endswith("run site.yml -e model_verify=full")
    model.update(manifest="", quick="f" * 64)
    assert lines(states) == []
    model.update(quick="", error="/models/chat is not there")
    assert lines(states)[0].startswith("s2: model chat is unreadable, ")


def test_other_arguments_are_told_option_by_option() -> None:
    states = example.states()
    container = states["s1"]["found"]["containers"]["spark-vllm-chat"]
    container["arguments"][2] = "--max-num-seqs=4"
    first, second = lines(states)
    assert first == f"s1: arguments chat is --max-num-seqs 4 (8), in brackets {SINCE}; run site.yml"
    assert second == "s2: arguments chat is --max-num-seqs 8 (4), in brackets on s1; run site.yml"


def test_what_differs_by_rank_is_no_difference_between_nodes() -> None:
    states = example.states()
    for state in states.values():
        state["lock"]["models"] = []
        state["found"]["environment"] = {}
    cluster = {**example.CLUSTER, "models": []}
    assert lines(states, cluster) == []
    container = states["s2"]["found"]["containers"]["spark-vllm-chat"]
    container["arguments"] = [word.replace("size=2", "size=1") for word in container["arguments"]]
    assert lines(states, cluster) == [
        "s2: arguments chat is --tensor-parallel-size 1 (2), in brackets on s1; run site.yml"
    ]


def test_files_environments_and_containers_are_compared_with_the_lock() -> None:
    states = example.states()
    found = states["s2"]["found"]
    found["files"] = {"/etc/sparkfleet/atlas/new.env": "x"}
    found["containers"]["spark-vllm-chat"]["environment"]["NCCL_NET"] = "Socket"
    found["containers"]["spark-vllm-mine"] = copy.deepcopy(found["containers"]["spark-vllm-chat"])
    said = lines(states)
    assert f"s2: environment of spark-vllm-chat is NCCL_NET Socket (IB), in brackets {SINCE}; run site.yml" in said
    assert "s2: container spark-vllm-mine runs, which site.yml did not prove; run site.yml" in said
    assert any(line.startswith("s2: /etc/sparkfleet/atlas/new.env is not from site.yml") for line in said)
    assert any(line.startswith("s2: /etc/systemd/system/spark-vllm@chat.service is gone") for line in said)
    assert len(said) == 4


def test_what_was_stopped_is_no_drift() -> None:
    states = example.states()
    for state in states.values():
        state["found"]["containers"] = {}
    assert lines(states) == []


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"lock": {}}, "s2: it has no fleet lock; run site.yml, which writes it"),
        (
            {"lock": {}, "lock_error": "it is no JSON"},
            "s2: its fleet lock cannot be used (it is no JSON); run site.yml, which writes it",
        ),
    ],
)
def test_a_node_without_a_lock_is_named(change: dict[str, Any], line: str) -> None:
    states = example.states()
    states["s2"].update(change)
    assert lines(states) == [line]


def test_the_lock_of_another_node_is_named() -> None:
    states = example.states()
    states["s3"]["lock"]["node"] = "s9"
    assert lines(states) == ["s3: its fleet lock is of s9 in cluster atlas; run site.yml, which writes it"]


def test_a_node_that_cannot_be_read_is_drift_and_hides_no_other() -> None:
    states = example.states()
    states["s1"] = {"error": "unreachable over SSH"}
    states["s2"]["found"]["error"] = "Docker does not answer"
    states["s3"]["found"]["host"]["kernel"] = "7.0"
    said = lines(states)
    assert said[:2] == [
        "s1: unreachable over SSH; correct that, then look again",
        "s2: Docker does not answer; correct that, then look again",
    ]
    assert said[2].startswith("s3: kernel is 7.0, 6.11.0-1016-nvidia when site.yml proved it")


def test_what_the_inventory_says_since_is_told_once_for_the_cluster() -> None:
    states = example.states()
    del states["s3"]
    changed = {**example.MODEL, "max_num_seqs": 16, "source": "/elsewhere/chat"}
    cluster = {**example.CLUSTER, "nodes": ["s1", "s2"], "models": [changed]}
    assert lines(states, cluster) == [
        "atlas: model chat is max_num_seqs 8 (16), in brackets in the inventory; run site.yml"
    ]


def test_models_that_came_or_went_in_the_inventory_are_told() -> None:
    cluster = {**example.CLUSTER, "models": [{**example.MODEL, "name": "code"}]}
    said = lines(example.states(), cluster)
    assert "s1: model chat is proven, not served in the inventory; run site.yml" in said
    assert "s2: model code is not proven, served in the inventory; run site.yml" in said
    assert len(said) == 4


def test_a_setting_that_an_older_lock_does_not_know_is_no_difference() -> None:
    model = {**example.MODEL, "new_setting": 1}
    assert lines(example.states(), {**example.CLUSTER, "models": [model]}) == []


def test_clusters_are_not_compared_with_each_other() -> None:
    states = example.states()
    states["s3"]["found"]["host"]["kernel"] = states["s3"]["lock"]["host"]["kernel"] = "7.0"
    states["s3"]["lock"]["cluster"] = "borea"
    atlas = {**example.CLUSTER, "nodes": ["s1", "s2"]}
    borea = {"name": "borea", "head": "s3", "nodes": ["s3"], "models": [], "ray": []}
    report = _drift_report.report([atlas, borea], states)
    assert report["lines"] == [] and [cluster["name"] for cluster in report["clusters"]] == ["atlas", "borea"]


def test_options_are_read_as_a_command_line_has_them() -> None:
    assert _drift.options(["/m", "--host", "h", "--x=1", "--served-model-name", "a", "b", "--flag", "-cc.mode=1"]) == {
        "model": "/m",
        "--host": "h",
        "--x": "1",
        "--served-model-name": "a b",
        "--flag": "",
        "-cc.mode": "1",
    }


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, ""),
        ({"drift_verify": "full", "drift_json": "{tmp}/out.json"}, ""),
        ({"drift_verify": "ful"}, "drift_verify is ful; give cached or full"),
        ({"drift_jsn": "x"}, "drift_jsn is no variable of drift; did you mean drift_json?"),
        ({"drift_x1y2z3": "x"}, "drift_x1y2z3 is no variable of drift; there are drift_verify and drift_json"),
        (
            {"drift_json": "{tmp}/no/out.json"},
            "drift_json is {tmp}/no/out.json, which is no file in a directory that is there; correct it",
        ),
        ({"drift_json": "{tmp}"}, "drift_json is {tmp}, which is no file in a directory that is there; correct it"),
    ],
)
def test_a_wrong_question_gets_one_line(given: dict[str, str], said: str, tmp_path: Path) -> None:
    asked = {name: value.format(tmp=tmp_path) for name, value in given.items()}
    assert _drift_report.input_problem(asked) == said.format(tmp=tmp_path)
