# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Print what a node holds, a line each: files, units, containers, images, networks, volumes, addresses."""

from __future__ import annotations

import glob
import os
import subprocess

ROOTS = ("/etc", "/home", "/opt", "/root", "/srv", "/usr/local", "/var", "/run/sparkfleet")
#: What any machine writes by itself while it runs, and the stores whose content docker lists below.
NOISE = (
    "/etc/.pwd.lock",
    "/etc/resolv.conf",
    "/home/nvidia/.sudo_as_admin_successful",
    "/home/nvidia/.ansible",
    "/home/nvidia/.cache",
    "/root/.ansible",
    "/root/.ansible_async",
    "/root/.docker",
    "/var/cache",
    "/var/lib/NetworkManager",
    "/var/lib/containerd",
    "/var/lib/docker",
    "/var/lib/private",
    "/var/lib/sudo",
    "/var/lib/systemd",
    "/var/log",
    "/var/tmp",
)
COMMANDS = {
    "unit": ["systemctl", "list-unit-files", "--no-legend", "--plain", "--full"],
    "container": ["docker", "ps", "--all", "--format", "{{.Names}}"],
    "image": ["docker", "images", "--all", "--no-trunc", "--format", "{{.ID}} {{.Repository}}:{{.Tag}}"],
    "network": ["docker", "network", "ls", "--format", "{{.Name}}"],
    "volume": ["docker", "volume", "ls", "--format", "{{.Name}}"],
    "address": ["ip", "-4", "-oneline", "address", "show", "scope", "global"],
    "mtu": ["grep", "", *glob.glob("/sys/class/net/en*/mtu")],
}


def files() -> list[str]:
    """Return path and mode of every file below the roots, without the noise."""
    found = []
    for root in ROOTS:
        for folder, folders, names in os.walk(root):
            folders[:] = [name for name in folders if os.path.join(folder, name) not in NOISE]
            for name in (*folders, *names):
                path = os.path.join(folder, name)
                if path not in NOISE:
                    found.append(f"file {path} {os.lstat(path).st_mode:o}")
    return found


def listed(kind: str, command: list[str]) -> list[str]:
    """Return a command's lines, each behind its kind."""
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    # Login sessions come and go with whoever looks.
    lines = [line for line in done.stdout.splitlines() if line.strip() and not line.startswith("session-")]
    return [f"{kind} {' '.join(line.split())}" for line in lines]


print("\n".join(sorted(files() + [line for kind, argv in COMMANDS.items() for line in listed(kind, argv)])))
