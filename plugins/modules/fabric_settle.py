# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: fabric_settle
short_description: Find the topology and each node's part in the fabric
version_added: "0.1.0"
author:
  - sparkfleet.vllm authors (@sparkfleet)
description:
  - From what M(sparkfleet.vllm.fabric_read) and M(sparkfleet.vllm.fabric_probe) found on all nodes of the run, finds
    out who is cabled to whom, tells the topology, says which addresses are right, chooses the subnet that a cluster's
    nodes meet in, and returns the node's own address, interface, RDMA devices and environment, and the links that have
    to carry before anything is served.
  - Wrong cables, wrong addresses, different MTUs and addresses that two nodes have are problems.
  - Runs on the controller and does not connect to the node.
attributes:
  check_mode:
    description: Can run in check mode and return the same as outside of it.
    support: full
  diff_mode:
    description: Nothing is changed, so there is nothing to show.
    support: none
options:
  read:
    description:
      - Name of the variable in which every node has registered its result of M(sparkfleet.vllm.fabric_read).
        Nodes that do not have it are not compared with.
    type: str
    required: true
  probe:
    description:
      - Name of the variable in which every node has registered its result of M(sparkfleet.vllm.fabric_probe).
        Where it is missing, nothing is known of the node's cables.
    type: str
    required: true
seealso:
  - module: sparkfleet.vllm.fabric_read
  - module: sparkfleet.vllm.fabric_probe
"""

EXAMPLES = r"""
- name: Settle the fabric
  sparkfleet.vllm.fabric_settle:
    read: fabric_read
    probe: fabric_probe
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
wires:
  description: The cables, or the switch, that join the cluster's nodes.
  returned: always
  type: list
  elements: dict
  contains:
    ends:
      description: Its ends. Two are a cable, more are a switch.
      type: list
      elements: dict
      sample: [{host: spark-01, port: p0, interfaces: [enp1s0f0np0, enP2p1s0f0np0]}]
settings:
  description: The address and MTU that each of the node's ports should have. Empty if that is not known.
  returned: always
  type: list
  elements: dict
  contains:
    interface:
      description: The interface.
      type: str
      sample: enp1s0f0np0
    address:
      description: The address with its prefix length.
      type: str
      sample: 192.168.177.11/24
    mtu:
      description: The MTU in bytes.
      type: int
      sample: 9000
    wire:
      description: Number of the cable among those of the whole run.
      type: int
      sample: 0
    rail:
      description: V(0) for the first of the twins, V(1) for the second.
      type: int
      sample: 0
    kept:
      description: Whether the interface has both already.
      type: bool
      sample: true
    reason:
      description: What is wrong if not, V(address) or V(mtu).
      type: str
      sample: address
    current:
      description: The IPv4 addresses that the interface has.
      type: list
      elements: str
      sample: []
    current_mtu:
      description: The MTU that it has.
      type: int
      sample: 1500
netplan:
  description: What our netplan file should hold. Empty if none is needed.
  returned: always
  type: str
configure_due:
  description: Whether addresses are to be set.
  returned: always
  type: bool
links:
  description: What the node has to reach, and over which of its interfaces.
  returned: always
  type: list
  elements: dict
gate_mode:
  description: What is to be proven, V(bandwidth), V(ping) or V(off).
  returned: always
  type: str
  sample: bandwidth
gate_fingerprint:
  description: What changes when the gate has to be passed again.
  returned: always
  type: str
gate_due:
  description: Whether it has to be passed now.
  returned: always
  type: bool
gate:
  description: The record of the last time. V(none) if there is none.
  returned: always
  type: dict
collective:
  description: The record of the last all_gather. V(none) if there is none.
  returned: always
  type: dict
refusal:
  description: The problems as lines that begin with the host. Empty if RV(node) is not.
  returned: always
  type: str
roce:
  description: The facts, as M(sparkfleet.vllm.roce_facts) returns them. Empty if the node could not be read.
  returned: always
  type: dict
"""
