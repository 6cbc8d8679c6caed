# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A change of addresses from the controller's side: what is confirmed, and what is said when it cannot be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest.mock import MagicMock

import pytest
from ansible.errors import AnsibleConnectionFailure
from ansible_collections.sparkfleet.vllm.plugins.action import fabric_netplan

Answer = dict[str, Any] | None  # None: the node cannot be reached
CHANGES: Answer = {"changed": True, "missing": ["x has no address"], "diff": [{"before": "", "after": "text"}]}
STAGED: Answer = {"changed": True, "phase": "applying"}
APPLYING: Answer = {"phase": "applying", "missing": [], "said": ""}
LACKING: Answer = {"phase": "applying", "missing": ["x has no carrier", "x is down"], "said": ""}
LIVE: Answer = {"phase": "live", "missing": [], "said": ""}
CONFIRMED: Answer = {"changed": True, "phase": "confirmed"}
REVERTING: Answer = {"phase": "reverting"}
REVERTED: Answer = {"phase": "reverted"}
CUT = "spark-01: could not be reached over management within 60 s after its new addresses were applied"
LOOK = "look at 'journalctl -t sparkfleet' on it"


class Node:
    """Answers each step from a list of its own, whose last item goes on for ever, and keeps the time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **answers: Answer | list[Answer]) -> None:
        self.answers = {
            step: list(given) if isinstance(given, list) else [given]
            for step, given in {"check": CHANGES, "stage": STAGED, **answers}.items()
        }
        self.steps: list[str] = []
        self.connections: list[tuple[str, str]] = []
        self.now = 0.0
        monkeypatch.setattr(fabric_netplan.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(fabric_netplan.time, "sleep", self.sleep)
        self.options = {"ssh_args": "-o ControlMaster=auto", "reconnection_retries": 5}
        self.connection = MagicMock()
        self.connection.get_option = self.options.__getitem__
        self.connection.set_option = self.options.__setitem__
        self.connection.reset = lambda: self.steps.append("reset")

    def sleep(self, seconds: float) -> None:
        """Let time pass."""
        self.now += seconds

    def execute(self, module_name: str, module_args: dict[str, Any], task_vars: dict[str, Any]) -> dict[str, Any]:
        """Answer a call of the module."""
        step = module_args["step"]
        self.steps.append(step)
        self.connections.append((step, str(self.options.get("ssh_args"))))
        self.now += 1
        answers = self.answers[step]
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        if answer is None:
            self.now += 5
            raise AnsibleConnectionFailure("timed out")
        return dict(answer)

    def run(self, check_mode: bool = False, **options: Any) -> dict[str, Any]:
        """Run the action."""
        task = MagicMock(args={"directory": "/etc/sparkfleet/atlas", **options}, async_val=0, diff=False)
        task.check_mode = check_mode
        plugin = fabric_netplan.ActionModule(task, self.connection, MagicMock(), MagicMock(), MagicMock(), MagicMock())
        plugin._execute_module = self.execute
        result: dict[str, Any] = plugin.run(task_vars={"inventory_hostname": "spark-01"})
        return result

    @property
    def asked(self) -> list[str]:
        """Return the steps without repetitions."""
        return [step for index, step in enumerate(self.steps) if self.steps[index - 1 : index] != [step]]


@pytest.fixture(name="node")
def fixture_node(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Node]:
    return lambda **answers: Node(monkeypatch, **answers)


def test_a_converged_node_is_one_call(node: Callable[..., Node]) -> None:
    spark = node(check={"changed": False, "missing": [], "diff": []})
    assert spark.run()["changed"] is False
    assert spark.steps == ["check"]


def test_check_mode_shows_the_difference_and_goes_no_further(node: Callable[..., Node]) -> None:
    spark = node()
    result = spark.run(check_mode=True)
    assert (result["changed"], result["diff"][0]["after"], spark.steps) == (True, "text", ["check"])


def test_a_change_is_confirmed_over_a_new_connection(node: Callable[..., Node]) -> None:
    spark = node(wait=[APPLYING, LIVE], confirm=CONFIRMED)
    result = spark.run()
    assert (result["changed"], result.get("failed")) == (True, None)
    assert spark.steps == ["check", "stage", "reset", "wait", "wait", "confirm", "reset"]
    for step, arguments in spark.connections:
        # ssh takes the first value of an option
        own = arguments.startswith("-o ControlMaster=no -o ControlPath=none") and "ControlMaster=auto" in arguments
        assert own is (step in ("wait", "confirm"))
    assert spark.options == {"ssh_args": "-o ControlMaster=auto", "reconnection_retries": 5}


def test_a_node_that_blinks_is_asked_again(node: Callable[..., Node]) -> None:
    spark = node(stage=None, wait=[None, None, LIVE], confirm=CONFIRMED)
    assert spark.run()["changed"] is True


def test_a_confirmation_whose_answer_is_lost_counts(node: Callable[..., Node]) -> None:
    spark = node(wait=[LIVE, CONFIRMED], confirm=None)
    assert spark.run()["changed"] is True
    late = node(wait=[LIVE] + [None] * 12 + [CONFIRMED], confirm=None)
    assert late.run()["changed"] is True
    assert late.now > 60


def test_a_node_that_is_cut_off_says_so_when_it_is_back(node: Callable[..., Node]) -> None:
    spark = node(wait=[None] * 12 + [REVERTING, REVERTED])
    result = spark.run()
    assert (result["failed"], result["changed"]) == (True, False)
    assert result["msg"] == f"{CUT}; it went back to the old ones by itself; {LOOK}\n"
    assert "confirm" not in spark.steps
    assert 60 < spark.now < 120


def test_a_node_that_is_only_slow_is_not_called_unreachable(node: Callable[..., Node]) -> None:
    spark = node(wait=[APPLYING, REVERTED])
    said = "its new addresses could not be confirmed within 60 s; it went back to the old ones by itself"
    assert spark.run()["msg"] == f"spark-01: {said}; {LOOK}\n"


def test_a_node_that_never_comes_back_is_said(node: Callable[..., Node]) -> None:
    spark = node(wait=None)
    assert spark.run()["msg"] == (
        f"{CUT}, nor in the 60 s after that; it should have gone back to the old ones by itself; "
        "look at it on its console ('journalctl -t sparkfleet')\n"
    )
    assert 120 < spark.now < 140


def test_a_node_that_was_rebooted_has_the_old_addresses(node: Callable[..., Node]) -> None:
    spark = node(wait=[None, {"phase": "none"}])
    assert spark.run()["msg"].startswith(f"{CUT}; it went back")


def test_what_is_missing_is_said_and_the_node_goes_back_at_once(node: Callable[..., Node]) -> None:
    spark = node(wait=LACKING, revert=REVERTING)

    def execute(**given: Any) -> dict[str, Any]:
        if given["module_args"]["step"] == "revert":
            spark.answers["wait"] = [REVERTING, REVERTED]
        return Node.execute(spark, **given)

    spark.execute = execute  # type: ignore[method-assign]
    assert spark.run()["msg"] == (
        f"spark-01: after netplan apply x has no carrier; x is down; it went back to the old addresses; {LOOK}\n"
    )
    assert spark.now < 60


def test_a_netplan_that_hangs_is_said(node: Callable[..., Node]) -> None:
    spark = node(wait=[None] * 3 + [APPLYING] * 18 + [REVERTED], revert=REVERTING)
    said = "netplan apply has not finished; it went back to the old addresses"
    assert spark.run()["msg"] == f"spark-01: {said}; {LOOK}\n"


def test_what_netplan_says_is_passed_on(node: Callable[..., Node]) -> None:
    spark = node(wait=[{"phase": "failed", "said": "no good.", "missing": []}, REVERTED], revert=REVERTING)
    assert spark.run()["msg"] == (
        f"spark-01: netplan apply failed: no good; it went back to the old addresses; {LOOK}\n"
    )


@pytest.mark.parametrize("step", ["check", "stage"])
def test_a_refusal_of_the_node_is_one_line(node: Callable[..., Node], step: str) -> None:
    spark = node(**{step: {"failed": True, "msg": "netplan is missing; install it\nmore"}})
    result = spark.run()
    assert (result["failed"], result["msg"]) == (True, "spark-01: netplan is missing; install it\n")
    assert spark.steps[-1] == step


def test_a_module_that_breaks_is_one_line_and_the_node_goes_back(node: Callable[..., Node]) -> None:
    spark = node(wait=[{"failed": True, "module_stderr": "boom\nmore"}, REVERTED], revert=REVERTING)
    assert spark.run()["msg"].startswith("spark-01: boom; it went back to the old addresses")


def test_taking_back_what_is_not_in_force_is_done_at_once(node: Callable[..., Node]) -> None:
    spark = node(stage=CONFIRMED)
    assert spark.run(state="absent")["changed"] is True
    assert spark.steps == ["check", "stage"]


def test_other_connections_than_ssh_are_dropped_too(node: Callable[..., Node]) -> None:
    spark = node(wait=LIVE, confirm=CONFIRMED)
    spark.options.clear()
    assert spark.run()["changed"] is True
    assert spark.options == {}


def test_an_unreachable_node_is_not_this_actions_to_report(node: Callable[..., Node]) -> None:
    with pytest.raises(AnsibleConnectionFailure):
        node(check=None).run()
