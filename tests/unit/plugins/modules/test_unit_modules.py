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


def unit_files(tmp_path: Path, *names: str) -> Path:
    directory = tmp_path / "system"
    directory.mkdir()
    for name in names:
        (directory / name).write_text("[Unit]\n")
    return directory


OTHERS = ("spark-vllm@.service", "spark-vllm@old.timer", "spark-ray.service", "other@old.service")


def test_unit_instances_removes_the_files_of_the_others_where_asked(tmp_path: Path) -> None:
    log = tmp_path / "log"
    path = systemctl(tmp_path / "bin", log)
    directory = unit_files(tmp_path, *OTHERS, *(f"spark-vllm@{name}.service" for name in ("new", "old", "stopped")))
    arguments = {"template": "spark-vllm@", "keep": ["new"], "remove": True, "directory": str(directory)}
    removed = ["spark-vllm@old.service", "spark-vllm@stopped.service"]
    planned = run_module("unit_instances", arguments, tmp_path, check=True, path=path)
    assert (planned["changed"], planned["removed"], log.exists()) == (True, removed, False)
    assert len(list(directory.iterdir())) == 7
    done = run_module("unit_instances", arguments, tmp_path, path=path)
    assert (done["changed"], done["removed"], done["diff"]) == (True, removed, planned["diff"])
    assert done["diff"] == {
        "before": "spark-vllm@new.service\nspark-vllm@old.service\nspark-vllm@stopped.service\n",
        "after": "spark-vllm@new.service\n",
    }
    assert sorted(path.name for path in directory.iterdir()) == sorted([*OTHERS, "spark-vllm@new.service"])
    # One that runs is stopped while its unit is still there.
    assert log.read_text().splitlines() == [
        "disable --now spark-vllm@old.service",
        "reset-failed spark-vllm@old.service",
        "daemon-reload",
    ]


def test_unit_instances_removes_a_file_whose_unit_systemd_does_not_know(tmp_path: Path) -> None:
    log = tmp_path / "log"
    path = systemctl(tmp_path / "bin", log)
    directory = unit_files(tmp_path, "spark-vllm@stopped.service")
    arguments = {"template": "spark-vllm@", "keep": ["new", "old"], "remove": True, "directory": str(directory)}
    answer = run_module("unit_instances", arguments, tmp_path, path=path)
    assert (answer["changed"], answer["removed"]) == (True, ["spark-vllm@stopped.service"])
    assert (log.read_text(), list(directory.iterdir())) == ("daemon-reload\n", [])


def test_unit_instances_leaves_the_files_where_not_asked(tmp_path: Path) -> None:
    log = tmp_path / "log"
    path = systemctl(tmp_path / "bin", log)
    directory = unit_files(tmp_path, "spark-vllm@stopped.service")
    arguments = {"template": "spark-vllm@", "keep": ["new", "old"], "directory": str(directory)}
    answer = run_module("unit_instances", arguments, tmp_path, path=path)
    assert (answer["changed"], answer["removed"], log.exists()) == (False, [], False)
    assert (directory / "spark-vllm@stopped.service").exists()


def test_unit_instances_that_cannot_be_stopped_keep_their_files(tmp_path: Path) -> None:
    program(
        tmp_path / "bin",
        "systemctl",
        """case "$1" in
list-units) echo "spark-vllm@old.service loaded active running vLLM" ;;
disable) echo "Failed to disable unit: Access denied" >&2; exit 1 ;;
esac""",
    )
    path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
    directory = unit_files(tmp_path, "spark-vllm@old.service")
    arguments = {"template": "spark-vllm@", "remove": True, "directory": str(directory)}
    answer = run_module("unit_instances", arguments, tmp_path, path=path)
    assert "spark-vllm@old.service cannot be stopped: Failed to disable unit: Access denied" in answer["msg"]
    assert (directory / "spark-vllm@old.service").exists()


def test_unit_instances_has_nothing_to_remove(tmp_path: Path) -> None:
    log = tmp_path / "log"
    path = systemctl(tmp_path / "bin", log)
    directory = unit_files(tmp_path, *OTHERS, "spark-vllm@new.service", "spark-vllm@old.service")
    arguments = {"template": "spark-vllm@", "keep": ["new", "old"], "remove": True, "directory": str(directory)}
    answer = run_module("unit_instances", arguments, tmp_path, path=path)
    assert (answer["changed"], answer["removed"], log.exists()) == (False, [], False)
    absent = {**arguments, "directory": str(tmp_path / "absent")}
    assert run_module("unit_instances", absent, tmp_path, path=path)["changed"] is False


def test_unit_instances_has_nothing_to_do(tmp_path: Path) -> None:
    log = tmp_path / "log"
    path = systemctl(tmp_path / "bin", log)
    answer = run_module("unit_instances", {"template": "spark-vllm@", "keep": ["new", "old"]}, tmp_path, path=path)
    assert (answer["changed"], answer["removed"], log.exists()) == (False, [], False)
