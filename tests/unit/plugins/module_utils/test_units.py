# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Units: environment files that Docker reads, states that systemd tells, inputs that run."""

from __future__ import annotations

import pytest
from ansible_collections.sparkfleet.vllm.plugins.module_utils import _units
from hypothesis import given
from hypothesis import strategies as st

SHOW = """Type=simple
MainPID=4711
NRestarts=2
LoadState=loaded
ActiveState=active
SubState=running
UnitFileState=enabled
Result=success
"""


def read_as_docker(text: str) -> dict[str, str]:
    """The rule of docker's --env-file: lines, comments, then everything after the first =."""
    lines = [line.lstrip() for line in text.split("\n")]
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def test_env_file_is_sorted_and_leaves_empty_values_out() -> None:
    assert _units.env_file({"B": 2, "A": "x y", "C": "", "D": None, "E": True, "F": 0}) == "A=x y\nB=2\nE=true\nF=0\n"


NAMES = st.text("ABCXYZ_019abc", min_size=1)
VALUES = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\r\n\0"), min_size=1)


@given(st.dictionaries(NAMES, VALUES))
def test_docker_reads_back_what_was_meant(values: dict[str, str]) -> None:
    assert read_as_docker(_units.env_file(values)) == values


@pytest.mark.parametrize("values", [{"A": "x\ny"}, {"A": "x\r"}, {"": "x"}, {"A B": "x"}, {"A=B": "x"}, {"#A": "x"}])
def test_env_file_refuses_what_it_cannot_carry(values: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=r"environment"):
        _units.env_file(values)


def test_unit_state() -> None:
    state = _units.unit_state(_units.parse_show(SHOW))
    assert state == _units.UnitState(True, True, True, 4711, 2, "active (running)", "success")


def test_unit_state_of_nothing() -> None:
    state = _units.unit_state(
        _units.parse_show("LoadState=not-found\nActiveState=inactive\nSubState=dead\nMainPID=0\n")
    )
    assert (state.exists, state.active, state.enabled, state.main_pid) == (False, False, False, 0)


def test_running_inputs() -> None:
    cmdline = b"/usr/bin/docker\0run\0--label\0io.sparkfleet.cluster=a\0--label\0io.sparkfleet.inputs=0af1\0image\0"
    assert _units.running_inputs(cmdline) == "0af1"
    assert _units.running_inputs(b"/usr/bin/docker\0run\0") == ""
    assert _units.running_inputs(b"") == ""


def state(text: str, restarts: int = 0, exists: bool = True) -> _units.UnitState:
    return _units.UnitState(exists, text.startswith("active"), True, 1, restarts, text, "exit-code")


@pytest.mark.parametrize(
    ("now", "said"),
    [
        (state("active (running)"), ""),
        (state("activating (auto-restart)", restarts=7), ""),
        (state("activating (auto-restart)", restarts=8), "keeps dying: 3 restarts"),
        (state("failed (failed)"), "has failed (exit-code)"),
        (state("inactive (dead)"), "is not running"),
        (state("inactive (dead)", exists=False), "is not there"),
    ],
)
def test_when_waiting_is_pointless(now: _units.UnitState, said: str) -> None:
    verdict = _units.hopeless("x.service", now, restarts_before=5, max_restarts=2)
    assert (said in verdict) if said else verdict == ""


def supervised(state: str, *ages: float, why: str = "exit 137") -> dict[str, object]:
    """What a supervisor wrote; its failures were so many seconds before the waiting began at 1000."""
    return {"state": state, "why": why, "failures": [{"at": 1000.0 - age, "why": f"exit {age:g}"} for age in ages]}


@pytest.mark.parametrize(
    ("now", "said"),
    [
        ({}, ""),
        (supervised("running"), ""),
        (supervised("backoff", 30, 20, 10), ""),
        (supervised("backoff", 30, 20, 10, -1, -2), ""),
        (supervised("backoff", 30, 0, -1, -2), "x.service keeps dying: 3 restarts while waiting, the last as exit -2"),
        (supervised("down", 10), "x.service gave up: exit 137"),
        (supervised("down", why=""), "x.service gave up: no reason given"),
        ({"state": "running", "failures": None}, ""),
        ({"state": "running", "failures": [{"why": "no time"}] * 9}, ""),
    ],
)
def test_when_waiting_for_a_supervised_unit_is_pointless(now: dict[str, object], said: str) -> None:
    assert _units.keeps_dying("x.service", now, since=1000.0, max_restarts=2) == said


def test_stale_instances() -> None:
    units = (
        "spark-vllm@new.service loaded active running vLLM\n"
        "\u25cf spark-vllm@old.service loaded failed failed vLLM\n"
        "other@x.service loaded active running x\n"
    )
    files = "spark-vllm@.service disabled enabled\nspark-vllm@older.service enabled enabled\n"
    assert _units.stale_instances("spark-vllm@", ["new"], [units, files]) == [
        "spark-vllm@old.service",
        "spark-vllm@older.service",
    ]
    assert _units.stale_instances("spark-vllm@", ["new", "old", "older"], [units, files]) == []
