# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The filters of the fabric playbook: thin faces over module_utils._drawing and module_utils._drawing_svg."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ansible_collections.sparkfleet.vllm.plugins.module_utils import _drawing, _drawing_svg


class FilterModule:
    """Registers the filters."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by name."""
        return {
            "fabric_drawing": _drawing.draw,
            "fabric_drawing_text": _drawing.render,
            "fabric_drawing_svg": _drawing_svg.svg,
            "fabric_drawing_page": _drawing_svg.page,
        }
