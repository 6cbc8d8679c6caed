# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Entrypoint of the vLLM image: ``docker run IMAGE serve|ray-head|ray-worker|bash|verify``.

It is configured by its environment. Every mode ends in an exec, so the program itself gets the container's signals.
``command`` and ``environment`` say what is started; only ``main`` touches the machine. Runs with the image's Python,
standard library only.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from types import FrameType
from typing import Any

MODES = ("serve", "ray-head", "ray-worker", "bash", "verify")
VERIFY = "/opt/sparkfleet/verify.py"

# Environment variable -> flag of `ray start`; a variable that is unset or empty leaves the choice to Ray.
RAY_FLAGS = {
    "RAY_NODE_MANAGER_PORT": "--node-manager-port",
    "RAY_OBJECT_MANAGER_PORT": "--object-manager-port",
    "RAY_RUNTIME_ENV_AGENT_PORT": "--runtime-env-agent-port",
    "RAY_DASHBOARD_AGENT_GRPC_PORT": "--dashboard-agent-grpc-port",
    "RAY_DASHBOARD_AGENT_LISTEN_PORT": "--dashboard-agent-listen-port",
    "RAY_METRICS_EXPORT_PORT": "--metrics-export-port",
    "RAY_MIN_WORKER_PORT": "--min-worker-port",
    "RAY_MAX_WORKER_PORT": "--max-worker-port",
    "OBJECT_STORE_MEMORY": "--object-store-memory",
}
RAY_HEAD_FLAGS = {
    "RAY_DASHBOARD_PORT": "--dashboard-port",
    "RAY_CLIENT_SERVER_PORT": "--ray-client-server-port",
}
# Environment variable -> flag of `vllm serve`: on every node of a model, and on the one with its API only.
VLLM_FLAGS = {
    "PIPELINE_PARALLEL_SIZE": "--pipeline-parallel-size",
    "MAX_MODEL_LEN": "--max-model-len",
    "MAX_NUM_SEQS": "--max-num-seqs",
    "MAX_NUM_BATCHED_TOKENS": "--max-num-batched-tokens",
    "GPU_MEMORY_UTIL": "--gpu-memory-utilization",
    "KV_CACHE_MEMORY_BYTES": "--kv-cache-memory-bytes",
    "DTYPE": "--dtype",
    "QUANTIZATION": "--quantization",
    "KV_CACHE_DTYPE": "--kv-cache-dtype",
    "LOAD_FORMAT": "--load-format",
    "SHUTDOWN_TIMEOUT": "--shutdown-timeout",
}
API_FLAGS = {
    "TLS_CERT_FILE": "--ssl-certfile",
    "TLS_KEY_FILE": "--ssl-keyfile",
}
EXECUTORS = ("", "ray", "mp")
EXPERTS = ("num_experts", "moe_num_experts", "n_routed_experts", "num_local_experts")
SIZES = ("TENSOR_PARALLEL_SIZE", "PIPELINE_PARALLEL_SIZE", "DATA_PARALLEL_SIZE", "NNODES")
COUNTS = {*SIZES, "MAX_MODEL_LEN", "MAX_NUM_SEQS", "MAX_NUM_BATCHED_TOKENS", "API_SERVER_COUNT"}
NUMBERS = {*RAY_FLAGS, *RAY_HEAD_FLAGS, "RAY_PORT", "NUM_GPUS", "NUM_CPUS", "PORT", "WAIT_S", "SHUTDOWN_TIMEOUT"} | {
    "NODE_RANK",
    "MASTER_PORT",
    "DATA_PARALLEL_RPC_PORT",
}


class EntrypointError(Exception):
    """What is wrong with the mode or the environment and what to do, in one line."""


def need(mode: str, env: Mapping[str, str], name: str) -> str:
    """Return a variable without which ``mode`` makes no sense; raise EntrypointError where it is unset or empty."""
    value = env.get(name, "")
    if not value:
        raise EntrypointError(f"{mode} needs {name}; give it with --env {name}=...")
    return value


def check_numbers(env: Mapping[str, str]) -> None:
    """Raise EntrypointError where a variable that is a number is something else."""
    for name in sorted(NUMBERS | COUNTS):
        value = env.get(name, "")
        if value and not (value.isascii() and value.isdigit()):
            raise EntrypointError(f"{name}={value} is not a number; correct or unset it")
        if value and name in COUNTS and int(value) == 0:
            raise EntrypointError(f"{name}={value} is too small; give at least 1, or unset it")
    share, memory = env.get("GPU_MEMORY_UTIL", ""), env.get("KV_CACHE_MEMORY_BYTES", "")
    if share and not (re.fullmatch(r"[01]?\.[0-9]+|1", share) and 0 < float(share) <= 1):
        raise EntrypointError(f"GPU_MEMORY_UTIL={share} is no share of the memory; give more than 0 and at most 1")
    if memory and not re.fullmatch(r"[0-9]+[kKmMgGtT]?|[0-9]+\.[0-9]+[kmgt]", memory):
        raise EntrypointError(f"KV_CACHE_MEMORY_BYTES={memory} is no number of bytes; give one as 8000000000 or 8G")


def flags(env: Mapping[str, str], names: Mapping[str, str]) -> list[str]:
    """Return ``--flag=value`` for each variable of ``names`` that has a value."""
    return [f"{flag}={env[name]}" for name, flag in names.items() if env.get(name)]


def ray_port(env: Mapping[str, str]) -> str:
    """Return the port of Ray's control store."""
    return env.get("RAY_PORT") or "6379"


def ray(mode: str, env: Mapping[str, str]) -> list[str]:
    """Return the ``ray start`` command line of a head or a worker."""
    head = need(mode, env, "HEAD_IP")
    if mode == "ray-head":
        line = ["ray", "start", "--head", f"--node-ip-address={head}", f"--port={ray_port(env)}"]
        line += ["--dashboard-host=127.0.0.1", *flags(env, RAY_HEAD_FLAGS)]
    else:
        worker = need(mode, env, "WORKER_IP")
        line = ["ray", "start", f"--address={head}:{ray_port(env)}", f"--node-ip-address={worker}"]
    line += ["--block", "--disable-usage-stats", f"--num-gpus={env.get('NUM_GPUS') or '1'}"]
    if int(env.get("NUM_CPUS") or 0):  # 0: Ray counts them
        line.append(f"--num-cpus={env['NUM_CPUS']}")
    return line + flags(env, RAY_FLAGS)


def size(env: Mapping[str, str], name: str) -> int:
    """Return one of SIZES; what is not given is 1."""
    return int(env.get(name) or 1)


def is_follower(env: Mapping[str, str]) -> bool:
    """Say whether ``serve`` runs ranks here for an API on another node."""
    return env.get("EXECUTOR") == "mp" and int(env.get("NODE_RANK") or 0) > 0


def own_address(mode: str, env: Mapping[str, str]) -> tuple[str, str]:
    """Return the variable that holds this node's own address in ``mode``, and the address, empty where it is not given.

    With EXECUTOR=mp rank 0 is where everyone else connects to, and any other node has an address of its own.
    """
    name = "WORKER_IP" if mode == "ray-worker" else "HEAD_IP"
    if mode == "serve" and env.get("EXECUTOR") == "mp":
        name = "MASTER_ADDR"
        if is_follower(env):
            name = "VLLM_HOST_IP" if env.get("VLLM_HOST_IP") else "WORKER_IP"
    return name, env.get(name, "")


def gpus(env: Mapping[str, str]) -> int:
    """Return how many GPUs each node brings to Ray."""
    return int(env.get("NUM_GPUS") or 1) or 1


def replica_size(env: Mapping[str, str]) -> int:
    """Return how many ranks hold the model once."""
    return size(env, "TENSOR_PARALLEL_SIZE") * size(env, "PIPELINE_PARALLEL_SIZE")


def replica_flags(env: Mapping[str, str]) -> list[str]:
    """Return the flags of data parallelism, none for a single replica."""
    return flags(env, {"DATA_PARALLEL_SIZE": "--data-parallel-size"}) if size(env, "DATA_PARALLEL_SIZE") > 1 else []


def mp(env: Mapping[str, str], has_experts: Callable[[str], bool]) -> list[str]:
    """Return the flags of vLLM's own executor over nodes, which are the same for TP, PP and DP.

    vLLM numbers the ranks by node, and finds out by itself which replica a node belongs to. For a model without experts
    it takes each replica for a world of its own, but only on the replica's first node: where replicas have more than
    one node, their followers have to be started as those of a model with one replica, and every replica has its master.
    """
    mode = "serve with EXECUTOR=mp"
    nodes, rank = int(need(mode, env, "NNODES")), int(need(mode, env, "NODE_RANK"))
    master = need(mode, env, "MASTER_ADDR")
    need(f"{mode} and NODE_RANK={rank}", env, own_address("serve", env)[0])
    if rank >= nodes:
        raise EntrypointError(f"NODE_RANK={rank} is none of NNODES={nodes}; count from 0")
    count = size(env, "DATA_PARALLEL_SIZE")
    if replica_size(env) * count % nodes or (nodes % count and count % nodes):
        raise EntrypointError(
            f"DATA_PARALLEL_SIZE={count} replicas of {replica_size(env)} ranks (TENSOR_PARALLEL_SIZE x "
            f"PIPELINE_PARALLEL_SIZE) do not fit on NNODES={nodes}; change one of them"
        )
    more = replica_flags(env)
    if more:
        more += flags(env, {"DATA_PARALLEL_RPC_PORT": "--data-parallel-rpc-port"})
    if 1 < count < nodes and not has_experts(need("serve", env, "MODEL")):
        more.append(f"--data-parallel-address={master}")
        master = need(f"{mode} and replicas of several nodes", env, "REPLICA_ADDR")
        if rank % (nodes // count):
            nodes, rank, more = nodes // count, rank % (nodes // count), []
    line = ["--distributed-executor-backend=mp", f"--nnodes={nodes}", f"--node-rank={rank}", f"--master-addr={master}"]
    return [*line, *flags(env, {"MASTER_PORT": "--master-port"}), *more]


def ray_executor(env: Mapping[str, str]) -> list[str]:
    """Return the flags of the ranks that Ray places."""
    need("serve with EXECUTOR=ray", env, "HEAD_IP")
    line = ["--distributed-executor-backend=ray", *replica_flags(env)]
    if not replica_flags(env):
        return line
    line.append("--data-parallel-backend=ray")
    if replica_size(env) <= gpus(env):
        # vLLM would put all of them on the head.
        line.append(f"--data-parallel-size-local={gpus(env) // replica_size(env)}")
    elif replica_size(env) % gpus(env):
        raise EntrypointError(
            f"{replica_size(env)} ranks (TENSOR_PARALLEL_SIZE x PIPELINE_PARALLEL_SIZE) are no multiple of "
            f"NUM_GPUS={gpus(env)}; each replica takes whole nodes"
        )
    return line


def api(env: Mapping[str, str]) -> list[str]:
    """Return the flags of the node with the API."""
    line = ["--host", env.get("HOST") or "0.0.0.0", "--port", env.get("PORT") or "8888", *flags(env, API_FLAGS)]
    # One process for each replica would be vLLM's choice: with more than one, it leaves requests hanging when it is
    # stopped, in place of finishing them.
    count = env.get("API_SERVER_COUNT") or ("1" if replica_flags(env) else "")
    return [*line, f"--api-server-count={count}"] if count else line


def serve(env: Mapping[str, str], has_experts: Callable[[str], bool]) -> list[str]:
    """Return the ``vllm serve`` command line."""
    executor = env.get("EXECUTOR", "")
    if executor not in EXECUTORS:
        raise EntrypointError(f"EXECUTOR={executor} is unknown; use ray or mp, or leave it empty for one node")
    if executor != "mp" and (size(env, "NNODES") > 1 or int(env.get("NODE_RANK") or 0)):
        raise EntrypointError("NNODES and NODE_RANK have no effect without EXECUTOR=mp; set it, or unset them")
    if bool(env.get("TLS_CERT_FILE")) != bool(env.get("TLS_KEY_FILE")):
        raise EntrypointError("TLS_CERT_FILE and TLS_KEY_FILE belong together; give both, or none")
    line = ["vllm", "serve", need("serve", env, "MODEL")]
    line += ["--headless"] if is_follower(env) else api(env)
    if names := env.get("SERVED_MODEL_NAME", "").split():
        line += ["--served-model-name", *names]
    line.append(f"--tensor-parallel-size={size(env, 'TENSOR_PARALLEL_SIZE')}")
    if executor == "mp":
        line += mp(env, has_experts)
    else:
        line += ray_executor(env) if executor else replica_flags(env)
    line += flags(env, VLLM_FLAGS)
    try:
        return line + shlex.split(env.get("VLLM_EXTRA_ARGS", ""))
    except ValueError as error:
        raise EntrypointError(f"VLLM_EXTRA_ARGS cannot be split ({error}); close its quotes") from error


def experts(model: str) -> bool:
    """Say whether vLLM takes the model in this directory for one with experts. Raises EntrypointError."""

    def some(value: Any) -> bool:
        if isinstance(value, dict):
            return any(value.get(name) for name in EXPERTS) or any(map(some, value.values()))
        return isinstance(value, list) and any(map(some, value))

    path = os.path.join(model, "config.json")
    try:
        with open(path, encoding="utf-8") as file:
            return some(json.load(file))
    except (OSError, ValueError) as error:
        raise EntrypointError(f"{path} cannot be read ({error}); MODEL has to be a model's directory") from error


def command(
    mode: str,
    env: Mapping[str, str],
    arguments: Sequence[str] = (),
    has_experts: Callable[[str], bool] = experts,
) -> list[str]:
    """Return what ``mode`` runs.

    ``arguments`` are what follows the mode on the command line: options appended to vLLM's or Ray's own, and for
    ``bash`` either the shell's options or a command of its own. ``has_experts`` is asked about MODEL where it matters.
    Raises EntrypointError.
    """
    check_numbers(env)
    if mode == "serve":
        return [*serve(env, has_experts), *arguments]
    if mode in ("ray-head", "ray-worker"):
        return [*ray(mode, env), *arguments]
    if mode == "bash":
        return list(arguments) if arguments and not arguments[0].startswith("-") else ["bash", *arguments]
    if mode == "verify":
        return [sys.executable, VERIFY, *arguments]
    raise EntrypointError(f"unknown mode {mode!r}; use one of {', '.join(MODES)}")


def environment(mode: str, env: Mapping[str, str]) -> dict[str, str]:
    """Return what is added to the environment: what follows from a variable that is set and was not set itself."""
    if mode == "serve" and not env.get("EXECUTOR"):
        # All ranks are here: a cable that is out, or an address that is not there yet, is no matter.
        derived = {"GLOO_SOCKET_IFNAME": "lo", "VLLM_HOST_IP": "127.0.0.1"}
    else:
        own = own_address(mode, env)[1] if mode != "bash" else ""
        derived = {"GLOO_SOCKET_IFNAME": env.get("NCCL_SOCKET_IFNAME", ""), "VLLM_HOST_IP": own}
    if env.get("EXECUTOR") == "ray" and env.get("HEAD_IP"):
        derived["RAY_ADDRESS"] = f"{env['HEAD_IP']}:{ray_port(env)}"
        if mode == "serve" and replica_flags(env) and replica_size(env) > gpus(env):
            derived["VLLM_RAY_DP_PACK_STRATEGY"] = "span"
    return {name: value for name, value in derived.items() if value and not env.get(name)}


def drains() -> bool:
    """Say whether the image's vLLM can finish requests when it is stopped: by its text, for an import takes seconds."""
    spec = importlib.util.find_spec("vllm")
    places = (spec and spec.submodule_search_locations) or []
    try:
        with open(os.path.join(places[0], "engine", "arg_utils.py"), encoding="utf-8") as file:
            return f'"{VLLM_FLAGS["SHUTDOWN_TIMEOUT"]}"' in file.read()
    except (OSError, IndexError):
        return False


def api_key(env: Mapping[str, str]) -> dict[str, str]:
    """Return VLLM_API_KEY as read from API_KEY_FILE: from a file no process list and no `docker inspect` shows it.

    The environment of the process can be read by root and by its own user only. A node without an API needs no key.
    """
    path = env.get("API_KEY_FILE", "")
    if not path or is_follower(env):
        return {}
    try:
        with open(path, encoding="utf-8") as file:
            key = file.read().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise EntrypointError(f"API_KEY_FILE {path} cannot be read ({error}); mount it into the container") from error
    if not key:
        raise EntrypointError(f"API_KEY_FILE {path} is empty; write the key into it")
    return {"VLLM_API_KEY": key}


def check_tls(env: Mapping[str, str]) -> None:
    """Raise EntrypointError where a file of TLS cannot be read: vLLM finds out when the model is loaded."""
    for name in ("TLS_CERT_FILE", "TLS_KEY_FILE"):
        if not (path := env.get(name, "")) or is_follower(env):
            continue
        try:
            with open(path, "rb"):
                pass
        except OSError as error:
            raise EntrypointError(f"{name} {path} cannot be read ({error}); mount it into the container") from error


def is_local(address: str) -> bool:
    """Say whether ``address`` is on an interface of this machine now."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as one:
            one.bind((address, 0))
    except OSError:
        return False
    return True


def accepts(address: str, port: int) -> bool:
    """Say whether a TCP connection to ``address``:``port`` succeeds now."""
    try:
        with socket.create_connection((address, port), timeout=2):
            return True
    except OSError:
        return False


def wait(mode: str, env: Mapping[str, str]) -> None:
    """Wait until the node is ready for ``mode``; after a reboot the network and the head come up in any order.

    With EXECUTOR=mp the nodes wait for each other inside of vLLM. Raises EntrypointError after WAIT_S seconds (300).
    """
    seconds = int(env.get("WAIT_S") or 300)
    deadline = time.monotonic() + seconds
    name, own = own_address(mode, env)
    needs_own = mode in ("ray-head", "ray-worker") or (mode == "serve" and env.get("EXECUTOR") == "mp")
    while needs_own and not is_local(own):
        if time.monotonic() >= deadline:
            raise EntrypointError(f"{name} {own} is on no interface after {seconds} s; check the fabric addresses")
        time.sleep(1)
    if mode == "ray-worker" or (mode == "serve" and env.get("EXECUTOR") == "ray"):
        head, port = env["HEAD_IP"], int(ray_port(env))
        while not accepts(head, port):
            if time.monotonic() >= deadline:
                raise EntrypointError(f"no Ray head at {head}:{port} after {seconds} s; start it or check the fabric")
            time.sleep(1)


def stop(signum: int, frame: FrameType | None) -> None:
    """End at a signal while waiting: as PID 1 the process would ignore it."""
    sys.exit(128 + signum)


def main(arguments: Sequence[str]) -> int:
    """Become the program of the mode; return 2 only where that fails."""
    mode, rest = (arguments[0], arguments[1:]) if arguments else ("serve", [])
    signal.signal(signal.SIGTERM, stop)
    try:
        if mode == "serve" and os.environ.get("SHUTDOWN_TIMEOUT") and not drains():
            del os.environ["SHUTDOWN_TIMEOUT"]
            print("entrypoint: SHUTDOWN_TIMEOUT is left out, for this vLLM does not know it", file=sys.stderr)
        line = command(mode, os.environ, rest)
        if mode == "serve":
            check_tls(os.environ)
            os.environ.update(api_key(os.environ))
        wait(mode, os.environ)
        os.environ.update(environment(mode, os.environ))
        print("entrypoint:", shlex.join(line), file=sys.stderr, flush=True)
        os.execvp(line[0], line)
    except EntrypointError as error:
        print(f"entrypoint: {error}", file=sys.stderr)
    except FileNotFoundError:
        print(f"entrypoint: no program {line[0]} in this image", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
