# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What every operator has to return, computed in float64 by plain torch; shares nothing with the kernels.

A value is rounded only where the operators' contract rounds it (to bfloat16 between the two halves of an expert and at
the end of ``moe_a16``), so what separates a kernel from these is its float32 accumulation and nothing else. The results
of the products are returned in float64: rounding the last step is left to the caller. Works on any device; scales are
uint8 or float8_e4m3fn.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .layout import (
    E2M1_MAX,
    E2M1_VALUES,
    GROUP,
    decode_e4m3,
    encode_e2m1,
    encode_e4m3,
    pack_e2m1,
    swizzle_scales,
    unpack_e2m1,
    unswizzle_scales,
)


def dequantize(packed: Tensor, scales: Tensor, swizzled: bool = False) -> Tensor:
    """Return the values of an NVFP4 matrix without its global factor.

    :param packed: uint8 [..., rows, K/2].
    :param scales: E4M3 block scales, linear [..., rows, K/16] or swizzled [..., ceil128(rows), ceil4(K/16)].
    :returns: float64 [..., rows, K]; exact, NaN where the scale is.
    """
    codes = unpack_e2m1(packed)
    rows, depth = codes.shape[-2:]
    if swizzled:
        scales = unswizzle_scales(scales, rows, depth // GROUP)
    values = torch.tensor(E2M1_VALUES, dtype=torch.float64, device=packed.device)[codes.long()]
    return values * decode_e4m3(scales, torch.float64).repeat_interleave(GROUP, dim=-1)


def gemm_a16(x: Tensor, weight: Tensor, weight_scale: Tensor, alpha: Tensor, swizzled: bool = True) -> Tensor:
    """Return alpha * x @ dequantize(weight).T as float64 [M, N]; arguments as ``ops.nvfp4_gemm_a16`` takes them."""
    return alpha.double().reshape(()) * (x.double() @ dequantize(weight, weight_scale, swizzled).T)


def gemm_a4(
    x: Tensor, x_scale: Tensor, weight: Tensor, weight_scale: Tensor, alpha: Tensor, swizzled: bool = True
) -> Tensor:
    """Return alpha * dequantize(x) @ dequantize(weight).T as float64 [M, N]; takes what ``ops.nvfp4_gemm_a4`` takes."""
    return alpha.double().reshape(()) * (
        dequantize(x, x_scale, swizzled) @ dequantize(weight, weight_scale, swizzled).T
    )


def local_experts(topk_ids: Tensor, experts: int, expert_map: Tensor | None = None) -> Tensor:
    """Return which expert of this rank each (token, slot) asks for, -1 where it is none of ours.

    :param topk_ids: integer [M, k], global expert numbers; negative ones and those beyond the experts are skipped.
    :param experts: experts of this rank.
    :param expert_map: integer [global experts]: number on this rank or -1; None: global numbers are ours.
    :returns: int64 [M, k].
    """
    ids = topk_ids.long()
    if expert_map is not None:
        known = (ids >= 0) & (ids < expert_map.numel())
        ids = torch.where(known, expert_map.long()[torch.where(known, ids, 0)], -1)
    return torch.where((ids >= 0) & (ids < experts), ids, -1)


def moe_a16(
    x: Tensor,
    w13: Tensor,
    w13_scale: Tensor,
    w13_alpha: Tensor,
    w2: Tensor,
    w2_scale: Tensor,
    w2_alpha: Tensor,
    topk_weights: Tensor,
    topk_ids: Tensor,
    expert_map: Tensor | None = None,
    swizzled: bool = True,
) -> Tensor:
    """Return the weighted sum of the experts as float64 [M, H]; arguments as ``ops.nvfp4_moe_a16`` takes them.

    The two roundings to bfloat16 that the operator's contract has, of h and of every expert's result, are made here
    too.
    """
    ids = local_experts(topk_ids, w13.shape[0], expert_map)
    inner = w13.shape[1] // 2
    results = torch.zeros(*ids.shape, x.shape[1], dtype=torch.float64, device=x.device)  # [M, k, H]
    for expert in sorted(set(ids.flatten().tolist()) - {-1}):
        token, slot = (ids == expert).nonzero(as_tuple=True)
        gate_up = dequantize(w13[expert], w13_scale[expert], swizzled)
        down = dequantize(w2[expert], w2_scale[expert], swizzled)
        product = w13_alpha[expert].double() * (x[token].double() @ gate_up.T)
        gate, up = product[:, :inner], product[:, inner:]
        h = _bf16(gate * torch.sigmoid(gate) * up)
        results[token, slot] = _bf16(w2_alpha[expert].double() * (h @ down.T))
    # Not a matrix product: 0 * NaN of a skipped slot's weight must not reach the sum.
    weights = torch.where(ids >= 0, topk_weights.double(), 0.0)
    return (weights.unsqueeze(-1) * results).sum(dim=1)


def quantize(x: Tensor, global_scale: Tensor, swizzled: bool = True, silu_mul: bool = False) -> tuple[Tensor, Tensor]:
    """Quantize rows to NVFP4 in vLLM's convention; arguments and results as ``ops.nvfp4_quantize`` has them.

    A block's scale byte is e4m3(global_scale * amax / 6), its codes e2m1(value * global_scale / scale) with the scale
    as that byte holds it, so value = code * scale / global_scale. A block whose scale byte is zero has zero codes.
    """
    values = quantize_input(x, silu_mul)
    rows, depth = values.shape
    blocks = values.reshape(rows, depth // GROUP, GROUP)
    factor = global_scale.double().reshape(())
    scales = encode_e4m3(factor * blocks.abs().amax(dim=-1) / E2M1_MAX)
    codes = encode_e2m1(blocks * inverse_scale(scales, factor).unsqueeze(-1))
    return pack_e2m1(codes.reshape(rows, depth)), swizzle_scales(scales) if swizzled else scales


def quantize_input(x: Tensor, silu_mul: bool) -> Tensor:
    """Return what ``quantize`` rounds, in float64: x, or silu(gate) * up of x [M, 2K]."""
    if not silu_mul:
        return x.double()
    gate, up = x.double().chunk(2, dim=-1)
    return gate * torch.sigmoid(gate) * up


def inverse_scale(scales: Tensor, factor: Tensor) -> Tensor:
    """Return what a block's values are multiplied by before rounding: factor / scale, 0 for a zero scale (float64)."""
    scale = decode_e4m3(scales, torch.float64)
    return torch.where(scale == 0, torch.zeros_like(scale), factor / scale)


def _bf16(values: Tensor) -> Tensor:
    """Round to bfloat16 and return float64."""
    return values.bfloat16().double()
