# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Real simulated fleets: they do what Sparks do, and leave nothing behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import docker
import pytest
from docker.errors import DockerException, NotFound

from simulator.fleet import LABEL_FLEET, LABEL_ROLE, LABEL_STATE
from simulator.image import ensure
from simulator.state import ROOT, Store

FIRST, SECOND = "it-first", "it-second"
TIMEOUT_S = 60


def why_not() -> str:
    """Why no fleet can be started here; empty where it can."""
    if os.geteuid() != 0:
        return "simulated fleets need root"
    try:
        docker.from_env().ping()
    except DockerException as error:
        return f"simulated fleets need a Docker Engine: {error}"
    return ""


pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not())


def simulator(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "simulator", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def done(*arguments: str) -> str:
    """Run a simulator command that has to succeed; both of its outputs."""
    result = simulator(*arguments)
    assert result.returncode == 0, result.stderr
    return result.stdout + result.stderr


def on(node: str, command: str, fleet: str = FIRST) -> str:
    """What a command prints on a node."""
    result = simulator("ssh", "--name", fleet, node, command)
    assert result.returncode == 0, f"{command}: {result.stdout} {result.stderr}"
    return result.stdout.strip()


def until(condition: Callable[[], bool], what: str) -> None:
    """Wait for a condition."""
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {TIMEOUT_S} s"
        time.sleep(0.2)


def left_behind(fleet: str) -> list[str]:
    """Everything on this machine that belongs to a fleet."""
    engine = docker.from_env()
    labelled = {"label": f"{LABEL_FLEET}={fleet}"}
    store = Store(fleet)
    paths = [store.directory, store.control_directory, Path(f"/run/netns/sim-fabric-{fleet}")]
    return [
        *(str(entry["Names"]) for entry in engine.api.containers(all=True, filters=labelled)),
        *(str(network.name) for network in engine.networks.list(filters=labelled)),
        *(volume.name for volume in engine.volumes.list(filters=labelled)),
        *(str(path) for path in paths if path.exists()),
    ]


@pytest.fixture(scope="module")
def pair() -> Iterator[str]:
    done("up", "--name", FIRST, "--nodes", "2", "--topology", "pair")
    yield FIRST
    done("down", "--name", FIRST)
    assert left_behind(FIRST) == []


def test_nodes_are_what_people_expect(pair: str) -> None:
    assert on("spark-01", "hostname && sudo id -u && id -nG").split() == ["spark-01", "0", "nvidia", "sudo", "docker"]
    assert on("spark-01", "docker info --format '{{.Driver}}' && docker buildx version").startswith("overlay2")
    assert on("spark-01", "systemctl --failed --plain --no-legend") == ""
    assert on("spark-01", "python3 -c 'import requests, yaml' && command -v rsync")
    assert on("spark-01", "cat /etc/machine-id") != on("spark-02", "cat /etc/machine-id")
    shared_memory = on("spark-01", "df --output=size --block-size=1G /dev/shm | tail -1")
    assert shared_memory == "4"


def test_names_and_packages_can_be_had(pair: str) -> None:
    assert on("spark-01", "sudo apt-get update >/dev/null && apt-cache policy hello | grep -c Candidate") == "1"


def test_hardware_reads_like_a_spark(pair: str) -> None:
    assert "rocep1s0f0 port 1 ==> enp1s0f0np0 (Up)" in on("spark-01", "ibdev2netdev")
    assert "rocep1s0f1 port 1 ==> enp1s0f1np1 (Down)" in on("spark-01", "ibdev2netdev")
    assert on("spark-02", "cat /sys/class/net/enP2p1s0f0np0/address") == "4c:bb:47:00:02:04"
    assert on("spark-01", "ip -br link show enP7s7").split()[1] == "UP"
    assert on("spark-01", "ls /dev/infiniband").split() == ["rdma_cm", "uverbs0", "uverbs1", "uverbs2", "uverbs3"]


@pytest.mark.parametrize("address", ["192.168.177.12", "192.168.178.12"])
def test_jumbo_frames_pass_on_both_twins(pair: str, address: str) -> None:
    on("spark-01", f"ping -c 1 -W 5 -M do -s 8972 {address}")


def test_port_state_follows_the_plug(pair: str) -> None:
    state = "cat /sys/class/net/enp1s0f0np0/carrier /sys/class/infiniband/rocep1s0f0/ports/1/state"
    assert on("spark-02", state).split("\n") == ["1", "4: ACTIVE"]
    done("unplug", "--name", FIRST, "c1")
    until(lambda: on("spark-02", state).split("\n") == ["0", "1: DOWN"], "port down after unplug")
    assert "already unplugged" in done("unplug", "--name", FIRST, "c1")
    assert json.loads(done("status", "--name", FIRST, "--json"))["cables"][0]["plugged"] is False
    done("plug", "--name", FIRST, "c1")
    until(lambda: on("spark-02", state).split("\n") == ["1", "4: ACTIVE"], "port active after plug")
    until(lambda: "192.168.177.12/24" in on("spark-02", "ip -br addr show enp1s0f0np0"), "address after plug")


def test_unknown_cable_lists_those_that_exist(pair: str) -> None:
    result = simulator("unplug", "--name", FIRST, "c7")
    assert (result.returncode, result.stderr) == (1, "error: no cable 'c7' in fleet 'it-first'; there are: c1\n")


def test_kernel_memory_settings_of_the_machine_stay(pair: str) -> None:
    setting = Path("/proc/sys/vm/swappiness")
    before = setting.read_text()
    assert on("spark-01", f"echo 17 | sudo tee {setting} >/dev/null && cat {setting}") == "17"
    assert setting.read_text() == before


def test_reboot_brings_everything_back(pair: str) -> None:
    boot = "cat /proc/sys/kernel/random/boot_id"
    before = on("spark-02", boot)
    simulator("ssh", "--name", FIRST, "spark-02", "sudo reboot")  # its connection breaks off

    def is_back() -> bool:
        result = simulator("ssh", "--name", FIRST, "spark-02", boot)
        return result.returncode == 0 and result.stdout.strip() != before

    until(is_back, "a new boot id after reboot")
    assert on("spark-02", "systemctl is-system-running --wait") == "running"
    until(lambda: "192.168.178.12/24" in on("spark-02", "ip -br -4 addr"), "fabric addresses after reboot")
    assert on("spark-02", "docker info --format '{{.ServerVersion}}'")
    assert on("spark-02", "cat /sys/class/infiniband/roceP2p1s0f0/ports/1/state") == "4: ACTIVE"
    on("spark-01", "ping -c 1 -W 5 -M do -s 8972 192.168.177.12")


def test_containers_on_a_node_get_what_a_real_one_gives(pair: str) -> None:
    base = ensure(docker.from_env())[0]
    command = f"docker save {base} | {sys.executable} -m simulator ssh --name {FIRST} spark-01 docker load"
    subprocess.run(["bash", "-o", "pipefail", "-c", command], cwd=ROOT, check=True, capture_output=True)
    options = "--network host --ipc shareable --ulimit memlock=-1 --security-opt no-new-privileges"
    device = "--device /dev/infiniband/uverbs0"
    on("spark-01", f"docker run -d --init --name first {options} {device} -v /tmp {base} sleep infinity")
    assert "rocep1s0f0" in on("spark-01", "docker exec first ls /sys/class/infiniband /dev/infiniband")
    on("spark-01", "docker exec first touch /tmp/seen /dev/shm/seen")
    joined = "--network host --pid container:first --ipc container:first --volumes-from first"
    assert on("spark-01", f"docker run --rm {joined} {base} ls /tmp /dev/shm").count("seen") == 2
    script = f"FROM {base}\\nRUN apt-get update && touch /built\\n"
    build = "mkdir -p b && cd b && docker buildx build -q --network host -t built ."
    assert on("spark-01", f"printf '{script}' > /tmp/Dockerfile && {build} -f /tmp/Dockerfile").startswith("sha256:")
    on("spark-01", "docker rm -f first")


def test_second_up_changes_nothing(pair: str) -> None:
    before = on("spark-01", "cat /proc/sys/kernel/random/boot_id")
    assert "is up already" in done("up", "--name", FIRST)
    assert on("spark-01", "cat /proc/sys/kernel/random/boot_id") == before
    result = simulator("up", "--name", FIRST, "--rate", "1gbit")
    assert result.returncode == 1 and result.stderr.startswith("error: fleet 'it-first' is up with other options")


def test_two_fleets_live_side_by_side(pair: str) -> None:
    try:
        done("up", "--name", SECOND, "--nodes", "2", "--topology", "pair")
        on("spark-01", "ping -c 1 -W 5 192.168.177.12", SECOND)
        done("unplug", "--name", SECOND, "c1")
        on("spark-01", "ping -c 1 -W 5 192.168.177.12", FIRST)
    finally:
        done("down", "--name", SECOND)
    assert left_behind(SECOND) == []
    on("spark-01", "ping -c 1 -W 5 192.168.177.12", FIRST)


def test_fleet_of_another_checkout_is_left_alone() -> None:
    engine = docker.from_env()
    image = ensure(engine)[1]
    foreign = engine.containers.create(image, labels={LABEL_FLEET: "it-foreign", LABEL_STATE: "/elsewhere/it-foreign"})
    try:
        for command in ("up", "down"):
            result = simulator(command, "--name", "it-foreign")
            assert result.returncode == 1 and "/elsewhere/it-foreign" in result.stderr
        foreign.reload()
    finally:
        foreign.remove()
    assert left_behind("it-foreign") == []


def test_half_up_is_repaired_or_started_again(pair: str) -> None:
    engine = docker.from_env()
    engine.containers.get(f"sparksim-{FIRST}-spark-02").stop(timeout=0)
    assert "waiting for spark-02" in done("up", "--name", FIRST)
    assert on("spark-02", "hostname") == "spark-02"
    engine.containers.get(f"sparksim-{FIRST}-spark-01-net").kill()
    assert "its network namespace is gone" in done("up", "--name", FIRST)
    until(lambda: "192.168.177.12/24" in on("spark-02", "ip -br -4 addr"), "fabric addresses after a new start")


def begin(fleet: str, stage: str) -> subprocess.Popen[str]:
    """Start ``up`` and return as soon as it has got to a stage."""
    command = [sys.executable, "-m", "simulator", "up", "--name", fleet]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    engine = docker.from_env()

    def reached() -> bool:
        assert process.poll() is None, "up ended before it could be interrupted"
        if stage == "network":
            return bool(engine.networks.list(filters={"label": f"{LABEL_FLEET}={fleet}"}))
        try:
            node = engine.containers.get(f"sparksim-{fleet}-spark-01")
        except NotFound:
            return False
        return node.labels[LABEL_ROLE] == "node" and node.status == "running"

    until(reached, stage)
    return process


@pytest.mark.parametrize("stage", ["network", "node"])
def test_interrupted_start_leaves_nothing(stage: str) -> None:
    process = begin(f"it-{stage}", stage)
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=TIMEOUT_S)[1]
    assert process.returncode == 130, said
    assert left_behind(f"it-{stage}") == []


def test_killed_start_is_removed_by_down() -> None:
    process = begin("it-killed", "node")
    process.kill()
    process.communicate()
    assert left_behind("it-killed") != []
    done("down", "--name", "it-killed")
    assert left_behind("it-killed") == []
