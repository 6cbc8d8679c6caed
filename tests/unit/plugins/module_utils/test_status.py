# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A cluster's summary says what is well and what is not."""

from __future__ import annotations

from typing import Any

from ansible_collections.sparkfleet.vllm.plugins.module_utils import _status

NODES = ["spark-01", "spark-02"]
CHAT = {
    "name": "chat",
    "served_model_name": "tiny",
    "leader": "spark-01",
    "nodes": NODES,
    "executor": "ray",
    "port": 8888,
}
CLUSTER = {"name": "atlas", "head": "spark-01", "nodes": NODES, "models": [CHAT], "ray": [NODES]}
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
        "chat": {
            "url": "http://10.77.0.11:8888",
            "completion": {"id": "chatcmpl-1", "text": "hello", "usage": {"prompt_tokens": 3, "completion_tokens": 8}},
        }
    }


def without_ray(**model: Any) -> dict[str, Any]:
    """The cluster with its model run by vLLM's own executor."""
    return {**CLUSTER, "models": [{**CHAT, "executor": "mp", **model}], "ray": []}


def test_a_healthy_cluster_has_no_problems_and_names_ranks_by_node() -> None:
    summary = _status.summarise(CLUSTER, hosts(), ray(), RANKS, served())
    assert summary["problems"] == []
    [model] = summary["models"]
    assert model["ranks"] == [{"rank": 0, "node": "spark-01"}, {"rank": 1, "node": "spark-02"}]
    assert (model["name"], model["leader"], model["nodes"], model["executor"]) == ("tiny", "spark-01", NODES, "ray")
    assert (model["failures"], model["recovered"], summary["events"]) == ([], [], [])
    text = "\n".join(_status.render(summary))
    assert "spark-01 (head)" in text
    assert text.count("ALIVE") == 2
    assert "spark-ray (Up 2 minutes)" in text and "/spark-ray" not in text
    assert text.index("rank 0") < text.index("rank 1")
    assert "model tiny at http://10.77.0.11:8888\n" in text
    assert "8 completion tokens" in text
    assert not any(word in text for word in ("restarted", "back after", "events", "problem"))
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
    summary = _status.summarise(CLUSTER, hosts(), ray(), [], {"chat": {"error": "connection refused"}})
    assert summary["problems"] == ["spark-01: tiny does not answer: connection refused"]
    assert "problem: spark-01: tiny" in _status.render(summary)[-1]


def test_a_model_that_nobody_asked_is_a_problem_too() -> None:
    summary = _status.summarise(CLUSTER, hosts(), ray(), RANKS, {})
    assert summary["problems"] == ["spark-01: tiny does not answer: no reason given"]
    assert "model tiny at -" in _status.render(summary)


def test_each_model_is_judged_by_its_own_answer() -> None:
    names = ["spark-01", "spark-02", "spark-03"]
    embed = {**CHAT, "name": "embed", "served_model_name": "bge", "leader": "spark-03", "nodes": ["spark-03"]}
    cluster = {**CLUSTER, "nodes": names, "models": [CHAT, {**embed, "executor": ""}]}
    read = hosts() | {"spark-03": {"address": "192.168.177.13", "containers": []}}
    answers = served() | {"embed": {"url": "http://10.77.0.13:8888", "error": "timed out"}}
    summary = _status.summarise(cluster, read, ray(), RANKS, answers)
    assert summary["problems"] == ["spark-03: bge does not answer: timed out"]
    assert [model["ranks"] for model in summary["models"]] == [
        [{"rank": 0, "node": "spark-01"}, {"rank": 1, "node": "spark-02"}],
        [{"rank": 0, "node": "spark-03"}],
    ]
    # The third node is in no Ray, and need not be.
    assert [node["ray"] for node in summary["nodes"]] == ["ALIVE", "ALIVE", "-"]
    text = _status.render(summary)
    assert text.index("model tiny at http://10.77.0.11:8888") < text.index("model bge at http://10.77.0.13:8888")


def test_models_with_ray_on_different_nodes_have_their_own_ranks() -> None:
    names = [f"spark-0{number}" for number in (1, 2, 3, 4)]
    embed = {**CHAT, "name": "embed", "leader": "spark-03", "nodes": names[2:]}
    cluster = {**CLUSTER, "nodes": names, "models": [CHAT, embed], "ray": [names[:2], names[2:]]}
    read = {name: {"address": f"192.168.177.1{name[-1]}", "containers": []} for name in names}
    ranks = [{"rank": number % 2, "address": f"192.168.177.1{number + 1}"} for number in (3, 2, 1, 0)]
    summary = _status.summarise(cluster, read, [{"address": r["address"], "gpus": 1} for r in ranks], ranks, {})
    assert [[rank["node"] for rank in model["ranks"]] for model in summary["models"]] == [names[:2], names[2:]]


def test_without_ray_the_ranks_are_in_the_order_of_the_nodes_and_none_is_missed_in_ray() -> None:
    cluster = without_ray(nodes=["spark-02", "spark-01"], leader="spark-02")
    summary = _status.summarise(cluster, hosts(), [], [], served())
    assert summary["problems"] == []
    assert summary["models"][0]["ranks"] == [{"rank": 0, "node": "spark-02"}, {"rank": 1, "node": "spark-01"}]
    assert [node["ray"] for node in summary["nodes"]] == ["-", "-"]
    assert "ALIVE" not in "\n".join(_status.render(summary))


def test_a_cluster_that_serves_nothing_says_so() -> None:
    summary = _status.summarise({**CLUSTER, "models": [], "ray": []}, hosts(), [], [], {})
    assert summary["models"] == []
    assert summary["problems"] == ["atlas: serves no model; site.yml says what is wrong with the inventory"]


# --- what the supervisors say --------------------------------------------------------------------------------------


def test_a_group_that_gave_up_or_waits_is_a_problem_and_one_that_works_is_none() -> None:
    read = hosts()
    read["spark-01"]["groups"] = {
        "spark-vllm-chat": {"state": "waiting", "why": "", "waiting_for": ["spark-02", "spark-03"]},
        "spark-ray": {"state": "running", "why": "all nodes are there", "waiting_for": []},
    }
    read["spark-02"]["groups"] = {
        "spark-ray": {"state": "down", "why": "5 failures in 30 minutes, the last: exit 137"},
        "spark-vllm-old": {"state": "down"},
        "spark-vllm-new": {"state": "backoff", "why": "exit 1"},
        "spark-vllm-next": {"state": "waiting", "waiting_for": []},
    }
    summary = _status.summarise(CLUSTER, read, ray(), RANKS, served())
    assert summary["problems"] == [
        "spark-01: spark-vllm-chat waits for spark-02, spark-03",
        "spark-02: spark-ray stays down: 5 failures in 30 minutes, the last: exit 137",
        "spark-02: spark-vllm-old stays down: no reason given",
    ]
    assert summary["nodes"][0]["groups"] == read["spark-01"]["groups"]


def state(failures: int = 0, recovered: int = 0) -> dict[str, Any]:
    return {
        "state": "running",
        "failures": [{"at": 1000.0 + number, "why": f"exit {number}"} for number in range(failures)],
        "recovered": [{"at": 2000.0, "seconds": 61.4 + number, "why": ""} for number in range(recovered)],
    }


def test_restarts_of_a_model_are_shown_and_are_no_problem() -> None:
    def lines(failures: int, recovered: int) -> list[str]:
        read = hosts()
        read["spark-01"]["groups"] = {"spark-vllm-chat": state(failures, recovered), "spark-ray": state(9, 9)}
        # What a node says of a model that it does not lead does not count.
        read["spark-02"]["groups"] = {"spark-vllm-chat": state(7, 7)}
        summary = _status.summarise(CLUSTER, read, ray(), RANKS, served())
        assert summary["problems"] == []
        assert (len(summary["models"][0]["failures"]), len(summary["models"][0]["recovered"])) == (failures, recovered)
        return [line for line in _status.render(summary) if "restarted" in line or "back" in line]

    assert lines(0, 0) == []
    assert lines(1, 0) == ["  restarted 1 time, the last: exit 0"]
    assert lines(3, 2) == ["  restarted 3 times, the last: exit 2", "  back after 62 s"]


def test_events_of_all_nodes_come_in_the_order_of_their_times_each_once() -> None:
    read = hosts()
    one, two, three = (f"2026-11-23T10:11:12.00000{n}+00:00 spark-0{n} spark-ray: {n}" for n in (1, 2, 3))
    read["spark-01"]["events"] = [two, three]
    read["spark-02"]["events"] = [one, two]
    summary = _status.summarise(CLUSTER, read, ray(), RANKS, served())
    assert summary["events"] == [one, two, three]
    second = [f"  2026-11-23T10:11:12+00:00 spark-0{n} spark-ray: {n}" for n in (1, 2, 3)]
    assert _status.render(summary)[-4:] == ["events:", *second]


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
