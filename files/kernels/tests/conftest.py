# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the tests share: the package under test, and whether its library is there.

The installed package is tested where there is one, with its library, which then has to be there. On a checkout where
nothing was built the sources are tested, the operators are defined from their schemas alone, and tests that need the
library are skipped; SPARKFLEET_KERNELS_BUILT=1 makes that an error.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

import pytest

SOURCES = Path(__file__).resolve().parents[1] / "src"
BUILT_VARIABLE = "SPARKFLEET_KERNELS_BUILT"
#: Set where the operators have no library behind them.
EMULATED = pytest.StashKey[bool]()

installed = importlib.util.find_spec("sparkfleet_kernels") is not None
if not installed:
    sys.path.insert(0, str(SOURCES))


def pytest_configure(config: pytest.Config) -> None:
    """Declare the marker and define the operators where no library does."""
    config.addinivalue_line("markers", "library: needs the compiled library")
    if importlib.util.find_spec("torch") is None:
        return  # tests of the build alone
    try:
        from sparkfleet_kernels import ops  # noqa: F401
    except ImportError as error:
        if installed or os.environ.get(BUILT_VARIABLE):
            raise pytest.UsageError(f"{error}") from error
        import emulation

        emulation.define()
        config.stash[EMULATED] = True


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what needs the library where it was not built."""
    if item.get_closest_marker("library") and EMULATED in item.config.stash:
        pytest.skip("the library was not built (make kernels)")
