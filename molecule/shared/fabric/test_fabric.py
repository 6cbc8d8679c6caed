# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What site.yml made of cabled ports without addresses: addresses, NCCL's environment, and a gate that was passed."""

from __future__ import annotations

import json
import os
import urllib.error
import urllib.request
from typing import Any

import pytest
import yaml

PROJECT = os.environ["MOLECULE_PROJECT_DIRECTORY"]
NODES = os.path.join(PROJECT, "molecule", "inventory", "nodes.yml")

P0 = ("enp1s0f0np0", "enP2p1s0f0np0")
P1 = ("enp1s0f1np1", "enP2p1s0f1np1")
RING = {"NCCL_NET_PLUGIN": "none", "NCCL_IB_SUBNET_AWARE_ROUTING": "1", "NCCL_IB_MERGE_NICS": "0"}


def rails(ports: dict[tuple[str, str], int], number: int) -> dict[str, str]:
    """The addresses of a node: `ports` says in which subnet each port's first twin is."""
    return {
        interface: f"192.168.{net + rail}.{10 + number}/24"
        for twins, net in ports.items()
        for rail, interface in enumerate(twins)
    }


# By scenario: the cluster, what each node has, and on which interface the nodes meet.
EXPECTED: dict[str, dict[str, Any]] = {
    "default": {
        "cluster": "atlas",
        "topology": "pair",
        "addresses": {f"spark-0{n}": rails({P0: 177, P1: 179}, n) for n in (1, 2)},
        "meets_on": "enp1s0f0np0",
        "extra": {},
        "serves": False,
        "sends": 8,
    },
    "site_ring": {
        "cluster": "triton",
        "topology": "ring",
        "addresses": {
            "spark-01": rails({P0: 177, P1: 179}, 1),
            "spark-02": rails({P1: 177, P0: 181}, 2),
            "spark-03": rails({P1: 181, P0: 179}, 3),
        },
        "meets_on": "enP7s7",
        "extra": RING,
        "serves": True,
        "sends": 12,
    },
    "fabric_switch": {
        "cluster": "atlas",
        "topology": "switch",
        "addresses": {f"spark-0{n}": rails({P0: 177}, n) for n in (1, 2, 3, 4)},
        "meets_on": "enp1s0f0np0",
        "extra": {},
        "serves": False,
        "sends": 8,
    },
}
WANTED = EXPECTED[os.environ["MOLECULE_SCENARIO_NAME"]]
DIRECTORY = f"/etc/sparkfleet/{WANTED['cluster']}"
testinfra_hosts = [f"ansible://{name}?ansible_inventory={NODES}&sudo=true" for name in WANTED["addresses"]]


@pytest.fixture(name="name")
def fixture_name(host: Any) -> str:
    return str(host.check_output("hostname"))


def environment(host: Any) -> dict[str, str]:
    lines = host.file(f"{DIRECTORY}/fabric.env").content_string.splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def record(host: Any, which: str) -> dict[str, Any]:
    return dict(json.loads(host.file(f"{DIRECTORY}/{which}.json").content_string))


def test_every_rail_has_its_address_and_jumbo_frames(host: Any, name: str) -> None:
    found = {}
    for link in json.loads(host.check_output("ip -j -4 address show scope global")):
        if link["ifname"] in (*P0, *P1):
            [entry] = link["addr_info"]
            found[link["ifname"]] = f"{entry['local']}/{entry['prefixlen']}"
            assert link["mtu"] == 9000
    assert found == WANTED["addresses"][name]


def test_they_are_in_our_own_closed_file_and_in_no_other(host: Any) -> None:
    own = host.file("/etc/netplan/95-sparkfleet.yaml")
    assert (own.user, own.mode) == ("root", 0o600)
    assert host.check_output("grep --recursive --files-with-matches 192.168 /etc/netplan") == own.path
    assert host.check_output("find /run/netplan -type f") == ""


def test_directories_are_closed_to_others(host: Any) -> None:
    folder = host.file(DIRECTORY)
    assert folder.is_directory
    assert (folder.user, folder.mode) == ("root", 0o750)


def test_nothing_waits_to_take_them_back(host: Any) -> None:
    assert host.check_output("systemctl list-timers --all --no-legend 'sparkfleet*'") == ""


def test_nccl_uses_all_rails_and_knows_the_topology(host: Any, name: str) -> None:
    found = environment(host)
    devices = [name.replace("enp", "rocep").replace("enP", "roceP").rsplit("np", 1)[0] for name in (*P0, *P1)]
    used = [d for d, i in zip(devices, (*P0, *P1), strict=True) if i in WANTED["addresses"][name]]
    assert found["NCCL_IB_HCA"].split(",") == used
    assert found["NCCL_SOCKET_IFNAME"] == WANTED["meets_on"]
    assert found["VLLM_HOST_IP"] == found["RAY_NODE_IP_ADDRESS"]
    assert found["VLLM_HOST_IP"] in host.check_output("ip -o -4 address show dev %s", WANTED["meets_on"])
    assert {key: found.get(key) for key in RING} == {key: WANTED["extra"].get(key) for key in RING}
    # An empty or zero index would be the fe80 GID: facts of the field, see docs/architecture.md.
    assert "NCCL_IB_GID_INDEX" not in found


def test_the_gate_was_passed_on_every_rail_in_both_directions(host: Any) -> None:
    gate = record(host, "gate")
    assert (gate["passed"], gate["mode"]) == (True, "bandwidth")
    measured = [link for link in gate["links"] if link["gbps"]]
    assert len(measured) == WANTED["sends"]
    assert {link["interface"] for link in measured} == {i for own in WANTED["addresses"].values() for i in own}
    assert all(link["mtu_ok"] for link in gate["links"])
    # The links are limited to 1 Gb/s: what was measured must have gone over them.
    assert max(link["gbps"] for link in measured) < 1.2


def test_no_listener_and_no_lock_is_left(host: Any) -> None:
    assert not host.file("/run/sparkfleet/run.lock").exists
    assert host.check_output("ss --no-header -ltn 'sport = :18515'") == ""


def test_all_nodes_together_were_measured_in_the_image(host: Any) -> None:
    if not WANTED["serves"]:
        pytest.skip("this scenario has no image")
    found = record(host, "collective")
    assert found["passed"] is True
    assert 0 < found["busbw"] < 1
    assert "sparkfleet-collective" not in host.check_output("docker ps --all --format '{{.Names}}'")


def test_the_head_answers_who_has_the_key(host: Any, name: str) -> None:
    if not WANTED["serves"] or name != "spark-01":
        pytest.skip("not served here")
    with open(NODES, encoding="utf-8") as stream:
        address = yaml.safe_load(stream)["all"]["hosts"][name]["ansible_host"]
    with open(os.path.join(PROJECT, ".cache", "api-key"), encoding="utf-8") as stream:
        key = stream.readline().strip()
    body = {"model": "tiny", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 8}
    request = urllib.request.Request(
        f"http://{address}:8888/v1/chat/completions",
        data=json.dumps(body).encode(),
        headers={"Content-Type": "application/json", "Authorization": f"Bearer {key}"},
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        assert json.load(answer)["usage"]["completion_tokens"] > 0
    request.headers["Authorization"] = "Bearer wrong"
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(request, timeout=60)
