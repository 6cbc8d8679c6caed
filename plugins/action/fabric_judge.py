# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""See plugins/modules/fabric_judge.py."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from ansible.plugins.action import ActionBase
from ansible_collections.sparkfleet.vllm.plugins.module_utils import _gate
from ansible_collections.sparkfleet.vllm.plugins.plugin_utils._answers import registered


class ActionModule(ActionBase):
    """Judge what the nodes of a cluster measured; runs on the controller only."""

    TRANSFERS_FILES = False
    _requires_connection = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return the verdict for the node's cluster."""
        result: dict[str, Any] = {**super().run(tmp, task_vars), "changed": False}
        task_vars = task_vars or {}
        _validation, options = self.validate_argument_spec(
            argument_spec={
                "stage": {"type": "str", "choices": ["links", "collective_due", "collective"], "default": "links"},
                "cluster": {"type": "dict", "required": True},
                "results": {"type": "str", "required": True},
                "listeners": {"type": "str", "default": ""},
                "mode": {"type": "str", "choices": ["bandwidth", "ping"], "default": "bandwidth"},
                "min_gbps": {"type": "float", "default": 90.0},
                "min_busbw": {"type": "float", "default": 0.0},
                "topology": {"type": "str", "default": ""},
                "fingerprint": {"type": "str", "required": True},
                "image": {"type": "str", "default": ""},
                "gpu": {"type": "bool", "default": True},
                "warn": {"type": "bool", "default": False},
            },
        )
        # A node that --limit leaves out cannot measure, and is not asked for it.
        nodes = [name for name in options["cluster"]["nodes"] if name in task_vars["ansible_play_hosts_all"]]
        results = registered(task_vars, nodes, options["results"])
        key = _gate.collective_key(options["fingerprint"], options["image"], options["min_busbw"])
        if options["stage"] == "collective_due":
            complete = nodes == list(options["cluster"]["nodes"]) and len(nodes) > 1
            result["due"] = complete and not all(
                _gate.fits(results.get(name, {}).get("collective"), "key", key, options["warn"]) for name in nodes
            )
            return result
        date = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        if options["stage"] == "links":
            verdict = _gate.judge(
                nodes,
                {name: found["measured"] for name, found in results.items() if "measured" in found},
                {
                    name: found.get("problems") or []
                    for name, found in registered(task_vars, nodes, options["listeners"]).items()
                },
                mode=options["mode"],
                min_gbps=options["min_gbps"],
                wanted=options["fingerprint"],
                date=date,
            )
        else:
            verdict = _gate.judge_collective(
                nodes,
                {name: f"{found.get('stdout', '')}\n{found.get('stderr', '')}" for name, found in results.items()},
                key=key,
                min_busbw=options["min_busbw"],
                topology=options["topology"],
                gpu=options["gpu"],
                date=date,
            )
        first = task_vars["inventory_hostname"] == nodes[0]
        result.update(verdict, refusal="")
        if verdict["lines"] and options["warn"]:
            # Ansible shows what is under this key, and keeps it from the registered result.
            result["warnings"] = verdict["lines"] if first else []
        elif verdict["lines"]:
            own = f"{task_vars['inventory_hostname']}: the fabric does not carry; see {nodes[0]}'s message"
            # The newline at the end keeps Ansible's YAML output from folding the lines.
            result["refusal"] = "".join(f"{line}\n" for line in (verdict["lines"] if first else [own]))
        return result
