# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: fabric_probe
short_description: Ask who is at the other end of a host's fabric ports
version_added: "0.1.0"
author:
  - sparkfleet.vllm authors (@sparkfleet)
description:
  - Sends ARP probes for the addresses of other hosts out of the given interfaces, and returns the MAC addresses that
    answered on each of them. Neither the interface nor the other end needs an IP address for that, and nothing has to
    run at the other end.
  - Linux answers for every address of the host on every interface, unless C(arp_ignore) is set. So any address of the
    other hosts will do, for instance that of their management interfaces.
  - Also reads what else only root may, namely the netplan files and the records of earlier measurements.
  - Needs root. Where packet sockets are not allowed, it says so instead of failing.
attributes:
  check_mode:
    description: Can run in check mode and returns the same as outside of it.
    support: full
  diff_mode:
    description: Nothing is changed, so there is nothing to show.
    support: none
options:
  interfaces:
    description:
      - The interfaces to ask on. One that is down, has vanished or is not Ethernet gets no answers.
    type: list
    elements: str
    default: []
  targets:
    description: The IPv4 addresses to ask for.
    type: list
    elements: str
    default: []
  read:
    description:
      - Name of the variable in which the hosts of the run have registered M(sparkfleet.vllm.fabric_read). If given,
        O(interfaces) and O(targets) are taken from there. The action plugin of the same name does that, so that an
        unreachable host, or one without root, is no failure either.
    type: str
    default: ""
  directory:
    description: The cluster's directory, where the records of earlier measurements are.
    type: path
    required: true
  rounds:
    description: How often to ask, since a frame can get lost.
    type: int
    default: 3
  timeout:
    description: How many seconds to wait for answers in all. They are always spent if there is anything to ask.
    type: float
    default: 0.5
  root:
    description: Where the host's file system is. Another path than the default is for tests.
    type: path
    default: /
"""

EXAMPLES = r"""
- name: See who is at the other end
  sparkfleet.vllm.fabric_probe:
    interfaces: [enp1s0f0np0, enP2p1s0f0np0]
    targets: [10.0.0.11, 10.0.0.12]
    directory: /etc/sparkfleet/atlas
  become: true
  register: fabric
"""

RETURN = r"""
probe:
  description: What was found.
  returned: always
  type: dict
  contains:
    neighbours:
      description:
        - For each interface the MAC addresses that answered on it, sorted. V(none) if it could not be asked.
        - The host's own are among them if its ports are joined outside of it.
      type: dict
      sample: {enp1s0f0np0: ["4c:bb:47:00:02:01"]}
    reason:
      description: Why RV(probe.neighbours) is V(none), else empty.
      type: str
      sample: ""
    arp_ignore:
      description: The interfaces of O(interfaces) that answer probes for their own addresses only.
      type: list
      elements: str
      sample: []
    netplan:
      description: What netplan says.
      type: dict
      contains:
        installed:
          description: Whether there is a C(netplan) command.
          type: bool
          sample: true
        own:
          description: Our file; its RV(probe.netplan.own.text) is V(none) if there is none.
          type: dict
          contains:
            text:
              description: The content of the file.
              type: str
        files:
          description: What the other files say about interfaces that exist, by path and interface.
          type: dict
          sample: {/etc/netplan/40-cx7.yaml: {enp1s0f0np0: {addresses: [192.168.177.11/24], mtu: 9000}}}
        notes:
          description: The files that cannot be read, one line each.
          type: list
          elements: str
          sample: []
    records:
      description: The records of the last measurements, V(none) where there are none.
      type: dict
      contains:
        gate:
          description: Of the rails.
          type: dict
        collective:
          description: Of the collective operation in the image.
          type: dict
"""

import ipaddress
import json
import os
import socket

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.sparkfleet.vllm.plugins.module_utils._arp import ETHERNET, ETHERTYPE, Link, probe
from ansible_collections.sparkfleet.vllm.plugins.module_utils._netplan import read_files

# Room for the answers of a few thousand probes; root may have more than net.core.rmem_max allows.
_BUFFER = 4 << 20
_SO_RCVBUFFORCE = 33


def _read(*parts: str) -> str:
    """Return a file's stripped text, empty where it cannot be read."""
    try:
        with open(os.path.join(*parts), encoding="utf-8", errors="replace") as stream:
            return stream.read().strip()
    except OSError:
        return ""


def _open(name: str) -> Link:
    """Return a packet socket that sees the ARP frames of an interface."""
    opened = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    try:
        opened.setblocking(False)
        try:
            opened.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER)
        except OSError:
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
        opened.bind((name, ETHERTYPE))
    except OSError:
        opened.close()
        raise
    return opened


def neighbours(root: str, interfaces: list[str], targets: list[str], rounds: int, timeout: float) -> dict[str, object]:
    """Return who answers on each interface, or why it cannot be asked."""
    macs = {}
    for name in interfaces:
        ethernet = _read(root, "sys/class/net", name, "type") == str(ETHERNET)
        macs[name] = _read(root, "sys/class/net", name, "address") if ethernet else ""
    try:
        found = probe(macs, targets, _open, rounds, timeout)
    except PermissionError as error:
        return {"neighbours": None, "reason": f"packet sockets are not allowed ({error.strerror}); run it as root"}
    return {"neighbours": found, "reason": ""}


def ignoring(root: str, interfaces: list[str]) -> list[str]:
    """Return the interfaces that do not answer for addresses of other interfaces."""
    conf = os.path.join(root, "proc/sys/net/ipv4/conf")
    settings = {name: _read(conf, name, "arp_ignore") for name in ["all", *interfaces]}
    return [name for name in interfaces if any(settings[key] not in ("", "0") for key in ("all", name))]


def record(directory: str, name: str) -> dict[str, object] | None:
    """Return a record of an earlier measurement; one that cannot be read is none."""
    try:
        data = json.loads(_read(directory, f"{name}.json"))
    except (ValueError, RecursionError):
        return None
    return data if isinstance(data, dict) else None


def main() -> None:
    """Look and return what was seen."""
    module = AnsibleModule(
        argument_spec={
            "interfaces": {"type": "list", "elements": "str", "default": []},
            "targets": {"type": "list", "elements": "str", "default": []},
            "read": {"type": "str", "default": ""},
            "directory": {"type": "path", "required": True},
            "rounds": {"type": "int", "default": 3},
            "timeout": {"type": "float", "default": 0.5},
            "root": {"type": "path", "default": "/"},
        },
        supports_check_mode=True,
    )
    given = module.params
    root = given["root"]
    for target in given["targets"]:
        try:
            ipaddress.IPv4Address(target)
        except ValueError:
            module.fail_json(msg=f"targets: {target!r} is no IPv4 address; give one")
    # A name goes into paths.
    interfaces = [name for name in dict.fromkeys(given["interfaces"]) if name and "/" not in name and name != ".."]
    try:
        present = sorted(os.listdir(os.path.join(root, "sys/class/net")))
    except OSError:
        present = []
    files = read_files(root, {name: _read(root, "sys/class/net", name, "address") for name in present})
    result = {
        **neighbours(root, interfaces, given["targets"], given["rounds"], given["timeout"]),
        "arp_ignore": ignoring(root, interfaces),
        "netplan": {
            "installed": module.get_bin_path("netplan") is not None,
            "own": {"text": files["own"]},
            "files": files["files"],
            "notes": files["notes"],
        },
        "records": {name: record(given["directory"], name) for name in ("gate", "collective")},
    }
    module.exit_json(changed=False, probe=result)


if __name__ == "__main__":
    main()
