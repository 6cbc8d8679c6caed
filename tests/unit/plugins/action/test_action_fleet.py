# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import typing as t

import pytest
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
    assert result["ansible_facts"] == {"spark_cluster": {"name": "atlas", "head": "s1", "nodes": ["s1", "s2"]}}


def test_groups_below_a_cluster_belong_to_it(controller: Make) -> None:
    inventory = pair()
    inventory["sparks"]["children"]["atlas"]["children"] = {"late": {"hosts": {"s3": {"ansible_host": "10.0.0.3"}}}}
    result = controller(inventory).run(ActionModule, "s3")
    assert result["ansible_facts"]["spark_cluster"]["nodes"] == ["s1", "s2", "s3"]


def test_two_lines_are_an_inventory(controller: Make) -> None:
    result = controller("sparks:\n  hosts: {s1: }\n").run(ActionModule, "s1", arguments={"variables": False})
    assert result["ansible_facts"]["spark_cluster"] == {"name": "sparks", "head": "s1", "nodes": ["s1"]}


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
