# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: host_guard
short_description: Guard a node's memory with earlyoom, and keep its sshd from being killed
version_added: "0.1.0"
description:
  - Keeps C(/etc/default/earlyoom) with settings for a machine whose GPU takes its memory from the same place, and has
    the service enabled and running. It is restarted when the file changes.
  - Protects the listener of sshd from whatever kills processes for memory, the running one too. sshd is never
    restarted.
  - Remembers what was there before, and puts it back when it is not wanted any more.
author:
  - sparkfleet.vllm authors (@sparkfleet)
attributes:
  check_mode:
    description: Says what it would do and does nothing.
    support: full
  diff_mode:
    description: Shows the files.
    support: full
options:
  state:
    description: Whether the node is guarded, or as it was before.
    type: str
    choices: [present, absent]
    default: present
  earlyoom:
    description: Whether earlyoom is run. Without it the node gets back what it had of that.
    type: bool
    default: true
  free_gib:
    description: Available memory in GiB below which earlyoom ends the largest process, kindly; at half of it, at once.
    type: float
    default: 4
  installed:
    description: Whether earlyoom was installed just before. Then it is to be removed with O(state=absent).
    type: bool
    default: false
"""

EXAMPLES = r"""
- name: Guard memory and sshd
  sparkfleet.vllm.host_guard:
    free_gib: 4
"""

RETURN = r"""
purge:
  description: Whether the package earlyoom is to be removed, as it was installed for this and is not wanted any more.
  returned: always
  type: bool
"""

import contextlib
import json
import os

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.sparkfleet.vllm.plugins.module_utils import _guard
from ansible_collections.sparkfleet.vllm.plugins.module_utils._files import read_text, write_atomically

PROPERTIES = "Id,LoadState,ActiveState,UnitFileState,MainPID"


class Refusal(Exception):
    """What cannot be done; its text is one line."""


class Guard:
    """The guard of one node."""

    def __init__(self, module: AnsibleModule) -> None:
        self.module = module
        self.systemctl = module.get_bin_path("systemctl", required=True)

    def read(self) -> _guard.Present:
        """Return what the node has."""
        units = self.units()
        adjust = None
        pid = units.get(_guard.SSH, {}).get("MainPID", "0")
        if pid != "0":
            text = read_text(f"/proc/{pid}/oom_score_adj")
            adjust = int(text) if text else None
        return _guard.Present(
            units=units,
            files={path: read_text(path) for path in (_guard.EARLYOOM_FILE, _guard.SSH_FILE)},
            record=self.record(),
            version=self.version(),
            running=_arguments(units.get(_guard.EARLYOOM, {}).get("MainPID", "0")),
            adjust=adjust,
            may_adjust=_may_adjust(),
        )

    def units(self) -> dict[str, dict[str, str]]:
        """Return the properties of the units by name."""
        command = [self.systemctl, "show", f"--property={PROPERTIES}", _guard.SSH, _guard.EARLYOOM]
        rc, out, err = self.module.run_command(command)
        if rc:
            raise Refusal(f"systemctl cannot show the units of the guard: {err.strip()}")
        blocks = [dict(line.split("=", 1) for line in block.splitlines() if "=" in line) for block in out.split("\n\n")]
        return {block["Id"]: block for block in blocks if "Id" in block}

    def record(self) -> dict[str, object]:
        """Return what was noted of the node before us."""
        text = read_text(_guard.RECORD)
        try:
            found = json.loads(text or "{}")
            if not isinstance(found, dict):
                raise ValueError("no mapping")
        except ValueError as error:
            raise Refusal(
                f"{_guard.RECORD} cannot be understood ({error}); remove it, and what was before us is forgotten"
            ) from None
        return found

    def version(self) -> tuple[int, ...]:
        """Return the version of earlyoom, empty where it is not installed."""
        program = self.module.get_bin_path("earlyoom")
        if program is None:
            return ()
        _rc, out, err = self.module.run_command([program, "-v"])
        return _guard.parse_version(out + err)

    def apply(self, plan: _guard.Plan, record: object) -> None:
        """Do what is planned. What was before is noted first, and forgotten last."""
        if plan.record and plan.record != record:
            self.note(plan)
        for path, text in plan.files.items():
            if text is None:
                _remove(path)
            else:
                os.makedirs(os.path.dirname(path), exist_ok=True)
                write_atomically(path, text, 0o644)
        for command in plan.commands:
            rc, _out, err = self.module.run_command([self.systemctl, *command])
            if rc:
                said = (err.strip().splitlines() or [f"it ended with {rc}"])[0]
                raise Refusal(f"systemctl {' '.join(command)}: {said}; systemctl status {_guard.EARLYOOM} says more")
        if plan.adjust:
            pid = self.units()[_guard.SSH]["MainPID"]
            # A container may have the capability and yet not be let.
            with (
                contextlib.suppress(PermissionError),
                open(f"/proc/{pid}/oom_score_adj", "w", encoding="ascii") as stream,
            ):
                stream.write(str(_guard.SSH_ADJUST))
        if not plan.record:
            _remove(_guard.RECORD)

    def note(self, plan: _guard.Plan) -> None:
        """Keep what was before us."""
        os.makedirs(os.path.dirname(_guard.RECORD), mode=0o755, exist_ok=True)
        write_atomically(_guard.RECORD, f"{json.dumps(plan.record, indent=1, sort_keys=True)}\n", 0o600)


def _arguments(pid: str) -> tuple[str, ...]:
    """Return the arguments of a process, none for no process."""
    return tuple((read_text(f"/proc/{pid}/cmdline") or "").split("\0")[1:-1]) if pid != "0" else ()


def _remove(path: str) -> None:
    """Remove a file, and its directory where it was the last one of a unit's."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    if path == _guard.SSH_FILE:
        with contextlib.suppress(OSError):
            os.rmdir(os.path.dirname(path))


def _may_adjust() -> bool:
    """Whether this process has the capability to lower a score."""
    for line in (read_text("/proc/self/status") or "").splitlines():
        name, _colon, value = line.partition(":")
        if name == "CapEff":
            return bool(int(value, 16) >> _guard.CAP_SYS_RESOURCE & 1)
    return False


def main() -> None:
    """Bring the node to the wanted state."""
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "earlyoom": {"type": "bool", "default": True},
            "free_gib": {"type": "float", "default": 4},
            "installed": {"type": "bool", "default": False},
        },
        supports_check_mode=True,
    )
    wants = module.params["state"] == "present"
    wanted = _guard.Wanted(
        earlyoom=wants and module.params["earlyoom"],
        ssh=wants,
        free_gib=module.params["free_gib"],
        installed=module.params["installed"],
    )
    try:
        guard = Guard(module)
        present = guard.read()
        plan = _guard.plan(wanted, present)
        changed = bool(plan.files or plan.commands or plan.adjust or plan.purge or plan.record != present.record)
        if changed and not module.check_mode:
            guard.apply(plan, present.record)
    except Refusal as refusal:
        module.fail_json(msg=str(refusal))
    except OSError as error:
        module.fail_json(
            msg=f"the guard of the memory cannot be kept: {error}; see whether the node's disk is in order"
        )
    diff = [
        {"before_header": path, "after_header": path, "before": present.files[path] or "", "after": text or ""}
        for path, text in plan.files.items()
    ]
    module.exit_json(changed=changed, purge=plan.purge, diff=diff)


if __name__ == "__main__":
    main()
