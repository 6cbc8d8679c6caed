# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A cluster's summary says what is well and what is not."""

from __future__ import annotations

from typing import Any

from ansible_collections.sparkfleet.vllm.plugins.module_utils import _status

CLUSTER = {"name": "atlas", "head": "spark-01", "nodes": ["spark-01", "spark-02"]}
IMAGE = "sha256:" + "ab" * 32
RANKS = [{"rank": 1, "address": "192.168.177.12"}, {"rank": 0, "address": "192.168.177.11"}]


def hosts() -> dict[str, Any]:
    return {
        f"spark-{number:02d}": {
            "address": f"192.168.177.{10 + number}",
            "containers": [{"name": "/spark-ray", "image": IMAGE, "status": "Up 2 minutes"}],
        }
        for number in (1, 2)
    }


def ray() -> list[dict[str, Any]]:
    return [{"address": "192.168.177.11", "gpus": 1.0}, {"address": "192.168.177.12", "gpus": 1.0}]


def served() -> dict[str, Any]:
    return {
        "name": "tiny",
        "url": "http://10.77.0.11:8888",
        "completion": {"id": "chatcmpl-1", "text": "hello", "usage": {"prompt_tokens": 3, "completion_tokens": 8}},
    }


def test_a_healthy_cluster_has_no_problems_and_names_ranks_by_node() -> None:
    summary = _status.summarise(CLUSTER, hosts(), ray(), RANKS, served())
    assert summary["problems"] == []
    assert {(rank["rank"], rank["node"]) for rank in summary["model"]["ranks"]} == {(0, "spark-01"), (1, "spark-02")}
    text = "\n".join(_status.render(summary))
    assert "spark-01 (head)" in text
    assert text.count("ALIVE") == 2
    assert "spark-ray (Up 2 minutes)" in text and "/spark-ray" not in text
    assert text.index("rank 0") < text.index("rank 1")
    assert "8 completion tokens" in text
    assert "abababababab" in text and "ab" * 8 not in text


def test_a_node_that_left_ray_is_a_problem() -> None:
    summary = _status.summarise(CLUSTER, hosts(), ray()[:1], RANKS[1:], served())
    assert summary["problems"] == ["spark-02: not in Ray; see its journal with the logs playbook, or run site.yml"]
    assert summary["nodes"][1]["ray"] == "absent"


def test_an_unreachable_node_is_named_with_its_reason_only_once() -> None:
    read = hosts()
    read["spark-02"] = {"address": "", "error": "unreachable over SSH"}
    summary = _status.summarise(CLUSTER, read, ray()[:1], [], served())
    assert summary["problems"] == ["spark-02: unreachable over SSH"]
    assert "unknown" in "\n".join(_status.render(summary))


def test_two_different_images_are_a_problem() -> None:
    read = hosts()
    read["spark-02"]["containers"][0]["image"] = "sha256:" + "cd" * 32
    summary = _status.summarise(CLUSTER, read, ray(), RANKS, served())
    assert summary["problems"] == ["atlas: 2 different images are running; run site.yml"]


def test_a_model_that_does_not_answer_is_a_problem_with_its_reason() -> None:
    summary = _status.summarise(CLUSTER, hosts(), ray(), [], {"name": "tiny", "error": "connection refused"})
    assert summary["problems"] == ["spark-01: tiny does not answer: connection refused"]
    assert "problem: spark-01: tiny" in _status.render(summary)[-1]
