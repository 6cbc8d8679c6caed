# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where a fleet's files are: its state directory, its locks, its SSH keys and its inventory."""

from __future__ import annotations

import fcntl
import json
import os
import shlex
import shutil
import stat
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from simulator import plan
from simulator.errors import SimulatorError
from simulator.plan import Cable, End, Spec
from simulator.report import say

ROOT = Path(__file__).resolve().parent.parent
STATE_ROOT = ROOT / ".sim"
LOCKS = Path("/run/sparksim")
USER = "nvidia"


def owner() -> tuple[int, int]:
    """Uid and gid of the person who runs this, also below sudo: the SSH key must be readable to Ansible."""
    return int(os.environ.get("SUDO_UID", os.getuid())), int(os.environ.get("SUDO_GID", os.getgid()))


@dataclass(frozen=True)
class Node:
    """A node as the state file has it."""

    name: str
    address: str
    host_key: str
    """Public host key, as in a .pub file."""


@dataclass(frozen=True)
class State:
    """All that has to be remembered of a fleet that is up."""

    spec: Spec
    subnet: str
    nodes: list[Node]
    base_image: str
    node_image: str
    cabling: list[Cable] | None = None
    """None where nobody touched the cables since the start."""

    @property
    def cables(self) -> list[Cable]:
        """The cables as they are now."""
        return plan.cables(self.spec) if self.cabling is None else self.cabling

    @property
    def recabled(self) -> bool:
        """Whether cables lead elsewhere than at the start."""
        return plan.wiring(self.cables) != plan.wiring(plan.cables(self.spec))

    def as_json(self) -> dict[str, Any]:
        """For the state file."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> State:
        """From the state file.

        :raises KeyError, TypeError: the file is another version's.
        """
        return cls(
            spec=Spec(**content["spec"]),
            subnet=content["subnet"],
            nodes=[Node(**node) for node in content["nodes"]],
            base_image=content["base_image"],
            node_image=content["node_image"],
            # a file of before cables could be moved has none
            cabling=None if content.get("cabling") is None else [as_cable(entry) for entry in content["cabling"]],
        )


def as_cable(entry: dict[str, Any]) -> Cable:
    """A cable as the state file has it.

    :raises KeyError, TypeError: the file is another version's.
    """
    return Cable(**{**entry, "ends": tuple(End(**end) for end in entry["ends"])})


class Store:
    """The state directory of one fleet."""

    def __init__(self, name: str, root: Path = STATE_ROOT) -> None:
        self.name = name
        self.directory = root / name
        self.key = self.directory / "id_ed25519"
        self.known_hosts = self.directory / "known_hosts"
        self.file = self.directory / "state.json"

    @property
    def control_directory(self) -> Path:
        """For SSH control sockets, whose paths may have 107 characters at most."""
        return Path(f"/tmp/sparksim-{owner()[0]}") / self.name

    def load(self) -> State | None:
        """The fleet's state, or None where there is none that can be read."""
        try:
            return State.from_json(json.loads(self.file.read_text()))
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def require(self) -> State:
        """The fleet's state.

        :raises SimulatorError: the fleet is not up.
        """
        state = self.load()
        if state is None:
            raise SimulatorError(f"fleet '{self.name}' is not up; start it with: up --name {self.name}")
        return state

    def prepare(self) -> None:
        """Make the directories and the user's key.

        :raises SimulatorError: somebody else owns the directory for control sockets.
        """
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not self.key.exists():
            make_key(self.key, f"sparksim-{self.name}")
        uid, gid = owner()
        for directory in (self.control_directory.parent, self.control_directory):
            directory.mkdir(mode=0o700, exist_ok=True)
            found = directory.lstat()
            if not stat.S_ISDIR(found.st_mode) or found.st_uid not in (uid, os.getuid()):
                raise SimulatorError(f"{directory} belongs to someone else; remove it")
            os.chown(directory, uid, gid)
            directory.chmod(0o700)

    def save(self, state: State) -> None:
        """Write the state and the known hosts; last, so that a state file means a complete fleet."""
        self.known_hosts.write_text(
            "".join(f"{node.name},{node.address} {' '.join(node.host_key.split()[:2])}\n" for node in state.nodes)
        )
        temporary = self.file.with_suffix(".new")
        temporary.write_text(json.dumps(state.as_json(), indent=2) + "\n")
        temporary.replace(self.file)
        uid, gid = owner()
        for path in (self.directory.parent, self.directory, *self.directory.iterdir()):
            os.chown(path, uid, gid)

    def remove(self) -> None:
        """End SSH control masters and remove everything that this class made."""
        if self.control_directory.is_dir():
            for socket in self.control_directory.iterdir():
                command = ["ssh", "-o", f"ControlPath={socket}", "-O", "exit", "node"]
                subprocess.run(command, check=False, capture_output=True)
            shutil.rmtree(self.control_directory, ignore_errors=True)
            with suppress(OSError):  # another fleet's sockets are there
                self.control_directory.parent.rmdir()
        shutil.rmtree(self.directory, ignore_errors=True)

    def ssh_options(self) -> list[str]:
        """Options with which ssh trusts exactly this fleet's host keys and uses exactly its user key."""
        known_hosts = str(self.known_hosts)
        settings = (
            # ssh reads a list of files here, split at blanks
            f'UserKnownHostsFile="{known_hosts}"' if " " in known_hosts else f"UserKnownHostsFile={known_hosts}",
            "GlobalKnownHostsFile=/dev/null",
            "StrictHostKeyChecking=yes",
            "IdentitiesOnly=yes",
            "ServerAliveInterval=10",
            "ServerAliveCountMax=6",
        )
        return [word for setting in settings for word in ("-o", setting)]

    def node(self, name: str) -> Node:
        """A node by its name or number.

        :raises SimulatorError: no such node, or no such fleet.
        """
        nodes = self.require().nodes
        for number, node in enumerate(nodes, start=1):
            if name in (node.name, str(number)):
                return node
        raise SimulatorError(f"no node '{name}' in '{self.name}'; there are: {', '.join(n.name for n in nodes)}")

    def ssh_command(self, node: Node, command: list[str]) -> list[str]:
        """How to run a command on a node, or log in where the command is empty."""
        return ["ssh", "-i", str(self.key), *self.ssh_options(), f"{USER}@{node.address}", *command]

    def inventory(self, state: State) -> str:
        """An Ansible inventory with the nodes' connection variables and nothing else."""
        hosts = {
            node.name: {
                "ansible_host": node.address,
                "ansible_user": USER,
                "ansible_ssh_private_key_file": str(self.key),
                "ansible_ssh_common_args": shlex.join(self.ssh_options()),
                "ansible_control_path_dir": str(self.control_directory),
                "ansible_python_interpreter": "/usr/bin/python3",
            }
            for node in state.nodes
        }
        text = yaml.safe_dump({"all": {"hosts": hosts}}, sort_keys=False, width=1000)
        return f"---\n# Written by the simulator for its fleet '{self.name}'; do not edit.\n{text}"


def make_key(path: Path, comment: str) -> None:
    """Make an ed25519 key pair without passphrase."""
    command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", str(path)]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL, capture_output=True)


@contextmanager
def lock(name: str, wait: str) -> Iterator[None]:
    """Hold a machine-wide lock.

    :param wait: what to say when someone else holds it; we then wait.
    """
    LOCKS.mkdir(mode=0o755, exist_ok=True)
    with open(LOCKS / f"{name}.lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(wait)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
