# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import getpass
import os
import socket
import typing as t

from ansible.plugins.action import ActionBase
from ansible_collections.sparkfleet.vllm.plugins.module_utils import _lock
from ansible_collections.sparkfleet.vllm.plugins.plugin_utils._report import refusal

_PATH = "/run/sparkfleet/run.lock"


class ActionModule(ActionBase):
    """Name this run to the node, and judge from here whether a run that is in the way still lives."""

    TRANSFERS_FILES = False

    def run(self, tmp: None = None, task_vars: dict[str, t.Any] | None = None) -> dict[str, t.Any]:
        task_vars = task_vars or {}
        result = {**super().run(tmp, task_vars), "changed": False}
        # Tasks run in forked workers; their parent is the ansible-playbook process.
        run = _lock.this_run(os.getppid(), socket.gethostname(), _user())
        arguments = {**self._task.args, "holder": run.to_json()}
        answer = self._call(arguments, task_vars)
        other = answer.get("other")
        if other is None:
            return {**result, **answer}
        holder = _lock.Holder.from_json(other)
        if holder is not None and _lock.is_dead(holder, run):
            answer = self._call({**arguments, "replace": other}, task_vars)
            other = answer.get("other")
            if other is None:
                return {**result, **answer}
            holder = _lock.Holder.from_json(other)
        line = _lock.conflict(holder, str(arguments.get("path") or _PATH))
        return refusal({**result, "held": False}, [f"{task_vars['inventory_hostname']}: {line}"])

    def _call(self, arguments: dict[str, t.Any], task_vars: dict[str, t.Any]) -> dict[str, t.Any]:
        return self._execute_module("sparkfleet.vllm.run_lock", arguments, task_vars=task_vars)


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # A user id without a name, as in some containers.
        return str(os.getuid())
