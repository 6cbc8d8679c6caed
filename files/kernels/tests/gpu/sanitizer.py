# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run the small cases of ``sparkfleet_kernels verify`` under compute-sanitizer's tools.

Needs a GPU, the package on the path, and compute-sanitizer (of the CUDA toolkit). Exit status 0 if every tool is clean.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

#: memcheck also reports CUDA calls that failed; torch makes some that it expects to fail.
TOOLS = {
    "memcheck": ["--report-api-errors", "no"],
    "racecheck": [],
    "initcheck": [],
    "synccheck": [],
}
FOUND = 99
PLACES = ("/usr/local/cuda/bin/compute-sanitizer", "/usr/local/cuda/compute-sanitizer/compute-sanitizer")


def find() -> str | None:
    """Return compute-sanitizer, or None."""
    return shutil.which("compute-sanitizer") or next((place for place in PLACES if Path(place).exists()), None)


def main() -> int:
    """Run the tools; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tools", nargs="*", default=["memcheck", "racecheck"], metavar="tool", help=", ".join(TOOLS))
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    if unknown := set(options.tools) - set(TOOLS):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; choose from {', '.join(TOOLS)}")
    sanitizer = find()
    if sanitizer is None:
        print("sanitizer: compute-sanitizer is not on the PATH; install the CUDA toolkit", file=sys.stderr)
        return 1
    verify = [sys.executable, "-m", "sparkfleet_kernels", "verify", "--sanitizer", "--seed", str(options.seed)]
    failed = []
    for tool in options.tools:
        start = time.monotonic()
        command = [sanitizer, "--tool", tool, "--error-exitcode", str(FOUND), "--print-limit", "20", *TOOLS[tool]]
        result = subprocess.run([*command, *verify], capture_output=True, text=True, timeout=900, check=False)
        output = result.stdout + result.stderr
        summary = re.findall(r"(?:ERROR|RACECHECK) SUMMARY: .*", output)
        # racecheck counts warnings among its hazards; they do not change the exit status, but clean is clean.
        clean = result.returncode == 0 and bool(summary) and all("SUMMARY: 0 " in line for line in summary)
        if not clean:
            failed.append(tool)
            print(output[-8000:])
        state = "clean" if clean else f"exit status {result.returncode}"
        print(f"{tool}: {state}; {'; '.join(summary) or 'no summary'}; {time.monotonic() - start:.0f} s", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
