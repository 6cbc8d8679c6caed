# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Write the tables of docs/patches.md from the patch catalogue and from what it found in vLLM's releases.

The catalogue is files/image/patches/catalogue.py, its findings are table.json beside it. With ``--check`` nothing is
written, and a page that is not up to date is one line and exit status 1.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).resolve().parent.parent
PATCHES = CHECKOUT / "files" / "image" / "patches"
PAGE = CHECKOUT / "docs" / "patches.md"
MARKER = "patches"

sys.path[:0] = [str(CHECKOUT), str(PATCHES.parent)]

from patches import _core, catalogue  # noqa: E402

from docs import pages  # noqa: E402

Table = Mapping[str, Mapping[str, Any]]

WORDS = {_core.NEEDED: "**needed**", _core.NOT_APPLICABLE: "—"}


def plain(text: str) -> str:
    """Return text so that Markdown takes nothing in it for markup; an underscore within a word is none."""
    for one in "\\`*<[]|":
        text = text.replace(one, "\\" + one)
    return text


def states(table: Table) -> str:
    """Return the table of entries that a version can need, and one line of what each version needs."""
    lines = ["| entry | " + " | ".join(table) + " |", "|---" * (len(table) + 1) + "|"]
    for patch in catalogue.PATCHES:
        if not patch.refuted:
            cells = [table[version]["entries"][patch.id]["state"] for version in table]
            lines.append(f"| [`{patch.id}`](#{patch.id}) | " + " | ".join(WORDS.get(one, one) for one in cells) + " |")
    counts = [sum(found["state"] == _core.NEEDED for found in table[version]["entries"].values()) for version in table]
    lines.append("| needed in all | " + " | ".join(map(str, counts)) + " |")
    return "\n".join(lines)


def evidence(table: Table, patch: _core.Patch) -> str:
    """Return what was found for an entry: one item per state, with the first and the last version's place."""
    items = []
    for state in _core.STATES:
        found = {
            version: table[version]["entries"][patch.id]
            for version in table
            if table[version]["entries"][patch.id]["state"] == state
        }
        if found:
            version, one = next(iter(found.items()))
            items.append(f"- {state} in {', '.join(found)}; {version}: `{one['file']}`: {plain(one['reason'])}")
    return "\n".join(items)


def chapter(table: Table, patch: _core.Patch) -> str:
    """Return an entry's part of the page."""
    parts = [f"### {patch.id}", f"{plain(patch.title)}. {plain(patch.why)}", f"Origin: {plain(patch.origin)}."]
    if patch.refuted:
        about = f" (about {patch.target})" if patch.target != "vllm" else ""
        parts.append(f"Refuted{about}: {plain(patch.refuted)}")
    else:
        parts.append(f"Can matter: {plain(patch.range)}.\n{evidence(table, patch)}")
    return "\n\n".join(parts)


def content(table: Table) -> str:
    """Return what stands between the page's markers."""
    alive = [chapter(table, patch) for patch in catalogue.PATCHES if not patch.refuted]
    dead = [chapter(table, patch) for patch in catalogue.PATCHES if patch.refuted]
    return "\n\n".join([states(table), "## Entries", *alive, "## Refuted", *dead])


def main(argv: Sequence[str] | None = None, page: Path = PAGE) -> int:
    """Write the page, or check it; return the exit status."""
    check = pages.only_check(argv, "Write the tables of docs/patches.md.")
    table: Table = json.loads((PATCHES / "table.json").read_text(encoding="utf-8"))
    if any(set(found["entries"]) != {patch.id for patch in catalogue.PATCHES} for found in table.values()):
        print("table.json is of another catalogue; run: python tests/patches/sources.py --write", file=sys.stderr)
        return 1
    stale = "its tables are stale; run: python docs/patch_table.py"
    problem = pages.update(page, MARKER, content(table), check, stale, page.name)
    if problem:
        print(problem, file=sys.stderr)
    return int(bool(problem))


if __name__ == "__main__":
    sys.exit(main())
