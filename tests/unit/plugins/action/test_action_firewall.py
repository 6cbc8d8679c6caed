# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The firewall from the controller's side: which rules a node gets, and when they are kept."""

from __future__ import annotations

import typing as t
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from ansible.errors import AnsibleConnectionFailure
from ansible_collections.sparkfleet.vllm.plugins.action import firewall, host_facts
from ansible_collections.sparkfleet.vllm.tests.unit.plugins.module_utils.test_preflight import FIT

Make = t.Callable[..., t.Any]
Answer = dict[str, t.Any] | None  # None: the node cannot be reached

INVENTORY = {"sparks": {"hosts": {"s1": {}, "s2": {}}}}
RAIL = "enp1s0f0np0"
CHANGES: Answer = {"changed": True, "diff": [{"before": "", "after": "rules"}]}
KEPT: Answer = {"changed": True, "kept": True}
LOOK = "see whether sshd listens where you log in, and journalctl -t sparkfleet on it"


class Lab:
    """Two nodes whose preflights have been; answers each step of the module from a list."""

    def __init__(self, controller: t.Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self.controller = controller
        self.calls: list[dict[str, t.Any]] = []
        self.answers: dict[str, list[Answer]] = {"check": [CHANGES], "stage": [{"changed": True}], "confirm": [KEPT]}
        self.now = 0.0
        monkeypatch.setattr(firewall, "time", SimpleNamespace(monotonic=lambda: self.now, sleep=self.sleep))
        self.facts("s1", 11)
        self.facts("s2", 12)

    def facts(self, host: str, number: int, **changed: t.Any) -> None:
        """What tasks registered on a host before."""
        address = f"192.168.177.{number}"
        node = {"address": address, "interface": RAIL, "interfaces": [RAIL]}
        self.controller.facts[host] = {
            "ansible_facts": {"spark_cluster": {"name": "sparks", "head": "s1", "nodes": ["s1", "s2"]}},
            "__host_preflight": {"facts": {"ssh_ports": [22]}},
            "__fabric_preflight": {"node": node, "settings": [], "roce": {}},
            **changed,
        }

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def execute(self, module_name: str, module_args: dict[str, t.Any], task_vars: t.Any) -> dict[str, t.Any]:
        assert module_name == "sparkfleet.vllm.firewall"
        self.calls.append(module_args)
        self.now += 1
        answers = self.answers[module_args["step"]]
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        if answer is None:
            self.now += 5
            raise AnsibleConnectionFailure("timed out")
        return dict(answer)

    def run(self, host: str = "s1", **arguments: t.Any) -> dict[str, t.Any]:
        return dict(self.controller.run(firewall.ActionModule, host, arguments=arguments, execute=self.execute))

    @property
    def steps(self) -> list[str]:
        return [call["step"] for call in self.calls]

    @property
    def rules(self) -> str:
        return str(self.calls[0]["content"])


@pytest.fixture(name="lab")
def fixture_lab(controller: Make, monkeypatch: pytest.MonkeyPatch) -> Lab:
    return Lab(controller(INVENTORY), monkeypatch)


def test_a_node_lets_in_ssh_its_models_and_its_peers(lab: Lab) -> None:
    lab.run("s1")
    head = lab.rules
    assert 'tcp dport { 22 } accept comment "ssh"' in head
    assert 'tcp dport { 8888 } accept comment "API of a model"' in head
    assert f'iifname {{ "{RAIL}" }} ip saddr {{ 192.168.177.12 }} accept' in head
    lab.calls.clear()
    lab.run("s2")
    assert "API" not in lab.rules and "ip saddr { 192.168.177.11 }" in lab.rules


def test_the_models_of_the_cluster_decide_which_api_is_where(lab: Lab) -> None:
    models = [{"leader": "s2", "port": 8889, "host": "0.0.0.0"}, {"leader": "s2", "port": 8890, "host": "127.0.0.1"}]
    cluster = {"name": "sparks", "head": "s1", "nodes": ["s1", "s2"], "models": models}
    for host, number in (("s1", 11), ("s2", 12)):
        lab.facts(host, number, ansible_facts={"spark_cluster": cluster})
    lab.run("s1")
    assert "API" not in lab.rules
    lab.calls.clear()
    lab.run("s2")
    assert 'tcp dport { 8889 } accept comment "API of a model"' in lab.rules


def test_the_owners_word_counts(lab: Lab) -> None:
    lab.run("s2", api_ports=[9000], allow=["3000/tcp"])
    assert 'tcp dport { 9000 } accept comment "API of a model"' in lab.rules
    assert "tcp dport 3000 accept" in lab.rules


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"__host_preflight": {}}, "no port of sshd is known; run the preflight of role host"),
        ({"__host_preflight": {"facts": {"ssh_ports": []}}}, "no port of sshd is known"),
        ({"__fabric_preflight": {"node": {}}}, "the fabric of s1 is not known; run the preflight of role fabric"),
    ],
)
def test_without_what_the_rules_need_there_are_none(lab: Lab, changed: dict[str, t.Any], said: str) -> None:
    lab.facts("s1", 11, **changed)
    result = lab.run()
    assert result["failed"] and result["msg"].startswith(f"s1: no rules for the firewall: {said}")
    assert result["msg"].count("\n") == 1 and lab.calls == []


def test_a_peer_whose_fabric_is_unknown_is_not_left_out_silently(lab: Lab) -> None:
    del lab.controller.facts["s2"]["__fabric_preflight"]
    assert "the fabric of s2 is not known" in lab.run("s1")["msg"]


def test_a_converged_node_is_one_call(lab: Lab) -> None:
    lab.answers["check"] = [{"changed": False, "diff": []}]
    assert lab.run()["changed"] is False
    assert lab.steps == ["check"]


def test_a_change_is_confirmed(lab: Lab) -> None:
    result = lab.run()
    assert (result["changed"], result.get("failed"), result["diff"]) == (True, None, CHANGES and CHANGES["diff"])
    assert lab.steps == ["check", "stage", "confirm"]
    assert {call["content"] for call in lab.calls} == {lab.rules}


def test_removing_asks_for_nothing_but_the_module(lab: Lab) -> None:
    lab.controller.facts["s1"].pop("__host_preflight")
    lab.controller.facts["s1"].pop("__fabric_preflight")
    assert lab.run(state="absent")["changed"] is True
    assert lab.steps == ["check"] and lab.rules == ""


def test_rules_that_nft_refuses_are_one_line(lab: Lab) -> None:
    lab.answers["stage"] = [{"failed": True, "msg": "nft refuses the rules, so nothing was changed: x"}]
    result = lab.run()
    assert result["msg"] == "s1: nft refuses the rules, so nothing was changed: x\n"
    assert result["changed"] is False and "confirm" not in lab.steps


def test_a_node_that_blinks_is_asked_again(lab: Lab) -> None:
    lab.answers.update(stage=[None], confirm=[None, None, KEPT])
    assert lab.run()["changed"] is True


def test_a_node_that_went_back_is_a_failure(lab: Lab) -> None:
    lab.answers["confirm"] = [None, None, {"changed": False, "kept": False}]
    result = lab.run()
    assert result["msg"] == (
        f"s1: let no new connection in after its rules were loaded, and put the old ones back; {LOOK}\n"
    )
    assert result["changed"] is False


def test_a_node_that_stays_away_is_a_failure(lab: Lab) -> None:
    lab.answers["confirm"] = [None]
    result = lab.run()
    assert result["msg"] == (
        f"s1: let no new connection in after its rules were loaded; it puts the old ones back by itself; {LOOK}\n"
    )
    assert lab.now > 60, "it was given the time to come back"


def test_what_is_confirmed_comes_over_a_new_connection(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    entered: list[str] = []

    class New:
        def __init__(self, _connection: t.Any) -> None: ...

        def __enter__(self) -> None:
            entered.append(",".join(lab.steps))

        def __exit__(self, *_error: object) -> None:
            entered.append(",".join(lab.steps))

    monkeypatch.setattr(firewall, "new_connections", New)
    lab.run()
    assert entered == ["check,stage", "check,stage,confirm"]


def test_the_preflight_judges_the_variables_of_the_role(controller: Make, roles: Path) -> None:
    options = {"host_firewall": {"type": "bool"}, "host_firewall_allow": {"type": "list", "elements": "str"}}
    specs = {"argument_specs": {"main": {"options": options}}}
    (roles / "host/meta/argument_specs.yml").write_text(yaml.safe_dump(specs))
    (roles / "host/defaults/main.yml").write_text(yaml.safe_dump({"host_firewall": False, "host_firewall_allow": []}))
    variables = {"host_firewall": "yes", "host_firewall_allow": ["nonsense"], "image_variant": "cpu"}
    made = controller({"sparks": {"hosts": {"s1": variables, "s2": {"image_variant": "cpu"}}}})
    arguments = {"minimum": {"disk_gb": 60, "memory_gb": 16, "docker_version": "24.0"}}

    def problems(host: str) -> list[str]:
        def execute(*_given: t.Any, **_named: t.Any) -> t.Any:
            return {"facts": {**FIT, "clock": 0.0}}

        result = made.run(host_facts.ActionModule, host, arguments=dict(arguments), execute=execute)
        return t.cast("list[str]", result["problems"])

    [line] = problems("s1")
    assert line.startswith("host_firewall_allow: 'nonsense' opens no port")
    assert problems("s2") == []
