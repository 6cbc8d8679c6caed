# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Topologies, addresses and MAC addresses of a simulated fleet."""

from __future__ import annotations

import ipaddress
from collections import Counter, defaultdict

import pytest
import yaml

from simulator import plan
from simulator.errors import SimulatorError
from simulator.hardware import FUNCTIONS, card_guid, default_gid, mac, twins
from simulator.plan import Cable, End, Spec


def spec(nodes: int, topology: str, **more: object) -> Spec:
    return Spec(name="t", nodes=nodes, topology=topology, **more)  # type: ignore[arg-type]


def test_pair_has_one_cable_between_the_first_ports() -> None:
    assert plan.cables(spec(2, "pair")) == [Cable("c1", "c1", (End(1, 0), End(2, 0)))]


def test_second_cable_of_a_pair_is_on_the_second_ports() -> None:
    assert plan.cables(spec(2, "pair", cables=2))[1] == Cable("c2", "c2", (End(1, 1), End(2, 1)))


def test_ring_of_three_is_cabled_as_the_playbooks_say() -> None:
    assert [cable.ends for cable in plan.cables(spec(3, "ring"))] == [
        (End(1, 0), End(2, 1)),
        (End(2, 0), End(3, 1)),
        (End(3, 0), End(1, 1)),
    ]


@pytest.mark.parametrize("nodes", [3, 4, plan.MAX_NODES])
def test_ring_uses_every_port_once(nodes: int) -> None:
    ends = Counter(end for cable in plan.cables(spec(nodes, "ring")) for end in cable.ends)
    assert ends == Counter(End(node, port) for node in range(1, nodes + 1) for port in (0, 1))


def test_cables_of_a_switch_share_one_bridge_and_can_be_told_apart() -> None:
    cables = plan.cables(spec(4, "switch"))
    assert {cable.bridge for cable in cables} == {"sw"}
    assert [cable.name for cable in cables] == ["c1", "c2", "c3", "c4"]


def test_a_cable_carries_both_twins_of_both_ends() -> None:
    assert plan.fabric_ports(plan.cables(spec(2, "pair"))[0]) == ["n1p0", "n1p2p0", "n2p0", "n2p2p0"]


def test_cables_have_the_rate_of_the_fleet() -> None:
    assert {cable.rate for cable in plan.cables(spec(3, "ring", rate="1gbit"))} == {"1gbit"}


def ends(cables: list[Cable]) -> list[str]:
    """Each cable in a word: its bridge, or what it joins."""
    return [drawn.split(" ", 1)[1] for drawn in plan.drawing(cables).split(", ")]


@pytest.mark.parametrize(
    ("topology", "nodes", "count", "joined"),
    [
        ("pair", "3,1", 1, ["spark-03:p0=spark-01:p0"]),
        ("pair", "spark-01, 2", 2, ["spark-01:p0=spark-02:p0", "spark-01:p1=spark-02:p1"]),
        ("ring", "1,3,2", 1, ["spark-01:p0=spark-03:p1", "spark-03:p0=spark-02:p1", "spark-02:p0=spark-01:p1"]),
        ("switch", "4,2", 1, ["spark-04:p0=sw", "spark-02:p0=sw"]),
        ("switch", "", 1, [f"spark-0{node}:p0=sw" for node in range(1, 5)]),
    ],
)
def test_fleet_is_cabled_anew_with_the_chosen_nodes(topology: str, nodes: str, count: int, joined: list[str]) -> None:
    fleet = spec(4, "switch", rate="1gbit")
    cables = plan.cable_topology(fleet, topology, nodes, count)
    assert ends(cables) == joined
    assert [(cable.name, cable.rate) for cable in cables] == [(f"c{n}", "1gbit") for n in range(1, len(joined) + 1)]


def test_ends_make_cables_and_switches() -> None:
    words = ["spark-01:p0=2:p1", "1:p1=3:p0=4:p0", "2:p0=3:p1=4:p1"]
    cables = plan.cable_ends(spec(4, "switch", rate="1gbit"), words)
    assert cables[0] == Cable("c1", "c1", (End(1, 0), End(2, 1)), "1gbit")
    assert [(cable.name, cable.bridge, cable.ends) for cable in cables[1:]] == [
        ("c2", "sw", (End(1, 1),)),
        ("c3", "sw", (End(3, 0),)),
        ("c4", "sw", (End(4, 0),)),
        ("c5", "sw2", (End(2, 0),)),
        ("c6", "sw2", (End(3, 1),)),
        ("c7", "sw2", (End(4, 1),)),
    ]
    assert ends(cables)[0] == "spark-01:p0=spark-02:p1"


def test_a_cable_may_lead_back_to_its_own_node() -> None:
    [cable] = plan.cable_ends(spec(2, "pair"), ["1:p0=1:p1"])
    assert cable.ends == (End(1, 0), End(1, 1))


@pytest.mark.parametrize(
    ("topology", "nodes", "count", "says"),
    [
        ("pair", "", 1, "exactly 2 nodes, not 4"),
        ("pair", "1,1", 1, "spark-01 twice"),
        ("pair", "1,spark-01", 1, "spark-01 twice"),
        ("pair", "1,", 1, "no node ''"),
        ("pair", "1,5", 1, "no node '5' in fleet 't'; there are: spark-01 to spark-04"),
        ("pair", "1,2", 3, "--cables 3"),
        ("ring", "1,2", 1, "at least 3 nodes, not 2"),
        ("switch", "", 2, "--cables 2"),
        ("switch", "0", 1, "no node '0'"),
    ],
)
def test_topology_that_cannot_be_cabled_is_refused(topology: str, nodes: str, count: int, says: str) -> None:
    with pytest.raises(SimulatorError, match=says):
        plan.cable_topology(spec(4, "switch"), topology, nodes, count)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["1:p0"], "join the ends"),
        (["1:p0=2"], "'2' is not an end"),
        (["1:p0=:p0"], "':p0' is not an end"),
        (["1:p0==2:p0"], "'' is not an end"),
        (["1:p0=2:p2"], "no port 'p2'; there are: p0, p1"),
        (["1:p0=2:0"], "no port '0'"),
        (["1:p0=5:p0"], "no node '5'"),
        (["1:p0=1:p0"], "spark-01:p0 is used twice"),
        (["1:p0=2:p0", "3:p0=spark-02:p0"], "spark-02:p0 is used twice"),
        (["1:p0=2:p0=3:p0", "3:p0=4:p0"], "spark-03:p0 is used twice"),
    ],
)
def test_ends_that_cannot_be_cabled_are_refused(words: list[str], says: str) -> None:
    with pytest.raises(SimulatorError, match=says) as caught:
        plan.cable_ends(spec(4, "switch"), words)
    assert "\n" not in str(caught.value)


def test_limit_of_one_cable_leaves_the_others_and_the_wiring() -> None:
    before = plan.cables(spec(3, "ring", rate="1gbit"))
    after = plan.with_rate(before, "c2", "")
    assert [cable.rate for cable in after] == ["1gbit", "", "1gbit"]
    assert plan.wiring(after) == plan.wiring(before)


def test_moved_cable_is_another_wiring() -> None:
    ring, other = spec(3, "ring"), plan.cable_topology(spec(3, "ring"), "ring", "1,3,2")
    assert plan.wiring(plan.cables(ring)) != plan.wiring(other)


@pytest.mark.parametrize("node", [1, plan.MAX_NODES])
def test_interface_names_fit_the_kernel(node: int) -> None:
    assert all(len(plan.fabric_port(node, function)) <= 15 for function in FUNCTIONS)


@pytest.mark.parametrize("topology", ["pair", "switch"])
def test_pair_and_switch_have_one_subnet_per_rail(topology: str) -> None:
    assert plan.addresses(spec(2, topology), 2) == {
        "enp1s0f0np0": "192.168.177.12/24",
        "enP2p1s0f0np0": "192.168.178.12/24",
    }


@pytest.mark.parametrize("nodes", [3, 5, plan.MAX_NODES])
def test_ring_has_two_subnets_per_cable_and_both_ends_are_in_them(nodes: int) -> None:
    ring = spec(nodes, "ring")
    members = defaultdict(set)
    for node in range(1, nodes + 1):
        addresses = plan.addresses(ring, node)
        assert set(addresses) == {function.netdev for function in FUNCTIONS}
        for function in FUNCTIONS:
            network = ipaddress.ip_interface(addresses[function.netdev]).network
            members[network].add((End(node, function.port), function.rail))
    assert len(members) == 2 * nodes
    cables = {frozenset(cable.ends) for cable in plan.cables(ring)}
    for found in members.values():
        assert frozenset(end for end, _rail in found) in cables
        assert len({rail for _end, rail in found}) == 1


def test_netplan_file_is_what_the_playbooks_write() -> None:
    ethernets = yaml.safe_load(plan.netplan(spec(2, "pair"), 1))["network"]["ethernets"]
    assert ethernets["enP2p1s0f0np0"] == {
        "dhcp4": False,
        "link-local": [],
        "mtu": 9000,
        "addresses": ["192.168.178.11/24"],
    }


def test_no_addresses_means_no_netplan_file() -> None:
    assert plan.netplan(spec(2, "pair", addresses=False), 1) == ""


@pytest.mark.parametrize("renderer", plan.RENDERERS)
def test_netplan_is_told_its_renderer(renderer: str) -> None:
    name, text = plan.netplan_default(spec(2, "pair", renderer=renderer))
    assert yaml.safe_load(text)["network"]["renderer"] == renderer
    assert name < "40-cx7.yaml" and name.endswith(".yaml")


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (spec(1, "pair"), "exactly 2 nodes"),
        (spec(3, "pair"), "exactly 2 nodes"),
        (spec(2, "ring"), "at least 3 nodes"),
        (spec(0, "switch"), "choose 1 to"),
        (spec(33, "switch"), "choose 1 to"),
        (spec(2, "star"), "pair, ring, switch"),
        (spec(2, "pair", cables=3), "--cables 3"),
        (spec(3, "ring", cables=2), "--cables 2"),
        (spec(2, "pair", rate="fast"), "--rate fast"),
        (spec(2, "pair", rate="0gbit"), "--rate 0gbit"),
        (spec(2, "pair", renderer="ifupdown"), "--renderer ifupdown"),
        (Spec("Demo", 2, "pair"), "--name Demo"),
        (Spec("../up", 2, "pair"), "--name ../up"),
        (Spec("", 2, "pair"), "--name"),
    ],
)
def test_what_cannot_be_built_is_refused_in_one_line(wrong: Spec, says: str) -> None:
    with pytest.raises(SimulatorError, match=says) as caught:
        wrong.check()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("right", [spec(2, "pair", cables=2, rate="1gbit"), spec(3, "ring"), spec(1, "switch")])
def test_what_can_be_built_passes(right: Spec) -> None:
    right.check()


@pytest.mark.parametrize(
    ("used", "free"),
    [
        ([], "10.77.0.0/24"),
        (["172.17.0.0/16", "fd00::/64"], "10.77.0.0/24"),
        (["10.77.0.0/24", "10.77.2.0/24"], "10.77.1.0/24"),
        (["10.77.0.0/23"], "10.77.2.0/24"),
        (["10.77.0.9"], "10.77.1.0/24"),
    ],
)
def test_management_network_is_the_first_that_overlaps_nothing(used: list[str], free: str) -> None:
    assert plan.free_subnet(used) == free


def test_no_free_management_network_is_an_error() -> None:
    with pytest.raises(SimulatorError, match="in use"):
        plan.free_subnet(["10.0.0.0/8"])


def test_management_addresses_count_from_eleven() -> None:
    assert plan.management_address("10.77.3.0/24", 1) == "10.77.3.11"


@pytest.mark.parametrize(("rate", "kib"), [("100mbit", 256), ("1gbit", 256), ("10gbit", 1220)])
def test_token_bucket_grows_with_the_rate(rate: str, kib: int) -> None:
    assert plan.burst_kib(rate) == kib


def test_mac_addresses_are_spaced_as_on_a_card_and_unique() -> None:
    assert [mac(2, function) for function in FUNCTIONS] == [
        "4c:bb:47:00:02:00",
        "4c:bb:47:00:02:01",
        "4c:bb:47:00:02:04",
        "4c:bb:47:00:02:05",
    ]
    every = [mac(node, function) for node in range(1, plan.MAX_NODES + 1) for function in FUNCTIONS]
    assert len(set(every)) == len(every)


def test_twins_share_a_port_and_not_a_rail() -> None:
    assert [function.netdev for function in twins(1)] == ["enp1s0f1np1", "enP2p1s0f1np1"]
    assert [function.rail for function in twins(1)] == [0, 1]


def test_guid_and_gid_follow_from_the_mac_address() -> None:
    assert f"{card_guid('4c:bb:47:82:0e:69'):016x}" == "4cbb470300820e69"
    assert default_gid("4c:bb:47:82:0e:69") == "fe80:0000:0000:0000:4ebb:47ff:fe82:0e69"
