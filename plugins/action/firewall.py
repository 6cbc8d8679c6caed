# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""See plugins/modules/firewall.py."""

from __future__ import annotations

import time
import typing as t

from ansible.errors import AnsibleConnectionFailure
from ansible.plugins.action import ActionBase
from ansible_collections.sparkfleet.vllm.plugins.module_utils import _firewall, _fleet, _ports
from ansible_collections.sparkfleet.vllm.plugins.plugin_utils._answers import first_line, registered
from ansible_collections.sparkfleet.vllm.plugins.plugin_utils._connection import new_connections
from ansible_collections.sparkfleet.vllm.plugins.plugin_utils._report import refusal
from ansible_collections.sparkfleet.vllm.plugins.plugin_utils._variables import Inventory, RoleVariables

_PAUSE_S = 1.0
_COMES_BACK_S = 20.0
_LOCKED_OUT = "let no new connection in after its rules were loaded"
_LOOK = "see whether sshd listens where you log in, and journalctl -t sparkfleet on it"


class ActionModule(ActionBase):
    """Make a node's rules, and confirm them over a connection that is made after they were loaded."""

    TRANSFERS_FILES = False

    def run(self, tmp: str | None = None, task_vars: dict[str, t.Any] | None = None) -> dict[str, t.Any]:
        """Compare, and where something differs load the rules and confirm them."""
        result: dict[str, t.Any] = super().run(tmp, task_vars)
        self._vars = task_vars or {}
        self._host = str(self._vars["inventory_hostname"])
        _validation, self._options = self.validate_argument_spec(
            argument_spec={
                "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
                "api_ports": {"type": "list", "elements": "int", "default": []},
                "allow": {"type": "list", "elements": "str", "default": []},
                "confirm_timeout": {"type": "int", "default": 60},
            },
        )
        wanted = self._options["state"] == "present"
        try:
            self._content = _firewall.ruleset(self._inputs()) if wanted else ""
        except ValueError as error:
            return self._refuse(result, f"no rules for the firewall: {error}")
        answer = self._call("check")
        result |= {key: answer[key] for key in ("changed", "diff") if key in answer}
        if answer.get("failed"):
            return self._refuse(result, _reason(answer))
        if not wanted or not answer["changed"] or self._task.check_mode:
            return result
        problem = self._change()
        return self._refuse(result, problem) if problem else result

    def _inputs(self) -> _firewall.Inputs:
        """Return what the rules are made from. Raises ValueError for what is missing or wrong."""
        cluster = self._vars["ansible_facts"]["spark_cluster"]
        own = registered(self._vars, [self._host], "__host_preflight").get(self._host) or {}
        ssh_ports = (own.get("facts") or {}).get("ssh_ports")
        if not ssh_ports:
            raise ValueError("no port of sshd is known; run the preflight of role host")
        fabrics = registered(self._vars, cluster["nodes"], "__fabric_preflight")
        unknown = [name for name in cluster["nodes"] if not (fabrics.get(name) or {}).get("node")]
        if unknown:
            raise ValueError(f"the fabric of {unknown[0]} is not known; run the preflight of role fabric")
        peers = [name for name in cluster["nodes"] if name != self._host]
        addresses = {address for name in peers for address in _firewall.fabric_addresses(fabrics[name])}
        return _firewall.Inputs(
            ssh_ports=tuple(ssh_ports),
            api_ports=tuple(self._options["api_ports"] or self._api_ports(cluster)),
            interfaces=tuple(_firewall.fabric_interfaces(fabrics[self._host])),
            peers=tuple(sorted(addresses)),
            allow=tuple(_firewall.parse_allow(text) for text in self._options["allow"]),
        )

    def _api_ports(self, cluster: t.Mapping[str, t.Any]) -> list[int]:
        """Return the ports of the models that the node leads, by the variables of all roles."""
        inventory = Inventory(self._vars)
        home = _fleet.cluster_of(self._host, inventory.clusters)
        if home is None:
            return []
        values = RoleVariables(self._loader, self._templar).of(self._host, inventory, home).values
        return _ports.open_to_everyone(values, self._host, cluster)

    def _change(self) -> str:
        """Load the rules and confirm them; return what went wrong, empty where nothing did."""
        begin = time.monotonic()
        timeout = float(self._options["confirm_timeout"])
        try:
            answer = self._call("stage")
            if answer.get("failed"):
                return _reason(answer)
        except AnsibleConnectionFailure:
            pass  # Only its answer may be lost: confirming tells.
        with new_connections(self._connection):
            # A little longer than the node waits, to see it come back.
            while time.monotonic() < begin + timeout + _COMES_BACK_S:
                try:
                    answer = self._call("confirm")
                except AnsibleConnectionFailure:
                    time.sleep(_PAUSE_S)
                    continue
                if answer.get("failed"):
                    return _reason(answer)
                return "" if answer["kept"] else f"{_LOCKED_OUT}, and put the old ones back; {_LOOK}"
        return f"{_LOCKED_OUT}; it puts the old ones back by itself; {_LOOK}"

    def _call(self, step: str) -> dict[str, t.Any]:
        """Run the module."""
        answer: dict[str, t.Any] = self._execute_module(
            module_name="sparkfleet.vllm.firewall",
            module_args={**self._options, "content": self._content, "step": step},
            task_vars=self._vars,
        )
        if answer.get("unreachable"):
            raise AnsibleConnectionFailure(str(answer.get("msg", "unreachable")))
        return answer

    def _refuse(self, result: dict[str, t.Any], reason: str) -> dict[str, t.Any]:
        """Return a failed result."""
        return refusal({**result, "changed": False}, [f"{self._host}: {reason}"])


def _reason(answer: t.Mapping[str, t.Any]) -> str:
    return first_line(answer, "msg", "module_stderr", "module_stdout")
