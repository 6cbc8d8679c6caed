# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Addresses by netplan on real simulated nodes, with both renderers: they come, they stay, and they go back."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import docker
import pytest
import yaml
from docker.errors import DockerException
from docker.models.containers import Container

from plugins.module_utils._netplan import render
from simulator.state import ROOT
from tests.integration.fleets import inside, simulator, skipped_without, succeed, until

OWN_FILE = "/etc/netplan/95-sparkfleet.yaml"
FOREIGN = "network: {version: 2, ethernets: {enp1s0f1np1: {optional: true, dhcp4: false}}}\n"
DISPATCHER = "/etc/NetworkManager/dispatcher.d/50-cut"

pytestmark = skipped_without()


def descendants(process: int) -> list[int]:
    """The processes that a process has started, and those that they have."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(path.read_text().rpartition(")")[2].split()[1])
        except (OSError, IndexError):
            continue
        if parent == process:
            number = int(path.parent.name)
            found += [number, *descendants(number)]
    return found


def setting(interface: str, number: int) -> dict[str, Any]:
    """What an interface is to be."""
    return {"interface": interface, "address": f"192.168.{number}.11/24", "mtu": 9000, "kept": False}


SETTINGS = [setting("enp1s0f0np0", 177), setting("enP2p1s0f0np0", 178)]


@dataclass(frozen=True)
class Spark:
    """The node that is changed, and how."""

    fleet: str
    renderer: str
    directory: Path

    @property
    def container(self) -> Container:
        return docker.from_env().containers.get(f"sparksim-{self.fleet}-spark-01")

    def on(self, command: str) -> str:
        """What a command prints on the node, wherever its network is."""
        code, output = inside(self.container, "bash", "-c", command)
        assert code == 0, f"{command}: {output}"
        return output

    def has(self, command: str) -> bool:
        """Whether a command succeeds on the node."""
        return inside(self.container, "bash", "-c", command)[0] == 0

    def command(self, **options: Any) -> list[str]:
        """The command that runs the task."""
        task = {
            "sparkfleet.vllm.fabric_netplan": {"directory": "/etc/sparkfleet/it", "confirm_timeout": 120, **options}
        }
        play = [{"hosts": "spark-01", "gather_facts": False, "become": True, "tasks": [task]}]
        book = self.directory / "play.yml"
        book.write_text(yaml.safe_dump(play))
        return ["ansible-playbook", "-i", str(self.directory / "inventory.yml"), str(book)]

    def run(self, *more: str, **options: Any) -> dict[str, Any]:
        """Run the task; its result as Ansible has it."""
        command = [*self.command(**options), *more]
        done = subprocess.run(
            command,
            cwd=ROOT,
            env={**self.environment, "ANSIBLE_STDOUT_CALLBACK": "ansible.posix.json"},
            capture_output=True,
            text=True,
            check=False,
        )
        try:
            result: dict[str, Any] = json.loads(done.stdout)["plays"][0]["tasks"][0]["hosts"]["spark-01"]
        except (ValueError, KeyError, IndexError):
            raise AssertionError(f"{done.stdout}\n{done.stderr}") from None
        return result

    @property
    def environment(self) -> dict[str, str]:
        """Where Ansible finds us."""
        places = {
            "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
            "ANSIBLE_COLLECTIONS_PATH": str(ROOT / ".collections"),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        }
        return {**os.environ, **places}

    def interrupted(self, **options: Any) -> None:
        """Run the task, kill Ansible as soon as the change has begun, and wait until it is in force."""
        process = subprocess.Popen(
            self.command(**options),
            cwd=ROOT,
            env=self.environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            until(lambda: not self.is_over(), "a change")
        finally:
            # Ansible's workers have process groups of their own.
            for number in (*descendants(process.pid), process.pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(number, signal.SIGKILL)
            process.wait()
        until(lambda: self.has("ip -br addr show | grep -q 192.168.178.11"), "new addresses")

    @property
    def state(self) -> dict[str, Any]:
        """What a change must not leave behind: files, addresses, MTU, routes."""
        links = [link for link in json.loads(self.on("ip -j addr show")) if link["ifname"].startswith("en")]
        return {
            "files": self.on("find /etc/netplan /etc/sparkfleet -type f -exec sha256sum {} + 2>/dev/null | sort"),
            "staged": self.on("ls -A /run/netplan 2>/dev/null; true"),
            "links": {
                link["ifname"]: (
                    link["mtu"],
                    "UP" in link["flags"],
                    [address["local"] for address in link["addr_info"] if address["family"] == "inet"],
                )
                for link in links
            },
            "routes": sorted(self.on("ip -4 route show").replace("linkdown", "").split("\n")),
        }

    def is_over(self) -> bool:
        """Whether no change is pending, and no unit of one is left."""
        units = "systemctl list-units --plain --no-legend 'sparkfleet-fabric*'"
        return self.has(f'test ! -e /run/sparkfleet/fabric/pending.json && test -z "$({units})"')


@pytest.fixture(scope="module", params=["NetworkManager", "networkd"])
def node(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Spark]:
    fleet = f"it-np-{request.param.lower()[:8]}"
    spark = Spark(fleet, request.param, tmp_path_factory.mktemp(fleet))
    options = ("--nodes", "2", "--topology", "pair", "--no-addresses", "--renderer", request.param)
    try:
        for command in (("up", *options), ("inventory", "--output", str(spark.directory / "inventory.yml"))):
            succeed(command[0], "--name", fleet, *command[1:])
        spark.on(f"umask 077; printf '%s' '{FOREIGN}' > /etc/netplan/50-owner.yaml")
        yield spark
    finally:
        simulator("down", "--name", fleet)


@pytest.fixture
def spark(node: Spark) -> Iterator[Spark]:
    """The node, which has to be after the test what it was before."""
    before = node.state
    yield node
    until(node.is_over, "the end of a change")
    assert node.state == before


# What does not hang on the renderer is tried with the one that DGX OS has.
either_will_do = pytest.mark.parametrize("node", ["NetworkManager"], indirect=True)

# For what is not to be confirmed: it does not have to be long enough for a slow machine.
SOON = {"confirm_timeout": 20}


def wanted(*settings: dict[str, Any]) -> dict[str, Any]:
    """The options that ask for settings."""
    return {"content": render(settings, None), "settings": list(settings)}


def test_addresses_come_stay_and_go(spark: Spark) -> None:
    shown = spark.run("--check", "--diff", **wanted(*SETTINGS))
    assert shown["changed"] is True, shown
    assert shown["diff"][0]["after"] == render(SETTINGS, None)
    assert not spark.has(f"test -e {OWN_FILE}")

    result = spark.run(**wanted(*SETTINGS))
    assert result["changed"] is True, result
    assert spark.on(f"stat -c %a:%U {OWN_FILE}; ls -A /run/netplan /run/sparkfleet").split() == [
        "600:root",
        "/run/netplan:",
        "/run/sparkfleet:",
    ]
    for one in SETTINGS:
        links = spark.on(f"ip -o addr show dev {one['interface']}; ip -o link show dev {one['interface']}")
        assert f"inet {one['address']} " in links and " mtu 9000 " in links
    assert spark.on("cat /etc/netplan/50-owner.yaml") == FOREIGN.strip()
    assert spark.run(**wanted(*SETTINGS))["changed"] is False

    # An interface that leaves our file becomes what it was; the other one stays.
    assert spark.run(**wanted(SETTINGS[0]))["changed"] is True
    assert "inet " not in spark.on("ip -o addr show dev enP2p1s0f0np0")
    assert " mtu 1500 " in spark.on("ip -o link show dev enP2p1s0f0np0")
    assert "inet 192.168.177.11/24 " in spark.on("ip -o addr show dev enp1s0f0np0")

    assert spark.run(state="absent")["changed"] is True
    assert spark.run(state="absent")["changed"] is False
    assert not spark.has(f"test -e {OWN_FILE} || test -e /etc/sparkfleet/it/fabric-before.json")
    spark.on("rmdir /etc/sparkfleet/it /etc/sparkfleet")


def test_a_change_that_cuts_management_off_goes_back(spark: Spark) -> None:
    cut = "ip link set dev enP7s7 down"
    if spark.renderer == "NetworkManager":
        script = f'#!/bin/sh\nif [ "$1:$2" = enp1s0f0np0:up ]; then {cut}; fi\n'
        spark.on(f"cat > {DISPATCHER} <<'END'\n{script}END\nchmod 755 {DISPATCHER}")
    else:
        loop = f"until ip -br addr show dev enp1s0f0np0 | grep -q 192.168.177.11; do sleep 0.1; done; {cut}"
        spark.on(f"systemd-run --collect --unit=cut bash -c '{loop}'")
    try:
        result = spark.run(**wanted(*SETTINGS), **SOON)
    finally:
        spark.on(f"rm -f {DISPATCHER}; systemctl stop cut.service 2>/dev/null; true")
    assert result["msg"] == (
        "spark-01: could not be reached over management within 20 s after its new addresses were applied; "
        "it went back to the old ones by itself; look at 'journalctl -t sparkfleet' on it\n"
    )
    journal = spark.on("journalctl -t sparkfleet --no-pager")
    assert "nobody has confirmed" in journal and "ip link set dev enP7s7 up" in journal
    assert "default via " in spark.on("ip -4 route show dev enP7s7")


def test_a_change_that_nobody_confirms_goes_back(spark: Spark) -> None:
    spark.interrupted(**wanted(*SETTINGS), confirm_timeout=60)
    again = spark.run(**wanted(*SETTINGS))
    assert again["failed"] is True
    assert again["msg"].startswith(
        "spark-01: another change of the fabric's addresses waits for its confirmation; it goes back by itself in "
    )
    assert again["msg"].endswith(" s: run again after that\n")


@either_will_do
def test_a_reboot_undoes_what_nobody_has_confirmed(spark: Spark) -> None:
    boot = spark.on("cat /proc/sys/kernel/random/boot_id")
    spark.interrupted(**wanted(*SETTINGS), confirm_timeout=600)
    simulator("ssh", "--name", spark.fleet, "spark-01", "sudo reboot")  # its connection breaks off

    def is_back() -> bool:
        check = f"test $(cat /proc/sys/kernel/random/boot_id) != {boot} && systemctl is-active multi-user.target"
        try:
            return spark.has(check)
        except (AssertionError, DockerException):  # between two starts of the container
            return False

    until(is_back, "a new boot id after reboot")
    assert not spark.has(f"test -e {OWN_FILE} || test -e /run/netplan/95-sparkfleet.yaml")
    assert "enp1s0f0np0" not in spark.on("netplan get")
    generated = "/run/NetworkManager/system-connections /run/systemd/network"
    assert spark.on(f"find {generated} -name '*netplan-enp1s0f0np0*' 2>/dev/null; true") == ""
    # The kernel of a real machine would have forgotten these; a simulated node's links outlive its boot.
    for one in SETTINGS:
        spark.on(f"ip addr flush dev {one['interface']}; ip link set dev {one['interface']} mtu 1500")


@either_will_do
def test_what_does_not_come_into_force_is_said(spark: Spark) -> None:
    result = spark.run(**wanted(SETTINGS[0], setting("enp1s0f1np1", 179)))
    lacks = "enp1s0f1np1 has no carrier"
    assert result["msg"].startswith(f"spark-01: after netplan apply {lacks}"), result
    assert result["msg"].endswith("it went back to the old addresses; look at 'journalctl -t sparkfleet' on it\n")


@either_will_do
@pytest.mark.parametrize("mode", [(), ("--check",)])
def test_a_broken_file_of_the_owner_is_named_before_anything_is_changed(spark: Spark, mode: tuple[str, ...]) -> None:
    spark.on("umask 077; printf 'network: {ethernets: [\\n' > /etc/netplan/60-broken.yaml")
    try:
        result = spark.run(*mode, **wanted(*SETTINGS))
    finally:
        spark.on("rm /etc/netplan/60-broken.yaml")
    assert result["msg"].startswith(
        "spark-01: netplan refuses its files, so nothing was changed: /etc/netplan/60-broken.yaml:"
    ), result
    assert result["msg"].count("\n") == 1
    assert not spark.has("ls /run/sparkfleet/fabric/pending.json")


@either_will_do
def test_the_interface_of_management_is_refused(spark: Spark) -> None:
    result = spark.run(**wanted(setting("enP7s7", 177)))
    assert result["msg"].startswith("spark-01: enP7s7 carries management and is not changed; ")
