# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""bench_report with files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ansible_collections.sparkfleet.vllm.tests.unit.bench_records import plan, record, recorded
from ansible_collections.sparkfleet.vllm.tests.unit.module_process import run_module

NAME = "atlas-tiny-20261124T101500Z"


def report(tmp_path: Path, check: bool = False, name: str = "sweep", **given: Any) -> dict[str, Any]:
    directory = tmp_path / "bench"
    directory.mkdir(exist_ok=True)
    arguments = {"directory": str(directory), "plan": plan(), "ended": {"status": 0}, **given}
    return run_module("bench_report", {"report": json.dumps(recorded(name)), **arguments}, tmp_path, check=check)


def earlier(tmp_path: Path, faster: float, name: str = "atlas-tiny-20261123T090000Z.json") -> None:
    (tmp_path / "bench").mkdir(exist_ok=True)
    (tmp_path / "bench" / name).write_text(json.dumps(record("2026-11-23T09:00:00Z", faster)))


def test_three_files_are_written(tmp_path: Path) -> None:
    answer = report(tmp_path)
    assert answer["changed"] and answer["problems"] == [] and answer["compared_with"] == ""
    base = tmp_path / "bench" / NAME
    assert answer["files"] == [f"{base}.json", f"{base}.md", f"{base}.svg"]
    assert sorted(map(str, (tmp_path / "bench").iterdir())) == answer["files"]
    assert json.loads(Path(f"{base}.json").read_text()) == answer["record"]
    assert f"]({NAME}.svg)" in Path(f"{base}.md").read_text()
    assert Path(f"{base}.svg").read_text().startswith("<svg ")


def test_check_mode_writes_nothing(tmp_path: Path) -> None:
    answer = report(tmp_path, check=True)
    assert not answer["changed"] and answer["text"] and list((tmp_path / "bench").iterdir()) == []


def test_the_newest_record_is_compared_with_and_broken_ones_are_named(tmp_path: Path) -> None:
    earlier(tmp_path, 1.0)
    earlier(tmp_path, 2.0, "atlas-tiny-20261122T000000Z.json")
    (tmp_path / "bench" / "atlas-tiny-20261124T000000Z.json").write_bytes(b"\xff{")
    (tmp_path / "bench" / "atlas-tiny-20261124T000001Z.json").mkdir()
    (tmp_path / "bench" / "atlas-large-20261124T000000Z.json").write_text("{}")
    answer = report(tmp_path)
    assert answer["compared_with"] == answer["record"]["compared_with"] == "atlas-tiny-20261123T090000Z.json"
    assert answer["text"][-2:] == [
        "atlas-tiny-20261124T000001Z.json is passed over: it cannot be read (Is a directory)",
        "atlas-tiny-20261124T000000Z.json is passed over: it is no JSON",
    ]
    assert 'class="before"' in (tmp_path / "bench" / f"{NAME}.svg").read_text()


def test_a_regression_is_a_line(tmp_path: Path) -> None:
    earlier(tmp_path, 1.06)
    assert report(tmp_path, max_regression=10)["problems"] == []
    (line,) = report(tmp_path, max_regression=5)["problems"]
    assert line.startswith(
        "atlas: tiny: slower than in atlas-tiny-20261123T090000Z.json by more than 5 %: requests/s -5.7 % at"
    )
    assert report(tmp_path)["problems"] == []


def test_without_an_earlier_run_nothing_is_slower(tmp_path: Path) -> None:
    assert report(tmp_path, max_regression=0)["problems"] == []


def test_what_measured_nothing_writes_nothing(tmp_path: Path) -> None:
    answer = report(tmp_path, name="all_failed")
    assert not answer["changed"] and answer["files"] == answer["text"] == [] and len(answer["problems"]) == 2
    answer = report(tmp_path, report="", ended={"error": "Measure: no such image"})
    assert answer["problems"][0].endswith("concurrency 16 not measured; Measure: no such image")
    assert list((tmp_path / "bench").iterdir()) == []


def test_a_directory_that_is_gone_is_a_line(tmp_path: Path) -> None:
    answer = report(tmp_path, directory=str(tmp_path / "gone"))
    assert answer["failed"]
    assert answer["msg"] == (
        f"{tmp_path}/gone: the results cannot be kept (No such file or directory); choose another bench_dir"
    )
