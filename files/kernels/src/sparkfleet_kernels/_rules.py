# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Schemas of the operators and the rules for their arguments, as the library has them.

The fake implementations apply the rules while a model is traced, so that wrong use shows there and not at the first
launch. A size that is a symbol at that time is not guarded on: where a rule cannot be decided without a guard it is
left to the launch, else a compiled model would be bound to the sizes of its first call.
"""

from __future__ import annotations

from typing import TypeAlias

import torch
from torch import SymBool, SymInt, Tensor

from .layout import GROUP, scale_shape

#: Namespace of the operators in torch.ops.
NAMESPACE = "sparkfleet_kernels"
#: Operator -> what follows its name in the schema.
SCHEMAS = {
    "nvfp4_gemm_a16": (
        "(Tensor x, Tensor weight, Tensor weight_scale, Tensor alpha, bool swizzled=True, int variant=0) -> Tensor"
    ),
    "nvfp4_moe_a16": (
        "(Tensor x, Tensor w13, Tensor w13_scale, Tensor w13_alpha, Tensor w2, Tensor w2_scale, Tensor w2_alpha, "
        "Tensor topk_weights, Tensor topk_ids, Tensor? expert_map, Tensor(a!) out, bool swizzled=True, "
        "int variant13=0, int variant2=0) -> ()"
    ),
    "nvfp4_quantize": "(Tensor x, Tensor global_scale, bool swizzled=True, bool silu_mul=False) -> (Tensor, Tensor)",
    "nvfp4_gemm_a4": (
        "(Tensor x, Tensor x_scale, Tensor weight, Tensor weight_scale, Tensor alpha, bool swizzled=True) -> Tensor"
    ),
    "read_probe": "(Tensor x, Tensor(a!) sink) -> ()",
}

#: Most tokens of one call, most experts of a layer here, and most experts of a token.
MAX_TOKENS = 16
MAX_EXPERTS = 512
MAX_TOP_K = 32
#: K has to be a multiple of this many values.
K_MULTIPLE = 64

Size: TypeAlias = int | SymInt


class Rules:
    """The rules of one operator; each method raises RuntimeError with a text that begins with the operator's name."""

    def __init__(self, operator: str) -> None:
        self.operator = operator

    def require(self, condition: bool | SymBool, text: str) -> None:
        """Raise unless the condition holds or, with symbolic sizes, cannot be decided."""
        if isinstance(condition, SymBool):
            # It takes seconds to load; where there are symbols it has been loaded.
            from torch.fx.experimental.symbolic_shapes import statically_known_false

            failed = statically_known_false(condition)
        else:
            failed = not condition
        if failed:
            raise RuntimeError(f"{self.operator}: {text}")

    def tensor(self, name: str, tensor: Tensor, dtype: torch.dtype, like: Tensor, dims: int) -> None:
        """Ask for a contiguous tensor of this dtype and number of dimensions on the device of ``like``."""
        self.require(tensor.dtype == dtype, f"{name} must be {_name(dtype)}, is {_name(tensor.dtype)}")
        self.require(tensor.dim() == dims, f"{name} must have {dims} dimensions, has {tensor.dim()}")
        self.require(tensor.device == like.device, f"{name} must be on {like.device}, is on {tensor.device}")
        if all(isinstance(size, int) for size in (*tensor.shape, *tensor.stride())):
            self.require(tensor.is_contiguous(), f"{name} must be contiguous, has strides {list(tensor.stride())}")

    def shape(self, name: str, tensor: Tensor, *sizes: Size) -> None:
        """Ask for these sizes; the number of dimensions has been checked."""
        for is_size, size in zip(tensor.shape, sizes, strict=True):
            self.require(is_size == size, f"{name} must be {list(sizes)}, is {list(tensor.shape)}")

    def factor(self, name: str, tensor: Tensor, like: Tensor) -> None:
        """Ask for one float32."""
        self.require(tensor.dtype == torch.float32, f"{name} must be float32, is {_name(tensor.dtype)}")
        self.require(tensor.numel() == 1, f"{name} must have 1 element, has {tensor.numel()}")
        self.require(tensor.device == like.device, f"{name} must be on {like.device}, is on {tensor.device}")

    def tokens(self, tokens: Size) -> None:
        """Ask for at most 16 rows."""
        self.require(tokens <= MAX_TOKENS, f"x must have at most {MAX_TOKENS} rows, has {tokens}")

    def depth(self, name: str, size: Size) -> None:
        """Ask for a positive multiple of 64."""
        self.require(size % K_MULTIPLE == 0, f"{name} must be a multiple of {K_MULTIPLE}, is {size}")
        self.require(size > 0, f"{name} must be positive, is {size}")

    def variant(self, name: str, variant: Size) -> None:
        """Ask for a variant that is not negative; whether it fits is for the library to say."""
        self.require(variant >= 0, f"{name} must not be negative, is {variant}")


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def check_gemm_a16(
    x: Tensor, weight: Tensor, weight_scale: Tensor, alpha: Tensor, swizzled: bool = True, variant: int = 0
) -> None:
    """Apply the rules of ``nvfp4_gemm_a16``.

    :raises RuntimeError: an argument is not what the operator takes.
    """
    rules = Rules("nvfp4_gemm_a16")
    rules.tensor("x", x, torch.bfloat16, x, 2)
    rules.tensor("weight", weight, torch.uint8, x, 2)
    rules.tensor("weight_scale", weight_scale, torch.uint8, x, 2)
    rules.factor("alpha", alpha, x)
    tokens, depth = x.shape
    rows = weight.shape[0]
    rules.tokens(tokens)
    rules.depth("K", depth)
    rules.shape("weight", weight, rows, depth // 2)
    rules.shape("weight_scale", weight_scale, *scale_shape(rows, depth // GROUP, swizzled))
    rules.variant("variant", variant)


def check_moe_a16(
    x: Tensor,
    w13: Tensor,
    w13_scale: Tensor,
    w13_alpha: Tensor,
    w2: Tensor,
    w2_scale: Tensor,
    w2_alpha: Tensor,
    topk_weights: Tensor,
    topk_ids: Tensor,
    expert_map: Tensor | None,
    out: Tensor,
    swizzled: bool = True,
    variant13: int = 0,
    variant2: int = 0,
) -> None:
    """Apply the rules of ``nvfp4_moe_a16``.

    :raises RuntimeError: an argument is not what the operator takes.
    """
    rules = Rules("nvfp4_moe_a16")
    rules.tensor("x", x, torch.bfloat16, x, 2)
    for name, tensor in (("w13", w13), ("w13_scale", w13_scale), ("w2", w2), ("w2_scale", w2_scale)):
        rules.tensor(name, tensor, torch.uint8, x, 3)
    rules.tensor("w13_alpha", w13_alpha, torch.float32, x, 1)
    rules.tensor("w2_alpha", w2_alpha, torch.float32, x, 1)
    rules.tensor("topk_weights", topk_weights, torch.float32, x, 2)
    rules.tensor("topk_ids", topk_ids, torch.int32, x, 2)
    rules.tensor("out", out, torch.bfloat16, x, 2)
    if expert_map is not None:
        rules.tensor("expert_map", expert_map, torch.int32, x, 1)
    tokens, hidden = x.shape
    experts, rows = w13.shape[:2]
    inner = w2.shape[2] * 2
    top_k = topk_ids.shape[1]
    rules.tokens(tokens)
    rules.require(experts >= 1, f"w13 must have at least 1 expert, has {experts}")
    rules.require(experts <= MAX_EXPERTS, f"w13 must have at most {MAX_EXPERTS} experts, has {experts}")
    rules.require(top_k >= 1, f"topk_ids must have at least 1 column, has {top_k}")
    rules.require(top_k <= MAX_TOP_K, f"topk_ids must have at most {MAX_TOP_K} columns, has {top_k}")
    rules.depth("H", hidden)
    rules.depth("I", inner)
    rules.shape("w13", w13, experts, 2 * inner, hidden // 2)
    rules.shape("w2", w2, experts, hidden, inner // 2)
    rules.shape("w13_scale", w13_scale, experts, *scale_shape(rows, hidden // GROUP, swizzled))
    rules.shape("w2_scale", w2_scale, experts, *scale_shape(hidden, inner // GROUP, swizzled))
    rules.shape("w13_alpha", w13_alpha, experts)
    rules.shape("w2_alpha", w2_alpha, experts)
    rules.shape("topk_ids", topk_ids, tokens, top_k)
    rules.shape("topk_weights", topk_weights, tokens, top_k)
    rules.shape("out", out, tokens, hidden)
    rules.variant("variant13", variant13)
    rules.variant("variant2", variant2)


def check_quantize(x: Tensor, global_scale: Tensor, swizzled: bool = True, silu_mul: bool = False) -> None:
    """Apply the rules of ``nvfp4_quantize``.

    :raises RuntimeError: an argument is not what the operator takes.
    """
    rules = Rules("nvfp4_quantize")
    rules.tensor("x", x, torch.bfloat16, x, 2)
    rules.factor("global_scale", global_scale, x)
    columns = x.shape[1]
    if silu_mul:
        rules.require(columns % 2 == 0, f"x must have 2 * K columns (gate, up), has {columns}")
        columns = columns // 2
    rules.require(columns % GROUP == 0, f"K must be a multiple of {GROUP}, is {columns}")
    rules.require(columns > 0, f"K must be positive, is {columns}")


def check_gemm_a4(
    x: Tensor, x_scale: Tensor, weight: Tensor, weight_scale: Tensor, alpha: Tensor, swizzled: bool = True
) -> None:
    """Apply the rules of ``nvfp4_gemm_a4``.

    :raises RuntimeError: an argument is not what the operator takes.
    """
    rules = Rules("nvfp4_gemm_a4")
    for name, tensor in (("x", x), ("x_scale", x_scale), ("weight", weight), ("weight_scale", weight_scale)):
        rules.tensor(name, tensor, torch.uint8, x, 2)
    rules.factor("alpha", alpha, x)
    tokens, depth = x.shape[0], x.shape[1] * 2
    rows = weight.shape[0]
    rules.tokens(tokens)
    rules.depth("K", depth)
    rules.shape("weight", weight, rows, depth // 2)
    rules.shape("x_scale", x_scale, *scale_shape(tokens, depth // GROUP, swizzled))
    rules.shape("weight_scale", weight_scale, *scale_shape(rows, depth // GROUP, swizzled))


def check_read_probe(x: Tensor, sink: Tensor) -> None:
    """Apply the rules of ``read_probe``.

    :raises RuntimeError: an argument is not what the operator takes.
    """
    rules = Rules("read_probe")
    rules.tensor("x", x, torch.uint8, x, 1)
    rules.require(x.numel() % 16 == 0, f"x must have a multiple of 16 bytes, has {x.numel()}")
    rules.require(sink.dtype == torch.int32, f"sink must be int32, is {_name(sink.dtype)}")
    rules.require(sink.device == x.device, f"sink must be on {x.device}, is on {sink.device}")
    rules.require(sink.numel() >= 1, "sink must have at least 1 element, has 0")
