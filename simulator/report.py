# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the simulator says while it works."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console

console = Console(stderr=True, highlight=False, soft_wrap=True)
"""Progress goes to stderr: stdout is for what a command was asked for."""


def say(text: str) -> None:
    """Print one line of progress."""
    console.print(text, markup=False)


@contextmanager
def step(text: str) -> Iterator[None]:
    """Say what is being done, then how long it took."""
    start = time.monotonic()
    say(f"{text} …")
    yield
    say(f"  done in {time.monotonic() - start:.1f} s")
