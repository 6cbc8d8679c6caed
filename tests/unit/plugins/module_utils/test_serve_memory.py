# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the memory plan is asked follows from the variables, and from arguments that say the same."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.sparkfleet.vllm.plugins.module_utils import _serve_memory
from ansible_collections.sparkfleet.vllm.plugins.module_utils._model_memory import Settings


def model(**changes: Any) -> dict[str, Any]:
    base = {
        "name": "tiny",
        "nodes": ["a", "b"],
        "tensor_parallel_size": 2,
        "pipeline_parallel_size": 1,
        "data_parallel_size": 1,
        "executor": "ray",
        "kv_cache_memory_bytes": "",
        "shm_size": "8g",
        "extra_args": [],
    }
    return base | changes


@pytest.mark.parametrize(
    ("text", "size"),
    [("64M", 64 << 20), ("64m", 64_000_000), ("8G", 8 << 30), ("1.5k", 1500), (123, 123), ("8GiB", 8 << 30)],
)
def test_sizes_are_read_as_vllm_reads_them(text: object, size: int) -> None:
    assert _serve_memory.size(text) == size


@pytest.mark.parametrize("text", ["", "x", "8X", "-1", "8 G"])
def test_what_is_no_size_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match="write it as 64M or 8G"):
        _serve_memory.size(text)


def test_docker_counts_in_powers_of_two_whatever_the_case() -> None:
    assert _serve_memory.docker_size("8g") == _serve_memory.docker_size("8G") == 8 << 30


def test_the_settings_are_those_that_the_plan_knows() -> None:
    asked = _serve_memory.settings(model(kv_cache_memory_bytes="1G", max_model_len=4096), 10**9, "cuda")
    known = Settings(**asked)
    assert (known.tensor_parallel_size, known.max_model_len, known.kv_cache_memory_bytes) == (2, 4096, 1 << 30)
    assert (known.executor, known.object_store_bytes, known.shm_bytes) == ("ray", 10**9, 8 << 30)
    alone = Settings(**_serve_memory.settings(model(executor=""), 10**9, "cpu"))
    assert (alone.executor, alone.object_store_bytes, alone.device) == ("none", 0, "cpu")


def test_an_argument_counts_like_the_variable_and_wins_over_it() -> None:
    given = [
        "--max-model-len=8k",
        "--gpu-memory-utilization",
        "0.5",
        "--enforce-eager",
        "--kv_cache_dtype",
        "fp8",
        "--x",
    ]
    asked = _serve_memory.settings(model(max_model_len=4096, extra_args=given), 0, "cuda")
    assert asked["max_model_len"] == 8000
    assert (asked["gpu_memory_utilization"], asked["enforce_eager"], asked["kv_cache_dtype"]) == (0.5, True, "fp8")
    Settings(**asked)


def test_an_argument_without_its_value_is_refused() -> None:
    with pytest.raises(ValueError):
        _serve_memory.flags(["--max-model-len"])


def test_a_refusal_has_the_reason_what_fits_and_the_sums_below() -> None:
    report = {
        "fits": False,
        "reason": "3 GiB too much",
        "advice": "max_model_len 4096 fits",
        "lines": ["weights 9 GiB"],
    }
    assert _serve_memory.problem("tiny", report) == (
        "tiny does not fit: 3 GiB too much; max_model_len 4096 fits\n    weights 9 GiB"
    )
    assert _serve_memory.problem("tiny", report | {"fits": True}) == ""


def test_others_are_added_up_on_the_fullest_node() -> None:
    models = [
        model(name="x", nodes=["a"]),
        model(name="y", nodes=["a", "b"]),
        model(name="z", nodes=["b"]),
        model(name="unknown", nodes=["a"]),
    ]
    found = {"x": {"takes_bytes": 5}, "z": {"takes_bytes": 7}}
    assert _serve_memory.others(models[1], found, models) == 7
    assert _serve_memory.others(models[0], found, models) == 0, "not what it takes itself"
