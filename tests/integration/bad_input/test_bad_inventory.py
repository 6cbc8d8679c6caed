# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is wrong with the inventory alone is said at once: no node is contacted."""

from __future__ import annotations

import itertools
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.integration.bad_input.playbook import assert_refused, cluster, host, merged, site, write_inventory

NODES = ("spark-01", "spark-02")
SECRETS = ("first-ray-token", "other-ray-token", "a-key-of-the-owner", "a-key-of-an-entry")


class Phones:
    """Ports of this machine that stand for nodes, and that notice when anybody calls."""

    def __init__(self, stack: ExitStack) -> None:
        self._sockets = {name: stack.enter_context(socket.create_server(("127.0.0.1", 0))) for name in NODES}
        for listening in self._sockets.values():
            listening.setblocking(False)

    def port(self, name: str) -> int:
        """Port of a node."""
        return int(self._sockets[name].getsockname()[1])

    def called(self) -> list[str]:
        """Nodes that somebody has connected to since this was last asked."""
        return [name for name, listening in self._sockets.items() if _hang_up_all(listening)]


def _hang_up_all(listening: socket.socket) -> int:
    """End all connections that wait to be accepted; return how many there were."""
    for count in itertools.count():
        try:
            listening.accept()[0].close()
        except BlockingIOError:
            return count
    raise AssertionError


@pytest.fixture(scope="module")
def phones() -> Iterator[Phones]:
    with ExitStack() as stack:
        yield Phones(stack)


@pytest.fixture
def sound(phones: Phones, tmp_path: Path) -> dict[str, Any]:
    """An inventory without fault, and nobody has called yet."""
    phones.called()
    model = tmp_path / "model"
    model.mkdir()
    hosts = {name: {"ansible_host": "127.0.0.1", "ansible_port": phones.port(name)} for name in NODES}
    variables = {
        "image_variant": "cpu",
        "serve_api_key": "a-key-of-the-owner",
        "serve_model": str(model),
        # Nobody answers on these ports.
        "ansible_ssh_timeout": 1,
    }
    return {"sparks": {"children": {"atlas": {"hosts": hosts, "vars": variables}}}}


CASES = {
    "host in two clusters": (
        {"sparks": {"children": {"borealis": {"hosts": {"spark-01": {}}}}}},
        "spark-01: in the clusters atlas and borealis; leave it in one of them",
    ),
    "tensor parallel size above the nodes": (
        cluster(serve_tensor_parallel_size=3),
        "atlas: serve_tensor_parallel_size is 3 but the cluster has 2 GPUs (2 nodes); lower it or add nodes",
    ),
    "unknown executor": (
        cluster(serve_executor="slurm"),
        "atlas: serve_executor is 'slurm', not one of: ray, mp; choose one of them",
    ),
    "unknown image variant": (
        cluster(image_variant="rocm"),
        "atlas: image_variant is 'rocm', not one of: cuda, cpu; choose one of them",
    ),
    "unknown topology": (
        cluster(fabric_topology="star"),
        "atlas: fabric_topology is 'star', not one of: auto, single, pair, ring, switch; choose one of them",
    ),
    "empty API key": (
        cluster(serve_api_key=""),
        "atlas: serve_api_key is empty; set it, preferably in a vault",
    ),
    "Ray token differs": (
        merged(cluster(ray_auth_token="first-ray-token"), host("spark-02", ray_auth_token="other-ray-token")),
        "spark-02: ray_auth_token differs from the head spark-01; set it once for the cluster atlas",
    ),
    "model path missing": (
        cluster(serve_model="/nonexistent/model"),
        "atlas: serve_model is /nonexistent/model, which is no directory and no archive on this machine; "
        "correct it, or set model_path to the model's directory on the nodes",
    ),
    "copies of a model over nodes with Ray": (
        cluster(serve_data_parallel_size=2),
        "atlas: data_parallel_size 2 needs vLLM's own executor; set executor to mp",
    ),
    # Entries without a model of their own take serve_model, which is there.
    "unknown option of a model": (
        cluster(serve_models=[{"name": "chat", "prot": 8000, "api_key": "a-key-of-an-entry"}]),
        "atlas: serve_models[0]: prot is no option of a model; did you mean port?",
    ),
    "option of a model of another type": (
        cluster(serve_models=[{"name": "chat"}, {"name": "embed", "port": "http"}]),
        "atlas: serve_models[1]: port is 'http', not of type int; correct it in the inventory",
    ),
    "model on an unknown node": (
        cluster(serve_models=[{"name": "chat", "nodes": ["spark-09"]}]),
        "atlas: nodes has spark-09, which is not in this cluster; choose among spark-01, spark-02",
    ),
    "model of an entry missing": (
        cluster(serve_models=[{"name": "chat", "model": "/nonexistent/model"}]),
        "atlas: serve_models[0] (chat): model is /nonexistent/model, which is no directory and no archive on this "
        "machine; correct it, or set path to the model's directory on the nodes",
    ),
    "two models of one name": (
        cluster(serve_models=[{"name": "chat"}, {"name": "chat"}]),
        "atlas: serve_models[1] (chat): has the same name as serve_models[0]; give each its own",
    ),
    "two models on one port": (
        cluster(serve_models=[{"name": "chat", "nodes": ["spark-01"]}, {"name": "embed", "nodes": ["spark-01"]}]),
        "atlas: serve_models[1] (embed): port 8888 on spark-01 is that of chat too; give each its own port",
    ),
    "too few nodes for the models": (
        cluster(serve_models=[{"name": "chat"}, {"name": "embed", "tensor_parallel_size": 2}]),
        "atlas: serve_models[1] (embed): it needs 2 free nodes, 1 are left; name its nodes or leave out another model",
    ),
    "API key of one model missing": (
        cluster(serve_api_key="", serve_models=[{"name": "chat", "api_key": "a-key-of-an-entry"}, {"name": "embed"}]),
        "atlas: serve_models[1]: serve_api_key is empty; set it, preferably in a vault",
    ),
    "models differ": (
        merged(
            cluster(serve_models=[{"name": "chat", "api_key": "a-key-of-an-entry"}]),
            host("spark-02", serve_models=[{"name": "chat"}]),
        ),
        "spark-02: serve_models differs from the head spark-01; set it once for the cluster atlas",
    ),
    "mistyped variable": (
        cluster(serve_prot=8000),
        "atlas: serve_prot is no variable of ours; did you mean serve_port?",
    ),
}


@pytest.mark.parametrize(("change", "reason"), CASES.values(), ids=CASES)
def test_is_refused(sound: dict[str, Any], phones: Phones, tmp_path: Path, change: Any, reason: str) -> None:
    outcome = site(write_inventory(tmp_path, merged(sound, change)))
    assert_refused(outcome, reason)
    assert phones.called() == []
    for secret in SECRETS:
        assert secret not in outcome.stdout + outcome.stderr


@pytest.mark.parametrize(
    "inventory",
    [
        {"sparks": {"children": {"atlas": {}}}},
        {"sparks": {}},
        {"all": {"hosts": {"spark-01": {"ansible_host": "127.0.0.1"}}}},
    ],
    ids=["cluster without hosts", "group without hosts", "no such group"],
)
def test_a_fleet_without_hosts_is_refused(inventory: dict[str, Any], tmp_path: Path) -> None:
    outcome = site(write_inventory(tmp_path, inventory))
    assert_refused(outcome, "sparks: no host in this group; list the DGX Sparks under `sparks` in the inventory")


def test_control_without_fault_the_nodes_are_contacted(sound: dict[str, Any], phones: Phones, tmp_path: Path) -> None:
    """The fault is what keeps the runs above from the nodes, not something that all of them share."""
    site(write_inventory(tmp_path, sound))
    assert phones.called() == list(NODES)
