# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Write the tables of variables in the READMEs from the roles' argument specifications.

``roles/*/meta/argument_specs.yml`` is what Ansible checks a role's variables against, so the tables cannot say
anything else. They go between ``<!-- variables -->`` and ``<!-- /variables -->`` in each role's README.md, and all of
them between ``<!-- variables:all -->`` and ``<!-- /variables:all -->`` in README.md. With ``--check`` nothing is
written, and each README that is not up to date is one line and exit status 1.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

CHECKOUT = Path(__file__).resolve().parent.parent

sys.path.insert(0, str(CHECKOUT))

from docs import pages  # noqa: E402

# As site.yml runs them; others follow by name.
ORDER = ("host", "fabric", "image", "model", "ray", "serve", "lock")

# Ansible's markup, without HORIZONTALLINE.
_MARKUP = re.compile(r"\b(?P<kind>RV|[BCEILMOPUV])\((?P<text>(?:\\.|[^)\\])*)\)")


class VariablesError(Exception):
    """A file that is missing or not as it has to be; the text is one line."""


@dataclass(frozen=True)
class Role:
    """A role's name, what it is for, and its options as argument_specs.yml has them."""

    name: str
    short_description: str
    options: Mapping[str, Mapping[str, Any]]


def code(text: str) -> str:
    """Return ``text`` as Markdown code; a backtick in it makes the fence longer."""
    text = " ".join(text.split())
    return f"`` {text} ``" if "`" in text else f"`{text}`"


def plain(text: str) -> str:
    """Return ``text`` so that Markdown does not take its ``<words>`` for tags."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def markdown(text: str) -> str:
    """Return text with Ansible's markup, such as ``O(x)`` and ``V(y)``, as Markdown."""
    parts: list[str] = []
    end = 0
    for match in _MARKUP.finditer(text):
        parts.append(plain(text[end : match.start()]))
        end = match.end()
        kind, inner = match["kind"], re.sub(r"\\(.)", r"\1", match["text"])
        if kind == "B":
            parts.append(f"**{plain(inner)}**")
        elif kind == "I":
            parts.append(f"*{plain(inner)}*")
        elif kind == "U":
            parts.append(f"<{inner.strip()}>")
        elif kind == "L":
            label, address = (*inner.split(",", 1), "")[:2]
            parts.append(f"[{plain(label.strip())}]({address.strip()})")
        else:
            # A plugin is written name#type.
            parts.append(code(inner.partition("#")[0] if kind == "P" else inner))
    parts.append(plain(text[end:]))
    return " ".join("".join(parts).split())


def value(given: object) -> str:
    """Return a YAML value as code, quoted where YAML would otherwise read something else than a string."""
    if isinstance(given, str):
        try:
            quoted = yaml.safe_load(given) != given
        except yaml.YAMLError:
            quoted = False  # a Jinja expression
        return code(f'"{given}"' if quoted else given)
    return code(yaml.safe_dump(given, default_flow_style=True, width=10**6).removesuffix("\n").removesuffix("\n..."))


def cell(text: str) -> str:
    """Return ``text`` as a table's cell."""
    return text.replace("|", "\\|")


def describe(option: Mapping[str, Any]) -> str:
    """Return an option's description as one paragraph, with its choices."""
    given = option.get("description", [])
    sentences = [markdown(str(text)) for text in ([given] if isinstance(given, str) else given)]
    if "choices" in option:
        sentences.append("One of " + ", ".join(value(choice) for choice in option["choices"]) + ".")
    return " ".join(sentences)


def rows(options: Mapping[str, Mapping[str, Any]], prefix: str = "") -> Iterator[str]:
    """Yield one line of a table for each option, the parts of a dictionary after it."""
    for name, option in options.items():
        kind = option.get("type", "str")
        if "elements" in option:
            kind = f"{kind}[{option['elements']}]"
        if option.get("required"):
            default = "required"
        else:
            default = value(option["default"]) if option.get("default") is not None else ""
        cells = [code(prefix + name), code(kind), default, describe(option)]
        yield "| " + " | ".join(cell(text) for text in cells) + " |"
        inner = f"{prefix}{name}[]." if kind.startswith("list") else f"{prefix}{name}."
        yield from rows(option.get("options") or {}, inner)


def table(role: Role) -> str:
    """Return the Markdown table of a role's variables."""
    if not role.options:
        return "This role has no variables."
    return "\n".join(["| Variable | Type | Default | Meaning |", "|---|---|---|---|", *rows(role.options)])


def chapter(role: Role) -> str:
    """Return a role's part of the top README."""
    what = markdown(role.short_description).rstrip(".")
    return f"### {role.name}\n\n{what}.\n\n{table(role)}"


def load(path: Path) -> dict[str, Any]:
    """Return the mapping in a YAML file; an empty file is an empty one."""
    try:
        read = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise VariablesError(f"{path}: not YAML; {' '.join(str(error).split())}") from error
    if not isinstance(read or {}, dict):
        raise VariablesError(f"{path}: a mapping is wanted")
    return read or {}


def read_role(directory: Path) -> Role:
    """Return the role in ``directory``: the options of all its entry points, main's first.

    A default that argument_specs.yml leaves out is taken from defaults/main.yml.
    """
    specs = directory / "meta" / "argument_specs.yml"
    if not specs.is_file():
        raise VariablesError(f"{specs}: missing; it has to name the role's variables")
    points: dict[str, Any] = load(specs).get("argument_specs") or {}
    points = {name: points[name] for name in sorted(points, key=lambda name: (name != "main", name))}
    defaults_file = directory / "defaults" / "main.yml"
    defaults = load(defaults_file) if defaults_file.is_file() else {}
    options: dict[str, dict[str, Any]] = {}
    for point in points.values():
        for name, option in (point.get("options") or {}).items():
            filled = {"default": defaults[name], **option} if name in defaults else option
            options.setdefault(name, filled)
    return Role(directory.name, str(points.get("main", {}).get("short_description", directory.name)), options)


def read_roles(checkout: Path) -> tuple[list[Role], list[str]]:
    """Return the roles in the order of site.yml, and a line for each that cannot be read."""
    directories = [path for path in (checkout / "roles").glob("*") if path.is_dir()]
    directories.sort(key=lambda path: (ORDER.index(path.name) if path.name in ORDER else len(ORDER), path.name))
    roles: list[Role] = []
    problems: list[str] = []
    for directory in directories:
        try:
            roles.append(read_role(directory))
        except VariablesError as error:
            problems.append(str(error))
    return roles, problems


def update(path: Path, marker: str, content: str, check: bool) -> str:
    """Bring one README up to date, or only look; return a line that says what is wrong, empty when nothing is."""
    if not path.is_file():
        return f"{path}: missing"
    return pages.update(path, marker, content, check, "its table of variables is stale; run: python docs/variables.py")


def main(argv: Sequence[str] | None = None, checkout: Path = CHECKOUT) -> int:
    """Write the tables, or check them; return the exit status."""
    check = pages.only_check(argv, "Write the tables of variables in the READMEs.", "a README")
    roles, problems = read_roles(checkout)
    for role in roles:
        problems.append(update(checkout / "roles" / role.name / "README.md", "variables", table(role), check))
    chapters = "\n\n".join(chapter(role) for role in roles)
    problems.append(update(checkout / "README.md", "variables:all", chapters, check))
    lines = [problem.removeprefix(f"{checkout}/") for problem in problems if problem]
    for line in lines:
        print(line if check else f"{line}; skipped", file=sys.stderr)
    return int(check and bool(lines))


if __name__ == "__main__":
    sys.exit(main())
