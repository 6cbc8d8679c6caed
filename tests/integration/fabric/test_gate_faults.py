# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Links that do not carry what they should although all of their ends look right."""

from __future__ import annotations

from functools import partial

from simulator.fabric import MTU as FABRIC_MTU
from tests.integration.fabric.lab import Lab, assert_passed, assert_stopped, gate_record, simulator, undone
from tests.integration.fleets import skipped_without

pytestmark = skipped_without()

PAIR = {"atlas": [1, 2]}
MTU_INSIDE = (
    r"spark-01: enp1s0f0np0 to spark-02's enp1s0f0np0: packets of 9000 bytes do not arrive, small ones do: MTU is 9000 "
    r"here and 9000 there; raise the MTU of the switch between them to 9216"
)
SLOW = (
    r"{0}: {2} to {1}'s {2}: 0\.[01]\d* Gb/s by TCP, below 0\.3 \(fabric_gate_min_gbps\); measured over TCP, as "
    r".+ on {0}: .+ there, or set fabric_gate_min_gbps"
)
GATE_TASKS = {"Listen", "Measure what the links carry", "End the listener", "Judge", "Keep the result"}


def test_a_switch_with_a_small_mtu_is_found_by_large_pings(lab: Lab) -> None:
    lab.cable("pair", "--nodes", "1,2")
    lab.give_addresses(1, 2)
    with undone(
        partial(lab.fabric_mtu, 1500, "n1p0", "n2p0"),
        partial(lab.fabric_mtu, FABRIC_MTU, "n1p0", "n2p0"),
    ):
        run = lab.converge(PAIR)
    assert_stopped(run, MTU_INSIDE)


def test_a_slow_link_stops_the_run_until_it_is_mended(lab: Lab) -> None:
    lab.cable("pair", "--nodes", "1,2")
    lab.give_addresses(1, 2)
    with undone(lambda: simulator("limit", "c1", "100mbit"), lambda: simulator("limit", "c1", "1gbit")):
        run = lab.converge(PAIR)
        slow = [
            SLOW.format(*ends, twin)
            for ends in (("spark-01", "spark-02"), ("spark-02", "spark-01"))
            for twin in ("enp1s0f0np0", "enP2p1s0f0np0")
        ]
        assert_stopped(run, *slow)
        for number in (1, 2):
            record = gate_record(lab[number])
            assert record["passed"] is False and record["thresholds"] == {"min_gbps": 0.3}
            assert all(link["gbps"] < 0.2 for link in record["links"])

        warned = lab.converge(PAIR, fabric_gate="warn")
        # It is known what the link carries: nothing is measured again, but it is said again.
        assert_passed(warned, measured=False)
        assert "spark-01: enp1s0f0np0 to spark-02's enp1s0f0np0: 0." in warned.warnings

    assert_passed(lab.converge(PAIR), measured=True)
    assert gate_record(lab[2])["passed"] is True
    again = lab.converge(PAIR)
    assert_passed(again, measured=False, changed=False)
    assert not GATE_TASKS & set(again.tasks), again.shown


def test_more_nodes_than_forks_pass_the_gate(lab: Lab) -> None:
    lab.cable("switch", "--nodes", "1,2,3,4")
    lab.give_addresses(1, 2, 3, 4)
    run = lab.converge({"atlas": [1, 2, 3, 4]}, "--forks", "2")
    assert_passed(run, measured=True)
    links = [link for link in gate_record(lab[4])["links"] if link["gbps"] is not None]
    assert len(links) == 8, links
