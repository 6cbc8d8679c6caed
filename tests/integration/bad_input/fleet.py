# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A simulated pair, and ways to break it that are undone afterwards."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from docker.models.containers import Container

from tests.integration.fleets import inside, succeed, until

FLEET = "badinput"
CABLE = "c1"


def simulator(command: str, *arguments: str) -> str:
    """Run a command of the simulator on our fleet and return what it printed."""
    return succeed(command, "--name", FLEET, *arguments).stdout


def status() -> dict[str, Any]:
    """What the simulator says of our fleet."""
    return dict(json.loads(simulator("status", "--json")))


@dataclass(frozen=True)
class Node:
    """A node, reached behind Ansible's back: through the simulator's container, as root."""

    name: str
    container: Container

    def execute(self, *argv: str) -> tuple[int, str]:
        """Run a program as root; return its exit status and what it printed."""
        return inside(self.container, *argv)

    def run(self, command: str) -> str:
        """Run a shell command that must succeed, and return what it printed."""
        code, text = self.execute("bash", "-euc", command)
        assert code == 0, f"{self.name}: {command}: {text}"
        return text

    def holds(self, command: str) -> bool:
        """Whether a shell command succeeds."""
        return self.execute("bash", "-euc", command)[0] == 0

    def listens(self, port: int) -> bool:
        """Whether anybody listens on a TCP port."""
        return self.run(f"ss -Hltn 'sport = :{port}'") != ""

    @contextmanager
    def broken(self, break_it: str, mend: str) -> Iterator[None]:
        """Run one shell command before, and one after that takes it back."""
        try:
            self.run(break_it)
            yield
        finally:
            self.run(mend)

    @contextmanager
    def without(self, *paths: str) -> Iterator[None]:
        """Move files out of the way."""
        away = "; ".join(f"mv {shlex.quote(path)} {shlex.quote(path)}.away" for path in paths)
        back = "; ".join(f"mv {shlex.quote(path)}.away {shlex.quote(path)}" for path in paths)
        with self.broken(away, back):
            yield

    @contextmanager
    def without_engine(self) -> Iterator[None]:
        """Stop Docker; the socket unit would start it again."""
        units = "docker.socket docker.service"
        with self.broken(f"systemctl stop {units}", f"systemctl start {units}"):
            yield

    @contextmanager
    def listening(self, *ports: int) -> Iterator[dict[int, int]]:
        """Have somebody else's program listen on ports; yields the process id by port."""
        units = {port: f"squatter-{port}.service" for port in ports}
        try:
            for port, unit in units.items():
                self.run(f"systemd-run --quiet --collect --unit {unit} python3 -m http.server {port}")
            for port in ports:
                until(partial(self.listens, port), f"port {port}")
            yield {port: int(self.run(f"systemctl show --value --property MainPID {units[port]}")) for port in ports}
        finally:
            self.run(f"systemctl stop {' '.join(units.values())}")


@dataclass(frozen=True)
class Pair:
    """Both nodes and the inventory that fits them."""

    nodes: dict[str, Node]
    inventory: dict[str, Any]

    @property
    def head(self) -> Node:
        return self.nodes["spark-01"]

    @property
    def worker(self) -> Node:
        return self.nodes["spark-02"]

    @contextmanager
    def unplugged(self) -> Iterator[None]:
        """Pull the cable between the nodes out; plugged in again, the nodes get their addresses back."""
        before = self._fabric()
        try:
            simulator("unplug", CABLE)
            yield
        finally:
            simulator("plug", CABLE)
            until(lambda: self._fabric() == before, "the fabric as it was")

    def _fabric(self) -> list[Any]:
        return [node["interfaces"] for node in status()["nodes"]]
