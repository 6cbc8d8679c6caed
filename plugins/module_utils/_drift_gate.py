# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What keeps site.yml from starting a model over several nodes: nodes that do not have the same.

Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import typing as t

from ._drift import ABSENT, HOST_FIELDS, Cell, host_view, image_view, model_cell, outsiders
from ._fleet_lock import short
from ._preflight import version

_Known = t.Mapping[str, t.Any]


def groups(cluster: _Known) -> list[list[str]]:
    """Return the nodes of each group that runs together, of several nodes: models, and the nodes of a Ray."""
    found = [list(model["nodes"]) for model in cluster.get("models") or []]
    found += [list(group) for group in cluster.get("ray") or []]
    return [group for group in found if len(group) > 1]


def host_lines(cluster: _Known, hosts: t.Mapping[str, _Known]) -> tuple[dict[str, list[str]], list[str]]:
    """Compare the hosts of each group, which site.yml does not change.

    Another branch of the driver brings other libraries of CUDA into the containers, and another architecture another
    image: ranks of such nodes do not work together. Everything else is worth knowing, and serves all the same.

    :param hosts: for each node what ``_node_state.host_fields`` returned; nodes that could not be read are absent.
    :return: what is to be refused, by node, and what is only to be said.
    """
    refused: dict[str, list[str]] = {}
    said: list[str] = []
    for group in groups(cluster):
        views = {node: host_view(hosts[node]) for node in group if node in hosts}
        for key, title in HOST_FIELDS.items():
            cells = {node: view[title] for node, view in views.items() if view[title].value}
            branches = {node: Cell(_branch(key, cell), cell.shown) for node, cell in cells.items()}
            breaking = outsiders(branches, {}) if key in ("driver", "architecture") else {}
            for node, others in breaking.items():
                line = (
                    f"{title} is {cells[node].shown}, {others}, and ranks of a model on both do not work together; "
                    "bring them to the same, or set lock_host_drift: warn"
                )
                if line not in refused.setdefault(node, []):
                    refused[node].append(line)
            for node, others in outsiders(cells, {}).items():
                line = f"{node}: {title} is {cells[node].shown}, {others}"
                if node not in breaking and line not in said:
                    said.append(line)
    return refused, said


def _branch(key: str, cell: Cell) -> str:
    """Return what of a version has to be the same: a driver's branch, its first number."""
    return str(version(cell.value)[0]) if key == "driver" and version(cell.value) else cell.value


def host_drift(cluster: _Known, hosts: t.Mapping[str, _Known], policy: str | bool) -> dict[str, t.Any]:
    """Judge the hosts of a cluster by ``lock_host_drift``: refuse, warn or off.

    :param policy: False stands for off, as YAML reads it without quotes.
    :return: ``problems``, by node, and ``warnings``, lines that name their node.
    """
    if policy in ("off", False):
        return {"problems": {}, "warnings": []}
    refused, said = host_lines(cluster, hosts)
    if policy == "refuse":
        return {"problems": refused, "warnings": said}
    first = [f"{node}: {line}" for node, lines in refused.items() for line in lines]
    return {"problems": {}, "warnings": first + said}


def gate(cluster: _Known, states: t.Mapping[str, _Known]) -> list[str]:
    """Compare what the nodes of each group are about to run; return a line for each difference.

    :param states: for each node ``reference``, the image that it is about to run, and ``found``, what
        ``_node_state.read`` returned; empty for a node that is in no group.
    """
    lines: list[str] = []
    states = {node: state for node, state in states.items() if state}
    for group in groups(cluster):
        errors = {node: states[node]["found"]["error"] for node in group if node in states}
        lines += [f"{node}: Docker cannot be asked ({error}); correct that" for node, error in errors.items() if error]
        lines += _image_lines({node: states[node] for node in group if node in states})
    for model in cluster.get("models") or []:
        name = str(model["name"])
        cells = {
            node: model_cell(states[node]["found"]["models"][name])
            for node in model["nodes"]
            if node in states and name in states[node]["found"]["models"]
        }
        for node, others in outsiders(cells, {}).items() if len(model["nodes"]) > 1 else ():
            cell, path = cells[node], states[node]["found"]["models"][name]["path"]
            theirs = cell.value.startswith("look:") or cell.value == ABSENT
            what = f"put the same files into {path}" if theirs else "run site.yml -e model_verify=full"
            lines.append(f"{node}: model {name} is {cell.shown}, {others}; {what}")
    return list(dict.fromkeys(lines))


def _image_lines(states: t.Mapping[str, _Known]) -> t.Iterator[str]:
    """Yield where the image is another one, with what in it is."""
    images = {
        node: state["found"]["images"][state["reference"]]
        for node, state in states.items()
        if state["found"]["images"].get(state["reference"])
    }
    cells = {node: Cell(image["content"], short(image["id"])) for node, image in images.items()}
    views = {node: image_view(image["description"]) for node, image in images.items()}
    for node, others in outsiders(cells, {}).items():
        inside = [
            f"{title} {views[node][title].shown}"
            for title in views[node]
            if node in outsiders({other: view[title] for other, view in views.items()}, {})
        ]
        more = f" with {', '.join(inside)}" if inside else ""
        yield f"{node}: its image is {cells[node].shown}{more}, {others}; run site.yml without --tags and --limit"
