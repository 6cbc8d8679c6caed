# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether the models of a cluster fit, computed where their configuration is: on the controller or on a node."""

from __future__ import annotations

import typing as t
from pathlib import Path

from ansible.plugins.action import ActionBase
from ansible.utils.display import Display
from ansible_collections.sparkfleet.vllm.plugins.module_utils import _serve_memory
from ansible_collections.sparkfleet.vllm.plugins.module_utils._admission import Node, admit, settled
from ansible_collections.sparkfleet.vllm.plugins.module_utils._model_config import ModelError, read_model
from ansible_collections.sparkfleet.vllm.plugins.module_utils._model_memory import Settings
from ansible_collections.sparkfleet.vllm.plugins.plugin_utils._answers import ask, first_line, registered

display = Display()


class ActionModule(ActionBase):
    """Judge each model once, on its leader; the other hosts read the result there."""

    TRANSFERS_FILES = False
    _supports_check_mode = True

    def run(self, tmp: None = None, task_vars: dict[str, t.Any] | None = None) -> dict[str, t.Any]:
        task_vars = task_vars or {}
        result = {**super().run(tmp, task_vars), "changed": False}
        _validation, arguments = self.validate_argument_spec(
            {
                "models": {"type": "list", "elements": "dict", "required": True},
                "directories": {"type": "dict", "default": {}},
                "known": {"type": "dict", "default": {}},
                "object_store_bytes": {"type": "int", "default": 0},
                "device": {"type": "str", "choices": ["cuda", "cpu"], "default": "cuda"},
            }
        )
        models = arguments["models"]
        found: dict[str, dict[str, t.Any]] = dict(arguments["known"])
        problems: list[str] = []
        for model in models:
            if model["name"] in found or model["memory_check"] == "off":
                continue
            try:
                settings = _serve_memory.settings(model, arguments["object_store_bytes"], arguments["device"])
            except ValueError as error:
                problems.append(f"{model['name']}: {error}")
                continue
            node = {"other": _serve_memory.others(model, found, models), **self._memory(model, task_vars)}
            report = self._judge(model, arguments["directories"].get(model["name"], ""), settings, node, task_vars)
            if report is None:
                continue
            if isinstance(report, str):
                # That a model is not there, or damaged, is for role model to say; one that is not known is no reason.
                if model["leader"] == task_vars["inventory_hostname"]:
                    display.warning(f"{model['name']}: its need of memory cannot be computed: {report}")
                continue
            found[model["name"]] = {
                "need_bytes": report["need_bytes_per_node"],
                "takes_bytes": report["takes_bytes_per_node"],
                "gpu_memory_utilization": report["gpu_memory_utilization"],
            }
            problem = _serve_memory.problem(model["name"], report)
            # Each model is judged on every host, as later ones depend on earlier ones, and reported by its leader.
            if problem and model["leader"] == task_vars["inventory_hostname"]:
                if model["memory_check"] == "enforce":
                    problems.append(problem)
                else:
                    display.warning(problem)
        return {**result, "problems": problems, "models": found}

    def _judge(
        self,
        model: dict[str, t.Any],
        directory: str,
        settings: dict[str, t.Any],
        node: dict[str, t.Any],
        task_vars: dict[str, t.Any],
    ) -> dict[str, t.Any] | str | None:
        """Return the verdict, why there can be none, or None where that has to wait until the model is on the nodes."""
        if directory or model["path"]:
            arguments = {"model": directory or model["path"], "settings": settings, "node": node}
            answer = ask(self._execute_module, "memory_plan", arguments, task_vars) or {}
            return answer.get("admission") or first_line(answer, "msg", "module_stderr")
        source = Path(model["source"]).expanduser()
        if not source.is_dir():
            source = Path(self._loader.path_dwim(model["source"]))
        if not source.is_dir():
            return None
        try:
            what, each = read_model(str(source)), Node(**node)
            exact = settled(what, Settings(**settings), each)
            return {
                **admit(what, exact, each).report(),
                "gpu_memory_utilization": exact.gpu_memory_utilization,
            }
        except (ModelError, OSError) as error:
            return str(error)

    def _memory(self, model: dict[str, t.Any], task_vars: dict[str, t.Any]) -> dict[str, int]:
        """Return the memory of the smallest of a model's nodes, where the preflight read it."""
        found = registered(task_vars, model["nodes"], "__host_preflight").values()
        sizes = [int(((one.get("facts") or {}).get("memory") or {}).get("total_bytes") or 0) for one in found]
        return {"memory": min(size for size in sizes if size)} if any(sizes) else {}
