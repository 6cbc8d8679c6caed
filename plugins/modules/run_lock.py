# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: run_lock
short_description: Let only one run at a time change a node
version_added: "0.1.0"
description:
  - Puts a lock file on the node that names the ansible-playbook process, its user and its controller. Another run
    that meets it fails with one line.
  - The lock of a process that is gone is taken over. That can be told only on the controller where it ran; from
    another one, remove it with O(force=true).
  - An action plugin of the same name runs on the controller and adds O(holder). The file is in C(/run), so a reboot of
    the node ends the lock as well.
  - The lock is no part of what is configured. It is never reported as a change.
author:
  - sparkfleet.vllm authors (@sparkfleet)
attributes:
  check_mode:
    description:
      - Takes and removes nothing, but fails as well where another run is going on, as what a check would find on a
        node that is being changed means nothing.
    support: full
  diff_mode:
    description: The lock is no part of what is configured.
    support: none
options:
  state:
    description: Whether this run has the lock.
    type: str
    choices: [acquired, released]
    default: acquired
  force:
    description: Take the lock whoever holds it.
    type: bool
    default: false
  path:
    description: The lock file.
    type: path
    default: /run/sparkfleet/run.lock
  holder:
    description: This run as JSON; the action plugin sets it.
    type: str
  replace:
    description: Content of a lock that the action plugin knows to be dead.
    type: str
"""

EXAMPLES = r"""
- name: Take the lock
  sparkfleet.vllm.run_lock:

- name: Give it back
  sparkfleet.vllm.run_lock:
    state: released
"""

RETURN = r"""
held:
  description: Whether this run holds the lock now, or in check mode would.
  returned: always
  type: bool
other:
  description: Content of the lock file of the run that holds it instead.
  returned: when another run holds it
  type: str
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.sparkfleet.vllm.plugins.module_utils import _lock


def main() -> None:
    """Take or give back the lock file; who may be overruled is decided on the controller."""
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["acquired", "released"], "default": "acquired"},
            "force": {"type": "bool", "default": False},
            "path": {"type": "path", "default": "/run/sparkfleet/run.lock"},
            "holder": {"type": "str"},
            "replace": {"type": "str"},
        },
        supports_check_mode=True,
    )
    wanted = module.params
    run = _lock.Holder.from_json(wanted["holder"] or "")
    if run is None:
        module.fail_json(msg="holder is missing or malformed; the action plugin sets it")
    try:
        if wanted["state"] == "released":
            _lock.release(wanted["path"], run, look_only=module.check_mode)
            module.exit_json(changed=False, held=False)
        outcome = _lock.acquire(
            wanted["path"], run, replace=wanted["replace"], force=wanted["force"], look_only=module.check_mode
        )
    except OSError as error:
        module.fail_json(msg=f"cannot use the lock {wanted['path']} ({error.strerror}); become root on the node")
    extra = {} if outcome.other is None else {"other": outcome.other}
    module.exit_json(changed=False, held=outcome.held, **extra)


if __name__ == "__main__":
    main()
