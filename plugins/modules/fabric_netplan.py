# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: fabric_netplan
short_description: Give the fabric's interfaces their addresses by netplan, with a way back
version_added: "0.1.0"
author:
  - sparkfleet.vllm authors (@sparkfleet)
description:
  - Keeps C(/etc/netplan/95-sparkfleet.yaml), a netplan file of our own, and applies it. Other files, and interfaces
    that are in neither its present nor its new text, are not touched.
  - A change goes back by itself unless the controller, over a new connection, confirms it within O(confirm_timeout).
    Until then the file is in C(/run/netplan), so a reboot undoes it as well. The node puts back the addresses, MTU
    and state of the fabric's interfaces, and the addresses and routes of those that carry management.
  - The action plugin of the same name does all of this in one task. The module does one O(step) of it.
  - Works where netplan uses NetworkManager and where it uses systemd-networkd.
attributes:
  check_mode:
    description: Changes nothing and says what would change.
    support: full
  diff_mode:
    description: Shows the file, and the interfaces that are not as it says, before and after.
    support: full
options:
  state:
    description:
      - With V(absent) our file goes, and the interfaces become what they were before our first change.
    type: str
    choices: [present, absent]
    default: present
  content:
    description: The text that our file should have. Empty if it is not needed.
    type: str
    default: ""
  settings:
    description:
      - What the interfaces should be. Those that O(content) names are compared with what they are.
      - Each has C(interface), C(address) with its prefix length, and C(mtu); more keys do no harm.
    type: list
    elements: dict
    default: []
  directory:
    description: The cluster's directory. C(fabric-before.json) in it says what was before our first change.
    type: path
    required: true
  confirm_timeout:
    description: After how many seconds the node goes back by itself; 20 to 3600.
    type: int
    default: 60
  step:
    description:
      - What to do; the action plugin chooses.
      - V(check) compares. V(stage) starts the change and the way back. V(wait) waits up to O(wait) seconds for the
        change to be in force. V(confirm) keeps it. V(revert) starts the way back at once.
    type: str
    choices: [check, stage, wait, confirm, revert]
    default: check
  wait:
    description: For how many seconds the step V(wait) waits at most.
    type: float
    default: 8
notes:
  - Needs root, systemd and iproute2 on the node.
  - What goes on is in the node's journal, see C(journalctl -t sparkfleet).
"""

EXAMPLES = r"""
- name: Give a fabric port its address
  sparkfleet.vllm.fabric_netplan:
    content: |
      network:
        version: 2
        ethernets:
          enp1s0f0np0:
            mtu: 9000
            addresses:
              - 192.168.177.11/24
    settings:
      - {interface: enp1s0f0np0, address: 192.168.177.11/24, mtu: 9000}
    directory: /etc/sparkfleet/atlas
  become: true

- name: Take all of it back
  sparkfleet.vllm.fabric_netplan:
    state: absent
    directory: /etc/sparkfleet/atlas
  become: true
"""

RETURN = r"""
missing:
  description: What the interfaces lack, one line each.
  returned: with the steps check and wait
  type: list
  elements: str
  sample: ["enp1s0f0np0 has no address 192.168.177.11/24"]
phase:
  description:
    - Where a change is. V(none) if there is none, V(applying), V(live) if it is in force and can be confirmed,
      V(failed) if netplan did not apply it, V(reverting) or V(reverted) if the node goes or went back,
      V(confirmed) if it is kept.
  returned: with the steps stage, wait, confirm and revert
  type: str
  sample: live
said:
  description: What netplan said to a change that it did not apply.
  returned: with the step wait
  type: str
  sample: ""
"""

import inspect
import ipaddress
import json
import os
import shutil
import sys
import tempfile
import time

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.sparkfleet.vllm.plugins.module_utils import _netplan, _netplan_guard
from ansible_collections.sparkfleet.vllm.plugins.module_utils._netplan_guard import Done, Goal, Link, Paths, Pending

# How long the interfaces have to stay as wanted: dispatcher scripts and the like come a little later.
_STABLE_S = 3.0
# A commit so late could meet the timer.
_LAST_S = 3.0


class Refusal(Exception):
    """Something that is not done, in one line."""


class Change:
    """The wanted state of a node's fabric, and the steps to it."""

    def __init__(self, module: AnsibleModule, root: str = "/") -> None:
        """Take over the module's parameters."""
        self.module = module
        self.paths = Paths(root)
        given = module.params
        self.absent = given["state"] == "absent"
        self.content = "" if self.absent else given["content"]
        if self.content and not self.content.endswith("\n"):
            self.content += "\n"
        self.settings = [] if self.absent else [_setting(setting) for setting in given["settings"]]
        self.memory = os.path.join(given["directory"], "fabric-before.json")
        self.own = _netplan_guard.read(self.paths.own)
        self.ours = {own["interface"]: own for text in (self.own, self.content) for own in _netplan.parse(text or "")}

    def run(self, command: list[str], timeout: float = 10) -> Done:
        """Run a command."""
        del timeout  # the guard's signature; only short commands are run from here
        rc, out, err = self.module.run_command(command, handle_exceptions=False, environ_update={"LC_ALL": "C.UTF-8"})
        return Done(rc, out, err)

    def links(self) -> dict[str, Link]:
        """Return the node's interfaces."""
        program = self.module.get_bin_path("ip")
        if program is None:
            raise Refusal("the command ip is missing; apt-get install iproute2")
        return _netplan_guard.links_now(lambda command, timeout: self.run([program, *command[1:]]))

    def missing(self, links: dict[str, Link]) -> list[str]:
        """Return what the interfaces that our file is to name are not."""
        named = {own["interface"] for own in _netplan.parse(self.content)}
        lines = []
        for name, address, mtu in self.settings:
            if name not in named:
                continue
            link = links.get(name)
            if link is None:
                lines.append(f"{name} does not exist")
                continue
            if not link.up:
                lines.append(f"{name} is down")
            elif _netplan_guard.read(os.path.join(self.paths.root, f"sys/class/net/{name}/carrier")) == "0\n":
                lines.append(f"{name} has no carrier")
            if address not in link.addresses:
                lines.append(f"{name} has no address {address}")
            if mtu != link.mtu:
                lines.append(f"{name} has MTU {link.mtu} instead of {mtu}")
        return lines

    def check(self) -> dict[str, object]:
        """Compare."""
        missing = self.missing(self.links()) if self.content else []
        changed = (self.own or "") != self.content or bool(missing)
        if self.absent:
            changed = self.own is not None or os.path.exists(self.memory) or os.path.isdir(self.paths.state)
        header = {"before_header": _netplan.OWN_FILE, "after_header": _netplan.OWN_FILE}
        diff = [{**header, "before": self.own or "", "after": self.content}]
        if missing:
            header = {"before_header": "interfaces", "after_header": "interfaces"}
            wanted = [f"{name} has {address}, MTU {mtu}" for name, address, mtu in self.settings]
            diff.append({**header, "before": "\n".join([*missing, ""]), "after": "\n".join([*wanted, ""])})
        if changed and (self.content or self.own is not None):
            self.validate()
        return {"changed": changed, "missing": missing, "diff": diff}

    def stage(self) -> dict[str, object]:
        """Start the change; nothing is done where something speaks against it."""
        if self.absent and self.own is None and _load(self.paths) is None:
            _netplan_guard.remove(self.memory)
            shutil.rmtree(self.paths.state, ignore_errors=True)
            return {"changed": True, "phase": "confirmed"}
        self.refuse_pending()
        links = self.links()
        management = self.management()
        for name in sorted(set(self.ours) & management):
            raise Refusal(
                f"{name} carries management and is not changed; set fabric_interface to another one, "
                "or fabric_configure: keep"
            )
        self.validate()
        timeout = self.module.params["confirm_timeout"]
        pending = Pending(
            own=self.own,
            wanted=self.content,
            fabric={name: links[name] for name in sorted(self.ours) if name in links},
            management={name: links[name] for name in sorted(management) if name in links},
            goals=self.goals(links),
            deadline=time.monotonic() + timeout,
            forget=self.absent,
        )
        self.start(pending, timeout)
        return {"changed": True, "phase": "applying"}

    def refuse_pending(self) -> None:
        """See that no other change is in the way; one whose timer was lost goes back now."""
        pending = _load(self.paths)
        if pending is None:
            return
        systemctl = self.module.get_bin_path("systemctl", required=True)
        units = [f"{_netplan_guard.REVERT_UNIT}.{kind}" for kind in ("timer", "service")]
        if any(self.run([systemctl, "is-active", unit]).out.strip() in ("active", "activating") for unit in units):
            left = max(1, round(pending.deadline - time.monotonic()))
            raise Refusal(
                "another change of the fabric's addresses waits for its confirmation; "
                f"it goes back by itself in {left} s: run again after that"
            )
        _netplan_guard.revert(self.paths)

    def goals(self, links: dict[str, Link]) -> dict[str, Goal]:
        """Return what netplan does not do: an interface that leaves our file keeps its MTU, and maybe its addresses."""
        before = self.remembered()
        new = {own["interface"]: own["addresses"] for own in _netplan.parse(self.content)}
        files = _netplan.read_files(self.paths.root, dict.fromkeys(links))["files"].values()
        goals = {}
        for own in _netplan.parse(self.own or ""):
            name = own["interface"]
            kept = {*new.get(name, []), *(a for file in files if name in file for a in file[name]["addresses"])}
            goal = Goal()
            if name in before and name not in new:
                goal = Goal(before[name].up, before[name].mtu, before[name].addresses)
                kept |= set(goal.addresses)
            without = tuple(address for address in own["addresses"] if address not in kept)
            goals[name] = Goal(goal.up, goal.mtu, goal.addresses, without)
        return goals

    def remembered(self) -> dict[str, Link]:
        """Return what the interfaces were before our first change; what cannot be read is not known."""
        try:
            data = json.loads(_netplan_guard.read(self.memory) or "{}")
            return {str(name): Link.of(link) for name, link in data.items()}
        except (ValueError, KeyError, TypeError, AttributeError):
            return {}

    def management(self) -> set[str]:
        """Return the interfaces that carry a default route or the connection that we came by."""
        ip = self.module.get_bin_path("ip", required=True)
        found = set()
        for family in ("-4", "-6"):
            for line in self.run([ip, family, "route", "show", "default"]).out.splitlines():
                words = line.split()
                if "dev" in words[:-1]:
                    found.add(words[words.index("dev") + 1])
        address = _ssh_address(os.getpid())
        for name, link in self.links().items():
            if address and any(found_address.split("/")[0] == address for found_address in link.addresses):
                found.add(name)
        return found

    def validate(self) -> None:
        """Let netplan judge all files, with ours as it is to be, somewhere else."""
        netplan = self.netplan()
        with tempfile.TemporaryDirectory() as copy:
            for directory in _netplan.DIRECTORIES:
                source, target = (os.path.join(root, directory[1:]) for root in (self.paths.root, copy))
                if os.path.isdir(source):
                    shutil.copytree(source, target, dirs_exist_ok=True)
            place = Paths(copy)
            os.makedirs(os.path.dirname(place.staged), exist_ok=True)
            _netplan_guard.write(place.staged, self.content or _netplan.nothing())
            done = self.run([netplan, "generate", "--root-dir", copy])
            if done.rc:
                # "FILE:LINE:COLUMN: what is wrong", then the line and a mark below it
                lines = [line for line in done.err.splitlines() if ": " in line and "WARNING" not in line]
                said = (lines or done.err.strip().splitlines() or [f"it ended with {done.rc}"])[0]
                said = said.replace(place.staged, _netplan.OWN_FILE).replace(f"{copy}/", "/").strip().rstrip(":")
                raise Refusal(f"netplan refuses its files, so nothing was changed: {said}; correct that")

    def netplan(self) -> str:
        """Return the command."""
        program = self.module.get_bin_path("netplan")
        if program is None:
            raise Refusal("netplan is missing; apt-get install netplan.io, or set fabric_configure: keep")
        return program

    def start(self, pending: Pending, timeout: int) -> None:
        """Write down what was, arm the way back, and only then apply."""
        systemd_run = self.module.get_bin_path("systemd-run")
        if systemd_run is None:
            raise Refusal("systemd-run is missing; the way back needs systemd")
        paths = self.paths
        os.makedirs(paths.state, exist_ok=True)
        os.chmod(paths.state, 0o700)
        for path in (paths.applied, paths.reverted):
            _netplan_guard.remove(path)
        # The guard is the same code that is imported here, so that both have one idea of a pending change.
        _netplan_guard.write(paths.guard, inspect.getsource(_netplan_guard), 0o700)
        unit = [systemd_run, "--quiet", "--collect", f"--property=SyslogIdentifier={_netplan_guard.SYSLOG}"]
        program = [sys.executable, paths.guard]
        timer = [f"--on-active={timeout}s", "--timer-property=AccuracySec=100ms"]
        commands = [
            [*unit, f"--unit={_netplan_guard.REVERT_UNIT}", *timer, *program, "revert"],
            [*unit, f"--unit={_netplan_guard.APPLY_UNIT}", "--no-block", *program, "apply"],
        ]
        try:
            _netplan_guard.write(paths.pending, pending.to_json())
            for number, command in enumerate(commands):
                if number == 1:
                    os.makedirs(os.path.dirname(paths.staged), exist_ok=True)
                    _netplan_guard.write(paths.staged, pending.wanted or _netplan.nothing())
                done = self.run(command)
                if done.rc:
                    raise Refusal(
                        f"systemd-run failed, so nothing was changed: {done.err.strip()}; see systemctl status"
                    )
        except BaseException:
            _netplan_guard.remove(paths.staged)
            _netplan_guard.remove(paths.pending)
            self.stop_timer()
            raise

    def stop_timer(self) -> None:
        """Disarm the way back."""
        systemctl = self.module.get_bin_path("systemctl", required=True)
        self.run([systemctl, "stop", f"{_netplan_guard.REVERT_UNIT}.timer"])

    def wait(self) -> dict[str, object]:
        """Wait until the change is in force and stays so, or something is wrong, or the time is over."""
        end = time.monotonic() + self.module.params["wait"]
        stable_since: float | None = None
        while True:
            phase, said, missing = self.look()
            now = time.monotonic()
            if phase not in ("applying", "live"):
                break
            if phase == "applying":
                stable_since = None
            elif stable_since is None:
                stable_since = now
            elif now - stable_since >= _STABLE_S:
                break
            if now >= end:
                phase = "applying"
                break
            time.sleep(0.25)
        return {"changed": False, "phase": phase, "said": said, "missing": missing}

    def look(self) -> tuple[str, str, list[str]]:
        """Return where the change is, what netplan said against it, and what the interfaces lack."""
        phase, said, missing = self.phase(), "", []
        if phase in ("live", "confirmed", "applying"):
            missing = self.missing(self.links())
        if phase == "live":
            applied = json.loads(_netplan_guard.read(self.paths.applied) or "{}")
            said = str(applied.get("said", ""))
            if said:
                phase = "failed"
            elif missing:
                phase = "applying"
        return phase, said, missing

    def phase(self) -> str:
        """Return where the change is by the files that it leaves: live means here that netplan has finished."""
        if _load(self.paths) is not None:
            with _netplan_guard.locked(self.paths, wait=False) as held:
                if not held:
                    return "reverting"
            return "live" if os.path.exists(self.paths.applied) else "applying"
        if os.path.exists(self.paths.reverted):
            return "reverted"
        return "confirmed" if (self.own or "") == self.content else "none"

    def confirm(self) -> dict[str, object]:
        """Keep the change, unless the node has begun to go back."""
        phase, said, missing = self.look()
        if phase != "live":
            return {"changed": False, "phase": phase, "said": said, "missing": missing}
        with _netplan_guard.locked(self.paths, wait=False) as held:
            pending = _load(self.paths)
            if not held or pending is None:
                return {"changed": False, "phase": "reverting", "said": "", "missing": []}
            if pending.wanted != self.content or pending.deadline - time.monotonic() < _LAST_S:
                raise Refusal(
                    "the new addresses were not confirmed in time; the node goes back to the old ones by itself"
                )
            if pending.forget:
                _netplan_guard.remove(self.memory)
            else:
                self.remember(pending)
            if pending.wanted:
                _netplan_guard.write(self.paths.own, pending.wanted)
            else:
                _netplan_guard.remove(self.paths.own)
            _netplan_guard.remove(self.paths.staged)
            _netplan_guard.remove(self.paths.pending)
        self.stop_timer()
        shutil.rmtree(self.paths.state, ignore_errors=True)
        return {"changed": True, "phase": "confirmed", "said": "", "missing": []}

    def remember(self, pending: Pending) -> None:
        """Keep what interfaces were before our first change; later changes only add interfaces."""
        known = self.remembered()
        # What our own file made of an interface earlier is nothing to go back to; one that left it has gone back.
        ours = {own["interface"] for own in _netplan.parse(pending.own or "")}
        wanted = {own["interface"] for own in _netplan.parse(pending.wanted)}
        before = {**{name: link for name, link in pending.fabric.items() if name not in ours}, **known}
        before = {name: link for name, link in before.items() if name in wanted}
        if before != known:
            os.makedirs(os.path.dirname(self.memory), mode=0o750, exist_ok=True)
            text = json.dumps(before, default=lambda link: link.__dict__, indent=1, sort_keys=True)
            _netplan_guard.write(self.memory, f"{text}\n")

    def revert(self) -> dict[str, object]:
        """Start the way back now, as a unit of its own that outlives our connection."""
        systemctl = self.module.get_bin_path("systemctl", required=True)
        if _load(self.paths) is not None:
            self.run([systemctl, "start", "--no-block", f"{_netplan_guard.REVERT_UNIT}.service"])
        return {"changed": False, "phase": self.phase()}


def _setting(given: dict[str, object]) -> tuple[str, str, int]:
    """Return interface, address and MTU."""
    try:
        name, address, mtu = str(given["interface"]), str(given["address"]), int(str(given["mtu"]))
        if "/" not in address or not name or "/" in name or not 576 <= mtu <= 65535:
            raise ValueError
        ipaddress.IPv4Interface(address)
    except (KeyError, ValueError):
        raise Refusal(
            f"settings: {given} is no setting; give interface, address (like 192.168.177.11/24) and mtu"
        ) from None
    return name, address, mtu


def _load(paths: Paths) -> Pending | None:
    """Return the change that waits for its confirmation."""
    try:
        return _netplan_guard.load(paths)
    except (ValueError, KeyError, TypeError) as error:
        raise Refusal(f"{paths.pending} cannot be understood ({error}); reboot the node, or remove it") from None


def _ssh_address(process: int) -> str:
    """Return the node's own address of the SSH connection that a process came by, empty if there is none."""
    for _generation in range(32):
        environment = _netplan_guard.read(f"/proc/{process}/environ") if _readable(process) else None
        for variable in (environment or "").split("\0"):
            words = variable.split()
            if variable.startswith("SSH_CONNECTION=") and len(words) == 4:
                return words[2].split("%")[0]
        # "pid (name) state ppid ...", and the name may hold anything
        stat = (_netplan_guard.read(f"/proc/{process}/stat") or "").rpartition(")")[2].split()
        if len(stat) < 2 or stat[1] in ("0", "1"):
            return ""
        process = int(stat[1])
    return ""


def _readable(process: int) -> bool:
    return os.access(f"/proc/{process}/environ", os.R_OK)


def main() -> None:
    """Do one step."""
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "content": {"type": "str", "default": ""},
            "settings": {"type": "list", "elements": "dict", "default": []},
            "directory": {"type": "path", "required": True},
            "confirm_timeout": {"type": "int", "default": 60},
            "step": {
                "type": "str",
                "choices": ["check", "stage", "wait", "confirm", "revert"],
                "default": "check",
            },
            "wait": {"type": "float", "default": 8},
        },
        supports_check_mode=True,
    )
    timeout = module.params["confirm_timeout"]
    if not 20 <= timeout <= 3600:
        module.fail_json(msg=f"confirm_timeout is {timeout}; give 20 to 3600 seconds")
    try:
        change = Change(module)
        step = "check" if module.check_mode else module.params["step"]
        result = getattr(change, step)()
    except Refusal as refusal:
        module.fail_json(msg=str(refusal))
    except (OSError, shutil.Error) as error:
        module.fail_json(msg=f"the fabric's addresses cannot be kept: {error}; see whether the node's disk is in order")
    module.exit_json(**result)


if __name__ == "__main__":
    main()
