# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is written down twice in the collection agrees."""

from __future__ import annotations

import typing as t
from pathlib import Path

import pytest
import yaml
from ansible_collections.sparkfleet.vllm.plugins.module_utils._argspec import (
    HANDED_ON,
    ROLES,
    Option,
    options,
    port_uses,
)
from ansible_collections.sparkfleet.vllm.plugins.module_utils._fleet import CLUSTER_WIDE, MUST_BE_STABLE
from ansible_collections.sparkfleet.vllm.plugins.module_utils._preflight import HEAD_PORTS

ROOT = Path(__file__).parents[2]


def load(path: Path) -> t.Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def entry_points(role: str) -> dict[str, t.Any]:
    content = load(ROOT / "roles" / role / "meta" / "argument_specs.yml")
    return t.cast("dict[str, t.Any]", content["argument_specs"])


def declared(role: str) -> dict[str, Option]:
    """Return the role's own variables; it may also declare what another role hands to it."""
    every = options({role: {"argument_specs": entry_points(role)}})
    return {name: option for name, option in every.items() if name.startswith(f"{role}_")}


def defaults(role: str) -> dict[str, t.Any]:
    path = ROOT / "roles" / role / "defaults" / "main.yml"
    return (load(path) or {}) if path.is_file() else {}


def test_every_role_is_known() -> None:
    assert sorted(path.name for path in (ROOT / "roles").iterdir() if path.is_dir()) == sorted(ROLES)


@pytest.mark.parametrize("role", ROLES)
def test_defaults_and_argument_specs_name_the_same_variables(role: str) -> None:
    optional = {name for name, option in declared(role).items() if not option.required}
    assert set(defaults(role)) == optional


@pytest.mark.parametrize("role", ROLES)
def test_defaults_and_argument_specs_give_the_same_values(role: str) -> None:
    stated = {name: option.spec["default"] for name, option in declared(role).items() if "default" in option.spec}
    actual = defaults(role)
    assert stated == {name: actual.get(name) for name in stated}
    # What is computed cannot be stated; everything else must be, as the documentation is made from it.
    unstated = set(actual) - set(stated)
    assert {name for name in unstated if "{{" not in str(actual[name])} == set()


@pytest.mark.parametrize("role", ROLES)
def test_entry_points_agree_on_a_variable(role: str) -> None:
    seen: dict[str, t.Any] = {}
    for content in entry_points(role).values():
        for name, spec in (content.get("options") or {}).items():
            assert seen.setdefault(name, spec) == spec


@pytest.mark.parametrize("role", ROLES)
def test_every_entry_point_is_a_file_and_is_described(role: str) -> None:
    for name, content in entry_points(role).items():
        assert (ROOT / "roles" / role / "tasks" / f"{name}.yml").is_file()
        assert content["short_description"]


@pytest.mark.parametrize("role", ROLES)
def test_every_variable_is_typed_and_described(role: str) -> None:
    for name, option in declared(role).items():
        assert option.spec.get("type"), name
        assert option.spec.get("description"), name


def test_what_the_checks_name_exists() -> None:
    every = {name: option for role in ROLES for name, option in declared(role).items()}
    values = {name: option.spec.get("default") for name, option in every.items()}
    assert set(CLUSTER_WIDE) <= set(every)
    assert set(MUST_BE_STABLE) <= set(every)
    assert {use.variable for use in port_uses(values, every)} >= HEAD_PORTS
    assert set(HANDED_ON) == set(ROLES) - {"host", "lock"}


def test_the_action_group_lists_every_module() -> None:
    modules = {path.stem for path in (ROOT / "plugins" / "modules").glob("*.py") if path.stem != "__init__"}
    groups = load(ROOT / "meta" / "runtime.yml")["action_groups"]
    assert sorted(groups["vllm"]) == sorted(modules)


def test_every_action_plugin_has_a_documented_module() -> None:
    for path in (ROOT / "plugins" / "action").glob("*.py"):
        if path.stem != "__init__":
            assert (ROOT / "plugins" / "modules" / path.name).is_file()


@pytest.mark.parametrize("role", ROLES)
def test_tasks_main_is_a_table_of_contents(role: str) -> None:
    lines = (ROOT / "roles" / role / "tasks" / "main.yml").read_text(encoding="utf-8").splitlines()
    assert len([line for line in lines if line.strip() and not line.lstrip().startswith("#")]) <= 20
