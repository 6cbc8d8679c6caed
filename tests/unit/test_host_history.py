# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Failures, pauses and the state file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from files.host.sparkfleet_host.history import Failure, History, Recovery, State, StateFile


def failing(*at: float) -> History:
    history = History(2, 100.0, 5.0, 30.0)
    for one in at:
        history.add(Failure(1e9 + one, one, f"at {one}"))
    return history


@pytest.mark.parametrize(
    ("at", "now", "pause", "exhausted"),
    [
        ((), 0.0, 0.0, False),
        ((1.0,), 1.0, 5.0, False),
        ((1.0, 2.0), 2.0, 10.0, False),
        ((1.0, 2.0, 3.0), 3.0, 20.0, True),
        ((1.0, 2.0, 3.0, 4.0), 4.0, 30.0, True),
        ((1.0, 2.0, 101.5), 101.5, 10.0, False),
        ((1.0, 2.0), 200.0, 0.0, False),
    ],
)
def test_pause_and_limit(at: tuple[float, ...], now: float, pause: float, exhausted: bool) -> None:
    history = failing(*at)
    assert history.pause(now) == pause
    assert history.exhausted(now) is exhausted


def test_the_list_of_failures_does_not_grow() -> None:
    history = failing(*(float(number) / 100 for number in range(5000)))
    assert len(history.failures) == 12 and history.exhausted(50.0) and history.pause(50.0) == 30.0


def state() -> State:
    return State("tiny", "leader", "running", 7.0, "", 4, [], [Failure(5.0, 2.0, "x")], 6.0, [Recovery(6.5, 1.5, "x")])


def test_the_state_file_is_read_back(tmp_path: Path) -> None:
    file = StateFile(str(tmp_path / "a" / "group"), "tiny", "boot-1")
    file.write(state())
    record = json.loads((tmp_path / "a" / "group" / "tiny.json").read_text())
    assert record["failures"] == [{"at": 5.0, "monotonic": 2.0, "why": "x"}]
    assert record["recovered"] == [{"at": 6.5, "seconds": 1.5, "why": "x"}]
    assert {"name", "role", "state", "since", "why", "round", "waiting_for", "answered"} < set(record)
    left = file.read()
    assert left and (left.state, left.round, left.failures, left.recovered) == (
        "running",
        4,
        state().failures,
        state().recovered,
    )
    assert [path.name for path in (tmp_path / "a" / "group").iterdir()] == ["tiny.json"]


def test_a_boot_an_orderly_end_and_nonsense_begin_anew(tmp_path: Path) -> None:
    file = StateFile(str(tmp_path), "tiny", "boot-1")
    assert file.read() is None
    file.write(state())
    assert StateFile(str(tmp_path), "tiny", "boot-2").read() is None
    down = state()
    down.state = "down"
    file.write(down)
    assert file.read() is None
    for text in ("", "[]", "{", "null", '{"boot": "boot-1", "state": "running"}', "[" * 5000):
        (tmp_path / "tiny.json").write_text(text)
        assert file.read() is None


def test_a_state_in_a_few_words() -> None:
    assert State("x", "leader", waiting_for=["b", "c"], why="y").line() == "waiting for b, c (y)"
    assert State("x", "leader", "running").line() == "running"
