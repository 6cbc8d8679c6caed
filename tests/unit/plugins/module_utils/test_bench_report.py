# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is made of what vLLM's client measured, and of an earlier run."""

from __future__ import annotations

import json
from typing import Any

import pytest
from ansible_collections.sparkfleet.vllm.plugins.module_utils import _bench_report
from ansible_collections.sparkfleet.vllm.tests.unit.bench_records import plan, record, recorded
from hypothesis import given
from hypothesis import strategies as st

DONE = {"status": 0, "said": ""}
YESTERDAY = "2026-11-23T09:00:00Z"


def judge(name: str, ended: dict[str, Any] | None = None, **given: Any) -> tuple[dict[str, Any], list[str]]:
    return _bench_report.judge(plan(**given), recorded(name), ended or {"status": 1, "said": ""})


# --- the record ------------------------------------------------------------------------------------------------------


def test_the_record_has_vllms_figures_and_not_the_warm_up() -> None:
    found, problems = judge("sweep", DONE)
    assert problems == []
    assert found["schema"] == "sparkfleet.vllm/bench/1" and found["vllm"] == "0.32.0" and found["when"]
    assert [step["concurrency"] for step in found["steps"]] == [1, 4, 16]
    said = recorded("sweep")["steps"][2]["result"]
    step = found["steps"][1]
    assert step["prompts"] == step["completed"] == 20 and step["failed"] == 0 and step["errors"] == {}
    assert step["requests_per_s"] == said["request_throughput"] > 0
    assert step["output_tokens_per_s"] == said["output_throughput"] > 0
    for key, name in (("ttft", "ttft"), ("tpot", "tpot"), ("itl", "itl"), ("e2e", "e2el")):
        assert step[f"{key}_ms"] == {"median": said[f"median_{name}_ms"], "p99": said[f"p99_{name}_ms"]}
        assert step[f"{key}_ms"]["p99"] > step[f"{key}_ms"]["median"] > 0


def test_failed_requests_are_kept_and_said() -> None:
    found, problems = judge("some_failed", DONE, concurrency=2)
    (step,) = found["steps"]
    assert (step["completed"], step["failed"]) == (5, 1)
    assert problems == [
        "atlas: tiny: concurrency 2: 1 of 6 requests failed: Bad Request; prompt and answer may be longer than the "
        "model's 512 tokens"
    ]


def test_a_warm_up_without_an_answer_is_the_end() -> None:
    found, problems = judge("refused", concurrency=[1])
    assert found["steps"] == []
    assert problems == [
        "atlas: tiny: warm-up: 2 of 2 requests failed: aiohttp.client_exceptions.ClientConnectorError: Cannot connect "
        "to host 127.0.0.1:9999 ssl:default [Connect call failed ('127.0.0.1', 9999)]; see the logs playbook",
        "atlas: tiny: concurrency 1 not measured; no request before it was answered",
    ]


def test_what_was_not_measured_is_no_zero() -> None:
    every = recorded("all_failed")
    every["steps"].append({**every["steps"][0], "name": "1"})
    (step,) = _bench_report.judge(plan(), every, DONE)[0]["steps"]
    assert step["ttft_ms"] == {"median": None, "p99": None}


def test_an_argument_that_vllm_does_not_know_is_said_in_vllms_words() -> None:
    _found, problems = judge("wrong_argument", {"status": 1, "said": "vllm: error: unrecognized arguments: --no"})
    assert problems == [
        "atlas: tiny: warm-up: vllm bench serve ended with status 2: vllm: error: unrecognized arguments: --no"
    ]


def test_conversations_that_are_all_too_short_are_said() -> None:
    made = plan()
    made["record"]["workload"]["dataset"] = "sharegpt"
    report = {"vllm": "0.32.0", "steps": [{"name": "1", "error": "IndexError: Cannot choose from an empty sequence"}]}
    _found, problems = _bench_report.judge(made, report, DONE)
    assert problems == [
        "atlas: tiny: concurrency 1: vLLM takes none of the conversations: it wants prompts and answers of 4 to 1024 "
        "tokens"
    ]


@pytest.mark.parametrize(
    ("ended", "why"),
    [
        ({"status": 124}, "time was up after 60 min; ask for less, or raise bench_timeout_min"),
        ({"status": 137}, "the client was killed (status 137), mostly for want of memory"),
        ({"status": 1, "said": "OSError: no"}, "OSError: no"),
        ({"status": 3, "said": ""}, "the client ended with status 3"),
        ({"error": "Measure: no such image"}, "Measure: no such image"),
    ],
)
def test_steps_that_are_missing_are_said_and_the_others_kept(ended: dict[str, Any], why: str) -> None:
    report = recorded("sweep")
    del report["steps"][2:]
    found, problems = _bench_report.judge(plan(), report, ended)
    assert [step["concurrency"] for step in found["steps"]] == [1]
    assert problems == [f"atlas: tiny: concurrency 4, concurrency 16 not measured; {why}"]
    nothing, problems = _bench_report.judge(plan(), None, ended)
    assert nothing["steps"] == []
    assert problems == [f"atlas: tiny: warm-up, concurrency 1, concurrency 4, concurrency 16 not measured; {why}"]


# --- the files -------------------------------------------------------------------------------------------------------


def test_files_are_named_by_cluster_model_and_time() -> None:
    assert _bench_report.stem(record()) == "atlas-tiny-20261124T101500Z"


@pytest.mark.parametrize(
    ("name", "is_one"),
    [
        ("atlas-tiny-20261123T090000Z.json", True),
        ("atlas-tiny-20261124T101500Z.json", False),  # itself
        ("atlas-tiny-20261125T000000Z.json", False),  # of a clock that was ahead
        ("atlas-tiny-2-20261123T090000Z.json", False),
        ("atlas-tiny-20261123T090000Z.md", False),
        ("borealis-tiny-20261123T090000Z.json", False),
        ("notes.json", False),
    ],
)
def test_only_earlier_records_of_the_model_are_looked_at(name: str, is_one: bool) -> None:
    assert _bench_report.is_candidate(name, record()) is is_one


# --- the comparison --------------------------------------------------------------------------------------------------


def last(*texts: Any) -> tuple[str, dict[str, Any] | None, list[str]]:
    earlier = [(f"{index}.json", text) for index, text in enumerate(texts)]
    return _bench_report.last(record(), earlier)


def test_the_last_run_that_asked_for_the_same_is_taken() -> None:
    other = record(YESTERDAY, input_tokens=32)
    same, older = record(YESTERDAY, 2.0), record("2026-11-22T00:00:00Z", 3.0)
    name, before, notes = last(json.dumps(other), json.dumps(same), json.dumps(older))
    assert (name, before, notes) == ("1.json", same, [])


def test_what_cannot_be_compared_is_named_and_passed_over() -> None:
    foreign = json.dumps({**record(YESTERDAY), "schema": "sparkfleet.vllm/bench/9"})
    cut = json.dumps(record(YESTERDAY))[:-20]
    hollow = json.dumps({"schema": _bench_report.SCHEMA, "steps": [{}]})
    good = record(YESTERDAY)
    name, before, notes = last(PermissionError(13, "Permission denied"), foreign, cut, hollow, "[]", json.dumps(good))
    assert (name, before) == ("5.json", good)
    assert notes == [
        "0.json is passed over: it cannot be read (Permission denied)",
        "1.json is passed over: it is no record of sparkfleet.vllm/bench/1",
        "2.json is passed over: it is no JSON",
        "3.json is passed over: it says sparkfleet.vllm/bench/1, but lacks what belongs to that",
        "4.json is passed over: it is no record of sparkfleet.vllm/bench/1",
    ]


def test_runs_that_asked_for_something_else_are_counted() -> None:
    texts = [json.dumps(record(YESTERDAY, **given)) for given in ({"input_tokens": 32}, {"extra_args": "--top-k 1"})]
    assert last(*texts) == ("", None, ["2 earlier runs asked for something else, so not compared"])


@given(st.recursive(st.none() | st.integers() | st.text(), lambda x: st.lists(x) | st.dictionaries(st.text(), x)))
def test_no_file_is_fatal(content: Any) -> None:
    strange = {"schema": _bench_report.SCHEMA, "steps": content}
    _name, before, notes = last(json.dumps(content), json.dumps(strange))
    assert before is None and len(notes) == 2


@pytest.mark.parametrize("key", ["when", "vllm", "executor", "nodes", "workload", "image", "sizes", "server", "steps"])
def test_a_record_that_lacks_something_is_passed_over(key: str) -> None:
    broken = record(YESTERDAY)
    broken[key] = 3
    assert "lacks what belongs to that" in last(json.dumps(broken))[2][0]


def test_changes_are_in_percent() -> None:
    changed = _bench_report.changes(record(faster=1.1), record(YESTERDAY))
    assert set(changed) == {1, 4, 16}
    assert changed[4]["output_tokens_per_s", ""] == pytest.approx(10)
    assert changed[4]["ttft_ms", "p99"] == pytest.approx(100 / 1.1 - 100)
    assert _bench_report.change(3, None) is _bench_report.change(None, 3) is _bench_report.change(3, 0) is None


def test_a_step_with_failures_is_not_compared() -> None:
    before = record(YESTERDAY)
    before["steps"][0].update(failed=1)
    now = record()
    now["steps"][1].update(failed=1)
    assert set(_bench_report.changes(now, before)) == {16}


def test_slower_is_less_throughput_or_more_latency() -> None:
    changed = _bench_report.changes(record(faster=0.9), record(YESTERDAY))
    worse = _bench_report.slower({4: changed[4]}, 5)
    assert worse == [
        "requests/s -10.0 % at concurrency 4",
        "output tokens/s -10.0 % at concurrency 4",
        "TTFT ms +11.1 % at concurrency 4",
        "TPOT ms +11.1 % at concurrency 4",
        "E2E ms +11.1 % at concurrency 4",
    ]
    assert _bench_report.slower(changed, 12) == []
    assert len(_bench_report.slower(changed, 10.5)) == 9
    assert _bench_report.slower(_bench_report.changes(record(faster=3), record(YESTERDAY)), 0) == []


def test_what_else_changed_is_said() -> None:
    before = record(YESTERDAY)
    before.update(vllm="0.31.0", executor="ray", sizes={"tensor": 2, "pipeline": 1, "data": 1}, seed=4)
    before["image"] = {"id": "sha256:" + "ab" * 32}
    before["server"] = {"max_num_seqs": "16", "quantization": "fp8"}
    found = _bench_report.differences({**record(), "server": {"max_num_seqs": "8"}}, before)
    assert found == [
        "vLLM 0.31.0 → 0.32.0",
        f"image abababababab → {record()['image']['id'][7:19]}",
        "executor ray → none",
        "seed 4 → 0",
        "tensor parallel size 2 → 1",
        "max_num_seqs 16 → 8",
        "quantization fp8 → -",
    ]
    assert _bench_report.differences(record(), record(YESTERDAY)) == []


# --- for a person ----------------------------------------------------------------------------------------------------


def test_the_table_of_a_first_run_has_no_changes() -> None:
    lines = _bench_report.text(record(), "", None, [])
    assert lines[0].startswith("atlas: tiny: random prompts of 64 tokens, answers of 8; vLLM 0.32.0, image ")
    header, *rows = lines[3:7]
    assert header.startswith("concurrency  requests  failed  requests/s  output tokens/s  TTFT ms  TPOT ms  ITL ms")
    assert [row.split()[:4] for row in rows] == [
        ["1", "10", "0", "13.5"],
        ["4", "20", "0", "26.5"],
        ["16", "80", "0", "41.8"],
    ]
    assert len({len(row) for row in lines[3:7]}) == 1
    assert lines[-1] == "No earlier run to compare with."


def test_the_table_of_a_second_run_has_them() -> None:
    before = record(YESTERDAY)
    del before["steps"][0]
    lines = _bench_report.text(record(faster=1.1), "f.json", before, ["x.json is passed over: it is no JSON"])
    assert lines[3].split().count("change") == 6 and lines[9].split().count("change") == 4
    assert lines[4].split().count("-") == 6, "the first step has nothing to be compared with"
    assert lines[5].count("+10.0 %") == 2 and lines[5].count("-9.1 %") == 4
    assert lines[-2] == "Compared with the last run, 2026-11-23 09:00 UTC (f.json)."
    assert lines[-1] == "x.json is passed over: it is no JSON"


def test_the_page_is_tables_and_the_picture() -> None:
    page = _bench_report.markdown(record(), "f.json", record(YESTERDAY), [], "p.svg")
    assert page.startswith("# atlas: tiny, 2026-11-24 10:15 UTC\n")
    tables = [line for line in page.splitlines() if line.startswith("|")]
    assert len(tables) == 10 and len({line.count("|") for line in tables[:5]}) == 1
    assert page.endswith("![Throughput and latency over concurrency](p.svg)\n")


def test_names_do_not_become_markdown() -> None:
    made = {**record(), "model": "a_b*c"}
    assert "# atlas: a\\_b\\*c, " in _bench_report.markdown(made, "", None, [], "p.svg")


def test_sizes_and_conversations_are_in_the_heading() -> None:
    made = record()
    made["sizes"]["tensor"] = 2
    made["executor"] = "mp"
    made["workload"].update(dataset="sharegpt", dataset_sha256="cd" * 32, output_tokens=0)
    said = _bench_report.heading(made)
    assert said.startswith("conversations (sharegpt cdcdcdcdcdcd); vLLM 0.32.0, image ")
    assert said.endswith(", TP=2, executor mp, on spark-01")
