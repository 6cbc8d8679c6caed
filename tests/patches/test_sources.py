# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The patch catalogue against vLLM's real source distributions: states, transforms, and CMake's architectures.

Needs the network once (sources.py). A state that differs from table.json means that an upstream file moved or that the
catalogue changed: look which, then `python tests/patches/sources.py --write` and `python docs/patch_table.py`.
"""

from __future__ import annotations

import ast
import difflib
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import sources
from patches import __main__ as command
from patches import _core, _edit, catalogue

VERSIONS = tuple(sources.PINNED)
TABLE: dict[str, Any] = json.loads(sources.TABLE.read_text(encoding="utf-8"))
KERNELS_CMAKE = sources.CHECKOUT / ".venv-kernels" / "bin" / "cmake"
CMAKE = str(KERNELS_CMAKE) if KERNELS_CMAKE.exists() else shutil.which("cmake")


@pytest.fixture
def copy(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A version's files, to be changed."""
    return Path(shutil.copytree(sources.source(request.param), tmp_path / "vllm"))


def run(*arguments: str) -> int:
    """Run the command line."""
    return command.main(arguments)


def texts(root: Path) -> dict[str, str]:
    """Return every file of a tree."""
    return {str(path.relative_to(root)): path.read_text("utf-8") for path in root.rglob("*") if path.is_file()}


def needed(version: str) -> list[str]:
    """Return what the table says that a version needs."""
    entries = TABLE[version]["entries"]
    return [name for name, found in entries.items() if found["state"] == _core.NEEDED]


@pytest.mark.parametrize("version", VERSIONS)
def test_the_states_are_those_of_the_table(version: str) -> None:
    assert TABLE[version]["sha256"] == sources.PINNED[version]
    assert sources.findings(sources.source(version)) == TABLE[version]["entries"]


def test_nothing_is_unknown_and_the_newest_needs_nothing() -> None:
    states = {
        (version, name): found["state"] for version in VERSIONS for name, found in TABLE[version]["entries"].items()
    }
    assert [where for where, state in states.items() if state == _core.UNKNOWN] == []
    assert needed(VERSIONS[-1]) == []


def test_every_transform_that_a_version_needs_is_there() -> None:
    wanted = {name for version in VERSIONS for name in needed(version)}
    assert wanted <= {patch.id for patch in catalogue.PATCHES if patch.transform}


@pytest.mark.parametrize(("copy", "version"), [(version, version) for version in VERSIONS], indirect=["copy"])
def test_needed_patches_are_applied_once(copy: Path, version: str, tmp_path: Path) -> None:
    before, report = texts(copy), tmp_path / "report.json"
    assert run("apply", "--source", str(copy), "--report", str(report)) == 0
    done = json.loads(report.read_text())
    assert done["applied"] == needed(version)
    after = texts(copy)
    changed = {path for path in after if after[path] != before.get(path)}
    assert changed == {TABLE[version]["entries"][name]["file"] for name in needed(version)}
    for path in changed:
        lines = [*difflib.unified_diff(before[path].splitlines(), after[path].splitlines(), n=0)][2:]
        assert sum(line[:1] in "+-" for line in lines) <= 4 * len(needed(version)), path
        if path.endswith(".py"):
            ast.parse(after[path])
    # Again: nothing is needed any more, and nothing is touched.
    assert run("apply", "--source", str(copy), "--report", str(report)) == 0
    assert json.loads(report.read_text())["applied"] == []
    assert texts(copy) == after


@pytest.mark.parametrize("copy", VERSIONS[:1], indirect=True)
def test_a_file_that_moved_stops_the_build(copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (copy / "vllm/model_executor/model_loader/weight_utils.py").rename(copy / "vllm/moved.py")
    before = texts(copy)
    assert run("apply", "--source", str(copy), "--report", str(tmp_path / "report.json")) == 1
    assert "fastsafetensors-device" in capsys.readouterr().err
    assert texts(copy) == before
    assert not (tmp_path / "report.json").exists()


# TORCH_CUDA_ARCH_LIST, and what of it vLLM's own CMake functions compile NVFP4 for with CUDA 13.
ARCHS = ("12.0", "12.0f", "12.1", "12.1a", "12.1f")
SCRIPT = """
cmake_minimum_required(VERSION 3.20)
include("{utils}")
foreach(arch {archs})
  string(REPLACE "." "" number "${{arch}}")
  extract_unique_cuda_archs_ascending(archs "-gencode arch=compute_${{number}},code=sm_${{number}}")
  cuda_archs_loose_intersection(archs "{supported}" "${{archs}}")
  cuda_archs_loose_intersection(archs "12.0f" "${{archs}}")
  message("${{arch}}=${{archs}}")
endforeach()
"""


def compiled_for(version: str, archs: tuple[str, ...], tmp_path: Path, also: str = "") -> dict[str, str]:
    """Return what NVFP4 is compiled for, by list; ``also`` is added to the supported architectures."""
    if CMAKE is None:
        pytest.skip("no cmake; make kernels installs one")
    root = sources.source(version)
    found = _edit.supported((root / "CMakeLists.txt").read_text("utf-8"))
    assert found is not None
    supported = ";".join([*found[1], *([also] if also else [])])
    script = tmp_path / "archs.cmake"
    utils = root / "cmake" / "utils.cmake"
    script.write_text(SCRIPT.format(utils=utils, archs=" ".join(archs), supported=supported), encoding="utf-8")
    done = subprocess.run([CMAKE, "-P", str(script)], capture_output=True, text=True, check=True)
    return dict(line.split("=") for line in done.stderr.splitlines())


@pytest.mark.parametrize("version", VERSIONS)
def test_every_allowed_list_gives_the_family(version: str, tmp_path: Path) -> None:
    assert compiled_for(version, ARCHS, tmp_path) == dict.fromkeys(ARCHS, "12.0f")


@pytest.mark.parametrize("version", VERSIONS)
def test_seed_a_s_first_edit_breaks_nvfp4(version: str, tmp_path: Path) -> None:
    got = compiled_for(version, ("12.1", "12.1a"), tmp_path, also="12.1")
    keeps = TABLE[version]["entries"]["arch-suffix"]["state"] == _core.UPSTREAMED
    assert got == ({"12.1": "12.1", "12.1a": "12.1a"} if keeps else {"12.1": "", "12.1a": ""})


@pytest.mark.parametrize("version", VERSIONS)
def test_12_0a_gives_cubins_that_gb10_cannot_run(version: str, tmp_path: Path) -> None:
    keeps = TABLE[version]["entries"]["arch-suffix"]["state"] == _core.UPSTREAMED
    assert compiled_for(version, ("12.0a",), tmp_path) == {"12.0a": "12.0a" if keeps else "12.0f"}
