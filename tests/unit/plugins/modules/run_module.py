# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run one of our modules as Ansible does: a process of its own that reads JSON and prints JSON."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import typing as t
from pathlib import Path

TREE = Path(__file__).parents[4] / ".collections"


def run_module(name: str, arguments: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    """Return what the module `name` answers, failures included."""
    with tempfile.TemporaryDirectory() as temporary:
        given = {"_ansible_remote_tmp": temporary, **arguments}
        done = subprocess.run(
            [sys.executable, "-m", f"ansible_collections.sparkfleet.vllm.plugins.modules.{name}"],
            input=json.dumps({"ANSIBLE_MODULE_ARGS": given}),
            env={**os.environ, "PYTHONPATH": str(TREE)},
            capture_output=True,
            text=True,
            check=False,
        )
    if not done.stdout:
        raise RuntimeError(done.stderr)
    return t.cast("dict[str, t.Any]", json.loads(done.stdout))
