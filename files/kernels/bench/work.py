# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the benchmark measures: the shapes, the bytes that a launch has to move, routing, statistics and the JSON.

Plain Python, so that tables and plots are made from a recorded run on a machine without torch.
"""

from __future__ import annotations

import json
import math
import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

#: (N, K) of linear layers: a vocabulary, MLPs and attention projections of models of 2 to 30 billion parameters.
DENSE = (
    (151936, 2048),
    (24576, 4096),
    (4096, 12288),
    (12288, 4096),
    (5120, 5120),
    (6144, 4096),
    (4096, 4096),
    (2048, 2048),
    (1024, 4096),
)
#: (experts, top-k, hidden size H, intermediate size I) of mixtures of experts.
MOE = ((128, 8, 2048, 768), (256, 8, 2048, 512), (256, 8, 3072, 1024), (128, 8, 4096, 1408), (512, 10, 2048, 512))
#: Rows of x (tokens).
ROWS = (1, 2, 4, 8, 16)
#: (M, K) to quantize.
QUANTIZE = ((1, 4096), (8, 4096), (256, 4096), (4096, 4096), (8192, 7168))

#: A launch's data is read again only after this many times the L2 cache has passed.
CACHE_FACTOR = 4
#: Most copies of an input; smaller inputs than these fill stay in the cache, as activations do in a model.
MAX_COPIES = 128
#: The rule may take this much longer than the best variant of a sweep.
RULE_MARGIN = 0.05
#: Version of the JSON.
SCHEMA = 1


def weight_bytes(n: int, k: int) -> int:
    """Return the bytes of an NVFP4 matrix of n rows and k columns: codes and block scales, without padding."""
    return n * k // 2 + n * k // 16


def dense_bytes(n: int, k: int, m: int) -> int:
    """Return the bytes that a linear layer has to move: weight, scales, bfloat16 x [m, k] and y [m, n]."""
    return weight_bytes(n, k) + 2 * m * (n + k)


def expert_bytes(h: int, i: int) -> int:
    """Return the bytes of one expert: gate, up and down with their scales."""
    return weight_bytes(2 * i, h) + weight_bytes(h, i)


def moe_bytes(h: int, i: int, m: int, hit: float) -> float:
    """Return the bytes that a mixture of experts has to move when ``hit`` distinct experts are asked for.

    What passes between its kernels is not counted: it need not leave the cache.
    """
    return hit * expert_bytes(h, i) + 2 * m * (h + h)


def quantize_bytes(m: int, k: int, silu_mul: bool) -> int:
    """Return the bytes that quantizing [m, k] has to move: bfloat16 in, codes and scales (without padding) out."""
    return m * k * 2 * (2 if silu_mul else 1) + weight_bytes(m, k)


def dense_flop(n: int, k: int, m: int) -> int:
    """Return the floating-point operations of a linear layer."""
    return 2 * m * n * k


def moe_flop(topk: int, h: int, i: int, m: int) -> int:
    """Return the floating-point operations of a mixture of experts (its three products)."""
    return 6 * m * topk * h * i


def copies(item_bytes: float, l2_bytes: int, most: int | None = None) -> int:
    """Return how many copies of an input to rotate so that DRAM is measured and not the L2 cache (at least 2)."""
    wanted = max(2, math.ceil(CACHE_FACTOR * l2_bytes / item_bytes))
    return wanted if most is None else min(wanted, most)


def launches(item_us: float, rotation: int, least: int, target_us: float) -> int:
    """Return how many launches one graph holds: whole rotations, at least ``least``, about ``target_us`` in all."""
    return rotation * math.ceil(max(least, target_us / item_us) / rotation)


@dataclass(frozen=True)
class Launch:
    """One launch of a mixture of experts: the expert of every (token, slot), and which copy of the weights it reads."""

    ids: tuple[tuple[int, ...], ...]
    copy: int

    @property
    def hit(self) -> int:
        """Distinct experts."""
        return len({expert for row in self.ids for expert in row})


def expert_copies(experts: int, one_expert_bytes: int, l2_bytes: int) -> int:
    """Return how many copies of all experts ``routing`` needs. A lap of it uses at least about half of them."""
    return max(1, math.ceil(CACHE_FACTOR * l2_bytes / (experts / 2 * one_expert_bytes)))


def routing(rng: random.Random, experts: int, topk: int, rows: int, least: int, weight_copies: int = 1) -> list[Launch]:
    """Return launches for one graph: experts drawn at random for every token, none used again before its time.

    Every token draws its top-k experts evenly, so tokens share experts as often as they do by chance. The distinct
    experts of a launch are then renamed to the next ones of a fixed random order, so that one is read again only
    when the order has been walked through: by chance alone, the next launch would find some in the cache. A lap ends
    where the next launch does not fit; laps take the copies of the weights in turn. The list holds whole laps, as
    many as the copies or a multiple, so that it can be repeated.

    :param least: launches to return at least.
    """
    order = rng.sample(range(experts), experts)
    result: list[Launch] = []
    lap, cursor = 0, 0
    while True:
        drawn = [rng.sample(range(experts), topk) for _row in range(rows)]
        distinct = list(dict.fromkeys(expert for row in drawn for expert in row))
        if cursor + len(distinct) > experts:
            lap, cursor = lap + 1, 0
            if len(result) >= least and lap % weight_copies == 0:
                return result
        name = dict(zip(distinct, order[cursor : cursor + len(distinct)], strict=True))
        result.append(Launch(tuple(tuple(name[expert] for expert in row) for row in drawn), lap % weight_copies))
        cursor += len(distinct)


def expected_hit(experts: int, topk: int, rows: int) -> float:
    """Return the distinct experts that rows * topk draws hit on average."""
    return experts * (1 - (1 - topk / experts) ** rows)


@dataclass(frozen=True)
class Sample:
    """Times of one launch, microseconds: median and quartiles over the replays of its graph."""

    us: float
    low: float
    high: float
    replays: int

    @classmethod
    def of(cls, times: Sequence[float]) -> Sample:
        """Summarise times; raises ValueError if there are none or one is not positive."""
        if not times or not all(time > 0 for time in times):
            raise ValueError(f"times must be positive, are {list(times)}")
        low, _middle, high = statistics.quantiles(times, n=4, method="inclusive") if len(times) > 1 else [times[0]] * 3
        return cls(statistics.median(times), low, high, len(times))


def gb_per_s(moved_bytes: float, us: float) -> float:
    """Return bytes over microseconds in GB/s (10^9 bytes)."""
    return moved_bytes / us / 1e3


@dataclass(frozen=True)
class Gap:
    """What the rule's variant costs at one point of a sweep; ``loss`` is 0.03 for 3 % longer than the best."""

    variant: int
    us: float
    best: int
    best_us: float

    @property
    def loss(self) -> float:
        return self.us / self.best_us - 1


def gap(point: dict[str, Any], variant: int) -> Gap:
    """Compare a variant with the best one of a point of a sweep.

    :raises ValueError: the sweep has no time for the variant (it cannot run the shape, or it was wrong).
    """
    times = {int(number): float(us) for number, us in point["us"].items()}
    if variant not in times:
        raise ValueError(f"{describe(point)}: the sweep has no time for variant {variant}")
    best = min(times, key=lambda number: times[number])
    return Gap(variant, times[variant], best, times[best])


def describe(row: dict[str, Any]) -> str:
    """Return the shape of a row of results or of a point of a sweep, as the tables and the plot name it."""
    if "experts" in row:
        text = f"{row['experts']} x {row['topk']}, {row['h']}, {row['i']}"
    elif "silu_mul" in row:
        return f"{row['m']}x{row['k']}" + (" silu_mul" if row["silu_mul"] else "")
    else:
        text = f"{row['n']}x{row['k']}"
    kind = row.get("kind")
    return f"{text} M={row['m']}" + (f" {kind}" if kind not in (None, "dense") else "")


def dump(data: dict[str, Any]) -> str:
    """Return the JSON of a run, one line for each member of a list, so that runs can be compared by their lines."""
    parts = []
    for key, value in data.items():
        if isinstance(value, list) and value:
            rows = ",\n".join("  " + json.dumps(item) for item in value)
            parts.append(f" {json.dumps(key)}: [\n{rows}\n ]")
        else:
            parts.append(f" {json.dumps(key)}: {json.dumps(value)}")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def load(path: Path) -> dict[str, Any]:
    """Read the JSON of a run.

    :raises ValueError: it is of another schema.
    """
    data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if data.get("schema") != SCHEMA:
        raise ValueError(f"{path}: schema {data.get('schema')}, {SCHEMA} is known")
    return data


def rounded(value: float, digits: int = 5) -> float:
    """Round to significant digits, for the JSON."""
    return value if value == 0 else round(value, digits - 1 - math.floor(math.log10(abs(value))))
