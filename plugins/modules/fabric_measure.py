# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: fabric_measure
short_description: Measure what a node's links to the other nodes carry
version_added: "0.2.0"
description:
  - Pings the other end of each link with unfragmented packets as large as the MTU.
  - With O(mode=bandwidth), measures then one link after the other by C(ib_write_bw) (package perftest) if both ends
    have it and can open their RDMA device, else by several TCP streams, which are counted where they arrive.
    M(sparkfleet.vllm.fabric_listen) must be running on the other nodes.
  - Use C(throttle=1) for O(mode=bandwidth), so that nodes do not measure at the same time.
  - The path through C(ib_write_bw) has not been run on a GB10 yet. It has been tested with a program that stands in for
    it.
  - Does not judge the figures and fails for none of them, see M(sparkfleet.vllm.fabric_judge).
author:
  - sparkfleet.vllm authors (@sparkfleet)
attributes:
  check_mode:
    description: Nothing is changed. Measures the same in check mode.
    support: full
  diff_mode:
    description: Nothing is changed, so there is nothing to show.
    support: none
options:
  host:
    description: The node's name in the inventory, for the messages.
    type: str
    required: true
  links:
    description: What this node has to reach.
    type: list
    elements: dict
    required: true
    suboptions:
      interface:
        description: The node's own interface.
        type: str
        required: true
      address:
        description: Its IPv4 address, without prefix length.
        type: str
        required: true
      peer:
        description: The other node.
        type: str
        required: true
      peer_interface:
        description: The other node's interface.
        type: str
        required: true
      peer_address:
        description: Its IPv4 address, without prefix length.
        type: str
        required: true
      mtu:
        description: The MTU that the interface should have.
        type: int
        required: true
      hca:
        description: The RDMA device of the interface.
        type: str
      peer_hca:
        description: The RDMA device of the other node's interface.
        type: str
      gid_index:
        description: Index of the RDMA device's GID of type RoCE v2 with the IPv4 address.
        type: int
      peer_gid_index:
        description: The same of the other node.
        type: int
      peer_mac:
        description: The MAC address of the other node's interface.
        type: str
      measure:
        description: Whether this node measures the bandwidth of this link.
        type: bool
        default: false
  mode:
    description: Only ping, or measure the bandwidth too.
    type: str
    choices: [bandwidth, ping]
    default: bandwidth
  token:
    description: What the listeners of this run want to be known. Needed for O(mode=bandwidth).
    type: str
    default: ""
  port:
    description: The port of the listeners. C(ib_write_bw) uses the next one.
    type: int
    default: 18515
  seconds:
    description: How long to measure each link.
    type: int
    default: 2
  patience:
    description: How long to try again when a peer does not answer, in seconds. Links need a moment after a change.
    type: int
    default: 10
seealso:
  - module: sparkfleet.vllm.fabric_listen
  - module: sparkfleet.vllm.fabric_judge
"""

EXAMPLES = r"""
- name: Measure
  sparkfleet.vllm.fabric_measure:
    host: "{{ inventory_hostname }}"
    links: "{{ __fabric_preflight.links }}"
    token: "{{ token }}"
  throttle: 1
  register: measured
"""

RETURN = r"""
measured:
  description: What was found, a dictionary for each of O(links).
  returned: always
  type: list
  elements: dict
  contains:
    link:
      description: The link, as in O(links).
      type: dict
    mtu_ok:
      description: Whether packets as large as the MTU arrive unfragmented.
      type: bool
    small_ok:
      description: Whether small packets arrive. V(none) if large ones do.
      type: bool
    carrier:
      description: Whether the interface has carrier. V(none) if large packets arrive.
      type: bool
    mtu:
      description: The interface's MTU as it is.
      type: int
    ping_error:
      description: What ping said when it failed.
      type: str
    wrong_mac:
      description:
        - The MAC address that answers for the peer's address, if it is not that of the peer's interface. Linux answers
          ARP requests on every interface unless C(arp_ignore) is set.
      type: str
    gbps:
      description: The bandwidth to the other end, V(none) if it was not measured.
      type: float
    tool:
      description: What measured it, V(ib_write_bw) or V(tcp), empty if it was not measured.
      type: str
    why_tcp:
      description: Why it was not C(ib_write_bw).
      type: str
    error:
      description: Why there is no bandwidth although there should be.
      type: str
"""

import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.sparkfleet.vllm.plugins.module_utils._gate import (
    HEADERS,
    Link,
    Measurement,
    parse_write_bw,
    write_bw_command,
    write_bw_failure,
)
from ansible_collections.sparkfleet.vllm.plugins.module_utils._roce import Reader, SysfsReader, whole_number
from ansible_collections.sparkfleet.vllm.plugins.module_utils._streams import Caller, Lack, Trouble, no_verbs

PARALLEL_PINGS = 16
SMALL = 56
IB_SECONDS = 3
IB_ATTEMPTS = 5

Run = Callable[[list[str]], tuple[int, str, str]]


class Measurer:
    """Measures links with the programs of this node."""

    def __init__(self, params: dict[str, Any], run: Run, write_bw: str | None, reader: Reader, dev: str) -> None:
        self.host, self.mode = params["host"], params["mode"]
        self.token, self.port, self.seconds = params["token"], params["port"], params["seconds"]
        self.patience: float = params["patience"]
        self.run, self.write_bw, self.reader, self.dev = run, write_bw, reader, dev

    def all(self, links: list[Link]) -> list[Measurement]:
        """Ping over all links at once, then measure one after the other."""
        with ThreadPoolExecutor(PARALLEL_PINGS) as pool:
            measured = list(pool.map(self.ping, links))
        for measurement in measured:
            if self.mode == "bandwidth" and measurement["link"]["measure"] and measurement["mtu_ok"]:
                self.bandwidth(measurement)
        return measured

    def ping(self, link: Link) -> Measurement:
        """See whether large packets arrive, and if not, whether small ones do."""
        deadline = time.monotonic() + self.patience
        while True:
            ok, said = self._ping(link, link["mtu"] - HEADERS)
            if ok or time.monotonic() >= deadline:
                break
            time.sleep(0.2)
        found = Measurement(
            link=link,
            mtu_ok=ok,
            small_ok=None,
            carrier=None,
            mtu=whole_number(self.reader.text(f"class/net/{link['interface']}/mtu")),
            ping_error="" if ok else said,
            wrong_mac=self._wrong_mac(link),
            gbps=None,
            tool="",
            why_tcp="",
            error="",
        )
        if not ok:
            found["small_ok"], small_said = self._ping(link, SMALL)
            # An interface that is down gives no text at all.
            found["carrier"] = self.reader.text(f"class/net/{link['interface']}/carrier") == "1"
            found["ping_error"] = said if found["small_ok"] else small_said
        return found

    def _ping(self, link: Link, size: int) -> tuple[bool, str]:
        options = ["-M", "do", "-s", str(size), "-I", link["address"], "-c", "3", "-i", "0.2", "-W", "1"]
        rc, out, err = self.run(["ping", *options, link["peer_address"]])
        return rc == 0, ping_failure(out, err)

    def _wrong_mac(self, link: Link) -> str:
        if not link["peer_mac"]:
            return ""
        _rc, out, _err = self.run(["ip", "-j", "neigh", "show", "to", link["peer_address"], "dev", link["interface"]])
        try:
            found = [str(entry["lladdr"]) for entry in json.loads(out or "[]") if "lladdr" in entry]
        except (ValueError, TypeError):
            return ""
        return found[0] if found and found[0].lower() != link["peer_mac"].lower() else ""

    def bandwidth(self, measurement: Measurement) -> None:
        """Measure one link by the best means that both ends have."""
        link = measurement["link"]
        caller = Caller(link["address"], link["peer_address"], self.port, self.token, self.patience)
        try:
            lack, where = self._no_verbs(link, caller)
            if lack is None:
                measurement["tool"] = "ib_write_bw"
                measurement["gbps"] = self._write_bw(link, caller)
            else:
                measurement["tool"] = "tcp"
                measurement["why_tcp"] = f"{lack.what} on {where}: {lack.remedy} there"
                measurement["gbps"] = caller.tcp_gbps(self.seconds)
        except Trouble as trouble:
            measurement["error"] = str(trouble)

    def _no_verbs(self, link: Link, caller: Caller) -> tuple[Lack | None, str]:
        own = no_verbs(link["hca"], link["gid_index"], self.write_bw, self.reader, self.dev)
        if own:
            return own, self.host
        answer = caller.ask({"do": "verbs", "hca": link["peer_hca"], "gid_index": link["peer_gid_index"]})
        lack = answer.get("lack")
        return (Lack(*map(str, lack)) if isinstance(lack, list) and len(lack) == 2 else None), link["peer"]

    def _write_bw(self, link: Link, caller: Caller) -> float:
        if link["hca"] is None or link["gid_index"] is None:
            raise ValueError("no RDMA device")
        seconds = max(self.seconds, IB_SECONDS)
        request = {
            "do": "ib_write_bw",
            "hca": link["peer_hca"],
            "gid_index": link["peer_gid_index"],
            "seconds": seconds,
        }
        line = caller.open(request)
        with line.connection:
            caller.answer(line, 5)
            command = write_bw_command(link["hca"], link["gid_index"], self.port + 1, seconds, link["peer_address"])
            for _attempt in range(IB_ATTEMPTS):
                rc, out, err = self.run(["timeout", "-k", "2", str(seconds + 15), *command])
                if rc == 0 or "Couldn't connect" not in out + err:
                    break
                time.sleep(0.5)  # the server is still starting
            gbps = parse_write_bw(out) if rc == 0 else None
            if gbps is not None:
                return gbps
            said = "no end within its time" if rc == 124 else write_bw_failure(f"{out}\n{err}")
            raise Trouble(f"ib_write_bw: {said}{self._far_end(link, caller, line)}")

    @staticmethod
    def _far_end(link: Link, caller: Caller, line: Any) -> str:
        """Return what the server said, if it ended in error as well."""
        try:
            answer = caller.answer(line, 3)
        except Trouble:
            return ""
        return f" ({link['peer']}: {answer['said']})" if answer.get("said") else ""


def ping_failure(out: str, err: str) -> str:
    """Return the line of ping's output that says why it failed."""
    lines = [line.strip() for line in f"{out}\n{err}".splitlines() if line.strip()]
    for telling in ("too long", "Unreachable", "unreachable", "ping:", "packet loss"):
        for line in lines:
            if telling in line:
                return line.removeprefix("ping: ")[:200]
    return lines[-1][:200] if lines else "ping said nothing"


def main() -> None:
    needed, text = {"type": "str", "required": True}, {"type": "str"}
    link = {
        "interface": needed,
        "address": needed,
        "peer": needed,
        "peer_interface": needed,
        "peer_address": needed,
        "mtu": {"type": "int", "required": True},
        "hca": text,
        "peer_hca": text,
        "peer_mac": text,
        "gid_index": {"type": "int"},
        "peer_gid_index": {"type": "int"},
        "measure": {"type": "bool", "default": False},
    }
    module = AnsibleModule(
        argument_spec={
            "host": {"type": "str", "required": True},
            "links": {"type": "list", "elements": "dict", "required": True, "options": link},
            "mode": {"type": "str", "choices": ["bandwidth", "ping"], "default": "bandwidth"},
            "token": {"type": "str", "default": "", "no_log": True},
            "port": {"type": "int", "default": 18515},
            "seconds": {"type": "int", "default": 2},
            "patience": {"type": "int", "default": 10},
        },
        supports_check_mode=True,
    )
    module.run_command_environ_update = {"LANG": "C", "LC_ALL": "C"}
    if not module.get_bin_path("ping"):
        module.fail_json(msg=f"{module.params['host']}: ping is missing; apt-get install iputils-ping")

    def run(command: list[str]) -> tuple[int, str, str]:
        rc, out, err = module.run_command(command, errors="replace")
        return rc, out, err

    measurer = Measurer(module.params, run, module.get_bin_path("ib_write_bw"), SysfsReader(), "/dev")
    module.exit_json(changed=False, measured=measurer.all(module.params["links"]))


if __name__ == "__main__":
    main()
