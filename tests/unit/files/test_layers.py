# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""layers.py: which file of a Python environment goes into which layer."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

IMAGE = Path(__file__).resolve().parents[3] / "files" / "image"


def load(name: str) -> ModuleType:
    """Import a file of the image's context."""
    spec = importlib.util.spec_from_file_location(name, IMAGE / f"{name}.py")
    if spec is None or spec.loader is None:
        raise ImportError(name)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


layers = load("layers")
TEXT = "# a comment\n\nbig: torch nvidia-*\nrest: *\ntop: vllm\n"


def package(site: Path, name: str, *files: str) -> None:
    """Lay out a distribution with a RECORD, as pip does."""
    info = f"{name.replace('-', '_')}-1.dist-info"
    for file in (*files, f"{info}/RECORD", f"{info}/METADATA"):
        path = site / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{name} {file}")
    rows = [f"{file},sha256=x,1" for file in files] + [f"{info}/METADATA,,", f"{info}/RECORD,,", "gone.py,,"]
    (site / info / "RECORD").write_text("\n".join(rows) + "\n")


@pytest.fixture
def environment(tmp_path: Path) -> Path:
    """Return an environment with four distributions and what a venv has beside them."""
    site = tmp_path / "env" / "lib" / "python3.12" / "site-packages"
    package(site, "torch", "torch/__init__.py", "torch/lib/libtorch.so")
    package(site, "nvidia-cublas", "nvidia/lib/libcublas.so", "nvidia/__init__.py")
    package(site, "other", "other/a.py", "../../../bin/other", "nvidia/other.py", "nvidia/__init__.py")
    package(site, "vllm", "vllm/__init__.py", "../../../bin/vllm")
    (site / "torch" / "__pycache__").mkdir()
    (site / "torch" / "__pycache__" / "__init__.cpython-312.pyc").write_text("code")
    (tmp_path / "env" / "bin" / "python").symlink_to("/usr/bin/python3")
    (tmp_path / "env" / "lib64").symlink_to("lib")
    (tmp_path / "env" / "pyvenv.cfg").write_text("")
    return tmp_path / "env"


def split(environment: Path, text: str, out: Path) -> subprocess.CompletedProcess[str]:
    """Run layers.py as the build does."""
    (out.parent / "layers.txt").write_text(text)
    site = environment / "lib" / "python3.12" / "site-packages"
    line = [
        sys.executable,
        "-B",
        str(IMAGE / "layers.py"),
        str(site),
        str(environment),
        f"{out.parent}/layers.txt",
        str(out),
    ]
    return subprocess.run(line, capture_output=True, text=True, check=False)


def found(out: Path, environment: Path, layer: str) -> set[str]:
    """Return the files of a layer, relative to the environment."""
    top = out / layer / environment.relative_to("/")
    return {path.relative_to(top).as_posix() for path in top.rglob("*") if path.is_symlink() or path.is_file()}


def test_every_file_is_in_the_layer_of_its_package(environment: Path, tmp_path: Path) -> None:
    before = {path.relative_to(environment) for path in environment.rglob("*") if path.is_symlink() or path.is_file()}
    out = tmp_path / "out"
    assert split(environment, TEXT, out).returncode == 0
    site = "lib/python3.12/site-packages"
    assert found(out, environment, "big") == {
        f"{site}/torch/__init__.py",
        f"{site}/torch/__pycache__/__init__.cpython-312.pyc",
        f"{site}/torch/lib/libtorch.so",
        f"{site}/torch-1.dist-info/METADATA",
        f"{site}/torch-1.dist-info/RECORD",
        f"{site}/nvidia/__init__.py",
        f"{site}/nvidia/lib/libcublas.so",
        f"{site}/nvidia_cublas-1.dist-info/METADATA",
        f"{site}/nvidia_cublas-1.dist-info/RECORD",
    }
    assert {"bin/vllm", f"{site}/vllm/__init__.py"} < found(out, environment, "top")
    rest = found(out, environment, "rest")
    assert {"bin/python", "bin/other", "lib64", "pyvenv.cfg", f"{site}/nvidia/other.py"} < rest
    together = [found(out, environment, layer) for layer in ("big", "rest", "top")]
    assert sum(map(len, together)) == len(before)
    assert set().union(*together) == {path.as_posix() for path in before}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a: torch\n", "exactly one layer"),
        ("a: *\nb: *\n", "exactly one layer"),
        ("a: torch *\n", "exactly one layer"),
        ("a: *\na: torch\n", "'a: torch' is no"),
        ("a\nb: *\n", "'a' is no"),
        ("../a: torch\nb: *\n", "is no `name: pattern"),
        ("a: torhc\nb: *\n", "torhc of layer a fits no package; correct or remove it"),
    ],
)
def test_layers_that_make_no_sense_are_one_line(environment: Path, tmp_path: Path, text: str, reason: str) -> None:
    done = split(environment, text, tmp_path / "out")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert reason in done.stderr


@pytest.mark.parametrize("variant", ["cpu", "cuda"])
def test_the_dockerfile_copies_every_layer_in_its_order(variant: str) -> None:
    dockerfile = (IMAGE / "Dockerfile").read_text()
    stage = re.search(rf"^FROM base AS layers-{variant}$(.*?)^FROM ", dockerfile, re.MULTILINE | re.DOTALL)
    assert stage
    copied = re.findall(r"^COPY --from=build /out/([a-z0-9-]+)/ /$", stage[1], re.MULTILINE)
    assert copied == list(layers.read_layers((IMAGE / variant / "layers.txt").read_text()))


@pytest.mark.parametrize("lock", sorted(IMAGE.glob("*/requirements-*.lock")), ids=lambda path: path.stem)
def test_every_pattern_fits_a_package_of_the_lock(lock: Path) -> None:
    names = re.findall(r"^([a-z0-9][a-z0-9-]*)==", lock.read_text(), re.MULTILINE)
    of = layers.assign(names, layers.read_layers((lock.parent / "layers.txt").read_text()))
    assert set(of) == set(names)
