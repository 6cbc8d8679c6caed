# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Several runs of ``vllm bench serve`` in one process: ``sweep.py PLAN REPORT``.

For the bench playbook, which runs it in a container of the image that serves. PLAN is JSON: ``steps``, a list with the
``name`` and ``arguments`` of each run. REPORT is written anew after each of them, so that what was measured is not lost
with what comes after: ``vllm``, its version, and ``steps``, with ``name`` and either the ``result`` that vLLM saved, or
the ``error`` that ended it. A run without an answer is the last one.

One process, as importing vLLM takes longer than a short run does. And the API key gets into its environment here and
not when it is started: so it is in no command line, not in what Docker shows, and not in /proc.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

KEY_FILE = Path("/run/secrets/api-key")

DETAILS = ("input_lens", "output_lens", "ttfts", "itls", "start_times", "generated_texts", "latencies", "queue_times")
"""What vLLM saves for each single request, texts among it."""


def vllm_bench(arguments: list[str]) -> None:
    """Run ``vllm bench serve``."""
    from vllm.entrypoints.cli.main import main as vllm

    sys.argv = ["vllm", "bench", "serve", *arguments]
    vllm()


def reasons(errors: list[str]) -> dict[str, int]:
    """Return why requests failed, the last line of each, with how often; an answer has an empty one."""
    return dict(Counter(error.strip().splitlines()[-1].strip() for error in errors if error.strip()))


def measure(step: Mapping[str, Any], bench: Callable[[list[str]], None]) -> dict[str, Any]:
    """Run one step; return its result, or the error that ended it."""
    with tempfile.TemporaryDirectory() as directory:
        saved = Path(directory) / "result.json"
        where = ["--save-result", "--save-detailed", "--result-dir", directory, "--result-filename", saved.name]
        try:
            bench([*step["arguments"], *where])
            result = json.loads(saved.read_text(encoding="utf-8"))
        except SystemExit as error:  # argparse has said why
            return {"name": step["name"], "error": f"vllm bench serve ended with status {error.code}"}
        except Exception as error:
            return {"name": step["name"], "error": f"{type(error).__name__}: {error}"}
    kept = {key: value for key, value in result.items() if key not in DETAILS}
    return {"name": step["name"], "result": {**kept, "errors": reasons(result.get("errors") or [])}}


def sweep(
    plan: Mapping[str, Any], report: Path, version: Callable[[], str], bench: Callable[[list[str]], None]
) -> dict[str, Any]:
    """Run all steps, and keep the report up to date."""
    found: dict[str, Any] = {"vllm": version(), "steps": []}
    for step in plan["steps"]:
        print(f"{step['name']}: vllm bench serve {' '.join(step['arguments'])}", flush=True)
        done = measure(step, bench)
        found["steps"].append(done)
        temporary = report.with_suffix(".tmp")
        temporary.write_text(json.dumps(found), encoding="utf-8")
        temporary.replace(report)
        if not done.get("result", {}).get("completed"):
            break
    return found


def vllm_version() -> str:
    """Return vLLM's version."""
    import vllm

    return str(vllm.__version__)


def main(arguments: list[str]) -> int:
    """Run what the plan says; 0 when every step came to a result."""
    plan, report = map(Path, arguments)
    if KEY_FILE.exists():
        os.environ["OPENAI_API_KEY"] = KEY_FILE.read_text(encoding="utf-8").strip()
    steps = json.loads(plan.read_text(encoding="utf-8"))
    found = sweep(steps, report, vllm_version, vllm_bench)
    return 0 if len(found["steps"]) == len(steps["steps"]) and "error" not in found["steps"][-1] else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
