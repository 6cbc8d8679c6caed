# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The bench playbook on what is served: twice, so that there is something to compare with."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from tests.scenario import ansible_playbook, api_key, on_node

SMALL = ("concurrency=1,2", "prompts=4", "warmup=2", "input_tokens=32", "output_tokens=8")


def bench(*variables: str) -> subprocess.CompletedProcess[str]:
    """Run the playbook with these variables without their prefix."""
    given = [part for variable in variables for part in ("-e", f"bench_{variable}")]
    return ansible_playbook("playbooks/bench.yml", *given)


def records(directory: Path) -> list[dict[str, Any]]:
    """Return what was written, the oldest first."""
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(directory.glob("*.json"))]


def left_behind() -> str:
    """Return what of the client is still on the node that it ran on."""
    return on_node(
        "spark-01", "docker ps --all --quiet --filter name=sparkfleet-bench; find /tmp -name 'sparkfleet-bench*'"
    )


def test_a_second_run_is_compared_with_the_first(tmp_path: Path) -> None:
    serving = on_node("spark-01", "docker inspect --format '{{.Id}} {{.Image}}' spark-vllm-tiny").split()
    first = bench(*SMALL, f"dir={tmp_path}")
    assert first.returncode == 0, first.stdout
    assert "No earlier run to compare with." in first.stdout
    (record,) = records(tmp_path)
    assert record["image"]["id"] == serving[1] and record["vllm"] == "0.32.0"
    assert (
        record["executor"] == "ray" and record["sizes"]["tensor"] == 2 and record["nodes"] == ["spark-01", "spark-02"]
    )
    assert [step["concurrency"] for step in record["steps"]] == [1, 2]
    for step in record["steps"]:
        assert (step["completed"], step["failed"], step["output_tokens"]) == (4, 0, 4 * 8)
        assert step["output_tokens_per_s"] > 0 and step["e2e_ms"]["p99"] >= step["ttft_ms"]["median"] > 0
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".json", ".md", ".svg"]
    assert left_behind() == ""

    second = bench(*SMALL, f"dir={tmp_path}")
    assert second.returncode == 0, second.stdout
    assert f"({next(iter(sorted(tmp_path.glob('*.json')))).name})" in second.stdout and "change" in second.stdout
    compared = records(tmp_path)[1]["compared_with"]
    assert (tmp_path / compared).is_file()
    (page,) = (path for path in tmp_path.glob("*.md") if path.stem != Path(compared).stem)
    assert "| change |" in page.read_text(encoding="utf-8")
    assert 'class="before"' in page.with_suffix(".svg").read_text(encoding="utf-8")
    assert left_behind() == ""

    written = "".join(path.read_text(encoding="utf-8") for path in tmp_path.iterdir())
    assert api_key() not in written + first.stdout + second.stdout
    assert on_node("spark-01", "docker inspect --format '{{.Id}} {{.Image}}' spark-vllm-tiny").split() == serving


def test_what_cannot_be_measured_is_a_line_and_nothing_runs(tmp_path: Path) -> None:
    done = bench("input_tokens=500", "output_tokens=100", f"dir={tmp_path}")
    assert done.returncode != 0
    assert "spark-01: tiny takes 512 tokens, and 500 of input with 100 of output are 600; lower" in done.stdout
    assert list(tmp_path.iterdir()) == []
