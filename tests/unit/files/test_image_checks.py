# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""crosscheck.py and cudacheck.py with stand-ins for uv and Docker: what they ask for, refuse, and leave."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

IMAGE = Path(__file__).resolve().parents[3] / "files" / "image"
UV = """#!/bin/sh
while [ $# -gt 0 ]; do
    if [ "$1" = --target ]; then mkdir -p "$2/ray-2.dist-info"; fi
    if [ "$1" = --target ]; then printf 'Name: ray\\nVersion: %s\\n' "$VERSION" > "$2/ray-2.dist-info/METADATA"; fi
    shift
done
"""
DOCKER = """#!/bin/sh
echo "$@" >> "$CALLS"
case "$1 $2" in
"info --format") echo / ;;
"buildx version") exit 1 ;;
"build --progress=plain") echo "#9 1.2 passed   imports: torch 2"; exit "${BUILD_STATUS:-0}" ;;
"image inspect") echo '[{"Size": 7000000000, "RootFS": {"Layers": ["a", "b"]}}]' ;;
"history --human=false") echo '5000000 COPY /out/torch/ /' ;;
"run --rm") case "$*" in *verify) exit "${VERIFY_STATUS:-0}" ;; esac; echo '{"schema": 1}' ;;
esac
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """Return a checkout with the image's files, a lock of one package, and wheels of the kernels."""
    image = tmp_path / "files" / "image"
    image.mkdir(parents=True)
    for name in ("crosscheck.py", "cudacheck.py", "verify.py", "describe.py", "Dockerfile"):
        shutil.copy(IMAGE / name, image)
    (image / "cuda").mkdir()
    for name in ("requirements-aarch64.lock", f"proof-{os.uname().machine}.lock"):
        (image / "cuda" / name).write_text("ray==2\n")
    (image / "cuda" / "libraries.txt").write_text("")
    dist = tmp_path / "files" / "kernels" / "dist"
    dist.mkdir(parents=True)
    for machine in ("aarch64", "x86_64"):
        with zipfile.ZipFile(dist / f"sparkfleet_kernels-0.1.0-py3-none-manylinux_2_34_{machine}.whl", "w") as wheel:
            wheel.writestr("sparkfleet_kernels/__init__.py", "")
    (tmp_path / "bin").mkdir()
    for name, text in (("uv", UV), ("docker", DOCKER)):
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    return tmp_path


def run(checkout: Path, script: str, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    given = {"PATH": f"{checkout}/bin:{os.environ['PATH']}", "CALLS": str(checkout / "calls"), "VERSION": "2", **env}
    line = [sys.executable, "-B", str(checkout / "files" / "image" / script), *arguments]
    return subprocess.run(line, env=given, capture_output=True, text=True, check=False)


def roomy(checkout: Path, script: str) -> None:
    """Have a script ask for no space: how much is free here is not what is tested."""
    path = checkout / "files" / "image" / script
    text = path.read_text()
    changed = text.replace("NEEDED_GB = 14", "NEEDED_GB = 0").replace("NEEDED_GB = 35", "NEEDED_GB = 0")
    assert changed != text
    path.write_text(changed)


def test_the_aarch64_packages_are_laid_out_checked_and_removed(checkout: Path) -> None:
    roomy(checkout, "crosscheck.py")
    done = run(checkout, "crosscheck.py")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "versions: 1 packages of the lock" in done.stdout
    assert "image-aarch64-check: passed" in done.stdout
    assert [path.name for path in (checkout / "build" / "image-aarch64").iterdir()] == ["proof.json"]


def test_aarch64_packages_that_differ_fail(checkout: Path) -> None:
    roomy(checkout, "crosscheck.py")
    done = run(checkout, "crosscheck.py", VERSION="3")
    assert done.returncode == 1
    assert "problem: versions: ray is 3, the lock says 2" in done.stdout
    assert "image-aarch64-check: failed" in done.stdout


@pytest.mark.parametrize(("script", "machine"), [("crosscheck.py", "aarch64"), ("cudacheck.py", "x86_64")])
def test_without_a_wheel_of_the_kernels_it_says_what_to_do(checkout: Path, script: str, machine: str) -> None:
    roomy(checkout, script)
    for path in (checkout / "files" / "kernels" / "dist").glob(f"*_{machine}.whl"):
        path.unlink()
    done = run(checkout, script)
    assert done.returncode == 2
    assert done.stderr.endswith(f"files/kernels/dist holds 0 wheels for {machine}; run make kernels\n")


@pytest.mark.parametrize("script", ["crosscheck.py", "cudacheck.py"])
def test_without_space_nothing_is_begun(checkout: Path, script: str) -> None:
    path = checkout / "files" / "image" / script
    path.write_text(path.read_text().replace("NEEDED_GB = ", "NEEDED_GB = 1000"))
    done = run(checkout, script)
    assert done.returncode == 2
    assert "GB needed; make room" in done.stderr
    assert "build" not in (checkout / "calls").read_text() if script == "cudacheck.py" else True


def test_the_cuda_image_is_built_checked_and_removed(checkout: Path) -> None:
    roomy(checkout, "cudacheck.py")
    done = run(checkout, "cudacheck.py")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "  build: passed   imports: torch 2" in done.stdout
    assert "built x86_64: 7.00 GB in 2 layers" in done.stdout
    assert "5.0 MB  COPY /out/torch/ /" in done.stdout
    calls = (checkout / "calls").read_text()
    assert "--build-arg=VARIANT=cuda --build-arg=BASE=ubuntu:24.04" in calls
    assert "run --rm --network=none --read-only" in calls
    assert "image rm --force sparkfleet/image-cuda-check\n" in calls
    assert not (checkout / "build" / "image-cuda" / "context").exists()


@pytest.mark.parametrize(("variable", "status"), [("BUILD_STATUS", 2), ("VERIFY_STATUS", 1)])
def test_a_cuda_image_that_fails_is_removed_too(checkout: Path, variable: str, status: int) -> None:
    roomy(checkout, "cudacheck.py")
    done = run(checkout, "cudacheck.py", **{variable: "1"})
    assert done.returncode == status
    assert "image rm --force" in (checkout / "calls").read_text()
