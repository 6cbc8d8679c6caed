# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The rule of the built library against the recorded sweeps: no shape may take 5 % longer than its best variant."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

BENCH = Path(__file__).resolve().parents[1] / "bench"
sys.path.insert(0, str(BENCH))

import fit  # noqa: E402
import sweep  # noqa: E402
import work  # noqa: E402

SWEEPS = sorted((BENCH / "results").glob("sweep-*.json"))
NONE = "no sweep is recorded in files/kernels/bench/results yet"

pytestmark = pytest.mark.library

#: (multiprocessors, shared memory of a block in bytes) of an H200 and of GB10.
DEVICES = ((132, 232448), (48, 101376))


@pytest.fixture(scope="module")
def ops() -> ModuleType:
    """The operators of the compiled library."""
    from sparkfleet_kernels import ops

    return ops


def points() -> list[Any]:
    """Return every point of every recorded sweep as a parameter."""
    return [
        pytest.param(data["machine"], point, id=f"{path.stem}: {work.describe(point)}")
        for path in SWEEPS
        for data in [work.load(path)]
        for point in data["sweep"]
    ]


@pytest.mark.skipif(not SWEEPS, reason=NONE)
@pytest.mark.parametrize(("machine", "point"), points())
def test_the_rule_is_close_to_the_best(ops: ModuleType, machine: dict[str, Any], point: dict[str, Any]) -> None:
    gap = work.gap(point, sweep.choice(ops, machine, point))
    assert gap.loss <= work.RULE_MARGIN, (
        f"variant {gap.variant} takes {gap.us} us, variant {gap.best} {gap.best_us} us: {100 * gap.loss:.1f} % longer"
    )
    assert point["rule"] == gap.variant, "the sweep records another choice: run files/kernels/bench/sweep.py --write"


@pytest.mark.skipif(not SWEEPS, reason=NONE)
@pytest.mark.parametrize(("machine", "point"), points())
def test_the_rule_is_not_far_off_with_the_memory_of_gb10(
    ops: ModuleType, machine: dict[str, Any], point: dict[str, Any]
) -> None:
    """On the recorded times: what a GB10's shared memory cannot hold is neither chosen nor compared with."""
    fits = fit.Point.of(point, machine["sms"], fit.GB10_SHARED)
    kind = {"dense": ops.DENSE, "gate_up": ops.GATE_UP, "down": ops.DOWN}[point["kind"]]
    number = ops.variant(kind, point["n"], point["k"], point["m"], point["groups"], machine["sms"], fit.GB10_SHARED)
    assert number in fits.numbers
    assert point["us"][str(number)] <= 1.15 * fits.us.min(), (number, fits.best)


@pytest.mark.skipif(not SWEEPS, reason=NONE)
@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_a_sweep_has_every_shape(path: Path) -> None:
    have = {(point["kind"], point["n"], point["k"], point["m"], point["groups"]) for point in work.load(path)["sweep"]}
    wanted = {("dense", n, k, m, 1) for n, k in work.DENSE for m in work.ROWS}
    for _experts, topk, h, i in work.MOE:
        wanted |= {("gate_up", 2 * i, h, m, m * topk) for m in work.ROWS}
        wanted |= {("down", h, i, m, m * topk) for m in work.ROWS}
    assert have >= wanted


@pytest.mark.parametrize(("sms", "shared_bytes"), DEVICES)
def test_the_rule_names_variants_that_exist(ops: ModuleType, sms: int, shared_bytes: int) -> None:
    known = set(ops.variants())
    for m in work.ROWS:
        for n, k in (*work.DENSE, (1, 64), (129, 192)):
            assert ops.variant(ops.DENSE, n, k, m, 1, sms, shared_bytes) in known, (n, k, m)
        for _experts, topk, h, i in (*work.MOE, (4, 2, 128, 64)):
            assert ops.variant(ops.GATE_UP, 2 * i, h, m, m * topk, sms, shared_bytes) in known, (h, i, m)
            assert ops.variant(ops.DOWN, h, i, m, m * topk, sms, shared_bytes) in known, (h, i, m)
