# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import copy
import random
import re
from collections.abc import Sequence

import pytest
from ansible_collections.sparkfleet.vllm.plugins.module_utils._roce import Problem, no_connectx
from ansible_collections.sparkfleet.vllm.plugins.module_utils._topology import (
    Cabling,
    Host,
    Wire,
    find_cablings,
    find_wires,
)
from ansible_collections.sparkfleet.vllm.tests.unit.plugins.module_utils.fabric_hosts import (
    Group,
    cable,
    clusters_of,
    find_cabling,
    interface_of,
    mac,
    name_of,
    names,
    pair,
    ring,
    spark,
    switch,
    take_down,
)
from hypothesis import given, settings
from hypothesis import strategies as st


def atlas(count: int, groups: Sequence[Group]) -> dict[str, Host]:
    return cable({"atlas": names(*range(1, count + 1))}, groups)


def ends(wires: Sequence[Wire]) -> list[list[str]]:
    return [[f"{end['host']}:{end['port']}" for end in wire["ends"]] for wire in wires]


def judge(hosts: dict[str, Host], wanted: str = "auto", cluster: str = "atlas") -> Cabling:
    return find_cabling(hosts, find_wires(hosts), clusters_of(hosts)[cluster], wanted)


def lines(hosts: dict[str, Host], wanted: str = "auto", cluster: str = "atlas") -> list[str]:
    result = judge(hosts, wanted, cluster)
    assert result["wires"] == [] or not result["problems"]
    found = [f"{host}: {line}" for host, own in result["problems"].items() for line in own]
    assert len(set(found)) == len(found)
    assert all("\n" not in line and ";" in line for line in found)
    return found


# --- wires ----------------------------------------------------------------------------------------


def test_a_cable_has_two_ends_with_both_twins() -> None:
    assert find_wires(atlas(2, pair(1, 2))) == [
        {
            "ends": [
                {"host": "spark-01", "port": "p0", "interfaces": ["enp1s0f0np0", "enP2p1s0f0np0"]},
                {"host": "spark-02", "port": "p0", "interfaces": ["enp1s0f0np0", "enP2p1s0f0np0"]},
            ]
        }
    ]


@pytest.mark.parametrize(
    "groups",
    [pair(1, 2, cables=2), ring(1, 2, 3), switch(1, 2, 3), [], [["spark-01:p0", "spark-01:p1"]]],
    ids=["two cables", "ring", "switch", "nothing", "loop"],
)
def test_wires_are_what_was_cabled(groups: list[list[str]]) -> None:
    found = ends(find_wires(atlas(3, groups)))
    assert sorted(map(sorted, found)) == sorted(map(sorted, groups))
    assert found == sorted(found)


@pytest.mark.parametrize("deaf", ["spark-01", "spark-02"])
def test_one_ends_word_is_enough(deaf: str) -> None:
    hosts = atlas(2, pair(1, 2))
    hosts[deaf]["neighbours"] = None
    assert ends(find_wires(hosts)) == pair(1, 2)


def test_on_a_switch_one_answer_to_each_is_enough() -> None:
    hosts = atlas(4, switch(1, 2, 3, 4))
    for number in (1, 2, 3, 4):
        hosts[name_of(number)]["neighbours"] = {"enp1s0f0np0": [mac(number % 4 + 1, 4)] if number < 4 else []}
    assert ends(find_wires(hosts)) == switch(1, 2, 3, 4)


def test_case_strangers_and_emptiness_do_not_matter() -> None:
    hosts = atlas(3, [])
    hosts["spark-01"]["neighbours"] = {"enp1s0f0np0": ["02:de:ad:be:ef:00", mac(2, 1).upper()], "enP2p1s0f0np0": []}
    interface_of(hosts["spark-02"]["roce"], "enp1s0f1np1")["mac"] = mac(2, 1).upper()
    interface_of(hosts["spark-03"]["roce"], "enp1s0f0np0")["mac"] = None
    hosts["spark-02"]["neighbours"] = {"gone0": [mac(3, 1)]}
    assert ends(find_wires(hosts)) == [["spark-01:p0", "spark-02:p1"]]


def test_a_twin_that_is_down_belongs_to_its_port() -> None:
    hosts = atlas(2, pair(1, 2))
    take_down(hosts["spark-02"]["roce"], "enP2p1s0f0np0")
    (wire,) = find_wires(cable({"atlas": names(1, 2)}, pair(1, 2), spark_02=hosts["spark-02"]["roce"]))
    assert wire["ends"][1]["interfaces"] == ["enp1s0f0np0", "enP2p1s0f0np0"]


def test_the_port_of_management_is_no_port_of_the_fabric() -> None:
    hosts = atlas(2, pair(1, 2, cables=2))
    hosts["spark-01"]["roce"]["management"] = ["vlan7", "enP2p1s0f0np0"]
    vlan = copy.copy(interface_of(hosts["spark-01"]["roce"], "enP7s7"))
    vlan["name"], vlan["lower"] = "vlan7", ["enP2p1s0f0np0"]
    hosts["spark-01"]["roce"]["interfaces"].append(vlan)
    assert ends(find_wires(hosts)) == pair(1, 2, cables=2)[1:]


def test_virtual_functions_and_infiniband_are_no_ports() -> None:
    hosts = atlas(2, pair(1, 2))
    for device in hosts["spark-01"]["roce"]["devices"]:
        device["virtual_function"] = device["physical_port"] == "p0"
        device["link_layer"] = "InfiniBand" if device["physical_port"] == "p1" else "Ethernet"
    assert find_wires(hosts) == []


def test_ports_of_a_second_card_have_their_own_names() -> None:
    hosts = atlas(2, pair(1, 2, cables=2))
    for device in hosts["spark-01"]["roce"]["devices"]:
        if device["physical_port"] == "p1":
            device["card"], device["physical_port"] = "another", "p0"
    assert ends(find_wires(hosts)) == [["spark-01:enp1s0f0np0", "spark-02:p0"], ["spark-01:enp1s0f1np1", "spark-02:p1"]]


def test_a_cloned_mac_address_is_refused_on_the_later_host() -> None:
    clone = spark(2, ["p0"])
    for offset, name in ((0, "enp1s0f0np0"), (4, "enP2p1s0f0np0")):
        interface_of(clone, name)["mac"] = mac(1, offset).upper()
    hosts = cable({"atlas": names(1, 2)}, pair(1, 2), spark_02=clone)
    assert lines(hosts) == [
        f"spark-02: p0 has the MAC address {mac(1, offset)} of spark-01 too; "
        "give each its own, as 'ethtool -P' shows it"
        for offset in (0, 4)
    ]


def test_a_cloned_mac_address_says_nothing() -> None:
    clone = spark(2, ["p1"])
    interface_of(clone, "enp1s0f1np1")["mac"] = mac(1, 1)
    hosts = cable({"atlas": names(1, 2, 3)}, [], spark_02=clone)
    hosts["spark-03"]["neighbours"] = {"enp1s0f0np0": [mac(1, 1)]}
    assert find_wires(hosts) == []


def test_a_thousand_hosts_on_a_switch_are_one_wire() -> None:
    numbers = range(1, 1001)
    hosts = cable({"atlas": names(*numbers)}, switch(*numbers))
    wires = find_wires(hosts)
    assert ends(wires) == switch(*numbers)
    assert find_cabling(hosts, wires, list(hosts))["topology"] == "switch"


# --- what is right --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "groups", "wanted", "topology", "wires"),
    [
        (1, [], "auto", "single", []),
        (1, [["spark-01:p0", "spark-01:p1"]], "auto", "single", []),
        (2, pair(1, 2), "auto", "pair", [0]),
        (2, pair(1, 2), "pair", "pair", [0]),
        (2, pair(1, 2), "switch", "switch", [0]),
        (2, [["spark-01:p0", "spark-02:p1"]], "auto", "pair", [0]),
        (2, pair(1, 2, cables=2), "auto", "pair", [0, 1]),
        (2, switch(1, 2, 3), "auto", "pair", [0]),
        (3, ring(1, 2, 3), "auto", "ring", [0, 1, 2]),
        (3, ring(3, 2, 1), "ring", "ring", [0, 1, 2]),
        (3, ring(1, 2, 3), "pair", "ring", [0, 1, 2]),
        (5, ring(1, 4, 2, 5, 3), "auto", "ring", [0, 1, 2, 3, 4]),
        (3, switch(1, 2, 3), "auto", "switch", [0]),
        (4, switch(1, 2, 3, 4) + switch(1, 2, 3, 4, port="p1"), "switch", "switch", [0, 1]),
        (4, [["spark-01:p0", "spark-02:p1", "spark-03:p0", "spark-04:p1"]], "auto", "switch", [0]),
    ],
)
def test_right_cablings(count: int, groups: list[list[str]], wanted: str, topology: str, wires: list[int]) -> None:
    clusters = {"atlas": names(*range(1, count + 1)), "boreas": names(*range(count + 1, 7))}
    result = judge(cable(clusters, groups), wanted)
    assert (result["topology"], result["wires"], result["problems"]) == (topology, wires, {})


def test_two_clusters_on_one_switch_are_fine() -> None:
    hosts = cable({"atlas": names(1, 2, 3), "boreas": names(4, 5)}, switch(1, 2, 3, 4, 5))
    found = find_cablings(hosts, find_wires(hosts), clusters_of(hosts))
    assert [(c["topology"], c["wires"], c["problems"], c["notes"]) for c in found.values()] == [
        ("switch", [0], {}, {}),
        ("pair", [0], {}, {}),
    ]


def test_a_host_without_connectx_alone_is_fine() -> None:
    hosts = atlas(1, [])
    hosts["spark-01"]["roce"]["devices"] = []
    assert judge(hosts) == {"topology": "single", "wires": [], "problems": {}, "notes": {}}


@pytest.mark.parametrize("wanted", ["auto", "ring", "switch"])
def test_nothing_is_said_where_nothing_is_known(wanted: str) -> None:
    nothing = {"topology": "", "wires": [], "problems": {}, "notes": {}}
    hosts = atlas(3, ring(1, 2, 3))
    assert find_cabling(hosts, find_wires(hosts), [*hosts, "spark-09"], wanted) == nothing
    for host in hosts.values():
        host["neighbours"] = None
    assert judge(hosts, wanted) == nothing


def test_infiniband_is_not_judged() -> None:
    hosts = atlas(2, [])
    for device in hosts["spark-02"]["roce"]["devices"]:
        device["link_layer"] = "InfiniBand"
    assert judge(hosts)["topology"] == "" and lines(hosts) == []


# --- notes ----------------------------------------------------------------------------------------


def test_a_second_cable_is_noted() -> None:
    assert judge(atlas(2, pair(1, 2, cables=2)))["notes"] == {
        "spark-01": ["2 cables to spark-02; more than one adds no bandwidth"]
    }


def test_what_is_not_used_is_noted() -> None:
    hosts = cable(
        {"atlas": names(1, 2), "boreas": names(3)},
        [*pair(1, 2), ["spark-02:p1", "spark-03:p1"]],
        spark_01=spark(1, ["p0", "p1"]),
    )
    assert judge(hosts)["notes"] == {
        "spark-01": ["enp1s0f1np1 has carrier, but no node of the cluster answers on it; the cluster does not use it"],
        "spark-02": ["p1 is cabled to spark-03 p1 of cluster boreas; the cluster does not use it"],
    }


def test_a_second_cable_to_the_switch_is_noted() -> None:
    result = judge(atlas(3, [["spark-01:p0", "spark-02:p0", "spark-02:p1", "spark-03:p0"]]))
    assert result["topology"] == "switch"
    assert result["notes"] == {
        "spark-02": [
            "p0 and p1 are on one switch; a second cable to it adds no bandwidth, and only one of the ports is used"
        ]
    }


# --- pairs that are wrong -------------------------------------------------------------------------


def test_two_fabrics_cables_swapped() -> None:
    hosts = cable({"atlas": names(1, 2), "boreas": names(3, 4)}, pair(1, 3) + pair(2, 4))
    assert lines(hosts) == [
        "spark-01: p0 is cabled to spark-03 p0 of cluster boreas; cable p0 to spark-02 p0",
        "spark-02: p0 is cabled to spark-04 p0 of cluster boreas; cable p0 to spark-01 p0",
    ]
    assert lines(hosts, cluster="boreas") == [
        "spark-03: p0 is cabled to spark-01 p0 of cluster atlas; cable p0 to spark-04 p0",
        "spark-04: p0 is cabled to spark-02 p0 of cluster atlas; cable p0 to spark-03 p0",
    ]


def test_a_pair_without_a_cable() -> None:
    assert lines(atlas(2, [])) == [
        "spark-01: no cable of the cluster ends at this node; plug one into it and spark-02",
        "spark-02: no cable of the cluster ends at this node; plug one into it and spark-01",
    ]


def test_a_pair_with_carrier_that_nobody_answers_on() -> None:
    hosts = cable({"atlas": names(1, 2)}, [], spark_01=spark(1, ["p0"]), spark_02=spark(2, ["p1"]))
    assert lines(hosts) == [
        "spark-01: enp1s0f0np0 has carrier, but no node of the cluster answers on it; cable p0 to spark-02 p1",
        "spark-02: enp1s0f1np1 has carrier, but no node of the cluster answers on it; cable p1 to spark-01 p0",
    ]


def test_a_loop_cable() -> None:
    assert lines(atlas(2, [["spark-01:p0", "spark-01:p1"]])) == [
        "spark-01: p0 is cabled to its own p1; plug one of the ends into spark-02 p0",
        "spark-02: no cable of the cluster ends at this node; plug one into it and spark-01",
    ]


def test_a_pair_of_which_one_is_on_anothers_switch() -> None:
    hosts = cable({"atlas": names(1, 2), "boreas": names(3, 4, 5, 6, 7)}, switch(1, 3, 4, 5, 6, 7))
    assert lines(hosts) == [
        "spark-01: p0 is on a switch with spark-03 of cluster boreas, spark-04 of cluster boreas, "
        "spark-05 of cluster boreas and 2 others; cable p0 to spark-02 p0",
        "spark-02: no cable of the cluster ends at this node; plug one into it and spark-01",
    ]


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize(
    ("there", "expected"),
    [
        (
            [],
            "no ConnectX adapter is visible in /sys/class/infiniband; take the machine off its power supply for a "
            "minute and check 'lspci -d 15b3:'",
        ),
        (
            ["enp1s0f0np0", "enp1s0f1np1"],
            "enp1s0f0np0, enp1s0f1np1: a ConnectX adapter, but without an RDMA device in /sys/class/infiniband; run "
            "'modprobe mlx5_ib'; if there is no such module, install all modules of the running kernel",
        ),
    ],
    ids=["no adapter", "no driver"],
)
def test_a_host_without_ports_in_a_cluster_is_refused(count: int, there: list[str], expected: str) -> None:
    hosts = atlas(count, [])
    roce = hosts["spark-02"]["roce"]
    other = Problem(code="no_addresses_read", device=None, message="another problem", remedy="do something else")
    roce["devices"], roce["problems"] = [], [other, no_connectx(there)]
    assert lines(hosts) == [f"spark-02: {expected}"]


def test_management_on_the_only_ports_is_refused() -> None:
    hosts = atlas(2, [])
    hosts["spark-02"]["roce"]["management"] = ["enp1s0f0np0", "enP2p1s0f1np1"]
    assert lines(hosts) == [
        "spark-02: its ConnectX ports carry management; leave one to the fabric, or set fabric_configure: none"
    ]


# --- rings that are wrong -------------------------------------------------------------------------


def test_a_ring_with_one_nodes_plugs_exchanged() -> None:
    # The issue's own example, seen from the node that is the odd one out.
    hosts = atlas(3, [["spark-01:p1", "spark-03:p1"], ["spark-01:p0", "spark-02:p0"], ["spark-02:p1", "spark-03:p0"]])
    assert lines(hosts) == [
        "spark-01: spark-03 p1 is cabled to spark-01 p1; a ring needs p0-p1: move the plug at spark-01 to p0",
        "spark-01: spark-02 p0 is cabled to spark-01 p0; a ring needs p0-p1: move the plug at spark-01 to p1",
    ]


def test_half_a_ring_is_turned_around_by_two_plugs() -> None:
    hosts = atlas(
        4,
        [
            ["spark-01:p0", "spark-02:p1"],
            ["spark-02:p0", "spark-03:p0"],
            ["spark-03:p1", "spark-04:p0"],
            ["spark-04:p1", "spark-01:p1"],
        ],
    )
    assert lines(hosts) == [
        "spark-03: spark-02 p0 is cabled to spark-03 p0; a ring needs p0-p1: move the plug at spark-03 to spark-04 p1",
        "spark-04: spark-01 p1 is cabled to spark-04 p1; a ring needs p0-p1: move the plug at spark-04 to spark-03 p0",
    ]


def test_a_chain_lacks_the_closing_cable() -> None:
    assert lines(atlas(3, ring(1, 2, 3)[:2])) == [
        "spark-03: no cable from p0 to spark-01 p1, which a ring needs; plug one in"
    ]
    assert lines(atlas(3, ring(3, 2, 1)[:2])) == [
        "spark-01: no cable from p0 to spark-03 p1, which a ring needs; plug one in"
    ]


def test_a_chain_with_a_wrong_cable() -> None:
    assert lines(atlas(3, [["spark-01:p0", "spark-02:p0"], ["spark-02:p1", "spark-03:p0"]])) == [
        "spark-01: spark-02 p0 is cabled to spark-01 p0; a ring needs p0-p1: move the plug at spark-01 to p1",
        "spark-01: no cable from p0 to spark-03 p1, which a ring needs; plug one in",
    ]


def test_a_node_beside_the_chain() -> None:
    assert lines(atlas(3, ring(1, 2, 3)[:1])) == [
        "spark-03: no cable of the cluster ends at this node; for a ring, cable spark-02 p0 to spark-03 p1 and "
        "spark-03 p0 to spark-01 p1, or any port of it to the switch if there is one"
    ]


def test_two_separate_rings() -> None:
    assert lines(atlas(6, ring(1, 2, 3) + ring(4, 5, 6))) == [
        "spark-01: spark-03 p0 is cabled to spark-01 p1, which closes a ring without spark-04, spark-05 and spark-06; "
        "move the plug at spark-01 to spark-04 p1",
        "spark-04: spark-06 p0 is cabled to spark-04 p1, which closes a ring without spark-01, spark-02 and spark-03; "
        "move the plug at spark-04 to spark-01 p1",
    ]


def test_two_cables_between_the_same_nodes_and_one_node_beside() -> None:
    assert lines(atlas(3, ring(1, 2))) == [
        "spark-01: spark-02 p0 is cabled to spark-01 p1, which closes a ring without spark-03; "
        "move the plug at spark-01 to spark-03 p1",
        "spark-03: no cable of the cluster ends at this node; for a ring, cable spark-03 p0 to spark-01 p1, or any "
        "port of it to the switch if there is one",
    ]


def test_cables_of_two_rings_swapped() -> None:
    groups = ring(1, 2, 3)[:2] + ring(4, 5, 6)[:2] + [["spark-03:p0", "spark-04:p1"], ["spark-06:p0", "spark-01:p1"]]
    hosts = cable({"atlas": names(1, 2, 3), "boreas": names(4, 5, 6)}, groups)
    assert lines(hosts) == [
        "spark-03: p0 is cabled to spark-04 p1 of cluster boreas; a ring needs p0 cabled to spark-01 p1",
        "spark-01: p1 is cabled to spark-06 p0 of cluster boreas; a ring needs p1 cabled to spark-03 p0",
    ]


def test_a_ring_with_an_answerless_carrier() -> None:
    hosts = cable({"atlas": names(1, 2, 3)}, ring(1, 2, 3)[:2], spark_03=spark(3, ["p0", "p1"]))
    assert lines(hosts) == [
        "spark-03: enp1s0f0np0 has carrier, but no node of the cluster answers on it; "
        "a ring needs p0 cabled to spark-01 p1"
    ]


def test_a_ring_with_a_loop_cable() -> None:
    assert lines(atlas(3, [*ring(1, 2, 3)[:1], ["spark-03:p0", "spark-03:p1"]])) == [
        "spark-03: p1 is cabled to its own p0; a ring needs p1 cabled to spark-02 p0",
        "spark-03: p0 is cabled to its own p1; a ring needs p0 cabled to spark-01 p1",
    ]


def test_a_ring_needs_two_ports() -> None:
    hosts = atlas(3, ring(1, 2, 3)[:2])
    hosts["spark-03"]["roce"]["devices"] = [
        device for device in hosts["spark-03"]["roce"]["devices"] if device["physical_port"] == "p1"
    ]
    assert lines(hosts) == ["spark-03: only one ConnectX port is there for the fabric; a ring needs two of each node"]


# --- switches that are wrong ----------------------------------------------------------------------


def test_one_node_is_not_on_the_switch() -> None:
    assert lines(atlas(4, switch(1, 2, 4))) == [
        "spark-03: no cable of the cluster ends at this node; plug one into it and the switch of spark-01, spark-02 "
        "and spark-04"
    ]


def test_one_node_is_elsewhere() -> None:
    hosts = cable({"atlas": names(1, 2, 3, 4), "boreas": names(5)}, switch(1, 2, 3) + pair(4, 5))
    assert lines(hosts) == [
        "spark-04: p0 is cabled to spark-05 p0 of cluster boreas; plug p0 into the switch of spark-01, spark-02 and "
        "spark-03"
    ]


def test_two_switches_that_are_not_connected() -> None:
    assert lines(atlas(7, switch(1, 2, 3) + switch(4, 5, 6, 7))) == [
        f"spark-0{number}: p0 is on a switch with {others}; "
        "plug p0 into the switch of spark-04, spark-05, spark-06 and spark-07"
        for number, others in ((1, "spark-02 and spark-03"), (2, "spark-01 and spark-03"), (3, "spark-01 and spark-02"))
    ]


@pytest.mark.parametrize(
    ("groups", "wanted", "line"),
    [
        (switch(1, 2, 3), "ring", "fabric_topology is ring, but all nodes are on one switch; "),
        (ring(1, 2, 3), "switch", "fabric_topology is switch, but the nodes are cabled as a ring; "),
    ],
)
def test_the_wanted_topology_is_not_what_is_cabled(groups: list[list[str]], wanted: str, line: str) -> None:
    (found,) = lines(atlas(3, groups), wanted)
    assert found.startswith(f"spark-01: {line}set it to ")


def test_a_switch_is_wanted_and_there_is_none() -> None:
    assert lines(atlas(3, []), "switch") == [
        f"spark-0{number}: no cable of the cluster ends at this node; plug one into it and the switch of the cluster"
        for number in (1, 2, 3)
    ]


# --- properties -----------------------------------------------------------------------------------


@st.composite
def ring_ports(draw: st.DrawFn) -> tuple[int, list[list[str]]]:
    """Cable the ports of 3 to 9 nodes to each other at random, with none to all of them in use."""
    count = draw(st.integers(3, 9))
    ports = draw(st.permutations([f"{name_of(n)}:p{p}" for n in range(1, count + 1) for p in (0, 1)]))
    cables = draw(st.integers(0, count))
    return count, [list(ports[2 * i : 2 * i + 2]) for i in range(cables)]


def moved(cables: list[set[str]], found: list[str]) -> list[set[str]]:
    """Do what the lines say, as an owner would."""
    place = r"(\S+) (p[01])"
    result = [set(ends_) for ends_ in cables if len({end[:-3] for end in ends_}) == 2]  # loop cables are taken out
    # Which plugs are exchanged comes before what is joined to what.
    for line in sorted(found, key=lambda line: "without" in line):
        host, text = line.split(": ", 1)
        move = re.match(rf"{place} is cabled to {place}.*move the plug at {host} to (?:(\S+) )?(p[01])$", text)
        if move:
            far, plug = f"{move[1]}:{move[2]}", f"{move[3]}:{move[4]}"
            assert move[3] == host
            cable_ = next(ends_ for ends_ in result if ends_ == {far, plug})
            cable_.remove(plug)
            cable_.add(f"{move[5] or host}:{move[6]}")
        elif text.startswith("no cable of"):
            result += [{f"{m[1]}:{m[2]}", f"{m[3]}:{m[4]}"} for m in re.finditer(rf"{place} to {place}", text)]
        else:
            add = re.match(rf"no cable from (p[01]) to {place}|.*; a ring needs (p[01]) cabled to {place}$", text)
            assert add, text
            own, other, port = add.groups()[:3] if add[1] else add.groups()[3:]
            result.append({f"{host}:{own}", f"{other}:{port}"})
    # Both ends of a cable may have asked for it.
    return [set(ends_) for ends_ in {frozenset(ends_) for ends_ in result}]


@settings(max_examples=100, deadline=None)
@given(ring_ports())
def test_doing_what_the_lines_say_makes_a_ring(cabled: tuple[int, list[list[str]]]) -> None:
    count, groups = cabled
    found = lines(atlas(count, groups), "ring")
    cables = moved([set(group) for group in groups], found)
    assert len(cables) == count
    fixed = judge(atlas(count, [sorted(ends_) for ends_ in cables]), "ring")
    assert (fixed["topology"], fixed["problems"]) == ("ring", {}), found


@settings(max_examples=60, deadline=None)
@given(st.lists(st.booleans(), min_size=3, max_size=9))
def test_no_more_plugs_are_moved_than_cables_are_wrong(exchanged: list[bool]) -> None:
    """Whichever nodes of a ring have their two plugs exchanged."""
    numbers = range(1, len(exchanged) + 1)
    ports = {f"{name_of(n)}:p{p}": f"{name_of(n)}:p{p ^ exchanged[n - 1]}" for n in numbers for p in (0, 1)}
    groups = [[ports[end] for end in group] for group in ring(*numbers)]
    wrong = [group for group in groups if group[0][-1] == group[1][-1]]
    assert len(lines(atlas(len(exchanged), groups))) == len(wrong)


@settings(max_examples=60, deadline=None)
@given(ring_ports(), st.randoms(use_true_random=False))
def test_the_order_of_facts_and_answers_does_not_matter(
    cabled: tuple[int, list[list[str]]], rng: random.Random
) -> None:
    count, groups = cabled
    hosts = atlas(count, groups)
    shuffled = list(hosts.items())
    rng.shuffle(shuffled)
    for _name, host in shuffled:
        host["roce"]["devices"] = rng.sample(host["roce"]["devices"], 4)
        heard = host["neighbours"] or {}
        host["neighbours"] = {name: rng.sample(macs, len(macs)) for name, macs in heard.items()}
    other = dict(shuffled)
    assert sorted(sorted(ends_) for ends_ in ends(find_wires(hosts))) == sorted(
        sorted(ends_) for ends_ in ends(find_wires(other))
    )
    nodes = names(*range(1, count + 1))
    assert (
        find_cabling(hosts, find_wires(hosts), nodes)["problems"]
        == (find_cabling(other, find_wires(other), nodes)["problems"])
    )


@settings(max_examples=60, deadline=None)
@given(st.permutations(range(1, 8)), st.integers(3, 7))
def test_every_ring_is_found(numbers: list[int], count: int) -> None:
    nodes = numbers[:count]
    hosts = cable({"atlas": names(*sorted(nodes))}, ring(*nodes))
    assert judge(hosts)["topology"] == "ring"
    assert lines(hosts) == []
    # ... and not without one of its cables.
    assert len(lines(cable({"atlas": names(*sorted(nodes))}, ring(*nodes)[1:]))) == 1
