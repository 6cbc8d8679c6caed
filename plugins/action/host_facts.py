# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import time
import typing as t

from ansible.errors import AnsibleConnectionFailure, AnsibleError
from ansible.plugins.action import ActionBase
from ansible_collections.sparkfleet.vllm.plugins.module_utils import _argspec, _fleet, _preflight
from ansible_collections.sparkfleet.vllm.plugins.plugin_utils._variables import Inventory, RoleVariables


class ActionModule(ActionBase):
    """Read a host; turn whatever is wrong into lines instead of failures."""

    TRANSFERS_FILES = False

    def run(self, tmp: None = None, task_vars: dict[str, t.Any] | None = None) -> dict[str, t.Any]:
        task_vars = task_vars or {}
        result = {**super().run(tmp, task_vars), "changed": False, "reachable": True, "problems": []}
        arguments = dict(self._task.args)
        minimum = arguments.pop("minimum", None)
        before = time.time()
        try:
            answer = self._execute_module("sparkfleet.vllm.host_facts", arguments, task_vars=task_vars)
        except AnsibleConnectionFailure as error:
            return {**result, "reachable": False, "problems": [_preflight.unreachable_problem(str(error))]}
        except AnsibleError as error:
            return {**result, "problems": [_preflight.unreadable_problem(str(error), self._user())]}
        after = time.time()
        if "facts" not in answer:
            said = "\n".join(str(answer.get(key, "")) for key in ("msg", "module_stderr", "module_stdout"))
            return {**result, "problems": [_preflight.unreadable_problem(said, self._user())]}
        facts = answer["facts"]
        clock = _preflight.Interval.of(facts["clock"], before, after)
        result.update(facts=facts, interval=[clock.low, clock.high])
        if minimum is not None:
            result["problems"] = _preflight.judge(facts, self._requirements(minimum, task_vars))
        return result

    def _user(self) -> str:
        return str(self._get_remote_user() or "")

    def _requirements(self, minimum: t.Mapping[str, t.Any], task_vars: dict[str, t.Any]) -> _preflight.Requirements:
        """Return what the caller asks for, with the ports and the GPU that the roles' variables ask for."""
        name = task_vars["inventory_hostname"]
        inventory = Inventory(task_vars)
        cluster = _fleet.cluster_of(name, inventory.clusters)
        ports: tuple[_argspec.PortUse, ...] = ()
        gpu = False
        own: dict[str, t.Any] = {}
        if cluster is not None:
            roles = RoleVariables(self._loader, self._templar)
            values = roles.of(name, inventory, cluster).values
            known = (task_vars.get("ansible_facts") or {}).get("spark_cluster") or cluster.fact()
            ports = _preflight.wanted_ports(_argspec.port_uses(values, roles.options), name, known)
            gpu = values.get("image_variant") == "cuda"
            own = {variable: value for variable, value in values.items() if variable.startswith("host_")}
        return _preflight.Requirements(
            disk_gib=float(minimum["disk_gb"]),
            memory_gib=float(minimum["memory_gb"]),
            docker_version=str(minimum["docker_version"]),
            gpu=gpu,
            ports=ports,
            variables=own,
        )
