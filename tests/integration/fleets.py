# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What all tests on simulated fleets need."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable

import docker
import pytest
from docker.errors import DockerException
from docker.models.containers import Container

from simulator.state import ROOT


def why_not() -> str:
    """Why no fleet can be started here; empty where it can."""
    if os.geteuid() != 0:
        return "simulated fleets need root"
    try:
        docker.from_env().ping()
    except DockerException as error:
        return f"simulated fleets need a Docker Engine: {error}"
    return ""


def skipped_without() -> pytest.MarkDecorator:
    """The mark of a test that is skipped where no fleet can be started."""
    reason = why_not()
    return pytest.mark.skipif(bool(reason), reason=reason)


def simulator(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command of the simulator."""
    command = [sys.executable, "-m", "simulator", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def succeed(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command of the simulator that has to succeed."""
    done = simulator(*arguments)
    assert done.returncode == 0, f"{shlex.join(arguments)}: {done.stdout}{done.stderr}"
    return done


def inside(container: Container, *argv: str) -> tuple[int, str]:
    """Run a program on a node as root, past SSH; return its exit status and what it printed.

    Not by ``docker exec``: on a busy machine the engine loses what a short command printed.
    """
    container.reload()
    pid = container.attrs["State"]["Pid"]
    assert pid, f"{container.name} does not run"
    enter = ["nsenter", "--target", str(pid), "--mount", "--uts", "--ipc", "--net", "--pid"]
    done = subprocess.run(
        [*enter, "--", *argv],
        env={
            "HOME": "/root",
            "LANG": "C.UTF-8",
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        },
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )
    return done.returncode, done.stdout.decode(errors="replace").strip()


def until(condition: Callable[[], bool], what: str, timeout_s: float = 120) -> None:
    """Wait for something that a node does by itself."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {timeout_s} s"
        time.sleep(0.1)
