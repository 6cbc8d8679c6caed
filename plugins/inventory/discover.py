# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: discover
short_description: Find DGX Sparks and the clusters that their cables make
version_added: "0.1.0"
author:
  - sparkfleet.vllm authors (@sparkfleet)
description:
  - Finds Sparks by mDNS, where they announce their SSH server, and among O(hosts). Each is asked over SSH, once and
    all at the same time, who it is and who is at the other ends of its QSFP ports.
  - Every Spark is a host with its own name in the group C(sparks). Sparks that are cabled together, over any number of
    cables or a switch, are a cluster, that is a child group of C(sparks). The first host of a cluster, by name, is its
    head.
  - Only reads. Nothing is written on the nodes and no address of the fabric is needed.
  - Whoever cannot be asked, or is no Spark, is left out with a warning. If nothing is found, the inventory is empty,
    or the last one of the cache, with a warning.
  - The file's name has to end in C(sparks.yml), C(sparks.yaml), C(discover.yml) or C(discover.yaml).
extends_documentation_fragment:
  - constructed
  - inventory_cache
requirements:
  - ssh, and the hosts' keys accepted before, as they are checked
  - zeroconf (Python package), unless O(mdns=false)
  - On the nodes Python 3.10 or newer and iproute2
notes:
  - Cables are found by ARP probes, with root's rights on the node, which O(sudo) says how to get. Without them, two
    Sparks whose ports have no addresses may not see each other, and each becomes a cluster by itself.
  - Expressions of O(compose), O(groups) and O(keyed_groups) may use C(discovered), a dictionary with C(hostname),
    C(address), C(product), C(cluster), C(head), C(topology), C(cluster_size), C(fabric_addresses) and C(fabric_macs).
    It does not become a variable of the host, unless O(compose) makes it one.
  - With O(cache=true) the nodes are asked again when the cache has expired, or with C(--flush-cache). With
    O(cache_timeout=0) it never expires. On a renewal, hosts that do not answer stay as they were seen last, with a
    warning, so that a node that is off does not change its cluster.
options:
  plugin:
    description: Names this plugin.
    type: str
    required: true
    choices: [sparkfleet.vllm.discover]
  hosts:
    description:
      - Addresses, names and networks like V(192.0.2.0/24) to ask, beside those that are found by mDNS. Of a network
        only those are asked who accept a connection to O(port).
    type: list
    elements: str
    default: []
  mdns:
    description: Whether to look for Sparks by mDNS. It reaches the controller's own networks only.
    type: bool
    default: true
  interfaces:
    description: The controller's interfaces for mDNS, by name or IPv4 address. Empty means all.
    type: list
    elements: str
    default: []
  timeout_s:
    description: How many seconds to wait for answers by mDNS, and for a connection.
    type: float
    default: 3
  user:
    description: The user to log in as. Given, it becomes C(ansible_user).
    type: str
    default: ""
    env:
      - name: ANSIBLE_REMOTE_USER
    ini:
      - {section: defaults, key: remote_user}
  port:
    description: The port to ask at, save where mDNS says another one. If it is not 22, it becomes C(ansible_port).
    type: int
    default: 22
  private_key_file:
    description: The key to log in with. Given, it becomes C(ansible_ssh_private_key_file).
    type: path
    env:
      - name: ANSIBLE_PRIVATE_KEY_FILE
    ini:
      - {section: defaults, key: private_key_file}
  ssh_common_args:
    description:
      - Arguments for ssh, for instance another file of known hosts. Given, they become C(ansible_ssh_common_args).
    type: str
    default: ""
    env:
      - name: ANSIBLE_SSH_COMMON_ARGS
    ini:
      - {section: ssh_connection, key: ssh_common_args}
  sudo:
    description:
      - Whether to look for cables with C(sudo -n) on the nodes, which never asks for a password. Where it is refused,
        they are looked for without it.
    type: bool
    default: true
  clusters:
    description:
      - Clusters that you name yourself, with their hosts, head first. The cables decide about all other hosts.
      - Without this, a cluster is called C(cluster_) and the name of its head. Name it before it serves, since the
        name is that of a directory on its nodes.
      - Sparks on one switch are one cluster unless you divide them here.
    type: dict
    default: {}
seealso:
  - module: sparkfleet.vllm.fabric_probe
  - module: sparkfleet.vllm.roce_facts
"""

EXAMPLES = r"""
# All Sparks in the controller's networks
plugin: sparkfleet.vllm.discover
user: nvidia

---
# Those of a network without mDNS; once found, they stay until somebody says --flush-cache
plugin: sparkfleet.vllm.discover
mdns: false
hosts: [192.0.2.0/24]
user: nvidia
cache: true
cache_plugin: ansible.builtin.jsonfile
cache_connection: ~/.cache/sparkfleet
cache_timeout: 0

---
# Six Sparks on a switch as two clusters, with a group for each kind of cabling and a variable
plugin: sparkfleet.vllm.discover
user: nvidia
clusters:
  atlas: [spark-01, spark-02, spark-03, spark-04]
  boreas: [spark-05, spark-06]
keyed_groups:
  - key: discovered.topology
    prefix: cabled
compose:
  spark_product: discovered.product
"""

import typing as t

from ansible.errors import AnsibleError, AnsibleParserError
from ansible.plugins.inventory import BaseInventoryPlugin, Cacheable, Constructable
from ansible.template import trust_as_template
from ansible_collections.sparkfleet.vllm.plugins.module_utils._discover import (
    PARENT,
    Fleet,
    Observation,
    check_names,
    expand,
    find_fleet,
    host_facts,
    is_observation,
    merge,
    route_address,
    same_machine,
    stranger_addresses,
)
from ansible_collections.sparkfleet.vllm.plugins.plugin_utils._asking import (
    Access,
    Target,
    ask,
    listening,
    resolve,
)
from ansible_collections.sparkfleet.vllm.plugins.plugin_utils._mdns import (
    HAS_ZEROCONF,
    MISSING,
    Announced,
    announced,
)

_ENDINGS: t.Final = ("sparks.yml", "sparks.yaml", "discover.yml", "discover.yaml")
# Each round asks those whom the last one saw on the fabric; a chain that is longer would be a strange one.
_ROUNDS: t.Final = 3


class InventoryModule(BaseInventoryPlugin, Constructable, Cacheable):
    """Ask, or take what the cache has; then fill the inventory."""

    NAME = "sparkfleet.vllm.discover"

    def verify_file(self, path: str) -> bool:
        """Take files that are called as the documentation says."""
        return bool(super().verify_file(path)) and path.endswith(_ENDINGS)

    def parse(self, inventory: t.Any, loader: t.Any, path: str, cache: bool = True) -> None:
        """Fill the inventory."""
        super().parse(inventory, loader, path, cache)
        self._read_config_data(path)
        given = self._given_clusters()
        self.load_cache_plugin()
        key = self.get_cache_key(path)
        caching = bool(self.get_option("cache"))
        kept = self._kept(key) if caching else []
        if caching and cache and kept:
            seen = kept
        else:
            seen = self._with_kept(self._look(), kept)
            if caching:
                self._cache[key] = {"hosts": seen}
        fleet = find_fleet(seen, given)
        for line in fleet.notes:
            self.display.warning(line)
        if not fleet.hosts:
            self.display.warning("no DGX Spark was found; the inventory is empty")
        self._fill(fleet)

    # --- looking

    def _look(self) -> list[Observation]:
        """Ask everybody; say who could not be asked."""
        access = Access(
            user=self.get_option("user"),
            private_key_file=self.get_option("private_key_file") or "",
            common_args=self.get_option("ssh_common_args"),
            timeout_s=self.get_option("timeout_s"),
            sudo=self.get_option("sudo"),
        )
        port = int(self.get_option("port"))
        targets = self._candidates()
        seen: list[Observation] = []
        asked: set[str] = set()
        by_fabric: set[str] = set()
        for number in range(_ROUNDS):
            found = [target for target in targets if target.host not in asked]
            asked.update(target.host for target in found)
            there = listening(found, access.timeout_s)
            self.display.vv(f"discover: round {number + 1}: {len(there)} of {len(found)} addresses accept connections")
            for target in found:
                if target.expected and target not in there:
                    self.display.warning(f"{target.host}: accepts no connection at port {target.port}; is it on?")
            everybody = list(dict.fromkeys([*(one["address"] for one in seen), *(target.host for target in there)]))
            for target, outcome in zip(there, ask(there, everybody, access), strict=True):
                if outcome.seen:
                    seen.append(outcome.seen)
                    if not target.managed:
                        by_fabric.add(target.host)
                elif target.expected or (target.managed and not outcome.other):
                    self.display.warning(outcome.line)
                else:
                    self.display.vv(outcome.line)
            # A controller that is on the fabric reaches neighbours there, and learns where they are managed.
            hosts = merge(seen)
            routes = [route_address(one["answer"]) for one in hosts.values() if one["address"] in by_fabric]
            targets = [Target(address, port) for address in routes if address]
            targets += [Target(address, port, managed=False) for address in stranger_addresses(hosts)]
        return seen

    def _candidates(self) -> list[Target]:
        """Return everybody who may be a Spark, by IPv4 address; say which names stand for none."""
        port = int(self.get_option("port"))
        entries = expand(self.get_option("hosts"))
        for line in entries.wrong:
            self.display.warning(line)
        found = []
        for entry in entries.named:
            target = resolve(Target(entry, port, expected=True))
            if target is None:
                self.display.warning(f"{entry}: has no IPv4 address; see 'getent ahostsv4 {entry}'")
            else:
                found.append(target)
        others = bool(entries.named or entries.possible)
        found += [Target(address, one.port) for one in self._announced(others) for address in one.addresses]
        found += [Target(address, port) for address in entries.possible]
        # The first of an address: what the user names is expected, and mDNS knows the port.
        return list({target.host: target for target in reversed(found)}.values())[::-1]

    def _announced(self, others: bool) -> list[Announced]:
        """Return who announces ssh; without `others` to ask, no mDNS is an error."""
        if not self.get_option("mdns"):
            return []
        if not HAS_ZEROCONF and not others:
            raise AnsibleParserError(MISSING)
        try:
            found = announced(self.get_option("timeout_s"), self.get_option("interfaces"))
        except AnsibleError as error:
            self.display.warning(str(error))
            return []
        self.display.vv(f"discover: {len(found)} hosts announce ssh by mDNS")
        return found

    # --- the cache

    def _kept(self, key: str) -> list[Observation]:
        """Return what the cache has; what another release has left there is nothing."""
        try:
            content = self._cache.get(key)
        except (KeyError, AnsibleError):
            return []
        rows = content.get("hosts") if isinstance(content, dict) else None
        return [row for row in rows if is_observation(row)] if isinstance(rows, list) else []

    def _with_kept(self, seen: list[Observation], kept: list[Observation]) -> list[Observation]:
        """Add those of the cache who have not answered now."""
        silent = [one for one in kept if not any(same_machine(one, other) for other in seen)]
        for name, one in merge(silent).items():
            self.display.warning(
                f"{name}: does not answer at {one['address']}; it stays as it was seen last, "
                "remove the cache if it is gone for good"
            )
        return seen + silent

    # --- the inventory

    def _given_clusters(self) -> dict[str, list[str]]:
        given = {
            str(name): [str(host) for host in (hosts if isinstance(hosts, list) else [hosts])]
            for name, hosts in self.get_option("clusters").items()
        }
        wrong = check_names(given)
        if wrong:
            raise AnsibleParserError(" | ".join(wrong))
        return given

    def _fill(self, fleet: Fleet) -> None:
        self.inventory.add_group(PARENT)
        for cluster in fleet.clusters:
            self.inventory.add_group(cluster["name"])
            self.inventory.add_child(PARENT, cluster["name"])
            for name in cluster["hosts"]:
                self.inventory.add_host(name, group=cluster["name"])
        for name, one in fleet.hosts.items():
            connection = {
                # Nothing but an IPv4 address, so it may be trusted; else it is shown as unsafe.
                "ansible_host": trust_as_template(one["address"]),
                "ansible_port": one["port"] if one["port"] != 22 else None,
                "ansible_user": self.get_option("user"),
                "ansible_ssh_private_key_file": self.get_option("private_key_file"),
                "ansible_ssh_common_args": self.get_option("ssh_common_args"),
            }
            for variable, value in connection.items():
                if value:
                    self.inventory.set_variable(name, variable, value)
            self._construct(name, {"discovered": host_facts(fleet, name), "inventory_hostname": name})

    def _construct(self, name: str, variables: dict[str, t.Any]) -> None:
        strict = self.get_option("strict")
        self._set_composite_vars(self.get_option("compose"), variables, name, strict=strict)
        self._add_host_to_composed_groups(self.get_option("groups"), variables, name, strict=strict)
        self._add_host_to_keyed_groups(self.get_option("keyed_groups"), variables, name, strict=strict)
