# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is wrong with a recipe, and what of it is not honoured. Whole recipes are in test_action_recipe.py."""

from __future__ import annotations

import shlex
import typing as t
from pathlib import Path

import pytest
import yaml
from ansible_collections.sparkfleet.vllm.plugins.module_utils import _recipe, _recipe_command
from ansible_collections.sparkfleet.vllm.plugins.module_utils._recipe import parse
from hypothesis import given
from hypothesis import strategies as st

ROOT = Path(__file__).parents[4]
MODEL = "example-lab/Heron-7B"


def one(command: str = "vllm serve {model}", version: str = "1", **fields: t.Any) -> _recipe.Recipe:
    return parse("r.yaml", {"recipe_version": version, "model": MODEL, "command": command, **fields})


def two(**fields: t.Any) -> _recipe.Recipe:
    """A recipe of version 2 without a command."""
    return parse("r.yaml", {"recipe_version": "2", "model": MODEL, **fields})


@pytest.mark.parametrize("content", [None, [], {}, "text"])
def test_a_file_without_fields(content: t.Any) -> None:
    recipe = parse("r.yaml", content)
    assert recipe.lines() == ["recipe r.yaml: the file holds no mapping; see docs/recipes.md for the formats"]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"recipe_version": 3}, "recipe_version is 3; versions 1 and 2 are known"),
        ({"recipe_version": ""}, "recipe_version is ''; versions 1 and 2 are known"),
        ({"model": None, "command": "vllm serve"}, "model is missing; name the model"),
        ({"model": ["a", "b"]}, "model is list and has to be a name; write that of one model"),
        (
            {"model": {"model_id": MODEL}},
            "this is a recipe of vLLM's own, a choice of variants and features; write those you want into variables",
        ),
        ({"defaults": [1]}, "defaults is list and has to be a mapping; correct it"),
        ({"env": "A=1"}, "env is str and has to be a mapping; correct it"),
        ({"cluster_only": "yes"}, "cluster_only is 'yes'; write true or false"),
        (
            {"cluster_only": True, "solo_only": True},
            "cluster_only asks for 2 nodes and solo_only for 1 at most; correct one of them",
        ),
        ({"command": None}, "command is missing or no text; write the `vllm serve` line"),
        ({"command": ["vllm", "serve"]}, "command is missing or no text; write the `vllm serve` line"),
        (
            {"command": "vllm serve {model} --port {port} --x {y}"},
            "command has {port}, {y} and defaults has no value for it; add it to defaults",
        ),
        (
            {"command": "vllm serve {a}", "defaults": {"a": "{b}", "b": "{a}"}},
            "command has placeholders that stand for each other; give one of them a value of its own",
        ),
        ({"command": "sglang serve {model}"}, "command starts 'sglang serve' and not `vllm serve`; correct it"),
        ({"command": "A=1"}, "command starts 'nothing' and not `vllm serve`; correct it"),
        (
            {"command": "vllm serve {model} --port 1\n--x"},
            "command has more than one line; end the lines of one command with a backslash",
        ),
        (
            {"command": "cd /x && vllm serve {model}"},
            "command has `&&`, and there is no shell; leave only `vllm serve` in it",
        ),
        (
            {"command": "vllm serve {model} | tee log"},
            "command has `|`, and there is no shell; leave only `vllm serve` in it",
        ),
        (
            {"command": 'vllm serve {model} --x "$HOME"'},
            "command has a variable of a shell, and there is no shell; write its value",
        ),
        ({"command": "vllm serve 'x"}, "command cannot be split (No closing quotation); close its quotes"),
        (
            {"command": "vllm serve {model} again"},
            "command has 'again', which belongs to no option; write the model first",
        ),
        ({"command": "vllm serve {model} --port x"}, "--port is 'x'; give a number"),
        ({"command": "vllm serve {model} --port"}, "--port has no values in the command; give it one"),
        ({"command": "vllm serve {model} --dtype a b"}, "--dtype has 2 values in the command; give it one"),
        ({"command": "vllm serve {model} --max-model-len big"}, "--max-model-len is 'big'; give a number of tokens"),
        (
            {"command": "vllm serve {model} --gpu-memory-utilization 80"},
            "--gpu-memory-utilization is '80'; give a share, more than 0 and at most 1",
        ),
        (
            {"command": "vllm serve {model} --gpu-memory-utilization x"},
            "--gpu-memory-utilization is 'x'; give a share, more than 0 and at most 1",
        ),
        ({"command": "vllm serve {model} --served-model-name"}, "--served-model-name has no value; give it one"),
    ],
)
def test_what_makes_a_recipe_impossible(fields: dict[str, t.Any], expected: str) -> None:
    recipe = one(**fields)
    assert recipe.lines() == [f"recipe r.yaml: {expected}"]
    assert recipe.settings == {}


@pytest.mark.parametrize("runtime", ["sglang", "llama-cpp", "trtllm"])
def test_other_runtimes(runtime: str) -> None:
    [line] = two(runtime=runtime).problems
    assert line == (
        f"runtime is {runtime}, and only vLLM is served; "
        "choose a recipe for eugr-vllm, vllm, vllm-distributed, vllm-ray"
    )


@pytest.mark.parametrize("value", [0, -1, "2", True, 1.5])
@pytest.mark.parametrize("name", ["min_nodes", "max_nodes"])
def test_numbers_of_nodes(name: str, value: t.Any) -> None:
    assert two(**{name: value}).problems == (f"{name} is {value!r}; give a number of nodes, 1 or more",)


def test_fewer_at_most_than_at_least() -> None:
    [line] = two(min_nodes=4, max_nodes=2).problems
    assert line == "min_nodes asks for 4 nodes and max_nodes for 2 at most; correct one of them"
    [line] = two(mode="solo", min_nodes=2).problems
    assert line == "min_nodes asks for 2 nodes and mode solo for 1 at most; correct one of them"


@pytest.mark.parametrize(
    ("recipe", "nodes", "expected"),
    [
        (two(min_nodes=2, max_nodes=3), 2, ""),
        (two(min_nodes=2, max_nodes=3), 3, ""),
        (two(min_nodes=2), 1, "min_nodes asks for 2 nodes or more and the model is on 1 node; add nodes"),
        (two(max_nodes=3), 4, "max_nodes allows 3 and the model is on 4 nodes; name fewer in serve_nodes"),
        (two(mode="cluster"), 1, "mode cluster asks for 2 nodes or more"),
        (two(mode="cluster", min_nodes=3), 2, "min_nodes asks for 3 nodes or more"),
        (two(mode="solo"), 2, "mode solo allows 1 and"),
        (two(mode="auto"), 8, ""),
        (one(cluster_only=True), 1, "cluster_only asks for 2 nodes or more"),
        (one(solo_only=True), 2, "solo_only allows 1 and"),
        (one(cluster_only=False, solo_only=False), 5, ""),
    ],
)
def test_how_many_nodes(recipe: _recipe.Recipe, nodes: int, expected: str) -> None:
    assert recipe.problems == ()
    lines = recipe.node_problems(nodes)
    assert [line.partition("r.yaml: ")[2][: len(expected)] for line in lines] == ([expected] if expected else [])
    assert all("; " in line for line in lines)


def test_every_field_that_is_left_out_is_named() -> None:
    notes = two(**dict.fromkeys(_recipe.IGNORED, "something")).notes
    for name in _recipe.IGNORED:
        [note] = [note for note in notes if note.startswith(f"{name} ")]
        assert (" something " in note) == (name in _recipe.SHOWN)
    assert one(build_args=["--x"]).notes[0].startswith("build_args is left out; ")
    for empty in (None, [], {}, ""):
        assert two(pre_exec=empty, container=empty, mods=empty).notes == ()


def test_every_option_of_ours_is_named_without_its_value() -> None:
    for name in _recipe_command.OWNED:
        recipe = one(f"vllm serve {{model}} {name.replace('-', '_').replace('__', '--', 1)} hidden")
        assert recipe.notes == (f"{name} is left out; {_recipe_command.OWNED[name]}",)
        assert "serve_extra_args" not in recipe.settings


def test_every_environment_of_ours_is_named_without_its_value() -> None:
    recipe = one(env=dict.fromkeys(_recipe.OWNED_ENV, "hidden"))
    assert recipe.notes == tuple(f"env.{name} is left out; {why}" for name, why in _recipe.OWNED_ENV.items())
    assert "hidden" not in str(recipe)


def test_no_environment_of_the_server_can_be_set() -> None:
    derived = yaml.safe_load((ROOT / "roles/serve/vars/main.yml").read_text(encoding="utf-8"))
    assert set(derived["_serve_env"]) <= set(_recipe.OWNED_ENV)


def test_what_a_recipe_sets_are_variables_of_role_serve() -> None:
    declared = yaml.safe_load((ROOT / "roles/serve/defaults/main.yml").read_text(encoding="utf-8"))
    tables = (_recipe_command.NUMBERS, _recipe_command.TOKENS, _recipe_command.TEXTS)
    assert {name for table in tables for name in table.values()} < set(declared)
    assert set(one(env={"A": 1}, command="vllm serve {model} --x").variables(weights=False)) < set(declared)
    assert set(_recipe.IGNORED) < _recipe.FIELDS["eugr"] | _recipe.FIELDS["sparkrun"]


def test_the_model_is_left_to_the_inventory_where_that_has_one() -> None:
    assert one().variables(weights=False)["serve_model"] == MODEL
    assert "serve_model" not in one().variables(weights=True)
    assert one().variables(weights=True)["serve_served_model_name"] == MODEL
    named = one("vllm serve {model} --served-model-name heron")
    assert named.variables(weights=True)["serve_served_model_name"] == "heron"


def test_the_last_of_two_counts_as_with_vllm() -> None:
    assert one("vllm serve {model} --port 1 --port=2").settings["serve_port"] == 2


@pytest.mark.parametrize(
    ("runtime", "command", "executor"),
    [
        ("vllm", "", "mp"),
        (None, "", "mp"),
        ("eugr-vllm", "", "ray"),
        ("vllm-ray", "", "ray"),
        ("vllm-distributed", "", "mp"),
        ("vllm-distributed", "--distributed-executor-backend ray", "ray"),
    ],
)
def test_the_executor(runtime: str | None, command: str, executor: str) -> None:
    recipe = two(runtime=runtime, command=f"vllm serve {{model}} {command}")
    assert recipe.settings["serve_executor"] == executor


def test_the_executor_follows_from_other_fields_too() -> None:
    assert "serve_executor" not in one().settings
    assert two(defaults={"distributed_executor_backend": "ray"}).settings["serve_executor"] == "ray"
    command = "vllm serve {model}"
    assert two(command=command, mods=["a"]).settings["serve_executor"] == "ray"
    with_ray = two(command=command, defaults={"distributed_executor_backend": "ray"})
    assert with_ray.settings["serve_executor"] == "ray"
    assert two(runtime="vllm-distributed", mods=["a"]).settings["serve_executor"] == "mp"


@pytest.mark.parametrize(
    ("fields", "version"),
    [
        ({"command": "vllm serve a/b", "mods": ["x"]}, 1),
        ({"command": "vllm serve a/b", "runtime": "vllm"}, 2),
        ({"model": "a/b"}, 2),
    ],
)
def test_a_recipe_without_a_version(fields: dict[str, t.Any], version: int) -> None:
    recipe = parse("r.yaml", fields)
    assert recipe.kind == _recipe.KINDS[str(version)]
    assert f"recipe_version is missing; it is read as version {version}" in recipe.notes


def test_an_absolute_path_of_version_2_is_on_the_nodes() -> None:
    placed = parse("r.yaml", {"recipe_version": "2", "model": "/srv/models/heron/"})
    assert placed.variables(weights=False)["model_path"] == "/srv/models/heron/"
    assert "serve_model" not in placed.variables(weights=False)
    assert placed.variables(weights=True)["serve_served_model_name"] == "heron"
    assert _recipe.key_of("model_path") == "path"
    assert one("vllm serve x", model="/srv/x").variables(weights=False)["serve_model"] == "/srv/x"


@pytest.mark.parametrize(
    ("template", "line"),
    [
        ("{a} {{b}}", "1 {b}"),
        ('{a} {"x": {"y": 1}}', '1 {"x": {"y": 1}}'),
        ('x {{"a": 1}}', 'x {"a": 1}'),
        ('x {"a": 1}', 'x {"a": 1}'),
        ("{list} {mapping}", '[1, 2] {"b": null}'),
        ("{nested}", "<1>"),
    ],
)
def test_placeholders_and_braces(template: str, line: str) -> None:
    fields = {"a": 1, "list": [1, 2], "mapping": {"b": None}, "nested": "<{a}>"}
    assert _recipe_command.filled(template, fields)[0] == line


@given(st.lists(st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=1), max_size=5))
def test_words_are_those_of_a_shell(words: list[str]) -> None:
    quoted = [shlex.quote(word) for word in words]
    # What begins with # would be a comment where a line begins with it.
    assert _recipe_command.words_of("x " + " \\\n ".join(quoted)) == ["x", *words]


YAML = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(st.dictionaries(st.sampled_from(sorted(_recipe.FIELDS["sparkrun"])), YAML))
def test_whatever_is_in_a_recipe_gives_a_result_or_a_reason(content: dict[str, t.Any]) -> None:
    recipe = parse("r.yaml", content)
    assert recipe.problems or recipe.model
    assert all("; " in line for line in recipe.problems)
