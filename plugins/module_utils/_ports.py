# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The one table of ports: what our programs listen on, where, and who has to reach it.

The firewall's rules are made from it, and so is the table of docs/ports.md.

Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import typing as t
from dataclasses import dataclass

ANY: t.Final = "any"
FABRIC: t.Final = "fabric"
LOOPBACK: t.Final = "loopback"
BINDS: t.Final = (ANY, FABRIC, LOOPBACK)
"""Where a program listens: on all addresses, on the node's fabric address, on 127.0.0.1 and ::1."""

EVERYONE: t.Final = "everyone"
NODES: t.Final = "nodes"
NOBODY: t.Final = "nobody"
REACHES: t.Final = (EVERYONE, NODES, NOBODY)
"""Who has to reach a port from outside of its node: clients, the other nodes of the cluster, or nobody."""

_LOCAL: t.Final = ("127.", "::1", "localhost")


@dataclass(frozen=True)
class Row:
    """A port or a range of ports, with the values that the roles' defaults give."""

    first: int
    last: int
    bind: tuple[str, ...]
    reach: str
    node: str
    """`all`, `head` (the cluster's first node) or `leader` (a model's first node)."""
    what: str
    variables: tuple[str, ...]
    """What sets the port. Two of a range are its ends; one of a range is its beginning. Others only belong to it."""
    offset: int = 0
    """What is added to the variable's value."""

    @property
    def ports(self) -> str:
        """The port, or the range with a hyphen."""
        return f"{self.first}" if self.first == self.last else f"{self.first}-{self.last}"


ROWS: t.Final[tuple[Row, ...]] = (
    Row(
        8888,
        8888,
        (ANY,),
        EVERYONE,
        "leader",
        "vLLM's OpenAI API, one port for each model",
        ("serve_port", "serve_host"),
    ),
    Row(6379, 6379, (ANY,), NODES, "head", "Ray GCS", ("ray_port",)),
    Row(8265, 8265, (LOOPBACK,), NOBODY, "head", "Ray dashboard and REST API", ("ray_dashboard_port",)),
    Row(6380, 6380, (ANY,), NODES, "all", "Ray node manager", ("ray_node_manager_port",)),
    Row(6381, 6381, (ANY,), NODES, "all", "Ray object manager", ("ray_object_manager_port",)),
    Row(6382, 6382, (FABRIC,), NODES, "all", "Ray runtime environment agent", ("ray_runtime_env_agent_port",)),
    Row(6383, 6383, (ANY,), NODES, "all", "Ray dashboard agent, gRPC", ("ray_dashboard_agent_grpc_port",)),
    Row(
        6384, 6384, (FABRIC, LOOPBACK), NODES, "all", "Ray dashboard agent, HTTP", ("ray_dashboard_agent_listen_port",)
    ),
    Row(6385, 6385, (ANY,), NODES, "all", "Ray metrics export", ("ray_metrics_export_port",)),
    Row(6386, 6386, (ANY,), NODES, "head", "Ray autoscaler metrics", ("ray_autoscaler_metric_port",)),
    Row(6387, 6387, (ANY,), NODES, "head", "Ray dashboard metrics", ("ray_dashboard_metric_port",)),
    Row(10001, 10001, (FABRIC, LOOPBACK), NODES, "head", "Ray client", ("ray_client_server_port",)),
    Row(
        20000,
        20099,
        (ANY,),
        NODES,
        "all",
        "Ray workers and driver",
        ("ray_min_worker_port", "ray_max_worker_port"),
    ),
    Row(6395, 6395, (FABRIC,), NODES, "head", "heartbeats of the supervisors of Ray's nodes", ("ray_group_port",)),
    Row(
        6400,
        6409,
        (FABRIC,),
        NODES,
        "leader",
        "heartbeats of the supervisors of a model's nodes, one port for each model",
        ("serve_group_port",),
    ),
    Row(
        29510,
        29519,
        (ANY,),
        NODES,
        "leader",
        "rendezvous of a model's ranks without Ray, one port for each model",
        ("serve_rendezvous_port",),
    ),
    Row(
        29550,
        29559,
        (FABRIC,),
        NODES,
        "leader",
        "handshake of a model's copies (data parallel), one port for each model",
        ("serve_dp_port",),
    ),
    Row(
        32768,
        60999,
        (ANY,),
        NODES,
        "all",
        "PyTorch rendezvous, Gloo, vLLM's ZeroMQ sockets; on loopback, the way to the image's registry while a node "
        "pulls; the kernel picks",
        ("net.ipv4.ip_local_port_range",),
    ),
    Row(
        6390,
        6390,
        (FABRIC, LOOPBACK),
        NODES,
        "head",
        "the image, only while the workers fetch it; on loopback while layers are added. A given image (`image_ref`) "
        "comes from the node that has it",
        ("image_share_port",),
    ),
    Row(
        18515,
        18515,
        (FABRIC,),
        NODES,
        "all",
        "the gate's far end, only while it measures; asks for the run's token",
        ("fabric_gate_port",),
    ),
    Row(18516, 18516, (ANY,), NODES, "all", "`ib_write_bw`, only while it measures", ("fabric_gate_port",), offset=1),
    Row(
        29501,
        29501,
        (ANY,),
        NODES,
        "head",
        "rendezvous of the gate's all_gather, only while it measures",
        ("fabric_collective_port",),
    ),
)


def open_to_everyone(values: t.Mapping[str, t.Any], host: str, cluster: t.Mapping[str, t.Any]) -> list[int]:
    """Return the ports of a node that clients have to reach, sorted.

    Args:
        values: the roles' variables of the node, defaults included.
        host: inventory name of the node.
        cluster: the fact `spark_cluster`. Where it has `models`, their leaders and ports count, else its head.
    """
    # A server that was there before us is the business of whoever set it up.
    if values.get("serve_url"):
        return []
    found: set[int] = set()
    for leader, served in _served(values, cluster):
        for row in ROWS:
            if row.reach != EVERYONE or leader != host:
                continue
            port, address = (served.get(name) for name in row.variables)
            if port and not str(address).startswith(_LOCAL):
                found.add(int(port))
    return sorted(found)


def _served(values: t.Mapping[str, t.Any], cluster: t.Mapping[str, t.Any]) -> list[tuple[str, t.Mapping[str, t.Any]]]:
    """Return for each model the node with its API, and the variables as they are for this model."""
    models = cluster.get("models")
    if models is None:
        return [(cluster["head"], values)]
    return [
        (model["leader"], {**values, **{f"serve_{option}": value for option, value in model.items()}})
        for model in models
    ]


def table() -> str:
    """Return the table in Markdown."""
    lines = ["| port | bind | open to | node | what | variable |", "|---|---|---|---|---|---|"]
    for row in ROWS:
        cells = [row.ports, ", ".join(row.bind), row.reach, row.node, row.what, _variables(row)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _variables(row: Row) -> str:
    names = ", ".join(f"`{name}`" for name in row.variables)
    if row.offset:
        return f"{names} + {row.offset}"
    one_for_a_range = row.first < row.last and len(row.variables) == 1 and "." not in row.variables[0]
    return f"{names} to + {row.last - row.first}" if one_for_a_range else names
