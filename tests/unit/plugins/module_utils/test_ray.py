# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ray's state API: only the living count, and an absence has a reason."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.sparkfleet.vllm.plugins.module_utils import _ray

HEAD, WORKER = "192.168.177.11", "192.168.177.12"


def row(address: str, node_id: str, state: str = "ALIVE", head: bool = False, gpus: float = 1.0) -> dict[str, Any]:
    resources = {"CPU": 2.0, "GPU": gpus, "object_store_memory": 1e8}
    return {
        "node_ip": address,
        "node_id": node_id,
        "state": state,
        "is_head_node": head,
        "resources_total": resources if state == "ALIVE" else None,
    }


def answer(*rows: dict[str, Any]) -> dict[str, Any]:
    return {"result": True, "data": {"result": {"total": len(rows), "result": list(rows)}}}


def test_dead_nodes_are_left_out_and_the_head_comes_first() -> None:
    nodes = _ray.alive_nodes(answer(row(WORKER, "c"), row(WORKER, "b", "DEAD"), row(HEAD, "a", head=True)))
    assert [(node.address, node.node_id, node.head) for node in nodes] == [(HEAD, "a", True), (WORKER, "c", False)]
    assert nodes[0].as_dict()["gpus"] == 1.0


@pytest.mark.parametrize("payload", [None, [], {}, {"data": {}}, {"data": {"result": {"result": "x"}}}])
def test_an_unknown_answer_is_an_error(payload: Any) -> None:
    with pytest.raises(ValueError, match="unknown form"):
        _ray.alive_nodes(payload)


def test_shortfalls() -> None:
    nodes = _ray.alive_nodes(answer(row(HEAD, "a", head=True), row(WORKER, "b", gpus=0)))
    assert _ray.shortfalls([HEAD], 1, nodes) == {}
    assert _ray.shortfalls([HEAD, WORKER, "10.0.0.9"], 1, nodes) == {
        WORKER: "has 0 GPUs instead of 1",
        "10.0.0.9": "has not joined",
    }


def test_a_node_that_only_died_has_not_joined() -> None:
    nodes = _ray.alive_nodes(answer(row(HEAD, "a", head=True), row(WORKER, "b", "DEAD")))
    assert _ray.shortfalls([WORKER], 1, nodes) == {WORKER: "has not joined"}


def test_ranks_are_placed() -> None:
    nodes = _ray.alive_nodes(answer(row(HEAD, "a", head=True), row(WORKER, "b")))
    actors = answer(
        {"name": "vllm_Worker_x_TP1", "node_id": "b", "state": "ALIVE"},
        {"name": "vllm_Worker_y_TP0", "node_id": "b", "state": "DEAD"},
        {"name": "vllm_Worker_x_TP0", "node_id": "a", "state": "ALIVE"},
        {"name": "", "node_id": "a", "state": "ALIVE"},
        {"name": None, "node_id": "a", "state": "ALIVE"},
    )
    assert [rank.as_dict() for rank in _ray.ranks(actors, nodes)] == [
        {"actor": "vllm_Worker_x_TP0", "tp": 0, "address": HEAD},
        {"actor": "vllm_Worker_x_TP1", "tp": 1, "address": WORKER},
    ]


HOSTS = {"spark-01": HEAD, "spark-02": WORKER}


@pytest.mark.parametrize(
    ("journal", "said"),
    [
        (
            "x\nray.exceptions.AuthenticationError: InvalidAuthToken\nTraceback (most recent call last)",
            "Ray token differs",
        ),
        ("RuntimeError: Version mismatch: The cluster was started with: Ray: 2.59.0", "the same image"),
        ("waiting for 192.168.177.11:6379\n\n", 'its last words: "waiting for 192.168.177.11:6379"'),
        ("", "its journal is empty"),
    ],
)
def test_why_a_node_is_missing(journal: str, said: str) -> None:
    line = _ray.join_failure({WORKER: "has not joined"}, HOSTS, [{"item": "spark-02", "stdout": journal}])
    assert line.startswith("spark-02 has not joined: ")
    assert said in line
    assert "\n" not in line


def test_an_unreachable_node_has_no_journal() -> None:
    line = _ray.join_failure({WORKER: "has not joined"}, HOSTS, [{"item": "spark-02", "unreachable": True}])
    assert "its journal is empty" in line


def test_no_node_missing_means_that_ray_is_silent() -> None:
    assert "does not answer on the head" in _ray.join_failure({}, HOSTS, [])
