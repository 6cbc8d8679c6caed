# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module util is PRIVATE to the collection. It can have breaking changes at any time.
"""Does a model fit, before anything is started: the sums, the verdict, and the nearest settings that fit.

Two conditions. vLLM gives up at its start unless its budget holds weights, activations and the KV cache of one
sequence of full length. And all that a node carries has to leave the host room: on unified memory a host that is too
full does not kill a process, it freezes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from . import _model_memory as memory
from ._model_config import Model
from ._model_memory import GIB, MIB, Settings

# A GB10's MemTotal: owners report 119.68 GiB with older kernels and 121.69 GiB with newer ones. The smaller counts.
SPARK_BYTES = 128_501_256_192
MOST_SPARKS = 8
# vLLM's own default, made for a GPU with a memory of its own.
UTILIZATION = 0.92

# Outside of vLLM's budget. Measured with vLLM 0.32 and Ray 2.60 on the simulated nodes, without a GPU.
_API_SERVER, _ENGINE, _RANK = 600 * MIB, 550 * MIB, 700 * MIB
_RAY_HEAD, _RAY_WORKER = 610 * MIB, 175 * MIB
# Not measured on a GB10: the CUDA context with its libraries, and NCCL's buffers, both there before vLLM's first look.
_CUDA, _NCCL = 1536 * MIB, 1 * GIB
# vLLM's queues between processes lie in shared memory beside Ray's store.
_QUEUES = 512 * MIB
_RAY_SHARE = 0.3  # of the memory, for Ray's store where its size is not set
# Owners see 8 GiB in use on an idle Spark, and engines that die when less than 2 GiB are left.
_OS, _FREE = 8 * GIB, 3 * GIB
_LEAST_CONTEXT = 1024  # tokens; a shorter context is no advice


@dataclass(frozen=True)
class Node:
    """A node, in bytes. ``other``: what else runs there, such as another model.

    ``os``: the operating system with its services, and ``free``: what has to stay free while the model serves; 0 takes
    our own choice.
    """

    memory: int = SPARK_BYTES
    other: int = 0
    os: int = 0
    free: int = 0

    @property
    def system(self) -> int:
        """Bytes of the operating system and its services."""
        return self.os or min(_OS, self.memory // 8)

    @property
    def reserve(self) -> int:
        """Bytes that have to stay free."""
        return self.free or min(_FREE, self.memory // 16)


@dataclass(frozen=True)
class Admission:
    """The verdict on a model with its settings on nodes of a kind.

    ``lines``: the sums, aligned, or what cannot be. ``reason``: why not, in a line, and ``advice``: what fits; both
    empty if it fits. ``need_bytes``: what has to be free on each node before the start, the leader first.
    ``takes_bytes``: the same without what has to stay free, which is what another model on the node has to know.
    ``max_model_len``: the longest context that vLLM would start with; 0: none. ``sequences``: of full length, at once.
    ``bytes``: the single sums. ``suggestion``: the variables of role serve that the first advice changes.
    """

    fits: bool
    lines: tuple[str, ...]
    reason: str
    advice: str
    need_bytes: tuple[int, ...]
    takes_bytes: tuple[int, ...]
    max_model_len: int
    sequences: float
    bytes: Mapping[str, int]
    suggestion: Mapping[str, Any]
    notes: tuple[str, ...]

    @property
    def need_bytes_per_node(self) -> int:
        """Bytes that have to be free on any node before the start."""
        return max(self.need_bytes)

    def report(self) -> dict[str, Any]:
        """Return it as plain data."""
        return {
            "fits": self.fits,
            "lines": list(self.lines),
            "reason": self.reason,
            "advice": self.advice,
            "need_bytes": list(self.need_bytes),
            "need_bytes_per_node": self.need_bytes_per_node,
            "takes_bytes": list(self.takes_bytes),
            "takes_bytes_per_node": max(self.takes_bytes),
            "max_model_len": self.max_model_len,
            "sequences": round(self.sequences, 2) if math.isfinite(self.sequences) else None,
            "bytes": dict(self.bytes),
            "suggestion": dict(self.suggestion),
            "notes": list(self.notes),
        }


def gib(size: int) -> str:
    """Return bytes for a person.

    >>> gib(3 * 1024**3)
    '3.0 GiB'
    """
    return f"{size / GIB:.1f} GiB"


# --- what cannot be --------------------------------------------------------------------------------------------------


def size_problems(model: Model, settings: Settings) -> list[str]:
    """Return what vLLM would refuse whatever the memory is, one line each."""
    tp, pp, dims = settings.tensor_parallel_size, settings.pipeline_parallel_size, model.dims
    divided = {
        "the number of attention heads,": (model.heads, tp),
        "the feed-forward size,": (dims["intermediate"], tp),
        "the vocabulary, in multiples of 64,": (memory.ceil_div(model.vocab, 64) * 64, tp),
        "the number of key heads of linear attention,": (dims["key_heads"], tp),
        "the number of value heads of linear attention,": (dims["value_heads"], tp),
        "the number of mamba heads,": (dims["mamba_heads"], tp),
        **_expert_size(model, settings),
    }
    lines = [
        f"{what} {number}, cannot be divided by {by} ranks" for what, (number, by) in divided.items() if number % by
    ]
    kv = model.kv_heads
    if not model.mla and (kv % tp if kv >= tp else tp % kv):
        lines.append(f"the number of KV heads, {kv}, can neither be divided by {tp} ranks nor be copied evenly to them")
    if dims["groups"] > 1 and dims["groups"] % tp:
        lines.append(f"the number of groups of the mamba layers, {dims['groups']}, cannot be divided by {tp} ranks")
    if pp > len(model.layers):
        lines.append(f"{len(model.layers)} layers are too few for {pp} pipeline stages")
    lines += _block_problems(model, settings)
    if settings.max_model_len > model.max_len:
        lines.append(f"max_model_len {settings.max_model_len} is more than the model's own {model.max_len}")
    tokens, sequences = memory.batch(model, settings)
    if settings.max_num_batched_tokens and tokens < sequences:
        lines.append(f"max_num_batched_tokens {tokens} is less than max_num_seqs {sequences}")
    return lines


def _expert_size(model: Model, settings: Settings) -> dict[str, tuple[int, int]]:
    """Return the experts' size and what divides it, unless vLLM pads it."""
    if model.experts is None or model.experts.storage.padded:
        return {}
    return {"the experts' size,": (model.dims["expert"], settings.tensor_parallel_size * settings.data_parallel_size)}


def _block_problems(model: Model, settings: Settings) -> list[str]:
    """Return where a rank's part would cut through the blocks that share a scale."""
    block = max(model.quantisation.block)
    if block <= 1 or model.quantisation.name not in ("fp8", "int4", "int8"):
        return []
    tp = settings.tensor_parallel_size
    sizes = {"the feed-forward size,": (model.dims["intermediate"], tp), **_expert_size(model, settings)}
    return [
        f"{what} {number} / {by} on a rank, is no multiple of {block}, the quantisation's block"
        for what, (number, by) in sizes.items()
        if by > 1 and number % by == 0 and number // by % block
    ]


# --- the sums --------------------------------------------------------------------------------------------------------


def _outside(settings: Settings, node: Node, rank: int) -> list[tuple[str, int]]:
    """Return what a node carries outside of vLLM's budget; ``rank`` 0 is the leader."""
    engine = _ENGINE if rank % settings.ranks == 0 else 0  # each replica has one, on its first node
    found = [("processes of vLLM", _RANK + engine + (_API_SERVER if rank == 0 else 0))]
    if settings.device == "cuda":
        found.append(("CUDA and NCCL", _CUDA + _NCCL) if settings.nodes > 1 else ("CUDA", _CUDA))
    shared = _QUEUES if settings.nodes > 1 else 0
    if settings.executor == "ray":
        found.append(("Ray", _RAY_HEAD if rank == 0 else _RAY_WORKER))
        shared += settings.object_store_bytes or int(node.memory * _RAY_SHARE)
    if shared:
        found.append(("shared memory", min(shared, settings.shm_bytes) if settings.shm_bytes else shared))
    if node.other:
        found.append(("other models on the node", node.other))
    return found


@dataclass(frozen=True)
class Sums:
    """What admission adds up. ``fixed``: for each stage what vLLM takes besides the KV cache; ``outside``: per node."""

    model: Model
    settings: Settings
    node: Node
    fixed: tuple[int, ...]
    cache: memory.KVCache
    outside: tuple[int, ...]

    @property
    def utilization(self) -> float:
        """The share of the memory that vLLM may take."""
        return self.settings.gpu_memory_utilization or UTILIZATION

    @property
    def budget(self) -> int:
        """What vLLM may take by gpu_memory_utilization."""
        return math.ceil(self.node.memory * self.utilization)

    @property
    def given(self) -> int:
        """The size that is set for the KV cache; 0: what the budget leaves."""
        return self.settings.kv_cache_memory_bytes

    @property
    def length(self) -> int:
        """The wanted context, in tokens."""
        return memory.context(self.model, self.settings)

    def cache_bytes(self, stage: int) -> int:
        """Return what a rank of a stage has for its KV cache; less than 0: the rest is too much already."""
        return self.given or self.budget - self.fixed[stage]

    def need(self, stage: int) -> int:
        """Return what a rank of a stage needs at least."""
        return self.fixed[stage] + self.cache.need(self.length, stage)

    @property
    def worst(self) -> int:
        """The stage that needs most."""
        return max(range(len(self.fixed)), key=self.need)

    @property
    def starts(self) -> bool:
        """Whether vLLM would start: each stage has room for one sequence."""
        return all(self.cache.need(self.length, i) <= self.cache_bytes(i) for i in range(len(self.fixed)))

    @property
    def sequences(self) -> float:
        """How many sequences of full length there is room for; the stage with the fewest blocks decides."""
        blocks = [self.cache_bytes(i) // max(1, self.cache.block_bytes(i)) for i in range(len(self.fixed))]
        return max(0, min(blocks)) / self.cache.blocks(self.length) if self.cache.groups else math.inf

    def taken(self, rank: int) -> int:
        """Return what vLLM takes on a node in the end."""
        stage = rank % self.settings.ranks // self.settings.tensor_parallel_size
        return self.fixed[stage] + self.given if self.given else self.budget

    @property
    def needs(self) -> tuple[int, ...]:
        """Bytes that have to be free on each node before the start: what comes, and what has to stay free."""
        return tuple(self.taken(i) + size - self.node.other + self.node.reserve for i, size in enumerate(self.outside))

    @property
    def load(self) -> tuple[int, ...]:
        """Everything on each node, with the operating system and what has to stay free."""
        return tuple(size + self.node.other + self.node.system for size in self.needs)

    @property
    def start_check(self) -> int:
        """What is on a node when vLLM looks whether its share is free, which it also does with a given cache size."""
        if self.settings.device == "cpu" and self.given:
            return 0
        return self.budget + max(self.outside) + self.node.system

    @property
    def lacks(self) -> int:
        """Bytes that the fullest node lacks; 0 and less: none."""
        return max(*self.load, self.start_check) - self.node.memory


def sums_of(model: Model, settings: Settings, node: Node) -> Sums:
    """Add everything up. The settings have to be possible, see ``size_problems``."""
    same = memory.activations(model, settings) + memory.graphs(model, settings) + memory.besides(settings)
    weights = (memory.stage_weights(model, settings, stage) for stage in range(settings.pipeline_parallel_size))
    outside = (sum(size for _what, size in _outside(settings, node, rank)) for rank in range(settings.nodes))
    return Sums(
        model,
        settings,
        node,
        tuple(size + same for size in weights),
        memory.kv_cache(model, settings),
        tuple(outside),
    )


def fits(model: Model, settings: Settings, node: Node) -> bool:
    """Say whether vLLM would start and the node would hold it."""
    if size_problems(model, settings):
        return False
    sums = sums_of(model, settings, node)
    return sums.starts and sums.lacks <= 0


def longest(model: Model, settings: Settings, node: Node) -> int:
    """Return the most tokens of context that vLLM would start with, in whole blocks; 0: none.

    Whether the node holds it does not matter here: that hardly depends on the context.
    """
    step = memory.kv_cache(model, settings).granularity

    def starts(length: int) -> bool:
        return sums_of(model, memory.with_context(settings, length), node).starts

    if starts(model.max_len):
        return model.max_len
    low, high = 0, memory.ceil_div(model.max_len, step)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if starts(middle * step) else (low, middle)
    return low * step


def highest_utilization(model: Model, settings: Settings, node: Node) -> float:
    """Return the most of gpu_memory_utilization, in hundredths, that leaves the host room; 0: none."""
    sums = sums_of(model, settings, node)
    # With a given cache size it is only what vLLM wants to find free at its start.
    room = node.memory - max(sums.outside) - node.system - (0 if sums.given else node.reserve)
    return max(0, math.floor(100 * room / node.memory)) / 100


# --- the verdict -----------------------------------------------------------------------------------------------------


def _table(rows: Sequence[tuple[str, int, str]]) -> tuple[str, ...]:
    """Return lines with their sizes under each other."""
    wide = max(len(what) for what, _size, _note in rows)
    most = max(len(gib(size)) for _what, size, _note in rows)
    return tuple(f"{what:{wide}}  {gib(size):>{most}}  {note}".rstrip() for what, size, note in rows)


def _enough(lacks: int) -> str:
    return f"{gib(lacks)} too little" if lacks > 0 else "enough"


def _arithmetic(sums: Sums) -> tuple[str, ...]:
    model, settings, node, stage = sums.model, sums.settings, sums.node, sums.worst
    tokens, sequences = memory.batch(model, settings)
    part = f", 1 of {settings.ranks} parts" if settings.ranks > 1 else ""
    cached = f"KV cache of 1 sequence of {sums.length} tokens, {memory.kv_name(model, settings)}"
    rows = [
        (
            f"weights{part}",
            memory.stage_weights(model, settings, stage),
            "estimated from config.json" if model.estimated else "",
        ),
        (f"activations, {tokens} tokens, {sequences} sequences", memory.activations(model, settings), ""),
        ("CUDA graphs", memory.graphs(model, settings), ""),
        ("kernels and the like", memory.besides(settings), ""),
        (cached, sums.cache.need(sums.length, stage), ""),
        ("vLLM needs", sums.need(stage), ""),
    ]
    share = f"{sums.utilization:g} of {gib(node.memory)}"
    if sums.given:
        lacks = sums.cache.need(sums.length, stage) - sums.given
        rows.append(("kv_cache_memory_bytes", sums.given, _enough(lacks)))
    else:
        rows.append((f"vLLM may take {share}", sums.budget, _enough(sums.need(stage) - sums.budget)))
    worst = max(range(settings.nodes), key=lambda rank: sums.load[rank])
    rows += [("vLLM on the node", sums.taken(worst), "")]
    rows += [(what, size, "") for what, size in _outside(settings, node, worst)]
    rows += [
        ("operating system", node.system, ""),
        ("kept free", node.reserve, ""),
        ("all of it", max(sums.load), ""),
        ("the node has", node.memory, _enough(max(sums.load) - node.memory)),
    ]
    if sums.given and sums.start_check > node.memory:
        more = f"{gib(sums.start_check - node.memory)} more than is free"
        rows.append((f"vLLM looks for at its start, {share}", sums.budget, more))
    return _table([row for row in rows if row[1] or row[0] in ("the node has", "kv_cache_memory_bytes")])


def _reason(sums: Sums) -> str:
    stage = sums.worst
    if sums.starts:
        what = f"the node lacks {gib(sums.lacks)} of memory, with what runs beside vLLM"
        return f"{what}: it would freeze" if max(sums.load) > sums.node.memory else f"{what}: vLLM would not start"
    left = sums.cache_bytes(stage)
    if left <= 0:
        return f"weights and activations alone need {gib(sums.fixed[stage])}, and vLLM may take {gib(sums.budget)}"
    need = sums.cache.need(sums.length, stage)
    return f"the KV cache of one sequence of {sums.length} tokens needs {gib(need)}, and has {gib(left)}"


def layout(model: Model, settings: Settings, count: int) -> Settings | None:
    """Return the settings for ``count`` nodes: tensor parallel where the model allows it, else with a pipeline."""
    executor = settings.executor if settings.executor != "none" or count == 1 else "ray"
    for tp in (size for size in range(count, 0, -1) if count % size == 0):
        spread = replace(
            settings, tensor_parallel_size=tp, pipeline_parallel_size=count // tp, executor=executor, max_model_len=0
        )
        if not size_problems(model, spread):
            return replace(spread, max_model_len=settings.max_model_len)
    return None


class _Search:
    """Looks for the nearest settings that fit."""

    def __init__(self, sums: Sums) -> None:
        self.sums, self.model, self.settings, self.node = sums, sums.model, sums.settings, sums.node
        self.most = min(highest_utilization(self.model, self.settings, self.node), 0.99)
        self.narrower = memory.kv_name(self.model, self.settings) == "16-bit"

    def fits(self, settings: Settings) -> bool:
        return fits(self.model, settings, self.node)

    def shorter(self, settings: Settings) -> tuple[str, Settings] | None:
        """Return the longest context that fits, unless it is too short to be of use."""
        length = longest(self.model, settings, self.node)
        changed = memory.with_context(settings, length)
        if _LEAST_CONTEXT <= length < self.sums.length and self.fits(changed):
            return f"max_model_len {length}", changed
        return None

    def share(self) -> tuple[str, Settings] | None:
        """Return another share of the memory: as much as the host can bear, or as little more as vLLM needs."""
        now, needed = self.sums.utilization, self.sums.need(self.sums.worst) / self.node.memory
        share = self.most if now > self.most else math.ceil(100 * needed) / 100
        changed = replace(self.settings, gpu_memory_utilization=share)
        if 0 < share <= self.most and share != now and self.fits(changed):
            return f"gpu_memory_utilization {share:g}", changed
        return None

    def narrow(self, settings: Settings) -> tuple[str, Settings] | None:
        """Return a KV cache of 8 bits."""
        changed = replace(settings, kv_cache_dtype="fp8")
        return ("kv_cache_dtype fp8", changed) if self.narrower and self.fits(changed) else None

    def larger(self) -> tuple[str, Settings] | None:
        """Return a larger KV cache, where its size is given."""
        if not self.sums.given or self.sums.starts:
            return None
        need = max(self.sums.cache.need(self.sums.length, i) for i in range(len(self.sums.fixed)))
        size = memory.ceil_div(need, MIB) * MIB
        return self._given(size)

    def smaller(self) -> tuple[str, Settings] | None:
        """Return a smaller KV cache, where its size is given: what the node can bear, in whole GiB if it is one."""
        if not self.sums.given or self.sums.lacks <= 0:
            return None
        left = self.sums.given - self.sums.lacks
        unit = GIB if left >= GIB else MIB
        return self._given(left // unit * unit) if left >= unit else None

    def _given(self, size: int) -> tuple[str, Settings] | None:
        changed = replace(self.settings, kv_cache_memory_bytes=size)
        text = f"{size // GIB}G" if size % GIB == 0 else f"{size // MIB}M"
        return (f"kv_cache_memory_bytes {text}", changed) if self.fits(changed) else None

    def both(self) -> list[tuple[str, Settings]]:
        """Return what fits besides a share of the memory that the host can bear."""
        if not self.most or self.most == self.sums.utilization:
            return []
        base = replace(self.settings, gpu_memory_utilization=self.most)
        found = [change for change in (self.shorter(base), self.narrow(base)) if change]
        return [(f"gpu_memory_utilization {self.most:g} with {what}", changed) for what, changed in found]

    def sparks(self) -> tuple[str, Settings] | None:
        """Return the fewest more nodes that do."""
        replicas = self.settings.data_parallel_size
        for count in range(self.settings.ranks + 1, MOST_SPARKS // replicas + 1):
            spread = layout(self.model, self.settings, count)
            if spread is None:
                continue
            share = min(highest_utilization(self.model, spread, self.node), self.sums.utilization)
            spread = replace(spread, gpu_memory_utilization=share)
            if share and self.fits(spread):
                tp, pp = spread.tensor_parallel_size, spread.pipeline_parallel_size
                how = f"tensor_parallel_size {tp}" + (f", pipeline_parallel_size {pp}" if pp > 1 else "")
                also = f", gpu_memory_utilization {share:g}" if share != self.sums.utilization else ""
                return f"{count * replicas} Sparks with {how}{also}", spread
        return None

    def changes(self) -> list[tuple[str, Settings]]:
        """Return what fits, the nearest first."""
        cache = self.larger() or self.smaller()
        single = (self.shorter(self.settings), self.share(), self.narrow(self.settings), cache)
        found = [change for change in single if change] or self.both()
        more = self.sparks()
        return [*found, more] if more else found


def _changed(before: Settings, after: Settings) -> dict[str, Any]:
    """Return the variables of role serve that make one into the other."""
    names = (
        "tensor_parallel_size", "pipeline_parallel_size", "max_model_len", "gpu_memory_utilization", "kv_cache_dtype",
        "kv_cache_memory_bytes", "executor",
    )  # fmt: skip
    return {f"serve_{name}": getattr(after, name) for name in names if getattr(after, name) != getattr(before, name)}


def _refuse(model: Model, settings: Settings, problems: Sequence[str]) -> Admission:
    """Return the verdict on what cannot be."""
    other = replace(settings, max_model_len=0)
    advice = ""
    if settings.max_model_len > model.max_len and not size_problems(model, other):
        advice = f"max_model_len {model.max_len} is the most"
    elif problems:
        sizes = [
            n
            for n in range(1, MOST_SPARKS + 1)
            if n != settings.tensor_parallel_size and not size_problems(model, replace(other, tensor_parallel_size=n))
        ]
        advice = f"tensor_parallel_size can be {', '.join(map(str, sizes))}" if sizes else ""
    nothing = (0,) * settings.nodes
    return Admission(False, tuple(problems), problems[0], advice, nothing, nothing, 0, 0.0, {}, {}, model.notes)


def settled(model: Model, settings: Settings, node: Node) -> Settings:
    """Return the settings with a share of the memory where none was asked for: the most that leaves the node room.

    vLLM's own default is made for a GPU with a memory of its own, and freezes a node that shares it.
    """
    if settings.gpu_memory_utilization or size_problems(model, settings):
        return settings
    # On a CPU, a given size of the cache is all that counts.
    if settings.device == "cpu" and settings.kv_cache_memory_bytes:
        return settings
    share = min(UTILIZATION, highest_utilization(model, settings, node))
    return replace(settings, gpu_memory_utilization=share) if share else settings


def admit(model: Model, settings: Settings, node: Node) -> Admission:
    """Judge a model with its settings on equal nodes, one rank on each."""
    problems = size_problems(model, settings)
    if problems:
        return _refuse(model, settings, problems)
    sums = sums_of(model, settings, node)
    stage = sums.worst
    good = sums.starts and sums.lacks <= 0
    changes = [] if good else _Search(sums).changes()
    advice = f"{changes[0][0]} fits" + "".join(f"; or {what}" for what, _after in changes[1:]) if changes else ""
    sizes = {
        "weights": memory.stage_weights(model, settings, stage),
        "activations": memory.activations(model, settings),
        "graphs": memory.graphs(model, settings),
        "besides": memory.besides(settings),
        "kv_cache_one_sequence": sums.cache.need(sums.length, stage),
        "kv_cache": max(sums.cache_bytes(stage), 0),
        "vllm_needs": sums.need(stage),
        "vllm_may_take": sums.budget,
        "outside": max(sums.outside),
        "operating_system": node.system,
        "kept_free": node.reserve,
        "node": node.memory,
    }
    return Admission(
        fits=good,
        lines=_arithmetic(sums),
        reason="" if good else _reason(sums),
        advice="" if good else advice or f"nothing near it fits on up to {MOST_SPARKS} Sparks; choose a smaller model",
        need_bytes=sums.needs,
        takes_bytes=tuple(size - node.reserve for size in sums.needs),
        max_model_len=longest(model, settings, node),
        sequences=sums.sequences,
        bytes=sizes,
        suggestion=_changed(settings, changes[0][1]) if changes else {},
        notes=model.notes,
    )
