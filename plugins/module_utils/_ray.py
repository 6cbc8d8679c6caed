# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module util is PRIVATE to the collection. It can have breaking changes at any time.
"""Ray's state API, read: which nodes are there with what, on which of them the ranks sit, and why one is absent."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_RANK = re.compile(r"_(TP|PP|DP)(\d+)")
_TOKEN_ERROR = re.compile(r"InvalidAuthToken|AuthenticationError|auth(?:entication)? token", re.IGNORECASE)
_VERSION_ERROR = re.compile(r"Version mismatch", re.IGNORECASE)
_NOISE = re.compile(r"^\s*$|^\s*File \"|^Traceback|usage stats", re.IGNORECASE)


@dataclass(frozen=True)
class RayNode:
    """One living node of a Ray cluster."""

    address: str
    node_id: str
    head: bool
    cpus: float
    gpus: float
    object_store_bytes: float

    def as_dict(self) -> dict[str, Any]:
        """Return the node as plain data for a module's result."""
        return {
            "address": self.address,
            "node_id": self.node_id,
            "head": self.head,
            "state": "ALIVE",
            "cpus": self.cpus,
            "gpus": self.gpus,
            "object_store_bytes": self.object_store_bytes,
        }


@dataclass(frozen=True)
class Rank:
    """One vLLM worker: its actor's name, its rank in each kind of parallelism, and the node's address."""

    actor: str
    ranks: dict[str, int]
    address: str

    def as_dict(self) -> dict[str, Any]:
        """Return the rank as plain data for a module's result."""
        return {"actor": self.actor, "address": self.address, **self.ranks}


def _rows(payload: Any) -> list[dict[str, Any]]:
    """Unwrap the state API's ``data.result.result``; raises ``ValueError`` when the answer is something else."""
    try:
        rows = payload["data"]["result"]["result"]
    except (KeyError, TypeError) as error:
        raise ValueError("Ray's state API answered in an unknown form") from error
    if not isinstance(rows, list):
        raise ValueError("Ray's state API answered in an unknown form")
    return [row for row in rows if isinstance(row, dict)]


def alive_nodes(payload: Any) -> list[RayNode]:
    """Return the nodes that are ALIVE, head first, then by address. Dead ones stay listed in the API: left out.

    :param payload: the JSON of ``/api/v0/nodes``
    """
    nodes = []
    for row in _rows(payload):
        if row.get("state") != "ALIVE":
            continue
        total = row.get("resources_total")
        resources: Mapping[str, Any] = total if isinstance(total, dict) else {}
        nodes.append(
            RayNode(
                address=str(row.get("node_ip", "")),
                node_id=str(row.get("node_id", "")),
                head=bool(row.get("is_head_node")),
                cpus=float(resources.get("CPU", 0)),
                gpus=float(resources.get("GPU", 0)),
                object_store_bytes=float(resources.get("object_store_memory", 0)),
            )
        )
    return sorted(nodes, key=lambda node: (not node.head, node.address))


def shortfalls(expected: Sequence[str], gpus: float, nodes: Sequence[RayNode]) -> dict[str, str]:
    """Return, by address, what is not yet as wanted.

    :param expected: addresses of the nodes that must be there
    :param gpus: GPUs that each of them must bring
    """
    problems = {}
    for address in expected:
        found = [node for node in nodes if node.address == address]
        if not found:
            problems[address] = "has not joined"
        elif found[-1].gpus < gpus:
            problems[address] = f"has {found[-1].gpus:g} GPUs instead of {gpus:g}"
    return problems


def ranks(payload: Any, nodes: Sequence[RayNode]) -> list[Rank]:
    """Return the living vLLM workers with the address of their node, by rank.

    :param payload: the JSON of ``/api/v0/actors``
    """
    addresses = {node.node_id: node.address for node in nodes}
    found = []
    for row in _rows(payload):
        name = str(row.get("name") or "")
        levels = {kind.lower(): int(number) for kind, number in _RANK.findall(name)}
        if levels and row.get("state") == "ALIVE":
            found.append(Rank(name, levels, addresses.get(str(row.get("node_id")), "")))
    return sorted(found, key=lambda rank: (rank.ranks.get("pp", 0), rank.ranks.get("tp", 0), rank.actor))


def join_failure(missing: Mapping[str, str], hosts: Mapping[str, str], journals: Sequence[Mapping[str, Any]]) -> str:
    """Say in one line why nodes are absent.

    :param missing: address -> what is wrong with it (from :func:`shortfalls`)
    :param hosts: host name -> its address
    :param journals: per host ``item`` (its name) and ``stdout`` (the last lines of spark-ray.service's journal)
    """
    texts = {str(entry.get("item")): str(entry.get("stdout") or "") for entry in journals}
    reasons = []
    for host, address in hosts.items():
        if address not in missing:
            continue
        journal = texts.get(host, "")
        lines = [line.strip() for line in journal.splitlines() if not _NOISE.search(line)]
        if _TOKEN_ERROR.search(journal):
            reason = "its Ray token differs from the head's (/etc/sparkfleet/*/ray-token); run site.yml again"
        elif _VERSION_ERROR.search(journal):
            reason = "its Ray or Python version differs from the head's; give all nodes the same image"
        elif lines:
            reason = f'its last words: "{lines[-1][:200]}"; see journalctl -u spark-ray there'
        else:
            reason = "its journal is empty; see systemctl status spark-ray there"
        reasons.append(f"{host} {missing[address]}: {reason}")
    return " | ".join(reasons) if reasons else "Ray does not answer on the head; see journalctl -u spark-ray there"
