# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Models find their nodes, and what cannot be served is refused with its reason."""

from __future__ import annotations

import json
import re
import typing as t
from pathlib import Path

import pytest
import yaml
from ansible_collections.sparkfleet.vllm.plugins.module_utils import _argspec, _serving
from ansible_collections.sparkfleet.vllm.plugins.module_utils._argspec import Option
from ansible_collections.sparkfleet.vllm.plugins.module_utils._serving import Placed
from hypothesis import event, given
from hypothesis import strategies as st

ROLES = Path(__file__).parents[4] / "roles"
SECRET = "correct-horse-battery"
INT: t.Final = {"type": "int"}
LIST: t.Final = {"type": "list", "elements": "str"}
KNOWN = {
    name: Option(name, name.partition("_")[0], spec)
    for name, spec in {
        "serve_models": {"type": "list", "elements": "dict"},
        "serve_model": {},
        "serve_name": {},
        "serve_served_model_name": {},
        "serve_nodes": LIST,
        "serve_executor": {"choices": ["ray", "mp"]},
        "serve_tensor_parallel_size": INT,
        "serve_pipeline_parallel_size": INT,
        "serve_data_parallel_size": INT,
        "serve_port": INT,
        "serve_max_model_len": INT,
        "serve_extra_args": LIST,
        "serve_api_key": {"no_log": True},
        "serve_tls_key": {"no_log": True},
        "serve_group_port": INT,
        "serve_rendezvous_port": INT,
        "serve_dp_port": INT,
        "serve_url": {},
        "ray_num_gpus": INT,
        "ray_port": INT,
        "model_source": {},
        "model_path": {},
        "model_root": {},
    }.items()
}
OPTIONS = _serving.entry_options(KNOWN)
SECRETS = {key for key, variable in OPTIONS.items() if KNOWN[variable].secret}
DEFAULTS: dict[str, t.Any] = {
    "serve_models": [],
    "serve_model": "",
    "serve_name": "",
    "serve_served_model_name": "",
    "serve_nodes": [],
    "serve_executor": "ray",
    "serve_tensor_parallel_size": 0,
    "serve_pipeline_parallel_size": 1,
    "serve_data_parallel_size": 1,
    "serve_port": 8888,
    "serve_max_model_len": 0,
    "serve_extra_args": [],
    "serve_api_key": SECRET,
    "serve_tls_key": SECRET,
    "serve_group_port": 6400,
    "serve_rendezvous_port": 29510,
    "serve_dp_port": 29550,
    "serve_url": "",
    "ray_num_gpus": 1,
    "ray_port": 6379,
    "model_source": "",
    "model_path": "",
}
FOUR = ("s1", "s2", "s3", "s4")


def validated(variable: str, value: t.Any) -> tuple[t.Any, str]:
    """What the argument specs of the roles would say, for the types that are used here."""
    option = KNOWN[variable]
    if value is None:
        return value, ""
    if option.type == "int":
        try:
            return int(value), ""
        except (TypeError, ValueError):
            return value, f"{variable} is {value!r}, not of type int; correct it in the inventory"
    if option.type == "list" and isinstance(value, str):
        return value.split(","), ""
    if option.choices and value not in option.choices:
        return value, f"{variable} is {value!r}, not one of: {', '.join(option.choices)}; choose one of them"
    return value, ""


def model(name: str, port: int = 8888, **own: t.Any) -> dict[str, t.Any]:
    """An entry of serve_models."""
    return {"name": name, "model": f"/models/{name}", "port": port, **own}


def place(
    *entries: t.Mapping[str, t.Any], hosts: t.Sequence[str] = FOUR, **values: t.Any
) -> tuple[list[Placed], list[str]]:
    given = {**DEFAULTS, "serve_models": list(entries), **values}
    assert _serving.entry_problems(given, OPTIONS, validated) == []
    return _serving.place(hosts, given, OPTIONS, validated, SECRETS)


def placed(*entries: t.Mapping[str, t.Any], **how: t.Any) -> list[Placed]:
    models, problems = place(*entries, **how)
    assert problems == []
    return models


def nodes(*entries: t.Mapping[str, t.Any], **how: t.Any) -> list[tuple[str, ...]]:
    return [found.nodes for found in placed(*entries, **how)]


def refused(*entries: t.Mapping[str, t.Any], **how: t.Any) -> list[str]:
    problems = place(*entries, **how)[1]
    assert all("; " in line for line in problems), "what is wrong; what to do"
    return problems


def entry_problems(*entries: t.Any) -> list[str]:
    return _serving.entry_problems({**DEFAULTS, "serve_models": list(entries)}, OPTIONS, validated)


# --- the options of an entry ---------------------------------------------------------------------------------------


def test_an_entry_may_set_every_option_of_role_serve_but_those_of_the_cluster() -> None:
    assert OPTIONS["port"] == "serve_port"
    assert (OPTIONS["source"], OPTIONS["path"]) == ("model_source", "model_path")
    assert not {"models", "url", "group_port", "rendezvous_port", "dp_port", "num_gpus", "root"} & set(OPTIONS)


def test_an_option_that_another_role_declares_as_well_is_one() -> None:
    # As role model does, which reads it too and comes first.
    assert _serving.entry_options({"serve_model": Option("serve_model", "model", {})})["model"] == "serve_model"


def real_options() -> tuple[dict[str, Option], dict[str, t.Any]]:
    """What the roles really declare, and their defaults."""
    specs, defaults = {}, {}
    for role in _argspec.ROLES:
        specs[role] = yaml.safe_load((ROLES / role / "meta" / "argument_specs.yml").read_text())
        defaults.update(yaml.safe_load((ROLES / role / "defaults" / "main.yml").read_text()))
    return _argspec.options(specs), defaults


def test_the_names_that_placing_knows_are_variables_of_the_roles() -> None:
    known, _defaults = real_options()
    named = {*_serving.CLUSTER_ONLY, *_argspec.SPREAD, *_serving.SOURCES.values()}
    named |= {f"serve_{key}" for key in ("model", "name", "served_model_name", "nodes", "executor", "port", "api_key")}
    named |= {f"serve_{kind}_parallel_size" for kind in ("tensor", "pipeline", "data")}
    assert sorted(named - known.keys()) == []
    assert set(_argspec.SPREAD) <= _serving.CLUSTER_ONLY


def test_what_the_roles_read_of_a_model_is_in_its_fact_and_no_secret_is() -> None:
    known, defaults = real_options()
    keys = _serving.entry_options(known)
    secrets = {key for key, variable in keys.items() if known[variable].secret}
    values = {**defaults, "serve_model": "/m/tiny", "serve_api_key": SECRET, "serve_tls_key": SECRET}
    [found], problems = _serving.place(("s1", "s2"), values, keys, lambda _name, value: (value, ""), secrets)
    assert problems == []
    files = [path for role in ("model", "ray", "serve") for path in (ROLES / role).rglob("*") if path.is_file()]
    text = "\n".join(path.read_text() for path in files)
    read = set(re.findall(r"\b(?:serve_item|model_item)\.([a-z_]+)", text))
    assert {"name", "port", "leader"} <= read, "the roles call it something else now"
    assert sorted(read - found.fact().keys()) == []
    assert secrets >= {"api_key", "tls_key"}
    assert not secrets & found.fact().keys()
    assert SECRET not in json.dumps(found.fact())


# --- the short form ------------------------------------------------------------------------------------------------


def test_without_serve_models_the_single_model_is_one_entry_over_all_nodes() -> None:
    [found] = placed(serve_model="/models/tiny.tar.gz", serve_max_model_len=512)
    assert found.fact() == {
        "name": "tiny",
        "index": 0,
        "source": "/models/tiny.tar.gz",
        "path": "",
        "nodes": list(FOUR),
        "leader": "s1",
        "executor": "ray",
        "tensor_parallel_size": 4,
        "pipeline_parallel_size": 1,
        "data_parallel_size": 1,
        "served_model_name": "tiny",
        "port": 8888,
        "max_model_len": 512,
        "extra_args": [],
        "group_port": 6400,
        "rendezvous_port": 29510,
        "dp_port": 29550,
    }


def test_the_short_form_takes_its_name_and_its_source_from_their_variables() -> None:
    values = {"serve_model": "/m/x", "serve_name": "chat", "serve_served_model_name": "gpt", "model_source": "/nfs/x"}
    [found] = placed(**values)
    assert (found.name, found.source, found.options["served_model_name"]) == ("chat", "/nfs/x", "gpt")


def test_a_model_that_is_on_the_nodes_already_has_no_source() -> None:
    [found] = placed(model_path="/srv/models/qwen3", serve_model="/m/x", serve_name="chat")
    assert (found.path, found.source) == ("/srv/models/qwen3", "")
    [found] = placed(model_path="/srv/models/qwen3")
    assert found.name == "qwen3"


def test_the_short_form_may_name_its_nodes_and_its_sizes() -> None:
    [found] = placed(serve_model="/m/x", serve_nodes=["s3", "s2"])
    assert (found.nodes, found.leader, found.tensor_parallel_size) == (("s3", "s2"), "s3", 2)
    [found] = placed(serve_model="/m/x", serve_tensor_parallel_size=2)
    assert (found.nodes, found.tensor_parallel_size) == (("s1", "s2"), 2)


# --- the entries ---------------------------------------------------------------------------------------------------


def test_one_entry_is_placed_like_the_short_form() -> None:
    [entry] = placed(model("tiny"))
    [short] = placed(serve_model="/models/tiny")
    assert entry == short


def test_an_entry_takes_the_clusters_value_for_what_it_does_not_set() -> None:
    first, second = placed(
        model("a", max_model_len=4096), model("b"), serve_max_model_len=512, serve_extra_args=["--enforce-eager"]
    )
    assert (first.options["max_model_len"], second.options["max_model_len"]) == (4096, 512)
    assert first.options["extra_args"] == second.options["extra_args"] == ["--enforce-eager"]


def test_what_names_the_single_model_says_nothing_about_the_entries() -> None:
    own = {
        "serve_name": "single",
        "serve_served_model_name": "single",
        "serve_nodes": ["s4"],
        "model_source": "/nfs/single",
        "model_path": "/srv/single",
    }
    first, second = placed(model("a"), model("b", served_model_name="b-by-another-name"), **own)
    assert [(m.name, m.nodes, m.source, m.path) for m in (first, second)] == [
        ("a", ("s1",), "/models/a", ""),
        ("b", ("s2",), "/models/b", ""),
    ]
    assert [m.options["served_model_name"] for m in (first, second)] == ["a", "b-by-another-name"]


def test_two_entries_may_serve_the_model_of_the_cluster() -> None:
    first, second = placed({"name": "a"}, {"name": "b"}, serve_model="/models/tiny")
    assert (first.source, second.source) == ("/models/tiny", "/models/tiny")


def test_the_values_of_an_entry_are_taken_in_their_declared_types() -> None:
    first, _second = placed(model("a", port="9001", tensor_parallel_size="2", nodes="s3,s4"), model("b"))
    assert (first.options["port"], first.tensor_parallel_size, first.nodes) == (9001, 2, ("s3", "s4"))


def test_an_option_without_a_value_is_not_set() -> None:
    empty = dict.fromkeys(("port", "nodes", "executor", "tensor_parallel_size", "max_model_len", "path"))
    assert placed({"name": "a", "model": "/models/a", **empty}, serve_max_model_len=512) == placed(
        {"name": "a", "model": "/models/a"}, serve_max_model_len=512
    )


def test_an_unknown_key_is_told_with_the_one_that_is_meant() -> None:
    assert entry_problems(model("a", tensor_paralel_size=2), model("b", zzz=1), model("c", serve_port=1)) == [
        "serve_models[0]: tensor_paralel_size is no option of a model; did you mean tensor_parallel_size?",
        "serve_models[1]: zzz is no option of a model; remove it",
        "serve_models[2]: serve_port is no option of a model; did you mean port?",
    ]


@pytest.mark.parametrize("key", ["models", "url", "group_port", "rendezvous_port", "dp_port"])
def test_what_is_about_the_cluster_is_no_option_of_a_model(key: str) -> None:
    assert any(
        f"serve_models[0]: {key} is no option of a model; " in line for line in entry_problems(model("a") | {key: 1})
    )


def test_a_value_of_another_type_is_told_under_the_name_of_its_key() -> None:
    assert entry_problems(model("a"), model("b", executor="mpp") | {"port": "x"}) == [
        "serve_models[1]: port is 'x', not of type int; correct it in the inventory",
        "serve_models[1]: executor is 'mpp', not one of: ray, mp; choose one of them",
    ]


def test_an_entry_that_is_no_dictionary_is_told() -> None:
    assert entry_problems(model("a"), "chat") == [
        "serve_models[1] is 'chat'; write name: and model: and what else differs from serve_*"
    ]


def test_a_cluster_serves_ten_models_and_no_more() -> None:
    many = [model(f"m{number}", port=8800 + number) for number in range(11)]
    assert entry_problems(*many) == ["serve_models has 11 models; a cluster serves 10 at most, divide it"]
    ten = placed(*many[:10])
    assert [found.index for found in ten] == list(range(10))
    # Ten ports of each range are kept free for them.
    assert {found.options["group_port"] for found in ten} == set(range(6400, 6410))


KEYS = st.one_of(st.sampled_from(sorted(OPTIONS)), st.text(max_size=12), st.integers(), st.none())
THINGS = st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=8), st.lists(st.text(max_size=3)))


@given(st.lists(st.one_of(THINGS, st.dictionaries(KEYS, THINGS, max_size=4)), max_size=12))
def test_every_entry_is_judged_whatever_it_is(entries: list[t.Any]) -> None:
    problems = entry_problems(*entries)
    wrong = [
        index
        for index, entry in enumerate(entries)
        if not isinstance(entry, dict) or not entry.keys() <= OPTIONS.keys()
    ]
    assert {f"serve_models[{index}]" for index in wrong} <= {
        re.split(r"[: ]", line, maxsplit=1)[0] for line in problems
    }


# --- where models run ----------------------------------------------------------------------------------------------


def test_a_model_alone_without_sizes_takes_all_nodes() -> None:
    [found] = placed(model("a"))
    assert (found.nodes, found.tensor_parallel_size, found.executor) == (FOUR, 4, "ray")


def test_a_model_with_sizes_takes_as_many_nodes_as_it_needs_head_first() -> None:
    assert nodes(model("a", tensor_parallel_size=1)) == [("s1",)]
    assert nodes(model("a", tensor_parallel_size=2)) == [("s1", "s2")]
    assert nodes(model("a", tensor_parallel_size=2, pipeline_parallel_size=2)) == [FOUR]
    assert nodes(model("a", tensor_parallel_size=1, data_parallel_size=3, executor="mp")) == [("s1", "s2", "s3")]


def test_the_other_sizes_divide_what_the_nodes_have() -> None:
    [found] = placed(model("a", pipeline_parallel_size=2))
    assert (found.nodes, found.tensor_parallel_size, found.pipeline_parallel_size) == (FOUR, 2, 2)
    [found] = placed(model("a", data_parallel_size=2, executor="mp", nodes=["s2", "s4"]))
    assert (found.tensor_parallel_size, found.data_parallel_size) == (1, 2)


def test_a_node_alone_needs_no_executor() -> None:
    assert [found.executor for found in placed(model("a"), model("b", executor="mp"))] == ["", ""]
    assert [found.executor for found in placed(model("a", nodes=["s1", "s2"], executor="mp"))] == ["mp"]
    [found] = placed(model("a"), hosts=("s1",), ray_num_gpus=2)
    assert (found.executor, found.tensor_parallel_size) == ("", 2)


def test_several_models_take_nodes_of_their_own() -> None:
    two = model("b", tensor_parallel_size=2)
    assert nodes(model("a"), two, model("c")) == [("s1",), ("s2", "s3"), ("s4",)]
    assert nodes(two, model("a")) == [("s1", "s2"), ("s3",)]
    by_layers = model("b", pipeline_parallel_size=2)
    assert nodes(model("a"), by_layers) == [("s1",), ("s2", "s3")]
    assert [found.tensor_parallel_size for found in placed(model("a"), by_layers, ray_num_gpus=2)] == [2, 1]


def test_sizes_of_the_cluster_are_those_of_each_model() -> None:
    assert nodes(model("a"), model("b"), serve_tensor_parallel_size=2) == [("s1", "s2"), ("s3", "s4")]


def test_models_that_name_their_nodes_come_first_and_the_others_around_them() -> None:
    chosen = model("c", nodes=["s3", "s1"], executor="mp")
    assert nodes(model("a"), model("b"), chosen) == [("s2",), ("s4",), ("s3", "s1")]
    assert nodes(chosen, model("a", tensor_parallel_size=2)) == [("s3", "s1"), ("s2", "s4")]


def test_a_model_of_one_node_shares_the_least_used_one_when_none_is_free() -> None:
    models = [model(name, port=8001 + index) for index, name in enumerate("abcde")]
    assert nodes(*models, hosts=("s1", "s2")) == [("s1",), ("s2",), ("s1",), ("s2",), ("s1",)]
    first = model("x", port=7001, nodes=["s1"])
    assert nodes(first, model("y", port=7002, nodes=["s1"]), *models[:3], hosts=("s1", "s2")) == [
        ("s1",),
        ("s1",),
        ("s2",),
        ("s2",),
        ("s1",),
    ]


def test_a_node_with_two_gpus_takes_two_ranks() -> None:
    two = {"ray_num_gpus": 2}
    assert [found.tensor_parallel_size for found in placed(model("a"), **two)] == [8]
    assert nodes(model("a", tensor_parallel_size=4), model("b"), **two) == [("s1", "s2"), ("s3",)]
    assert nodes(model("a", tensor_parallel_size=1), model("b", tensor_parallel_size=2), **two) == [("s1",), ("s2",)]
    assert [found.tensor_parallel_size for found in placed(model("a"), model("b"), **two)] == [2, 2]


def test_each_model_takes_the_next_port_of_the_spread_ones() -> None:
    found = placed(model("a"), model("b"), model("c"), serve_dp_port=30000)
    spread = ("group_port", "rendezvous_port", "dp_port")
    assert [[one.options[key] for key in spread] for one in found] == [
        [6400, 29510, 30000],
        [6401, 29511, 30001],
        [6402, 29512, 30002],
    ]


def test_secrets_are_never_handed_on() -> None:
    for entries in ([], [model("a", api_key=SECRET, tls_key=SECRET), model("b")]):
        for found in placed(*entries, serve_model="/m/x"):
            fact = found.fact()
            assert not {"api_key", "tls_key"} & fact.keys()
            assert SECRET not in json.dumps(fact)
            assert SECRET not in repr(found)


def test_an_option_never_hides_where_a_model_runs() -> None:
    found = Placed(
        "a", 0, "/m/a", "", ("s2", "s1"), "mp", 2, 1, 1, {"leader": "x", "nodes": "x", "index": 7, "port": 1}
    )
    assert found.fact() == {
        "name": "a",
        "index": 0,
        "source": "/m/a",
        "path": "",
        "nodes": ["s2", "s1"],
        "leader": "s2",
        "executor": "mp",
        "tensor_parallel_size": 2,
        "pipeline_parallel_size": 1,
        "data_parallel_size": 1,
        "port": 1,
    }


# --- what cannot be placed -----------------------------------------------------------------------------------------


def test_a_model_needs_a_name_that_a_unit_can_have() -> None:
    assert refused() == ["the model has no name; set name or model"]
    assert refused(model("a"), {"port": 1}) == ["serve_models[1]: the model has no name; set name or model"]
    [line] = refused(model("a b"))
    assert line == "name is 'a b'; use letters, digits, dots, dashes and underscores"
    for name in ("-a", ".a", "a/b", "a@b", "a\n", "ä"):
        assert len(refused(model(name))) == 1, name
    for name in ("a", "Qwen3-0.6B", "a_b", "7b"):
        assert placed(model(name))[0].name == name


def test_a_name_comes_from_the_model_where_none_is_given() -> None:
    given = placed({"model": "/m/Qwen3-0.6B.tar.gz"}, {"path": "/srv/bge"}, {"source": "/nfs/tiny.zip"})
    assert [found.name for found in given] == ["Qwen3-0.6B", "bge", "tiny"]
    [found] = placed(model_source="/nfs/tiny.zip")
    assert (found.name, found.source) == ("tiny", "/nfs/tiny.zip")
    [found] = placed(model_source="/nfs/tiny.zip", serve_model="/m/qwen3")
    assert (found.name, found.source) == ("qwen3", "/nfs/tiny.zip")


def test_an_unknown_node_and_one_named_twice() -> None:
    assert refused(model("a", nodes=["s1", "s9"]), model("b", nodes=["s2", "s3", "s2"])) == [
        "serve_models[0] (a): nodes has s9, which is not in this cluster; choose among s1, s2, s3, s4",
        "serve_models[1] (b): nodes has s2 twice; name each node once",
    ]
    assert refused(serve_model="/m/x", serve_nodes=["s9", "s9"]) == [
        "nodes has s9, which is not in this cluster; choose among s1, s2, s3, s4"
    ]


@pytest.mark.parametrize(
    ("size", "line"),
    [
        ({"tensor_parallel_size": -1}, "serve_tensor_parallel_size is -1; use 1 or more, or 0 for what the nodes have"),
        ({"pipeline_parallel_size": 0}, "serve_pipeline_parallel_size is 0; use 1 or more"),
        ({"data_parallel_size": -2}, "serve_data_parallel_size is -2; use 1 or more"),
    ],
)
def test_sizes_that_are_no_sizes(size: dict[str, int], line: str) -> None:
    assert refused(model("a", **size)) == [line]
    assert refused(model("a", **size), model("b")) == [f"serve_models[0] (a): {line}"]


def test_a_model_larger_than_the_cluster() -> None:
    assert refused(model("a", tensor_parallel_size=2, pipeline_parallel_size=3)) == [
        "tensor_parallel_size 2 times pipeline_parallel_size 3 needs 6 GPUs but the cluster has 4 GPUs (4 nodes); "
        "lower it or add nodes"
    ]
    assert refused(serve_model="/m/x", serve_tensor_parallel_size=5) == [
        "serve_tensor_parallel_size is 5 but the cluster has 4 GPUs (4 nodes); lower it or add nodes"
    ]
    assert refused(model("a", tensor_parallel_size=2), hosts=("s1",)) == [
        "serve_tensor_parallel_size is 2 but the cluster has 1 GPU (1 node); lower it or add nodes"
    ]
    assert refused(model("a"), model("b", tensor_parallel_size=5, pipeline_parallel_size=2), ray_num_gpus=2) == [
        "serve_models[1] (b): tensor_parallel_size 5 times pipeline_parallel_size 2 needs 10 GPUs but the cluster "
        "has 8 GPUs (4 nodes); lower it or add nodes"
    ]


def test_too_few_nodes_are_left() -> None:
    assert refused(model("a", tensor_parallel_size=3), model("b", tensor_parallel_size=2), model("c")) == [
        "serve_models[1] (b): it needs 2 free nodes, 1 are left; name its nodes or leave out another model"
    ]


def test_nodes_and_sizes_that_do_not_fit() -> None:
    assert refused(model("a", nodes=["s1", "s2"], tensor_parallel_size=3)) == [
        "tensor_parallel_size 3 needs 3 GPUs but its nodes (s1, s2) have 2; change the sizes or nodes"
    ]
    assert refused(model("a", nodes=["s1", "s2"], tensor_parallel_size=1), model("b")) == [
        "serve_models[0] (a): tensor_parallel_size 1 needs 1 GPU but its nodes (s1, s2) have 2; "
        "change the sizes or nodes"
    ]
    [line] = refused(model("a", nodes=["s1"], tensor_parallel_size=2, pipeline_parallel_size=2))
    assert line.startswith("tensor_parallel_size 2 times pipeline_parallel_size 2 needs 4 GPUs but its nodes (s1) have")


def test_every_node_of_a_model_has_as_many_ranks() -> None:
    assert refused(model("a", tensor_parallel_size=3), ray_num_gpus=2) == [
        "tensor_parallel_size 3 needs 3 GPUs but its nodes (s1, s2) have 4; change the sizes or nodes"
    ]
    # One rank on each of two nodes with two GPUs would leave half of them idle.
    assert len(refused(model("a", tensor_parallel_size=2, nodes=["s1", "s2"]), ray_num_gpus=2)) == 1


def test_what_the_nodes_have_cannot_be_divided() -> None:
    assert refused(model("a", pipeline_parallel_size=3)) == [
        "4 GPUs cannot be divided by pipeline_parallel_size 3 times data_parallel_size 1; "
        "choose sizes whose product is 4"
    ]
    assert refused(model("a", data_parallel_size=2, executor="mp", nodes=["s1"]), model("b")) == [
        "serve_models[0] (a): 1 GPU cannot be divided by pipeline_parallel_size 1 times data_parallel_size 2; "
        "choose sizes whose product is 1"
    ]


def test_a_clusters_models_are_placed_all_or_none() -> None:
    assert place(model("a"), model("b", nodes=["s9"]))[0] == []
    assert place(model("a"), model("b", tensor_parallel_size=9))[0] == []


# --- what two models cannot share ----------------------------------------------------------------------------------


def test_two_models_of_one_name() -> None:
    assert refused(model("a"), model("b"), model("a")) == [
        "serve_models[2] (a): has the same name as serve_models[0]; give each its own"
    ]


def test_two_sources_whose_directories_would_have_one_name() -> None:
    assert refused(model("a", model="/x/qwen3"), model("b", model="/y/qwen3.tar")) == [
        "serve_models[1] (b): its directory has the same name as that of a; rename one of the two"
    ]
    assert refused(model("a", model="/x/qwen3"), model("b", model="/x/qwen3")) == []
    assert refused(model("a", model="", path="/x/qwen3"), model("b", model="", path="/y/qwen3")) == []


def test_one_port_on_one_leader() -> None:
    assert refused(model("a"), model("b"), model("c"), hosts=("s1", "s2")) == [
        "serve_models[2] (c): port 8888 on s1 is that of a too; give each its own port"
    ]
    assert refused(model("a"), model("b"), model("c", port=8889), hosts=("s1", "s2")) == []


def test_ports_are_the_leaders_and_nobody_elses() -> None:
    over_both = model("a", nodes=["s1", "s2"], executor="mp")
    assert refused(over_both, model("b", nodes=["s2"])) == []
    assert len(refused(over_both, model("b", nodes=["s1"]))) == 1


def test_ray_makes_no_copies_over_nodes() -> None:
    assert refused(model("a", data_parallel_size=2)) == [
        "data_parallel_size 2 needs vLLM's own executor; set executor to mp"
    ]
    assert refused(model("a", data_parallel_size=2, executor="mp")) == []
    # One node has neither executor.
    assert refused(model("a", data_parallel_size=2, nodes=["s1"]), ray_num_gpus=2) == []


def test_a_node_is_in_one_ray_only() -> None:
    first = model("a", nodes=["s1", "s2"])
    assert refused(first, model("b", nodes=["s2", "s3"])) == [
        "serve_models[1] (b): shares s2 with a, and a node is in one Ray cluster; "
        "give both the same nodes in the same order, or set executor to mp"
    ]
    # The head of a Ray is the first of its nodes.
    assert len(refused(first, model("b", nodes=["s2", "s1"]))) == 1
    assert refused(first, model("b", nodes=["s2", "s3"], executor="mp")) == []
    assert refused(first, model("b", nodes=["s2"])) == []
    assert refused(first, model("b", nodes=["s3", "s4"])) == []


def test_two_models_in_one_ray_need_its_gpus() -> None:
    first = model("a", nodes=["s1", "s2"])
    [line] = refused(first, model("b", port=1, nodes=["s1", "s2"]))
    assert line == ("serve_models[1] (b): Ray has 2 GPUs on s1, s2, and a takes 2; set executor to mp")
    assert refused(first, model("b", port=1, nodes=["s1", "s2"], executor="mp")) == []


def test_two_models_may_share_a_ray_that_has_a_gpu_for_each_of_their_ranks() -> None:
    # A model takes no more nodes than it has to, so two of several nodes never come to this today.
    a, b, c = (Placed(name, index, "", "", ("s1", "s2"), "ray", 2, 1, 1, {}) for index, name in enumerate("abc"))
    assert list(_serving._ray_problems([a, b], 2, False)) == []
    assert len(list(_serving._ray_problems([a, b], 1, False))) == 1
    assert [line.partition(":")[0] for line in _serving._ray_problems([a, b, c], 2, False)] == ["serve_models[2] (c)"]
    half = {"nodes": ["s1"], "tensor_parallel_size": 1}
    assert refused(model("a", **half), model("b", port=1, **half), ray_num_gpus=2) == []


# --- Ray -----------------------------------------------------------------------------------------------------------


def test_ray_runs_where_a_model_needs_it() -> None:
    models = placed(
        model("a", nodes=["s3", "s2"]),
        model("b", nodes=["s1"]),
        model("c", nodes=["s1", "s4"], executor="mp", port=2),
    )
    assert _serving.ray_groups(models) == [("s3", "s2")]
    assert _serving.ray_groups(placed(model("a"))) == [FOUR]
    assert _serving.ray_groups(placed(model("a"), hosts=("s1",))) == []
    assert _serving.ray_groups(placed(model("a"), serve_executor="mp")) == []
    assert _serving.ray_groups([]) == []


def test_there_is_a_ray_for_each_set_of_nodes() -> None:
    models = placed(model("a", tensor_parallel_size=2), model("b", tensor_parallel_size=2))
    assert _serving.ray_groups(models) == [("s1", "s2"), ("s3", "s4")]
    shared = Placed("x", 0, "", "", ("s1", "s2"), "ray", 2, 1, 1, {})
    turned = Placed("y", 1, "", "", ("s2", "s1"), "ray", 2, 1, 1, {})
    assert _serving.ray_groups([shared, shared, turned]) == [("s1", "s2")]


# --- whatever is asked for -----------------------------------------------------------------------------------------


@st.composite
def fleets(draw: st.DrawFn) -> tuple[tuple[str, ...], int, list[dict[str, t.Any]]]:
    """Hosts, GPUs of each, and models that more often than not can be placed on them."""
    hosts = tuple(f"s{number}" for number in range(1, draw(st.integers(1, 6)) + 1))
    gpus = draw(st.integers(1, 3))
    entries = []
    for index in range(draw(st.integers(1, 6))):
        entry = model(f"m{index}", port=8000 + index, executor=draw(st.sampled_from(["mp", "mp", "ray"])))
        for kind, most in (("tensor", 4), ("pipeline", 3), ("data", 2)):
            if draw(st.integers(0, 3)) == 0:
                entry[f"{kind}_parallel_size"] = draw(st.integers(1, most))
        if draw(st.booleans()):
            entry["nodes"] = draw(st.lists(st.sampled_from(hosts), min_size=1, max_size=3, unique=True))
        entries.append(entry)
    return hosts, gpus, entries


@given(fleets())
def test_whatever_is_placed_fits(fleet: tuple[tuple[str, ...], int, list[dict[str, t.Any]]]) -> None:
    hosts, gpus, entries = fleet
    models, problems = place(*entries, hosts=hosts, ray_num_gpus=gpus)
    event("refused" if problems else f"placed {len(models)}")
    assert models or problems
    if problems:
        return
    assert [found.index for found in models] == list(range(len(entries)))
    for found, entry in zip(models, entries, strict=True):
        sizes = (found.tensor_parallel_size, found.pipeline_parallel_size, found.data_parallel_size)
        world = sizes[0] * sizes[1] * sizes[2]
        assert world > 0
        assert len(found.nodes) == -(-world // gpus)
        assert world % len(found.nodes) == 0
        assert len(set(found.nodes)) == len(found.nodes)
        assert set(found.nodes) <= set(hosts)
        assert found.fact()["leader"] == found.nodes[0]
        assert found.executor == (entry["executor"] if len(found.nodes) > 1 else "")
        if "nodes" in entry:
            assert found.nodes == tuple(entry["nodes"])
        for kind, size in zip(("tensor", "pipeline", "data"), sizes, strict=True):
            assert entry.get(f"{kind}_parallel_size", size) == size


@given(fleets())
def test_models_without_nodes_of_their_own_stay_out_of_each_others_way(
    fleet: tuple[tuple[str, ...], int, list[dict[str, t.Any]]],
) -> None:
    hosts, gpus, entries = fleet
    models, problems = place(*entries, hosts=hosts, ray_num_gpus=gpus)
    if problems:
        return
    taken = [node for found, entry in zip(models, entries, strict=True) if "nodes" in entry for node in found.nodes]
    for found, entry in zip(models, entries, strict=True):
        if "nodes" in entry:
            continue
        # Only a model of one node shares, and only where no node is free.
        if set(found.nodes) & set(taken):
            assert len(found.nodes) == 1
            assert set(hosts) <= set(taken)
        else:
            assert list(found.nodes) == [host for host in hosts if host not in taken][: len(found.nodes)]
        taken.extend(found.nodes)


@given(fleets())
def test_no_node_is_in_two_rays(fleet: tuple[tuple[str, ...], int, list[dict[str, t.Any]]]) -> None:
    hosts, gpus, entries = fleet
    models, problems = place(*entries, hosts=hosts, ray_num_gpus=gpus)
    if problems:
        return
    with_ray = [found for found in models if found.executor == "ray"]
    groups = _serving.ray_groups(models)
    assert set(groups) == {found.nodes for found in with_ray}
    assert len({node for group in groups for node in group}) == sum(len(group) for group in groups)
    for group in groups:
        sizes = [(one.tensor_parallel_size, one.pipeline_parallel_size) for one in with_ray if one.nodes == group]
        assert sum(tensor * pipeline for tensor, pipeline in sizes) <= len(group) * gpus
