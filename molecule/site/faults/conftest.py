# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The pair, by the executor that a test asks for."""

from __future__ import annotations

import pytest
from fault_lab import Cluster


@pytest.fixture(name="cluster", scope="session")
def fixture_cluster(request: pytest.FixtureRequest) -> Cluster:
    cluster = Cluster(request.param)
    cluster.site()
    return cluster


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Function]) -> None:
    """All tests of one executor, then all of the other: each change is a run of site.yml."""
    items.sort(key=lambda item: hasattr(item, "callspec") and item.callspec.params.get("cluster") == "mp")
