# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The whole path: what runs on the nodes, what it may do, where it listens, and that it answers."""

from __future__ import annotations

import json
import os
import re
import stat
import urllib.error
import urllib.request
from typing import Any

import pytest
import testinfra
import yaml

PROJECT = os.environ["MOLECULE_PROJECT_DIRECTORY"]
INVENTORY = os.path.join(PROJECT, "molecule", "inventory")
testinfra_hosts = [f"ansible://sparks?ansible_inventory={INVENTORY}&sudo=true"]

HEAD = "spark-01"
FABRIC = {"spark-01": "192.168.177.11", "spark-02": "192.168.177.12"}
DEVICES = {"/dev/infiniband/uverbs0", "/dev/infiniband/uverbs2", "/dev/infiniband/rdma_cm"}


def name(host: Any) -> str:
    return str(host.check_output("hostname"))


def management() -> dict[str, str]:
    with open(os.path.join(INVENTORY, "nodes.yml"), encoding="utf-8") as stream:
        hosts = yaml.safe_load(stream)["all"]["hosts"]
    return {host: variables["ansible_host"] for host, variables in hosts.items()}


def api_key() -> str:
    with open(os.path.join(PROJECT, ".cache", "api-key"), encoding="utf-8") as stream:
        return stream.readline().strip()


def containers(host: Any) -> list[dict[str, Any]]:
    return list(json.loads(host.check_output("docker ps -q | xargs docker inspect")))


def chat(key: str) -> Any:
    request = urllib.request.Request(
        f"http://{management()[HEAD]}:8888/v1/chat/completions",
        data=json.dumps(
            {"model": "tiny", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 8}
        ).encode(),
        headers={"Content-Type": "application/json", "Authorization": f"Bearer {key}"},
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


def documented() -> list[tuple[range, set[str]]]:
    """The rows of docs/ports.md: which ports, and where they may listen."""
    rows = []
    with open(os.path.join(PROJECT, "docs", "ports.md"), encoding="utf-8") as stream:
        for line in stream:
            cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
            match = re.fullmatch(r"(\d+)(?:-(\d+))?", cells[0])
            if match:
                first, last = int(match[1]), int(match[2] or match[1])
                rows.append((range(first, last + 1), set(cells[1].split(", "))))
    return rows


def listeners(host: Any) -> set[tuple[str, int]]:
    """Address and port of every listening TCP socket of a process in one of our containers."""
    ids = [container["Id"] for container in containers(host)]
    found = set()
    for line in host.check_output("ss -Hltnp").splitlines():
        local = line.split()[3]
        address, _sep, port = local.rpartition(":")
        for pid in set(re.findall(r"pid=(\d+)", line)):
            if any(identifier in host.file(f"/proc/{pid}/cgroup").content_string for identifier in ids):
                found.add((address.strip("[]").split("%")[0].removeprefix("::ffff:"), int(port)))
    return found


def test_the_expected_containers_run(host: Any) -> None:
    expected = {"/spark-ray", "/spark-vllm-tiny"} if name(host) == HEAD else {"/spark-ray"}
    assert {container["Name"] for container in containers(host)} == expected


def test_units_are_enabled_and_active(host: Any) -> None:
    units = ["spark-ray.service"] + (["spark-vllm@tiny.service"] if name(host) == HEAD else [])
    for unit in units:
        assert host.service(unit).is_enabled, unit
        assert host.service(unit).is_running, unit


def test_containers_have_no_more_rights_than_they_need(host: Any) -> None:
    for container in containers(host):
        config = container["HostConfig"]
        assert config["Privileged"] is False
        assert {device["PathOnHost"] for device in config["Devices"] or []} <= DEVICES
        assert any(option.startswith("no-new-privileges") for option in config["SecurityOpt"])
        assert not [mount for mount in container["Mounts"] if "docker.sock" in mount.get("Source", "")]
        assert config["PidMode"] in ("", f"container:{_ray_id(host)}", "container:spark-ray")
        assert config["IpcMode"] != "host"
    ray = next(c for c in containers(host) if c["Name"] == "/spark-ray")
    assert {device["PathOnHost"] for device in ray["HostConfig"]["Devices"]} == DEVICES


def _ray_id(host: Any) -> str:
    return str(host.check_output("docker inspect --format '{{.Id}}' spark-ray"))


def test_secret_files_are_for_root_and_the_containers_user(host: Any) -> None:
    secrets = ["ray-token", "group-token"] + (["tiny.api-key"] if name(host) == HEAD else [])
    for secret in secrets:
        found = host.file(f"/etc/sparkfleet/atlas/{secret}")
        assert found.user == "root"
        assert stat.S_IMODE(found.mode) & 0o037 == 0, secret


def test_nothing_listens_where_the_documentation_does_not_say(host: Any) -> None:
    places = {"127.0.0.1": "loopback", "::1": "loopback", FABRIC[name(host)]: "fabric"}
    rows = documented()
    sockets = listeners(host)
    assert sockets, "no listener found: the test looked at nothing"
    for address, port in sorted(sockets):
        place = places.get(address, "any" if address in ("0.0.0.0", "*", "::") else f"undocumented address {address}")
        if place == "loopback":
            continue  # reachable from this node alone
        allowed = set().union(*(binds for ports, binds in rows if port in ports))
        assert place in allowed or (place == "fabric" and "any" in allowed), f"{address}:{port} ({place})"


def test_the_dashboard_is_on_loopback_only(host: Any) -> None:
    addresses = {address for address, port in listeners(host) if port == 8265}
    assert addresses == ({"127.0.0.1"} if name(host) == HEAD else set())


def test_the_image_is_the_same_one_on_all_nodes() -> None:
    hosts = testinfra.get_hosts(testinfra_hosts)
    assert len({container["Image"] for host in hosts for container in containers(host)}) == 1


def test_ray_carries_traffic_over_the_fabric(host: Any) -> None:
    peers = [address for node, address in FABRIC.items() if node != name(host)]
    established = host.check_output("ss -Htn state established")
    assert f"{FABRIC[name(host)]}:" in established and f"{peers[0]}:" in established


def test_a_completion_comes_back_over_the_management_network() -> None:
    answer = chat(api_key())
    assert answer["id"]
    assert answer["usage"]["completion_tokens"] > 0


def test_a_wrong_key_gets_401() -> None:
    with pytest.raises(urllib.error.HTTPError) as caught:
        chat("wrong" + api_key())
    assert caught.value.code == 401
