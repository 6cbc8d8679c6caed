# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: verdict
short_description: Fail once, with every reason of all hosts, before anything is changed
version_added: "0.1.0"
description:
  - Collects C(problems) from every variable C(__<role>_preflight) that the hosts of the play registered, and adds what
    only shows between hosts, namely clocks that differ and one machine listed twice.
  - Fails with all of them sorted, one C(host; what; what to do) line each.
  - This is an action plugin. Nothing runs on the hosts. Use it with C(run_once) and C(any_errors_fatal).
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
  max_clock_skew_s:
    description:
      - How many seconds the clocks of two hosts may differ. Left out, it is the role variable C(host_max_clock_skew_s).
      - Only a difference that is certain counts. How exactly a clock is known depends on how long its reading took.
    type: float
seealso:
  - module: sparkfleet.vllm.host_facts
"""

EXAMPLES = r"""
- name: Change nothing unless every host is fit
  sparkfleet.vllm.verdict:
  run_once: true
"""

RETURN = r"""
msg:
  description: All reasons, one line each.
  returned: when there is one
  type: str
  sample: |-
    spark-01: rsync is missing; apt-get install rsync
    spark-02: Docker is not running; systemctl enable --now docker
"""
