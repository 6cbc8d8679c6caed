# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Cables that are missing, wrong, or pulled out, and adapters that are not there."""

from __future__ import annotations

import re
from functools import partial

import pytest

from simulator.hardware import FUNCTIONS
from simulator.plan import fabric_port
from tests.integration.bad_input.playbook import assert_refused
from tests.integration.fabric.lab import KEPT, P0, Lab, assert_passed, assert_stopped, simulator, undone
from tests.integration.fleets import skipped_without, until

pytestmark = skipped_without()

PAIR = {"atlas": [1, 2]}
RING = {"atlas": [1, 2, 3]}
TWO_PAIRS = {"atlas": [1, 2], "borea": [3, 4]}
NO_RDMA = ("mkdir -p /run/nothing; mount --bind /run/nothing /sys/class/infiniband", "umount /sys/class/infiniband")
NO_VENDOR = (
    "for i in /sys/class/net/en*np*; do mount --bind /dev/null $i/device/vendor; done",
    "umount /sys/class/net/en*np*/device/vendor",
)
"""Without it, the interfaces are nobody's."""
STREAMS = "[ $(ss -Htn state established 'sport = :18515' | wc -l) -ge 4 ]"


def test_an_unplugged_cable_is_named_at_both_of_its_ends(lab: Lab) -> None:
    lab.cable("pair", "--nodes", "1,2")
    simulator("unplug", "c1")
    lab.wait_for_carrier()
    assert_refused(
        lab.converge(PAIR, fabric_configure="auto"),
        "spark-01: no cable of the cluster ends at this node; plug one into it and spark-02",
        "spark-02: no cable of the cluster ends at this node; plug one into it and spark-01",
    )


def test_a_cable_that_is_pulled_before_the_addresses_are_set_leaves_none(lab: Lab) -> None:
    lab.cable("pair", "--nodes", "1,2")
    run = lab.converge(
        PAIR,
        during={"Set the addresses": partial(simulator, "unplug", "c1")},
        fabric_configure="auto",
        fabric_confirm_timeout=25,
    )
    assert_stopped(
        run,
        *(
            # Whether the time is up before the node has given up hangs on the machine.
            rf"{node}: (after netplan apply enp1s0f0np0 has no carrier; .+; it went back to the old addresses|"
            r"its new addresses could not be confirmed within 25 s; it went back to the old ones by itself); "
            r"look at 'journalctl -t sparkfleet' on it"
            for node in ("spark-01", "spark-02")
        ),
    )
    assert not any(lab[number].run("ip -o -4 addr show dev enp1s0f0np0") for number in (1, 2))


@pytest.mark.parametrize("streams_flow", [False, True], ids=["before", "while"])
def test_a_cable_that_is_pulled_before_or_while_the_gate_measures_is_named(lab: Lab, streams_flow: bool) -> None:
    lab.cable("pair", "--nodes", "1,2")
    lab.give_addresses(1, 2)

    def pull() -> None:
        if streams_flow:
            until(partial(lab[2].holds, STREAMS), "streams")
        simulator("unplug", "c1")

    run = lab.converge(PAIR, during={"Measure what the links carry" if streams_flow else "Listen": pull})
    assert run.converging and run.returncode != 0, run.shown
    # Whoever measures while the cable is pulled sees a stream end; the others see the carrier gone.
    rails = {re.match(r"spark-0[12]: (\S+) to spark-0[12]'s \1: .*cable", line) for line in run.reasons}
    assert {match[1] for match in rails if match} == set(P0), run.shown
    if not streams_flow:
        assert sum(line.endswith("has no carrier; plug its cable in at both ends") for line in run.reasons) == 2
    assert not lab[1].holds("ss -Hltn 'sport = :18515' | grep ."), "somebody still listens"


def test_a_twin_that_is_down_is_refused_or_brought_up(lab: Lab) -> None:
    lab.cable("pair", "--nodes", "1,2")
    lab.give_addresses(1, 2)
    lab[2].run("ip link set enP2p1s0f0np0 down")
    assert_refused(
        lab.converge(PAIR),
        f"spark-02: enP2p1s0f0np0 is …; it should be up with 192.168.178.12/24, MTU 9000{KEPT}",
    )
    assert_passed(lab.converge(PAIR, fabric_configure="auto"), measured=True, changed=True)
    assert "192.168.178.12/24" in lab[2].run("ip -o -4 addr show dev enP2p1s0f0np0 up")


@pytest.mark.parametrize("configure", ["keep", "auto"])
def test_a_twin_without_carrier_is_refused(lab: Lab, configure: str) -> None:
    lab.cable("pair", "--nodes", "1,2")
    lab.give_addresses(1, 2)
    twin = next(fabric_port(2, function) for function in FUNCTIONS if function.netdev == P0[1])
    with undone(
        lambda: lab.fabric_side(f"link set {twin} down"),
        lambda: lab.fabric_side(f"link set {twin} up"),
    ):
        lab.wait_for_carrier()
        run = lab.converge(PAIR, fabric_configure=configure)
    assert_refused(
        run,
        "spark-02: enp1s0f0np0: its twin enP2p1s0f0np0 is down: it has no carrier; half of the port's bandwidth is "
        "lost; plug the QSFP cable in again at both ends; if it stays, take the machine off its power supply",
    )


def test_a_ring_with_a_plug_in_the_wrong_port_names_the_plug(lab: Lab) -> None:
    lab.cable("--ends", "1:p0=2:p0", "2:p1=3:p1", "3:p0=1:p1")
    run = lab.converge(RING, fabric_configure="auto")
    assert_refused(
        run,
        "spark-02: spark-01 p0 is cabled to spark-02 p0; a ring needs …: move the plug at spark-02 to p1",
        "spark-02: spark-03 p1 is cabled to spark-02 p1; a ring needs …: move the plug at spark-02 to p0",
    )


def test_a_ring_with_a_missing_cable_names_its_ends(lab: Lab) -> None:
    lab.cable("--ends", "1:p0=2:p1", "2:p0=3:p1")
    run = lab.converge(RING, fabric_configure="auto")
    assert_refused(run, "spark-03: no cable from p0 to spark-01 p1, which a ring needs; plug one in")


def test_swapped_cables_of_two_clusters_say_which_plug_belongs_where(lab: Lab) -> None:
    lab.cable("--ends", "1:p0=4:p0", "3:p0=2:p0")
    assert_refused(
        lab.converge(TWO_PAIRS, fabric_configure="auto"),
        "spark-01: p0 is cabled to spark-04 p0 of cluster borea; cable p0 to spark-02 p0",
        "spark-02: p0 is cabled to spark-03 p0 of cluster borea; cable p0 to spark-01 p0",
        "spark-03: p0 is cabled to spark-02 p0 of cluster atlas; cable p0 to spark-04 p0",
        "spark-04: p0 is cabled to spark-01 p0 of cluster atlas; cable p0 to spark-03 p0",
    )


def test_a_host_without_the_rdma_driver_is_told_to_load_it(lab: Lab) -> None:
    lab.cable("pair", "--nodes", "1,2")
    with lab[2].broken(*NO_RDMA):
        assert_refused(
            lab.converge(PAIR, fabric_configure="auto"),
            "spark-02: enP2p1s0f0np0, enP2p1s0f1np1, enp1s0f0np0, enp1s0f1np1: a ConnectX adapter, but without an RDMA "
            "device in /sys/class/infiniband; run 'modprobe mlx5_ib'; if there is no such module, install all modules "
            "of the running kernel",
        )


def test_a_host_without_an_adapter_is_refused_among_others_and_fine_alone(lab: Lab) -> None:
    lab.cable("pair", "--nodes", "1,2")
    with lab[2].broken(*NO_RDMA), lab[2].broken(*NO_VENDOR):
        assert_refused(
            lab.converge(PAIR, fabric_configure="auto"),
            "spark-02: no ConnectX adapter is visible in /sys/class/infiniband; take the machine off its power supply "
            "for a minute and check 'lspci -d 15b3:'",
        )
        alone = lab.converge({"atlas": [2]})
        assert_passed(alone, measured=False)
        assert "NCCL_IB_HCA" not in lab[2].run("cat /etc/sparkfleet/atlas/fabric.env")
