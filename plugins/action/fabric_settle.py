# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""See plugins/modules/fabric_settle.py."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ansible.plugins.action import ActionBase
from ansible_collections.sparkfleet.vllm.plugins.module_utils._fabric import Overrides
from ansible_collections.sparkfleet.vllm.plugins.module_utils._settle import Known, Options, nothing, part
from ansible_collections.sparkfleet.vllm.plugins.plugin_utils._answers import registered
from ansible_collections.sparkfleet.vllm.plugins.plugin_utils._variables import Inventory


class ActionModule(ActionBase):
    """Compare what the nodes of a fleet said; runs on the controller only."""

    TRANSFERS_FILES = False
    _requires_connection = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return the node's part in the fabric."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        task_vars = task_vars or {}
        _validation, options = self.validate_argument_spec(
            argument_spec={
                "read": {"type": "str", "required": True},
                "probe": {"type": "str", "required": True},
            },
        )
        host = task_vars["inventory_hostname"]
        inventory = Inventory(task_vars)
        clusters = {cluster.name: list(cluster.hosts) for cluster in inventory.clusters}
        order = [name for nodes in clusters.values() for name in nodes]
        home = {name: cluster for cluster, nodes in clusters.items() for name in nodes}
        # The other clusters of the run matter too: a cable may lead to one of them, and a switch be shared.
        hosts = task_vars["ansible_play_hosts_all"]
        reads = registered(task_vars, hosts, options["read"])
        probes = registered(task_vars, hosts, options["probe"])
        known = {
            name: Known(home[name], read["roce"], probes.get(name, {}).get("probe"), _options(read["options"]))
            for name, read in reads.items()
            if read.get("roce")
        }
        own = reads.get(host, {})
        result |= {**nothing(), "changed": False, "roce": own.get("roce") or {}}
        if own.get("failure"):
            result["problems"] = [own["failure"]]
        if host in known:
            run = {name: nodes for name, nodes in clusters.items() if any(node in known for node in nodes)}
            result |= part(known, run, order, host)
            # Ansible shows what is under this key, and keeps it from the registered result.
            result["warnings"] = [f"{host}: {note}" for note in result["notes"]]
        other = (
            "the fabric of its cluster is refused; see what is said of the other nodes"
            if host in known
            else "the fabric could not be read; check that the host answers"
        )
        reasons = result["problems"] or [other]
        result["refusal"] = "" if result["node"] else "\n".join(f"{host}: {reason}" for reason in reasons)
        return result


def _options(said: Mapping[str, Any]) -> Options:
    return Options(
        overrides=Overrides(
            interface=said["interface"],
            hcas=said["hcas"],
            address=said["address"],
            nccl_debug=said["nccl_debug"],
            topology=said["topology"],
            extra_env=said["extra_env"],
        ),
        given=said["given"],
        configure=said["configure"],
        subnets=said["subnets"],
        gate=said["gate"],
        min_gbps=said["min_gbps"],
    )
