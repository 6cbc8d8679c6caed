# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: fabric_plan
short_description: Read a node's fabric and list what the node could use of it
version_added: "0.1.0"
author:
  - sparkfleet.vllm authors (@sparkfleet)
description:
  - Runs M(sparkfleet.vllm.roce_facts) on the node, and on the controller decides which interfaces, address and RDMA
    devices the node can use. M(sparkfleet.vllm.fabric_settle) then chooses among them for the whole cluster.
  - Problems are returned, not raised, so that those of all nodes can be shown together.
attributes:
  check_mode:
    description: Can run in check mode and return the same as outside of it.
    support: full
  diff_mode:
    description: Nothing is changed, so there is nothing to show.
    support: none
options:
  nodes:
    description:
      - Number of nodes in the cluster. A cluster of one needs no fabric, and uses the interface of the default route.
    type: int
    required: true
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
seealso:
  - module: sparkfleet.vllm.roce_facts
  - module: sparkfleet.vllm.fabric_settle
"""

EXAMPLES = r"""
- name: Read and plan the fabric of one node in a pair
  sparkfleet.vllm.fabric_plan:
    nodes: 2
  register: fabric_plan
"""

RETURN = r"""
plan:
  description: What the node could use. V(none) if the node could not be read.
  returned: always
  type: dict
  contains:
    problems:
      description: Reasons why the node cannot be used, each in the form "what; what to do".
      type: list
      elements: str
    warnings:
      description: What works, but not at full speed.
      type: list
      elements: str
    topology:
      description: How the nodes are cabled.
      type: str
      sample: pair
    rails:
      description: Interfaces that the nodes could meet on, best first.
      type: list
      elements: dict
roce:
  description: The facts, as M(sparkfleet.vllm.roce_facts) returns them. V(none) if the node could not be read.
  returned: always
  type: dict
failure:
  description: Why a node that can be reached could not be read. V(none) if it could, or if it cannot be reached.
  returned: always
  type: str
"""
