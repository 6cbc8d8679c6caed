# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Failures within a window, the pauses between restarts, and the state file that outlives the supervisor."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

KEPT = 10  # recoveries, and failures beyond the limit, in the state file

# States after which everything begins anew: it gave up, or was stopped in order.
ENDED = ("down", "stopped")


@dataclass(frozen=True)
class Clock:
    """The time: for durations, and as people read it. A clock that is set must not end a group."""

    def monotonic(self) -> float:
        """Seconds since some time before the boot's end; the same for every process of this boot."""
        return time.monotonic()

    def time(self) -> float:
        """Seconds since 1970."""
        return time.time()


@dataclass
class Failure:
    """Why a round ended that should not have."""

    at: float  # seconds since 1970
    monotonic: float
    why: str


@dataclass
class History:
    """Failures of one group.

    :param limit: restarts within ``window`` seconds; with one more failure the group stays down
    :param backoff: seconds before the first restart, doubled with each failure within the window up to ``backoff_max``
    """

    limit: int
    window: float
    backoff: float
    backoff_max: float
    failures: list[Failure] = field(default_factory=list)

    def add(self, failure: Failure) -> None:
        """Add a failure and forget those of long ago."""
        self.failures = [*self.recent(failure.monotonic), failure][-(self.limit + KEPT) :]

    def recent(self, now: float) -> list[Failure]:
        """Return the failures within the window."""
        return [one for one in self.failures if now - one.monotonic < self.window]

    def exhausted(self, now: float) -> bool:
        """Say whether another restart would be one too many."""
        return len(self.recent(now)) > self.limit

    def pause(self, now: float) -> float:
        """Return the seconds to wait before the next start."""
        count = len(self.recent(now))
        if not count:
            return 0.0
        return min(self.backoff_max, self.backoff * 2.0 ** min(count - 1, 30))


@dataclass
class Recovery:
    """That a group was back."""

    at: float  # seconds since 1970
    seconds: float  # since the failure
    why: str


@dataclass
class State:
    """What the state file says; its format is a promise to ``status`` and to those who wait for the group."""

    name: str
    role: str
    state: str = "waiting"  # waiting, starting, running, stopping, backoff or down
    since: float = 0.0
    why: str = ""
    round: int = 0
    waiting_for: list[str] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    answered: float | None = None
    recovered: list[Recovery] = field(default_factory=list)

    def line(self) -> str:
        """Return the state in a few words."""
        text = self.state
        if self.waiting_for:
            text += " for " + ", ".join(self.waiting_for)
        return f"{text} ({self.why})" if self.why else text


def boot_id() -> str:
    """Return what is the same until the next boot, or an empty string."""
    with contextlib.suppress(OSError), open("/proc/sys/kernel/random/boot_id", encoding="ascii") as stream:
        return stream.read().strip()
    return ""


class StateFile:
    """The state of one group in a file of its own, replaced as a whole."""

    def __init__(self, directory: str, name: str, boot: str) -> None:
        self.path, self._boot, self._written = os.path.join(directory, f"{name}.json"), boot, ""

    def write(self, state: State) -> None:
        """Write what has changed; raises OSError."""
        record = {key: getattr(state, key) for key in State.__annotations__}
        record["failures"] = [vars(one) for one in state.failures]
        record["recovered"] = [vars(one) for one in state.recovered[-KEPT:]]
        record["boot"] = self._boot
        text = json.dumps(record, indent=1) + "\n"
        if text == self._written:
            return
        directory, draft = os.path.dirname(self.path), f"{self.path}.new"
        os.makedirs(directory, mode=0o755, exist_ok=True)
        with open(draft, "w", encoding="utf-8") as stream:
            os.fchmod(stream.fileno(), 0o644)
            stream.write(text)
        os.replace(draft, self.path)
        self._written = text

    def read(self) -> State | None:
        """Return what a supervisor left that ended without an order; None after an orderly end, a boot, or nothing."""
        try:
            with open(self.path, encoding="utf-8") as stream:
                record = json.load(stream)
            if not isinstance(record, Mapping) or record["boot"] != self._boot or record["state"] in ENDED:
                return None
            return _state(record)
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return None


def _state(record: Mapping[str, Any]) -> State:
    return State(
        name=str(record["name"]),
        role=str(record["role"]),
        state=str(record["state"]),
        since=float(record["since"]),
        why=str(record["why"]),
        round=int(record["round"]),
        failures=[Failure(float(o["at"]), float(o["monotonic"]), str(o["why"])) for o in record["failures"]],
        recovered=[Recovery(float(o["at"]), float(o["seconds"]), str(o["why"])) for o in record["recovered"]],
    )
