# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Write the table of docs/memory.md: how many Sparks published models need.

Their figures are in tests/unit/data/models. With ``--check`` nothing is written, and a page that is not up to date is
one line and exit status 1.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).resolve().parent.parent
MODELS = CHECKOUT / "tests" / "unit" / "data" / "models"
PAGE = CHECKOUT / "docs" / "memory.md"
MARKER = "models"

sys.path.insert(0, str(CHECKOUT))

from docs import pages  # noqa: E402
from plugins.module_utils import _admission, _memory_plan, _model_config, _model_memory  # noqa: E402

# What role ray gives each node; see playbooks/plan.yml.
SETTINGS = _model_memory.Settings(object_store_bytes=1_000_000_000, shm_bytes=8 << 30)


def model_of(path: Path) -> _model_config.Model:
    """Return the model of a data file."""
    data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return _model_config.model_of(data["config"], data.get("weights_bytes"), data.get("hf_quant_config"))


def kind(model: _model_config.Model) -> str:
    """Return a model's kind and how it is stored."""
    caches = {layer.cache.kind for layer in model.layers}
    parts = ["MoE" if model.experts else "dense"]
    parts += ["MLA"] * model.mla + ["hybrid"] * ("state" in caches) + ["sliding window"] * ("window" in caches)
    return f"{', '.join(parts)} | {model.quantisation.name or 'bf16'}"


def row(path: Path) -> str:
    """Return a model's row."""
    model = model_of(path)
    plan = _memory_plan.plan(model, SETTINGS, _admission.Node())
    size = f"{'≈ ' if model.estimated else ''}{model.weights / _model_memory.GIB:.1f}"
    best = plan.best
    if best is None:
        return f"| {path.stem} | {kind(model)} | {size} | none up to 8 | | | |"
    share = f"{best.settings.gpu_memory_utilization:g}" if best.settings else ""
    room = f"{best.sequences:.1f}" if best.sequences < 10 else f"{best.sequences:.0f}"
    context = str(min(best.reach, plan.wanted)) + (" (fp8 cache)" if best.context < plan.wanted <= best.reach else "")
    return f"| {path.stem} | {kind(model)} | {size} | {best.sparks} | {best.split} | {share} | {context} | {room} |"


def content() -> str:
    """Return what stands between the page's markers."""
    head = "| model | kind | weights as | GiB of weights | Sparks | split | share | context | at once |"
    files = sorted(MODELS.glob("*.json"), key=lambda path: path.stem.lower())
    return "\n".join([head, "|---" * 9 + "|", *(row(path) for path in files)])


def main(argv: Sequence[str] | None = None, page: Path = PAGE) -> int:
    """Write the page, or check it; return the exit status."""
    check = pages.only_check(argv, "Write the table of docs/memory.md.")
    stale = "its table is stale; run: python docs/memory_table.py"
    problem = pages.update(page, MARKER, content(), check, stale, page.name)
    if problem:
        print(problem, file=sys.stderr)
    return int(bool(problem))


if __name__ == "__main__":
    sys.exit(main())
