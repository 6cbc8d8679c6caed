# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The references against cases computed by hand, and against plain loops over single values."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sparkfleet_kernels import layout, reference
from torch import Tensor

settings.register_profile("kernels", deadline=None, max_examples=40)
settings.load_profile("kernels")


def bytes_of(*values: int) -> Tensor:
    """Return uint8."""
    return torch.tensor(values, dtype=torch.uint8)


def scaled(scales: Tensor, swizzled: bool) -> Tensor:
    """Return scales in the layout asked for."""
    return layout.swizzle_scales(scales) if swizzled else scales


def test_dequantize_by_hand() -> None:
    # One row of 32: bytes 0x21 are codes 1 and 2 (0.5 and 1), 0xF7 are 7 and 15 (6 and -6); scales 1.5 and -2^-9.
    packed = bytes_of(*[0x21] * 8, *[0xF7] * 8).reshape(1, 16)
    scales = bytes_of(0x3C, 0x81).reshape(1, 2)
    for swizzled in (True, False):
        values = reference.dequantize(packed, scaled(scales, swizzled), swizzled)
        assert values.dtype == torch.float64
        assert values.tolist() == [[0.75, 1.5] * 8 + [-6 * 2**-9, 6 * 2**-9] * 8]


def test_gemm_a16_by_hand() -> None:
    # Row 0 is all 1 with scale 2, row 1 all -0.5 with scale 448: sums of x are 64 and 32 * 1 + 32 * 3 = 128.
    weight = torch.tensor([[0x22] * 32, [0x99] * 32], dtype=torch.uint8)
    scales = torch.tensor([[0x40] * 4, [0x7E] * 4], dtype=torch.uint8)
    x = torch.stack([torch.ones(64), torch.tensor([1.0, 3.0]).repeat(32)]).bfloat16()
    for swizzled in (True, False):
        for alpha in (torch.tensor(0.5), torch.tensor([0.5]), torch.tensor([[0.5]])):
            got = reference.gemm_a16(x, weight, scaled(scales, swizzled), alpha, swizzled)
            assert got.tolist() == [[64.0, -0.5 * 448 * 32], [128.0, -0.5 * 448 * 64]]


def test_nan_scale_shows() -> None:
    weight, x = torch.zeros(2, 32, dtype=torch.uint8), torch.zeros(1, 64).bfloat16()
    scales = torch.tensor([[0x7F, 0, 0, 0], [0, 0, 0, 0]], dtype=torch.uint8)
    got = reference.gemm_a16(x, weight, scales, torch.ones(1), False)
    assert got.isnan().tolist() == [[True, False]]


def test_gemm_a4_by_hand() -> None:
    x = bytes_of(*[0x42] * 32).reshape(1, 32)  # 1 and 2
    weight = bytes_of(*[0x6C] * 32).reshape(1, 32)  # -2 and 4
    x_scales, scales = bytes_of(0x38, 0x40, 0x38, 0x30).reshape(1, 4), bytes_of(0x38, 0x38, 0x40, 0x40).reshape(1, 4)
    # 8 pairs of 1 * -2 + 2 * 4 = 6 in a group: 48, by scales 1*1, 2*1, 1*2, 0.5*2.
    for swizzled in (True, False):
        got = reference.gemm_a4(
            x, scaled(x_scales, swizzled), weight, scaled(scales, swizzled), torch.tensor([0.25]), swizzled
        )
        assert got.tolist() == [[0.25 * 48 * (1 + 2 + 2 + 1)]]


@given(st.integers(1, 5), st.integers(1, 140), st.sampled_from([64, 128, 192]), st.booleans())
def test_gemm_a16_is_a_sum_of_products(rows: int, n: int, k: int, swizzled: bool) -> None:
    x = torch.randn(rows, k).bfloat16()
    weight = torch.randint(0, 256, (n, k // 2), dtype=torch.uint8)
    scales = torch.randint(0, 0x7F, (n, k // 16), dtype=torch.uint8)
    got = reference.gemm_a16(x, weight, scaled(scales, swizzled), torch.tensor([2.0]), swizzled)
    row, column = rows - 1, n - 1
    total = 0.0
    for index in range(k):
        code = int(weight[column, index // 2]) >> (4 if index % 2 else 0) & 15
        scale = float(scales[column, index // 16].view(torch.float8_e4m3fn).float())
        total += float(x[row, index]) * layout.E2M1_VALUES[code] * scale
    assert float(got[row, column]) == pytest.approx(2 * total, rel=1e-12, abs=1e-9)


# --- experts ---


def layer(experts: int, hidden: int, inner: int) -> dict[str, Tensor]:
    """Return random experts whose gates and results are of the size of one."""
    return {
        "w13": torch.randint(0, 256, (experts, 2 * inner, hidden // 2), dtype=torch.uint8),
        "w13_scale": torch.randint(0x30, 0x48, (experts, 2 * inner, hidden // 16), dtype=torch.uint8),
        "w13_alpha": torch.rand(experts) * 0.05,
        "w2": torch.randint(0, 256, (experts, hidden, inner // 2), dtype=torch.uint8),
        "w2_scale": torch.randint(0x30, 0x48, (experts, hidden, inner // 16), dtype=torch.uint8),
        "w2_alpha": torch.rand(experts) * 0.05,
    }


def one_expert(weights: dict[str, Tensor], expert: int, x: Tensor) -> Tensor:
    """Return an expert's result for one token in plain steps, rounded to bfloat16 where the operator rounds."""
    inner = weights["w13"].shape[1] // 2
    product = reference.dequantize(weights["w13"][expert], weights["w13_scale"][expert]) @ x.double()
    product = product * weights["w13_alpha"][expert].double()
    h = [
        float(gate) / (1 + math.exp(-float(gate))) * float(up)
        for gate, up in zip(product[:inner], product[inner:], strict=True)
    ]
    h_rounded = torch.tensor(h, dtype=torch.float64).bfloat16().double()
    down = reference.dequantize(weights["w2"][expert], weights["w2_scale"][expert]) @ h_rounded
    return (down * weights["w2_alpha"][expert].double()).bfloat16().double()


def in_layout(weights: dict[str, Tensor], swizzled: bool) -> dict[str, Tensor]:
    """Return the experts with their scales in the layout asked for."""
    return weights | {name: scaled(weights[name], swizzled) for name in ("w13_scale", "w2_scale")}


@pytest.mark.parametrize("swizzled", [True, False])
def test_moe_is_a_weighted_sum_of_experts(swizzled: bool) -> None:
    weights, x = layer(4, 128, 64), torch.randn(3, 128).bfloat16()
    ids = torch.tensor([[0, 3], [2, 2], [1, 0]], dtype=torch.int32)
    topk_weights = torch.rand(3, 2)
    got = reference.moe_a16(
        x, **in_layout(weights, swizzled), topk_weights=topk_weights, topk_ids=ids, swizzled=swizzled
    )
    for token in range(3):
        wanted = sum(
            topk_weights[token, slot].double() * one_expert(weights, int(ids[token, slot]), x[token])
            for slot in range(2)
        )
        # A value next to a midpoint may round the other way, as the order of additions differs.
        assert torch.allclose(got[token], wanted, rtol=2**-7, atol=1e-6)
        assert float((got[token] - wanted).norm() / wanted.norm()) < 1e-3


def test_moe_by_hand() -> None:
    """Gate 0.5 and up 4 for each of 64 inner values: h = 4 * 0.5 * sigmoid(0.5), rounded; exact from there on."""
    hidden = inner = 64
    gate = torch.full((1, inner, hidden // 2), 0x01, dtype=torch.uint8)  # code 1 at even k: 0.5
    up = torch.full((1, inner, hidden // 2), 0x06, dtype=torch.uint8)  # 4
    w2 = torch.full((1, hidden, inner // 2), 0x22, dtype=torch.uint8)  # 1
    scales = torch.full((1, 128, 4), 0x38, dtype=torch.uint8)
    x = torch.zeros(1, hidden)
    x[0, 0] = 1
    got = reference.moe_a16(
        x.bfloat16(),
        torch.cat([gate, up], dim=1),
        scales,
        torch.tensor([1.0]),
        w2,
        scales[:, :64],
        torch.tensor([0.5]),
        torch.tensor([[0.25]]),
        torch.tensor([[0]], dtype=torch.int32),
        swizzled=False,
    )
    h = 2 / (1 + math.exp(-0.5))  # 1.2449..., of which bfloat16 keeps 1.2421875
    assert abs(h - 1.2449) < 1e-4
    assert got.tolist() == [[0.25 * 0.5 * 64 * 1.2421875] * hidden]


def test_skipped_experts() -> None:
    """Ids that are no expert's are skipped whatever their weight; a token with none left is zero."""
    weights, x = layer(3, 64, 64), torch.randn(4, 64).bfloat16()
    ids = torch.tensor([[-1, 1], [3, 2**31 - 1], [-(2**31), 0], [2, -1]], dtype=torch.int32)
    topk_weights = torch.tensor([[math.nan, 0.5], [1.0, 1.0], [math.inf, 2.0], [1.0, math.nan]])
    got = reference.moe_a16(x, **weights, topk_weights=topk_weights, topk_ids=ids, swizzled=False)
    assert torch.equal(got[1], torch.zeros(64, dtype=torch.float64))
    for token, expert, weight in ((0, 1, 0.5), (2, 0, 2.0), (3, 2, 1.0)):
        assert torch.allclose(got[token], weight * one_expert(weights, expert, x[token]), rtol=2**-7, atol=1e-6)


def test_local_experts() -> None:
    ids = torch.tensor([[0, 1, 2, 3, 4, 5, -1, 6]], dtype=torch.int32)
    assert reference.local_experts(ids, 3).tolist() == [[0, 1, 2, -1, -1, -1, -1, -1]]
    expert_map = torch.tensor([-1, 2, 0, -1, 1, 7], dtype=torch.int32)
    assert reference.local_experts(ids, 3, expert_map).tolist() == [[-1, 2, 0, -1, 1, -1, -1, -1]]


# --- quantization ---


def test_quantize_by_hand() -> None:
    # amax 6 and global scale 2: scale byte e4m3(2 * 6 / 6) = 2.0 (0x40), so codes are those of the values themselves.
    values = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0, 0.2]
    x = torch.tensor([values + [0.0] * 16]).bfloat16()
    packed, scales = reference.quantize(x, torch.tensor([2.0]), False)
    assert scales.tolist() == [[0x40, 0]]
    assert packed.tolist() == [[0x10, 0x32, 0x54, 0x76, 0xA9, 0xCB, 0xED, 0x0F, *[0] * 8]]
    swizzled = reference.quantize(x, torch.tensor(2.0), True)[1]
    assert swizzled.shape == (128, 4)
    assert swizzled.flatten().tolist() == [0x40, 0] + [0] * 510


def test_quantize_saturates() -> None:
    x = torch.full((1, 16), 1000.0).bfloat16()
    packed, scales = reference.quantize(x, torch.tensor([100.0]), False)
    assert scales.tolist() == [[0x7E]]
    assert packed.tolist() == [[0x77] * 8]


def test_quantize_of_silu_mul() -> None:
    gate, up = torch.randn(200, 48), torch.randn(200, 48)
    x = torch.cat([gate, up], dim=1).bfloat16()
    exact = x.double()[:, :48] / (1 + torch.exp(-x.double()[:, :48])) * x.double()[:, 48:]
    assert torch.allclose(reference.quantize_input(x, True), exact, rtol=1e-12)
    packed, scales = reference.quantize(x, torch.tensor([300.0]), False, True)
    values = reference.dequantize(packed, scales) / 300
    assert float((values - exact).norm() / exact.norm()) < 0.13


@given(st.integers(1, 130), st.sampled_from([16, 48, 80, 128]), st.sampled_from([1e-3, 1.0, 300.0]), st.booleans())
def test_quantize_is_near(rows: int, k: int, size: float, swizzled: bool) -> None:
    """What comes back is within half a step of E2M1 of the value, for blocks that use the range of the scales."""
    x = (torch.randn(rows, k) * size).bfloat16()
    factor = (448 * 6 / x.abs().amax().float()).reshape(1)
    packed, scales = reference.quantize(x, factor, swizzled)
    values = reference.dequantize(packed, scales, swizzled) / factor.double()
    linear = layout.unswizzle_scales(scales, rows, k // 16) if swizzled else scales
    step = (layout.decode_e4m3(linear, torch.float64) / factor.double()).repeat_interleave(16, dim=1)
    # The scale may be a sixteenth too small, so that the largest value saturates; else a step is at most 2.
    assert bool(((values - x.double()).abs() <= step * 1.0 + 1e-12).all())
