# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Holds the rule of the built library against a recorded sweep; needs the library, but no GPU.

    python files/kernels/bench/sweep.py results/sweep-nvidia-h200.json [--write]

Prints where the rule loses most against the best variant, and a summary. ``--write`` records what the rule chooses now
in the sweep, from which the documents' table is made. Exit status: 1 if it loses more than 5 % anywhere.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import work

if TYPE_CHECKING:
    from measure import Operators

KINDS = ("dense", "gate_up", "down")


def choice(ops: Operators, machine: dict[str, Any], point: dict[str, Any]) -> int:
    """Return what the rule takes at a point of a sweep, on the machine of the sweep."""
    kind = {"dense": ops.DENSE, "gate_up": ops.GATE_UP, "down": ops.DOWN}[point["kind"]]
    return ops.variant(
        kind, point["n"], point["k"], point["m"], point["groups"], machine["sms"], machine["shared_bytes"]
    )


def compare(ops: Operators, sweep: dict[str, Any]) -> Iterable[tuple[dict[str, Any], work.Gap]]:
    """Yield every point of a sweep with what the rule costs there.

    :raises ValueError: the rule takes a variant that the sweep has no time for.
    """
    for point in sweep["sweep"]:
        yield point, work.gap(point, choice(ops, sweep["machine"], point))


def main(argv: Sequence[str] | None = None) -> int:
    """Compare and print; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("sweep", type=Path, metavar="FILE", help="JSON of bench.py --sweep")
    parser.add_argument("--show", type=int, default=20, metavar="COUNT", help="points to print, the worst first")
    parser.add_argument("--write", action="store_true", help="record the rule's choices in the file")
    parsed = parser.parse_args(argv)
    from sparkfleet_kernels import ops

    sweep = work.load(parsed.sweep)
    compared = list(compare(ops, sweep))
    worst_first = sorted(compared, key=lambda pair: -pair[1].loss)
    for point, gap in worst_first[: parsed.show]:
        print(
            f"{work.describe(point):>36}  rule {gap.variant:>5} {gap.us:8.2f} us  best {gap.best:>5} "
            f"{gap.best_us:8.2f} us  {100 * gap.loss:5.1f} %"
        )
    for kind in KINDS:
        losses = [gap.loss for point, gap in compared if point["kind"] == kind]
        if losses:
            print(
                f"{kind}: {len(losses)} points, median {100 * statistics.median(losses):.1f} %, largest "
                f"{100 * max(losses):.1f} %, {sum(loss > work.RULE_MARGIN for loss in losses)} beyond "
                f"{100 * work.RULE_MARGIN:.0f} %"
            )
    if parsed.write:
        for point, gap in compared:
            point["rule"] = gap.variant
        parsed.sweep.write_text(work.dump(sweep), encoding="utf-8")
    return 1 if any(gap.loss > work.RULE_MARGIN for _point, gap in compared) else 0


if __name__ == "__main__":
    sys.exit(main())
