# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.sparkfleet.vllm.plugins.module_utils import _fleet_lock
from ansible_collections.sparkfleet.vllm.tests.unit.plugins.module_utils import drift_examples as example

HIDDEN = _fleet_lock.HIDDEN


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        (["--api-key", "s3cret", "--port", "8888"], ["--api-key", HIDDEN, "--port", "8888"]),
        (["--api-key", "s3cret", "another", "--x"], ["--api-key", HIDDEN, HIDDEN, "--x"]),
        (["--hf-token=s3cret"], [f"--hf-token={HIDDEN}"]),
        (["--hf_token", "s3cret"], ["--hf_token", HIDDEN]),
        (["--max-num-batched-tokens", "5"], ["--max-num-batched-tokens", "5"]),
        (["--ssl-keyfile", "/run/key"], ["--ssl-keyfile", "/run/key"]),
        (["--url", "https://me:s3cret@host/x"], ["--url", f"https://{HIDDEN}@host/x"]),
        (["--tokenizer", "x"], ["--tokenizer", "x"]),
    ],
)
def test_a_command_line_shows_no_secret_and_everything_else(given: list[str], shown: list[str]) -> None:
    assert _fleet_lock.without_secrets(given) == shown


def test_an_environment_shows_no_secret_and_everything_else() -> None:
    given = {
        "HF_TOKEN": "s3cret",
        "VLLM_API_KEY": "s3cret",
        "API_KEY_FILE": "/run/secrets/api-key",
        "MY_PASSWORD": "",
        "HTTP_PROXY": "http://me:s3cret@proxy:3128",
        "VLLM_EXTRA_ARGS": "--hf-token s3cret --name 'a b'",
        "OPEN_ARGS": "'s3cret",
        "NCCL_NET": "IB",
    }
    shown = _fleet_lock.environment_without_secrets(given)
    assert "s3cret" not in json.dumps(shown)
    assert shown["API_KEY_FILE"] == "/run/secrets/api-key" and shown["NCCL_NET"] == "IB" and shown["MY_PASSWORD"] == ""
    assert shown["VLLM_EXTRA_ARGS"] == f"--hf-token '{HIDDEN}' --name 'a b'"
    assert list(shown) == sorted(given)


def test_a_lock_says_what_runs_where() -> None:
    lock = example.lock("s1")
    assert (lock["schema"], lock["node"], lock["cluster"], lock["changed"]) == (1, "s1", "atlas", example.NOW)
    assert lock["image"]["reference"] == lock["image"]["id"] == example.IMAGE and lock["image"]["tag"] == example.TAG
    assert lock["image"]["versions"]["nccl"] == "2.30.7", "from a container, as the labels do not say it"
    assert lock["image"]["patches"]["applied"] == ["one"]
    (model,) = lock["models"]
    assert model["manifest_sha256"] == "e" * 64 and model["arguments"][0] == "/models/chat"
    assert (model["executor"], model["nodes"], model["tensor_parallel_size"]) == ("mp", ["s1", "s2"], 2)
    assert model["settings"]["max_num_seqs"] == 8
    assert "tls_certificate" not in model["settings"] and "path" not in model["settings"]
    assert example.lock("s3")["models"] == [] and example.lock("s3")["image"]["versions"] == {"vllm": "0.32.0"}


def test_a_name_that_is_another_image_is_not_noted() -> None:
    found = example.found("s1")
    found["images"][example.TAG] = {"id": example.OTHER, "content": "content-b", "description": {}}
    lock, problems = _fleet_lock.compose("s1", "atlas", example.IMAGE, example.TAG, [], found)
    assert lock["image"]["tag"] == "" and problems == []


def test_what_runs_has_to_be_what_was_asked_for() -> None:
    found = example.found("s1")
    found["containers"]["spark-vllm-chat"].update(image=example.OTHER, content="content-b")
    _lock, (problem,) = _fleet_lock.compose("s1", "atlas", example.TAG, "", [], found)
    assert problem.startswith("spark-vllm-chat runs image bbbbbbbbbbbb, but sparkfleet/vllm:1 is aaaaaaaaaaaa here; ")
    found["containers"]["spark-vllm-chat"]["content"] = ""
    assert _fleet_lock.compose("s1", "atlas", example.TAG, "", [], found)[1] == [], "one that cannot be looked at"


def test_the_time_is_that_of_the_last_change() -> None:
    before = example.lock("s1")
    wanted = {key: value for key, value in before.items() if key != "changed"}
    assert _fleet_lock.dated(before, wanted, "later") == (before, False)
    other = {**wanted, "host": {**wanted["host"], "kernel": "7"}}
    after, changed = _fleet_lock.dated(before, other, "later")
    assert changed and after["changed"] == "later" and after["host"]["kernel"] == "7"
    assert _fleet_lock.parse(_fleet_lock.text_of(before)) == before, "as it is read back"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{", "it is no JSON"),
        ("[]", "it is no fleet lock"),
        ("{}", "it is no fleet lock"),
        ('{"schema": "1"}', "it is no fleet lock"),
        ('{"schema": 2}', "its schema is 2, this collection knows 1"),
    ],
)
def test_what_is_no_lock_is_refused(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        _fleet_lock.parse(text)


@pytest.mark.parametrize("text", ['{"schema": 1}', '{"schema": 1, "nodes": []}', '{"schema": 1, "nodes": {"a": 1}}'])
def test_a_nodes_lock_is_not_that_of_a_fleet(text: str) -> None:
    with pytest.raises(ValueError, match="it has no nodes"):
        _fleet_lock.parse_merged(text)


def test_merging_keeps_other_clusters_and_forgets_nodes_that_left() -> None:
    old: dict[str, Any] = {name: {"node": name, "changed": "2025"} for name in ("s1", "far", "gone")}
    text = _fleet_lock.merge(old, [example.lock("s1"), example.lock("s2")], ["s1", "s2", "far"])
    merged = _fleet_lock.parse(text)
    assert list(merged["nodes"]) == ["far", "s1", "s2"]
    assert merged["nodes"]["s1"]["changed"] == merged["changed"] == example.NOW
    assert _fleet_lock.merge(_fleet_lock.parse_merged(text), [], ["s1", "s2", "far"]) == text, "twice is once"
    assert _fleet_lock.merge(old, [], []) == ""


def test_the_fleets_file_is_beside_the_inventory_and_never_in_it(tmp_path: Path) -> None:
    directory, file = tmp_path / "mine", tmp_path / "hosts.yml"
    directory.mkdir()
    assert _fleet_lock.merged_path([f"{directory}/"]) == f"{directory}.sparkfleet-lock.json"
    assert _fleet_lock.merged_path([str(file)]) == f"{tmp_path}/hosts.sparkfleet-lock.json"
    assert _fleet_lock.merged_path(["a,b", str(directory)]) == f"{directory}.sparkfleet-lock.json"
    assert _fleet_lock.merged_path(["a,"]) == _fleet_lock.merged_path([]) == ""
    assert _fleet_lock.merged_path([str(tmp_path / "gone" / "hosts.yml")]) == "", "where nothing can be written"
