# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Write the table of docs/ports.md from plugins/module_utils/_ports.py, which the firewall's rules are made from too.

With ``--check`` nothing is written, and a page that is not up to date is one line and exit status 1.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent
PAGE = CHECKOUT / "docs" / "ports.md"
BEGIN, END = "<!-- ports -->", "<!-- /ports -->"

sys.path.insert(0, str(CHECKOUT))

from plugins.module_utils import _ports  # noqa: E402


def main(argv: Sequence[str] | None = None, page: Path = PAGE) -> int:
    """Write the table, or check it; return the exit status."""
    parser = argparse.ArgumentParser(description="Write the table of docs/ports.md.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 when the page is not up to date")
    check = parser.parse_args(argv).check
    text = page.read_text(encoding="utf-8")
    head, found, rest = text.partition(BEGIN)
    _old, found_end, tail = rest.partition(END)
    if not found or not found_end:
        print(f"docs/{page.name}: lacks the lines {BEGIN} and {END}", file=sys.stderr)
        return 1
    new = f"{head}{BEGIN}\n{_ports.table()}\n{END}{tail}"
    if new == text:
        return 0
    if check:
        print(f"docs/{page.name}: its table is stale; run: python docs/port_table.py", file=sys.stderr)
        return 1
    page.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
