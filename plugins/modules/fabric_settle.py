# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: fabric_settle
short_description: Choose the fabric that all nodes of a cluster share
version_added: "0.1.0"
author:
  - sparkfleet.vllm authors (@sparkfleet)
description:
  - Compares what M(sparkfleet.vllm.fabric_plan) found on the nodes of a cluster, chooses the subnet that they share,
    and returns the node's own address, interface, RDMA devices and environment.
  - Addresses outside of the head's subnet, different MTUs and addresses that two nodes have are problems.
  - Runs on the controller and does not connect to the node.
attributes:
  check_mode:
    description: Can run in check mode and return the same as outside of it.
    support: full
  diff_mode:
    description: Nothing is changed, so there is nothing to show.
    support: none
options:
  cluster:
    description:
      - The cluster that the node is part of, with the keys C(name), C(head) and C(nodes), which
        M(sparkfleet.vllm.fleet) sets as the fact C(spark_cluster).
    type: dict
    required: true
  plan:
    description:
      - Name of the variable in which every node has registered its result of M(sparkfleet.vllm.fabric_plan).
        Nodes that do not have it are not compared with.
    type: str
    required: true
seealso:
  - module: sparkfleet.vllm.fabric_plan
"""

EXAMPLES = r"""
- name: Settle the fabric
  sparkfleet.vllm.fabric_settle:
    cluster: "{{ ansible_facts['spark_cluster'] }}"
    plan: fabric_plan
  register: fabric
"""

RETURN = r"""
problems:
  description: Reasons why the node cannot be used, each in the form "what; what to do".
  returned: always
  type: list
  elements: str
  sample:
    - no ConnectX port has carrier; plug a QSFP cable or set fabric_interface
notes:
  description: What works, but not at full speed. Also shown as warnings.
  returned: always
  type: list
  elements: str
topology:
  description: How the nodes are cabled. V(none) if the node could not be read.
  returned: always
  type: str
  sample: pair
rails:
  description: Interfaces that the nodes could meet on, best first.
  returned: always
  type: list
  elements: dict
  contains:
    interface:
      description: The interface.
      type: str
      sample: enp1s0f0np0
    address:
      description: Its address with the prefix length.
      type: str
      sample: 192.168.177.11/24
    mtu:
      description: Its MTU in bytes.
      type: int
      sample: 9000
node:
  description: The node's part in the fabric. Empty if there are problems, or if the node could not be read.
  returned: always
  type: dict
  contains:
    address:
      description: The node's address on the fabric.
      type: str
      sample: 192.168.177.11
    interface:
      description: The interface that has the address.
      type: str
      sample: enp1s0f0np0
    interfaces:
      description: All interfaces that data may use.
      type: list
      elements: str
      sample: [enp1s0f0np0, enP2p1s0f0np0]
    hcas:
      description: The RDMA devices that data may use.
      type: list
      elements: str
      sample: [rocep1s0f0, roceP2p1s0f0]
    devices:
      description: The character devices that a container needs for that.
      type: list
      elements: str
      sample: [/dev/infiniband/rdma_cm, /dev/infiniband/uverbs0]
    nccl_env:
      description: The environment of every container of the node.
      type: dict
      sample: {NCCL_SOCKET_IFNAME: enp1s0f0np0}
refusal:
  description: The problems as lines that begin with the host. Empty if RV(node) is not.
  returned: always
  type: str
roce:
  description: The facts, as M(sparkfleet.vllm.roce_facts) returns them. Empty if the node could not be read.
  returned: always
  type: dict
"""
