# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""vLLM platform plugin of the CPU image: the CPU platform, schedulable by the Ray executor.

vLLM's own CPU platform names no Ray resource, so its Ray executor refuses it. This one claims Ray's *logical* GPU
(``ray start --num-gpus 1``), one per node, as a DGX Spark has; it computes on the CPU all the same.
"""

from __future__ import annotations


def register() -> str:
    """Return the platform class's qualified name, as the entry point group ``vllm.platform_plugins`` asks."""
    return "sparkfleet_ray_cpu.platform.RayCpuPlatform"
