# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: serve_admission
short_description: Judge whether the models of a cluster fit into the memory of their nodes
version_added: "0.1.0"
description:
  - Computes for each model what its nodes need, see M(sparkfleet.vllm.memory_plan), from the source on the controller
    or from the directory on the node, and compares it with the memory of the smallest of its nodes.
  - Models that share a node are added up, in the order of the list.
  - This is an action plugin, and never fails; M(sparkfleet.vllm.verdict) does.
author:
  - sparkfleet.vllm authors (@sparkfleet)
attributes:
  check_mode:
    support: full
    description: Changes nothing.
  diff_mode:
    support: N/A
    description: Changes nothing.
options:
  models:
    description: The models of the cluster, as the fact C(spark_cluster) has them.
    type: list
    elements: dict
    required: true
  directories:
    description: By model, the directory on the node to read. Otherwise the model's source on the controller is read.
    type: dict
    default: {}
  known:
    description: What an earlier call returned as RV(models). It is not computed again.
    type: dict
    default: {}
  object_store_bytes:
    description: Size of Ray's object store on each node, in bytes.
    type: int
    default: 0
  device:
    description: What the image computes on.
    type: str
    choices: [cuda, cpu]
    default: cuda
seealso:
  - module: sparkfleet.vllm.memory_plan
  - module: sparkfleet.vllm.verdict
"""

EXAMPLES = r"""
- name: Judge whether the models fit
  sparkfleet.vllm.serve_admission:
    models: "{{ ansible_facts['spark_cluster'].models }}"
  register: __serve_preflight
"""

RETURN = r"""
problems:
  description: Why models do not fit that this host leads, with the sums and the nearest settings that do.
  returned: always
  type: list
  elements: str
models:
  description: What is known of each model. One that is in an archive is left out until it is on the nodes.
  returned: always
  type: dict
  contains:
    need_bytes:
      description: What has to be free on each of its nodes before it starts.
      type: int
    takes_bytes:
      description: What it takes of a node.
      type: int
    gpu_memory_utilization:
      description: The share of the memory that was asked for, or the most that leaves the node room.
      type: float
"""
