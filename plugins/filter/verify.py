# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The filters of the verify playbook: thin faces over module_utils._verify."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ansible_collections.sparkfleet.vllm.plugins.module_utils import _verify


class FilterModule:
    """Registers the filters."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by name."""
        return {
            "verify_image_plan": _verify.plan_image,
            "verify_image_result": _verify.judge_image,
            "verify_kernels_plan": _verify.plan_kernels,
            "verify_kernels_result": _verify.judge_kernels,
            "verify_problems": _verify.problems,
            "verify_reports": _verify.reports,
            "verify_text": _verify.render,
        }
