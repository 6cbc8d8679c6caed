#!/usr/bin/python3 -IS
# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Stand-in for runc on a simulated node: ask for no more than the machine below can grant, then be the real runc.

A container engine inside a container cannot raise limits or capabilities that the outer one does not have, but what
runs on a real Spark asks for them. What is clamped here works there.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from typing import Any

REAL = "/usr/sbin/runc.real"
CAN_RAISE = "/run/sparksim/sys-resource"
"""This file exists where the node has CAP_SYS_RESOURCE."""
FAKE_SYSFS = ("/sys/devices", "/sys/class", "/sys/bus/pci/devices")


def option(arguments: list[str], *names: str) -> str | None:
    """Value of ``--name VALUE`` or ``--name=VALUE``."""
    for at, argument in enumerate(arguments):
        for name in names:
            if argument == name and at + 1 < len(arguments):
                return arguments[at + 1]
            if argument.startswith(f"{name}=") and name.startswith("--"):
                return argument.split("=", 1)[1]
    return None


def bounding_set() -> int:
    """This process's capability bounding set, as a bit mask."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1], 16) for line in file if line.startswith("CapBnd:"))


CAPABILITIES = {"CAP_SYS_MODULE": 16, "CAP_SYS_RESOURCE": 24, "CAP_SYS_TIME": 25}
"""Those that a simulated node may lack."""


def clamp_process(process: dict[str, Any], mask: int) -> None:
    """Lower rlimits, oom score and capabilities of an OCI process to what can be had."""
    if not os.path.exists(CAN_RAISE):
        for limit in process.get("rlimits") or []:
            number = getattr(resource, limit["type"], None)
            if number is None:
                continue
            hard = resource.getrlimit(number)[1]
            if hard != resource.RLIM_INFINITY:
                limit["hard"] = min(limit["hard"], hard)
                limit["soft"] = min(limit["soft"], limit["hard"])
        if (process.get("oomScoreAdj") or 0) < 0:
            process["oomScoreAdj"] = 0
    lacking = {name for name, bit in CAPABILITIES.items() if not mask >> bit & 1}
    for kind, names in (process.get("capabilities") or {}).items():
        process["capabilities"][kind] = [name for name in names or [] if name not in lacking]


def in_host_network(namespaces: list[dict[str, str]]) -> bool:
    """Whether a container is to run in the node's own network namespace."""
    for namespace in namespaces:
        if namespace["type"] == "network":
            path = namespace.get("path")
            return bool(path) and os.path.samefile(str(path), "/proc/self/ns/net")
    return True


def fix_container(config: dict[str, Any], mask: int) -> None:
    """Clamp a container's process and show it the RDMA devices if it has the host's network, as a real node would."""
    clamp_process(config.get("process") or {}, mask)
    if in_host_network((config.get("linux") or {}).get("namespaces") or []):
        for path in FAKE_SYSFS:
            config["mounts"].append(
                {"destination": path, "type": "bind", "source": path, "options": ["rbind", "ro", "rslave"]}
            )


def rewrite(path: str, fix: Any) -> None:
    """Change a JSON file in one step; say what is wrong and leave the file alone where that fails."""
    try:
        with open(path) as file:
            content = json.load(file)
        fix(content, bounding_set())
        with open(f"{path}.sparksim", "w") as file:
            json.dump(content, file)
        os.replace(f"{path}.sparksim", path)
    except (OSError, ValueError, KeyError, TypeError) as error:
        print(f"sparksim: {path}: {error}", file=sys.stderr)


def main(arguments: list[str]) -> None:
    """Fix what this call hands to runc, then become it."""
    if "exec" in arguments:
        process = option(arguments, "--process", "-p")
        if process:
            rewrite(process, clamp_process)
    elif "create" in arguments or "run" in arguments:
        bundle = option(arguments, "--bundle", "-b") or os.getcwd()
        rewrite(os.path.join(bundle, "config.json"), fix_container)
    os.execv(REAL, [REAL, *arguments])


if __name__ == "__main__":
    main(sys.argv[1:])
