# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A cluster of three nodes that has just been proven: what was read of its nodes, and their locks."""

from __future__ import annotations

import copy
from typing import Any

from ansible_collections.sparkfleet.vllm.plugins.module_utils import _fleet_lock

NODES = ("s1", "s2", "s3")
IMAGE = "sha256:" + "a" * 64
OTHER = "sha256:" + "b" * 64
TAG = "sparkfleet/vllm:1"
MODEL: dict[str, Any] = {
    "name": "chat",
    "index": 0,
    "served_model_name": "org/chat",
    "source": "/srv/chat",
    "path": "",
    "executor": "mp",
    "nodes": ["s1", "s2"],
    "leader": "s1",
    "tensor_parallel_size": 2,
    "pipeline_parallel_size": 1,
    "data_parallel_size": 1,
    "max_num_seqs": 8,
    "extra_args": ["--enforce-eager"],
    "extra_env": {},
    "tls_certificate": "-----BEGIN CERTIFICATE-----",
}
CLUSTER: dict[str, Any] = {"name": "atlas", "head": "s1", "nodes": list(NODES), "models": [MODEL], "ray": []}
DESCRIPTION = {
    "variant": "cuda",
    "versions": {"vllm": "0.32.0", "nccl": "2.30.7"},
    "kernels": {"version": "0.1", "sha256": "c" * 64},
    "patches": {"applied": ["one"], "sha256": "d" * 64},
}
NOW = "2026-11-24T10:00:00Z"


def found(node: str) -> dict[str, Any]:
    """What _node_state reads of a node."""
    arguments = ["/models/chat", "--tensor-parallel-size=2", "--max-num-seqs=8", "--nnodes=2"]
    rank = ["--headless", "--node-rank=1"] if node == "s2" else ["--host", "0.0.0.0", "--node-rank=0"]
    container = {
        "image": IMAGE,
        "content": "content-a",
        "description": DESCRIPTION,
        "arguments": [*arguments, *rank],
        "environment": {"NCCL_NET": "IB", "WORKER_IP": node},
    }
    serves = node in MODEL["nodes"]
    image = {"id": IMAGE, "content": "content-a", "description": {"versions": {"vllm": "0.32.0"}}}
    state = {
        "host": {
            "os": "DGX OS 7",
            "kernel": "6.11.0-1016-nvidia",
            "architecture": "aarch64",
            "driver": "580.95.05",
            "toolkit": "1.17.8",
            "docker": "28.3.3",
            "firmware": {"NVD1": "28.45.4028"},
        },
        "images": {IMAGE: image, TAG: image},
        "containers": {"spark-vllm-chat": container} if serves else {},
        "models": {
            "chat": {
                "path": "/models/chat",
                "manifest": "e" * 64,
                "quick": "",
                "files": 5,
                "bytes": 60_000_000_000,
                "revision": "",
                "error": "",
            }
        }
        if serves
        else {},
        "files": {"/etc/systemd/system/spark-vllm@chat.service": f"sum of {node}"} if serves else {},
        "error": "",
    }
    return copy.deepcopy(state)


def lock(node: str) -> dict[str, Any]:
    """The lock that site.yml writes there."""
    models = [{**MODEL, "path": "/models/chat"}] if node in MODEL["nodes"] else []
    composed, problems = _fleet_lock.compose(node, "atlas", IMAGE, TAG, models, found(node))
    assert problems == []
    return _fleet_lock.dated({}, composed, NOW)[0]


def states() -> dict[str, Any]:
    """What module fleet_lock returns of each node."""
    return {node: {"lock": lock(node), "lock_error": "", "found": found(node)} for node in NODES}
