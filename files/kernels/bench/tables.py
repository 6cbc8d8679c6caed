# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Recorded runs as Markdown. A document holds each block between ``<!-- bench:NAME -->`` and ``<!-- /bench -->``."""

from __future__ import annotations

import itertools
import re
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import work

RESULTS = Path(__file__).resolve().with_name("results")
#: The machine whose runs the documents show: results/bench-NAME.json and results/sweep-NAME.json.
MACHINE = "nvidia-h200"

_BLOCK = re.compile(r"(<!-- bench:([\w-]+) -->\n)(.*?)(<!-- /bench -->)", re.DOTALL)


def recorded(machine: str = MACHINE) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the recorded run and the recorded sweep of a machine.

    :raises FileNotFoundError: one of them is not there.
    :raises ValueError: one of them is of another schema.
    """
    return work.load(RESULTS / f"bench-{machine}.json"), work.load(RESULTS / f"sweep-{machine}.json")


def machine(run: dict[str, Any], sweep: dict[str, Any]) -> str:
    """Say what was measured on and what its memory gives."""
    probe, here = run["probe"], run["machine"]
    return (
        f"One {here['gpu']} ({here['sms']} multiprocessors, L2 cache {here['l2_bytes'] / 2**20:.0f} MiB, "
        f"torch {here['torch']}), {run['date']}. In the same run: reading {probe['read_gb_s']:.0f} GB/s, "
        f"copying {probe['copy_gb_s']:.0f} GB/s (read and written bytes), an empty launch {probe['launch_us']:.2f} µs; "
        f"{run['checks']['count']} results compared with the float64 reference before they were timed, "
        f"{len(run['checks']['failures'])} wrong."
    )


def dense(run: dict[str, Any], sweep: dict[str, Any]) -> str:
    """Return the table of linear layers: time, and the part of the read probe's rate."""
    return _by_rows(run["dense"], "N x K", lambda row: f"{row['n']} x {row['k']}")


def moe(run: dict[str, Any], sweep: dict[str, Any]) -> str:
    """Return the table of mixtures of experts."""
    return _by_rows(
        run["moe"], "experts, top-k, H, I", lambda row: f"{row['experts']}, {row['topk']}, {row['h']}, {row['i']}"
    )


def quantize(run: dict[str, Any], sweep: dict[str, Any]) -> str:
    """Return the table of quantizing: time, and the part of the copy's rate where DRAM was measured."""
    cells: dict[str, list[str]] = {}
    for row in run["quantize"]:
        rate = "" if row["cached"] else f", {100 * row['copy_fraction']:.0f} %"
        cells.setdefault(f"{row['m']} x {row['k']}", []).append(f"{_us(row['us'])}{rate}")
    return _table(["M x K", "quantize", "silu_mul and quantize"], [[name, *row] for name, row in cells.items()])


def rule(run: dict[str, Any], sweep: dict[str, Any]) -> str:
    """Return the table of how much longer the rule's variants take than the best of the sweep."""
    rows = []
    for kind in ("dense", "gate_up", "down"):
        points = [point for point in sweep["sweep"] if point["kind"] == kind]
        if not points:
            continue
        gaps = [work.gap(point, point["rule"]) for point in points]
        worst = max(range(len(gaps)), key=lambda index: gaps[index].loss)
        timed = sum(len(point["us"]) for point in points)
        middle = statistics.median(gap.loss for gap in gaps)
        rows.append(
            [
                kind,
                str(len(points)),
                str(timed),
                f"{100 * middle:.1f} %",
                f"{100 * gaps[worst].loss:.1f} %",
                work.describe({**points[worst], "kind": None}),
            ]
        )
    return _table(["product", "points", "variants timed", "median loss", "largest loss", "at"], rows)


#: Shares of the read probe that were aimed at, on an H100, at M=1 and M=8: shape -> percent.
DENSE_TARGETS = {(151936, 2048): (88, 82), (24576, 4096): (82, 76), (4096, 12288): (68, 60), (4096, 4096): (48, 42)}
MOE_TARGETS = {(128, 8, 4096, 1408): (70, 88), (128, 8, 2048, 768): (52, 76)}


def one_read(curve: Sequence[dict[str, Any]], moved: float) -> float:
    """Return the microseconds of one launch that only reads so many bytes, between the points that were measured."""
    points = [(float(point["bytes"]), float(point["us"])) for point in curve]
    for (fewer, sooner), (more, later) in itertools.pairwise(points):
        if moved <= more:
            return sooner + (later - sooner) * max(0.0, moved - fewer) / (more - fewer)
    return points[-1][1] * moved / points[-1][0]


def targets(run: dict[str, Any], sweep: dict[str, Any]) -> str:
    """Return the table of targets: aimed at, reached, and what one launch that only reads as many bytes reaches."""
    probe = run["probe"]
    found: dict[str, dict[int, tuple[int, dict[str, Any]]]] = {}
    for row in run["dense"]:
        if (wanted := DENSE_TARGETS.get((row["n"], row["k"]))) and row["m"] in (1, 8):
            found.setdefault(f"{row['n']} x {row['k']}", {})[row["m"]] = (wanted[row["m"] == 8], row)
    for row in run["moe"]:
        shape = (row["experts"], row["topk"], row["h"], row["i"])
        if (wanted := MOE_TARGETS.get(shape)) and row["m"] in (1, 8):
            found.setdefault("experts " + ", ".join(map(str, shape)), {})[row["m"]] = (wanted[row["m"] == 8], row)
    lines = []
    for name, by_m in found.items():
        for m, (wanted_share, row) in sorted(by_m.items()):
            bound = row["bytes"] / one_read(probe["curve"], row["bytes"]) / 1e3 / probe["read_gb_s"]
            reached = f"{100 * row['read_fraction']:.0f} %"
            lines.append([f"{name}, M={m}", f"{wanted_share} %", reached, f"{100 * bound:.0f} %"])
    return _table(["work", "target (H100)", "reached", "one launch that only reads"], lines)


def prototype(run: dict[str, Any], sweep: dict[str, Any]) -> str:
    """Say how much longer the first prototype took in the same run, geometric means."""
    words = {"dense": "linear layers", "moe": "experts", "quantize": "quantizing"}
    parts = []
    for kind, what in words.items():
        ratios = [row["peers"]["proof"] / row["us"] for row in run[kind] if "proof" in row.get("peers", {})]
        if ratios:
            parts.append(
                f"{statistics.geometric_mean(ratios):.2f} times for {what} ({min(ratios):.2f} to {max(ratios):.2f})"
            )
    return f"In the run of these tables this project's first prototype took, in the geometric mean, {'; '.join(parts)}."


#: Block -> what it renders.
BLOCKS: dict[str, Callable[[dict[str, Any], dict[str, Any]], str]] = {
    "machine": machine,
    "dense": dense,
    "moe": moe,
    "quantize": quantize,
    "rule": rule,
    "targets": targets,
    "prototype": prototype,
}


def fill(text: str, run: dict[str, Any], sweep: dict[str, Any]) -> str:
    """Return a document with every block rendered anew.

    :raises ValueError: the document asks for an unknown block, or an opening marker has no closing one.
    """

    def block(match: re.Match[str]) -> str:
        if match[2] not in BLOCKS:
            raise ValueError(f"there is no block bench:{match[2]}; known are {', '.join(BLOCKS)}")
        return f"{match[1]}{BLOCKS[match[2]](run, sweep)}\n{match[4]}"

    filled, count = _BLOCK.subn(block, text)
    if count != text.count("<!-- bench:") or count != text.count("<!-- /bench -->"):
        raise ValueError("a <!-- bench:NAME --> has no <!-- /bench --> or the reverse")
    return filled


def _us(us: float) -> str:
    return f"{us:.1f} µs" if us < 100 else f"{us:.0f} µs"


def _by_rows(rows: Sequence[dict[str, Any]], head: str, name: Callable[[dict[str, Any]], str]) -> str:
    """Return a table with a line for each shape and a column for each M."""
    ms = sorted({row["m"] for row in rows})
    cells: dict[str, dict[int, str]] = {}
    for row in rows:
        cells.setdefault(name(row), {})[row["m"]] = f"{_us(row['us'])}, {100 * row['read_fraction']:.0f} %"
    return _table(
        [head, *(f"M={m}" for m in ms)], [[shape, *(by_m.get(m, "") for m in ms)] for shape, by_m in cells.items()]
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" + " ---: |" * (len(head) - 1)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])
