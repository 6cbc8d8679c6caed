# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.sparkfleet.vllm.plugins.module_utils._fabric import (
    Overrides,
    Plan,
    Settled,
    check_given,
    environment,
    plan,
    settle,
)
from ansible_collections.sparkfleet.vllm.plugins.module_utils._roce import Roce, SysfsReader, read
from ansible_collections.sparkfleet.vllm.tests.unit.sysfs_tree import (
    Function,
    addr_json,
    build,
    lay,
    load,
    route_json,
    spark,
)

Facts = Callable[..., Roce]


@pytest.fixture
def facts(tmp_path: Path) -> Facts:
    """Return the facts of a host with the given functions, with all of its character devices."""
    count = 0

    def make(functions: list[Function] | None = None, management: str = "10.0.0.11/24", route: bool = True) -> Roce:
        nonlocal count
        count += 1
        functions = spark() if functions is None else functions
        roce = read(
            SysfsReader(build(tmp_path / str(count), functions), "/nonexistent"),
            addr_json(functions, management),
            route_json() if route else None,
        )
        roce["char_devices"] = [f"/dev/infiniband/uverbs{n}" for n in range(4)] + ["/dev/infiniband/rdma_cm"]
        return roce

    return make


def settled(draft: Plan) -> Settled:
    return settle({"a": draft}, "a", "a")


# --- what is found --------------------------------------------------------------------------------


def test_a_pair_uses_both_twins_of_the_cabled_port(facts: Facts) -> None:
    result = settled(plan(facts(), Overrides(), nodes=2))
    assert result["problems"] == result["warnings"] == []
    assert result["topology"] == "pair"
    node = result["node"]
    assert node is not None
    assert {key: value for key, value in node.items() if key != "nccl_env"} == {
        "address": "192.168.177.11",
        "interface": "enp1s0f0np0",
        "interfaces": ["enp1s0f0np0", "enP2p1s0f0np0"],
        "hcas": ["rocep1s0f0", "roceP2p1s0f0"],
        "devices": ["/dev/infiniband/uverbs0", "/dev/infiniband/uverbs2", "/dev/infiniband/rdma_cm"],
    }
    assert node["nccl_env"] == {
        "GLOO_SOCKET_IFNAME": "enp1s0f0np0",
        "MN_IF_NAME": "enp1s0f0np0",
        "NCCL_IB_DISABLE": "0",
        "NCCL_IB_HCA": "rocep1s0f0,roceP2p1s0f0",
        "NCCL_IGNORE_CPU_AFFINITY": "1",
        "NCCL_NET": "IB",
        "NCCL_SOCKET_IFNAME": "enp1s0f0np0",
        "OMPI_MCA_btl_tcp_if_include": "enp1s0f0np0",
        "RAY_NODE_IP_ADDRESS": "192.168.177.11",
        "RAY_OVERRIDE_NODE_IP_ADDRESS": "192.168.177.11",
        "RAY_memory_monitor_refresh_ms": "0",
        "TP_SOCKET_IFNAME": "enp1s0f0np0",
        "UCX_NET_DEVICES": "enp1s0f0np0",
        "VLLM_HOST_IP": "192.168.177.11",
    }


def test_the_second_port_is_used_where_the_cable_is_in_it(facts: Facts) -> None:
    node = settled(plan(facts(spark(p0=False, p1=True)), Overrides(), nodes=2))["node"]
    assert node is not None
    assert (node["interface"], node["hcas"]) == ("enp1s0f1np1", ["rocep1s0f1", "roceP2p1s0f1"])


def test_a_pair_with_two_cables_uses_all_four(facts: Facts) -> None:
    node = settled(plan(facts(spark(p1=True)), Overrides(), nodes=2))["node"]
    assert node is not None
    assert node["interface"] == "enp1s0f0np0"
    assert node["hcas"] == ["rocep1s0f0", "roceP2p1s0f0", "rocep1s0f1", "roceP2p1s0f1"]


def test_a_second_port_without_an_address_is_left_out(facts: Facts) -> None:
    functions = spark(p1=True)
    functions[1].addresses = functions[3].addresses = []
    node = settled(plan(facts(functions), Overrides(), nodes=2))["node"]
    assert node is not None
    assert node["hcas"] == ["rocep1s0f0", "roceP2p1s0f0"]


def test_a_twin_without_an_address_is_left_out_with_a_warning(facts: Facts) -> None:
    functions = spark()
    functions[2].addresses = []
    result = settled(plan(facts(functions), Overrides(), nodes=2))
    assert result["node"] is not None
    assert result["node"]["hcas"] == ["rocep1s0f0"]
    assert result["warnings"] == [
        "enP2p1s0f0np0: up, but without a static IPv4 address, so half of its port's bandwidth is not used; "
        "give it one in its own subnet in a netplan file (/etc/netplan/40-cx7.yaml)"
    ]


def test_what_costs_bandwidth_is_a_warning(facts: Facts) -> None:
    functions = spark()
    functions[0].width = 2
    warnings = plan(facts(functions), Overrides(), nodes=2)["warnings"]
    assert len(warnings) == 1
    assert warnings[0].startswith("enp1s0f0np0: PCIe link trained at 32.0 GT/s PCIe x2, not 32.0 GT/s x4; ")


def test_a_missing_character_device_is_a_warning(facts: Facts) -> None:
    roce = facts()
    roce["char_devices"] = []
    draft = plan(roce, Overrides(), nodes=2)
    assert draft["devices"] == []
    assert [w.split(";")[0] for w in draft["warnings"]] == [
        "rocep1s0f0 has no character device in /dev/infiniband",
        "roceP2p1s0f0 has no character device in /dev/infiniband",
    ]


@pytest.mark.parametrize("functions", [[], spark(p0=False), spark()])
def test_one_node_needs_no_fabric_and_uses_none(facts: Facts, functions: list[Function]) -> None:
    result = settled(plan(facts(functions), Overrides(), nodes=1))
    assert result["problems"] == result["warnings"] == []
    node = result["node"]
    assert node is not None
    assert (node["address"], node["interface"], node["hcas"], node["devices"]) == ("10.0.0.11", "enP7s7", [], [])
    assert (node["nccl_env"]["NCCL_IB_DISABLE"], node["nccl_env"]["NCCL_NET"]) == ("1", "Socket")


def test_one_node_without_any_network_uses_loopback(facts: Facts) -> None:
    node = settled(plan(facts([], route=False), Overrides(), nodes=1))["node"]
    assert node is not None
    assert (node["address"], node["interface"]) == ("127.0.0.1", "lo")


@pytest.mark.parametrize(
    ("nodes", "p1", "wanted", "expected"),
    [
        (1, True, "auto", "single"),
        (2, True, "auto", "pair"),
        (3, False, "auto", "switch"),
        (3, True, "auto", "ring"),
        (3, True, "switch", "switch"),
        (2, False, "switch", "switch"),
    ],
)
def test_topology(facts: Facts, nodes: int, p1: bool, wanted: str, expected: str) -> None:
    draft = plan(facts(spark(p1=p1)), Overrides(topology=wanted), nodes)
    assert (draft["topology"], draft["problems"]) == (expected, [])


@pytest.mark.parametrize(("nodes", "algorithm"), [(3, None), (4, "Ring")])
def test_a_ring_meets_on_the_management_network_and_sends_over_all_ports(
    facts: Facts, nodes: int, algorithm: str | None
) -> None:
    node = settled(plan(facts(spark(p1=True)), Overrides(topology="ring"), nodes))["node"]
    assert node is not None
    assert (node["address"], node["interface"]) == ("10.0.0.11", "enP7s7")
    assert node["hcas"] == ["rocep1s0f0", "roceP2p1s0f0", "rocep1s0f1", "roceP2p1s0f1"]
    env = node["nccl_env"]
    assert env["NCCL_SOCKET_IFNAME"] == "enP7s7"
    assert (env["NCCL_NET_PLUGIN"], env["NCCL_IB_SUBNET_AWARE_ROUTING"], env["NCCL_IB_MERGE_NICS"]) == (
        "none",
        "1",
        "0",
    )
    assert env.get("NCCL_ALGO") == algorithm


# --- what the owner says --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "interface", "hcas"),
    [
        (Overrides(interface="enp1s0f1np1"), "enp1s0f1np1", ["rocep1s0f1", "roceP2p1s0f1"]),
        (Overrides(interface="enP2p1s0f0np0"), "enP2p1s0f0np0", ["rocep1s0f0", "roceP2p1s0f0"]),
        (Overrides(hcas=["rocep1s0f1"]), "enp1s0f1np1", ["rocep1s0f1"]),
        (Overrides(interface="enP7s7", hcas=["rocep1s0f0"]), "enP7s7", ["rocep1s0f0"]),
        (Overrides(address="192.168.188.11"), "enP2p1s0f1np1", ["rocep1s0f1", "roceP2p1s0f1"]),
        (
            Overrides(interface="enp1s0f0np0", address="192.168.177.11/24"),
            "enp1s0f0np0",
            ["rocep1s0f0", "roceP2p1s0f0"],
        ),
    ],
)
def test_overrides_choose(facts: Facts, overrides: Overrides, interface: str, hcas: list[str]) -> None:
    result = settled(plan(facts(spark(p1=True)), overrides, nodes=2))
    assert result["problems"] == []
    assert result["node"] is not None
    assert (result["node"]["interface"], result["node"]["hcas"]) == (interface, hcas)


def test_an_interface_without_rdma_means_sockets_and_a_warning(facts: Facts) -> None:
    result = settled(plan(facts([]), Overrides(interface="enP7s7"), nodes=2))
    assert result["warnings"] == [
        "enP7s7 has no RDMA device: NCCL will use TCP sockets; use a ConnectX port for full speed"
    ]
    assert result["node"] is not None
    env = result["node"]["nccl_env"]
    assert (env["NCCL_IB_DISABLE"], env["NCCL_NET"], env["NCCL_SOCKET_IFNAME"]) == ("1", "Socket", "enP7s7")
    assert "NCCL_IB_HCA" not in env


def test_a_bond_uses_the_rdma_devices_below_it(facts: Facts) -> None:
    roce = facts()
    for interface in roce["interfaces"]:
        if interface["name"] == "enP7s7":
            interface["name"], interface["lower"] = "bond0", ["enp1s0f0np0", "enP2p1s0f0np0"]
    draft = plan(roce, Overrides(interface="bond0"), nodes=2)
    assert (draft["problems"], draft["hcas"]) == ([], ["rocep1s0f0", "roceP2p1s0f0"])


def test_the_owners_environment_wins(facts: Facts) -> None:
    overrides = Overrides(nccl_debug="INFO", extra_env={"NCCL_IB_GID_INDEX": 3, "NCCL_NET": "Socket"})
    node = settled(plan(facts(), overrides, nodes=2))["node"]
    assert node is not None
    env = node["nccl_env"]
    assert (env["NCCL_IB_GID_INDEX"], env["NCCL_NET"], env["NCCL_DEBUG"]) == ("3", "Socket", "INFO")


def test_a_forced_gid_index_that_drifted_away_is_named(facts: Facts) -> None:
    functions = spark()
    functions[2].gid_slot = 4
    problems = plan(facts(functions), Overrides(extra_env={"NCCL_IB_GID_INDEX": "3"}), nodes=2)["problems"]
    assert problems == [
        "fabric_env.NCCL_IB_GID_INDEX is 3, but the RoCE v2 GID of enP2p1s0f0np0's IPv4 address is at index 5; "
        "leave it out, and NCCL finds the right one on each device"
    ]


# --- refusals -------------------------------------------------------------------------------------


def without_addresses(*addresses: str) -> list[Function]:
    functions = spark()
    for function, address in zip((functions[0], functions[2]), addresses or ("", ""), strict=True):
        function.addresses = [address] if address else []
    return functions


@pytest.mark.parametrize(
    ("functions", "overrides", "expected"),
    [
        (
            [],
            Overrides(),
            "no ConnectX adapter is visible in /sys/class/infiniband; take the machine off its power supply for a "
            "minute and check 'lspci -d 15b3:'; or set fabric_interface to use another network without RDMA",
        ),
        (spark(p0=False), Overrides(), "no ConnectX port has carrier; plug a QSFP cable or set fabric_interface"),
        (
            without_addresses(),
            Overrides(),
            "enp1s0f0np0, enP2p1s0f0np0: up, but without an IPv4 address; give each a static one in its own subnet "
            "in a netplan file (/etc/netplan/40-cx7.yaml), or set fabric_interface",
        ),
        (
            without_addresses("169.254.3.4/16", "169.254.5.6/16"),
            Overrides(),
            "enp1s0f0np0, enP2p1s0f0np0: up, but without a static IPv4 address; ",
        ),
        (without_addresses(), Overrides(interface="enp1s0f0np0"), "enp1s0f0np0 has no IPv4 address; "),
        (without_addresses(), Overrides(hcas=["rocep1s0f0"]), "enp1s0f0np0: up, but without an IPv4 address; "),
        (
            spark(),
            Overrides(interface="eth7"),
            "fabric_interface: there is no interface eth7; this host has enP2p1s0f0np0 (192.168.178.11/24), "
            "enP2p1s0f1np1 (no address), enP7s7 (10.0.0.11/24), enp1s0f0np0 (192.168.177.11/24), "
            "enp1s0f1np1 (no address)",
        ),
        (spark(), Overrides(interface="enp1s0f1np1"), "fabric_interface: enp1s0f1np1 has no carrier; plug its cable"),
        (
            spark(),
            Overrides(hcas=["mlx5_0"]),
            "fabric_hcas: there is no RDMA device mlx5_0; "
            "this host has roceP2p1s0f0, roceP2p1s0f1, rocep1s0f0, rocep1s0f1",
        ),
        (
            spark(),
            Overrides(hcas=["rocep1s0f1"]),
            "fabric_hcas: rocep1s0f1 is down (enp1s0f1np1); plug a QSFP cable, or name one of roceP2p1s0f0, rocep1s0f0",
        ),
        (
            spark(),
            Overrides(address="10.9.9.9"),
            "fabric_address: 10.9.9.9 is on no interface; this host has enP2p1s0f0np0 (192.168.178.11/24), ",
        ),
        (spark(), Overrides(address="spark-01"), "fabric_address: 'spark-01' is no IPv4 address; "),
        (
            spark(),
            Overrides(interface="enP7s7", address="192.168.177.11"),
            "fabric_address: 192.168.177.11 is not on enP7s7, which has 10.0.0.11/24; use one of these, ",
        ),
        (spark(), Overrides(topology="pear"), "fabric_topology is 'pear'; choose one of auto, single, "),
        (spark(), Overrides(topology="ring"), "fabric_topology is ring, but the cluster has 2 nodes; "),
        (spark(), Overrides(topology="single"), "fabric_topology is single, but the cluster has 2 nodes; "),
        (spark(), Overrides(nccl_debug="LOUD"), "fabric_nccl_debug is 'LOUD'; leave it empty or choose one of VERSION"),
        (
            spark(),
            Overrides(extra_env={"A B": "1"}),
            "fabric_env: 'A B' is no name for an environment variable; ",
        ),
        (spark(), Overrides(extra_env={"A": True}), "fabric_env.A is bool; write it as a quoted string"),
        (spark(), Overrides(extra_env={"A": None}), "fabric_env.A is NoneType; write it as a quoted string"),
        (spark(), Overrides(extra_env={"A": "1\nB=2"}), "fabric_env.A has more than one line; "),
        (
            spark(),
            Overrides(extra_env={"NCCL_IB_GID_INDEX": ""}),
            "fabric_env.NCCL_IB_GID_INDEX is ''; leave it out, which lets NCCL choose, or give a number",
        ),
        (
            spark(),
            Overrides(interface="enp1s0f0np0", extra_env={"NCCL_SOCKET_IFNAME": "eth0"}),
            "fabric_env sets NCCL_SOCKET_IFNAME to eth0, but fabric_interface says enp1s0f0np0; keep only one of them",
        ),
    ],
)
def test_refusals(facts: Facts, functions: list[Function], overrides: Overrides, expected: str) -> None:
    result = settled(plan(facts(functions), overrides, nodes=2))
    assert result["node"] is None
    assert len(result["problems"]) == 1
    assert result["problems"][0].startswith(expected)
    assert "; " in result["problems"][0]


def test_an_adapter_without_its_rdma_driver_is_not_sent_to_the_power_supply(tmp_path: Path) -> None:
    host = load("no_rdma_driver")
    lay(tmp_path / "sys", host["tree"])
    roce = read(SysfsReader(str(tmp_path / "sys"), "/nonexistent"), json.dumps(host["addr"]), json.dumps(host["route"]))
    assert plan(roce, Overrides(), nodes=2)["problems"] == [
        "enP2p1s0f0np0, enP2p1s0f1np1, enp1s0f0np0, enp1s0f1np1: a ConnectX adapter, but without an RDMA device in "
        "/sys/class/infiniband; run 'modprobe mlx5_ib'; if there is no such module, install all modules of the running "
        "kernel; or set fabric_interface to use another network without RDMA"
    ]


def test_all_reasons_are_given_at_once(facts: Facts) -> None:
    overrides = Overrides(hcas=["mlx5_0", "rocep1s0f1"], topology="ring", nccl_debug="LOUD")
    assert len(plan(facts(), overrides, nodes=2)["problems"]) == 4


def test_an_interface_that_is_administratively_down(facts: Facts) -> None:
    roce = facts()
    for interface in roce["interfaces"]:
        interface["carrier"] = None
    assert plan(roce, Overrides(interface="enP7s7"), nodes=2)["problems"] == [
        "fabric_interface: enP7s7 is administratively down; run 'ip link set enP7s7 up' or name another one"
    ]


@pytest.mark.parametrize("overrides", [Overrides(), Overrides(interface="enp1s0f0np0")])
def test_carrier_that_the_rdma_device_denies_is_not_passed_over(facts: Facts, overrides: Overrides) -> None:
    roce = facts()
    for device in roce["devices"]:
        device["state"], device["active"] = "DOWN", False
    problems = plan(roce, overrides, nodes=2)["problems"]
    assert len(problems) == 1
    assert problems[0].startswith("enp1s0f0np0 has carrier, but its RDMA device rocep1s0f0 is DOWN; ")


def test_bonded_twins_are_refused_by_name(facts: Facts) -> None:
    functions = without_addresses()
    functions[0].master = functions[2].master = "bond0"
    problems = plan(facts(functions), Overrides(), nodes=2)["problems"]
    assert problems[0].startswith("enp1s0f0np0, enP2p1s0f0np0: up, but part of bond0; take it apart")


def test_a_ring_without_a_default_route_is_refused(facts: Facts) -> None:
    problems = plan(facts(spark(p1=True), route=False), Overrides(), nodes=3)["problems"]
    assert problems[0].startswith("a ring's nodes meet on the network of the default route, and there is none; ")


# --- several hosts --------------------------------------------------------------------------------


def pair(facts: Facts, first: list[Function], second: list[Function]) -> dict[str, Plan]:
    return {
        "spark-01": plan(facts(first), Overrides(), nodes=2),
        "spark-02": plan(facts(second), Overrides(), nodes=2),
    }


def test_a_good_pair_settles(facts: Facts) -> None:
    plans = pair(facts, spark(), spark(host=12))
    for host, address in (("spark-01", "192.168.177.11"), ("spark-02", "192.168.177.12")):
        result = settle(plans, host, "spark-01")
        assert result["problems"] == []
        assert result["node"] is not None
        assert result["node"]["address"] == address


def test_nodes_may_use_different_ports(facts: Facts) -> None:
    second = spark(p0=False, p1=True)
    second[1].addresses, second[3].addresses = ["192.168.177.12/24"], ["192.168.178.12/24"]
    result = settle(pair(facts, spark(), second), "spark-02", "spark-01")
    assert result["problems"] == []
    assert result["node"] is not None
    assert result["node"]["interface"] == "enp1s0f1np1"


def test_crossed_cables_meet_on_the_subnet_that_both_have(facts: Facts) -> None:
    first, second = spark(p1=True), spark(p1=True, host=12)
    # The second host's ports are the other way round, and the first cable's far end has no address.
    second[0].addresses, second[1].addresses = ["192.168.187.12/24"], ["192.168.177.12/24"]
    second[2].addresses, second[3].addresses = ["192.168.188.12/24"], ["192.168.178.12/24"]
    plans = pair(facts, first, second)
    chosen = [settle(plans, host, "spark-01") for host in plans]
    assert [result["problems"] for result in chosen] == [[], []]
    assert [r["node"] and r["node"]["interface"] for r in chosen] == ["enp1s0f0np0", "enp1s0f1np1"]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (
            {"addresses": ["192.168.5.2/24"]},
            "fabric address 192.168.5.2/24 is not in spark-01's subnet 192.168.177.0/24; ",
        ),
        ({"mtu": 1500}, "enp1s0f0np0 has MTU 1500, but spark-01's enp1s0f0np0 has 9000; "),
        ({"addresses": ["192.168.177.11/24"]}, "address 192.168.177.11 on enp1s0f0np0 is spark-01's too; "),
    ],
)
def test_what_does_not_fit_is_said_on_the_other_host_than_the_head(
    facts: Facts, change: dict[str, Any], expected: str
) -> None:
    second = spark(host=12)
    second[2].addresses = ["192.168.6.2/24"]
    for name, value in change.items():
        setattr(second[0], name, value)
    plans = pair(facts, spark(), second)
    result = settle(plans, "spark-02", "spark-01")
    assert [problem[: len(expected)] for problem in result["problems"]] == [expected]
    assert result["node"] is None
    assert settle(plans, "spark-01", "spark-01")["problems"] == []


def test_the_mtu_is_compared_on_every_rail(facts: Facts) -> None:
    second = spark(host=12)
    second[2].mtu = 1500
    assert settle(pair(facts, spark(), second), "spark-02", "spark-01")["problems"] == [
        "enP2p1s0f0np0 has MTU 1500, but spark-01's enP2p1s0f0np0 has 9000; "
        "set the same MTU on all nodes, 9000 on a ConnectX fabric"
    ]


def test_a_node_whose_head_was_not_read_settles_alone(facts: Facts) -> None:
    draft = plan(facts(spark(host=12)), Overrides(), nodes=2)
    assert settle({"spark-02": draft}, "spark-02", "spark-01")["problems"] == []


def test_a_peer_with_problems_does_not_hide_ones_own(facts: Facts) -> None:
    plans = pair(facts, spark(p0=False), spark(host=12))
    assert settle(plans, "spark-02", "spark-01")["problems"] == []
    assert len(settle(plans, "spark-01", "spark-01")["problems"]) == 1


# --- fabric_node from the inventory ---------------------------------------------------------------

GIVEN = {"address": "192.168.177.11", "interface": "enp1s0f0np0", "hcas": ["rocep1s0f0"], "nccl_env": {"A": 1}}


def test_a_given_node_is_handed_on_as_it_is(facts: Facts) -> None:
    result = settled(check_given(facts(), GIVEN))
    assert result["problems"] == []
    assert result["node"] == {**GIVEN, "interfaces": ["enp1s0f0np0"], "devices": [], "nccl_env": {"A": "1"}}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"address": ""}, "fabric_node has no address; "),
        ({"interface": "eth7"}, "fabric_node.interface: there is no interface eth7; "),
        ({"address": "10.9.9.9"}, "fabric_node.address: 10.9.9.9 is not on enp1s0f0np0, "),
        ({"hcas": ["mlx5_0"]}, "fabric_node.hcas: there is no RDMA device mlx5_0; "),
        ({"hcas": "rocep1s0f0"}, "fabric_node.hcas is not a list of names; "),
        ({"devices": ["/dev/infiniband/uverbs9"]}, "fabric_node.devices: /dev/infiniband/uverbs9 does not exist; "),
        ({"interfaces": ["eth7"]}, "fabric_node.interfaces: eth7 does not exist; "),
        ({"nccl_env": ["A=1"]}, "fabric_node.nccl_env is not a mapping; "),
        ({"nccl_env": {"A": "1\n2"}}, "fabric_node.nccl_env.A has more than one line; "),
        ({"adress": "1"}, "fabric_node has unknown keys adress; "),
    ],
)
def test_a_given_node_that_does_not_fit_the_host(facts: Facts, change: dict[str, object], expected: str) -> None:
    result = settled(check_given(facts(), {**GIVEN, **change}))
    assert result["node"] is None
    assert [problem[: len(expected)] for problem in result["problems"]] == [expected]


# --- the environment ------------------------------------------------------------------------------


def test_names_that_begin_alike_are_told_apart() -> None:
    """NCCL takes the names in NCCL_IB_HCA as prefixes."""
    names = [f"mlx5_{n}" for n in range(12)]
    env = environment(address="10.0.0.1", interface="eth0", hcas=["mlx5_1"], all_devices=names)
    assert env["NCCL_IB_HCA"] == "=mlx5_1"
    env = environment(address="10.0.0.1", interface="eth0", hcas=["mlx5_1"], all_devices=names[:3])
    assert env["NCCL_IB_HCA"] == "mlx5_1"


def test_the_gid_index_is_never_set() -> None:
    assert "NCCL_IB_GID_INDEX" not in environment(address="10.0.0.1", interface="eth0", hcas=["mlx5_0"], ring_of=4)


def test_results_are_plain_json(facts: Facts) -> None:
    draft = plan(facts(), Overrides(), nodes=2)
    assert json.loads(json.dumps(draft)) == draft
    assert json.loads(json.dumps(settled(draft))) == settled(draft)


ROOT = Path(__file__).resolve().parents[4]


def emitted() -> set[str]:
    """Return the names of all variables for NCCL that any fabric gets from us."""
    found: set[str] = set()
    for ring_of in (0, 3, 4):
        for hcas in ([], ["rocep1s0f0"]):
            for level in ("", "INFO"):
                found |= set(
                    environment(
                        address="10.0.0.1", interface="a", hcas=hcas, ring_of=ring_of, nccl_debug=level, extra={}
                    )
                )
    return {name for name in found if name.startswith("NCCL_")} | {"NCCL_IB_GID_INDEX"}


def test_the_nccl_of_the_images_lock_knows_every_variable() -> None:
    # NCCL does not complain of a variable that it does not know: a ring would take the wrong port.
    lines = (ROOT / "tests/unit/data/nccl-names.txt").read_text(encoding="utf-8").splitlines()
    assert len(emitted()) == 11
    assert emitted() - set(lines) == set()


def test_these_names_are_those_of_the_lock() -> None:
    header = (ROOT / "tests/unit/data/nccl-names.txt").read_text(encoding="utf-8").splitlines()[0]
    pinned, digest = header.removeprefix("# ").split(" sha256:")
    lock = (ROOT / "files/image/cuda/requirements-aarch64.lock").read_text(encoding="utf-8")
    entry = lock.split(f"\n{pinned} ", 1)[1].split("\n    # ", 1)[0]
    assert f"--hash=sha256:{digest}" in entry, "run make lock"
