# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: fleet
short_description: Tell each host its cluster, and refuse an inventory that makes no sense
version_added: "0.1.0"
description:
  - Child groups of the inventory group C(sparks) are clusters, with all groups nested below them; the first host of a
    cluster is its head. Hosts directly under C(sparks), where it has no child groups, are one cluster named C(sparks).
  - Checks groups, C(--limit) and all variables of the roles before any host is contacted, and fails with every reason
    at once, one C(who; what; what to do) line each. The first host of the play speaks for all, so let the play be
    C(any_errors_fatal).
  - In a play on C(localhost) it checks the whole inventory and sets nothing.
  - This is an action plugin. Nothing runs on the hosts.
author:
  - sparkfleet.vllm authors (@sparkfleet)
attributes:
  check_mode:
    description: Runs the same in check mode.
    support: full
  diff_mode:
    description: Nothing is changed, so there is no difference to show.
    support: none
options:
  variables:
    description:
      - Whether to check the variables of the roles too. Turn it off in playbooks that only need to know who is in which
        cluster, such as one that removes everything.
    type: bool
    default: true
  require_hosts:
    description:
      - Only check that there is a host in C(sparks) at all, and return nothing. For a first play on C(localhost), as
        Ansible skips a play on an empty group without a word.
    type: bool
    default: false
seealso:
  - module: sparkfleet.vllm.verdict
"""

EXAMPLES = r"""
- name: Is there a fleet?
  hosts: localhost
  gather_facts: false
  tags: [always]
  tasks:
    - name: Refuse an inventory without Sparks
      sparkfleet.vllm.fleet:
        require_hosts: true

- name: Tell each host its cluster
  hosts: sparks
  gather_facts: false
  any_errors_fatal: true
  tags: [always]
  tasks:
    - name: Find the clusters
      sparkfleet.vllm.fleet:
"""

RETURN = r"""
ansible_facts:
  description: What the host is part of.
  returned: on hosts of the group C(sparks)
  type: dict
  contains:
    spark_cluster:
      description: The host's cluster.
      type: dict
      contains:
        name:
          description: Name of the inventory group.
          type: str
          sample: atlas
        head:
          description: Inventory name of the head.
          type: str
          sample: spark-01
        nodes:
          description: Inventory names of all nodes, the head first.
          type: list
          elements: str
          sample: [spark-01, spark-02]
"""
