# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""See plugins/modules/fabric_plan.py."""

from __future__ import annotations

from typing import Any

from ansible.errors import AnsibleConnectionFailure, AnsibleError
from ansible.plugins.action import ActionBase
from ansible_collections.sparkfleet.vllm.plugins.module_utils._fabric import Overrides, check_given, plan


class ActionModule(ActionBase):
    """Read a node's facts with roce_facts and plan on the controller."""

    TRANSFERS_FILES = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return the plan; an unreachable node has none, and it is not this task that reports it."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        _validation, options = self.validate_argument_spec(
            argument_spec={
                "nodes": {"type": "int", "required": True},
                "interface": {"type": "str", "default": ""},
                "hcas": {"type": "list", "elements": "str", "default": []},
                "address": {"type": "str", "default": ""},
                "nccl_debug": {"type": "str", "default": ""},
                "topology": {"type": "str", "default": "auto"},
                "extra_env": {"type": "dict", "default": {}},
                "given": {"type": "dict", "default": {}},
            },
        )
        result |= {"changed": False, "plan": None, "roce": None, "failure": None}
        try:
            facts = self._execute_module(module_name="sparkfleet.vllm.roce_facts", module_args={}, task_vars=task_vars)
        except AnsibleConnectionFailure:
            return result
        except AnsibleError as error:
            facts = {"msg": str(error)}
        if "roce" not in facts:
            reason = str(facts.get("msg", "no answer")).strip().splitlines() or ["no answer"]
            result["failure"] = (
                f"the fabric could not be read: {reason[0].rstrip('.')}; "
                "run 'ansible HOST -m sparkfleet.vllm.roce_facts -vvv' to see why"
            )
            return result
        result["roce"] = facts["roce"]
        given = options.pop("given")
        nodes = options.pop("nodes")
        result["plan"] = (
            check_given(facts["roce"], given) if given else plan(facts["roce"], Overrides(**options), nodes)
        )
        return result
