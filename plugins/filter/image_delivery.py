# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import typing as t
from collections.abc import Callable, Mapping
from dataclasses import asdict

from ansible_collections.sparkfleet.vllm.plugins.module_utils._delivery import plan


def image_delivery(states: Mapping[str, Mapping[str, t.Any]], delivery: str) -> dict[str, t.Any]:
    """See image_delivery.yml."""
    return asdict(plan(states, delivery))


class FilterModule:
    """See image_delivery.yml."""

    def filters(self) -> dict[str, Callable[..., object]]:
        """Return the filter by its name."""
        return {"image_delivery": image_delivery}
