# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Prove the packages of the aarch64 image without an Arm machine; ``make image-aarch64-check`` runs it.

Lays out the packages of the CUDA variant's aarch64 lock and our aarch64 kernels below build/, with uv, on any machine,
and runs verify.py's checks on that tree: versions, libraries (those of the base image by libraries.txt), the FP4 shim,
and the GPU code. About 8 GB on disk, and 4 GB to download the first time.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path

IMAGE = Path(__file__).resolve().parent
REPOSITORY = IMAGE.parents[1]
VARIANT, MACHINE, PLATFORM, PYTHON = "cuda", "aarch64", "aarch64-manylinux_2_39", "3.12"
NEEDED_GB = 14
"""Space for the packages, what uv unpacks on the way, and some more."""
TOOLS = ("nvidia-cuda-cuobjdump", "nvidia-cuda-nvdisasm")


class CheckError(Exception):
    """What cannot be done and what to do, in one line."""


def say(text: str) -> None:
    """Print a line at once."""
    print(text, flush=True)


def run(line: list[str], what: str) -> None:
    """Run a command; raise CheckError with its last line where it fails."""
    try:
        done = subprocess.run(line, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise CheckError(f"{what}: {line[0]} is not installed; run make setup") from error
    if done.returncode:
        lines = (done.stderr.strip() or done.stdout.strip() or f"exit {done.returncode}").splitlines()
        raise CheckError(f"{what}: {lines[-1]}")


def install(target: Path, cache: Path, lock: Path, *platform: str) -> None:
    """Install a lock into a directory, by hash."""
    line = ["uv", "pip", "install", "--quiet", "--system-certs", "--cache-dir", str(cache), "--link-mode", "hardlink"]
    line += ["--no-deps", "--require-hashes", "--only-binary", ":all:", *platform, "--target", str(target)]
    links = os.environ.get("PIP_FIND_LINKS", "").split()
    line += [word for directory in links if Path(directory).is_dir() for word in ("--find-links", directory)]
    run([*line, "--requirement", str(lock)], lock.name)


def wheel() -> Path:
    """Return our aarch64 wheel. Raises CheckError."""
    found = sorted((REPOSITORY / "files/kernels/dist").glob(f"*_{MACHINE}.whl"))
    if len(found) != 1:
        raise CheckError(f"files/kernels/dist holds {len(found)} wheels for {MACHINE}; run make kernels")
    return found[0]


def check(work: Path) -> int:
    """Lay out and check; return the exit status of the checks."""
    site, tools = work / "site", work / "tools"
    start = time.monotonic()
    for directory in (site, tools):
        shutil.rmtree(directory, ignore_errors=True)
    install(
        site,
        work / "cache",
        IMAGE / VARIANT / f"requirements-{MACHINE}.lock",
        *("--python-platform", PLATFORM, "--python-version", PYTHON),
    )
    with zipfile.ZipFile(wheel()) as archive:
        archive.extractall(site)
    # Programs of this machine, which read code for any.
    install(tools, work / "cache", IMAGE / VARIANT / f"proof-{os.uname().machine}.lock")
    files = [path for path in site.rglob("*") if path.is_file() and not path.is_symlink()]
    size = sum(path.stat().st_size for path in files)
    say(f"laid out {MACHINE}: {len(files)} files, {size / 1e9:.2f} GB, {time.monotonic() - start:.0f} s")
    line = [sys.executable, "-B", str(IMAGE / "verify.py"), "--root", str(site), "--machine", MACHINE]
    line += ["--lock", str(IMAGE / VARIANT / f"requirements-{MACHINE}.lock"), "--tools", str(tools)]
    line += ["--libraries", str(IMAGE / VARIANT / "libraries.txt"), "--json", str(work / "proof.json")]
    return subprocess.run(line, check=False).returncode


def main(arguments: list[str]) -> int:
    """Check; return the exit status."""
    parser = argparse.ArgumentParser(prog="crosscheck.py", description="Prove the aarch64 image's packages anywhere.")
    parser.add_argument("--keep", action="store_true", help="leave the packages below build/")
    options = parser.parse_args(arguments)
    work = REPOSITORY / "build" / f"image-{MACHINE}"
    work.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    try:
        wheel()
        free = shutil.disk_usage(work).free
        if free < NEEDED_GB * 10**9:
            raise CheckError(f"{free / 1e9:.1f} GB free in {work}, {NEEDED_GB} GB needed; make room")
        status = check(work)
    except CheckError as error:
        print(f"image-{MACHINE}-check: {error}", file=sys.stderr)
        return 2
    finally:
        if not options.keep:
            for name in ("site", "tools", "cache"):
                shutil.rmtree(work / name, ignore_errors=True)
    say(f"image-{MACHINE}-check: {'failed' if status else 'passed'}, {time.monotonic() - start:.0f} s")
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
