# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The ethernet fabric: a network namespace with a bridge per cable or switch, and a veth pair per ConnectX function.

One end of each pair is the node's netdev, the other a port in our namespace. Setting a port down takes the node's
carrier away, as pulling the plug does; a bridge alone would not.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from simulator.errors import SimulatorError
from simulator.hardware import FUNCTIONS, MANAGEMENT, Function, mac, twins
from simulator.plan import Cable, burst_kib, fabric_port, fabric_ports

MTU = 9216
"""Of the fabric itself, as switches have it: above the nodes' 9000."""
NETNS = Path("/run/netns")


def run(*command: str, stdin: str = "") -> str:
    """Run a command and return what it printed.

    :raises SimulatorError: it failed.
    """
    try:
        done = subprocess.run(command, check=False, capture_output=True, text=True, input=stdin)
    except FileNotFoundError as error:
        raise SimulatorError(f"{command[0]} is missing; install it (Debian: iproute2, util-linux)") from error
    if done.returncode:
        said = " ".join((done.stderr or done.stdout).split())
        raise SimulatorError(f"{' '.join(command)}: {said or f'exit status {done.returncode}'}")
    return done.stdout


def batch(*command: str, lines: Iterable[str]) -> None:
    """Hand several lines to ``ip`` or ``tc`` at once."""
    run(*command, "-batch", "-", stdin="".join(f"{line}\n" for line in lines))


def in_netns_of(pid: int) -> tuple[str, ...]:
    """How to run a command in the network namespace of a process."""
    return ("nsenter", f"--net=/proc/{pid}/ns/net")


def interfaces_of(pid: int) -> dict[str, dict[str, Any]]:
    """What ``ip -j addr`` says in the network namespace of a process, by interface name."""
    found = json.loads(run(*in_netns_of(pid), "ip", "-j", "addr"))
    return {entry["ifname"]: entry for entry in found}


def ipv4_addresses(interface: dict[str, Any]) -> list[str]:
    """IPv4 addresses with prefix length of one entry of ``ip -j addr``."""
    return [f"{a['local']}/{a['prefixlen']}" for a in interface["addr_info"] if a["family"] == "inet"]


def name_management_port(pid: int) -> None:
    """Give the interface that the engine made for a container the name of a Spark's management port."""
    inside = in_netns_of(pid)
    gateway = json.loads(run(*inside, "ip", "-j", "route", "show", "default"))[0]["gateway"]
    lines = ["link set eth0 down", f"link set eth0 name {MANAGEMENT}", f"link set {MANAGEMENT} up"]
    batch(*inside, "ip", lines=[*lines, f"route replace default via {gateway} dev {MANAGEMENT}"])


def limit(interface: str, rate: str) -> str:
    """What to tell tc for an interface to send no faster than this."""
    return f"qdisc replace dev {interface} root tbf rate {rate} burst {burst_kib(rate)}kb latency 50ms"


def set_rates(inside: tuple[str, ...], rates: Mapping[str, str]) -> None:
    """Limit how fast interfaces send.

    :param inside: how to run a command where they are.
    :param rates: by interface; empty to lift its limit.
    """
    shown = json.loads(run(*inside, "tc", "-j", "qdisc", "show") or "[]")
    limited = {qdisc["dev"] for qdisc in shown if qdisc["kind"] == "tbf"}
    lines = [
        limit(interface, rate) if rate else f"qdisc del dev {interface} root"
        for interface, rate in rates.items()
        if rate or interface in limited
    ]
    if lines:
        batch(*inside, "tc", lines=lines)


class Fabric:
    """The fabric of one fleet."""

    def __init__(self, fleet: str) -> None:
        self.namespace = f"sim-fabric-{fleet}"

    def exists(self) -> bool:
        """Whether its namespace is there."""
        return (NETNS / self.namespace).exists()

    def create(self) -> None:
        """Make the empty namespace."""
        run("ip", "netns", "add", self.namespace)

    def remove(self) -> None:
        """Remove the namespace and all links with it."""
        if self.exists():
            run("ip", "netns", "delete", self.namespace)

    def add_node(self, node: int, pid: int, rate: str) -> None:
        """Give a node its ConnectX functions, not plugged in yet.

        :param pid: a process in the node's network namespace.
        :param rate: at which a function sends, as tc writes it; empty for no limit.
        """
        batch(
            "ip",
            lines=[
                f"link add {function.netdev} netns {pid} address {mac(node, function)} type veth"
                f" peer name {fabric_port(node, function)} netns {self.namespace}"
                for function in FUNCTIONS
            ],
        )
        batch(*in_netns_of(pid), "ip", lines=[f"link set {function.netdev} up" for function in FUNCTIONS])
        self.set_sending(pid, FUNCTIONS, rate)

    def add_cables(self, cables: list[Cable]) -> None:
        """Lay cables and plug them in."""
        lines = []
        for bridge in dict.fromkeys(cable.bridge for cable in cables):
            lines += [
                f"link add {bridge} type bridge forward_delay 0 mcast_snooping 0",
                f"link set {bridge} addrgenmode none",
                f"link set {bridge} mtu {MTU} up",
            ]
        ports = [(port, cable.bridge) for cable in cables for port in fabric_ports(cable)]
        for port, bridge in ports:
            lines += [f"link set {port} addrgenmode none", f"link set {port} mtu {MTU} master {bridge} up"]
        batch("ip", "-n", self.namespace, lines=lines)
        self._set_rates({port: cable.rate for cable in cables for port in fabric_ports(cable)})

    def take_out_cables(self) -> None:
        """Pull all cables out of all ports and throw them away."""
        lines = [f"link set {link['ifname']} down nomaster" for link in self._links("type", "veth")]
        lines += [f"link delete {link['ifname']}" for link in self._links("type", "bridge")]
        batch("ip", "-n", self.namespace, lines=lines)

    def _links(self, *which: str) -> list[dict[str, Any]]:
        # iproute2 prints an empty object for each link that is not of the wanted kind
        listing = json.loads(run("ip", "-n", self.namespace, "-j", "link", "show", *which) or "[]")
        return [link for link in listing if link]

    def ports(self) -> dict[str, bool]:
        """All ports and bridges, with whether they are set up."""
        return {link["ifname"]: "UP" in link["flags"] for link in self._links()}

    def missing(self, cables: Iterable[Cable]) -> list[str]:
        """What of these cables is not there, each in a few words."""
        links = {link["ifname"]: link for link in self._links()} if self.exists() else {}
        found = []
        for cable in cables:
            gone = [name for name in (cable.bridge, *fabric_ports(cable)) if name not in links]
            loose = [p for p in fabric_ports(cable) if p in links and links[p].get("master") != cable.bridge]
            found += [f"{cable.name}: {name} missing" for name in gone]
            found += [f"{cable.name}: {port} is not at {cable.bridge}" for port in loose]
        return found

    def _set_rates(self, rates: Mapping[str, str]) -> None:
        set_rates(("nsenter", f"--net={NETNS / self.namespace}"), rates)

    def set_rate(self, cable: Cable, pids: Mapping[int, int]) -> None:
        """Limit what the ends of a cable send and receive to its rate, or lift the limit.

        :param pids: a process in the network namespace of each node.
        """
        self._set_rates(dict.fromkeys(fabric_ports(cable), cable.rate))
        for end in cable.ends:
            self.set_sending(pids[end.node], twins(end.port), cable.rate)

    @staticmethod
    def set_sending(pid: int, functions: Iterable[Function], rate: str) -> None:
        """Limit what a node sends, or lift the limit where the rate is empty."""
        set_rates(in_netns_of(pid), dict.fromkeys((function.netdev for function in functions), rate))

    def set_plugged(self, cable: Cable, plugged: bool) -> bool:
        """Plug a cable in or pull it out, at all of its ends.

        :returns: whether anything had to be changed.
        """
        ports = self.ports()
        wrong = [port for port in fabric_ports(cable) if ports[port] != plugged]
        batch("ip", "-n", self.namespace, lines=[f"link set {port} {'up' if plugged else 'down'}" for port in wrong])
        return bool(wrong)
