# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The rules of a group, without processes, connections or time."""

from __future__ import annotations

from collections import deque
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from files.host.sparkfleet_host.group import BREATH_S, REPEAT_S, Group
from files.host.sparkfleet_host.history import Clock, Failure, History, State


class Hands(Clock):
    """A clock that stands until it is set."""

    def __init__(self) -> None:
        object.__setattr__(self, "now", 1000.0)

    def pass_(self, seconds: float) -> None:
        object.__setattr__(self, "now", self.now + seconds)

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return self.now + 1e9


class World:
    """A group, and what it did."""

    def __init__(self, members: tuple[str, ...] = ("b", "c"), *, limit: int = 2, probing: bool = False) -> None:
        self.clock, self.lines, self.dropped = Hands(), list[str](), list[str]()
        self.sent: list[tuple[str, dict[str, Any]]] = []
        self.state = State("tiny", "leader")
        self.history = History(limit, 600.0, 5.0, 120.0)
        self.group = Group(
            self.state,
            "a",
            members,
            self.history,
            self,
            self.clock,
            probing=probing,
            run_grace=100.0,
            stop_grace=50.0,
            unit="systemctl start x",
        )
        self.names = ("a", *members)

    def send(self, name: str, message: dict[str, Any]) -> None:
        self.sent.append((name, message))

    def drop(self, name: str, why: str) -> None:
        self.dropped.append(name)

    def say(self, text: str) -> None:
        self.lines.append(text)

    def answer(self, kind: str, *names: str, **more: Any) -> None:
        for name in names or self.names:
            self.group.received(name, {"type": kind, "round": self.state.round, **more})

    def orders(self, kind: str) -> list[str]:
        return [name for name, message in self.sent if message["type"] == kind]

    def up(self) -> World:
        """Bring the group up."""
        for name in self.names:
            if self.group.seats[name].phase == "absent":
                self.group.joined(name)
        self.answer("ready")
        self.answer("running")
        return self

    def later(self, seconds: float) -> None:
        self.clock.pass_(seconds)
        self.group.tick()


def test_nothing_starts_before_all_are_ready() -> None:
    world = World()
    world.group.joined("a")
    world.group.joined("b")
    assert world.sent == [] and world.state.waiting_for == ["c"]
    world.group.joined("c")
    assert world.orders("prepare") == ["a", "b", "c"]
    world.answer("ready", "a", "c")
    assert world.orders("go") == []
    world.answer("waits", "b", **{"for": "container ray"})
    assert world.state.waiting_for == ["b: container ray"]
    world.answer("ready", "b")
    assert world.orders("go") == ["a", "b", "c"] and world.state.state == "starting"
    world.answer("running")
    assert world.state.state == "running" and world.state.waiting_for == []


def test_with_a_probe_it_runs_when_the_model_answers() -> None:
    world = World(probing=True).up()
    assert world.state.state == "starting"
    world.group.answered(world.state.round - 1)
    assert world.state.state == "starting"
    world.group.answered(world.state.round)
    assert world.state.state == "running" and world.state.answered == world.clock.time()


def test_a_fault_stops_all_and_starts_all_again() -> None:
    world = World().up()
    world.answer("fault", "b", why="container ended with 1")
    assert world.orders("stop") == ["a", "b", "c"] and world.state.state == "stopping"
    world.answer("stopped", "a", "b")
    assert world.state.state == "stopping"
    world.answer("stopped", "c")
    assert world.state.state == "backoff" and world.group.deadline() == world.clock.now + 5.0
    world.later(4.9)
    assert world.state.state == "backoff"
    world.later(0.2)
    assert world.orders("prepare") == ["a", "b", "c"] * 2
    world.clock.pass_(7)
    world.answer("ready")
    world.answer("running")
    assert [(one.seconds, one.why) for one in world.state.recovered] == [(12.1, "b: container ended with 1")]


def test_what_else_went_wrong_is_kept_with_the_reason() -> None:
    world = World().up()
    world.answer("fault", "a", why="container ended with 1")
    world.group.lost("c", "silent for 10 s")
    world.answer("stopped", "a", "b")
    assert world.state.failures[-1].why == "a: container ended with 1; also c: silent for 10 s"
    assert world.state.state == "backoff" and len(world.state.failures) == 1


def test_messages_of_another_round_are_ignored() -> None:
    world = World().up()
    old = world.state.round
    world.answer("fault", "b", why="x")
    world.answer("stopped")
    world.later(5)
    world.answer("ready", "a", "b")
    for kind in ("ready", "running", "fault", "stopped"):
        world.group.received("c", {"type": kind, "round": old, "why": "late"})
        world.group.received("c", {"type": kind, "why": "no round"})
        world.group.received("c", {"type": kind, "round": True, "why": "no number"})
    assert world.state.waiting_for == ["c: its agent"] and len(world.state.failures) == 1


def test_who_leaves_in_order_is_no_failure() -> None:
    world = World().up()
    world.group.left("b")
    world.answer("stopped", "a", "c")
    assert world.state.state == "waiting" and world.state.failures == [] and world.state.waiting_for == ["b"]
    world.group.joined("b")
    assert world.orders("prepare") == ["a", "b", "c"]
    world.later(BREATH_S)
    assert world.orders("prepare") == ["a", "b", "c"] * 2


def test_who_is_lost_before_the_start_is_no_failure() -> None:
    world = World()
    for name in world.names:
        world.group.joined(name)
    world.answer("ready", "a", "b")
    world.group.lost("c", "connection lost")
    assert world.orders("stop") == ["a", "b"]
    world.answer("stopped", "a", "b")
    assert world.state.state == "waiting" and world.state.failures == []
    world.group.joined("c")
    world.later(BREATH_S)
    assert world.orders("prepare") == ["a", "b", "c"] * 2 and world.orders("go") == []


def test_a_gate_that_fails_is_a_failure() -> None:
    world = World()
    for name in world.names:
        world.group.joined(name)
    world.answer("fault", "b", why="needs 9 GiB of memory")
    world.answer("stopped")
    assert world.state.state == "backoff" and world.state.failures[0].why == "b: needs 9 GiB of memory"


def test_an_end_that_is_another_supervisors_matter_is_no_failure() -> None:
    world = World(()).up()
    world.answer("fault", why="container ended with 137", counted=False)
    world.answer("stopped")
    assert world.state.state == "waiting" and world.state.failures == []
    world.later(BREATH_S)
    world.up()
    assert world.state.state == "running" and len(world.state.recovered) == 1


def test_a_member_that_connects_anew_has_lost_its_container() -> None:
    world = World().up()
    world.group.joined("b")
    assert world.orders("stop") == ["a", "c"] and "b: connected anew" in world.state.why
    world.answer("stopped", "a", "c")
    assert world.state.state == "backoff" and not world.state.waiting_for


def test_a_member_that_does_not_stop_is_dropped() -> None:
    world = World().up()
    world.answer("fault", "a", why="x")
    world.answer("stopped", "a", "b")
    assert world.group.deadline() == world.clock.now + 50
    world.later(50)
    assert world.dropped == ["c"] and world.state.state == "backoff"
    world.later(5)
    assert world.state.waiting_for == ["c"]


def test_a_go_without_an_answer_is_a_failure() -> None:
    world = World()
    for name in world.names:
        world.group.joined(name)
    world.answer("ready")
    world.answer("running", "a", "b")
    assert world.group.deadline() == world.clock.now + 100
    world.later(100)
    assert world.state.why == "c: has not said after 100 s that its container runs"


def test_pauses_double_and_the_limit_is_the_end() -> None:
    world = World(limit=3)
    for pause in (5.0, 10.0, 20.0):
        world.up()
        world.answer("fault", "b", why="container ended with 137 (SIGKILL)")
        world.answer("stopped")
        assert world.group.deadline() == world.clock.now + pause
        world.later(pause)
    world.up()
    world.answer("fault", "b", why="container ended with 137 (SIGKILL)")
    assert not world.group.finished
    world.answer("stopped")
    assert world.group.finished and world.state.state == "down" and world.group.deadline() is None
    assert world.lines[-1] == (
        "gives up after 3 restarts in 10 min; last: b: container ended with 137 (SIGKILL); "
        "nothing runs until site.yml or `systemctl start x`"
    )


def test_failures_of_long_ago_do_not_count() -> None:
    world = World(limit=1)
    for _turn in range(5):
        world.up()
        world.clock.pass_(601)
        world.answer("fault", "b", why="x")
        world.answer("stopped")
        assert world.state.state == "backoff" and world.group.deadline() == world.clock.now + 5
        world.later(5)


def test_a_supervisor_that_died_counts() -> None:
    world = World((), limit=1)
    world.history.failures = [Failure(0, world.clock.now, "x")]
    world.group.crashed()
    assert world.group.finished and world.state.failures[-1].why == "a: the supervisor ended without being asked to"


def test_waiting_is_said_once_and_then_every_minute() -> None:
    world = World()
    world.group.joined("a")
    assert world.lines == ["waits for b, c; nothing runs until then"]
    for _turn in range(3):
        world.later(REPEAT_S / 4)
    world.group.joined("b")
    assert world.lines[1:] == ["b: connected"]
    world.later(REPEAT_S / 4)
    assert world.lines[2:] == ["still waits for c; nothing runs until then"]
    assert world.group.deadline() == world.clock.now + REPEAT_S
    world.group.lost("b", "connection lost")
    assert world.lines[3:] == ["b: connection lost", "waits for b, c; nothing runs until then"]


def test_an_order_to_stop_tells_the_members_and_forgets() -> None:
    world = World().up()
    world.answer("fault", "b", why="x")
    world.answer("stopped")
    world.later(5)
    world.up()
    world.group.leave()
    # They help to answer the last requests.
    assert world.orders("leaves") == [] and world.state.failures == [] and world.group.deadline() is None
    world.group.lost("b", "connection lost")
    world.answer("fault", "a", why="container ended with 143")
    assert world.state.failures == [] and world.state.why == "asked to stop"
    world.group.closed()
    assert world.orders("leaves") == ["c"] and world.state.state == "stopped"


class Place:
    """A node as the rules must be able to deal with it: its orders and answers are on their way for a while."""

    def __init__(self) -> None:
        self.connected = False
        self.runs = 0  # the round of its container
        self.ready = 0
        self.orders: deque[dict[str, Any]] = deque()
        self.answers: deque[dict[str, Any]] = deque()

    def obey(self) -> None:
        order = self.orders.popleft()
        kind, round_id = order["type"], order["round"]
        if kind == "prepare":
            assert not self.runs
            self.ready = round_id
            self.answers.append({"type": "ready", "round": round_id})
        elif kind == "go":
            assert self.ready == round_id
            self.ready, self.runs = 0, round_id
            self.answers.append({"type": "running", "round": round_id})
        else:
            self.ready = self.runs = 0
            self.answers.append({"type": "stopped", "round": round_id})


class Chaos(World):
    """Nodes that come, go and die while messages are on their way."""

    def __init__(self) -> None:
        super().__init__(limit=10**6)
        self.places = {name: Place() for name in self.names}

    def send(self, name: str, message: dict[str, Any]) -> None:
        self.places[name].orders.append(message)

    def drop(self, name: str, why: str) -> None:
        self.places[name].connected = False

    def join(self, name: str) -> None:
        place = self.places[name]
        # A member connects when nothing runs, on a new connection.
        place.runs = place.ready = 0
        place.orders.clear()
        place.answers.clear()
        place.connected = True
        self.group.joined(name)

    def step(self, action: str, name: str) -> None:
        place = self.places[name]
        if action == "join" and name != "a":
            self.join(name)
        elif action == "lose" and name != "a" and place.connected:
            place.connected = False
            self.group.lost(name, "connection lost")
        elif action == "leave" and name != "a" and place.connected:
            place.connected, place.runs = False, 0
            self.group.left(name)
        elif action == "notice" and not place.connected:
            place.runs = 0
        elif action == "die" and place.runs:
            place.answers.append({"type": "fault", "round": place.runs, "why": "died"})
            place.runs = 0
        elif action == "obey" and place.orders and place.connected:
            place.obey()
        elif action == "hear" and place.answers and place.connected:
            self.group.received(name, place.answers.popleft())
        elif action == "wait":
            self.later(3.0)
        running = {one.runs for one in self.places.values() if one.connected and one.runs}
        assert len(running) <= 1, "containers of two rounds run together"


ACTIONS = ("join", "lose", "leave", "notice", "die", "obey", "obey", "hear", "hear", "wait")


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(ACTIONS), st.sampled_from("abc")), max_size=120))
def test_whatever_happens_it_comes_back(steps: list[tuple[str, str]]) -> None:
    chaos = Chaos()
    chaos.join("a")
    for action, name in steps:
        chaos.step(action, name)
    for name in ("b", "c"):
        if not chaos.places[name].connected:
            chaos.join(name)
    for _turn in range(200):
        for name in chaos.names:
            chaos.step("obey", name)
            chaos.step("hear", name)
        chaos.step("wait", "a")
    assert chaos.state.state == "running"
    assert {place.runs for place in chaos.places.values()} == {chaos.state.round}


@pytest.mark.parametrize("hindrance", ["", "address 10.0.0.1:6400 (not here yet)"])
def test_a_hindrance_of_the_leader_keeps_all_from_starting(hindrance: str) -> None:
    world = World(())
    world.group.hinder(hindrance)
    world.group.joined("a")
    assert world.orders("prepare") == ([] if hindrance else ["a"])
    assert world.state.waiting_for == ([hindrance] if hindrance else ["a: its agent"])
    world.group.hinder("")
    assert world.orders("prepare") == ["a"]
