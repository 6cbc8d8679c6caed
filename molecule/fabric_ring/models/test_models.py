# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Two models on three nodes: each where it belongs, and each answers to its own key alone."""

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
LEADERS = {"tiny": "spark-01", "alone": "spark-03"}
CONTAINERS = {
    "spark-01": {"spark-ray", "spark-vllm-tiny"},
    "spark-02": {"spark-ray"},
    "spark-03": {"spark-vllm-alone"},
}


@pytest.fixture(name="keys", scope="session")
def fixture_keys() -> dict[str, str]:
    """Return the key of each model."""
    with open(os.path.join(PROJECT, ".cache", "api-key"), encoding="utf-8") as stream:
        shared = stream.readline().strip()
    with open(os.path.join(PROJECT, "molecule", "fabric_ring", "vars", "models.yml"), encoding="utf-8") as stream:
        own = yaml.safe_load(stream)["serve_models"][1]["api_key"]
    return {"tiny": shared, "alone": own}


def ask(model: str, key: str) -> Any:
    """Ask a model for a completion."""
    with open(os.path.join(PROJECT, "molecule", "inventory", "nodes.yml"), encoding="utf-8") as stream:
        address = yaml.safe_load(stream)["all"]["hosts"][LEADERS[model]]["ansible_host"]
    request = urllib.request.Request(
        f"http://{address}:8888/v1/chat/completions",
        data=json.dumps({"model": model, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 8}).encode(),
        headers={"Content-Type": "application/json", "Authorization": f"Bearer {key}"},
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


@pytest.mark.parametrize("model", LEADERS)
def test_each_model_answers_to_its_key_alone(model: str, keys: dict[str, str]) -> None:
    assert ask(model, keys[model])["usage"]["completion_tokens"] > 0
    (other,) = set(keys.values()) - {keys[model]}
    for wrong in (other, ""):
        with pytest.raises(urllib.error.HTTPError) as refused:
            ask(model, wrong)
        assert refused.value.code == 401


@pytest.mark.parametrize("node", CONTAINERS)
def test_each_runs_where_it_belongs(node: str) -> None:
    argv = ["python", "-m", "simulator", "ssh", "--name", "molecule", node, "sudo docker ps --format '{{.Names}}'"]
    done = subprocess.run(argv, cwd=PROJECT, check=True, capture_output=True, text=True)
    assert set(done.stdout.split()) == CONTAINERS[node]
