# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import typing as t

import pytest
from ansible.errors import AnsibleConnectionFailure, AnsibleError
from ansible_collections.sparkfleet.vllm.plugins.action import host_facts
from ansible_collections.sparkfleet.vllm.tests.unit.plugins.module_utils.test_preflight import FIT

Make = t.Callable[..., t.Any]
INVENTORY = {"sparks": {"hosts": {"s1": {"image_variant": "cpu"}, "s2": {}}}}
NODES = ["s1", "s2"]
CLUSTER = {
    "name": "sparks",
    "head": "s1",
    "nodes": NODES,
    "models": [{"name": "tiny", "nodes": NODES, "leader": "s1", "executor": "ray", "port": 8888}],
    "ray": [NODES],
}
MINIMUM = {"disk_gb": 60, "memory_gb": 16, "docker_version": "24.0"}
UNFIT = {
    **FIT,
    "clock": 0.0,
    "rsync": False,
    "gpu": {**FIT["gpu"], "driver_version": ""},
    "listeners": [{"port": 8888, "pid": 123, "process": "nginx", "container": "", "ours": False}],
}


def read(controller: t.Any, host: str, answer: t.Any, judged: bool = True) -> tuple[dict[str, t.Any], list[t.Any]]:
    """Return the result of the action, and the arguments of the module's calls that `answer` served."""
    calls: list[t.Any] = []

    def execute(name: str, arguments: t.Any, task_vars: t.Any) -> t.Any:
        calls.append(arguments)
        if isinstance(answer, Exception):
            raise answer
        return answer

    arguments = {"paths": ["/var/lib/x"], **({"minimum": MINIMUM} if judged else {})}
    return controller.run(host_facts.ActionModule, host, arguments=arguments, execute=execute), calls


def test_a_host_is_read_in_one_call_and_judged_by_its_own_variables(controller: Make) -> None:
    made = controller(INVENTORY)
    made.facts = {name: {"ansible_facts": {"spark_cluster": CLUSTER}} for name in NODES}
    head, calls = read(made, "s1", {"facts": UNFIT})
    assert calls == [{"paths": ["/var/lib/x"]}]
    assert head["problems"] == [
        "rsync is missing; apt-get install rsync",
        "port 8888 is taken by nginx (pid 123); stop it or set serve_port",
    ]
    assert head["reachable"] is True
    assert head["changed"] is False
    assert head["facts"] == UNFIT
    worker, _calls = read(made, "s2", {"facts": UNFIT})
    assert [line.partition(" ")[0] for line in worker["problems"]] == ["rsync", "no"], "a GPU, and no port of the head"


def test_the_ports_of_a_model_are_those_of_its_leader(controller: Make) -> None:
    made = controller(INVENTORY)
    models = [{**CLUSTER["models"][0], "leader": "s2", "port": 9000}]
    made.facts = {name: {"ansible_facts": {"spark_cluster": {**CLUSTER, "models": models}}} for name in NODES}
    taken = {**UNFIT, "rsync": True, "listeners": [{**UNFIT["listeners"][0], "port": port} for port in (8888, 9000)]}
    assert read(made, "s1", {"facts": taken})[0]["problems"] == []
    worker = read(made, "s2", {"facts": {**taken, "gpu": FIT["gpu"]}})[0]
    assert worker["problems"] == ["port 9000 is taken by nginx (pid 123); stop it or set serve_port"]


def test_without_a_minimum_nothing_is_judged(controller: Make) -> None:
    result, _calls = read(controller(INVENTORY), "s1", {"facts": UNFIT}, judged=False)
    assert result["problems"] == []


def test_the_interval_is_that_of_the_controllers_clock(controller: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter([100.0, 103.0])
    monkeypatch.setattr(host_facts.time, "time", lambda: next(ticks))
    result, _calls = read(controller(INVENTORY), "s1", {"facts": {**UNFIT, "clock": 102.0}})
    assert result["interval"] == [-1.0, 2.0]


def test_an_unreachable_host_is_a_line_and_no_failure(controller: Make) -> None:
    answer = AnsibleConnectionFailure("Failed to connect to the host via ssh: ssh: connect to host x: No route to host")
    result, _calls = read(controller(INVENTORY), "s1", answer)
    assert result == {
        "changed": False,
        "reachable": False,
        "problems": [
            "unreachable over SSH (connect to host x: No route to host); "
            "check ansible_host, the key, and that the machine is on"
        ],
    }


@pytest.mark.parametrize(
    ("answer", "begin"),
    [
        (AnsibleError("Missing sudo password"), "sudo asks nvidia for a password; "),
        ({"failed": True, "msg": "Module failed", "module_stderr": "x is not in the sudoers file"}, "nvidia cannot"),
        ({"failed": True, "msg": "The module interpreter '/x' was not found."}, "Python is missing; "),
        ({"failed": True, "msg": "Traceback:\nboom"}, "cannot be read (Traceback:); run again with -vvv"),
    ],
)
def test_a_host_that_cannot_be_read_is_a_line_too(controller: Make, answer: t.Any, begin: str) -> None:
    result, _calls = read(controller(INVENTORY), "s1", answer)
    [line] = result["problems"]
    assert line.startswith(begin)
    assert result["reachable"] is True
    assert "facts" not in result
    assert "failed" not in result
