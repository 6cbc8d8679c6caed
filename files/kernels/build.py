# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Build the wheels of sparkfleet-kernels on x86-64: for x86-64, and cross-compiled for aarch64.

``make kernels`` runs it after it has made .venv-kernels, which holds nvcc, CMake and torch's headers. What is missing
of Debian's compilers is installed with apt, in one line that says so. A second run compiles what changed.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PROJECT = Path(__file__).resolve().parent
REPOSITORY = PROJECT.parent.parent
VENV = REPOSITORY / ".venv-kernels"
#: Machine as in the wheel's tag -> compiler, its Debian package, and the target's name in CUDA's toolkit.
MACHINES = {
    "x86_64": ("g++", "g++", "x86_64-linux"),
    "aarch64": ("aarch64-linux-gnu-g++", "g++-aarch64-linux-gnu", "sbsa-linux"),
}
PLATFORM = "manylinux_2_34"  # glibc 2.34: Ubuntu 22.04 and later, DGX OS 7 among them
EPOCH = "1780272000"  # seconds; the time of every file in the wheels, so that their bytes do not depend on today
#: Flags of the user's other builds; nvcc's own pair would also override what each architecture is compiled for.
FOREIGN_FLAGS = ("NVCC_PREPEND_FLAGS", "NVCC_APPEND_FLAGS", "CXXFLAGS", "CUDAFLAGS", "LDFLAGS")


class BuildError(Exception):
    """What could not be built, and what to do; the output of the failed command comes before it."""


def run(command: list[str], what: str, **variables: str) -> None:
    """Run ``command`` with .venv-kernels' tools first in the PATH; its output is shown only where it fails.

    :raises BuildError: it fails.
    """
    env = {name: value for name, value in os.environ.items() if name not in FOREIGN_FLAGS}
    env.update(variables, PATH=f"{VENV / 'bin'}:{env.get('PATH', os.defpath)}")
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, env=env)
    if done.returncode:
        print(done.stdout, flush=True)
        raise BuildError(f"{what} failed")


def compilers(machines: list[str]) -> None:
    """Install the host compilers that are missing.

    :raises BuildError: they cannot be installed.
    """
    wanted = [MACHINES[machine] for machine in machines]
    missing = [package for program, package, _target in wanted if shutil.which(program) is None]
    if not missing:
        return
    sys.path.insert(0, str(REPOSITORY))
    from simulator import engine  # it knows how to install a package

    try:
        engine.install(missing, engine.privilege())
    except engine.EngineError as error:
        raise BuildError(str(error)) from error


def toolkit() -> Path:
    """Return .venv-kernels' nvcc, after giving the wheels' folder the layout of CUDA's toolkit with its two targets.

    :raises BuildError: .venv-kernels has no nvcc, or aarch64's runtime cannot be had.
    """
    found = list(VENV.glob("lib/python3*/site-packages/nvidia/cu13/bin/nvcc"))
    if not found:
        raise BuildError(f"{VENV} has no nvcc; `make kernels` makes it anew once it is removed")
    root = found[0].parent.parent
    for _program, _package, target in MACHINES.values():
        (root / "targets" / target).mkdir(parents=True, exist_ok=True)
        if not (root / "targets" / target / "include").is_symlink():
            (root / "targets" / target / "include").symlink_to("../../include")
    if not (root / "targets" / "x86_64-linux" / "lib").is_symlink():
        (root / "targets" / "x86_64-linux" / "lib").symlink_to("../../lib")
    aarch64 = root / "targets" / "sbsa-linux" / "lib"
    if not aarch64.is_dir():
        with tempfile.TemporaryDirectory(dir=root) as place:
            command = [str(VENV / "bin" / "python"), "-m", "pip", "install", "--no-deps", "--require-hashes"]
            command += ["--only-binary", ":all:", "--platform", "manylinux2014_aarch64", "--target", place]
            run([*command, "--requirement", str(PROJECT / "requirements-aarch64.lock")], "CUDA's runtime for aarch64")
            (Path(place) / "nvidia" / "cu13" / "lib").rename(aarch64)
    return found[0]


def lock() -> None:
    """Resolve the two locks anew; where the CPU image's lock has a package, its version is taken.

    :raises BuildError: uv fails.
    """
    image = REPOSITORY / "files" / "image" / "cpu" / "requirements-x86_64.lock"
    for name, machine in (("build", "x86_64"), ("aarch64", "aarch64")):
        target = PROJECT / f"requirements-{name}.lock"
        command = [sys.executable, "-m", "uv", "pip", "compile", "--quiet", "--no-header", "--no-annotate"]
        command += ["--generate-hashes", "--only-binary", ":all:", "--system-certs", "--python-version", "3.11"]
        command += ["--python-platform", f"{machine}-{PLATFORM}", "--constraint", str(image)]
        done = subprocess.run([*command, f"{target.stem}.in"], cwd=PROJECT, stdout=subprocess.PIPE, check=False)
        if done.returncode:
            raise BuildError(f"uv cannot resolve {target.stem}.in")
        head = f"# The lock of {target.stem}.in: made by `make lock`; do not edit.\n"
        target.write_text(head + done.stdout.decode())


def build(machine: str, nvcc: Path, output: Path, work: Path, defines: list[str]) -> Path:
    """Build one wheel and return it; ``work`` is kept for the next time.

    :raises BuildError: it does not build, or needs something that ``PLATFORM`` does not have.
    """
    shutil.rmtree(work / "wheel", ignore_errors=True)
    settings = [f"build-dir={work / 'cmake'}", f"cmake.define.CMAKE_CUDA_COMPILER={nvcc}"]
    settings += [f"cmake.define.{define}" for define in defines]
    if machine == "aarch64":
        settings.append(f"cmake.toolchain-file={PROJECT / 'cmake' / 'aarch64-linux-gnu.cmake'}")
    command = [str(VENV / "bin" / "python"), "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index"]
    command += [word for setting in settings for word in ("--config-settings", setting)]
    epoch = os.environ.get("SOURCE_DATE_EPOCH", EPOCH)
    # The name by which Python's build tools are told of another platform than their own.
    platform = f"linux-{machine}"
    command += ["--wheel-dir", str(work / "wheel"), str(PROJECT)]
    run(command, f"the wheel for {machine}", SOURCE_DATE_EPOCH=epoch, _PYTHON_HOST_PLATFORM=platform)
    (wheel,) = (work / "wheel").glob("*.whl")
    # Writes the oldest platform that has every symbol which the library needs into the tag.
    command = [str(VENV / "bin" / "auditwheel"), "repair", "--plat", "auto", "--only-plat"]
    command += ["--exclude", "libtorch_cpu.so", "--wheel-dir", str(work / "wheel" / "tagged"), str(wheel)]
    run(command, f"auditwheel for {machine}", SOURCE_DATE_EPOCH=epoch)
    (tagged,) = (work / "wheel" / "tagged").glob("*.whl")
    if not tagged.stem.endswith(f"-{PLATFORM}_{machine}"):
        raise BuildError(f"{tagged.name} is not for {PLATFORM}: this system's C library is too new, or too old")
    output.mkdir(parents=True, exist_ok=True)
    for old in output.glob(f"*_{machine}.whl"):
        old.unlink()
    return Path(shutil.move(tagged, output))


def main(arguments: list[str] | None = None) -> int:
    """Build what is asked for; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--machine", action="append", choices=[*MACHINES], help="this one only; may be repeated")
    parser.add_argument("--nvcc", type=Path, help="another nvcc than .venv-kernels', 13.0 or newer")
    parser.add_argument("--output", type=Path, default=PROJECT / "dist", help="folder for the wheels")
    parser.add_argument("--work", type=Path, default=REPOSITORY / "build" / "kernels", help="folder for what is built")
    parser.add_argument("--define", action="append", default=[], metavar="NAME=VALUE", help="setting for CMake")
    parser.add_argument("--lock", action="store_true", help="resolve the locks and build nothing")
    given = parser.parse_args(arguments)
    machines = given.machine or [*MACHINES]
    try:
        if given.lock:
            lock()
            return 0
        compilers(machines)
        nvcc = given.nvcc.absolute() if given.nvcc else toolkit()
        for machine in machines:
            start = time.monotonic()
            wheel = build(machine, nvcc, given.output, (given.work / machine).absolute(), given.define)
            seconds = time.monotonic() - start
            print(f"kernels: {wheel}: {wheel.stat().st_size / 1e6:.1f} MB in {seconds:.0f} s", flush=True)
    except BuildError as error:
        print(f"kernels: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
