# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The gate on a simulated pair whose interfaces send 1 Gb/s: it measures, it judges, and it leaves nobody listening."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import docker
import pytest
import yaml
from ansible_collections.sparkfleet.vllm.plugins.module_utils._gate import RailEnd, fingerprint, links

from simulator.state import ROOT
from tests.integration.fleets import inside, skipped_without, succeed, until
from tests.unit.files.test_all_gather import DISTRIBUTED, TORCH

FLEET = "it-gate"
NODES = ("spark-01", "spark-02")
RAILS = (("enp1s0f0np0", "rocep1s0f0", 177), ("enP2p1s0f0np0", "roceP2p1s0f0", 178))
PORT = 18515
IMAGE = "gate-test:1"
CONTAINERS = "docker ps --all --quiet --filter name=sparkfleet-collective"
MAKE_IMAGE = f"""
set -e
python=$(readlink -f /usr/bin/python3); root=$(mktemp -d); cd $root
libraries=$(ldd $python /usr/lib/python3*/lib-dynload/*.so | grep -o '/[^ :]*' | grep -v dynload | sort -u)
cp --parents -L $python $libraries .
mkdir -p usr/bin tmp && cp $python usr/bin/python3 && cp -r --parents /usr/lib/python3.* .
mkdir torch && cp /tmp/torch.py torch/__init__.py && cp /tmp/distributed.py torch/distributed.py
mv torch usr/lib/python3.*/
tar c . | docker import - {IMAGE} && rm -rf $root
"""
TIMEOUT_S = 120

pytestmark = skipped_without()


def simulator(command: str, *arguments: str) -> str:
    """What a simulator command prints that has to succeed."""
    return succeed(command, "--name", FLEET, *arguments).stdout


class Fleet:
    """The pair, and the gate's tasks run on it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.inventory = directory / "nodes.yml"
        (directory / "files").mkdir()
        shutil.copy(ROOT / "roles/fabric/files/all_gather.py", directory / "files")
        simulator("inventory", "--output", str(self.inventory))
        self.on("spark-01", "mkdir -p /etc/sparkfleet/atlas")
        self.on("spark-02", "mkdir -p /etc/sparkfleet/atlas")

    def container(self, node: str) -> Any:
        return docker.from_env().containers.get(f"sparksim-{FLEET}-{node}")

    def on(self, node: str, command: str) -> str:
        """What a shell command prints on a node, run as root."""
        return inside(self.container(node), "bash", "-c", command)[1]

    def record(self, node: str) -> Any:
        return json.loads(self.on(node, "cat /etc/sparkfleet/atlas/gate.json"))

    def nobody_listens(self) -> bool:
        """No listener, no file of one, and no result of its job."""
        look = f"ss -Hltn 'sport = :{PORT}'; ls /run/sparkfleet/gate-listener.json /root/.ansible_async/* 2>/dev/null"
        return all(self.on(node, look) == "" for node in NODES)

    def command(self, *, mode: str = "bandwidth", tasks: str = "gate", **variables: Any) -> list[str]:
        """Return the command line of a playbook that runs the gate as the role does."""
        rails = {
            node: [
                RailEnd(
                    interface=interface,
                    address=f"192.168.{subnet}.{10 + number}/24",
                    mtu=9000,
                    hca=hca,
                    gid_index=3,
                    mac=None,
                    rate_gbps=200.0,
                    pcie="32.0 GT/s x4",
                    firmware=None,
                )
                for interface, hca, subnet in RAILS
            ]
            for number, node in enumerate(NODES, start=1)
        }
        found = links(NODES, rails)
        kept = variables.pop("kept", None)
        defaults = {"fabric_gate": "auto", "fabric_gate_min_gbps": 0.3, "fabric_gate_port": PORT}
        defaults |= {"fabric_gate_min_busbw": 0.001, "fabric_collective_port": 29501}
        defaults |= {"image_ref": IMAGE, "image_variant": "cpu"}
        common = {
            **defaults,
            **variables,
            "_fabric_directory": "/etc/sparkfleet/atlas",
            "_fabric_cluster": {"name": "atlas", "head": NODES[0], "nodes": list(NODES)},
        }
        preflight = {"gate_mode": mode, "gate_fingerprint": fingerprint(rails, mode, 1), "topology": "pair"}
        preflight["collective"] = kept
        hosts = {
            node: {
                "__fabric_preflight": {**preflight, "links": found[node]},
                "fabric_node": {"address": found[node][0]["address"], "devices": [], "nccl_env": {"SAMPLE": node}},
            }
            for node in NODES
        }
        play = {
            "hosts": "all",
            "gather_facts": False,
            "any_errors_fatal": True,
            "become": True,
            "vars": common,
            "tasks": [{"name": "Gate", "include_tasks": str(ROOT / f"roles/fabric/tasks/{tasks}.yml")}],
        }
        playbook, more = self.directory / "gate.yml", self.directory / "links.yml"
        playbook.write_text(yaml.safe_dump([play]))
        more.write_text(yaml.safe_dump({"all": {"hosts": hosts}}))
        program = str(Path(sys.executable).with_name("ansible-playbook"))
        return [program, str(playbook), "-i", str(self.inventory), "-i", str(more), "--forks", "1"]

    def start(self, **how: Any) -> subprocess.Popen[str]:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("ANSIBLE_")}
        environment |= {"ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1"}
        environment |= {"ANSIBLE_COLLECTIONS_PATH": str(ROOT / ".collections")}
        return subprocess.Popen(
            self.command(**how),
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def finish(self, run: subprocess.Popen[str]) -> tuple[int, str]:
        """Wait for a run; in any case nobody may listen after it."""
        output, _nothing = run.communicate(timeout=TIMEOUT_S)
        print(output)
        assert self.nobody_listens(), output
        assert "Traceback" not in output
        return run.returncode, output

    def gate(self, **how: Any) -> tuple[int, str]:
        return self.finish(self.start(**how))

    @contextmanager
    def broken(self, node: str, break_it: str, mend: str) -> Iterator[None]:
        self.on(node, break_it)
        try:
            yield
        finally:
            self.on(node, mend)


@pytest.fixture(name="fleet", scope="module")
def fixture_fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    simulator("up", "--nodes", "2", "--topology", "pair", "--rate", "1gbit")
    try:
        yield Fleet(tmp_path_factory.mktemp("gate"))
    finally:
        simulator("down")


def test_ping_only_needs_no_listener(fleet: Fleet) -> None:
    code, output = fleet.gate(mode="ping", fabric_gate_min_gbps=5)
    assert code == 0, output
    assert {link["gbps"] for link in fleet.record("spark-01")["links"]} == {None}


def test_a_taken_port_is_named(fleet: Fleet) -> None:
    squatter = f"systemd-run --quiet --collect --unit squatter python3 -m http.server {PORT} --bind 0.0.0.0"
    with fleet.broken("spark-02", squatter, "systemctl stop squatter"):
        until(lambda: fleet.on("spark-02", f"ss -Hltn 'sport = :{PORT}'") != "", "the squatter")
        run = fleet.start()
        output, _nothing = run.communicate(timeout=TIMEOUT_S)
    assert run.returncode != 0
    assert f"spark-02: port {PORT} is taken; set fabric_gate_port" in output
    assert "is not the gate's listener" not in output
    assert fleet.nobody_listens()


def test_an_interrupted_run_leaves_its_listener_to_the_next(fleet: Fleet) -> None:
    run = fleet.start()
    listening = f"ss -Hltn 'sport = :{PORT}'"
    until(lambda: all(fleet.on(node, listening) for node in NODES), "listeners")
    run.kill()
    run.communicate()
    assert all(fleet.on(node, listening) for node in NODES)
    again = fleet.start()
    output, _nothing = again.communicate(timeout=TIMEOUT_S)
    for node in NODES:
        fleet.on(node, "rm -f /root/.ansible_async/*")  # Ansible's own, of the run that was killed
    assert again.returncode == 0, output
    assert fleet.nobody_listens()


def test_callers_without_the_token_are_refused(fleet: Fleet) -> None:
    run = fleet.start()
    until(lambda: fleet.on("spark-02", f"ss -Hltn 'sport = :{PORT}'") != "", "a listener")
    said: list[str] = []
    program = (
        "import json,socket\n"
        f"s = socket.create_connection(('192.168.177.12', {PORT}), 5); f = s.makefile('rw')\n"
        "f.readline(); f.write(json.dumps({'do': 'count', 'id': 'x', 'proof': 'guess'}) + '\\n'); f.flush()\n"
        "print(f.readline())"
    )
    asker = threading.Thread(
        target=lambda: said.append(fleet.on("spark-01", f"python3 -c {shlex.quote(program)}")), daemon=True
    )
    asker.start()
    asker.join(TIMEOUT_S)
    code, output = fleet.finish(run)
    assert code == 0, output
    assert json.loads(said[0])["error"].startswith("the token is wrong")


@pytest.fixture(name="image", scope="module")
def fixture_image(fleet: Fleet) -> None:
    """An image with Python and the unit tests' stand-in for PyTorch: ranks do not really meet."""
    for node in NODES:
        for name, text in (("torch", TORCH), ("distributed", DISTRIBUTED)):
            fleet.on(node, f"printf %s {shlex.quote(text)} > /tmp/{name}.py")
        said = fleet.on(node, MAKE_IMAGE)
        assert fleet.on(node, f"docker image inspect {IMAGE} >/dev/null && echo there") == "there", said


@pytest.mark.usefixtures("image")
def test_the_collective_runs_in_the_image_and_is_kept(fleet: Fleet) -> None:
    code, output = fleet.gate(tasks="collective")
    assert code == 0, output
    record = json.loads(fleet.on("spark-02", "cat /etc/sparkfleet/atlas/collective.json"))
    assert record["passed"] is True
    assert [(rank["host"], rank["world"], rank["backend"]) for rank in record["ranks"]] == [
        ("spark-01", "2", "gloo"),
        ("spark-02", "2", "gloo"),
    ]
    # Kept, it is not due: no node is asked for anything.
    code, output = fleet.gate(tasks="collective", kept=record)
    assert code == 0 and re.search(r"spark-02 +: ok=2 +changed=0", output), output
    assert not any(fleet.on(node, CONTAINERS) for node in NODES)


@pytest.mark.usefixtures("image")
def test_a_collective_that_is_too_slow_is_refused(fleet: Fleet) -> None:
    code, output = fleet.gate(tasks="collective", fabric_gate_min_busbw=1e6)
    assert code != 0
    assert re.search(r"spark-01: all_gather reaches \S+ GB/s, below 1e\+06 \(fabric_gate_min_busbw\)", output), output
    assert not any(fleet.on(node, CONTAINERS) for node in NODES)


@pytest.mark.usefixtures("fleet")
def test_a_missing_image_leaves_no_container(fleet: Fleet) -> None:
    code, output = fleet.gate(tasks="collective", image_ref="nobody/has-it:1")
    assert code != 0 and "nobody/has-it" in output
    assert not any(fleet.on(node, CONTAINERS) for node in NODES)
