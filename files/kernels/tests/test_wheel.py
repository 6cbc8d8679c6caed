# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The two wheels that ``make kernels`` built: what is in them, what they need, and what their device code is for.

SPARKFLEET_KERNELS_DIST names another folder with wheels. A wheel that is missing is a failure.
"""

from __future__ import annotations

import ast
import configparser
import email
import hashlib
import io
import os
import re
import subprocess
import sys
import zipfile
from collections import Counter
from email.message import Message
from pathlib import Path

import pytest
import torch
from elftools.elf.dynamic import DynamicSection
from elftools.elf.elffile import ELFFile
from elftools.elf.gnuversions import GNUVerNeedSection
from elftools.elf.sections import SymbolTableSection

PROJECT = Path(__file__).resolve().parents[1]
REPOSITORY = PROJECT.parents[1]
DIST = Path(os.environ.get("SPARKFLEET_KERNELS_DIST", PROJECT / "dist"))
VERSION = "0.1.0"
PACKAGE = "sparkfleet_kernels"
LIBRARY = f"{PACKAGE}/libsparkfleet_kernels.so"
DIST_INFO = f"{PACKAGE}-{VERSION}.dist-info"
MACHINES = {"x86_64": "EM_X86_64", "aarch64": "EM_AARCH64"}
#: What cuobjdump calls them; sm_120f is the family's code, which runs on 12.0 and 12.1.
ARCHITECTURES = {"sm_90", "sm_120f", "sm_121a"}
#: The newest versions of manylinux_2_34.
NEWEST = {"GLIBC": (2, 34), "GLIBCXX": (3, 4, 29), "CXXABI": (1, 3, 13), "GCC": (12,)}
#: Their presence is what tells code for 121a and 120f from code for plain 121: block-scaled MMA, and FP4 conversions.
NATIVE = {"OMMA": r"\bOMMA\.SF\.\S*E2M1\.E2M1\.UE4M3\.4X\b", "F2FP": r"\bF2FP\.\S*E2M1\S*"}


def wheel_path(machine: str) -> Path:
    name = f"{PACKAGE}-{VERSION}-py3-none-manylinux_2_34_{machine}.whl"
    found = sorted(path.name for path in DIST.glob(f"*_{machine}.whl"))
    assert found == [name], f"{DIST} holds {found}; `make kernels` builds {name}"
    return DIST / name


@pytest.fixture(scope="module", params=MACHINES)
def machine(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def wheel(machine: str) -> zipfile.ZipFile:
    return zipfile.ZipFile(wheel_path(machine))


@pytest.fixture(scope="module")
def library(wheel: zipfile.ZipFile) -> bytes:
    return wheel.read(LIBRARY)


@pytest.fixture(scope="module")
def elf(library: bytes) -> ELFFile:
    return ELFFile(io.BytesIO(library))


def headers(wheel: zipfile.ZipFile, name: str) -> Message:
    return email.message_from_string(wheel.read(f"{DIST_INFO}/{name}").decode())


# --- the wheel ------------------------------------------------------------------------------------------------------


def test_tag(wheel: zipfile.ZipFile, machine: str) -> None:
    content = headers(wheel, "WHEEL")
    assert content.get_all("Tag") == [f"py3-none-manylinux_2_34_{machine}"]
    assert content["Root-Is-Purelib"] == "false"


def test_contents_are_the_sources_and_the_library(wheel: zipfile.ZipFile) -> None:
    sources = (path for path in (PROJECT / "src").rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    expected = {path.relative_to(PROJECT / "src").as_posix(): path.read_bytes() for path in sources}
    names = [name for name in wheel.namelist() if not name.startswith(f"{DIST_INFO}/") and not name.endswith("/")]
    packed = {name: wheel.read(name) for name in names}
    assert set(packed) - set(expected) == {LIBRARY}
    assert {name: packed.get(name) for name in expected} == expected


def test_metadata(wheel: zipfile.ZipFile) -> None:
    metadata = headers(wheel, "METADATA")
    assert (metadata["Name"], metadata["Version"]) == ("sparkfleet-kernels", VERSION)
    assert metadata.get_all("Requires-Dist") == ["torch>=2.11"]
    assert metadata["Requires-Python"] == ">=3.10"
    assert f'__version__ = "{VERSION}"' in wheel.read(f"{PACKAGE}/__init__.py").decode()
    assert metadata["License-Expression"] == "GPL-3.0-or-later"


def test_entry_point_of_vllm_names_a_function_that_is_there(wheel: zipfile.ZipFile) -> None:
    points = configparser.ConfigParser()
    points.read_string(wheel.read(f"{DIST_INFO}/entry_points.txt").decode())
    assert points.sections() == ["vllm.general_plugins"]
    module, _colon, function = points["vllm.general_plugins"][PACKAGE].partition(":")
    body = ast.parse(wheel.read(module.replace(".", "/") + ".py")).body
    assert function in {node.name for node in body if isinstance(node, ast.FunctionDef)}


# --- the library ----------------------------------------------------------------------------------------------------


def test_machine_and_what_is_left_out(elf: ELFFile, machine: str) -> None:
    assert elf["e_machine"] == MACHINES[machine]
    assert elf["e_type"] == "ET_DYN"
    names = {section.name for section in elf.iter_sections()}
    assert names.isdisjoint({".symtab", ".debug_info"}), "the library is not stripped"
    assert ".nv_fatbin" in names


def test_needed_libraries(elf: ELFFile, machine: str) -> None:
    dynamic = elf.get_section_by_name(".dynamic")
    assert isinstance(dynamic, DynamicSection)
    needed = {tag.needed for tag in dynamic.iter_tags("DT_NEEDED")}
    system = {"libc.so.6", "libstdc++.so.6", "libgcc_s.so.1"}
    loaders = {"ld-linux-x86-64.so.2"} if machine == "x86_64" else {"ld-linux-aarch64.so.1"}
    # Neither CUDA's runtime nor libtorch_cuda: it loads where there is no GPU. libm and the loader are optional.
    assert needed - loaders - {"libm.so.6"} == {"libtorch_cpu.so", *system}
    tags = {tag.entry.d_tag for tag in dynamic.iter_tags()}
    assert tags.isdisjoint({"DT_RPATH", "DT_RUNPATH"})


def test_no_symbol_is_newer_than_the_tag(elf: ELFFile) -> None:
    section = elf.get_section_by_name(".gnu.version_r")
    assert isinstance(section, GNUVerNeedSection)
    needed = [version.name for _need, versions in section.iter_versions() for version in versions]
    seen = Counter()
    for version in needed:
        family, _sep, number = version.partition("_")
        assert tuple(map(int, number.split("."))) <= NEWEST[family], version
        seen[family] += 1
    assert seen["GLIBC"] and seen["GLIBCXX"]


def symbols(elf: ELFFile, defined: bool) -> set[str]:
    table = elf.get_section_by_name(".dynsym")
    assert isinstance(table, SymbolTableSection)
    strong = (symbol for symbol in table.iter_symbols() if symbol.name and symbol["st_info"]["bind"] == "STB_GLOBAL")
    return {symbol.name for symbol in strong if (symbol["st_shndx"] != "SHN_UNDEF") == defined}


@pytest.fixture(scope="module")
def torch_symbols() -> set[str]:
    with (Path(torch.__file__).parent / "lib" / "libtorch_cpu.so").open("rb") as file:
        return symbols(ELFFile(file), defined=True)


def test_python_is_not_needed_and_torch_has_what_is(elf: ELFFile, torch_symbols: set[str]) -> None:
    undefined = symbols(elf, defined=False)
    assert not [name for name in undefined if re.match(r"_?Py", name)]
    # Not one C++ name of torch: those change from version to version.
    assert not [name for name in undefined if name.startswith("_Z") and re.search(r"torch|c10|aten", name)]
    of_torch = {name for name in undefined if "torch" in name}
    assert of_torch
    assert of_torch <= torch_symbols
    # All others have a version and belong to the system's libraries; CUDA's are inside.
    assert not [name for name in undefined if name.startswith(("cuda", "cu", "nv"))]


def test_exports_are_the_two_functions(elf: ELFFile) -> None:
    exported = {name for name in symbols(elf, defined=True) if not name.startswith("_ZNSt")}
    assert exported == {"sparkfleet_kernels_variant", "sparkfleet_kernels_variants"}


def test_no_folder_of_the_build_machine_is_named(library: bytes) -> None:
    for folder in (REPOSITORY, Path(sys.prefix), Path.home()):
        assert f"{folder}/".encode() not in library


# --- the device code ------------------------------------------------------------------------------------------------


def cuobjdump(*arguments: str, folder: Path) -> str:
    """Run cuobjdump in ``folder``; its output."""
    (program,) = Path(sys.prefix).glob("lib/python3*/site-packages/nvidia/cu13/bin/cuobjdump")
    path = f"{program.parent}:{os.environ['PATH']}"  # nvdisasm is beside it
    environment = {**os.environ, "PATH": path}
    done = subprocess.run(
        [str(program), *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def device_code(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return a folder for each machine with the library and its cubins, which carry the architecture in their names."""
    folders = {}
    for name in MACHINES:
        folders[name] = tmp_path_factory.mktemp(name)
        (folders[name] / "library.so").write_bytes(zipfile.ZipFile(wheel_path(name)).read(LIBRARY))
        cuobjdump("--extract-elf", "all", "library.so", folder=folders[name])
    return folders


def test_architectures_are_exactly_these(device_code: dict[str, Path], machine: str) -> None:
    text = cuobjdump("library.so", folder=device_code[machine])
    assert "ptx" not in text.lower()
    count = Counter(re.findall(r"^arch = (\S+)$", text, re.MULTILINE))
    assert set(count) == ARCHITECTURES  # no plain sm_121, no sm_120a
    assert len(set(count.values())) == 1, f"a source was compiled for some of them only: {count}"


def test_both_wheels_have_the_same_device_code(device_code: dict[str, Path]) -> None:
    x86_64, aarch64 = (
        sorted(hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.glob("*.cubin"))
        for folder in device_code.values()
    )
    assert x86_64 and x86_64 == aarch64


@pytest.mark.parametrize("architecture", ["sm_121a", "sm_120"])  # the name of 120f's cubins lacks the f
def test_fp4_instructions_are_native(device_code: dict[str, Path], architecture: str) -> None:
    folder = device_code["x86_64"]
    found: set[str] = set()
    for cubin in sorted(folder.glob(f"*.{architecture}.cubin"), key=lambda path: path.stat().st_size):
        sass = cuobjdump("--dump-sass", cubin.name, folder=folder)
        found |= {name for name, pattern in NATIVE.items() if re.search(pattern, sass)}
        if found == set(NATIVE):
            return
    raise AssertionError(f"{architecture} has {found or 'none'} of them")


# --- in use ---------------------------------------------------------------------------------------------------------

USE = """
import ctypes, sys, torch, sparkfleet_kernels.ops
from pathlib import Path
from torch._subclasses.fake_tensor import FakeTensorMode
assert Path(sparkfleet_kernels.ops.__file__).is_relative_to(sys.prefix), sparkfleet_kernels.ops.__file__
assert not torch.cuda.is_available()
gemm = torch.ops.sparkfleet_kernels.nvfp4_gemm_a16
def arguments(device):
    of = {"device": device}
    return (torch.empty(3, 192, dtype=torch.bfloat16, **of), torch.empty(77, 96, dtype=torch.uint8, **of),
            torch.empty(128, 12, dtype=torch.uint8, **of), torch.ones(1, **of))
with FakeTensorMode():
    out = gemm(*arguments("cuda"))
    assert (out.shape, out.dtype, out.device.type) == ((3, 77), torch.bfloat16, "cuda"), out
try:
    gemm(*arguments("cpu"))
except NotImplementedError as error:
    assert "'CPU' backend" in str(error), error
else:
    raise AssertionError("ran on the CPU")
library = ctypes.CDLL(str(sparkfleet_kernels.ops.library_path()))
assert library.sparkfleet_kernels_variants(None, 0) > 0
print("in use")
"""


def test_wheel_installs_beside_a_cpu_torch_and_its_fakes_work(tmp_path: Path) -> None:
    """Everything from this repository's wheelhouse, which ``make kernels`` filled; nothing else is installed."""
    lock = (REPOSITORY / "files" / "image" / "cpu" / "requirements-x86_64.lock").read_text(encoding="utf-8")
    (tmp_path / "constraints").write_text("\n".join(re.findall(r"^[\w.-]+==[^\s\\]+", lock, re.MULTILINE)))
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}

    def run(*command: str) -> str:
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    run(sys.executable, "-m", "venv", "--without-pip", "venv")
    install = [sys.executable, "-m", "uv", "pip", "install", "--python", "venv", "--no-index"]
    wheels = str(REPOSITORY / ".cache" / "wheelhouse")
    run(*install, "--find-links", wheels, "--constraint", "constraints", f"torch=={torch.__version__}")
    run(*install, "--no-deps", str(wheel_path("x86_64")))
    assert run("venv/bin/python", "-c", USE).strip() == "in use"
