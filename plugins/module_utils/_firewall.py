# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The node's firewall: from ports, peers and the owner's list to the text that nft loads.

Pure. Which ports are open to everyone comes from `_ports`, so that the rules and docs/ports.md cannot differ.

Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import hashlib
import ipaddress
import re
import typing as t
from dataclasses import dataclass

TABLE: t.Final = "sparkfleet"
FILE: t.Final = "/etc/sparkfleet/firewall.nft"
UNIT: t.Final = "spark-firewall.service"

NOTHING: t.Final = f"add table inet {TABLE}\ndelete table inet {TABLE}\n"
"""Removes our table, whether it is there or not; what comes after it in the same file replaces it in one step."""

UNIT_TEXT: t.Final = f"""\
# Managed by role host of sparkfleet.vllm: changes here are lost.
[Unit]
Description=Firewall of a cluster's node (nftables, table inet {TABLE})
DefaultDependencies=no
Wants=network-pre.target
Before=network-pre.target
# Its file usually begins with a flush of everything: ours goes after it, at boot and at a restart.
After=nftables.service
PartOf=nftables.service

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/usr/sbin/nft -f {FILE}
ExecReload=/usr/sbin/nft -f {FILE}
ExecStop=-/usr/sbin/nft delete table inet {TABLE}

[Install]
WantedBy=sysinit.target
"""

_ALLOW = re.compile(r"(\d{1,5})(?:-(\d{1,5}))?/(tcp|udp)(?:\s+from\s+(\S+))?\Z", re.ASCII)
_INTERFACE = re.compile(r"[A-Za-z0-9_.:@-]{1,15}\Z", re.ASCII)
_MARK = re.compile(r'comment "sparkfleet ([0-9a-f]{16})"')

_Network = t.Union[ipaddress.IPv4Network, ipaddress.IPv6Network]  # noqa: UP007 - pylint does not know | of classes


@dataclass(frozen=True, order=True)
class Opening:
    """Ports that are open to everyone, or to one network."""

    first: int
    last: int
    protocol: str = "tcp"
    source: str = ""


@dataclass(frozen=True)
class Inputs:
    """What the rules of a node are made from."""

    ssh_ports: tuple[int, ...]
    """Where its sshd listens."""
    api_ports: tuple[int, ...]
    """Where it serves models."""
    interfaces: tuple[str, ...]
    """Its interfaces of the fabric."""
    peers: tuple[str, ...]
    """Fabric addresses of the other nodes of its cluster."""
    allow: tuple[Opening, ...] = ()
    """What the owner wants open besides."""


# --- what the inventory says --------------------------------------------------------------------------------------


def parse_allow(text: str) -> Opening:
    """Return what an element of host_firewall_allow opens. Raises ValueError that says what it does wrong."""
    match = _ALLOW.match(text.strip())
    if not match:
        raise ValueError("opens no port; write it like 3000/tcp, 60000-61000/udp or 9100/tcp from 10.0.0.0/24")
    first, last = int(match[1]), int(match[2] or match[1])
    if not 1 <= first <= last <= 65535:
        raise ValueError("has no sensible ports; give 1 to 65535, the lower one first")
    source = match[4] or ""
    if source:
        try:
            source = str(ipaddress.ip_network(source))
        except ValueError:
            raise ValueError("names no network; write it like 10.0.0.0/24, 10.0.0.5 or fd00::/64") from None
    return Opening(first, last, match[3], source)


def option_problems(values: t.Mapping[str, t.Any]) -> list[str]:
    """Return what is wrong with the variables of the firewall, one line each."""
    problems = []
    for text in values.get("host_firewall_allow") or ():
        try:
            parse_allow(str(text))
        except ValueError as error:
            problems.append(f"host_firewall_allow: {text!r} {error}")
    for port in values.get("host_firewall_api_ports") or ():
        if not 1 <= port <= 65535:
            problems.append(f"host_firewall_api_ports: {port} is no port; give 1 to 65535")
    return problems


# --- what the fabric says -----------------------------------------------------------------------------------------


def fabric_addresses(fabric: t.Mapping[str, t.Any]) -> list[str]:
    """Return the addresses that a node talks to the others from, sorted.

    `fabric` is what role fabric's preflight registered. An address that an interface is to get counts, and not the one
    that it has: rules that are loaded before the addresses change have to fit afterwards.
    """
    node = fabric["node"]
    planned = {setting["interface"]: [setting["address"]] for setting in fabric.get("settings") or ()}
    roce = fabric.get("roce") or {}
    present = {
        interface["name"]: interface["addresses"]
        for interface in roce.get("interfaces") or ()
        if interface["name"] in node["interfaces"]
    }
    found = {ipaddress.ip_interface(node["address"]).ip}
    for addresses in {**present, **planned}.values():
        found.update(ipaddress.ip_interface(address).ip for address in addresses)
    return [str(ip) for ip in sorted(found, key=_order) if ip.version == 4 and not ip.is_link_local]


def fabric_interfaces(fabric: t.Mapping[str, t.Any]) -> list[str]:
    """Return the interfaces that the other nodes' packets come in by, sorted."""
    node = fabric["node"]
    planned = {setting["interface"] for setting in fabric.get("settings") or ()}
    return sorted({node["interface"], *node["interfaces"], *planned})


def _order(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> tuple[int, int]:
    return address.version, int(address)


# --- the rules ----------------------------------------------------------------------------------------------------


def ruleset(inputs: Inputs) -> str:
    """Return the file for `nft -f`. It replaces our table in one step and touches nothing else.

    Raises ValueError for an address or an interface that is none.
    """
    rules = [
        "ct state established,related accept",
        'iif "lo" accept',
        # Without IGMP a switch that listens to it forgets that we want mDNS.
        "meta l4proto { icmp, ipv6-icmp, igmp } accept",
        'udp dport 5353 accept comment "mDNS"',
        'udp sport 67 udp dport 68 accept comment "DHCP"',
        'ip6 saddr fe80::/10 udp sport 547 udp dport 546 accept comment "DHCPv6"',
    ]
    rules += _accepted("tcp dport", [str(port) for port in sorted(set(inputs.ssh_ports))], "ssh")
    rules += _accepted("tcp dport", [str(port) for port in sorted(set(inputs.api_ports))], "API of a model")
    rules += _from_peers(inputs)
    rules += [_opened(opening) for opening in sorted(set(inputs.allow))]
    body = "\n".join(f"\t\t{rule}" for rule in rules)
    mark = hashlib.sha256(body.encode()).hexdigest()[:16]
    return (
        "# Managed by role host of sparkfleet.vllm: changes here are lost.\n"
        f"{NOTHING}"
        f"table inet {TABLE} {{\n"
        "\tchain input {\n"
        "\t\ttype filter hook input priority filter; policy drop;\n"
        f"{body}\n"
        f'\t\tcounter comment "sparkfleet {mark}"\n'
        "\t}\n"
        "}\n"
    )


def _accepted(match: str, elements: t.Sequence[str], comment: str) -> list[str]:
    return [f'{match} {{ {", ".join(elements)} }} accept comment "{comment}"'] if elements else []


def _from_peers(inputs: Inputs) -> list[str]:
    wrong = [name for name in inputs.interfaces if not _INTERFACE.match(name)]
    if wrong:
        raise ValueError(f"{wrong[0]!r} is no name of an interface")
    names = ", ".join(f'"{name}"' for name in sorted(set(inputs.interfaces)))
    addresses = sorted({ipaddress.ip_address(peer) for peer in inputs.peers}, key=_order)
    rules = []
    for version, family in ((4, "ip"), (6, "ip6")):
        own = [str(address) for address in addresses if address.version == version]
        if own and names:
            rules += _accepted(f"iifname {{ {names} }} {family} saddr", own, "nodes of the cluster")
    return rules


def _opened(opening: Opening) -> str:
    ports = f"{opening.first}" if opening.first == opening.last else f"{opening.first}-{opening.last}"
    source = ""
    if opening.source:
        network: _Network = ipaddress.ip_network(opening.source)
        source = f"{'ip' if network.version == 4 else 'ip6'} saddr {network} "
    return f'{source}{opening.protocol} dport {ports} accept comment "host_firewall_allow"'


# --- what is loaded -----------------------------------------------------------------------------------------------


def is_loaded(listing: str, text: str) -> bool:
    """Whether the kernel has the rules of `text`: their mark, and as many rules.

    `listing` is what `nft list table inet sparkfleet` prints. It writes rules in its own way, which differs between
    versions, but each in one line.
    """
    wanted, found = _MARK.search(text), _MARK.search(listing)
    if not wanted or not found or wanted[1] != found[1]:
        return False
    return _rules(listing) == _rules(text)


def _rules(text: str) -> int:
    """Return the number of rules of a table."""
    inner = text.partition("policy drop;")[2].splitlines()
    return sum(1 for line in inner if line.strip() not in ("", "}"))
