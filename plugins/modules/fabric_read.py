# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: fabric_read
short_description: Read a node's fabric, and what the inventory says about it
version_added: "0.1.0"
author:
  - sparkfleet.vllm authors (@sparkfleet)
description:
  - Runs M(sparkfleet.vllm.roce_facts) on the node and keeps the options beside the facts, for
    M(sparkfleet.vllm.fabric_probe) and M(sparkfleet.vllm.fabric_settle), which look at all nodes together.
  - Problems are returned, not raised, so that those of all nodes can be shown together.
attributes:
  check_mode:
    description: Can run in check mode and return the same as outside of it.
    support: full
  diff_mode:
    description: Nothing is changed, so there is nothing to show.
    support: none
options:
  interface:
    description:
      - Interface to use in place of the one that is found.
    type: str
    default: ""
  hcas:
    description:
      - RDMA devices to use in place of those that are found.
    type: list
    elements: str
    default: []
  address:
    description:
      - One of the node's IPv4 addresses, to use in place of the one that is found.
    type: str
    default: ""
  nccl_debug:
    description:
      - NCCL's log level, one of V(VERSION), V(WARN), V(INFO), V(TRACE). Empty leaves it unset.
    type: str
    default: ""
  topology:
    description:
      - How the nodes are cabled, one of V(auto), V(single), V(pair), V(ring), V(switch).
    type: str
    default: auto
  extra_env:
    description:
      - Environment variables to add. They win over those that follow from the fabric.
    type: dict
    default: {}
  given:
    description:
      - A C(fabric_node) that the inventory gives. If not empty, it is only checked and nothing else is considered.
    type: dict
    default: {}
  configure:
    description:
      - What is done about addresses, one of V(keep), V(auto), V(none).
    type: str
    default: keep
  subnets:
    description:
      - Subnets to take addresses from in place of ours.
    type: list
    elements: str
    default: []
  gate:
    description:
      - What is proven before anything is served, one of V(auto), V(bandwidth), V(ping), V(warn), V(off).
    type: str
    default: auto
  min_gbps:
    description:
      - What each rail must carry, in Gb/s.
    type: float
    default: 90
seealso:
  - module: sparkfleet.vllm.roce_facts
  - module: sparkfleet.vllm.fabric_probe
  - module: sparkfleet.vllm.fabric_settle
"""

EXAMPLES = r"""
- name: Read the fabric of a node
  sparkfleet.vllm.fabric_read:
    configure: auto
  register: fabric_read
"""

RETURN = r"""
roce:
  description: The facts, as M(sparkfleet.vllm.roce_facts) returns them. V(none) if the node could not be read.
  returned: always
  type: dict
failure:
  description: Why a node that can be reached could not be read. V(none) if it could, or if it cannot be reached.
  returned: always
  type: str
options:
  description: The options of this task.
  returned: always
  type: dict
"""
