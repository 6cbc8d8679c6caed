# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Simulated Sparks are found, and the inventory is the one that the simulator writes, with the clusters besides."""

from __future__ import annotations

import ipaddress
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from simulator.state import ROOT
from tests.integration.fleets import skipped_without, succeed, until

pytestmark = skipped_without()

FLEET = "it-discover"
NODES = ("spark-01", "spark-02", "spark-03", "spark-04")
LONGEST_RUN_S = 180

ANNOUNCED = """<?xml version="1.0" standalone="no"?>
<!DOCTYPE service-group SYSTEM "avahi-service.dtd">
<service-group>
  <name replace-wildcards="yes">%h</name>
  <service><type>_ssh._tcp</type><port>22</port></service>
</service-group>
"""
"""What a node of DGX OS announces; the simulated ones run avahi without it."""


@dataclass(frozen=True)
class Found:
    """What ansible-inventory printed."""

    inventory: dict[str, Any]
    said: str
    """The warnings, unfolded."""

    @property
    def hosts(self) -> dict[str, dict[str, Any]]:
        """Every host with its variables."""
        # Ansible adds this one to every host, whatever the inventory.
        return {
            name: {variable: value for variable, value in own.items() if variable != "ansible_local"}
            for name, own in self.inventory["_meta"]["hostvars"].items()
        }

    @property
    def clusters(self) -> list[list[str]]:
        """The hosts of each cluster, head first."""
        return [self.inventory[name]["hosts"] for name in self.inventory["sparks"]["children"]]


@dataclass(frozen=True)
class Lab:
    """The fleet, and the inventory that the simulator writes for it."""

    directory: Path
    nodes: Path
    written: Mapping[str, Mapping[str, Any]]

    @property
    def network(self) -> str:
        """The management network as CIDR."""
        return str(ipaddress.ip_network(f"{self.written['spark-01']['ansible_host']}/24", strict=False))

    def discover(self, *arguments: str, **options: Any) -> Found:
        """Run the plugin with what the simulator's inventory says about logging in."""
        own = self.written["spark-01"]
        content = {
            "plugin": "sparkfleet.vllm.discover",
            "mdns": False,
            "timeout_s": 10,
            "user": own["ansible_user"],
            "private_key_file": own["ansible_ssh_private_key_file"],
            "ssh_common_args": own["ansible_ssh_common_args"],
            **options,
        }
        file = self.directory / "found/sparks.yml"
        file.write_text(yaml.safe_dump(content), encoding="utf-8")
        return listed(file, *arguments)


def listed(inventory: Path, *arguments: str) -> Found:
    """What ansible-inventory makes of an inventory."""
    command = [str(Path(sys.executable).with_name("ansible-inventory")), "-i", str(inventory), "--list", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=LONGEST_RUN_S)
    assert done.returncode == 0, f"{done.stdout}{done.stderr}"
    return Found(json.loads(done.stdout), " ".join(done.stderr.split()))


def on(node: str, command: str) -> str:
    """What a command prints on a node, as root."""
    return succeed("ssh", "--name", FLEET, node, "sudo", "sh", "-c", f"'{command}'").stdout


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """Four nodes whose fabric has no addresses."""
    directory = tmp_path_factory.mktemp("discover")
    nodes = directory / "nodes.yml"
    try:
        succeed("up", "--name", FLEET, "--nodes", "4", "--topology", "switch", "--no-addresses")
        succeed("inventory", "--name", FLEET, "--output", str(nodes))
        written = yaml.safe_load(nodes.read_text(encoding="utf-8"))["all"]["hosts"]
        # Where control sockets and Python are is no node's to say: it stands beside the inventory, as owners write it.
        constant = ("ansible_control_path_dir", "ansible_python_interpreter")
        beside = directory / "found/group_vars/sparks.yml"
        beside.parent.mkdir(parents=True)
        beside.write_text(yaml.safe_dump({name: written["spark-01"][name] for name in constant}), encoding="utf-8")
        yield Lab(directory, nodes, written)
    finally:
        succeed("down", "--name", FLEET)


def cable(*arguments: str) -> None:
    """Cable the nodes, and wait until they have noticed."""
    succeed("cable", "--name", FLEET, *arguments)
    look = (
        "cd /sys/class/infiniband; for d in *; do n=$(ls $d/device/net); "
        "case $(cat /sys/class/net/$n/carrier 2>/dev/null):$(cat $d/ports/1/state) in "
        "1:*ACTIVE | 0:*DOWN | :*DOWN) ;; *) echo no ;; esac; done"
    )
    until(lambda: not any(on(node, look) for node in NODES), "RDMA devices as the cables are")


def test_the_inventory_is_the_one_that_the_simulator_writes(lab: Lab) -> None:
    cable("switch")
    found = lab.discover(hosts=[lab.network])
    assert found.hosts == listed(lab.nodes).hosts
    assert set(found.hosts) == set(NODES)
    assert found.clusters == [list(NODES)]


@pytest.mark.parametrize(
    ("cables", "clusters", "sudo"),
    [
        (["ring"], [list(NODES)], True),
        (["pair", "--nodes", "2,3"], [["spark-01"], ["spark-02", "spark-03"], ["spark-04"]], True),
        (["--ends", "1:p0=4:p1", "2:p1=3:p1"], [["spark-01", "spark-04"], ["spark-02", "spark-03"]], True),
        (["--ends", "1:p0=4:p1", "2:p1=3:p1"], [["spark-01", "spark-04"], ["spark-02", "spark-03"]], False),
    ],
    ids=["ring", "pair", "two pairs", "two pairs without root"],
)
def test_clusters_are_as_the_cables(lab: Lab, cables: list[str], clusters: list[list[str]], sudo: bool) -> None:
    for node in NODES:
        # Without root a port without an address is seen by others only where nothing is filtered by reverse path.
        on(node, "for f in /proc/sys/net/ipv4/conf/*/rp_filter; do echo 0 > $f; done")
    cable(*cables)
    addresses = [own["ansible_host"] for own in lab.written.values()]
    assert lab.discover(hosts=addresses, sudo=sudo).clusters == clusters


def test_who_does_not_let_us_in_is_named(lab: Lab) -> None:
    cable("switch")
    addresses = [own["ansible_host"] for own in lab.written.values()]
    on("spark-04", "chmod 000 /home/nvidia/.ssh/authorized_keys")
    try:
        found = lab.discover(hosts=addresses)
    finally:
        # The way in is closed; the engine is the other one.
        command = ["docker", "exec", f"sparksim-{FLEET}-spark-04", "chmod", "600", "/home/nvidia/.ssh/authorized_keys"]
        subprocess.run(command, check=True)
    assert found.clusters == [list(NODES[:3])]
    assert f"{addresses[3]}: does not let us in" in found.said


def test_offline_the_cache_has_them(lab: Lab) -> None:
    cable("switch")
    cache = {"cache": True, "cache_plugin": "jsonfile", "cache_connection": str(lab.directory / "cache")}
    asked = lab.discover(hosts=[lab.network], **cache)
    assert len(asked.hosts) == len(NODES)
    # Nobody is there any more: an address of documentation in place of the network.
    assert lab.discover(hosts=["192.0.2.1"], **cache).inventory == asked.inventory
    renewed = lab.discover("--flush-cache", hosts=["192.0.2.1"], **cache)
    assert renewed.inventory == asked.inventory
    assert renewed.said.count("does not answer at") == len(NODES)


def test_mdns(lab: Lab) -> None:
    pytest.importorskip("zeroconf")
    cable("switch")
    for node in NODES:
        on(node, f"cat > /etc/avahi/services/ssh.service <<END\n{ANNOUNCED}END\n")
        until(lambda node=node: on(node, "systemctl is-active avahi-daemon || true").strip() == "active", "avahi")
    try:
        until(lambda: lab.discover(mdns=True, timeout_s=5).clusters == [list(NODES)], "all nodes by mDNS")
        found = lab.discover(mdns=True, timeout_s=5)
        addresses = {name: own["ansible_host"] for name, own in lab.written.items()}
        assert {name: own["ansible_host"] for name, own in found.hosts.items()} == addresses
    finally:
        for node in NODES:
            on(node, "rm /etc/avahi/services/ssh.service")
