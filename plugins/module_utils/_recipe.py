# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Recipes of others for vLLM on Sparks, version 1 (spark-vllm-docker) and 2 (sparkrun), as variables of role serve.

Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import difflib
import re
import shlex
import typing as t
from dataclasses import dataclass, field

from . import _recipe_command
from ._recipe_command import Command, text_of

KINDS: t.Final[t.Mapping[str, str]] = {"1": "eugr", "2": "sparkrun"}
"""Versions of the format, and whose they are."""

SHARED: t.Final = ("recipe_version", "name", "description", "model", "container", "mods", "defaults", "env", "command")
FIELDS: t.Final[t.Mapping[str, frozenset[str]]] = {
    "eugr": frozenset({*SHARED, "build_args", "cluster_only", "solo_only"}),
    "sparkrun": frozenset(
        {*SHARED, "model_revision", "runtime", "runtime_version", "min_nodes", "max_nodes", "mode", "metadata"}
        | {"executor_config", "builder", "builder_config", "pre_exec", "post_exec", "post_commands", "benchmark"}
        | {"runtime_config", "runtime_cache", "cluster_only", "solo_only", "containers", "executor", "stop_after_post"}
        | {"build_args", "cluster_config", "distribution_config"}
    ),
}

RUNTIMES: t.Final[t.Mapping[str, str]] = {
    "vllm": "mp",
    "eugr-vllm": "ray",
    "vllm-distributed": "mp",
    "vllm-ray": "ray",
}
"""Runtimes of version 2 that are vLLM, with the executor that they mean where the recipe does not name one."""

IGNORED: t.Final[t.Mapping[str, str]] = {
    "container": "the collection's own image is used; another one is image_ref",
    "containers": "the collection's own image is used; another one is image_ref",
    "build_args": "the image is built by role image, see image_build",
    "mods": "the image is not changed after it was built; see docs/patches.md",
    "runtime_version": "the image has its version of vLLM, see docs/image.md",
    "runtime_config": "set variables of role serve in its place",
    "runtime_cache": "caches are kept on the nodes, see docs/architecture.md",
    "executor": "containers are started by the collection, see docs/serving.md",
    "cluster_config": "the inventory says what the nodes are",
    "distribution_config": "models are copied by role model",
    "stop_after_post": "a server runs until it is stopped",
    "executor_config": "containers are started by the collection, see docs/serving.md",
    "builder": "the image is built by role image, see image_build",
    "builder_config": "the image is built by role image, see image_build",
    "pre_exec": "nothing is run beside the server",
    "post_exec": "nothing is run beside the server",
    "post_commands": "nothing is run beside the server",
    "benchmark": "nothing is measured",
}
"""Fields that ask for something that is not done, with what to know instead."""

SHOWN: t.Final = ("container", "mods", "runtime_version", "builder", "executor")
"""Those of IGNORED whose value is named; a script or an option may hold a secret."""

MODES: t.Final[t.Mapping[str, tuple[int, int]]] = {"auto": (1, 0), "solo": (1, 1), "cluster": (2, 0)}

LONG: t.Final[t.Mapping[str, str]] = {
    "tensor_parallel": "--tensor-parallel-size",
    "pipeline_parallel": "--pipeline-parallel-size",
    "data_parallel": "--data-parallel-size",
}
"""Names of defaults that vLLM spells in another way."""

DEFAULTS: t.Final = frozenset(
    {*LONG, "tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size", "host", "port"}
    | {"gpu_memory_utilization", "max_model_len", "max_num_seqs", "max_num_batched_tokens", "dtype", "quantization"}
    | {"kv_cache_dtype", "kv_cache_memory_bytes", "load_format", "served_model_name", "distributed_executor_backend"}
    | {"trust_remote_code", "enforce_eager", "enable_prefix_caching", "enable_chunked_prefill", "async_scheduling"}
    | {"enable_auto_tool_choice", "tool_call_parser", "reasoning_parser", "chat_template", "enable_expert_parallel"}
    | {"attention_backend", "block_size", "seed", "speculative_config", "compilation_config", "limit_mm_per_prompt"}
    | {"tokenizer_mode", "swap_space", "api_key"}
)
"""Defaults that become an argument where a recipe has no command."""

_FABRIC_ENV: t.Final = """
NCCL_SOCKET_IFNAME NCCL_IB_HCA NCCL_IB_GID_INDEX NCCL_IB_DISABLE NCCL_IB_MERGE_NICS NCCL_IB_SUBNET_AWARE_ROUTING
NCCL_NET NCCL_NET_PLUGIN GLOO_SOCKET_IFNAME TP_SOCKET_IFNAME MN_IF_NAME UCX_NET_DEVICES OMPI_MCA_btl_tcp_if_include
VLLM_HOST_IP
"""
_SERVER_ENV: t.Final = """
MODEL SERVED_MODEL_NAME HOST PORT API_KEY_FILE TLS_CERT_FILE TLS_KEY_FILE EXECUTOR RAY_ADDRESS HEAD_IP WORKER_IP NNODES
NODE_RANK MASTER_ADDR MASTER_PORT REPLICA_ADDR DATA_PARALLEL_RPC_PORT TENSOR_PARALLEL_SIZE PIPELINE_PARALLEL_SIZE
DATA_PARALLEL_SIZE MAX_MODEL_LEN MAX_NUM_SEQS MAX_NUM_BATCHED_TOKENS GPU_MEMORY_UTIL KV_CACHE_MEMORY_BYTES DTYPE
QUANTIZATION KV_CACHE_DTYPE LOAD_FORMAT SHUTDOWN_TIMEOUT VLLM_EXTRA_ARGS HF_HUB_OFFLINE TRANSFORMERS_OFFLINE HF_HOME
HUGGINGFACE_HUB_CACHE
"""
OWNED_ENV: t.Final[t.Mapping[str, str]] = {
    **dict.fromkeys(_FABRIC_ENV.split(), "role fabric finds it; set fabric_env"),
    **dict.fromkeys(_SERVER_ENV.split(), "the collection sets it itself"),
    **dict.fromkeys(("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"), "a token never reaches a node"),
    "VLLM_API_KEY": "set serve_api_key, from a vault",
}
"""Environment that a recipe cannot set, with why or what to do."""

_EXPANDED = re.compile(r"\$[A-Za-z_{(]")


@dataclass(frozen=True)
class Recipe:
    """A recipe as variables of role serve, with what it asks for besides."""

    file: str
    """The path as the owner wrote it."""
    kind: str = ""
    """`eugr` or `sparkrun`, empty where it cannot be told."""
    title: str = ""
    model: str = ""
    """A name on Hugging Face, or a path."""
    min_nodes: int = 1
    max_nodes: int = 0
    """0 is no limit."""
    limits: tuple[str, str] = ("min_nodes", "max_nodes")
    """The fields that the two above come from."""
    settings: t.Mapping[str, t.Any] = field(default_factory=dict)
    """Variables of role serve in their declared types, without the one that says where the model is."""
    notes: tuple[str, ...] = ()
    """What is not honoured, one line each."""
    problems: tuple[str, ...] = ()
    """Why it cannot be served at all, `what; what to do`."""

    def variables(self, weights: bool) -> dict[str, t.Any]:
        """Return variables of role serve; `weights` says that the inventory names the model's directory itself."""
        # An absolute path is a directory that is on all nodes already, whose name clients use.
        placed = self.kind == "sparkrun" and self.model.startswith("/")
        name = self.model.rstrip("/").rsplit("/", 1)[-1] if placed else self.model
        named = {"serve_served_model_name": name, **self.settings}
        return named if weights else {"model_path" if placed else "serve_model": self.model, **named}

    def lines(self) -> list[str]:
        """Return the problems as the preflight says them."""
        return [f"recipe {self.file}: {problem}" for problem in self.problems]

    def node_problems(self, nodes: int) -> list[str]:
        """Return what speaks against so many nodes, one line at most."""
        running = f"{nodes} {'node' if nodes == 1 else 'nodes'}"
        if nodes < self.min_nodes:
            return [
                f"recipe {self.file}: {self.limits[0]} asks for {self.min_nodes} nodes or more and the model is on "
                f"{running}; add nodes, or change serve_nodes or the parallel sizes"
            ]
        if 0 < self.max_nodes < nodes:
            return [
                f"recipe {self.file}: {self.limits[1]} allows {self.max_nodes} and the model is on {running}; "
                "name fewer in serve_nodes, or lower the parallel sizes"
            ]
        return []


def key_of(variable: str) -> str:
    """Return how an entry of serve_models spells a variable that a recipe sets."""
    return "path" if variable == "model_path" else variable.removeprefix("serve_")


def refused(file: str, problem: str) -> Recipe:
    """Return a recipe that cannot be read, for one reason (`what; what to do`)."""
    return Recipe(file, problems=(problem,))


def parse(file: str, content: object) -> Recipe:
    """Return the recipe in a file's content, as YAML gives it. What is wrong with it is in `problems`."""
    if not isinstance(content, dict) or not content:
        return refused(file, "the file holds no mapping; see docs/recipes.md for the formats")
    given = {str(key): value for key, value in content.items()}
    notes: list[str] = []
    kind = _kind(given, notes)
    if not kind:
        return refused(file, f"recipe_version is {given['recipe_version']!r}; versions 1 and 2 are known")
    problems = [
        f"{name} is {type(given[name]).__name__} and has to be a mapping; correct it"
        for name in ("defaults", "env", "metadata")
        if given.get(name) is not None and not isinstance(given[name], dict)
    ]
    if not isinstance(given.get("model") or "", str):
        choice = isinstance(given["model"], dict) and "model_id" in given["model"]
        problems.append(
            "this is a recipe of vLLM's own, a choice of variants and features; write those you want into variables"
            if choice
            else f"model is {type(given['model']).__name__} and has to be a name; write that of one model"
        )
    problems += _runtime_problems(given)
    low, high, limits = _nodes(given, problems, notes)
    if problems:
        return Recipe(file, kind, notes=tuple(notes), problems=tuple(problems))
    try:
        command = _command(kind, given, notes)
        settings, said = _recipe_command.variables(command.arguments)
    except ValueError as error:
        return Recipe(file, kind, notes=tuple(notes), problems=(str(error),))
    notes += said
    if kind == "sparkrun":
        settings.setdefault("serve_executor", _executor(given))
    # Without it vLLM takes one GPU; a recipe for several nodes leaves it to them.
    if low < 2:
        settings.setdefault("serve_tensor_parallel_size", 1)
    environment = _environment({**(given.get("env") or {}), **(command.environment or {})}, notes)
    if environment:
        settings["serve_extra_env"] = environment
    model = str(given.get("model") or "").strip()
    if model and command.model and command.model != model:
        notes.append(f"command serves {command.model} and model is {model}; {model} is taken")
    model = model or command.model
    if not model:
        return Recipe(file, kind, notes=tuple(notes), problems=("model is missing; name the model",))
    if given.get("model_revision"):
        notes.append(
            f"model_revision {given['model_revision']} cannot be checked; "
            "make sure that the directory has this revision"
        )
    _ignored(kind, given, notes)
    title = str(given.get("name") or (given.get("metadata") or {}).get("description") or given.get("description") or "")
    return Recipe(file, kind, " ".join(title.split()), model, low, high, limits, settings, tuple(dict.fromkeys(notes)))


def _kind(given: t.Mapping[str, t.Any], notes: list[str]) -> str:
    """Return whose format it is, empty for a version that is not known."""
    version = given.get("recipe_version")
    if version is None:
        version = 1 if given.keys() <= FIELDS["eugr"] and given.get("command") else 2
        notes.append(f"recipe_version is missing; it is read as version {version}")
    return KINDS.get(str(version).removesuffix(".0"), "")


def _runtime_problems(given: t.Mapping[str, t.Any]) -> list[str]:
    runtime = str(given.get("runtime") or "vllm")
    if runtime in RUNTIMES:
        return []
    return [f"runtime is {runtime}, and only vLLM is served; choose a recipe for {', '.join(sorted(RUNTIMES))}"]


def _executor(given: t.Mapping[str, t.Any]) -> str:
    """Return what a recipe of version 2 spreads ranks with whose command does not say."""
    runtime = str(given.get("runtime") or "vllm")
    with_ray = (given.get("defaults") or {}).get("distributed_executor_backend") == "ray"
    built = given.get("mods") or given.get("build_args")
    return "ray" if runtime == "vllm" and (with_ray or built) else RUNTIMES[runtime]


def _nodes(given: t.Mapping[str, t.Any], problems: list[str], notes: list[str]) -> tuple[int, int, tuple[str, str]]:
    """Return the fewest and the most nodes (0: any number), and the fields that say so."""
    numbers = {"min_nodes": 1, "max_nodes": 0}
    limits = {"min_nodes": "min_nodes", "max_nodes": "max_nodes"}
    for name in numbers:
        value = given.get(name)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            problems.append(f"{name} is {value!r}; give a number of nodes, 1 or more")
        else:
            numbers[name] = value
    mode = given.get("mode")
    if str(mode) in MODES:
        low, high = MODES[str(mode)]
        if low > numbers["min_nodes"]:
            numbers["min_nodes"], limits["min_nodes"] = low, f"mode {mode}"
        if high:
            numbers["max_nodes"], limits["max_nodes"] = high, f"mode {mode}"
    elif mode is not None:
        notes.append(f"mode {mode} is left out; auto, solo and cluster are known")
    for name, key, number in (("cluster_only", "min_nodes", 2), ("solo_only", "max_nodes", 1)):
        value = given.get(name)
        if value is None:
            continue
        if not isinstance(value, bool):
            problems.append(f"{name} is {value!r}; write true or false")
        elif value and (name == "solo_only" or numbers[key] < number):
            numbers[key], limits[key] = number, name
    low, high = numbers["min_nodes"], numbers["max_nodes"]
    if high and low > high and not problems:
        problems.append(
            f"{limits['min_nodes']} asks for {low} nodes and {limits['max_nodes']} for {high} at most; "
            "correct one of them"
        )
    return low, high, (limits["min_nodes"], limits["max_nodes"])


def _command(kind: str, given: t.Mapping[str, t.Any], notes: list[str]) -> Command:
    """Return the command of a recipe, made from its defaults where it has none. Raises ValueError."""
    defaults = {str(name): value for name, value in (given.get("defaults") or {}).items()}
    template = given.get("command")
    if template is None and kind == "sparkrun":
        return _recipe_command.read(_from_defaults(str(given.get("model") or ""), defaults, notes), {})
    if not isinstance(template, str) or not template.strip():
        raise ValueError("command is missing or no text; write the `vllm serve` line")
    names = {name: given[name] for name in ("model", "model_revision") if given.get(name)}
    command = _recipe_command.read(template, {**names, **defaults})
    unused = [name for name in defaults if name not in command.fields]
    notes += [f"defaults.{name} is not used by the command" for name in unused]
    return command


def _from_defaults(model: str, defaults: t.Mapping[str, t.Any], notes: list[str]) -> str:
    """Return the command line that a recipe's defaults stand for. Braces in it are doubled."""
    words = ["vllm", "serve", *([model] if model else [])]
    for name, value in defaults.items():
        option = LONG.get(name) or f"--{name.replace('_', '-')}"
        if name not in DEFAULTS:
            notes.append(f"defaults.{name} is no known argument; put it into a command, or into serve_extra_args")
        elif isinstance(value, bool):
            words.append(option if value else f"--no-{option[2:]}")
        elif isinstance(value, list):
            words += [option, *(text_of(one) for one in value)]
        elif value is not None:
            words += [option, text_of(value)]
    return shlex.join(words).replace("{", "{{").replace("}", "}}")


def _environment(given: t.Mapping[t.Any, t.Any], notes: list[str]) -> dict[str, str]:
    """Return the environment that is set, values as text; what is not is a note without the value."""
    found: dict[str, str] = {}
    for key, value in given.items():
        name = str(key)
        if name in OWNED_ENV:
            notes.append(f"env.{name} is left out; {OWNED_ENV[name]}")
        elif isinstance(value, (dict, list)) or value is None:
            notes.append(f"env.{name} is no text; it is left out")
        elif _EXPANDED.search(str(value)):
            notes.append(f"env.{name} holds a variable of a shell, which nobody would expand; it is left out")
        else:
            found[name] = str(int(value)) if isinstance(value, bool) else str(value)
    return found


def _ignored(kind: str, given: t.Mapping[str, t.Any], notes: list[str]) -> None:
    """Note every field that is not honoured, and every one that the format does not have."""
    for name, value in given.items():
        if name not in FIELDS[kind]:
            near = difflib.get_close_matches(name, FIELDS[kind], n=1, cutoff=0.7)
            hint = f"did you mean {near[0]}?" if near else "it is left out"
            notes.append(f"{name} is no field of {kind}'s recipes; {hint}")
        elif name in IGNORED and value not in (None, "", [], {}):
            shown = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
            notes.append(f"{name}{f' {shown}' if name in SHOWN else ''} is left out; {IGNORED[name]}")
