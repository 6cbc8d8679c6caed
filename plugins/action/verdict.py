# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import re
import typing as t

from ansible.plugins.action import ActionBase
from ansible_collections.sparkfleet.vllm.plugins.module_utils import _fleet, _preflight
from ansible_collections.sparkfleet.vllm.plugins.plugin_utils._report import refusal
from ansible_collections.sparkfleet.vllm.plugins.plugin_utils._variables import Inventory, RoleVariables

_REGISTERED = re.compile(r"__[a-z]+_preflight\Z")


class ActionModule(ActionBase):
    """Judge all hosts of the play by what their preflights registered."""

    TRANSFERS_FILES = False
    _requires_connection = False

    def run(self, tmp: None = None, task_vars: dict[str, t.Any] | None = None) -> dict[str, t.Any]:
        task_vars = task_vars or {}
        result = {**super().run(tmp, task_vars), "changed": False}
        _validation, arguments = self.validate_argument_spec({"max_clock_skew_s": {"type": "float"}})
        hosts: list[str] = task_vars["ansible_play_hosts_all"]
        still_there: list[str] = task_vars["ansible_play_hosts"]
        lines: list[str] = []
        clocks: dict[str, _preflight.Interval] = {}
        facts: dict[str, t.Any] = {}
        for host in hosts:
            known = task_vars["hostvars"].raw_get(host)
            if host not in still_there:
                lines.append(f"{host}: failed or became unreachable during the preflight; see above")
            for name in known:
                if _REGISTERED.match(name):
                    # A preflight that looped has an answer for each item.
                    for answer in [known[name], *(known[name].get("results") or [])]:
                        lines.extend(f"{host}: {problem}" for problem in answer.get("problems") or [])
            own = known.get("__host_preflight") or {}
            if "interval" in own:
                clocks[host] = _preflight.Interval(*own["interval"])
                facts[host] = own["facts"]
        limit_s = arguments["max_clock_skew_s"]
        lines.extend(_preflight.skew_problems(clocks, self._limit_s(task_vars) if limit_s is None else limit_s))
        lines.extend(_preflight.twin_problems(facts))
        if lines:
            return refusal(result, sorted(set(lines)))
        return result

    def _limit_s(self, task_vars: dict[str, t.Any]) -> float:
        """Return host_max_clock_skew_s as it stands for this host, role default included."""
        name = task_vars["inventory_hostname"]
        inventory = Inventory(task_vars)
        cluster = _fleet.cluster_of(name, inventory.clusters) or _fleet.Cluster(name, (name,))
        values = RoleVariables(self._loader, self._templar).of(name, inventory, cluster).values
        return float(values["host_max_clock_skew_s"])
