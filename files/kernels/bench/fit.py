# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Derive the rule's coefficients (csrc/rule_table.h) from a recorded sweep.

The rule takes the variant of least estimated cost. The estimate counts the tiles that the busiest group of warps gets
and what one of them costs. Its coefficients, for dense products and for experts, and for 1, 2, 4, 8 and 16 rows, are
searched so that the variants it takes are the measured best ones or close to them. Shapes for which that fails by more
than LIMIT are written down with the variant that was best, for GPUs of as many SMs only. Each shape counts twice: with
all variants, and with those that fit the shared memory of a GB10. Needs numpy, no GPU.
"""

from __future__ import annotations

import argparse
import json
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
WARPS = (8, 12, 16, 20, 24)
ROWS = (1, 2, 4, 8, 16)
LIMIT = 0.05
#: Shared memory of a block on GB10, bytes.
GB10_SHARED = 101376
KINDS = ("dense", "experts")
#: In the order of rule.cpp's Cost.
NAMES = ("unit of 8, 12, 16, 20, 24 warps", "x by L1", "sum", "sum, each warp", "no sum", "place x", "warp", "evenness")
START = np.array([0.5, 0.6, 0.75, 0.9, 1.0, 1.5, 0.4, 0.02, 0.2, 0.3, 0.01, 0.2])


@dataclass
class Point:
    """One measured shape: what the estimate needs of every variant that can do it."""

    numbers: np.ndarray
    global_x: np.ndarray
    warps: np.ndarray
    split: np.ndarray
    units: np.ndarray
    rounds: np.ndarray
    share: np.ndarray
    place: float
    us: np.ndarray
    best: int

    @classmethod
    def of(cls, row: dict[str, Any], sms: int, shared_bytes: int) -> Point:
        """Read a row of the sweep, without the variants that need more shared memory."""
        numbers = np.array(sorted(int(number) for number in row["us"]))
        warps, split = numbers // 100 % 100, numbers % 100
        down = row["kind"] == "down"
        # As rule.cpp counts.
        shared = warps * (5120 + np.where(split > 1, 2 * (8 if row["m"] > 8 else 4) * 128, 0)) + 7 * 1024
        x_rows = min(row["groups"], (16 if row["m"] > 8 else 8) * (-(-row["groups"] // sms) + 1)) if down else row["m"]
        x_bytes = x_rows * (-(-row["k"] // 256) * 512 + 64)
        fits = shared + np.where(numbers < 10000, x_bytes, 0) <= shared_bytes
        numbers, warps, split = numbers[fits], warps[fits], split[fits]
        blocks = -(-row["n"] // 256) * 16 if row["kind"] == "gate_up" else -(-row["n"] // 128) * 8
        share = blocks * (1 if row["kind"] == "dense" else row["groups"]) / (sms * (warps // split))
        return cls(
            numbers=numbers,
            global_x=numbers // 10000,
            warps=np.array([WARPS.index(w) for w in warps]),
            split=split,
            units=np.ceil(-(-row["k"] // 256) / split),
            rounds=np.ceil(share),
            share=share,
            place=x_rows * row["k"] / 4096,
            us=np.array([row["us"][str(number)] for number in numbers]),
            best=min(numbers.tolist(), key=lambda number: row["us"][str(number)]),
        )

    def loss(self, p: np.ndarray) -> float:
        """How much longer than the best the variant takes that these coefficients choose."""
        unit = p[self.warps] * np.where(self.global_x == 1, p[5], 1.0)
        tiles = np.maximum(self.rounds * (1 - p[11]) + self.share * p[11], 1)
        finish = np.where(self.split > 1, p[6] + p[7] * self.split, p[8])
        cost = tiles * (self.units * unit + finish) + np.where(self.global_x == 1, 0, p[9] * self.place)
        cost = cost + p[10] * np.array(WARPS)[self.warps]
        return float(self.us[int(np.argmin(cost))] / self.us.min() - 1)


def objective(points: list[Point], p: np.ndarray) -> float:
    """What the search makes small: losses beyond 2 %, and above all beyond 4.5 %."""
    losses = np.array([point.loss(p) for point in points])
    return float(
        (np.maximum(losses - 0.02, 0) ** 2).sum() * 10 + np.maximum(losses - 0.045, 0).sum() + losses.mean() * 0.1
    )


def search(points: list[Point], seed: int, steps: int) -> tuple[float, np.ndarray]:
    """Random steps in the logarithms of the coefficients that get smaller with time."""
    random = np.random.default_rng(seed)
    best, p = objective(points, START), START
    for step in range(steps):
        tried = p.copy()
        for i in random.integers(0, len(p), random.integers(1, 4)):
            tried[i] *= np.exp(random.normal(0, 0.3 * (1 - step / steps) + 0.03))
        tried = np.clip(tried, 0.005, 20)
        tried[11] = min(tried[11], 1)
        if (value := objective(points, tried)) <= best:
            best, p = value, tried
    return best, np.array([float(f"{value:.3g}") for value in p])


def table(found: dict[tuple[str, int], np.ndarray], exceptions: list[tuple[int, ...]], source: str) -> str:
    """Render csrc/rule_table.h."""
    lines = [
        "// Copyright (c) 2026, the sparkfleet.vllm authors",
        "// GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)",
        "// SPDX-License-Identifier: GPL-3.0-or-later",
        "// Made by bench/fit.py from " + source + "; what the numbers are: rule.cpp.",
        "#pragma once",
        "",
        f"constexpr Cost kCosts[{len(KINDS)}][{len(ROWS)}] = {{",
    ]
    for kind in KINDS:
        lines.append(f"    {{  // {kind}, 1, 2, 4, 8, 16 rows")
        for rows in ROWS:
            p = [f"{value:g}" for value in found[kind, rows]]
            lines.append(f"        {{{{{', '.join(p[:5])}}}, {', '.join(p[5:])}}},")
        lines.append("    },")
    lines += ["};", f"constexpr Exception kExceptions[{len(exceptions) + 1}] = {{"]
    lines += [f"    {{{', '.join(map(str, exception))}}}," for exception in exceptions]
    return "\n".join([*lines, "    {-1, 0, 0, 0, 0, 0, 0, 0},", "};", ""])


def main() -> int:
    """Fit, say how good it is, write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sweep", type=Path)
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--output", type=Path, default=HERE.parent / "csrc" / "rule_table.h")
    options = parser.parse_args()
    recorded = json.loads(options.sweep.read_text())
    sms, shared_bytes = recorded["machine"]["sms"], recorded["machine"]["shared_bytes"]
    found: dict[tuple[str, int], np.ndarray] = {}
    exceptions: list[tuple[int, ...]] = []
    with ProcessPoolExecutor() as pool:
        for kind in KINDS:
            for rows in ROWS:
                mine = [r for r in recorded["sweep"] if r["m"] == rows and (r["kind"] == "dense") == (kind == "dense")]
                points = [Point.of(row, sms, shared) for shared in (shared_bytes, GB10_SHARED) for row in mine]
                tries = [pool.submit(search, points, seed, options.steps) for seed in range(options.seeds)]
                _loss, p = min((run.result() for run in tries), key=lambda result: result[0])
                losses = [point.loss(p) for point in points]
                found[kind, rows] = p
                for row, point, loss in zip(mine, points, losses, strict=False):
                    if loss > LIMIT:
                        number = ("dense", "gate_up", "down").index(row["kind"])
                        exceptions.append(
                            (number, row["n"], row["k"], rows, row["groups"], sms, shared_bytes, point.best)
                        )
                print(
                    f"{kind} {rows} rows: {len(points)} shapes, worst {max(losses):.1%}, mean {np.mean(losses):.1%}",
                    flush=True,
                )
    options.output.write_text(table(found, exceptions, options.sweep.name))
    return 0


if __name__ == "__main__":
    sys.exit(main())
