# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The GPU tests: skipped where no GPU is that the library has code for, unless SPARKFLEET_KERNELS_GPU=1 forbids that.

The random data are fresh in every session; the seed is printed, and SPARKFLEET_KERNELS_SEED repeats it.
"""

from __future__ import annotations

import os

import pytest
import torch

GPU_VARIABLE = "SPARKFLEET_KERNELS_GPU"
SEED_VARIABLE = "SPARKFLEET_KERNELS_SEED"

# Handed on to the workers of pytest-xdist.
SEED = int(os.environ.setdefault(SEED_VARIABLE, str(int.from_bytes(os.urandom(4), "little"))))


def pytest_report_header() -> str:
    """Say what the tests run on."""
    from sparkfleet_kernels import verify

    device = verify.environment()["device"] if torch.cuda.is_available() else None
    where = f"{device['name']}, capability {device['capability']}" if device else "no GPU"
    return f"kernels: {where}, torch {torch.__version__}, {SEED_VARIABLE}={SEED}"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip these tests, or refuse to, where they cannot run."""
    from sparkfleet_kernels import verify

    why = verify.no_gpu()
    here = [item for item in items if item.path.is_relative_to(os.path.dirname(__file__))]
    if why is None or not here:
        return
    if os.environ.get(GPU_VARIABLE):
        raise pytest.UsageError(why)
    for item in here:
        item.add_marker(pytest.mark.skip(reason=why))


@pytest.fixture(scope="session")
def device() -> torch.device:
    """The GPU."""
    return torch.device("cuda", torch.cuda.current_device())


@pytest.fixture(scope="session")
def seed() -> int:
    """Seed of this session's random data."""
    return SEED
