# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What leader and member have in common: signals, systemd, the state file, and an end that leaves nothing behind."""

from __future__ import annotations

import asyncio
import os
import signal
import traceback
from abc import ABC, abstractmethod
from collections.abc import Coroutine
from typing import Any

from .agent import Agent
from .container import Docker
from .history import Clock, State, StateFile
from .journal import Journal, Notifier
from .options import Options
from .protocol import Message
from .waiting import within

CRASHED = 1
# The last resort of a supervisor that ends by a fault of its own.
CRASH_STOP_S = 60.0


class Supervisor(ABC):
    """One supervisor; subclasses are the roles. ``run`` returns the exit status."""

    def __init__(self, options: Options, journal: Journal, notifier: Notifier, boot: str) -> None:
        self.options, self.journal, self.notifier = options, journal, notifier
        self.clock = Clock()
        self.files = StateFile(options.state_dir, options.name, boot)
        self.state = State(options.name, options.role, since=self.clock.time())
        self.leaving = False
        docker = Docker(options.docker, options.docker_timeout)
        self.agent = Agent(options, docker, self.report, journal.say, journal.forward, self.spawn)
        self._loop: asyncio.AbstractEventLoop
        self._exit: asyncio.Future[int]
        self._tasks: set[asyncio.Task[None]] = set()
        self._crashing: asyncio.Task[None] | None = None
        self._unwritten = ""

    # --- what a role is ---

    @abstractmethod
    async def main(self) -> None:
        """Do the role's work until the end."""

    @abstractmethod
    def report(self, message: Message) -> None:
        """Take a message of this node's agent."""

    @abstractmethod
    def depart(self) -> None:
        """Tell the others that this node was asked to stop."""

    @abstractmethod
    def close(self) -> None:
        """Everything here has stopped; note that, and end connections in order."""

    # --- for the roles ---

    def say(self, text: str) -> None:
        """Write a line to the journal."""
        self.journal.say(text)

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Start a task whose failure ends the supervisor: one that dies in silence is worse than a restart."""
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def publish(self) -> None:
        """Write the state where others read it, if it has changed."""
        self.notifier.status(self.state.line())
        try:
            self.files.write(self.state)
            self._unwritten = ""
        except OSError as error:
            if self._unwritten != str(error):
                self._unwritten = str(error)
                self.say(f"cannot write {self.files.path} ({error.strerror}); goes on without")

    def finish(self, status: int) -> None:
        """End the program."""
        if not self._exit.done():
            self._exit.set_result(status)

    # --- life ---

    async def run(self) -> int:
        """Run until the end and return the exit status."""
        self._loop = asyncio.get_running_loop()
        self._exit = self._loop.create_future()
        self._loop.set_exception_handler(self._unexpected)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            self._loop.add_signal_handler(number, self._signalled)
        # Before READY: whoever started the unit may read the file next.
        self.publish()
        self.notifier.tell("READY=1")
        self.spawn(self.agent.work())
        self.spawn(self.main())
        if self.notifier.watchdog:
            self.spawn(self._feed())
        return await self._exit

    async def _feed(self) -> None:
        while True:
            self.notifier.tell("WATCHDOG=1")
            await asyncio.sleep(self.notifier.watchdog / 3)

    def _signalled(self) -> None:
        if self.leaving:
            self.say("asked to stop again; does not wait any longer")
            self.agent.hurry()
            return
        self.leaving = True
        self.say("asked to stop")
        self.notifier.tell("STOPPING=1")
        self.depart()
        self.publish()
        self.spawn(self._leave())

    async def _leave(self) -> None:
        await self.agent.halt(drain=True)
        self.close()
        self.publish()
        self.say("stopped")
        self.finish(0)

    # --- faults of its own ---

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()):
            self._crash(error)

    def _unexpected(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if isinstance(error, OSError):
            # A connection's end that asyncio has no one to tell of.
            return
        self._crash(error or RuntimeError(str(context.get("message"))))

    def _crash(self, error: BaseException) -> None:
        """End, since nobody can say what still works; systemd starts the supervisor again."""
        if self._exit.done() or self._crashing:
            return
        frames = traceback.extract_tb(error.__traceback__)
        where = f" ({os.path.basename(frames[-1].filename)}:{frames[-1].lineno})" if frames else ""
        self.say(f"fault in the supervisor: {type(error).__name__}: {error}{where}; stops its container and ends")
        self.agent.hurry()
        self._crashing = self._loop.create_task(self._crash_stop())

    async def _crash_stop(self) -> None:
        remove = Docker(self.options.docker, self.options.docker_timeout).remove(self.options.container)
        try:
            await within(CRASH_STOP_S, remove)
        except Exception as error:
            self.say(f"cannot remove container {self.options.container} ({type(error).__name__})")
        finally:
            self.finish(CRASHED)
