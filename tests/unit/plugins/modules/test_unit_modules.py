# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The modules that read and stop units, with a systemctl that answers as the test says."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from ansible_collections.sparkfleet.vllm.tests.unit.module_process import program, run_module


def test_unit_info_reads_the_inputs_of_the_running_process(tmp_path: Path) -> None:
    program(
        tmp_path / "bin",
        "systemctl",
        f"echo LoadState=loaded; echo ActiveState=active; echo UnitFileState=enabled; echo MainPID={os.getpid()}",
    )
    (tmp_path / "fabric.env").write_text("A=1\n")
    files = [str(tmp_path / "fabric.env"), str(tmp_path / "absent")]
    path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
    answer = run_module("unit_info", {"name": "x.service", "files": files}, tmp_path, path=path)
    assert (answer["changed"], answer["exists"], answer["active"], answer["enabled"]) == (False, True, True, True)
    assert answer["inputs"] == ""  # pytest's own command line has no label
    assert answer["checksums"] == {files[0]: hashlib.sha256(b"A=1\n").hexdigest(), files[1]: ""}


def systemctl(directory: Path, log: Path) -> str:
    program(
        directory,
        "systemctl",
        f"""case "$1" in
list-units)
    echo "spark-vllm@old.service loaded active running vLLM"
    echo "spark-vllm@new.service loaded active running vLLM" ;;
list-unit-files) exit 1 ;;
*) echo "$@" >> {log} ;;
esac""",
    )
    return f"{directory}:{os.environ['PATH']}"


def test_unit_instances_stops_all_but_the_kept_ones(tmp_path: Path) -> None:
    log = tmp_path / "log"
    path = systemctl(tmp_path / "bin", log)
    arguments = {"template": "spark-vllm@", "keep": ["new"]}
    planned = run_module("unit_instances", arguments, tmp_path, check=True, path=path)
    assert (planned["changed"], planned["removed"], log.exists()) == (True, ["spark-vllm@old.service"], False)
    done = run_module("unit_instances", arguments, tmp_path, path=path)
    assert (done["changed"], done["removed"], done["diff"]) == (True, planned["removed"], planned["diff"])
    assert log.read_text().splitlines()[0] == "disable --now spark-vllm@old.service"


def test_unit_instances_has_nothing_to_do(tmp_path: Path) -> None:
    log = tmp_path / "log"
    path = systemctl(tmp_path / "bin", log)
    answer = run_module("unit_instances", {"template": "spark-vllm@", "keep": ["new", "old"]}, tmp_path, path=path)
    assert (answer["changed"], answer["removed"], log.exists()) == (False, [], False)
