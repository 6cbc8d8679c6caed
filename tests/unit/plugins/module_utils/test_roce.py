# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import errno
import functools
import itertools
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints, is_typeddict

import pytest
from ansible_collections.sparkfleet.vllm.plugins.module_utils._roce import (
    Device,
    Roce,
    SysfsReader,
    clean_names,
    clean_text,
    read,
    usable_addresses,
)
from ansible_collections.sparkfleet.vllm.tests.unit.sysfs_tree import (
    Function,
    addr_json,
    build,
    lay,
    link,
    load,
    netdev,
    put,
    route_json,
    spark,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st


def facts(tmp_path: Path, functions: list[Function]) -> Roce:
    return read(SysfsReader(build(tmp_path, functions), str(tmp_path / "dev")), addr_json(functions), route_json())


def device(roce: Roce, name: str) -> Device:
    return next(d for d in roce["devices"] if d["name"] == name)


def codes(roce: Roce) -> list[tuple[str, str | None]]:
    return [(problem["code"], problem["device"]) for problem in roce["problems"]]


def test_a_correct_spark_has_no_problems(tmp_path: Path) -> None:
    roce = facts(tmp_path, spark())
    assert roce["problems"] == []
    assert [d["name"] for d in roce["devices"]] == ["roceP2p1s0f0", "roceP2p1s0f1", "rocep1s0f0", "rocep1s0f1"]
    assert device(roce, "rocep1s0f0") == {
        "name": "rocep1s0f0",
        "port": 1,
        "netdev": "enp1s0f0np0",
        "upper": [],
        "pci": "0000:01:00.0",
        "physical_port": "p0",
        "card": "4cbb:4703:0082:0e69",
        "twin": "roceP2p1s0f0",
        "connectx": True,
        "virtual_function": False,
        "active": True,
        "state": "ACTIVE",
        "phys_state": "LinkUp",
        "carrier": True,
        "operstate": "up",
        "link_layer": "Ethernet",
        "rate_gbps": 200.0,
        "mtu": 9000,
        "speed_mbps": 200000,
        "addresses": ["192.168.177.11/24"],
        "gids": [
            {
                "index": index,
                "type": "RoCE v2" if index % 2 else "IB/RoCE v1",
                "gid": gid,
                "address": address,
                "netdev": "enp1s0f0np0",
            }
            for index, (gid, address) in enumerate(
                [("fe80::4ebb:47ff:fe82:e69",) * 2] * 2 + [("::ffff:c0a8:b10b", "192.168.177.11")] * 2
            )
        ],
        "gid_index_v2_ipv4": 3,
        "node_guid": "4cbb:4703:0082:0e69",
        "fw_ver": "28.45.4028",
        "hca_type": "MT4129",
        "board_id": "NVD0000000087",
        "uverbs": "/dev/infiniband/uverbs0",
        "pcie_speed": "32.0 GT/s PCIe",
        "pcie_width": 4,
    }
    assert roce["default_route"] == {"interface": "enP7s7", "address": "10.0.0.11"}
    # bonding_masters is a file in class/net, not an interface
    names = [interface["name"] for interface in roce["interfaces"]]
    assert names == sorted([f.netdev for f in spark()] + ["lo", "enP7s7"])


def test_a_port_that_is_down(tmp_path: Path) -> None:
    port = device(facts(tmp_path, spark()), "rocep1s0f1")
    assert (port["active"], port["state"], port["carrier"], port["speed_mbps"]) == (False, "DOWN", False, None)
    assert port["gid_index_v2_ipv4"] is None


def test_a_drifted_gid_index_is_read_not_assumed(tmp_path: Path) -> None:
    functions = spark()
    functions[0].gid_slot = 4
    roce = facts(tmp_path, functions)
    assert device(roce, "rocep1s0f0")["gid_index_v2_ipv4"] == 5
    assert device(roce, "roceP2p1s0f0")["gid_index_v2_ipv4"] == 3


def test_the_gid_of_a_vlan_is_not_the_ports_own(tmp_path: Path) -> None:
    functions = spark()
    sysfs = Path(build(tmp_path, functions))
    put(sysfs / "class/infiniband/rocep1s0f0/ports/1/gid_attrs/ndevs/3", "enp1s0f0np0.100")
    roce = read(SysfsReader(str(sysfs)), addr_json(functions), None)
    assert device(roce, "rocep1s0f0")["gid_index_v2_ipv4"] is None
    assert device(roce, "rocep1s0f0")["netdev"] == "enp1s0f0np0"
    assert ("no_gid", "rocep1s0f0") in codes(roce)


def test_devices_named_mlx5_are_paired_by_card_and_port(tmp_path: Path) -> None:
    functions = spark(p1=True)
    for number, function in enumerate(functions):
        function.hca, function.netdev = f"mlx5_{number}", f"eth{number}"
    roce = facts(tmp_path, functions)
    assert {d["name"]: (d["physical_port"], d["twin"]) for d in roce["devices"]} == {
        "mlx5_0": ("p0", "mlx5_2"),
        "mlx5_1": ("p1", "mlx5_3"),
        "mlx5_2": ("p0", "mlx5_0"),
        "mlx5_3": ("p1", "mlx5_1"),
    }


def test_two_cards_are_not_twins(tmp_path: Path) -> None:
    functions = [spark()[0], spark()[2]]
    functions[1].card = "4cbb:4703:0082:ffff"
    assert [d["twin"] for d in facts(tmp_path, functions)["devices"]] == [None, None]


def test_virtual_functions_are_nobodys_twin(tmp_path: Path) -> None:
    functions = [*spark(), Function("0000:01:00.2", "enp1s0f0v0", "rocep1s0f0v0", 0)]
    sysfs = Path(build(tmp_path, functions))
    link(sysfs / "devices/pci0000:00/0000:01:00.2/physfn", sysfs / "devices/pci0000:00/0000:01:00.0")
    roce = read(SysfsReader(str(sysfs)), addr_json(functions), None)
    virtual = device(roce, "rocep1s0f0v0")
    assert (virtual["virtual_function"], virtual["twin"], virtual["physical_port"]) == (True, None, None)
    assert device(roce, "rocep1s0f0")["twin"] == "roceP2p1s0f0"


def test_a_device_with_two_ports_finds_each_ports_interface(tmp_path: Path) -> None:
    function = spark()[0]
    sysfs = Path(build(tmp_path, [function]))
    hca = sysfs / "class/infiniband/rocep1s0f0"
    shutil.copytree(hca / "ports/1", hca / "ports/2")
    for port in ("1", "2"):
        shutil.rmtree(hca / "ports" / port / "gid_attrs")
    second = netdev(sysfs, "enp1s0d1", up=True, mtu=1500)
    put(second / "dev_port", "1")
    put(sysfs / "class/net/enp1s0f0np0/dev_port", "0")
    link(sysfs / "devices/pci0000:00/0000:01:00.0/net/enp1s0d1", second)
    roce = read(SysfsReader(str(sysfs)), addr_json([function]), None)
    assert [(d["port"], d["netdev"]) for d in roce["devices"]] == [(1, "enp1s0f0np0"), (2, "enp1s0d1")]


def test_twins_with_two_ports_each_are_paired_by_port(tmp_path: Path) -> None:
    functions = [spark()[0], spark()[2]]
    sysfs = Path(build(tmp_path, functions))
    for number, function in enumerate(functions):
        hca = sysfs / "class/infiniband" / function.hca
        shutil.copytree(hca / "ports/1", hca / "ports/2")
        (hca / "ports/01").mkdir()  # no kernel has it; it would be the first port once more
        shutil.rmtree(hca / "ports/1/gid_attrs")
        shutil.rmtree(hca / "ports/2/gid_attrs")
        put(sysfs / "class/net" / function.netdev / "dev_port", "0")
        second = netdev(sysfs, f"second{number}", up=number == 0, mtu=9000)
        put(second / "dev_port", "1")
        link(hca.resolve().parents[1] / "net" / f"second{number}", second)
    roce = read(SysfsReader(str(sysfs)), addr_json(functions), None)
    assert [(d["name"], d["port"], d["physical_port"], d["twin"]) for d in roce["devices"]] == [
        ("roceP2p1s0f0", 1, "p0", "rocep1s0f0"),
        ("roceP2p1s0f0", 2, "p1", "rocep1s0f0"),
        ("rocep1s0f0", 1, "p0", "roceP2p1s0f0"),
        ("rocep1s0f0", 2, "p1", "roceP2p1s0f0"),
    ]
    down = [problem["message"] for problem in roce["problems"] if problem["code"] == "twin_down"]
    assert down == ["second0: its twin second1 is down: it has no carrier; half of the port's bandwidth is lost"]


def test_an_infiniband_port_needs_neither_roce_gids_nor_jumbo_frames(tmp_path: Path) -> None:
    functions = [spark()[0]]
    functions[0].link_layer = "InfiniBand"
    functions[0].mtu = 2044
    sysfs = Path(build(tmp_path, functions))
    shutil.rmtree(sysfs / "class/infiniband/rocep1s0f0/ports/1/gid_attrs")
    roce = read(SysfsReader(str(sysfs)), addr_json(functions), None)
    assert roce["problems"] == []
    assert roce["devices"][0]["gids"][0]["type"] is None


def test_a_soft_roce_device_is_shown_but_is_no_connectx(tmp_path: Path) -> None:
    sysfs = Path(build(tmp_path, []))
    put(sysfs / "class/infiniband/rxe0/parent", "enP7s7")
    put(sysfs / "class/infiniband/rxe0/ports/1/state", "4: ACTIVE")
    roce = read(SysfsReader(str(sysfs)), addr_json([]), route_json())
    assert (roce["devices"][0]["netdev"], roce["devices"][0]["active"]) == ("enP7s7", True)
    assert roce["devices"][0]["addresses"] == ["10.0.0.11/24", "fe80::1/64"]
    assert codes(roce) == [("no_connectx", None)]


def test_a_vlan_and_a_bond_know_what_they_are_made_of(tmp_path: Path) -> None:
    functions = spark()
    functions[0].master = functions[2].master = "bond0"
    links = json.loads(addr_json(functions))
    links.append({"ifname": "bond0", "linkinfo": {"info_kind": "bond"}, "addr_info": []})
    links.append({"ifname": "bond0.5", "link": "bond0", "linkinfo": {"info_kind": "vlan"}, "addr_info": []})
    roce = read(SysfsReader(build(tmp_path, functions)), json.dumps(links), None)
    found = {i["name"]: (i["kind"], i["lower"]) for i in roce["interfaces"]}
    assert found["bond0"] == ("bond", ["enP2p1s0f0np0", "enp1s0f0np0"])
    assert found["bond0.5"] == ("vlan", ["bond0"])
    assert ("bonded_twins", "rocep1s0f0") in codes(roce)


def test_the_ends_of_a_veth_do_not_lie_on_each_other(tmp_path: Path) -> None:
    links = json.loads(addr_json(spark()))
    for name, peer in (("veth0", "veth1"), ("veth1", "veth0")):
        links.append({"ifname": name, "link": peer, "linkinfo": {"info_kind": "veth"}, "addr_info": []})
    links.append({"ifname": "macvlan0", "link": "enp1s0f0np0", "linkinfo": {"info_kind": "macvlan"}, "addr_info": []})
    roce = read(SysfsReader(build(tmp_path, spark())), json.dumps(links), None)
    assert [i["lower"] for i in roce["interfaces"] if i["kind"] == "veth"] == [[], []]
    assert device(roce, "rocep1s0f0")["upper"] == ["macvlan0"]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"up": False, "addresses": []}, [("twin_down", "rocep1s0f0")]),
        ({"mtu": 1500}, [("mtu", "roceP2p1s0f0"), ("twin_mtu", "rocep1s0f0")]),
        ({"width": 2}, [("pcie_link", "roceP2p1s0f0")]),
        ({"rate": "100 Gb/sec (1X NDR)"}, [("rate", "roceP2p1s0f0")]),
        ({"addresses": []}, [("no_address", "roceP2p1s0f0")]),
        ({"addresses": ["169.254.7.7/16"]}, [("no_address", "roceP2p1s0f0")]),
        ({"addresses": ["192.168.177.12/24"]}, [("twins_one_subnet", "rocep1s0f0")]),
    ],
)
def test_what_is_wrong_with_a_twin_is_named(
    tmp_path: Path, change: dict[str, object], expected: list[tuple[str, str]]
) -> None:
    functions = spark()
    for name, value in change.items():
        setattr(functions[2], name, value)
    roce = facts(tmp_path, functions)
    assert sorted(codes(roce)) == sorted(expected)
    for problem in roce["problems"]:
        assert problem["message"].startswith("en")
        assert problem["remedy"]


def test_a_missing_twin_is_named_where_other_ports_have_one(tmp_path: Path) -> None:
    assert codes(facts(tmp_path, [*spark()[:2], spark()[3]])) == [("twin_missing", "rocep1s0f0")]


def test_a_card_without_twins_is_not_asked_for_them(tmp_path: Path) -> None:
    assert facts(tmp_path, spark(p1=True)[:2])["problems"] == []


def test_no_carrier_at_all(tmp_path: Path) -> None:
    assert codes(facts(tmp_path, spark(p0=False))) == [("no_carrier", None)]


def test_carrier_that_the_rdma_device_denies(tmp_path: Path) -> None:
    functions = [spark()[0]]
    sysfs = Path(build(tmp_path, functions))
    put(sysfs / "class/infiniband/rocep1s0f0/ports/1/state", "1: DOWN")
    roce = read(SysfsReader(str(sysfs)), addr_json(functions), None)
    assert codes(roce) == [("rdma_down", "rocep1s0f0")]


def test_a_host_without_anything(tmp_path: Path) -> None:
    roce = read(SysfsReader(str(tmp_path / "missing"), str(tmp_path / "missing")), None, None)
    assert codes(roce) == [("no_connectx", None), ("no_addresses_read", None)]
    assert (roce["devices"], roce["interfaces"], roce["default_route"], roce["char_devices"]) == ([], [], None, [])


def test_an_unreadable_carrier_means_administratively_down(tmp_path: Path) -> None:
    functions = [spark()[0]]
    sysfs = Path(build(tmp_path, functions))
    carrier = sysfs / "class/net/enp1s0f0np0/carrier"
    carrier.unlink()
    carrier.mkdir()  # reading it fails, as EINVAL does
    roce = read(SysfsReader(str(sysfs)), addr_json(functions), None)
    assert (roce["devices"][0]["carrier"], roce["devices"][0]["active"]) == (None, False)


def test_only_character_devices_count(tmp_path: Path) -> None:
    dev = tmp_path / "dev/infiniband"
    dev.mkdir(parents=True)
    (dev / "uverbs0").touch()
    (dev / "rdma_cm").symlink_to("/dev/null")
    (dev / "gone").symlink_to("nowhere")
    assert SysfsReader(str(tmp_path), str(tmp_path / "dev")).char_devices() == ["/dev/infiniband/rdma_cm"]


def test_a_fifo_in_the_place_of_an_attribute_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "carrier")
    assert SysfsReader(str(tmp_path)).text("carrier") is None


def test_a_name_that_is_no_text_is_left_out(tmp_path: Path) -> None:
    sysfs = Path(build(tmp_path, [spark()[0]]))
    put(Path(os.fsdecode(os.fsencode(sysfs / "class/net") + b"/eth\xff")) / "carrier", "1")
    roce = read(SysfsReader(str(sysfs)), None, None)
    assert [interface["name"] for interface in roce["interfaces"]] == ["enP7s7", "enp1s0f0np0", "lo"]


def test_the_default_route_with_the_lowest_metric_is_taken(tmp_path: Path) -> None:
    functions = spark()
    routes = json.dumps([{"dev": "enp1s0f0np0", "metric": 600}, {"dev": "enP7s7", "metric": 100}])
    roce = read(SysfsReader(build(tmp_path, functions)), addr_json(functions), routes)
    assert roce["default_route"] == {"interface": "enP7s7", "address": "10.0.0.11"}


def test_the_default_route_over_several_hops_leaves_by_the_first(tmp_path: Path) -> None:
    functions = spark()
    routes = json.dumps([{"dst": "default", "nexthops": [{"gateway": "10.0.0.1", "dev": "enP7s7"}, {"dev": "lo"}]}])
    roce = read(SysfsReader(build(tmp_path, functions)), addr_json(functions), routes)
    assert roce["default_route"] == {"interface": "enP7s7", "address": "10.0.0.11"}
    assert roce["management"] == ["enP7s7"]


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("", ["enP7s7"]),
        ("spark-01.local", ["enP7s7"]),
        ("10.0.0.11", ["enP7s7"]),
        (" 192.168.178.11\n", ["enP7s7", "enP2p1s0f0np0"]),
        ("192.168.177.11/32", ["enP7s7", "enp1s0f0np0"]),
        ("192.168.177.99", ["enP7s7"]),
        ("::1", ["enP7s7", "lo"]),
    ],
)
def test_the_management_address_adds_its_holder(tmp_path: Path, address: str, expected: list[str]) -> None:
    functions = spark()
    roce = read(SysfsReader(build(tmp_path, functions)), addr_json(functions), route_json(), address)
    assert roce["management"] == expected


@pytest.mark.parametrize(
    ("speed", "width", "rate", "expected"),
    [
        ("32.0 GT/s PCIe", "4", "200 Gb/sec (2X NDR)", []),
        ("16.0 GT/s PCIe", "16", "200 Gb/sec (4X HDR)", []),
        ("8.0 GT/s PCIe", "8", "40 Gb/sec (4X QDR)", ["rate"]),
        ("32.0 GT/s PCIe", "2", "200 Gb/sec (2X NDR)", ["pcie_link"]),
        ("32.0 GT/s PCIe", "1", "200 Gb/sec (2X NDR)", ["pcie_link"]),
        ("16.0 GT/s PCIe", "4", "200 Gb/sec (2X NDR)", ["pcie_link"]),
        ("8.0 GT/s PCIe", "4", "200 Gb/sec (2X NDR)", ["pcie_link"]),  # 31.5 Gb/s
        ("8.0 GT/s PCIe", "2", "200 Gb/sec (2X NDR)", ["pcie_degraded"]),  # 15.8
        ("16.0 GT/s PCIe", "1", "200 Gb/sec (2X NDR)", ["pcie_degraded"]),  # 15.8
        ("5.0 GT/s PCIe", "4", "200 Gb/sec (2X NDR)", ["pcie_degraded"]),  # 16.0, as 8 bits of 10 count
        ("2.5 GT/s PCIe", "4", "200 Gb/sec (2X NDR)", ["pcie_degraded"]),
        ("5.0 GT/s PCIe", "8", "200 Gb/sec (2X NDR)", ["pcie_link"]),
        ("Unknown", "0", "200 Gb/sec (2X NDR)", []),
        ("Unknown", "2", "200 Gb/sec (2X NDR)", ["pcie_link"]),
        ("8.0 GT/s PCIe", "", "200 Gb/sec (2X NDR)", ["pcie_link"]),
    ],
)
def test_a_pcie_link_is_judged_by_what_it_carries(
    tmp_path: Path, speed: str, width: str, rate: str, expected: list[str]
) -> None:
    functions = [spark()[0]]
    functions[0].rate = rate
    sysfs = Path(build(tmp_path, functions))
    put(sysfs / "devices/pci0000:00/0000:01:00.0/current_link_speed", speed)
    put(sysfs / "devices/pci0000:00/0000:01:00.0/current_link_width", width)
    roce = read(SysfsReader(str(sysfs)), addr_json(functions), None)
    assert [code for code, _device in codes(roce)] == expected


def test_an_infiniband_link_without_a_subnet_manager(tmp_path: Path) -> None:
    functions = [spark(p0=False)[0]]
    functions[0].link_layer = "InfiniBand"
    sysfs = Path(build(tmp_path, functions))
    put(sysfs / "class/infiniband/rocep1s0f0/ports/1/state", "2: INIT")
    put(sysfs / "class/infiniband/rocep1s0f0/ports/1/phys_state", "5: LinkUp")
    assert codes(read(SysfsReader(str(sysfs)), addr_json(functions), None)) == [("no_subnet_manager", "rocep1s0f0")]


def test_an_active_port_without_an_interface(tmp_path: Path) -> None:
    functions = [spark()[0]]
    functions[0].netdev = ""
    sysfs = Path(build(tmp_path, functions))
    shutil.rmtree(sysfs / "class/infiniband/rocep1s0f0/ports/1/gid_attrs/ndevs")
    roce = read(SysfsReader(str(sysfs)), addr_json(functions), None)
    assert (roce["devices"][0]["netdev"], roce["devices"][0]["active"]) == (None, True)
    assert codes(roce) == [("no_interface", "rocep1s0f0")]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("enp1s0f1np1", "enp1s0f0np0"), ["p1", "p0"]),  # the driver's naming, whatever the PCI functions are
        (("lannp1", "lannp0"), ["p0", "p1"]),  # an owner's naming says nothing
    ],
)
def test_without_phys_port_name_predictable_names_tell_the_port(
    tmp_path: Path, names: tuple[str, str], expected: list[str]
) -> None:
    functions = spark(p1=True)[:2]
    functions[0].netdev, functions[1].netdev = names
    sysfs = Path(build(tmp_path, functions))
    for name in names:
        (sysfs / "class/net" / name / "phys_port_name").unlink()
    roce = read(SysfsReader(str(sysfs)), addr_json(functions), None)
    assert [device["physical_port"] for device in roce["devices"]] == expected


@pytest.mark.parametrize("name", ["a\nb", "\ud800"])
def test_what_is_not_printable_is_left_out(tmp_path: Path, name: str) -> None:
    addresses = [{"local": f"fe80::1%{name}", "prefixlen": 64}, {"local": "10.0.0.1", "prefixlen": 8}]
    links = [{"ifname": name}, {"ifname": "lo", "master": name, "addr_info": addresses}]
    roce = read(SysfsReader(build(tmp_path, [])), json.dumps(links), None)
    assert [i["name"] for i in roce["interfaces"]] == ["enP7s7", "lo"]
    assert (roce["interfaces"][1]["master"], roce["interfaces"][1]["addresses"]) == (None, ["fe80::1/64", "10.0.0.1/8"])


def test_usable_addresses() -> None:
    assert usable_addresses(["fd00::1/64", "169.254.1.1/16", "10.0.0.1/8"]) == ["10.0.0.1/8"]


# --- anything a kernel can show -------------------------------------------------------------------

ATTRIBUTES = [
    *(f"class/net/enp1s0f0np0/{name}" for name in ("", "carrier", "mtu", "speed", "phys_port_name", "dev_port")),
    *(
        f"class/infiniband/rocep1s0f0/{name}"
        for name in (
            "",
            "sys_image_guid",
            "hca_type",
            "ports",
            "ports/1",
            "ports/1/state",
            "ports/1/rate",
            "ports/1/gids",
            "ports/1/gids/3",
            "ports/1/gid_attrs",
            "ports/1/gid_attrs/types/3",
            "ports/1/gid_attrs/ndevs/3",
            "device",
            "device/net",
            "device/vendor",
            "device/physfn",
            "device/current_link_width",
            "device/current_link_speed",
        )
    ),
    "class/infiniband",
    "class/net",
    "class/infiniband_verbs/uverbs0",
    "class/infiniband_verbs/uverbs0/ibdev",
]
NASTY = [
    b"",
    b"\xff\xfe\x00",
    b"-1",
    b"9" * 5000,
    b"4:",
    b": :",
    b"nan Gb/sec",
    b"1e999",
    "\u0661\u0662".encode(),
    b"::ffff:999.1.1.1",
    b"fe80::1%eth0",
    b"a\nb",
    b"../../..",
]
breakages = st.tuples(
    st.sampled_from(ATTRIBUTES),
    st.sampled_from(["remove", "bytes", "directory", "dangling", "loop", "fifo", "bad name", "number"]),
    st.one_of(st.sampled_from(NASTY), st.binary(max_size=64)),
)
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["a\nb", "\ud800", "fe80::1%e\n", "10.0.0.1", "enp1s0f0np0", "bond0", "veth"]),
    lambda children: (
        st.lists(children, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["ifname", "addr_info", "local", "prefixlen", "dev", "metric", "link", "master", "linkinfo"]
            ),
            children,
            max_size=4,
        )
    ),
    max_leaves=12,
)
ip_outputs = st.one_of(
    st.none(),
    st.text(max_size=30),
    st.just("[" * 100_000),
    json_values.map(json.dumps),
    st.lists(st.dictionaries(st.sampled_from(["ifname", "dev", "metric"]), json_values, max_size=3)).map(json.dumps),
    st.just(addr_json(spark())),
)


def break_it(sysfs: Path, attribute: str, how: str, content: bytes) -> None:
    """Do to one attribute what a kernel, a driver or a race can do to it."""
    path = sysfs / attribute
    if not os.path.lexists(path.parent) or not path.parent.is_dir():
        return
    if how in ("bad name", "number"):
        if path.is_dir():
            name = b"\xff\xfe" if how == "bad name" else b"99999999999999999999"
            Path(os.fsdecode(os.fsencode(path) + b"/" + name)).touch()
        return
    if path.is_symlink() or path.is_file():
        path.unlink()
    elif path.is_dir():
        shutil.rmtree(path)
    elif os.path.lexists(path):
        path.unlink()
    if how == "bytes":
        path.write_bytes(content)
    elif how == "directory":
        path.mkdir()
    elif how == "dangling":
        path.symlink_to("nowhere")
    elif how == "loop":
        path.symlink_to(path)
    elif how == "fifo":
        os.mkfifo(path)


@contextmanager
def failing(faults: dict[int, int]) -> Iterator[None]:
    """Let the n-th call into the kernel fail with an error number, as for a device that vanishes meanwhile."""
    count = itertools.count()

    def may_fail(call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            number = faults.get(next(count))
            if number is not None:
                raise OSError(number, os.strerror(number))
            return call(*args, **kwargs)

        return wrapped

    with pytest.MonkeyPatch.context() as patch:
        for module, name in ((os, "open"), (os, "read"), (os, "listdir"), (os, "stat"), (os.path, "realpath")):
            patch.setattr(module, name, may_fail(getattr(module, name)))
        yield


errors = st.sampled_from([errno.ENOENT, errno.EINVAL, errno.EIO, errno.ENODEV, errno.EACCES, errno.ELOOP, errno.EAGAIN])


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    broken=st.lists(breakages, max_size=6),
    faults=st.dictionaries(st.integers(0, 150), errors, max_size=8),
    addresses=ip_outputs,
    routes=ip_outputs,
)
def test_no_file_system_makes_it_raise(
    broken: list[tuple[str, str, bytes]], faults: dict[int, int], addresses: str | None, routes: str | None
) -> None:
    with tempfile.TemporaryDirectory() as directory:
        # One function is enough to reach every line, and quick to build.
        sysfs = Path(build(Path(directory), [spark()[0]]))
        for attribute, how, content in broken:
            break_it(sysfs, attribute, how, content)
        with failing(faults):
            roce = read(SysfsReader(str(sysfs), directory), addresses, routes)
    assert_sound(roce)


# --- arbitrary trees, in memory -------------------------------------------------------------------


def matches(value: object, hint: Any) -> bool:
    """Whether a value is of a type, all that it holds included."""
    if is_typeddict(hint):
        hints = get_type_hints(hint)
        return (
            isinstance(value, dict)
            and value.keys() == hints.keys()
            and all(matches(value[key], hints[key]) for key in hints)
        )
    if get_origin(hint) is list:
        return isinstance(value, list) and all(matches(item, get_args(hint)[0]) for item in value)
    if get_origin(hint) is UnionType:
        return any(matches(value, choice) for choice in get_args(hint))
    # A bool is an int in Python, but not here.
    return value.__class__ is hint and (not isinstance(value, str) or value.isprintable())


def assert_sound(roce: Roce) -> None:
    """Check what holds for the facts of any host."""
    assert matches(roce, Roce)
    # What cannot be written as strict JSON would fail on its way to the controller.
    assert json.loads(json.dumps(roce, allow_nan=False, ensure_ascii=False).encode("utf-8")) == roce
    interfaces = {interface["name"] for interface in roce["interfaces"]}
    assert interfaces.issuperset(roce["management"])
    ports = {(d["name"], d["port"]): d for d in roce["devices"]}
    assert len(ports) == len(roce["devices"])
    for port in roce["devices"]:
        assert interfaces.issuperset(port["upper"])
        assert port["twin"] is None or ports[port["twin"], port["port"]]["twin"] == port["name"]
    for problem in roce["problems"]:
        assert problem["code"] and problem["message"] and problem["remedy"]


class Recorder:
    """A reader that keeps what another one answers."""

    def __init__(self, reader: SysfsReader) -> None:
        self._reader = reader
        self.texts: dict[str, str | None] = {}
        self.lists: dict[str, list[str]] = {}
        self.targets: dict[str, str | None] = {}

    def text(self, path: str) -> str | None:
        return self.texts.setdefault(path, self._reader.text(path))

    def entries(self, path: str) -> list[str]:
        return self.lists.setdefault(path, self._reader.entries(path))

    def target(self, path: str) -> str | None:
        return self.targets.setdefault(path, self._reader.target(path))

    def char_devices(self) -> list[str]:
        return self._reader.char_devices()


@functools.cache
def recorded(name: str) -> tuple[Recorder, str, str]:
    """Return what the host of tests/unit/data/roce answers, and its outputs of ip."""
    host = load(name)
    with tempfile.TemporaryDirectory() as directory:
        lay(Path(directory) / "sys", host["tree"])
        reader = Recorder(SysfsReader(f"{directory}/sys", f"{directory}/dev"))
        outputs = json.dumps(host["addr"]), json.dumps(host["route"])
        read(reader, *outputs)
    return reader, *outputs


class Liar:
    """A reader of a recorded host that changes between two reads.

    Args:
        host: what is true.
        lies: for a path, the bytes or the names that are there instead; None if it is gone.
        faults: the calls, by number, that fail.
        anywhere: what a path holds that nobody recorded.
    """

    def __init__(
        self,
        host: Recorder,
        lies: dict[str, bytes | list[str] | None],
        faults: set[int],
        anywhere: bytes | list[str] | None,
    ) -> None:
        self._host, self._lies, self._faults, self._anywhere = host, lies, faults, anywhere
        self._calls = itertools.count()

    def _lie(self, path: str, truth: dict[str, Any]) -> tuple[bool, bytes | list[str] | None]:
        if next(self._calls) in self._faults:
            return True, None
        if path in self._lies:
            return True, self._lies[path]
        return path not in truth, self._anywhere

    def text(self, path: str) -> str | None:
        lies, lie = self._lie(path, self._host.texts)
        return (clean_text(lie) if isinstance(lie, bytes) else None) if lies else self._host.texts[path]

    def entries(self, path: str) -> list[str]:
        lies, lie = self._lie(path, self._host.lists)
        return (clean_names(lie) if isinstance(lie, list) else []) if lies else self._host.lists[path]

    def target(self, path: str) -> str | None:
        lies, lie = self._lie(path, self._host.targets)
        return (clean_text(lie) if isinstance(lie, bytes) else None) if lies else self._host.targets[path]

    def char_devices(self) -> list[str]:
        return self._host.char_devices()


hosts = st.sampled_from(["pair", "two_ports", "vlan", "bonded_twins", "virtual_functions", "infiniband", "no_rdma"])
contents = st.one_of(
    st.none(),
    st.sampled_from(
        [
            *NASTY,
            *(
                b"1",
                b"0",
                b"2",
                b"4: ACTIVE",
                b"2: INIT",
                b"5: LinkUp",
                b"InfiniBand",
                b"0x15b3",
                b"p0",
                b"p1",
                b"RoCE v2",
            ),
            *(b"40 Gb/sec", b"2.5 GT/s PCIe", b"Unknown", b"0000:01:00.1", b"enp1s0f0np0", b"bond0", b"9000", b"99999"),
            *(b"0000:0000:0000:0000:0000:ffff:a9fe:0101", b"0000:0000:0000:0000:0000:ffff:c0a8:b10b", b"x" * 70_000),
        ]
    ),
    st.binary(max_size=24),
    st.lists(
        st.sampled_from(
            ["0", "1", "2", "01", "3", "-1", "9" * 15, "9" * 40, "\udcff", "..", "", "lo", "bond0", "mlx5_0"]
        )
        | st.sampled_from(["rocep1s0f0", "roceP2p1s0f0", "enp1s0f0np0", "enP2p1s0f0np0", "\u0661", "a/b", "\n"])
        | st.text(max_size=4),
        max_size=4,
    ),
)


@st.composite
def worlds(draw: st.DrawFn) -> tuple[Liar, str | None, str | None, str]:
    """A host with a few things that are not as they should be, and what ip and the controller say about it."""
    recorder, addresses, routes = recorded(draw(hosts))
    paths = sorted({*recorder.texts, *recorder.lists, *recorder.targets})
    lies = draw(st.dictionaries(st.sampled_from(paths), contents, max_size=6))
    faults = draw(st.sets(st.integers(0, 400), max_size=6))
    reader = Liar(recorder, lies, faults, draw(st.one_of(st.none(), contents)))
    said = draw(st.one_of(st.just(addresses), ip_outputs))
    routed = draw(st.one_of(st.just(routes), ip_outputs))
    return (
        reader,
        said,
        routed,
        draw(st.sampled_from(["", "10.9.0.11", "10.0.0.11/24", "::1", "spark-01", "\0", "1" * 99])),
    )


@settings(
    max_examples=int(os.environ.get("ROCE_FUZZ_EXAMPLES", "300")),
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
@given(world=worlds())
def test_no_tree_and_no_output_makes_it_raise(world: tuple[Liar, str | None, str | None, str]) -> None:
    reader, addresses, routes, management_address = world
    assert_sound(read(reader, addresses, routes, management_address))
