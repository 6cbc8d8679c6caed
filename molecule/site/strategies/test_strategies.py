# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A node that lost the image, or has another one under its name, gets the one of the head by each strategy.

`registry` is what the rest of the scenario used. The cluster is stopped.
"""

from __future__ import annotations

import json
import subprocess

import pytest

from tests.scenario import ansible_playbook, on_node

IMAGE = "sparkfleet/vllm:cpu-0.32.0"
LOST = f"docker image rm --force {IMAGE}; docker builder prune --all --force"
# It has the labels of the one that it is built on: only its content tells.
OTHER = (
    f"printf 'FROM {IMAGE}\\nRUN echo drifted >/etc/drifted\\n' | docker build --network none --tag {IMAGE} -; "
    "docker image prune --force"
)


def layers(node: str) -> list[str]:
    """Return the digests of the layers of a node's image."""
    found: list[str] = json.loads(on_node(node, f"docker image inspect --format '{{{{json .RootFS.Layers}}}}' {IMAGE}"))
    return found


def site(strategy: str) -> subprocess.CompletedProcess[str]:
    """Run site.yml as far as the image."""
    return ansible_playbook("site.yml", "--tags", "host,fabric,image", image_delivery=strategy)


@pytest.mark.parametrize(
    ("strategy", "damage", "said"),
    [("stream", OTHER, "from spark-01 to spark-02, by stream"), ("each", LOST, f"{IMAGE} on sparkfleet/base")],
)
def test_a_node_without_the_image_gets_the_same_by(strategy: str, damage: str, said: str) -> None:
    wanted = layers("spark-01")
    on_node("spark-02", damage)
    done = site(strategy)
    assert done.returncode == 0, done.stdout
    assert said in done.stdout.replace("\n", " ")
    assert layers("spark-02") == wanted == layers("spark-01")
    assert site(strategy).stdout.count("changed=0") == 3
