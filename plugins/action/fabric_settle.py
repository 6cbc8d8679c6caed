# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""See plugins/modules/fabric_settle.py."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ansible.plugins.action import ActionBase
from ansible_collections.sparkfleet.vllm.plugins.module_utils._fabric import settle


class ActionModule(ActionBase):
    """Compare the plans of a cluster's nodes; runs on the controller only."""

    TRANSFERS_FILES = False
    _requires_connection = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return the node's part in the fabric."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        task_vars = task_vars or {}
        _validation, options = self.validate_argument_spec(
            argument_spec={
                "cluster": {"type": "dict", "required": True},
                "plan": {"type": "str", "required": True},
            },
        )
        cluster, variable = options["cluster"], options["plan"]
        host = task_vars["inventory_hostname"]
        results = {}
        for name in cluster["nodes"]:
            planned = task_vars["hostvars"].raw_get(name).get(variable)
            # A node outside --limit has no plan.
            if isinstance(planned, Mapping):
                results[name] = planned
        own = results.get(host, {})
        result |= {
            "changed": False,
            "problems": [own["failure"]] if own.get("failure") else [],
            "notes": [],
            "rails": [],
            "topology": None,
            "node": {},
            "roce": own.get("roce") or {},
        }
        if own.get("plan"):
            settled = settle(
                {name: planned["plan"] for name, planned in results.items() if planned.get("plan")},
                host,
                cluster["head"],
                [device["name"] for device in own["roce"]["devices"]],
            )
            notes = settled.pop("warnings")
            result |= {**settled, "node": settled["node"] or {}, "notes": notes}
            # Ansible shows what is under this key, and keeps it from the registered result.
            result["warnings"] = [f"{host}: {note}" for note in notes]
        reasons = result["problems"] or ["the fabric could not be read; check that the host answers"]
        result["refusal"] = "" if result["node"] else "\n".join(f"{host}: {reason}" for reason in reasons)
        return result
