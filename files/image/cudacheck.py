# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Build the CUDA image for x86-64 and prove it, without a GPU; ``make image-cuda-check`` runs it.

The build is that of a node: the same Dockerfile, the wheels by hash, and its last step checks the image. The image is
then checked once more as the verify playbook does it: in a read-only container without network. Took 23 minutes on two
busy cores, with 30 GB of disk while it runs and 4 GB of downloads. Left are the log and the build cache of the engine.

The base is Ubuntu 24.04 as the engine has it or pulls it. Where no registry can be reached, --mirror makes one of a
mirror of Ubuntu's packages with debootstrap (as root; signatures are checked where Ubuntu's keyring is installed).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

IMAGE = Path(__file__).resolve().parent
REPOSITORY = IMAGE.parents[1]
VARIANT, MACHINE, SUITE = "cuda", "x86_64", "noble"
EPOCH = 1_780_272_000
NEEDED_GB = 35
NAME = "sparkfleet/image-cuda-check"


class CheckError(Exception):
    """What cannot be done and what to do, in one line."""


def say(text: str) -> None:
    """Print a line at once."""
    print(text, flush=True)


def run(line: list[str], what: str, **env: str) -> str:
    """Run a command and return its output; raise CheckError with its last line where it fails."""
    try:
        done = subprocess.run(line, capture_output=True, text=True, check=False, env={**os.environ, **env})
    except FileNotFoundError as error:
        raise CheckError(f"{what}: {line[0]} is not installed; install it") from error
    if done.returncode:
        lines = (done.stderr.strip() or done.stdout.strip() or f"exit {done.returncode}").splitlines()
        raise CheckError(f"{what}: {lines[-1]}")
    return done.stdout


def packages() -> str:
    """Return the packages of the image's lists: with them in the base, the build asks apt for nothing."""
    names: set[str] = set()
    for file in ("packages.txt", "packages-build.txt"):
        lines = (IMAGE / VARIANT / file).read_text(encoding="utf-8").splitlines()
        names |= {line.strip() for line in lines if line.strip() and not line.startswith("#")}
    return ",".join(sorted(names))


def debootstrap(docker: str, work: Path, mirror: str) -> str:
    """Make a base image of a mirror's packages; return its name."""
    root = work / "base"
    shutil.rmtree(root, ignore_errors=True)
    line = ["debootstrap", "--variant=minbase", "--components=main,universe", f"--include={packages()}"]
    keyring = Path("/usr/share/keyrings/ubuntu-archive-keyring.gpg")
    if not keyring.is_file():
        say(f"{keyring} is not here: signatures of the base's packages are not checked")
        line.append("--no-check-gpg")
    scripts = Path("/usr/share/debootstrap/scripts")
    script = scripts / SUITE if (scripts / SUITE).exists() else scripts / "jammy"  # older debootstraps lack the name
    run([*line, SUITE, str(root), mirror, str(script)], "debootstrap")
    name = f"{NAME}-base:{SUITE}"
    pack = subprocess.Popen(["tar", "-C", str(root), "-c", "."], stdout=subprocess.PIPE)
    subprocess.run([docker, "import", "-", name], stdin=pack.stdout, stdout=subprocess.DEVNULL, check=True)
    pack.wait()
    shutil.rmtree(root)
    return name


def context(work: Path) -> tuple[Path, str]:
    """Lay out the build's context as role image does; return it and the hash of the kernels' wheel."""
    sys.dont_write_bytecode = True
    sys.path.insert(0, str(IMAGE))
    from describe import digest

    wheels = sorted((REPOSITORY / "files/kernels/dist").glob(f"*_{MACHINE}.whl"))
    if len(wheels) != 1:
        raise CheckError(f"files/kernels/dist holds {len(wheels)} wheels for {MACHINE}; run make kernels")
    target = work / "context"
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(IMAGE, target, ignore=shutil.ignore_patterns("__pycache__", "README.md"))
    for name in ("wheels", "kernels", "mods"):
        (target / name).mkdir()
    shutil.copy(wheels[0], target / "kernels")
    for path in target.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    return target, digest(wheels[0].read_bytes())


def build(docker: str, directory: Path, base: str, kernels: str, log: Path) -> None:
    """Build, with the output in a file. Raises CheckError."""
    has_buildx = subprocess.run([docker, "buildx", "version"], capture_output=True, check=False).returncode == 0
    line = [docker, *(["buildx", "build", "--load"] if has_buildx else ["build"]), "--progress=plain", "--network=host"]
    arguments = {
        "VARIANT": VARIANT,
        "BASE": base,
        "SOURCE_DATE_EPOCH": str(EPOCH),
        "KERNELS_SHA256": kernels,
        "BUILD_KEY": "",
    }
    line += [f"--build-arg={name}={value}" for name, value in arguments.items()]
    if certificates := os.environ.get("PIP_CERT"):
        line.append(f"--secret=id=ca,src={certificates}")
    with log.open("wb") as file:
        env = {**os.environ, "DOCKER_BUILDKIT": "1"}
        done = subprocess.run(
            [*line, f"--tag={NAME}", str(directory)], stdout=file, stderr=subprocess.STDOUT, env=env, check=False
        )
    text = log.read_text(errors="replace")
    for part in text.splitlines():
        words = part.split(" ", 2)
        if words[0].startswith("#") and words[-1].startswith(("passed ", "failed ", "not run ", "problem: ")):
            say(f"  build: {words[-1]}")
    if done.returncode:
        last = [part for part in text.splitlines() if part.strip()][-1]
        raise CheckError(f"the build failed: {last}; see {log}")


def layers(docker: str) -> None:
    """Print the layers that hold something, with their sizes."""
    lines = run(
        [docker, "history", "--human=false", "--no-trunc", "--format", "{{.Size}} {{.CreatedBy}}", NAME], "layers"
    )
    for line in reversed(lines.splitlines()):
        size, _space, made_by = line.partition(" ")
        if int(size):
            say(f"  {int(size) / 1e6:8.1f} MB  {' '.join(made_by.split())[:70]}")


def check(options: argparse.Namespace, work: Path) -> int:
    """Build and check; return the exit status of the checks."""
    docker = options.docker
    base = debootstrap(docker, work, options.mirror) if options.mirror else options.base
    say(f"base image: {base}")
    directory, kernels = context(work)
    start = time.monotonic()
    build(docker, directory, base, kernels, work / "build.log")
    found: dict[str, Any] = json.loads(run([docker, "image", "inspect", NAME], "image"))[0]
    say(f"built {MACHINE}: {found['Size'] / 1e9:.2f} GB in {len(found['RootFS']['Layers'])} layers")
    say(f"build time: {time.monotonic() - start:.0f} s, with what it downloaded")
    layers(docker)
    say(run([docker, "run", "--rm", "--entrypoint=cat", NAME, "/etc/sparkfleet/image.json"], "image.json").rstrip())
    line = [docker, "run", "--rm", "--network=none", "--read-only", "--tmpfs=/tmp:size=256m", "--env=HOME=/tmp"]
    line += ["--cap-drop=ALL", "--security-opt=no-new-privileges", NAME, "verify"]
    say("in a read-only container without network:")
    return subprocess.run(line, check=False).returncode


def main(arguments: list[str]) -> int:
    """Check; return the exit status."""
    parser = argparse.ArgumentParser(prog="cudacheck.py", description="Build the CUDA image for x86-64 and prove it.")
    parser.add_argument("--base", default="ubuntu:24.04", help="image to build on")
    parser.add_argument("--mirror", help="make the base with debootstrap from this mirror of Ubuntu's packages")
    parser.add_argument("--docker", default="docker", help="program that can build with BuildKit")
    parser.add_argument("--keep", action="store_true", help=f"leave the image {NAME}")
    options = parser.parse_args(arguments)
    work = REPOSITORY / "build" / "image-cuda"
    work.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    try:
        root = run([options.docker, "info", "--format", "{{.DockerRootDir}}"], "docker").strip()
        free = shutil.disk_usage(root if Path(root).is_dir() else "/").free
        if free < NEEDED_GB * 10**9:
            raise CheckError(f"{free / 1e9:.1f} GB free in {root}, {NEEDED_GB} GB needed; make room")
        status = check(options, work)
    except CheckError as error:
        print(f"image-cuda-check: {error}", file=sys.stderr)
        return 2
    finally:
        shutil.rmtree(work / "context", ignore_errors=True)
        if not options.keep:
            for name in (NAME, f"{NAME}-base:{SUITE}"):
                subprocess.run([options.docker, "image", "rm", "--force", name], capture_output=True, check=False)
    say(f"image-cuda-check: {'failed' if status else 'passed'}, {time.monotonic() - start:.0f} s")
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
