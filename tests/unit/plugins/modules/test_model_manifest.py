# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""model_manifest's half on the node."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from ansible_collections.sparkfleet.vllm.tests.unit.module_process import run_module

CONFIG = b"{}"
FILES: dict[str, Any] = {"config.json": [len(CONFIG), hashlib.sha256(CONFIG).hexdigest()]}


def arguments(tmp_path: Path, **more: Any) -> dict[str, Any]:
    return {"path": str(tmp_path / "models" / "tiny"), "files": FILES, **more}


def put(tmp_path: Path, content: bytes = CONFIG) -> Path:
    model = tmp_path / "models" / "tiny"
    model.mkdir(parents=True, exist_ok=True)
    (model / "config.json").write_bytes(content)
    return model


def test_an_absent_model_is_to_be_copied(tmp_path: Path) -> None:
    answer = run_module("model_manifest", arguments(tmp_path), tmp_path)
    assert (answer["transfer"], answer["missing"], answer["problems"]) == (True, ["config.json"], [])
    assert not (tmp_path / "models").exists()


def test_a_verified_model_is_not_read_twice(tmp_path: Path) -> None:
    model = put(tmp_path)
    first = run_module("model_manifest", arguments(tmp_path, required=True), tmp_path)
    assert (first["transfer"], first["hashed"], first["changed"]) == (False, 1, False)
    assert run_module("model_manifest", arguments(tmp_path), tmp_path)["hashed"] == 0
    assert run_module("model_manifest", arguments(tmp_path, verify="full"), tmp_path)["hashed"] == 1
    assert Path(f"{model}.sha256").read_text() == f"{FILES['config.json'][1]}  config.json\n"


def test_check_mode_remembers_nothing(tmp_path: Path) -> None:
    model = put(tmp_path)
    assert run_module("model_manifest", arguments(tmp_path), tmp_path, check=True)["transfer"] is False
    assert [path.name for path in model.parent.iterdir()] == ["tiny"]


def test_a_difference_fails_only_when_it_must_not_be(tmp_path: Path) -> None:
    put(tmp_path, b"[]")
    answer = run_module("model_manifest", arguments(tmp_path), tmp_path)
    assert (answer.get("failed", False), answer["corrupt"]) == (False, ["config.json"])
    answer = run_module("model_manifest", arguments(tmp_path, required=True), tmp_path)
    assert answer["failed"] is True
    assert "config.json (differs)" in answer["msg"]


def test_a_full_disk_is_a_problem(tmp_path: Path) -> None:
    files = {**FILES, "weights.bin": [10**18, "0" * 64]}
    answer = run_module("model_manifest", arguments(tmp_path, files=files), tmp_path)
    assert "GB are free; free some space or set model_root" in answer["problems"][0]


def test_a_missing_rsync_is_a_problem(tmp_path: Path) -> None:
    answer = run_module("model_manifest", arguments(tmp_path), tmp_path, path=str(tmp_path))
    assert answer["problems"] == ["rsync is not installed; apt install rsync"]


def test_a_given_model_is_only_looked_at(tmp_path: Path) -> None:
    given = {"path": str(tmp_path / "models" / "tiny")}
    assert "is no directory" in run_module("model_manifest", given, tmp_path)["problems"][0]
    put(tmp_path)
    answer = run_module("model_manifest", {**given, "required": True}, tmp_path)
    assert (answer["problems"], answer["transfer"], answer["path"]) == ([], False, given["path"])
