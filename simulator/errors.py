# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The one exception that the simulator raises for whatever a user can do something about."""

from __future__ import annotations


class SimulatorError(Exception):
    """What is wrong and what to do, in one line."""
