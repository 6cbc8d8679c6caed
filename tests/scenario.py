# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the tests of Molecule scenarios have in common: the fleet, its inventory, playbooks, completions."""

from __future__ import annotations

import json
import os
import re
import shlex
import ssl
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

PROJECT = Path(__file__).resolve().parents[1]
INVENTORY = PROJECT / "molecule" / "inventory"
FLEET = "molecule"
ENVIRONMENT = {**os.environ, "ANSIBLE_CONFIG": str(PROJECT / "ansible.cfg"), "ANSIBLE_FORCE_COLOR": "0"}
_RECAP = re.compile(r"^(\S+)\s+: ok=\d+\s+changed=(\d+)\s", re.MULTILINE)


def simulator(*arguments: str, stdin: str = "") -> str:
    """Run a command of the simulator that has to succeed; return what it printed."""
    argv = [sys.executable, "-m", "simulator", arguments[0], "--name", FLEET, *arguments[1:]]
    done = subprocess.run(argv, cwd=PROJECT, input=stdin, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{shlex.join(arguments)}: {done.stdout}{done.stderr}"
    return done.stdout


def on_node(node: str, script: str, stdin: str = "") -> str:
    """Run a shell script on a node as root; return what it printed."""
    return simulator("ssh", node, f"sudo bash -c {shlex.quote(script)}", stdin=stdin)


def ansible_playbook(
    playbook: str, *arguments: str, environment: dict[str, str] | None = None, **variables: Any
) -> subprocess.CompletedProcess[str]:
    """Run a playbook on the scenario's inventory with these variables besides the inventory's."""
    program = str(Path(sys.executable).with_name("ansible-playbook"))
    argv = [program, playbook, "-i", str(INVENTORY), *arguments]
    if variables:
        argv += ["--extra-vars", json.dumps(variables)]
    given = {**ENVIRONMENT, **(environment or {})}
    return subprocess.run(
        argv, cwd=PROJECT, env=given, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )


def site(*arguments: str, **variables: Any) -> dict[str, int]:
    """Run site.yml, which has to go through; return the number of changes by host."""
    done = ansible_playbook("site.yml", *arguments, **variables)
    assert done.returncode == 0, done.stdout + done.stderr
    return {host: int(count) for host, count in _RECAP.findall(done.stdout)}


def address(node: str) -> str:
    """Return a node's address on the management network."""
    nodes = yaml.safe_load((INVENTORY / "nodes.yml").read_text(encoding="utf-8"))
    return str(nodes["all"]["hosts"][node]["ansible_host"])


def api_key() -> str:
    """Return the key that the scenarios' inventory makes."""
    return (PROJECT / ".cache" / "api-key").read_text(encoding="utf-8").splitlines()[0].strip()


def ask(
    node: str, key: str, model: str = "tiny", tokens: int = 8, timeout_s: float = 60, ca: Path | None = None
) -> int:
    """Ask for a completion over the management network, by TLS where `ca` is given; return how many tokens came back.

    Raises urllib.error.HTTPError, other OSErrors, and ValueError for an answer that is none.
    """
    messages = [{"role": "user", "content": "Hello"}]
    body = {"model": model, "messages": messages, "max_tokens": tokens, "ignore_eos": True}
    request = urllib.request.Request(
        f"{'https' if ca else 'http'}://{address(node)}:8888/v1/chat/completions",
        data=json.dumps(body).encode(),
        headers={"Content-Type": "application/json", "Authorization": f"Bearer {key}"},
    )
    trusting = ssl.create_default_context(cafile=ca) if ca else None
    with urllib.request.urlopen(request, timeout=timeout_s, context=trusting) as answer:
        return int(json.load(answer)["usage"]["completion_tokens"])


def until(condition: Callable[[], bool], what: str, timeout_s: float = 600) -> None:
    """Wait for something that the nodes do by themselves."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {timeout_s} s"
        time.sleep(2)  # a look costs the cores that are waited for
