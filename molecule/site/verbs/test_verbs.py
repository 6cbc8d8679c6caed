# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The playbooks beside site: each does what it says."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.scenario import PROJECT, ansible_playbook, on_node, site


def playbook(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a playbook beside site.yml."""
    return ansible_playbook(f"playbooks/{name}.yml", *arguments)


def test_status_is_readable_and_says_that_all_is_well() -> None:
    done = playbook("status")
    assert done.returncode == 0, done.stdout
    assert done.stdout.count("ALIVE") == 2
    assert "rank 0 on spark-01" in done.stdout or "rank 1 on spark-01" in done.stdout
    assert "completion tokens" in done.stdout


def test_status_as_json(tmp_path: Path) -> None:
    target = tmp_path / "status.json"
    done = playbook("status", "-e", "output=json", "-e", f"output_file={target}")
    assert done.returncode == 0, done.stdout
    (cluster,) = json.loads(target.read_text(encoding="utf-8"))
    assert cluster["problems"] == []
    (model,) = cluster["models"]
    assert {rank["node"] for rank in model["ranks"]} == {"spark-01", "spark-02"}
    assert model["completion"]["usage"]["completion_tokens"] > 0
    assert [line for line in cluster["events"] if "spark-vllm-tiny: " in line and "the model answers" in line]
    assert len({image for node in cluster["nodes"] for image in node["images"]}) == 1


def test_exec_runs_a_command_in_the_running_container() -> None:
    done = playbook("exec", "-e", json.dumps({"exec_command": "vllm --version"}))
    assert done.returncode == 0, done.stdout
    assert "0.32.0" in done.stdout


def test_exec_without_a_command_says_how() -> None:
    done = playbook("exec")
    assert done.returncode != 0
    assert "exec: nothing to run; give -e" in done.stdout


def test_exec_passes_a_failure_on() -> None:
    assert playbook("exec", "-e", json.dumps({"exec_command": "false"})).returncode != 0


def test_logs_shows_the_journal_of_each_unit() -> None:
    done = playbook("logs", "-e", "logs_lines=500")
    assert done.returncode == 0, done.stdout
    assert "Application startup complete" in done.stdout
    assert "Ray runtime started" in done.stdout


def test_verify_runs_the_kernels_check_beside_the_model_and_leaves_nothing(tmp_path: Path) -> None:
    if not list((PROJECT / "files" / "kernels" / "dist").glob("*_x86_64.whl")):
        pytest.skip("no wheel of the kernels; make kernels builds it")
    done = playbook("verify", "--tags", "kernels", "--limit", "spark-02", "-e", f"verify_report_dir={tmp_path}")
    assert done.returncode == 0, done.stdout
    assert re.search(r"spark-02  not run  no GPU here: numerics not run; \d+ checks that need none passed", done.stdout)
    assert "spark-01" not in done.stdout
    (report,) = tmp_path.iterdir()
    found = json.loads(report.read_text(encoding="utf-8"))
    assert found["node"] == "spark-02" and found["status"] == "not run"
    assert found["checks"] and all(check["ok"] for check in found["checks"])
    now = on_node("spark-02", "docker ps --all --format '{{.Names}}'; ls /tmp")
    assert "spark-ray" in now and "sparkfleet-verify" not in now


def test_verify_proves_the_image_that_serves_and_leaves_nothing(tmp_path: Path) -> None:
    done = playbook("verify", "--tags", "image", "--limit", "spark-02", "-e", f"verify_report_dir={tmp_path}")
    assert done.returncode == 0, done.stdout
    assert re.search(r"spark-02  passed   4 checks passed, \d checks not run", done.stdout)
    assert re.search(r"passed   versions +\d+ packages of the lock", done.stdout)
    (report,) = tmp_path.iterdir()
    found = json.loads(report.read_text(encoding="utf-8"))
    assert found["node"] == "spark-02" and found["status"] == "passed"
    assert found["description"]["variant"] == "cpu" and len(found["description"]["build_key"]) == 64
    now = on_node("spark-02", "docker ps --all --format '{{.Names}}'; ls /tmp")
    assert "spark-ray" in now and "sparkfleet-verify" not in now


def test_verify_without_a_wheel_says_what_to_do() -> None:
    done = playbook("verify", "--tags", "kernels", "-e", "verify_kernels_wheel=/nowhere.whl")
    assert done.returncode != 0
    assert "verify_kernels_wheel is /nowhere.whl, which is no file on this machine; correct it" in done.stdout
    assert done.stdout.count("changed=0") == 3, "nothing was changed"


def since(container: str) -> str:
    """Return when a container of the head started."""
    return on_node("spark-01", f"docker inspect --format '{{{{.State.StartedAt}}}}' {container}")


def test_site_runs_by_the_tag_of_one_role() -> None:
    assert set(site("--tags", "serve").values()) == {0}


def test_site_by_a_tag_refuses_a_model_that_it_would_not_bring(tmp_path: Path) -> None:
    model = tmp_path / "tiny-model"
    shutil.copytree(PROJECT / ".cache" / "tiny-model", model)
    (model / "added.txt").write_text("new")
    done = ansible_playbook("site.yml", "--tags", "serve", serve_model=str(model))
    assert done.returncode != 0
    assert "tiny is not on the node as its source has it; run site.yml without --tags" in " ".join(done.stdout.split())


def test_restart_of_one_model_leaves_ray_alone() -> None:
    ray, server = since("spark-ray"), since("spark-vllm-tiny")
    restarted = playbook("restart", "-e", "restart_models=tiny")
    assert restarted.returncode == 0, restarted.stdout
    assert since("spark-ray") == ray and since("spark-vllm-tiny") != server


def test_restart_stops_all_and_start_proves_that_it_serves() -> None:
    ray, server = since("spark-ray"), since("spark-vllm-tiny")
    restarted = playbook("restart")
    assert restarted.returncode == 0, restarted.stdout
    assert since("spark-ray") != ray and since("spark-vllm-tiny") != server
    assert playbook("start").stdout.count("changed=0") == 2, "starting what runs changes nothing"


def test_start_of_a_model_that_nobody_serves_says_which_there_are() -> None:
    done = playbook("start", "-e", "start_models=tiny,tinny")
    assert done.returncode != 0
    assert "start_models: tinny is not served; there is tiny" in " ".join(done.stdout.split())


def test_reset_cannot_keep_what_it_does_not_know() -> None:
    done = playbook("reset", "-e", "reset_keep=model,images")
    assert done.returncode != 0
    assert "reset_keep: images cannot be kept; image and model can" in done.stdout
    assert "TASK [Keep other runs out]" not in done.stdout


def test_stop_stops_everything_and_status_says_so() -> None:
    stopped = playbook("stop")
    assert stopped.returncode == 0, stopped.stdout
    status = playbook("status")
    assert status.returncode != 0
    assert "does not answer" in status.stdout
    assert playbook("stop").stdout.count("changed=0") == 2, "stopping what is stopped changes nothing"
