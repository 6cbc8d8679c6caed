# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Addresses, MTUs and GIDs that are wrong, and a change of them that cuts the controller off."""

from __future__ import annotations

import pytest

from tests.integration.bad_input.playbook import assert_refused
from tests.integration.fabric.lab import KEPT, OWN_FILE, P0, Lab, assert_passed, assert_stopped
from tests.integration.fleets import skipped_without, until

pytestmark = skipped_without()

PAIR = {"atlas": [1, 2]}
DISPATCHER = "/etc/NetworkManager/dispatcher.d/50-cut"
ONE_SUBNET = "ip addr del 192.168.178.{0}/24 dev enP2p1s0f0np0; ip addr add 192.168.177.1{0}/24 dev enP2p1s0f0np0"


@pytest.fixture(autouse=True)
def pair(lab: Lab) -> None:
    """All of this is tried on two nodes with one cable."""
    lab.cable("pair", "--nodes", "1,2")


def test_an_mtu_of_1500_at_one_end_is_refused_or_raised(lab: Lab) -> None:
    lab.give_addresses(1, 2)
    lab[2].run("ip link set enp1s0f0np0 mtu 1500")
    assert_refused(
        lab.converge(PAIR),
        f"spark-02: enp1s0f0np0 has MTU 1500; it should be 192.168.177.12/24, MTU 9000{KEPT}",
    )
    assert_passed(lab.converge(PAIR, fabric_configure="auto"), measured=True, changed=True)
    assert " mtu 9000 " in lab[2].run("ip -o link show dev enp1s0f0np0")


def test_twins_in_one_subnet_are_refused_or_parted(lab: Lab) -> None:
    lab.give_addresses(1, 2)
    for number, last in ((1, 11), (2, 12)):
        lab[number].run(ONE_SUBNET.format(last))
    lab.wait_for_gids(1, 2)
    only_one = "enp1s0f0np0: its twin enP2p1s0f0np0 is in the same subnet 192.168.177.0/24: only one of them carries"
    expected = [
        line
        for node, last in (("spark-01", 11), ("spark-02", 12))
        for line in (
            f"{node}: {only_one}; give each of the twins an address in its own subnet",
            f"{node}: enP2p1s0f0np0 has 192.168.177.1{last}/24; it should be 192.168.178.{last}/24, MTU 9000{KEPT}",
        )
    ]
    assert_refused(lab.converge(PAIR), *expected)
    assert_passed(lab.converge(PAIR, fabric_configure="auto"), measured=True, changed=True)


def test_bonded_twins_are_refused(lab: Lab) -> None:
    # This kernel makes no bonds. A bridge is to its ports what a bond is to its own: their master. Isolated, they do
    # not forward to each other, which would be a loop; like a bond it takes the address of its first port.
    twins = " ".join(P0)
    lab[2].run(
        f"ip link add bond0 type bridge forward_delay 0; for i in {twins}; do ip link set $i down; "
        "ip link set $i master bond0; ip link set $i type bridge_slave isolated on; done; "
        f"ip link set bond0 address $(cat /sys/class/net/{P0[0]}/address); "
        f"for i in bond0 {twins}; do ip link set $i up; done; ip addr add 192.168.177.12/24 dev bond0"
    )
    assert_refused(
        lab.converge(PAIR, fabric_configure="auto"),
        "spark-02: enp1s0f0np0, enP2p1s0f0np0: part of bond0; take it apart and give each of the twins its own subnet",
    )


def test_a_drifted_gid_index_matters_only_to_who_forces_one(lab: Lab) -> None:
    lab.give_addresses(1, 2)
    before = _index(lab)
    own, other = "192.168.177.12/24", "172.31.9.2/32"
    # The first free slot is taken by another address while ours is away.
    for change, present, absent in (
        (f"del {own}", "", own),
        (f"add {other}", other, ""),
        (f"add {own}", own, ""),
        (f"del {other}", own, other),
    ):
        lab[2].run(f"ip addr {change} dev enp1s0f0np0")
        until(lambda p=present, a=absent: _has_gids(lab, p, a), "the GID table")  # type: ignore[misc]
    after = _index(lab)
    assert after != before
    assert_refused(
        lab.converge(PAIR, fabric_env={"NCCL_IB_GID_INDEX": str(before)}),
        f"spark-02: fabric_env.NCCL_IB_GID_INDEX is {before}, but the RoCE v2 GID of enp1s0f0np0's IPv4 address is at "
        f"index {after}; leave it out, and NCCL finds the right one on each device",
    )
    assert_passed(lab.converge(PAIR), measured=True)
    assert "NCCL_IB_GID_INDEX" not in lab[2].run("cat /etc/sparkfleet/atlas/fabric.env")


def _index(lab: Lab) -> int:
    """Index of the RoCE v2 GID of the second node's first address."""
    rows = [row.split() for row in lab[2].run("show_gids | grep -w 192.168.177.12").splitlines()]
    return next(int(row[2]) for row in rows if "v2" in row)


def _has_gids(lab: Lab, present: str, absent: str) -> bool:
    shown = lab[2].run("show_gids").split()
    return all(text.split("/")[0] in shown for text in [present] if text) and absent.split("/")[0] not in shown


def test_subnets_that_overlap_management_are_refused(lab: Lab) -> None:
    assert_refused(
        lab.converge(PAIR, fabric_configure="auto", fabric_subnets=["10.77.0.0/16", "10.200.0.0/24"]),
        "spark-01: fabric_subnets: 10.77.0.0/16 overlaps enP7s7 10.77.…/24 of spark-01; choose another",
    )


def test_a_change_that_cuts_the_controller_off_goes_back_and_says_so(lab: Lab) -> None:
    script = '#!/bin/sh\nif [ "$1:$2" = enp1s0f0np0:up ]; then ip link set dev enP7s7 down; fi\n'
    with lab[1].broken(
        f"cat > {DISPATCHER} <<'END'\n{script}END\nchmod 755 {DISPATCHER}",
        f"rm {DISPATCHER}",
    ):
        run = lab.converge(PAIR, fabric_configure="auto", fabric_confirm_timeout=20)
    assert_stopped(
        run,
        "spark-01: could not be reached over management within 20 s after its new addresses were applied; it went "
        "back to the old ones by itself; look at 'journalctl -t sparkfleet' on it",
    )
    assert not lab[1].holds(f"test -e {OWN_FILE}")
    assert not lab[1].run("ip -o -4 addr show dev enp1s0f0np0")


def test_unaddressed_ports_are_set_up_once(lab: Lab) -> None:
    assert_passed(lab.converge(PAIR, fabric_configure="auto"), measured=True, changed=True)
    assert_passed(lab.converge(PAIR, fabric_configure="auto"), measured=False, changed=False)
