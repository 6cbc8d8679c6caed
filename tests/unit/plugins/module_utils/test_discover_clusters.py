# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import copy
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from ansible_collections.sparkfleet.vllm.plugins.module_utils import _arp, _neighbours, _roce
from ansible_collections.sparkfleet.vllm.plugins.module_utils._discover import (
    MARK,
    Observation,
    check_names,
    expand,
    failure,
    find_fleet,
    host_facts,
    is_answer,
    is_observation,
    is_spark,
    merge,
    natural,
    program,
    read_answer,
    stranger_addresses,
)
from ansible_collections.sparkfleet.vllm.plugins.module_utils._neighbours import Neighbour, observe, parse_neighbours
from ansible_collections.sparkfleet.vllm.tests.unit import sysfs_tree
from ansible_collections.sparkfleet.vllm.tests.unit.plugins.module_utils.discover_answers import answer_of, fleet, seen
from ansible_collections.sparkfleet.vllm.tests.unit.plugins.module_utils.fabric_hosts import (
    cable,
    mac,
    names,
    pair,
    ring,
    switch,
)
from hypothesis import given
from hypothesis import strategies as st

SOURCES = {
    name: Path(str(module.__file__)).read_text(encoding="utf-8")
    for name, module in (("_arp", _arp), ("_roce", _roce), ("_neighbours", _neighbours))
}


def clusters(
    observed: list[Observation], given: dict[str, list[str]] | None = None
) -> dict[str, tuple[str, list[str]]]:
    found = find_fleet(observed, given)
    return {cluster["name"]: (cluster["topology"], cluster["hosts"]) for cluster in found.clusters}


# --- clusters -------------------------------------------------------------------------------------


def test_nothing_is_an_empty_fleet() -> None:
    found = find_fleet([])
    assert (found.hosts, found.clusters, found.notes) == ({}, [], [])


def test_one_spark_is_a_cluster() -> None:
    assert clusters(fleet(1, [])) == {"cluster_spark_01": ("single", ["spark-01"])}


@pytest.mark.parametrize("cables", [1, 2])
def test_a_pair(cables: int) -> None:
    assert clusters(fleet(2, pair(1, 2, cables))) == {"cluster_spark_01": ("pair", ["spark-01", "spark-02"])}


def test_a_ring_of_three() -> None:
    assert clusters(fleet(3, ring(1, 2, 3))) == {"cluster_spark_01": ("ring", ["spark-01", "spark-02", "spark-03"])}


def test_a_switch() -> None:
    assert clusters(fleet(4, switch(1, 2, 3, 4))) == {"cluster_spark_01": ("switch", names(1, 2, 3, 4))}


def test_two_clusters_apart() -> None:
    assert clusters(fleet(5, [*pair(1, 4), *ring(2, 3, 5)])) == {
        "cluster_spark_01": ("pair", ["spark-01", "spark-04"]),
        "cluster_spark_02": ("ring", ["spark-02", "spark-03", "spark-05"]),
    }


def test_sparks_without_a_cable_are_clusters_by_themselves() -> None:
    assert list(clusters(fleet(2, []))) == ["cluster_spark_01", "cluster_spark_02"]


def test_the_order_of_the_answers_does_not_matter() -> None:
    observed = fleet(6, [*ring(1, 5, 3), *pair(2, 6)])
    expected = find_fleet(observed)
    for seed in range(5):
        mixed = list(observed)
        random.Random(seed).shuffle(mixed)
        assert find_fleet(mixed) == expected


def test_one_end_that_hears_the_other_is_enough() -> None:
    observed = fleet(2, pair(1, 2))
    observed[0]["answer"]["neighbours"] = {}
    assert list(clusters(observed)) == ["cluster_spark_01"]


def test_spark_2_is_before_spark_10() -> None:
    assert sorted(["spark-10", "b", "spark-2", "spark-2b", "spark"], key=natural) == [
        "b", "spark", "spark-2", "spark-2b", "spark-10",
    ]  # fmt: skip


# --- clusters that the user has named -------------------------------------------------------------


def test_a_switch_is_divided_by_name_and_the_first_is_the_head() -> None:
    given = {"atlas": ["spark-02", "spark-01"], "boreas": ["spark-03"]}
    assert clusters(fleet(5, switch(1, 2, 3, 4, 5)), given) == {
        "atlas": ("pair", ["spark-02", "spark-01"]),
        "boreas": ("single", ["spark-03"]),
        "cluster_spark_04": ("pair", ["spark-04", "spark-05"]),
    }


def test_a_named_host_that_was_not_found_is_said() -> None:
    found = find_fleet(fleet(1, []), {"atlas": ["spark-01", "spark-02"], "boreas": ["spark-09"]})
    assert [cluster["name"] for cluster in found.clusters] == ["atlas"]
    assert [note.split(";")[0] for note in found.notes] == [
        "cluster atlas: not found: spark-02",
        "cluster boreas: not found: spark-09",
    ]


def test_a_name_that_is_taken_gets_a_number() -> None:
    given = {"cluster_spark_02": ["spark-01"]}
    assert list(clusters(fleet(2, []), given)) == ["cluster_spark_02", "cluster_spark_02_2"]


def test_bad_names_of_clusters() -> None:
    assert check_names({"atlas": ["a"], "_b2": ["b"]}) == []
    wrong = check_names({"my-atlas": ["a"], "all": ["b"], "sparks": [], "boreas": ["a"]})
    assert [line.split(";")[0] for line in wrong] == [
        "clusters: 'my-atlas' cannot be a cluster's name",
        "clusters: 'all' cannot be a cluster's name",
        "clusters: 'sparks' cannot be a cluster's name",
        "clusters: a is in two clusters",
    ]


# --- machines -------------------------------------------------------------------------------------


def test_a_machine_that_was_found_twice_is_one_host_at_its_default_route() -> None:
    host = cable({"": names(1)}, [])["spark-01"]
    observed = [seen("spark-01", host, "192.168.9.9"), seen("spark-01", host), seen("spark-01", host, "192.168.9.8")]
    found = merge(observed)
    assert {name: one["address"] for name, one in found.items()} == {"spark-01": "10.0.0.11"}
    assert merge(observed[::2])["spark-01"]["address"] == "192.168.9.9"


def test_cloned_disks_are_two_machines() -> None:
    observed = fleet(2, pair(1, 2))
    for one in observed:
        one["answer"]["machine"] = "the same"
    assert list(merge(observed)) == ["spark-01", "spark-02"]


def test_machines_of_one_name_are_told_apart_by_their_adapters() -> None:
    observed = fleet(2, pair(1, 2))
    for one in observed:
        one["answer"]["hostname"] = "spark"
    suffixes = ["".join(mac(number, 0).split(":")[-3:]) for number in (1, 2)]
    assert list(merge(observed)) == [f"spark-{suffix}" for suffix in suffixes]


@pytest.mark.parametrize("hostname", ["", "spark 01", "-x", "{{ 7 }}", "spärk"])
def test_a_hostname_that_cannot_be_used_gives_way_to_the_address(hostname: str) -> None:
    observed = fleet(1, [])
    observed[0]["answer"]["hostname"] = hostname
    assert list(merge(observed)) == ["10-0-0-11"]


def test_a_domain_is_no_part_of_the_name() -> None:
    observed = fleet(1, [])
    observed[0]["answer"]["hostname"] = "spark-01.lan"
    assert list(merge(observed)) == ["spark-01"]


# --- strangers ------------------------------------------------------------------------------------


def test_a_neighbour_who_was_not_found_is_said_with_its_host_and_port() -> None:
    observed = fleet(2, pair(1, 2))[:1]
    (note,) = find_fleet(observed).notes
    assert note.startswith("spark-01: somebody answers on enp1s0f0np0, enP2p1s0f0np0 (")
    assert mac(2, 0) in note and note.endswith("add its management address to hosts")
    assert find_fleet(fleet(2, pair(1, 2))).notes == []


def test_many_strangers_are_one_line() -> None:
    (note,) = find_fleet(fleet(6, switch(1, 2, 3, 4, 5, 6))[:1]).notes
    assert "and 6 more" in note


def test_addresses_of_strangers_that_can_be_asked() -> None:
    observed = fleet(2, pair(1, 2))
    wanted = [("192.168.177.12", mac(9, 0)), ("fe80::1", mac(9, 0)), ("169.254.3.4", mac(9, 1)), ("", mac(9, 4))]
    known = Neighbour(mac=mac(2, 0).upper(), address="192.168.177.2")
    strangers = [Neighbour(mac=own, address=address) for address, own in wanted]
    observed[0]["answer"]["neighbours"]["enp1s0f0np0"] = [known, *strangers]
    assert stranger_addresses(merge(observed)) == ["192.168.177.12"]


def test_who_may_be_alone_only_for_want_of_root_is_said() -> None:
    observed = fleet(3, pair(1, 2))
    for one in observed:
        one["answer"]["root"] = False
        for heard in one["answer"]["neighbours"].values():
            heard.clear()
    assert [note.split(",")[0] for note in find_fleet(observed).notes] == [
        "spark-01: has a cable",
        "spark-02: has a cable",
    ]
    assert find_fleet(observed, {"atlas": ["spark-01", "spark-02"]}).notes == []
    observed[0]["answer"]["root"] = observed[1]["answer"]["root"] = True
    assert find_fleet(observed).notes == []


# --- what is no Spark -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("product", "spark"),
    [
        ("NVIDIA_DGX_Spark", True),
        ("Dell Pro Max with GB10 FCM1253", True),
        ("GX10", True),
        ("DGX H100", False),
        ("PowerEdge", False),
        ("", False),
    ],
)
def test_a_spark_without_its_adapter_is_told_by_its_product(product: str, spark: bool) -> None:
    answer = answer_of("x", cable({"": names(1)}, [])["spark-01"])
    answer["roce"]["devices"] = []
    answer["product"] = product
    assert is_spark(answer) is spark


def test_ports_with_twins_make_a_spark_and_a_plain_adapter_does_not() -> None:
    answer = answer_of("x", cable({"": names(1)}, [])["spark-01"])
    answer["product"] = "whatever a maker calls it"
    assert is_spark(answer)
    for device in answer["roce"]["devices"]:
        device["twin"] = None
    assert not is_spark(answer)


# --- what can be asked ----------------------------------------------------------------------------


def test_networks_are_expanded() -> None:
    found = expand(["192.0.2.8/30", "spark-a.local", "192.0.2.9", "192.0.2.9"])
    assert found == (["spark-a.local", "192.0.2.9"], ["192.0.2.9", "192.0.2.10"], [])
    assert expand(["192.0.2.7/32"]).possible == ["192.0.2.7"]


@pytest.mark.parametrize("entry", ["10.0.0.0/8", "10.0.0.0/x", "", "-oProxyCommand=x", "a b", "::/64"])
def test_what_cannot_be_asked_is_said(entry: str) -> None:
    found = expand([entry, "192.0.2.1"])
    assert found.named == ["192.0.2.1"] and found.possible == []
    (line,) = found.wrong
    assert ";" in line and "\n" not in line


@pytest.mark.parametrize(
    ("rc", "said", "line"),
    [
        (None, "", "h: took too long"),
        (255, "Host key verification failed.", "h: its host key is not known; accept it with 'ssh h'"),
        (
            255,
            "@ REMOTE HOST IDENTIFICATION HAS CHANGED! @\nHost key verification failed.",
            "h: its host key is another",
        ),
        (255, "nvidia@h: Permission denied (publickey).", "h: does not let us in (nvidia@h: Permission denied (publ"),
        (255, "ssh: connect to host h port 22: No route to host", "h: cannot be reached with ssh (ssh: connect"),
        (255, "", "h: cannot be reached with ssh (it says nothing)"),
        (127, "bash: python3: command not found", "h: has no python3"),
        (1, "Traceback\nSyntaxError: no", "h: answered nothing of use (SyntaxError: no)"),
        (0, "", "h: answered nothing of use (exit status 0)"),
    ],
)
def test_a_failure_is_one_line(rc: int | None, said: str, line: str) -> None:
    found = failure("h", rc, said)
    assert found.startswith(line) and "\n" not in found


# --- answers --------------------------------------------------------------------------------------


def test_an_answer_is_found_among_other_lines() -> None:
    answer = answer_of("x", cable({"": names(1)}, [])["spark-01"])
    assert read_answer(f"Welcome!\n{MARK}{json.dumps(answer)}\nbye\n") == answer


@pytest.mark.parametrize("text", ["", "Welcome", MARK, f"{MARK}7", f"{MARK}{{}}", MARK + "[" * 100_000])
def test_what_is_no_answer(text: str) -> None:
    assert read_answer(text) is None


@given(
    st.recursive(
        st.none() | st.integers() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
    )
)
def test_anything_else_is_no_answer(data: object) -> None:
    assert not is_answer(data)
    assert not is_observation({"address": "a", "port": 22, "answer": data})


@pytest.mark.parametrize("key", ["devices", "interfaces", "management", "default_route"])
def test_an_answer_of_another_shape_is_none(key: str) -> None:
    answer = copy.deepcopy(answer_of("x", cable({"": names(1)}, [])["spark-01"]))
    assert is_answer(answer)
    answer["roce"][key] = 7  # type: ignore[literal-required]
    assert not is_answer(answer)


def run(text: str, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, **environment}
    return subprocess.run([sys.executable, "-"], input=text, capture_output=True, text=True, check=False, env=env)


def test_the_program_runs_on_a_machine_that_has_nothing_of_ours() -> None:
    done = run(program(SOURCES, "127.0.0.1", ["192.0.2.1"], 0.1, sudo=False), PYTHONPATH="", PYTHONSAFEPATH="1")
    assert (done.returncode, done.stderr) == (0, "")
    answer = read_answer(done.stdout)
    assert answer is not None and answer["hostname"]


@pytest.mark.parametrize("script", ["exit 1", 'shift; exec "$@"'])
def test_sudo_is_used_where_it_asks_no_password(tmp_path: Path, script: str) -> None:
    mark = tmp_path / "root"
    sudo = tmp_path / "sudo"
    sudo.write_text(f"#!/bin/sh\nprintf '%s\\n' \"$*\" >> {mark}\n{script}\n", encoding="utf-8")
    sudo.chmod(0o755)
    done = run(program(SOURCES, "", [], 0.1, sudo=True), PATH=f"{tmp_path}:{os.environ['PATH']}")
    assert (done.returncode, done.stderr) == (0, "")
    assert read_answer(done.stdout) is not None
    assert done.stdout.count(MARK) == 1
    assert mark.read_text(encoding="utf-8") == "-n python3 -\n"


def test_without_sudo_the_program_asks_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "ip").symlink_to("/bin/false")
    done = run(program(SOURCES, "", [], 0.1, sudo=True), PATH=str(tmp_path))
    assert read_answer(done.stdout) is not None


# --- on the node ----------------------------------------------------------------------------------


def test_what_a_spark_says_of_itself(tmp_path: Path) -> None:
    functions = sysfs_tree.spark()
    sysfs_tree.build(tmp_path, functions)
    sysfs_tree.put(tmp_path / "sys/class/dmi/id/product_name", "NVIDIA_DGX_Spark")
    sysfs_tree.put(tmp_path / "etc/machine-id", "0123456789abcdef")
    heard = [{"dst": "192.168.177.12", "dev": "enp1s0f0np0", "lladdr": "4C:BB:47:00:02:00", "state": ["STALE"]}]
    texts = {"-d": sysfs_tree.addr_json(functions), "-4": sysfs_tree.route_json(), "neigh": json.dumps(heard)}
    answer = observe("10.0.0.11", ["10.0.0.11"], 0, str(tmp_path), lambda arguments: texts[arguments[0]])
    assert is_answer(json.loads(json.dumps(answer))) and is_spark(answer)
    assert answer["product"] == "NVIDIA_DGX_Spark"
    assert "0123456789abcdef" not in json.dumps(answer) and len(answer["machine"]) == 16
    assert answer["neighbours"] == {
        "enp1s0f0np0": [{"mac": "4c:bb:47:00:02:00", "address": "192.168.177.12"}],
        "enP2p1s0f0np0": [],
    }


def test_a_machine_that_has_nothing_to_say(tmp_path: Path) -> None:
    answer = observe("", ["192.0.2.1"], 0, str(tmp_path), lambda arguments: None)
    assert is_answer(answer) and not is_spark(answer)
    assert (answer["machine"], answer["product"], answer["neighbours"]) == ("", "", {})


def test_neighbours_who_did_not_answer_are_left_out() -> None:
    entries = [
        {"dst": "192.0.2.1", "dev": "p", "state": ["INCOMPLETE"]},
        {"dst": "192.0.2.2", "dev": "p", "lladdr": "02:00:00:00:00:02", "state": ["FAILED"]},
        {"dst": "192.0.2.3", "dev": "other", "lladdr": "02:00:00:00:00:03", "state": ["REACHABLE"]},
        {"dst": "192.0.2.4", "dev": "p", "lladdr": "02:00:00:00:00:04", "state": ["DELAY"]},
        "nonsense",
    ]
    assert parse_neighbours(json.dumps(entries), {"p": ""}) == {
        "p": [{"mac": "02:00:00:00:00:04", "address": "192.0.2.4"}]
    }


@given(st.text() | st.none())
def test_any_neighbour_table_can_be_read(text: str | None) -> None:
    assert parse_neighbours(text, {"p": ""}) == {"p": []}


# --- facts ----------------------------------------------------------------------------------------


def test_what_expressions_may_use() -> None:
    found = find_fleet(fleet(2, pair(1, 2)))
    assert host_facts(found, "spark-02") == {
        "hostname": "spark-02",
        "address": "10.0.0.12",
        "product": "NVIDIA_DGX_Spark",
        "cluster": "cluster_spark_01",
        "head": False,
        "topology": "pair",
        "cluster_size": 2,
        "fabric_addresses": [],
        "fabric_macs": [mac(2, offset) for offset in (0, 1, 4, 5)],
    }
    assert host_facts(found, "spark-01")["head"] is True
