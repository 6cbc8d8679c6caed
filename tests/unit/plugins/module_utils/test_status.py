# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A cluster's summary says what is well and what is not."""

from __future__ import annotations

from typing import Any

from ansible_collections.sparkfleet.vllm.plugins.module_utils import _status

CLUSTER = {"name": "atlas", "head": "spark-01", "nodes": ["spark-01", "spark-02"]}
IMAGE = "sha256:" + "ab" * 32
RANKS = [{"rank": 1, "address": "192.168.177.12"}, {"rank": 0, "address": "192.168.177.11"}]


def hosts() -> dict[str, Any]:
    return {
        f"spark-{number:02d}": {
            "address": f"192.168.177.{10 + number}",
            "containers": [{"name": "/spark-ray", "image": IMAGE, "status": "Up 2 minutes"}],
        }
        for number in (1, 2)
    }


def ray() -> list[dict[str, Any]]:
    return [{"address": "192.168.177.11", "gpus": 1.0}, {"address": "192.168.177.12", "gpus": 1.0}]


def served() -> dict[str, Any]:
    return {
        "name": "tiny",
        "url": "http://10.77.0.11:8888",
        "completion": {"id": "chatcmpl-1", "text": "hello", "usage": {"prompt_tokens": 3, "completion_tokens": 8}},
    }


def test_a_healthy_cluster_has_no_problems_and_names_ranks_by_node() -> None:
    summary = _status.summarise(CLUSTER, hosts(), ray(), RANKS, served())
    assert summary["problems"] == []
    assert {(rank["rank"], rank["node"]) for rank in summary["model"]["ranks"]} == {(0, "spark-01"), (1, "spark-02")}
    text = "\n".join(_status.render(summary))
    assert "spark-01 (head)" in text
    assert text.count("ALIVE") == 2
    assert "spark-ray (Up 2 minutes)" in text and "/spark-ray" not in text
    assert text.index("rank 0") < text.index("rank 1")
    assert "8 completion tokens" in text
    assert "abababababab" in text and "ab" * 8 not in text


def test_a_node_that_left_ray_is_a_problem() -> None:
    summary = _status.summarise(CLUSTER, hosts(), ray()[:1], RANKS[1:], served())
    assert summary["problems"] == ["spark-02: not in Ray; see its journal with the logs playbook, or run site.yml"]
    assert summary["nodes"][1]["ray"] == "absent"


def test_an_unreachable_node_is_named_with_its_reason_only_once() -> None:
    read = hosts()
    read["spark-02"] = {"address": "", "error": "unreachable over SSH"}
    summary = _status.summarise(CLUSTER, read, ray()[:1], [], served())
    assert summary["problems"] == ["spark-02: unreachable over SSH"]
    assert "unknown" in "\n".join(_status.render(summary))


def test_two_different_images_are_a_problem() -> None:
    read = hosts()
    read["spark-02"]["containers"][0]["image"] = "sha256:" + "cd" * 32
    summary = _status.summarise(CLUSTER, read, ray(), RANKS, served())
    assert summary["problems"] == ["atlas: 2 different images are running; run site.yml"]


def test_a_model_that_does_not_answer_is_a_problem_with_its_reason() -> None:
    summary = _status.summarise(CLUSTER, hosts(), ray(), [], {"name": "tiny", "error": "connection refused"})
    assert summary["problems"] == ["spark-01: tiny does not answer: connection refused"]
    assert "problem: spark-01: tiny" in _status.render(summary)[-1]


def gate(**changes: Any) -> dict[str, Any]:
    ends = [("spark-01", "enp1s0f0np0", "spark-02", 0.94), ("spark-02", "enp1s0f0np0", "spark-01", 0.97)]
    links = [
        {"host": h, "interface": i, "peer": p, "peer_interface": i, "gbps": g, "tool": "tcp", "mtu_ok": True}
        for h, i, p, g in ends
    ]
    return {"passed": True, "date": "2026-11-23T10:11:12Z", "links": links, "problems": []} | changes


def test_a_passed_gate_is_one_line_that_counts_both_directions_of_a_link_once() -> None:
    read = hosts()
    for host in read.values():
        host |= {"gate": gate(), "collective": {"passed": True, "busbw": 0.05}}
    summary = _status.summarise(CLUSTER, read, ray(), RANKS, served())
    line = "gate passed 2026-11-23: 1 link, 0.94 Gb/s lowest (tcp), all_gather 0.05 GB/s"
    assert line in _status.render(summary)
    assert summary["gate"]["state"] == "passed" and summary["problems"] == []


def test_a_gate_that_was_never_run_says_so_and_is_no_problem() -> None:
    summary = _status.summarise(CLUSTER, hosts(), ray(), RANKS, served())
    assert "gate: not run" in _status.render(summary)
    assert summary["problems"] == []


def test_a_failed_gate_is_shown_even_if_only_one_node_kept_it() -> None:
    read = hosts()
    read["spark-01"]["gate"] = gate()
    read["spark-02"]["gate"] = gate(passed=False, problems=["spark-02: too slow; mend it", "spark-01: the same"])
    summary = _status.summarise(CLUSTER, read, ray(), RANKS, served())
    assert summary["gate"]["text"] == "gate failed 2026-11-23: spark-02: too slow; mend it (and 1 more)"


def test_a_failed_collective_fails_the_gate() -> None:
    summary = _status.summarise_gate({"a": gate()}, {"a": {"passed": False, "problems": ["a: 3 GB/s; see"]}})
    assert summary["text"] == "gate failed 2026-11-23: a: 3 GB/s; see"


def test_a_gate_of_pings_claims_no_bandwidth() -> None:
    links = [link | {"gbps": None, "tool": ""} for link in gate()["links"]]
    assert _status.summarise_gate({"a": gate(links=links), "b": None}, {})["text"].endswith(": 1 link, ping only")


def test_a_gate_from_before_a_change_says_so() -> None:
    assert "changed since" in _status.summarise_gate({"a": gate(), "b": gate()}, {}, due=True)["text"]


def test_no_record_however_broken_stops_status() -> None:
    for record in ("x", [], {"links": 3}, {"links": [1, {}], "problems": "no"}, {"passed": True, "date": 7}):
        assert _status.summarise_gate({"a": record}, {"a": record})["text"].startswith("gate")


def test_rates_read_well() -> None:
    assert [_status.rate(value) for value in (0.944, 9.99, 92.57, 200.0, 97.04)] == [
        "0.94",
        "9.99",
        "92.6",
        "200",
        "97.0",
    ]
