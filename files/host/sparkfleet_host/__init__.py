# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Supervisor of one container that only makes sense together with containers on other nodes.

A group is a Ray head and its workers, or the ranks of one model. One node leads it: it lets all containers start at
once, and when one of them ends it stops all and starts them again, a limited number of times. See ``group`` for the
rules, ``protocol`` for what the nodes say to each other, ``agent`` for what each node does with its own container.
"""
