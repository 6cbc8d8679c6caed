# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Roles host and fabric: what they leave on the nodes."""

from __future__ import annotations

import os
from typing import Any

INVENTORY = os.path.join(os.environ["MOLECULE_PROJECT_DIRECTORY"], "molecule", "inventory")
testinfra_hosts = [f"ansible://sparks?ansible_inventory={INVENTORY}&sudo=true"]

ADDRESSES = {"spark-01": "192.168.177.11", "spark-02": "192.168.177.12"}


def environment(host: Any) -> dict[str, str]:
    """The node's environment file as a dict."""
    lines = host.file("/etc/sparkfleet/atlas/fabric.env").content_string.splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def test_directories_are_closed_to_others(host: Any) -> None:
    folder = host.file("/etc/sparkfleet/atlas")
    assert folder.is_directory
    assert folder.user == "root"
    assert folder.mode == 0o750


def test_environment_names_this_nodes_own_address(host: Any) -> None:
    found = environment(host)
    own = ADDRESSES[host.check_output("hostname")]
    assert found["VLLM_HOST_IP"] == own
    assert found["RAY_NODE_IP_ADDRESS"] == own
    assert own in host.check_output("ip -o -4 addr show dev %s", found["GLOO_SOCKET_IFNAME"])


def test_environment_names_both_twins_of_the_cabled_port_only(host: Any) -> None:
    found = environment(host)
    assert found["NCCL_IB_HCA"].split(",") == ["rocep1s0f0", "roceP2p1s0f0"]
    assert found["NCCL_SOCKET_IFNAME"] == "enp1s0f0np0"


def test_gid_index_is_left_to_nccl(host: Any) -> None:
    # An empty or zero index would be the fe80 GID: facts of the field, see docs/architecture.md.
    assert "NCCL_IB_GID_INDEX" not in environment(host)


def test_no_lock_is_left_behind(host: Any) -> None:
    assert not host.file("/run/sparkfleet/run.lock").exists
