# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import typing as t

from ansible.plugins.action import ActionBase
from ansible.utils.display import Display
from ansible_collections.sparkfleet.vllm.plugins.module_utils import _fleet, _serving
from ansible_collections.sparkfleet.vllm.plugins.plugin_utils._recipes import found
from ansible_collections.sparkfleet.vllm.plugins.plugin_utils._report import refusal
from ansible_collections.sparkfleet.vllm.plugins.plugin_utils._variables import Inventory, RoleVariables

display = Display()


class ActionModule(ActionBase):
    """Tell each host its cluster, and refuse an inventory that makes no sense."""

    TRANSFERS_FILES = False
    _requires_connection = False

    def run(self, tmp: None = None, task_vars: dict[str, t.Any] | None = None) -> dict[str, t.Any]:
        task_vars = task_vars or {}
        result = super().run(tmp, task_vars)
        _validation, arguments = self.validate_argument_spec(
            {"variables": {"type": "bool", "default": True}, "require_hosts": {"type": "bool", "default": False}}
        )
        inventory = Inventory(task_vars)
        if arguments["require_hosts"]:
            return {**result, "changed": False} if inventory.clusters else refusal(result, [_fleet.NO_HOST])
        this_host = task_vars["inventory_hostname"]
        # One host, the first that no earlier play lost, speaks for all, so that every reason stands in one list.
        if this_host == task_vars["ansible_play_hosts"][0]:
            problems = self._problems(inventory, arguments["variables"])
            if problems:
                return refusal(result, problems)
        cluster = _fleet.cluster_of(this_host, inventory.clusters)
        if cluster is None:
            return {**result, "changed": False}
        fact = {**cluster.fact(), **self._served(inventory, cluster)}
        return {**result, "changed": False, "ansible_facts": {"spark_cluster": fact}}

    def _served(self, inventory: Inventory, cluster: _fleet.Cluster) -> dict[str, t.Any]:
        """Return what the cluster serves; nothing where its variables are wrong, which a verb need not care about."""
        roles = RoleVariables(self._loader, self._templar)
        values = roles.of(cluster.head, inventory, cluster).values
        placed, _problems = _fleet.models(cluster, values, roles.options, roles.validated)
        return {
            "models": [model.fact() for model in placed],
            "ray": [list(group) for group in _serving.ray_groups(placed)],
        }

    def _problems(self, inventory: Inventory, with_variables: bool) -> list[str]:
        lines = _fleet.structure_problems(inventory.direct, inventory.clusters, inventory.selected)
        if not with_variables:
            return lines
        roles = RoleVariables(self._loader, self._templar)
        hosts: dict[str, _fleet.Host] = {}
        for cluster in inventory.clusters:
            # A cluster that shares a host with another is said above; its variables can mean anything.
            if hosts.keys() & set(cluster.hosts) or not set(inventory.selected) & set(cluster.hosts):
                continue
            hosts.update({name: roles.of(name, inventory, cluster) for name in cluster.hosts})
            for note in hosts[cluster.head].notes:
                display.warning(f"{cluster.name}: {note}")
            lines.extend(
                _fleet.variable_problems(cluster, hosts, roles.options, self._is_model_source, roles.validated)
            )
        return [*lines, *_fleet.address_problems(list(hosts.values()))]

    def _is_model_source(self, path: str) -> bool:
        """Tell whether a path, relative to the playbook or to where it was started, is there on the controller."""
        return found(self._loader, path).exists()
