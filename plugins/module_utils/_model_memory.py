# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module util is PRIVATE to the collection. It can have breaking changes at any time.
"""What a rank of vLLM 0.32 takes for a model: weights, KV cache, activations.

The rules are vLLM's own. Where to compare them: ``distributed/utils.py`` for the pipeline's stages,
``v1/kv_cache_interface.py`` and ``v1/core/kv_cache_utils.py`` for the cache, ``platforms/interface.py`` for the blocks
of hybrid models, ``v1/worker/gpu`` for the run that measures activations. All sizes are bytes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache

from ._model_config import (
    Cache,
    Experts,
    Layer,
    Model,
    Tensor,
)
from ._model_quantisation import DTYPE_BYTES

GIB = 1 << 30
MIB = 1 << 20

# vLLM's defaults on a GPU of 70 GiB and more, and on a CPU for each rank (EngineArgs.get_batch_defaults).
_GPU_TOKENS, _GPU_SEQS = 8192, 1024
_CPU_TOKENS, _CPU_SEQS = 2048, 128
_VOCAB_PADDING = 64
# What an attention backend asks for as scratch (VLLM_FLASHINFER_WORKSPACE_BUFFER_SIZE).
_ATTENTION_SCRATCH = 394 * MIB
# Tokens of a block of the KV cache, unless the model mixes attention and states.
_GPU_BLOCK, _CPU_BLOCK = 16, 128
# CUDA graphs cannot be computed: vLLM captures some and looks. Owners' logs show 0.3 to 5 GiB, most with experts.
_GRAPHS_DENSE, _GRAPHS_EXPERTS = 1 * GIB, 2 * GIB
# What a rank takes after vLLM's first look besides its tensors: kernels' modules, libraries' handles, the compiler. On
# unified memory the host's part of it counts as the GPU's.
_BESIDES = 2 * GIB


@dataclass(frozen=True)
class Settings:
    """What an owner sets; 0 and ``auto`` are vLLM's own choice. ``device``: cuda or cpu."""

    tensor_parallel_size: int = 1
    pipeline_parallel_size: int = 1
    data_parallel_size: int = 1
    max_model_len: int = 0
    max_num_seqs: int = 0
    max_num_batched_tokens: int = 0
    gpu_memory_utilization: float = 0.0
    kv_cache_memory_bytes: int = 0
    kv_cache_dtype: str = "auto"
    dtype: str = "auto"
    block_size: int = 0
    enforce_eager: bool = False
    executor: str = "none"  # ray, mp, or none on a single node
    shm_bytes: int = 0
    object_store_bytes: int = 0
    device: str = "cuda"

    @property
    def ranks(self) -> int:
        """Ranks of one copy of the model."""
        return self.tensor_parallel_size * self.pipeline_parallel_size

    @property
    def nodes(self) -> int:
        """Nodes, as each has one GPU."""
        return self.ranks * self.data_parallel_size


def ceil_div(number: int, by: int) -> int:
    """Return number / by, rounded up."""
    return -(-number // by)


def _round_up(number: int, to: int) -> int:
    return ceil_div(number, to) * to


def context(model: Model, settings: Settings) -> int:
    """Return the tokens of context that the settings ask for."""
    return settings.max_model_len or model.max_len


def batch(model: Model, settings: Settings) -> tuple[int, int]:
    """Return the tokens of a step and the sequences of a step that vLLM would run with."""
    gpu = settings.device == "cuda"
    sequences = settings.max_num_seqs or (_GPU_SEQS if gpu else _CPU_SEQS * settings.ranks)
    tokens = settings.max_num_batched_tokens or min(
        _GPU_TOKENS if gpu else _CPU_TOKENS * settings.ranks, sequences * context(model, settings)
    )
    return tokens, sequences if settings.max_num_seqs else min(sequences, tokens)


def dtype_bytes(model: Model, settings: Settings) -> int:
    """Return the bytes of an activation."""
    return DTYPE_BYTES.get(settings.dtype, model.dtype_bytes) if settings.dtype != "auto" else model.dtype_bytes


# --- weights ---------------------------------------------------------------------------------------------------------


def stages(layers: int, pipeline: int) -> list[range]:
    """Return the layers of each pipeline stage (get_pp_indices): what is left over goes to all but the last."""
    each, left = divmod(layers, pipeline)
    sizes = [each] * pipeline
    for i in range(2, left + 2):
        sizes[-i] += 1
    starts = [sum(sizes[:i]) for i in range(pipeline)]
    return [range(start, start + size) for start, size in zip(starts, sizes, strict=True)]


def _tensor(tensor: Tensor, tp: int) -> int:
    """Return the bytes that one of ``tp`` ranks has of a tensor."""
    rows, columns = tensor.rows, tensor.columns
    if tensor.split == "out":
        rows = ceil_div(rows, tp)
    elif tensor.split == "in":
        columns = ceil_div(columns, tp)
    elif tensor.split == "kv":
        # A rank has at least one KV head, so where there are fewer of them than ranks they are copied.
        rows = rows // tensor.heads * max(1, tensor.heads // tp)
    elif tensor.split == "groups":
        groups = tensor.heads if tensor.heads % tp == 0 else tp
        rows = rows // tensor.heads * groups // tp
    elif tensor.split == "vocab":
        rows = _round_up(rows, _VOCAB_PADDING) // tp
    return tensor.storage.bytes(rows, columns)


def _experts(experts: Experts, tp: int) -> int:
    """Return the bytes that one rank has of a layer's experts, divided by their intermediate size."""
    inner, hidden = ceil_div(experts.intermediate, tp), experts.hidden
    if experts.storage.padded:
        # For the Marlin kernel, the largest of the choices on this GPU (mxfp4_round_up_hidden_size_and_...).
        inner, hidden = _round_up(inner, 128), _round_up(hidden, 256)
    return experts.bytes(inner, hidden)


def _layer(layer: Layer, tp: int, expert_tp: int) -> int:
    own = sum(_tensor(tensor, tp) for tensor in layer.tensors)
    return own + (_experts(layer.experts, expert_tp) if layer.experts else 0)


@lru_cache(maxsize=4096)
def _stage_weights(model: Model, tp: int, pp: int, dp: int, stage: int) -> int:
    layers = [model.layers[i] for i in stages(len(model.layers), pp)[stage]]
    # Data parallel replicas share the experts, also without expert parallelism (flatten_tp_across_dp_and_pcp).
    size = sum(_layer(layer, tp, tp * dp) for layer in layers)
    first, last = stage == 0, stage == pp - 1
    if first or (last and model.tied):
        size += _tensor(model.embedding, tp)
    if first:
        size += sum(_tensor(tensor, tp) for tensor in model.extra)
    if last:
        size += _tensor(model.norm, tp) + (_tensor(model.head, tp) if model.head else 0)
    return size


def stage_weights(model: Model, settings: Settings, stage: int) -> int:
    """Return the bytes of weights on a rank of a pipeline stage."""
    tp, pp, dp = settings.tensor_parallel_size, settings.pipeline_parallel_size, settings.data_parallel_size
    size = _stage_weights(model, tp, pp, dp, stage)
    # What the files say beats what was counted, in the same proportion on every rank.
    if not model.estimated:
        size = size * model.weights // model.counted
    if not (model.quantisation.groups or model.estimated):
        size = size * dtype_bytes(model, settings) // model.dtype_bytes
    if model.mla:
        # W_UK and W_UV, made of kv_b_proj while it is kept for prefill.
        size += (
            model.mla_copy
            * len(stages(len(model.layers), pp)[stage])
            // len(model.layers)
            // tp
            * dtype_bytes(model, settings)
        )
    return size


# --- KV cache --------------------------------------------------------------------------------------------------------


def _kv_bits(model: Model, settings: Settings) -> float:
    """Return the bits of a cached element; checkpoints may ask for 8."""
    name = settings.kv_cache_dtype
    if name == "auto":
        name = model.quantisation.kv_dtype or "auto"
    if name == "auto":
        return 8.0 * dtype_bytes(model, settings)
    if name.startswith("nvfp4"):
        return 4.5
    return 8.0 if name.startswith(("fp8", "int8")) else 8.0 * DTYPE_BYTES.get(name, 2)


def kv_name(model: Model, settings: Settings) -> str:
    """Return what the KV cache is stored as, for a person."""
    bits = _kv_bits(model, settings)
    return {4.5: "nvfp4", 8.0: "fp8", 32.0: "32-bit"}.get(bits, "16-bit")


def _token_bytes(model: Model, settings: Settings, cache: Cache) -> int:
    """Return the bytes of one token in one layer on one rank."""
    heads = max(1, cache.heads // settings.tensor_parallel_size)
    return math.ceil(heads * cache.width * _kv_bits(model, settings) / 8) + cache.extra


def _state_bytes(model: Model, settings: Settings, cache: Cache) -> int:
    """Return the bytes of one layer's state of one sequence on one rank."""
    state, tp = cache.state, settings.tensor_parallel_size
    if state is None:
        return 0
    conv = state.conv
    if state.groups and state.groups % tp:
        conv += 2 * (tp - state.groups) * state.group_size
    return conv // tp * state.conv_rows * dtype_bytes(model, settings) + state.recurrent // tp * state.recurrent_bytes


@dataclass(frozen=True)
class Group:
    """Layers that share a block table: for each stage how many, and what one sequence takes."""

    layers: tuple[int, ...]
    page: int  # bytes of a block in one layer
    block: int  # tokens of a block
    kind: str
    window: int = 0

    def blocks(self, length: int, in_flight: int) -> int:
        """Return the blocks of one sequence of ``length`` tokens, while ``in_flight`` are being computed."""
        if self.kind == "state":
            return 2  # with prefix caching, which is on: the running state and the last one that can be reused
        if self.kind == "window":
            return ceil_div(min(self.window - 1 + in_flight, length), self.block) + 1
        if self.kind == "chunk":
            return ceil_div(min(self.window + in_flight, length), self.block)
        return ceil_div(length, self.block)


@dataclass(frozen=True)
class KVCache:
    """The groups of a model. A block id belongs to one group at a time, so a block is as wide as the widest group."""

    groups: tuple[Group, ...]
    in_flight: int

    def block_bytes(self, stage: int) -> int:
        """Return the bytes of one block on a rank of a stage."""
        return max((group.layers[stage] * group.page for group in self.groups), default=0)

    def blocks(self, length: int) -> int:
        """Return the blocks that a sequence of ``length`` tokens holds."""
        return sum(group.blocks(length, self.in_flight) for group in self.groups)

    def need(self, length: int, stage: int) -> int:
        """Return what vLLM asks for before it starts: one sequence, and the null block that it never uses."""
        return (self.blocks(length) + 1) * self.block_bytes(stage) if self.groups else 0

    @property
    def granularity(self) -> int:
        """Tokens by which a longer context costs more."""
        return next((group.block for group in self.groups if group.kind in ("full", "chunk")), 1)


def _aligned(model: Model, settings: Settings, block: int) -> int:
    """Return the tokens of a block of a hybrid model: an attention page is at least as large as a state."""
    attention = max((_token_bytes(model, settings, one) for one in model.caches if one.kind == "full"), default=0)
    state = max(_state_bytes(model, settings, one) for one in model.caches if one.kind == "state")
    if not attention:
        return block
    step = max(block, 128) if model.mla else block
    return max(block, step * ceil_div(state, step * attention))


def _split(members: list[int], size: int) -> Iterable[list[int]]:
    count = ceil_div(len(members), size)
    return (members[i::count] for i in range(count))


@lru_cache(maxsize=4096)
def kv_cache(model: Model, settings: Settings) -> KVCache:
    """Return the KV cache of a model under these settings (get_kv_cache_groups)."""
    cpu = settings.device == "cpu"
    block = settings.block_size or (_CPU_BLOCK if cpu and not model.mla else _GPU_BLOCK)
    if model.has_state:
        block = _aligned(model, settings, block)
    specs: dict[tuple[str, int, int], list[int]] = {}
    for cache, having in model.caches.items():
        states = cache.kind == "state"
        page = _state_bytes(model, settings, cache) if states else block * _token_bytes(model, settings, cache)
        specs.setdefault((cache.kind, page, cache.window), []).extend(having)
    tokens, _sequences = batch(model, settings)
    steps = 1 + settings.pipeline_parallel_size  # asynchronous scheduling, which is on where the executor has it
    per_stage = stages(len(model.layers), settings.pipeline_parallel_size)

    def group(kind: str, members: list[int], page: int, tokens_of_block: int, window: int) -> Group:
        return Group(
            tuple(sum(i in stage for i in members) for stage in per_stage), page, tokens_of_block, kind, window
        )

    widest = max((page for _kind, page, _window in specs), default=0)
    if len(specs) <= 1:
        size = max(map(len, specs.values()), default=0)
    else:
        counts = [len(members) for members in specs.values()]
        size = max(counts) if max(counts) < 1.5 * min(counts) else min(counts)
    groups = []
    for (kind, page, window), members in specs.items():
        # Smaller pages grow to the widest: a state by padding, attention by more tokens in a block.
        of_block = block * (widest // page) if kind != "state" and page else block
        for part in _split(members, size):
            groups.append(group(kind, part, widest, of_block, window))
    return KVCache(tuple(groups), steps * tokens)


# --- activations -----------------------------------------------------------------------------------------------------


def _experts_scratch(model: Model, settings: Settings, tokens: int) -> int:
    """Return the scratch of the experts' kernels: both matrices' results for each chosen expert of each token."""
    experts, tp = model.experts, settings.tensor_parallel_size * settings.data_parallel_size
    if experts is None:
        return 0
    inner = ceil_div(experts.intermediate, tp)
    wide = max(inner, experts.hidden) + max((experts.matrices - 1) * inner, experts.hidden)
    # With data parallel replicas each rank computes its part for the tokens of all.
    return tokens * settings.data_parallel_size * experts.top_k * wide * dtype_bytes(model, settings)


def activations(model: Model, settings: Settings) -> int:
    """Return the activations' peak: a run of max_num_batched_tokens, then the sampler on max_num_seqs logits."""
    size, tp = dtype_bytes(model, settings), settings.tensor_parallel_size
    tokens, sequences = batch(model, settings)
    layer = max(tokens * (whole + ceil_div(divided, tp)) * size for whole, divided in model.widths)
    # The rank's part of the logits and all of them; the sampler takes them to 32 bits.
    sampler = sequences * model.vocab * (2 * size + 4)
    # What stays: the counts for penalties, the requests' tokens, and a table of blocks.
    length = context(model, settings)
    kept = sequences * 4 * (model.vocab + length + 2 * ceil_div(length, _GPU_BLOCK))
    if settings.device == "cpu":
        return _experts_scratch(model, settings, tokens) + max(layer, sampler)
    return _experts_scratch(model, settings, tokens) + max(layer, sampler) + kept + _ATTENTION_SCRATCH


def graphs(model: Model, settings: Settings) -> int:
    """Return an allowance for CUDA graphs."""
    if settings.enforce_eager or settings.device == "cpu":
        return 0
    return _GRAPHS_EXPERTS if model.experts else _GRAPHS_DENSE


def besides(settings: Settings) -> int:
    """Return what a rank takes inside vLLM's budget that is no tensor."""
    return 0 if settings.device == "cpu" else _BESIDES


def with_context(settings: Settings, length: int) -> Settings:
    """Return the settings with another max_model_len."""
    return replace(settings, max_model_len=length)
