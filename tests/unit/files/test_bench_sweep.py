# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""sweep.py with a stand-in for vLLM."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from ansible_collections.sparkfleet.vllm.tests.unit.bench_records import recorded

PATH = Path(__file__).resolve().parents[3] / "files" / "bench" / "sweep.py"

# Saves what it is told to in place of a measurement, and tells of its environment.
VLLM = """
import json, os, sys
def main():
    command, given = sys.argv[:3], sys.argv[3:]
    assert command == ["vllm", "bench", "serve"], command
    said = json.loads(given[0])
    if "exit" in said:
        sys.exit(said["exit"])
    if "raise" in said:
        raise ValueError(said["raise"])
    options = dict(zip(given, given[1:]))
    assert "--save-result" in given and "--save-detailed" in given
    said["key"] = os.environ.get("OPENAI_API_KEY")
    started_with = open("/proc/self/environ", "rb").read().decode().split("\\0")
    said["shown"] = [line for line in started_with if line.startswith("OPENAI_API_KEY=")]
    with open(os.path.join(options["--result-dir"], options["--result-filename"]), "w") as stream:
        json.dump(said, stream)
"""


def sweep(tmp_path: Path, *steps: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    """Run sweep.py with a step for each of what vLLM is to do; return its exit status and report."""
    package = tmp_path / "vllm" / "entrypoints" / "cli"
    package.mkdir(parents=True)
    (tmp_path / "vllm" / "__init__.py").write_text('__version__ = "9.8.7"')
    (package / "main.py").write_text(VLLM)
    (tmp_path / "key").write_text("a-key\n")
    # The key's file is at a fixed place in the container.
    program = tmp_path / "sweep.py"
    text = PATH.read_text(encoding="utf-8")
    assert '"/run/secrets/api-key"' in text
    program.write_text(text.replace("/run/secrets/api-key", str(tmp_path / "key")), encoding="utf-8")
    plan = {"steps": [{"name": str(index), "arguments": [json.dumps(step)]} for index, step in enumerate(steps)]}
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    done = subprocess.run(
        [sys.executable, program, tmp_path / "plan.json", tmp_path / "report.json"],
        env={"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "a-key" not in done.stdout + done.stderr
    return done.returncode, json.loads((tmp_path / "report.json").read_text())


def test_each_step_is_reported_without_what_was_said(tmp_path: Path) -> None:
    details = {"ttfts": [1], "itls": [[2]], "generated_texts": ["secret"], "errors": ["", ""]}
    status, report = sweep(tmp_path, {"completed": 2, "failed": 0, **details}, {"completed": 1, "failed": 0})
    assert status == 0 and report["vllm"] == "9.8.7"
    assert [step["name"] for step in report["steps"]] == ["0", "1"]
    assert report["steps"][0]["result"] == {"completed": 2, "failed": 0, "errors": {}, "key": "a-key", "shown": []}


def test_the_key_is_not_in_what_proc_shows(tmp_path: Path) -> None:
    _status, report = sweep(tmp_path, {"completed": 1})
    assert report["steps"][0]["result"]["key"] == "a-key"
    assert report["steps"][0]["result"]["shown"] == []


def test_errors_are_counted_by_their_last_line(tmp_path: Path) -> None:
    errors = ["", "Traceback:\n  here\nOSError: gone\n", "OSError: gone", "Bad Request"]
    _status, report = sweep(tmp_path, {"completed": 1, "failed": 3, "errors": errors})
    assert report["steps"][0]["result"]["errors"] == {"OSError: gone": 2, "Bad Request": 1}


def test_a_step_without_an_answer_is_the_last(tmp_path: Path) -> None:
    status, report = sweep(tmp_path, {"completed": 0, "failed": 2}, {"completed": 1})
    assert status == 1 and len(report["steps"]) == 1


def test_what_was_measured_before_an_error_is_kept(tmp_path: Path) -> None:
    status, report = sweep(tmp_path, {"completed": 1}, {"raise": "no tokenizer"}, {"completed": 1})
    assert status == 1
    assert report["steps"][0]["result"]["completed"] == 1
    assert report["steps"][1:] == [{"name": "1", "error": "ValueError: no tokenizer"}]


def test_an_argument_that_vllm_refuses_is_an_error(tmp_path: Path) -> None:
    status, report = sweep(tmp_path, {"exit": 2})
    assert status == 1
    assert report["steps"] == [{"name": "0", "error": "vllm bench serve ended with status 2"}]


def test_the_recorded_reports_have_this_form() -> None:
    for name in ("sweep", "some_failed", "all_failed", "wrong_argument", "refused"):
        report = recorded(name)
        assert report["vllm"] == "0.32.0" and all("result" in step or "error" in step for step in report["steps"])
