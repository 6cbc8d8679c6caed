# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""See plugins/modules/fabric_probe.py."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ansible.errors import AnsibleConnectionFailure, AnsibleError
from ansible.plugins.action import ActionBase
from ansible_collections.sparkfleet.vllm.plugins.module_utils._settle import probe_interfaces, probe_targets


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
            facts = self._registered(options["read"], task_vars)
            own = facts.get(task_vars["inventory_hostname"])
            if own is None:
                return result
            options |= {"interfaces": probe_interfaces(own), "targets": probe_targets(facts)}
        try:
            answer = self._execute_module(
                module_name="sparkfleet.vllm.fabric_probe", module_args=options, task_vars=task_vars
            )
        except AnsibleConnectionFailure:
            return result
        except AnsibleError as error:
            answer = {"msg": str(error)}
        if "probe" in answer:
            result["probe"] = answer["probe"]
        else:
            reason = str(answer.get("msg", "no answer")).strip().splitlines() or ["no answer"]
            result["warnings"] = [
                f"{task_vars['inventory_hostname']}: its cables could not be looked at: {reason[0].rstrip('.')}"
            ]
        return result

    @staticmethod
    def _registered(variable: str, task_vars: dict[str, Any]) -> dict[str, Any]:
        """Return the facts of all hosts of the run that could be read."""
        facts = {}
        for name in task_vars["ansible_play_hosts_all"]:
            known = task_vars["hostvars"].raw_get(name).get(variable)
            if isinstance(known, Mapping) and known.get("roce"):
                facts[name] = known["roce"]
        return facts
