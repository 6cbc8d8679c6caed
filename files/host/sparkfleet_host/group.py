# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The rules of a group, kept by its leader. No input or output: events come in, orders go out through a Port.

Each node has a seat, the leader's own included; a single node is a group with one seat. A round is: everyone is there
and runs nothing, all make ready (``prepare``), all are ready, all start (``go``), until something ends it; then all
stop (``stop``), and the next round begins after a pause. So no container ever runs with one of an earlier round.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from .history import KEPT, Clock, Failure, History, Recovery, State
from .journal import clean
from .protocol import Message, number, text

REPEAT_S = 60.0  # a line that says for whom the group waits comes again after this time
# After an end that is not a failure; enough not to spin.
BREATH_S = 1.0
GAVE_UP = 78  # exit status; the unit has RestartPreventExitStatus for it


@dataclass
class Seat:
    """A node's place. Phases: absent, idle, preparing, ready, started, running, stopping."""

    name: str
    phase: str = "absent"
    note: str = ""  # what it waits for while it prepares

    @property
    def busy(self) -> bool:
        """Whether something runs there, or may."""
        return self.phase not in ("absent", "idle")


class Port(Protocol):
    """What the rules need from the world."""

    def send(self, name: str, message: Message) -> None:
        """Send an order to a node."""

    def drop(self, name: str, why: str) -> None:
        """End the connection to a member; it stops its container when it notices."""

    def say(self, text: str) -> None:
        """Write a line to the journal."""


class Group:
    """One group. Every method is an event; ``tick`` is due at ``deadline``.

    :param own: the leader's node
    :param probing: whether ``answered`` will be called; then the group runs only after that
    :param run_grace: seconds from ``go`` until every node has to have said that its container runs
    :param stop_grace: seconds that a member gets to stop
    :param unit: how to start the supervisor by hand, for the last line
    """

    def __init__(
        self,
        state: State,
        own: str,
        members: Iterable[str],
        history: History,
        port: Port,
        clock: Clock,
        *,
        probing: bool,
        run_grace: float,
        stop_grace: float,
        unit: str,
    ) -> None:
        self.state, self.own, self.history = state, own, history
        self.seats = {name: Seat(name) for name in (own, *members)}
        self.hindrance = ""  # what else keeps the group from starting
        self.finished = False  # it gave up, and nothing runs any more
        self._port, self._clock = port, clock
        self._probing, self._run_grace, self._stop_grace, self._unit = probing, run_grace, stop_grace, unit
        self._leaving = False
        self._began = 0.0  # of the present state
        self._preparing = False
        self._counted = False
        self._pause_until = 0.0
        self._has_answered = False
        self._broken: tuple[float, str] | None = None  # when and why the group last ran no more
        self._said: tuple[float, tuple[str, ...]] = (0.0, ())
        self._enter("waiting", "")

    # --- events ---

    def crashed(self) -> None:
        """A supervisor before this one ended while its group was up; that counts as any failure does."""
        why = f"{self.own}: the supervisor ended without being asked to"
        self._port.say(why)
        self._record(why)
        self._counted = True
        self._enter("stopping", why)
        self._advance()

    def joined(self, name: str) -> None:
        """A node is there and runs nothing."""
        seat = self.seats[name]
        if seat.phase != "absent":
            self._gone(name, "connected anew: its supervisor was restarted, or the network was lost", counted=True)
        seat.phase = "idle"
        if name != self.own:
            self._port.say(f"{name}: connected")
        self._advance()

    def lost(self, name: str, why: str) -> None:
        """The connection to a member is gone."""
        self._gone(name, why, counted=True)

    def left(self, name: str) -> None:
        """A member was stopped in order."""
        self._gone(name, "was stopped there, in order", counted=False)

    def received(self, name: str, message: Message) -> None:
        """A node answers, or something has happened there."""
        seat, kind = self.seats[name], message["type"]
        if seat.phase == "absent" or number(message, "round") != self.state.round:
            return
        if kind == "waits" and seat.phase == "preparing":
            seat.note = text(message, "for")
        elif kind == "ready" and seat.phase == "preparing":
            seat.phase, seat.note = "ready", ""
        elif kind == "running" and seat.phase == "started":
            seat.phase = "running"
        elif kind == "stopped" and seat.phase == "stopping":
            seat.phase = "idle"
        elif kind == "fault" and seat.busy:
            self._fault(name, text(message, "why") or "container ended", message.get("counted") is not False)
        self._advance()

    def answered(self, round_id: int) -> None:
        """The model answered."""
        if round_id == self.state.round and self.state.state in ("starting", "running"):
            self._has_answered = True
            self.state.answered = self._clock.time()
            self._advance()

    def silent(self, round_id: int, why: str) -> None:
        """The model does not answer any more, or not in time."""
        if round_id == self.state.round and self.state.state in ("starting", "running"):
            self._fault(self.own, why, counted=True)
            self._advance()

    def hinder(self, why: str) -> None:
        """Something else keeps the group from starting; empty: it does no more."""
        self.hindrance = why
        self._advance()

    def leave(self) -> None:
        """The leader was asked to stop. Its own container is not stopped from here."""
        if self._leaving:
            return
        self._leaving = True
        # Asked for by someone, so whatever comes next begins anew.
        self.history.failures.clear()
        self._enter("stopping", "asked to stop")

    def closed(self) -> None:
        """What runs here has stopped, its last requests answered with the members' help: now they stop too."""
        for seat in self.seats.values():
            if seat.name != self.own and seat.phase != "absent":
                self._port.send(seat.name, {"type": "leaves"})
        self._enter("stopped", "stopped in order")

    def tick(self) -> None:
        """A deadline has passed."""
        now = self._clock.monotonic()
        if self.state.state == "stopping" and now >= self._began + self._stop_grace:
            for seat in self.seats.values():
                if seat.phase == "stopping" and seat.name != self.own:
                    self._port.drop(seat.name, f"has not stopped after {self._stop_grace:g} s")
                    seat.phase = "absent"
        elif self.state.state == "starting" and now >= self._began + self._run_grace:
            late = next((seat for seat in self.seats.values() if seat.phase == "started"), None)
            if late:
                self._fault(late.name, f"has not said after {self._run_grace:g} s that its container runs", True)
        self._advance()

    def deadline(self) -> float | None:
        """Return the time (monotonic) at which ``tick`` is due."""
        if self._leaving or self.finished:
            return None
        phases = {seat.phase for seat in self.seats.values()}
        if self.state.state == "stopping":
            return self._began + self._stop_grace if self._others("stopping") else None
        if self.state.state == "starting":
            return self._began + self._run_grace if "started" in phases else None
        if self.state.state == "backoff":
            return self._pause_until
        if self.state.state == "waiting":
            again = self._said[0] + REPEAT_S
            return again if self._pause_until <= self._clock.monotonic() else min(again, self._pause_until)
        return None

    # --- rules ---

    def _others(self, phase: str) -> list[Seat]:
        return [seat for seat in self.seats.values() if seat.phase == phase and seat.name != self.own]

    def _advance(self) -> None:
        """Go on as far as the seats allow."""
        if self._leaving or self.finished:
            return
        before = None
        while before != self.state.state:
            before = self.state.state
            if before == "stopping":
                self._when_stopped()
            elif before == "backoff" and self._clock.monotonic() >= self._pause_until:
                self._enter("waiting", self.state.why)
            elif before == "waiting":
                self._when_waiting()
            elif before == "starting":
                self._when_starting()
        self.state.waiting_for = self._blockers() if self.state.state == "waiting" else []
        if self.state.state == "waiting":
            self._say_waiting()

    def _when_waiting(self) -> None:
        phases = {seat.phase for seat in self.seats.values()}
        if self._preparing and phases == {"ready"}:
            self._preparing = False
            self._has_answered = False
            self._enter("starting", "")
            self._order("go", "started")
            self._port.say(f"round {self.state.round}: starts")
        elif (
            phases == {"idle"}
            and not self._preparing
            and not self.hindrance
            and self._clock.monotonic() >= self._pause_until
        ):
            self._preparing = True
            self.state.round += 1
            self._order("prepare", "preparing")

    def _when_starting(self) -> None:
        if {seat.phase for seat in self.seats.values()} != {"running"} or (self._probing and not self._has_answered):
            return
        took = ""
        if self._broken:
            seconds = self._clock.monotonic() - self._broken[0]
            self.state.recovered.append(Recovery(self._clock.time(), round(seconds, 1), self._broken[1]))
            del self.state.recovered[:-KEPT]
            took = f", {seconds:.0f} s after it ended ({self._broken[1]})"
            self._broken = None
        self._enter("running", "")
        self._port.say(f"round {self.state.round}: {'the model answers' if self._probing else 'runs'}{took}")

    def _when_stopped(self) -> None:
        if any(seat.phase == "stopping" for seat in self.seats.values()):
            return
        now = self._clock.monotonic()
        if not self._counted:
            self._pause_until = now + BREATH_S
            self._enter("waiting", self.state.why)
        elif self.history.exhausted(now):
            self._give_up()
        else:
            pause = self.history.pause(now)
            self._pause_until = now + pause
            count = len(self.history.recent(now))
            self._enter("backoff", self.state.why)
            self._port.say(f"starts again in {pause:g} s (restart {count} of {self.history.limit})")

    def _give_up(self) -> None:
        last = self.state.why
        span = f"{self.history.window / 60:g} min" if self.history.window >= 60 else f"{self.history.window:g} s"
        limit = f"{self.history.limit} restart{'' if self.history.limit == 1 else 's'} in {span}"
        self._enter("down", f"gave up after {limit}; last: {last}")
        self._port.say(f"gives up after {limit}; last: {last}; nothing runs until site.yml or `{self._unit}`")
        self.finished = True

    def _gone(self, name: str, why: str, counted: bool) -> None:
        seat = self.seats[name]
        if seat.phase == "absent":
            return
        seat.phase, seat.note = "absent", ""
        if self._leaving:
            return
        if self.state.state in ("starting", "running", "stopping"):
            self._fault(name, why, counted)
        else:
            self._port.say(f"{name}: {why}")
            if self._preparing:
                # Nothing has started, so nothing has failed.
                self._preparing = False
                self._counted = False
                self._stop("")
        self._advance()

    def _fault(self, name: str, why: str, counted: bool) -> None:
        reason = f"{name}: {why}"
        if self._leaving:
            return
        if self.state.state == "stopping":
            # What comes while all stop may be the cause as well as a consequence; it helps to know both.
            self._port.say(f"also {reason}")
            if self._counted and self.history.failures and len(self.state.why) < 600:
                self.state.why = clean(f"{self.state.why}; also {reason}", 700)
                self.history.failures[-1].why = self.state.why
            return
        if self._broken is None:
            self._broken = (self._clock.monotonic(), reason)
        if counted:
            self._record(reason)
        self._counted = counted
        self._preparing = False
        self._port.say(f"{reason}; the group stops" if len(self.seats) > 1 else reason)
        self._stop(reason)

    def _record(self, reason: str) -> None:
        now = self._clock.monotonic()
        self._broken = self._broken or (now, reason)
        self.history.add(Failure(self._clock.time(), now, reason))
        self.state.failures = self.history.failures

    def _stop(self, why: str) -> None:
        self._enter("stopping", why)
        for seat in self.seats.values():
            seat.note = ""
            if seat.busy:
                seat.phase = "stopping"
                self._port.send(seat.name, {"type": "stop", "round": self.state.round})

    def _order(self, kind: str, phase: str) -> None:
        for seat in self.seats.values():
            seat.phase = phase
            self._port.send(seat.name, {"type": kind, "round": self.state.round})

    def _enter(self, state: str, why: str) -> None:
        if state != self.state.state or not self._began:
            self.state.since = self._clock.time()
            self._began = self._clock.monotonic()
            self._said = (self._began, ())
        self.state.state, self.state.why, self.state.failures = state, why, self.history.failures

    def _blockers(self) -> list[str]:
        found = [self.hindrance] if self.hindrance else []
        for seat in self.seats.values():
            if seat.phase == "absent":
                # Its own node is absent until a leftover is gone, which the hindrance says.
                found += [seat.name] if seat.name != self.own else []
            elif seat.note:
                found.append(f"{seat.name}: {seat.note}")
            elif seat.phase in ("preparing", "stopping"):
                found.append(f"{seat.name}: its agent")
        return found

    def _say_waiting(self) -> None:
        """Say for what the group waits: when something is added, and then every REPEAT_S."""
        at, known = self._said
        blockers = [one for one in self.state.waiting_for if not one.endswith(": its agent")]
        # Numbers change while one waits; the thing that is waited for stays.
        things = tuple(one.partition(" (")[0] for one in blockers)
        now = self._clock.monotonic()
        if now - at >= REPEAT_S:
            if self.state.waiting_for:
                self._port.say(f"still waits for {', '.join(self.state.waiting_for)}; nothing runs until then")
            self._said = (now, things)
        elif set(things) - set(known):
            self._port.say(f"waits for {', '.join(blockers)}; nothing runs until then")
            self._said = (now, things)
