# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the bench playbook is asked for, and which runs of vLLM's client follow."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.sparkfleet.vllm.plugins.module_utils import _bench
from ansible_collections.sparkfleet.vllm.tests.unit.bench_records import (
    MODEL,
    WHERE,
    container,
    models,
    plan,
    request,
)
from hypothesis import given, settings
from hypothesis import strategies as st


def judge(**given: Any) -> list[str]:
    problems: list[str] = _bench.judge_request(
        {f"bench_{name}": value for name, value in given.items()}, ["tiny", "chat"], "/work"
    )["problems"]
    return problems


def arguments(step: dict[str, Any]) -> dict[str, str]:
    """Return the options of a step by name; those without a value are empty."""
    found: dict[str, str] = {}
    for part in step["arguments"]:
        if part.startswith("--"):
            found[part] = ""
        else:
            found[list(found)[-1]] = part
    return found


# --- the variables ---------------------------------------------------------------------------------------------------


def test_nothing_given_is_a_sweep_over_all_models() -> None:
    found = request()
    assert found == {**_bench.DEFAULTS, "dir": "/work/bench", "problems": []}


@pytest.mark.parametrize("given", ["1,4,16", "[4, 16,1]", [16, 4, 1, 4], ["1", "4", 16]])
def test_concurrency_may_come_from_the_command_line(given: Any) -> None:
    assert request(concurrency=given)["concurrency"] == [1, 4, 16]


def test_everything_may_be_text_as_from_the_command_line() -> None:
    found = request(
        models="tiny", concurrency="8", prompts="40", warmup="0", seed="3", ignore_eos="true", max_regression="5 %"
    )
    assert found["concurrency"] == [8] and found["prompts"] == 40 and found["warmup"] == 0
    assert found["seed"] == 3 and found["ignore_eos"] is True and found["max_regression"] == 5.0


@pytest.mark.parametrize("given", ["off", "", None, "none"])
def test_a_limit_may_be_off(given: Any) -> None:
    assert request(max_regression=given)["max_regression"] is None


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"models": "tinny"}, "bench_models: tinny is not served; there is chat, tiny"),
        (
            {"concurrency": 0},
            "bench_concurrency is 0; give a whole number from 1 to 4096, or several as 1,4,16",
        ),
        (
            {"concurrency": "1,many"},
            "bench_concurrency is 1,many; give a whole number from 1 to 4096, or several as 1,4,16",
        ),
        ({"concurrency": True}, "bench_concurrency is true; give a whole number from 1 to 4096, or several as 1,4,16"),
        ({"concurrency": []}, "bench_concurrency is []; give at least one number, as 1,4,16"),
        ({"concurency": 4}, "bench_concurency is no variable of bench; did you mean bench_concurrency?"),
        ({"dataset": "alpaca"}, "bench_dataset is alpaca; choose random or sharegpt"),
        ({"dataset": ""}, "bench_dataset is empty; choose random or sharegpt"),
        (
            {"dataset": "sharegpt"},
            "bench_dataset is sharegpt, which needs a file; add -e bench_dataset_file=FILE",
        ),
        (
            {"dataset_file": "x.json"},
            "bench_dataset_file is given, but bench_dataset is random; add -e bench_dataset=sharegpt",
        ),
        (
            {"dataset": "sharegpt", "dataset_file": "x.json", "input_tokens": 9},
            "bench_input_tokens has no meaning with bench_dataset=sharegpt, whose prompts are as they are",
        ),
        (
            {"ignore_eos": False},
            "bench_ignore_eos is false, which vLLM does not heed with bench_dataset=random; leave it out",
        ),
        ({"ignore_eos": "perhaps"}, "bench_ignore_eos is perhaps; give true or false"),
        (
            {"prompts": 8},
            "bench_prompts is 8, so that a concurrency of 16 would never be reached; give at least 16, or leave it out "
            "for 5 times the concurrency",
        ),
        ({"input_tokens": "-1"}, "bench_input_tokens is -1; give a whole number of at least 1"),
        ({"output_tokens": 1.5}, "bench_output_tokens is 1.5; give a whole number of at least 1"),
        ({"max_regression": "-5"}, "bench_max_regression is -5; give percent, as 5, or off"),
        ({"max_regression": "nan"}, "bench_max_regression is nan; give percent, as 5, or off"),
        ({"seed": "x"}, "bench_seed is x; give a whole number from 0 to 4294967295"),
        ({"timeout_min": 0}, "bench_timeout_min is 0; give a whole number of at least 1"),
        ({"dir": ""}, "bench_dir is empty; give a directory, or leave it out"),
        (
            {"extra_args": ["--request-rate=2", "--num_prompts=3"]},
            'bench_extra_args is ["--request-rate=2", "--num_prompts=3"]; --num-prompts is set by the playbook; leave '
            "it out",
        ),
        (
            {"extra_args": "--header Authorization=x"},
            "bench_extra_args is --header Authorization=x; headers stand in a command line that others can read; leave "
            "it out",
        ),
    ],
)
def test_a_mistake_is_a_line(given: dict[str, Any], problem: str) -> None:
    assert judge(**given) == [problem]


def test_all_mistakes_are_said_at_once() -> None:
    assert len(judge(models="tinny", concurrency="x", dataset="alpaca", sed=3)) == 4


@given(
    value=st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.lists(st.text() | st.integers()),
    name=st.sampled_from(sorted(_bench.DEFAULTS)),
)
@settings(max_examples=300, deadline=None)
def test_whatever_is_given_is_taken_or_refused(value: Any, name: str) -> None:
    found = _bench.judge_request({f"bench_{name}": value}, ["tiny"], "/work")
    assert all(len(line.splitlines()) == 1 for line in found["problems"])
    assert found["concurrency"] and min(found["concurrency"]) >= 1


def test_paths_are_seen_from_where_the_playbook_was_started(tmp_path: Path) -> None:
    found = request(dir="results", dataset="sharegpt", dataset_file="../c.json")
    assert found["dir"] == "/work/results" and found["dataset_file"] == "/c.json"


def test_results_must_not_become_part_of_the_inventory(tmp_path: Path) -> None:
    inventory = tmp_path / "mine"
    inventory.mkdir()
    (tmp_path / "hosts.yml").touch()
    sources = [str(inventory), str(tmp_path / "hosts.yml")]
    inside = _bench.judge_request({"bench_dir": "mine/bench"}, [], str(tmp_path), sources)["problems"]
    assert inside == [
        f"bench_dir is {inventory}/bench, inside the inventory {inventory}, of which Ansible reads every file; choose "
        "another directory"
    ]
    assert _bench.judge_request({}, [], str(tmp_path), sources)["problems"] == []
    assert _bench.judge_request({"bench_dir": "mine2"}, [], str(tmp_path), sources)["problems"] == []


# --- the conversations -----------------------------------------------------------------------------------------------


def turn(value: Any) -> dict[str, Any]:
    return {"from": "human", "value": value}


def test_conversations_of_two_turns_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    path.write_text(
        json.dumps([{"conversations": [turn("a"), turn("b"), turn(3)]}, {"conversations": [turn("a")]}, {"id": "x"}])
    )
    assert _bench.judge_dataset(str(path)) == {
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "conversations": 1,
        "problem": "",
    }


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("nope", "which is no JSON"),
        ("[" * 100_000, "which is no JSON"),
        ('{"a": 1}', "which is JSON but no list"),
        ('[{"conversations": [{"value": "a"}, {"value": 3}]}]', "whose entry 0 is no conversation"),
        ('[{"conversations": [{"value": "a"}, {"from": "gpt"}]}]', "whose entry 0 is no conversation"),
        ('[{"conversations": []}, {"conversations": null}]', "whose entry 1 is no conversation"),
        ('[{"conversations": []}, "text"]', "whose entry 1 is no conversation"),
        ("[]", "which has no conversation of two turns"),
        ('[{"conversations": [{"value": "a"}]}]', "which has no conversation of two turns"),
    ],
)
def test_a_file_that_vllm_would_stumble_over_is_refused(tmp_path: Path, content: str, problem: str) -> None:
    path = tmp_path / "c.json"
    path.write_text(content)
    said = _bench.judge_dataset(str(path))["problem"]
    assert said.startswith(f"bench_dataset_file is {path}, {problem}")
    assert '[{"value": …}, {"value": …}]' in said or '{"conversations"' in said


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    said = _bench.judge_dataset(f"{tmp_path}/none.json")["problem"]
    assert said == (
        f"bench_dataset_file is {tmp_path}/none.json, which cannot be read (No such file or directory); name a file on "
        "this machine"
    )


# --- the plan --------------------------------------------------------------------------------------------------------


def test_the_image_that_serves_asks_for_what_it_serves() -> None:
    found = plan(concurrency=[1, 4])
    assert found["image"] == container()["container"]["Image"] and found["image"].startswith("sha256:")
    path = "/var/lib/sparkfleet/models/tiny-model"
    assert found["volumes"] == [f"{path}:{path}:ro"]
    assert [step["name"] for step in found["steps"]] == ["warm-up", "1", "4"]
    told = arguments(found["steps"][2])
    assert told["--base-url"] == "http://192.0.2.11:8888" and told["--model"] == "tiny" and told["--tokenizer"] == path
    assert told["--num-prompts"] == "20" and told["--max-concurrency"] == "4"
    assert told["--random-input-len"] == "64" and told["--random-output-len"] == "8"
    assert arguments(found["steps"][1])["--num-prompts"] == "10"


def test_no_step_finds_what_another_left_in_the_prefix_cache() -> None:
    salts = [arguments(step)["--extra-body"] for step in plan()["steps"]]
    assert len(set(salts)) == 4
    assert json.loads(salts[1]) == {"cache_salt": "bench-2026-11-24T10:15:00Z-1"}


def test_the_warm_up_is_as_wide_as_the_sweep() -> None:
    warm = arguments(plan(concurrency=[1, 8])["steps"][0])
    assert warm["--num-prompts"] == "8" and warm["--max-concurrency"] == "8"
    few = arguments(plan(concurrency=[1, 8], warmup=2)["steps"][0])
    assert few["--num-prompts"] == "2" and few["--max-concurrency"] == "2"
    assert [step["name"] for step in plan(concurrency=[1, 8], warmup=0)["steps"]] == ["1", "8"]


@pytest.mark.parametrize(("longest", "tokens"), [(32768, (1024, 128)), (512, (256, 128)), (128, (64, 32)), (2, (1, 1))])
def test_sizes_that_are_not_given_fit_the_model(longest: int, tokens: tuple[int, int]) -> None:
    work = _bench.plan(request(), MODEL, WHERE, container(), models(longest))["record"]["workload"]
    assert (work["input_tokens"], work["output_tokens"]) == tokens


def test_the_record_says_what_ran() -> None:
    known = plan(seed=7)["record"]
    assert known["executor"] == "none" and known["sizes"] == {"tensor": 1, "pipeline": 1, "data": 1}
    assert known["server"] == {
        "max_model_len": "512",
        "max_num_seqs": "8",
        "gpu_memory_utilization": "0.7",
        "kv_cache_memory_bytes": "64M",
        "dtype": "bfloat16",
        "extra_args": "--enforce-eager",
    }
    assert known["seed"] == 7 and known["warmup"] == 16 and known["max_model_len"] == 512
    assert known["served_model_name"] == "tiny"


def test_conversations_are_taken_from_the_container() -> None:
    wanted = request(dataset="sharegpt", dataset_file="/c.json", output_tokens=5)
    found = _bench.plan(wanted, MODEL, WHERE, container(), models(), {"sha256": "ab"})
    told = arguments(found["steps"][1])
    assert told["--dataset-name"] == "sharegpt" and told["--dataset-path"] == "/bench/dataset.json"
    assert told["--sharegpt-output-len"] == "5" and "--ignore-eos" in told and "--random-input-len" not in told
    assert found["record"]["workload"]["dataset_sha256"] == "ab"
    free = request(dataset="sharegpt", dataset_file="/c.json", ignore_eos="no")
    told = arguments(_bench.plan(free, MODEL, WHERE, container(), models())["steps"][1])
    assert "--ignore-eos" not in told and "--sharegpt-output-len" not in told


def test_more_arguments_are_the_last_ones() -> None:
    assert plan(extra_args="--request-rate 2")["steps"][1]["arguments"][-2:] == ["--request-rate", "2"]


def test_a_model_inside_the_image_needs_no_volume() -> None:
    served = container()
    served["container"]["Mounts"] = [{"Source": "/srv/model", "Destination": "/var/lib/sparkfleet/models/tiny"}]
    assert _bench.plan(request(), MODEL, WHERE, served, models())["volumes"] == []


def test_a_model_that_is_mounted_elsewhere_is_mounted_alike() -> None:
    served = container()
    served["container"]["Mounts"] = [
        {"Source": "/data/all", "Destination": "/var/lib"},
        {"Source": "/data/models", "Destination": "/var/lib/sparkfleet/models"},
    ]
    path = "/var/lib/sparkfleet/models/tiny-model"
    assert _bench.plan(request(), MODEL, WHERE, served, models())["volumes"] == [f"/data/models/tiny-model:{path}:ro"]


STOPPED = {"exists": True, "container": {**container()["container"], "State": {"Running": False}}}
NOT_RUNNING = "spark-01: tiny is not running; start it with the start playbook, or run site.yml"
SILENT = "spark-01: tiny does not answer at http://192.0.2.11:8888 "


@pytest.mark.parametrize(
    ("where", "served", "answer", "problem"),
    [
        (
            {"external": True},
            container(),
            models(),
            "atlas: serve_url is given; bench measures only what site.yml serves",
        ),
        (
            {},
            {"failed": True, "msg": "Error connecting:\n no such file"},
            models(),
            "spark-01: Docker does not answer (Error connecting: no such file)",
        ),
        ({}, {"exists": False, "container": None}, models(), NOT_RUNNING),
        ({}, STOPPED, models(), NOT_RUNNING),
        ({}, container(), {"status": -1, "msg": "Connection {refused}"}, f"{SILENT}(Connection (refused)); see"),
        (
            {},
            container(),
            {"status": 401, "json": {}, "msg": "HTTP Error 401: Unauthorized"},
            f"{SILENT}(HTTP Error 401",
        ),
        (
            {},
            container(),
            {"status": 200, "json": {"data": [{"id": "large"}]}},
            "spark-01: tiny is not among the models at http://192.0.2.11:8888 (large); run site.yml",
        ),
        (
            {},
            container(),
            models(500),
            "spark-01: tiny takes 500 tokens, and 400 of input with 101 of output are 501; lower bench_input_tokens or "
            "bench_output_tokens",
        ),
    ],
)
def test_a_model_that_cannot_be_measured_is_a_line(
    where: dict[str, Any], served: dict[str, Any], answer: dict[str, Any], problem: str
) -> None:
    wanted = request(input_tokens=400, output_tokens=101)
    found = _bench.plan(wanted, MODEL, {**WHERE, **where}, served, answer)
    assert found["problem"].startswith(problem) and "\n" not in found["problem"]
    assert found["name"] == "tiny" and "steps" not in found
    assert _bench.plan(wanted, MODEL, WHERE, container(), models(501))["problem"] == ""
