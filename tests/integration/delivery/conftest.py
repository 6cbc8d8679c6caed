# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Two simulated Sparks, one fleet for all tests; each test starts without images on the worker."""

from __future__ import annotations

from collections.abc import Iterator

import docker
import pytest
import yaml

from tests.integration.bad_input.fleet import Node
from tests.integration.delivery.lab import ADDRESSES, FLEET, Lab
from tests.integration.fleets import succeed


@pytest.fixture(scope="package")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """The fleet, with an image on its head."""
    directory = tmp_path_factory.mktemp("delivery")
    client = docker.from_env()
    try:
        succeed("up", "--name", FLEET, "--nodes", "2", "--topology", "pair")
        succeed("inventory", "--name", FLEET, "--output", str(directory / "nodes.yml"))
        reached = yaml.safe_load((directory / "nodes.yml").read_text())
        nodes = {node: Node(node, client.containers.get(f"sparksim-{FLEET}-{node}")) for node in ADDRESSES}
        lab = Lab(nodes, reached, directory)
        lab.build(fresh=True)
        yield lab
    finally:
        client.close()
        succeed("down", "--name", FLEET)


@pytest.fixture
def lab(fleet: Lab) -> Iterator[Lab]:
    """The fleet for one test, which removes what it must not find and ends what a test that failed left running."""
    fleet.clear(fleet.worker)
    yield fleet
    for run in list(fleet.runs):
        fleet.kill(run)
