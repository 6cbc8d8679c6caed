# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The roles' variables of a host, evaluated and validated on the controller.

Note that this plugin util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import typing as t
from pathlib import Path

from ansible.errors import AnsibleActionFail, AnsibleError, AnsibleUndefinedVariable
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from ansible.module_utils.errors import ArgumentValueError
from ansible_collections.sparkfleet.vllm.plugins.module_utils._argspec import HANDED_ON, ROLES, Option, options
from ansible_collections.sparkfleet.vllm.plugins.module_utils._fleet import (
    GROUP,
    MUST_BE_STABLE,
    NEVER_SHOWN,
    Cluster,
    Host,
    clusters,
)
from ansible_collections.sparkfleet.vllm.plugins.module_utils._recipe import Recipe, key_of
from ansible_collections.sparkfleet.vllm.plugins.plugin_utils._recipes import Recipes

WEIGHTS: t.Final = ("serve_model", "model_source", "model_path")
"""Variables that say where the weights are, each stronger than a recipe's model."""

PER_ENTRY: t.Final = ("serve_served_model_name", "serve_name", "serve_nodes")
"""Variables of the cluster that say nothing of an entry of serve_models with a recipe, as WEIGHTS do not."""

ROLE_DIRECTORY: t.Final = Path(__file__).parents[2] / "roles"


class Inventory:
    """The groups of the running playbook's inventory, as plain lists.

    Action plugins are not given the inventory, and variables do not show its hierarchy; `hostvars` holds it.
    """

    def __init__(self, task_vars: t.Mapping[str, t.Any]) -> None:
        self.hostvars = task_vars["hostvars"]
        inventory = getattr(self.hostvars, "_inventory", None)
        if inventory is None or not hasattr(self.hostvars, "raw_get"):
            raise AnsibleActionFail(
                "this ansible-core does not show its inventory to action plugins; use 2.19, see requirements-dev.txt"
            )
        group = inventory.groups.get(GROUP)
        self.direct: list[str] = [host.name for host in group.hosts] if group else []
        self.children: dict[str, list[str]] = (
            {child.name: [host.name for host in child.get_hosts()] for child in group.child_groups} if group else {}
        )
        self.selected: list[str] = (
            [host.name for host in inventory.get_hosts(GROUP, ignore_restrictions=True)] if group else []
        )
        """Hosts of ours that `--limit` left."""
        self.clusters: tuple[Cluster, ...] = clusters(self.direct, self.children)


class RoleVariables:
    """What the roles declare, and what a host's variables make of it."""

    def __init__(self, loader: t.Any, templar: t.Any, directory: Path | None = None) -> None:
        self._templar = templar
        self._recipes = Recipes(loader)
        self._defaults: dict[str, t.Any] = {}
        self._derived: dict[str, t.Any] = {}
        specs: dict[str, t.Any] = {}
        for role in ROLES:
            home = (directory or ROLE_DIRECTORY) / role
            specs[role] = _load(loader, home / "meta" / "argument_specs.yml")
            self._defaults.update(_load(loader, home / "defaults" / "main.yml"))
            self._derived.update(_load(loader, home / "vars" / "main.yml"))
        self.options: dict[str, Option] = options(specs)

    def validated(self, variable: str, value: t.Any) -> tuple[t.Any, str]:
        """Return a value in the declared type of a variable, and what is wrong with it; undeclared ones pass."""
        option = self.options.get(variable)
        return _validated(option, value) if option else (value, "")

    def derived(self, name: str, context: t.Mapping[str, t.Any]) -> t.Any:
        """Return what a variable of a role's vars/main.yml is where these variables are given."""
        templar = self._templar.copy_with_new_env(available_variables={**self._defaults, **context, **self._derived})
        return templar.template(self._derived[name])

    def of(self, name: str, inventory: Inventory, cluster: Cluster) -> Host:
        """Return a host with its variables as its roles will see them, and what is wrong with them."""
        given = dict(inventory.hostvars.raw_get(name))
        context = {**self._defaults, **given, **self._derived, "hostvars": inventory.hostvars}
        context["ansible_facts"] = {**(given.get("ansible_facts") or {}), "spark_cluster": cluster.fact()}
        templar = self._templar.copy_with_new_env(available_variables=context)
        problems: list[str] = []
        recipes: dict[str, Recipe] = {}
        notes: list[str] = []
        main = self._main_recipe(given, templar, problems)
        if main:
            recipes[main.file] = main
        if main and not main.problems:
            derived = main.variables(weights=_named(given, WEIGHTS))
            notes += _overruled(main, derived, given)
            # What the owner set, and what follows from other variables, is stronger.
            context.update({key: value for key, value in derived.items() if key not in given})
            templar = self._templar.copy_with_new_env(available_variables=context)
        values: dict[str, t.Any] = {}
        unstable: set[str] = set()
        for option in self.options.values():
            if option.name not in context:
                if option.required and option.name not in HANDED_ON.values():
                    problems.append(f"{option.name} is not set; set it in the inventory")
                continue
            try:
                value = templar.template(context[option.name])
                if option.name in MUST_BE_STABLE and value != templar.template(context[option.name]):
                    unstable.add(option.name)
            except AnsibleError as error:
                # A default that cannot be evaluated here may be fine in its role; what an owner wrote must be.
                if option.name in given:
                    problems.append(_evaluation_problem(option, error))
                continue
            values[option.name], problem = _validated(option, value)
            # A default may say "not set yet" with a value that would be wrong in an inventory.
            if problem and option.name in given:
                problems.append(problem)
                del values[option.name]
        # Another host's variables would make a difference between lists that are equal.
        of_head = dict(inventory.hostvars.raw_get(cluster.head))
        values.update(self._with_recipes(values, of_head, recipes, notes))
        problems += [line for recipe in recipes.values() for line in recipe.lines()]
        address, ssh_port = name, 22
        try:
            address = str(templar.template(given.get("ansible_host") or name))
            ssh_port = int(templar.template(given.get("ansible_port") or ssh_port))
        except (AnsibleError, ValueError) as error:
            problems.append(f"ansible_host or ansible_port cannot be evaluated ({_short(error)}); correct it")
        return Host(
            name=name,
            address=address,
            ssh_port=ssh_port,
            given=frozenset(given),
            values=values,
            problems=tuple(problems),
            unstable=frozenset(unstable),
            recipes=recipes,
            notes=tuple(notes),
        )

    def _main_recipe(self, given: t.Mapping[str, t.Any], templar: t.Any, problems: list[str]) -> Recipe | None:
        """Return the recipe of serve_recipe, None where there is none; what cannot be evaluated is told elsewhere."""
        if not given.get("serve_recipe") or "serve_recipe" not in self.options:
            return None
        try:
            file = templar.template(given["serve_recipe"])
        except AnsibleError:
            return None
        if not isinstance(file, str) or not file.strip():
            return None
        if given.get("serve_models"):
            problems.append("serve_recipe is for a single model; write recipe into the entries of serve_models")
            return None
        return self._recipes.read(file.strip())

    def _with_recipes(
        self,
        values: t.Mapping[str, t.Any],
        given: t.Mapping[str, t.Any],
        recipes: dict[str, Recipe],
        notes: list[str],
    ) -> dict[str, t.Any]:
        """Return serve_models with what the entries' recipes say where neither entry nor inventory does."""
        entries = values.get("serve_models")
        if not isinstance(entries, list) or "serve_recipe" not in self.options:
            return {}
        filled: list[t.Any] = []
        for entry in entries:
            file = entry.get("recipe") if isinstance(entry, dict) else None
            if not isinstance(file, str) or not file.strip():
                filled.append(entry)
                continue
            recipe = recipes.setdefault(file.strip(), self._recipes.read(file.strip()))
            if recipe.problems:
                filled.append(entry)
                continue
            derived = recipe.variables(weights=_named(entry, ("model", "source", "path")))
            own = {f"serve_{key}": value for key, value in entry.items()}
            # A model of an entry has a name of its own, whatever the cluster's is.
            stronger = {name: given[name] for name in given if name not in (*PER_ENTRY, *WEIGHTS)} | own
            notes += _overruled(recipe, derived, stronger)
            more = {key_of(name): derived[name] for name in derived if name not in stronger}
            filled.append({**entry, **more})
        return {"serve_models": filled}


def _named(given: t.Mapping[str, t.Any], names: t.Iterable[str]) -> bool:
    return any(given.get(name) for name in names)


def _overruled(recipe: Recipe, derived: t.Mapping[str, t.Any], stronger: t.Mapping[str, t.Any]) -> list[str]:
    """Return what of a recipe is not honoured on this cluster, one line each."""
    lines = [*recipe.notes]
    for name in ("serve_extra_args", "serve_extra_env"):
        if name in derived and name in stronger:
            lines.append(f"{name} of the inventory stands in place of the recipe's {_listed(derived[name])}")
    return [f"recipe {recipe.file}: {line}" for line in lines]


def _listed(value: t.Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else ", ".join(map(str, value))


def _load(loader: t.Any, path: Path) -> dict[str, t.Any]:
    """Return a role's YAML file, empty where the role has none. Our own files may hold templates."""
    if not path.is_file():
        return {}
    return dict(loader.load_from_file(str(path), trusted_as_template=True) or {})


def _evaluation_problem(option: Option, error: AnsibleError) -> str:
    said = str(_last(error))
    if "vault secret" in said or "Decryption failed" in said:
        return f"{option.name} is vaulted and cannot be decrypted; give --ask-vault-pass or --vault-password-file"
    # What a lookup or a filter says may quote a secret; that a variable is undefined does not.
    shown = not _hidden(option) or isinstance(_last(error), AnsibleUndefinedVariable)
    return f"{option.name} cannot be evaluated{f' ({_short(error)})' if shown else ''}; correct it in the inventory"


def _hidden(option: Option) -> bool:
    return option.secret or option.name in NEVER_SHOWN


def _short(error: Exception) -> str:
    """Return in one line the last link of an error's chain, which is where Ansible says what is wrong."""
    return " ".join(str(_last(error)).split()).rstrip(".")


def _last(error: BaseException) -> BaseException:
    while isinstance(error.__cause__, AnsibleError):
        error = error.__cause__
    return error


def _validated(option: Option, value: t.Any) -> tuple[t.Any, str]:
    """Return the value, in its declared type where it can be, and what is wrong with it, empty for nothing."""
    result = ArgumentSpecValidator({option.name: dict(option.spec)}).validate({option.name: value})
    if not result.error_messages:
        return result.validated_parameters[option.name], ""
    shown = "has a value that is" if _hidden(option) else f"is {value!r},"
    if option.choices and any(isinstance(error, ArgumentValueError) for error in result.errors.errors):
        allowed = ", ".join(repr(choice) if choice == "" else str(choice) for choice in option.choices)
        return value, f"{option.name} {shown} not one of: {allowed}; choose one of them"
    detail = (
        ""
        if _hidden(option) or not (option.spec.get("options") or option.spec.get("elements"))
        else (" (" + " ".join(result.error_messages[0].split()) + ")")
    )
    return value, f"{option.name} {shown} not of type {option.type}{detail}; correct it in the inventory"
