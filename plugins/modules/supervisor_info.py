# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: supervisor_info
short_description: Read what the supervisors of our units say
version_added: "0.1.0"
description:
  - Reads the state files of the supervisors that are the main processes of C(spark-ray.service) and of the units
    C(spark-vllm@NAME.service), and the last lines that they wrote to the journal.
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
  directory:
    description: Where the state files are.
    type: path
    default: /run/sparkfleet/group
  events:
    description: How many lines of the journal to return at most. 0 leaves the journal alone.
    type: int
    default: 5
"""

EXAMPLES = r"""
- name: Read what our supervisors say
  sparkfleet.vllm.supervisor_info:
  register: supervisors
"""

RETURN = r"""
groups:
  description: What each supervisor wrote, by its container's name.
  returned: always
  type: dict
  contains:
    role:
      description: Whether this node leads the group, is one of its members, or is alone.
      type: str
      sample: leader
    state:
      description: What it does now, V(waiting), V(starting), V(running), V(stopping), V(stopped), V(backoff), or
        V(down) after it gave up.
      type: str
      sample: running
    why:
      description: The reason for that state.
      type: str
    waiting_for:
      description: The nodes that are not there yet.
      type: list
      elements: str
    failures:
      description: The failures that count, each with C(at) (seconds since 1970) and C(why).
      type: list
      elements: dict
    recovered:
      description: The last recoveries, each with C(at), C(seconds) and C(why).
      type: list
      elements: dict
events:
  description: The last lines that the supervisors wrote, the oldest first, with their time and this host's name.
  returned: always
  type: list
  elements: str
"""

import glob
import json
import os

from ansible.module_utils.basic import AnsibleModule


def read_groups(directory: str) -> dict[str, object]:
    """Return the content of every state file by the name of its group; a file that is not whole is left out."""
    groups: dict[str, object] = {}
    for path in sorted(glob.glob(os.path.join(glob.escape(directory), "*.json"))):
        try:
            with open(path, encoding="utf-8") as stream:
                state = json.load(stream)
        except (OSError, ValueError):
            continue
        if isinstance(state, dict):
            groups[os.path.basename(path)[: -len(".json")]] = state
    return groups


def _event(line: str) -> str:
    """Return time, host and what was said: who wrote it into the journal is always the same program."""
    head, _prefix, said = line.partition("sparkfleet: ")
    return " ".join([*head.split()[:2], said])


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "directory": {"type": "path", "default": "/run/sparkfleet/group"},
            "events": {"type": "int", "default": 5},
        },
        supports_check_mode=True,
    )
    count, lines = module.params["events"], []
    if count:
        journalctl = module.get_bin_path("journalctl", required=True)
        arguments = ["--unit", "spark-*", "--grep", "^sparkfleet: ", "--lines", str(count)]
        arguments += ["--output", "short-iso-precise"]
        # It ends with 1 where no line matches.
        _rc, out, _err = module.run_command([journalctl, *arguments, "--no-pager", "--quiet"])
        # With --grep, newer versions of journalctl begin with the last line.
        lines = sorted(_event(line) for line in out.splitlines() if "sparkfleet: " in line)
    module.exit_json(changed=False, groups=read_groups(module.params["directory"]), events=lines[-count:])


if __name__ == "__main__":
    main()
