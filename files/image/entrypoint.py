# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Entrypoint of the vLLM image: ``docker run IMAGE serve|ray-head|ray-worker|bash|verify``.

It is configured by its environment. Every mode ends in an exec, so the program itself gets the container's signals.
``command`` and ``environment`` say what is started; only ``main`` touches the machine. Runs with the image's Python,
standard library only.
"""

from __future__ import annotations

import os
import shlex
import signal
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from types import FrameType

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
VLLM_FLAGS = {
    "MAX_MODEL_LEN": "--max-model-len",
    "GPU_MEMORY_UTIL": "--gpu-memory-utilization",
}
NUMBERS = {*RAY_FLAGS, *RAY_HEAD_FLAGS, "RAY_PORT", "PORT", "TENSOR_PARALLEL_SIZE", "MAX_MODEL_LEN", "NUM_GPUS"} | {
    "NUM_CPUS",
    "WAIT_S",
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
    """Raise EntrypointError where a variable that is a number (port, count, seconds, bytes) is something else."""
    for name in sorted(NUMBERS):
        value = env.get(name, "")
        if value and not (value.isascii() and value.isdigit()):
            raise EntrypointError(f"{name}={value} is not a number; correct or unset it")


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


def serve(env: Mapping[str, str]) -> list[str]:
    """Return the ``vllm serve`` command line."""
    line = ["vllm", "serve", need("serve", env, "MODEL")]
    line += ["--host", env.get("HOST") or "0.0.0.0", "--port", env.get("PORT") or "8888"]
    if names := env.get("SERVED_MODEL_NAME", "").split():
        line += ["--served-model-name", *names]
    line.append(f"--tensor-parallel-size={env.get('TENSOR_PARALLEL_SIZE') or '1'}")
    if executor := env.get("EXECUTOR"):
        if executor != "ray":
            raise EntrypointError(f"EXECUTOR={executor} is unknown; use ray, or leave it empty for one node")
        need("serve with EXECUTOR=ray", env, "HEAD_IP")
        line.append("--distributed-executor-backend=ray")
    line += flags(env, VLLM_FLAGS)
    try:
        return line + shlex.split(env.get("VLLM_EXTRA_ARGS", ""))
    except ValueError as error:
        raise EntrypointError(f"VLLM_EXTRA_ARGS cannot be split ({error}); close its quotes") from error


def command(mode: str, env: Mapping[str, str], arguments: Sequence[str] = ()) -> list[str]:
    """Return what ``mode`` runs.

    ``arguments`` are what follows the mode on the command line: options appended to vLLM's or Ray's own, and for
    ``bash`` either the shell's options or a command of its own. Raises EntrypointError.
    """
    check_numbers(env)
    if mode == "serve":
        return [*serve(env), *arguments]
    if mode in ("ray-head", "ray-worker"):
        return [*ray(mode, env), *arguments]
    if mode == "bash":
        return list(arguments) if arguments and not arguments[0].startswith("-") else ["bash", *arguments]
    if mode == "verify":
        return [sys.executable, VERIFY, *arguments]
    raise EntrypointError(f"unknown mode {mode!r}; use one of {', '.join(MODES)}")


def environment(mode: str, env: Mapping[str, str]) -> dict[str, str]:
    """Return what is added to the environment: what follows from a variable that is set and was not set itself."""
    derived: dict[str, str] = {}
    if env.get("NCCL_SOCKET_IFNAME"):
        derived["GLOO_SOCKET_IFNAME"] = env["NCCL_SOCKET_IFNAME"]
    own = env.get("WORKER_IP" if mode == "ray-worker" else "HEAD_IP")
    if own and mode != "bash":
        derived["VLLM_HOST_IP"] = own
    if env.get("EXECUTOR") == "ray" and env.get("HEAD_IP"):
        derived["RAY_ADDRESS"] = f"{env['HEAD_IP']}:{ray_port(env)}"
    return {name: value for name, value in derived.items() if not env.get(name)}


def api_key(env: Mapping[str, str]) -> dict[str, str]:
    """Return VLLM_API_KEY as read from API_KEY_FILE: in a file no process list and no `docker inspect` shows it."""
    path = env.get("API_KEY_FILE", "")
    if not path:
        return {}
    try:
        with open(path, encoding="utf-8") as file:
            key = file.read().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise EntrypointError(f"API_KEY_FILE {path} cannot be read ({error}); mount it into the container") from error
    if not key:
        raise EntrypointError(f"API_KEY_FILE {path} is empty; write the key into it")
    return {"VLLM_API_KEY": key}


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

    Raises EntrypointError after WAIT_S seconds (300).
    """
    seconds = int(env.get("WAIT_S") or 300)
    deadline = time.monotonic() + seconds
    own = {"ray-head": "HEAD_IP", "ray-worker": "WORKER_IP"}.get(mode)
    while own and not is_local(env[own]):
        if time.monotonic() >= deadline:
            raise EntrypointError(f"{own} {env[own]} is on no interface after {seconds} s; check the fabric addresses")
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
        line = command(mode, os.environ, rest)
        if mode == "serve":
            os.environ.update(api_key(os.environ))
        os.environ.update(environment(mode, os.environ))
        wait(mode, os.environ)
        print("entrypoint:", shlex.join(line), file=sys.stderr, flush=True)
        os.execvp(line[0], line)
    except EntrypointError as error:
        print(f"entrypoint: {error}", file=sys.stderr)
    except FileNotFoundError:
        print(f"entrypoint: no program {line[0]} in this image", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
