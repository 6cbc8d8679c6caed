# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The action plugin and the module of the lock together, over a real file."""

from __future__ import annotations

import os
import subprocess
import sys
import typing as t
from pathlib import Path

import pytest
from ansible_collections.sparkfleet.vllm.plugins.action import run_lock
from ansible_collections.sparkfleet.vllm.plugins.module_utils import _lock
from ansible_collections.sparkfleet.vllm.tests.unit.plugins.modules.run_module import run_module

Make = t.Callable[..., t.Any]
INVENTORY = {"sparks": {"hosts": {"s1": {}}}}


class Node:
    """Runs the module for the action, as a process of its own, and counts."""

    def __init__(self, controller: t.Any, directory: Path) -> None:
        self.controller = controller
        self.path = directory / "lock" / "run.lock"
        self.calls = 0

    def lock(self, check: bool = False, **arguments: t.Any) -> dict[str, t.Any]:
        def execute(name: str, given: dict[str, t.Any], task_vars: t.Any) -> dict[str, t.Any]:
            self.calls += 1
            return run_module(name.rpartition(".")[2], {**given, "_ansible_check_mode": check})

        self.calls = 0
        arguments = {"path": str(self.path), **arguments}
        result = self.controller.run(run_lock.ActionModule, "s1", arguments=arguments, execute=execute)
        assert result["changed"] is False
        return t.cast("dict[str, t.Any]", result)

    def put(self, run: _lock.Holder) -> None:
        self.path.parent.mkdir()
        self.path.write_text(run.to_json())


@pytest.fixture(name="node")
def fixture_node(controller: Make, tmp_path: Path) -> Node:
    return Node(controller(INVENTORY), tmp_path)


def test_the_lock_names_the_parent_of_the_worker(node: Node) -> None:
    assert node.lock()["held"] is True
    holder = _lock.Holder.from_json(node.path.read_text())
    assert holder is not None
    assert holder.pid == os.getppid()
    assert holder.pid_start == _lock.process_start(os.getppid())
    assert node.lock()["held"] is True
    assert node.calls == 1
    assert node.lock(state="released")["held"] is False
    assert not node.path.exists()


def test_a_living_run_is_in_the_way_in_check_mode_too(node: Node) -> None:
    node.put(_lock.this_run(os.getpid(), "laptop", "alice"))
    for check in (False, True):
        result = node.lock(check=check)
        assert result["failed"] is True
        [line] = result["msg"].splitlines()
        assert line.startswith(f"s1: another run by alice@laptop (pid {os.getpid()}, since ")
        assert node.calls == 1
    node.lock(state="released")
    assert node.path.exists()


def test_a_run_that_is_gone_is_taken_over(node: Node) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        gone = _lock.this_run(process.pid, "laptop", "alice")
    node.put(gone)
    assert node.lock(check=True)["held"] is True
    assert node.path.read_text() == gone.to_json()
    assert node.lock()["held"] is True
    assert node.calls == 2
    assert f'"pid": {os.getppid()},' in node.path.read_text()


def test_force_breaks_the_lock(node: Node) -> None:
    node.put(_lock.this_run(os.getpid(), "laptop", "alice"))
    assert node.lock(force=True)["held"] is True
    assert f'"pid": {os.getppid()},' in node.path.read_text()


def test_a_directory_that_cannot_be_written_is_told_in_a_line(node: Node) -> None:
    node.path.parent.parent.joinpath("lock").write_text("a file")
    result = node.lock()
    assert result["failed"] is True
    assert result["msg"].startswith(f"cannot use the lock {node.path} (")
