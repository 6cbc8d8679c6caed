# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who announces an SSH server by mDNS, as DGX OS does.

Note that this plugin util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import ipaddress
import threading
import typing as t

from ansible.errors import AnsibleError

try:
    import zeroconf
except ImportError:  # only who uses mDNS needs it
    zeroconf = None  # type: ignore[assignment]

HAS_ZEROCONF: t.Final = zeroconf is not None
MISSING: t.Final = (
    "mDNS needs the Python package zeroconf on the controller; run 'pip install zeroconf', or set mdns: false"
)
SERVICE: t.Final = "_ssh._tcp.local."


class Announced(t.NamedTuple):
    """An SSH server, with its IPv4 addresses."""

    name: str
    addresses: tuple[str, ...]
    port: int


def announced(seconds: float, interfaces: t.Sequence[str] = ()) -> list[Announced]:
    """Return the SSH servers that answer within `seconds`, sorted by name.

    The whole time is spent: nobody can know that nothing more will come.

    Args:
        seconds: how long to listen.
        interfaces: the controller's interfaces, by name or address; empty means all.

    Raises:
        AnsibleError: mDNS cannot be used here.
    """
    if zeroconf is None:
        raise AnsibleError(MISSING)
    names: set[str] = set()

    def changed(zeroconf: t.Any, service_type: str, name: str, state_change: t.Any) -> None:
        names.add(name)  # one that goes away in between is asked in vain

    try:
        chosen: t.Any = _addresses(interfaces) if interfaces else zeroconf.InterfaceChoice.All
        browser = zeroconf.Zeroconf(interfaces=chosen, ip_version=zeroconf.IPVersion.V4Only)
    except (OSError, RuntimeError, ValueError) as error:
        raise AnsibleError(
            f"mDNS cannot be used on this controller ({error}); set mdns: false and give hosts"
        ) from error
    try:
        listener = zeroconf.ServiceBrowser(browser, SERVICE, handlers=[changed])
        threading.Event().wait(seconds)
        listener.cancel()
        return [found for name in sorted(names) if (found := _resolve(browser, name))]
    finally:
        browser.close()


def _addresses(interfaces: t.Sequence[str]) -> list[str]:
    """Return the IPv4 addresses of interfaces, of which zeroconf knows no names."""
    import ifaddr  # zeroconf brings it

    own = {
        name: [ip.ip for ip in adapter.ips if ip.is_IPv4]
        for adapter in ifaddr.get_adapters()
        for name in (adapter.name, adapter.nice_name)
    }
    found = [address for name in interfaces for address in own.get(name, [name] if name[:1].isdigit() else [])]
    if not found:
        raise ValueError(f"no IPv4 address on {', '.join(interfaces)}")
    return [str(address) for address in found]


def _resolve(browser: t.Any, name: str) -> Announced | None:
    """Return where a service is; None where nobody says so."""
    info = browser.get_service_info(SERVICE, name, timeout=1000)
    if info is None or not info.port:
        return None
    addresses = sorted(info.parsed_addresses(zeroconf.IPVersion.V4Only), key=ipaddress.IPv4Address)
    return (
        Announced(name.removesuffix(f".{SERVICE}"), tuple(dict.fromkeys(addresses)), info.port) if addresses else None
    )
