# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which hosts form which cluster, and whether the inventory makes sense, over plain dictionaries.

Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import re
import typing as t
from dataclasses import dataclass, field

from . import _serving
from ._argspec import Option, PortUse, mistyped, port_problems, port_uses
from ._model import is_hub_id
from ._recipe import Recipe

GROUP: t.Final = "sparks"
"""The inventory group that holds every host of ours; its children are the clusters."""

NO_HOST: t.Final = f"{GROUP}: no host in this group; list the DGX Sparks under `{GROUP}` in the inventory"

CLUSTER_WIDE: t.Final = (
    "fabric_collective_port",
    "fabric_configure",
    "fabric_gate",
    "fabric_gate_min_busbw",
    "fabric_gate_min_gbps",
    "fabric_gate_port",
    "fabric_subnets",
    "fabric_topology",
    "image_ref",
    "image_tag",
    "image_variant",
    "lock_host_drift",
    "ray_auth_token",
    "ray_port",
    "serve_api_key",
    "serve_data_parallel_size",
    "serve_executor",
    "serve_model",
    "serve_models",
    "serve_name",
    "serve_nodes",
    "serve_pipeline_parallel_size",
    "serve_recipe",
    "serve_tensor_parallel_size",
)
"""Variables that describe the cluster, not a node: all its hosts must agree."""

MUST_BE_STABLE: t.Final = ("ray_auth_token", "serve_api_key")
"""Secrets that must be the same in every evaluation: a lookup that draws a new one each time locks everyone out."""

Validated = t.Callable[[str, t.Any], tuple[t.Any, str]]
"""Takes a variable and a value; returns the value in the declared type, and what is wrong with it."""

NEVER_SHOWN: t.Final = ("serve_models",)
"""Not secret as a whole, but a key may stand in it."""

_CLUSTER_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*\Z")


@dataclass(frozen=True)
class Cluster:
    """Hosts that serve together; the first one is the head."""

    name: str
    hosts: tuple[str, ...]

    @property
    def head(self) -> str:
        """Inventory name of the host that runs the Ray head and the API."""
        return self.hosts[0]

    def fact(self) -> dict[str, t.Any]:
        """Return the cluster as the host variable that the roles read."""
        return {"name": self.name, "head": self.head, "nodes": list(self.hosts)}


@dataclass(frozen=True)
class Host:
    """What the inventory says about one host."""

    name: str
    address: str
    """Where SSH goes: ansible_host, or the inventory name."""
    ssh_port: int
    given: frozenset[str]
    """Names of all variables that the owner set for this host, connection variables and such included."""
    values: t.Mapping[str, t.Any] = field(default_factory=dict)
    """Evaluated, validated role variables, defaults included. Secrets are in here: never print this."""
    problems: tuple[str, ...] = ()
    """What evaluation and validation found; lines without the host's name."""
    unstable: frozenset[str] = frozenset()
    """Variables of MUST_BE_STABLE that gave two values in two evaluations."""
    recipes: t.Mapping[str, Recipe] = field(default_factory=dict)
    """Recipes that were read for the cluster, by the path that the owner gave. Their values are in `values`."""
    notes: tuple[str, ...] = ()
    """What of the recipes is not honoured; lines without the host's name."""


def clusters(direct: t.Sequence[str], children: t.Mapping[str, t.Sequence[str]]) -> tuple[Cluster, ...]:
    """Return the clusters of the fleet.

    `direct` are the hosts listed under the group itself, `children` the hosts of each child group with the
    groups nested below it. Hosts under the group itself are a cluster only where there is no child group
    with hosts; a child group without hosts is no cluster.
    """
    found = tuple(Cluster(name, tuple(hosts)) for name, hosts in children.items() if hosts)
    if not found and direct:
        return (Cluster(GROUP, tuple(direct)),)
    return found


def cluster_of(host: str, found: t.Iterable[Cluster]) -> Cluster | None:
    """Return the first cluster that `host` belongs to, or None."""
    return next((cluster for cluster in found if host in cluster.hosts), None)


def structure_problems(
    direct: t.Sequence[str], found: t.Sequence[Cluster], selected: t.Collection[str] | None = None
) -> list[str]:
    """Return what is wrong with the groups, one line each.

    `selected` are the hosts that `--limit` left; None where no limit is given.
    """
    if not found:
        return [NO_HOST]
    problems: list[str] = []
    for cluster in found:
        if not _CLUSTER_NAME.match(cluster.name):
            problems.append(f"{cluster.name}: not usable as a name of files; use letters, digits and underscores")
    everyone = list(dict.fromkeys(host for cluster in found for host in cluster.hosts))
    for host in everyone:
        homes = [cluster.name for cluster in found if host in cluster.hosts]
        if len(homes) > 1:
            problems.append(f"{host}: in the clusters {' and '.join(homes)}; leave it in one of them")
    names = ", ".join(cluster.name for cluster in found)
    for host in direct:
        if host not in everyone:
            problems.append(f"{host}: directly under `{GROUP}` beside the clusters {names}; move it into a cluster")
    for cluster in found:
        missing = [host for host in cluster.hosts if selected is not None and host not in selected]
        if missing and len(missing) < len(cluster.hosts):
            problems.append(
                f"{cluster.name}: --limit leaves out {', '.join(missing)}; "
                f"a cluster is changed as a whole, use --limit {cluster.name}"
            )
    return problems


def address_problems(hosts: t.Sequence[Host]) -> list[str]:
    """Return a line for every machine that the inventory lists twice (same SSH address and port)."""
    seen: dict[tuple[str, int], str] = {}
    problems: list[str] = []
    for host in hosts:
        first = seen.setdefault((host.address, host.ssh_port), host.name)
        if first != host.name:
            problems.append(
                f"{host.name}: has the same ansible_host as {first} ({host.address}); "
                "give each machine its own address and list it once"
            )
    return problems


def variable_problems(
    cluster: Cluster,
    hosts: t.Mapping[str, Host],
    known: t.Mapping[str, Option],
    is_model_source: t.Callable[[str], bool],
    validated: Validated,
) -> list[str]:
    """Return what is wrong with the variables of one cluster, one line each, sorted.

    `hosts` holds all hosts of the cluster by name; `is_model_source` tells whether a path is a directory or
    an archive on the controller; `validated` judges a value by the declaration of a variable.
    """
    found: list[tuple[str, str]] = []
    for name in cluster.hosts:
        host = hosts[name]
        found.extend((name, problem) for problem in host.problems)
        for typed, meant in mistyped(host.given, known).items():
            found.append((name, f"{typed} is no variable of ours; did you mean {meant}?"))
        found.extend((name, problem) for problem in port_problems(port_uses(host.values, known)))
        for variable in sorted(host.unstable):
            found.append(
                (name, f"{variable} has another value each time it is evaluated; keep it in a file or a vault")
            )
    problems = _serving_problems(cluster, hosts[cluster.head], known, is_model_source, validated)
    found.extend((cluster.name, problem) for problem in problems)
    found.extend(_disagreements(cluster, hosts, known))
    return sorted(_merged(cluster, found))


def models(
    cluster: Cluster, values: t.Mapping[str, t.Any], known: t.Mapping[str, Option], validated: Validated
) -> tuple[list[_serving.Placed], list[str]]:
    """Return the cluster's models on their nodes, and what is wrong with them, from its head's variables."""
    keys = _serving.entry_options(known)
    problems = _serving.entry_problems(values, keys, validated)
    if problems:
        return [], problems
    secrets = {key for key, variable in keys.items() if variable in known and known[variable].secret}
    return _serving.place(cluster.hosts, values, keys, validated, secrets)


def _serving_problems(
    cluster: Cluster,
    head: Host,
    known: t.Mapping[str, Option],
    is_model_source: t.Callable[[str], bool],
    validated: Validated,
) -> list[str]:
    """Return what is wrong with the variables that concern the cluster and are read on its head."""
    values = head.values
    # Nothing that follows from a recipe makes sense where the recipe makes none.
    if any(recipe.problems for recipe in head.recipes.values()):
        return _key_problems(values, values) if not values.get("serve_models") else []
    if not values.get("serve_models"):
        problems = [*_key_problems(values, values), *_model_problems(values, is_model_source, head.recipes)]
        # Without a model there is no name, which has been said.
        if not any(values.get(name) for name in ("serve_name", "serve_model", "model_source", "model_path")):
            return problems
        placed, more = models(cluster, values, known, validated)
        return [*problems, *more, *recipe_problems(cluster, head, placed)]
    placed, problems = models(cluster, values, known, validated)
    for index, entry in enumerate(_serving.entries(values)):
        problems.extend(f"serve_models[{index}]: {line}" for line in _key_problems(entry, values))
    problems.extend(_model_port_problems(placed, values, known))
    for model in placed:
        if model.path or (model.source and is_model_source(model.source)):
            continue
        label = f"serve_models[{model.index}] ({model.name}): "
        recipe = recipe_of(head, model)
        if recipe and model.source == recipe.model:
            problems.append(f"{label}{hub_problem(recipe, 'model', 'path')}")
            continue
        problems.append(
            f"{label}model is {model.source or 'empty'}, which is no directory "
            "and no archive on this machine; correct it, or set path to the model's directory on the nodes"
        )
    return [*problems, *recipe_problems(cluster, head, placed)]


def recipe_problems(cluster: Cluster, head: Host, placed: t.Sequence[_serving.Placed]) -> t.Iterator[str]:
    """Yield what a recipe says against the nodes of its model, or against the cluster where no node was found."""
    if not placed:
        for recipe in head.recipes.values():
            if recipe.min_nodes > len(cluster.hosts):
                yield from recipe.node_problems(len(cluster.hosts))
    for model in placed:
        own = recipe_of(head, model)
        if own:
            label = f"serve_models[{model.index}] ({model.name}): " if head.values.get("serve_models") else ""
            yield from (f"{label}{line}" for line in own.node_problems(len(model.nodes)))


def recipe_of(head: Host, model: _serving.Placed) -> Recipe | None:
    """Return the recipe of a model, None where it has none."""
    return head.recipes.get(str(model.options.get("recipe") or "").strip())


def hub_problem(recipe: Recipe, variable: str, path: str) -> str:
    """Return the line for a recipe whose model is not on the controller."""
    what = "a name on Hugging Face" if is_hub_id(recipe.model) else "no directory and no archive on this machine"
    how = f" (hf download {recipe.model} --local-dir DIR)" if is_hub_id(recipe.model) else ""
    return (
        f"recipe {recipe.file}: model is {recipe.model}, {what}; download it{how} and set {variable} to its directory, "
        f"or {path} to the one on the nodes"
    )


def _key_problems(own: t.Mapping[str, t.Any], values: t.Mapping[str, t.Any]) -> list[str]:
    """Return the line for a model without a key: neither `own` nor the cluster's `values` have one."""
    # One that cannot be evaluated has been told.
    if "api_key" not in own and "serve_api_key" not in values:
        return []
    key = own.get("api_key") or values.get("serve_api_key")
    return [] if str(key or "").strip() else ["serve_api_key is empty; set it, preferably in a vault"]


def _model_port_problems(
    placed: t.Sequence[_serving.Placed], values: t.Mapping[str, t.Any], known: t.Mapping[str, Option]
) -> t.Iterator[str]:
    """Yield what a port of a model shares with something else than a model; those of the cluster are told by host."""
    uses = [use for use in port_uses(values, known) if use.variable != "serve_port"]
    for model in placed:
        label = f"serve_models[{model.index}].port"
        port = model.options.get("port") or 0
        if port:
            lines = port_problems(sorted([*uses, PortUse(port, port, label)]))
            yield from (line for line in lines if label in line)


def _model_problems(
    values: t.Mapping[str, t.Any],
    is_model_source: t.Callable[[str], bool],
    recipes: t.Mapping[str, Recipe],
) -> list[str]:
    if "serve_model" not in values or values.get("model_path") or values.get("serve_url"):
        return []
    model = str(values["serve_model"] or "").strip()
    source = str(values.get("model_source") or "").strip()
    if not model and not source:
        return ["serve_model is empty; name the directory or the archive of a model"]
    if is_model_source(source or model):
        return []
    recipe = recipes.get(str(values.get("serve_recipe") or "").strip())
    if recipe and not source and model == recipe.model:
        return [hub_problem(recipe, "serve_model", "model_path")]
    return [
        f"{'model_source' if source else 'serve_model'} is {source or model}, which is no directory and no archive "
        "on this machine; correct it, or set model_path to the model's directory on the nodes"
    ]


def _disagreements(
    cluster: Cluster, hosts: t.Mapping[str, Host], known: t.Mapping[str, Option]
) -> t.Iterator[tuple[str, str]]:
    """Yield (host, line) where a host has another value than the head for a variable of the whole cluster."""
    head = hosts[cluster.head]
    for variable in CLUSTER_WIDE:
        for name in cluster.hosts[1:]:
            host = hosts[name]
            if variable in head.unstable or variable in host.unstable:
                continue  # Said already, and a difference follows from it.
            mine, theirs = host.values.get(variable), head.values.get(variable)
            if mine == theirs:
                continue
            option = known.get(variable)
            hidden = option is None or option.secret or variable in NEVER_SHOWN
            shown = "differs from" if hidden else f"is {mine!r} but {theirs!r} on"
            yield name, f"{variable} {shown} the head {head.name}; set it once for the cluster {cluster.name}"


def _merged(cluster: Cluster, found: t.Iterable[tuple[str, str]]) -> set[str]:
    """Return `who: what` lines; what all hosts of the cluster share is said once, of the cluster."""
    by_text: dict[str, list[str]] = {}
    for who, text in found:
        by_text.setdefault(text, []).append(who)
    lines: set[str] = set()
    for text, everyone in by_text.items():
        shared = len(cluster.hosts) > 1 and set(everyone) >= set(cluster.hosts)
        lines.update(f"{who}: {text}" for who in ({cluster.name} if shared else set(everyone)))
    return lines
