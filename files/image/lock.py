# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Write the lock of each variant: every wheel's version and hashes, as pip's --require-hashes wants them.

``make lock`` runs it. uv resolves for the image's platform on any machine; it asks the package index that uv is set up
for, and the directories of PIP_FIND_LINKS where there are such. Locks are committed: builds read only them.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

DIRECTORY = Path(__file__).resolve().parent
PLATFORMS = {
    "cpu": ("x86_64", "x86_64-manylinux_2_36", "3.11"),
    "cuda": ("aarch64", "aarch64-manylinux_2_39", "3.12"),
}
HEADER = "# The lock of the {} image: made by `make lock` from requirements.in and overrides.in; do not edit.\n"


def command(variant: str, find_links: list[str]) -> list[str]:
    """Return the line that resolves a variant to standard output."""
    _machine, platform, python = PLATFORMS[variant]
    line = ["uv", "pip", "compile", "--quiet", "--no-header", "--generate-hashes", "--only-binary", ":all:"]
    line += ["--system-certs", "--python-platform", platform, "--python-version", python]
    line += [word for directory in find_links for word in ("--find-links", directory)]
    return [*line, "--override", f"{variant}/overrides.in", f"{variant}/requirements.in"]


def main(variants: list[str]) -> int:
    """Write the locks; return the exit status."""
    links = os.environ.get("PIP_FIND_LINKS", "").split()
    for variant in variants or PLATFORMS:
        machine, _platform, _python = PLATFORMS[variant]
        done = subprocess.run(command(variant, links), cwd=DIRECTORY, stdout=subprocess.PIPE, text=True, check=False)
        if done.returncode:
            return done.returncode
        lock = DIRECTORY / variant / f"requirements-{machine}.lock"
        lock.write_text(HEADER.format(variant.upper()) + done.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
