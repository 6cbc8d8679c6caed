# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: firewall
short_description: Keep a node's firewall, with a way back
version_added: "0.1.0"
description:
  - Keeps the table C(inet sparkfleet) of nftables and the unit that loads it at boot. Other tables are not touched.
  - An action plugin of the same name makes the rules on the controller, from the table of ports (C(docs/ports.md)),
    from the ports of the node's sshd, and from the fabric of its cluster.
  - New rules are loaded, and a timer is armed that puts the old ones back. Only when the controller has come in again
    over a new connection, they are kept.
author:
  - sparkfleet.vllm authors (@sparkfleet)
attributes:
  check_mode:
    description: Says what it would do and does nothing.
    support: full
  diff_mode:
    description: Shows the rules.
    support: full
options:
  state:
    description: Whether there is a firewall.
    type: str
    choices: [present, absent]
    default: present
  api_ports:
    description: TCP ports of the API that are open to everyone, in place of those of the models that the node leads.
    type: list
    elements: int
    default: []
  allow:
    description: What the owner wants open besides, like V(3000/tcp), V(60000-61000/udp), V(9100/tcp from 10.0.0.0/24).
    type: list
    elements: str
    default: []
  confirm_timeout:
    description: Seconds after which the node puts the old rules back by itself.
    type: int
    default: 60
  content:
    description: The rules. The action plugin gives them.
    type: str
    default: ""
  step:
    description: What the action plugin wants of the node.
    type: str
    choices: [check, stage, confirm]
    default: check
"""

EXAMPLES = r"""
- name: Keep the firewall
  sparkfleet.vllm.firewall:
    allow:
      - 3000/tcp
      - 9100/tcp from 10.0.0.0/24

- name: Remove it
  sparkfleet.vllm.firewall:
    state: absent
"""

RETURN = r"""
kept:
  description: Whether the rules are kept. V(false) if the old ones were back already.
  returned: when O(step=confirm)
  type: bool
"""

import contextlib
import os

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.sparkfleet.vllm.plugins.module_utils import _firewall
from ansible_collections.sparkfleet.vllm.plugins.module_utils._files import read_text, write_atomically

UNIT_FILE = f"/etc/systemd/system/{_firewall.UNIT}"
STATE = "/run/sparkfleet/firewall"
WANTED = f"{STATE}/wanted.nft"
BEFORE = f"{STATE}/before.nft"
REVERT = "sparkfleet-firewall-revert"


class Refusal(Exception):
    """What cannot be done; its text is one line."""


class Firewall:
    """The firewall of one node."""

    def __init__(self, module: AnsibleModule) -> None:
        self.module = module
        self.content: str = module.params["content"]
        self.nft = module.get_bin_path("nft") or ""
        self.systemctl = module.get_bin_path("systemctl", required=True)
        if self.content and not self.nft:
            raise Refusal("nft is missing; apt-get install nftables, or set host_firewall: false")

    def check(self) -> dict[str, object]:
        """Compare what is there with what is wanted."""
        before = read_text(_firewall.FILE)
        unit = read_text(UNIT_FILE)
        if self.content:
            changed = (
                before != self.content
                or unit != _firewall.UNIT_TEXT
                or not self.is_enabled()
                or not _firewall.is_loaded(self.listing(), self.content)
            )
        else:
            changed = before is not None or unit is not None or bool(self.listing())
        header = _firewall.FILE
        diff = {"before": before or "", "after": self.content, "before_header": header, "after_header": header}
        # Where only what is loaded differs, the file says nothing.
        return {"changed": changed, "diff": [diff] if (before or "") != self.content else []}

    def stage(self) -> dict[str, object]:
        """Load the rules, after the way back is armed."""
        os.makedirs(STATE, mode=0o700, exist_ok=True)
        write_atomically(WANTED, self.content, 0o600)
        rc, _out, err = self.module.run_command([self.nft, "--check", "--file", WANTED])
        if rc:
            said = next((line for line in err.splitlines() if line.strip()), f"it ended with {rc}")
            raise Refusal(f"nft refuses the rules, so nothing was changed: {said.replace(f'{WANTED}:', 'line ')}")
        # What was kept last, and not what a run that was cut off has loaded.
        write_atomically(BEFORE, read_text(_firewall.FILE) or _firewall.NOTHING, 0o600)
        self.disarm()
        timer = [f"--on-active={self.module.params['confirm_timeout']}s", "--timer-property=AccuracySec=100ms"]
        command = ["--quiet", "--collect", f"--unit={REVERT}", "--property=SyslogIdentifier=sparkfleet", *timer]
        back = (
            f"echo 'nobody has confirmed the new rules of the firewall: the old ones are back'; {self.nft} -f {BEFORE}"
        )
        self.run([self.module.get_bin_path("systemd-run", required=True), *command, "/bin/sh", "-c", back])
        self.run([self.nft, "--file", WANTED])
        return {"changed": True}

    def confirm(self) -> dict[str, object]:
        """Keep the rules, unless the node has put the old ones back."""
        self.disarm()
        if not _firewall.is_loaded(self.listing(), self.content):
            return {"changed": False, "kept": False}
        os.makedirs(os.path.dirname(_firewall.FILE), mode=0o755, exist_ok=True)
        write_atomically(_firewall.FILE, self.content, 0o644)
        if read_text(UNIT_FILE) != _firewall.UNIT_TEXT:
            write_atomically(UNIT_FILE, _firewall.UNIT_TEXT, 0o644)
            self.run([self.systemctl, "daemon-reload"])
        # A start loads the same rules once more, in one step.
        self.run([self.systemctl, "enable", "--now", _firewall.UNIT])
        self.forget()
        return {"changed": True, "kept": True}

    def remove(self) -> dict[str, object]:
        """Take everything away."""
        self.disarm()
        if os.path.exists(UNIT_FILE):
            self.run([self.systemctl, "disable", "--now", _firewall.UNIT])
            _remove(UNIT_FILE)
            self.run([self.systemctl, "daemon-reload"])
        _remove(_firewall.FILE)
        if self.listing():
            self.run([self.nft, "delete", "table", "inet", _firewall.TABLE])
        self.forget()
        return {"changed": True}

    def is_enabled(self) -> bool:
        """Whether the rules are loaded at boot, and the unit counts as running."""
        return self.module.run_command([self.systemctl, "--quiet", "is-enabled", _firewall.UNIT])[0] == 0

    def listing(self) -> str:
        """Return what the kernel has of our table, empty for nothing."""
        if not self.nft:
            return ""
        rc, out, _err = self.module.run_command([self.nft, "list", "table", "inet", _firewall.TABLE])
        return out if rc == 0 else ""

    def disarm(self) -> None:
        """Stop the timer, and wait for a way back that has begun."""
        for kind in ("timer", "service"):
            self.module.run_command([self.systemctl, "--quiet", "stop", f"{REVERT}.{kind}"])

    def forget(self) -> None:
        """Remove what only a change needs."""
        for path in (WANTED, BEFORE):
            _remove(path)
        with contextlib.suppress(OSError):
            os.rmdir(STATE)

    def run(self, command: list[str]) -> None:
        """Run a command that has to succeed."""
        rc, _out, err = self.module.run_command(command)
        if rc:
            said = (err.strip().splitlines() or [f"it ended with {rc}"])[0]
            raise Refusal(f"{os.path.basename(command[0])} failed: {said}; see journalctl -t sparkfleet")


def _remove(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def main() -> None:
    """Do one step."""
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            # Used by the action plugin, which makes `content` of them.
            "api_ports": {"type": "list", "elements": "int", "default": []},
            "allow": {"type": "list", "elements": "str", "default": []},
            "confirm_timeout": {"type": "int", "default": 60},
            "content": {"type": "str", "default": ""},
            "step": {"type": "str", "choices": ["check", "stage", "confirm"], "default": "check"},
        },
        supports_check_mode=True,
    )
    try:
        firewall = Firewall(module)
        if module.params["state"] == "absent" or module.params["step"] == "check":
            result = firewall.check()
            if module.params["state"] == "absent" and result["changed"] and not module.check_mode:
                firewall.remove()
        else:
            result = firewall.stage() if module.params["step"] == "stage" else firewall.confirm()
    except Refusal as refusal:
        module.fail_json(msg=str(refusal))
    except OSError as error:
        module.fail_json(msg=f"the firewall cannot be kept: {error}; see whether the node's disk is in order")
    module.exit_json(**result)


if __name__ == "__main__":
    main()
