# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What an offline bundle holds, where each part of it comes from, and how it is written.

A bundle is one tar with the wheels of a variant's locks, the image to build on, and the collections. Equal content is
the same file byte for byte, so whether anything has changed is a comparison of its SHA256SUMS.

Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import json
import os
import re
import tarfile
import typing as t
import zlib
from dataclasses import dataclass

from ._image import (
    EPOCH,
    GB,
    MACHINES,
    ImageError,
    Requirement,
    file_sha256,
    read_archive,
    shortened,
    wheel_identity,
    wheelhouse_problems,
)

PYTHONS: t.Final[t.Mapping[str, str]] = {"cpu": "3.11", "cuda": "3.12"}
"""Python of a variant's image."""
GLIBCS: t.Final[t.Mapping[str, int]] = {"cpu": 36, "cuda": 39}
"""Minor version of its C library, 2.x. files/image/lock.py resolves for the same."""
ARCHITECTURES: t.Final[t.Mapping[str, str]] = {"x86_64": "amd64", "aarch64": "arm64"}
"""A machine as an image's configuration calls it."""

DOWNLOAD_GB: t.Final[t.Mapping[str, int]] = {"cpu": 1, "cuda": 6}
"""Room for the wheels of a variant while their sizes are not known, in GB (10^9)."""
BASE_GB: t.Final = 0.6
"""The same for the image to build on."""
BATCH: t.Final = 16
"""Wheels that one call of pip downloads."""

BUILD: t.Final = "build"
"""Directory of a checkout that does not come into the collection."""
SUMS: t.Final = "SHA256SUMS"
BASE: t.Final = "base.tar"
BASE_NAME: t.Final = "base.txt"
"""File with the name of the image in it."""
BASE_FILES: t.Final = ("Dockerfile", "packages.sh", "settle.sh", "{}/packages.txt", "{}/packages-build.txt")
"""What the image to build on is made from, below files/image; {} is the variant."""
DPKG: t.Final = ("var/lib/dpkg/status", "./var/lib/dpkg/status")
"""Where a layer has the list of installed packages."""


class BundleError(Exception):
    """What is wrong and what to do, in one line."""


# --- wheels ---------------------------------------------------------------------------------------------------------


def platforms(machine: str, glibc: int) -> list[str]:
    """Return the platform tags that an image with this C library takes, as pip's --platform wants them."""
    names = [f"manylinux_2_{minor}_{machine}" for minor in range(glibc, 4, -1)]
    old = {"x86_64": ("manylinux2014", "manylinux2010", "manylinux1"), "aarch64": ("manylinux2014",)}
    return [*names, *(f"{name}_{machine}" for name in old[machine]), f"linux_{machine}", "any"]


def fits(filename: str, variant: str) -> bool:
    """Say whether a wheel can be installed in a variant's image, by its name."""
    python, abi, platform = filename.removesuffix(".whl").split("-")[-3:]
    own = PYTHONS[variant].replace(".", "")
    if not set(platform.split(".")) & set(platforms(MACHINES[variant], GLIBCS[variant])):
        return False
    if abi == "none":
        tags = {"py3", f"py{own}", f"cp{own}", *(f"py3{minor}" for minor in range(int(own[1:]) + 1))}
        return bool(tags & set(python.split(".")))
    if "abi3" in abi.split("."):
        found = [int(minor) for minor in re.findall(r"cp3(\d+)", python)]
        return bool(found) and min(found) <= int(own[1:])
    return f"cp{own}" in python.split(".") and f"cp{own}" in abi.split(".")


def fitting(
    lock: t.Mapping[str, Requirement], digests: t.Mapping[str, str], variant: str
) -> tuple[dict[str, str], dict[str, Requirement]]:
    """Return those of some wheels that a lock names, with their hashes, and what of the lock is not among them."""
    found: dict[str, str] = {}
    names = set()
    for filename, digest in digests.items():
        identity = wheel_identity(filename)
        wanted = lock.get(identity[0]) if identity else None
        if (
            wanted
            and identity
            and wanted.version == identity[1]
            and digest in wanted.hashes
            and fits(filename, variant)
        ):
            found[filename] = digest
            names.add(wanted.name)
    return found, {name: one for name, one in lock.items() if name not in names}


def wheelhouse(lock: t.Mapping[str, Requirement], directory: str, variant: str) -> dict[str, str]:
    """Return the wheels of a directory that a lock names, with their hashes. Raises BundleError if any is wrong."""
    try:
        names = [name for name in sorted(os.listdir(directory)) if wheel_identity(name) and fits(name, variant)]
    except OSError as error:
        raise BundleError(
            f"bundle_wheelhouse {directory} cannot be read ({error.strerror}); correct the path"
        ) from error
    digests: dict[str, str] = {}

    def digest(name: str) -> str:
        digests[name] = digests.get(name) or file_sha256(os.path.join(directory, name))
        return digests[name]

    problems = wheelhouse_problems(lock, names, digest, directory)
    if problems:
        raise BundleError("; ".join(problems))
    return fitting(lock, digests, variant)[0]


def batches(missing: t.Iterable[Requirement]) -> list[list[Requirement]]:
    """Return what to download in the parts that it is downloaded in: pip keeps nothing of one that is interrupted."""
    waiting = list(missing)
    return [waiting[first : first + BATCH] for first in range(0, len(waiting), BATCH)]


def requirements(lock: t.Iterable[Requirement]) -> str:
    """Return a requirements file for pip with a lock's versions and hashes."""
    return "".join(
        f"{one.name}=={one.version}" + "".join(f" --hash=sha256:{digest}" for digest in sorted(one.hashes)) + "\n"
        for one in lock
    )


def pip_options(variant: str, requirements_file: str, directory: str) -> list[str]:
    """Return what follows `pip` to download for a variant's image, on a machine of any kind."""
    python = PYTHONS[variant]
    options = ["download", "--quiet", "--disable-pip-version-check", "--no-deps", "--require-hashes"]
    options += ["--only-binary", ":all:", "--python-version", python, "--implementation", "cp"]
    options += [f"--abi={abi}" for abi in (f"cp{python.replace('.', '')}", "abi3", "none")]
    options += [f"--platform={name}" for name in platforms(MACHINES[variant], GLIBCS[variant])]
    return [*options, "--dest", directory, "--requirement", requirements_file]


def pip_environment(index_url: str, ca_file: str, proxy: t.Mapping[str, t.Any]) -> dict[str, str]:
    """Return the environment of that pip. A URL may hold a password, so it is no option: those anyone can see."""
    values = {"PIP_INDEX_URL": index_url, "PIP_CERT": ca_file, "PIP_NO_INPUT": "1"}
    for name in ("http", "https", "no"):
        value = str(proxy.get("no_proxy" if name == "no" else name) or "")
        values |= {f"{name}_proxy": value, f"{name}_proxy".upper(): value}
    return {name: value for name, value in values.items() if value}


def pip_failure(output: str) -> str:
    """Return what pip complains about, in one line."""
    lines = [line.strip() for line in output.splitlines() if line.strip() and "[notice]" not in line]
    for number, line in enumerate(lines):
        if "DO NOT MATCH THE HASHES" in line and number + 1 < len(lines):
            name = lines[number + 1].split(" (from ")[0].rstrip(":")
            return f"{name} has a hash other than the lock's; do not use this index, or run make lock"
    said = [line for line in lines if line.startswith("ERROR: ")] or lines
    what = re.sub(r"^ERROR: | \(from [^)]*\)+", "", said[-1]) if said else "no reason given"
    return f"pip: {what}; check the index (image_pip_index_url, image_proxy, image_ca_file)"


# --- the image to build on ------------------------------------------------------------------------------------------


def base_name(variant: str, base: str, directory: str) -> str:
    """Return the name of the image to build on: another one when what it is made from changes."""
    parts = [base, MACHINES[variant]]
    parts += [file_sha256(os.path.join(directory, name.format(variant))) for name in BASE_FILES]
    return f"sparkfleet/base:{variant}-{hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:12]}"


def listed(directory: str, variant: str) -> set[str]:
    """Return the packages that the image to build on has to have, by the lists in files/image. Raises OSError."""
    found: set[str] = set()
    for name in BASE_FILES[-2:]:
        with open(os.path.join(directory, name.format(variant)), encoding="utf-8") as file:
            found |= {line.strip() for line in file if line.strip() and not line.lstrip().startswith("#")}
    return found


def _installed(tar: tarfile.TarFile) -> set[str] | None:
    """Return the packages that dpkg has installed in an image's archive, None where that cannot be told."""
    status = None
    manifest = tar.extractfile("manifest.json")
    for name in json.loads(manifest.read())[0]["Layers"] if manifest else []:
        layer = tar.extractfile(name)
        try:
            with tarfile.open(fileobj=layer) as inner:
                file = next((inner.extractfile(one) for one in inner if one.name in DPKG), None)
                status = file.read().decode(errors="replace") if file else status
        except tarfile.ReadError:
            return None  # compressed in a way that is not known here
    if status is None:
        return None
    blocks = [dict(re.findall(r"^(Package|Status): (.*)$", block, re.MULTILINE)) for block in status.split("\n\n")]
    return {one["Package"] for one in blocks if one.get("Status", "").endswith(" installed") and "Package" in one}


def check_base(path: str, variant: str, packages: t.Collection[str] = ()) -> str:
    """Return the name of the image in an archive.

    Raises BundleError where it is none, is for another machine, or lacks packages, which no build without a network
    could install.
    """
    wanted = ARCHITECTURES[MACHINES[variant]]
    try:
        base = read_archive(path)
        with tarfile.open(path) as tar:
            digest = base.image_id.removeprefix("sha256:")
            names = set(tar.getnames()) & {f"{digest}.json", f"blobs/sha256/{digest}"}
            file = tar.extractfile(names.pop())
            machine = json.loads(file.read()).get("architecture") if file else ""
            installed = _installed(tar) if packages and machine == wanted else None
    except ImageError as error:
        raise BundleError(str(error).replace("image_base_archive", "bundle_base_archive")) from error
    except (KeyError, AttributeError, TypeError, ValueError, EOFError, OSError, tarfile.TarError, zlib.error) as error:
        raise BundleError(
            f"bundle_base_archive {path} is damaged, or is not an image; make it again with docker save"
        ) from error
    if machine != wanted:
        raise BundleError(
            f"bundle_base_archive {path} is for {machine or 'an unknown machine'}, and variant {variant} for {wanted}; "
            f"save it on a machine of that kind"
        )
    lacking = sorted(set(packages) - installed) if installed is not None else []
    if lacking:
        raise BundleError(
            f"bundle_base_archive {path} lacks the packages {shortened(lacking)}; install them in that image, or give "
            f"bundle_host in place of the archive"
        )
    return base.name


# --- collections ----------------------------------------------------------------------------------------------------


def dependencies(name: str, installed: t.Mapping[str, str], manifest: t.Callable[[str], dict[str, t.Any]]) -> list[str]:
    """Return the directories of all collections that one needs, as they are installed. Raises BundleError.

    `installed` has directories by name, `manifest` reads the collection_info of one.
    """
    found: dict[str, str] = {}
    waiting = [name]
    while waiting:
        for one in sorted(manifest(waiting.pop()).get("dependencies") or {}):
            if one not in installed:
                raise BundleError(f"collection {one} is not installed; ansible-galaxy collection install {one}")
            if one not in found:
                found[one] = installed[one]
                waiting.append(one)
    return [found[one] for one in sorted(found)]


def _entry(name: str, size: int, mode: int = 0o644) -> tarfile.TarInfo:
    """Return a member without anything of the machine or the time that it was made at."""
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode, entry.mtime = size, mode, EPOCH
    return entry


def pack_collection(root: str, directory: str) -> str:
    """Write an installed or unpacked collection as a tarball that ansible-galaxy takes; return its path.

    The list of files is made anew: packages of collections leave out what is no part of their use, tests for instance.
    """
    with open(os.path.join(root, "MANIFEST.json"), encoding="utf-8") as file:
        manifest = json.load(file)
    info = manifest["collection_info"]
    entries: list[dict[str, t.Any]] = [
        {"name": ".", "ftype": "dir", "chksum_type": None, "chksum_sha256": None, "format": 1}
    ]
    files: list[str] = []
    for where, directories, names in os.walk(root):
        directories[:] = sorted(one for one in directories if one != "__pycache__")
        below = os.path.relpath(where, root)
        for one in directories:
            name = os.path.normpath(os.path.join(below, one))
            entries.append({"name": name, "ftype": "dir", "chksum_type": None, "chksum_sha256": None, "format": 1})
        for one in sorted(names):
            name = os.path.normpath(os.path.join(below, one))
            if name not in ("MANIFEST.json", "FILES.json") and not name.endswith((".pyc", ".pyo")):
                files.append(name)
                digest = file_sha256(os.path.join(root, name))
                entries.append(
                    {"name": name, "ftype": "file", "chksum_type": "sha256", "chksum_sha256": digest, "format": 1}
                )
    listing = json.dumps({"files": sorted(entries, key=lambda one: str(one["name"])), "format": 1}, indent=1).encode()
    manifest["file_manifest_file"]["chksum_sha256"] = hashlib.sha256(listing).hexdigest()
    path = os.path.join(directory, f"{info['namespace']}-{info['name']}-{info['version']}.tar.gz")
    # gzip would write the time and the file's name.
    with (
        open(path, "wb") as out,
        gzip.GzipFile(filename="", mode="wb", fileobj=out, mtime=EPOCH) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.GNU_FORMAT) as tar,
    ):
        for name, data in (("MANIFEST.json", json.dumps(manifest, indent=1).encode()), ("FILES.json", listing)):
            tar.addfile(_entry(name, len(data)), io.BytesIO(data))
        for one in sorted(one["name"] for one in entries if one["ftype"] == "dir" and one["name"] != "."):
            made = _entry(one, 0, 0o755)
            made.type = tarfile.DIRTYPE
            tar.addfile(made)
        for name in sorted(files):
            source = os.path.join(root, name)
            mode = 0o755 if os.stat(source).st_mode & 0o100 else 0o644
            with open(source, "rb") as stream:
                tar.addfile(_entry(name, os.path.getsize(source), mode), stream)
    return path


# --- what is written about it ---------------------------------------------------------------------------------------

VARS = """---
# For an installation without a network: ansible-playbook ... -e @vars.yml, in the directory of this file.
# From elsewhere, name that directory after it: -e @DIRECTORY/vars.yml -e bundle_directory=DIRECTORY
bundle_directory: "{{{{ lookup('ansible.builtin.env', 'PWD') }}}}"
image_variant: {variant}
image_wheelhouse: "{{{{ bundle_directory }}}}/wheels"
image_base_archive: "{{{{ bundle_directory }}}}/base.tar"
image_kernels_wheel: {kernels}
image_build_network: none
image_pip_index_url: ""
# Installs nothing; the head needs zstd. With docker-registry and tar-split on it too, registry works as well.
image_delivery: stream
"""

README = """# sparkfleet.vllm {version}, variant {variant}, without a network

Everything that builds the image on {machine}: wheels with the hashes of the lock, the image to build on with its
packages, and the collections. Not in here, and needed beforehand: the model's files; ansible-core 2.19 or newer,
jmespath and rsync on the controller; Docker with buildx, python3-requests and rsync on the nodes, zstd on the head.

    sha256sum --check --quiet SHA256SUMS
    ansible-galaxy collection install --offline --force collections/*.tar.gz
    ansible-playbook sparkfleet.vllm.site -i INVENTORY -e @vars.yml

Run the last line in this directory, or see vars.yml.
"""


def texts(variant: str, version: str, kernels: str) -> dict[str, bytes]:
    """Return the files that a bundle has of itself; `kernels` is the name of the kernels' wheel, empty for none."""
    value = f'"{{{{ bundle_directory }}}}/kernels/{kernels}"' if kernels else "none"
    return {
        "vars.yml": VARS.format(variant=variant, kernels=value).encode(),
        "README.md": README.format(variant=variant, version=version, machine=MACHINES[variant]).encode(),
    }


# --- the file -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Part:
    """One file of a bundle, and where its bytes are."""

    sha256: str
    size: int
    path: str = ""
    """File with the bytes."""
    member: str = ""
    """Member of the bundle that is replaced, where they are in there."""
    data: bytes = b""

    @classmethod
    def of_file(cls, path: str, sha256: str = "") -> Part:
        """Return a file as a part."""
        return cls(sha256 or file_sha256(path), os.path.getsize(path), path=path)

    @classmethod
    def of_data(cls, data: bytes) -> Part:
        """Return a text as a part."""
        return cls(hashlib.sha256(data).hexdigest(), len(data), data=data)


def sums(parts: t.Mapping[str, Part]) -> bytes:
    """Return SHA256SUMS as sha256sum reads it."""
    return "".join(f"{parts[name].sha256}  {name}\n" for name in sorted(parts)).encode()


def read(path: str) -> dict[str, Part]:
    """Return the parts of a bundle, all of them hashed; none where there is no bundle, or a damaged one."""
    found: dict[str, Part] = {}
    noted = b""
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                file = tar.extractfile(member)
                name = member.name.partition("/")[2]
                if file is None:
                    continue
                if name == SUMS:
                    noted = file.read()
                    continue
                digest = hashlib.sha256()
                while chunk := file.read(1 << 20):
                    digest.update(chunk)
                found[name] = Part(digest.hexdigest(), member.size, member=member.name)
    except (OSError, tarfile.TarError):
        return {}
    return found if noted == sums(found) else {}


def _bytes(part: Part, previous: tarfile.TarFile | None) -> t.IO[bytes]:
    """Return a part's bytes, which may be in the previous bundle. Raises OSError."""
    if part.path:
        return open(part.path, "rb")
    found = previous.extractfile(part.member) if previous and part.member else io.BytesIO(part.data)
    if found is None:
        raise OSError(f"{part.member} is no file")
    return found


def write(path: str, name: str, parts: t.Mapping[str, Part], old: str) -> None:
    """Write a bundle whose files lie in the directory `name`, with parts of the bundle `old`. Raises OSError."""
    members = {SUMS: Part.of_data(sums(parts)), **{one: parts[one] for one in sorted(parts)}}
    with contextlib.ExitStack() as stack:
        tar = stack.enter_context(tarfile.open(path, "w", format=tarfile.GNU_FORMAT))
        carried = any(part.member for part in members.values())
        previous = stack.enter_context(tarfile.open(old, "r:")) if carried else None
        for one, part in members.items():
            with _bytes(part, previous) as stream:
                tar.addfile(_entry(f"{name}/{one}", part.size), stream)
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


def is_bundle(path: str) -> bool:
    """Say whether a file begins as a bundle does, whole or not. Raises OSError."""
    with open(path, "rb") as file:
        return bool(re.match(rb"bundle-[^/\0]+/SHA256SUMS\0", file.read(512)))


def check_target(path: str, root: str) -> None:
    """Make sure that a bundle of the collection in `root` can be written there. Raises BundleError, OSError."""
    directory = os.path.dirname(path)
    below = os.path.relpath(os.path.realpath(path), root).split(os.sep)
    if os.path.isdir(path):
        raise BundleError(f"bundle_file {path} is a directory; name a file in it")
    if below[0] not in (os.pardir, BUILD):
        raise BundleError(f"bundle_file {path} is in the collection, which the bundle takes in; choose another place")
    if not os.path.isdir(directory):
        raise BundleError(f"bundle_file: the directory {directory} is not there; make it, or correct the path")
    if not os.access(directory, os.W_OK | os.X_OK):
        raise BundleError(
            f"bundle_file: the directory {directory} cannot be written to; choose another, or correct its mode"
        )
    if os.path.exists(path) and not is_bundle(path):
        raise BundleError(f"bundle_file {path} is there and is no bundle; remove it, or choose another name")


def check_room(path: str, need: float) -> None:
    """Make sure that there is room for a bundle. Raises BundleError."""
    directory = os.path.dirname(path)
    status = os.statvfs(directory)
    free = status.f_bavail * status.f_frsize
    if free < need:
        raise BundleError(
            f"disk too small for the bundle: {free / GB:.1f} GB free in {directory}, {need / GB:.1f} GB needed; "
            f"make room, or choose another bundle_file"
        )


def room(variant: str, wheels: t.Mapping[str, Part], base: Part | None, missing: int) -> float:
    """Return how many bytes a bundle needs while it is made: what is downloaded lies there twice."""
    known = sum(part.size for part in wheels.values())
    download = 2 * DOWNLOAD_GB[variant] * GB - known if missing else 0
    return known + max(download, 0) + (base.size if base else 2 * BASE_GB * GB)


def changes(parts: t.Mapping[str, Part], before: t.Mapping[str, Part]) -> str:
    """Return which parts are new or other ones, as prose."""
    return shortened(
        [name for name in sorted(parts) if name not in before or before[name].sha256 != parts[name].sha256]
    )
