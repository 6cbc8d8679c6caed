# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""lock.py with a stand-in for uv: what is asked for each machine, and what becomes of the answer."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

LOCK = Path(__file__).resolve().parents[3] / "files" / "image" / "lock.py"
UV = """#!/bin/sh
echo "$@" >> "$CALLS"
while [ $# -gt 0 ]; do
    if [ "$1" = --constraint ]; then cat "$2" >> "$CALLS"; fi
    shift
done
[ -z "$FAIL" ] || exit 3
printf 'ray==2.60.0 \\\\\\n    --hash=sha256:00\\n    # via\\n    #   -c /tmp/x/constraint.txt\\n    #   vllm\\n'
"""


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """Return a copy of lock.py with the inputs of a variant, and a uv that answers the same to everything."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "uv").write_text(UV)
    (tmp_path / "bin" / "uv").chmod(0o755)
    (tmp_path / "image" / "cuda").mkdir(parents=True)
    (tmp_path / "image" / "lock.py").write_text(LOCK.read_text())
    for name in ("requirements.in", "overrides.in", "proof.in"):
        (tmp_path / "image" / "cuda" / name).write_text("")
    return tmp_path / "image"


def run(image: Path, **env: str) -> tuple[int, list[str]]:
    """Lock the CUDA variant; return the exit status and what uv was asked."""
    calls = image.parent / "calls"
    given = {"PATH": f"{image.parent}/bin:{os.environ['PATH']}", "CALLS": str(calls), "FAIL": "", **env}
    done = subprocess.run([sys.executable, "-B", str(image / "lock.py"), "cuda"], env=given, check=False)
    return done.returncode, calls.read_text().splitlines()


def test_the_second_machine_takes_the_versions_of_the_first(image: Path) -> None:
    status, calls = run(image)
    assert status == 0
    first, second, pins, proof, *_rest = calls
    assert "--python-platform aarch64-manylinux_2_39 --python-version 3.12" in first
    assert "--generate-hashes --only-binary :all:" in first
    assert first.endswith("--override cuda/overrides.in cuda/requirements.in")
    assert "--constraint" not in first
    assert "--python-platform x86_64-manylinux_2_39" in second and "--constraint" in second
    assert pins == "ray==2.60.0"
    assert proof.endswith("cuda/proof.in") and "--override" not in proof and "--constraint" not in proof


def test_a_lock_has_its_header_and_nothing_of_this_machine(image: Path) -> None:
    run(image)
    names = {path.name for path in (image / "cuda").glob("*.lock")}
    assert names == {f"{name}-{one}.lock" for name in ("requirements", "proof") for one in ("aarch64", "x86_64")}
    text = (image / "cuda" / "requirements-x86_64.lock").read_text()
    assert text.startswith("# The lock of the CUDA image: made by `make lock` from requirements.in and overrides.in;")
    assert "constraint" not in text and "    #   vllm\n" in text


def test_a_resolution_that_fails_leaves_the_locks(image: Path) -> None:
    status, _calls = run(image, FAIL="yes")
    assert status == 3
    assert not list((image / "cuda").glob("*.lock"))
