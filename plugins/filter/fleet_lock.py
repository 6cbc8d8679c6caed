# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The filters of role lock: thin faces over module_utils."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from ansible.errors import AnsibleFilterError
from ansible_collections.sparkfleet.vllm.plugins.module_utils import _drift_gate, _fleet_lock
from ansible_collections.sparkfleet.vllm.plugins.module_utils._files import read_text
from ansible_collections.sparkfleet.vllm.plugins.module_utils._node_state import host_fields


def fleet_lock_models(models: Iterable[Mapping[str, Any]], node: str, paths: Mapping[str, str]) -> list[dict[str, Any]]:
    """See fleet_lock_models.yml."""
    return [{**model, "path": paths.get(model["name"], "")} for model in models if node in model["nodes"]]


def fleet_lock_hosts(
    cluster: Mapping[str, Any], read: Mapping[str, Mapping[str, Any]], policy: str | bool
) -> dict[str, Any]:
    """See fleet_lock_hosts.yml."""
    hosts = {node: host_fields(answer["facts"]) for node, answer in read.items() if answer.get("facts")}
    return _drift_gate.host_drift(cluster, hosts, policy)


def fleet_lock_problem(path: str) -> str:
    """See fleet_lock_problem.yml."""
    if not path:
        return ""
    directory = os.path.dirname(os.path.abspath(path))
    if not os.path.isdir(directory) or not os.access(directory, os.W_OK):
        return f"lock_file is {path}, and {directory} is no directory that can be written to; correct it"
    try:
        _nodes(path)
    except (OSError, ValueError) as error:
        return f"lock_file is {path}, which is no lock of a fleet ({error}); move it away, or set lock_file"
    return ""


def fleet_lock_merge(path: str, locks: Iterable[Mapping[str, Any]], known: Sequence[str]) -> str:
    """See fleet_lock_merge.yml."""
    try:
        return _fleet_lock.merge(_nodes(path), locks, known)
    except (OSError, ValueError) as error:
        raise AnsibleFilterError(f"{path} is no lock of a fleet ({error}); move it away, or set lock_file") from error


def _nodes(path: str) -> dict[str, Any]:
    text = read_text(path)
    return {} if text is None else _fleet_lock.parse_merged(text)


class FilterModule:
    """Registers the filters."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by name."""
        return {
            "fleet_lock_gate": _drift_gate.gate,
            "fleet_lock_hosts": fleet_lock_hosts,
            "fleet_lock_merge": fleet_lock_merge,
            "fleet_lock_models": fleet_lock_models,
            "fleet_lock_path": _fleet_lock.merged_path,
            "fleet_lock_problem": fleet_lock_problem,
        }
