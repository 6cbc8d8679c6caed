# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import importlib.util
import os
import shlex
import socket
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

PATH = Path(__file__).resolve().parents[3] / "files" / "image" / "entrypoint.py"


def load() -> ModuleType:
    """Import the entrypoint from the image's context."""
    spec = importlib.util.spec_from_file_location("entrypoint", PATH)
    if spec is None or spec.loader is None:
        raise ImportError(PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


entrypoint = load()


def run(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run the entrypoint as the image does, with nothing but the given environment."""
    return subprocess.run(
        [sys.executable, str(PATH), *arguments],
        check=False,
        env={"PATH": os.environ["PATH"], **env},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_serve_needs_only_a_model() -> None:
    line = entrypoint.command("serve", {"MODEL": "/models/tiny"})
    assert shlex.join(line) == "vllm serve /models/tiny --host 0.0.0.0 --port 8888 --tensor-parallel-size=1"


def test_serve_takes_every_variable() -> None:
    line = entrypoint.command(
        "serve",
        {
            "MODEL": "/models/tiny",
            "HOST": "10.0.0.1",
            "PORT": "9000",
            "SERVED_MODEL_NAME": "tiny other",
            "TENSOR_PARALLEL_SIZE": "2",
            "MAX_MODEL_LEN": "512",
            "GPU_MEMORY_UTIL": "0.6",
            "EXECUTOR": "ray",
            "HEAD_IP": "192.168.177.11",
            "VLLM_EXTRA_ARGS": "--enforce-eager --hf-overrides '{\"a\": 1}'",
        },
        ["--seed", "1"],
    )
    assert shlex.join(line[:10]) == "vllm serve /models/tiny --host 10.0.0.1 --port 9000 --served-model-name tiny other"
    assert line[10:] == [
        "--tensor-parallel-size=2",
        "--distributed-executor-backend=ray",
        "--max-model-len=512",
        "--gpu-memory-utilization=0.6",
        "--enforce-eager",
        "--hf-overrides",
        '{"a": 1}',
        "--seed",
        "1",
    ]


def test_ray_head_keeps_the_dashboard_on_loopback_and_pins_ports() -> None:
    env = {"HEAD_IP": "192.168.177.11", "RAY_DASHBOARD_PORT": "8265", "RAY_MIN_WORKER_PORT": "20000", "NUM_CPUS": "1"}
    line = entrypoint.command("ray-head", env)
    assert line[:3] == ["ray", "start", "--head"]
    assert {
        "--block",
        "--disable-usage-stats",
        "--node-ip-address=192.168.177.11",
        "--port=6379",
        "--dashboard-host=127.0.0.1",
        "--dashboard-port=8265",
        "--min-worker-port=20000",
        "--num-gpus=1",
        "--num-cpus=1",
    } == set(line[3:])


def test_ray_worker_joins_the_head_under_its_own_address() -> None:
    env = {"HEAD_IP": "192.168.177.11", "WORKER_IP": "192.168.177.12", "RAY_PORT": "7000", "RAY_DASHBOARD_PORT": "8265"}
    line = entrypoint.command("ray-worker", env)
    assert "--address=192.168.177.11:7000" in line
    assert "--node-ip-address=192.168.177.12" in line
    assert not [word for word in line if word == "--head" or word.startswith("--dashboard-port")]


@pytest.mark.parametrize("cpus", ["", "0"])
def test_ray_counts_cpus_itself_unless_told(cpus: str) -> None:
    line = entrypoint.command("ray-head", {"HEAD_IP": "10.0.0.1", "NUM_CPUS": cpus})
    assert not [word for word in line if word.startswith("--num-cpus")]


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ([], ["bash"]),
        (["-c", "true"], ["bash", "-c", "true"]),
        (["ray", "status"], ["ray", "status"]),
    ],
)
def test_bash_is_a_shell_or_the_given_command(arguments: list[str], line: list[str]) -> None:
    assert entrypoint.command("bash", {}, arguments) == line


@pytest.mark.parametrize(
    ("mode", "env", "reason"),
    [
        ("train", {}, "unknown mode 'train'; use one of serve, ray-head, ray-worker, bash"),
        ("serve", {}, "serve needs MODEL; give it with --env MODEL=..."),
        ("serve", {"MODEL": "m", "EXECUTOR": "slurm"}, "EXECUTOR=slurm is unknown"),
        ("serve", {"MODEL": "m", "EXECUTOR": "ray"}, "needs HEAD_IP"),
        ("serve", {"MODEL": "m", "PORT": "http"}, "PORT=http is not a number"),
        ("serve", {"MODEL": "m", "VLLM_EXTRA_ARGS": "'"}, "VLLM_EXTRA_ARGS cannot be split"),
        ("ray-head", {}, "ray-head needs HEAD_IP"),
        ("ray-worker", {"HEAD_IP": "10.0.0.1"}, "ray-worker needs WORKER_IP"),
        ("ray-worker", {"WORKER_IP": "10.0.0.1"}, "ray-worker needs HEAD_IP"),
    ],
)
def test_a_bad_environment_is_one_line_on_stderr_and_status_2(mode: str, env: dict[str, str], reason: str) -> None:
    done = run(mode, **env)
    assert done.returncode == 2
    assert done.stdout == ""
    assert reason in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_environment_follows_from_what_is_set_and_overrides_nothing() -> None:
    env = {"NCCL_SOCKET_IFNAME": "enp1s0f0np0", "HEAD_IP": "10.0.0.1", "WORKER_IP": "10.0.0.2", "EXECUTOR": "ray"}
    assert entrypoint.environment("serve", env) == {
        "GLOO_SOCKET_IFNAME": "enp1s0f0np0",
        "VLLM_HOST_IP": "10.0.0.1",
        "RAY_ADDRESS": "10.0.0.1:6379",
    }
    assert entrypoint.environment("ray-worker", env)["VLLM_HOST_IP"] == "10.0.0.2"
    assert "GLOO_SOCKET_IFNAME" not in entrypoint.environment("serve", {**env, "GLOO_SOCKET_IFNAME": "eth0"})


def test_api_key_comes_from_a_file_into_the_environment_only(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("secret\n")
    program = tmp_path / "vllm"
    program.write_text('#!/bin/sh\necho "key=$VLLM_API_KEY args=$*"\n')
    program.chmod(0o755)
    done = run("serve", MODEL="m", API_KEY_FILE=str(key), PATH=f"{tmp_path}:{os.environ['PATH']}")
    assert done.returncode == 0
    assert "key=secret args=serve m" in done.stdout
    assert "secret" not in done.stderr


@pytest.mark.parametrize(("content", "reason"), [(None, "cannot be read"), ("\n", "is empty")])
def test_an_api_key_file_without_a_key_is_refused(tmp_path: Path, content: str | None, reason: str) -> None:
    key = tmp_path / "key"
    if content is not None:
        key.write_text(content)
    done = run("serve", MODEL="m", API_KEY_FILE=str(key))
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert reason in done.stderr


def test_ray_head_waits_for_its_address_and_gives_up() -> None:
    done = run("ray-head", HEAD_IP="192.0.2.1", WAIT_S="0")  # a documentation address: on no interface
    assert done.returncode == 2
    assert "HEAD_IP 192.0.2.1 is on no interface after 0 s" in done.stderr


def test_serve_waits_for_the_ray_head(tmp_path: Path) -> None:
    program = tmp_path / "vllm"
    program.write_text("#!/bin/sh\necho served\n")
    program.chmod(0o755)
    env = {"MODEL": "m", "EXECUTOR": "ray", "HEAD_IP": "127.0.0.1", "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    with socket.create_server(("127.0.0.1", 0)) as head:
        port = str(head.getsockname()[1])
        assert "served" in run("serve", **env, RAY_PORT=port, WAIT_S="30").stdout
    done = run("serve", **env, RAY_PORT=port, WAIT_S="0")
    assert (done.returncode, done.stdout) == (2, "")
    assert f"no Ray head at 127.0.0.1:{port}" in done.stderr


def test_a_program_that_the_image_lacks_is_one_line() -> None:
    done = run("bash", "no-such-program")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == "entrypoint: no program no-such-program in this image"


def test_verify_runs_the_images_own_check() -> None:
    line = entrypoint.command("verify", {}, ["--only", "imports"])
    assert line == [sys.executable, "/opt/sparkfleet/verify.py", "--only", "imports"]
