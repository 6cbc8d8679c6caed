# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Real simulated fleets: they do what Sparks do, and leave nothing behind."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import docker
import pytest
from docker.errors import NotFound

from simulator.fleet import LABEL_FLEET, LABEL_ROLE, LABEL_STATE
from simulator.image import ensure
from simulator.state import ROOT, Store
from tests.integration import fleets
from tests.integration.fleets import simulator, skipped_without, succeed

FIRST, SECOND, THIRD = "it-first", "it-second", "it-third"
THIRD_OPTIONS = ("--nodes", "3", "--topology", "switch", "--no-addresses", "--renderer", "networkd")
PORT_0 = ("enp1s0f0np0", "enP2p1s0f0np0")
PORT_1 = ("enp1s0f1np1", "enP2p1s0f1np1")
TIMEOUT_S = 60

until = partial(fleets.until, timeout_s=TIMEOUT_S)
pytestmark = skipped_without()


def done(*arguments: str) -> str:
    """Run a simulator command that has to succeed; both of its outputs."""
    result = succeed(*arguments)
    return result.stdout + result.stderr


def on(node: str, command: str, fleet: str = FIRST) -> str:
    """What a command prints on a node."""
    result = simulator("ssh", "--name", fleet, node, command)
    assert result.returncode == 0, f"{command}: {result.stdout} {result.stderr}"
    return result.stdout.strip()


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


@pytest.fixture(scope="module")
def three() -> Iterator[str]:
    """Three nodes on a switch, with networkd and without addresses; every test cables them as it likes."""
    done("up", "--name", THIRD, *THIRD_OPTIONS)
    yield THIRD
    done("down", "--name", THIRD)
    assert left_behind(THIRD) == []


def shown(fleet: str) -> dict[str, Any]:
    """What status knows."""
    return dict(json.loads(simulator("status", "--name", fleet, "--json").stdout))


def carriers(fleet: str) -> set[tuple[int, str]]:
    """Node number and netdev of all that have carrier."""
    return {
        (number, netdev)
        for number, node in enumerate(shown(fleet)["nodes"], start=1)
        for netdev, link in node["interfaces"].items()
        if link["carrier"]
    }


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


def boot_id(node: str, fleet: str) -> str:
    """The boot id of a node; empty while it does not answer."""
    result = simulator("ssh", "--name", fleet, node, "cat /proc/sys/kernel/random/boot_id")
    return result.stdout.strip() if result.returncode == 0 else ""


def test_carrier_goes_and_comes_where_a_cable_is_moved(three: str) -> None:
    done("cable", "--name", three, "switch")
    # the node's own view, event by event
    on("spark-01", "sudo systemd-run --unit see --property StandardOutput=file:/tmp/seen ip -o monitor link", three)
    until(lambda: on("spark-01", "pgrep -c -f 'ip -o monitor link$' || true", three) == "1", "monitor")
    done("cable", "--name", three, "--ends", "spark-01:p0=spark-02:p1")
    assert carriers(three) == {(1, netdev) for netdev in PORT_0} | {(2, netdev) for netdev in PORT_1}
    seen = on("spark-01", "sudo systemctl stop see; grep -F ' enp1s0f0np0@' /tmp/seen", three).splitlines()
    down = [at for at, line in enumerate(seen) if "NO-CARRIER" in line]
    up = [at for at, line in enumerate(seen) if "state UP" in line]
    assert down and up and down[0] < up[-1], seen


def test_frames_go_where_the_cables_lead_and_addresses_stay(three: str) -> None:
    done("cable", "--name", three, "--ends", "1:p0=2:p1", "2:p0=3:p0=1:p1")
    for node, netdev, address in ((1, PORT_0[0], 1), (2, PORT_1[0], 2), (3, PORT_0[0], 3)):
        on(f"spark-0{node}", f"sudo ip addr add 10.9.8.{address}/24 dev {netdev}", three)
    on("spark-01", "ping -c 1 -W 5 10.9.8.2", three)
    assert simulator("ssh", "--name", three, "spark-01", "ping -c 1 -W 1 10.9.8.3").returncode
    done("cable", "--name", three, "pair", "--nodes", "1,spark-03")
    on("spark-01", "ping -c 1 -W 5 10.9.8.3", three)
    assert simulator("ssh", "--name", three, "spark-01", "ping -c 1 -W 1 10.9.8.2").returncode
    assert carriers(three) == {(node, netdev) for node in (1, 3) for netdev in PORT_0}
    assert "10.9.8.2/24" in on("spark-02", f"ip -br addr show {PORT_1[0]}", three)
    for node in (1, 2, 3):
        on(f"spark-0{node}", "sudo ip addr flush to 10.9.8.0/24", three)


def test_same_cabling_again_changes_nothing(three: str) -> None:
    done("cable", "--name", three, "ring")
    changes = f"cat /sys/class/net/{PORT_0[0]}/carrier_changes"
    before = on("spark-01", changes, three)
    assert "already cabled so: c1 spark-01:p0=spark-02:p1" in done("cable", "--name", three, "ring")
    assert on("spark-01", changes, three) == before
    done("unplug", "--name", three, "c1")
    assert "already" not in done("cable", "--name", three, "ring")
    assert all(cable["plugged"] for cable in shown(three)["cables"])


def test_up_leaves_a_re_cabled_fleet_alone(three: str) -> None:
    done("cable", "--name", three, "ring")
    before = boot_id("spark-01", three)
    assert "it was re-cabled and stays so: c1 spark-01:p0=spark-02:p1" in done("up", "--name", three, *THIRD_OPTIONS)
    assert boot_id("spark-01", three) == before
    found = shown(three)
    assert (found["recabled"], found["problems"]) == (True, [])
    assert [cable["ends"] for cable in found["cables"]][2] == ["spark-03 p0", "spark-01 p1"]
    done("cable", "--name", three, "switch")
    assert "re-cabled" not in done("up", "--name", three, *THIRD_OPTIONS)


def test_damaged_cabling_is_a_problem_and_cabling_repairs_it(three: str) -> None:
    done("cable", "--name", three, "ring")
    subprocess.run(["ip", "-n", f"sim-fabric-{three}", "link", "delete", "c2"], check=True)
    assert "c2: c2 missing" in shown(three)["problems"]
    done("cable", "--name", three, "ring")
    assert shown(three)["problems"] == []


@pytest.mark.parametrize(
    "arguments",
    [
        ["ring", "--nodes", "1,2"],
        ["pair"],
        ["--ends", "1:p0=2:p0", "2:p0=3:p0"],
        ["--ends", "1:p0=4:p0"],
        ["--ends", "1:p0=2:p2"],
    ],
)
def test_cabling_that_cannot_be_changes_nothing(three: str, arguments: list[str]) -> None:
    before = shown(three)["cables"]
    result = simulator("cable", "--name", three, *arguments)
    assert result.returncode == 1 and result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
    assert shown(three)["cables"] == before


def mbits(fleet: str, reverse: bool) -> float:
    """What TCP gets over the first cable, from the first node to the second one or back."""
    on("spark-02", "iperf3 -s -1 -D", fleet)
    until(lambda: on("spark-02", "ss -Hltn sport = 5201", fleet) != "", "iperf3's port")
    output = on("spark-01", f"iperf3 -J -t 1 -c 10.9.8.2 {'-R' if reverse else ''}", fleet)
    return float(json.loads(output)["end"]["sum_received"]["bits_per_second"]) / 1e6


def test_limit_holds_in_both_directions_until_it_is_lifted(three: str) -> None:
    done("cable", "--name", three, "pair", "--nodes", "1,2")
    for node in (1, 2):
        on(f"spark-0{node}", f"sudo ip addr add 10.9.8.{node}/24 dev {PORT_0[0]}", three)
    try:
        assert "c1 has a limit of 100mbit" in done("limit", "--name", three, "c1", "100mbit")
        assert [mbits(three, reverse) < 110 for reverse in (False, True)] == [True, True]
        # what a node sends is limited too: one that sends to many shares it
        assert "100Mbit" in on("spark-01", f"/usr/sbin/tc qdisc show dev {PORT_0[1]}", three)
        done("unplug", "--name", three, "c1")
        done("plug", "--name", three, "c1")
        assert shown(three)["cables"][0]["rate"] == "100mbit"
        assert mbits(three, False) < 110
        done("limit", "--name", three, "c1", "none")
        assert mbits(three, False) > 200
        assert "tbf" not in on("spark-01", "/usr/sbin/tc qdisc show", three)
    finally:
        for node in (1, 2):
            on(f"spark-0{node}", "sudo ip addr flush to 10.9.8.0/24", three)


def test_networkd_node_has_its_own_renderer_and_management_is_left_alone(three: str) -> None:
    done("cable", "--name", three, "switch")
    active = simulator("ssh", "--name", three, "1", "systemctl is-active systemd-networkd NetworkManager")
    assert active.stdout.split() == ["active", "inactive"]
    assert "renderer: networkd" in on("spark-01", "sudo /usr/sbin/netplan get", three)
    assert on("spark-01", "sudo networkctl --no-legend list enP7s7", three).split()[-1] == "unmanaged"
    assert on("spark-01", "ip -br -4 addr | grep -c 192.168 || true", three) == "0"


@pytest.mark.parametrize(
    ("fleet", "cabling"), [("pair", ("pair", "--cables", "2")), ("three", ("pair", "--nodes", "1,2", "--cables", "2"))]
)
def test_netplan_gives_address_and_mtu_again_and_again(
    fleet: str, cabling: tuple[str, ...], request: pytest.FixtureRequest
) -> None:
    """With NetworkManager and with networkd, over an SSH connection that stays, and after a reboot."""
    name = request.getfixturevalue(fleet)
    done("cable", "--name", name, *cabling)
    file = "/etc/netplan/95-test.yaml"

    def has(node: str, address: str) -> bool:
        found = on(node, f"ip -br -4 addr show {PORT_1[0]}; cat /sys/class/net/{PORT_1[0]}/mtu", name).split()
        return found[2:] == [address, "9000"]

    def give(node: str, address: str) -> None:
        ethernets = {netdev: {"link-local": [], "mtu": 9000} for netdev in PORT_1}
        ethernets[PORT_1[0]]["addresses"] = [address]
        text = json.dumps({"network": {"version": 2, "ethernets": ethernets}})
        write = f"echo '{text}' | sudo tee {file} >/dev/null && sudo chmod 600 {file}"
        # more than five in ten seconds would be more than systemd starts NetworkManager
        on(node, f"{write} && sudo systemctl reset-failed && sudo /usr/sbin/netplan apply && echo still here", name)
        until(lambda: has(node, address), f"{node} has {address}")

    try:
        for host in (11, 12, 12, 11):
            give("spark-02", f"10.9.7.{host}/24")
        give("spark-01", "10.9.7.10/24")
        jumbo = "ping -c 1 -W 5 -M do -s 8972 10.9.7.11"
        on("spark-01", jumbo, name)
        before = boot_id("spark-02", name)
        simulator("ssh", "--name", name, "spark-02", "sudo reboot")
        until(lambda: boot_id("spark-02", name) not in ("", before), "a new boot id")
        assert on("spark-02", "systemctl is-system-running --wait", name) == "running"
        until(lambda: has("spark-02", "10.9.7.11/24"), "address and MTU after a reboot")
        on("spark-01", jumbo, name)
    finally:
        for node in ("spark-01", "spark-02"):
            on(node, f"sudo rm -f {file} && sudo systemctl reset-failed && sudo /usr/sbin/netplan apply", name)
        done("cable", "--name", name, "switch" if fleet == "three" else "pair")
    until(lambda: "10.9.7." not in on("spark-02", "ip -br -4 addr", name), "address gone with the file")


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


def test_fleet_of_another_checkout_that_a_restart_ended_is_taken_away() -> None:
    engine = docker.from_env()
    labels = {LABEL_FLEET: "it-foreign", LABEL_STATE: "/elsewhere/it-foreign"}
    foreign = engine.containers.create(ensure(engine)[1], ["true"], entrypoint=[], labels=labels)
    foreign.start()
    foreign.wait()
    assert "/elsewhere/it-foreign runs no more" in done("down", "--name", "it-foreign")
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
    # A shell's job in the background ignores SIGINT, and what it starts inherits that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
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
