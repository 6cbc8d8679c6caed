# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The simulator as a whole: its images' tags, and that it knows nothing of what is run on the nodes."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

import simulator
from simulator import image

PACKAGE = Path(simulator.__file__).parent
FOREIGN = re.compile(r"\b(vllm|ray|nccl|gloo|roles|serve_\w+|image_variant|site\.yml|spark-(ray|vllm))\b", re.I)
AUTHORS = "sparkfleet.vllm authors"


@pytest.mark.parametrize(
    "path",
    [
        path
        for path in sorted(PACKAGE.rglob("*"))
        if path.is_file() and path.suffix != ".pyc" and path.name != "assets.py"
    ],
    ids=lambda path: str(path.relative_to(PACKAGE)),
)
def test_simulator_knows_nothing_of_the_collection(path: Path) -> None:
    found = [line for line in path.read_text().splitlines() if FOREIGN.search(line.replace(AUTHORS, ""))]
    assert found == []


def test_node_tag_depends_on_every_input_and_on_nothing_else() -> None:
    files = {"a": b"1", "b": b"2"}
    tag = image.node_tag("base", "mirror", files)
    assert tag == image.node_tag("base", "mirror", dict(reversed(files.items())))
    others = [
        image.node_tag("other", "mirror", files),
        image.node_tag("base", "elsewhere", files),
        image.node_tag("base", "mirror", {"a": b"1", "b": b"3"}),
        image.node_tag("base", "mirror", {"a": b"1", "c": b"2"}),
        image.node_tag("base", "mirror", {"a": b"1"}),
        image.node_tag("base", "mirror", {"a": b"1b2"}),
    ]
    assert len({tag, *others}) == 7


def test_base_tag_depends_on_the_mirror() -> None:
    assert image.base_tag("http://a.example/debian") != image.base_tag("http://b.example/debian")


def test_every_file_that_the_dockerfile_copies_is_in_the_context() -> None:
    files = image.context_files()
    for line in files["Dockerfile"].decode().splitlines():
        if line.startswith("COPY "):
            for source in line.split()[1:-1]:
                assert source in files or any(name.startswith(f"{source}/") for name in files), line


def test_what_is_installed_on_a_node_runs_without_anything_else() -> None:
    for name in image.PACKAGE_FILES:
        assert (PACKAGE / name).is_file()
    command = [
        "python3",
        "-I",
        "-c",
        f"import sys; sys.path.insert(0, {str(PACKAGE.parent)!r}); "
        "import simulator.node.rdma_sysfs; print(sorted(m for m in sys.modules if m.startswith('simulator')))",
    ]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "['simulator', 'simulator.hardware', 'simulator.node', 'simulator.node.rdma_sysfs']"


def test_no_registry_host_is_written_down() -> None:
    for path in PACKAGE.rglob("*"):
        if path.is_file() and path.suffix != ".pyc":
            assert not re.search(r"deb\.debian|pypi|docker\.io/|ghcr|ubuntu\.com", path.read_text()), path
