# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Two models on three nodes: each where it belongs, of equal images, and each answers to its own key alone."""

from __future__ import annotations

import urllib.error

import pytest
import yaml

from tests.scenario import PROJECT, api_key, ask, on_node

LEADERS = {"tiny": "spark-01", "alone": "spark-03"}
CONTAINERS = {
    "spark-01": {"spark-ray", "spark-vllm-tiny"},
    "spark-02": {"spark-ray"},
    "spark-03": {"spark-vllm-alone"},
}


@pytest.fixture(name="keys", scope="session")
def fixture_keys() -> dict[str, str]:
    """Return the key of each model."""
    variables = PROJECT / "molecule" / "site_ring" / "vars" / "models.yml"
    own = yaml.safe_load(variables.read_text(encoding="utf-8"))["serve_models"][1]["api_key"]
    return {"tiny": api_key(), "alone": own}


@pytest.mark.parametrize("model", LEADERS)
def test_each_model_answers_to_its_key_alone(model: str, keys: dict[str, str]) -> None:
    assert ask(LEADERS[model], keys[model], model) > 0
    (other,) = set(keys.values()) - {keys[model]}
    for wrong in (other, ""):
        with pytest.raises(urllib.error.HTTPError) as refused:
            ask(LEADERS[model], wrong, model)
        assert refused.value.code == 401


@pytest.mark.parametrize("node", CONTAINERS)
def test_each_runs_where_it_belongs(node: str) -> None:
    assert set(on_node(node, "docker ps --format '{{.Names}}'").split()) == CONTAINERS[node]


def test_images_that_were_built_apart_are_the_same() -> None:
    images = {
        on_node(node, "docker image inspect --format '{{json .RootFS.Layers}}' sparkfleet/vllm:cpu-0.32.0")
        for node in CONTAINERS
    }
    assert len(images) == 1
