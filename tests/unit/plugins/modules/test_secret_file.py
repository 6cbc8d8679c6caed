# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A secret is written once, for root only, and shows nowhere but in the result that asks for it."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest
from ansible_collections.sparkfleet.vllm.tests.unit.module_process import run_module


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_token_is_made_once(tmp_path: Path) -> None:
    path = tmp_path / "etc" / "token"
    arguments = {"path": str(path), "generate": True}
    first = run_module("secret_file", arguments, tmp_path)
    assert first["changed"] is True
    assert len(bytes.fromhex(first["secret"])) == 32
    assert path.read_text() == f"{first['secret']}\n"
    assert mode(path) == 0o600
    assert mode(path.parent) == 0o750
    second = run_module("secret_file", arguments, tmp_path)
    assert (second["changed"], second["secret"], second["revision"]) == (False, first["secret"], first["revision"])


def test_check_mode_writes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "etc" / "token"
    answer = run_module("secret_file", {"path": str(path), "generate": True}, tmp_path, check=True)
    assert (answer["changed"], answer["revision"], path.parent.exists()) == (True, "", False)


def test_a_given_secret_replaces_another_and_is_never_shown(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_text("the-old-one\n")
    path.chmod(0o644)
    arguments = {"path": str(path), "value": "sk-the-new-one", "_ansible_diff": True}
    first = run_module("secret_file", arguments, tmp_path)
    assert first["changed"] is True
    assert path.read_text() == "sk-the-new-one\n"
    assert mode(path) == 0o600
    assert "secret" not in first
    assert "new-one" not in json.dumps(first)
    assert "old-one" not in json.dumps(first)
    assert first["diff"]["before"] != first["diff"]["after"]
    second = run_module("secret_file", arguments, tmp_path)
    assert (second["changed"], second["revision"]) == (False, first["revision"])
    assert second["diff"]["before"] == second["diff"]["after"]


def test_the_revision_changes_with_the_content(tmp_path: Path) -> None:
    revisions = {
        run_module("secret_file", {"path": str(tmp_path / "key"), "value": value}, tmp_path)["revision"]
        for value in ("one", "two")
    }
    assert len(revisions) == 2


def test_loose_permissions_are_repaired(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_text("it\n")
    path.chmod(0o644)
    assert run_module("secret_file", {"path": str(path), "value": "it"}, tmp_path)["changed"] is True
    assert mode(path) == 0o600


@pytest.mark.parametrize("content", [None, "", "\n"])
def test_no_secret_at_all_is_refused(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "key"
    if content is not None:
        path.write_text(content)
    answer = run_module("secret_file", {"path": str(path)}, tmp_path)
    assert answer["failed"] is True
    assert "no secret was given" in answer["msg"]
