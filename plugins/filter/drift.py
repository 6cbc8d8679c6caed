# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The filters of the drift playbook: thin faces over module_utils._drift_report."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ansible.errors import AnsibleFilterError
from ansible_collections.sparkfleet.vllm.plugins.module_utils import _drift_report


def drift_hosts(given: Mapping[str, Any]) -> str:
    """See drift_hosts.yml."""
    problem = _drift_report.input_problem(given)
    if problem:
        raise AnsibleFilterError(problem)
    return "localhost"


class FilterModule:
    """Registers the filters."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by name."""
        return {
            "drift_hosts": drift_hosts,
            "drift_report": _drift_report.report,
            "drift_text": _drift_report.render,
        }
