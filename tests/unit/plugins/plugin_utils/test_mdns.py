# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""mDNS with a real responder, on the loopback interface."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest
from ansible.errors import AnsibleError
from ansible_collections.sparkfleet.vllm.plugins.plugin_utils import _mdns
from ansible_collections.sparkfleet.vllm.plugins.plugin_utils._mdns import SERVICE, Announced, announced

zeroconf = pytest.importorskip("zeroconf")
LOOPBACK = "127.0.0.1"


@pytest.fixture
def responder() -> Iterator[None]:
    """Two Sparks that announce ssh, and one printer."""
    server = zeroconf.Zeroconf(interfaces=[LOOPBACK], ip_version=zeroconf.IPVersion.V4Only)
    services = [
        ("spark-02", SERVICE, ["192.0.2.12", "198.51.100.12"], 2222),
        ("spark-01", SERVICE, ["192.0.2.11"], 22),
        ("printer", "_ipp._tcp.local.", ["192.0.2.99"], 631),
    ]
    try:
        for name, service, addresses, port in services:
            packed = [socket.inet_aton(address) for address in addresses]
            server.register_service(
                zeroconf.ServiceInfo(service, f"{name}.{service}", port, server=f"{name}.local.", addresses=packed)
            )
        yield
    finally:
        server.close()


@pytest.mark.parametrize("interface", [LOOPBACK, "lo"])
def test_who_announces_ssh_is_found(responder: None, interface: str) -> None:
    assert announced(1.5, [interface]) == [
        Announced("spark-01", ("192.0.2.11",), 22),
        Announced("spark-02", ("192.0.2.12", "198.51.100.12"), 2222),
    ]


def test_nobody_answers() -> None:
    assert announced(0.1, [LOOPBACK]) == []


def test_an_interface_that_is_not_there() -> None:
    with pytest.raises(AnsibleError, match=r"no IPv4 address on nothing0.*set mdns: false"):
        announced(0.1, ["nothing0"])


def test_without_the_library_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_mdns, "zeroconf", None)
    with pytest.raises(AnsibleError, match="run 'pip install zeroconf', or set mdns: false"):
        announced(0.1)
