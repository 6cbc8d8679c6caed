# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The plugin as Ansible loads it, on an inventory file; a program called ssh answers for the hosts."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import typing as t
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import pytest
import yaml
from ansible.errors import AnsibleError, AnsibleParserError
from ansible.inventory.data import InventoryData
from ansible.parsing.dataloader import DataLoader
from ansible.plugins.loader import inventory_loader
from ansible.utils.display import Display
from ansible_collections.sparkfleet.vllm.plugins.module_utils._discover import MARK, Observation
from ansible_collections.sparkfleet.vllm.plugins.plugin_utils import _asking
from ansible_collections.sparkfleet.vllm.plugins.plugin_utils._mdns import MISSING, Announced
from ansible_collections.sparkfleet.vllm.tests.unit.plugins.module_utils.discover_answers import fleet
from ansible_collections.sparkfleet.vllm.tests.unit.plugins.module_utils.fabric_hosts import pair, ring

PLUGINS = Path(__file__).parents[4] / "plugins/inventory"

# What is asked, and how, is written down; the answer lies in a file named after the address.
SSH = """#!{python}
import pathlib, sys
here = pathlib.Path(__file__).parent
host = sys.argv[-2]
text = sys.stdin.read()
with (here / "asked").open("a") as log:
    log.write(" ".join(sys.argv[1:]) + "\\n")
(here / ("program-" + host)).write_text(text)
answer = here / ("answer-" + host)
if not answer.exists():
    sys.stderr.write("nvidia@" + host + ": Permission denied (publickey).\\n")
    sys.exit(255)
sys.stdout.write("Welcome\\n" + answer.read_text())
"""


class Network:
    """Hosts on loopback addresses that accept connections, and what they answer."""

    def __init__(self, directory: Path, stack: ExitStack) -> None:
        self.directory = directory
        self._stack = stack
        self.port = 0
        self.listeners: dict[str, socket.socket] = {}

    def listen(self, address: str) -> None:
        """Accept connections at an address; all hosts have the same port."""
        opened = self._stack.enter_context(socket.socket())
        opened.bind((address, self.port))
        opened.listen()
        self.port = opened.getsockname()[1]
        self.listeners[address] = opened

    def put(self, address: str, observed: Observation) -> None:
        """Let a host answer at an address."""
        if address not in self.listeners:
            self.listen(address)
        text = MARK + json.dumps(observed["answer"]) + "\n"
        (self.directory / f"answer-{address}").write_text(text, encoding="utf-8")

    def cut(self, address: str) -> None:
        """Switch a host off."""
        self.listeners.pop(address).close()

    @property
    def asked(self) -> list[str]:
        """The command lines of ssh."""
        log = self.directory / "asked"
        return log.read_text(encoding="utf-8").splitlines() if log.exists() else []


class Found(t.NamedTuple):
    hosts: dict[str, dict[str, t.Any]]
    groups: dict[str, list[str]]
    """Every group with its hosts, in the inventory's order."""
    clusters: list[str]
    warnings: list[str]


Run = Callable[..., Found]


@pytest.fixture
def network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Network]:
    directory = tmp_path / "bin"
    directory.mkdir()
    (directory / "ssh").write_text(SSH.format(python=sys.executable), encoding="utf-8")
    (directory / "ssh").chmod(0o755)
    monkeypatch.setenv("PATH", f"{directory}:{os.environ['PATH']}")
    for name in ("ANSIBLE_REMOTE_USER", "ANSIBLE_PRIVATE_KEY_FILE", "ANSIBLE_SSH_COMMON_ARGS"):
        monkeypatch.delenv(name, raising=False)
    with ExitStack() as stack:
        yield Network(directory, stack)


@pytest.fixture
def plugin() -> t.Any:
    """The plugin with its options; by its file, since these tests import the collection without Ansible's finder."""
    inventory_loader.add_directory(str(PLUGINS))
    found = inventory_loader.get("discover")
    found._redirected_names = [found.NAME]
    return found


@pytest.fixture
def names(plugin: t.Any) -> dict[str, t.Any]:
    """The names that the plugin's module uses."""
    return t.cast("dict[str, t.Any]", type(plugin).parse.__globals__)


@pytest.fixture
def run(network: Network, plugin: t.Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    warned: list[str] = []
    monkeypatch.setattr(Display, "warning", lambda self, msg, *args, **kwargs: warned.append(str(msg)))

    def parse(renew: bool = False, **options: t.Any) -> Found:
        warned.clear()
        path = tmp_path / "sparks.yml"
        content = {"plugin": "sparkfleet.vllm.discover", "mdns": False, "port": network.port or 9, "timeout_s": 2}
        path.write_text(yaml.safe_dump(content | options), encoding="utf-8")
        inventory = InventoryData()
        assert plugin.verify_file(str(path))
        plugin.parse(inventory, DataLoader(), str(path), cache=not renew)
        plugin.update_cache_if_changed()
        inventory.reconcile_inventory()
        groups = {
            name: [host.name for host in group.get_hosts()]
            for name, group in inventory.groups.items()
            if name not in ("all", "ungrouped")
        }
        hosts = {
            host.name: {k: v for k, v in host.vars.items() if not k.startswith("inventory_")}
            for host in inventory.hosts.values()
        }
        clusters = [group.name for group in inventory.groups["sparks"].child_groups]
        return Found(hosts, groups, clusters, list(warned))

    return parse


def put_all(network: Network, observed: list[Observation]) -> list[str]:
    """Give each host a loopback address; return them."""
    addresses = [f"127.0.0.{10 + number}" for number in range(1, len(observed) + 1)]
    for address, one in zip(addresses, observed, strict=True):
        network.put(address, one)
    return addresses


# --- what is found --------------------------------------------------------------------------------


def test_hosts_and_clusters(network: Network, run: Run) -> None:
    put_all(network, fleet(5, [*pair(1, 4), *ring(2, 3, 5)]))
    found = run(hosts=["127.0.0.0/27"], user="nvidia", private_key_file="/k/id", ssh_common_args="-o A=b -o 'C=d e'")
    assert found.warnings == []
    assert found.clusters == ["cluster_spark_01", "cluster_spark_02"]
    assert found.groups == {
        "sparks": ["spark-01", "spark-04", "spark-02", "spark-03", "spark-05"],
        "cluster_spark_01": ["spark-01", "spark-04"],
        "cluster_spark_02": ["spark-02", "spark-03", "spark-05"],
    }
    assert found.hosts["spark-03"] == {
        "ansible_host": "127.0.0.13",
        "ansible_port": network.port,
        "ansible_user": "nvidia",
        "ansible_ssh_private_key_file": "/k/id",
        "ansible_ssh_common_args": "-o A=b -o 'C=d e'",
    }


def test_every_host_is_asked_once_and_told_of_the_others(network: Network, run: Run) -> None:
    addresses = put_all(network, fleet(2, pair(1, 2)))
    run(hosts=["127.0.0.0/27", *addresses], user="nvidia", private_key_file="/k/id", ssh_common_args="-o 'C=d e'")
    assert sorted(line.split()[-3] for line in network.asked) == addresses
    (line, _other) = network.asked
    assert line.startswith("-o C=d e -o BatchMode=yes -o ConnectTimeout=2")
    assert f"-p {network.port} -i /k/id -l nvidia -- " in line and line.endswith(" python3 -")
    program = (network.directory / f"program-{addresses[0]}").read_text(encoding="utf-8")
    assert f"observe(\\'{addresses[0]}\\', [\\'{addresses[1]}\\']" in program


def test_only_what_is_given_becomes_a_variable(network: Network, run: Run) -> None:
    (address,) = put_all(network, fleet(1, []))
    assert run(hosts=[address]).hosts == {"spark-01": {"ansible_host": address, "ansible_port": network.port}}


def test_sudo_can_be_left_out(network: Network, run: Run) -> None:
    (address,) = put_all(network, fleet(1, []))
    run(hosts=[address], sudo=False)
    assert "sudo" not in (network.directory / f"program-{address}").read_text(encoding="utf-8")


def test_a_machine_with_two_addresses_is_one_host(network: Network, run: Run) -> None:
    (one,) = fleet(1, [])
    network.put("127.0.0.11", one)
    network.put("127.0.0.12", one)
    assert run(hosts=["127.0.0.12", "127.0.0.11"]).hosts["spark-01"]["ansible_host"] == "127.0.0.12"


def test_a_fabric_neighbour_is_asked_and_found_where_it_is_managed(network: Network, run: Run) -> None:
    observed = fleet(2, pair(1, 2))
    (address,) = put_all(network, observed[:1])
    network.put("127.0.1.12", observed[1])
    network.put("127.0.0.99", observed[1])
    for heard in observed[0]["answer"]["neighbours"].values():
        for neighbour in heard:
            neighbour["address"] = "127.0.1.12"
    route = observed[1]["answer"]["roce"]["default_route"]
    assert route is not None
    route["address"] = "127.0.0.99"
    for place, one in ((address, observed[0]), ("127.0.1.12", observed[1]), ("127.0.0.99", observed[1])):
        network.put(place, one)
    found = run(hosts=[address])
    assert found.groups["cluster_spark_01"] == ["spark-01", "spark-02"]
    assert found.hosts["spark-02"]["ansible_host"] == "127.0.0.99"
    assert found.warnings == []


def test_a_fabric_neighbour_who_does_not_let_us_in_is_asked_once(network: Network, run: Run) -> None:
    (one, _other) = fleet(2, pair(1, 2))
    for heard in one["answer"]["neighbours"].values():
        for neighbour in heard:
            neighbour["address"] = "127.0.1.12"
    put_all(network, [one])
    network.listen("127.0.1.12")
    found = run(hosts=["127.0.0.11"])
    assert sorted(line.split()[-3] for line in network.asked) == ["127.0.0.11", "127.0.1.12"]
    (line,) = found.warnings
    assert line.startswith("spark-01: somebody answers on enp1s0f0np0, enP2p1s0f0np0")


def test_mdns_says_address_and_port(
    network: Network, run: Run, names: dict[str, t.Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    addresses = put_all(network, fleet(2, pair(1, 2)))
    answers = [Announced("spark-01", (addresses[0], "127.0.0.77"), network.port), Announced("b", (addresses[1],), 9)]
    monkeypatch.setitem(names, "HAS_ZEROCONF", True)
    monkeypatch.setitem(names, "announced", lambda seconds, interfaces: answers)
    found = run(mdns=True, port=9, interfaces=["lan0"])
    assert list(found.hosts) == ["spark-01"]
    assert found.hosts["spark-01"]["ansible_port"] == network.port


# --- constructed ----------------------------------------------------------------------------------


def test_constructed(network: Network, run: Run) -> None:
    addresses = put_all(network, fleet(3, pair(1, 2)))
    found = run(
        hosts=addresses,
        compose={"product": "discovered.product", "ansible_user": "'root' if discovered.head else 'nvidia'"},
        groups={"heads": "discovered.head and discovered.cluster_size > 1"},
        keyed_groups=[{"key": "discovered.topology", "prefix": "cabled"}],
        strict=True,
    )
    assert found.hosts["spark-02"]["product"] == "NVIDIA_DGX_Spark"
    assert [host["ansible_user"] for host in found.hosts.values()] == ["root", "nvidia", "root"]
    assert found.groups["heads"] == ["spark-01"]
    assert found.groups["cabled_pair"] == ["spark-01", "spark-02"]
    assert found.groups["cabled_single"] == ["spark-03"]
    assert all("discovered" not in host for host in found.hosts.values())


def test_named_clusters(network: Network, run: Run) -> None:
    addresses = put_all(network, fleet(2, pair(1, 2)))
    found = run(hosts=addresses, clusters={"atlas": ["spark-02", "spark-01", "spark-03"]})
    assert found.groups["atlas"] == ["spark-02", "spark-01"]
    assert found.warnings == ["cluster atlas: not found: spark-03; the cluster lacks it"]


def test_what_a_node_says_is_no_template(network: Network, run: Run) -> None:
    observed = fleet(1, [])
    observed[0]["answer"]["product"] = "GB10 {{ 6 * 7 }}"
    (address,) = put_all(network, observed)
    found = run(hosts=[address], compose={"product": "discovered.product"}, strict=True)
    assert found.hosts["spark-01"]["product"] == "GB10 {{ 6 * 7 }}"


# --- what goes wrong ------------------------------------------------------------------------------


def test_nobody_there_is_an_empty_inventory(run: Run) -> None:
    found = run(hosts=["127.0.0.8/30"])
    assert (found.hosts, found.groups) == ({}, {"sparks": []})
    assert found.warnings == ["no DGX Spark was found; the inventory is empty"]


def test_who_cannot_be_asked_is_named_and_the_others_are_found(network: Network, run: Run) -> None:
    (address,) = put_all(network, fleet(1, []))
    network.listen("127.0.0.21")
    found = run(hosts=[address, "127.0.0.20", "127.0.0.21", "no-such-host.invalid", "10.0.0.0/8"])
    assert list(found.hosts) == ["spark-01"]
    assert [line.split(";")[0] for line in found.warnings] == [
        "hosts: 10.0.0.0/8 has 16777216 addresses",
        "no-such-host.invalid: has no IPv4 address",
        f"127.0.0.20: accepts no connection at port {network.port}",
        "127.0.0.21: does not let us in (nvidia@127.0.0.21: Permission denied (publickey))",
    ]


@pytest.mark.parametrize("named", [True, False])
def test_who_is_no_spark_is_said_where_it_was_named(network: Network, run: Run, named: bool) -> None:
    observed = fleet(1, [])
    observed[0]["answer"]["product"] = "PowerEdge"
    observed[0]["answer"]["roce"]["devices"] = []
    (address,) = put_all(network, observed)
    found = run(hosts=[address if named else f"{address}/32"])
    assert found.hosts == {}
    said = f"{address}: spark-01 is no DGX Spark, but PowerEdge; left out"
    assert found.warnings[:-1] == ([said] if named else [])


def test_ssh_that_hangs_is_given_up(network: Network, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    network.listen("127.0.0.11")
    (network.directory / "ssh").write_text("#!/bin/sh\nexec sleep 60\n", encoding="utf-8")
    monkeypatch.setattr(_asking, "_PATIENCE_S", -1.5)
    found = run(hosts=["127.0.0.11"])
    assert found.warnings[0].startswith("127.0.0.11: took too long to answer")


def test_a_controller_without_ssh(network: Network, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    network.listen("127.0.0.11")
    monkeypatch.setenv("PATH", str(network.directory / "nothing"))
    assert "install the OpenSSH client" in run(hosts=["127.0.0.11"]).warnings[0]


def test_mdns_without_its_library(
    network: Network, run: Run, names: dict[str, t.Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    (address,) = put_all(network, fleet(1, []))
    monkeypatch.setitem(names, "HAS_ZEROCONF", False)
    monkeypatch.setattr("ansible_collections.sparkfleet.vllm.plugins.plugin_utils._mdns.zeroconf", None)
    found = run(mdns=True, hosts=[address])
    assert list(found.hosts) == ["spark-01"]
    assert found.warnings == [MISSING]
    with pytest.raises(AnsibleParserError, match="run 'pip install zeroconf'"):
        run(mdns=True)


def test_mdns_that_cannot_be_used_here(
    network: Network, run: Run, names: dict[str, t.Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(seconds: float, interfaces: list[str]) -> list[Announced]:
        raise AnsibleError("mDNS cannot be used on this controller")

    monkeypatch.setitem(names, "HAS_ZEROCONF", True)
    monkeypatch.setitem(names, "announced", fail)
    found = run(mdns=True)
    assert found.hosts == {}
    assert found.warnings == [
        "mDNS cannot be used on this controller",
        "no DGX Spark was found; the inventory is empty",
    ]


def test_a_bad_name_of_a_cluster_is_refused(network: Network, run: Run) -> None:
    (address,) = put_all(network, fleet(1, []))
    with pytest.raises(AnsibleParserError, match="'my-atlas' cannot be a cluster's name"):
        run(hosts=[address], clusters={"my-atlas": ["spark-01"]})
    assert network.asked == []


@pytest.mark.parametrize(
    ("name", "taken"),
    [("sparks.yml", True), ("my-discover.yaml", True), ("hosts.yml", False), ("sparks.ini", False)],
)
def test_other_files_are_left_alone(plugin: t.Any, tmp_path: Path, name: str, taken: bool) -> None:
    (tmp_path / name).write_text("plugin: sparkfleet.vllm.discover\n", encoding="utf-8")
    assert plugin.verify_file(str(tmp_path / name)) is taken


# --- the cache ------------------------------------------------------------------------------------


@pytest.fixture
def cached(tmp_path: Path) -> Mapping[str, object]:
    return {"cache": True, "cache_plugin": "jsonfile", "cache_connection": str(tmp_path / "cache"), "cache_timeout": 0}


def test_what_is_in_the_cache_is_not_asked_again(network: Network, run: Run, cached: Mapping[str, object]) -> None:
    addresses = put_all(network, fleet(2, pair(1, 2)))
    first = run(hosts=addresses, **cached)
    for address in addresses:
        network.cut(address)
    assert run(hosts=addresses, **cached) == first
    assert len(network.asked) == 2 and len(first.hosts) == 2


def test_offline_the_renewal_keeps_the_cache(network: Network, run: Run, cached: Mapping[str, object]) -> None:
    addresses = put_all(network, fleet(2, pair(1, 2)))
    first = run(hosts=["127.0.0.0/27"], **cached)
    for address in addresses:
        network.cut(address)
    found = run(renew=True, hosts=["127.0.0.0/27"], **cached)
    assert found[:3] == first[:3]
    assert [line.split(";")[0] for line in found.warnings] == [
        "spark-01: does not answer at 127.0.0.11",
        "spark-02: does not answer at 127.0.0.12",
    ]
    assert run(hosts=["127.0.0.0/27"], **cached)[:3] == first[:3]


def test_a_node_that_is_off_stays_in_its_cluster(network: Network, run: Run, cached: Mapping[str, object]) -> None:
    observed = fleet(2, pair(1, 2))
    addresses = put_all(network, observed)
    run(hosts=["127.0.0.0/27"], **cached)
    network.cut(addresses[0])
    observed[1]["answer"]["product"] = "renewed GB10"
    network.put(addresses[1], observed[1])
    found = run(renew=True, hosts=["127.0.0.0/27"], compose={"product": "discovered.product"}, **cached)
    assert found.groups["cluster_spark_01"] == ["spark-01", "spark-02"]
    assert [host["product"] for host in found.hosts.values()] == ["NVIDIA_DGX_Spark", "renewed GB10"]


def test_nothing_found_is_not_kept(network: Network, run: Run, cached: Mapping[str, object]) -> None:
    (address,) = put_all(network, fleet(1, []))
    network.cut(address)
    assert run(hosts=[address], **cached).hosts == {}
    network.put(address, fleet(1, [])[0])
    assert list(run(hosts=[address], **cached).hosts) == ["spark-01"]


def test_a_cache_of_another_release_is_asked_anew(
    network: Network, run: Run, cached: Mapping[str, object], tmp_path: Path
) -> None:
    (address,) = put_all(network, fleet(1, []))
    run(hosts=[address], **cached)
    (file,) = (tmp_path / "cache").iterdir()
    text = file.read_text(encoding="utf-8")
    assert "hosts" in text
    file.write_text(text.replace("hosts", "machines"), encoding="utf-8")
    assert list(run(hosts=[address], **cached).hosts) == ["spark-01"]
    assert len(network.asked) == 2


# --- the command line -----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["--list", "--graph"])
def test_ansible_inventory(network: Network, tmp_path: Path, kind: str) -> None:
    (address,) = put_all(network, fleet(1, []))
    file = tmp_path / "sparks.yml"
    content = {"plugin": "sparkfleet.vllm.discover", "mdns": False, "hosts": [address], "port": network.port}
    content |= {"user": "nvidia", "ssh_common_args": "-o A=b"}
    file.write_text(yaml.safe_dump(content), encoding="utf-8")
    command = [str(Path(sys.executable).with_name("ansible-inventory")), "-i", str(file), kind]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    if kind == "--graph":
        assert [line.strip("| ") for line in done.stdout.splitlines()] == [
            "@all:",
            "--@ungrouped:",
            "--@sparks:",
            "--@cluster_spark_01:",
            "--spark-01",
        ]
    else:
        found = json.loads(done.stdout)
        variables = found["_meta"]["hostvars"]["spark-01"]
        assert {name: value for name, value in variables.items() if name != "ansible_local"} == {
            "ansible_host": address,
            "ansible_port": network.port,
            "ansible_user": "nvidia",
            "ansible_ssh_common_args": "-o A=b",
        }
        assert found["sparks"] == {"children": ["cluster_spark_01"]}
