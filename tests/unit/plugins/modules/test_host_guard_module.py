# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The guard on a node: what is written, and that all of it goes again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.sparkfleet.vllm.plugins.module_utils import _guard
from ansible_collections.sparkfleet.vllm.plugins.module_utils._guard import Wanted
from ansible_collections.sparkfleet.vllm.plugins.modules import host_guard

THEIRS = 'EARLYOOM_ARGS="-r 60"\n'
ON = Wanted(earlyoom=True, ssh=True)
GONE = Wanted(earlyoom=False, ssh=False)


class Node:
    """A node with an sshd, and with an earlyoom that is installed and stopped."""

    def __init__(self) -> None:
        self.earlyoom = {"LoadState": "loaded", "ActiveState": "inactive", "UnitFileState": "disabled", "MainPID": "0"}
        self.commands: list[str] = []
        self.fails = ""

    def get_bin_path(self, name: str, required: bool = False) -> str:
        return f"/bin/{name}"

    def atomic_move(self, source: str, target: str) -> None:
        shutil.move(source, target)

    def run_command(self, command: Sequence[str], **_given: Any) -> tuple[int, str, str]:
        if command[0] == "/bin/earlyoom":
            return 0, "", "earlyoom 1.7\n"
        if command[1] == "show":
            ssh = {"LoadState": "loaded", "ActiveState": "inactive", "MainPID": "0"}
            shown = [{"Id": _guard.SSH, **ssh}, {"Id": _guard.EARLYOOM, **self.earlyoom}]
            return 0, "\n\n".join("\n".join(f"{k}={v}" for k, v in block.items()) for block in shown), ""
        self.commands.append(" ".join(command[1:]))
        if self.fails and self.fails in self.commands[-1]:
            return 1, "", "Unit earlyoom.service is masked.\nmore"
        changes = {"enable": ("UnitFileState", "enabled"), "disable": ("UnitFileState", "disabled")}
        changes |= {"restart": ("ActiveState", "active"), "stop": ("ActiveState", "inactive")}
        if command[1] in changes:
            self.earlyoom.update([changes[command[1]]])
        return 0, "", ""

    def bring(self, wanted: Wanted) -> bool:
        """Do what the module does; return whether anything was to be done."""
        guard = host_guard.Guard(self)  # type: ignore[arg-type]
        present = guard.read()
        plan = _guard.plan(wanted, present)
        changed = bool(plan.files or [c for c in plan.commands if c[0] != "restart"])
        guard.apply(plan, present.record)
        return changed


@pytest.fixture(name="root")
def fixture_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, path in {
        "EARLYOOM_FILE": "default/earlyoom",
        "SSH_FILE": "ssh.d/ours.conf",
        "RECORD": "lib/b.json",
    }.items():
        monkeypatch.setattr(_guard, name, str(tmp_path / path))
    (tmp_path / "default").mkdir()
    (tmp_path / "default/earlyoom").write_text(THEIRS)
    return tmp_path


def test_a_node_is_guarded_and_gets_back_what_it_had(root: Path) -> None:
    node = Node()
    assert node.bring(ON)
    assert node.commands == ["daemon-reload", "enable earlyoom.service", "restart earlyoom.service"]
    assert (root / "default/earlyoom").read_text() == _guard.earlyoom_text((1, 7), 4)
    assert (root / "ssh.d/ours.conf").read_text() == _guard.SSH_TEXT
    assert json.loads((root / "lib/b.json").read_text())["earlyoom"]["file"] == THEIRS
    assert (root / "lib/b.json").stat().st_mode & 0o777 == 0o600
    assert not node.bring(ON)
    node.commands.clear()
    assert node.bring(GONE)
    assert node.commands == ["daemon-reload", "disable earlyoom.service", "stop earlyoom.service"]
    assert (root / "default/earlyoom").read_text() == THEIRS
    assert not (root / "ssh.d").exists() and not (root / "lib/b.json").exists()
    assert not node.bring(GONE)


def test_what_was_before_is_noted_before_anything_else(root: Path) -> None:
    node = Node()
    node.fails = "enable"
    with pytest.raises(
        host_guard.Refusal, match=r"^systemctl enable earlyoom.service: Unit earlyoom.service is masked"
    ):
        node.bring(ON)
    node.fails = ""
    node.bring(ON)
    assert json.loads((root / "lib/b.json").read_text())["earlyoom"]["file"] == THEIRS


@pytest.mark.parametrize("text", ["{", "[]"])
def test_a_record_that_cannot_be_understood_is_not_thrown_away(root: Path, text: str) -> None:
    (root / "lib").mkdir()
    (root / "lib/b.json").write_text(text)
    with pytest.raises(host_guard.Refusal, match=r"b\.json cannot be understood \(.+\); remove it"):
        Node().bring(ON)


def test_the_running_sshd_is_adjusted_by_its_process(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []

    class Device:
        def __enter__(self) -> Any:
            return self

        def __exit__(self, *_error: object) -> None: ...

        def write(self, text: str) -> None:
            written.append(text)

    def opened(path: Any, *arguments: Any, **named: Any) -> Any:
        if str(path) == "/proc/0/oom_score_adj":
            return Device()
        return open(path, *arguments, **named)

    monkeypatch.setattr(host_guard, "open", opened, raising=False)
    host_guard.Guard(Node()).apply(_guard.Plan(record={}, files={}, adjust=True), {})  # type: ignore[arg-type]
    assert written == ["-1000"]
