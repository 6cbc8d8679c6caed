# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Both nodes hold the same image, and nothing of its way is left."""

from __future__ import annotations

import json
import os
from typing import Any

import testinfra

INVENTORY = os.path.join(os.environ["MOLECULE_PROJECT_DIRECTORY"], "molecule", "inventory")
testinfra_hosts = [f"ansible://sparks?ansible_inventory={INVENTORY}&sudo=true"]

IMAGE = "sparkfleet/small:1"


def inspected(host: Any) -> dict[str, Any]:
    """What a node says of the image."""
    [found] = json.loads(host.check_output("docker image inspect %s", IMAGE))
    return dict(found)


def test_both_nodes_hold_the_same_layers_and_configuration() -> None:
    found = [inspected(host) for host in testinfra.get_hosts(testinfra_hosts)]
    assert len(found) == 2
    assert len({json.dumps(one["RootFS"]) for one in found}) == 1
    assert {json.dumps(one["Config"]["Labels"]) for one in found} == {'{"io.sparkfleet.build": "small"}'}


def test_it_has_no_name_from_the_way_it_came(host: Any) -> None:
    assert inspected(host)["RepoTags"] == [IMAGE]
    assert not [digest for digest in inspected(host)["RepoDigests"] if "127.0.0.1" in digest]


def test_nobody_hands_out_any_more(host: Any) -> None:
    assert host.run("systemctl is-active spark-image-share.service").stdout.strip() == "inactive"
    assert host.check_output("ss --no-header -ltn 'sport = :6390'") == ""


def test_only_the_head_keeps_layers_for_the_next_time(host: Any) -> None:
    files = host.check_output("ls -A /var/lib/sparkfleet/image 2>/dev/null || true").split()
    head = host.check_output("hostname") == "spark-01"
    assert set(files) <= ({"registry", "stream"} if head else set())
    assert not head or files
