# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: unit_info
short_description: Read the state of a systemd unit that runs a container, and the inputs that it runs with
version_added: "0.1.0"
description:
  - Reads a unit's state, the digest of the inputs that its running container was started with (the container's label
    C(io.sparkfleet.inputs)), and checksums of files, in one call.
  - Compare RV(inputs) with the wanted digest to know whether the unit must be restarted, even when an earlier run was
    interrupted after it had written the files.
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
  name:
    description: The unit, with its suffix.
    type: str
    required: true
  files:
    description: Files to give the checksums of.
    type: list
    elements: path
    default: []
"""

EXAMPLES = r"""
- name: Read what runs
  sparkfleet.vllm.unit_info:
    name: spark-ray.service
    files: [/etc/sparkfleet/atlas/fabric.env]
  register: unit
"""

RETURN = r"""
exists:
  description: Whether systemd knows the unit.
  returned: always
  type: bool
active:
  description: Whether it is active now.
  returned: always
  type: bool
enabled:
  description: Whether it is enabled.
  returned: always
  type: bool
state:
  description: Active state and sub state.
  returned: always
  type: str
  sample: active (running)
result:
  description: systemd's result of the last run.
  returned: always
  type: str
  sample: success
restarts:
  description: Automatic restarts since the unit was started.
  returned: always
  type: int
inputs:
  description: Digest of the inputs that the running container was started with; empty when none runs.
  returned: always
  type: str
checksums:
  description: SHA-256 of each file, empty for one that is not there.
  returned: always
  type: dict
"""

import contextlib

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.sparkfleet.vllm.plugins.module_utils._units import parse_show, running_inputs, unit_state

PROPERTIES = "LoadState,ActiveState,SubState,UnitFileState,MainPID,NRestarts,Result"


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "required": True},
            "files": {"type": "list", "elements": "path", "default": []},
        },
        supports_check_mode=True,
    )
    name = module.params["name"]
    systemctl = module.get_bin_path("systemctl", required=True)
    rc, out, err = module.run_command([systemctl, "show", f"--property={PROPERTIES}", name])
    if rc:
        module.fail_json(msg=f"systemctl cannot show {name}: {err.strip()}")
    state = unit_state(parse_show(out))
    inputs = ""
    if state.active and state.main_pid:
        # The process may end between the two reads.
        with contextlib.suppress(OSError), open(f"/proc/{state.main_pid}/cmdline", "rb") as stream:
            inputs = running_inputs(stream.read())
    checksums = {path: module.sha256(path) or "" for path in module.params["files"]}
    module.exit_json(
        changed=False,
        exists=state.exists,
        active=state.active,
        enabled=state.enabled,
        state=state.state,
        result=state.result,
        restarts=state.restarts,
        inputs=inputs,
        checksums=checksums,
    )


if __name__ == "__main__":
    main()
