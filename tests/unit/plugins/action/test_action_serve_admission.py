# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Models are judged on the controller or on their node, each once, and refused by their leader."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ansible.parsing.dataloader import DataLoader
from ansible.plugins.action import ActionBase
from ansible_collections.sparkfleet.vllm.plugins.action import serve_admission

MODELS = Path(__file__).parents[2] / "data" / "models"
GIB = 1 << 30
Run = Any


def model(name: str, source: Path | str, **changes: Any) -> dict[str, Any]:
    base = {
        "name": name,
        "source": str(source),
        "path": "",
        "nodes": ["s1"],
        "leader": "s1",
        "executor": "",
        "tensor_parallel_size": 1,
        "pipeline_parallel_size": 1,
        "data_parallel_size": 1,
        "kv_cache_memory_bytes": "",
        "gpu_memory_utilization": 0.0,
        "shm_size": "8g",
        "memory_check": "enforce",
        "extra_args": [],
    }
    return base | changes


@pytest.fixture(name="llama")
def fixture_llama(tmp_path: Path) -> Path:
    """Return a directory with the configuration of a model of 8 billion parameters, 15 GiB of weights."""
    data = json.loads((MODELS / "Llama-3.1-8B-Instruct.json").read_text(encoding="utf-8"))
    (tmp_path / "llama").mkdir()
    (tmp_path / "llama" / "config.json").write_text(json.dumps(data["config"]))
    return tmp_path / "llama"


@pytest.fixture(name="run")
def fixture_run(monkeypatch: pytest.MonkeyPatch) -> Run:
    """Give a function that runs the action on a host of a fleet whose nodes have so much memory."""
    warned: list[str] = []
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(ActionBase, "run", lambda self, tmp, task_vars: {})
    monkeypatch.setattr(serve_admission.display, "warning", warned.append)

    def on_node(self: Any, module_name: str, module_args: dict[str, Any], task_vars: Any) -> dict[str, Any]:
        asked.append({"module": module_name, **module_args})
        verdict = {"fits": True, "need_bytes_per_node": 7, "takes_bytes_per_node": 6, "gpu_memory_utilization": 0.5}
        return {"admission": verdict}

    monkeypatch.setattr(ActionBase, "_execute_module", on_node)

    def start(*models: dict[str, Any], host: str = "s1", memory: int = 120 * GIB, **more: Any) -> dict[str, Any]:
        facts = {"__host_preflight": {"facts": {"memory": {"total_bytes": memory}}}}
        known = SimpleNamespace(raw_get=lambda name: facts)
        action = object.__new__(serve_admission.ActionModule)
        action._task = SimpleNamespace(args={"models": list(models), **more}, action="serve_admission")
        action._loader = DataLoader()
        result: dict[str, Any] = action.run(task_vars={"inventory_hostname": host, "hostvars": known})
        return result

    start.warned, start.asked = warned, asked  # type: ignore[attr-defined]
    return start


def test_a_model_that_fits_gets_a_share_that_leaves_the_node_room(run: Run, llama: Path) -> None:
    result = run(model("chat", llama))
    assert result["problems"] == []
    found = result["models"]["chat"]
    assert 0.8 < found["gpu_memory_utilization"] < 0.92
    assert 90 * GIB < found["takes_bytes"] < found["need_bytes"] < 120 * GIB


def test_a_share_that_was_asked_for_is_kept(run: Run, llama: Path) -> None:
    found = run(model("chat", llama, gpu_memory_utilization=0.4))["models"]["chat"]
    assert found["gpu_memory_utilization"] == 0.4


def test_a_model_that_does_not_fit_is_refused_by_its_leader_alone(run: Run, llama: Path) -> None:
    small = model("chat", llama, nodes=["s1", "s2"], executor="ray", tensor_parallel_size=2)
    result = run(small, memory=8 * GIB)
    (problem,) = result["problems"]
    assert problem.startswith("chat does not fit: ") and "\n    " in problem
    assert run(small, memory=8 * GIB, host="s2")["problems"] == []


def test_an_owner_may_be_warned_only_or_not_at_all(run: Run, llama: Path) -> None:
    assert run(model("chat", llama, memory_check="warn"), memory=8 * GIB)["problems"] == []
    assert len(run.warned) == 1 and "chat does not fit" in run.warned[0]
    assert run(model("chat", llama, memory_check="off"), memory=8 * GIB)["models"] == {}
    assert len(run.warned) == 1


def test_models_that_share_a_node_are_added_up(run: Run, llama: Path) -> None:
    half = {"gpu_memory_utilization": 0.4}
    first, second = model("a", llama, **half), model("b", llama, port=8889, **half)
    assert run(first, second)["problems"] == []
    assert "c does not fit" in run(first, second, model("c", llama, **half), memory=100 * GIB)["problems"][0]


def test_a_path_is_read_on_the_node_and_an_archive_when_it_is_there(run: Run, llama: Path, tmp_path: Path) -> None:
    given = run(model("chat", "", path="/srv/llama"))
    assert given["models"]["chat"]["need_bytes"] == 7
    (asked,) = run.asked
    assert (asked["module"], asked["model"]) == ("sparkfleet.vllm.memory_plan", "/srv/llama")
    archive = shutil.make_archive(str(tmp_path / "packed"), "tar", llama)
    assert run(model("chat", archive))["models"] == {}
    later = run(model("chat", archive), directories={"chat": "/var/lib/sparkfleet/models/packed"})
    assert later["models"]["chat"]["need_bytes"] == 7
    assert len(run.asked) == 2


def test_what_is_known_is_not_computed_again(run: Run, llama: Path) -> None:
    known = {"chat": {"need_bytes": 1, "takes_bytes": 1, "gpu_memory_utilization": 0.1}}
    assert run(model("chat", llama), known=known)["models"] == known


def test_a_model_that_is_not_known_is_no_reason_to_refuse(run: Run, llama: Path) -> None:
    (llama / "config.json").write_text('{"architectures": ["SomethingNew"]}')
    assert run(model("chat", llama))["problems"] == []
    assert "cannot be computed" in run.warned[0]


def test_a_size_that_is_none_is_a_line(run: Run, llama: Path) -> None:
    (problem,) = run(model("chat", llama, kv_cache_memory_bytes="lots"))["problems"]
    assert problem == "chat: 'lots' is no size; write it as 64M or 8G"
