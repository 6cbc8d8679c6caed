# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import copy
import typing as t

import pytest
from ansible_collections.sparkfleet.vllm.plugins.module_utils._argspec import PortUse
from ansible_collections.sparkfleet.vllm.plugins.module_utils._preflight import (
    GIB,
    Interval,
    Requirements,
    judge,
    skew_problems,
    twin_problems,
    unreachable_problem,
    unreadable_problem,
    version,
    wanted_ports,
)
from hypothesis import given
from hypothesis import strategies as st

FIT: dict[str, t.Any] = {
    "os": {"id": "ubuntu", "version": "24.04", "name": "Ubuntu 24.04.3 LTS"},
    "python": {"executable": "/usr/bin/python3", "version": "3.12.3", "requests": True},
    "rsync": True,
    "apt": True,
    "earlyoom": True,
    "firewall": {"nft": True, "others": [], "ours": False},
    "ssh_ports": [22],
    "root": True,
    "memory": {"total_bytes": 119 * GIB, "available_bytes": 100 * GIB},
    "disks": [
        {"path": "/var/lib/sparkfleet", "device": 1, "free_bytes": 90 * GIB, "total_bytes": 0, "ours_bytes": 0},
        {"path": "/var/lib/docker", "device": 1, "free_bytes": 90 * GIB, "total_bytes": 0, "ours_bytes": 0},
    ],
    "docker": {
        "error": "",
        "cli_version": "28.3.3",
        "buildx_version": "0.26.1",
        "engine_version": "28.3.3",
        "runtimes": ["nvidia", "runc"],
        "cdi_nvidia": False,
    },
    "gpu": {"driver_version": "580.95.05", "devices": ["/dev/nvidia0"], "container_toolkit": True},
    "listeners": [{"port": 22, "pid": 1, "process": "sshd", "container": "", "ours": False}],
}
NEEDS = Requirements(
    disk_gib=60,
    memory_gib=16,
    docker_version="24.0",
    gpu=True,
    ports=(PortUse(8888, 8888, "serve_port"), PortUse(20000, 20099, "low..high")),
)


def judged(path: str, value: t.Any, needs: Requirements = NEEDS) -> list[str]:
    """Return the judgement of a fit host with one fact (dotted path) changed."""
    facts: t.Any = copy.deepcopy(FIT)
    *parents, last = path.split(".")
    inner = facts
    for parent in parents:
        inner = inner[int(parent) if parent.isdigit() else parent]
    inner[last] = value
    return judge(facts, needs)


def test_a_fit_host_is_fit() -> None:
    assert judge(FIT, NEEDS) == []


@pytest.mark.parametrize(
    ("path", "value", "begin"),
    [
        ("os", {"id": "ubuntu", "version": "20.04", "name": "Ubuntu 20.04"}, "the operating system is Ubuntu 20.04;"),
        ("os", {"id": "debian", "version": "11", "name": "Debian 11"}, "the operating system is Debian 11;"),
        ("os", {"id": "fedora", "version": "42", "name": "Fedora"}, "the operating system is Fedora;"),
        ("python.version", "3.9.2", "Python on the node is 3.9.2; set ansible_python_interpreter to 3.10"),
        ("python.requests", False, "/usr/bin/python3 cannot import requests; apt-get install python3-requests"),
        ("root", False, "not root on the node, so that it hides who has which port; run the play with become"),
        ("rsync", False, "rsync is missing; apt-get install rsync"),
        ("docker.error", "missing", "Docker is missing; install Docker Engine 24.0 or later"),
        ("docker.error", "stopped", "Docker is not running; systemctl enable --now docker"),
        ("docker.error", "permission", "no permission to talk to Docker; let the playbook become root"),
        ("docker.error", "GET /info gives 500", "Docker does not answer (GET /info gives 500); systemctl status"),
        ("docker.engine_version", "23.0.6", "Docker Engine is 23.0.6; upgrade it to 24.0 or later"),
        ("docker.engine_version", "20.10.24+dfsg1", "Docker Engine is 20.10.24+dfsg1; upgrade"),
        ("docker.cli_version", "", "the docker command is missing; install docker-ce-cli"),
        ("docker.buildx_version", "", "docker buildx is missing; install docker-buildx-plugin"),
        ("memory.total_bytes", 15.5 * GIB, "memory is 15.5 GiB; use a machine with 16 GiB or lower host_min_memory_gb"),
        (
            "gpu.driver_version",
            "",
            "no NVIDIA GPU is there (driver or /dev/nvidia* missing); install the driver or set",
        ),
        ("gpu.devices", [], "no NVIDIA GPU is there"),
        ("docker.runtimes", ["runc"], "Docker has no NVIDIA runtime; nvidia-ctk runtime configure"),
    ],
)
def test_each_reason_is_found_alone(path: str, value: t.Any, begin: str) -> None:
    [line] = judged(path, value)
    assert line.startswith(begin)
    assert "; " in line


GUARDED = Requirements(60, 16, "24.0", gpu=False, variables={"host_earlyoom": True})
PROTECTED = Requirements(60, 16, "24.0", gpu=False, variables={"host_firewall": True})


def test_earlyoom_is_installed_where_there_is_apt() -> None:
    facts = {**copy.deepcopy(FIT), "earlyoom": False}
    assert judge(facts, GUARDED) == []
    facts["apt"] = False
    [line] = judge(facts, GUARDED)
    assert line.startswith(
        "earlyoom is missing, and there is no apt-get to install it with; install it, or set host_ea"
    )
    assert judge(facts, NEEDS) == []


@pytest.mark.parametrize(("free", "lines"), [(4, 0), (0.5, 0), (0, 1), (-1, 1)])
def test_earlyoom_needs_a_size(free: float, lines: int) -> None:
    variables = {"host_earlyoom": True, "host_earlyoom_free_gb": free}
    found = judge(FIT, Requirements(60, 16, "24.0", gpu=False, variables=variables))
    assert [line.partition(" ")[0] for line in found] == ["host_earlyoom_free_gb"] * lines
    variables["host_earlyoom"] = False
    assert judge(FIT, Requirements(60, 16, "24.0", gpu=False, variables=variables)) == []


@pytest.mark.parametrize(
    ("path", "value", "begin"),
    [
        ("firewall.nft", False, "nft is missing; apt-get install nftables, or set host_firewall: false"),
        ("firewall.others", ["ufw"], "ufw is on, and each of two firewalls drops what the other lets through; ufw dis"),
        ("firewall.others", ["firewalld"], "firewalld is on, and each of two firewalls drops what the other lets thr"),
        ("ssh_ports", [], "no port of sshd was found, so the firewall would lock you out; systemctl start ssh, or"),
    ],
)
def test_a_firewall_needs_a_host_that_is_fit_for_it(path: str, value: t.Any, begin: str) -> None:
    [line] = judged(path, value, PROTECTED)
    assert line.startswith(begin)
    assert judged(path, value) == [], "nobody wants one"


def test_the_owners_ports_are_judged_with_the_host() -> None:
    needs = Requirements(60, 16, "24.0", gpu=False, variables={"host_firewall": True, "host_firewall_allow": ["x"]})
    [line] = judge(FIT, needs)
    assert line.startswith("host_firewall_allow: 'x' opens no port")


@pytest.mark.parametrize("name", ["debian 12", "debian 13", "ubuntu 22.04", "ubuntu 24.04", "ubuntu 26.04"])
def test_supported_systems(name: str) -> None:
    system, release = name.split()
    assert judged("os", {"id": system, "version": release, "name": name}) == []


def test_all_reasons_come_at_once() -> None:
    facts = copy.deepcopy(FIT)
    facts["rsync"] = False
    facts["docker"].update(error="stopped", buildx_version="")
    facts["memory"]["total_bytes"] = GIB
    assert len(judge(facts, NEEDS)) == 4


def test_a_host_for_the_cpu_image_needs_no_gpu() -> None:
    needs = Requirements(60, 16, "24.0", gpu=False)
    assert judged("gpu.driver_version", "", needs) == []


def test_cdi_replaces_the_runtime() -> None:
    facts = copy.deepcopy(FIT)
    facts["docker"].update(runtimes=["runc"], cdi_nvidia=True)
    assert judge(facts, NEEDS) == []


def test_a_file_system_is_judged_once() -> None:
    facts = copy.deepcopy(FIT)
    for disk in facts["disks"]:
        disk["free_bytes"] = 10 * GIB
    assert judge(facts, NEEDS) == [
        "disk has 10.0 GiB free for /var/lib/sparkfleet and /var/lib/docker; "
        "make room for 60 GiB or lower host_min_disk_gb"
    ]
    facts["disks"][1]["device"] = 2
    assert len(judge(facts, NEEDS)) == 2


def test_what_is_already_ours_counts_as_room() -> None:
    facts = copy.deepcopy(FIT)
    for disk, ours in zip(facts["disks"], (30, 25), strict=True):
        disk.update(free_bytes=10 * GIB, ours_bytes=ours * GIB)
    assert judge(facts, NEEDS) == []


@pytest.mark.parametrize(
    ("listener", "line"),
    [
        ({"process": "nginx", "pid": 123}, "port 8888 is taken by nginx (pid 123); stop it or set serve_port"),
        ({"container": "web", "pid": 5}, "port 8888 is taken by container web; stop it or set serve_port"),
        ({}, "port 8888 is taken by another program; stop it or set serve_port"),
    ],
)
def test_a_port_that_someone_else_has(listener: dict[str, t.Any], line: str) -> None:
    other = {"port": 8888, "pid": 0, "process": "", "container": "", "ours": False, **listener}
    assert judged("listeners", [other, other]) == [line]


def test_ports_of_our_containers_and_unwanted_ports_are_fine() -> None:
    ours = {"port": 8888, "pid": 7, "process": "vllm", "container": "spark-vllm-x", "ours": True}
    unwanted = {"port": 80, "pid": 8, "process": "nginx", "container": "", "ours": False}
    assert judged("listeners", [ours, unwanted]) == []


def test_a_port_inside_a_range_is_taken() -> None:
    other = {"port": 20042, "pid": 9, "process": "x", "container": "", "ours": False}
    assert judged("listeners", [other]) == ["port 20042 is taken by x (pid 9); stop it or set low..high"]


def test_each_node_opens_what_its_part_needs() -> None:
    uses = [
        PortUse(6379, 6379, "ray_port"),
        PortUse(6380, 6380, "ray_node_manager_port"),
        PortUse(6390, 6390, "image_share_port"),
        PortUse(8888, 8888, "serve_port"),
        PortUse(18515, 18515, "fabric_gate_port"),
    ]
    models = [
        {
            "leader": "b",
            "executor": "ray",
            "port": 8888,
            "group_port": 6400,
            "rendezvous_port": 29510,
            "dp_port": 29550,
        },
        {"leader": "d", "executor": "mp", "port": 8889, "group_port": 6401, "rendezvous_port": 29511, "dp_port": 29551},
    ]
    cluster = {"name": "x", "head": "a", "nodes": ["a", "b", "c", "d"], "ray": [["b", "c"]], "models": models}

    def ports(host: str) -> list[int]:
        return [use.first for use in wanted_ports(uses, host, cluster)]

    assert ports("a") == [6390, 18515], "no Ray and no API on the cluster's head"
    assert ports("b") == [6379, 6380, 8888, 18515]
    assert ports("c") == [6380, 18515]
    assert ports("d") == [6401, 8889, 18515, 29511, 29551]
    # A server that is given opens nothing here.
    assert [use.first for use in wanted_ports(uses[:1], "b", cluster)] == [6379]


def test_clocks_that_may_agree_give_no_line() -> None:
    assert skew_problems({}, 2) == []
    assert skew_problems({"a": Interval(-1, 1), "b": Interval(2.5, 4)}, 2) == []


def test_one_wrong_clock_gives_one_line() -> None:
    clocks = {"a": Interval(29, 30), "b": Interval(-1, 1), "c": Interval(0, 0.5)}
    assert skew_problems(clocks, 2) == [
        "a: its clock differs from b's by 28.0 s or more; "
        "set both clocks and run a time service (systemd-timesyncd or chrony)"
    ]


def test_an_interval_holds_the_true_offset() -> None:
    assert Interval.of(node=105.0, before=100.0, after=101.0) == Interval(4.0, 5.0)


@given(st.floats(-1e6, 1e6), st.floats(0, 60), st.floats(0, 60), st.floats(0, 60), st.floats(0, 60))
def test_equal_clocks_are_never_accused(offset: float, a: float, b: float, c: float, d: float) -> None:
    clocks = {"x": Interval(offset - a, offset + b), "y": Interval(offset - c, offset + d)}
    assert skew_problems(clocks, 0) == []


def machine(machine_id: str, boot_id: str, address: str) -> dict[str, t.Any]:
    return {"machine_id": machine_id, "boot_id": boot_id, "management": {"address": address}}


def test_only_one_machine_listed_twice_is_a_twin() -> None:
    one = machine("m", "b", "10.0.0.1")
    clone = machine("m", "other boot", "10.0.0.2")
    unknown = machine("", "", "")
    assert twin_problems({"s1": one, "s2": clone, "s3": unknown, "s4": unknown}) == []
    assert twin_problems({"s1": one, "s2": dict(one)}) == [
        "s2: is the same machine as s1; give each node its own ansible_host"
    ]


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (
            'Data could not be sent to remote host "10.0.0.9". Make sure this host can be reached over ssh: '
            "ssh: connect to host 10.0.0.9 port 22: No route to host\r\n",
            "connect to host 10.0.0.9 port 22: No route to host",
        ),
        (
            "Failed to connect to the host via ssh: Warning: Permanently added '10.0.0.9' (ED25519).\r\n"
            "nvidia@10.0.0.9: Permission denied (publickey,password).",
            "nvidia@10.0.0.9: Permission denied (publickey,password)",
        ),
        ("Failed to connect to the host via ssh: @@@@@\n@ WARNING @\n@@@\nHost key verification failed.", "Host key"),
        ("", "no reason given"),
    ],
)
def test_why_a_host_is_unreachable_in_short(message: str, reason: str) -> None:
    line = unreachable_problem(message)
    assert line.startswith(f"unreachable over SSH ({reason}")
    assert line.endswith("; check ansible_host, the key, and that the machine is on")
    assert "\n" not in line


@pytest.mark.parametrize(
    ("message", "begin"),
    [
        ("Missing sudo password", "sudo asks nvidia for a password; "),
        ("MODULE FAILURE\nsudo: a password is required", "sudo asks nvidia for a password; "),
        ("Incorrect sudo password", "the sudo password of nvidia is wrong; "),
        ("nvidia is not in the sudoers file.", "nvidia cannot become root with sudo; "),
        (
            "Premature end of stream waiting for become success.\n>>> Standard Error\nsh: sudo: not found",
            "nvidia cannot",
        ),
        ("The module interpreter '/usr/bin/python9' was not found.", "Python is missing; apt-get install python3"),
        ("ansible-core requires a minimum of Python version 3.8. Current version: 3.6.9", "Python is too old for"),
        ("Something\nunheard of", "cannot be read (Something); run again with -vvv"),
        ("", "cannot be read (no reason given); "),
    ],
)
def test_why_a_host_cannot_be_read(message: str, begin: str) -> None:
    assert unreadable_problem(message, "nvidia").startswith(begin)


def test_versions() -> None:
    assert version("26.1.5+dfsg1") == (26, 1, 5)
    assert version("v0.26.1") == (0, 26, 1)
    assert version("") == version("unknown") == ()
    assert version("24.0") <= version("24.0.7") < version("28")
