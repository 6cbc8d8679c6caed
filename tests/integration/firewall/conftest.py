# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A fleet that serves, with IPv6 on its management network while it is tested."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.integration.firewall.lab import HERE, VARIABLE, Fleet


@pytest.fixture(scope="session")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """The fleet that the environment names; it is left without a firewall."""
    if not os.environ.get(VARIABLE):
        pytest.skip(f"no fleet that serves: set {VARIABLE} to arguments like '-i molecule/inventory'")
    found = Fleet.given(tmp_path_factory.mktemp("firewall"))
    found.read()
    without = {spark.name: spark.interface for spark in found.sparks if not spark.ipv6}
    try:
        if without:
            found.play(HERE / "ipv6.yml", firewall_interfaces=without, firewall_ipv6_off=False)
            found.read()
        yield found
    finally:
        found.converge(firewall=False)
        if without:
            found.play(HERE / "ipv6.yml", firewall_interfaces=without, firewall_ipv6_off=True)
