# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Wiring."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import sys
from collections.abc import Sequence

from .history import boot_id
from .journal import Journal, Notifier
from .leader import Leader
from .member import Member
from .memory import hold_own
from .options import Options, UsageError, parse
from .supervisor import Supervisor

USAGE = 2


def unit_name(cgroup: str) -> str:
    """Return the systemd service of a process from its /proc/PID/cgroup, without the suffix; empty if there is none."""
    found = re.findall(r"/([^/\s]+)\.service(?:/|$)", cgroup, re.MULTILINE)
    return str(found[-1]) if found else ""


def start_command() -> str:
    """Return how this supervisor is started by hand."""
    with contextlib.suppress(OSError), open("/proc/self/cgroup", encoding="utf-8") as stream:
        if unit := unit_name(stream.read()):
            return f"systemctl start {unit}"
    return "systemctl start"


def make(options: Options, journal: Journal) -> Supervisor:
    """Return the supervisor that the options ask for."""
    notifier = Notifier(os.environ, os.getpid())
    if options.role == "member":
        return Member(options, journal, notifier, boot_id())
    return Leader(options, journal, notifier, boot_id(), start_command())


def main(arguments: Sequence[str]) -> int:
    """Run the supervisor and return its exit status."""
    try:
        options = parse(arguments, os.uname().nodename.partition(".")[0])
    except UsageError as error:
        print(f"sparkfleet: {error}", file=sys.stderr)
        return USAGE
    os.umask(0o022)
    # Its warnings are of no use to anyone, and its errors come here in another way.
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    hold_own()
    journal = Journal(options.name)
    try:
        return asyncio.run(make(options, journal).run())
    finally:
        journal.close()
