# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What docs/image.md says that delivery costs is what was measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.bench import delivery

RESULTS = sorted(delivery.RESULTS.glob("delivery-*.json"))


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_the_table_is_that_of_the_raw_figures(path: Path) -> None:
    bench = delivery.Bench(path.parent)
    data = json.loads(path.read_text(encoding="utf-8"))
    bench.cases = [delivery.Case(**case) for case in data["cases"]]
    most = max(case.workers for case in bench.cases)
    assert bench.table(most) in (delivery.ROOT / "docs" / "image.md").read_text(encoding="utf-8")
    assert [target["met"] for target in data["targets"]] == [good for *_rest, good in bench.targets(most)]


def test_there_are_figures() -> None:
    assert RESULTS
