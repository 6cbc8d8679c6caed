# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Four simulated Sparks, one fleet for all tests: each test cables them anew and leaves them without addresses."""

from __future__ import annotations

from collections.abc import Iterator

import docker
import pytest
import yaml

from tests.integration.bad_input.fleet import Node
from tests.integration.fabric.lab import Lab, name, simulator

NODES = 4


@pytest.fixture(scope="package")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """The fleet, on a switch; its interfaces have no addresses and send 1 Gb/s."""
    directory = tmp_path_factory.mktemp("fabric")
    client = docker.from_env()
    try:
        simulator("up", "--nodes", str(NODES), "--topology", "switch", "--no-addresses", "--rate", "1gbit")
        simulator("inventory", "--output", str(directory / "nodes.yml"))
        reached = yaml.safe_load((directory / "nodes.yml").read_text())
        names = [name(number) for number in range(1, NODES + 1)]
        nodes = {node: Node(node, client.containers.get(f"sparksim-it-fabric-{node}")) for node in names}
        yield Lab(nodes, reached, directory)
    finally:
        client.close()
        simulator("down")


@pytest.fixture
def lab(fleet: Lab) -> Iterator[Lab]:
    """The fleet for one test."""
    fleet.clear()
    yield fleet
