# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A fleet that serves, given by its inventory, and what is asked of it."""

from __future__ import annotations

import json
import os
import shlex
import ssl
import subprocess
import sys
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.integration.bad_input.playbook import RECAP, REPO

HERE = Path(__file__).parent
VARIABLE = "SPARKFLEET_FLEET"


@dataclass(frozen=True)
class Spark:
    """A node as the inventory and its preflight describe it."""

    name: str
    address: str
    interface: str
    ipv6: list[str]
    ssh_ports: list[int]
    cluster: dict[str, Any]
    key: str

    @property
    def models(self) -> list[dict[str, Any]]:
        """The models whose API is here."""
        return [model for model in self.cluster["models"] if model["leader"] == self.name]

    @property
    def expected(self) -> set[int]:
        """What may be open to everyone."""
        return {*self.ssh_ports, *(int(model["port"]) for model in self.models)}


@dataclass
class Fleet:
    """All nodes. They are what ``arguments`` of ansible-playbook say, such as ``-i molecule/inventory``."""

    arguments: list[str]
    directory: Path
    sparks: list[Spark] = field(default_factory=list)

    @classmethod
    def given(cls, directory: Path) -> Fleet:
        """The fleet that the environment names."""
        return cls(shlex.split(os.environ[VARIABLE]), directory)

    def play(self, playbook: Path | str, **variables: Any) -> str:
        """Run a playbook that has to go through, and return what it printed."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("ANSIBLE_")}
        environment |= {"ANSIBLE_CONFIG": str(REPO / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1"}
        program = str(Path(sys.executable).with_name("ansible-playbook"))
        command = [program, str(playbook), *self.arguments, "--extra-vars", json.dumps(variables)]
        done = subprocess.run(
            command, cwd=REPO, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{shlex.join(command)}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def read(self) -> None:
        """Find out what the nodes are."""
        for old in self.directory.glob("*.json"):
            old.unlink()
        self.play(HERE / "read.yml", firewall_directory=str(self.directory))
        self.sparks = [Spark(**json.loads(file.read_text())) for file in sorted(self.directory.glob("*.json"))]
        assert self.sparks, "the inventory has no Sparks"

    def converge(self, firewall: bool) -> dict[str, int]:
        """Run site.yml; return the number of changes by host."""
        found = RECAP.findall(self.play("site.yml", host_firewall=firewall))
        return {host: int(count) for host, count in found if host != "localhost"}

    def ask(self, spark: Spark, command: str) -> str:
        """Run a shell command on a node as root; return what it printed."""
        program = str(Path(sys.executable).with_name("ansible"))
        argv = [program, spark.name, *self.arguments, "--become", "-m", "ansible.builtin.shell", "-a", command]
        environment = {**os.environ, "ANSIBLE_CONFIG": str(REPO / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1"}
        done = subprocess.run(argv, cwd=REPO, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


def complete(spark: Spark, model: dict[str, Any]) -> int:
    """Ask a model for a completion over the management network; return how many tokens came back."""
    scheme = "https" if model.get("tls") or model.get("tls_certificate") else "http"
    name = str(model.get("served_model_name") or model["name"]).split()[0]
    body = {"model": name, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 8}
    request = urllib.request.Request(
        f"{scheme}://{spark.address}:{model['port']}/v1/chat/completions",
        data=json.dumps(body).encode(),
        headers={"Content-Type": "application/json", "Authorization": f"Bearer {spark.key}"},
    )
    # Who answers is not the question here.
    trusting = ssl._create_unverified_context() if scheme == "https" else None
    with urllib.request.urlopen(request, timeout=120, context=trusting) as answer:
        return int(json.load(answer)["usage"]["completion_tokens"])
