# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
name: ray_join_failure
short_description: Say in one line why nodes have not joined a Ray cluster
version_added: "0.1.0"
author: sparkfleet.vllm authors (@sparkfleet)
description:
  - Takes what is wrong with each node and the last lines of its journal, and names the likely reason.
positional: hosts, journals
options:
  _input:
    description: What is wrong, by address, as M(sparkfleet.vllm.ray_nodes) returns it in C(missing).
    type: dict
    required: true
  hosts:
    description: Address of each host, by the host's name.
    type: dict
    required: true
  journals:
    description:
      - Results of a loop over hosts whose C(stdout) has the last lines of spark-ray.service's journal.
    type: list
    elements: dict
    required: true
"""

EXAMPLES = r"""
- name: Explain
  ansible.builtin.fail:
    msg: "{{ ray.missing | sparkfleet.vllm.ray_join_failure({'spark-02': '192.168.177.12'}, journals.results) }}"
"""

RETURN = r"""
_value:
  description: The message.
  type: str
"""

from collections.abc import Callable
from typing import Any

from ansible_collections.sparkfleet.vllm.plugins.module_utils._ray import join_failure


class FilterModule:
    """The filter's face."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"ray_join_failure": join_failure}
