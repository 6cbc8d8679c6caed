# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""This node's container: made ready, started, watched and stopped as the group's leader says.

The leader's own node has an agent as each member has; only the way of the messages differs.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from typing import Any

from . import memory
from .container import Child, Docker, DockerError, GoneError
from .journal import clean, conceal
from .options import Options
from .protocol import Message, number
from .waiting import DeadlineError, cancel, in_thread, within

DROP_TIMEOUT_S = 60.0
POLL_S = 0.5
# Docker notes the end of two containers that die together one after the other.
AFTERMATH_S = 3.0
# A process may be stopped for a moment, by a debugger for example.
FROZEN_LOOKS = 2


class Fault(Exception):
    """Why this node's container cannot start or has ended.

    :param counted: whether it is a failure, or follows from something that another supervisor deals with
    """

    def __init__(self, why: str, counted: bool = True) -> None:
        super().__init__(why)
        self.counted = counted


class Agent:
    """Obeys the messages ``prepare``, ``go`` and ``stop``, one after the other."""

    def __init__(
        self,
        options: Options,
        docker: Docker,
        emit: Callable[[Message], None],
        say: Callable[[str], None],
        forward: Callable[[bytes], None],
        spawn: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]],
    ) -> None:
        """``emit`` takes messages for the leader, ``forward`` the container's output; ``spawn`` starts tasks."""
        self._options, self._docker = options, docker
        self._emit, self._say, self._forward, self._spawn = emit, say, forward, spawn
        self._inbox: asyncio.Queue[Message | tuple[asyncio.Future[None], bool]] = asyncio.Queue()
        self._job: asyncio.Task[None] | None = None
        self._child: Child | None = None
        self._ready = 0  # the round that this node is ready for
        self._after = ""  # id of the container that this one depends on
        self._hurry = asyncio.Event()

    def order(self, message: Message) -> None:
        """Take an order of the leader."""
        self._inbox.put_nowait(message)

    def halt(self, drain: bool = False) -> asyncio.Future[None]:
        """Drop all orders and stop the container; the future is done when nothing runs any more.

        :param drain: what the container does is to be finished; otherwise it can get nothing done any more
        """
        while not self._inbox.empty():
            waiting = self._inbox.get_nowait()
            if isinstance(waiting, tuple) and not waiting[0].done():
                waiting[0].set_result(None)
        done = asyncio.get_running_loop().create_future()
        self._inbox.put_nowait((done, drain))
        return done

    def hurry(self) -> None:
        """Do not wait for containers to stop by themselves any more."""
        self._hurry.set()

    async def work(self) -> None:
        """Obey, forever."""
        while True:
            order = await self._inbox.get()
            if isinstance(order, tuple):
                done, drain = order
                await self._halt(drain)
                if not done.done():
                    done.set_result(None)
                continue
            round_id = number(order, "round")
            if order["type"] == "prepare":
                await self._halt()
                self._job = self._spawn(self._prepare(round_id))
            elif order["type"] == "go":
                if self._ready != round_id:
                    self._fault(round_id, Fault("was told to start and is not ready"))
                    continue
                self._ready = 0
                self._job = self._spawn(self._run(round_id))
            elif order["type"] == "stop":
                await self._halt()
                self._emit({"type": "stopped", "round": round_id})

    async def clean(self, waits: Callable[[str], None]) -> None:
        """Remove a container that a supervisor before this one left; waits for Docker, and says so to ``waits``."""
        while True:
            try:
                if await self._docker.remove(self._options.container):
                    self._say(f"removed a leftover container {self._options.container}")
                return
            except DockerError as error:
                waits(f"Docker ({clean(str(error), 120)})")
            await asyncio.sleep(self._options.retry)

    def _fault(self, round_id: int, fault: Fault) -> None:
        why = clean(conceal(str(fault), self._secrets()))
        self._emit({"type": "fault", "round": round_id, "why": why, "counted": fault.counted})

    def _secrets(self) -> list[str]:
        found = []
        for path in (self._options.key_file, self._options.probe_key_file):
            with contextlib.suppress(OSError, ValueError), open(path, encoding="utf-8") as stream:
                found.append(stream.read(4096).strip())
        return found

    # --- before the start ---

    async def _prepare(self, round_id: int) -> None:
        def waits(what: str) -> None:
            self._emit({"type": "waits", "round": round_id, "for": what})

        try:
            await self.clean(waits)
            if self._options.after_container:
                await self._wait_for_container(waits)
            if self._options.drop_caches:
                await self._drop_caches()
            await self._wait_for_memory(waits)
        except Fault as fault:
            self._fault(round_id, fault)
            return
        self._ready = round_id
        self._emit({"type": "ready", "round": round_id})

    async def _wait_for_container(self, waits: Callable[[str], None]) -> None:
        """Wait until the container runs that this one lives in; it has a supervisor of its own."""
        name = self._options.after_container
        while True:
            try:
                state = await self._docker.state(name)
                if state.running:
                    self._after = state.id
                    return
                waits(f"container {name}")
            except GoneError:
                waits(f"container {name}")
            except DockerError as error:
                waits(f"Docker ({clean(str(error), 120)})")
            await asyncio.sleep(min(1.0, self._options.retry))

    async def _drop_caches(self) -> None:
        why = ""
        try:
            await within(DROP_TIMEOUT_S, in_thread(memory.drop_page_cache))
        except DeadlineError:
            why = f"writing dirty pages takes longer than {DROP_TIMEOUT_S:g} s"
        except OSError as error:
            why = error.strerror or str(error)
        if why:
            self._say(f"the page cache is not dropped ({why}); goes on without")

    async def _wait_for_memory(self, waits: Callable[[str], None]) -> None:
        need, loop = self._options.min_available_bytes, asyncio.get_running_loop()
        end = loop.time() + self._options.memory_wait
        while need:
            try:
                have = memory.available_bytes()
            except OSError as error:
                raise Fault(f"cannot read how much memory is available ({error})") from error
            if have >= need:
                return
            if loop.time() >= end:
                raise Fault(memory.lacking(need, have, self._options.memory_wait, memory.largest_processes()))
            waits(f"memory ({memory.size(need)}, available {memory.size(have)})")
            await asyncio.sleep(min(1.0, max(0.01, end - loop.time())))

    # --- while it runs ---

    async def _run(self, round_id: int) -> None:
        loop = asyncio.get_running_loop()
        start = loop.create_task(Child.start(self._options.command, self._forward))
        try:
            self._child = await asyncio.shield(start)
        except asyncio.CancelledError:
            # A moment's work: half done, there would be a container that nobody knows of.
            while not start.done():
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.wait((start,))
            if not start.cancelled() and not start.exception():
                self._child = start.result()
            raise
        except DockerError as error:
            self._fault(round_id, Fault(str(error)))
            return
        ended, watched = loop.create_task(self._child.wait()), loop.create_task(self._watch(round_id))
        try:
            await asyncio.wait((ended, watched), return_when=asyncio.FIRST_COMPLETED)
            if ended.done():
                raise Fault(ended.result(), counted=await self._own_end())
            watched.result()
        except Fault as fault:
            self._fault(round_id, fault)
        finally:
            ended.cancel()
            watched.cancel()
            await asyncio.gather(ended, watched, return_exceptions=True)

    async def _watch(self, round_id: int) -> None:
        """Say when the container runs, and end by Fault if it does not or does no more."""
        await self._until_running()
        self._emit({"type": "running", "round": round_id})
        if not self._options.watch_interval:
            await asyncio.get_running_loop().create_future()
        before = ""
        looks = 0
        while True:
            await asyncio.sleep(self._options.watch_interval)
            seen = await self._look()
            looks = looks + 1 if seen and seen == before else int(bool(seen))
            before = seen
            if looks >= FROZEN_LOOKS:
                raise Fault(seen)

    async def _until_running(self) -> None:
        loop, name, last = asyncio.get_running_loop(), self._options.container, ""
        end, pause = loop.time() + self._options.run_timeout, POLL_S / 8
        while loop.time() < end:
            try:
                if (await self._docker.state(name)).running:
                    return
            except DockerError as error:
                last = f" ({error})"
            await asyncio.sleep(pause)
            pause = min(POLL_S, 2 * pause)
        raise Fault(f"container does not run {self._options.run_timeout:g} s after docker run{last}")

    async def _look(self) -> str:
        """Return what is wrong with the container although its `docker run` goes on; empty if nothing is."""
        name = self._options.container
        try:
            state = await self._docker.state(name)
            if not state.running:
                return "container has ended and docker run has not noticed"
            if state.paused:
                return "container is paused"
            stopped = await self._docker.stopped_processes(name)
        except GoneError:
            return "container is gone and docker run has not noticed"
        except DockerError:
            return ""  # a daemon that does not answer says nothing about its containers
        if not stopped:
            return ""
        pid, command = min(stopped.items())
        return f"process {command} ({pid}) in the container is stopped (SIGSTOP)"

    async def _own_end(self) -> bool:
        """Say whether the container ended by itself, and not with the one that it lives in."""
        if not self._after:
            return True
        loop = asyncio.get_running_loop()
        end = loop.time() + AFTERMATH_S
        while True:
            try:
                state = await self._docker.state(self._options.after_container)
                if not state.running or state.id != self._after:
                    return False
            except GoneError:
                return False
            except DockerError:
                return True
            if loop.time() >= end:
                return True
            await asyncio.sleep(POLL_S)

    # --- the end ---

    async def _halt(self, drain: bool = False) -> None:
        """Stop what this node does and runs."""
        job, self._job, self._ready = self._job, None, 0
        if job:
            await cancel(job)
        child, self._child = self._child, None
        if not child:
            return
        if not child.over:
            if not self._hurry.is_set():
                await self._stop(self._options.stop_timeout if drain else self._options.fault_stop_timeout)
            await self._remove()
            await child.bury()
        # Also after the rest: a `docker run` that was on its way may have made the container in between.
        await self._remove()

    async def _stop(self, seconds: float) -> None:
        stop = asyncio.get_running_loop().create_task(self._docker.stop(self._options.container, seconds))
        hurry = asyncio.get_running_loop().create_task(self._hurry.wait())
        await asyncio.wait((stop, hurry), return_when=asyncio.FIRST_COMPLETED)
        hurry.cancel()
        if not stop.done():
            await cancel(stop)
        elif error := stop.exception():
            if not isinstance(error, DockerError):
                raise error
            self._say(f"cannot stop the container by Docker ({error}); removes it")

    async def _remove(self) -> None:
        try:
            await self._docker.remove(self._options.container)
        except DockerError as error:
            # The next round does not begin before it is gone, on this node.
            self._say(f"cannot remove container {self._options.container} ({error})")
