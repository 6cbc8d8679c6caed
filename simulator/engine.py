# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Make sure that a Docker Engine and the simulator's system tools are here.

``python -m simulator.engine`` does nothing where an engine answers and the tools are installed. Elsewhere, on Debian
and its derivatives and with root's rights (or passwordless sudo), it installs the distribution's packages and starts
the engine, and says so. On any other machine it stops with one line that says what to install.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import docker
from docker.errors import DockerException

#: Command that must be on the PATH -> Debian package that brings it.
TOOLS = {
    "debootstrap": "debootstrap",
    "ip": "iproute2",
    "iptables": "iptables",
    "nsenter": "util-linux",
    "pgrep": "procps",
    "rsync": "rsync",
    "ssh": "openssh-client",
    "tc": "iproute2",
}
ENGINE_PACKAGE = "docker.io"
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
START_TIMEOUT_S = 60.0
LOG = Path("/var/log/sparksim-dockerd.log")

#: An engine that was killed leaves its process IDs behind, and the next one stops where others have got them by now.
FORGET = "pgrep -x -r D,I,R,S dockerd >/dev/null || rm -f /run/docker.pid /run/docker/containerd/containerd.pid"


class EngineError(Exception):
    """The engine cannot be had; the text is one line that says what to do."""


def missing_packages(which: Callable[[str], str | None], engine_answers: bool) -> list[str]:
    """Return the Debian packages that this machine lacks, sorted.

    :param which: finds a command (``shutil.which`` with the system's PATH).
    :param engine_answers: whether a Docker Engine answers already, whoever runs it.
    """
    wanted = {package for command, package in TOOLS.items() if which(command) is None}
    if not engine_answers and which("dockerd") is None:
        wanted.add(ENGINE_PACKAGE)
    return sorted(wanted)


def answers() -> bool:
    """Whether a Docker Engine answers on the configured endpoint."""
    try:
        client = docker.from_env(timeout=10)
        try:
            client.ping()
        finally:
            client.close()
    except DockerException:
        return False
    return True


def privilege() -> list[str]:
    """Return the command prefix that gives root's rights.

    :raises EngineError: when this is not root and sudo would ask for a password.
    """
    if os.geteuid() == 0:
        return []
    probe = subprocess.run(["sudo", "-n", "true"], check=False, capture_output=True) if shutil.which("sudo") else None
    if probe is not None and probe.returncode == 0:
        return ["sudo", "-n"]
    raise EngineError("no root's rights and no passwordless sudo; run this as root, or start a Docker Engine first")


def is_debian(os_release: str) -> bool:
    """Whether the text of /etc/os-release names Debian or one of its derivatives."""
    fields = dict(line.split("=", 1) for line in os_release.splitlines() if "=" in line)
    names = " ".join(fields.get(key, "").strip("\"'") for key in ("ID", "ID_LIKE")).split()
    return bool({"debian", "ubuntu"} & set(names))


def install(packages: list[str], prefix: list[str]) -> None:
    """Install Debian packages with apt as the machine has it set up.

    :raises EngineError: when this is no Debian, or apt fails.
    """
    try:
        release = Path("/etc/os-release").read_text(encoding="utf-8")
    except OSError:
        release = ""
    if not is_debian(release) or shutil.which("apt-get") is None:
        raise EngineError(f"not found: {', '.join(packages)} (names as on Debian); install them and try again")
    print(f"engine: installing {' '.join(packages)} with apt", flush=True)
    env = ["env", "DEBIAN_FRONTEND=noninteractive"]
    for command in (["apt-get", "update", "-qq"], ["apt-get", "install", "-y", "-qq", *packages]):
        done = subprocess.run([*prefix, *env, *command], check=False, capture_output=True, text=True)
        if done.returncode:
            lines = [line for line in done.stderr.splitlines() if line.strip()]
            raise EngineError(f"{' '.join(command)} failed: {lines[-1] if lines else done.returncode}")


def start(prefix: list[str]) -> None:
    """Start the installed engine and wait until it answers.

    :raises EngineError: when it does not answer in time.
    """
    if Path("/run/systemd/system").is_dir():
        print("engine: starting docker.service", flush=True)
        subprocess.run([*prefix, "systemctl", "enable", "--now", "docker.service"], check=False)
    else:
        print(f"engine: starting dockerd (no systemd here; its log is {LOG})", flush=True)
        # A session of its own, so that it outlives the make that asked for it.
        subprocess.run(
            [*prefix, "sh", "-c", f"{FORGET}; exec setsid --fork dockerd >>{LOG} 2>&1 </dev/null"],
            check=False,
            env={**os.environ, "PATH": SYSTEM_PATH},
        )
    deadline = time.monotonic() + START_TIMEOUT_S
    while not answers():
        if time.monotonic() > deadline:
            raise EngineError(f"no answer from the Docker Engine in {START_TIMEOUT_S:.0f} s; see {LOG} or the journal")
        time.sleep(0.3)


def ensure() -> None:
    """Install and start whatever is missing.

    :raises EngineError: with one line that says what to do.
    """
    ready = answers()
    packages = missing_packages(lambda name: shutil.which(name, path=SYSTEM_PATH), ready)
    if packages:
        install(packages, privilege())
    if not ready:
        start(privilege())


def main() -> int:
    """Entry point; returns the exit status."""
    try:
        ensure()
    except EngineError as error:
        print(f"engine: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
