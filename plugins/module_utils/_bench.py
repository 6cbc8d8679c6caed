# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the bench playbook is asked for, and the runs of ``vllm bench serve`` that follow from it.

Note that this module util is PRIVATE to the collection. It can have breaking changes at any time.

``judge_request`` looks at the variables ``bench_*``, ``judge_dataset`` at a file of conversations, and ``plan`` at a
model that runs. Each returns what is wrong in place of raising, so that all of it can be said at once.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from typing import Any

DATASETS = ("random", "sharegpt")
DEFAULTS: Mapping[str, Any] = {
    "models": [],
    "concurrency": [1, 4, 16],
    "prompts": 0,
    "warmup": None,
    "input_tokens": 0,
    "output_tokens": 0,
    "dataset": "random",
    "dataset_file": "",
    "seed": 0,
    "ignore_eos": True,
    "extra_args": [],
    "timeout_min": 60,
    "dir": "bench",
    "max_regression": None,
}
"""What a variable ``bench_NAME`` is when it is not given. None: see ``plan``, or off."""

MAX_CONCURRENCY = 4096
INPUT_TOKENS, OUTPUT_TOKENS = 1024, 128
ROUNDS, FEWEST = 5, 10
"""Requests of a step: so many for each client, and so many at least."""

OURS = frozenset(
    {
        "--base-url",
        "--host",
        "--port",
        "--model",
        "--served-model-name",
        "--tokenizer",
        "--dataset-name",
        "--dataset-path",
        "--input-len",
        "--output-len",
        "--random-input-len",
        "--random-output-len",
        "--sharegpt-output-len",
        "--num-prompts",
        "--max-concurrency",
        "--seed",
        "--ignore-eos",
        "--percentile-metrics",
        "--metric-percentiles",
        "--save-result",
        "--save-detailed",
        "--append-result",
        "--result-dir",
        "--result-filename",
        "--extra-body",
        "--disable-tqdm",
    }
)
"""Options of ``vllm bench serve`` that come from elsewhere than bench_extra_args."""

SERVER = {
    "max_model_len": "MAX_MODEL_LEN",
    "max_num_seqs": "MAX_NUM_SEQS",
    "max_num_batched_tokens": "MAX_NUM_BATCHED_TOKENS",
    "gpu_memory_utilization": "GPU_MEMORY_UTIL",
    "kv_cache_memory_bytes": "KV_CACHE_MEMORY_BYTES",
    "kv_cache_dtype": "KV_CACHE_DTYPE",
    "dtype": "DTYPE",
    "quantization": "QUANTIZATION",
    "load_format": "LOAD_FORMAT",
    "extra_args": "VLLM_EXTRA_ARGS",
}
"""What a server's speed depends on, with the environment variable of its container that says it."""

_TRUE, _FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")


class _Wrong(ValueError):
    """Why a value cannot be used, and what to do."""


# --- the variables ---------------------------------------------------------------------------------------------------


def judge_request(
    given: Mapping[str, Any], served: Sequence[str], started_in: str, inventories: Sequence[str] = ()
) -> dict[str, Any]:
    """Return the variables in their types under their names without ``bench_``, and ``problems``.

    :param given: the variables ``bench_*`` that are set.
    :param served: the models that the inventory serves.
    :param started_in: the directory that a relative path is seen from.
    :param inventories: where the inventory is read from; the results must not lie in there.
    """
    request: dict[str, Any] = {**DEFAULTS, "problems": []}
    for variable, value in given.items():
        name = variable.removeprefix("bench_")
        if name not in DEFAULTS:
            near = difflib.get_close_matches(name, DEFAULTS, n=1)
            hint = f"did you mean bench_{near[0]}?" if near else f"there is bench_{', bench_'.join(DEFAULTS)}"
            request["problems"].append(f"{variable} is no variable of bench; {hint}")
            continue
        try:
            request[name] = _TYPES[name](value)
        except _Wrong as error:
            request["problems"].append(f"{variable} is {_shown(value)}; {error}")
    request["problems"] += _conflicts(request, set(given), served)
    for name in ("dir", "dataset_file"):
        if request[name]:
            request[name] = os.path.normpath(os.path.join(started_in, os.path.expanduser(request[name])))
    request["problems"] += _misplaced(request["dir"], started_in, inventories)
    request["problems"] = [" ".join(line.split()) for line in request["problems"]]
    return request


def _conflicts(request: Mapping[str, Any], given: set[str], served: Sequence[str]) -> list[str]:
    problems = []
    unknown = [name for name in request["models"] if name not in served]
    if unknown:
        problems.append(f"bench_models: {', '.join(unknown)} is not served; there is {', '.join(sorted(served))}")
    most = max(request["concurrency"])
    if 0 < request["prompts"] < most:
        problems.append(
            f"bench_prompts is {request['prompts']}, so that a concurrency of {most} would never be reached; give at "
            f"least {most}, or leave it out for {ROUNDS} times the concurrency"
        )
    if request["dataset"] == "sharegpt":
        if not request["dataset_file"]:
            problems.append("bench_dataset is sharegpt, which needs a file; add -e bench_dataset_file=FILE")
        if request["input_tokens"]:
            problems.append(
                "bench_input_tokens has no meaning with bench_dataset=sharegpt, whose prompts are as they are"
            )
    else:
        if request["dataset_file"]:
            problems.append(
                f"bench_dataset_file is given, but bench_dataset is {request['dataset']}; add -e bench_dataset=sharegpt"
            )
        if "bench_ignore_eos" in given and not request["ignore_eos"]:
            problems.append(
                "bench_ignore_eos is false, which vLLM does not heed with bench_dataset=random; leave it out"
            )
    return problems


def _misplaced(directory: str, started_in: str, inventories: Sequence[str]) -> list[str]:
    """Say where the results would become part of the inventory."""
    for source in inventories:
        place = os.path.realpath(os.path.join(started_in, source))
        inside = os.path.commonpath([place, os.path.realpath(directory)]) == place
        if inside and os.path.isdir(place):
            return [
                f"bench_dir is {directory}, inside the inventory {source}, of which Ansible reads every file; choose "
                "another directory"
            ]
    return []


def _shown(value: object) -> str:
    return json.dumps(value) if isinstance(value, (dict, list, bool)) or value is None else str(value) or "empty"


def _whole(low: int, high: int | None = None) -> Callable[[object], int]:
    """Return a function that takes a whole number within limits, also as text, as ``-e`` has it."""
    wanted = f"give a whole number of at least {low}" if high is None else f"give a whole number from {low} to {high}"

    def read(value: object) -> int:
        text = str(value).strip()
        if not (text.isascii() and text.isdigit()) or int(text) < low or (high is not None and int(text) > high):
            raise _Wrong(wanted)
        return int(text)

    return read


def _listed(value: object) -> list[Any]:
    """Return a list as it is, and text divided at its commas."""
    if isinstance(value, str):
        return [part.strip() for part in value.strip("[] ").split(",") if part.strip()]
    return list(value) if isinstance(value, Sequence) else [value]


def _concurrency(value: object) -> list[int]:
    one = _whole(1, MAX_CONCURRENCY)
    try:
        found = sorted({one(part) for part in _listed(value)})
    except _Wrong as error:
        raise _Wrong(f"{error}, or several as 1,4,16") from None
    if not found:
        raise _Wrong("give at least one number, as 1,4,16")
    return found


def _names(value: object) -> list[str]:
    return [str(part) for part in _listed(value)]


def _yes(value: object) -> bool:
    text = str(value).strip().lower()
    if text not in _TRUE + _FALSE:
        raise _Wrong("give true or false")
    return text in _TRUE


def _dataset(value: object) -> str:
    if value not in DATASETS:
        raise _Wrong(f"choose {' or '.join(DATASETS)}")
    return str(value)


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise _Wrong("give a path")
    return value


def _place(value: object) -> str:
    if not _text(value):
        raise _Wrong("give a directory, or leave it out")
    return str(value)


def _percent(value: object) -> float | None:
    """Return a limit in percent; None for none."""
    if value is None or str(value).strip().lower() in ("", "off", "none", "false", "no"):
        return None
    try:
        number = float(str(value).strip().removesuffix("%"))
    except ValueError:
        number = -1
    if isinstance(value, bool) or not 0 <= number < 1000:
        raise _Wrong("give percent, as 5, or off")
    return number


def _arguments(value: object) -> list[str]:
    try:
        found = shlex.split(value) if isinstance(value, str) else [str(part) for part in _listed(value)]
    except ValueError as error:
        raise _Wrong(f"it cannot be divided into arguments ({error}); give a list") from None
    for part in found:
        flag = part.split("=", 1)[0].replace("_", "-")
        if flag in OURS:
            raise _Wrong(f"{flag} is set by the playbook; leave it out")
        if flag == "--header":
            raise _Wrong("headers stand in a command line that others can read; leave it out")
    return found


_TYPES: Mapping[str, Callable[[Any], Any]] = {
    "models": _names,
    "concurrency": _concurrency,
    "prompts": _whole(0),
    "warmup": _whole(0),
    "input_tokens": _whole(1),
    "output_tokens": _whole(1),
    "dataset": _dataset,
    "dataset_file": _text,
    "seed": _whole(0, 2**32 - 1),
    "ignore_eos": _yes,
    "extra_args": _arguments,
    "timeout_min": _whole(1),
    "dir": _place,
    "max_regression": _percent,
}


# --- the conversations -----------------------------------------------------------------------------------------------


def judge_dataset(path: str) -> dict[str, Any]:
    """Read a file of conversations on the controller as vLLM will.

    vLLM takes the first two turns of each entry that has as many, and stops at one that it does not understand.

    :return: ``sha256``, ``conversations`` (how many vLLM may take) and ``problem``, which is empty for a sound file.
    """
    found: dict[str, Any] = {"sha256": "", "conversations": 0, "problem": ""}
    label = f"bench_dataset_file is {path}"
    form = 'a list of {"conversations": [{"value": …}, {"value": …}]}'
    try:
        with open(path, "rb") as stream:
            content = stream.read()
        entries = json.loads(content.decode("utf-8"))
    except OSError as error:
        found["problem"] = f"{label}, which cannot be read ({error.strerror}); name a file on this machine"
        return found
    except (ValueError, RecursionError) as error:
        found["problem"] = f"{label}, which is no JSON ({error}); it has to be {form}"
        return found
    found["sha256"] = hashlib.sha256(content).hexdigest()
    if not isinstance(entries, list):
        found["problem"] = f"{label}, which is JSON but no list; it has to be {form}"
        return found
    for index, entry in enumerate(entries):
        turns = entry.get("conversations", []) if isinstance(entry, dict) else None
        if not isinstance(turns, list) or not all(_is_turn(turn) for turn in turns[:2]):
            found["problem"] = f"{label}, whose entry {index} is no conversation; it has to be {form}"
            return found
        found["conversations"] += len(turns) >= 2
    if not found["conversations"]:
        found["problem"] = f"{label}, which has no conversation of two turns; it has to be {form}"
    return found


def _is_turn(turn: object) -> bool:
    return isinstance(turn, dict) and isinstance(turn.get("value"), str)


# --- a model that runs -----------------------------------------------------------------------------------------------


def plan(
    request: Mapping[str, Any],
    model: Mapping[str, Any],
    where: Mapping[str, Any],
    container: Mapping[str, Any],
    answer: Mapping[str, Any],
    dataset: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Say how a model is measured, or why it cannot be.

    :param request: what ``judge_request`` returned.
    :param model: the model's element of the fact ``spark_cluster.models``.
    :param where: ``node`` (its leader), ``cluster``, ``url`` (of the API), ``external`` (whether ``serve_url`` is
        given), ``now`` (UTC, as 2026-11-24T10:15:00Z) and ``dataset_path`` (of the conversations, in the container).
    :param container: what docker_container_info said of the container with the API.
    :param answer: what uri registered for the API's list of models.
    :param dataset: what ``judge_dataset`` returned.
    :return: ``problem``, empty where it can be done, ``cluster``, ``name``, ``node``, and then ``image`` (the ID of
        that which serves), ``volumes`` (with the model, read-only), ``steps`` (the arguments of each run),
        ``timeout_s``, and ``record``, what is known about the run beforehand.
    """
    node, name = where["node"], model["name"]
    found: dict[str, Any] = {"problem": "", "cluster": where["cluster"], "name": name, "node": node}
    if where["external"]:
        found["problem"] = f"{where['cluster']}: serve_url is given; bench measures only what site.yml serves itself"
        return found
    if "exists" not in container:
        said = " ".join(str(container.get("msg") or "no answer").split())
        found["problem"] = f"{node}: Docker does not answer ({said}); see `systemctl status docker` there"
        return found
    inspected = container.get("container") or {}
    if not (container["exists"] and inspected["State"]["Running"]):
        found["problem"] = f"{node}: {name} is not running; start it with the start playbook, or run site.yml"
        return found
    served = str(model["served_model_name"]).split()[0]
    longest, problem = _longest(answer, served)
    if problem:
        found["problem"] = f"{node}: {name} {problem.format(url=where['url'])}"
        return found
    tokens = _tokens(request, longest)
    if request["dataset"] == "random" and sum(tokens) > longest:
        found["problem"] = (
            f"{node}: {name} takes {longest} tokens, and {tokens[0]} of input with {tokens[1]} of output are "
            f"{sum(tokens)}; lower bench_input_tokens or bench_output_tokens"
        )
        return found
    env = dict(line.split("=", 1) for line in inspected["Config"]["Env"] if "=" in line)
    found["image"] = inspected["Image"]
    found["volumes"] = _model_volumes(inspected.get("Mounts") or [], env["MODEL"])
    found["timeout_s"] = request["timeout_min"] * 60
    found["steps"] = _steps(request, tokens, served, env["MODEL"], where)
    found["record"] = {
        "when": where["now"],
        "cluster": where["cluster"],
        "model": name,
        "served_model_name": served,
        "nodes": list(model["nodes"]),
        "image": {"id": inspected["Image"], "name": inspected["Config"]["Image"]},
        "executor": env.get("EXECUTOR") or "none",
        "sizes": {kind: int(env.get(f"{kind.upper()}_PARALLEL_SIZE") or 1) for kind in ("tensor", "pipeline", "data")},
        "max_model_len": longest,
        "server": {key: env[variable] for key, variable in SERVER.items() if env.get(variable)},
        "workload": {
            "dataset": request["dataset"],
            "dataset_sha256": (dataset or {}).get("sha256", ""),
            "input_tokens": tokens[0],
            "output_tokens": tokens[1],
            "ignore_eos": request["ignore_eos"],
            "extra_args": list(request["extra_args"]),
        },
        "seed": request["seed"],
        "warmup": _warmup(request),
    }
    return found


def _longest(answer: Mapping[str, Any], served: str) -> tuple[int, str]:
    """Return the longest sequence that a model takes, as its API says, and what is wrong instead."""
    if answer.get("status") != 200:
        said = " ".join(str(answer.get("msg") or "no answer").split())
        return 0, f"does not answer at {{url}} ({said.replace('{', '(').replace('}', ')')}); see the status playbook"
    cards = (answer.get("json") or {}).get("data") or []
    lengths = [card.get("max_model_len") for card in cards if card.get("id") == served]
    if not lengths:
        return (
            0,
            f"is not among the models at {{url}} ({', '.join(str(card.get('id')) for card in cards)}); run site.yml",
        )
    return int(lengths[0] or 0), ""


def _tokens(request: Mapping[str, Any], longest: int) -> tuple[int, int]:
    """Return the tokens of a prompt and an answer; 0 where the conversations decide."""
    if request["dataset"] != "random":
        return 0, request["output_tokens"]
    return (
        request["input_tokens"] or max(1, min(INPUT_TOKENS, longest // 2)),
        request["output_tokens"] or max(1, min(OUTPUT_TOKENS, longest // 4)),
    )


def _warmup(request: Mapping[str, Any]) -> int:
    return int(max(request["concurrency"]) if request["warmup"] is None else request["warmup"])


def _model_volumes(mounts: Sequence[Mapping[str, Any]], path: str) -> list[str]:
    """Return the model as a volume, at the same path and read-only; nothing for one inside the image."""
    for mount in sorted(mounts, key=lambda one: len(one["Destination"]), reverse=True):
        target = str(mount["Destination"])
        if path == target or path.startswith(f"{target.rstrip('/')}/"):
            return [f"{mount['Source']}{path.removeprefix(target)}:{path}:ro"]
    return []


def _steps(
    request: Mapping[str, Any], tokens: tuple[int, int], served: str, path: str, where: Mapping[str, Any]
) -> list[dict[str, Any]]:
    warmup = _warmup(request)
    sizes = [(0, warmup, min(warmup, max(request["concurrency"])))] if warmup else []
    sizes += [
        (clients, request["prompts"] or max(FEWEST, ROUNDS * clients), clients) for clients in request["concurrency"]
    ]
    steps = []
    for step, prompts, clients in sizes:
        # Salted, so that no step finds in vLLM's prefix cache what another one, or another run, has left there.
        salt = json.dumps({"cache_salt": f"bench-{where['now']}-{step}"})
        arguments = ["--backend", "openai", "--base-url", where["url"], "--model", served, "--tokenizer", path]
        arguments += ["--num-prompts", str(prompts), "--max-concurrency", str(clients), "--seed", str(request["seed"])]
        arguments += ["--percentile-metrics", "ttft,tpot,itl,e2el", "--metric-percentiles", "99", "--disable-tqdm"]
        arguments += ["--temperature", "0", "--extra-body", salt, "--dataset-name", request["dataset"]]
        if request["dataset"] == "random":
            arguments += ["--random-input-len", str(tokens[0]), "--random-output-len", str(tokens[1])]
        else:
            arguments += ["--dataset-path", where["dataset_path"]]
            arguments += ["--sharegpt-output-len", str(tokens[1])] if tokens[1] else []
            arguments += ["--ignore-eos"] if request["ignore_eos"] else []
        steps.append({"name": str(step) if step else "warm-up", "arguments": arguments + request["extra_args"]})
    return steps
