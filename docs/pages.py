# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the programs that write tables into pages share."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path


def only_check(argv: Sequence[str] | None, description: str, page: str = "the page") -> bool:
    """Read the command line of such a program; return whether nothing is to be written."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--check", action="store_true", help=f"write nothing; exit 1 when {page} is not up to date")
    return bool(parser.parse_args(argv).check)


def filled(text: str, marker: str, content: str) -> str | None:
    """Return ``text`` with ``content`` between the marker's comments, or None where it lacks them."""
    begin, end = f"<!-- {marker} -->", f"<!-- /{marker} -->"
    head, found_begin, rest = text.partition(begin)
    _old, found_end, tail = rest.partition(end)
    if not found_begin or not found_end:
        return None
    return f"{head}{begin}\n{content}\n{end}{tail}"


def update(path: Path, marker: str, content: str, check: bool, stale: str, label: str = "") -> str:
    """Bring one page up to date, or only look; return a line that says what is wrong, empty when nothing is.

    :param stale: what to say of a page that is not up to date, and what to run
    :param label: the page's name in the line; empty for its path
    """
    name = label or str(path)
    text = path.read_text(encoding="utf-8")
    new = filled(text, marker, content)
    if new is None:
        return f"{name}: lacks the lines <!-- {marker} --> and <!-- /{marker} -->"
    if new == text:
        return ""
    if check:
        return f"{name}: {stale}"
    path.write_text(new, encoding="utf-8")
    return ""
