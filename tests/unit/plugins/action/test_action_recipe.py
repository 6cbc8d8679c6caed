# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Recipes through everything: the file, the real roles' variables, and the command that the image would start."""

from __future__ import annotations

import typing as t
from pathlib import Path

import pytest
import yaml
from ansible_collections.sparkfleet.vllm.plugins.action.recipe import ActionModule
from ansible_collections.sparkfleet.vllm.plugins.plugin_utils import _variables

ROOT = Path(__file__).parents[4]
RECIPES = ROOT / "tests" / "unit" / "data" / "recipes"
EXPECTED = yaml.safe_load((RECIPES / "expected.yml").read_text(encoding="utf-8"))
Make = t.Callable[..., t.Any]


@pytest.fixture(name="real", autouse=True)
def fixture_real(roles: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The roles as they are, in place of the small ones of these tests."""
    monkeypatch.setattr(_variables, "ROLE_DIRECTORY", ROOT / "roles")


def show(controller: t.Any, **arguments: t.Any) -> dict[str, t.Any]:
    result: dict[str, t.Any] = controller.run(ActionModule, "localhost", play="localhost", arguments=arguments)
    return result


def summary(file: str, result: dict[str, t.Any]) -> dict[str, t.Any]:
    """Return what a recipe became, without its own name in every line."""
    prefix = f"sparks: recipe {RECIPES / file}: "
    return {
        "commands": {one["node"]: one["command"] for model in result["models"] for one in model["commands"]},
        "environment": {
            name: value
            for model in result["models"]
            for name, value in model["variables"].get("serve_extra_env", {}).items()
        },
        "notes": [note.removeprefix(prefix) for note in result["notes"] if "on Hugging Face" not in note],
        "problems": [line.removeprefix(prefix) for line in result["problems"]],
    }


@pytest.mark.parametrize("file", sorted(str(path.relative_to(RECIPES)) for path in RECIPES.glob("*/*.yaml")))
def test_every_recipe_becomes_its_command(controller: Make, file: str) -> None:
    result = show(controller("all: {hosts: {a: }}"), recipe=str(RECIPES / file))
    assert summary(file, result) == EXPECTED[file]
    assert "secret-of-the-recipe" not in str(result)


def test_there_are_ten_of_each_kind_and_each_is_expected() -> None:
    files = {str(path.relative_to(RECIPES)) for path in RECIPES.glob("*/*.yaml")}
    assert files == set(EXPECTED)
    assert all(len([file for file in files if file.startswith(kind)]) >= 10 for kind in ("eugr/", "sparkrun/"))


PAIR = str(RECIPES / "eugr" / "pair.yaml")
SOLO = str(RECIPES / "eugr" / "solo.yaml")


def fleet(**variables: t.Any) -> dict[str, t.Any]:
    hosts = {"s1": {"ansible_host": "10.0.0.1"}, "s2": {"ansible_host": "10.0.0.2"}}
    return {"sparks": {"children": {"atlas": {"hosts": hosts, "vars": variables}}}}


def test_what_the_inventory_sets_wins_and_is_shown(controller: Make, tmp_path: Path) -> None:
    (tmp_path / "weights").mkdir()
    made = controller(
        fleet(
            serve_recipe=PAIR,
            serve_model=str(tmp_path / "weights"),
            serve_port="{{ 9000 + 1 }}",
            serve_extra_env={"A": "1"},
        )
    )
    result = show(made)
    [model] = result["models"]
    assert (model["nodes"], model["name"], model["variables"]["serve_port"]) == (["s1", "s2"], "weights", 9001)
    assert model["variables"]["serve_served_model_name"] == "example-lab/Heron-70B-FP8"
    assert set(model["overruled"]) == {"serve_model", "serve_port", "serve_extra_env"}
    assert "  serve_port: 9001  # the recipe says 8000" in result["text"]
    command = model["commands"][0]["command"]
    assert command.startswith("vllm serve /var/lib/sparkfleet/models/weights --host 0.0.0.0 --port 9001 --served-model")
    assert any("serve_extra_env of the inventory stands in place" in note for note in result["notes"])
    assert not any("Hugging Face" in note for note in result["notes"])


def test_a_recipe_for_the_inventorys_clusters(controller: Make) -> None:
    inventory = fleet(port="{{ hostvars['s1'].ansible_host[:2] }}", serve_port="{{ port | int }}", serve_models=[{}])
    inventory["sparks"]["children"]["boreas"] = {"hosts": {"s3": {}}}
    result = show(controller(inventory), recipe=SOLO)
    assert [(one["cluster"], one["variables"]["serve_port"]) for one in result["models"]] == [
        ("atlas", 10),
        ("boreas", 8001),
    ]
    limited = show(controller(inventory, limit="boreas"), recipe=SOLO)
    assert [one["cluster"] for one in limited["models"]] == ["boreas"]
    result = show(controller(inventory), recipe=PAIR)
    assert [one["cluster"] for one in result["models"]] == ["atlas"]
    assert [line.partition(";")[0] for line in result["problems"]] == [
        "boreas: serve_tensor_parallel_size is 2 but the cluster has 1 GPU (1 node)",
        f"boreas: recipe {PAIR}: cluster_only asks for 2 nodes or more and the model is on 1 node",
    ]
    assert f"refused: {result['problems'][0]}" in result["text"]


def test_models_with_recipes_of_their_own(controller: Make) -> None:
    models = [
        {"recipe": SOLO, "nodes": ["s1"], "port": 7000},
        {"name": "b", "recipe": SOLO, "path": "/srv/b", "nodes": ["s2"]},
        {"name": "c", "model": "roles", "nodes": ["s2"]},
    ]
    result = show(controller(fleet(serve_models=models, serve_host="10.1.1.1")))
    first, second = result["models"]
    assert (first["name"], first["variables"]["serve_port"], second["variables"]["serve_port"]) == (
        "Wren-4B",
        7000,
        8001,
    )
    assert [one["variables"]["serve_host"] for one in (first, second)] == ["10.1.1.1", "10.1.1.1"]
    assert second["commands"][0]["command"].startswith("vllm serve /srv/b ")
    assert second["variables"]["serve_served_model_name"] == "example-lab/Wren-4B"
    [note] = [note for note in result["notes"] if "Hugging Face" in note]
    assert note.endswith("and set model to its directory, or path to the one on the nodes")


def test_the_number_of_nodes_and_variables_of_the_command_line(controller: Make) -> None:
    made = controller("all: {vars: {serve_max_model_len: 1024}}")
    result = show(made, recipe=str(RECIPES / "sparkrun" / "spread.yaml"), nodes=3)
    [model] = result["models"]
    assert len(model["nodes"]) == 3
    assert "--max-model-len=1024" in model["commands"][0]["command"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({}, "no recipe; give one with -e recipe=FILE, or set serve_recipe in the inventory"),
        ({"recipe": PAIR, "nodes": -1}, "nodes is -1; give a number of nodes"),
    ],
)
def test_arguments_that_make_no_sense(controller: Make, arguments: dict[str, t.Any], expected: str) -> None:
    result = show(controller(fleet()), **arguments)
    assert (result["failed"], result["msg"]) == (True, f"{expected}\n")


def test_what_the_entrypoint_refuses_is_a_problem(controller: Make) -> None:
    result = show(controller("all: {vars: {serve_kv_cache_memory_bytes: lots}}"), recipe=PAIR)
    assert [line for line in result["problems"] if "KV_CACHE_MEMORY_BYTES=lots is no number" in line]


def test_experts_are_looked_up_where_the_model_is(controller: Make, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    sizes = {"serve_data_parallel_size": 2, "serve_executor": "mp"}
    recipe = str(RECIPES / "eugr" / "pair.yaml")
    hosts = {f"s{number}": {} for number in range(1, 5)}
    inventory = {"sparks": {"hosts": hosts, "vars": {**sizes, "serve_recipe": recipe, "serve_model": str(tmp_path)}}}
    [dense] = show(controller(inventory))["models"]
    assert "--nnodes=2" in dense["commands"][3]["command"]
    del inventory["sparks"]["vars"]["serve_model"]
    [unknown] = show(controller(inventory))["models"]
    assert "--nnodes=4" in unknown["commands"][3]["command"]


def test_a_model_that_is_on_the_nodes(controller: Make, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text('recipe_version: "2"\nmodel: /srv/models/heron\n')
    file = str(tmp_path / "r.yaml")
    for inventory in (fleet(serve_recipe=file), fleet(serve_models=[{"recipe": file}], serve_model="roles")):
        result = show(controller(inventory))
        assert result["notes"] == []
        [model] = result["models"]
        assert model["variables"]["model_path"] == "/srv/models/heron"
        command = model["commands"][0]["command"]
        assert command.startswith("vllm serve /srv/models/heron ")
        assert "--served-model-name heron " in command
