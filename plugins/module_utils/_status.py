# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a cluster looks like now: one summary out of what was read on its nodes, as data and as text.

Note that this module util is PRIVATE to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

IMAGE_DIGITS = 12


def summarise(
    cluster: Mapping[str, Any],
    hosts: Mapping[str, Mapping[str, Any]],
    ray_nodes: Sequence[Mapping[str, Any]],
    ranks: Sequence[Mapping[str, Any]],
    served: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    """Put together what was read of one cluster.

    :param cluster: the fact ``spark_cluster`` (name, head, nodes, models, ray).
    :param hosts: for each node: ``address`` (its fabric address), ``containers`` (name, image, status; absent when
        the node could not be read), ``groups`` (what its supervisors wrote, by name), ``events`` (their last lines),
        ``gate`` and ``collective`` (what the node kept of the fabric's gate, or None) and ``error`` (why not).
    :param ray_nodes: Ray's nodes that are ALIVE: ``address`` and ``gpus``.
    :param ranks: the ranks of the models that run with Ray: ``rank`` and ``address`` of the node that it sits on.
    :param served: for each model ``url`` and either ``completion`` (id, text, usage) or ``error``.
    :return: name, head, nodes, gate, models, events, problems; ``problems`` is empty when all is well.
    """
    alive = {str(node["address"]): node for node in ray_nodes}
    with_ray = {name for group in cluster["ray"] for name in group}
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
                "ray": "ALIVE" if ray else "absent" if name in with_ray else "-",
                "gpus": ray["gpus"] if ray else 0,
                "images": images,
                "containers": containers,
                "groups": host.get("groups") or {},
                "error": error,
            }
        )
        if error:
            problems.append(f"{name}: {error}")
        elif name in with_ray and not ray:
            problems.append(f"{name}: not in Ray; see its journal with the logs playbook, or run site.yml")
        problems.extend(f"{name}: {line}" for line in _group_problems(host.get("groups") or {}))
    digests = {image for node in nodes for image in node["images"]}
    if len(digests) > 1:
        problems.append(f"{cluster['name']}: {len(digests)} different images are running; run site.yml")
    names = {str(host.get("address")): name for name, host in hosts.items()}
    placed = [{"rank": rank["rank"], "node": names.get(str(rank["address"]), rank["address"])} for rank in ranks]
    models = [_model(model, served.get(model["name"], {}), placed, hosts) for model in cluster["models"]]
    problems.extend(
        f"{model['leader']}: {model['name']} does not answer: {model['error'] or 'no reason given'}"
        for model in models
        if not model["completion"]
    )
    if not models:
        problems.append(f"{cluster['name']}: serves no model; site.yml says what is wrong with the inventory")
    in_order = {name: hosts.get(name, {}) for name in cluster["nodes"]}
    gate = summarise_gate(
        {name: host.get("gate") for name, host in in_order.items()},
        {name: host.get("collective") for name, host in in_order.items()},
    )
    return {
        "name": cluster["name"],
        "head": cluster["head"],
        "nodes": nodes,
        "gate": gate,
        "models": models,
        # Each line begins with its time, to the microsecond.
        "events": sorted({str(line) for host in hosts.values() for line in host.get("events") or []}, key=_moment),
        "problems": problems,
    }


def _moment(line: str) -> str:
    return line.partition(" ")[0]


def _shown(line: str) -> str:
    """Return an event with its time to the second."""
    return re.sub(r"^(\S+?)\.\d+(\S*)", r"\1\2", line)


def _model(
    model: Mapping[str, Any],
    answer: Mapping[str, Any],
    with_ray: Sequence[Mapping[str, Any]],
    hosts: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    """Return one model: where it runs, what it answered, and how often its group was restarted."""
    # With vLLM's own executor the order of the nodes is that of the ranks.
    ranks = [{"rank": rank, "node": node} for rank, node in enumerate(model["nodes"])]
    if model["executor"] == "ray":
        ranks = [dict(rank) for rank in with_ray if rank["node"] in model["nodes"]]
    state = (hosts.get(model["leader"], {}).get("groups") or {}).get(f"spark-vllm-{model['name']}") or {}
    return {
        "name": model["served_model_name"],
        "leader": model["leader"],
        "nodes": list(model["nodes"]),
        "executor": model["executor"],
        "url": answer.get("url", ""),
        "completion": answer.get("completion"),
        "error": answer.get("error", ""),
        "ranks": sorted(ranks, key=lambda rank: int(rank["rank"])),
        "failures": list(state.get("failures") or []),
        "recovered": list(state.get("recovered") or []),
    }


def _group_problems(groups: Mapping[str, Any]) -> list[str]:
    """Return what the supervisors of a node say that is not well: a group that gave up, or that waits for nodes."""
    lines = []
    for name, group in sorted(groups.items()):
        why = str(group.get("why") or "no reason given")
        if group.get("state") == "down":
            lines.append(f"{name} stays down: {why}")
        elif group.get("state") == "waiting" and group.get("waiting_for"):
            lines.append(f"{name} waits for {', '.join(map(str, group['waiting_for']))}")
    return lines


def summarise_gate(gates: Mapping[str, Any], collectives: Mapping[str, Any], due: bool = False) -> dict[str, Any]:
    """Sum up what the nodes of a cluster kept of the fabric's gate.

    A failed gate is no problem of `status` by itself: its owner may have chosen to be warned only.

    :param gates: for each node, head first, its record of the links' gate; anything else than a record is none.
    :param collectives: the same for all_gather.
    :param due: the links have changed since, so that the gate will be run again.
    :return: ``state`` (passed, failed, unknown), ``date``, ``links``, ``lowest_gbps``, ``tools``, ``busbw``,
        ``problems`` and ``text``, one line for a person.
    """
    gate = _record(gates)
    collective = _record(collectives)
    summary: dict[str, Any] = {
        "state": "unknown",
        "date": "",
        "links": 0,
        "lowest_gbps": None,
        "tools": [],
        "busbw": None,
        "problems": [],
        "text": "gate: not run",
    }
    if gate is None:
        if len(gates) == 1:
            summary["text"] = "gate: not needed, a single node has no links"
        return summary
    raw = gate.get("links")
    links = [link for link in raw if isinstance(link, Mapping)] if isinstance(raw, Sequence) else []
    measured = [link for link in links if _figure(link.get("gbps")) is not None]
    reasons = _lines(gate.get("problems"))
    summary["date"] = str(gate.get("date") or "")[:10]
    summary["links"] = len({_ends(link) for link in links})
    summary["lowest_gbps"] = min((float(link["gbps"]) for link in measured), default=None)
    summary["tools"] = sorted({str(link.get("tool")) for link in measured if link.get("tool")})
    if collective is not None:
        summary["busbw"] = _figure(collective.get("busbw"))
        reasons = reasons + _lines(collective.get("problems"))
    passed = gate.get("passed") is True and (collective is None or collective.get("passed") is True)
    summary["state"] = "passed" if passed else "failed"
    summary["problems"] = [] if passed else reasons
    when = f" {summary['date']}" if summary["date"] else ""
    if not passed:
        first = (reasons or ["no reason was kept; run site.yml again"])[0]
        more = f" (and {len(reasons) - 1} more)" if len(reasons) > 1 else ""
        summary["text"] = f"gate failed{when}: {first}{more}"
        return summary
    parts = ["1 link" if summary["links"] == 1 else f"{summary['links']} links"]
    if summary["lowest_gbps"] is None:
        parts.append("ping only")
    else:
        parts.append(f"{rate(summary['lowest_gbps'])} Gb/s lowest ({', '.join(summary['tools']) or 'tool not known'})")
    if collective is not None and summary["busbw"] is not None:
        parts.append(f"all_gather {rate(summary['busbw'])} GB/s")
    changed = "; the links have changed since, site.yml runs it again" if due else ""
    summary["text"] = f"gate passed{when}: {', '.join(parts)}{changed}"
    return summary


def rate(value: float) -> str:
    """Return a rate as one reads it aloud: 0.94, 92.6, 200."""
    if abs(value) < 9.995:
        return f"{value:.2f}"
    return f"{value:.0f}" if value == int(value) else f"{value:.1f}"


def _record(records: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return the record to show: one that failed, else the first one."""
    found = [record for record in records.values() if isinstance(record, Mapping) and record]
    failed = [record for record in found if record.get("passed") is not True]
    return next(iter(failed or found), None)


def _lines(value: object) -> list[str]:
    return [str(line) for line in value] if isinstance(value, Sequence) and not isinstance(value, str) else []


def _figure(value: object) -> float | None:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def _ends(link: Mapping[str, Any]) -> frozenset[tuple[str, str]]:
    """Return what both directions of a link have in common."""
    near = (str(link.get("host")), str(link.get("interface")))
    return frozenset({near, (str(link.get("peer")), str(link.get("peer_interface")))})


def table(rows: Sequence[Sequence[str]]) -> list[str]:
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
    lines = [f"cluster {summary['name']}", *table(rows), ""]
    if "gate" in summary:
        lines.append(summary["gate"]["text"])
    for model in summary["models"]:
        lines.extend(_render_model(model))
    lines.extend(["events:", *(f"  {_shown(line)}" for line in summary["events"])] if summary["events"] else [])
    lines.extend(f"problem: {problem}" for problem in summary["problems"])
    return lines


def _render_model(model: Mapping[str, Any]) -> list[str]:
    lines = [f"model {model['name']} at {model['url'] or '-'}"]
    lines.extend(f"  rank {rank['rank']} on {rank['node']}" for rank in model["ranks"])
    completion = model["completion"]
    if completion:
        usage = completion.get("usage", {})
        lines.append(f"  completion {completion['id']}: {completion['text']!r}")
        asked, told = usage.get("prompt_tokens", 0), usage.get("completion_tokens", 0)
        lines.append(f"  usage: {asked} prompt tokens, {told} completion tokens")
    if model["failures"]:
        count = len(model["failures"])
        lines.append(
            f"  restarted {count} {'time' if count == 1 else 'times'}, the last: {model['failures'][-1]['why']}"
        )
    if model["recovered"]:
        last = model["recovered"][-1]
        lines.append(f"  back after {float(last['seconds']):.0f} s")
    return lines
