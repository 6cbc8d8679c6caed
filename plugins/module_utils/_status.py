# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a cluster looks like now: one summary out of what was read on its nodes, as data and as text.

Note that this module util is PRIVATE to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

IMAGE_DIGITS = 12


def summarise(
    cluster: Mapping[str, Any],
    hosts: Mapping[str, Mapping[str, Any]],
    ray_nodes: Sequence[Mapping[str, Any]],
    ranks: Sequence[Mapping[str, Any]],
    served: Mapping[str, Any],
) -> dict[str, Any]:
    """Put together what was read of one cluster.

    :param cluster: the fact ``spark_cluster`` (name, head, nodes).
    :param hosts: for each node: ``address`` (its fabric address), ``containers`` (name, image, status; absent when
        the node could not be read) and ``error`` (why not).
    :param ray_nodes: Ray's nodes that are ALIVE: ``address`` and ``gpus``.
    :param ranks: the ranks of the served model: ``rank`` and ``address`` of the node that it sits on.
    :param served: ``name``, ``url`` and either ``completion`` (id, text, usage) or ``error``.
    :return: name, head, nodes, model, problems; ``problems`` is empty when all is well.
    """
    alive = {str(node["address"]): node for node in ray_nodes}
    names = {str(host.get("address")): name for name, host in hosts.items()}
    problems: list[str] = []
    nodes = []
    for name in cluster["nodes"]:
        host = hosts.get(name, {})
        error = host.get("error", "")
        # Docker writes a container's name with a slash in front.
        containers = [{**item, "name": str(item["name"]).lstrip("/")} for item in host.get("containers", [])]
        ray = alive.get(str(host.get("address")))
        images = sorted({str(container["image"]) for container in containers})
        nodes.append(
            {
                "name": name,
                "address": host.get("address", ""),
                "ray": "ALIVE" if ray else "absent",
                "gpus": ray["gpus"] if ray else 0,
                "images": images,
                "containers": containers,
                "error": error,
            }
        )
        if error:
            problems.append(f"{name}: {error}")
        elif not ray:
            problems.append(f"{name}: not in Ray; see its journal with the logs playbook, or run site.yml")
    digests = {image for node in nodes for image in node["images"]}
    if len(digests) > 1:
        problems.append(f"{cluster['name']}: {len(digests)} different images are running; run site.yml")
    model = {
        "name": served["name"],
        "url": served.get("url", ""),
        "completion": served.get("completion"),
        "ranks": [{"rank": rank["rank"], "node": names.get(str(rank["address"]), rank["address"])} for rank in ranks],
    }
    if not model["completion"]:
        problems.append(
            f"{cluster['head']}: {served['name']} does not answer: {served.get('error') or 'no reason given'}"
        )
    return {"name": cluster["name"], "head": cluster["head"], "nodes": nodes, "model": model, "problems": problems}


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lay rows out in left-aligned columns."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def render(summary: Mapping[str, Any]) -> list[str]:
    """Return the summary as lines for a person."""
    rows = [("node", "fabric", "ray", "gpus", "image", "containers")]
    for node in summary["nodes"]:
        rows.append(
            (
                node["name"] + (" (head)" if node["name"] == summary["head"] else ""),
                node["address"] or "-",
                "unknown" if node["error"] else node["ray"],
                f"{float(node['gpus']):g}",
                " ".join(image.removeprefix("sha256:")[:IMAGE_DIGITS] for image in node["images"]) or "-",
                ", ".join(f"{c['name']} ({c['status']})" for c in node["containers"]) or "-",
            )
        )
    model = summary["model"]
    lines = [f"cluster {summary['name']}", *_table(rows), ""]
    lines.append(f"model {model['name']} at {model['url'] or '-'}")
    for rank in sorted(model["ranks"], key=lambda rank: int(rank["rank"])):
        lines.append(f"  rank {rank['rank']} on {rank['node']}")
    completion = model["completion"]
    if completion:
        usage = completion.get("usage", {})
        lines.append(f"  completion {completion['id']}: {completion['text']!r}")
        asked, told = usage.get("prompt_tokens", 0), usage.get("completion_tokens", 0)
        lines.append(f"  usage: {asked} prompt tokens, {told} completion tokens")
    lines.extend(f"problem: {problem}" for problem in summary["problems"])
    return lines
