# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether hosts are fit for the main path: judgement over what the host_facts module read.

Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import re
import typing as t
from dataclasses import dataclass, field

from . import _firewall
from ._argspec import PortUse

HEAD_PORTS: t.Final = frozenset(
    {
        "fabric_collective_port",
        "image_share_port",
        "ray_autoscaler_metric_port",
        "ray_client_server_port",
        "ray_dashboard_metric_port",
        "ray_dashboard_port",
        "ray_group_port",
        "ray_port",
    }
)
"""Variables whose port is opened on the head of a cluster, or of its Ray, only; others are opened on each node."""

_LEADER_PORTS: t.Final = ("group_port", "rendezvous_port", "dp_port")
"""What a model of several nodes without Ray opens on its leader, besides the API."""

OS_MINIMUM: t.Final[t.Mapping[str, tuple[int, ...]]] = {"debian": (12,), "ubuntu": (22, 4)}
PYTHON_MINIMUM: t.Final = (3, 10)
GIB: t.Final = 1024**3

_NOT_ROOT: t.Final = "not root on the node, so that it hides who has which port; run the play with become"

_Facts = t.Mapping[str, t.Any]


@dataclass(frozen=True)
class Requirements:
    """What a node must offer."""

    disk_gib: float
    """Free space for us on each file system that we write to; what we already occupy counts as free."""
    memory_gib: float
    """Physical memory of the node."""
    docker_version: str
    """Oldest Docker Engine."""
    gpu: bool
    """Whether containers need an NVIDIA GPU."""
    ports: tuple[PortUse, ...] = ()
    """What we will listen on."""
    variables: t.Mapping[str, t.Any] = field(default_factory=dict)
    """Of role host: what the guard and the firewall of the host are to be."""


def wanted_ports(uses: t.Iterable[PortUse], host: str, cluster: t.Mapping[str, t.Any]) -> tuple[PortUse, ...]:
    """Return those of a cluster's ports that one of its hosts opens.

    `uses` are all ports of the host's variables; `cluster` is the fact `spark_cluster`.
    """
    in_ray = any(host in group for group in cluster.get("ray") or [])
    leads_ray = any(host == group[0] for group in cluster.get("ray") or [])
    found: list[PortUse] = []
    for use in uses:
        role = use.variable.partition("_")[0]
        head = leads_ray if role == "ray" else host == cluster["head"]
        if role == "serve" or (role == "ray" and not in_ray) or (use.variable in HEAD_PORTS and not head):
            continue
        found.append(use)
    if any(use.variable.startswith("serve_") for use in uses):
        found.extend(_model_ports(host, cluster))
    return tuple(sorted(found))


def _model_ports(host: str, cluster: t.Mapping[str, t.Any]) -> t.Iterator[PortUse]:
    for model in cluster.get("models") or []:
        if model["leader"] != host:
            continue
        for key in ("port", *(_LEADER_PORTS if model["executor"] == "mp" else ())):
            if model.get(key):
                yield PortUse(int(model[key]), int(model[key]), f"serve_{key}")


def judge(facts: _Facts, needs: Requirements) -> list[str]:
    """Return every reason why the host is not fit, as `what; what to do` lines, sorted by subject."""
    return [
        *_system_problems(facts),
        *_docker_problems(facts["docker"], needs),
        *_memory_problems(facts["memory"], needs),
        *_disk_problems(facts["disks"], needs),
        *(_gpu_problems(facts["gpu"], facts["docker"]) if needs.gpu else ()),
        *(_port_problems(facts["listeners"], needs.ports) if facts["root"] else (_NOT_ROOT,)),
        *_guard_problems(facts, needs.variables),
        *(_firewall_problems(facts, needs.variables) if needs.variables.get("host_firewall") else ()),
    ]


def _system_problems(facts: _Facts) -> t.Iterator[str]:
    system = facts["os"]
    minimum = OS_MINIMUM.get(system["id"])
    supported = "Debian 12 or later or Ubuntu 22.04 or later (DGX OS 7 is Ubuntu 24.04)"
    if minimum is None or version(system["version"]) < minimum:
        yield f"the operating system is {system['name']}; install {supported}"
    python = facts["python"]
    if version(python["version"]) < PYTHON_MINIMUM:
        yield (
            f"Python on the node is {python['version']}; "
            f"set ansible_python_interpreter to {_dotted(PYTHON_MINIMUM)} or later"
        )
    if not python["requests"]:
        yield f"{python['executable']} cannot import requests; apt-get install python3-requests"
    if not facts["rsync"]:
        yield "rsync is missing; apt-get install rsync"


def _docker_problems(docker: _Facts, needs: Requirements) -> t.Iterator[str]:
    error = docker["error"]
    if error == "missing":
        yield f"Docker is missing; install Docker Engine {needs.docker_version} or later with buildx"
        return
    if error == "stopped":
        yield "Docker is not running; systemctl enable --now docker"
    elif error == "permission":
        yield "no permission to talk to Docker; let the playbook become root (ansible_become, or a user with sudo)"
    elif error:
        yield f"Docker does not answer ({error}); systemctl status docker says why"
    elif version(docker["engine_version"]) < version(needs.docker_version):
        yield f"Docker Engine is {docker['engine_version']}; upgrade it to {needs.docker_version} or later"
    if not docker["cli_version"]:
        yield "the docker command is missing; install docker-ce-cli (docker-cli on Debian)"
    elif not docker["buildx_version"]:
        yield "docker buildx is missing; install docker-buildx-plugin (docker-buildx on Debian and Ubuntu's docker.io)"


def _memory_problems(memory: _Facts, needs: Requirements) -> t.Iterator[str]:
    if memory["total_bytes"] < needs.memory_gib * GIB:
        yield (
            f"memory is {_gib(memory['total_bytes'])} GiB; "
            f"use a machine with {needs.memory_gib:g} GiB or lower host_min_memory_gb"
        )


def _disk_problems(disks: t.Sequence[_Facts], needs: Requirements) -> t.Iterator[str]:
    """Judge each file system once; what is already ours on it needs no new room."""
    by_device: dict[t.Any, list[_Facts]] = {}
    for disk in disks:
        by_device.setdefault(disk["device"], []).append(disk)
    for group in by_device.values():
        room = group[0]["free_bytes"] + sum(disk["ours_bytes"] for disk in group)
        if room < needs.disk_gib * GIB:
            paths = " and ".join(disk["path"] for disk in group)
            yield (
                f"disk has {_gib(room)} GiB free for {paths}; make room for {needs.disk_gib:g} GiB "
                "or lower host_min_disk_gb"
            )


def _gpu_problems(gpu: _Facts, docker: _Facts) -> t.Iterator[str]:
    otherwise = "or set image_variant to cpu"
    if not gpu["driver_version"] or not gpu["devices"]:
        yield f"no NVIDIA GPU is there (driver or /dev/nvidia* missing); install the driver {otherwise}"
    elif not docker["error"] and "nvidia" not in docker["runtimes"] and not docker["cdi_nvidia"]:
        tool = "" if gpu["container_toolkit"] else "apt-get install nvidia-container-toolkit, then "
        yield (
            f"Docker has no NVIDIA runtime; {tool}nvidia-ctk runtime configure --runtime=docker "
            f"and systemctl restart docker, {otherwise}"
        )


def _port_problems(listeners: t.Sequence[_Facts], uses: t.Sequence[PortUse]) -> t.Iterator[str]:
    said: set[tuple[int, str]] = set()
    for listener in sorted(listeners, key=lambda item: int(item["port"])):
        port = listener["port"]
        use = next((use for use in uses if port in use), None)
        owner = _owner(listener)
        if use is None or listener["ours"] or (port, owner) in said:
            continue
        said.add((port, owner))
        yield f"port {port} is taken by {owner}; stop it or set {use.variable}"


def _guard_problems(facts: _Facts, variables: t.Mapping[str, t.Any]) -> t.Iterator[str]:
    if not variables.get("host_earlyoom"):
        return
    free_gib = variables.get("host_earlyoom_free_gb", 1)
    if free_gib <= 0:
        yield f"host_earlyoom_free_gb is {free_gib:g}; give more than 0, or set host_earlyoom: false"
    if not facts["earlyoom"] and not facts["apt"]:
        yield "earlyoom is missing, and there is no apt-get to install it with; install it, or set host_earlyoom: false"


def _firewall_problems(facts: _Facts, variables: t.Mapping[str, t.Any]) -> t.Iterator[str]:
    yield from _firewall.option_problems(variables)
    otherwise = "or set host_firewall: false"
    if not facts["firewall"]["nft"]:
        yield f"nft is missing; apt-get install nftables, {otherwise}"
    for other in facts["firewall"]["others"]:
        off = "ufw disable" if other == "ufw" else f"systemctl disable --now {other}"
        yield f"{other} is on, and each of two firewalls drops what the other lets through; {off}, {otherwise}"
    if facts["root"] and not facts["ssh_ports"]:
        yield f"no port of sshd was found, so the firewall would lock you out; systemctl start ssh, {otherwise}"


def _owner(listener: _Facts) -> str:
    if listener["container"]:
        return f"container {listener['container']}"
    if listener["pid"]:
        return f"{listener['process']} (pid {listener['pid']})"
    return "another program"


@dataclass(frozen=True)
class Interval:
    """Bounds in seconds of how far a node's clock is ahead of the controller's."""

    low: float
    high: float

    @classmethod
    def of(cls, node: float, before: float, after: float) -> Interval:
        """Return the bounds from a node's clock, read between two readings of the controller's."""
        return cls(node - after, node - before)

    def gap(self, other: Interval) -> float:
        """Return by how many seconds two clocks differ at least, 0 where they may agree."""
        return max(0.0, self.low - other.high, other.low - self.high)


def skew_problems(clocks: t.Mapping[str, Interval], limit_s: float) -> list[str]:
    """Return a line per host whose clock surely differs by more than `limit_s` from the others'.

    The others are represented by the host that agrees with most of them, so that one wrong clock gives one line.
    """
    if not clocks:
        return []

    def disagreeing(host: str) -> list[str]:
        return [other for other in clocks if clocks[host].gap(clocks[other]) > limit_s]

    reference = min(clocks, key=lambda host: len(disagreeing(host)))
    return [
        f"{host}: its clock differs from {reference}'s by {clocks[host].gap(clocks[reference]):.1f} s or more; "
        "set both clocks and run a time service (systemd-timesyncd or chrony)"
        for host in disagreeing(reference)
    ]


def twin_problems(facts: t.Mapping[str, _Facts]) -> list[str]:
    """Return a line per host that is the same machine as an earlier one.

    Cloned systems share a machine id, so the boot id and the management address must be equal as well.
    """
    seen: dict[tuple[t.Any, ...], str] = {}
    problems: list[str] = []
    for host, found in facts.items():
        identity = (found["machine_id"], found["boot_id"], found["management"]["address"])
        first = seen.setdefault(identity, host) if all(identity) else host
        if first != host:
            problems.append(f"{host}: is the same machine as {first}; give each node its own ansible_host")
    return problems


def version(text: str) -> tuple[int, ...]:
    """Return the leading numbers of a version, (26, 1, 5) for `26.1.5+dfsg1`; empty where there are none."""
    match = re.match(r"\s*v?(\d+(?:\.\d+)*)", text or "")
    return tuple(int(part) for part in match.group(1).split(".")) if match else ()


def _dotted(numbers: t.Sequence[int]) -> str:
    return ".".join(str(number) for number in numbers)


def _gib(size: float) -> str:
    return f"{size / GIB:.1f}"


_SSH_REASONS: t.Final = (
    "Host key verification failed",
    "Could not resolve hostname",
    "Permission denied",
    "Connection refused",
    "Connection timed out",
    "Connection closed",
    "Connection reset",
    "No route to host",
    "Network is unreachable",
    "timed out",
)


def unreachable_problem(message: str) -> str:
    """Return the line for a host that cannot be logged in to, from what the connection plugin says."""
    lines = [line.strip().rstrip(".") for line in message.splitlines() if line.strip()]
    telling = [line for reason in _SSH_REASONS for line in lines if reason.lower() in line.lower()]
    reason = (telling or lines[-1:] or ["no reason given"])[0]
    reason = re.sub(r"^.*(?:via|over) ssh: ", "", reason)
    reason = re.sub(r"^ssh: ", "", reason)
    return f"unreachable over SSH ({reason}); check ansible_host, the key, and that the machine is on"


def unreadable_problem(message: str, user: str = "") -> str:
    """Return the line for a host that answers but cannot run the module, from all that Ansible says about it."""
    text = message.lower()
    user = user or "the user"
    if "missing sudo password" in text or "a password is required" in text:
        return f"sudo asks {user} for a password; allow sudo without one, or give --ask-become-pass"
    if "incorrect sudo password" in text:
        return f"the sudo password of {user} is wrong; correct ansible_become_password"
    if "sudoers" in text or "is not allowed to" in text or "waiting for become success" in text:
        return f"{user} cannot become root with sudo; install sudo and add the user to the group sudo"
    if "requires a minimum of python" in text:
        return f"Python is too old for Ansible; set ansible_python_interpreter to {_dotted(PYTHON_MINIMUM)} or later"
    if "interpreter" in text and ("not found" in text or "no such file" in text):
        return "Python is missing; apt-get install python3, or correct ansible_python_interpreter"
    first = next((line.strip() for line in message.splitlines() if line.strip()), "no reason given")
    return f"cannot be read ({first}); run again with -vvv"
