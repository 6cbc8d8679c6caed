# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""See plugins/modules/fabric_read.py."""

from __future__ import annotations

import ipaddress
from typing import Any

from ansible.plugins.action import ActionBase
from ansible_collections.sparkfleet.vllm.plugins.plugin_utils._answers import ask, first_line


class ActionModule(ActionBase):
    """Read a node's facts with roce_facts, and keep what the inventory says about its fabric beside them."""

    TRANSFERS_FILES = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return the facts; an unreachable node has none, and it is not this task that reports it."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        task_vars = task_vars or {}
        _validation, options = self.validate_argument_spec(
            argument_spec={
                "interface": {"type": "str", "default": ""},
                "hcas": {"type": "list", "elements": "str", "default": []},
                "address": {"type": "str", "default": ""},
                "nccl_debug": {"type": "str", "default": ""},
                "topology": {"type": "str", "default": "auto"},
                "extra_env": {"type": "dict", "default": {}},
                "given": {"type": "dict", "default": {}},
                "configure": {"type": "str", "default": "keep"},
                "subnets": {"type": "list", "elements": "str", "default": []},
                "gate": {"type": "str", "default": "auto"},
                "min_gbps": {"type": "float", "default": 90},
            },
        )
        result |= {"changed": False, "roce": None, "failure": None, "options": options}
        arguments = {"management_address": _address(str(task_vars.get("ansible_host") or ""))}
        facts = ask(self._execute_module, "roce_facts", arguments, task_vars)
        if facts is None:
            return result
        if "roce" not in facts:
            result["failure"] = (
                f"the fabric could not be read: {first_line(facts, 'msg').rstrip('.')}; "
                "run 'ansible HOST -m sparkfleet.vllm.roce_facts -vvv' to see why"
            )
            return result
        result["roce"] = facts["roce"]
        return result


def _address(host: str) -> str:
    """Return `host` if it is an IP address; a name may stand for another one here than on the node."""
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        return ""
