# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""supervisor_info reads the state of every supervisor, and of the journal no more than it is asked for."""

from __future__ import annotations

import itertools
import json
import os
from pathlib import Path
from typing import Any

from ansible_collections.sparkfleet.vllm.tests.unit.module_process import program, run_module

RUNNING = {"role": "leader", "state": "running", "why": "", "waiting_for": [], "failures": [], "recovered": []}
LINE = "2026-11-23T10:11:1{number}.000001+00:00 spark-01 python3[7]: sparkfleet: spark-ray: round {number}: runs"
EVENT = "2026-11-23T10:11:1{number}.000001+00:00 spark-01 spark-ray: round {number}: runs"


def journal(tmp_path: Path, *lines: str, rc: int = 0) -> str:
    """Put a journalctl with these lines on a PATH; what it was asked is kept in ``asked``."""
    (tmp_path / "journal").write_text("".join(f"{line}\n" for line in lines))
    text = f"printf '%s\\n' \"$@\" > {tmp_path / 'asked'}; cat {tmp_path / 'journal'}; exit {rc}"
    program(tmp_path / "bin", "journalctl", text)
    return f"{tmp_path / 'bin'}:{os.environ['PATH']}"


def read(tmp_path: Path, path: str, check: bool = False, **arguments: Any) -> dict[str, Any]:
    answer = run_module(
        "supervisor_info", {"directory": str(tmp_path / "group"), **arguments}, tmp_path, check=check, path=path
    )
    assert answer.get("failed", False) is False, answer
    assert answer["changed"] is False
    return answer


def write(tmp_path: Path, **files: Any) -> None:
    (tmp_path / "group").mkdir(exist_ok=True)
    for name, content in files.items():
        text = content if isinstance(content, str) else json.dumps(content)
        (tmp_path / "group" / f"{name}.json").write_text(text)


def test_each_state_is_read_under_the_name_of_its_container(tmp_path: Path) -> None:
    down = {**RUNNING, "state": "down", "why": "5 failures in 30 minutes"}
    write(tmp_path, **{"spark-ray": RUNNING, "spark-vllm-Qwen3-0.6B": down})
    (tmp_path / "group" / "spark-ray.json.tmp").write_text("{}")
    for check in (False, True):
        answer = read(tmp_path, journal(tmp_path), check=check)
        assert answer["groups"] == {"spark-ray": RUNNING, "spark-vllm-Qwen3-0.6B": down}


def test_a_state_that_is_not_whole_hides_no_other(tmp_path: Path) -> None:
    write(tmp_path, **{"a": "{", "b": "", "c": [], "d": "7", "spark-ray": RUNNING})
    (tmp_path / "group" / "e.json").write_bytes(b"\xff\xfe")
    (tmp_path / "group" / "f.json").mkdir()
    assert read(tmp_path, journal(tmp_path))["groups"] == {"spark-ray": RUNNING}


def test_a_node_without_supervisors_says_nothing(tmp_path: Path) -> None:
    # journalctl ends with 1 where no line matches.
    answer = read(tmp_path, journal(tmp_path, "-- No entries --", rc=1))
    assert (answer["groups"], answer["events"]) == ({}, [])


def test_a_directory_with_brackets_in_its_name_is_no_pattern(tmp_path: Path) -> None:
    (tmp_path / "group[1]").mkdir()
    (tmp_path / "group[1]" / "spark-ray.json").write_text(json.dumps(RUNNING))
    answer = read(tmp_path, journal(tmp_path), directory=str(tmp_path / "group[1]"))
    assert answer["groups"] == {"spark-ray": RUNNING}


def test_the_last_lines_of_our_units_are_returned_and_nothing_that_others_wrote(tmp_path: Path) -> None:
    lines = [LINE.format(number=number) for number in (1, 2, 3)]
    noise = "2026-11-23T10:11:12+00:00 spark-01 docker[8]: INFO 11-23 engine started"
    events = [EVENT.format(number=number) for number in (1, 2, 3)]
    path = journal(tmp_path, lines[2], noise, *lines[:2])
    assert read(tmp_path, path)["events"] == events, "in the order of their times, whatever comes first"
    asked = (tmp_path / "asked").read_text().splitlines()
    pairs = dict(itertools.pairwise(asked))
    assert (pairs["--unit"], pairs["--lines"], pairs["--output"]) == ("spark-*", "5", "short-iso-precise")
    assert pairs["--grep"].startswith("^sparkfleet:")
    assert {"--no-pager", "--quiet"} <= set(asked)
    assert read(tmp_path, path, events=2)["events"] == events[1:]
    assert "2" in (tmp_path / "asked").read_text().splitlines()


def test_the_journal_is_left_alone_where_no_line_is_wanted(tmp_path: Path) -> None:
    write(tmp_path, **{"spark-ray": RUNNING})
    answer = read(tmp_path, journal(tmp_path, LINE.format(number=1)), events=0)
    assert (answer["events"], answer["groups"]) == ([], {"spark-ray": RUNNING})
    assert not (tmp_path / "asked").exists()
