# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The command line of a model's server, made on the controller by what makes it on a node.

The environment comes from the variables of role serve, the command from the image's entrypoint.

Note that this plugin util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import importlib.util
import shlex
import typing as t
from pathlib import Path

from ansible_collections.sparkfleet.vllm.plugins.module_utils._model import model_name
from ansible_collections.sparkfleet.vllm.plugins.plugin_utils._variables import RoleVariables

ENTRYPOINT: t.Final = Path(__file__).parents[2] / "files" / "image" / "entrypoint.py"


def commands(
    roles: RoleVariables, values: t.Mapping[str, t.Any], model: t.Mapping[str, t.Any], source: Path
) -> list[dict[str, str]]:
    """Return the command of each node that runs a server or a rank of a model, as `node` and `command`.

    `values` are the evaluated variables of the head, `model` is an element of `spark_cluster.models`, `source` the
    model on this machine. An inventory name stands for the fabric address, which only the node itself knows. Raises
    ValueError for settings that the entrypoint refuses.
    """
    entrypoint = _entrypoint()
    lines: list[dict[str, str]] = []
    for node in model["nodes"] if model["executor"] == "mp" else [model["leader"]]:
        env = {name: str(value) for name, value in environment(roles, values, model, node).items()}
        try:
            line = entrypoint.command("serve", env, (), lambda _path: _has_experts(entrypoint, source))
        except entrypoint.EntrypointError as error:
            raise ValueError(str(error)) from error
        lines.append({"node": node, "command": shlex.join(line)})
    return lines


def environment(
    roles: RoleVariables, values: t.Mapping[str, t.Any], model: t.Mapping[str, t.Any], node: str
) -> dict[str, t.Any]:
    """Return the environment of a model's container on a node, as role serve writes it."""
    path = model["path"] or f"{str(values.get('model_root') or '').rstrip('/')}/{model_name(model['source'])}"
    return roles.derived(
        "_serve_env",
        {
            **values,
            "inventory_hostname": node,
            "serve_item": model,
            "hostvars": {name: {"fabric_node": {"address": name}} for name in model["nodes"]},
            "fabric_node": {"address": node},
            "model_paths": {model["name"]: path},
            "ray_address": f"{model['leader']}:{values.get('ray_port')}",
        },
    ) | dict(model["extra_env"])


def _entrypoint() -> t.Any:
    spec = importlib.util.spec_from_file_location("sparkfleet_entrypoint", ENTRYPOINT)
    if spec is None or spec.loader is None:
        raise ValueError(f"{ENTRYPOINT} cannot be read")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _has_experts(entrypoint: t.Any, source: Path) -> bool:
    """Tell whether a model has experts; one that is not on this machine is taken for one that has."""
    try:
        return bool(entrypoint.experts(str(source)))
    except entrypoint.EntrypointError:
        return True
