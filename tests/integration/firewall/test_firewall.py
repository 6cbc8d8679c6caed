# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""With the firewall on, a scan from the management network finds ssh and the API, and the cluster still serves.

It needs a fleet that ``site.yml`` has converged, and names it in the environment:

    SPARKFLEET_FLEET='-i molecule/inventory' pytest tests/integration/firewall
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.integration.firewall.lab import Fleet, complete
from tests.integration.firewall.scan import open_ports, reachable


def scanned(fleet: Fleet, version: int) -> dict[str, set[int]]:
    """The open ports of each node, over IPv4 or IPv6."""
    addresses = {
        spark.name: [spark.address] if version == 4 else [reachable(one, spark.address) for one in spark.ipv6]
        for spark in fleet.sparks
    }
    assert all(addresses.values()), f"no address to scan: {addresses}"
    with ThreadPoolExecutor(len(addresses)) as pool:
        found = pool.map(lambda name: {port for one in addresses[name] for port in open_ports(one)}, addresses)
        return dict(zip(addresses, found, strict=True))


@pytest.fixture(scope="module")
def protected(fleet: Fleet) -> Fleet:
    """The fleet with its firewall on."""
    before = scanned(fleet, 4)
    beside = [before[spark.name] - spark.expected for spark in fleet.sparks]
    assert all(beside), f"nothing is open that a firewall could close: the scan would prove nothing: {before}"
    changed = fleet.converge(firewall=True)
    assert set(changed.values()) == {1}, f"only the rules should differ: {changed}"
    return fleet


def test_a_second_run_changes_nothing(protected: Fleet) -> None:
    assert set(protected.converge(firewall=True).values()) == {0}


@pytest.mark.parametrize("version", [4, 6])
def test_a_scan_finds_ssh_and_the_api_only(protected: Fleet, version: int) -> None:
    found = scanned(protected, version)
    for spark in protected.sparks:
        # vLLM listens on IPv4 unless it is told otherwise.
        needed = spark.expected if version == 4 else set(spark.ssh_ports)
        assert needed <= found[spark.name] <= spark.expected, f"{spark.name}: {sorted(found[spark.name])}"


def test_the_cluster_still_serves(protected: Fleet) -> None:
    asked = [complete(spark, model) for spark in protected.sparks for model in spark.models]
    assert asked and min(asked) > 0


def test_it_serves_after_a_restart_behind_the_firewall(protected: Fleet) -> None:
    # Connections that are there already are let through: only new ones show that the nodes reach each other.
    for spark in protected.sparks:
        protected.ask(spark, "systemctl restart 'spark-ray*' 'spark-vllm*'")
    protected.converge(firewall=True)
    assert min(complete(spark, model) for spark in protected.sparks for model in spark.models) > 0


def test_turned_off_nothing_is_left(protected: Fleet) -> None:
    assert set(protected.converge(firewall=False).values()) == {1}
    for spark in protected.sparks:
        left = protected.ask(spark, "nft list tables; ls /etc/sparkfleet; systemctl list-unit-files 'spark-*'; true")
        assert "inet sparkfleet" not in left
        assert "firewall" not in left
    assert set(protected.converge(firewall=False).values()) == {0}
