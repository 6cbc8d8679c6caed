# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""See plugins/modules/fabric_probe.py."""

from __future__ import annotations

from typing import Any

from ansible.plugins.action import ActionBase
from ansible_collections.sparkfleet.vllm.plugins.module_utils._settle import probe_interfaces, probe_targets
from ansible_collections.sparkfleet.vllm.plugins.plugin_utils._answers import ask, first_line, registered


class ActionModule(ActionBase):
    """Tell the module on which interfaces to ask, and for whom, from what all hosts of the run have registered."""

    TRANSFERS_FILES = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return what root can see of the cables; without it, why it could not be had."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        task_vars = task_vars or {}
        _validation, options = self.validate_argument_spec(
            argument_spec={
                "interfaces": {"type": "list", "elements": "str", "default": []},
                "targets": {"type": "list", "elements": "str", "default": []},
                "read": {"type": "str", "default": ""},
                "directory": {"type": "path", "required": True},
                "rounds": {"type": "int", "default": 3},
                "timeout": {"type": "float", "default": 0.5},
                "root": {"type": "path", "default": "/"},
            },
        )
        result |= {"changed": False, "probe": None}
        if options["read"]:
            reads = registered(task_vars, task_vars["ansible_play_hosts_all"], options["read"])
            facts = {name: read["roce"] for name, read in reads.items() if read.get("roce")}
            own = facts.get(task_vars["inventory_hostname"])
            if own is None:
                return result
            options |= {"interfaces": probe_interfaces(own), "targets": probe_targets(facts)}
        answer = ask(self._execute_module, "fabric_probe", options, task_vars)
        if answer is None:
            return result
        if "probe" in answer:
            result["probe"] = answer["probe"]
        else:
            reason = first_line(answer, "msg").rstrip(".")
            result["warnings"] = [f"{task_vars['inventory_hostname']}: its cables could not be looked at: {reason}"]
        return result
