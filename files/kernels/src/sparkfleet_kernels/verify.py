# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The self-check of the package: what an owner runs on a GB10, and what the GPU tests run.

``python -m sparkfleet_kernels verify`` checks layouts, references, fake implementations and the variant rule on any
machine, and on one with a GPU that the library has code for, every operator against float64. It uses less than 4 GB of
memory.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import sys
import time
import traceback
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from . import __version__, ops
from ._run import Case, Figure, Run
from .checks import cases

#: Capabilities that the library has machine code for (sm_120f runs on the whole family).
CAPABILITIES = ("9.0", "12.x")

NO_GPU = "no GPU here: numerics not run"


def no_gpu() -> str | None:
    """Return why the operators cannot run here, or None."""
    if not torch.cuda.is_available():
        return NO_GPU
    major, minor = torch.cuda.get_device_capability()
    if (major, minor) != (9, 0) and major != 12:
        name = torch.cuda.get_device_name()
        return f"{name} has capability {major}.{minor}, code is for {', '.join(CAPABILITIES)}: numerics not run"
    return None


def environment() -> dict[str, Any]:
    """Return what the figures depend on: versions, the library, the device. Memory in bytes."""
    path = ops.library_path()
    found: dict[str, Any] = {
        "package": __version__,
        "library": {
            "path": str(path),
            "bytes": path.stat().st_size,
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        },
        "python": platform.python_version(),
        "machine": platform.machine(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "device": None,
    }
    if torch.cuda.is_available():
        device = torch.cuda.get_device_properties(torch.cuda.current_device())
        found["device"] = {
            "name": device.name,
            "capability": f"{device.major}.{device.minor}",
            "multiprocessors": device.multi_processor_count,
            "memory": device.total_memory,
            "l2": device.L2_cache_size,
        }
    return found


def choose(subset: str, gpu: bool) -> list[Case]:
    """Return the cases of a subset ("all", "quick" or "sanitizer"); without a GPU only those that need none."""
    return [
        case
        for case in cases()
        if (gpu or not case.gpu) and (subset == "all" or (case.quick if subset == "quick" else case.sanitizer))
    ]


def figures_of(case: Case, device: torch.device, seed: int) -> list[Figure]:
    """Run a case and return its figures; an exception is the case's own and passes."""
    run = Run(device, seed)
    case.run(run)
    return run.figures()


def _summary(case: Case, figures: list[Figure], seconds: float) -> dict[str, Any]:
    """Return what is kept of a case: how many figures, the one nearest to its limit, and all that failed."""
    failed = [figure for figure in figures if not figure.ok]
    limited = [figure for figure in figures if figure.limit > 0]
    worst = max(limited or figures, key=lambda figure: figure.value / (figure.limit or 1.0))
    return {
        "name": case.name,
        "ok": not failed,
        "figures": len(figures),
        "seconds": round(seconds, 2),
        "worst": {"label": worst.label, "value": worst.value, "limit": worst.limit},
        "failed": [{"label": figure.label, "value": figure.value, "limit": figure.limit} for figure in failed],
    }


def run_cases(chosen: Iterable[Case], device: torch.device, seed: int) -> list[dict[str, Any]]:
    """Run cases, print a line for each and return their summaries."""
    summaries = []
    for case in chosen:
        start = time.monotonic()
        on = device if case.gpu else torch.device("cpu")
        try:
            figures = figures_of(case, on, seed)
            if not figures:
                raise RuntimeError("the case noted no figure")
            summary = _summary(case, figures, time.monotonic() - start)
        except Exception as error:
            traceback.print_exc()
            what = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            summary = {
                "name": case.name,
                "ok": False,
                "figures": 0,
                "seconds": round(time.monotonic() - start, 2),
                "worst": None,
                "failed": [{"label": what, "value": None, "limit": None}],
            }
        summaries.append(summary)
        worst = summary["worst"]
        nearest = f"nearest to its limit: {worst['value']:.3g} of {worst['limit']:g}, {worst['label']}" if worst else ""
        state = "ok  " if summary["ok"] else "FAIL"
        print(f"{state} {case.name}: {summary['figures']} figures, {summary['seconds']:.1f} s; {nearest}", flush=True)
        for failure in summary["failed"][:10]:
            print(f"     {failure['label']}: {failure['value']}, limit {failure['limit']}", flush=True)
        if len(summary["failed"]) > 10:
            print(f"     and {len(summary['failed']) - 10} more", flush=True)
    return summaries


def main(arguments: list[str] | None = None) -> int:
    """Run ``python -m sparkfleet_kernels``; return the exit status: 0, or 1 where a check failed."""
    parser = argparse.ArgumentParser(prog="python -m sparkfleet_kernels")
    commands = parser.add_subparsers(dest="command", required=True)
    verify = commands.add_parser("verify", help="check the operators on this machine")
    verify.add_argument("--json", metavar="FILE", help="write the figures there too; - for standard output alone")
    subset = verify.add_mutually_exclusive_group()
    subset.add_argument("--quick", dest="subset", action="store_const", const="quick", default="all")
    subset.add_argument(
        "--sanitizer",
        dest="subset",
        action="store_const",
        const="sanitizer",
        help="few small cases, for compute-sanitizer",
    )
    verify.add_argument("--seed", type=int, default=None, help="of the random data; a fresh one is printed")
    options = parser.parse_args(arguments)

    seed = int.from_bytes(os.urandom(4), "little") if options.seed is None else options.seed
    found = environment()
    device = found["device"]
    where = f"{device['name']}, capability {device['capability']}" if device else "no GPU"
    out = sys.stdout
    if options.json == "-":
        sys.stdout = sys.stderr
    try:
        print(f"sparkfleet-kernels {__version__}, torch {found['torch']}, CUDA {found['cuda']}; {where}; seed {seed}")
        without = no_gpu()
        start = time.monotonic()
        target = torch.device("cpu") if without else torch.device("cuda", torch.cuda.current_device())
        summaries = run_cases(choose(options.subset, gpu=not without), target, seed)
        failed = [summary["name"] for summary in summaries if not summary["ok"]]
        count = sum(summary["figures"] for summary in summaries)
        if without:
            print(without)
        verdict = f"{len(failed)} failed: {', '.join(failed)}" if failed else "none failed"
        print(f"{len(summaries)} checks, {count} figures, {time.monotonic() - start:.1f} s: {verdict}")
    finally:
        sys.stdout = out
    report = {
        "schema": 1,
        "status": "failed" if failed else "not run" if without else "passed",
        "why_not_run": without,
        "subset": options.subset,
        "seed": seed,
        "environment": found,
        "checks": summaries,
    }
    if options.json == "-":
        print(json.dumps(report, indent=1))
    elif options.json:
        Path(options.json).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return 1 if failed else 0
