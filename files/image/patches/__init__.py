# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The patch catalogue: what a vLLM needs before it is built for GB10, and what it must never get.

``python -m patches status|apply|table`` reads a source tree, or an installed one, and decides from what stands in its
files, not from its version. ``catalogue.PATCHES`` has the entries; docs/patches.md shows them. Standard library only:
this runs in image builds.
"""
