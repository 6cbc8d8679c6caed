# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Docker's command line: every command has a deadline, since a daemon in trouble lets its clients wait forever."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import re
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from .journal import Pump, clean, telling
from .waiting import DeadlineError, within

# `docker run` itself failed; the container never ran.
RUN_FAILED = 125
# How long a `docker run` may take to notice that its container is gone.
FAREWELL_S = 3.0


class DockerError(Exception):
    """What Docker did not do, in one line."""


class GoneError(DockerError):
    """There is no such container."""


@dataclass(frozen=True)
class ContainerState:
    """What Docker says of a container."""

    id: str
    running: bool
    paused: bool


def parse_state(text: str) -> ContainerState:
    """Read the output of INSPECT; raises DockerError."""
    words = text.split()
    if len(words) != 3 or not {words[1], words[2]} <= {"true", "false"}:
        raise DockerError(f"docker inspect answers {clean(text, 80)!r}")
    return ContainerState(words[0], words[1] == "true", words[2] == "true")


INSPECT = ("inspect", "--type", "container", "--format", "{{.Id}} {{.State.Running}} {{.State.Paused}}")


def parse_stopped(text: str) -> dict[str, str]:
    """Return the stopped processes (SIGSTOP) of ``docker top NAME -eo pid,tty,stat,comm``: pid to name.

    One with a terminal is someone's who is looking around in the container.
    """
    found = {}
    for line in text.splitlines()[1:]:
        words = line.split(None, 3)
        if len(words) == 4 and words[1] == "?" and words[2].startswith("T"):
            found[words[0]] = words[3]
    return found


def explain(code: int) -> str:
    """Return how the container ended, from the status of `docker run`."""
    if code < 0:
        return f"docker run was ended by {_signal(-code)}"
    if code == RUN_FAILED:
        return "docker run failed (125)"
    if code > 128 and (name := _signal(code - 128)):
        return f"container ended with {code} ({name})"
    return f"container ended with {code}"


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return ""


def child_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the environment for a child: without what systemd says to the supervisor alone."""
    ours = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")
    return {key: value for key, value in environment.items() if key not in ours}


def kill_session(process: asyncio.subprocess.Process) -> None:
    """Kill a child and what it started; it was started as a session of its own."""
    with contextlib.suppress(OSError):
        os.killpg(process.pid, signal.SIGKILL)


class Docker:
    """Commands on containers by name."""

    def __init__(self, program: str, deadline: float) -> None:
        """``deadline``: seconds that a command may take."""
        self._program, self._deadline = program, deadline

    async def call(self, *arguments: str, extra: float = 0.0) -> str:
        """Run a command and return what it prints; ``extra`` seconds longer than others. Raises DockerError."""
        what = f"docker {arguments[0]}"
        try:
            process = await asyncio.create_subprocess_exec(
                self._program,
                *arguments,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                env=child_environment(os.environ),
                start_new_session=True,
            )
        except OSError as error:
            raise DockerError(f"{self._program} cannot be run ({error.strerror})") from error
        try:
            out, err = await within(self._deadline + extra, process.communicate())
        except DeadlineError as error:
            raise DockerError(f"{what} did not end within {self._deadline + extra:g} s") from error
        finally:
            if process.returncode is None:
                kill_session(process)
                # To have it off the loop. One that even SIGKILL does not end is left behind.
                with contextlib.suppress(DeadlineError):
                    await within(1.0, process.wait())
        if process.returncode:
            said = clean(err.decode("utf-8", "replace"))
            kind = GoneError if re.search(r"no such (container|object)", said, re.IGNORECASE) else DockerError
            raise kind(said or f"{what} ended with {process.returncode}")
        return out.decode("utf-8", "replace")

    async def state(self, name: str) -> ContainerState:
        """Return the state of a container; raises DockerError, and GoneError where there is none."""
        return parse_state(await self.call(*INSPECT, name))

    async def stopped_processes(self, name: str) -> dict[str, str]:
        """Return the container's stopped processes, pid to name; raises DockerError."""
        return parse_stopped(await self.call("top", name, "-eo", "pid,tty,stat,comm"))

    async def stop(self, name: str, seconds: float) -> None:
        """Stop a container, by SIGKILL after ``seconds``; raises DockerError."""
        with contextlib.suppress(GoneError):
            await self.call("stop", "-t", str(math.ceil(seconds)), name, extra=seconds)

    async def remove(self, name: str) -> bool:
        """Remove a container, running or not, and say whether there was one; raises DockerError."""
        loop = asyncio.get_running_loop()
        end = loop.time() + self._deadline
        while True:
            try:
                # Depending on the version, one that is not there is an error or just not named.
                return name in (await self.call("rm", "--force", "--volumes", name)).split()
            except GoneError:
                return False
            except DockerError as error:
                # Its own --rm is at it.
                if "already in progress" not in str(error) or loop.time() > end:
                    raise
            await asyncio.sleep(0.2)


class Child:
    """A `docker run` in the foreground."""

    def __init__(self, process: asyncio.subprocess.Process, pump: Pump, drained: asyncio.Event) -> None:
        self._process, self._pump, self._drained = process, pump, drained

    @classmethod
    async def start(cls, command: Sequence[str], forward: Callable[[bytes], None]) -> Child:
        """Start ``command`` and pass its output to ``forward``; raises DockerError."""
        loop, drained = asyncio.get_running_loop(), asyncio.Event()

        def done() -> None:
            with contextlib.suppress(RuntimeError):  # the loop may be over
                loop.call_soon_threadsafe(drained.set)

        source, sink = os.pipe()
        try:
            process = await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=sink,
                stderr=sink,
                env=child_environment(os.environ),
                # A Ctrl-C in the terminal is for the supervisor: it stops the container in its own way.
                start_new_session=True,
            )
        except BaseException as error:
            os.close(source)
            if isinstance(error, OSError):
                raise DockerError(f"{command[0]} cannot be run ({error.strerror})") from error
            raise
        finally:
            os.close(sink)
        return cls(process, Pump(source, forward, done), drained)

    @property
    def over(self) -> bool:
        """Whether it has ended."""
        return self._process.returncode is not None

    async def wait(self) -> str:
        """Wait for its end and return how it ended, with the last telling line of its output."""
        code = await self._process.wait()
        with contextlib.suppress(DeadlineError):
            await within(FAREWELL_S, self._drained.wait())
        last = telling(list(self._pump.lines), killed=code == 128 + signal.SIGKILL)
        return explain(code) + (f": {last}" if last else "")

    async def bury(self) -> None:
        """See to it that it ends, its container being gone: by itself or by SIGKILL."""
        for kill in (False, True):
            if kill:
                kill_session(self._process)
            with contextlib.suppress(DeadlineError):
                await within(FAREWELL_S, self._process.wait())
                return
