# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: image_share
short_description: Serve an image to other nodes while they copy it
version_added: "0.1.0"
description:
  - Saves an image to a file and serves the one directory that holds it over HTTP, by a transient systemd unit that
    runs as a user of its own and ends by itself after O(max_seconds).
  - With O(state=absent), stops the unit and removes the directory; also what an interrupted run left of them.
author:
  - sparkfleet.vllm authors (@sparkfleet)
attributes:
  check_mode:
    support: full
    description: Says what it would do and does nothing.
  diff_mode:
    support: none
    description: There is nothing to compare.
options:
  state:
    description: Whether the image is served, or nothing is left of that.
    type: str
    choices: [present, absent]
    default: present
  image:
    description: Name of the image. Required when O(state=present).
    type: str
  address:
    description: Address of this node to listen on. Required when O(state=present).
    type: str
  port:
    description: TCP port to listen on.
    type: int
    default: 6390
  root:
    description: Directory of the image role on the node.
    type: path
    default: /var/lib/sparkfleet/image
  max_seconds:
    description: Seconds after which the unit ends by itself.
    type: int
    default: 7200
"""

EXAMPLES = r"""
- name: Serve the image
  sparkfleet.vllm.image_share:
    image: sparkfleet/vllm:cpu-0.32.0
    address: 192.168.177.11
  register: share

- name: Stop serving it
  sparkfleet.vllm.image_share:
    state: absent
"""

RETURN = r"""
url:
  description: Where the image's archive is.
  returned: when O(state=present)
  type: str
sha256:
  description: SHA-256 of the archive in hex. Empty in check mode.
  returned: when O(state=present)
  type: str
removed:
  description: What was removed.
  returned: when O(state=absent)
  type: list
  elements: str
"""

import errno
import os
import shutil
import socket

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.sparkfleet.vllm.plugins.module_utils._image import SHARE_UNIT, TRANSFER

ARCHIVE = "image.tar"


class Share:
    """The unit and the directory that it serves."""

    def __init__(self, module: AnsibleModule) -> None:
        self.module = module
        self.directory = os.path.join(module.params["root"], TRANSFER)

    def run(self, *command: str) -> str:
        """Run a command; fail with its last line where it fails."""
        rc, out, err = self.module.run_command(list(command))
        if rc:
            said = (err.strip() or out.strip() or f"exit {rc}").splitlines()[-1]
            self.module.fail_json(msg=f"{command[0]} {command[1]} failed: {said}")
        return str(out)

    def unit_loaded(self) -> bool:
        """Say whether systemd still knows the unit, running or failed."""
        return "LoadState=loaded" in self.run("systemctl", "show", "--property=LoadState", SHARE_UNIT)

    def remove(self) -> list[str]:
        """Remove what is there; return its names."""
        removed = []
        if self.unit_loaded():
            removed.append(SHARE_UNIT)
            if not self.module.check_mode:
                self.run("systemctl", "stop", SHARE_UNIT)
        if os.path.isdir(self.directory):
            removed.append(self.directory)
            if not self.module.check_mode:
                shutil.rmtree(self.directory)
        return removed

    def save(self, image: str) -> str:
        """Save the image to the directory; return the archive's SHA-256."""
        os.makedirs(self.directory, mode=0o755, exist_ok=True)
        archive = os.path.join(self.directory, ARCHIVE)
        rc, out, err = self.module.run_command(["docker", "image", "save", "--output", archive, image])
        if rc:
            self.module.fail_json(msg=f"docker image save {image} failed: {(err or out).strip()}")
        # The unit that serves it runs as a user of its own.
        os.chmod(archive, 0o644)
        return str(self.module.sha256(archive))

    def check_listen(self, address: str, port: int) -> None:
        """Fail in one line where the address is not here or the port is taken."""
        try:
            with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM) as one:
                one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                one.bind((address, port))
        except OSError as error:
            reason = f"cannot listen on {address}:{port} ({error.strerror}); check the fabric address"
            if error.errno == errno.EADDRINUSE:
                reason = f"port {port} of {address} is taken; stop what uses it or set image_share_port"
            self.module.fail_json(msg=reason)

    def serve(self, address: str, port: int) -> str:
        """Start the unit; return the archive's address."""
        properties = {
            "DynamicUser": "yes",
            "NoNewPrivileges": "yes",
            "ProtectSystem": "strict",
            "ProtectHome": "yes",
            "PrivateTmp": "yes",
            "RuntimeMaxSec": str(self.module.params["max_seconds"]),
            "SuccessExitStatus": "143",
        }
        self.run(
            "systemd-run",
            f"--unit={SHARE_UNIT}",
            "--description=Image for the other nodes of the cluster",
            "--collect",
            "--quiet",
            *(f"--property={name}={value}" for name, value in properties.items()),
            "/usr/bin/python3",
            "-m",
            "http.server",
            "--bind",
            address,
            "--directory",
            self.directory,
            str(port),
        )
        host = f"[{address}]" if ":" in address else address
        return f"http://{host}:{port}/{ARCHIVE}"


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "image": {"type": "str"},
            "address": {"type": "str"},
            "port": {"type": "int", "default": 6390},
            "root": {"type": "path", "default": "/var/lib/sparkfleet/image"},
            "max_seconds": {"type": "int", "default": 7200},
        },
        required_if=[("state", "present", ("image", "address"))],
        supports_check_mode=True,
    )
    share = Share(module)
    removed = share.remove()
    if module.params["state"] == "absent":
        module.exit_json(changed=bool(removed), removed=removed)
    address, port = module.params["address"], module.params["port"]
    if module.check_mode:
        module.exit_json(changed=True, url="", sha256="")
    share.check_listen(address, port)
    sha256 = share.save(module.params["image"])
    module.exit_json(changed=True, url=share.serve(address, port), sha256=sha256)


if __name__ == "__main__":
    main()
