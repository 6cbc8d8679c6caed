# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""all_gather.py with a stand-in for PyTorch: one process plays all ranks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.sparkfleet.vllm.plugins.module_utils._gate import judge_collective

PATH = Path(__file__).resolve().parents[3] / "roles" / "fabric" / "files" / "all_gather.py"

TORCH = """
import os
float32 = "float32"

class Tensor(list):
    def __mod__(self, number): return Tensor(value % number for value in self)
    def __add__(self, number): return Tensor(value + number for value in self)
    def __getitem__(self, key):
        found = list.__getitem__(self, key)
        return Tensor(found) if isinstance(key, slice) else found
    def zero_(self): self[:] = [0] * len(self)

def arange(count, device, dtype): return Tensor(range(count))
def zeros(count, device, dtype): return Tensor([0] * count)
def equal(one, other): return list(one) == list(other)

class device:
    def __init__(self, type, index=None): self.type = type

class cuda:
    @staticmethod
    def is_available(): return bool(os.environ.get("GPU"))
    @staticmethod
    def set_device(device): print("set_device")
    @staticmethod
    def synchronize(): pass
"""
DISTRIBUTED = """
import os, time
def init_process_group(backend, timeout):
    print("backend", backend, timeout.total_seconds())
    if os.environ.get("HANG"): time.sleep(60)
    if os.environ.get("REFUSE"): raise RuntimeError("no peer\\nC++ stack")
def destroy_process_group(): print("destroyed")
def get_rank(): return int(os.environ["RANK"])
def get_world_size(): return int(os.environ["WORLD_SIZE"])
def barrier(): pass
def gather(output, own):
    rank, count = get_rank(), len(own)
    pattern = [value - rank * 1009 for value in own]
    shift = 1 if os.environ.get("SWAP") else 0
    for other in range(get_world_size()):
        start = other * count
        output[start:start + count] = [value + (other + shift) * 1009 for value in pattern]
globals()[os.environ.get("NAME", "all_gather_into_tensor")] = gather
"""


@pytest.fixture(name="torch")
def fixture_torch(tmp_path: Path) -> Path:
    package = tmp_path / "torch"
    package.mkdir()
    (package / "__init__.py").write_text(TORCH)
    (package / "distributed.py").write_text(DISTRIBUTED)
    return tmp_path


def run(directory: Path, *arguments: str, **env: str) -> tuple[int, dict[str, Any], str]:
    """Return the exit status, the result and all that was printed."""
    given = {"PATH": os.environ["PATH"], "PYTHONPATH": str(directory), "RANK": "1", "WORLD_SIZE": "3", **env}
    done = subprocess.run(
        [sys.executable, str(PATH), "--sizes", "1200", "12000", *arguments],
        check=False,
        env=given,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "Traceback" not in done.stderr, done.stderr
    results = [line for line in done.stdout.splitlines() if line.startswith("{")]
    assert len(results) == 1, done.stdout
    return done.returncode, json.loads(results[0]), done.stdout


@pytest.mark.parametrize("name", ["all_gather_into_tensor", "all_gather_single"])
def test_what_is_gathered_is_checked_and_counted(torch: Path, name: str) -> None:
    code, result, output = run(torch, "--iterations", "2", "--warm-up", "0", NAME=name)
    assert code == 0
    assert (result["rank"], result["world"], result["backend"], result["correct"]) == ("1", "3", "gloo", True)
    assert [one["bytes"] for one in result["sizes"]] == [1200, 12000]
    for one in result["sizes"]:
        # bytes (n-1)/n / time
        assert one["busbw"] == pytest.approx(one["bytes"] * 2 / 3 / one["seconds"] / 1e9, abs=1e-4)
    assert result["busbw"] == max(one["busbw"] for one in result["sizes"])
    assert "destroyed" in output


def test_a_gpu_means_nccl(torch: Path) -> None:
    _code, result, output = run(torch, GPU="1")
    assert result["backend"] == "nccl" and "backend nccl 300.0" in output and "set_device" in output


def test_wrong_values_are_noticed(torch: Path) -> None:
    _code, result, output = run(torch, SWAP="1")
    assert result["correct"] is False
    verdict = judge_collective(["s1"], {"s1": output}, key="", min_busbw=0.1, topology="", gpu=False, date="")
    assert verdict["lines"] == ["s1: all_gather gave wrong values; do not serve on this fabric, power-cycle the nodes"]


def test_what_torch_says_is_one_line(torch: Path) -> None:
    code, result, _output = run(torch, REFUSE="1")
    assert code == 1 and result["error"] == "RuntimeError: no peer" and "busbw" not in result


def test_a_rank_that_hangs_gives_up(torch: Path) -> None:
    code, result, output = run(torch, "--timeout", "-4.5", HANG="1")
    assert code == 3 and result["error"].startswith("no result after")
    verdict = judge_collective(["s1"], {"s1": output}, key="", min_busbw=0, topology="", gpu=True, date="")
    assert len(verdict["lines"]) == 1 and "no result after" in verdict["lines"][0]


def test_an_image_without_torch_is_named(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise ImportError('libcudart.so.13 is missing')\n")
    code, result, _output = run(tmp_path)
    assert code == 1 and result["error"] == "the image has no usable PyTorch (libcudart.so.13 is missing)"
