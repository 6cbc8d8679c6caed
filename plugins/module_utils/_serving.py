# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a cluster serves: its models, on which nodes each runs, and over which ports.

Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import difflib
import re
import typing as t
from dataclasses import asdict, dataclass

from ._argspec import MAX_MODELS, SPREAD
from ._model import model_name

CLUSTER_ONLY: t.Final = frozenset({"serve_models", "serve_url", *SPREAD})
"""Options of role serve that an entry of serve_models cannot set, since they are about the whole cluster."""

SOURCES: t.Final[t.Mapping[str, str]] = {"source": "model_source", "path": "model_path"}
"""Keys of an entry that belong to role model, with the variable that is the short form."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*\Z")


@dataclass(frozen=True)
class Placed:
    """A model with the nodes that it runs on. The first of them is its leader, which runs the API."""

    name: str
    index: int
    """Place in serve_models, from 0."""
    source: str
    """Directory or archive on the controller, empty where `path` is given."""
    path: str
    """The model's directory on the nodes, empty where role model copies it there."""
    nodes: tuple[str, ...]
    executor: str
    """`ray`, `mp`, or empty on a single node."""
    tensor_parallel_size: int
    pipeline_parallel_size: int
    data_parallel_size: int
    options: t.Mapping[str, t.Any]
    """The other options of role serve, without the prefix, secrets excepted."""

    @property
    def leader(self) -> str:
        """Inventory name of the node with the API."""
        return self.nodes[0]

    def fact(self) -> dict[str, t.Any]:
        """Return the model as an element of the host fact `spark_cluster.models`."""
        own = {key: value for key, value in asdict(self).items() if key != "options"}
        return {**self.options, **own, "nodes": list(self.nodes), "leader": self.leader}


def entry_options(known: t.Mapping[str, t.Any]) -> dict[str, str]:
    """Return what an entry of serve_models may set: key -> the variable that is its default.

    `known` are the declared variables of all roles by name; another role may declare one of role serve as well.
    """
    keys = {
        name.removeprefix("serve_"): name for name in known if name.startswith("serve_") and name not in CLUSTER_ONLY
    }
    return {**keys, **SOURCES}


def entries(values: t.Mapping[str, t.Any]) -> list[t.Mapping[str, t.Any]]:
    """Return the entries of serve_models; the single model of serve_model is one without settings of its own."""
    given = values.get("serve_models") or []
    return [entry if isinstance(entry, t.Mapping) else {} for entry in given] or [{}]


def entry_problems(
    values: t.Mapping[str, t.Any],
    options: t.Mapping[str, str],
    validated: t.Callable[[str, t.Any], tuple[t.Any, str]],
) -> list[str]:
    """Return what is wrong with the entries themselves: unknown keys, values of another type, too many of them.

    `validated` takes a variable and a value and returns the value in its declared type, and what is wrong.
    """
    given = values.get("serve_models") or []
    problems: list[str] = []
    if len(given) > MAX_MODELS:
        problems.append(f"serve_models has {len(given)} models; a cluster serves {MAX_MODELS} at most, divide it")
    for index, entry in enumerate(given):
        label = f"serve_models[{index}]"
        if not isinstance(entry, t.Mapping):
            problems.append(f"{label} is {entry!r}; write name: and model: and what else differs from serve_*")
            continue
        for key, value in entry.items():
            if key not in options:
                near = difflib.get_close_matches(str(key).removeprefix("serve_"), options, n=1)
                hint = f"did you mean {near[0]}?" if near else "remove it"
                problems.append(f"{label}: {key} is no option of a model; {hint}")
                continue
            said = validated(options[key], value)[1]
            if said:
                problems.append(f"{label}: {said.replace(options[key], str(key), 1)}")
    return problems


def _settings(
    entry: t.Mapping[str, t.Any],
    values: t.Mapping[str, t.Any],
    options: t.Mapping[str, str],
    validated: t.Callable[[str, t.Any], tuple[t.Any, str]],
) -> dict[str, t.Any]:
    """Return every option of one model: its own value in the declared type, else the cluster's."""
    chosen: dict[str, t.Any] = {}
    for key, variable in options.items():
        if entry.get(key) is not None:
            chosen[key] = validated(variable, entry[key])[0]
        # A model of its own has a name, a source and nodes of its own.
        elif values.get("serve_models") and (key in SOURCES or key in ("name", "served_model_name", "nodes")):
            chosen[key] = [] if key == "nodes" else ""
        else:
            chosen[key] = values.get(variable)
    return chosen


def place(
    hosts: t.Sequence[str],
    values: t.Mapping[str, t.Any],
    options: t.Mapping[str, str],
    validated: t.Callable[[str, t.Any], tuple[t.Any, str]],
    secrets: t.Collection[str] = (),
) -> tuple[list[Placed], list[str]]:
    """Return the models of a cluster on their nodes, and what is wrong, one line each.

    `hosts` are the cluster's nodes, head first; `values` the head's evaluated variables; `options` come from
    :func:`entry_options`; `secrets` are keys that must not be handed on. Models that name their nodes come first;
    the others take nodes that are still free, in order; a model of one node shares one where none is free.
    """
    gpus = max(1, int(values.get("ray_num_gpus") or 1))
    wanted = [_settings(entry, values, options, validated) for entry in entries(values)]
    alone = len(wanted) == 1
    problems: list[str] = []
    sizes: list[tuple[int, int, int]] = []
    chosen: list[list[str]] = []
    for index, model in enumerate(wanted):
        origin = model.get("model") or model.get("source") or model.get("path")
        model["name"] = str(model.get("name") or model_name(str(origin or "")))
        label = _label(index, model["name"], alone)
        problems += [f"{label}{line}" for line in _name_problems(model["name"])]
        nodes = [str(node) for node in model.get("nodes") or []]
        problems += [f"{label}{line}" for line in _node_problems(nodes, hosts)]
        size = _sizes(model)
        problems += [f"{label}{line}" for line in _size_problems(size)]
        sizes.append(size)
        chosen.append([node for node in dict.fromkeys(nodes) if node in hosts])
    if problems:
        return [], problems
    load = {host: sum(host in nodes for nodes in chosen) for host in hosts}
    for index, model in enumerate(wanted):
        label = _label(index, model["name"], alone)
        tp, pp, dp = sizes[index]
        nodes = chosen[index]
        if not nodes:
            # One that says nothing of tensors takes all nodes, or where it is not alone, what the other sizes need.
            count = len(hosts) if alone and not tp else _count(tp or 1, pp, dp, gpus)
            nodes, problem = _free(hosts, load, count, (tp or 1, pp, dp), gpus, alone)
            if problem:
                problems.append(f"{label}{problem}")
                continue
            chosen[index] = nodes
            for node in nodes:
                load[node] += 1
        offered = len(nodes) * gpus
        if not tp:
            tp = offered // (pp * dp)
            if tp * pp * dp != offered:
                problems.append(
                    f"{label}{offered} {_gpus(offered)} cannot be divided by pipeline_parallel_size {pp} times "
                    f"data_parallel_size {dp}; choose sizes whose product is {offered}"
                )
                continue
            sizes[index] = (tp, pp, dp)
        if _count(tp, pp, dp, gpus) != len(nodes) or (tp * pp * dp) % len(nodes):
            problems.append(
                f"{label}{_product(tp, pp, dp)} needs {tp * pp * dp} {_gpus(tp * pp * dp)} but its nodes "
                f"({', '.join(nodes)}) have {offered}; change the sizes or nodes"
            )
    if problems:
        return [], problems
    placed = [
        _placed(index, wanted[index], sizes[index], chosen[index], values, options, secrets)
        for index in range(len(wanted))
    ]
    return placed, [*_clashes(placed, alone), *_ray_problems(placed, gpus, alone)]


def _placed(
    index: int,
    model: t.Mapping[str, t.Any],
    size: tuple[int, int, int],
    nodes: t.Sequence[str],
    values: t.Mapping[str, t.Any],
    options: t.Mapping[str, str],
    secrets: t.Collection[str],
) -> Placed:
    path = str(model.get("path") or "")
    named = {"name", "nodes", "executor", "source", "path", "model"}
    named |= {"tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size"}
    rest = {key: model[key] for key in options if key not in named and key not in secrets}
    rest["served_model_name"] = rest.get("served_model_name") or model["name"]
    for variable in SPREAD:
        rest[variable.removeprefix("serve_")] = int(values.get(variable) or 0) + index
    return Placed(
        name=model["name"],
        index=index,
        source="" if path else str(model.get("source") or model.get("model") or ""),
        path=path,
        nodes=tuple(nodes),
        executor=str(model.get("executor") or "ray") if len(nodes) > 1 else "",
        tensor_parallel_size=size[0],
        pipeline_parallel_size=size[1],
        data_parallel_size=size[2],
        options=rest,
    )


def ray_groups(models: t.Iterable[Placed]) -> list[tuple[str, ...]]:
    """Return the sets of nodes over which a Ray cluster is needed, each with its head first."""
    groups: dict[frozenset[str], tuple[str, ...]] = {}
    for model in models:
        if model.executor == "ray":
            groups.setdefault(frozenset(model.nodes), model.nodes)
    return list(groups.values())


def _label(index: int, name: str, alone: bool) -> str:
    return "" if alone else f"serve_models[{index}]{f' ({name})' if name else ''}: "


def _name_problems(name: str) -> t.Iterator[str]:
    if not name:
        yield "the model has no name; set name or model"
    elif not _NAME.match(name):
        yield f"name is {name!r}; use letters, digits, dots, dashes and underscores"


def _node_problems(nodes: t.Sequence[str], hosts: t.Sequence[str]) -> t.Iterator[str]:
    for node in dict.fromkeys(nodes):
        if node not in hosts:
            yield f"nodes has {node}, which is not in this cluster; choose among {', '.join(hosts)}"
        elif nodes.count(node) > 1:
            yield f"nodes has {node} twice; name each node once"


def _sizes(model: t.Mapping[str, t.Any]) -> tuple[int, int, int]:
    """Return tensor, pipeline and data parallel size; 0 for tensors means what the nodes have."""
    tp, pp, dp = (model.get(f"{kind}_parallel_size") for kind in ("tensor", "pipeline", "data"))
    return (
        tp if isinstance(tp, int) else 0,
        pp if isinstance(pp, int) else 1,
        dp if isinstance(dp, int) else 1,
    )


def _size_problems(sizes: tuple[int, int, int]) -> t.Iterator[str]:
    tp, pp, dp = sizes
    if tp < 0:
        yield f"serve_tensor_parallel_size is {tp}; use 1 or more, or 0 for what the nodes have"
    for kind, size in (("pipeline", pp), ("data", dp)):
        if size < 1:
            yield f"serve_{kind}_parallel_size is {size}; use 1 or more"


def _count(tp: int, pp: int, dp: int, gpus: int) -> int:
    """Return how many nodes a model of these sizes takes."""
    return -(-tp * pp * dp // gpus)


def _free(
    hosts: t.Sequence[str], load: t.Mapping[str, int], count: int, size: tuple[int, int, int], gpus: int, alone: bool
) -> tuple[list[str], str]:
    """Return `count` nodes for a model of some size without nodes of its own, and why there are none."""
    offered = len(hosts) * gpus
    if count > len(hosts):
        tp, pp, dp = size
        needs = f"{_product(tp, pp, dp)} needs {tp * pp * dp} {_gpus(tp * pp * dp)}"
        return [], (
            f"{f'serve_tensor_parallel_size is {tp}' if alone and pp * dp == 1 else needs} but the cluster has "
            f"{offered} {_gpus(offered)} ({len(hosts)} {'node' if len(hosts) == 1 else 'nodes'}); lower it or add nodes"
        )
    free = [host for host in hosts if not load[host]]
    if len(free) >= count:
        return free[:count], ""
    if count == 1:
        return [min(hosts, key=lambda host: load[host])], ""
    return [], f"it needs {count} free nodes, {len(free)} are left; name its nodes or leave out another model"


def _product(tp: int, pp: int, dp: int) -> str:
    sizes = {"tensor": tp, "pipeline": pp, "data": dp}
    parts = [f"{kind}_parallel_size {size}" for kind, size in sizes.items() if size > 1]
    return " times ".join(parts) or "tensor_parallel_size 1"


def _gpus(count: int) -> str:
    return "GPU" if count == 1 else "GPUs"


def _clashes(models: t.Sequence[Placed], alone: bool) -> t.Iterator[str]:
    """Yield what two models cannot share: a name anywhere, a port on one leader."""
    for index, model in enumerate(models):
        for other in models[:index]:
            label = _label(model.index, model.name, alone)
            if model.name == other.name:
                yield f"{label}has the same name as serve_models[{other.index}]; give each its own"
            elif model.source and model_name(model.source) == model_name(other.source) and model.source != other.source:
                yield f"{label}its directory has the same name as that of {other.name}; rename one of the two"
            elif model.leader == other.leader and model.options.get("port") == other.options.get("port"):
                yield (
                    f"{label}port {model.options.get('port')} on {model.leader} is that of {other.name} too; "
                    "give each its own port"
                )


def _ray_problems(models: t.Sequence[Placed], gpus: int, alone: bool) -> t.Iterator[str]:
    """Yield what Ray cannot do: one node in two Ray clusters, more ranks than it has GPUs, several replicas."""
    with_ray = [model for model in models if model.executor == "ray"]
    for index, model in enumerate(with_ray):
        label = _label(model.index, model.name, alone)
        if model.data_parallel_size > 1:
            yield f"{label}data_parallel_size {model.data_parallel_size} needs vLLM's own executor; set executor to mp"
        for other in with_ray[:index]:
            shared = [node for node in model.nodes if node in other.nodes]
            if not shared:
                continue
            if model.nodes != other.nodes:
                yield (
                    f"{label}shares {', '.join(shared)} with {other.name}, and a node is in one Ray cluster; "
                    "give both the same nodes in the same order, or set executor to mp"
                )
                break
            ranks = sum(_ranks(one) for one in with_ray[: index + 1] if one.nodes == model.nodes)
            if ranks > len(model.nodes) * gpus:
                yield (
                    f"{label}Ray has {len(model.nodes) * gpus} {_gpus(len(model.nodes) * gpus)} on "
                    f"{', '.join(model.nodes)}, and {other.name} takes {_ranks(other)}; set executor to mp"
                )
                break


def _ranks(model: Placed) -> int:
    return model.tensor_parallel_size * model.pipeline_parallel_size * model.data_parallel_size
