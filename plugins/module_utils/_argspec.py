# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the roles' argument specs say, as plain data: known variables, secrets, ports, and likely typing errors.

Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import difflib
import re
import typing as t
from dataclasses import dataclass

ROLES: t.Final = ("host", "fabric", "image", "model", "ray", "serve", "lock")
"""The roles of the main path, in the order in which data flows."""

HANDED_ON: t.Final[t.Mapping[str, str]] = {
    "fabric": "fabric_node",
    "image": "image_ref",
    "model": "model_paths",
    "ray": "ray_address",
    "serve": "serve_url",
}
"""The host variable by which each role hands on its result. Given in the inventory, the role only checks it."""

MAX_MODELS: t.Final = 10
"""Models of one cluster at most."""

SPREAD: t.Final = ("serve_group_port", "serve_rendezvous_port", "serve_dp_port")
"""Ports of which the first model takes the first, the second model the next, and so on."""

_SECRET = re.compile(r"(?:^|_)(?:key|token|secret|password)$")
_CLOSE_ENOUGH = 0.8


@dataclass(frozen=True)
class Option:
    """One public role variable as its argument spec declares it."""

    name: str
    role: str
    spec: t.Mapping[str, t.Any]

    @property
    def secret(self) -> bool:
        """Whether the value must never be shown."""
        return bool(self.spec.get("no_log")) or _SECRET.search(self.name) is not None

    @property
    def type(self) -> str:
        """Type name as argument specs spell it; `str` where nothing is said."""
        return str(self.spec.get("type", "str"))

    @property
    def choices(self) -> tuple[t.Any, ...]:
        """The allowed values, empty where any value of the type is."""
        return tuple(self.spec.get("choices") or ())

    @property
    def required(self) -> bool:
        """Whether an owner must set it."""
        return bool(self.spec.get("required"))


def options(specs: t.Mapping[str, t.Mapping[str, t.Any]]) -> dict[str, Option]:
    """Return every variable that any entry point of any role declares, by name.

    `specs` maps a role's name to the content of its meta/argument_specs.yml. Where entry points repeat a
    variable, `main` decides.
    """
    found: dict[str, Option] = {}
    for role, content in specs.items():
        entry_points: t.Mapping[str, t.Any] = content.get("argument_specs") or {}
        for entry_point in sorted(entry_points, key=lambda name: name != "main"):
            declared: t.Mapping[str, t.Any] = (entry_points[entry_point] or {}).get("options") or {}
            for name, spec in declared.items():
                found.setdefault(name, Option(name, role, spec or {}))
    return found


def mistyped(names: t.Iterable[str], known: t.Collection[str]) -> dict[str, str]:
    """Return those of `names` that look like a typing error of a known variable, with the variable meant.

    Only names that start with a role's prefix are looked at, and only near ones are reported: an owner may
    well have variables of their own.
    """
    near: dict[str, str] = {}
    candidates = sorted({*known, *HANDED_ON.values()})
    for name in sorted(set(names)):
        if name in candidates or name.split("_", 1)[0] not in ROLES or "_" not in name:
            continue
        matches = difflib.get_close_matches(name, candidates, n=1, cutoff=_CLOSE_ENOUGH)
        if matches:
            near[name] = matches[0]
    return near


@dataclass(frozen=True, order=True)
class PortUse:
    """A TCP port, or a range of them, and the variables that set it."""

    first: int
    last: int
    variable: str

    def __contains__(self, port: object) -> bool:
        return isinstance(port, int) and self.first <= port <= self.last

    def __str__(self) -> str:
        return f"{self.first}" if self.first == self.last else f"{self.first}-{self.last}"


def port_uses(values: t.Mapping[str, object], known: t.Mapping[str, Option]) -> list[PortUse]:
    """Return what listens where, from every integer variable named `*_port` in `known`.

    `<role>_min_x_port` and `<role>_max_x_port` are one range. 0 means that the program chooses, which can
    clash with nothing, and a role whose result is given starts nothing. Values that are no integers are left to
    the type check.
    """
    uses: list[PortUse] = []
    for name, option in known.items():
        value = values.get(name)
        if option.type != "int" or not name.endswith("_port") or not _is_int(value) or "_max_" in name:
            continue
        if values.get(HANDED_ON.get(option.role, "")):
            continue
        first = last = t.cast(int, value)
        label = name
        upper = name.replace("_min_", "_max_")
        if upper != name:
            label = f"{name}..{upper}"
            if _is_int(values.get(upper)):
                last = t.cast(int, values[upper])
        elif first and name in SPREAD:
            last = first + MAX_MODELS - 1
        if first:
            uses.append(PortUse(first, last, label))
    return sorted(uses)


def port_problems(uses: t.Sequence[PortUse]) -> list[str]:
    """Return what is wrong with a node's ports: outside 1..65535, a range upside down, one port used twice."""
    problems: list[str] = []
    sound: list[PortUse] = []
    for use in uses:
        if use.first > use.last:
            problems.append(f"{use.variable} is {use}, an empty range; let the first port be the lower one")
        elif use.first < 1 or use.last > 65535:
            problems.append(f"{use.variable} is {use}; use ports from 1 to 65535")
        else:
            sound.append(use)
    for index, use in enumerate(sound):
        for other in sound[index + 1 :]:
            if other.first > use.last:
                break
            problems.append(
                f"{use.variable} ({use}) and {other.variable} ({other}) use the same port; give each its own"
            )
    return problems


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
