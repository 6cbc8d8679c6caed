# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Write the locks of each variant: every wheel's version and hashes, as pip's --require-hashes wants them.

``make lock`` runs it. uv resolves for the image's platform on any machine; it asks the package index that uv is set up
for, and the directories of PIP_FIND_LINKS where there are such. Locks are committed: builds read only them.

A variant's first machine is resolved freely. The others take its versions, so that what is checked on one is what
runs on the other. proof.in is what the build checks an image with; it does not become a part of it.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

DIRECTORY = Path(__file__).resolve().parent
#: Machine -> platform and Python of the image.
MACHINES: dict[str, dict[str, tuple[str, str]]] = {
    "cpu": {"x86_64": ("x86_64-manylinux_2_36", "3.11")},
    "cuda": {"aarch64": ("aarch64-manylinux_2_39", "3.12"), "x86_64": ("x86_64-manylinux_2_39", "3.12")},
}
HEADER = "# The lock of the {} image: made by `make lock` from {}; do not edit.\n"


def command(variant: str, source: str, machine: str, find_links: list[str], constraint: Path | None) -> list[str]:
    """Return the line that resolves a variant's ``source`` to standard output."""
    platform, python = MACHINES[variant][machine]
    line = ["uv", "pip", "compile", "--quiet", "--no-header", "--generate-hashes", "--only-binary", ":all:"]
    line += ["--system-certs", "--python-platform", platform, "--python-version", python]
    line += [word for directory in find_links for word in ("--find-links", directory)]
    if constraint:
        line += ["--constraint", str(constraint)]
    if source == "requirements.in":
        line += ["--override", f"{variant}/overrides.in"]
    return [*line, f"{variant}/{source}"]


def pins(lock: str) -> str:
    """Return the versions of a lock without their hashes."""
    return "".join(f"{pin}\n" for pin in re.findall(r"^[a-z0-9][\w.-]*==[^\s;\\]+", lock, re.MULTILINE))


def write(variant: str, source: str, links: list[str]) -> int:
    """Write the locks of one of a variant's files for all its machines; return the exit status of uv."""
    with tempfile.TemporaryDirectory() as directory:
        constraint = Path(directory, "constraint.txt")
        for machine in MACHINES[variant]:
            line = command(variant, source, machine, links, constraint if constraint.is_file() else None)
            done = subprocess.run(line, cwd=DIRECTORY, stdout=subprocess.PIPE, text=True, check=False)
            if done.returncode:
                return done.returncode
            made_of = "requirements.in and overrides.in" if source == "requirements.in" else source
            header = HEADER.format(variant.upper(), made_of)
            # uv says by which file a version was chosen; a constraint of ours is no reason.
            text = re.sub(r"^ +#   -c \S+\n", "", done.stdout, flags=re.MULTILINE)
            (DIRECTORY / variant / f"{source.removesuffix('.in')}-{machine}.lock").write_text(header + text)
            if not constraint.is_file():
                constraint.write_text(pins(done.stdout))
    return 0


def main(variants: list[str]) -> int:
    """Write the locks; return the exit status."""
    links = os.environ.get("PIP_FIND_LINKS", "").split()
    for variant in variants or MACHINES:
        for source in ("requirements.in", "proof.in"):
            if (DIRECTORY / variant / source).is_file() and (status := write(variant, source, links)):
                return status
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
