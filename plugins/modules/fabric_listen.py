# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: fabric_listen
short_description: Be the far end of the fabric's measurement
version_added: "0.2.0"
description:
  - Listens on the node's own fabric addresses for M(sparkfleet.vllm.fabric_measure) of the cluster's other nodes,
    receives their TCP streams, and runs C(ib_write_bw) as the server for them.
  - Answers only callers that know O(token), which never travels over the network.
  - Run it with C(async) and C(poll=0), since all nodes have to listen at once, also if they are more than Ansible's
    forks. It ends by itself after O(seconds), or when it is run with O(state=absent).
  - The path through C(ib_write_bw) has not been run on a GB10 yet. It has been tested with a program that stands in for
    it.
author:
  - sparkfleet.vllm authors (@sparkfleet)
attributes:
  check_mode:
    description: Does nothing in check mode.
    support: full
  diff_mode:
    description: Nothing that lasts is changed, so there is no difference to show.
    support: none
options:
  state:
    description:
      - V(present) listens until it is told to end.
      - V(absent) ends the listener, and tells what was wrong with it.
    type: str
    choices: [present, absent]
    default: present
  token:
    description: What callers must know. A random string, the same on all nodes and new in each run.
    type: str
    required: true
  addresses:
    description: The node's addresses to listen on. An address that is not there yet is waited for a little.
    type: list
    elements: str
    default: []
  port:
    description: The TCP port to listen on. C(ib_write_bw) uses the next one, on all addresses while it measures.
    type: int
    default: 18515
  seconds:
    description: When to end at the latest.
    type: int
    default: 600
  path:
    description: The file that says who listens. Another listener that it names is ended first.
    type: path
    default: /run/sparkfleet/gate-listener.json
seealso:
  - module: sparkfleet.vllm.fabric_measure
"""

EXAMPLES = r"""
- name: Listen on every node
  sparkfleet.vllm.fabric_listen:
    token: "{{ token }}"
    addresses: [192.168.177.11, 192.168.178.11]
  async: 600
  poll: 0

- name: End the listeners
  sparkfleet.vllm.fabric_listen:
    state: absent
    token: "{{ token }}"
  register: listened
"""

RETURN = r"""
problems:
  description: What kept the listener from listening, each in the form "what; what to do".
  returned: always
  type: list
  elements: str
  sample: [port 18515 is taken; set fabric_gate_port]
refused:
  description: How many callers did not know the token.
  returned: when O(state=present)
  type: int
"""

import contextlib
import fcntl
import hashlib
import json
import os
import signal
import time
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.sparkfleet.vllm.plugins.module_utils._gate import write_bw_command, write_bw_failure
from ansible_collections.sparkfleet.vllm.plugins.module_utils._roce import SysfsReader
from ansible_collections.sparkfleet.vllm.plugins.module_utils._streams import Listener, Trouble, listen, no_verbs

ADDRESS_PATIENCE_S = 10.0
START_PATIENCE_S = 8.0
END_PATIENCE_S = 10.0


def run_of(token: str) -> str:
    """Return what names a run without telling its token."""
    return hashlib.sha256(f"run {token}".encode()).hexdigest()[:16]


class Marker:
    """The file that says who listens. The listener holds a lock on it for as long as it lives."""

    def __init__(self, path: str) -> None:
        self.path = path
        os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
        self.descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def locked(self) -> bool:
        """Take the lock; say whether that worked."""
        try:
            fcntl.flock(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def read(self) -> dict[str, Any]:
        """Return what the file says, nothing where it says nothing."""
        try:
            found = json.loads(os.pread(self.descriptor, 65536, 0) or b"{}")
        except ValueError:
            return {}
        return found if isinstance(found, dict) else {}

    def write(self, content: dict[str, Any]) -> None:
        """Replace what the file says."""
        data = json.dumps(content).encode()
        os.ftruncate(self.descriptor, 0)
        os.pwrite(self.descriptor, data, 0)

    def end_other(self) -> None:
        """End a listener that holds the lock, and take it; raises Trouble."""
        for wanted in (signal.SIGTERM, signal.SIGKILL):
            deadline = time.monotonic() + END_PATIENCE_S
            told = False
            while time.monotonic() < deadline:
                if self.locked():
                    return
                # Who holds the lock lives, so its number is still its own.
                pid = self.read().get("pid")
                if isinstance(pid, int) and pid > 1 and not told:
                    told = True
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, wanted)
                time.sleep(0.05)
        raise Trouble(f"the listener of another run does not end; see {self.path}, end it and run again")


def serve_write_bw(module: AnsibleModule, request: Any, ahead: Any) -> dict[str, Any]:
    """Run ib_write_bw as the server of one measurement."""
    try:
        hca, gid_index = str(request["hca"]), int(request["gid_index"])
        seconds = min(int(request["seconds"]), 30)
    except (KeyError, TypeError, ValueError):
        return {"error": "the request is malformed"}
    ahead({"started": True})
    # The server would wait for its client for ever.
    command = [
        "timeout",
        "-k",
        "2",
        str(seconds + 20),
        *write_bw_command(hca, gid_index, request_port(module), seconds),
    ]
    rc, out, err = module.run_command(command, errors="replace")
    return {"rc": rc, "said": write_bw_failure(f"{out}\n{err}") if rc else ""}


def request_port(module: AnsibleModule) -> int:
    """Return the port of ib_write_bw."""
    return int(module.params["port"]) + 1


def verbs(module: AnsibleModule, request: Any) -> dict[str, Any]:
    """Say whether ib_write_bw can be the far end with a device of this node."""
    gid_index = request.get("gid_index")
    lack = no_verbs(
        str(request.get("hca") or "") or None,
        gid_index if isinstance(gid_index, int) else None,
        module.get_bin_path("ib_write_bw"),
        SysfsReader(),
        "/dev",
    )
    return {"lack": list(lack) if lack else []}


def present(module: AnsibleModule, marker: Marker) -> None:
    """Listen until the end."""
    p = module.params
    marker.end_other()
    status: dict[str, Any] = {"run": run_of(p["token"]), "pid": os.getpid(), "problems": []}
    # Before anything that takes time: who ends us waits for this.
    marker.write(status)
    sockets, problems = listen(p["addresses"], p["port"], ADDRESS_PATIENCE_S)
    marker.write({**status, "problems": problems})
    listener = Listener(
        sockets,
        p["token"],
        {
            "verbs": lambda request, ahead: verbs(module, request),
            "ib_write_bw": lambda request, ahead: serve_write_bw(module, request, ahead),
        },
    )
    signal.signal(signal.SIGTERM, lambda signum, frame: listener.stop())
    if sockets:
        listener.run(p["seconds"])
    listener.close()
    if problems:
        module.fail_json(msg=" | ".join(problems), problems=problems, refused=listener.refused)
    module.exit_json(changed=False, problems=[], refused=listener.refused)


def absent(module: AnsibleModule, marker: Marker) -> None:
    """End the listener of this run and say what was wrong with it."""
    deadline = time.monotonic() + START_PATIENCE_S
    # One that is still starting would be left behind.
    while marker.read().get("run") != run_of(module.params["token"]) and time.monotonic() < deadline:
        time.sleep(0.1)
    status = marker.read()
    marker.end_other()
    started = status.get("run") == run_of(module.params["token"])
    problems = marker.read().get("problems", []) if started else ["the listener did not start; run again with -vvv"]
    os.unlink(marker.path)
    module.exit_json(changed=False, problems=problems)


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "token": {"type": "str", "required": True, "no_log": True},
            "addresses": {"type": "list", "elements": "str", "default": []},
            "port": {"type": "int", "default": 18515},
            "seconds": {"type": "int", "default": 600},
            "path": {"type": "path", "default": "/run/sparkfleet/gate-listener.json"},
        },
        supports_check_mode=True,
    )
    module.run_command_environ_update = {"LANG": "C", "LC_ALL": "C"}
    if module.check_mode:
        module.exit_json(changed=False, problems=[], refused=0)
    try:
        marker = Marker(module.params["path"])
        if module.params["state"] == "absent":
            absent(module, marker)
        present(module, marker)
    except Trouble as trouble:
        module.fail_json(msg=str(trouble), problems=[str(trouble)])
    except OSError as error:
        module.fail_json(msg=f"{module.params['path']} cannot be used ({error.strerror}); become root on the node")


if __name__ == "__main__":
    main()
