# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Everything that ``sparkfleet_kernels.checks`` lists, on the GPU, and the command that runs it."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from sparkfleet_kernels import checks, verify
from sparkfleet_kernels._run import Case, Run

CASES = [case for case in checks.cases() if case.gpu]


@pytest.fixture(autouse=True)
def memory() -> Iterator[None]:
    """Give the memory back between tests: on a GB10 it is the machine's own."""
    yield
    gc.collect()
    torch.cuda.empty_cache()


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_case(case: Case, device: torch.device, seed: int) -> None:
    figures = verify.figures_of(case, device, seed)
    assert figures
    failed = [f"{figure.label}: {figure.value:.4g}, limit {figure.limit:g}" for figure in figures if not figure.ok]
    assert not failed, f"{len(failed)} of {len(figures)} figures\n" + "\n".join(failed[:20])


def test_compiles_with_inductor(device: torch.device, seed: int) -> None:
    """The default backend, which generates code: needs a compiler on the machine."""
    run = Run(device, seed)
    checks.check_compile(run, backend="inductor")
    assert all(figure.ok for figure in run.figures())


def test_verify_command(tmp_path: Path) -> None:
    """The command that an owner runs, on its small cases."""
    path = tmp_path / "verify.json"
    command = [sys.executable, "-m", "sparkfleet_kernels", "verify", "--sanitizer", "--json", str(path)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    report = json.loads(path.read_text())
    assert report["status"] == "passed"
    assert report["environment"]["device"]["name"] == torch.cuda.get_device_name()
    assert {check["name"] for check in report["checks"]} == {case.name for case in CASES if case.sanitizer}
