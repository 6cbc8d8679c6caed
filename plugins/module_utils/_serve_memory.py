# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the memory plan of a model is asked, from the variables of role serve.

Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import re
import typing as t

_UNITS: t.Final = {"": 1, "b": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_BINARY: t.Final = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)([A-Za-z]?)[iI]?[bB]?\Z")

_FLAGS: t.Final[t.Mapping[str, type]] = {
    "max_model_len": str,
    "max_num_seqs": int,
    "max_num_batched_tokens": str,
    "gpu_memory_utilization": float,
    "kv_cache_memory_bytes": str,
    "kv_cache_dtype": str,
    "dtype": str,
    "block_size": int,
}
"""Options of vLLM that an owner may give in serve_extra_args and that the plan has to know."""


def size(text: object) -> int:
    """Return a size in bytes as vLLM reads it: `64M` is 64 MiB, `64m` is 64 million. Raises ValueError."""
    match = _SIZE.match(str(text).strip())
    factor = {**_UNITS, **_BINARY}.get(match.group(2), 0) if match else 0
    if match is None or not factor:
        raise ValueError(f"{text!r} is no size; write it as 64M or 8G")
    return int(float(match.group(1)) * factor)


def docker_size(text: object) -> int:
    """Return a size in bytes as Docker reads it, where `8g` is 8 GiB. Raises ValueError."""
    return size(str(text).strip().upper())


def flags(arguments: t.Sequence[object]) -> dict[str, t.Any]:
    """Return those of vLLM's arguments that matter for the memory, as the settings that they stand for.

    Raises ValueError for a value that cannot be read.
    """
    found: dict[str, t.Any] = {}
    words = [str(word) for word in arguments]
    for index, word in enumerate(words):
        name, equals, value = word.partition("=")
        if not name.startswith("--"):
            continue
        key = name[2:].replace("-", "_")
        if key == "enforce_eager":
            found[key] = True
        elif key in _FLAGS:
            given = value if equals else "".join(words[index + 1 : index + 2])
            found[key] = size(given) if key.endswith(("_len", "_tokens", "_bytes")) else _FLAGS[key](given)
    return found


def settings(model: t.Mapping[str, t.Any], object_store_bytes: int, device: str) -> dict[str, t.Any]:
    """Return what the memory plan is asked for one model of the fact `spark_cluster`.

    `object_store_bytes` is the size of Ray's store on each node, `device` cuda or cpu. Raises ValueError for a
    size that cannot be read.
    """
    kv_bytes = model.get("kv_cache_memory_bytes") or 0
    asked: dict[str, t.Any] = {
        "tensor_parallel_size": model["tensor_parallel_size"],
        "pipeline_parallel_size": model["pipeline_parallel_size"],
        "data_parallel_size": model["data_parallel_size"],
        "max_model_len": model.get("max_model_len") or 0,
        "max_num_seqs": model.get("max_num_seqs") or 0,
        "max_num_batched_tokens": model.get("max_num_batched_tokens") or 0,
        "gpu_memory_utilization": model.get("gpu_memory_utilization") or 0.0,
        "kv_cache_memory_bytes": size(kv_bytes) if kv_bytes else 0,
        "kv_cache_dtype": model.get("kv_cache_dtype") or "auto",
        "dtype": model.get("dtype") or "auto",
        "executor": model["executor"] or "none",
        "shm_bytes": docker_size(model.get("shm_size") or 0),
        "object_store_bytes": object_store_bytes if model["executor"] == "ray" else 0,
        "device": device,
    }
    # What stands last on the command line counts.
    return {**asked, **flags(model.get("extra_args") or [])}


def problem(name: str, report: t.Mapping[str, t.Any]) -> str:
    """Return why a model is refused, with the sums below, or an empty string where it fits."""
    if report["fits"]:
        return ""
    todo = report["advice"] or "choose a smaller model or more Sparks"
    sums = "".join(f"\n    {line}" for line in report["lines"])
    return f"{name} does not fit: {report['reason']}; {todo}{sums}"


def others(
    model: t.Mapping[str, t.Any],
    found: t.Mapping[str, t.Mapping[str, t.Any]],
    models: t.Sequence[t.Mapping[str, t.Any]],
) -> int:
    """Return the bytes that other models, as far as they are in `found`, take on the fullest of a model's nodes."""
    taken = dict.fromkeys(model["nodes"], 0)
    for other in models:
        if other["name"] != model["name"]:
            for node in set(other["nodes"]) & set(taken):
                taken[node] += int(found.get(other["name"], {}).get("takes_bytes", 0))
    return max(taken.values())
