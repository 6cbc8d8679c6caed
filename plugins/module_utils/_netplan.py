# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Our own netplan file, and what other netplan files say about the same interfaces.

Note that this module util is PRIVATE to the collection. It can have breaking changes at any time.

How the file is applied with a way back is in `_netplan_guard`.
"""

from __future__ import annotations

import fnmatch
import importlib
import ipaddress
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypedDict

from ._netplan_guard import NAME

OWN_FILE = f"/etc/netplan/{NAME}"
DIRECTORIES = ("/run/netplan", "/etc/netplan", "/lib/netplan")  # of files with one name, the first counts

_HEADER = """\
# Managed by sparkfleet.vllm (fabric_configure: auto); changes here are lost. 'reset' removes this file.
network:
  version: 2
"""
# The names of interfaces that YAML takes for text without quotes.
_PLAIN = re.compile(r"^(?!(?:y|n|yes|no|on|off|true|false|null)$)[A-Za-z][A-Za-z0-9_.-]*$", re.IGNORECASE)
_NAME_LINE = re.compile(r"^ {4}(\S+):$")
_MTU_LINE = re.compile(r"^ {6}mtu: ([0-9]{1,6})$")
_ADDRESS_LINE = re.compile(r"^ {8}- (\S+)$")
# Kinds of interfaces that netplan knows; what else is under "network" is no interface.
_KINDS = ("ethernets", "bonds", "bridges", "vlans", "wifis", "modems", "tunnels", "vrfs", "dummy-devices", "nm-devices")


class Own(TypedDict):
    """What our file says about an interface."""

    interface: str
    addresses: list[str]
    mtu: int | None


class Entry(TypedDict):
    """What another file says about an interface."""

    addresses: list[str]
    mtu: int | None


class Files(TypedDict):
    """What the netplan files of a host say."""

    own: str | None
    files: dict[str, dict[str, Entry]]
    notes: list[str]


def render(settings: Sequence[Mapping[str, object]], own_text: str | None) -> str:
    """Return the text that our netplan file should have.

    Args:
        settings: What the host's interfaces should be; see `_addressing.Setting`.
        own_text: The present text of our file, None where there is none.

    Returns:
        The settings that are not in force yet, and those that are because our file has them. Empty if no file is
        needed.
    """
    ours = {own["interface"] for own in parse(own_text or "")}
    lines = []
    for setting in sorted(settings, key=lambda setting: str(setting["interface"])):
        name = str(setting["interface"])
        if setting.get("kept") and name not in ours:
            continue
        lines += [
            f"    {name if _PLAIN.match(name) else json.dumps(name)}:",
            "      dhcp4: false",
            "      dhcp6: false",
            "      accept-ra: false",
            "      link-local: []",
            "      optional: true",  # the machine's boot does not wait for a cable
            f"      mtu: {setting['mtu']}",
            "      addresses:",
            f"        - {setting['address']}",
        ]
    return "\n".join([f"{_HEADER}  ethernets:", *lines, ""]) if lines else ""


def nothing() -> str:
    """Return the text of a file that configures nothing, which hides one of the same name in a later directory."""
    return _HEADER


def parse(text: str) -> list[Own]:
    """Read back what `render` has written. Lines that it does not write are passed over."""
    found: list[Own] = []
    for line in text.splitlines():
        if match := _NAME_LINE.match(line):
            name = match[1]
            if name.startswith('"'):
                try:
                    name = str(json.loads(name))
                except ValueError:
                    continue
            found.append(Own(interface=name, addresses=[], mtu=None))
        elif not found:
            continue
        elif match := _MTU_LINE.match(line):
            found[-1]["mtu"] = int(match[1])
        elif match := _ADDRESS_LINE.match(line):
            found[-1]["addresses"].append(match[1])
    return found


def entries(document: object, interfaces: Mapping[str, str | None]) -> dict[str, Entry]:
    """Return what a netplan file says about interfaces that exist.

    Args:
        document: The file's YAML, parsed. It may be anything.
        interfaces: Name and MAC address of the interfaces.
    """
    found: dict[str, Entry] = {}
    network = document.get("network") if isinstance(document, Mapping) else None
    if not isinstance(network, Mapping):
        return {}
    for kind in _KINDS:
        definitions = network.get(kind)
        if not isinstance(definitions, Mapping):
            continue
        for name, definition in definitions.items():
            if not isinstance(definition, Mapping):
                continue
            for interface in _matching(str(name), definition, interfaces):
                entry = found.setdefault(interface, Entry(addresses=[], mtu=None))
                entry["addresses"] += [a for a in _addresses(definition) if a not in entry["addresses"]]
                mtu = definition.get("mtu")
                if isinstance(mtu, int) and not isinstance(mtu, bool):
                    entry["mtu"] = mtu
    return found


def _matching(name: str, definition: Mapping[object, object], interfaces: Mapping[str, str | None]) -> Sequence[str]:
    """Return the interfaces that a definition is for."""
    match = definition.get("match")
    if not isinstance(match, Mapping) or not match:
        return [name] if name in interfaces else []
    renamed = definition.get("set-name")
    if isinstance(renamed, str) and renamed in interfaces:
        return [renamed]
    found = list(interfaces)
    wanted = match.get("name")
    if isinstance(wanted, str):
        found = [interface for interface in found if fnmatch.fnmatchcase(interface, wanted)]
    mac = match.get("macaddress")
    if isinstance(mac, str):
        found = [interface for interface in found if (interfaces[interface] or "").lower() == mac.lower()]
    # A match by driver alone cannot be told from here; taking it for all would blame innocent files.
    return found if isinstance(wanted, str) or isinstance(mac, str) else []


def _addresses(definition: Mapping[object, object]) -> list[str]:
    """Return the addresses of a definition; one with options is a mapping with one key."""
    given = definition.get("addresses")
    found = []
    for item in given if isinstance(given, list) else []:
        if isinstance(item, str):
            found.append(item)
        elif isinstance(item, Mapping):
            found += [key for key in item if isinstance(key, str)]
    return found


def read_files(root: str, interfaces: Mapping[str, str | None], parser: Callable[[str], object] | None = None) -> Files:
    """Read a host's netplan files.

    Args:
        root: Where the host's file system is, / outside of tests.
        interfaces: Name and MAC address of the interfaces.
        parser: Turns YAML into data; PyYAML's, which netplan needs itself, if not given. Without it only our own
            file is read.

    Returns:
        The text of our file, the entries of the others by path, and one line for each file that cannot be read.
    """
    found = Files(own=None, files={}, notes=[])
    parser = parser or _yaml()
    paths: dict[str, str] = {}
    for directory in DIRECTORIES:
        try:
            names = os.listdir(os.path.join(root, directory[1:]))
        except OSError:
            continue
        for name in names:
            if name.endswith(".yaml") and not name.startswith("."):
                paths.setdefault(name, os.path.join(directory, name))
    for name in sorted(paths):
        if name == NAME:
            continue
        try:
            with open(os.path.join(root, paths[name][1:]), encoding="utf-8") as stream:
                document = parser(stream.read()) if parser else None
        except OSError as error:
            found["notes"].append(f"{paths[name]} cannot be read ({error.strerror})")
            continue
        except Exception:  # whatever a parser makes of garbage, RecursionError included
            found["notes"].append(f"{paths[name]} is no YAML that can be read; correct it, see 'netplan get'")
            continue
        if entry := entries(document, interfaces):
            found["files"][paths[name]] = entry
    try:
        with open(os.path.join(root, OWN_FILE[1:]), encoding="utf-8", errors="replace") as stream:
            found["own"] = stream.read()
    except OSError:
        pass
    return found


def _yaml() -> Callable[[str], object] | None:
    """Return PyYAML's safe parser, None where it is not installed."""
    try:
        module: Any = importlib.import_module("yaml")
    except ImportError:
        return None
    parse_text: Callable[[str], object] = module.safe_load
    return parse_text


def conflicts(
    settings: Sequence[Mapping[str, object]], files: Mapping[str, Mapping[str, Mapping[str, object]]]
) -> list[str]:
    """Return what other netplan files say against the settings, one line each.

    Args:
        settings: What the host's interfaces should be; see `_addressing.Setting`.
        files: What the other files say, by path and interface.
    """
    lines = []
    for setting in settings:
        name, address, mtu = str(setting["interface"]), str(setting["address"]), setting["mtu"]
        for path in sorted(files):
            entry = files[path].get(name)
            if entry is None:
                continue
            given = entry.get("addresses")
            others = [a for a in given if _is_ipv4(a)] if isinstance(given, list) else []
            said = []
            if others and not any(_same(other, address) for other in others):
                said.append(" and ".join(str(other) for other in others))
            if entry.get("mtu") not in (None, mtu):
                said.append(f"MTU {entry['mtu']}")
            if said:
                lines.append(
                    f"{name}: {path} gives it {', '.join(said)}; it should be {address}, MTU {mtu}: "
                    "take it out there, or set fabric_configure: keep"
                )
    return lines


def _is_ipv4(text: object) -> bool:
    try:
        return ipaddress.ip_interface(str(text)).version == 4
    except ValueError:
        return False


def _same(one: object, other: str) -> bool:
    try:
        return ipaddress.ip_interface(str(one)) == ipaddress.ip_interface(other)
    except ValueError:
        return False
