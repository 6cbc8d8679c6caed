# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The controller's half of model_manifest: it reads the source and hands the manifest to the node."""

from __future__ import annotations

import os
import shutil
from typing import Any

from ansible.plugins.action import ActionBase
from ansible_collections.sparkfleet.vllm.plugins.module_utils._model import read_source, unpack

MODULE = "sparkfleet.vllm.model_manifest"


def cache_directory() -> str:
    """Return the directory in which the controller remembers hashes."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return os.path.join(base, "sparkfleet", "models")


class ActionModule(ActionBase):
    """Read the source on the controller, compare it with the node by the module of the same name."""

    _supports_check_mode = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result: dict[str, Any] = super().run(tmp, task_vars)
        args = dict(self._task.args)
        if args.get("path"):
            return {**result, **self._execute_module(module_name=MODULE, module_args=args, task_vars=task_vars)}
        cache = cache_directory()
        try:
            source = read_source(str(args.get("source") or ""), cache)
            path = os.path.join(str(args.get("root") or ""), source.name)
            result.update(changed=False, path=path, transfer=False, problems=source.problems)
            if source.problems:
                if args.get("required"):
                    result.update(failed=True, msg=" | ".join(source.problems))
                return result
            directory = unpack(source, cache) if args.get("unpack") else ""
        except (OSError, ValueError) as error:
            problem = f"the model cannot be read on the controller: {error}; check {cache}"
            return {**result, "failed": True, "msg": problem, "problems": [problem]}
        args.update(path=path, files={name: [entry.size, entry.sha256] for name, entry in source.files.items()})
        result.update(self._execute_module(module_name=MODULE, module_args=args, task_vars=task_vars))
        # The manifest of a large model has hundreds of lines; nobody reads them in a result.
        result.get("invocation", {}).get("module_args", {}).pop("files", None)
        if directory:
            result["directory"] = directory
        if result.get("transfer") and shutil.which("rsync") is None:
            result.setdefault("problems", []).append("the controller has no rsync; apt install rsync there")
        return result
