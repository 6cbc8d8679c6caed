# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The simulated pair that the bad input is tried on."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import docker
import pytest
import yaml

from tests.integration.bad_input.fleet import Node, Pair, simulator, status
from tests.integration.bad_input.playbook import ASSETS, REPO, cluster, merged

SNAPSHOT = REPO / "molecule" / "shared" / "snapshot.py"
LEFT_BY_LOGINS = re.compile(r"unit session-|file /home/nvidia/\.sudo_as_admin_successful ")


@pytest.fixture(scope="package")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """A pair of nodes as they come out of the box, with the committed inventory of the simulation."""
    generated = tmp_path_factory.mktemp("inventory") / "nodes.yml"
    client = docker.from_env()
    try:
        simulator("up", "--nodes", "2", "--topology", "pair")
        simulator("inventory", "--output", str(generated))
        nodes = {node["name"]: client.containers.get(node["container"]) for node in status()["nodes"]}
        yield Pair({name: Node(name, container) for name, container in nodes.items()}, _inventory(generated))
    finally:
        client.close()
        simulator("down")


def _inventory(generated: Path) -> dict[str, Any]:
    committed = yaml.safe_load((REPO / "inventories" / "sim" / "sparks.yml").read_text())
    here = merged(committed, cluster(spark_assets=str(ASSETS)))
    return {**here, **yaml.safe_load(generated.read_text())}


@pytest.fixture(scope="module")
def untouched(pair: Pair) -> Iterator[None]:
    """After all tests of a module, the nodes must hold what they held before, and nothing of ours."""
    before = {node.name: _snapshot(node) for node in pair.nodes.values()}
    yield
    for node in pair.nodes.values():
        assert _snapshot(node) == before[node.name], node.name
        assert not node.holds("ls -d /etc/sparkfleet /var/lib/sparkfleet /run/sparkfleet")


def _snapshot(node: Node) -> set[str]:
    code, listing = node.execute("python3", "-c", SNAPSHOT.read_text())
    assert code == 0, listing
    return {line for line in listing.splitlines() if not LEFT_BY_LOGINS.match(line)}
