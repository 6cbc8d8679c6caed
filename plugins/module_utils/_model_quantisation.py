# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module util is PRIVATE to the collection. It can have breaking changes at any time.
"""How a checkpoint stores its matrices: bits, scales, and which layers were left as they are."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

DTYPE_BYTES = {"float32": 4, "float": 4, "bfloat16": 2, "float16": 2, "half": 2, "float8_e4m3fn": 1}

# What vLLM takes a modelopt checkpoint's KV cache for.
_KV = {"fp8": "fp8", "fp8_e4m3": "fp8", "nvfp4": "nvfp4"}
_PREFIX = re.compile(r"^(?:model\.language_model\.|language_model\.model\.|language_model\.|model\.|backbone\.)")


@dataclass(frozen=True)
class Storage:
    """How one matrix is stored.

    :param bits: of an element
    :param block: rows and columns that share a scale; 0: all of them
    :param scale_bits: of a block's scale and zero point
    :param tensor_bytes: of what a matrix has besides
    """

    bits: int
    block: tuple[int, int] = (0, 0)
    scale_bits: float = 0.0
    tensor_bytes: int = 0
    padded: bool = False  # vLLM rounds the experts' sizes up for its kernels

    def bytes(self, rows: int, columns: int) -> int:
        """Return the bytes of a matrix. A vector has no scales."""
        size = math.ceil(rows * columns * self.bits / 8)
        if columns > 1 and self.scale_bits:
            down, across = self.block[0] or rows, self.block[1] or columns
            size += math.ceil(math.ceil(rows / down) * math.ceil(columns / across) * self.scale_bits / 8)
        return size + (self.tensor_bytes if columns > 1 else 0)


@dataclass(frozen=True)
class Quantisation:
    """What a checkpoint's quantisation covers. ``groups``: patterns (none: everything) with their storage, in order."""

    name: str = ""
    groups: tuple[tuple[tuple[str, ...], Storage], ...] = ()
    ignored: tuple[str, ...] = ()
    kv_dtype: str = ""
    head: bool = False  # whether lm_head is quantised too
    notes: tuple[str, ...] = ()

    def storage(self, name: str, dtype_bytes: int) -> Storage:
        """Return how the linear layer ``name`` (``layers.0.mlp.up_proj``) is stored."""
        if not any(_matches(pattern, name) for pattern in self.ignored):
            for patterns, storage in self.groups:
                if not patterns or any(_matches(pattern, name) for pattern in patterns):
                    return storage
        return Storage(bits=8 * dtype_bytes)

    @property
    def block(self) -> tuple[int, int]:
        """Rows and columns that share a scale, of the first group that says so."""
        return next((storage.block for _patterns, storage in self.groups if any(storage.block)), (0, 0))


def _matches(pattern: str, name: str) -> bool:
    """Say whether a pattern of an ignore list means a layer: a regular expression, a glob, a whole or a part name."""
    if pattern.startswith("re:"):
        full = f"model.{name}"
        return re.match(pattern[3:], full) is not None or re.match(pattern[3:], f"model.language_{full}") is not None
    plain = _PREFIX.sub("", pattern)
    if "*" in plain:
        return fnmatchcase(name, plain) or fnmatchcase(name, f"{plain}.*") or fnmatchcase(f"model.{name}", pattern)
    return name == plain or name.startswith(f"{plain}.") or ("." not in plain and plain in name.split("."))


def _strings(value: object) -> tuple[str, ...]:
    return tuple(str(one) for one in value) if isinstance(value, (list, tuple)) else ()


def _number(value: object, default: int) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else default


NVFP4 = Storage(bits=4, block=(1, 16), scale_bits=8, tensor_bytes=8)
MXFP4 = Storage(bits=4, block=(1, 32), scale_bits=8)


def _fp8(block: object) -> Storage:
    if isinstance(block, Sequence) and not isinstance(block, str) and len(block) == 2:
        return Storage(bits=8, block=(_number(block[0], 128), _number(block[1], 128)), scale_bits=32)
    return Storage(bits=8, tensor_bytes=8)


def _packed(bits: int, group: int, zero_point: bool) -> Storage:
    return Storage(bits=bits, block=(1, group), scale_bits=16 + (bits if zero_point else 0))


def _modelopt(config: Mapping[str, Any]) -> Quantisation:
    inner = config.get("quantization")
    part: Mapping[str, Any] = inner if isinstance(inner, Mapping) else config
    algorithm = str(part.get("quant_algo") or config.get("quant_algo") or "").upper()
    ignored = _strings(part.get("exclude_modules") or config.get("ignore") or config.get("exclude_modules"))
    kv = part.get("kv_cache_scheme") or config.get("kv_cache_scheme") or part.get("kv_cache_quant_algo")
    if isinstance(kv, Mapping):
        kv = {8: "fp8", 4: "nvfp4"}.get(_number(kv.get("num_bits"), 0), "")
    kv_dtype = _KV.get(str(kv or "").lower(), "")
    if algorithm == "MIXED_PRECISION":
        layers = part.get("quantized_layers") or config.get("quantized_layers") or {}
        groups = tuple(((str(name),), _modelopt_storage(entry)) for name, entry in layers.items())
        return Quantisation("mixed", groups, ignored, kv_dtype)
    storage = _modelopt_storage({**part, "quant_algo": algorithm})
    return Quantisation("nvfp4" if storage is NVFP4 else "fp8", (((), storage),), ignored, kv_dtype)


def _modelopt_storage(entry: Any) -> Storage:
    algorithm = str(entry.get("quant_algo") if isinstance(entry, Mapping) else entry).upper()
    if "NVFP4" in algorithm:
        return NVFP4
    if "W4A16" in algorithm or "INT4" in algorithm or "AWQ" in algorithm:
        return _packed(4, _number(entry.get("group_size"), 128), zero_point=False)
    return _fp8([128, 128] if algorithm == "FP8_PB_WO" else None)


def _compressed(config: Mapping[str, Any]) -> Quantisation:
    groups: list[tuple[tuple[str, ...], Storage]] = []
    entries = config.get("config_groups")
    name = ""
    for entry in entries.values() if isinstance(entries, Mapping) else ():
        weights = entry.get("weights") if isinstance(entry, Mapping) else None
        if not isinstance(weights, Mapping):
            continue
        bits, group = _number(weights.get("num_bits"), 8), _number(weights.get("group_size"), 0)
        if weights.get("type") == "float" and bits == 4:
            storage, kind = (NVFP4, "nvfp4") if group == 16 else (MXFP4, "mxfp4")
        elif weights.get("type") == "float":
            block = weights.get("block_structure")
            per_row = Storage(bits=8, block=(1, 0), scale_bits=16)
            storage, kind = (_fp8(block) if block else per_row), "fp8"
        else:
            storage, kind = _packed(bits, group or 128, weights.get("symmetric") is False), f"int{bits}"
        targets = tuple(one for one in _strings(entry.get("targets")) if one != "Linear")
        groups.append((targets, storage))
        name = name or kind
    kv = "fp8" if isinstance(config.get("kv_cache_scheme"), Mapping) else ""
    # A group with names goes before the one for all.
    groups.sort(key=lambda one: not one[0])
    return Quantisation(name, tuple(groups), _strings(config.get("ignore")), kv)


def read_quantisation(config: object) -> Quantisation:
    """Return what a quantization_config says; an unknown method counts as not quantised, and a note says so."""
    if not isinstance(config, Mapping):
        return Quantisation()
    method = str(config.get("quant_method") or "").lower().replace("_", "-")
    producer = config.get("producer")
    if method.startswith("modelopt") or (isinstance(producer, Mapping) and producer.get("name") == "modelopt"):
        return _modelopt(config)
    if method == "compressed-tensors" or "config_groups" in config:
        return _compressed(config)
    kept = _strings(config.get("modules_to_not_convert") or config.get("ignored_layers"))
    bits = _number(config.get("bits") or config.get("w_bit"), 4)
    group = _number(config.get("group_size") or config.get("q_group_size"), 128)
    if method in ("fp8", "fbgemm-fp8"):
        return Quantisation("fp8", (((), _fp8(config.get("weight_block_size"))),), kept)
    if method in ("mxfp4", "gpt-oss-mxfp4"):
        # Only the experts, whatever the list of the rest says.
        experts = Storage(MXFP4.bits, MXFP4.block, MXFP4.scale_bits, padded=True)
        return Quantisation("mxfp4", ((("*.experts",), experts),), kept)
    if method in ("awq", "auto-awq", "awq-marlin"):
        return Quantisation(f"int{bits}", (((), _packed(bits, group, bool(config.get("zero_point", True)))),), kept)
    if method in ("gptq", "gptq-marlin", "auto-round", "auto-gptq"):
        head = bool(config.get("lm_head"))
        return Quantisation(f"int{bits}", (((), _packed(bits, group, zero_point=True)),), kept, head=head)
    if method == "bitsandbytes":
        four = bool(config.get("load_in_4bit"))
        storage = (
            Storage(bits=4, block=(1, 64), scale_bits=32) if four else Storage(bits=8, block=(1, 0), scale_bits=32)
        )
        return Quantisation("int4" if four else "int8", (((), storage),), kept)
    return Quantisation(notes=(f"the quantisation {method or 'without a name'} is not known here",) if config else ())
