# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The same pair without Ray: tensors, layers and copies over both nodes, by changed variables and a run.

Ray with two tensor ranks is what the rest of the scenario used.
"""

from __future__ import annotations

import json
import os
import subprocess
import urllib.error
import urllib.request
from typing import Any

import pytest
import yaml

PROJECT = os.environ["MOLECULE_PROJECT_DIRECTORY"]
INVENTORY = os.path.join(PROJECT, "molecule", "inventory")
ENVIRONMENT = {**os.environ, "ANSIBLE_CONFIG": os.path.join(PROJECT, "ansible.cfg"), "ANSIBLE_FORCE_COLOR": "0"}
EXECUTORS: dict[str, dict[str, Any]] = {
    "tensors": {"serve_tensor_parallel_size": 2},
    # The CPU's model runner has no buffer for what another stage sends while compilation is off altogether.
    "layers": {
        "serve_tensor_parallel_size": 1,
        "serve_pipeline_parallel_size": 2,
        "serve_extra_args": ["-cc.mode=1", "-cc.backend=eager"],
        "serve_extra_env": {"TORCHDYNAMO_DISABLE": "0"},
    },
    "copies": {"serve_tensor_parallel_size": 1, "serve_data_parallel_size": 2},
}


def on_node(node: str, command: str) -> str:
    """Run a command on a node as root; return what it printed."""
    argv = ["python", "-m", "simulator", "ssh", "--name", "molecule", node, f"sudo bash -c {json.dumps(command)}"]
    return subprocess.run(argv, cwd=PROJECT, check=True, capture_output=True, text=True).stdout


def site(variables: dict[str, Any], *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run site.yml with these variables besides the inventory's."""
    argv = ["ansible-playbook", "site.yml", "-i", INVENTORY, "-e", json.dumps(variables), *arguments]
    return subprocess.run(argv, cwd=PROJECT, env=ENVIRONMENT, check=False, capture_output=True, text=True)


def head() -> str:
    """Return the management address of the head."""
    with open(os.path.join(INVENTORY, "nodes.yml"), encoding="utf-8") as stream:
        return str(yaml.safe_load(stream)["all"]["hosts"]["spark-01"]["ansible_host"])


def ask(key: str) -> dict[str, Any]:
    """Ask for a completion."""
    body = {"model": "tiny", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 8}
    request = urllib.request.Request(
        f"http://{head()}:8888/v1/chat/completions",
        data=json.dumps(body).encode(),
        headers={"Content-Type": "application/json", "Authorization": f"Bearer {key}"},
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        found: dict[str, Any] = json.load(answer)
    return found


@pytest.fixture(name="key", scope="session")
def fixture_key() -> str:
    with open(os.path.join(PROJECT, ".cache", "api-key"), encoding="utf-8") as stream:
        return stream.readline().strip()


@pytest.mark.parametrize("sizes", EXECUTORS.values(), ids=EXECUTORS)
def test_a_changed_variable_and_a_run_switch_the_executor(sizes: dict[str, Any], key: str) -> None:
    variables = {"serve_executor": "mp", **sizes}
    done = site(variables)
    assert done.returncode == 0, done.stdout
    assert ask(key)["usage"]["completion_tokens"] > 0
    with pytest.raises(urllib.error.HTTPError) as refused:
        ask("")
    assert refused.value.code == 401
    for node in ("spark-01", "spark-02"):
        assert on_node(node, "docker ps --format '{{.Names}}'").split() == ["spark-vllm-tiny"], "and no Ray"
    ended = on_node("spark-02", "ss -Htn state established")
    assert "192.168.177.11:" in ended, "over the fabric"
    again = site(variables)
    assert again.returncode == 0, again.stdout
    assert again.stdout.count("changed=0") == 3, again.stdout


def test_ray_comes_back_the_same_way(key: str) -> None:
    done = site({})
    assert done.returncode == 0, done.stdout
    assert ask(key)["usage"]["completion_tokens"] > 0
    assert on_node("spark-02", "docker ps --format '{{.Names}}'").split() == ["spark-ray"]
    assert site({}).stdout.count("changed=0") == 3
