# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import copy
import ipaddress
import itertools
import random
from collections.abc import Mapping, Sequence

import pytest
from ansible_collections.sparkfleet.vllm.plugins.module_utils._addressing import (
    Addressing,
    Setting,
    assign,
    differences,
    project,
)
from ansible_collections.sparkfleet.vllm.plugins.module_utils._roce import find_problems
from ansible_collections.sparkfleet.vllm.plugins.module_utils._topology import Host, find_cablings, find_wires
from ansible_collections.sparkfleet.vllm.tests.unit.plugins.module_utils.fabric_hosts import (
    P0,
    P1,
    addressed,
    applied,
    cable,
    cablings_of,
    clusters_of,
    interface_of,
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

TWO = {"atlas": names(1, 2)}
THREE = {"atlas": names(1, 2, 3)}


def table(result: Addressing) -> dict[str, dict[str, str]]:
    return {host: {s["interface"]: s["address"] for s in own} for host, own in result["settings"].items()}


def reasons(result: Addressing) -> dict[str, list[str]]:
    for own in result["settings"].values():
        assert all(setting["kept"] == (setting["reason"] == "") for setting in own)
    return {host: [setting["reason"] for setting in own] for host, own in result["settings"].items()}


def two(first: Sequence[str], second: Sequence[str], **others: dict[str, list[str]]) -> dict[str, Host]:
    """Return a pair with one cable; "a,b" are two addresses of one interface."""
    facts = {
        f"spark_{n:02d}": spark(
            n,
            ["p0"],
            {name: texts.split(",") if texts else [] for name, texts in zip(P0, own, strict=True)},
            others=others.get(f"others{n}"),
        )
        for n, own in ((1, first), (2, second))
    }
    return cable(TWO, pair(1, 2), **facts)


# --- new addresses --------------------------------------------------------------------------------


def test_a_new_pair() -> None:
    result = addressed(two(("", ""), ("", "")))
    assert result["problems"] == {}
    assert result["settings"]["spark-01"] == [
        {
            "interface": name,
            "address": f"192.168.{177 + rail}.11/24",
            "mtu": 9000,
            "wire": 0,
            "rail": rail,
            "kept": False,
            "reason": "address",
            "current": [],
            "current_mtu": 9000,
        }
        for rail, name in enumerate(P0)
    ]
    assert table(result)["spark-02"] == {P0[0]: "192.168.177.12/24", P0[1]: "192.168.178.12/24"}


def test_a_new_ring_has_six_subnets() -> None:
    assert table(addressed(cable(THREE, ring(1, 2, 3)))) == {
        "spark-01": {
            P0[0]: "192.168.177.11/24",
            P0[1]: "192.168.178.11/24",
            P1[0]: "192.168.179.11/24",
            P1[1]: "192.168.180.11/24",
        },
        "spark-02": {
            P1[0]: "192.168.177.12/24",
            P1[1]: "192.168.178.12/24",
            P0[0]: "192.168.181.12/24",
            P0[1]: "192.168.182.12/24",
        },
        "spark-03": {
            P1[0]: "192.168.181.13/24",
            P1[1]: "192.168.182.13/24",
            P0[0]: "192.168.179.13/24",
            P0[1]: "192.168.180.13/24",
        },
    }


def test_clusters_on_one_switch_share_its_subnets() -> None:
    result = addressed(cable({"atlas": names(1, 2, 3), "boreas": names(4, 5)}, switch(1, 2, 3, 4, 5)))
    assert [own[P0[0]] for own in table(result).values()] == [f"192.168.177.{10 + n}/24" for n in range(1, 6)]
    assert [own[P0[1]] for own in table(result).values()] == [f"192.168.178.{10 + n}/24" for n in range(1, 6)]


def test_a_single_node_has_no_settings() -> None:
    assert addressed(cable({"atlas": names(1)}, [])) == {"settings": {"spark-01": []}, "problems": {}}


def test_only_one_port_on_a_switch_is_used_the_one_with_addresses() -> None:
    groups = [["spark-01:p0", "spark-01:p1", "spark-02:p0", "spark-03:p0"]]
    assert set(table(addressed(cable(THREE, groups)))["spark-01"]) == set(P0)
    own = {P1[0]: ["10.1.0.5/24"], P1[1]: ["10.2.0.5/24"]}
    result = addressed(cable(THREE, groups, spark_01=spark(1, ["p0", "p1"], own)))
    assert table(result)["spark-01"] == {P1[0]: "10.1.0.5/24", P1[1]: "10.2.0.5/24"}
    assert table(result)["spark-03"] == {P0[0]: "10.1.0.13/24", P0[1]: "10.2.0.13/24"}


@pytest.mark.parametrize(
    ("order", "numbers"),
    [
        (["node-a", "spark-01", "node-b", "rack1-spark-2.example.org"], [13, 11, 14, 12]),
        (["a7", "b7", "c"], [17, 11, 12]),
        (["10.0.0.5", "10.0.0.6"], [15, 16]),
        (["spark-300", "spark-301"], [11, 12]),
        (["spark-0", "spark-244", "spark-245"], [10, 254, 11]),
    ],
)
def test_host_numbers(order: list[str], numbers: list[int]) -> None:
    fleet = cable({"atlas": names(*range(1, len(order) + 1))}, switch(*range(1, len(order) + 1)))
    hosts = dict(zip(order, fleet.values(), strict=True))
    result = table(addressed(hosts))
    assert [own[P0[0]] for own in result.values()] == [f"192.168.177.{number}/24" for number in numbers]


def test_hosts_outside_the_run_keep_their_numbers() -> None:
    order = ["node-a", "node-b", "node-c"]
    fleet = cable(THREE, switch(1, 2, 3))
    hosts = dict(zip(order, fleet.values(), strict=True))
    everybody = table(addressed(hosts))
    assert table(addressed({name: hosts[name] for name in order[1:]}, order))["node-c"] == everybody["node-c"]


def test_new_subnets_avoid_everything_on_any_host() -> None:
    hosts = cable(
        {"atlas": names(1, 2), "boreas": names(3)},
        pair(1, 2),
        spark_01=spark(1, ["p0"], others={"docker0": ["172.17.0.1/16"], "wlP9s9": ["192.168.177.77/26"]}),
        spark_03=spark(3, ["p1"], {P1[0]: ["192.168.179.1/32"]}, others={"br-1": ["192.168.178.128/25"]}),
    )
    assert table(addressed(hosts))["spark-01"] == {P0[0]: "192.168.180.11/24", P0[1]: "192.168.181.11/24"}


def test_the_second_default_range_follows_the_first() -> None:
    others = {"vpn": ["192.168.200.1/16"], "tun": ["10.177.1.9/32"]}
    result = addressed(two(("", ""), ("", ""), others1=others))
    assert table(result)["spark-01"] == {P0[0]: "10.177.0.11/24", P0[1]: "10.177.2.11/24"}


def test_no_free_subnet_is_refused() -> None:
    result = addressed(two(("", ""), ("", ""), others1={"vpn": ["192.168.200.1/16"], "tun": ["10.8.0.1/8"]}))
    assert result["problems"] == {
        "spark-01": [
            "no subnet is free for the cable of spark-01 p0 and spark-02 p0; give some as fabric_subnets",
        ]
    }
    assert result["settings"] == {"spark-01": [], "spark-02": []}


# --- the owner's subnets --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("subnets", "first", "second"),
    [
        (["10.10.0.0/24", "10.11.0.0/24"], "10.10.0.11/24", "10.11.0.11/24"),
        (["10.10.0.0/16"], "10.10.0.11/24", "10.10.1.11/24"),
        (["10.10.0.0/23"], "10.10.0.11/24", "10.10.1.11/24"),
        (["10.10.0.0/31", "10.10.0.2/31"], "10.10.0.0/31", "10.10.0.2/31"),
        (["10.10.0.0/30", "10.10.0.4/30"], "10.10.0.1/30", "10.10.0.5/30"),
        (["10.10.0.0/28", "10.10.1.0/25"], "10.10.0.11/28", "10.10.1.11/25"),
        # Seen on another cable: skipped, not refused.
        (["192.168.5.0/24", "10.10.0.0/23"], "10.10.0.11/24", "10.10.1.11/24"),
    ],
)
def test_owners_subnets(subnets: list[str], first: str, second: str) -> None:
    hosts = cable(
        {"atlas": names(1, 2), "boreas": names(3)}, pair(1, 2), spark_03=spark(3, ["p0"], {P0[0]: ["192.168.5.3/24"]})
    )
    result = addressed(hosts, subnets=subnets)
    assert result["problems"] == {}
    assert table(result)["spark-01"] == {P0[0]: first, P0[1]: second}
    again = addressed(applied(hosts, result), subnets=subnets)
    assert table(again) == table(result) and set(itertools.chain(*reasons(again).values())) == {""}


@pytest.mark.parametrize(
    ("subnets", "line"),
    [
        (["10.0.0.0/24", "10.9.0.0/24"], "10.0.0.0/24 overlaps enP7s7 10.0.0.11/16 of spark-01; choose another"),
        (["172.16.0.0/12"], "172.16.0.0/12 overlaps docker0 172.17.0.1/16 of spark-02; choose another"),
        (["fd00::/64"], "fd00::/64 is not IPv4; write it like 10.10.0.0/24"),
        (["10.10.0.1/24"], "10.10.0.1/24 is an address in 10.10.0.0/24; write 10.10.0.0/24"),
        (["ten"], "'ten' is no subnet; write it like 10.10.0.0/24"),
        (["10.10.0.0/32", "10.10.1.0/24"], "10.10.0.0/32 is a single address; give a /31 or larger"),
        (["10.10.0.0/24", "10.10.0.0/24"], "10.10.0.0/24 is given twice; take one of them out"),
        (
            ["10.10.0.0/16", "10.10.1.0/24"],
            "10.10.1.0/24 overlaps 10.10.0.0/16, which is given too; take one of them out",
        ),
        (["169.254.0.0/16"], "169.254.0.0/16 is not for hosts; choose one of 10.0.0.0/8 or 192.168.0.0/16"),
        (["0.0.0.0/0"], "0.0.0.0/0 is not for hosts; choose one of 10.0.0.0/8 or 192.168.0.0/16"),
        (["240.0.0.0/24"], "240.0.0.0/24 is not for hosts; choose one of 10.0.0.0/8 or 192.168.0.0/16"),
        (
            ["10.10.0.0/24"],
            "none is left for the cable of spark-01 p0 and spark-02 p0; give two for each cable or switch",
        ),
    ],
)
def test_owners_subnets_that_are_refused(subnets: list[str], line: str) -> None:
    hosts = two(("", ""), ("", ""), others2={"docker0": ["172.17.0.1/16"]})
    assert addressed(hosts, subnets=subnets)["problems"] == {"spark-01": [f"fabric_subnets: {line}"]}


def test_owners_subnets_that_are_too_small() -> None:
    hosts = cable(THREE, switch(1, 2, 3))
    assert addressed(hosts, subnets=["10.10.0.0/30", "10.10.1.0/31"])["problems"] == {
        "spark-01": [
            "fabric_subnets: 2 addresses at most are too few for the switch of 3 nodes; give larger ones",
        ]
    }
    # Those that are large enough are taken.
    result = addressed(hosts, subnets=["10.10.0.0/30", "10.10.1.0/24", "10.10.2.0/24"])
    assert table(result)["spark-01"] == {P0[0]: "10.10.1.11/24", P0[1]: "10.10.2.11/24"}


def test_bad_subnets_are_said_once_for_each_cluster() -> None:
    hosts = cable({"atlas": names(1, 2), "boreas": names(3, 4)}, pair(1, 2) + pair(3, 4))
    assert list(addressed(hosts, subnets=["ten"])["problems"]) == ["spark-01", "spark-03"]


def test_a_switch_of_many_takes_larger_subnets() -> None:
    numbers = range(1, 301)
    hosts = cable({"atlas": names(*numbers)}, switch(*numbers))
    result = table(addressed(hosts, subnets=["10.10.0.0/16"]))
    assert result["spark-300"] == {P0[0]: "10.10.1.54/23", P0[1]: "10.10.3.54/23"}
    assert table(addressed(hosts))["spark-300"] == {P0[0]: "10.177.1.54/23", P0[1]: "10.177.3.54/23"}


# --- what is right already ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (("192.168.177.11/24", "192.168.178.11/24"), ("192.168.177.12/24", "192.168.178.12/24")),
        # Crossed between twins.
        (("192.168.177.11/24", "192.168.178.11/24"), ("192.168.178.12/24", "192.168.177.12/24")),
        (("10.5.0.1/30", "10.5.0.5/30"), ("10.5.0.2/30", "10.5.0.6/30")),
        (("10.5.0.0/31", "10.5.0.2/31"), ("10.5.0.1/31", "10.5.0.3/31")),
        (("10.5.0.1/16", "10.6.0.1/20"), ("10.5.200.7/16", "10.6.3.7/20")),
        (("169.254.3.4/16,10.5.0.1/24", "10.6.0.1/24"), ("10.5.0.2/24", "10.6.0.2/24,fe80::1/64")),
        (("10.9.0.1/24,10.5.0.1/24", "10.6.0.1/24"), ("10.5.0.2/24", "10.6.0.2/24")),
    ],
)
def test_right_addresses_are_kept(first: tuple[str, str], second: tuple[str, str]) -> None:
    result = addressed(two(first, second), subnets=["10.99.0.0/16"])
    assert reasons(result) == {"spark-01": ["", ""], "spark-02": ["", ""]}
    kept = [list(own.values()) for own in table(result).values()]
    assert all(address in given_ for own, host in zip(kept, (first, second), strict=True)
               for address, given_ in zip(own, host, strict=True))  # fmt: skip
    assert result["problems"] == {} and not any(differences(own) for own in result["settings"].values())


def test_a_crossed_rail_is_told_by_its_network() -> None:
    result = addressed(two(("10.1.0.1/24", "10.2.0.1/24"), ("10.2.0.2/24", "10.1.0.2/24")))
    assert {h: [(s["interface"], s["rail"]) for s in own] for h, own in result["settings"].items()} == {
        "spark-01": [(P0[0], 0), (P0[1], 1)],
        "spark-02": [(P0[0], 1), (P0[1], 0)],
    }


def test_two_pairs_may_have_the_same_subnets_on_cables_of_their_own() -> None:
    own = {P0[0]: ["192.168.177.11/24"], P0[1]: ["192.168.178.11/24"]}
    other = {P0[0]: ["192.168.177.12/24"], P0[1]: ["192.168.178.12/24"]}
    hosts = cable(
        {"atlas": names(1, 2), "boreas": names(3, 4)},
        pair(1, 2) + pair(3, 4),
        spark_01=spark(1, ["p0"], own),
        spark_02=spark(2, ["p0"], other),
        spark_03=spark(3, ["p0"], own),
        spark_04=spark(4, ["p0"], other),
    )
    assert set(itertools.chain(*reasons(addressed(hosts)).values())) == {""}


def test_two_clusters_may_have_subnets_of_their_own_on_one_switch() -> None:
    facts = {
        f"spark_{n:02d}": spark(n, ["p0"], {P0[0]: [f"10.{net}.0.{n}/24"], P0[1]: [f"10.{net + 1}.0.{n}/24"]})
        for n, net in ((1, 1), (2, 1), (3, 3), (4, 3))
    }
    clusters = {"atlas": names(1, 2), "boreas": names(3, 4), "cetus": names(5, 6)}
    result = addressed(cable(clusters, switch(1, 2, 3, 4, 5, 6), **facts))
    assert reasons(result) == {name_of(n): ["", ""] if n < 5 else ["address", "address"] for n in range(1, 7)}
    # A third one joins the first.
    assert table(result)["spark-05"] == {P0[0]: "10.1.0.15/24", P0[1]: "10.2.0.15/24"}


def test_new_hosts_join_the_subnets_that_are_there() -> None:
    facts = {
        "spark_01": spark(1, ["p0"], {P0[0]: ["10.1.0.13/24"], P0[1]: ["10.2.0.1/24"]}),
        "spark_02": spark(2, ["p0"], {P0[0]: ["10.1.0.2/24"], P0[1]: ["10.2.0.2/24"]}),
    }
    result = addressed(cable(THREE, switch(1, 2, 3), **facts))
    assert reasons(result) == {"spark-01": ["", ""], "spark-02": ["", ""], "spark-03": ["address", "address"]}
    # spark-03's own number is taken in one of them.
    assert table(result)["spark-03"] == {P0[0]: "10.1.0.11/24", P0[1]: "10.2.0.13/24"}


def test_an_unplanned_clusters_addresses_are_not_given_again() -> None:
    facts = {"spark_03": spark(3, ["p0"], {P0[0]: ["10.1.0.11/24"], P0[1]: ["10.2.0.9/24"]})}
    hosts = cable({"atlas": names(1, 2), "boreas": names(3)}, switch(1, 2, 3), **facts)
    wires = find_wires(hosts)
    result = assign(hosts, wires, find_cablings(hosts, wires, TWO), list(hosts))
    assert table(result) == {
        "spark-01": {P0[0]: "10.1.0.13/24", P0[1]: "10.2.0.11/24"},
        "spark-02": {P0[0]: "10.1.0.12/24", P0[1]: "10.2.0.12/24"},
        "spark-03": {},
    }


def test_each_cluster_may_have_subnets_of_its_own() -> None:
    hosts = cable({"atlas": names(1, 2), "boreas": names(3, 4), "cetus": names(5, 6)}, switch(1, 2, 3, 4, 5, 6))
    subnets = {"atlas": ["10.10.0.0/16"], "cetus": ["10.0.0.0/24"]}
    wires, cablings = cablings_of(hosts)
    result = assign(hosts, wires, cablings, list(hosts), subnets)
    assert [own.get(P0[1]) for own in table(result).values()] == [
        *("10.10.1.11/24", "10.10.1.12/24", "192.168.178.13/24", "192.168.178.14/24"),
        *(None, None),
    ]
    assert list(result["problems"]) == ["spark-05"]


# --- what is wrong --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        # Twins in one subnet: the first one keeps it.
        (
            ("192.168.177.11/24", "192.168.177.21/24"),
            ("192.168.177.12/24", "192.168.177.22/24"),
            [
                *(("", "192.168.177.11/24"), ("address", "192.168.178.11/24")),
                *(("", "192.168.177.12/24"), ("address", "192.168.178.12/24")),
            ],
        ),
        # The head is right where as many say this as that.
        (
            ("10.1.0.1/24", "10.2.0.1/24"),
            ("10.3.0.2/24", "10.4.0.2/24"),
            [("", "10.1.0.1/24"), ("", "10.2.0.1/24"), ("address", "10.1.0.12/24"), ("address", "10.2.0.12/24")],
        ),
        (
            ("10.1.0.1/24", ""),
            ("10.3.0.2/24", ""),
            [
                ("", "10.1.0.1/24"),
                ("address", "192.168.177.11/24"),
                ("address", "10.1.0.12/24"),
                ("address", "192.168.177.12/24"),
            ],
        ),
        # One length of prefix.
        (
            ("10.1.0.1/24", "10.2.0.1/24"),
            ("10.1.0.2/16", "10.2.0.2/24"),
            [("", "10.1.0.1/24"), ("", "10.2.0.1/24"), ("address", "10.1.0.12/24"), ("", "10.2.0.2/24")],
        ),
        # The same address twice.
        (
            ("10.1.0.1/24", "10.2.0.1/24"),
            ("10.1.0.1/24", "10.2.0.2/24"),
            [("", "10.1.0.1/24"), ("", "10.2.0.1/24"), ("address", "10.1.0.12/24"), ("", "10.2.0.2/24")],
        ),
        # Link-local, as delivered.
        (
            ("169.254.1.1/16", "169.254.2.1/16"),
            ("169.254.1.2/16", "169.254.2.2/16"),
            [
                *(("address", "192.168.177.11/24"), ("address", "192.168.178.11/24")),
                *(("address", "192.168.177.12/24"), ("address", "192.168.178.12/24")),
            ],
        ),
        # No address of a host.
        (
            ("10.1.0.0/24", "10.2.0.255/24"),
            ("10.1.0.2/24", "10.2.0.2/24"),
            [("address", "10.1.0.11/24"), ("address", "10.2.0.11/24"), ("", "10.1.0.2/24"), ("", "10.2.0.2/24")],
        ),
        # A second address that is in the twin's subnet.
        (
            ("10.1.0.1/24,10.2.0.7/24", "10.2.0.1/24"),
            ("10.1.0.2/24", "10.2.0.2/24"),
            [("address", "10.1.0.1/24"), ("", "10.2.0.1/24"), ("", "10.1.0.2/24"), ("", "10.2.0.2/24")],
        ),
        # Only the second rail is there.
        (
            ("", "10.2.0.1/24"),
            ("", "10.2.0.2/24"),
            [
                ("address", "192.168.177.11/24"),
                ("", "10.2.0.1/24"),
                ("address", "192.168.177.12/24"),
                ("", "10.2.0.2/24"),
            ],
        ),
    ],
)
def test_wrong_addresses(first: tuple[str, str], second: tuple[str, str], expected: list[tuple[str, str]]) -> None:
    hosts = two(first, second)
    result = addressed(hosts)
    found = [(s["reason"], s["address"]) for own in result["settings"].values() for s in own]
    assert found == expected
    again = addressed(applied(hosts, result))
    assert table(again) == table(result) and set(itertools.chain(*reasons(again).values())) == {""}


def test_the_majority_is_right_on_a_switch() -> None:
    facts = {
        f"spark_{n:02d}": spark(n, ["p0"], {P0[0]: [f"10.{net}.0.{n}/24"], P0[1]: [f"10.{net + 1}.0.{n}/24"]})
        for n, net in ((1, 1), (2, 3), (3, 3))
    }
    result = addressed(cable(THREE, switch(1, 2, 3), **facts))
    assert reasons(result) == {"spark-01": ["address", "address"], "spark-02": ["", ""], "spark-03": ["", ""]}
    assert table(result)["spark-01"] == {P0[0]: "10.3.0.11/24", P0[1]: "10.4.0.11/24"}


def test_two_cables_of_a_ring_in_one_subnet() -> None:
    hosts = cable(THREE, ring(1, 2, 3))
    good = applied(hosts, addressed(hosts))
    roce = good["spark-03"]["roce"]
    for host, port, number in (("spark-02", P0, 12), ("spark-03", P1, 13)):
        for rail, name in enumerate(port):
            interface_of(good[host]["roce"], name)["addresses"] = [f"192.168.{177 + rail}.{100 + number}/24"]
    result = addressed(good)
    assert interface_of(roce, P1[0])["addresses"] == ["192.168.177.113/24"]
    assert table(result)["spark-03"][P1[0]] == "192.168.181.13/24"
    assert reasons(result) == {
        "spark-01": ["", "", "", ""],
        "spark-02": ["", "", "address", "address"],
        "spark-03": ["", "", "address", "address"],
    }


@pytest.mark.parametrize(
    ("mtus", "expected"),
    [
        ({1: 1500, 2: 1500}, {"spark-01": ["mtu", ""], "spark-02": ["mtu", ""]}),
        ({1: 1500}, {"spark-01": ["mixed_mtu", ""], "spark-02": ["", ""]}),
        ({1: 1500, 2: 4200}, {"spark-01": ["mixed_mtu", ""], "spark-02": ["mixed_mtu", ""]}),
    ],
)
def test_mtu(mtus: dict[int, int], expected: dict[str, list[str]]) -> None:
    hosts = two(("10.1.0.1/24", "10.2.0.1/24"), ("10.1.0.2/24", "10.2.0.2/24"))
    for number, mtu in mtus.items():
        interface_of(hosts[name_of(number)]["roce"], P0[0])["mtu"] = mtu
    result = addressed(hosts)
    assert reasons(result) == expected
    assert differences(result["settings"]["spark-01"]) == [
        "enp1s0f0np0 has MTU 1500; it should be 10.1.0.1/24, MTU 9000"
    ]
    assert set(itertools.chain(*reasons(addressed(applied(hosts, result))).values())) == {""}


def test_a_twin_that_is_down_is_to_be_up() -> None:
    hosts = two(("10.1.0.1/24", "10.2.0.1/24"), ("10.1.0.2/24", ""))
    for host in hosts.values():
        take_down(host["roce"], P0[1])
    result = addressed(hosts)
    assert reasons(result) == {"spark-01": ["", "down"], "spark-02": ["", "down"]}
    assert [differences(own) for own in result["settings"].values()] == [
        ["enP2p1s0f0np0 is down; it should be up with 10.2.0.1/24, MTU 9000"],
        ["enP2p1s0f0np0 is down and has no IPv4 address; it should be up with 10.2.0.12/24, MTU 9000"],
    ]
    after = applied(hosts, result)
    assert [host["roce"]["problems"] for host in after.values()] == [[], []]
    assert set(itertools.chain(*reasons(addressed(after)).values())) == {""}


def test_differences_say_what_is_there() -> None:
    result = addressed(two(("10.1.0.1/24", "10.2.0.1/24"), ("10.3.0.2/24", "")))
    assert differences(result["settings"]["spark-02"]) == [
        "enp1s0f0np0 has 10.3.0.2/24; it should be 10.1.0.12/24, MTU 9000",
        "enP2p1s0f0np0 has no IPv4 address; it should be 10.2.0.12/24, MTU 9000",
    ]


def test_overlaps_with_other_networks_are_refused() -> None:
    hosts = two(
        ("10.0.5.1/24", "10.2.0.1/24"),
        ("10.7.5.2/24", "10.2.0.2/24"),
        others2={"docker0": ["10.2.0.1/16"]},
    )
    assert addressed(hosts)["problems"] == {
        "spark-01": [
            "enp1s0f0np0: its subnet 10.0.5.0/24 overlaps enP7s7 10.0.0.11/16; give one of the two another subnet"
        ],
        "spark-02": [
            "enp1s0f0np0: its subnet 10.0.5.0/24 overlaps enP7s7 10.0.0.12/16; give one of the two another subnet",
            "enP2p1s0f0np0: its subnet 10.2.0.0/24 overlaps docker0 10.2.0.1/16; give one of the two another subnet",
        ],
    }


def test_bonded_twins_are_refused() -> None:
    hosts = two(("", ""), ("", ""))
    for name in P0:
        interface_of(hosts["spark-02"]["roce"], name)["master"] = "bond0"
    result = addressed(hosts)
    assert result["problems"] == {
        "spark-02": [
            "enp1s0f0np0, enP2p1s0f0np0: part of bond0; take it apart and give each of the twins its own subnet"
        ]
    }
    assert result["settings"]["spark-02"] == []


def test_a_missing_twin_leaves_one_rail() -> None:
    hosts = two(("", ""), ("", ""))
    roce = hosts["spark-02"]["roce"]
    roce["devices"] = [device for device in roce["devices"] if device["netdev"] != P0[1]]
    result = addressed(hosts)
    assert table(result)["spark-02"] == {P0[0]: "192.168.177.12/24"}
    assert len(table(result)["spark-01"]) == 2


def test_a_switch_that_outgrows_its_subnet_gets_a_new_one() -> None:
    facts = {f"spark_{n:02d}": spark(n, ["p0"], {P0[0]: [f"10.1.0.{n}/30"], P0[1]: [f"10.2.0.{n}/24"]}) for n in (1, 2)}
    result = addressed(cable(THREE, switch(1, 2, 3), **facts))
    assert result["problems"] == {}
    assert [own[P0[0]] for own in table(result).values()] == [f"192.168.177.{10 + n}/24" for n in (1, 2, 3)]
    assert [own[P0[1]] for own in table(result).values()] == ["10.2.0.1/24", "10.2.0.2/24", "10.2.0.13/24"]


# --- projection -----------------------------------------------------------------------------------


def test_projected_facts() -> None:
    hosts = two(("10.9.0.1/24,169.254.1.1/16,fd00::1/64", ""), ("", ""))
    for number in (1, 2):
        interface_of(hosts[name_of(number)]["roce"], P0[1])["mtu"] = 1500
    before = copy.deepcopy(hosts)
    result = addressed(hosts, subnets=["10.10.0.0/16"])
    roce = applied(hosts, result)["spark-01"]["roce"]
    assert hosts == before
    assert interface_of(roce, P0[0])["addresses"] == ["10.9.0.1/24", "169.254.1.1/16", "fd00::1/64"]  # kept
    assert interface_of(roce, P0[1])["addresses"] == ["10.10.0.11/24"]
    twin = next(device for device in roce["devices"] if device["netdev"] == P0[1])
    assert (twin["addresses"], twin["mtu"], twin["gid_index_v2_ipv4"]) == (["10.10.0.11/24"], 9000, None)
    assert roce["problems"] == []


def test_a_replaced_address_takes_its_gid_along() -> None:
    hosts = two(("10.1.0.1/24", "10.2.0.1/24"), ("10.3.0.2/24,10.1.0.2/24,fe80::2/64", "169.254.9.9/16"))
    result = addressed(hosts)
    assert reasons(result)["spark-02"] == ["", "address"]
    own = result["settings"]["spark-02"]
    own[0]["kept"], own[0]["reason"] = False, "address"
    roce = project(hosts["spark-02"]["roce"], own)
    first, second = (next(d for d in roce["devices"] if d["netdev"] == name) for name in P0)
    assert interface_of(roce, P0[0])["addresses"] == ["10.1.0.2/24", "fe80::2/64"]
    assert ([gid["address"] for gid in first["gids"]], first["gid_index_v2_ipv4"]) == (["10.1.0.2"], 5)
    assert (second["addresses"], second["gids"], second["gid_index_v2_ipv4"]) == (["10.2.0.12/24"], [], None)


# --- properties -----------------------------------------------------------------------------------


@st.composite
def fleets(draw: st.DrawFn) -> tuple[dict[str, list[str]], list[list[str]]]:
    """Cable up to 64 hosts: several clusters, some on cables of their own, some on one switch."""
    numbers = draw(st.permutations(range(1, 65)))
    clusters: dict[str, list[str]] = {}
    groups: list[list[str]] = []
    shared: list[str] = []
    position = 0
    for index in range(draw(st.integers(1, 8))):
        kind = draw(st.sampled_from(["single", "pair", "two cables", "ring", "switch", "two switches", "shared"]))
        count = {"single": 1, "pair": 2, "two cables": 2}.get(kind) or draw(st.integers(3, 8))
        own = numbers[position : position + count]
        position += count
        clusters[f"cluster-{index}"] = names(*own)
        if kind in ("pair", "two cables"):
            groups += pair(own[0], own[1], cables=2 if kind == "two cables" else 1)
        elif kind == "ring":
            groups += ring(*own)
        elif kind in ("switch", "two switches"):
            groups += switch(*own)
            groups += switch(*own, port="p1") if kind == "two switches" else []
        elif kind == "shared":
            shared += switch(*own)[0]
    return clusters, groups + ([shared] if shared else [])


SUBNETS = st.sampled_from([[], ["10.10.0.0/16"], ["10.20.0.0/24", "10.30.0.0/16"]])


def check(hosts: Mapping[str, Host], result: Addressing) -> None:
    """What every assignment must hold."""
    assert result["problems"] == {}
    everything = [(host, s) for host, own in result["settings"].items() for s in own]
    assert len({s["address"].split("/")[0] for _host, s in everything}) == len(everything)
    by_rail: dict[tuple[int, int], set[ipaddress.IPv4Network]] = {}
    for _host, s in everything:
        by_rail.setdefault((s["wire"], s["rail"]), set()).add(ipaddress.IPv4Interface(s["address"]).network)
    assert all(len(networks) == 1 for networks in by_rail.values())
    networks = [network for own in by_rail.values() for network in own]
    assert not any(one.overlaps(other) for one, other in itertools.combinations(networks, 2))
    for host in hosts.values():
        for name in ("enP7s7", "docker0"):
            for text in interface_of(host["roce"], name)["addresses"]:
                other = ipaddress.IPv4Interface(text).network
                assert not any(network.overlaps(other) for network in networks)
    wires, cablings = cablings_of(hosts)
    for cabling in cablings.values():
        assert cabling["problems"] == {}
        for number in cabling["wires"]:
            for end in wires[number]["ends"]:
                own = [s for s in result["settings"][end["host"]] if s["wire"] == number]
                assert [s["interface"] for s in own] == end["interfaces"] and {s["rail"] for s in own} == {0, 1}


def built(clusters: Mapping[str, Sequence[str]], groups: Sequence[Sequence[str]]) -> dict[str, Host]:
    hosts = cable(clusters, groups)
    for number, host in enumerate(hosts.values()):
        docker = copy.deepcopy(interface_of(host["roce"], "enP7s7"))
        docker["name"], docker["addresses"] = "docker0", [["172.17.0.1/16"], ["192.168.180.1/22"]][number % 2]
        host["roce"]["interfaces"].append(docker)
    return hosts


@settings(max_examples=80, deadline=None)
@given(fleets(), SUBNETS, st.randoms(use_true_random=False))
def test_any_fleet(fleet: tuple[dict[str, list[str]], list[list[str]]], subnets: list[str], rng: random.Random) -> None:
    hosts = built(*fleet)
    order = sorted(hosts)
    result = addressed(hosts, order, subnets)
    check(hosts, result)
    # Whatever order facts come in.
    shuffled = dict(rng.sample(list(hosts.items()), len(hosts)))
    again = addressed(shuffled, order, subnets)
    assert table(again) == table(result)
    # Applied, it stays.
    after = applied(hosts, result)
    for host in after.values():
        interfaces = {interface["name"]: interface for interface in host["roce"]["interfaces"]}
        found = find_problems(host["roce"]["devices"], interfaces)
        assert {problem["code"] for problem in found} <= {"no_gid", "no_carrier"}
        assert {problem["code"] for problem in host["roce"]["problems"]} <= {"no_carrier"}
    stays = addressed(after, order, subnets)
    check(after, stays)
    assert table(stays) == table(result)
    assert set(itertools.chain(*reasons(stays).values())) <= {""}


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 62), st.data())
def test_a_new_host_on_a_switch_renumbers_nobody(count: int, data: st.DataObject) -> None:
    numbers = data.draw(st.permutations(range(1, 65)))[: count + 2]
    order = names(*numbers)
    new = data.draw(st.sampled_from(order))
    old = cable({"atlas": [name for name in order if name != new]}, switch(*numbers), )  # fmt: skip
    before = addressed(old)
    hosts = cable({"atlas": order}, switch(*numbers))
    hosts.update(
        {name: {**host, "neighbours": hosts[name]["neighbours"]} for name, host in applied(old, before).items()}
    )
    result = addressed({name: hosts[name] for name in order})
    assert {host: own for host, own in table(result).items() if host != new} == table(before)
    assert set(itertools.chain(*(own for host, own in reasons(result).items() if host != new))) <= {""}
    assert len(table(result)[new]) == 2
    assert len({address for own in table(result).values() for address in own.values()}) == 2 * len(order)


@settings(max_examples=60, deadline=None)
@given(st.integers(3, 12), st.data())
def test_a_new_host_in_a_ring_renumbers_nobody_elsewhere(count: int, data: st.DataObject) -> None:
    numbers = data.draw(st.permutations(range(1, 65)))[: count + 1]
    old_numbers, new = numbers[:-1], numbers[-1]
    place = data.draw(st.integers(1, count))
    new_numbers = [*old_numbers[:place], new, *old_numbers[place:]]
    old = cable({"atlas": names(*old_numbers)}, ring(*old_numbers))
    before = addressed(old)
    check_ring = {name.replace("-", "_"): host["roce"] for name, host in applied(old, before).items()}
    hosts = cable({"atlas": names(*new_numbers)}, ring(*new_numbers), **check_ring)
    result = addressed(hosts)
    assert result["problems"] == {}
    unplugged = {name_of(old_numbers[place - 1]): "p0", name_of(old_numbers[place % count]): "p1"}
    for host, own in before["settings"].items():
        after = {s["interface"]: s for s in result["settings"][host]}
        for setting in own:
            moved = unplugged.get(host) == ("p0" if setting["interface"] in P0 else "p1")
            assert moved or (after[setting["interface"]]["kept"] and _same(after[setting["interface"]], setting))
    everything = [s["address"] for own in result["settings"].values() for s in own]
    assert len({address.split("/")[0] for address in everything}) == 4 * len(new_numbers)


def _same(one: Setting, other: Setting) -> bool:
    return one["address"] == other["address"]


ADDRESSES = st.builds(
    "10.{}.0.{}/{}".format, st.integers(1, 3), st.integers(0, 5), st.sampled_from([24, 24, 24, 16, 30, 31, 32])
)


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from([pair(1, 2), pair(1, 2, cables=2), switch(1, 2, 3), ring(1, 2, 3)]),
    st.lists(st.lists(ADDRESSES, max_size=2), min_size=12, max_size=12),
)
def test_from_any_addresses_one_step_is_enough(groups: list[list[str]], addresses: list[list[str]]) -> None:
    """Whatever is there: after the settings are applied they are right, and nothing is left to change."""
    count = 2 if len(groups[0]) == 2 and len(groups) < 3 else 3
    ports = {end.split(":")[1] for group in groups for end in group}
    facts = {
        f"spark_{n:02d}": spark(n, ports, dict(zip((*P0, *P1), addresses[4 * n - 4 : 4 * n], strict=True)))
        for n in range(1, count + 1)
    }
    hosts = cable({"atlas": names(*range(1, count + 1))}, groups, **facts)
    assert clusters_of(hosts)
    result = addressed(hosts)
    if result["problems"]:
        assert all("overlaps" in line for own in result["problems"].values() for line in own)
        return
    everything = [s["address"].split("/")[0] for own in result["settings"].values() for s in own]
    assert len(everything) == len(set(everything))
    after = addressed(applied(hosts, result))
    assert table(after) == table(result)
    assert set(itertools.chain(*reasons(after).values())) == {""}
