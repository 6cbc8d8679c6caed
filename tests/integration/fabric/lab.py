# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Four simulated Sparks whose cables, addresses and links are broken, and the playbook that has to say so."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from threading import Timer
from typing import Any

from simulator.fabric import Fabric
from tests.integration.bad_input.fleet import Node
from tests.integration.bad_input.playbook import CONVERGE, REPO, Outcome, write_inventory
from tests.integration.fleets import succeed, until

FLEET = "it-fabric"
PLAYBOOK = Path(__file__).with_name("converge.yml")
P0 = ("enp1s0f0np0", "enP2p1s0f0np0")
P1 = ("enp1s0f1np1", "enP2p1s0f1np1")
OWN_FILE = "/etc/netplan/95-sparkfleet.yaml"
KEPT = "; set fabric_configure: auto to have it set, or none to leave it as it is"
LONGEST_RUN_S = 300
"""A run that takes longer hangs: it is ended, and the test fails."""

SERVED = {
    "image_variant": "cpu",
    "serve_model": "nothing",
    "model_path": "/srv/nothing",
    "serve_api_key": "nothing-is-served-here",
}
"""What an inventory must say, although no test comes that far."""

TASK = re.compile(r"^TASK \[(?:[\w.]+ : )?(.+?)\]")
WARNING = re.compile(r"^\[WARNING\]: (.*?)(?=^\S|\n\n|\Z)", re.MULTILINE | re.DOTALL)


def simulator(command: str, *arguments: str) -> str:
    """What a simulator command prints that has to succeed."""
    return succeed(command, "--name", FLEET, *arguments).stdout


def name(number: int) -> str:
    """Name of a node."""
    return f"spark-{number:02d}"


def address(node: int, rail: int) -> str:
    """The address that a node gets on a pair's only cable or on a switch, as the role assigns it."""
    return f"192.168.{177 + rail}.{10 + node}/24"


@dataclass(frozen=True)
class Run(Outcome):
    """What a run of the playbook left behind."""

    tasks: tuple[str, ...] = ()
    """Names of the tasks that it came to."""

    @property
    def shown(self) -> str:
        """All that it printed."""
        return f"{self.stdout}\n--- stderr ---\n{self.stderr}"

    @property
    def warnings(self) -> str:
        """What it warned of, unfolded."""
        text = self.stdout + self.stderr
        return "\n".join(" ".join(match.group(1).split()) for match in WARNING.finditer(text))


@dataclass(frozen=True)
class Lab:
    """The fleet."""

    nodes: dict[str, Node]
    reached: Mapping[str, Any]
    """The inventory's part that says how its nodes are reached."""
    directory: Path

    def __getitem__(self, number: int) -> Node:
        return self.nodes[name(number)]

    # --- cables ---------------------------------------------------------------------------------

    def cable(self, *arguments: str) -> None:
        """Cable the nodes as the simulator's command says, and wait until they have noticed."""
        simulator("cable", *arguments)
        self.wait_for_carrier()

    def wait_for_carrier(self) -> None:
        """Wait until RDMA devices are what the cables make of them: they follow after a moment."""
        look = (
            "cd /sys/class/infiniband; for d in *; do n=$(ls $d/device/net); "
            "case $(cat /sys/class/net/$n/carrier 2>/dev/null):$(cat $d/ports/1/state) in "
            "1:*ACTIVE | 0:*DOWN | :*DOWN) ;; *) exit 1 ;; esac; done"
        )
        until(lambda: all(node.holds(look) for node in self.nodes.values()), "RDMA devices as the cables are")

    def fabric_side(self, command: str) -> None:
        """Run ``ip`` where the cables and switches are."""
        argv = ["ip", "-n", Fabric(FLEET).namespace, *shlex.split(command)]
        done = subprocess.run(argv, check=False, capture_output=True, text=True)
        assert done.returncode == 0, f"{shlex.join(argv)}: {done.stderr}"

    def fabric_mtu(self, mtu: int, *ports: str) -> None:
        """Set the MTU of ports of the cables or switches, which then let no larger packets through."""
        for port in ports:
            self.fabric_side(f"link set {port} mtu {mtu}")

    # --- addresses ------------------------------------------------------------------------------

    def give_addresses(self, *numbers: int) -> None:
        """Give nodes the addresses that the role would give them, as an owner does who knows how."""
        for number in numbers:
            pairs = enumerate(P0)
            self[number].run("; ".join(f"{_ip(twin, address(number, rail))}" for rail, twin in pairs))
        self.wait_for_gids(*numbers)

    def wait_for_gids(self, *numbers: int) -> None:
        """Wait until each IPv4 address of the nodes' p0 has its GIDs."""
        look = (
            f"for i in {' '.join(P0)}; do "
            "a=$(ip -o -4 addr show dev $i | grep -o 'inet [0-9.]*' | cut -c6-); [ -n \"$a\" ]; "
            'for b in $a; do show_gids | grep -F "$i" | grep -qwF "$b"; done; done'
        )
        until(lambda: all(self[number].holds(look) for number in numbers), "GIDs of the new addresses")

    def clear(self) -> None:
        """Make all nodes what they were: nothing of ours, no address on the fabric, everything up."""
        for node in self.nodes.values():
            node.run(
                f"rm -rf /etc/sparkfleet /run/sparkfleet; "
                f"if test -e {OWN_FILE}; then rm {OWN_FILE}; netplan apply; fi; "
                "ip link delete bond0 2>/dev/null || true; "
                + "; ".join(f"ip addr flush dev {i} scope global; ip link set {i} mtu 1500 up" for i in P0 + P1)
            )
        until(lambda: all(node.holds(_CLEAR) for node in self.nodes.values()), "nodes without addresses")

    # --- runs -----------------------------------------------------------------------------------

    def converge(
        self,
        clusters: Mapping[str, Sequence[int]],
        *arguments: str,
        during: Mapping[str, Callable[[], object]] | None = None,
        **variables: Any,
    ) -> Run:
        """Run the playbook.

        Args:
            clusters: the numbers of each cluster's nodes, head first.
            arguments: more for ansible-playbook.
            during: what to do as soon as a task of this name begins.
            variables: the fleet's variables; without them, addresses are kept and the gate wants 0.3 Gb/s.
        """
        children: dict[str, Any] = {
            cluster: {"hosts": {name(number): {} for number in numbers}} for cluster, numbers in clusters.items()
        }
        defaults = {"fabric_gate_min_gbps": 0.3, "host_min_disk_gb": 1, "host_min_memory_gb": 1} | SERVED
        content = {"sparks": {"children": children, "vars": {**defaults, **variables}}, **self.reached}
        present = {name(number) for numbers in clusters.values() for number in numbers}
        hosts = {host: how for host, how in self.reached["all"]["hosts"].items() if host in present}
        inventory = write_inventory(self.directory, {**content, "all": {"hosts": hosts}})
        return _run(inventory, arguments, during or {})


_CLEAR = "; ".join(
    f'test -z "$(ip -o -4 addr show dev {i})"; ip -o link show dev {i} | grep -q "[<,]UP[,>].* mtu 1500 "'
    for i in P0 + P1
)


def _ip(interface: str, text: str) -> str:
    # NetworkManager takes an address away that it has not set, sooner or later.
    alone = f"nmcli device set {interface} managed no"
    return f"{alone}; ip link set {interface} mtu 9000 up; ip addr add {text} dev {interface}"


def _run(inventory: Path, arguments: Sequence[str], during: Mapping[str, Callable[[], object]]) -> Run:
    environment = {variable: value for variable, value in os.environ.items() if not variable.startswith("ANSIBLE_")}
    environment |= {"ANSIBLE_CONFIG": str(REPO / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1", "PYTHONUNBUFFERED": "1"}
    environment |= {"ANSIBLE_COLLECTIONS_PATH": str(REPO / ".collections"), "COLUMNS": "10000"}
    program = str(Path(sys.executable).with_name("ansible-playbook"))
    lines, tasks = [], []
    waiting = dict(during)
    with TemporaryFile("w+") as errors:
        run = subprocess.Popen(
            [program, str(PLAYBOOK), "-i", str(inventory), *arguments],
            cwd=REPO,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            start_new_session=True,
        )
        watchdog = Timer(LONGEST_RUN_S, os.killpg, (run.pid, signal.SIGKILL))
        watchdog.start()
        try:
            for line in run.stdout or ():
                lines.append(line)
                match = TASK.match(line)
                if match:
                    tasks.append(match[1])
                    waiting.pop(match[1], lambda: None)()
            returncode = run.wait()
        finally:
            watchdog.cancel()
            if run.poll() is None:
                os.killpg(run.pid, signal.SIGKILL)
                run.wait()
            if run.stdout:
                run.stdout.close()
        errors.seek(0)
        header = next((number for number, line in enumerate(lines) if line.startswith(CONVERGE)), len(lines))
        converging = any(line.startswith("TASK ") for line in lines[header:])
        outcome = Run(returncode, "".join(lines), errors.read(), converging, tuple(tasks))
    print(outcome.shown)
    assert returncode >= 0, f"the run did not end by itself within {LONGEST_RUN_S} s\n{outcome.shown}"
    assert not waiting, f"the run never came to {', '.join(waiting)}\n{outcome.shown}"
    assert "Traceback" not in outcome.shown
    return outcome


def assert_passed(run: Run, *, measured: bool, changed: bool | None = None) -> None:
    """Make sure that a run went through, and whether the links were measured in it, or anything changed."""
    assert run.returncode == 0, run.shown
    assert ("Measure what the links carry" in run.tasks) == measured, run.shown
    assert run.changed, run.shown
    if changed is not None:
        assert any(run.changed.values()) == changed, run.shown


def assert_stopped(run: Run, *expected: str) -> None:
    """Make sure that a run that had begun to change nodes ended with these lines (regular expressions) and no others.

    The lines that only point at another host's are left out.
    """
    assert run.converging and run.returncode != 0, run.shown
    said = [line for line in run.reasons if not line.endswith("'s message")]
    for pattern in expected:
        found = [line for line in said if re.fullmatch(pattern, line)]
        assert len(found) == 1, f"{pattern}: {len(found)} lines\n{run.shown}"
    assert len(said) == len(expected), f"{said}\n{run.shown}"


def gate_record(node: Node) -> dict[str, Any]:
    """What a node keeps of the gate."""
    return dict(json.loads(node.run("cat /etc/sparkfleet/*/gate.json")))


@contextmanager
def undone(do: Callable[[], object], undo: Callable[[], object]) -> Iterator[None]:
    """Do something, and take it back afterwards."""
    try:
        do()
        yield
    finally:
        undo()
