# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module util is PRIVATE to the collection. It can have breaking changes at any time.
"""On how many Sparks does a model fit, and with which settings: a table, and what to write into the inventory."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from . import _model_memory as memory
from ._admission import (
    MOST_SPARKS,
    UTILIZATION,
    Node,
    fits,
    gib,
    highest_utilization,
    layout,
    longest,
    size_problems,
    sums_of,
)
from ._model_config import Model
from ._model_memory import Settings

_HEAD = ("Sparks", "split", "weights", "must be free", "context", "with fp8 cache", "at once")


@dataclass(frozen=True)
class Row:
    """How a model does on a number of Sparks. ``settings`` is None where it cannot be divided by them: ``why``.

    Sizes are bytes on a node. ``context`` and ``context_fp8``: the longest that fits, in tokens, with the cache as
    asked and in 8 bits; 0: none. ``sequences``: of the wanted length, or of the longest that fits.
    """

    sparks: int
    settings: Settings | None
    why: str = ""
    weights: int = 0
    need: int = 0
    context: int = 0
    context_fp8: int = 0
    sequences: float = 0.0

    @property
    def reach(self) -> int:
        """The longest context with either cache."""
        return max(self.context, self.context_fp8)

    @property
    def split(self) -> str:
        """How the model is divided, for a person."""
        if self.settings is None:
            return self.why
        tp, pp = self.settings.tensor_parallel_size, self.settings.pipeline_parallel_size
        return f"TP {tp}" + (f" x PP {pp}" if pp > 1 else "")

    @property
    def cells(self) -> tuple[str, ...]:
        """The row of a table."""
        if self.settings is None:
            return (str(self.sparks), self.why)
        if not self.reach:
            return (str(self.sparks), self.split, gib(self.weights), "", "does not fit")
        return (
            str(self.sparks), self.split, gib(self.weights), gib(self.need), str(self.context or "none"),
            str(self.context_fp8 or "none"), _count(self.sequences) if self.context else "",
        )  # fmt: skip

    def report(self) -> dict[str, Any]:
        """Return it as plain data."""
        settings = self.settings
        return {
            "sparks": self.sparks,
            "tensor_parallel_size": settings.tensor_parallel_size if settings else None,
            "pipeline_parallel_size": settings.pipeline_parallel_size if settings else None,
            "gpu_memory_utilization": settings.gpu_memory_utilization if settings else None,
            "weights_bytes_per_node": self.weights,
            "need_bytes_per_node": self.need,
            "max_model_len": self.context,
            "max_model_len_fp8": self.context_fp8,
            "sequences": round(self.sequences, 2) if math.isfinite(self.sequences) else None,
            "why": self.why,
        }


@dataclass(frozen=True)
class Plan:
    """A model on 1, 2, 3 … Sparks. ``best``: the row to choose; None: none fits.

    ``asked`` and ``wanted``: the tokens of context that were asked for, and those of them that the model can.
    """

    model: Model
    asked: int
    wanted: int
    node: Node
    rows: tuple[Row, ...]
    best: Row | None
    variables: Mapping[str, Any]

    @property
    def fits(self) -> bool:
        """Whether the context that was asked for fits on any number of Sparks."""
        return self.best is not None and self.best.reach >= self.asked

    @property
    def verdict(self) -> str:
        """The answer in a line."""
        if self.asked > self.wanted:
            return f"{self.asked} tokens are more than the model's own {self.wanted}; with those it {self._verdict}"
        return self._verdict

    @property
    def _verdict(self) -> str:
        if self.best is None:
            return f"does not fit on up to {self.rows[-1].sparks} Sparks; choose a smaller one or another quantisation"
        best, sparks = self.best, "1 Spark" if self.best.sparks == 1 else f"{self.best.sparks} Sparks"
        if best.context >= self.wanted:
            return f"fits on {sparks} with {self.wanted} tokens, {_count(best.sequences)} such sequences at once"
        if best.context_fp8 >= self.wanted:
            return f"fits on {sparks} with {self.wanted} tokens and kv_cache_dtype fp8"
        return f"does not fit with {self.wanted} tokens; max_model_len {best.reach} fits on {sparks}"

    def text(self) -> list[str]:
        """Return it for a person."""
        model = self.model
        how = "estimated from config.json" if model.estimated else "by its files"
        kind = model.quantisation.name or f"{8 * model.dtype_bytes}-bit"
        node = self.node
        lines = [
            f"{model.model_type}, {kind}: {gib(model.weights)} of weights ({how}), context of {model.max_len} tokens",
            f"a Spark: {gib(node.memory)}, {gib(node.system)} of it for the system and {gib(node.reserve)} kept free",
            "",
            *_aligned([_HEAD, *(row.cells for row in self.rows)]),
            "",
            self.verdict,
        ]  # fmt: skip
        if self.variables:
            lines += ["", "for the inventory:", *(f"  {name}: {value}" for name, value in self.variables.items())]
        return [*lines, *(f"note: {note}" for note in model.notes), "", "Computed, not run on a Spark: docs/memory.md."]

    def report(self) -> dict[str, Any]:
        """Return it as plain data."""
        return {
            "fits": self.fits,
            "verdict": self.verdict,
            "sparks": self.best.sparks if self.best else None,
            "variables": dict(self.variables),
            "max_model_len": self.asked,
            "model": {
                "model_type": self.model.model_type,
                "quantisation": self.model.quantisation.name,
                "weights_bytes": self.model.weights,
                "weights_estimated": self.model.estimated,
                "max_model_len": self.model.max_len,
            },
            "node_bytes": self.node.memory,
            "rows": [row.report() for row in self.rows],
            "notes": list(self.model.notes),
        }


def _count(number: float) -> str:
    return "many" if math.isinf(number) else f"{number:.1f}" if number < 10 else str(int(number))


def _aligned(rows: list[tuple[str, ...]]) -> list[str]:
    """Return rows with their cells under each other; the last cell of a short row may be longer than its column."""
    full = [row for row in rows if len(row) > 2]
    wide = [max((len(row[i]) for row in full if len(row) > i), default=0) for i in range(len(_HEAD))]
    lines = []
    for row in rows:
        cells = [f"{cell:<{wide[i]}}" if i == 1 else f"{cell:>{wide[i]}}" for i, cell in enumerate(row)]
        lines.append("  ".join(cells).rstrip())
    return lines


def _row(model: Model, settings: Settings, node: Node, count: int, wanted: int) -> Row:
    sparks, spread = count * settings.data_parallel_size, layout(model, settings, count)
    if spread is None:
        tried = replace(settings, tensor_parallel_size=count, pipeline_parallel_size=1, max_model_len=0)
        return Row(sparks, None, (size_problems(model, tried) or [""])[0])
    if not (spread.gpu_memory_utilization or (spread.kv_cache_memory_bytes and spread.device == "cpu")):
        share = min(UTILIZATION, highest_utilization(model, spread, node))
        if not share:
            return Row(sparks, None, "what runs beside vLLM leaves it nothing")
        spread = replace(spread, gpu_memory_utilization=share)

    def reach(these: Settings) -> int:
        length = longest(model, these, node)
        return length if length and fits(model, memory.with_context(these, length), node) else 0

    context = reach(spread)
    narrow = reach(replace(spread, kv_cache_dtype="fp8")) if memory.kv_name(model, spread) == "16-bit" else context
    sums = sums_of(model, memory.with_context(spread, min(wanted, context or wanted)), node)
    weights = memory.stage_weights(model, spread, sums.worst)
    return Row(sparks, spread, "", weights, max(sums.needs), context, narrow, sums.sequences)


def _variables(best: Row, wanted: int, asked: Settings, model: Model) -> dict[str, Any]:
    """Return the variables of role serve for a row."""
    chosen = best.settings or asked
    found: dict[str, Any] = {"serve_tensor_parallel_size": chosen.tensor_parallel_size}
    if chosen.pipeline_parallel_size > 1:
        found["serve_pipeline_parallel_size"] = chosen.pipeline_parallel_size
    if chosen.data_parallel_size > 1:
        found["serve_data_parallel_size"] = chosen.data_parallel_size
    if chosen.gpu_memory_utilization:
        found["serve_gpu_memory_utilization"] = chosen.gpu_memory_utilization
    for name in ("kv_cache_memory_bytes", "max_num_seqs", "max_num_batched_tokens", "enforce_eager"):
        if getattr(asked, name):
            found[f"serve_{name}"] = getattr(asked, name)
    length = min(wanted, best.reach)
    if length != model.max_len or asked.max_model_len:
        found["serve_max_model_len"] = length
    if best.context < length:
        found["serve_kv_cache_dtype"] = "fp8"
    elif asked.kv_cache_dtype != "auto":
        found["serve_kv_cache_dtype"] = asked.kv_cache_dtype
    return found


def plan(model: Model, settings: Settings, node: Node, max_sparks: int = MOST_SPARKS) -> Plan:
    """Return how a model does on 1 to ``max_sparks`` Sparks; what the settings leave open is chosen for each number.

    The sizes of tensor and pipeline parallelism in ``settings`` do not count, the others do.
    """
    asked = memory.context(model, settings)
    wanted = min(asked, model.max_len)
    counts = range(1, max(1, max_sparks // settings.data_parallel_size) + 1)
    rows = tuple(_row(model, settings, node, count, wanted) for count in counts)
    best = next((row for row in rows if row.context >= wanted), None)
    best = best or next((row for row in rows if row.context_fp8 >= wanted), None)
    if best is None and any(row.reach for row in rows):
        best = max(rows, key=lambda row: (row.reach, -row.sparks))
    return Plan(model, asked, wanted, node, rows, best, _variables(best, wanted, settings, model) if best else {})
