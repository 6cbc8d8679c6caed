# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Write the table of docs/ports.md from plugins/module_utils/_ports.py, which the firewall's rules are made from too.

With ``--check`` nothing is written, and a page that is not up to date is one line and exit status 1.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent
PAGE = CHECKOUT / "docs" / "ports.md"
MARKER = "ports"

sys.path.insert(0, str(CHECKOUT))

from docs import pages  # noqa: E402
from plugins.module_utils import _ports  # noqa: E402


def main(argv: Sequence[str] | None = None, page: Path = PAGE) -> int:
    """Write the table, or check it; return the exit status."""
    check = pages.only_check(argv, "Write the table of docs/ports.md.")
    stale = "its table is stale; run: python docs/port_table.py"
    problem = pages.update(page, MARKER, _ports.table(), check, stale, f"docs/{page.name}")
    if problem:
        print(problem, file=sys.stderr)
    return int(bool(problem))


if __name__ == "__main__":
    raise SystemExit(main())
