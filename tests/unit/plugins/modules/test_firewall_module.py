# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The firewall on a node: what is compared, when the way back is armed, and what stays."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.sparkfleet.vllm.plugins.module_utils import _firewall
from ansible_collections.sparkfleet.vllm.plugins.module_utils._firewall import Inputs, ruleset
from ansible_collections.sparkfleet.vllm.plugins.modules import firewall

OLD = ruleset(Inputs((22,), (), (), ()))
NEW = ruleset(Inputs((22,), (8888,), (), ()))


class Node:
    """A node whose kernel has one table, and whose systemd has one unit and one timer."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.loaded = ""
        self.enabled = False
        self.timer = ""
        self.log: list[str] = []
        self.fails = ""

    def get_bin_path(self, name: str, required: bool = False) -> str:
        return f"/bin/{name}"

    def atomic_move(self, source: str, target: str) -> None:
        shutil.move(source, target)

    def run_command(self, command: Sequence[str], **_given: Any) -> tuple[int, str, str]:
        program, *words = [word.removeprefix("/bin/") for word in command]
        text = " ".join(words)
        self.log.append(f"{program} {text}")
        if self.fails and self.fails in self.log[-1]:
            return 1, "", f"{program} says no\nand more"
        if program == "nft":
            return self.nft(words)
        if program == "systemd-run":
            self.timer = words[-1]
        elif "is-enabled" in words:
            return (0 if self.enabled else 1), "", ""
        elif "enable" in words:
            self.enabled = True
            self.load(Path(_firewall.FILE))
        elif "disable" in words:
            self.enabled = False
            self.loaded = ""
        elif "stop" in words and words[-1].endswith(".timer"):
            self.timer = ""
        return 0, "", ""

    def nft(self, words: list[str]) -> tuple[int, str, str]:
        if words[0] == "list":
            return (0, self.loaded, "") if self.loaded else (1, "", "No such file or directory")
        if words[0] == "delete":
            self.loaded = ""
        elif words[0] in ("--file", "-f"):
            self.load(Path(words[1]))
        return 0, "", ""

    def load(self, file: Path) -> None:
        text = file.read_text()
        self.loaded = "" if text == _firewall.NOTHING else text

    def fire(self) -> None:
        """The timer is due."""
        assert self.timer, "no way back is armed"
        self.load(Path(self.timer.rpartition(" ")[2]))
        self.timer = ""

    def firewall(self, content: str = NEW) -> firewall.Firewall:
        self.params = {"content": content, "confirm_timeout": 60}
        return firewall.Firewall(self)  # type: ignore[arg-type]

    def keep(self, content: str = NEW) -> None:
        """Go through all steps."""
        self.firewall(content).stage()
        self.firewall(content).confirm()

    def files(self) -> list[str]:
        return sorted(str(path.relative_to(self.root)) for path in self.root.rglob("*") if path.is_file())


@pytest.fixture(name="node")
def fixture_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Node:
    monkeypatch.setattr(_firewall, "FILE", str(tmp_path / "etc/firewall.nft"))
    monkeypatch.setattr(firewall, "UNIT_FILE", str(tmp_path / "spark-firewall.service"))
    for name, value in {"STATE": "run", "WANTED": "run/wanted.nft", "BEFORE": "run/before.nft"}.items():
        monkeypatch.setattr(firewall, name, str(tmp_path / value))
    return Node(tmp_path)


def test_a_new_node_differs_and_shows_the_rules(node: Node) -> None:
    found = node.firewall().check()
    assert found["changed"] is True
    assert found["diff"][0]["before"] == "" and found["diff"][0]["after"] == NEW  # type: ignore[index]
    assert node.files() == [] and node.loaded == ""


def test_kept_rules_are_loaded_now_and_at_boot(node: Node) -> None:
    node.keep()
    assert node.loaded == NEW and node.enabled and not node.timer
    assert node.files() == ["etc/firewall.nft", "spark-firewall.service"]
    assert node.firewall().check() == {"changed": False, "diff": []}


@pytest.mark.parametrize(
    "change",
    [
        lambda node: setattr(node, "loaded", ""),
        lambda node: setattr(node, "loaded", OLD),
        lambda node: setattr(node, "loaded", NEW.replace("}\n}", "\ttcp dport 1 accept\n}\n}")),
        lambda node: setattr(node, "enabled", False),
        lambda node: Path(_firewall.FILE).write_text(OLD),
        lambda node: Path(firewall.UNIT_FILE).write_text("other"),
        lambda node: Path(firewall.UNIT_FILE).unlink(),
    ],
    ids=["not loaded", "others loaded", "one more loaded", "not enabled", "other file", "other unit", "no unit"],
)
def test_what_was_changed_is_noticed_and_mended(node: Node, change: Callable[[Node], object]) -> None:
    node.keep()
    change(node)
    assert node.firewall().check()["changed"] is True
    node.keep()
    assert node.firewall().check()["changed"] is False


def test_the_way_back_is_armed_before_the_rules_are_loaded(node: Node) -> None:
    node.firewall().stage()
    order = [line.split()[0] for line in node.log if "--file" in line or "systemd-run" in line]
    assert order == ["nft", "systemd-run", "nft"], "tried, armed, loaded"
    assert "--check" in next(line for line in node.log if "--file" in line)
    assert node.loaded == NEW and node.timer
    assert not Path(_firewall.FILE).exists(), "a reboot has to bring the old rules"


@pytest.mark.parametrize("before", ["", OLD])
def test_without_a_confirmation_the_old_rules_are_back(node: Node, before: str) -> None:
    if before:
        node.keep(before)
    node.firewall().stage()
    node.fire()
    assert node.loaded == before
    assert node.firewall().confirm() == {"changed": False, "kept": False}
    assert node.loaded == before
    assert Path(_firewall.FILE).exists() is bool(before)


def test_a_confirmation_stops_the_timer_first(node: Node) -> None:
    node.firewall().stage()
    node.log.clear()
    node.firewall().confirm()
    assert node.log[0].endswith("stop sparkfleet-firewall-revert.timer")
    assert node.log[1].endswith("stop sparkfleet-firewall-revert.service"), "and waits for what has begun"


def test_a_confirmation_whose_answer_was_lost_can_be_given_again(node: Node) -> None:
    node.keep()
    assert node.firewall().confirm()["kept"] is True


def test_after_a_run_that_was_cut_off_the_way_back_leads_to_what_was_kept(node: Node) -> None:
    node.keep(OLD)
    node.firewall("cut off " + NEW).stage()
    node.firewall().stage()
    node.fire()
    assert node.loaded == OLD


def test_rules_that_nft_refuses_change_nothing(node: Node) -> None:
    node.keep(OLD)
    node.fails = "--check"
    with pytest.raises(firewall.Refusal, match=r"^nft refuses the rules, so nothing was changed: nft says no$"):
        node.firewall().stage()
    assert node.loaded == OLD and not node.timer


def test_without_a_way_back_nothing_is_loaded(node: Node) -> None:
    node.fails = "systemd-run"
    with pytest.raises(firewall.Refusal, match=r"^systemd-run failed: systemd-run says no; see "):
        node.firewall().stage()
    assert node.loaded == ""


def test_removed_nothing_is_left(node: Node) -> None:
    node.keep()
    absent = node.firewall("")
    assert absent.check()["changed"] is True
    absent.remove()
    assert (node.loaded, node.enabled, node.files()) == ("", False, [])
    assert node.firewall("").check()["changed"] is False


def test_a_table_without_files_is_removed_too(node: Node) -> None:
    node.firewall().stage()
    node.firewall("").remove()
    assert (node.loaded, node.timer, node.files()) == ("", "", [])
