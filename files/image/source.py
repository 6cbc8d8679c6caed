# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Build vLLM, and Triton where it is asked for, from source: ``source.py`` in a stage of the image's build.

Gets the source (a release's source distribution, or a ref of git with pull requests merged into it), applies the patch
catalogue, builds a wheel against the environment's own torch, and compares what the wheel requires with what the lock
installed. Leaves wheels, patches.json and source.json in /built. Configured by the stage's arguments, run by
source.sh, standard library only.
"""

from __future__ import annotations

import email
import json
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
PIP = "/tmp/pip/bin/pip"
PYTHON = "/opt/vllm/bin/python"
SOURCES = Path("/src")
TOOLS = Path("/tmp/build-requires")
GIT_CACHE = Path("/root/.cache/git")
GB_PER_JOB = 4
"""Memory that one compiler of vLLM's larger CUDA files takes."""

RELEASE = re.compile(r"\d+\.\d+(?:\.\d+)*(?:(?:rc|\.post)\d+)?")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
METADATA = re.compile(r"\.dist-info/METADATA$")


class SourceError(Exception):
    """What is wrong and what to do, in one line."""


def run(line: Sequence[str], what: str, **environment: str) -> str:
    """Run a program with more environment; return what it printed. Its own messages go to the build's log."""
    print("source:", " ".join(line), flush=True)
    given = {**os.environ, **environment}
    done = subprocess.run(
        line, env={k: v for k, v in given.items() if v}, stdout=subprocess.PIPE, text=True, check=False
    )
    if done.returncode:
        print(done.stdout, flush=True)
        raise SourceError(what)
    return done.stdout


# --- the source ----------------------------------------------------------------------------------------------------


def release(version: str, sha256: str) -> Path:
    """Return the unpacked source distribution of a vLLM release, from the wheelhouse or the index."""
    requirement = SOURCES / "requirements.txt"
    requirement.write_text(f"vllm=={version}" + (f" --hash=sha256:{sha256}" if sha256 else "") + "\n", encoding="utf-8")
    line = [PIP, "download", "--no-deps", "--no-build-isolation", "--no-binary", "vllm", "--dest", str(SOURCES)]
    line += ["--require-hashes"] if sha256 else []
    run(
        [*line, "--requirement", str(requirement)],
        f"vLLM {version} has no source distribution where this build looks; correct image_vllm_ref, or put "
        f"vllm-{version}.tar.gz into the wheelhouse",
        PYTHONPATH=str(HERE / "sdist"),
    )
    (archive,) = SOURCES.glob("vllm-*.tar.gz")
    # tar leaves out what would lie outside; tarfile does so only from Python 3.11.4 on.
    run(
        ["tar", "--extract", "--no-same-owner", "--file", str(archive), "--directory", str(SOURCES)],
        "tar cannot unpack it",
    )
    return next(path for path in SOURCES.iterdir() if path.is_dir() and path.name.startswith("vllm-"))


def checkout(name: str, repository: str, ref: str, pulls: Sequence[str] = ()) -> Path:
    """Return a checkout of a branch, tag or commit with pull requests merged into it, in the given order."""
    tree = SOURCES / name
    bare = GIT_CACHE / name
    if not bare.exists():
        run(["git", "init", "--quiet", "--bare", str(bare)], f"git cannot make {bare}")
    git = ["git", "-C", str(bare)]
    names = [f"+refs/pull/{one}/head:refs/pulls/{one}" for one in pulls]
    for wanted in (f"+{ref}:refs/wanted", *names):
        run(
            [*git, "fetch", "--quiet", "--tags", "--force", repository, wanted],
            f"{repository} has no {wanted.partition(':')[0].lstrip('+')}, or cannot be reached; correct the ref",
        )
    run(["git", "clone", "--quiet", "--shared", "--no-checkout", str(bare), str(tree)], f"git cannot clone {bare}")
    git = ["git", "-C", str(tree), "-c", "user.name=sparkfleet", "-c", "user.email=sparkfleet@localhost"]
    wanted = run(["git", "-C", str(bare), "rev-parse", "refs/wanted^{commit}"], f"{ref} is no commit").strip()
    run([*git, "checkout", "--quiet", "--detach", wanted], f"git cannot check {ref} out")
    for one in pulls:
        commit = run(["git", "-C", str(bare), "rev-parse", f"refs/pulls/{one}^{{commit}}"], "no such commit").strip()
        run(
            [*git, "merge", "--quiet", "--no-edit", commit],
            f"pull request {one} does not merge into {ref}; leave it out of image_vllm_prs, or take another ref",
        )
    return tree


# --- the build -----------------------------------------------------------------------------------------------------


def build_requirements(pyproject: str) -> list[str]:
    """Return what a project needs to be built, without torch: the environment's own is built against."""
    wanted: list[str] = tomllib.loads(pyproject)["build-system"]["requires"]
    return [one for one in wanted if (match := NAME.match(one.strip())) and match[0].lower() != "torch"]


def jobs(given: str, cores: int, free_bytes: int) -> int:
    """Return how many compilers run at once: as given, or as cores and memory allow."""
    return int(given) if given else max(1, min(cores, free_bytes // (GB_PER_JOB * 10**9)))


def free_memory() -> int:
    """Return the bytes of memory that programs can have."""
    text = Path("/proc/meminfo").read_text(encoding="utf-8")
    match = re.search(r"^MemAvailable:\s+(\d+) kB", text, re.MULTILINE)
    return int(match[1]) * 1024 if match else 0


def wheel(tree: Path, built: Path, environment: Mapping[str, str]) -> Path:
    """Build a wheel of a tree into ``built``; return it."""
    requirements = build_requirements((tree / "pyproject.toml").read_text(encoding="utf-8"))
    # Above the environment's own packages, and not among them: the image gets none of it.
    run(
        [PIP, "--python", PYTHON, "install", "--quiet", "--target", str(TOOLS), "--upgrade", *requirements],
        f"what {tree.name} is built with cannot be installed ({', '.join(requirements)}); give an index or more wheels",
        PIP_NO_DEPS="0",
    )
    before = set(built.glob("*.whl"))
    line = [
        PIP,
        "--python",
        PYTHON,
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "--no-cache-dir",
        "--no-binary",
        ":all:",
    ]
    run(
        [*line, "--wheel-dir", str(built), str(tree)],
        f"the build of {tree.name} failed; its last lines are above",
        PYTHONPATH=str(TOOLS),
        PATH=f"{TOOLS}/bin:/opt/vllm/bin:{os.environ['PATH']}",
        **environment,
    )
    (new,) = set(built.glob("*.whl")) - before
    return new


# --- does it fit the lock ------------------------------------------------------------------------------------------


def requirements(metadata: bytes) -> list[str]:
    """Return what a distribution requires without any extra, from its METADATA."""
    found = email.message_from_bytes(metadata)
    return [one for one in found.get_all("Requires-Dist", []) if "extra ==" not in one]


def required(path: Path) -> list[str]:
    """Return what a wheel requires."""
    with zipfile.ZipFile(path) as archive:
        return requirements(archive.read(next(name for name in archive.namelist() if METADATA.search(name))))


UNMET = """
import json, sys
from importlib import metadata
from pip._vendor.packaging.requirements import Requirement
for line in json.load(sys.stdin):
    wanted = Requirement(line)
    if wanted.marker and not wanted.marker.evaluate():
        continue
    found = [one.version for one in metadata.distributions(name=wanted.name, path=[sys.argv[1]])]
    if not found:
        print(f"{wanted.name}: {wanted} is missing")
    elif not wanted.specifier.contains(found[0], prereleases=True):
        print(f"{wanted.name}: {wanted} is wanted and {found[0]} is there")
"""


def unmet(wanted: Sequence[str], site: str) -> dict[str, str]:
    """Return what the environment lacks, by name; pip's own reading of the requirements decides."""
    line = [str(Path(PIP).with_name("python")), "-c", UNMET, site]
    done = subprocess.run(line, input=json.dumps(list(wanted)), stdout=subprocess.PIPE, text=True, check=True)
    return dict(said.split(": ", 1) for said in done.stdout.splitlines())


def check_fits(path: Path, site: str) -> None:
    """Raise SourceError where the lock's packages are not those that the wheel wants.

    What the lock's own vLLM already goes without, the lock leaves out on purpose.
    """
    locked = [requirements(one.read_bytes()) for one in Path(site).glob("vllm*.dist-info/METADATA")]
    without = unmet([line for lines in locked for line in lines], site)
    problems = [text for name, text in unmet(required(path), site).items() if name not in without]
    if problems:
        rest = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise SourceError(
            f"{path.name} does not fit the lock: {'; '.join(problems[:3])}{rest}; take a ref nearer to the lock's vLLM,"
            " or lock for this one"
        )


def main(environment: Mapping[str, str], built: Path, site: str) -> int:
    """Build what the stage's arguments ask for; return the exit status."""
    ref, device = environment["VLLM_REF"], environment.get("VLLM_TARGET_DEVICE") or "cuda"
    count = jobs(environment.get("BUILD_JOBS", ""), os.cpu_count() or 1, free_memory())
    common = {
        "MAX_JOBS": str(count),
        "TORCH_CUDA_ARCH_LIST": environment.get("TORCH_CUDA_ARCH_LIST", ""),
        "CCACHE_DIR": "/root/.cache/ccache",
    }
    SOURCES.mkdir(exist_ok=True)
    built.mkdir(exist_ok=True)
    try:
        if device == "cuda" and not any(Path(at, "nvcc").exists() for at in os.environ["PATH"].split(":")):
            raise SourceError("the base image has no nvcc; set image_source_base to a CUDA 13 development image")
        pulls = environment.get("VLLM_PRS", "").split()
        if RELEASE.fullmatch(ref):
            tree = release(ref, environment.get("VLLM_SHA256", ""))
        else:
            tree = checkout("vllm", environment["VLLM_REPOSITORY"], ref, pulls)
        commit = ""
        if (tree / ".git").exists():
            commit = run(["git", "-C", str(tree), "rev-parse", "HEAD"], "no commit").strip()
        skip = [word for name in environment.get("PATCHES_SKIP", "").split() for word in ("--skip", name)]
        line = [
            sys.executable,
            "-m",
            "patches",
            "apply",
            "--source",
            str(tree),
            "--report",
            str(built / "patches.json"),
        ]
        print(
            run([*line, *skip], "a patch stopped the build; the line above says which", PYTHONPATH=str(HERE)),
            flush=True,
        )
        version = {"VLLM_VERSION_OVERRIDE": ref} if RELEASE.fullmatch(ref) else {}
        new = wheel(tree, built, {**common, **version, "VLLM_TARGET_DEVICE": device})
        check_fits(new, site)
        made = {"vllm": {"ref": ref, "commit": commit, "pull_requests": pulls, "wheel": new.name}}
        if environment.get("TRITON_REF"):
            triton = checkout("triton", environment["TRITON_REPOSITORY"], environment["TRITON_REF"])
            commit = run(["git", "-C", str(triton), "rev-parse", "HEAD"], "no commit").strip()
            new = wheel(triton, built, common)
            made["triton"] = {"ref": environment["TRITON_REF"], "commit": commit, "wheel": new.name}
        (built / "source.json").write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
    except SourceError as error:
        print(f"source: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(os.environ, Path("/built"), sys.argv[1]))
