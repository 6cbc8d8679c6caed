# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A secret is written once, for root only, and shows nowhere but in the result that asks for it."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.sparkfleet.vllm.tests.unit import module_process

ME = str(os.getuid())
NOBODY = 65534


def run_module(name: str, arguments: dict[str, Any], tmp_path: Path, check: bool = False) -> dict[str, Any]:
    """Run a module on files that belong to whoever runs the tests; the default, root, may be somebody else."""
    return module_process.run_module(name, {"owner": ME, **arguments}, tmp_path, check=check)


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


# --- a new secret in place of the old ------------------------------------------------------------------------------


def test_rotation_makes_a_new_secret_each_time(tmp_path: Path) -> None:
    path = tmp_path / "token"
    arguments = {"path": str(path), "generate": True}
    first = run_module("secret_file", arguments, tmp_path)
    second = run_module("secret_file", {**arguments, "rotate": True}, tmp_path)
    assert second["changed"] is True
    assert len(bytes.fromhex(second["secret"])) == 32
    assert second["secret"] != first["secret"]
    assert second["revision"] != first["revision"]
    assert path.read_text() == f"{second['secret']}\n"
    assert mode(path) == 0o600
    # The next run, without it, keeps the new one.
    third = run_module("secret_file", arguments, tmp_path)
    assert (third["changed"], third["secret"], third["revision"]) == (False, second["secret"], second["revision"])


def test_rotation_writes_nothing_in_check_mode(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("the-old-one\n")
    path.chmod(0o600)
    arguments = {"path": str(path), "generate": True, "rotate": True}
    answer = run_module("secret_file", arguments, tmp_path, check=True)
    assert (answer["changed"], answer["revision"], path.read_text()) == (True, "", "the-old-one\n")


@pytest.mark.parametrize("arguments", [{"value": "given", "generate": True}, {"value": "given"}, {}])
def test_what_was_not_generated_is_not_rotated(tmp_path: Path, arguments: dict[str, Any]) -> None:
    path = tmp_path / "key"
    path.write_text("given\n")
    path.chmod(0o600)
    answer = run_module("secret_file", {"path": str(path), "rotate": True, **arguments}, tmp_path)
    assert (answer["changed"], path.read_text()) == (False, "given\n")


# --- whose it is ---------------------------------------------------------------------------------------------------

root_only = pytest.mark.skipif(os.getuid() != 0, reason="only root gives files away")


@root_only
@pytest.mark.parametrize("owner", [str(NOBODY), "nobody"])
def test_the_file_is_given_to_its_owner_by_number_or_name(tmp_path: Path, owner: str) -> None:
    path = tmp_path / "key"
    arguments = {"path": str(path), "value": "it", "owner": owner}
    first = run_module("secret_file", arguments, tmp_path)
    assert (first["changed"], path.stat().st_uid, mode(path)) == (True, NOBODY, 0o600)
    second = run_module("secret_file", arguments, tmp_path)
    assert (second["changed"], second["revision"]) == (False, first["revision"])


@root_only
def test_a_wrong_owner_is_repaired_but_not_in_check_mode(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_text("it\n")
    path.chmod(0o600)
    arguments = {"path": str(path), "value": "it", "owner": str(NOBODY)}
    assert run_module("secret_file", arguments, tmp_path, check=True)["changed"] is True
    assert path.stat().st_uid == 0
    assert run_module("secret_file", arguments, tmp_path)["changed"] is True
    assert path.stat().st_uid == NOBODY


@root_only
def test_root_owns_it_unless_told_otherwise(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_text("it\n")
    os.chown(path, NOBODY, -1)
    assert module_process.run_module("secret_file", {"path": str(path), "value": "it"}, tmp_path)["changed"] is True
    assert path.stat().st_uid == 0


def test_an_owner_that_is_nobody_is_told(tmp_path: Path) -> None:
    arguments = {"path": str(tmp_path / "key"), "value": "sk-it", "owner": "no-such-user"}
    answer = run_module("secret_file", arguments, tmp_path)
    assert answer["failed"] is True
    assert "failed to look up user no-such-user" in answer["msg"]
    assert "sk-it" not in json.dumps(answer)


def test_a_secret_of_several_lines_is_kept_once(tmp_path: Path) -> None:
    path, key = tmp_path / "key", "-----BEGIN PRIVATE KEY-----\nMIGH\n-----END PRIVATE KEY-----\n"
    arguments = {"path": str(path), "value": key}
    assert run_module("secret_file", arguments, tmp_path)["changed"] is True
    assert path.read_text() == key
    assert run_module("secret_file", arguments, tmp_path)["changed"] is False
