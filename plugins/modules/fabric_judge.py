# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: fabric_judge
short_description: Judge what a cluster's nodes measured on their fabric
version_added: "0.2.0"
description:
  - Compares with the thresholds what every node of a cluster registered, and says for each link that does not carry
    the figure, the threshold and which known trouble that looks like.
  - Fails for nothing but wrong options. RV(passed) and RV(refusal) are for the tasks that follow, which first keep
    RV(record) on the nodes.
  - Runs on the controller and does not connect to the node.
author:
  - sparkfleet.vllm authors (@sparkfleet)
attributes:
  check_mode:
    description: Can run in check mode and return the same as outside of it.
    support: full
  diff_mode:
    description: Nothing is changed, so there is nothing to show.
    support: none
options:
  stage:
    description:
      - V(links) judges what M(sparkfleet.vllm.fabric_measure) found.
      - V(collective_due) says by RV(due) whether the collective has to be run again.
      - V(collective) judges what the ranks of the collective printed.
    type: str
    choices: [links, collective_due, collective]
    default: links
  cluster:
    description:
      - The cluster that the node is part of, with the keys C(name), C(head) and C(nodes), which
        M(sparkfleet.vllm.fleet) sets as the fact C(spark_cluster).
    type: dict
    required: true
  results:
    description:
      - Name of the variable in which every node registered its result, of M(sparkfleet.vllm.fabric_measure) for
        O(stage=links), and the command's that read the rank's output for O(stage=collective).
      - For O(stage=collective_due), the one that has RV(record) of the last time under the key C(collective).
      - Nodes that do not have it did not measure, which is a reason not to pass.
    type: str
    required: true
  listeners:
    description:
      - Name of the variable in which every node registered the result of M(sparkfleet.vllm.fabric_listen) with
        O(sparkfleet.vllm.fabric_listen#module:state=absent).
    type: str
    default: ""
  mode:
    description: What was measured.
    type: str
    choices: [bandwidth, ping]
    default: bandwidth
  min_gbps:
    description: What each rail must carry, in Gb/s.
    type: float
    default: 90
  min_busbw:
    description: Bus bandwidth in GB/s that the collective must reach. V(0) is NVIDIA's mark for O(topology).
    type: float
    default: 0
  topology:
    description: How the nodes are cabled, which decides NVIDIA's mark, 10 GB/s for a V(ring) and 21.875 otherwise.
    type: str
    default: ""
  fingerprint:
    description: What must not change for RV(record) to stay valid.
    type: str
    required: true
  image:
    description: The image that the collective runs in. The collective is due again with another one.
    type: str
    default: ""
  gpu:
    description: Whether the image is one for GPUs, so that the collective must run over NCCL.
    type: bool
    default: true
  warn:
    description:
      - Only warn of what would keep the gate shut. RV(refusal) is empty then, and a collective that did not pass is not
        due again.
    type: bool
    default: false
seealso:
  - module: sparkfleet.vllm.fabric_measure
"""

EXAMPLES = r"""
- name: Judge
  sparkfleet.vllm.fabric_judge:
    cluster: "{{ ansible_facts['spark_cluster'] }}"
    results: __fabric_measured
    listeners: __fabric_listened
    min_gbps: 90
    fingerprint: "{{ __fabric_preflight.gate_fingerprint }}"
  register: gate

- name: Refuse a fabric that does not carry
  ansible.builtin.fail:
    msg: "{{ gate.refusal }}"
  when: gate.refusal | length > 0
"""

RETURN = r"""
passed:
  description: Whether everything carries what it must.
  returned: unless O(stage=collective_due)
  type: bool
lines:
  description: Every reason why not, of all nodes of the cluster.
  returned: unless O(stage=collective_due)
  type: list
  elements: str
  sample:
    - >-
      spark-01: enp1s0f0np0 to spark-02's enp1s0f0np0: 13.2 Gb/s by ib_write_bw, below 90 (fabric_gate_min_gbps);
      a degraded card shows 13 Gb/s: shut both nodes down, take them off power for a minute, and start them
refusal:
  description:
    - The message to fail with. All lines on the first of the cluster's nodes in the play, on the others one line that
      points there. Empty if the gate is passed, and with O(warn).
  returned: unless O(stage=collective_due)
  type: str
record:
  description: What is to be kept on the node.
  returned: unless O(stage=collective_due)
  type: dict
  contains:
    version:
      description: Version of the record's form.
      type: int
      sample: 1
    fingerprint:
      description: O(fingerprint), for O(stage=links).
      type: str
    key:
      description: What must not change, for O(stage=collective).
      type: str
    passed:
      description: Same as RV(passed).
      type: bool
    mode:
      description: O(mode), for O(stage=links).
      type: str
    thresholds:
      description: What was demanded, C(min_gbps) or C(min_busbw).
      type: dict
    links:
      description: Every link with what was measured on it, for O(stage=links).
      type: list
      elements: dict
    ranks:
      description: What every rank found, for O(stage=collective).
      type: list
      elements: dict
    busbw:
      description: The slowest rank's bus bandwidth in GB/s, for O(stage=collective).
      type: float
    problems:
      description: Same as RV(lines).
      type: list
      elements: str
    date:
      description: When it was judged, in UTC.
      type: str
      sample: "2026-11-23T01:02:03Z"
due:
  description: Whether the collective is to be run.
  returned: when O(stage=collective_due)
  type: bool
"""
