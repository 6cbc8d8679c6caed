# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What becomes of recipes, computed on the controller."""

from __future__ import annotations

import json
import typing as t

from ansible.plugins.action import ActionBase
from ansible_collections.sparkfleet.vllm.plugins.module_utils import _fleet, _serving
from ansible_collections.sparkfleet.vllm.plugins.module_utils._recipe import Recipe, key_of
from ansible_collections.sparkfleet.vllm.plugins.plugin_utils._recipes import Recipes, found
from ansible_collections.sparkfleet.vllm.plugins.plugin_utils._report import refusal
from ansible_collections.sparkfleet.vllm.plugins.plugin_utils._serve_command import commands
from ansible_collections.sparkfleet.vllm.plugins.plugin_utils._variables import Inventory, RoleVariables


class _HostVars(dict[str, t.Any]):
    """What `hostvars` is to :class:`RoleVariables`: given variables for every host, templates see the real ones."""

    def __init__(self, given: t.Mapping[str, t.Any], real: t.Any) -> None:
        super().__init__()
        self._given, self._real = dict(given), real

    def __missing__(self, name: str) -> t.Any:
        return self._real[name]

    def raw_get(self, name: str) -> dict[str, t.Any]:
        return self._given


class _Overlaid:
    """An inventory as far as :class:`RoleVariables` reads it, with one model, whose recipe is given."""

    def __init__(self, recipe: str, given: t.Mapping[str, t.Any], real: t.Any) -> None:
        kept = {name: value for name, value in given.items() if name != "serve_models"}
        self.hostvars = _HostVars({**kept, "serve_recipe": recipe}, real)


class ActionModule(ActionBase):
    """Read recipes as role serve does, and show what follows."""

    TRANSFERS_FILES = False
    _requires_connection = False
    _supports_check_mode = True

    def run(self, tmp: None = None, task_vars: dict[str, t.Any] | None = None) -> dict[str, t.Any]:
        task_vars = task_vars or {}
        result = {**super().run(tmp, task_vars), "changed": False}
        _validation, arguments = self.validate_argument_spec(
            {"recipe": {"type": "str", "default": ""}, "nodes": {"type": "int", "default": 0}}
        )
        file, nodes = arguments["recipe"].strip(), arguments["nodes"]
        if nodes < 0:
            return refusal(result, [f"nodes is {nodes}; give a number of nodes"])
        inventory, roles = Inventory(task_vars), RoleVariables(self._loader, self._templar)
        models: list[dict[str, t.Any]] = []
        problems: list[str] = []
        notes: list[str] = []
        for cluster, host in self._heads(file, nodes, inventory, roles, task_vars):
            shown, wrong = self._cluster(cluster, host, roles)
            models += shown
            problems += wrong
            notes += [f"{cluster.name}: {note}" for note in (*host.notes, *self._absent(host, shown))]
        if not models and not problems:
            return refusal(result, ["no recipe; give one with -e recipe=FILE, or set serve_recipe in the inventory"])
        for model in models:
            model.pop("read")
        text = [line for model in models for line in _text(model)]
        text += [f"not as the recipe says: {note}" for note in notes] + [f"refused: {problem}" for problem in problems]
        return {**result, "models": models, "problems": problems, "notes": notes, "text": text}

    def _heads(
        self, file: str, nodes: int, inventory: Inventory, roles: RoleVariables, task_vars: t.Mapping[str, t.Any]
    ) -> t.Iterator[tuple[_fleet.Cluster, _fleet.Host]]:
        """Yield the clusters to look at, each with what its head's variables are."""
        if not file:
            for cluster in inventory.clusters:
                if set(inventory.selected) & set(cluster.hosts):
                    yield cluster, roles.of(cluster.head, inventory, cluster)
        elif inventory.clusters and not nodes:
            for cluster in inventory.clusters:
                if set(inventory.selected) & set(cluster.hosts):
                    overlaid = _Overlaid(file, inventory.hostvars.raw_get(cluster.head), inventory.hostvars)
                    yield cluster, roles.of(cluster.head, overlaid, cluster)
        else:
            given = {name: value for name, value in task_vars.items() if name in roles.options}
            count = nodes or _needed(Recipes(self._loader).read(file))
            hosts = tuple(f"spark-{number:02}" for number in range(1, count + 1))
            cluster = _fleet.Cluster(_fleet.GROUP, hosts)
            yield cluster, roles.of(cluster.head, _Overlaid(file, given, inventory.hostvars), cluster)

    def _cluster(
        self, cluster: _fleet.Cluster, host: _fleet.Host, roles: RoleVariables
    ) -> tuple[list[dict[str, t.Any]], list[str]]:
        """Return what is shown of a cluster, and why its recipes cannot be served."""
        lines = list(host.problems)
        if not host.recipes or any(recipe.problems for recipe in host.recipes.values()):
            return [], [f"{cluster.name}: {line}" for line in lines if host.recipes or "serve_recipe" in line]
        placed, wrong = _fleet.models(cluster, host.values, roles.options, roles.validated)
        lines += [*wrong, *_fleet.recipe_problems(cluster, host, placed)]
        shown: list[dict[str, t.Any]] = []
        for model in placed:
            recipe = _fleet.recipe_of(host, model)
            if recipe:
                try:
                    shown.append(self._model(cluster, host, roles, model, recipe))
                except ValueError as error:
                    lines.append(f"recipe {recipe.file}: {error}")
        return shown, [f"{cluster.name}: {line}" for line in lines]

    def _model(
        self,
        cluster: _fleet.Cluster,
        host: _fleet.Host,
        roles: RoleVariables,
        model: _serving.Placed,
        recipe: Recipe,
    ) -> dict[str, t.Any]:
        """Return what is shown of one model. Raises ValueError where no command can be made."""
        fact = {**model.fact(), "model": model.path or model.source}
        said = recipe.variables(weights=False)
        # What is on one node needs no executor, whoever asks for it.
        names = [name for name in said if name != "serve_executor" or model.executor]
        final = {name: fact[key_of(name)] for name in names}
        return {
            "cluster": cluster.name,
            "name": model.name,
            "recipe": recipe.file,
            "title": recipe.title,
            "nodes": list(model.nodes),
            "variables": final,
            "overruled": {name: said[name] for name in names if said[name] != final[name]},
            "commands": commands(roles, host.values, fact, found(self._loader, model.source)),
            "read": (recipe, model),
        }

    def _absent(self, host: _fleet.Host, shown: t.Sequence[t.Mapping[str, t.Any]]) -> t.Iterator[str]:
        """Yield a line for each model that role model would not find on this machine."""
        keys = ("model", "path") if host.values.get("serve_models") else ("serve_model", "model_path")
        for one in shown:
            recipe, model = one["read"]
            if model.source == recipe.model and not model.path and not found(self._loader, model.source).exists():
                yield _fleet.hub_problem(recipe, *keys)


def _needed(recipe: Recipe) -> int:
    """Return how many nodes a recipe needs at least, with a GPU each."""
    sizes = [recipe.settings.get(f"serve_{kind}_parallel_size") or 1 for kind in ("tensor", "pipeline", "data")]
    return max(recipe.min_nodes, sizes[0] * sizes[1] * sizes[2])


def _text(model: t.Mapping[str, t.Any]) -> t.Iterator[str]:
    """Yield the lines about a model: the variables as YAML, then what runs where."""
    title = f" ({model['title']})" if model["title"] else ""
    yield f"{model['cluster']}: {model['name']} from {model['recipe']}{title} on {', '.join(model['nodes'])}"
    for name, value in model["variables"].items():
        other = f"  # the recipe says {json.dumps(model['overruled'][name])}" if name in model["overruled"] else ""
        yield f"  {name}: {json.dumps(value)}{other}"
    for one in model["commands"]:
        yield f"  on {one['node']}: {one['command']}"
