# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""image.json, the locks, and what the build's files have to agree about."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.sparkfleet.vllm.plugins.module_utils import _image

IMAGE = Path(__file__).resolve().parents[3] / "files" / "image"
PROOF = {
    "checks": [
        {"name": "imports", "state": "passed", "summary": "torch 2", "figures": {}},
        {
            "name": "code",
            "state": "passed",
            "summary": "native",
            "figures": {"vllm/_C.so": {"sm_90": {}, "sm_120f": {}}, "vllm/_moe_C.so": {"sm_80": {}}},
        },
        {"name": "kernels", "state": "passed", "summary": "", "figures": {"version": "0.1.0"}},
    ]
}


def describe(tmp_path: Path, lock: Path, *arguments: str) -> str:
    (tmp_path / "proof.json").write_text(json.dumps(PROOF))
    (tmp_path / "patches.json").write_text(json.dumps({"applied": ["a"], "sha256": "ab", "entries": []}))
    line = [sys.executable, "-B", str(IMAGE / "describe.py"), "--lock", str(lock), "--variant", "cuda", "--base", "b:1"]
    line += ["--proof", f"{tmp_path}/proof.json", "--patches", f"{tmp_path}/patches.json"]
    line += ["--built", f"{tmp_path}/built.txt", *arguments]
    return subprocess.run(line, check=True, capture_output=True, text=True).stdout


def test_the_description_says_what_is_in_the_image(tmp_path: Path) -> None:
    lock = IMAGE / "cuda" / "requirements-aarch64.lock"
    text = describe(tmp_path, lock, "--build-key", "k", "--kernels-sha256", "cd")
    found: dict[str, Any] = json.loads(text)
    locked = _image.read_lock(lock.read_text())
    assert found["versions"]["vllm"] == locked["vllm"].version
    assert found["versions"]["nccl"] == locked["nvidia-nccl-cu13"].version
    assert all(found["versions"].values()), "the CUDA lock brings all of them"
    assert found["lock"] == {"sha256": hashlib.sha256(lock.read_bytes()).hexdigest()}
    assert found["kernels"] == {"version": "0.1.0", "sha256": "cd"}
    assert found["patches"] == {"applied": ["a"], "sha256": "ab"}
    assert found["architectures"] == {"vllm": ["sm_120f", "sm_80", "sm_90"]}
    assert (found["build_key"], found["variant"], found["base"], found["route"]) == ("k", "cuda", "b:1", "wheel")
    assert found["proof"]["imports"] == {"state": "passed", "summary": "torch 2"}
    assert text == describe(tmp_path, lock, "--build-key", "k", "--kernels-sha256", "cd"), "the same twice"


def test_what_was_built_from_source_replaces_the_lock(tmp_path: Path) -> None:
    (tmp_path / "built.txt").write_text("vllm==0.33.1.dev4\n")
    found = json.loads(describe(tmp_path, IMAGE / "cuda" / "requirements-aarch64.lock"))
    assert (found["route"], found["versions"]["vllm"]) == ("source", "0.33.1.dev4")


def test_an_image_without_kernels_says_so(tmp_path: Path) -> None:
    found = json.loads(describe(tmp_path, IMAGE / "cpu" / "requirements-x86_64.lock"))
    assert found["kernels"] is None
    assert found["versions"]["cuda"] is None


def test_the_machines_of_a_variant_have_the_same_versions() -> None:
    for name in ("requirements", "proof"):
        one, other = (
            {package: found.version for package, found in _image.read_lock(path.read_text()).items()}
            for path in sorted((IMAGE / "cuda").glob(f"{name}-*.lock"))
        )
        common = set(one) & set(other)
        assert len(common) > 1
        assert {package: one[package] for package in common} == {package: other[package] for package in common}


def test_what_proves_the_image_is_what_the_kernels_are_tested_with() -> None:
    kernels = (IMAGE.parent / "kernels" / "requirements-build.lock").read_text()
    for package, found in _image.read_lock((IMAGE / "cuda" / "proof-aarch64.lock").read_text()).items():
        assert f"{package}=={found.version} " in kernels


@pytest.mark.parametrize("variant", ["cpu", "cuda"])
def test_every_file_that_a_build_copies_is_in_the_key(variant: str) -> None:
    dockerfile = (IMAGE / "Dockerfile").read_text()
    copied = [
        word.replace("${VARIANT}", variant)
        for line in re.findall(r"^COPY (?!--from)(.*) \S+$", dockerfile, re.MULTILINE)
        for word in line.split()
    ]
    key = _image.context_files(str(IMAGE), variant)
    brought = {"kernels"}  # by the role, with its hash among the arguments
    for name in set(copied) - brought:
        pattern = re.compile(re.escape(name).replace(r"\*", "[^/]*") + (".*" if name.endswith("/") else ""))
        fitting = [path for path in key if pattern.fullmatch(path)]
        assert fitting or "proof-" in name, f"{name} is copied, and no part of the key"


def test_every_script_that_a_step_runs_is_there() -> None:
    dockerfile = (IMAGE / "Dockerfile").read_text()
    stages = dict(re.findall(r"^FROM scratch AS (files-\S+)$(.*?)(?=^FROM )", dockerfile, re.MULTILINE | re.DOTALL))
    for stage, script in re.findall(r"from=(files-[a-z]+),target=/mnt.*?sh /mnt/(\S+)", dockerfile, re.DOTALL):
        assert script in stages[stage], f"{stage} lacks {script}"
