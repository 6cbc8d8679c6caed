# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The network hardware of a DGX Spark: names, MAC addresses and GUIDs.

This file is also installed on every simulated node, so it needs nothing but the standard library.
"""

from __future__ import annotations

from dataclasses import dataclass

MANAGEMENT = "enP7s7"
"""The 10 GbE port next to the QSFP ports; it carries SSH."""


@dataclass(frozen=True)
class Function:
    """One PCIe function of the ConnectX-7: what Linux shows as one netdev and one RDMA device."""

    pci: str
    netdev: str
    hca: str
    port: int
    rail: int
    offset: int
    """Distance of its MAC address and GUID from the card's first."""


FUNCTIONS = (
    Function("0000:01:00.0", "enp1s0f0np0", "rocep1s0f0", port=0, rail=0, offset=0),
    Function("0000:01:00.1", "enp1s0f1np1", "rocep1s0f1", port=1, rail=0, offset=1),
    Function("0002:01:00.0", "enP2p1s0f0np0", "roceP2p1s0f0", port=0, rail=1, offset=4),
    Function("0002:01:00.1", "enP2p1s0f1np1", "roceP2p1s0f1", port=1, rail=1, offset=5),
)


PORTS = (0, 1)
"""The QSFP ports, as they are written on the box."""


def twins(port: int) -> tuple[Function, ...]:
    """Both functions behind one QSFP port, rail 0 first."""
    return tuple(function for function in FUNCTIONS if function.port == port)


def mac(node: int, function: Function) -> str:
    """MAC address of a function of the node with this number (1..255)."""
    return f"4c:bb:47:00:{node:02x}:{function.offset:02x}"


def card_guid(first_mac: str) -> int:
    """The card's ``sys_image_guid``, made from the MAC address of its first function as Mellanox does."""
    octets = first_mac.split(":")
    return int("".join([*octets[:3], "03", "00", *octets[3:]]), 16)


def default_gid(address: str) -> str:
    """The link-local GID (EUI-64) that a RoCE port derives from its MAC address."""
    b = [int(octet, 16) for octet in address.split(":")]
    return f"fe80:0000:0000:0000:{b[0] ^ 2:02x}{b[1]:02x}:{b[2]:02x}ff:fe{b[3]:02x}:{b[4]:02x}{b[5]:02x}"
