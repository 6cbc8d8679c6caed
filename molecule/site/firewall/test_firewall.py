# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""With the firewall on, a scan from the management network finds ssh and the API, and the cluster still serves.

Connections that are there already are let through. That new ones are, too, is seen where everything starts again behind
the firewall: ../faults.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from scan import open_ports

from tests.scenario import api_key, ask, on_node, site

EXPECTED = {"spark-01": {22, 8888}, "spark-02": {22}}
Addresses = dict[int, dict[str, str]]


def scanned(addresses: dict[str, str]) -> dict[str, set[int]]:
    """Return the open ports of each node."""
    with ThreadPoolExecutor(len(addresses)) as pool:
        return dict(zip(addresses, pool.map(open_ports, addresses.values()), strict=True))


@pytest.fixture(name="protected", scope="module")
def fixture_protected(addresses: Addresses) -> Addresses:
    before = scanned(addresses[4])
    beside = [before[node] - expected for node, expected in EXPECTED.items()]
    assert all(beside), f"nothing is open that a firewall could close: the scan would prove nothing: {before}"
    changed = site(host_firewall=True)
    assert changed == {"localhost": 0, "spark-01": 1, "spark-02": 1}, "only the rules should differ"
    return addresses


def test_a_second_run_changes_nothing(protected: Addresses) -> None:
    assert set(site(host_firewall=True).values()) == {0}


@pytest.mark.parametrize("version", [4, 6])
def test_a_scan_finds_ssh_and_the_api_only(protected: Addresses, version: int) -> None:
    found = scanned(protected[version])
    for node, expected in EXPECTED.items():
        # vLLM listens on IPv4 unless it is told otherwise.
        needed = expected if version == 4 else {22}
        assert needed <= found[node] <= expected, f"{node}: {sorted(found[node])}"


def test_the_cluster_still_serves(protected: Addresses) -> None:
    assert ask("spark-01", api_key()) > 0


def test_turned_off_nothing_is_left(protected: Addresses) -> None:
    changed = site()
    assert changed == {"localhost": 0, "spark-01": 1, "spark-02": 1}, "only the rules should differ"
    for node in EXPECTED:
        left = on_node(node, "nft list tables; ls /etc/sparkfleet; systemctl list-unit-files 'spark-*'; true")
        assert "inet sparkfleet" not in left
        assert "firewall" not in left
