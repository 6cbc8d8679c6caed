# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The controller's side of role fabric: how what the nodes say comes together, and what happens when they do not."""

from __future__ import annotations

import copy
import typing as t
from pathlib import Path

import pytest
from ansible.errors import AnsibleConnectionFailure, AnsibleError
from ansible_collections.sparkfleet.vllm.plugins.action import fabric_probe, fabric_read, fabric_settle
from ansible_collections.sparkfleet.vllm.plugins.module_utils._roce import Roce, SysfsReader, read
from ansible_collections.sparkfleet.vllm.tests.unit.sysfs_tree import Function, addr_json, build, route_json, spark

NODES = ("spark-01", "spark-02")
INVENTORY = {"sparks": {"children": {"atlas": {"hosts": {name: {} for name in NODES}}}}}
PORTS = ("enp1s0f0np0", "enP2p1s0f0np0")

Answer = dict[str, t.Any] | Exception


def mac(host: str, interface: str) -> str:
    return f"4c:bb:47:00:{host[-2:]}:{(*PORTS, 'enp1s0f1np1', 'enP2p1s0f1np1').index(interface):02x}"


def roce_of(directory: Path, host: str, functions: list[Function]) -> Roce:
    number = int(host[-2:]) + 10
    facts = read(
        SysfsReader(build(directory / host, functions), "/nonexistent"),
        addr_json(functions, f"10.0.0.{number}/24"),
        route_json(),
        f"10.0.0.{number}",
    )
    for interface in facts["interfaces"]:
        if interface["name"].startswith("en") and interface["name"] != "enP7s7":
            interface["mac"] = mac(host, interface["name"])
    return facts


def neighbours(host: str) -> dict[str, list[str]]:
    """Return who answers on the ports of one of two nodes that one cable joins at their p0."""
    peer = next(name for name in NODES if name != host)
    return {port: [mac(peer, other) for other in PORTS] for port in PORTS}


def probe_of(host: str, **changes: t.Any) -> dict[str, t.Any]:
    found = {
        "neighbours": neighbours(host),
        "reason": "",
        "arp_ignore": [],
        "netplan": {"installed": True, "own": {"text": None}, "files": {}},
        "records": {"gate": None, "collective": None},
    }
    return {"probe": found | changes}


class Fleet:
    """A pair, and what its nodes answer."""

    def __init__(self, controller: t.Any, roce: dict[str, Roce]) -> None:
        self.controller = controller(INVENTORY)
        self.roce: dict[str, Answer] = {name: {"roce": facts} for name, facts in roce.items()}
        self.probe: dict[str, Answer] = {name: probe_of(name) for name in NODES}
        self.asked: dict[str, dict[str, t.Any]] = {}

    def settle(self, **options: t.Any) -> dict[str, dict[str, t.Any]]:
        """Run the preflight's three tasks on all nodes; `options` are fabric_read's."""
        self._register("__read", fabric_read.ActionModule, options, self.roce)
        arguments = {"read": "__read", "directory": "/etc/sparkfleet/atlas"}
        self._register("__probe", fabric_probe.ActionModule, arguments, self.probe)
        arguments = {"read": "__read", "probe": "__probe"}
        self._register("__settled", fabric_settle.ActionModule, arguments, {})
        return {name: self.controller.facts[name]["__settled"] for name in NODES}

    def _register(self, variable: str, action: t.Any, arguments: dict[str, t.Any], answers: dict[str, Answer]) -> None:
        results = {}
        for name in NODES:

            def execute(module_args: dict[str, t.Any], host: str = name, **_more: t.Any) -> dict[str, t.Any]:
                self.asked[host] = module_args
                answer = answers[host]
                if isinstance(answer, Exception):
                    raise answer
                return answer

            results[name] = self.controller.run(action, name, arguments=arguments, execute=execute)
        for name, result in results.items():
            self.controller.facts.setdefault(name, {})[variable] = result


@pytest.fixture(name="pair")
def fixture_pair(controller: t.Any, tmp_path: Path) -> Fleet:
    """A pair as it should be."""
    return Fleet(controller, {name: roce_of(tmp_path, name, spark(host=int(name[-2:]) + 10)) for name in NODES})


@pytest.fixture(name="bare")
def fixture_bare(controller: t.Any, tmp_path: Path) -> Fleet:
    """A pair with one cable and no addresses."""
    functions = spark()
    for function in functions:
        function.addresses = []
    return Fleet(controller, {name: roce_of(tmp_path, name, copy.deepcopy(functions)) for name in NODES})


def test_a_good_pair(pair: Fleet) -> None:
    own = pair.settle()["spark-02"]
    assert (own["problems"], own["refusal"], own["changed"]) == ([], "", False)
    assert own["topology"] == "pair"
    assert own["node"]["address"] == "192.168.177.12"
    assert own["node"]["hcas"] == ["rocep1s0f0", "roceP2p1s0f0"]
    assert [end["host"] for wire in own["wires"] for end in wire["ends"]] == ["spark-01", "spark-02"]
    assert (own["configure_due"], own["netplan"]) == (False, "")
    # Ansible takes away the key that it shows, so the same is kept under another one.
    assert [f"spark-02: {note}" for note in own["notes"]] == own["warnings"]


def test_the_node_is_asked_on_its_ports_for_every_nodes_addresses(pair: Fleet) -> None:
    pair.settle()
    asked = pair.asked["spark-01"]
    assert asked["interfaces"] == list(PORTS)
    nets = ("10.0.0", "192.168.177", "192.168.178")
    assert asked["targets"] == sorted(f"{net}.{number}" for net in nets for number in (11, 12))
    assert asked["directory"] == "/etc/sparkfleet/atlas"


def test_both_rails_of_a_pair_are_to_be_measured_once_in_each_direction(pair: Fleet) -> None:
    settled = pair.settle()
    for name, peer in zip(NODES, reversed(NODES), strict=True):
        own = settled[name]
        assert [(link["interface"], link["peer"], link["measure"]) for link in own["links"]] == [
            (port, peer, True) for port in PORTS
        ]
        assert (own["gate_mode"], own["gate_due"]) == ("bandwidth", True)
    assert settled["spark-01"]["gate_fingerprint"] == settled["spark-02"]["gate_fingerprint"]


def passed(fleet: Fleet, value: bool = True, **options: t.Any) -> None:
    """Have the nodes remember a gate."""
    wanted = fleet.settle(**options)["spark-01"]["gate_fingerprint"]
    record = {"version": 1, "fingerprint": wanted, "passed": value, "problems": ["spark-01: p0 is slow; mend it"]}
    fleet.probe = {name: probe_of(name, records={"gate": record, "collective": None}) for name in NODES}


def test_a_passed_gate_is_not_due_until_something_changes(pair: Fleet) -> None:
    passed(pair)
    assert pair.settle()["spark-02"]["gate_due"] is False
    assert pair.settle(min_gbps=95)["spark-02"]["gate_due"] is True


def test_a_gate_that_one_node_does_not_remember_is_due_on_all(pair: Fleet) -> None:
    # A node that measures alone would find nobody listening.
    passed(pair)
    pair.probe["spark-02"] = probe_of("spark-02")
    assert [own["gate_due"] for own in pair.settle().values()] == [True, True]


def test_a_record_that_is_no_mapping_counts_as_none(pair: Fleet) -> None:
    pair.probe["spark-01"] = probe_of("spark-01", records={"gate": ["x"], "collective": "y"})
    own = pair.settle()["spark-01"]
    assert (own["gate"], own["collective"], own["gate_due"]) == (None, None, True)


def test_a_failed_gate_is_due_unless_its_owner_only_wants_to_be_warned(pair: Fleet) -> None:
    passed(pair, False)
    assert pair.settle()["spark-01"]["gate_due"] is True
    own = pair.settle(gate="warn")["spark-01"]
    assert (own["gate_due"], "p0 is slow; mend it" in own["notes"]) == (False, True)
    assert "p0 is slow; mend it" not in pair.settle(gate="warn")["spark-02"]["notes"]


@pytest.mark.parametrize(("gate", "mode"), [("off", "off"), ("ping", "ping"), ("bandwidth", "bandwidth")])
def test_the_owner_chooses_the_gate(pair: Fleet, gate: str, mode: str) -> None:
    own = pair.settle(gate=gate)["spark-01"]
    assert (own["gate_mode"], own["gate_due"]) == (mode, mode != "off")


def test_missing_addresses_are_refused_with_what_they_should_be(bare: Fleet) -> None:
    settled = bare.settle()
    assert settled["spark-02"]["problems"] == [
        f"{port} has no IPv4 address; it should be 192.168.{net}.12/24, MTU 9000; "
        "set fabric_configure: auto to have it set, or none to leave it as it is"
        for port, net in zip(PORTS, (177, 178), strict=True)
    ]
    assert (settled["spark-02"]["node"], settled["spark-02"]["configure_due"]) == ({}, False)


def test_auto_plans_with_the_addresses_that_it_will_set(bare: Fleet) -> None:
    own = bare.settle(configure="auto")["spark-02"]
    assert own["problems"] == []
    assert own["node"]["address"] == "192.168.177.12"
    assert own["configure_due"] is True
    assert "- 192.168.178.12/24" in own["netplan"]
    assert own["node"]["nccl_env"]["NCCL_IB_HCA"] == "rocep1s0f0,roceP2p1s0f0"


def test_none_judges_neither_cables_nor_addresses(pair: Fleet) -> None:
    pair.probe = {name: probe_of(name, neighbours={port: [] for port in PORTS}) for name in NODES}
    assert pair.settle()["spark-01"]["problems"] != []
    own = pair.settle(configure="none")["spark-01"]
    assert (own["problems"], own["topology"], own["settings"]) == ([], "pair", [])


def test_subnets_of_the_owner_are_taken(bare: Fleet) -> None:
    own = bare.settle(configure="auto", subnets=["10.10.0.0/24", "10.11.0.0/24"])["spark-01"]
    assert [setting["address"] for setting in own["settings"]] == ["10.10.0.11/24", "10.11.0.11/24"]


def test_auto_without_netplan_says_so(bare: Fleet) -> None:
    for name in NODES:
        bare.probe[name] = probe_of(name, netplan={"installed": False, "own": {"text": None}, "files": {}})
    problems = bare.settle(configure="auto")["spark-01"]["problems"]
    assert len(problems) == 2
    assert problems[0].endswith(", and netplan is not installed to set it; set it yourself")


def test_a_foreign_netplan_file_with_another_address_is_named(bare: Fleet) -> None:
    files = {"/etc/netplan/40-cx7.yaml": {"enp1s0f0np0": {"addresses": ["192.168.5.1/24"], "mtu": None}}}
    bare.probe["spark-01"] = probe_of("spark-01", netplan={"installed": True, "own": {"text": None}, "files": files})
    problems = bare.settle(configure="auto")["spark-01"]["problems"]
    assert len(problems) == 1
    assert "/etc/netplan/40-cx7.yaml gives it 192.168.5.1/24" in problems[0]


def test_cables_that_cannot_be_seen_are_noted_and_the_addresses_decide(pair: Fleet) -> None:
    pair.probe = {name: probe_of(name, neighbours=None, reason="raw sockets need root") for name in NODES}
    own = pair.settle()["spark-01"]
    assert (own["problems"], own["topology"]) == ([], "pair")
    assert "the cables were not checked: raw sockets need root" in own["notes"]


def test_a_probe_that_fails_is_a_warning(pair: Fleet) -> None:
    pair.probe["spark-01"] = {"failed": True, "msg": "sudo: a password is required.\nmore"}
    settled = pair.settle()
    assert pair.controller.facts["spark-01"]["__probe"]["warnings"] == [
        "spark-01: its cables could not be looked at: sudo: a password is required"
    ]
    assert settled["spark-01"]["problems"] == []


def test_twins_in_one_subnet_are_refused(pair: Fleet, tmp_path: Path) -> None:
    functions = spark(host=12)
    functions[2].addresses = ["192.168.177.112/24"]
    pair.roce["spark-02"] = {"roce": roce_of(tmp_path / "again", "spark-02", functions)}
    problems = pair.settle()["spark-02"]["problems"]
    assert any("enP2p1s0f0np0 is in the same subnet 192.168.177.0/24" in problem for problem in problems)
    assert pair.settle(configure="auto")["spark-02"]["problems"] == []


def test_a_refusal_of_the_cluster_is_not_blamed_on_the_other_nodes(bare: Fleet) -> None:
    settled = bare.settle(configure="auto", subnets=["10.0.0.0/24", "10.1.0.0/24"])
    assert len(settled["spark-01"]["problems"]) == 1
    assert "10.0.0.0/24" in settled["spark-01"]["problems"][0]
    waiting = settled["spark-02"]
    assert (waiting["problems"], waiting["node"], waiting["configure_due"]) == ([], {}, False)
    assert waiting["refusal"] == ("spark-02: the fabric of its cluster is refused; see what is said of the other nodes")


@pytest.mark.parametrize("configure", ["keep", "auto"])
def test_a_twin_without_carrier_is_a_matter_of_the_cable(pair: Fleet, tmp_path: Path, configure: str) -> None:
    functions = spark(host=12)
    functions[2].up, functions[2].addresses = False, []
    pair.roce["spark-02"] = {"roce": roce_of(tmp_path / "again", "spark-02", functions)}
    problems = pair.settle(configure=configure)["spark-02"]["problems"]
    assert len(problems) == 1
    assert "its twin enP2p1s0f0np0" in problems[0] and "no carrier" in problems[0]


def test_a_second_cable_without_addresses_is_left_alone(pair: Fleet, tmp_path: Path) -> None:
    for name in NODES:
        functions = spark(host=int(name[-2:]) + 10)
        for function in functions:
            function.up = True
        pair.roce[name] = {"roce": roce_of(tmp_path / "two", name, functions)}
        peer = next(other for other in NODES if other != name)
        second = ("enp1s0f1np1", "enP2p1s0f1np1")
        seen = neighbours(name) | {port: [mac(peer, other) for other in second] for port in second}
        pair.probe[name] = probe_of(name, neighbours=seen)
    own = pair.settle()["spark-01"]
    assert own["problems"] == []
    assert own["node"]["hcas"] == ["rocep1s0f0", "roceP2p1s0f0"]
    assert len(pair.settle(configure="auto")["spark-01"]["settings"]) == 4


def test_an_unreachable_node_is_not_reported_here(pair: Fleet) -> None:
    pair.roce["spark-02"] = AnsibleConnectionFailure("no route")
    settled = pair.settle()
    gone = settled["spark-02"]
    assert (gone["problems"], gone["node"]) == ([], {})
    assert gone["refusal"] == "spark-02: the fabric could not be read; check that the host answers"
    assert settled["spark-01"]["node"]["address"] == "192.168.177.11"


@pytest.mark.parametrize("answer", [{"failed": True, "msg": "no Python.\nmore"}, AnsibleError("no Python")])
def test_a_node_that_cannot_run_the_module_is_one_line(pair: Fleet, answer: Answer) -> None:
    pair.roce["spark-01"] = answer
    result = pair.settle()["spark-01"]
    assert len(result["problems"]) == 1
    assert result["problems"][0].startswith("the fabric could not be read: no Python; ")
    assert result["refusal"] == f"spark-01: {result['problems'][0]}"


def test_options_reach_the_plan(pair: Fleet) -> None:
    own = pair.settle(interface="enP7s7", nccl_debug="INFO", extra_env={"A": "1"})["spark-01"]
    assert own["node"]["interface"] == "enP7s7"
    assert (own["node"]["nccl_env"]["NCCL_DEBUG"], own["node"]["nccl_env"]["A"]) == ("INFO", "1")
    # Nothing but the network that the owner chose is asked for, and without RDMA it need not be fast.
    assert [(link["interface"], link["measure"]) for link in own["links"]] == [("enP7s7", True)]
    assert own["gate_mode"] == "ping"


def test_a_given_node_is_checked(pair: Fleet) -> None:
    given = {"address": "192.168.177.12", "interface": "enp1s0f0np0"}
    settled = pair.settle(given=given)
    assert len(settled["spark-01"]["problems"]) == 1
    assert settled["spark-02"]["node"] == {
        **given,
        "interfaces": ["enp1s0f0np0"],
        "hcas": [],
        "devices": [],
        "nccl_env": {},
    }
