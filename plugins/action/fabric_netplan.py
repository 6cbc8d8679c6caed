# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""See plugins/modules/fabric_netplan.py."""

from __future__ import annotations

import time
from typing import Any

from ansible.errors import AnsibleConnectionFailure
from ansible.plugins.action import ActionBase
from ansible_collections.sparkfleet.vllm.plugins.plugin_utils._answers import first_line
from ansible_collections.sparkfleet.vllm.plugins.plugin_utils._connection import new_connections
from ansible_collections.sparkfleet.vllm.plugins.plugin_utils._report import refusal

_PAUSE_S = 1.0
# How long a node may take for its addresses once it can be reached, at most.
_PATIENCE_S = 30.0
# How long to look whether a node that could not be reached in time comes back.
_COMES_BACK_S = 60.0
# Going back takes NetworkManager a few seconds, and then a while of watching that it stays so.
_GOES_BACK_S = 90.0
_LOOK = "look at 'journalctl -t sparkfleet' on it"


class ActionModule(ActionBase):
    """Change the fabric's addresses, and confirm it over a connection that is made after the change."""

    TRANSFERS_FILES = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Compare, and where something differs go through the steps of the module."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        self._vars = task_vars or {}
        self._host = str(self._vars.get("inventory_hostname", "the node"))
        _validation, self._options = self.validate_argument_spec(
            argument_spec={
                "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
                "content": {"type": "str", "default": ""},
                "settings": {"type": "list", "elements": "dict", "default": []},
                "directory": {"type": "path", "required": True},
                "confirm_timeout": {"type": "int", "default": 60},
            },
        )
        answer = self._call("check")
        result |= {key: answer[key] for key in ("changed", "diff") if key in answer}
        if answer.get("failed"):
            return self._refuse(result, _reason(answer))
        if not answer["changed"] or self._task.check_mode:
            return result
        begin = time.monotonic()
        try:
            answer = self._call("stage")
        except AnsibleConnectionFailure:
            # It may have been cut by the change that it started: that is found out below.
            answer = {"phase": "applying"}
        if answer.get("failed"):
            return self._refuse(result, _reason(answer))
        if answer["phase"] == "confirmed":
            return result
        # A confirmation over a connection from before the change would prove nothing.
        with new_connections(self._connection):
            problem = self._see_through(begin)
        return self._refuse(result, problem) if problem else result

    def _see_through(self, begin: float) -> str:
        """Wait for the change and confirm it; return what went wrong, empty where nothing did."""
        timeout = float(self._options["confirm_timeout"])
        patience = max(10.0, min(_PATIENCE_S, timeout - 15))
        reached: float | None = None
        silent = False
        while time.monotonic() < begin + timeout:
            answer = self._try("wait")
            phase = (answer or {}).get("phase")
            if phase == "live":
                # Once more over a new connection: the one before was made before the addresses had been seen.
                answer = self._try("confirm")
                phase = (answer or {}).get("phase")
            if phase == "confirmed":
                return ""
            if phase in ("reverting", "reverted", "none"):
                break
            if answer is not None and answer.get("failed"):
                return self._give_up(_reason(answer))
            if phase == "failed":
                return self._give_up(f"netplan apply failed: {str(answer and answer['said']).rstrip('.')}")
            silent = silent or answer is None
            if answer is not None:
                reached = reached or time.monotonic()
                if time.monotonic() > reached + patience:
                    lacks = "; ".join(answer.get("missing") or [])
                    return self._give_up(f"after netplan apply {lacks}" if lacks else "netplan apply has not finished")
            time.sleep(_PAUSE_S)
        return self._too_late(silent)

    def _give_up(self, reason: str) -> str:
        """Let the node go back now, and return the reason with what came of it."""
        self._try("revert")
        back = self._comes_back(_GOES_BACK_S)
        return f"{reason}; {'it went back to the old addresses' if back else 'it goes back by itself'}; {_LOOK}"

    def _too_late(self, silent: bool) -> str:
        """See whether the node came back by itself, and return what happened."""
        timeout = self._options["confirm_timeout"]
        cut = f"could not be reached over management within {timeout} s after its new addresses were applied"
        if not silent:
            cut = f"its new addresses could not be confirmed within {timeout} s"
        phase = self._comes_back(_COMES_BACK_S)
        if phase == "confirmed":  # only the answer to the confirmation was lost
            return ""
        if phase:
            return f"{cut}; it went back to the old ones by itself; {_LOOK}"
        return (
            f"{cut}, nor in the {_COMES_BACK_S:.0f} s after that; it should have gone back to the old ones by itself; "
            "look at it on its console ('journalctl -t sparkfleet')"
        )

    def _comes_back(self, seconds: float) -> str:
        """Return where the change is as soon as it is over and the node can be reached; empty if not in that time."""
        end = time.monotonic() + seconds
        while True:
            phase = str((self._try("wait") or {}).get("phase", ""))
            # A node that was rebooted meanwhile knows of no change at all.
            if phase in ("reverted", "none", "confirmed"):
                return phase
            if time.monotonic() >= end:
                return ""
            time.sleep(_PAUSE_S)

    def _try(self, step: str) -> dict[str, Any] | None:
        """Return the answer to a step, None where the node cannot be reached."""
        try:
            return self._call(step)
        except AnsibleConnectionFailure:
            return None

    def _call(self, step: str) -> dict[str, Any]:
        """Run the module."""
        answer: dict[str, Any] = self._execute_module(
            module_name="sparkfleet.vllm.fabric_netplan",
            module_args={**self._options, "step": step},
            task_vars=self._vars,
        )
        if answer.get("unreachable"):
            raise AnsibleConnectionFailure(str(answer.get("msg", "unreachable")))
        return answer

    def _refuse(self, result: dict[str, Any], reason: str) -> dict[str, Any]:
        """Return a failed result."""
        return refusal({**result, "changed": False}, [f"{self._host}: {reason}"])


def _reason(answer: dict[str, Any]) -> str:
    return first_line(answer, "msg", "module_stderr", "module_stdout")
