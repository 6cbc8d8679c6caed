# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: unit_instances
short_description: Let no other instances of a systemd template unit run
version_added: "0.1.0"
description:
  - Stops and disables every instance of a template unit except the ones to keep.
  - A model that was renamed or a node that ceased to be a head leaves nothing running that way.
author:
  - sparkfleet.vllm authors (@sparkfleet)
attributes:
  check_mode:
    support: full
    description: Changes nothing and says what would change.
  diff_mode:
    support: full
    description: Shows the instances before and after.
options:
  template:
    description: The template unit's name up to and with its C(@).
    type: str
    required: true
  keep:
    description: Names of the instances that stay.
    type: list
    elements: str
    default: []
  remove:
    description: Remove the unit files of the others as well, where they have files of their own below O(directory).
    type: bool
    default: false
  directory:
    description: Where unit files are.
    type: path
    default: /etc/systemd/system
"""

EXAMPLES = r"""
- name: Serve this model and no other
  sparkfleet.vllm.unit_instances:
    template: spark-vllm@
    keep: [qwen3]
"""

RETURN = r"""
removed:
  description: The units that were stopped and disabled.
  returned: always
  type: list
  elements: str
  sample: [spark-vllm@old.service]
"""

import glob
import os

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.sparkfleet.vllm.plugins.module_utils._units import stale_instances

LISTINGS = (
    ("list-units", "--all", "--plain", "--no-legend", "--no-pager"),
    ("list-unit-files", "--state=enabled", "--no-legend", "--no-pager"),
)


def unit_files(directory: str, template: str, keep: list[str]) -> list[str]:
    """Return the files of the instances that are not to be kept, sorted."""
    kept = {f"{template}{name}.service" for name in keep}
    found = glob.glob(os.path.join(glob.escape(directory), f"{glob.escape(template)}?*.service"))
    return sorted(path for path in found if os.path.basename(path) not in kept)


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "template": {"type": "str", "required": True},
            "keep": {"type": "list", "elements": "str", "default": []},
            "remove": {"type": "bool", "default": False},
            "directory": {"type": "path", "default": "/etc/systemd/system"},
        },
        supports_check_mode=True,
    )
    template, keep = module.params["template"], module.params["keep"]
    systemctl = module.get_bin_path("systemctl", required=True)
    listings = []
    for arguments in LISTINGS:
        # list-unit-files ends with 1 when nothing matches.
        rc, out, err = module.run_command([systemctl, *arguments, f"{template}*.service"])
        if rc and err.strip():
            module.fail_json(msg=f"systemctl {arguments[0]} failed: {err.strip()}")
        listings.append(out)
    stale = stale_instances(template, keep, listings)
    files = unit_files(module.params["directory"], template, keep) if module.params["remove"] else []
    if stale and not module.check_mode:
        for arguments in (["disable", "--now"], ["reset-failed"]):
            rc, _out, err = module.run_command([systemctl, *arguments, *stale])
            # A unit that is not loaded any more cannot be reset, and need not be.
            if rc and arguments[0] == "disable":
                module.fail_json(msg=f"{', '.join(stale)} cannot be stopped: {err.strip()}; see systemctl status there")
    if files and not module.check_mode:
        for path in files:
            os.remove(path)
        module.run_command([systemctl, "daemon-reload"])
    removed = sorted({*stale, *(os.path.basename(path) for path in files)})
    kept = [f"{template}{name}.service" for name in keep]
    diff = {"before": "".join(f"{unit}\n" for unit in kept + removed), "after": "".join(f"{unit}\n" for unit in kept)}
    module.exit_json(changed=bool(removed), removed=removed, diff=diff)


if __name__ == "__main__":
    main()
