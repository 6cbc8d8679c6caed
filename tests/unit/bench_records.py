# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Recorded benchmarks, and the plans that they could have come from."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

from ansible_collections.sparkfleet.vllm.plugins.module_utils import _bench, _bench_report

DATA = Path(__file__).parent / "data" / "bench"
MODEL = {"name": "tiny", "served_model_name": "tiny other-name", "nodes": ["spark-01"]}
WHERE = {
    "node": "spark-01",
    "cluster": "atlas",
    "url": "http://192.0.2.11:8888",
    "external": False,
    "now": "2026-11-24T10:15:00Z",
    "dataset_path": "/bench/dataset.json",
}


def recorded(name: str) -> dict[str, Any]:
    """Return a recorded file."""
    found: dict[str, Any] = json.loads((DATA / f"{name}.json").read_text(encoding="utf-8"))
    return found


def request(**given: Any) -> dict[str, Any]:
    """Return what is asked for with these variables, which are right."""
    found = _bench.judge_request({f"bench_{name}": value for name, value in given.items()}, ["tiny"], "/work")
    assert found["problems"] == []
    return found


def container() -> dict[str, Any]:
    """Return what docker_container_info says of the server."""
    return {"exists": True, "container": recorded("container")}


def models(longest: int = 512) -> dict[str, Any]:
    """Return what uri gets of the API's models."""
    return {"status": 200, "json": {"data": [{"id": "tiny", "max_model_len": longest}]}, "msg": "OK (unknown bytes)"}


def plan(**given: Any) -> dict[str, Any]:
    """Return a plan for the recorded server."""
    wanted = request(**{"input_tokens": 64, "output_tokens": 8, **given})
    found = _bench.plan(wanted, MODEL, WHERE, container(), models())
    assert found["problem"] == ""
    return found


def record(when: str = WHERE["now"], faster: float = 1.0, **given: Any) -> dict[str, Any]:  # type: ignore[assignment]
    """Return the record of the recorded sweep, or one by so much faster."""
    made, problems = _bench_report.judge(plan(**given), recorded("sweep"), {"status": 0})
    assert problems == []
    made = copy.deepcopy({**made, "when": when})
    for step in made["steps"]:
        for key in ("requests_per_s", "output_tokens_per_s"):
            step[key] *= faster
        for key in _bench_report.LATENCIES:
            step[f"{key}_ms"] = {kind: figure / faster for kind, figure in step[f"{key}_ms"].items()}
    return made
