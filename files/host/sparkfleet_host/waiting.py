# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Waiting: for calls that block, not longer than a deadline, and for tasks to be over."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class DeadlineError(Exception):
    """Something took too long."""


async def within(seconds: float, work: Coroutine[Any, Any, T]) -> T:
    """Return what ``work`` returns; after ``seconds`` cancel it and raise DeadlineError.

    Like ``asyncio.wait_for``, which before Python 3.12 may swallow a cancellation of its caller.
    """
    task = asyncio.get_running_loop().create_task(work)
    # Its error belongs to nobody once this function has given up.
    task.add_done_callback(lambda over: over.cancelled() or over.exception())
    try:
        await asyncio.wait((task,), timeout=seconds)
        if task.done():
            return task.result()
    finally:
        task.cancel()
    raise DeadlineError


async def cancel(task: asyncio.Task[Any]) -> None:
    """Cancel a task and wait until it is over."""
    while not task.done():
        task.cancel()
        await asyncio.wait((task,), timeout=1.0)


async def in_thread(function: Callable[[], T]) -> T:
    """Run ``function`` in a thread and return its result.

    Unlike asyncio's own threads this one does not keep the program from ending: a request to a frozen server and a
    sync to a failing disk may never return.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: BaseException | None) -> None:
        if future.done():
            return
        if error:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type]

    def run() -> None:
        result: T | None = None
        failure: BaseException | None = None
        try:
            result = function()
        except BaseException as error:  # whatever it is, it belongs to the caller
            failure = error
        with contextlib.suppress(RuntimeError):  # the loop is over
            loop.call_soon_threadsafe(settle, result, failure)

    threading.Thread(target=run, daemon=True).start()
    return await future
