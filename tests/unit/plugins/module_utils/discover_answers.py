# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What simulated hosts answer to whom looks for Sparks."""

from __future__ import annotations

from collections.abc import Iterable

from ansible_collections.sparkfleet.vllm.plugins.module_utils._discover import Observation
from ansible_collections.sparkfleet.vllm.plugins.module_utils._neighbours import Answer, Neighbour
from ansible_collections.sparkfleet.vllm.plugins.module_utils._topology import Host
from ansible_collections.sparkfleet.vllm.tests.unit.plugins.module_utils.fabric_hosts import Group, cable, names


def answer_of(name: str, host: Host) -> Answer:
    """Return a host's answer."""
    return Answer(
        hostname=name,
        machine=f"machine of {name}",
        product="NVIDIA_DGX_Spark",
        roce=host["roce"],
        neighbours={
            port: [Neighbour(mac=mac, address="") for mac in heard]
            for port, heard in (host["neighbours"] or {}).items()
        },
        root=True,
    )


def seen(name: str, host: Host, address: str = "") -> Observation:
    """Return a host as it was seen, at its management address."""
    route = host["roce"]["default_route"]
    own = str(route["address"]) if route else ""
    return Observation(address=address or own, port=22, answer=answer_of(name, host))


def fleet(count: int, groups: Iterable[Group]) -> list[Observation]:
    """Return spark-01 and those that follow, cabled in this way."""
    return [seen(name, host) for name, host in cable({"": names(*range(1, count + 1))}, groups).items()]
