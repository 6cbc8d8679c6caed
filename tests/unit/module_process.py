# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run a module as Ansible does: a process of its own, arguments on stdin, JSON on stdout."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


def run_module(
    name: str, arguments: dict[str, Any], tmp_path: Path, check: bool = False, path: str | None = None
) -> dict[str, Any]:
    """Return the module's answer. ``path`` replaces PATH, for programs that the test provides."""
    arguments = {**arguments, "_ansible_check_mode": check, "_ansible_remote_tmp": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-m", f"ansible_collections.sparkfleet.vllm.plugins.modules.{name}"],
        input=json.dumps({"ANSIBLE_MODULE_ARGS": arguments}),
        env={**os.environ, "PATH": path or os.environ["PATH"], "PYTHONPATH": str(ROOT / ".collections")},
        capture_output=True,
        text=True,
        check=False,
    )
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def program(directory: Path, name: str, text: str) -> None:
    """Put a shell script into ``directory``."""
    directory.mkdir(exist_ok=True)
    (directory / name).write_text(f"#!/bin/sh\n{text}\n")
    (directory / name).chmod(0o755)
