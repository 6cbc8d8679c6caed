# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""On simulated nodes, roce_facts says what ibdev2netdev, ibstat and show_gids say."""

from __future__ import annotations

import ipaddress
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from simulator.state import ROOT
from tests.integration import fleets
from tests.integration.fleets import skipped_without, succeed

FLEET = "it-roce"
NODES = ("spark-01", "spark-02")

Facts = dict[str, dict[str, Any]]

until = partial(fleets.until, timeout_s=60)
pytestmark = skipped_without()


def simulator(command: str, *arguments: str) -> str:
    """What a simulator command prints that has to succeed."""
    return succeed(command, "--name", FLEET, *arguments).stdout


def on(node: str, command: str) -> str:
    """What a command prints on a node."""
    return simulator("ssh", node, command)


@pytest.fixture(scope="module")
def inventory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A pair with two cables, the second one without addresses, and its inventory."""
    path = tmp_path_factory.mktemp("inventory") / "nodes.yml"
    try:
        simulator("up", "--nodes", "2", "--topology", "pair", "--cables", "2")
        simulator("inventory", "--output", str(path))
        for node in NODES:
            until_ports(node, active=4)
            until_gids(node, "192.168.", 4)
        yield path
    finally:
        simulator("down")


def until_ports(node: str, active: int) -> None:
    states = "cat /sys/class/infiniband/*/ports/1/state"
    until(lambda: on(node, states).count("ACTIVE") == active, f"{active} active ports on {node}")


def until_gids(node: str, part: str, count: int) -> None:
    until(lambda: on(node, "show_gids").count(part) == count, f"{count} GIDs with {part} on {node}")


def roce_facts(inventory: Path, tmp_path: Path) -> Facts:
    """Run the module on all nodes as an owner would, and return each node's facts."""
    answers = tmp_path / "answers"
    command = ["ansible", "all", "-i", str(inventory), "-m", "sparkfleet.vllm.roce_facts"]
    environment = {
        **os.environ,
        "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
        "ANSIBLE_COLLECTIONS_PATH": str(ROOT / ".collections"),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    command += ["-a", "management_address={{ ansible_host }}", "--tree", str(answers)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return {node: json.loads((answers / node).read_text())["roce"] for node in NODES}


def tools() -> dict[str, list[str]]:
    """What the three commands print on each node."""
    return {node: [on(node, tool) for tool in ("ibdev2netdev", "/usr/sbin/ibstat", "show_gids")] for node in NODES}


def by_ibdev2netdev(text: str) -> dict[tuple[str, int], tuple[str, bool]]:
    lines = text.splitlines()
    found = [re.fullmatch(r"(\S+) port (\d+) ==> (\S+) \((Up|Down)\)", line) for line in lines]
    return {(m[1], int(m[2])): (m[3], m[4] == "Up") for m in found if m}


def by_ibstat(text: str) -> dict[str, dict[str, str]]:
    """The lines "key: value" of each device; it has one port."""
    devices: dict[str, dict[str, str]] = {}
    for line in text.splitlines():
        if line.startswith("CA '"):
            device = devices.setdefault(line.split("'")[1], {})
        elif ": " in line:
            key, value = line.strip().split(": ", 1)
            device[key] = value
    return devices


def by_show_gids(output: str) -> list[tuple[str, ...]]:
    """Rows of device, port, index, GID, IPv4 or empty, v1 or v2, interface."""
    text = output.splitlines()
    assert text[0].split() == ["DEV", "PORT", "INDEX", "GID", "IPv4", "VER", "DEV"]
    # Between tabs: an IPv6 GID leaves the column of IPv4 empty.
    rows = [re.split(r"\t+", line) for line in text[2:-1]]
    assert text[-1] == f"n_gids_found={len(rows)}"
    return [tuple(row if len(row) == 7 else [*row[:4], "", *row[4:]]) for row in rows]


def agreed_facts(inventory: Path, tmp_path: Path) -> Facts:
    """Read the facts between two equal readings of the tools, and check that they agree."""
    said: list[dict[str, list[str]]] = [tools()]
    facts: list[Facts] = []

    def is_quiet() -> bool:
        # Link-local addresses and their GIDs come and go for a while after a cable was moved.
        facts.append(roce_facts(inventory, tmp_path))
        said.append(tools())
        return said[-1] == said[-2]

    until(is_quiet, "two equal readings of the tools")
    assert_agreement(facts[-1], said[-1])
    return facts[-1]


def assert_agreement(facts: Facts, said_by_tools: dict[str, list[str]]) -> None:
    for node, roce in facts.items():
        ibdev2netdev, ibstat, show_gids = said_by_tools[node]
        devices = roce["devices"]
        assert by_ibdev2netdev(ibdev2netdev) == {(d["name"], d["port"]): (d["netdev"], d["active"]) for d in devices}
        stat = by_ibstat(ibstat)
        assert sorted(stat) == sorted(d["name"] for d in devices)
        for d in devices:
            said = stat[d["name"]]
            assert said["CA type"] == d["hca_type"]
            assert said["Firmware version"] == d["fw_ver"]
            assert said["Node GUID"] == "0x" + d["node_guid"].replace(":", "")
            assert said["System image GUID"] == "0x" + d["card"].replace(":", "")
            assert said["State"].upper() == d["state"]
            assert said["Physical state"] == d["phys_state"]
            assert float(said["Rate"]) == d["rate_gbps"]
            assert said["Link layer"] == d["link_layer"]
        table = [
            (
                d["name"],
                str(d["port"]),
                str(gid["index"]),
                str(ipaddress.IPv6Address(gid["gid"])),
                gid["address"] if "." in gid["address"] else "",
                {"IB/RoCE v1": "v1", "RoCE v2": "v2"}[gid["type"]],
                gid["netdev"],
            )
            for d in devices
            for gid in d["gids"]
        ]
        shown = [(*row[:3], str(ipaddress.IPv6Address(row[3])), *row[4:]) for row in by_show_gids(show_gids)]
        assert sorted(shown) == sorted(table)
        assert roce["management"] == ["enP7s7"]


def device(facts: Facts, node: str, name: str) -> dict[str, Any]:
    found: dict[str, Any] = next(d for d in facts[node]["devices"] if d["name"] == name)
    return found


def test_with_everything_plugged(inventory: Path, tmp_path: Path) -> None:
    facts = agreed_facts(inventory, tmp_path)
    for roce in facts.values():
        assert all(d["active"] for d in roce["devices"])
        assert [d["gid_index_v2_ipv4"] for d in roce["devices"] if d["physical_port"] == "p0"] == [3, 3]
        without = [p["device"] for p in roce["problems"] if p["code"] == "no_address"]
        assert without == [d["name"] for d in reversed(roce["devices"]) if d["physical_port"] == "p1"]


def test_with_a_cable_unplugged(inventory: Path, tmp_path: Path) -> None:
    simulator("unplug", "c2")
    try:
        for node in NODES:
            until_ports(node, active=2)
        facts = agreed_facts(inventory, tmp_path)
        carriers = [d["carrier"] for d in facts["spark-01"]["devices"]]
        assert carriers.count(True) == carriers.count(False) == 2
    finally:
        simulator("plug", "c2")
    for node in NODES:
        until_ports(node, active=4)


def test_with_a_twin_set_down(inventory: Path, tmp_path: Path) -> None:
    twin = "enP2p1s0f0np0"
    on("spark-01", f"sudo ip link set {twin} down")
    try:
        until_ports("spark-01", active=3)
        facts = agreed_facts(inventory, tmp_path)
        # Administratively down, which is not the same as without carrier.
        assert device(facts, "spark-01", "roceP2p1s0f0")["carrier"] is None
        down = [problem["message"] for problem in facts["spark-01"]["problems"] if problem["code"] == "twin_down"]
        assert down == [f"enp1s0f0np0: its twin {twin} is down administratively; half of the port's bandwidth is lost"]
    finally:
        on("spark-01", f"sudo ip link set {twin} up")
        until_ports("spark-01", active=4)


def test_with_a_drifted_gid(inventory: Path, tmp_path: Path) -> None:
    """An address that comes back after another one has taken its slots gets other ones, as on a real card."""
    node, interface, address, other = "spark-02", "enp1s0f0np0", "192.168.177.12", "192.168.199.12"
    on(node, f"sudo ip addr del {address}/24 dev {interface}")
    try:
        until_gids(node, address, 0)
        on(node, f"sudo ip addr add {other}/24 dev {interface}")
        until_gids(node, other, 2)
        on(node, f"sudo ip addr add {address}/24 dev {interface}")
        until_gids(node, address, 2)
        facts = agreed_facts(inventory, tmp_path)
        both = device(facts, node, "rocep1s0f0")
        assert both["addresses"] == [f"{other}/24", f"{address}/24"]
        assert both["gid_index_v2_ipv4"] == 3  # that of the other address
        on(node, f"sudo ip addr del {other}/24 dev {interface}")
        until_gids(node, other, 0)
        facts = agreed_facts(inventory, tmp_path)
        assert device(facts, node, "rocep1s0f0")["gid_index_v2_ipv4"] == 5
        assert device(facts, node, "roceP2p1s0f0")["gid_index_v2_ipv4"] == 3
        assert "no_gid" not in [problem["code"] for problem in facts[node]["problems"]]
    finally:
        on(node, f"sudo ip addr flush dev {interface} && sudo ip addr add {address}/24 dev {interface}")
