# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module util is PRIVATE to the collection. It can have breaking changes at any time.
"""systemd units that run containers: their environment files, their state, and the inputs that they run with.

A unit starts its container with the label ``io.sparkfleet.inputs=<digest>``. The digest is read back from the running
process, so that a run that was interrupted between writing a file and restarting the unit is finished by the next one.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

INPUTS_LABEL = "io.sparkfleet.inputs="


@dataclass(frozen=True)
class UnitState:
    """What systemd says of a unit."""

    exists: bool
    active: bool
    enabled: bool
    main_pid: int
    restarts: int
    state: str
    result: str


def env_file(values: Mapping[str, object]) -> str:
    """Return an environment file for ``docker run --env-file``, sorted by name; empty values are left out.

    Docker takes everything after ``=`` literally, so nothing is quoted.
    Raises ``ValueError`` for a name or a value that such a file cannot carry.
    """
    lines = []
    for name in sorted(values):
        value = values[name]
        text = str(value).lower() if isinstance(value, bool) else str(value if value is not None else "")
        if not name or name.startswith("#") or any(c in name for c in "= \t\r\n"):
            raise ValueError(f"{name!r} is no name of an environment variable")
        if any(c in text for c in "\r\n\0"):
            raise ValueError(f"the value of {name} has a line break, which an environment file cannot carry")
        if text:
            lines.append(f"{name}={text}\n")
    return "".join(lines)


def parse_show(text: str) -> dict[str, str]:
    """Read the output of ``systemctl show``."""
    return dict(line.split("=", 1) for line in text.splitlines() if "=" in line)


def unit_state(show: Mapping[str, str]) -> UnitState:
    """Judge the properties LoadState, ActiveState, SubState, UnitFileState, MainPID, NRestarts and Result."""
    return UnitState(
        exists=show.get("LoadState") == "loaded",
        active=show.get("ActiveState") == "active",
        enabled=show.get("UnitFileState") == "enabled",
        main_pid=_number(show.get("MainPID")),
        restarts=_number(show.get("NRestarts")),
        state=f"{show.get('ActiveState', 'unknown')} ({show.get('SubState', 'unknown')})",
        result=show.get("Result", ""),
    )


def _number(text: str | None) -> int:
    return int(text) if text and text.isdigit() else 0


def running_inputs(cmdline: bytes) -> str:
    """Return the inputs' digest from a process's command line (NUL-separated), or an empty string."""
    for argument in cmdline.decode("utf-8", "replace").split("\0"):
        if INPUTS_LABEL in argument:
            return argument.split(INPUTS_LABEL, 1)[1]
    return ""


def hopeless(unit: str, state: UnitState, restarts_before: int, max_restarts: int) -> str:
    """Say why it is pointless to wait for a unit, or return an empty string.

    :param restarts_before: systemd's count of restarts when the waiting began
    :param max_restarts: automatic restarts that are tolerated meanwhile
    """
    if not state.exists:
        return f"{unit} is not there"
    if state.state.startswith("failed"):
        return f"{unit} has failed ({state.result})"
    if state.state.startswith("inactive"):
        return f"{unit} is not running"
    again = state.restarts - restarts_before
    if again > max_restarts:
        return f"{unit} keeps dying: {again} restarts while waiting"
    return ""


def keeps_dying(unit: str, state: Mapping[str, Any], since: float, max_restarts: int) -> str:
    """Say why it is pointless to wait for a supervised unit, or return an empty string.

    :param state: what its supervisor wrote: ``state``, ``why``, ``failures`` with ``at`` (epoch seconds) and ``why``
    :param since: when the waiting began, in seconds since 1970
    :param max_restarts: restarts by the supervisor that are tolerated meanwhile
    """
    if state.get("state") == "down":
        return f"{unit} gave up: {state.get('why') or 'no reason given'}"
    recent = [one for one in state.get("failures") or [] if float(one.get("at") or 0) >= since]
    if len(recent) > max_restarts:
        return f"{unit} keeps dying: {len(recent)} restarts while waiting, the last as {recent[-1].get('why')}"
    return ""


def stale_instances(template: str, keep: Iterable[str], listings: Iterable[str]) -> list[str]:
    """Return the instances of a template unit that are not to be kept, sorted.

    :param template: for example ``spark-vllm@``
    :param keep: instance names
    :param listings: outputs of ``systemctl list-units`` and ``list-unit-files``, without legend
    """
    kept = {f"{template}{name}.service" for name in keep}
    found = set()
    for listing in listings:
        for line in listing.splitlines():
            # A failed unit has a bullet in front.
            words = line.replace("\u25cf", " ").replace("*", " ").split()
            if words and fnmatch.fnmatchcase(words[0], f"{template}?*.service"):
                found.add(words[0])
    return sorted(found - kept)
