# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import typing as t

import pytest
from ansible_collections.sparkfleet.vllm.plugins.module_utils._argspec import Option
from ansible_collections.sparkfleet.vllm.plugins.module_utils._fleet import (
    Cluster,
    Host,
    address_problems,
    cluster_of,
    clusters,
    models,
    structure_problems,
    variable_problems,
)
from hypothesis import given
from hypothesis import strategies as st

SECRET = "correct-horse-battery"
ATLAS = Cluster("atlas", ("s1", "s2"))
KNOWN = {
    name: Option(name, name.split("_", maxsplit=1)[0], spec)
    for name, spec in {
        "serve_port": {"type": "int"},
        "ray_port": {"type": "int"},
        "serve_tensor_parallel_size": {"type": "int"},
        "serve_pipeline_parallel_size": {"type": "int"},
        "serve_data_parallel_size": {"type": "int"},
        "serve_executor": {"type": "str"},
        "serve_nodes": {"type": "list"},
        "serve_api_key": {"type": "str"},
        "serve_tls_key": {"type": "str"},
        "ray_auth_token": {"type": "str"},
        "serve_model": {"type": "str"},
        "serve_models": {"type": "list"},
        "serve_name": {"type": "str"},
        "serve_group_port": {"type": "int"},
        "model_source": {"type": "str"},
        "model_path": {"type": "str"},
        "image_variant": {"type": "str"},
    }.items()
}
GOOD = {
    "serve_port": 8888,
    "ray_port": 6379,
    "ray_num_gpus": 1,
    "serve_tensor_parallel_size": 2,
    "serve_api_key": SECRET,
    "ray_auth_token": SECRET,
    "serve_model": "/models/tiny",
}


def host(name: str, address: str = "", given: t.Iterable[str] = (), **values: t.Any) -> Host:
    problems = values.pop("problems", ())
    unstable = values.pop("unstable", frozenset())
    return Host(name, address or name, 22, frozenset(given), {**GOOD, **values}, problems, unstable)


def validated(variable: str, value: t.Any) -> tuple[t.Any, str]:
    """Stand for the argument specs: only integers are looked at."""
    if KNOWN[variable].type == "int" and not isinstance(value, int):
        return value, f"{variable} is {value!r}, not of type int; correct it in the inventory"
    return value, ""


def problems(*hosts: Host, cluster: Cluster = ATLAS, exists: bool | t.Callable[[str], bool] = True) -> list[str]:
    is_source = exists if callable(exists) else lambda path: exists
    return variable_problems(cluster, {found.name: found for found in hosts}, KNOWN, is_source, validated)


def both(exists: bool | t.Callable[[str], bool] = True, **values: t.Any) -> list[str]:
    """Return what is wrong where both hosts have the same values."""
    return problems(host("s1", **values), host("s2", **values), exists=exists)


def test_children_are_clusters_and_the_first_host_is_the_head() -> None:
    atlas, boreas = clusters([], {"atlas": ["s2", "s1"], "boreas": ["s3"], "empty": []})
    assert atlas.fact() == {"name": "atlas", "head": "s2", "nodes": ["s2", "s1"]}
    assert boreas.head == "s3"


def test_hosts_directly_under_the_group_are_one_cluster() -> None:
    assert clusters(["s1", "s2"], {}) == (Cluster("sparks", ("s1", "s2")),)
    assert clusters(["s1"], {"empty": []}) == (Cluster("sparks", ("s1",)),)


def test_a_host_finds_its_cluster() -> None:
    found = clusters([], {"atlas": ["s1"], "boreas": ["s2"]})
    assert cluster_of("s2", found) == found[1]
    assert cluster_of("s3", found) is None


def test_no_host() -> None:
    assert structure_problems([], ()) == [
        "sparks: no host in this group; list the DGX Sparks under `sparks` in the inventory"
    ]


def test_a_host_in_two_clusters() -> None:
    found = clusters([], {"atlas": ["s1", "s2"], "boreas": ["s2", "s3"]})
    assert structure_problems([], found) == ["s2: in the clusters atlas and boreas; leave it in one of them"]


def test_hosts_beside_clusters_and_hosts_listed_for_their_variables() -> None:
    found = clusters(["s1", "s9"], {"atlas": ["s1", "s2"]})
    assert structure_problems(["s1", "s9"], found) == [
        "s9: directly under `sparks` beside the clusters atlas; move it into a cluster"
    ]


def test_limit_takes_clusters_whole() -> None:
    found = clusters([], {"atlas": ["s1", "s2"], "boreas": ["s3", "s4"]})
    assert structure_problems([], found, ["s3", "s4"]) == []
    assert structure_problems([], found, ["s1", "s2", "s3", "s4"]) == []
    assert structure_problems([], found, ["s3"]) == [
        "boreas: --limit leaves out s4; a cluster is changed as a whole, use --limit boreas"
    ]


def test_a_cluster_name_must_do_as_a_file_name() -> None:
    assert structure_problems([], (Cluster("a/b", ("s1",)),)) == [
        "a/b: not usable as a name of files; use letters, digits and underscores"
    ]


@given(st.dictionaries(st.text(st.characters(codec="ascii", categories=["L"]), min_size=1), st.lists(st.text())))
def test_sound_structures_have_no_problem(children: dict[str, list[str]]) -> None:
    unique = {name: [f"{name}-{host}" for host in dict.fromkeys(hosts)] for name, hosts in children.items()}
    found = clusters([], unique)
    names = [host for cluster in found for host in cluster.hosts]
    if found and len(set(names)) == len(names):
        assert structure_problems([], found, names) == []


def test_a_sound_cluster_has_no_problem() -> None:
    assert problems(host("s1"), host("s2")) == []


def test_the_same_machine_twice() -> None:
    hosts = [host("s1", "10.0.0.1"), host("s2", "10.0.0.1"), host("s3", "10.0.0.3")]
    assert address_problems(hosts) == [
        "s2: has the same ansible_host as s1 (10.0.0.1); give each machine its own address and list it once"
    ]


def test_two_ssh_ports_of_one_address_are_two_machines() -> None:
    hosts = [Host("s1", "127.0.0.1", 2201, frozenset()), Host("s2", "127.0.0.1", 2202, frozenset())]
    assert address_problems(hosts) == []


def test_tensor_parallel_size_above_the_gpus() -> None:
    wide = {"serve_tensor_parallel_size": 3}
    assert problems(host("s1", **wide), host("s2", **wide)) == [
        "atlas: serve_tensor_parallel_size is 3 but the cluster has 2 GPUs (2 nodes); lower it or add nodes"
    ]
    two = {"ray_num_gpus": 2}
    assert both(**two, serve_tensor_parallel_size=4) == []
    assert both(**two, **wide) == [
        "atlas: tensor_parallel_size 3 needs 3 GPUs but its nodes (s1, s2) have 4; change the sizes or nodes"
    ]
    assert both(**two, serve_tensor_parallel_size=5) == [
        "atlas: serve_tensor_parallel_size is 5 but the cluster has 4 GPUs (2 nodes); lower it or add nodes"
    ]


def test_zero_is_what_the_nodes_have_and_less_is_nothing() -> None:
    def size(value: int) -> list[str]:
        return problems(
            host("s1", serve_tensor_parallel_size=value),
            host("s2", serve_tensor_parallel_size=value),
        )

    assert size(0) == []
    assert size(-1) == ["atlas: serve_tensor_parallel_size is -1; use 1 or more, or 0 for what the nodes have"]


@pytest.mark.parametrize("empty", ["", "  ", None])
def test_the_api_key_is_empty(empty: str | None) -> None:
    assert problems(host("s1", serve_api_key=empty), host("s2", serve_api_key=empty)) == [
        "atlas: serve_api_key is empty; set it, preferably in a vault"
    ]


def test_the_model_is_empty_or_missing() -> None:
    none = {"serve_model": ""}
    assert problems(host("s1", **none), host("s2", **none)) == [
        "atlas: serve_model is empty; name the directory or the archive of a model"
    ]
    [line] = problems(host("s1"), host("s2"), exists=False)
    assert line.startswith("atlas: serve_model is /models/tiny, which is no directory and no archive on this machine; ")
    source = {"model_source": "/nfs/tiny.tar"}
    [line] = problems(host("s1", **source), host("s2", **source), exists=False)
    assert line.startswith("atlas: model_source is /nfs/tiny.tar, ")


def test_a_source_is_a_model_too() -> None:
    assert both(serve_model="", model_source="/nfs/tiny.tar") == []
    assert both(serve_model="", model_source="/nfs/tiny.tar", serve_tensor_parallel_size=3) == [
        "atlas: serve_tensor_parallel_size is 3 but the cluster has 2 GPUs (2 nodes); lower it or add nodes"
    ]
    [line] = both(serve_model="", model_source="/nfs/tiny.tar", exists=False)
    assert line.startswith("atlas: model_source is /nfs/tiny.tar, ")


@pytest.mark.parametrize("handed_in", ["model_path", "serve_url"])
def test_no_model_is_looked_for_where_the_result_is_handed_in(handed_in: str) -> None:
    values = {handed_in: "/x", "serve_model": ""}
    assert problems(host("s1", **values), host("s2", **values), exists=False) == []


@pytest.mark.parametrize("variable", ["serve_api_key", "ray_auth_token"])
def test_secrets_that_differ_or_change_are_told_without_showing_them(variable: str) -> None:
    lines = problems(host("s1"), host("s2", **{variable: "other-secret"}))
    assert lines == [f"s2: {variable} differs from the head s1; set it once for the cluster atlas"]
    lines = problems(
        host("s1", unstable=frozenset({variable})),
        host("s2", unstable=frozenset({variable}), **{variable: "other-secret"}),
    )
    assert lines == [f"atlas: {variable} has another value each time it is evaluated; keep it in a file or a vault"]
    assert SECRET not in "".join(lines)


def test_other_variables_of_the_cluster_must_agree() -> None:
    assert problems(host("s1", image_variant="cuda"), host("s2", image_variant="cpu")) == [
        "s2: image_variant is 'cpu' but 'cuda' on the head s1; set it once for the cluster atlas"
    ]


def test_one_port_twice_and_a_name_mistyped_are_told_once_for_the_cluster() -> None:
    same = {"serve_port": 6379}
    assert problems(host("s1", given=["serve_prot"], **same), host("s2", given=["serve_prot"], **same)) == [
        "atlas: ray_port (6379) and serve_port (6379) use the same port; give each its own",
        "atlas: serve_prot is no variable of ours; did you mean serve_port?",
    ]


def test_what_concerns_one_host_names_it() -> None:
    assert problems(host("s1"), host("s2", problems=("serve_port is 'x', not of type int; correct it",))) == [
        "s2: serve_port is 'x', not of type int; correct it"
    ]


def test_a_cluster_of_one_is_named_by_what_it_is_about() -> None:
    alone = Cluster("solo", ("s1",))
    lines = problems(host("s1", given=["serve_prot"], serve_tensor_parallel_size=2), cluster=alone)
    assert lines == [
        "s1: serve_prot is no variable of ours; did you mean serve_port?",
        "solo: serve_tensor_parallel_size is 2 but the cluster has 1 GPU (1 node); lower it or add nodes",
    ]


# --- several models ------------------------------------------------------------------------------------------------

TWO = [{"name": "chat", "model": "/models/chat"}, {"name": "embed", "model": "/models/embed"}]
SEVERAL = {"serve_models": TWO, "serve_tensor_parallel_size": 0, "serve_model": ""}


def test_sound_entries_have_no_problem_and_need_no_model_besides() -> None:
    assert both(**SEVERAL) == []


def test_what_is_wrong_with_the_entries_is_told_of_the_cluster() -> None:
    assert both(**{**SEVERAL, "serve_models": [{**TWO[0], "prot": 1}, {**TWO[1], "port": "x"}]}) == [
        "atlas: serve_models[0]: prot is no option of a model; did you mean port?",
        "atlas: serve_models[1]: port is 'x', not of type int; correct it in the inventory",
    ]
    assert both(**{**SEVERAL, "serve_models": [TWO[0], {**TWO[1], "nodes": ["s1"]}, {**TWO[0], "name": "x"}]}) == [
        "atlas: serve_models[2] (x): port 8888 on s1 is that of embed too; give each its own port",
    ]


def test_the_models_of_entries_must_be_there_unless_they_are_on_the_nodes() -> None:
    [line] = both(lambda path: path == "/models/chat", **SEVERAL)
    assert line == (
        "atlas: serve_models[1] (embed): model is /models/embed, which is no directory and no archive on this machine; "
        "correct it, or set path to the model's directory on the nodes"
    )
    there = {**SEVERAL, "serve_models": [{"name": "chat", "path": "/srv/chat"}, {"path": "/srv/embed"}]}
    assert both(exists=False, **there) == []


def test_an_entry_without_a_model_is_told() -> None:
    # The empty path is the directory that one is in.
    lines = both(lambda path: path != "/nowhere", **{**SEVERAL, "serve_models": [TWO[0], {"name": "embed"}]})
    assert [line.partition(",")[0] for line in lines] == ["atlas: serve_models[1] (embed): model is empty"]


def test_ports_of_models_are_not_those_of_other_programs() -> None:
    def ports(*numbers: int, **values: t.Any) -> list[str]:
        entries = [{**entry, "port": number} for entry, number in zip(TWO, numbers, strict=True)]
        return both(**{**SEVERAL, "serve_models": entries, "serve_group_port": 6400, **values})

    assert ports(8888, 8889) == []
    assert ports(8888, 8888) == []
    assert ports(8888, 6379) == [
        "atlas: ray_port (6379) and serve_models[1].port (6379) use the same port; give each its own"
    ]
    assert ports(6409, 6410) == [
        "atlas: serve_group_port (6400-6409) and serve_models[0].port (6409) use the same port; give each its own"
    ]
    assert ports(8888, 8889, serve_port=6379) == [
        "atlas: ray_port (6379) and serve_port (6379) use the same port; give each its own"
    ]


def test_a_key_of_the_cluster_that_cannot_be_evaluated_is_told_once() -> None:
    broken = {name: value for name, value in {**GOOD, **SEVERAL}.items() if name != "serve_api_key"}
    hosts = {name: Host(name, name, 22, frozenset(), broken, ("serve_api_key cannot be ...",)) for name in ("s1", "s2")}
    assert problems(*hosts.values()) == ["atlas: serve_api_key cannot be ..."]


def test_each_entry_has_a_key_of_its_own_or_that_of_the_cluster() -> None:
    own = [{**TWO[0], "api_key": SECRET}, TWO[1]]
    assert both(**SEVERAL, serve_api_key="") == [
        "atlas: serve_models[0]: serve_api_key is empty; set it, preferably in a vault",
        "atlas: serve_models[1]: serve_api_key is empty; set it, preferably in a vault",
    ]
    assert both(**{**SEVERAL, "serve_models": own}, serve_api_key="") == [
        "atlas: serve_models[1]: serve_api_key is empty; set it, preferably in a vault",
    ]
    assert both(**{**SEVERAL, "serve_models": own}) == []


def test_entries_that_differ_are_told_without_showing_them() -> None:
    other = {**SEVERAL, "serve_models": [{**TWO[0], "api_key": SECRET}, TWO[1]]}
    assert problems(host("s1", **SEVERAL), host("s2", **other)) == [
        "s2: serve_models differs from the head s1; set it once for the cluster atlas"
    ]


@pytest.mark.parametrize(
    ("variable", "mine", "theirs"),
    [
        ("serve_nodes", ["s1"], ["s2"]),
        ("serve_pipeline_parallel_size", 1, 2),
        ("serve_data_parallel_size", 1, 2),
        ("serve_executor", "mp", "ray"),
    ],
)
def test_what_places_the_models_must_agree(variable: str, mine: t.Any, theirs: t.Any) -> None:
    rest = {"serve_tensor_parallel_size": 0}
    assert problems(host("s1", **rest, **{variable: mine}), host("s2", **rest, **{variable: theirs})) == [
        f"s2: {variable} is {theirs!r} but {mine!r} on the head s1; set it once for the cluster atlas"
    ]


def test_the_models_of_a_cluster_carry_no_secret() -> None:
    entries = [{**TWO[0], "api_key": SECRET, "tls_key": SECRET}, TWO[1]]
    placed, found = models(ATLAS, {**GOOD, **SEVERAL, "serve_models": entries}, KNOWN, validated)
    assert found == []
    assert [(model.name, model.nodes) for model in placed] == [("chat", ("s1",)), ("embed", ("s2",))]
    assert SECRET not in repr([model.fact() for model in placed])


def test_entries_that_are_wrong_are_not_placed() -> None:
    wrong = {**GOOD, **SEVERAL, "serve_models": [{**TWO[0], "prot": 1}]}
    assert models(ATLAS, wrong, KNOWN, validated)[0] == []
    assert len(models(ATLAS, wrong, KNOWN, validated)[1]) == 1
