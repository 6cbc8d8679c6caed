# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import json
import typing as t
from pathlib import Path

import pytest
import yaml
from ansible_collections.sparkfleet.vllm.plugins.action import fleet as fleet_action
from ansible_collections.sparkfleet.vllm.plugins.action.fleet import ActionModule

SECRET = "correct-horse-battery"
Make = t.Callable[..., t.Any]


def pair(**variables: t.Any) -> dict[str, t.Any]:
    """An inventory of one cluster with two hosts; the model is a directory beside it."""
    good = {"serve_model": "roles", "serve_api_key": SECRET, "serve_must": "x"}
    hosts = {"s1": {"ansible_host": "10.0.0.1"}, "s2": {"ansible_host": "10.0.0.2"}}
    return {"sparks": {"children": {"atlas": {"hosts": hosts, "vars": {**good, **variables}}}}}


def reasons(controller: t.Any, host: str = "s1", **how: t.Any) -> list[str]:
    """Return the lines of a refusal, none where there is none."""
    result = controller.run(ActionModule, host, **how)
    assert result.get("failed", False) == ("msg" in result)
    return str(result.get("msg", "")).splitlines()


def test_each_host_learns_its_cluster(controller: Make) -> None:
    result = controller(pair()).run(ActionModule, "s2")
    assert result["changed"] is False
    fact = result["ansible_facts"].pop("spark_cluster")
    assert result["ansible_facts"] == {}
    [model] = fact.pop("models")
    assert fact == {"name": "atlas", "head": "s1", "nodes": ["s1", "s2"], "ray": [["s1", "s2"]]}
    assert (model["name"], model["source"], model["leader"], model["nodes"]) == ("roles", "roles", "s1", ["s1", "s2"])
    assert (model["executor"], model["tensor_parallel_size"], model["port"]) == ("ray", 2, 8888)
    assert SECRET not in json.dumps(result)


def test_groups_below_a_cluster_belong_to_it(controller: Make) -> None:
    inventory = pair()
    inventory["sparks"]["children"]["atlas"]["children"] = {"late": {"hosts": {"s3": {"ansible_host": "10.0.0.3"}}}}
    result = controller(inventory).run(ActionModule, "s3")
    assert result["ansible_facts"]["spark_cluster"]["nodes"] == ["s1", "s2", "s3"]


def test_two_lines_are_an_inventory(controller: Make) -> None:
    result = controller("sparks:\n  hosts: {s1: }\n").run(ActionModule, "s1", arguments={"variables": False})
    assert result["ansible_facts"]["spark_cluster"] == {
        "name": "sparks",
        "head": "s1",
        "nodes": ["s1"],
        "models": [],
        "ray": [],
    }


NO_HOST = ["sparks: no host in this group; list the DGX Sparks under `sparks` in the inventory"]


@pytest.mark.parametrize("inventory", ["all: {hosts: {a: }}", "sparks: {}", "sparks: {children: {atlas: {}}}"])
def test_no_host_in_the_group(controller: Make, inventory: str) -> None:
    made = controller(inventory)
    assert reasons(made, "localhost", play="localhost", arguments={"require_hosts": True}) == NO_HOST
    assert reasons(made, "localhost", play="localhost") == NO_HOST


def test_require_hosts_asks_nothing_else(controller: Make) -> None:
    made = controller(pair(serve_port="x"))
    assert reasons(made, "localhost", play="localhost", arguments={"require_hosts": True}) == []


def test_the_first_host_speaks_for_all(controller: Make) -> None:
    made = controller(pair(serve_port="x"))
    assert reasons(made, "s1") == ["atlas: serve_port is 'x', not of type int; correct it in the inventory"]
    assert reasons(made, "s2") == []
    assert reasons(made, "localhost", play="localhost") == reasons(made, "s1")
    assert reasons(made, "s1", arguments={"variables": False}) == []


def test_all_reasons_come_at_once_in_lines(controller: Make) -> None:
    inventory = pair(
        serve_executor="mpp",
        image_variant="gpu",
        fabric_topology="star",
        fabric_debug="LOUD",
        serve_tensor_parallel_size="3",
        serve_prot=1,
        serve_api_key="",
        serve_model="nowhere",
    )
    inventory["sparks"]["children"]["boreas"] = {"hosts": {"s2": {}}}
    inventory["sparks"]["hosts"] = {"s9": {}}
    lines = reasons(controller(inventory), "s9")
    assert [line.partition(";")[0] for line in lines] == [
        "s2: in the clusters atlas and boreas",
        "s9: directly under `sparks` beside the clusters atlas, boreas",
        "atlas: fabric_debug is 'LOUD', not one of: '', INFO",
        "atlas: fabric_topology is 'star', not one of: auto, pair",
        "atlas: image_variant is 'gpu', not one of: cuda, cpu",
        "atlas: serve_api_key is empty",
        "atlas: serve_executor is 'mpp', not one of: ray",
        "atlas: serve_model is nowhere, which is no directory and no archive on this machine",
        "atlas: serve_prot is no variable of ours",
        "atlas: serve_tensor_parallel_size is 3 but the cluster has 2 GPUs (2 nodes)",
    ]
    assert all("; " in line for line in lines)


def test_limit(controller: Make) -> None:
    inventory = pair()
    inventory["sparks"]["children"]["boreas"] = {"hosts": {"s3": {"ansible_host": "10.0.0.3", "serve_port": "x"}}}
    assert reasons(controller(inventory, limit="atlas")) == []
    assert reasons(controller(inventory, limit="s2"), "s2") == [
        "atlas: --limit leaves out s1; a cluster is changed as a whole, use --limit atlas"
    ]


def test_a_missing_variable_that_only_its_owner_can_set(controller: Make) -> None:
    inventory = pair()
    del inventory["sparks"]["children"]["atlas"]["vars"]["serve_must"]
    assert reasons(controller(inventory)) == ["atlas: serve_must is not set; set it in the inventory"]


def test_a_template_that_fails(controller: Make) -> None:
    [line] = reasons(controller(pair(serve_port="{{ nowhere_port }}")))
    assert line == "atlas: serve_port cannot be evaluated ('nowhere_port' is undefined); correct it in the inventory"


VAULTED = """
sparks:
  hosts: {s1: }
  vars:
    serve_must: x
    serve_model: roles
    serve_api_key: !vault |
      $ANSIBLE_VAULT;1.1;AES256
      33363431316333396661366363336162626634343061343939333266656632393131636566393866
      6365643563386162366266633461383837313833386138330a316239363736303133653233656330
      36616233346237366537343332633434336231643331346165323262333430396366613464643464
      3338323461653032310a373434633432326161643837323663353364383436663964333830653035
      3938
"""


def test_a_vault_without_its_password(controller: Make) -> None:
    assert reasons(controller(VAULTED)) == [
        "s1: serve_api_key is vaulted and cannot be decrypted; give --ask-vault-pass or --vault-password-file"
    ]


def test_connection_variables_that_fail(controller: Make) -> None:
    inventory = pair()
    inventory["sparks"]["children"]["atlas"]["hosts"]["s1"]["ansible_host"] = "{{ nowhere }}"
    inventory["sparks"]["children"]["atlas"]["hosts"]["s2"]["ansible_port"] = "ssh"
    lines = reasons(controller(inventory))
    assert [line.partition(" (")[0] for line in lines] == [
        "s1: ansible_host or ansible_port cannot be evaluated",
        "s2: ansible_host or ansible_port cannot be evaluated",
    ]


def test_a_host_that_an_earlier_play_lost_does_not_speak(controller: Make) -> None:
    assert reasons(controller(pair(serve_port="x")), "s2", gone=["s1"]) != []


def test_templates_of_the_owner_are_evaluated(controller: Make) -> None:
    inventory = pair(serve_port="{{ ray_port }}", two="{{ 1 + 1 }}", serve_tensor_parallel_size="{{ two }}")
    assert reasons(controller(inventory)) == [
        "atlas: ray_port (6379) and serve_port (6379) use the same port; give each its own"
    ]


def test_secrets_that_change_or_differ_are_told_and_never_shown(controller: Make) -> None:
    drawn = "{{ lookup('password', '/dev/null') }}"
    assert reasons(controller(pair(ray_auth_token=drawn))) == [
        "atlas: ray_auth_token has another value each time it is evaluated; keep it in a file or a vault"
    ]
    inventory = pair()
    inventory["sparks"]["children"]["atlas"]["hosts"]["s2"]["serve_api_key"] = "another-secret"
    assert reasons(controller(inventory)) == [
        "s2: serve_api_key differs from the head s1; set it once for the cluster atlas"
    ]
    [line] = reasons(controller(pair(ray_extra=SECRET)))
    assert line == "atlas: ray_extra has a value that is not of type dict; correct it in the inventory"
    [line] = reasons(controller(pair(serve_api_key="{{ '" + SECRET + "' | no_such_filter }}")))
    assert SECRET not in line
    assert line.startswith("atlas: serve_api_key cannot be evaluated; ")


def test_one_machine_under_two_names(controller: Make) -> None:
    inventory = pair()
    inventory["sparks"]["children"]["boreas"] = {
        "hosts": {"s3": {"ansible_host": "10.0.0.1"}},
        "vars": inventory["sparks"]["children"]["atlas"]["vars"],
    }
    assert reasons(controller(inventory)) == [
        "s3: has the same ansible_host as s1 (10.0.0.1); give each machine its own address and list it once"
    ]


def test_an_ansible_that_hides_its_inventory_is_told_so(controller: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    from ansible.errors import AnsibleActionFail
    from ansible_collections.sparkfleet.vllm.plugins.plugin_utils._variables import Inventory

    with pytest.raises(AnsibleActionFail, match="does not show its inventory"):
        Inventory({"hostvars": {}})


# --- several models ------------------------------------------------------------------------------------------------


@pytest.fixture(name="several")
def fixture_several(roles: Path) -> None:
    """Role serve as it is where a cluster may serve several models."""
    spec = {
        "serve_models": {"type": "list", "elements": "dict"},
        "serve_name": {},
        "serve_nodes": {"type": "list", "elements": "str"},
        "serve_executor": {"choices": ["ray", "mp"]},
        "serve_tensor_parallel_size": {"type": "int"},
        "serve_tls_key": {"no_log": True},
        "serve_group_port": {"type": "int"},
    }
    defaults = {
        "serve_models": [],
        "serve_name": "",
        "serve_nodes": [],
        "serve_tensor_parallel_size": 0,
        "serve_tls_key": "",
        "serve_group_port": 6400,
    }
    specs, values = (roles / "serve" / path for path in ("meta/argument_specs.yml", "defaults/main.yml"))
    declared = yaml.safe_load(specs.read_text())
    declared["argument_specs"]["main"]["options"] |= spec
    specs.write_text(yaml.safe_dump(declared))
    values.write_text(yaml.safe_dump(yaml.safe_load(values.read_text()) | defaults))


def models(controller: t.Any, host: str = "s1", **how: t.Any) -> list[dict[str, t.Any]]:
    result = controller.run(ActionModule, host, **how)
    assert "msg" not in result
    found: list[dict[str, t.Any]] = result["ansible_facts"]["spark_cluster"]["models"]
    return found


@pytest.mark.usefixtures("several")
def test_every_host_learns_every_model_and_none_of_their_secrets(controller: Make) -> None:
    made = controller(
        pair(
            base=8000,
            serve_models=[
                {"name": "chat", "model": "roles", "port": "{{ base + 1 }}", "api_key": "an-entrys-key"},
                {"name": "embed", "path": "/srv/embed", "tls_key": "an-entrys-key"},
            ],
        )
    )
    chat, embed = models(made)
    assert (chat["nodes"], chat["port"], chat["source"], chat["group_port"]) == (["s1"], 8001, "roles", 6400)
    assert (embed["nodes"], embed["port"], embed["path"], embed["group_port"]) == (["s2"], 8888, "/srv/embed", 6401)
    assert models(made, "s2") == [chat, embed]
    for host in ("s1", "s2"):
        told = json.dumps(made.run(ActionModule, host))
        assert "an-entrys-key" not in told
        assert SECRET not in told


def test_the_heads_variables_say_what_is_served(controller: Make) -> None:
    inventory = pair(serve_port=8000)
    inventory["sparks"]["children"]["atlas"]["hosts"]["s2"]["serve_port"] = 8001
    made = controller(inventory)
    assert models(made, "s1") == models(made, "s2")
    assert [model["port"] for model in models(made, "s2")] == [8000]


@pytest.mark.usefixtures("several")
def test_models_over_the_same_nodes_without_ray_are_placed_as_they_say(controller: Make) -> None:
    both = {"nodes": ["s2", "s1"], "executor": "mp", "model": "roles"}
    made = controller(pair(serve_models=[{"name": "a", **both}, {"name": "b", "port": 8889, **both}]))
    assert [(model["leader"], model["executor"]) for model in models(made)] == [("s2", "mp"), ("s2", "mp")]
    assert made.run(ActionModule, "s1")["ansible_facts"]["spark_cluster"]["ray"] == []


@pytest.mark.usefixtures("several")
def test_what_is_wrong_with_the_models_is_told_with_everything_else(controller: Make) -> None:
    made = controller(
        pair(
            serve_prot=1,
            serve_models=[
                {"name": "chat", "model": "roles", "prot": 1},
                {"name": "embed", "model": "roles", "port": "x", "nodes": "s1", "executor": "slurm"},
            ],
        )
    )
    assert reasons(made) == [
        "atlas: serve_models[0]: prot is no option of a model; did you mean port?",
        "atlas: serve_models[1]: executor is 'slurm', not one of: ray, mp; choose one of them",
        "atlas: serve_models[1]: port is 'x', not of type int; correct it in the inventory",
        "atlas: serve_prot is no variable of ours; did you mean serve_port?",
    ]
    made = controller(
        pair(
            serve_models=[
                {"name": "chat", "model": "roles"},
                {"name": "embed", "model": "nowhere", "nodes": ["s1"]},
                {"name": "chat", "model": "roles", "port": 8889},
            ],
        )
    )
    assert [line.partition(";")[0] for line in reasons(made)] == [
        "atlas: serve_models[1] (embed): model is nowhere, which is no directory and no archive on this machine",
        "atlas: serve_models[2] (chat): has the same name as serve_models[0]",
    ]
    made = controller(pair(serve_models=[{"name": "chat", "model": "roles", "nodes": ["s3"]}]))
    assert reasons(made) == ["atlas: nodes has s3, which is not in this cluster; choose among s1, s2"]


@pytest.mark.usefixtures("several")
def test_a_verb_that_does_not_care_is_told_no_models_where_they_are_wrong(controller: Make) -> None:
    made = controller(pair(serve_models=[{"name": "chat", "modle": "roles"}]))
    fact = made.run(ActionModule, "s1", arguments={"variables": False})["ansible_facts"]["spark_cluster"]
    assert fact == {"name": "atlas", "head": "s1", "nodes": ["s1", "s2"], "models": [], "ray": []}


@pytest.mark.usefixtures("several")
@pytest.mark.parametrize(
    "entry",
    [
        {"port": "x"},
        {"prot": 1},
        {"nodes": ["s9"]},
        {"tensor_parallel_size": 9},
        {"name": "-"},
    ],
)
def test_what_is_wrong_with_an_entry_is_told_without_its_key(controller: Make, entry: dict[str, t.Any]) -> None:
    inventory = pair(serve_models=[{"name": "chat", "model": "roles", "api_key": "an-entrys-key", **entry}])
    told = reasons(controller(inventory))
    assert len(told) == 1
    hosts = inventory["sparks"]["children"]["atlas"]["hosts"]
    hosts["s2"]["serve_models"] = [{"name": "chat", "model": "roles", "api_key": "another-key"}]
    told += reasons(controller(inventory))
    assert "s2: serve_models differs from the head s1; set it once for the cluster atlas" in told
    assert not any(key in line for line in told for key in ("an-entrys-key", "another-key"))


@pytest.mark.usefixtures("several")
@pytest.mark.parametrize(
    "value",
    [
        [{"name": "chat", "api_key": "an-entrys-key"}, "chat"],
        {"name": "chat", "api_key": "an-entrys-key"},
        [{"name": "chat", "api_key": "{{ 'an-entrys-key' | no_such_filter }}"}],
    ],
)
def test_models_that_are_no_list_of_models_are_told_without_their_keys(controller: Make, value: t.Any) -> None:
    [line] = reasons(controller(pair(serve_models=value)))
    assert line.startswith("atlas: serve_models ")
    assert "an-entrys-key" not in line


# --- recipes -------------------------------------------------------------------------------------------------------


@pytest.fixture(name="recipes")
def fixture_recipes(roles: Path, several: None) -> None:
    """Role serve with what a recipe sets."""
    specs, values = (roles / "serve" / path for path in ("meta/argument_specs.yml", "defaults/main.yml"))
    declared = yaml.safe_load(specs.read_text())
    more = {"serve_recipe": {}, "serve_served_model_name": {}, "serve_extra_args": {"type": "list", "elements": "str"}}
    declared["argument_specs"]["main"]["options"] |= more
    specs.write_text(yaml.safe_dump(declared))
    defaults = {"serve_recipe": "", "serve_served_model_name": "", "serve_extra_args": []}
    values.write_text(yaml.safe_dump(yaml.safe_load(values.read_text()) | defaults))


@pytest.fixture(name="told")
def fixture_told(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is said without refusing anything."""
    lines: list[str] = []
    monkeypatch.setattr(fleet_action.display, "warning", lines.append)
    return lines


def recipe(directory: Path, text: str = "", name: str = "r.yaml") -> str:
    base = 'recipe_version: "1"\nmodel: example-lab/Heron-7B\n'
    command = "" if "command:" in text else "command: vllm serve {model} --port 8123 -tp 2 --trust-remote-code\n"
    (directory / name).write_text(f"{base}{command}{text}")
    return name


def served(**variables: t.Any) -> dict[str, t.Any]:
    """An inventory whose model is left to the recipe, where nothing else is said."""
    inventory = pair(**variables)
    if "serve_model" not in variables:
        del inventory["sparks"]["children"]["atlas"]["vars"]["serve_model"]
    return inventory


@pytest.mark.usefixtures("recipes")
def test_a_recipe_ranks_like_a_default(controller: Make, tmp_path: Path, told: list[str]) -> None:
    file = recipe(tmp_path, "mods: [a]\n")
    [model] = models(controller(served(serve_recipe=file, serve_model="roles")))
    assert (model["port"], model["source"], model["served_model_name"]) == (8123, "roles", "example-lab/Heron-7B")
    assert (model["extra_args"], model["tensor_parallel_size"]) == (["--trust-remote-code"], 2)
    assert told == [
        "atlas: recipe r.yaml: mods a is left out; the image is not changed after it was built; see docs/patches.md"
    ]
    told.clear()
    inventory = served(
        serve_recipe="{{ 'r' ~ '.yaml' }}", serve_model="roles", serve_port=8000, serve_extra_args=["-x"]
    )
    [model] = models(controller(inventory))
    assert (model["port"], model["extra_args"]) == (8000, ["-x"])
    assert told[1:] == [
        "atlas: recipe r.yaml: serve_extra_args of the inventory stands in place of the recipe's --trust-remote-code"
    ]


@pytest.mark.usefixtures("recipes", "told")
def test_the_recipes_model_is_taken_where_there_is_such_a_directory(controller: Make, tmp_path: Path) -> None:
    made = controller(served(serve_recipe=recipe(tmp_path)))
    assert reasons(made) == [
        "atlas: recipe r.yaml: model is example-lab/Heron-7B, a name on Hugging Face; download it (hf download "
        "example-lab/Heron-7B --local-dir DIR) and set serve_model to its directory, or model_path to the one "
        "on the nodes"
    ]
    (tmp_path / "example-lab" / "Heron-7B").mkdir(parents=True)
    [model] = models(made)
    assert (model["source"], model["name"]) == ("example-lab/Heron-7B", "Heron-7B")
    file = recipe(tmp_path, name="path.yaml", text="command: vllm serve {model}\nmodel_: 1\n")
    (tmp_path / file).write_text((tmp_path / file).read_text().replace("example-lab/Heron-7B", "/nowhere/model"))
    [line] = reasons(controller(served(serve_recipe=file)))
    assert line.startswith(
        "atlas: recipe path.yaml: model is /nowhere/model, no directory and no archive on this machine; "
    )


@pytest.mark.usefixtures("recipes", "told")
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, "no such file on this machine; correct the path"),
        ("a: 1\na: 2\n", "not YAML (a stands twice in "),
        ("a: [\n", "not YAML (while parsing"),
        ("a: 2026-13-45\n", "cannot be read (month must be in 1..12"),
        ("- a\n", "the file holds no mapping; "),
        ('recipe_version: "2"\nmodel: a/b\nruntime: sglang\n', "runtime is sglang, and only vLLM is served; "),
    ],
)
def test_a_recipe_that_cannot_be_served_is_one_line(
    controller: Make, tmp_path: Path, text: str | None, expected: str
) -> None:
    if text is not None:
        (tmp_path / "bad.yaml").write_text(text)
    [line] = reasons(controller(served(serve_recipe="bad.yaml")))
    assert line.startswith(f"atlas: recipe bad.yaml: {expected}")
    assert "; " in line and str(tmp_path) not in line
    [line] = reasons(controller(served(serve_models=[{"name": "a", "recipe": "bad.yaml"}])))
    assert line.startswith(f"atlas: recipe bad.yaml: {expected}")


@pytest.mark.usefixtures("recipes", "told")
@pytest.mark.parametrize(
    ("text", "nodes", "expected"),
    [
        ("solo_only: true\n", ["s1", "s2"], "solo_only allows 1 and the model is on 2 nodes; name fewer"),
        ("cluster_only: true\n", ["s1"], "cluster_only asks for 2 nodes or more and the model is on 1 node; add nodes"),
    ],
)
def test_a_recipe_for_another_number_of_nodes(
    controller: Make, tmp_path: Path, text: str, nodes: list[str], expected: str
) -> None:
    file = recipe(tmp_path, f"{text}command: vllm serve {{model}}\n")
    sizes = {"serve_nodes": nodes, "serve_tensor_parallel_size": len(nodes)}
    [line] = reasons(controller(served(serve_recipe=file, serve_model="roles", **sizes)))
    assert line.startswith(f"atlas: recipe r.yaml: {expected}")
    entry = {"name": "a", "recipe": file, "model": "roles", "nodes": nodes, "tensor_parallel_size": len(nodes)}
    lines = reasons(controller(served(serve_models=[entry, {"name": "b", "path": "/srv/b", "port": 9000}])))
    assert [line for line in lines if line.startswith(f"atlas: serve_models[0] (a): recipe r.yaml: {expected}")]


@pytest.mark.usefixtures("recipes", "told")
def test_recipes_of_entries(controller: Make, tmp_path: Path) -> None:
    file = recipe(tmp_path, "command: vllm serve {model} --port 8123\n")
    entries = [{"recipe": file, "model": "roles", "name": "a"}, {"recipe": file, "nodes": ["s2"]}]
    made = controller(served(serve_models=entries))
    [line] = reasons(made)
    assert line.startswith("atlas: serve_models[1] (Heron-7B): recipe r.yaml: model is example-lab/Heron-7B, a name on")
    (tmp_path / "example-lab" / "Heron-7B").mkdir(parents=True)
    first, second = models(made)
    assert [(one["source"], one["port"]) for one in (first, second)] == [
        ("roles", 8123),
        ("example-lab/Heron-7B", 8123),
    ]
    assert [one["served_model_name"] for one in (first, second)] == ["example-lab/Heron-7B"] * 2
    # What the inventory says for all models is stronger than a recipe, and an entry than both.
    entries[0]["port"] = 7000
    inventory = served(serve_models=entries, serve_port=6000)
    inventory["sparks"]["children"]["atlas"]["hosts"]["s2"]["serve_extra_args"] = ["-x"]
    assert [one["port"] for one in models(controller(inventory))] == [7000, 6000]


@pytest.mark.usefixtures("recipes", "told")
def test_one_recipe_for_several_models_is_refused(controller: Make, tmp_path: Path) -> None:
    entries = [{"name": "a", "model": "roles"}]
    [line] = reasons(controller(served(serve_recipe=recipe(tmp_path), serve_models=entries)))
    assert line == "atlas: serve_recipe is for a single model; write recipe into the entries of serve_models"


@pytest.mark.usefixtures("recipes", "told")
def test_a_recipe_that_differs_or_cannot_be_evaluated(controller: Make, tmp_path: Path) -> None:
    inventory = served(serve_model="roles", serve_recipe=recipe(tmp_path))
    inventory["sparks"]["children"]["atlas"]["hosts"]["s2"]["serve_recipe"] = recipe(tmp_path, name="other.yaml")
    assert reasons(controller(inventory)) == [
        "s2: serve_recipe is 'other.yaml' but 'r.yaml' on the head s1; set it once for the cluster atlas"
    ]
    [line] = reasons(controller(served(serve_model="roles", serve_recipe="{{ nowhere }}")))
    assert line.startswith("atlas: serve_recipe cannot be evaluated ('nowhere' is undefined)")
