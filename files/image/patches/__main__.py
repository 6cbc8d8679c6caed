# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The catalogue's command line: ``python -m patches status|apply|table``."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from . import _core, _edit, _native, _python
from .catalogue import PATCHES


def digest(applied: Sequence[_core.Patch]) -> str:
    """Return the hash of a set of applied patches of this catalogue."""
    return _core.digest(applied, (_edit, _native, _python) if applied else ())


def describe(entries: Sequence[_core.Entry]) -> list[dict[str, str]]:
    """Return what was found for each entry, as data."""
    return [
        {"id": one.patch.id, "state": one.finding.state, "file": one.finding.file, "reason": one.finding.reason}
        for one in entries
    ]


def count(entries: Sequence[_core.Entry], state: str) -> int:
    """Return how many entries are in a state."""
    return sum(one.finding.state == state for one in entries)


def summary(entries: Sequence[_core.Entry]) -> str:
    """Return how many entries are in each state, in one line that starts with what is needed."""
    return ", ".join(f"{count(entries, state)} {state}" for state in _core.STATES)


def report(root: Path, done: _core.Applied) -> dict[str, Any]:
    """Return what ``apply`` leaves for image.json and for a person: what was found, what was applied, its hash."""
    return {
        "kind": _core.Tree(root).kind,
        "applied": [patch.id for patch in done.applied],
        "skipped": list(done.skipped),
        "sha256": digest(done.applied),
        "entries": describe(done.entries),
    }


def table() -> str:
    """Return every entry with its title, where it comes from and for which versions it can matter."""
    lines = [f"{patch.id}\t{'refuted' if patch.refuted else patch.range}\t{patch.title}" for patch in PATCHES]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m patches", description="The patch catalogue for vLLM on GB10.")
    commands = parser.add_subparsers(dest="command", required=True)
    source = argparse.ArgumentParser(add_help=False)
    source.add_argument(
        "--source", type=Path, required=True, help="the root of vLLM's source, or a site-packages directory"
    )
    look = commands.add_parser("status", parents=[source], help="say what a tree needs; change nothing")
    look.add_argument("--json", action="store_true", help="as data")
    change = commands.add_parser("apply", parents=[source], help="apply each needed patch once, or change nothing")
    change.add_argument("--report", type=Path, required=True, help="file to write what was found and done into")
    change.add_argument("--skip", action="append", default=[], metavar="ID", help="leave this entry alone")
    commands.add_parser("table", help="list the entries")
    given = parser.parse_args(argv)
    try:
        if given.command == "table":
            print(table())
        elif given.command == "status":
            entries = _core.status(PATCHES, _core.Tree(given.source))
            if given.json:
                print(json.dumps(describe(entries), indent=1))
            else:
                for one in entries:
                    print(f"{one.finding.state:14}  {one.patch.id:24}  {one.finding.file}  {one.finding.reason}")
                print(summary(entries))
        else:
            done = _core.apply(PATCHES, _core.Tree(given.source), given.skip)
            given.report.write_text(json.dumps(report(given.source, done), indent=1) + "\n", encoding="utf-8")
            print("\n".join([*(f"applied {patch.id}: {patch.title}" for patch in done.applied), summary(done.entries)]))
    except (_core.PatchError, OSError) as error:
        print(f"patches: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
