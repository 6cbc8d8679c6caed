# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A node that lost the image builds the one of the head again by strategy `each`.

`registry` is what the rest of the scenario used, `stream` repairs a node in scenario image_delivery. The cluster is
stopped.
"""

from __future__ import annotations

import json
import subprocess

from tests.scenario import ansible_playbook, on_node

IMAGE = "sparkfleet/vllm:cpu-0.32.0"
LOST = f"docker image rm --force {IMAGE}; docker builder prune --all --force"


def layers(node: str) -> list[str]:
    """Return the digests of the layers of a node's image."""
    found: list[str] = json.loads(on_node(node, f"docker image inspect --format '{{{{json .RootFS.Layers}}}}' {IMAGE}"))
    return found


def site() -> subprocess.CompletedProcess[str]:
    """Run site.yml as far as the image."""
    return ansible_playbook("site.yml", "--tags", "host,fabric,image", image_delivery="each")


def test_a_node_without_the_image_builds_the_same() -> None:
    wanted = layers("spark-01")
    on_node("spark-02", LOST)
    done = site()
    assert done.returncode == 0, done.stdout
    assert f"{IMAGE} on sparkfleet/base" in done.stdout.replace("\n", " ")
    assert layers("spark-02") == wanted == layers("spark-01")
    assert site().stdout.count("changed=0") == 3
