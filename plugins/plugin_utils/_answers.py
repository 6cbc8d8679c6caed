# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What modules answer, and what hosts registered of it.

Note that this plugin util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import typing as t

from ansible.errors import AnsibleConnectionFailure, AnsibleError


def ask(
    execute: t.Callable[..., dict[str, t.Any]],
    module: str,
    arguments: dict[str, t.Any],
    task_vars: t.Mapping[str, t.Any] | None,
) -> dict[str, t.Any] | None:
    """Run one of our modules on the node.

    Args:
        execute: the action plugin's `_execute_module`.
        module: the module's name in the collection.
        arguments: what the module is given.
        task_vars: the action plugin's.

    Returns:
        The answer, None where the node cannot be reached. Of a module that could not be run it is a message alone.
    """
    try:
        return execute(module_name=f"sparkfleet.vllm.{module}", module_args=arguments, task_vars=task_vars)
    except AnsibleConnectionFailure:
        return None
    except AnsibleError as error:
        return {"msg": str(error)}


def first_line(answer: t.Mapping[str, t.Any], *keys: str) -> str:
    """Return the first line that a failed module said under `keys`, which is where the reason is."""
    lines = [line for key in keys for line in str(answer.get(key, "")).strip().splitlines()]
    return lines[0] if lines else "no answer"


def registered(
    task_vars: t.Mapping[str, t.Any], hosts: t.Iterable[str], variable: str
) -> dict[str, t.Mapping[str, t.Any]]:
    """Return what each of `hosts` registered in a variable, where it did."""
    known = {name: task_vars["hostvars"].raw_get(name).get(variable) for name in hosts}
    return {name: value for name, value in known.items() if isinstance(value, t.Mapping)}
