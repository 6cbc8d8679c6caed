# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""vLLM plugin: with the Ray executor, too, vLLM finishes its requests when it is stopped.

vLLM's engine takes SIGTERM as the order to finish what it has begun. ``ray.init``, which the engine calls after that,
puts a handler of its own in place, which ends the process at once. Here vLLM's is put back (vLLM 0.32, Ray 2.60).
"""

from __future__ import annotations

import functools
import os
import signal
import threading
from collections.abc import Callable
from typing import Any


def register() -> None:
    """Wrap ``ray.init`` where Ray is the executor; vLLM calls this in each of its processes, maybe more than once."""
    if os.environ.get("EXECUTOR") != "ray":
        return
    import ray

    if not getattr(ray.init, "keeps_sigterm", False):
        ray.init = keeping_sigterm(ray.init)


def keeping_sigterm(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return ``function``, but after it the handler of SIGTERM is the one of before, where there was one."""

    @functools.wraps(function)
    def call(*arguments: Any, **options: Any) -> Any:
        before = signal.getsignal(signal.SIGTERM)
        try:
            return function(*arguments, **options)
        finally:
            # Only the main thread may, and in another Ray does not change it either.
            if callable(before) and threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, before)

    call.keeps_sigterm = True  # type: ignore[attr-defined]
    return call
