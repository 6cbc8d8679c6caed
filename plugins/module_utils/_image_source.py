# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is built from source into an image, and whether that can run on GB10.

Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import re
import typing as t
from dataclasses import dataclass

ROUTES: t.Final = ("wheel", "source", "none")
REBUILD: t.Final = ("deps", "vllm")
ARCHS: t.Final = "12.1a"
"""Default of image_torch_cuda_arch_list: every release of torch that builds for GB10 takes it."""

_VERSION = re.compile(r"\d+\.\d+(?:\.\d+)*(?:(?:rc|\.post)\d+)?")
_SDIST = re.compile(rf"({_VERSION.pattern})(?:#sha256=([0-9a-f]{{64}}))?")
# What git takes as a name, without what a shell or an option could be made of.
_REF = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/+-]*")
_REPOSITORY = re.compile(r"(?:https|ssh|git|file)://[^\s'\"]+")
_ARCH = re.compile(r"(\d+)\.(\d)([af]?)(\+PTX)?")
_OTHER_SPELLING = re.compile(r"(?:sm_?|compute_?)?(\d{2,3})([af]?)", re.IGNORECASE)
_MOD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")

NO_FP4 = "has neither E2M1 conversion nor block-scaled MMA, so what takes it as it stands has no NVFP4"


@dataclass(frozen=True)
class Source:
    """The variables of the image role that say what is built; the names are theirs without ``image_``."""

    build: str = "wheel"
    ref: str = ""
    """image_ref: an image that exists."""
    variant: str = "cuda"
    vllm_ref: str = ""
    vllm_repository: str = ""
    vllm_prs: t.Sequence[t.Any] = ()
    triton_ref: str = ""
    triton_repository: str = ""
    build_jobs: int = 0
    torch_cuda_arch_list: str = ARCHS
    patches_skip: t.Sequence[str] = ()
    rebuild: t.Sequence[str] = ()
    source_base: str = ""
    delivery: str = "registry"
    """image_delivery: a compiler's output differs from build to build."""
    target_device: str = ""
    """Not a variable: what is compiled for in tests of the wiring; empty for the variant's own."""


def is_release(ref: str) -> bool:
    """Say whether a ref of vLLM is a release's number, whose source distribution an index has."""
    return bool(_SDIST.fullmatch(ref))


def arch_problems(archs: str) -> list[str]:
    """Return why TORCH_CUDA_ARCH_LIST would not give an image for GB10, as `what; what to do` lines."""
    given = [one for one in re.split(r"[;,\s]+", archs) if one]
    name = "image_torch_cuda_arch_list"
    problems = []
    runs = False
    for one in given:
        match = _ARCH.fullmatch(one)
        if match is None:
            other = _OTHER_SPELLING.fullmatch(one)
            wanted = f"{other[1][:-1]}.{other[1][-1]}{other[2]}" if other else "for example 12.1a"
            wanted = f"write {ARCHS if wanted == '12.1' else wanted}"
            problems.append(f"{name}: {one} is no architecture as torch writes them; {wanted}")
            continue
        number, suffix = f"{match[1]}.{match[2]}", match[3]
        if (number, suffix) == ("12.0", "a"):
            problems.append(f"{name}: 12.0a gives code that runs on sm_120 only and not on GB10; use 12.1a or 12.0f")
        elif (number, suffix) == ("12.1", ""):
            problems.append(f"{name}: plain 12.1 (sm_121) {NO_FP4}; use 12.1a or 12.0f")
        runs |= number in ("12.0", "12.1")
    if not problems and not runs:
        problems.append(f"{name}: {archs or 'empty'} has no architecture that runs on GB10; use 12.1a or 12.0f")
    return problems


def problems(source: Source) -> list[str]:
    """Return what is wrong with the variables, as `what; what to do` lines."""
    if source.build not in ROUTES:
        return [f"image_build {source.build} is unknown; use one of {', '.join(ROUTES)}"]
    if source.build == "none":
        return [] if source.ref else ["image_build none needs an image that exists; give it as image_ref"]
    found = [
        f"image_rebuild: {one} is unknown; use {' and '.join(REBUILD)}" for one in source.rebuild if one not in REBUILD
    ]
    set_in_vain = {
        "image_vllm_ref": source.vllm_ref,
        "image_vllm_prs": source.vllm_prs,
        "image_triton_ref": source.triton_ref,
        "image_source_base": source.source_base,
    }
    if source.build == "wheel":
        named = [name for name, value in set_in_vain.items() if value]
        if named:
            found.append(f"{' and '.join(named)} would have no effect; set image_build to source, or leave it out")
        return found
    return found + _source_problems(source)


def _source_problems(source: Source) -> list[str]:
    """Return what is wrong with a build from source."""
    found = []
    if source.delivery == "each":
        found.append(
            "image_delivery each needs builds that agree, and what a compiler makes differs; use registry or stream"
        )
    if not source.vllm_ref:
        found.append(
            "image_build source needs image_vllm_ref; give a release such as 0.32.0, a branch, a tag or a commit"
        )
    for name, ref in (("image_vllm_ref", source.vllm_ref), ("image_triton_ref", source.triton_ref)):
        if ref and not _REF.fullmatch(ref) and not (name == "image_vllm_ref" and is_release(ref)):
            found.append(f"{name} {ref!r} is neither a release nor a name that git takes; correct it")
        if re.fullmatch(r"[0-9a-f]{7,39}", ref):
            found.append(f"{name} {ref} looks like a part of a commit, which git cannot fetch; give all 40 digits")
    for name, repository in (
        ("image_vllm_repository", source.vllm_repository),
        ("image_triton_repository", source.triton_repository),
    ):
        if repository and not _REPOSITORY.fullmatch(repository):
            found.append(f"{name} {repository!r} is no address that git fetches from; give an https:// or ssh:// one")
    numbers = [str(one) for one in source.vllm_prs]
    wrong = [one for one in numbers if not re.fullmatch(r"[1-9]\d*", one)]
    if wrong:
        found.append(f"image_vllm_prs: {', '.join(wrong)} is no number of a pull request; give numbers such as 37725")
    if numbers and is_release(source.vllm_ref):
        tag = "v" + source.vllm_ref.partition("#")[0]
        found.append(f"image_vllm_prs need a git history to be merged into; set image_vllm_ref to {tag}")
    if source.build_jobs < 0:
        found.append(f"image_build_jobs {source.build_jobs} is negative; 0 takes as many as cores and memory allow")
    if source.variant == "cuda":
        found += arch_problems(source.torch_cuda_arch_list)
    unknown = [one for one in source.patches_skip if not re.fullmatch(r"[a-z0-9-]+", one)]
    if unknown:
        found.append(f"image_patches_skip: {', '.join(unknown)} is no entry's name; docs/patches.md has them")
    return found


def arguments(source: Source) -> dict[str, str]:
    """Return the build arguments that decide what is built; they belong into the build key."""
    if source.build != "source":
        return {}
    release = _SDIST.fullmatch(source.vllm_ref)
    archs = ";".join(one for one in re.split(r"[;,\s]+", source.torch_cuda_arch_list) if one)
    cuda = source.variant == "cuda"
    given = {
        "BUILD": "source",
        "VLLM_REF": release[1] if release else source.vllm_ref,
        "VLLM_SHA256": (release[2] or "") if release else "",
        "VLLM_REPOSITORY": "" if release else source.vllm_repository,
        "VLLM_PRS": " ".join(str(one) for one in source.vllm_prs),
        "VLLM_TARGET_DEVICE": source.target_device or source.variant,
        "TRITON_REF": source.triton_ref,
        "TRITON_REPOSITORY": source.triton_repository if source.triton_ref else "",
        "TORCH_CUDA_ARCH_LIST": archs if cuda else "",
        "PATCHES_SKIP": " ".join(source.patches_skip),
        "SOURCE_BASE": source.source_base,
    }
    return {name: value for name, value in given.items() if value}


def incidental(source: Source, stamp: str) -> dict[str, str]:
    """Return the build arguments that change how something is built and not what; they are no part of the key.

    `stamp` is different in every run: a step with it is not taken from the engine's cache.
    """
    given = {f"REBUILD_{name.upper()}": stamp for name in REBUILD if name in source.rebuild}
    if source.build == "source" and source.build_jobs:
        given["BUILD_JOBS"] = str(source.build_jobs)
    return given


def wheelhouse_problems(source: Source, names: t.Collection[str], where: str) -> list[str]:
    """Return why a wheelhouse has not what is built from; `where` is how the line calls it."""
    release = _SDIST.fullmatch(source.vllm_ref)
    if source.build != "source" or release is None or f"vllm-{release[1]}.tar.gz" in names:
        return []
    return [f"the wheelhouse {where} lacks vllm-{release[1]}.tar.gz; put the release's source distribution there"]


def mod_names(paths: t.Sequence[str]) -> list[str]:
    """Return the directories that mods get in the build's context: numbered, since they are run in the given order."""
    return [f"{number:02d}-{path.rstrip('/').rsplit('/', 1)[-1]}" for number, path in enumerate(paths, 1)]


def mod_problems(mods: t.Mapping[str, t.Collection[str]]) -> list[str]:
    """Return what is wrong with image_mods; `mods` has each directory with the names in it."""
    found = []
    for path, names in mods.items():
        if "run.sh" not in names:
            what = "has no run.sh" if names else "is no directory on the controller, or an empty one"
            found.append(f"image_mods: {path} {what}; give directories with a run.sh")
        elif not _MOD.fullmatch(path.rstrip("/").rsplit("/", 1)[-1]):
            found.append(f"image_mods: {path} has a name that no directory of a build may have; rename it")
    return found
