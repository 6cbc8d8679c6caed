# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The pair with IPv6 on its management network, which simulated nodes do not have by themselves."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from scan import reachable

from tests.scenario import address, on_node, until

NODES = ("spark-01", "spark-02")


@pytest.fixture(name="addresses", scope="session")
def fixture_addresses() -> Iterator[dict[int, dict[str, str]]]:
    """Return the address of each node, by version of IP, as this machine has to write it."""
    four = {node: address(node) for node in NODES}
    interfaces = {node: _interface(node, four[node]) for node in NODES}
    for node, interface in interfaces.items():
        on_node(node, f"sysctl --quiet net.ipv6.conf.{interface}.disable_ipv6=0")
    try:
        for node, interface in interfaces.items():
            until(lambda node=node, interface=interface: bool(_ipv6(node, interface)), f"{node} has an IPv6 address")
        yield {4: four, 6: {node: reachable(_ipv6(node, interfaces[node]), four[node]) for node in NODES}}
    finally:
        for node, interface in interfaces.items():
            on_node(node, f"sysctl --quiet net.ipv6.conf.{interface}.disable_ipv6=1")


def _interface(node: str, own: str) -> str:
    """Return the interface that has an address."""
    (found,) = json.loads(on_node(node, f"ip -json address show to {own}"))
    return str(found["ifname"])


def _ipv6(node: str, interface: str) -> str:
    """Return an interface's IPv6 address; empty until it can be used."""
    (found,) = json.loads(on_node(node, f"ip -json -6 address show dev {interface}")) or [{}]
    usable = [entry["local"] for entry in found.get("addr_info", []) if not entry.get("tentative")]
    return str(usable[0]) if usable else ""
