# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The controller's side of role image: what is wrong before anything is changed."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
from ansible.errors import AnsibleConnectionFailure
from ansible_collections.sparkfleet.vllm.plugins.action import image_state

ID = "sha256:" + "1" * 64
NODE: dict[str, Any] = {
    **image_state.NOTHING,
    "machine": "x86_64",
    "docker_root": "/var/lib/docker",
    "free_bytes": 10**12,
    "pull_error": "",
}


@pytest.fixture
def context(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return an image directory whose lock has one wheel, and a wheelhouse beside it that holds it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    digest = hashlib.sha256(b"wheel").hexdigest()
    (tmp_path / "wheels").mkdir()
    (tmp_path / "wheels" / "ray-1-py3-none-any.whl").write_bytes(b"wheel")
    directory = tmp_path / "image"
    (directory / "cpu").mkdir(parents=True)
    (directory / "Dockerfile").write_text("FROM scratch\n")
    (directory / "cpu" / "requirements-x86_64.lock").write_text(f"ray==1 --hash=sha256:{digest}\n")
    return directory


def state(node: dict[str, Any] | Exception, **options: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Run image_state on a node that answers `node`; return its result and what the node was asked."""
    task = MagicMock(args=options, async_val=0, check_mode=False, diff=False)
    plugin = image_state.ActionModule(task, MagicMock(), MagicMock(), MagicMock(), MagicMock(), MagicMock())
    plugin._execute_module = MagicMock(side_effect=[node])
    result: dict[str, Any] = plugin.run(task_vars={})
    calls = plugin._execute_module.call_args_list
    return result, calls[0].kwargs["module_args"] if calls else {}


def build(context: Path, node: dict[str, Any] | None = None, **options: Any) -> dict[str, Any]:
    """Return the result for a node that would build."""
    given = {"directory": str(context), "variant": "cpu", "base": "debian:12", "builds": True, **options}
    return state(NODE | (node or {}), **given)[0]


def test_a_build_that_can_start_has_no_problem(context: Path) -> None:
    result = build(context, wheelhouse=str(context.parent / "wheels"))
    assert result["problems"] == []
    assert result["plan"]["args"]["BASE"] == "debian:12"


def test_the_node_is_asked_for_the_key_of_the_plan(context: Path) -> None:
    result, asked = state(NODE, directory=str(context), variant="cpu", base="debian:12", tag="t")
    assert (asked["key"], asked["tag"], asked["reference"]) == (result["plan"]["key"], "t", "")


def test_any_change_of_the_context_changes_the_key(context: Path) -> None:
    before = build(context)["plan"]["key"]
    (context / "Dockerfile").write_text("FROM scratch\nLABEL a=b\n")
    assert build(context)["plan"]["key"] != before


def test_a_wheelhouse_lacking_a_wheel_is_one_line(context: Path) -> None:
    wheels = context.parent / "wheels"
    (wheels / "ray-1-py3-none-any.whl").unlink()
    assert build(context, wheelhouse=str(wheels))["problems"] == [
        f"the wheelhouse {wheels} lacks ray 1; fill it from the lock of the variant"
    ]


def test_a_wheel_with_another_hash_is_one_line(context: Path) -> None:
    wheels = context.parent / "wheels"
    (wheels / "ray-1-py3-none-any.whl").write_bytes(b"other")
    assert "hash other than the lock's" in build(context, wheelhouse=str(wheels))["problems"][0]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"wheelhouse": "/nowhere"}, "image_wheelhouse /nowhere cannot be read"),
        ({"base_archive": "/nowhere.tar"}, "image_base_archive /nowhere.tar cannot be read"),
        ({"ca_file": "/nowhere.pem"}, "image_ca_file /nowhere.pem is no file"),
        ({"base": ""}, "image_base is empty"),
        ({"variant": "cuda"}, "cannot be read"),
    ],
)
def test_what_a_build_lacks_on_the_controller_is_one_line(context: Path, options: dict[str, Any], reason: str) -> None:
    problems = build(context, **options)["problems"]
    assert len(problems) == 1
    assert reason in problems[0]


def test_a_controller_without_rsync_is_one_line(context: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _name: None)
    assert build(context)["problems"] == ["rsync is missing on the controller; install it (package rsync)"]


@pytest.mark.parametrize("node", [{"images": [ID], "image": ID}, {"engine_error": "stopped"}])
def test_what_only_a_build_needs_is_not_asked_without_one(context: Path, node: dict[str, Any]) -> None:
    assert build(context, node, wheelhouse="/nowhere")["problems"] == []


def test_a_node_that_gets_a_copy_needs_no_wheels(context: Path) -> None:
    assert build(context, builds=False, wheelhouse="/nowhere")["problems"] == []


def test_a_given_image_needs_no_directory() -> None:
    result, asked = state(NODE | {"pull_error": "an ID cannot be pulled"}, reference=ID)
    assert (asked["reference"], asked["key"], result["plan"]) == (ID, "", {})
    # Another node may have it, which the role finds out.
    assert result["problems"] == []
    assert "is not on the node" in result["absence"]


def test_nothing_is_judged_where_only_the_state_is_asked() -> None:
    assert state(NODE | {"free_bytes": 0})[0]["problems"] == []


def test_an_unreachable_node_is_not_this_tasks_to_report(context: Path) -> None:
    result, _asked = state(AnsibleConnectionFailure("no route"), directory=str(context), variant="cpu", base="b")
    assert result["problems"] == []
    assert result["engine_error"]


def test_a_module_that_fails_is_said_in_one_line() -> None:
    assert state({"failed": True, "msg": "no python\nTraceback"}, reference=ID)[0]["engine_error"] == "no python"
