# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The fleet lock of a serving pair, and drift that somebody makes by hand."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.scenario import INVENTORY, ansible_playbook, api_key, on_node

NODES = ("spark-01", "spark-02")
LOCK = "/etc/sparkfleet/lock.json"


def drift(**asked: str) -> subprocess.CompletedProcess[str]:
    """Run the playbook."""
    return ansible_playbook("playbooks/drift.yml", **asked)


@pytest.fixture(name="tag")
def fixture_tag() -> Iterator[str]:
    """Give the image's name to something else on one node; put it back, so that the other tests meet a proven pair."""
    image = json.loads(on_node("spark-02", f"cat {LOCK}"))["image"]
    build = f"docker buildx build --quiet --tag {image['tag']} -"
    other = on_node("spark-02", f"printf 'FROM {image['tag']}\nLABEL other=content\n' | {build}").strip()
    yield image["tag"]
    on_node("spark-02", f"docker tag {image['id']} {image['tag']} && docker image rm {other}")


def test_what_was_proven_is_written_down_on_each_node_and_beside_the_inventory() -> None:
    merged = Path(f"{INVENTORY}.sparkfleet-lock.json").read_text(encoding="utf-8")
    texts = {node: on_node(node, f"cat {LOCK}") for node in NODES}
    assert {node: json.loads(texts[node]) for node in NODES} == json.loads(merged)["nodes"]
    first, second = (json.loads(texts[node]) for node in NODES)
    assert first["image"]["content"] == second["image"]["content"] and first["image"]["versions"]["vllm"] == "0.32.0"
    (model,) = first["models"]
    assert model["manifest_sha256"] == second["models"][0]["manifest_sha256"] and len(model["manifest_sha256"]) == 64
    assert "--tensor-parallel-size=2" in model["arguments"], "read from the process that runs"
    assert on_node("spark-01", f"stat --format '%U %a' {LOCK}").strip() == "root 644"
    token = on_node("spark-01", "cat /etc/sparkfleet/atlas/ray-token").strip()
    assert not [secret for secret in (api_key(), token) if secret in merged]


def test_a_proven_pair_has_no_drift(tmp_path: Path) -> None:
    file = tmp_path / "drift.json"
    done = drift(drift_json=str(file))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "no drift" in done.stdout and "lock" in done.stdout
    found = json.loads(file.read_text(encoding="utf-8"))
    assert found["drift"] is False and found["clusters"][0]["nodes"] == list(NODES)


def test_an_image_changed_by_hand_is_drift_and_put_back_it_is_none(tag: str) -> None:
    done = drift()
    assert done.returncode == 2, done.stdout + done.stderr
    (line,) = {line.strip() for line in done.stdout.splitlines() if "drift: " in line}
    assert line.startswith(f"drift: spark-02: image {tag} is ") and line.endswith("; run site.yml")


def test_after_that_there_is_no_drift_again() -> None:
    done = drift(drift_verify="full")
    assert done.returncode == 0, done.stdout + done.stderr


def test_what_makes_no_sense_is_told_apart_from_drift() -> None:
    done = drift(drift_verify="ful")
    assert done.returncode == 4
    assert "drift_verify is ful; give cached or full" in done.stderr + done.stdout
