# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: host_facts
short_description: Read a whole host in one call, and judge whether it is fit
version_added: "0.1.0"
description:
  - Reads operating system, Python, memory, disks, clock, Docker Engine, NVIDIA driver and runtime, listening TCP
    ports with their owners, firewalls, and the management address. One call costs a node about as much as any other.
  - An action plugin of the same name runs on the controller. It never fails and never marks a host unreachable.
    It turns whatever is wrong, an unreachable host included, into lines of RV(problems), so that
    M(sparkfleet.vllm.verdict) can show the reasons of all hosts at once.
  - Run it as root; without, other users' processes and Docker may be hidden.
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
  paths:
    description: Directories of ours, present or not, whose file systems are measured beside Docker's.
    type: list
    elements: path
    default: []
  docker_socket:
    description: Socket of the Docker Engine.
    type: path
    default: /var/run/docker.sock
  minimum:
    description:
      - What the host must offer. Without it nothing is judged, and RV(problems) only says why a host cannot be read.
      - The ports that are wanted, and whether a GPU is, come from the variables of the roles.
    type: dict
    suboptions:
      disk_gb:
        description: Room in GiB on each file system that we write to. What we occupy already counts as room.
        type: float
        required: true
      memory_gb:
        description: Physical memory in GiB.
        type: float
        required: true
      docker_version:
        description: Oldest Docker Engine.
        type: str
        required: true
seealso:
  - module: sparkfleet.vllm.verdict
"""

EXAMPLES = r"""
- name: Read the host and judge it
  sparkfleet.vllm.host_facts:
    paths: [/var/lib/sparkfleet]
    minimum:
      disk_gb: 60
      memory_gb: 16
      docker_version: "24.0"
  register: __host_preflight
"""

RETURN = r"""
reachable:
  description: Whether the host could be logged in to. Skip further reading where it is false.
  returned: always
  type: bool
problems:
  description: Every reason why the host is not fit, as C(what; what to do), without the host's name.
  returned: always
  type: list
  elements: str
  sample: ["Docker is not running; systemctl enable --now docker"]
interval:
  description: Bounds in seconds of how far the node's clock is ahead of the controller's, C([low, high]).
  returned: when the host could be read
  type: list
  elements: float
facts:
  description: What was read.
  returned: when the host could be read
  type: dict
  contains:
    clock:
      description: Seconds since the epoch, when the reading began.
      type: float
    root:
      description: Whether the module ran as root. Without, listeners of other users have no owner.
      type: bool
    os:
      description: Operating system, as C(id), C(version) and C(name).
      type: dict
    kernel:
      description: Kernel release.
      type: str
    architecture:
      description: Machine type of the kernel.
      type: str
      sample: aarch64
    cpus:
      description: Number of CPUs.
      type: int
    machine_id:
      description: Content of /etc/machine-id.
      type: str
    boot_id:
      description: Identity of this boot of the kernel.
      type: str
    python:
      description: The interpreter's C(executable) and C(version), and whether it finds C(requests).
      type: dict
    rsync:
      description: Whether rsync is installed.
      type: bool
    apt:
      description: Whether there is apt-get.
      type: bool
    earlyoom:
      description: Whether earlyoom is installed.
      type: bool
    firewall:
      description:
        - Whether there is C(nft), which C(others) of ufw and firewalld are on, and whether something of C(ours) is
          on the node.
      type: dict
    memory:
      description: C(total_bytes) and C(available_bytes).
      type: dict
    disks:
      description: For each path, C(path), C(device), C(free_bytes), C(total_bytes), and C(ours_bytes) that we occupy.
      type: list
      elements: dict
    docker:
      description:
        - The versions C(cli_version), C(buildx_version), C(engine_version), C(api_version), and C(image_root),
          C(storage_driver), C(runtimes), C(cdi_nvidia).
        - C(error) is empty, C(missing), C(stopped), C(permission), or the reason in words.
      type: dict
    gpu:
      description:
        - NVIDIA C(driver_version), C(devices), whether a C(container_toolkit) is installed, and its C(toolkit_version).
      type: dict
    firmware:
      description: Firmware versions of the RDMA network cards by their board, empty where there is none.
      type: dict
    listeners:
      description: Listening TCP ports, each with C(port), C(pid), C(process), C(container), and whether it is C(ours).
      type: list
      elements: dict
    ssh_ports:
      description: TCP ports that one can log in by, where sshd or systemd listens, and the one that the module came by.
      type: list
      elements: int
    management:
      description: C(interface) and IPv4 C(address) of the default route, empty where there is none.
      type: dict
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.sparkfleet.vllm.plugins.module_utils import _host


def main() -> None:
    """Read the host; the judgement is made on the controller."""
    module = AnsibleModule(
        argument_spec={
            "paths": {"type": "list", "elements": "path", "default": []},
            "docker_socket": {"type": "path", "default": "/var/run/docker.sock"},
            # Used by the action plugin, which does not pass it on.
            "minimum": {
                "type": "dict",
                "options": {
                    "disk_gb": {"type": "float", "required": True},
                    "memory_gb": {"type": "float", "required": True},
                    "docker_version": {"type": "str", "required": True},
                },
            },
        },
        supports_check_mode=True,
    )
    module.exit_json(changed=False, facts=_host.read(module.params["paths"], module.params["docker_socket"]))


if __name__ == "__main__":
    main()
