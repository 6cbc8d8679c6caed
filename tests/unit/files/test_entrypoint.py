# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
import socket
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

IMAGE = Path(__file__).resolve().parents[3] / "files" / "image"
PATH = IMAGE / "entrypoint.py"


def load() -> ModuleType:
    """Import the entrypoint from the image's context."""
    spec = importlib.util.spec_from_file_location("entrypoint", PATH)
    if spec is None or spec.loader is None:
        raise ImportError(PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


entrypoint = load()

# One node of a model that is spread over nodes by vLLM itself; rank 0 unless told.
MP = {"MODEL": "m", "EXECUTOR": "mp", "NODE_RANK": "0", "MASTER_ADDR": "10.0.0.1"}
FOLLOWER = MP | {"NODE_RANK": "1", "VLLM_HOST_IP": "10.0.0.2"}


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
            "PIPELINE_PARALLEL_SIZE": "3",
            "MAX_MODEL_LEN": "512",
            "MAX_NUM_SEQS": "8",
            "MAX_NUM_BATCHED_TOKENS": "2048",
            "GPU_MEMORY_UTIL": "0.6",
            "KV_CACHE_MEMORY_BYTES": "64M",
            "DTYPE": "bfloat16",
            "QUANTIZATION": "fp8",
            "KV_CACHE_DTYPE": "fp8_e4m3",
            "LOAD_FORMAT": "fastsafetensors",
            "SHUTDOWN_TIMEOUT": "60",
            "TLS_CERT_FILE": "/run/secrets/tls.crt",
            "TLS_KEY_FILE": "/run/secrets/tls.key",
            "EXECUTOR": "ray",
            "HEAD_IP": "192.168.177.11",
            "VLLM_EXTRA_ARGS": "--enforce-eager --hf-overrides '{\"a\": 1}'",
        },
        ["--seed", "1"],
    )
    assert shlex.join(line[:7]) == "vllm serve /models/tiny --host 10.0.0.1 --port 9000"
    assert line[7:] == [
        "--ssl-certfile=/run/secrets/tls.crt",
        "--ssl-keyfile=/run/secrets/tls.key",
        "--served-model-name",
        "tiny",
        "other",
        "--tensor-parallel-size=2",
        "--distributed-executor-backend=ray",
        "--pipeline-parallel-size=3",
        "--max-model-len=512",
        "--max-num-seqs=8",
        "--max-num-batched-tokens=2048",
        "--gpu-memory-utilization=0.6",
        "--kv-cache-memory-bytes=64M",
        "--dtype=bfloat16",
        "--quantization=fp8",
        "--kv-cache-dtype=fp8_e4m3",
        "--load-format=fastsafetensors",
        "--shutdown-timeout=60",
        "--enforce-eager",
        "--hf-overrides",
        '{"a": 1}',
        "--seed",
        "1",
    ]


def parallel(**env: str) -> list[str]:
    """Return the flags about nodes and replicas of a `serve` with ``env``; a model m1 has experts."""
    line = entrypoint.command("serve", env, (), lambda model: model == "m1")
    about = ("--headless", "--api-server", "--distributed", "--nnodes", "--node-rank", "--master", "--data-parallel")
    return [word for word in line if word.startswith(about)]


@pytest.mark.parametrize("sizes", [{"TENSOR_PARALLEL_SIZE": "2"}, {"PIPELINE_PARALLEL_SIZE": "2"}])
def test_one_replica_over_two_nodes(sizes: dict[str, str]) -> None:
    both = ["--distributed-executor-backend=mp", "--nnodes=2"]
    master = ["--master-addr=10.0.0.1", "--master-port=29501"]
    env = {"NNODES": "2", "MASTER_PORT": "29501", "DATA_PARALLEL_SIZE": "1", **sizes}
    assert parallel(**MP, **env) == [*both, "--node-rank=0", *master]
    assert parallel(**FOLLOWER, **env) == ["--headless", *both, "--node-rank=1", *master]


def test_two_replicas_on_two_nodes() -> None:
    env = {"NNODES": "2", "DATA_PARALLEL_SIZE": "2", "DATA_PARALLEL_RPC_PORT": "29550"}
    both = ["--distributed-executor-backend=mp", "--nnodes=2"]
    replicas = ["--master-addr=10.0.0.1", "--data-parallel-size=2", "--data-parallel-rpc-port=29550"]
    assert parallel(**MP, **env) == ["--api-server-count=1", *both, "--node-rank=0", *replicas]
    assert parallel(**FOLLOWER, **env) == ["--headless", *both, "--node-rank=1", *replicas]


FOUR = MP | {"NNODES": "4", "TENSOR_PARALLEL_SIZE": "2", "DATA_PARALLEL_SIZE": "2", "VLLM_HOST_IP": "10.0.0.9"}


@pytest.mark.parametrize("rank", range(4))
def test_replicas_of_two_nodes_each_with_experts_are_one_world(rank: int) -> None:
    assert parallel(**FOUR | {"MODEL": "m1", "NODE_RANK": str(rank)})[1:] == [
        "--distributed-executor-backend=mp",
        "--nnodes=4",
        f"--node-rank={rank}",
        "--master-addr=10.0.0.1",
        "--data-parallel-size=2",
    ]


@pytest.mark.parametrize(
    ("rank", "address", "flags"),
    [
        (0, "10.0.0.1", "--nnodes=4 --node-rank=0 {} --data-parallel-size=2 --data-parallel-address=10.0.0.1"),
        (1, "10.0.0.1", "--nnodes=2 --node-rank=1 {}"),
        (2, "10.0.0.3", "--nnodes=4 --node-rank=2 {} --data-parallel-size=2 --data-parallel-address=10.0.0.1"),
        (3, "10.0.0.3", "--nnodes=2 --node-rank=1 {}"),
    ],
)
def test_replicas_of_two_nodes_each_without_experts_are_worlds_of_their_own(
    rank: int, address: str, flags: str
) -> None:
    found = parallel(**FOUR | {"NODE_RANK": str(rank), "REPLICA_ADDR": address})
    assert found[0] == ("--headless" if rank else "--api-server-count=1")
    assert " ".join(found[2:]) == flags.format(f"--master-addr={address}")


def test_a_follower_has_no_api_and_needs_no_key(tmp_path: Path) -> None:
    env = FOLLOWER | {"NNODES": "2", "TENSOR_PARALLEL_SIZE": "2", "VLLM_HOST_IP": "127.0.0.2"}
    env |= {"HOST": "10.0.0.1", "PORT": "9000", "TLS_CERT_FILE": "/none/crt", "TLS_KEY_FILE": "/none/key"}
    program = tmp_path / "vllm"
    program.write_text('#!/bin/sh\necho "$*" "ip=$VLLM_HOST_IP key=$VLLM_API_KEY"\n')
    program.chmod(0o755)
    done = run("serve", **env, API_KEY_FILE="/none/key", PATH=f"{tmp_path}:{os.environ['PATH']}")
    assert done.returncode == 0, done.stderr
    assert "serve m --headless" in done.stdout
    assert "ip=127.0.0.2 key=\n" in done.stdout
    assert not re.search("--host|--port|--ssl|--api-server", done.stdout)


def test_replicas_by_ray_go_to_as_many_nodes_as_they_need() -> None:
    env = {"MODEL": "m", "EXECUTOR": "ray", "HEAD_IP": "10.0.0.1", "DATA_PARALLEL_SIZE": "2"}
    ray = ["--api-server-count=1", "--distributed-executor-backend=ray", "--data-parallel-size=2"]
    ray.append("--data-parallel-backend=ray")
    assert parallel(**env) == [*ray, "--data-parallel-size-local=1"]
    assert parallel(**env, NUM_GPUS="4", TENSOR_PARALLEL_SIZE="2") == [*ray, "--data-parallel-size-local=2"]
    assert parallel(**env, TENSOR_PARALLEL_SIZE="2") == ray
    assert "VLLM_RAY_DP_PACK_STRATEGY" not in entrypoint.environment("serve", env)
    spread = entrypoint.environment("serve", env | {"TENSOR_PARALLEL_SIZE": "2"})
    assert spread["VLLM_RAY_DP_PACK_STRATEGY"] == "span"


def test_one_node_takes_replicas_and_as_many_api_servers_as_told() -> None:
    assert parallel(MODEL="m", DATA_PARALLEL_SIZE="2") == ["--api-server-count=1", "--data-parallel-size=2"]
    assert parallel(MODEL="m", API_SERVER_COUNT="3") == ["--api-server-count=3"]


@pytest.mark.parametrize(
    ("config", "answer"),
    [
        ({"model_type": "qwen3", "num_experts": None}, False),
        ({"num_local_experts": 8}, True),
        ({"text_config": {"n_routed_experts": 256}}, True),
        ({"moe_num_experts": [64, 64]}, True),
        ({"block_configs": [{"block_type": "attention"}, {"block_type": "moe", "n_routed_experts": 8}]}, True),
    ],
)
def test_experts_are_read_from_the_models_configuration(tmp_path: Path, config: object, answer: bool) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert entrypoint.experts(str(tmp_path)) is answer


def test_a_model_that_cannot_be_read_is_one_line_where_it_matters(tmp_path: Path) -> None:
    env = FOUR | {"MODEL": str(tmp_path), "REPLICA_ADDR": "10.0.0.1"}
    (tmp_path / "config.json").write_text("{")
    done = run("serve", **env)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert f"{tmp_path}/config.json cannot be read" in done.stderr


@pytest.mark.parametrize("known", [True, False])
def test_requests_are_finished_at_a_stop_where_this_vllm_can(tmp_path: Path, known: bool) -> None:
    package = tmp_path / "vllm"
    (package / "engine").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')\n")
    (package / "engine" / "arg_utils.py").write_text('"--shutdown-timeout",\n' if known else '"--seed",\n')
    program = tmp_path / "bin" / "vllm"
    program.parent.mkdir()
    program.write_text('#!/bin/sh\necho "$*"\n')
    program.chmod(0o755)
    path = f"{program.parent}:{os.environ['PATH']}"
    done = run("serve", MODEL="m", SHUTDOWN_TIMEOUT="60", PYTHONPATH=str(tmp_path), PATH=path)
    assert done.returncode == 0, done.stderr
    assert ("--shutdown-timeout=60" in done.stdout) is known
    assert ("SHUTDOWN_TIMEOUT is left out" in done.stderr) is not known


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
        ("serve", {"MODEL": "m", "TENSOR_PARALLEL_SIZE": "0"}, "TENSOR_PARALLEL_SIZE=0 is too small"),
        ("serve", {"MODEL": "m", "GPU_MEMORY_UTIL": "90"}, "GPU_MEMORY_UTIL=90 is no share"),
        ("serve", {"MODEL": "m", "GPU_MEMORY_UTIL": "0.0"}, "GPU_MEMORY_UTIL=0.0 is no share"),
        ("serve", {"MODEL": "m", "KV_CACHE_MEMORY_BYTES": "8GB"}, "KV_CACHE_MEMORY_BYTES=8GB is no number"),
        ("serve", {"MODEL": "m", "TLS_KEY_FILE": "k"}, "TLS_CERT_FILE and TLS_KEY_FILE belong together"),
        (
            "serve",
            {"MODEL": "m", "TLS_KEY_FILE": "/none", "TLS_CERT_FILE": "/none"},
            "TLS_CERT_FILE /none cannot be read",
        ),
        ("serve", {"MODEL": "m", "NNODES": "2"}, "no effect without EXECUTOR=mp"),
        ("serve", {"MODEL": "m", "EXECUTOR": "ray", "HEAD_IP": "h", "NODE_RANK": "1"}, "no effect without EXECUTOR=mp"),
        ("serve", MP, "serve with EXECUTOR=mp needs NNODES"),
        ("serve", {**MP, "NNODES": "2", "NODE_RANK": ""}, "needs NODE_RANK"),
        ("serve", {**MP, "NNODES": "2", "NODE_RANK": "x"}, "NODE_RANK=x is not a number"),
        ("serve", {**MP, "NNODES": "2", "MASTER_ADDR": ""}, "needs MASTER_ADDR"),
        ("serve", {**MP, "NNODES": "2", "NODE_RANK": "1"}, "needs WORKER_IP"),
        ("serve", {**FOLLOWER, "NNODES": "2", "NODE_RANK": "2"}, "NODE_RANK=2 is none of NNODES=2"),
        ("serve", {**MP, "NNODES": "2"}, "1 replicas of 1 ranks"),
        (
            "serve",
            {**MP, "NNODES": "2", "TENSOR_PARALLEL_SIZE": "2", "DATA_PARALLEL_SIZE": "3"},
            "3 replicas of 2 ranks",
        ),
        (
            "serve",
            {"MODEL": "m", "EXECUTOR": "ray", "HEAD_IP": "h", "NUM_GPUS": "2", "TENSOR_PARALLEL_SIZE": "3"}
            | {"DATA_PARALLEL_SIZE": "2"},
            "3 ranks (TENSOR_PARALLEL_SIZE x PIPELINE_PARALLEL_SIZE) are no multiple of NUM_GPUS=2",
        ),
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


def test_a_model_on_one_node_depends_on_no_cable() -> None:
    env = {"NCCL_SOCKET_IFNAME": "enp1s0f0np0", "HEAD_IP": "10.0.0.1"}
    assert entrypoint.environment("serve", env) == {"GLOO_SOCKET_IFNAME": "lo", "VLLM_HOST_IP": "127.0.0.1"}
    assert entrypoint.environment("serve", {"VLLM_HOST_IP": "10.0.0.1", "GLOO_SOCKET_IFNAME": "eth0"}) == {}


def test_each_rank_of_mp_is_known_by_its_own_address() -> None:
    assert entrypoint.environment("serve", MP)["VLLM_HOST_IP"] == "10.0.0.1"
    follower = MP | {"NODE_RANK": "1", "HEAD_IP": "10.0.0.1", "WORKER_IP": "10.0.0.2"}
    assert entrypoint.environment("serve", follower)["VLLM_HOST_IP"] == "10.0.0.2"
    assert "VLLM_HOST_IP" not in entrypoint.environment("serve", FOLLOWER)


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


@pytest.mark.parametrize(
    ("rank", "address"),
    [("0", {"MASTER_ADDR": "192.0.2.1"}), ("1", {"VLLM_HOST_IP": "192.0.2.1"}), ("1", {"WORKER_IP": "192.0.2.1"})],
)
def test_each_rank_of_mp_waits_for_its_own_address_only(rank: str, address: dict[str, str]) -> None:
    env = MP | {"NNODES": "2", "TENSOR_PARALLEL_SIZE": "2", "NODE_RANK": rank, "WAIT_S": "0"} | address
    done = run("serve", **env)
    assert done.returncode == 2
    assert f"{next(iter(address))} 192.0.2.1 is on no interface after 0 s" in done.stderr


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


def test_the_image_has_what_its_environment_names() -> None:
    dockerfile, own = (IMAGE / "Dockerfile").read_text(), (IMAGE / "own.sh").read_text()
    named = dict(re.findall(r"^(?:ENV|   ) (HOME|VLLM_CONFIG_ROOT)=(\S+)(?: \\)?$", dockerfile, re.M))
    assert f"chmod 1777 /out{named['HOME']}\n" in own
    assert own.index("settle /out") < own.index("chmod 1777")
    assert named["VLLM_CONFIG_ROOT"] == "/opt/sparkfleet/config"
    assert "own=/out/opt/sparkfleet\n" in own
    left_out = re.search(r"echo '(.*)' > \"\$own/config/ray_non_carry_over_env_vars.json\"", own)
    assert left_out is not None
    assert set(entrypoint.api_key({"API_KEY_FILE": str(PATH)})) == set(json.loads(left_out[1]))
