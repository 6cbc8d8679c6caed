# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The verdict on a model, its advice, and the plan; test_admission_models.py has the bytes of real models."""

from __future__ import annotations

import json
import math
import re
from dataclasses import fields, replace
from functools import cache
from pathlib import Path

import pytest
import yaml
from ansible_collections.sparkfleet.vllm.plugins.module_utils import _admission as admission
from ansible_collections.sparkfleet.vllm.plugins.module_utils import _model_memory as memory
from ansible_collections.sparkfleet.vllm.plugins.module_utils._admission import Admission, Node, admit
from ansible_collections.sparkfleet.vllm.plugins.module_utils._memory_plan import plan
from ansible_collections.sparkfleet.vllm.plugins.module_utils._model_config import Model, model_of
from ansible_collections.sparkfleet.vllm.plugins.module_utils._model_memory import Settings
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from docs import memory_table
from tests.unit.module_process import run_module

GIB, MIB = 1 << 30, 1 << 20
SPARK = Node()
NAMES = sorted(path.stem for path in memory_table.MODELS.glob("*.json"))
# What role ray gives each of several nodes.
RAY = Settings(executor="ray", object_store_bytes=1_000_000_000, shm_bytes=8 * GIB)


@cache
def model(name: str) -> Model:
    """Return a model of tests/unit/data/models."""
    return memory_table.model_of(memory_table.MODELS / f"{name}.json")


def judge(name: str, settings: Settings, node: Node = SPARK) -> Admission:
    """Return the verdict on a published model."""
    return admit(model(name), settings, node)


# --- the two conditions ----------------------------------------------------------------------------------------------


def test_a_model_that_fits() -> None:
    verdict = judge("gpt-oss-120b", Settings(gpu_memory_utilization=0.85))
    assert verdict.fits
    assert (verdict.reason, verdict.advice, verdict.suggestion) == ("", "", {})
    assert verdict.max_model_len == 131_072
    # vLLM's share; the server, its engine and its rank; CUDA; what stays free.
    share = math.ceil(0.85 * SPARK.memory)
    assert verdict.need_bytes == (share + (600 + 550 + 700 + 1536) * MIB + 3 * GIB,)


def test_the_sums_are_shown() -> None:
    assert judge("gpt-oss-120b", Settings()).lines == (
        "weights                                           65.9 GiB",
        "activations, 8192 tokens, 1024 sequences           3.8 GiB",
        "CUDA graphs                                        2.0 GiB",
        "kernels and the like                               2.0 GiB",
        "KV cache of 1 sequence of 131072 tokens, 16-bit    5.1 GiB",
        "vLLM needs                                        78.7 GiB",
        "vLLM may take 0.92 of 119.7 GiB                  110.1 GiB  enough",
        "vLLM on the node                                 110.1 GiB",
        "processes of vLLM                                  1.8 GiB",
        "CUDA                                               1.5 GiB",
        "operating system                                   8.0 GiB",
        "kept free                                          3.0 GiB",
        "all of it                                        124.4 GiB",
        "the node has                                     119.7 GiB  4.7 GiB too little",
    )


def test_vllms_default_share_would_freeze_a_spark() -> None:
    verdict = judge("Llama-3.1-8B-Instruct", Settings())
    assert not verdict.fits
    assert verdict.reason == "the node lacks 4.7 GiB of memory, with what runs beside vLLM: it would freeze"
    assert verdict.advice.startswith("gpu_memory_utilization 0.88 fits")
    assert verdict.suggestion == {"serve_gpu_memory_utilization": 0.88}


def test_the_host_has_room_for_exactly_so_much() -> None:
    small = model("Llama-3.1-8B-Instruct")
    beside = (600 + 550 + 700 + 1536) * MIB + 8 * GIB + 3 * GIB
    room = math.floor(100 * (SPARK.memory - beside) / SPARK.memory) / 100
    assert admission.highest_utilization(small, Settings(), SPARK) == room == 0.88
    assert admit(small, Settings(gpu_memory_utilization=room), SPARK).fits
    assert not admit(small, Settings(gpu_memory_utilization=room + 0.01), SPARK).fits


def test_several_nodes_carry_more() -> None:
    # The leader has a Ray head, the API server and the engine; the other a Ray worker. Both: NCCL, shared memory.
    verdict = judge("gpt-oss-120b", replace(RAY, tensor_parallel_size=2, gpu_memory_utilization=0.8))
    both = math.ceil(0.8 * SPARK.memory) + (700 + 1536 + 1024 + 512) * MIB + 1_000_000_000 + 3 * GIB
    assert verdict.need_bytes == (both + (600 + 550 + 610) * MIB, both + 175 * MIB)
    assert verdict.need_bytes_per_node == verdict.need_bytes[0]


def test_another_model_on_the_node_counts_but_is_no_need() -> None:
    alone = judge("gpt-oss-20b", Settings(gpu_memory_utilization=0.4))
    beside = judge("gpt-oss-20b", Settings(gpu_memory_utilization=0.4), Node(other=50 * GIB))
    assert alone.fits and beside.fits
    assert alone.need_bytes == beside.need_bytes
    # Two models on a node share what has to stay free.
    assert alone.takes_bytes == (alone.need_bytes[0] - 3 * GIB,)
    assert not judge("gpt-oss-20b", Settings(gpu_memory_utilization=0.4), Node(other=60 * GIB)).fits


def test_shared_memory_is_a_limit_and_rays_own_store_is_large() -> None:
    settings = replace(RAY, tensor_parallel_size=2, gpu_memory_utilization=0.5)
    set_size = judge("gpt-oss-20b", settings).need_bytes[1]
    own = judge("gpt-oss-20b", replace(settings, object_store_bytes=0, shm_bytes=0)).need_bytes[1]
    assert own - set_size == int(0.3 * SPARK.memory) - 1_000_000_000
    limited = judge("gpt-oss-20b", replace(settings, object_store_bytes=0)).need_bytes[1]
    assert limited - set_size == 8 * GIB - 512 * MIB - 1_000_000_000


def test_replicas_have_an_engine_each() -> None:
    verdict = judge("gpt-oss-20b", Settings(data_parallel_size=2, executor="mp", gpu_memory_utilization=0.5))
    assert verdict.need_bytes[0] - verdict.need_bytes[1] == 600 * MIB


# --- a given size of the KV cache ------------------------------------------------------------------------------------


def test_a_given_cache_is_what_counts() -> None:
    settings = Settings(kv_cache_memory_bytes=6 * GIB, gpu_memory_utilization=0.5)
    verdict = judge("gpt-oss-120b", settings)
    assert verdict.fits
    fixed = verdict.bytes["weights"] + verdict.bytes["activations"] + 4 * GIB
    assert verdict.need_bytes == (fixed + 6 * GIB + (600 + 550 + 700 + 1536) * MIB + 3 * GIB,)


def test_sequences_at_once() -> None:
    settings = Settings(kv_cache_memory_bytes=10 * GIB, gpu_memory_utilization=0.5, max_model_len=16_384)
    # 10 GiB hold 5120 blocks of 32 layers x 64 KiB; a sequence of 16384 tokens has 1024.
    assert judge("Llama-3.1-8B-Instruct", settings).sequences == 5_120 / 1_024


def test_a_given_cache_that_is_too_small() -> None:
    verdict = judge("gpt-oss-120b", Settings(kv_cache_memory_bytes=4 * GIB, gpu_memory_utilization=0.5))
    # 18 layers x 32768 bytes, 8192 blocks for the layers that see everything, 1033 for the others, and one.
    need = 18 * 32_768 * (8_192 + 1_033 + 1)
    assert verdict.reason == "the KV cache of one sequence of 131072 tokens needs 5.1 GiB, and has 4.0 GiB"
    # 4 GiB: 7281 blocks, of which 1033 and 1 are taken.
    assert verdict.advice.startswith(f"max_model_len {(4 * GIB // (18 * 32_768) - 1_034) * 16} fits")
    assert f"or kv_cache_memory_bytes {math.ceil(need / MIB)}M" in verdict.advice


def test_a_given_cache_that_the_node_cannot_bear() -> None:
    settings = Settings(kv_cache_memory_bytes=400 * GIB, gpu_memory_utilization=0.5)
    verdict = judge("gpt-oss-120b", settings)
    assert not verdict.fits
    assert verdict.reason.endswith("it would freeze")
    said = re.match(r"kv_cache_memory_bytes (\d+)G fits", verdict.advice)
    assert said
    most = int(said[1])
    assert verdict.suggestion == {"serve_kv_cache_memory_bytes": most * GIB}
    for size, fits in ((most, True), (most + 1, False)):
        assert judge("gpt-oss-120b", replace(settings, kv_cache_memory_bytes=size * GIB)).fits is fits


def test_vllm_looks_for_its_share_even_with_a_given_cache() -> None:
    verdict = judge("gpt-oss-20b", Settings(kv_cache_memory_bytes=8 * GIB))
    assert not verdict.fits
    assert verdict.lines[-1].startswith("vLLM looks for at its start, 0.92 of 119.7 GiB")
    assert verdict.reason.endswith("vLLM would not start")
    assert verdict.advice.startswith("gpu_memory_utilization 0.9 fits")


def test_on_a_cpu_only_the_given_cache_counts() -> None:
    settings = Settings(
        device="cpu", kv_cache_memory_bytes=64 * MIB, max_model_len=128, max_num_seqs=1, max_num_batched_tokens=128
    )
    tiny = model_of(
        {
            "model_type": "qwen3", "vocab_size": 384, "hidden_size": 128, "intermediate_size": 256,
            "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 32,
            "max_position_embeddings": 2048,
        }
    )  # fmt: skip
    node = Node(memory=16 * GIB)
    verdict = admit(tiny, settings, node)
    # Embedding and head; a layer: four matrices of 128 x 128, three of 128 x 256, two norms, and two for heads of 32.
    weights = 2 * (2 * 384 * 128 + 128 + 4 * (4 * 128 * 128 + 3 * 128 * 256 + 2 * 128 + 2 * 32))
    activations = 128 * (2 * 128 + 3 * 256) * 2
    kept = 16 * GIB // 16
    assert verdict.fits
    assert verdict.need_bytes == (weights + activations + 64 * MIB + (600 + 550 + 700) * MIB + kept,)
    assert not admit(tiny, settings, Node(memory=2 * GIB)).fits


# --- what cannot be --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "settings", "line"),
    [
        ("Llama-3.1-8B-Instruct", Settings(tensor_parallel_size=3), "the number of attention heads, 32, cannot be"),
        ("GLM-4.5-Air", Settings(tensor_parallel_size=3), "the number of KV heads, 8, can neither be divided by 3"),
        ("gemma-3-27b-it", Settings(pipeline_parallel_size=63), "62 layers are too few for 63 pipeline stages"),
        # vLLM: "192 is not divisible by weight quantization block_n = 128".
        (
            "MiniMax-M2",
            Settings(tensor_parallel_size=8),
            "the experts' size, 1536 / 8 on a rank, is no multiple of 128",
        ),
        ("MiniMax-M2", Settings(tensor_parallel_size=4, data_parallel_size=2), "the experts' size, 1536 / 8"),
        ("Qwen2.5-72B-Instruct-AWQ", Settings(tensor_parallel_size=16), "the feed-forward size, 29696 / 16 on a rank"),
        ("NVIDIA-Nemotron-3-Nano-30B-A3B-BF16", Settings(tensor_parallel_size=16), "the number of groups of the mamba"),
        ("Qwen3-Next-80B-A3B", Settings(tensor_parallel_size=32), "the number of key heads of linear attention, 16,"),
        ("Llama-3.1-8B-Instruct", Settings(max_model_len=131_073), "max_model_len 131073 is more than the model's own"),
        ("gpt-oss-20b", Settings(max_num_seqs=64, max_num_batched_tokens=32), "max_num_batched_tokens 32 is less than"),
    ],
)
def test_sizes_that_cannot_be(name: str, settings: Settings, line: str) -> None:
    verdict = judge(name, settings)
    assert not verdict.fits
    assert any(one.startswith(line) for one in verdict.lines)
    assert verdict.reason == verdict.lines[0]
    assert len(verdict.need_bytes) == settings.nodes


def test_what_vllm_allows() -> None:
    # 2880 cannot be divided by 128, but vLLM pads these experts; 8 KV heads are copied to 16 ranks.
    assert admission.size_problems(model("gpt-oss-120b"), Settings(tensor_parallel_size=8)) == []
    assert admission.size_problems(model("Llama-3.3-70B-Instruct"), Settings(tensor_parallel_size=16)) == []
    assert admission.size_problems(model("DeepSeek-V3"), Settings(tensor_parallel_size=8)) == []


def test_the_number_of_ranks_that_can_be_is_the_advice() -> None:
    assert judge("Llama-3.1-8B-Instruct", Settings(tensor_parallel_size=3)).advice == (
        "tensor_parallel_size can be 1, 2, 4, 8"
    )
    assert judge("Llama-3.1-8B-Instruct", Settings(max_model_len=1 << 20)).advice == "max_model_len 131072 is the most"


# --- the nearest settings that fit -----------------------------------------------------------------------------------


def test_a_shorter_context_is_the_nearest() -> None:
    verdict = judge("Llama-3.3-70B-Instruct", replace(RAY, tensor_parallel_size=2, gpu_memory_utilization=0.7))
    assert not verdict.fits
    assert verdict.advice.startswith(f"max_model_len {verdict.max_model_len} fits; or gpu_memory_utilization 0.")
    assert 1024 < verdict.max_model_len < 131_072
    assert verdict.suggestion == {"serve_max_model_len": verdict.max_model_len}


def test_a_little_more_memory_is_advised_as_little_as_needed() -> None:
    settings = replace(RAY, tensor_parallel_size=2, gpu_memory_utilization=0.7)
    share = float(judge("Llama-3.3-70B-Instruct", settings).advice.split("gpu_memory_utilization ")[1].split(";")[0])
    assert judge("Llama-3.3-70B-Instruct", replace(settings, gpu_memory_utilization=share)).fits
    assert not judge("Llama-3.3-70B-Instruct", replace(settings, gpu_memory_utilization=round(share - 0.01, 2))).fits


def test_two_changes_where_one_is_not_enough() -> None:
    # On 1 Spark of less memory: neither a smaller share nor a shorter context alone.
    verdict = judge("Qwen3-32B-FP8", Settings(), Node(memory=60 * GIB))
    assert verdict.advice.startswith("gpu_memory_utilization 0.76 with max_model_len ")
    assert set(verdict.suggestion) == {"serve_gpu_memory_utilization", "serve_max_model_len"}


def test_more_sparks_where_nothing_else_helps() -> None:
    settings = replace(RAY, executor="none", gpu_memory_utilization=0.85)
    verdict = judge("Llama-3.3-70B-Instruct", settings)
    assert verdict.reason == "weights and activations alone need 137.4 GiB, and vLLM may take 101.7 GiB"
    assert verdict.advice == "2 Sparks with tensor_parallel_size 2 fits"
    assert verdict.suggestion == {"serve_tensor_parallel_size": 2, "serve_executor": "ray"}
    assert verdict.max_model_len == 0


def test_a_model_that_is_too_large_for_all() -> None:
    verdict = judge("DeepSeek-V3", Settings(tensor_parallel_size=8, gpu_memory_utilization=0.5))
    assert verdict.advice == "gpu_memory_utilization 0.83 fits"
    large = model_of({**json.loads((memory_table.MODELS / "DeepSeek-V3.json").read_text())["config"],
                      "quantization_config": None})  # fmt: skip
    assert admit(large, replace(RAY, tensor_parallel_size=8), SPARK).advice.startswith("nothing near it fits on up to")


# Settings that are close to the edge, where an advice has to be right.
EDGES = st.builds(
    Settings,
    tensor_parallel_size=st.sampled_from([1, 2, 4, 8]),
    pipeline_parallel_size=st.sampled_from([1, 2, 3]),
    max_model_len=st.sampled_from([0, 4096, 32_768]),
    max_num_seqs=st.sampled_from([0, 8, 256]),
    gpu_memory_utilization=st.sampled_from([0.0, 0.3, 0.6, 0.8, 0.85]),
    kv_cache_dtype=st.sampled_from(["auto", "fp8"]),
    executor=st.sampled_from(["ray", "mp"]),
    object_store_bytes=st.just(1_000_000_000),
    enforce_eager=st.booleans(),
)
MODELS = st.sampled_from(NAMES)


@given(MODELS, EDGES)
@hypothesis_settings(deadline=None, max_examples=60)
def test_the_advised_context_fits_and_the_next_block_does_not(name: str, settings: Settings) -> None:
    one = model(name)
    settings = replace(settings, max_model_len=0)
    if admission.size_problems(one, settings):
        return
    length = admission.longest(one, settings, SPARK)
    if length:
        assert admission.sums_of(one, memory.with_context(settings, length), SPARK).starts
    step = memory.kv_cache(one, settings).granularity
    if length + step <= one.max_len:
        assert not admission.sums_of(one, memory.with_context(settings, length + step), SPARK).starts


@given(MODELS, EDGES)
@hypothesis_settings(deadline=None, max_examples=60)
def test_what_is_advised_fits(name: str, settings: Settings) -> None:
    verdict = judge(name, settings)
    assert verdict.fits == (not verdict.advice and not verdict.reason)
    if verdict.suggestion:
        changed = {name.removeprefix("serve_"): value for name, value in verdict.suggestion.items()}
        assert judge(name, replace(settings, **changed)).fits


@given(MODELS, EDGES, st.integers(1, 131_072), st.integers(1, 131_072))
@hypothesis_settings(deadline=None, max_examples=60)
def test_more_context_never_needs_less(name: str, settings: Settings, one: int, other: int) -> None:
    short, long = sorted((one, other))
    needs = []
    for length in (short, long):
        asked = memory.with_context(settings, length)
        sums = admission.sums_of(model(name), asked, SPARK)
        needs.append([sums.need(stage) for stage in range(settings.pipeline_parallel_size)])
    assert all(less <= more for less, more in zip(*needs, strict=True))


@given(MODELS, EDGES)
@hypothesis_settings(deadline=None, max_examples=60)
def test_more_ranks_never_need_more(name: str, settings: Settings) -> None:
    needs = []
    for tp in (1, 2, 4, 8):
        asked = replace(settings, tensor_parallel_size=tp)
        if not admission.size_problems(model(name), asked):
            needs.append(
                max(admission.sums_of(model(name), asked, SPARK).need(i) for i in range(asked.pipeline_parallel_size))
            )
    assert needs == sorted(needs, reverse=True)


@given(MODELS, EDGES)
@hypothesis_settings(deadline=None, max_examples=40)
def test_the_stages_hold_each_layer_once(name: str, settings: Settings) -> None:
    one = model(name)
    stages = memory.stages(len(one.layers), settings.pipeline_parallel_size)
    assert [layer for stage in stages for layer in stage] == list(range(len(one.layers)))
    whole = memory.stage_weights(one, Settings(), 0)
    parts = [memory.stage_weights(one, Settings(pipeline_parallel_size=len(stages)), i) for i in range(len(stages))]
    # What is tied is on both ends; rounding loses less than a byte for each part.
    again = one.embedding.size if one.tied and len(stages) > 1 else 0
    assert sum(parts) == pytest.approx(whole + again, abs=len(stages) * 64, rel=1e-9)


# --- the plan --------------------------------------------------------------------------------------------------------


def test_the_plan_takes_the_fewest_sparks() -> None:
    answer = plan(model("Llama-3.3-70B-Instruct"), RAY, SPARK)
    assert [row.sparks for row in answer.rows] == list(range(1, 9))
    assert answer.fits and answer.best is answer.rows[1]
    assert answer.variables == {"serve_tensor_parallel_size": 2, "serve_gpu_memory_utilization": 0.85}
    assert answer.verdict.startswith("fits on 2 Sparks with 131072 tokens, 1.5 such sequences")
    assert judge("Llama-3.3-70B-Instruct", replace(RAY, tensor_parallel_size=2, gpu_memory_utilization=0.85)).fits


def test_the_plan_makes_a_pipeline_where_tensors_cannot_be_divided() -> None:
    answer = plan(model("MiniMax-M2"), RAY, SPARK)
    assert answer.best is not None
    assert answer.best.split == "TP 1 x PP 3"
    assert answer.variables["serve_pipeline_parallel_size"] == 3
    # 1536 / 8 cuts through the quantisation's blocks.
    assert answer.rows[7].split == "TP 4 x PP 2"


def test_a_wanted_context_that_needs_a_cache_of_eight_bits() -> None:
    answer = plan(model("Llama-3.3-70B-Instruct"), replace(RAY, gpu_memory_utilization=0.75), SPARK, max_sparks=2)
    assert answer.verdict == "fits on 2 Sparks with 131072 tokens and kv_cache_dtype fp8"
    assert answer.variables["serve_kv_cache_dtype"] == "fp8"


def test_more_sparks_go_before_a_cache_of_eight_bits() -> None:
    answer = plan(model("Llama-3.1-8B-Instruct"), RAY, Node(memory=48 * GIB), max_sparks=2)
    assert answer.rows[0].context < 131_072 <= answer.rows[0].context_fp8
    assert answer.verdict.startswith("fits on 2 Sparks with 131072 tokens, ")
    assert "serve_kv_cache_dtype" not in answer.variables


def test_a_context_that_is_too_long_is_shortened() -> None:
    answer = plan(model("Llama-3.3-70B-Instruct"), replace(RAY, gpu_memory_utilization=0.65), SPARK, max_sparks=2)
    assert not answer.fits
    assert answer.best is not None and 0 < answer.best.reach < 131_072
    assert answer.verdict == f"does not fit with 131072 tokens; max_model_len {answer.best.reach} fits on 2 Sparks"
    assert answer.variables["serve_max_model_len"] == answer.best.reach


def test_a_context_beyond_the_models_own() -> None:
    answer = plan(model("gpt-oss-20b"), replace(RAY, max_model_len=200_000), SPARK, max_sparks=1)
    assert not answer.fits
    assert answer.verdict.startswith(
        "200000 tokens are more than the model's own 131072; with those it fits on 1 Spark"
    )
    assert answer.variables["serve_max_model_len"] == 131_072


def test_a_plan_for_what_is_too_large() -> None:
    answer = plan(model("DeepSeek-V3"), RAY, SPARK, max_sparks=4)
    assert answer.best is None and not answer.variables
    assert answer.verdict == "does not fit on up to 4 Sparks; choose a smaller one or another quantisation"
    assert answer.report()["sparks"] is None


def test_the_plan_as_a_person_sees_it() -> None:
    lines = plan(model("Qwen3-30B-A3B"), replace(RAY, max_model_len=32_768), SPARK, max_sparks=3).text()
    assert lines == [
        "qwen3_moe, 16-bit: 56.9 GiB of weights (by its files), context of 40960 tokens",
        "a Spark: 119.7 GiB, 8.0 GiB of it for the system and 3.0 GiB kept free",
        "",
        "Sparks  split         weights  must be free  context  with fp8 cache  at once",
        "     1  TP 1         56.9 GiB     110.8 GiB    40960           40960       13",
        "     2  TP 2         28.4 GiB     111.1 GiB    40960           40960       44",
        "     3  TP 1 x PP 3  19.2 GiB     111.1 GiB    40960           40960       75",
        "",
        "fits on 1 Spark with 32768 tokens, 13 such sequences at once",
        "",
        "for the inventory:",
        "  serve_tensor_parallel_size: 1",
        "  serve_gpu_memory_utilization: 0.86",
        "  serve_max_model_len: 32768",
        "",
        "Computed, not run on a Spark: docs/memory.md.",
    ]


@given(MODELS, st.sampled_from([0, 8192]), st.integers(20, 160))
@hypothesis_settings(deadline=None, max_examples=20)
def test_what_the_plan_says_is_admitted(name: str, length: int, size: int) -> None:
    one, node = model(name), Node(memory=size * GIB)
    answer = plan(one, replace(RAY, max_model_len=length), node)
    for row in answer.rows:
        if row.settings and row.context:
            assert admit(one, memory.with_context(row.settings, row.context), node).fits
    if answer.best and answer.best.settings:
        changed = {name.removeprefix("serve_"): value for name, value in answer.variables.items()}
        assert admit(one, replace(answer.best.settings, **changed), node).fits


# --- the module and the page -----------------------------------------------------------------------------------------


def directory(name: str, tmp_path: Path, index: bool = True) -> Path:
    """Write a published model's config.json, and its index if its size is known."""
    data = json.loads((memory_table.MODELS / f"{name}.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(data["config"]))
    if "hf_quant_config" in data:
        (tmp_path / "hf_quant_config.json").write_text(json.dumps(data["hf_quant_config"]))
    if index and "weights_bytes" in data:
        content = {"metadata": {"total_size": data["weights_bytes"]}, "weight_map": {"a": "1.safetensors"}}
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps(content))
    return tmp_path


def test_the_module_plans_and_admits(tmp_path: Path) -> None:
    settings = {"max_model_len": 65_536, "gpu_memory_utilization": 0.8}
    answer = run_module(
        "memory_plan", {"model": str(directory("gpt-oss-120b", tmp_path)), "settings": settings}, tmp_path, check=True
    )
    assert answer["changed"] is False
    assert answer["plan"]["sparks"] == 1 and answer["plan"]["fits"]
    assert answer["plan"]["model"]["weights_estimated"] is False
    assert answer["admission"]["fits"] and answer["admission"]["need_bytes"] == [
        answer["admission"]["need_bytes_per_node"]
    ]
    assert any(line.startswith("fits on 1 Spark with 65536 tokens") for line in answer["text"])


def test_the_module_reads_a_quantisation_beside_the_config(tmp_path: Path) -> None:
    answer = run_module("memory_plan", {"model": str(directory("Qwen3-30B-A3B-NVFP4", tmp_path))}, tmp_path)
    assert answer["plan"]["model"]["quantisation"] == "nvfp4"
    assert answer["plan"]["model"]["weights_estimated"] is True


@pytest.mark.parametrize(
    ("model_path", "line"),
    [
        ("", "an empty name is no directory"),
        ("{tmp}/absent", "is no directory; give the one that holds the model's config.json"),
        ("{tmp}/Qwen/Qwen3-32B", "if Qwen/Qwen3-32B is a name on Hugging Face, download its config.json"),
        ("{tmp}/file.tar", "is no directory; unpack it"),
        ("{tmp}", "config.json cannot be read: No such file or directory"),
        ("{tmp}/list", "holds no JSON object"),
        ("{tmp}/broken", "is no valid JSON"),
        ("{tmp}/encoder", "is an encoder-decoder, which is not known here"),
    ],
)
def test_what_is_no_model_is_one_line(model_path: str, line: str, tmp_path: Path) -> None:
    (tmp_path / "file.tar").write_text("")
    texts = {"list": "[]", "broken": "{", "encoder": '{"model_type": "t5", "is_encoder_decoder": true}'}
    for name, text in texts.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(text)
    answer = run_module("memory_plan", {"model": model_path.format(tmp=tmp_path)}, tmp_path)
    assert answer["failed"] and line in answer["msg"] and "\n" not in answer["msg"]


@pytest.mark.parametrize(
    "arguments",
    [
        {"settings": {"tensor_parallel_size": 0}},
        {"settings": {"max_model_len": -1}},
        {"settings": {"gpu_memory_utilization": 1.5}},
        {"node": {"memory": -1}},
        {"max_sparks": 0},
    ],
)
def test_numbers_out_of_range_are_refused(arguments: dict[str, object], tmp_path: Path) -> None:
    answer = run_module("memory_plan", {"model": str(directory("gpt-oss-20b", tmp_path)), **arguments}, tmp_path)
    assert answer["failed"] and "Traceback" not in answer["msg"]


def test_module_playbook_and_settings_name_the_same() -> None:
    from ansible_collections.sparkfleet.vllm.plugins.modules import memory_plan as face

    assert set(face.SETTINGS) == {field.name for field in fields(Settings)}
    assert set(face.NODE) == {field.name for field in fields(Node)}
    playbook = yaml.safe_load((memory_table.CHECKOUT / "playbooks" / "plan.yml").read_text())
    arguments = playbook[0]["tasks"][0]["sparkfleet.vllm.memory_plan"]
    assert set(arguments["settings"]) < set(face.SETTINGS)
    # What the page's table is computed with.
    given = {name: arguments["settings"][name] for name in ("object_store_bytes", "shm_bytes")}
    assert given == {name: getattr(memory_table.SETTINGS, name) for name in given}


def test_the_page_is_up_to_date(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert memory_table.main(["--check"]) == 0
    page = tmp_path / "memory.md"
    page.write_text(f"a\n<!-- {memory_table.MARKER} -->\nold\n<!-- /{memory_table.MARKER} -->\nb\n")
    assert memory_table.main(["--check"], page) == 1
    assert memory_table.main([], page) == 0
    assert memory_table.main(["--check"], page) == 0
    assert page.read_text().startswith("a\n") and page.read_text().endswith("\nb\n")
    page.write_text("nothing")
    assert memory_table.main(["--check"], page) == 1
    assert "python docs/memory_table.py" in capsys.readouterr().err
    assert len(NAMES) >= 12
