# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""model_manifest's half on the controller, with the node's half played by the test."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ansible.plugins.action import ActionBase
from ansible_collections.sparkfleet.vllm.plugins.action import model_manifest

Run = Any


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Give a function that runs the action; its ``calls`` are the arguments that the node got."""
    calls: list[dict[str, Any]] = []
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(ActionBase, "run", lambda self, tmp, task_vars: {})

    def on_node(self: Any, module_name: str, module_args: dict[str, Any], task_vars: Any) -> dict[str, Any]:
        calls.append(module_args)
        return {"transfer": True, "problems": [], "invocation": {"module_args": dict(module_args)}}

    monkeypatch.setattr(ActionBase, "_execute_module", on_node)

    def start(**args: Any) -> dict[str, Any]:
        action = object.__new__(model_manifest.ActionModule)
        action._task = SimpleNamespace(args=args)
        return action.run(task_vars={})

    start.calls = calls  # type: ignore[attr-defined]
    return start


@pytest.fixture
def source(tmp_path: Path) -> str:
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "config.json").write_text("{}")
    return str(tmp_path / "tiny")


def test_the_node_gets_the_manifest_and_the_result_does_not(run: Run, source: str) -> None:
    result = run(source=source, root="/models", unpack=True)
    assert run.calls[0]["path"] == "/models/tiny"
    assert run.calls[0]["files"]["config.json"][0] == 2
    assert result["directory"] == source
    assert result["problems"] == []
    assert "files" not in result["invocation"]["module_args"]


def test_a_bad_source_is_a_problem_and_the_node_is_left_alone(run: Run, source: str) -> None:
    (Path(source) / "config.json").write_text("{")
    result = run(source=source, root="/models")
    assert "config.json is no valid JSON" in result["problems"][0]
    assert (result["transfer"], result["changed"], "failed" in result, run.calls) == (False, False, False, [])
    assert run(source=source, root="/models", required=True)["failed"] is True


def test_a_given_path_needs_no_source(run: Run) -> None:
    run(source="", path="/models/given")
    assert run.calls == [{"source": "", "path": "/models/given"}]


def test_the_controller_needs_rsync(run: Run, source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert "the controller has no rsync" in run(source=source, root="/models")["problems"][0]


def test_an_unusable_cache_is_said(run: Run, source: str, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("in the way")
    result = run(source=source, root="/models")
    assert "cannot be read" in result["problems"][0]
