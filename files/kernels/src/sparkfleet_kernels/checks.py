# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is checked of the operators: one list, for ``python -m sparkfleet_kernels verify`` and for the GPU tests.

Every case draws fresh random data, has the memory poisoned that the operators are given to write to (NaN, 255), and
compares with the float64 references. A figure fails when it is above its limit or is NaN. The limits:

* ``error`` of a product, relative in the norm: 3e-3. Rounding the result to bfloat16 alone gives 1.7e-3 in the mean; of
  fewer than 4096 values it may give more, so there the limit is a little above the most that it can give, 2^-8.
* ``error`` of moe_a16: 4e-3. The reference makes the same two roundings in between, so it is the last one again, and
  the few values in between that float32 puts on the other side of a midpoint.
* ``element``: every single element, as a share of what it may be off: half a bfloat16 step, and 2^-14 of the norms of
  the two vectors multiplied, for float32 accumulation. Limit 1. An element of some other row or column is off by a
  hundred times that.
* bits, codes and bytes: counts of those that differ; limit 0.
* quantized data: 0 differences beyond those where the exact value is within a few float32 steps of a midpoint (2^-20 of
  it, 2^-16 after SiLU), and of these at most 4, or 1 in 1000 scales and 1 in 500 codes: division and exponential are
  approximate, and what is a tie in exact arithmetic is none in float32.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from . import ops, reference
from ._run import NAN, Case, Run, kind_of, poisoned, stored
from .layout import (
    E2M1_VALUES,
    GROUP,
    TILE_ROWS,
    decode_e2m1,
    decode_e4m3,
    encode_e2m1,
    encode_e4m3,
    pack_e2m1,
    scale_shape,
    swizzle_scales,
    unpack_e2m1,
    unswizzle_scales,
)

GEMM_LIMIT = 3e-3
MOE_LIMIT = 4e-3
SCALE_SHARE_LIMIT = 1e-3
CODE_SHARE_LIMIT = 2e-3
FEW_DIFFER = 4
ELEMENT_TOLERANCE = 2.0**-14
BF16_HALF_STEP = 2.0**-8
REPEATS = 20


def _layout(swizzled: bool) -> str:
    return "swizzled" if swizzled else "linear"


def product_bound(left: Tensor, right: Tensor, alpha: Tensor, wanted: Tensor) -> Tensor:
    """Return what each element of alpha * left @ right.T may be off (all float64)."""
    norms = left.norm(dim=1).unsqueeze(1) * right.norm(dim=1).unsqueeze(0)
    bound: Tensor = wanted.abs() * BF16_HALF_STEP + norms * (alpha.abs().double().reshape(()) * ELEMENT_TOLERANCE)
    return bound


# --- without the operators -------------------------------------------------------------------------------------------


def check_layout(run: Run) -> None:
    """Packing and both number formats against tables, the swizzled layout against its formula."""
    every = torch.arange(16, dtype=torch.uint8, device=run.device)
    # Codes 8 and 0 are the same number, so compare bits.
    run.same_bits("decode all codes", decode_e2m1(every), torch.tensor(E2M1_VALUES, device=run.device))
    run.same("encode what was decoded", encode_e2m1(decode_e2m1(every)), every)
    packed = run.codes(5, 32)
    run.same("pack what was unpacked", pack_e2m1(unpack_e2m1(packed)), packed)
    for rows, groups in ((1, 1), (17, 12), (128, 4), (129, 5), (300, 44)):
        scales = run.integers(0, 256, rows, groups)
        swizzled = swizzle_scales(scales)
        run.same(f"unswizzle {rows}x{groups}", unswizzle_scales(swizzled, rows, groups), scales)
        row = torch.arange(rows, device=run.device).unsqueeze(1)
        group = torch.arange(groups, device=run.device).unsqueeze(0)
        tile = row // TILE_ROWS * (swizzled.shape[1] // 4) + group // 4
        offset = tile * 512 + row % 32 * 16 + row // 32 % 4 * 4 + group % 4
        run.same(f"swizzle {rows}x{groups}", swizzled.flatten()[offset], scales)
        run.add(f"swizzle {rows}x{groups}: padding", swizzled.count_nonzero() - scales.count_nonzero())


def check_reference(run: Run) -> None:
    """The references agree with each other: what is quantized comes back, and both products give the same."""
    x = run.normal(5, 192).bfloat16()
    weight, scales = run.codes(33, 96), run.scales(33, 12)
    global_scale = 448 * 6 / x.abs().amax().float().reshape(1)
    for swizzled in (True, False):
        packed, x_scales = reference.quantize(x, global_scale, swizzled)
        values = reference.dequantize(packed, x_scales, swizzled) / global_scale.double()
        # Steps of E2M1 are at most a third of the value above 1 and half of the largest value's twelfth below.
        run.add(f"{_layout(swizzled)}: quantization error", (values - x.double()).norm() / x.double().norm(), 0.13)
        handed = stored(scales, swizzled)
        exact = reference.dequantize(packed, x_scales, swizzled).bfloat16()
        run.same(
            f"{_layout(swizzled)}: a16 of the dequantized is a4",
            reference.gemm_a16(exact, weight, handed, run.one(0.5), swizzled),
            reference.gemm_a4(packed, x_scales, weight, handed, run.one(0.5), swizzled),
        )


def check_fakes(run: Run) -> None:
    """The fake implementations return the right shapes for CUDA tensors, without a GPU."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    def on_cuda(*shape: int, dtype: torch.dtype = torch.uint8) -> Tensor:
        return torch.empty(*shape, dtype=dtype, device="cuda")

    def expect(label: str, got: Tensor, dtype: torch.dtype, *shape: int) -> None:
        wrong = (got.dtype, got.device.type, tuple(got.shape)) != (dtype, "cuda", shape)
        run.add(f"{label}: {kind_of(got)} on {got.device}", int(wrong))

    bf16 = torch.bfloat16
    with FakeTensorMode():
        alpha = on_cuda(1, dtype=torch.float32)
        for swizzled in (True, False):
            weight, scales = on_cuda(100, 96), on_cuda(*scale_shape(100, 12, swizzled))
            out = ops.nvfp4_gemm_a16(on_cuda(3, 192, dtype=bf16), weight, scales, alpha, swizzled)
            expect("nvfp4_gemm_a16", out, bf16, 3, 100)
            x_scales = on_cuda(*scale_shape(3, 12, swizzled)).view(torch.float8_e4m3fn)
            out = ops.nvfp4_gemm_a4(on_cuda(3, 96), x_scales, weight, scales, alpha, swizzled)
            expect("nvfp4_gemm_a4", out, bf16, 3, 100)
            for silu_mul in (True, False):
                x = on_cuda(130, 80 * (1 + silu_mul), dtype=bf16)
                packed, x_scales = ops.nvfp4_quantize(x, alpha, swizzled, silu_mul)
                expect("nvfp4_quantize", packed, torch.uint8, 130, 40)
                expect("nvfp4_quantize", x_scales, torch.uint8, *scale_shape(130, 5, swizzled))
        for operator, label, arguments in wrong_arguments(torch.device("cuda")):
            run.add(f"{operator}: {label}: not refused", int(not refuses(operator, arguments)))


def check_rule(run: Run) -> None:
    """The rule's choice is a variant, on GB10 and on the GPUs of tests, for shapes of real models and odd ones."""
    numbers = ops.variants()
    run.add("variants that come twice or are not positive", len(numbers) - len({n for n in numbers if n > 0}))
    devices = {"GB10": (48, 99 * 1024), "H100": (132, 227 * 1024), "RTX": (188, 99 * 1024), "one": (1, 48 * 1024)}
    shapes = [(n, k) for n in (1, 17, 64, 1000, 4096, 24576, 151936) for k in (64, 192, 704, 2048, 4096, 12288)]
    for name, (sms, shared_bytes) in devices.items():
        for kind in (ops.DENSE, ops.GATE_UP, ops.DOWN):
            wrong = []
            for n, k in shapes:
                for rows in (1, 2, 7, 8, 9, 16):
                    number = ops.variant(kind, n, k, rows, 1 if kind == ops.DENSE else rows * 8, sms, shared_bytes)
                    if number not in numbers:
                        wrong.append(f"{n}x{k}, {rows} rows: {number}")
            run.add(f"{name}, kind {kind}: choices that are no variant {wrong[:3] or ''}", len(wrong))


# --- dense -----------------------------------------------------------------------------------------------------------


def check_poison(run: Run) -> None:
    """The poison is there: else the other cases would pass with results that nothing wrote."""
    with poisoned():
        values = torch.empty(1000, dtype=torch.bfloat16, device=run.device)
        codes = values.new_empty(1000, dtype=torch.uint8)
    run.add("bfloat16 that is not NaN", (~values.isnan()).sum())
    run.add("uint8 that is not 255", (codes != 255).sum())


def check_dense(run: Run, n: int, k: int, tokens: Sequence[int], variant_tokens: Sequence[int]) -> None:
    """nvfp4_gemm_a16 on one shape: both layouts, every M, every variant that fits for some M."""
    x = run.normal(max(tokens), k).bfloat16()
    weight, scales, alpha = run.codes(n, k // 2), run.scales(n, k // GROUP), run.one(0.01)
    where = run.reference_device(n * k)
    left, right = x.to(where).double(), reference.dequantize(weight.to(where), scales.to(where))
    wanted = reference.gemm_a16(x.to(where), weight.to(where), scales.to(where), alpha.to(where), swizzled=False)
    bound = product_bound(left, right, alpha.to(where), wanted)
    for swizzled in (True, False):
        handed = stored(scales, swizzled)
        for m in tokens:
            numbers, outs = run.call(
                ops.variants() if m in variant_tokens else (),
                functools.partial(ops.nvfp4_gemm_a16, x[:m], weight, handed, alpha, swizzled),
            )
            labels = [f"M {m} {_layout(swizzled)} variant {number}" for number in numbers]
            run.compare(labels, outs, wanted[:m], bound[:m], GEMM_LIMIT)


def all_codes(run: Run, codes: int) -> tuple[Tensor, Tensor]:
    """Return a weight [codes, 512], every row all 256 bytes, and scales that bring each byte under every code."""
    weight = torch.arange(256, device=run.device).to(torch.uint8).repeat(codes, 1)
    row = torch.arange(codes, device=run.device).unsqueeze(1)
    group = torch.arange(512 // GROUP, device=run.device).unsqueeze(0)
    return weight, ((row + 37 * group) % codes).to(torch.uint8)


def check_dense_codes(run: Run) -> None:
    """All 256 bytes under all 256 scale codes, picked out one by one: exact values, and NaN where a scale is NaN."""
    weight, scales = all_codes(run, 256)
    wanted = reference.dequantize(weight, scales).bfloat16().T  # [512, 256]
    nan = wanted.isnan()
    unit, one = torch.eye(512, device=run.device).bfloat16(), run.one(1.0)
    for swizzled in (True, False):
        handed = stored(scales, swizzled)
        picked = []
        for first in range(0, 512, 16):
            numbers, outs = run.call(
                ops.variants(),
                functools.partial(ops.nvfp4_gemm_a16, unit[first : first + 16], weight, handed, one, swizzled),
            )
            picked.append(outs)
        # A NaN scale makes its row NaN whatever the group: the sum has 0 * NaN in it.
        spoilt = nan.any(dim=0, keepdim=True).expand_as(nan)
        for index, number in enumerate(numbers):
            got = torch.cat([outs[index] for outs in picked])
            label = f"{_layout(swizzled)} variant {number}"
            run.same(label, got, torch.where(spoilt, NAN, wanted))
    run.add("rows with NaN", 0 if int(spoilt[0].sum()) > 0 else NAN)


def check_dense_finite_codes(run: Run, tokens: Sequence[int]) -> None:
    """As above with the 254 finite scale codes alone, so that every value shows; tokens divide 512.

    One row of x is 512 calls a variant, so there only some variants take part.
    """
    finite = torch.tensor([code for code in range(256) if code & 0x7F != 0x7F], device=run.device)
    weight, index = all_codes(run, 254)
    scales = finite[index.long()].to(torch.uint8)
    wanted = reference.dequantize(weight, scales).bfloat16().T
    unit, one = torch.eye(512, device=run.device).bfloat16(), run.one(1.0)
    for swizzled in (True, False):
        handed = stored(scales, swizzled)
        for m in tokens:
            picked = []
            for first in range(0, 512, m):
                numbers, outs = run.call(
                    ops.variants()[:: 9 if m == 1 else 1],
                    functools.partial(ops.nvfp4_gemm_a16, unit[first : first + m], weight, handed, one, swizzled),
                )
                picked.append(outs)
            for position, number in enumerate(numbers):
                got = torch.cat([outs[position] for outs in picked])
                run.same(f"M {m} {_layout(swizzled)} variant {number}", got, wanted)


def check_dense_sizes(run: Run) -> None:
    """Rows of x of any size, with single large values, zero; and NaN or infinity, which no other row may show."""
    n, k = 100, 704
    x, weight, scales, alpha = run.normal(16, k), run.codes(n, k // 2), run.scales(n, k // GROUP), run.one(0.01)
    sizes = (1.0, 2.0**50, 2.0**-50, 2.0**20, 2.0**-20, 0.0)
    x *= torch.tensor([sizes[row % len(sizes)] for row in range(16)], device=run.device).unsqueeze(1)
    x[6, 17] = 2.0**18
    x[7, 700] = -(2.0**70)
    x[8, ::2] *= 2.0**-12
    x = x.bfloat16()
    right = reference.dequantize(weight, scales)
    wanted = reference.gemm_a16(x, weight, scales, alpha, False)
    bound = product_bound(x.double(), right, alpha, wanted)
    spoilt = x.clone()
    not_finite = {3: (5, NAN), 9: (100, float("inf")), 11: (703, float("-inf")), 14: (0, NAN)}
    for row, (column, value) in not_finite.items():
        spoilt[row, column] = value
    finite = [row for row in range(16) if row not in not_finite]
    for swizzled in (True, False):
        handed = stored(scales, swizzled)
        for first, last in ((0, 16), (0, 8), *((row, row + 1) for row in range(9))):
            call = functools.partial(ops.nvfp4_gemm_a16, x[first:last], weight, handed, alpha, swizzled)
            numbers, outs = run.call(ops.variants(), call)
            # In the norm only rows of one size can be compared.
            for row in range(first, last):
                labels = [
                    f"rows {first} to {last} {_layout(swizzled)} variant {number}: row {row}" for number in numbers
                ]
                rows = [out[row - first : row - first + 1] for out in outs]
                run.compare(labels, rows, wanted[row : row + 1], bound[row : row + 1], GEMM_LIMIT)
        call = functools.partial(ops.nvfp4_gemm_a16, spoilt, weight, handed, alpha, swizzled)
        for number, out in zip(*run.call(ops.variants(), call), strict=True):
            label = f"NaN and infinity {_layout(swizzled)} variant {number}"
            run.compare([label], [out[finite]], wanted[finite], bound[finite], GEMM_LIMIT)
            run.add(f"{label}: finite", out[list(not_finite)].isfinite().sum())
        for row in not_finite:
            call = functools.partial(ops.nvfp4_gemm_a16, spoilt[row : row + 1], weight, handed, alpha, swizzled)
            for number, out in zip(*run.call(ops.variants(), call), strict=True):
                run.add(f"row {row} alone {_layout(swizzled)} variant {number}: finite", out.isfinite().sum())


def check_variants(run: Run) -> None:
    """Every variant runs some shape: one that fits none could not be checked."""
    fits: set[int] = set()
    moe = MoE.draw(run, experts=4, top_k=2, hidden=2048, inner=1024, tokens=16)
    x, alpha = run.normal(16, 4096).bfloat16(), run.one(0.01)
    weight, scales = run.codes(4096, 2048), swizzle_scales(run.scales(4096, 256))
    for m in (1, 8, 16):
        dense = functools.partial(ops.nvfp4_gemm_a16, x[:m], weight, scales, alpha, True)
        for operator in (dense, moe.caller(m, True, "variant13"), moe.caller(m, True, "variant2")):
            fits.update(run.call(ops.variants(), operator)[0])
    for number in ops.variants():
        run.add(f"variant {number}: fits no shape", int(number not in fits))


# --- experts ---------------------------------------------------------------------------------------------------------


@dataclass
class MoE:
    """A layer of experts with its inputs."""

    run: Run
    x: Tensor
    w13: Tensor
    w13_scale: Tensor
    w13_alpha: Tensor
    w2: Tensor
    w2_scale: Tensor
    w2_alpha: Tensor
    topk_weights: Tensor
    topk_ids: Tensor
    expert_map: Tensor | None = None
    handed: dict[bool, tuple[Tensor, Tensor]] = field(default_factory=dict)

    @classmethod
    def draw(cls, run: Run, experts: int, top_k: int, hidden: int, inner: int, tokens: int) -> MoE:
        """Draw weights and inputs; each token asks for top_k experts, different ones where there are enough."""
        w13, w2 = run.codes(experts, 2 * inner, hidden // 2), run.codes(experts, hidden, inner // 2)
        w13_scale = run.common_scales(experts, 2 * inner, hidden // GROUP)
        w2_scale = run.common_scales(experts, hidden, inner // GROUP)
        # Some groups whose scale is zero, the smallest subnormal, large, or negative.
        for scales in (w13_scale, w2_scale):
            for code in (0x00, 0x01, 0x60, 0xB8):
                row, group = (int(run.integers(0, size, 1, dtype=torch.int64)) for size in scales.shape[1:])
                scales[:, row, group] = code
        # So that gate, up and the result are of the size of one: a SwiGLU of huge values would be a ReLU.
        typical = 20.0
        w13_alpha = run.uniform(0.5, 1.5, experts) * (1.5 / (typical * hidden**0.5))
        w2_alpha = run.uniform(0.5, 1.5, experts) * (1.0 / (typical * inner**0.5))
        order = torch.rand(tokens, max(experts, top_k), generator=run.generator, device=run.device).argsort(dim=1)
        return cls(
            run=run,
            x=run.normal(tokens, hidden).bfloat16(),
            w13=w13,
            w13_scale=w13_scale,
            w13_alpha=w13_alpha,
            w2=w2,
            w2_scale=w2_scale,
            w2_alpha=w2_alpha,
            topk_weights=run.uniform(0.05, 1.0, tokens, top_k),
            topk_ids=(order[:, :top_k] % experts).to(torch.int32).contiguous(),
        )

    def wanted(self) -> Tensor:
        """Return the reference's result, float64 [M, H]."""
        where = self.run.reference_device(self.w13.numel() * 2)
        return reference.moe_a16(
            self.x.to(where),
            self.w13.to(where),
            self.w13_scale.to(where),
            self.w13_alpha.to(where),
            self.w2.to(where),
            self.w2_scale.to(where),
            self.w2_alpha.to(where),
            self.topk_weights.to(where),
            self.topk_ids.to(where),
            None if self.expert_map is None else self.expert_map.to(where),
            swizzled=False,
        )

    def caller(self, m: int, swizzled: bool, variant: str) -> Callable[[int], Tensor]:
        """Return the operator on the first m tokens as a function of one of its variants."""
        return lambda number: self.call(m, swizzled, **{variant: number})

    def call(self, m: int, swizzled: bool, variant13: int = 0, variant2: int = 0) -> Tensor:
        """Run the operator on the first m tokens, into poisoned memory."""
        out = torch.full_like(self.x[:m], NAN)
        if swizzled not in self.handed:
            self.handed[swizzled] = stored(self.w13_scale, swizzled), stored(self.w2_scale, swizzled)
        w13_scale, w2_scale = self.handed[swizzled]
        return ops.nvfp4_moe_a16(
            self.x[:m],
            self.w13,
            w13_scale,
            self.w13_alpha,
            self.w2,
            w2_scale,
            self.w2_alpha,
            self.topk_weights[:m].contiguous(),
            self.topk_ids[:m].contiguous(),
            self.expert_map,
            out,
            swizzled,
            variant13,
            variant2,
        )

    def check(self, what: str, tokens: Sequence[int], variant_tokens: Sequence[int] = ()) -> None:
        """Compare with the reference for these M, with every variant for some of them."""
        wanted = self.wanted()
        # A value in between that lies on the other side of a midpoint moves the result by a step of that value.
        size = wanted.square().mean(dim=1, keepdim=True).sqrt()
        bound = (wanted.abs() + size) * 2.0**-6
        for swizzled in (True, False):
            for m in tokens:
                sweep = ops.variants() if m in variant_tokens else ()
                for name in ("variant13", "variant2"):
                    numbers, outs = self.run.call(sweep, self.caller(m, swizzled, name))
                    labels = [f"{what} M {m} {_layout(swizzled)} {name} {number}" for number in numbers]
                    self.run.compare(labels, outs, wanted[:m], bound[:m], MOE_LIMIT)
                    if not sweep:
                        break


def check_moe(
    run: Run,
    experts: int,
    top_k: int,
    hidden: int,
    inner: int,
    tokens: Sequence[int],
    variant_tokens: Sequence[int],
) -> None:
    """nvfp4_moe_a16 on one shape."""
    MoE.draw(run, experts, top_k, hidden, inner, max(tokens)).check("", tokens, variant_tokens)


def check_moe_ids(run: Run, experts: int, top_k: int, hidden: int, inner: int) -> None:
    """nvfp4_moe_a16 with expert numbers of every kind: skipped, mapped, all the same, twice in a token."""
    moe = MoE.draw(run, experts, top_k, hidden, inner, 16)
    plain = moe.topk_ids
    tokens = (1, 5, 16)

    moe.topk_ids = plain.clone()
    moe.topk_ids[:, -1] = moe.topk_ids[:, 0]
    moe.check("an expert twice in a token", tokens)
    for expert in (0, experts - 1):
        moe.topk_ids = torch.full_like(plain, expert)
        moe.check(f"all on expert {expert}", tokens)

    none = torch.tensor([-1, -7, -(2**31), experts, experts + 1, 2**31 - 1], dtype=torch.int32, device=run.device)
    skipped = none[run.integers(0, len(none), *plain.shape, dtype=torch.int64)]
    mask = run.uniform(0, 1, *plain.shape) < 0.5
    mask[0] = True
    mask[1] = False
    moe.topk_ids = torch.where(mask, skipped, plain)
    # What weight a skipped expert has is of no account.
    moe.topk_weights = torch.where(mask, torch.full_like(moe.topk_weights, NAN), moe.topk_weights)
    moe.check("some skipped", tokens)
    moe.topk_ids = skipped
    moe.topk_weights = torch.ones_like(moe.topk_weights)
    moe.check("all skipped", tokens)

    # Expert parallelism: this rank has `experts` of three times as many, in an order of its own.
    everywhere = 3 * experts
    places = torch.rand(everywhere, generator=run.generator, device=run.device).argsort()
    expert_map = torch.full((everywhere,), -1, dtype=torch.int32, device=run.device)
    expert_map[places[:experts]] = torch.arange(experts, dtype=torch.int32, device=run.device)
    moe.expert_map = expert_map
    moe.topk_weights = run.uniform(0.05, 1.0, *plain.shape)
    moe.topk_ids = run.integers(0, everywhere, *plain.shape, dtype=torch.int32)
    moe.topk_ids[2] = -1
    moe.topk_ids[3] = everywhere  # beyond the map
    moe.topk_ids[4, 0] = 2**31 - 1
    moe.check("expert map", tokens)
    moe.x[1, 7] = NAN
    moe.topk_ids[1] = places[0]
    run.same("a token that is NaN, and no other", moe.call(16, True).isnan(), moe.wanted().isnan().to(run.device))
    moe.x[1, 7] = 0
    expert_map.fill_(-1)
    moe.check("nothing mapped here", tokens)
    expert_map.fill_(experts)
    moe.check("mapped beyond the experts", tokens)


# --- quantization ----------------------------------------------------------------------------------------------------


def unexplained(exact: Tensor, got: Tensor, wanted: Tensor, tolerance: float) -> Tensor:
    """Count values that were rounded to the wrong neighbour though they are not next to the midpoint.

    :param exact: what was rounded, float64.
    :param got: value it was rounded to.
    :param wanted: value that exact arithmetic rounds it to.
    :param tolerance: relative distance of the exact value to the midpoint of the two that float32 arithmetic explains.
    """
    midpoint = (got.double() + wanted.double()) / 2
    explained = (exact - midpoint).abs() <= tolerance * exact.abs()
    return ((got != wanted) & ~explained).sum()


def check_quantize(run: Run, m: int, k: int) -> None:
    """nvfp4_quantize on one shape: scale bytes and codes against exact arithmetic, padding, zero blocks."""
    for silu_mul in (False, True):
        # expf and the division are off by a few steps each.
        tolerance = 2.0**-16 if silu_mul else 2.0**-20
        for size in (1e-3, 1.0, 50.0):
            x = run.normal(m, k * (1 + silu_mul)) * (min(size, 3.0) if silu_mul else size)
            if m and k > GROUP:
                x[m // 2, :GROUP] = 0
                x[m // 2, k - GROUP : k] *= 1e-30  # the scale byte becomes zero, the values are not
            x = x.bfloat16()
            values = reference.quantize_input(x, silu_mul)
            largest = float(values.abs().amax()) if m else 1.0
            global_scale = run.one(448 * 6 / largest * (1.0 if size == 1.0 else 0.37))
            _check_quantized(
                run, f"{'silu_mul ' * silu_mul}size {size:g}", x, values, global_scale, silu_mul, tolerance
            )


def _check_quantized(
    run: Run, label: str, x: Tensor, values: Tensor, global_scale: Tensor, silu_mul: bool, tolerance: float
) -> None:
    m, k = values.shape
    blocks = values.reshape(m, k // GROUP, GROUP)
    factor = global_scale.double().reshape(())
    amax = blocks.abs().amax(dim=-1)
    wanted_scales = reference.quantize(x, global_scale, False, silu_mul)[1]
    for swizzled in (True, False):
        name = f"{label} {_layout(swizzled)}"
        with poisoned():
            packed, scales = ops.nvfp4_quantize(x, global_scale, swizzled, silu_mul)
        shapes = (tuple(packed.shape), tuple(scales.shape)), ((m, k // 2), scale_shape(m, k // GROUP, swizzled))
        if shapes[0] != shapes[1] or packed.dtype != torch.uint8 or scales.dtype != torch.uint8:
            run.add(f"{name}: {kind_of(packed)} and {kind_of(scales)}", NAN)
            continue
        if m == 0:
            run.add(f"{name}: empty", 0)
            continue
        if swizzled:
            padding = swizzle_scales(torch.ones_like(wanted_scales)) == 0
            run.add(f"{name}: padding bytes not zero", (scales[padding] != 0).sum())
            scales = unswizzle_scales(scales, m, k // GROUP)
        exact = (factor * amax / 6).clamp(max=448)
        got, right = decode_e4m3(scales, torch.float64), decode_e4m3(wanted_scales, torch.float64)
        run.add(f"{name}: wrong scale bytes", unexplained(exact, got, right, tolerance))
        if silu_mul:
            run.add(f"{name}: share of other scale bytes", _share(scales != wanted_scales), SCALE_SHARE_LIMIT)
        else:
            # Without expf float32 has one answer. Its rounding makes ties where float64 has none: many, for some data.
            single = encode_e4m3((global_scale * (amax.float() * (1 / 6))).double())
            run.add(f"{name}: scale bytes that float32 does not give", (scales != single).sum())
        # The codes are right if they belong to the scale byte that was written.
        exact = (blocks * reference.inverse_scale(scales, factor).unsqueeze(-1)).reshape(m, k)
        codes, wanted = unpack_e2m1(packed), encode_e2m1(exact)
        off = unexplained(exact, decode_e2m1(codes), decode_e2m1(wanted), tolerance)
        run.add(f"{name}: wrong codes", off)
        if silu_mul:
            run.add(f"{name}: share of other codes", _share(codes != wanted), CODE_SHARE_LIMIT)
        else:
            inverse = reference.inverse_scale(scales, factor)
            single = global_scale / decode_e4m3(scales, torch.float32)
            single = encode_e2m1((blocks.float() * torch.where(inverse == 0, 0.0, single).unsqueeze(-1)).double())
            run.add(f"{name}: codes that float32 does not give", (codes != single.reshape(m, k)).sum())


def _share(differ: Tensor) -> Tensor:
    """Return the share that differs. A tie in exact arithmetic is none in float32; few of them are no share."""
    return (differ.sum() - FEW_DIFFER).clamp(min=0) / differ.numel()


# --- the native path -------------------------------------------------------------------------------------------------


def check_a4(run: Run, n: int, k: int, tokens: Sequence[int]) -> None:
    """nvfp4_gemm_a4 on one shape, both layouts."""
    x, x_scales = run.codes(max(tokens), k // 2), run.scales(max(tokens), k // GROUP, signed=False)
    weight, scales, alpha = run.codes(n, k // 2), run.scales(n, k // GROUP, signed=False), run.one(0.001)
    where = run.reference_device(n * k)
    left = reference.dequantize(x.to(where), x_scales.to(where))
    right = reference.dequantize(weight.to(where), scales.to(where))
    wanted = alpha.to(where).double() * (left @ right.T)
    bound = product_bound(left, right, alpha.to(where), wanted)
    for swizzled in (True, False):
        handed = stored(scales, swizzled)
        for m in tokens:
            with poisoned():
                out = ops.nvfp4_gemm_a4(x[:m], stored(x_scales[:m], swizzled), weight, handed, alpha, swizzled)
            run.compare([f"M {m} {_layout(swizzled)}"], [out], wanted[:m], bound[:m], GEMM_LIMIT)


def check_a4_codes(run: Run) -> None:
    """All bytes under all 127 finite unsigned scale codes on either side, picked out one by one: the exact values."""
    weight, scales = all_codes(run, 127)
    wanted = reference.dequantize(weight, scales).bfloat16()  # [127, 512]
    unit = pack_e2m1(torch.eye(512, device=run.device).to(torch.uint8) * 2)  # code 2 is 1.0
    ones = torch.full((512, 512 // GROUP), 0x38, dtype=torch.uint8, device=run.device)  # 1.0
    for swizzled in (True, False):
        got = [
            ops.nvfp4_gemm_a4(
                unit[first : first + 16],
                stored(ones[:16], swizzled),
                weight,
                stored(scales, swizzled),
                run.one(1.0),
                swizzled,
            )
            for first in range(0, 512, 16)
        ]
        run.same(f"{_layout(swizzled)} weight", torch.cat(got), wanted.T)
        got = [
            ops.nvfp4_gemm_a4(
                weight[first : first + 16],
                stored(scales[first : first + 16], swizzled),
                unit,
                stored(ones, swizzled),
                run.one(1.0),
                swizzled,
            )
            for first in range(0, 127, 16)
        ]
        run.same(f"{_layout(swizzled)} x", torch.cat(got), wanted)


def check_quantize_a4(run: Run) -> None:
    """What nvfp4_quantize writes is what nvfp4_gemm_a4 reads, in both layouts."""
    x, weight, scales = run.normal(9, 704).bfloat16(), run.codes(63, 352), run.scales(63, 44, signed=False)
    global_scale = 448 * 6 / x.abs().amax().float().reshape(1)
    alpha = 0.001 / global_scale
    outs = []
    for swizzled in (True, False):
        packed, x_scales = ops.nvfp4_quantize(x, global_scale, swizzled)
        handed = stored(scales, swizzled)
        out = ops.nvfp4_gemm_a4(packed, x_scales, weight, handed, alpha, swizzled)
        wanted = reference.gemm_a4(packed, x_scales, weight, handed, alpha, swizzled)
        left, right = reference.dequantize(packed, x_scales, swizzled), reference.dequantize(weight, scales)
        run.compare([_layout(swizzled)], [out], wanted, product_bound(left, right, alpha, wanted), GEMM_LIMIT)
        outs.append(out)
    run.same_bits("swizzled and linear", outs[0], outs[1])


# --- how they run ----------------------------------------------------------------------------------------------------


def _decode_steps(run: Run) -> list[tuple[str, Callable[[Tensor], Tensor]]]:
    """Return steps that map bfloat16 [M, 1024] to the same, each by one or two operators, as a model chains them."""
    hidden = 1024
    steps: list[tuple[str, Callable[[Tensor], Tensor]]] = []
    for index, number in enumerate((0, *ops.variants()[:3])):
        weight, scales = run.codes(hidden, hidden // 2), swizzle_scales(run.common_scales(hidden, hidden // GROUP))
        alpha = run.one(1 / (20 * hidden**0.5))

        def dense(x: Tensor, weight: Tensor = weight, scales: Tensor = scales, alpha: Tensor = alpha) -> Tensor:
            return ops.nvfp4_gemm_a16(x, weight, scales, alpha)

        moe = MoE.draw(run, experts=8, top_k=4, hidden=hidden, inner=192 + 64 * index, tokens=16)
        w13_scale, w2_scale = swizzle_scales(moe.w13_scale), swizzle_scales(moe.w2_scale)

        def experts(x: Tensor, moe: MoE = moe, w13_scale: Tensor = w13_scale, w2_scale: Tensor = w2_scale) -> Tensor:
            m = x.shape[0]
            return ops.nvfp4_moe_a16(
                x,
                moe.w13,
                w13_scale,
                moe.w13_alpha,
                moe.w2,
                w2_scale,
                moe.w2_alpha,
                moe.topk_weights[:m],
                moe.topk_ids[:m],
            )

        one = run.one(300.0)

        def native(
            x: Tensor, weight: Tensor = weight, scales: Tensor = scales, alpha: Tensor = alpha, one: Tensor = one
        ) -> Tensor:
            packed, x_scales = ops.nvfp4_quantize(x, one)
            return ops.nvfp4_gemm_a4(packed, x_scales, weight, scales, alpha / one)

        steps += [(f"dense {number}", dense), (f"experts {number}", experts), (f"native {number}", native)]
    return steps


def check_determinism(run: Run) -> None:
    """Every operator gives the same bits in 20 runs."""
    for m in (1, 7, 16):
        x = run.normal(m, 1024).bfloat16()
        for name, step in _decode_steps(run)[:3]:
            first = step(x)
            again = (step(x).view(torch.int16) for _repeat in range(REPEATS))
            differ = torch.stack([(bits != first.view(torch.int16)).sum() for bits in again])
            run.add(f"M {m} {name}: values that differ in {REPEATS} runs", differ.sum())
    weight, scales, alpha = run.codes(1000, 2048), swizzle_scales(run.scales(1000, 256)), run.one(0.01)
    moe = MoE.draw(run, experts=32, top_k=8, hidden=704, inner=320, tokens=16)
    x = run.normal(16, 4096).bfloat16()
    for m in (1, 16):
        dense = functools.partial(ops.nvfp4_gemm_a16, x[:m], weight, scales, alpha, True)
        for name, call in (("dense", dense), ("experts", moe.caller(m, True, "variant13"))):
            rounds = [run.call(ops.variants(), call) for _round in range(4)]
            for index, number in enumerate(rounds[0][0]):
                first = rounds[0][1][index].view(torch.int16)
                differ = torch.stack([(outs[index].view(torch.int16) != first).sum() for _numbers, outs in rounds[1:]])
                run.add(f"M {m} {name} variant {number}: values that differ in 4 runs", differ.sum())


def check_chain(run: Run) -> None:
    """A chain of operators, as a model queues them, gives the same bits as one step at a time.

    Each step reads what the one before wrote, and memory of earlier steps is used again: an operator that began before
    its predecessor was through would show. Queued at once, on another stream, and in a CUDA graph that is replayed.
    """
    cuda: Any = torch.cuda
    steps = _decode_steps(run)
    for m in (1, 8, 16):
        x = run.normal(m, 1024).bfloat16()

        def chain(x: Tensor, wait: bool) -> Tensor:
            for index, (_name, step) in enumerate(steps):
                x = step(x)
                if wait:
                    torch.cuda.synchronize(run.device)
                if index % 4 == 3:
                    x = x * 1.5  # a kernel of torch's in between now and then
            return x

        on_gpu = run.device.type == "cuda"
        wanted = chain(x, wait=on_gpu)
        run.add(f"M {m}: not finite", (~wanted.isfinite()).sum())
        run.add(f"M {m}: all zero", int(not wanted.any()))
        for attempt in range(5):
            run.same_bits(f"M {m} queued at once, {attempt}", chain(x, wait=False), wanted)
        if not on_gpu:
            continue
        stream = cuda.Stream(run.device)
        stream.wait_stream(torch.cuda.current_stream(run.device))
        with torch.cuda.stream(stream):
            # The input is late: whoever used the default stream would read it before it is there.
            late = torch.full_like(x, NAN)
            cuda._sleep(20_000_000)
            late.copy_(x)
            out = chain(late, wait=False)
        torch.cuda.current_stream(run.device).wait_stream(stream)
        run.same_bits(f"M {m} on another stream", out, wanted)
        graph = torch.cuda.CUDAGraph()
        held = x.clone()
        torch.cuda.synchronize(run.device)
        with torch.cuda.graph(graph):
            out = chain(held, wait=False)
        for attempt in range(REPEATS):
            out.fill_(NAN)
            graph.replay()
            run.same_bits(f"M {m} graph, replay {attempt}", out, wanted)
        # Other values of the same shapes, through the captured graph.
        held.copy_(run.normal(m, 1024))
        graph.replay()
        run.same_bits(f"M {m} graph, other input", out, chain(held, wait=True))


def check_fresh(run: Run) -> None:
    """What was written just before is read, whatever argument it is: by torch's kernels, or by another operator.

    Buffers are written again and again with nothing waiting in between, so that data of the round before would show.
    """
    n, k, rounds = 1024, 2048, 8
    on_gpu = run.device.type == "cuda"

    def in_rounds(label: str, call: Callable[..., Tensor], inputs: list[list[Tensor]]) -> None:
        wanted = []
        for arguments in inputs:
            wanted.append(call(*arguments))
            if on_gpu:
                torch.cuda.synchronize(run.device)
        buffers = [torch.empty_like(argument) for argument in inputs[0]]
        outs = []
        for arguments in inputs:
            for buffer, argument in zip(buffers, arguments, strict=True):
                buffer.copy_(argument)
            outs.append(call(*buffers))
        for index, (out, right) in enumerate(zip(outs, wanted, strict=True)):
            run.same_bits(f"{label}, round {index}", out, right)

    for m in (1, 16):
        dense = [
            [
                run.normal(m, k).bfloat16(),
                run.codes(n, k // 2),
                swizzle_scales(run.common_scales(n, k // GROUP)),
                run.uniform(0.01, 0.02, 1),
            ]
            for _round in range(rounds)
        ]
        # Each in turn is the last to be written.
        for last in range(4):
            order = [index for index in range(4) if index != last] + [last]
            in_rounds(
                f"M {m} dense, argument {last} written last",
                lambda *given, order=order: ops.nvfp4_gemm_a16(*(given[order.index(index)] for index in range(4))),
                [[arguments[index] for index in order] for arguments in dense],
            )

        def quantized(x: Tensor, weight: Tensor, factor: Tensor) -> Tensor:
            packed, scales = ops.nvfp4_quantize(weight, factor)
            return ops.nvfp4_gemm_a16(x, packed, scales, factor)

        inputs = [
            [run.normal(m, k).bfloat16(), run.normal(n, k).bfloat16(), run.one(500.0)] for _round in range(rounds)
        ]
        in_rounds(f"M {m} weight quantized just before", quantized, inputs)

        layers = [MoE.draw(run, experts=8, top_k=2, hidden=512, inner=256, tokens=m) for _round in range(rounds)]

        def experts(*given: Any) -> Tensor:
            return ops.nvfp4_moe_a16(*given)

        inputs = [
            [
                moe.x,
                moe.w13,
                swizzle_scales(moe.w13_scale),
                moe.w13_alpha,
                moe.w2,
                swizzle_scales(moe.w2_scale),
                moe.w2_alpha,
                moe.topk_weights,
                moe.topk_ids,
                torch.arange(8, device=run.device, dtype=torch.int32).roll(index),
            ]
            for index, moe in enumerate(layers)
        ]
        in_rounds(f"M {m} experts", experts, inputs)


def check_read_probe(run: Run) -> None:
    """read_probe runs on nothing, on little, and on a size that no grid divides."""
    sink = torch.zeros(16, dtype=torch.int32, device=run.device)
    for count in (0, 16, 16 * 100_003):
        ops.read_probe(run.codes(count), sink)
        run.add(f"{count} bytes", 0)


def check_misaligned(run: Run) -> None:
    """Contiguous tensors that do not begin at a multiple of 16 bytes are refused or give what is right, not a fault."""
    n, k, m = 64, 192, 3
    x, alpha = run.normal(m, k).bfloat16(), run.one(0.01)
    weight, scales = run.codes(n, k // 2), run.scales(n, k // GROUP)
    wanted = reference.gemm_a16(x, weight, scales, alpha, False)
    bound = product_bound(x.double(), reference.dequantize(weight, scales), alpha, wanted)

    def shifted(tensor: Tensor) -> Tensor:
        room = torch.zeros(tensor.numel() + 1, dtype=tensor.dtype, device=tensor.device)
        room[1:] = tensor.flatten()
        return room[1:].view(tensor.shape)

    for name, arguments in (
        ("x", (shifted(x), weight, scales, alpha, False)),
        ("weight", (x, shifted(weight), scales, alpha, False)),
        ("weight_scale", (x, weight, shifted(scales), alpha, False)),
        ("alpha", (x, weight, scales, torch.stack([alpha, alpha]).flatten()[1:], False)),
    ):
        try:
            out = ops.nvfp4_gemm_a16(*arguments)
        except RuntimeError as error:
            run.add(f"{name}: {error}", int(not str(error).startswith("nvfp4_gemm_a16: ")))
            continue
        run.compare([name], [out], wanted, bound, GEMM_LIMIT)
    for name, call in (
        ("quantize x", lambda: ops.nvfp4_quantize(shifted(x), alpha, False)[1]),
        ("a4 x", lambda: ops.nvfp4_gemm_a4(shifted(weight[:3]), scales[:3], weight, scales, alpha, False)),
        ("a4 weight", lambda: ops.nvfp4_gemm_a4(weight[:3], scales[:3], shifted(weight), scales, alpha, False)),
        ("read_probe x", lambda: ops.read_probe(shifted(weight), torch.zeros(4, dtype=torch.int32, device=run.device))),
    ):
        try:
            call()
        except RuntimeError as error:
            run.add(f"{name}: {error}", int(not str(error).startswith(("nvfp4_", "read_probe"))))
        else:
            run.add(f"{name}: accepted", 0)
    if run.device.type == "cuda":
        torch.cuda.synchronize(run.device)  # a fault would be raised here


# --- wrong arguments -------------------------------------------------------------------------------------------------


def good_arguments(device: torch.device) -> dict[str, dict[str, Any]]:
    """Return arguments that every operator takes, by name."""

    def zeros(*shape: int, dtype: torch.dtype = torch.uint8) -> Tensor:
        return torch.zeros(*shape, dtype=dtype, device=device)

    bf16, f32, i32 = torch.bfloat16, torch.float32, torch.int32
    return {
        "nvfp4_gemm_a16": {
            "x": zeros(3, 192, dtype=bf16),
            "weight": zeros(100, 96),
            "weight_scale": zeros(128, 12),
            "alpha": zeros(1, dtype=f32),
            "swizzled": True,
            "variant": 0,
        },
        "nvfp4_moe_a16": {
            "x": zeros(3, 192, dtype=bf16),
            "w13": zeros(5, 128, 96),
            "w13_scale": zeros(5, 128, 12),
            "w13_alpha": zeros(5, dtype=f32),
            "w2": zeros(5, 192, 32),
            "w2_scale": zeros(5, 256, 4),
            "w2_alpha": zeros(5, dtype=f32),
            "topk_weights": zeros(3, 2, dtype=f32),
            "topk_ids": zeros(3, 2, dtype=i32),
            "expert_map": zeros(10, dtype=i32),
            "out": zeros(3, 192, dtype=bf16),
            "swizzled": True,
            "variant13": 0,
            "variant2": 0,
        },
        "nvfp4_quantize": {
            "x": zeros(3, 96, dtype=bf16),
            "global_scale": zeros(1, dtype=f32),
            "swizzled": True,
            "silu_mul": True,
        },
        "nvfp4_gemm_a4": {
            "x": zeros(3, 96),
            "x_scale": zeros(128, 12),
            "weight": zeros(100, 96),
            "weight_scale": zeros(128, 12),
            "alpha": zeros(1, dtype=f32),
            "swizzled": True,
        },
        "read_probe": {"x": zeros(4096), "sink": zeros(4, dtype=i32)},
    }


def wrong_arguments(device: torch.device) -> list[tuple[str, str, dict[str, Any]]]:
    """Return what must be refused: operator, what is wrong, arguments by name."""

    def zeros(*shape: int, dtype: torch.dtype = torch.uint8) -> Tensor:
        return torch.zeros(*shape, dtype=dtype, device=device)

    bf16, f32, f16, i32, i64 = torch.bfloat16, torch.float32, torch.float16, torch.int32, torch.int64
    good = good_arguments(device)
    wrong: list[tuple[str, str, dict[str, Any]]] = []

    def add(operator: str, label: str, **changed: Any) -> None:
        wrong.append((operator, label, good[operator] | changed))

    # Everything that is a tensor: another dtype, other dimensions, not contiguous, another size.
    other = {bf16: f16, torch.uint8: torch.int8, f32: torch.float64, i32: i64}
    for operator, arguments in good.items():
        for name, value in arguments.items():
            if not isinstance(value, Tensor) or name == "sink":
                continue
            add(operator, f"{name} of another dtype", **{name: value.to(other[value.dtype])})
            add(operator, f"{name} with other sizes", **{name: zeros(*(s + 1 for s in value.shape), dtype=value.dtype)})
            if value.dim() > 1:
                add(operator, f"{name} with one dimension", **{name: value.flatten()})
                transposed = zeros(*value.shape[:-2], value.shape[-1], value.shape[-2], dtype=value.dtype).mT
                add(operator, f"{name} not contiguous", **{name: transposed})
    wrong = [item for item in wrong if item[1] != "expert_map with other sizes"]

    add("nvfp4_gemm_a16", "17 rows", x=zeros(17, 192, dtype=bf16))
    add("nvfp4_gemm_a16", "K 96", x=zeros(3, 96, dtype=bf16), weight=zeros(100, 48), weight_scale=zeros(128, 8))
    add("nvfp4_gemm_a16", "K 0", x=zeros(3, 0, dtype=bf16), weight=zeros(100, 0), weight_scale=zeros(128, 0))
    add("nvfp4_gemm_a16", "swizzled scales as linear", swizzled=False)
    add("nvfp4_gemm_a16", "linear scales as swizzled", weight_scale=zeros(100, 12))
    add("nvfp4_gemm_a16", "2 alphas", alpha=zeros(2, dtype=f32))
    add("nvfp4_gemm_a16", "variant -1", variant=-1)
    add("nvfp4_gemm_a4", "17 rows", x=zeros(17, 96))
    add(
        "nvfp4_gemm_a4",
        "K 96",
        x=zeros(3, 48),
        x_scale=zeros(128, 8),
        weight=zeros(100, 48),
        weight_scale=zeros(128, 8),
    )
    add("nvfp4_gemm_a4", "one layout each", x_scale=zeros(3, 12))
    add("nvfp4_gemm_a4", "both linear as swizzled", x_scale=zeros(3, 12), weight_scale=zeros(100, 12))
    add("nvfp4_quantize", "K 24", x=zeros(3, 48, dtype=bf16))
    add("nvfp4_quantize", "no even number of columns", x=zeros(3, 33, dtype=bf16))
    add("nvfp4_quantize", "K 40", x=zeros(3, 40, dtype=bf16), silu_mul=False)
    rows = {
        name: zeros(17, *good["nvfp4_moe_a16"][name].shape[1:], dtype=good["nvfp4_moe_a16"][name].dtype)
        for name in ("x", "out", "topk_weights", "topk_ids")
    }
    add("nvfp4_moe_a16", "17 rows", **rows)
    add("nvfp4_moe_a16", "33 experts a token", topk_weights=zeros(3, 33, dtype=f32), topk_ids=zeros(3, 33, dtype=i32))
    add("nvfp4_moe_a16", "no expert a token", topk_weights=zeros(3, 0, dtype=f32), topk_ids=zeros(3, 0, dtype=i32))
    names = ("w13", "w13_scale", "w13_alpha", "w2", "w2_scale", "w2_alpha")
    for count in (0, 513):
        sized = {name: good["nvfp4_moe_a16"][name] for name in names}
        add(
            "nvfp4_moe_a16",
            f"{count} experts",
            **{name: zeros(count, *value.shape[1:], dtype=value.dtype) for name, value in sized.items()},
        )
    add(
        "nvfp4_moe_a16",
        "I 96",
        w13=zeros(5, 192, 96),
        w13_scale=zeros(5, 256, 12),
        w2=zeros(5, 192, 48),
        w2_scale=zeros(5, 256, 8),
    )
    add("nvfp4_moe_a16", "odd rows of gate and up", w13=zeros(5, 127, 96))
    add("nvfp4_moe_a16", "alphas of fewer experts", w13_alpha=zeros(4, dtype=f32))
    add("nvfp4_moe_a16", "weights of fewer tokens", topk_weights=zeros(2, 2, dtype=f32))
    add("nvfp4_moe_a16", "ids of fewer tokens", topk_ids=zeros(2, 2, dtype=i32))
    add("nvfp4_moe_a16", "out of fewer tokens", out=zeros(2, 192, dtype=bf16))
    add("nvfp4_moe_a16", "variant13 -1", variant13=-1)
    add("nvfp4_moe_a16", "variant2 -1", variant2=-1)
    add("nvfp4_moe_a16", "linear scales as swizzled", w13_scale=zeros(5, 128, 12), w2_scale=zeros(5, 192, 4))
    add("read_probe", "17 bytes", x=zeros(17))
    if device.type == "cuda":
        elsewhere = {
            "nvfp4_gemm_a16": ("weight", "weight_scale", "alpha"),
            "nvfp4_moe_a16": ("w13", "w2_scale", "w2_alpha", "topk_ids", "topk_weights", "expert_map", "out"),
            "nvfp4_quantize": ("global_scale",),
            "nvfp4_gemm_a4": ("x_scale", "weight", "alpha"),
        }
        for operator, tensors in elsewhere.items():
            for name in tensors:
                value = good[operator][name]
                add(operator, f"{name} on the CPU", **{name: torch.zeros(value.shape, dtype=value.dtype)})
    return wrong


def refuses(operator: str, arguments: dict[str, Any]) -> bool:
    """Whether the operator raises RuntimeError with a text that begins with its name."""
    try:
        getattr(torch.ops.sparkfleet_kernels, operator)(**arguments)
    except RuntimeError as error:
        return str(error).startswith(f"{operator}: ")
    return False


def check_wrong_arguments(run: Run) -> None:
    """What is wrong is refused with a text that names the operator, before anything is written; right is not."""
    for operator, label, arguments in wrong_arguments(run.device):
        if "out" in arguments:
            arguments["out"].fill_(NAN)
        run.add(f"{operator}: {label}: not refused", int(not refuses(operator, arguments)))
        if "out" in arguments:
            run.add(f"{operator}: {label}: values written", (~arguments["out"].isnan()).sum())
    for number in (1_000_000, 7):
        if number not in ops.variants():
            refused = refuses("nvfp4_gemm_a16", good_arguments(run.device)["nvfp4_gemm_a16"] | {"variant": number})
            run.add(f"nvfp4_gemm_a16: variant {number}: not refused", int(not refused))
    for operator, arguments in good_arguments(run.device).items():
        getattr(torch.ops.sparkfleet_kernels, operator)(**arguments)
        run.add(f"{operator}: taken", 0)
    if run.device.type == "cuda":
        torch.cuda.synchronize(run.device)


# --- torch -----------------------------------------------------------------------------------------------------------

OPCHECKS = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")


def opcheck_arguments(run: Run) -> list[tuple[str, tuple[Any, ...]]]:
    """Return calls of every operator, by position, for torch's own tests of operators."""
    calls: list[tuple[str, tuple[Any, ...]]] = []
    x, alpha = run.normal(3, 192).bfloat16(), run.one(0.01)
    weight, scales = run.codes(100, 96), run.scales(100, 12, signed=False)
    moe = MoE.draw(run, experts=5, top_k=2, hidden=192, inner=64, tokens=3)
    expert_map = torch.tensor([0, -1, 1, 2, 3, 4, -1], dtype=torch.int32, device=run.device)
    for swizzled in (True, False):
        handed = stored(scales, swizzled)
        calls.append(("nvfp4_gemm_a16", (x, weight, handed, alpha, swizzled)))
        calls.append(("nvfp4_gemm_a16", (x[:0], weight, handed, alpha, swizzled)))
        calls.append(("nvfp4_gemm_a4", (weight[:3], stored(scales[:3], swizzled), weight, handed, alpha, swizzled)))
        for silu_mul in (True, False):
            calls.append(("nvfp4_quantize", (x, alpha, swizzled, silu_mul)))
        for mapped in (None, expert_map):
            calls.append(
                (
                    "nvfp4_moe_a16",
                    (
                        moe.x,
                        moe.w13,
                        stored(moe.w13_scale, swizzled),
                        moe.w13_alpha,
                        moe.w2,
                        stored(moe.w2_scale, swizzled),
                        moe.w2_alpha,
                        moe.topk_weights,
                        moe.topk_ids,
                        mapped,
                        torch.zeros_like(moe.x),
                        swizzled,
                    ),
                )
            )
    calls.append(("read_probe", (weight.flatten(), torch.zeros(4, dtype=torch.int32, device=run.device))))
    return calls


def check_opcheck(run: Run) -> None:
    """torch.library.opcheck: schema, autograd registration, fake implementation and dynamic AOT dispatch."""
    for operator, arguments in opcheck_arguments(run):
        overload = getattr(torch.ops.sparkfleet_kernels, operator).default
        outcome = torch.library.opcheck(overload, arguments, test_utils=OPCHECKS, raise_exception=False)
        for test, result in outcome.items():
            run.add(f"{operator} {test}: {str(result).splitlines()[0]}", int(result != "SUCCESS"))


def check_compile(run: Run, backend: str = "aot_eager") -> None:
    """torch.compile with the whole function in one graph gives the same bits, for fixed and for dynamic M."""
    steps = _decode_steps(run)[:3]

    def model(x: Tensor) -> Tensor:
        for _name, step in steps:
            x = step(x) * 2
        return x

    for dynamic in (False, True):
        torch._dynamo.reset()
        compiled = torch.compile(model, fullgraph=True, backend=backend, dynamic=dynamic)
        for m in (3, 16) if dynamic else (3,):
            x = run.normal(m, 1024).bfloat16()
            run.same_bits(f"M {m} {'dynamic' if dynamic else 'fixed'}", compiled(x), model(x))
    torch._dynamo.reset()


# --- the list --------------------------------------------------------------------------------------------------------

DENSE_N = (0, 1, 17, 63, 100, 1000, 4096, 5120)
DENSE_K = (64, 128, 192, 320, 704, 2048, 4096, 12288)
#: experts, top-k, H, I.
MOE_SHAPES = (
    (1, 1, 64, 64),
    (2, 2, 128, 64),
    (3, 1, 192, 320),
    (4, 3, 704, 192),
    (5, 4, 320, 704),
    (7, 5, 1000 // 64 * 64, 448),
    (8, 8, 2048, 768),
    (16, 6, 2880, 128),
    (32, 7, 1024, 1408),
    (64, 8, 4096, 512),
    (128, 8, 2048, 768),
    (256, 8, 512, 256),
    (512, 10, 320, 192),
    (512, 22, 128, 64),
    (40, 32, 256, 128),
)
MOE_ID_SHAPES = ((1, 2, 64, 64), (5, 3, 192, 64), (16, 8, 704, 320), (128, 8, 512, 192), (512, 22, 128, 64))
QUANTIZE_SHAPES = (
    (0, 64),
    (1, 16),
    (1, 4096),
    (3, 48),
    (8, 7168),
    (16, 80),
    (127, 128),
    (128, 704),
    (129, 320),
    (130, 768),
    (257, 4096),
    (1000, 2048),
)
A4_SHAPES = ((1, 64), (17, 128), (63, 192), (100, 320), (128, 704), (1000, 2048), (4096, 4096))


def _case(name: str, check: Callable[..., None], *arguments: Any, **flags: bool) -> Case:
    return Case(name, lambda run: check(run, *arguments), **flags)


def cases() -> list[Case]:
    """Return everything that is checked, in order."""
    every = range(17)
    some, few = (1, 2, 5, 8, 9, 16), (1, 8, 16)
    found = [
        _case("layout", check_layout, gpu=False, quick=True),
        _case("reference", check_reference, gpu=False, quick=True),
        _case("fakes", check_fakes, gpu=False, quick=True),
        _case("rule", check_rule, gpu=False, quick=True),
        _case("poison", check_poison, quick=True, sanitizer=True),
        _case("wrong arguments", check_wrong_arguments, quick=True, sanitizer=True),
        _case("variants", check_variants, quick=True),
        _case("dense small", check_dense, 63, 192, (0, 1, 9, 16), (), quick=True, sanitizer=True),
        _case("dense small, long", check_dense, 17, 4096, (1, 8, 16), (1, 8, 16), quick=True, sanitizer=True),
        _case("experts small", check_moe, 5, 3, 192, 64, (0, 1, 16), (16,), quick=True, sanitizer=True),
        _case("quantize small", check_quantize, 17, 48, quick=True, sanitizer=True),
        _case("native small", check_a4, 17, 192, (0, 1, 9, 16), quick=True, sanitizer=True),
        _case("dense, all codes", check_dense_codes, quick=True),
        _case("dense, all finite codes", check_dense_finite_codes, few, quick=True),
        _case("dense, sizes", check_dense_sizes, quick=True),
        _case("native, all codes", check_a4_codes, quick=True),
        _case("native, quantized", check_quantize_a4, quick=True),
    ]
    for n in DENSE_N:
        for k in DENSE_K:
            name = f"dense N {n} K {k}"
            found.append(_case(name, check_dense, n, k, every, some, quick=(n, k) in ((100, 704), (4096, 2048))))
    for shape in MOE_SHAPES:
        name = "experts E {} top-{} H {} I {}".format(*shape)
        tokens = every if shape[0] < 64 else (0, 1, 2, 7, 8, 9, 16)
        found.append(_case(name, check_moe, *shape, tokens, few, quick=shape[0] in (4, 128)))
    for shape in MOE_ID_SHAPES:
        name = "expert ids E {} top-{} H {} I {}".format(*shape)
        found.append(_case(name, check_moe_ids, *shape, quick=shape[0] == 16, sanitizer=shape[0] == 5))
    for m, k in QUANTIZE_SHAPES:
        found.append(_case(f"quantize M {m} K {k}", check_quantize, m, k, quick=(m, k) == (130, 768)))
    for n, k in A4_SHAPES:
        found.append(_case(f"native N {n} K {k}", check_a4, n, k, every, quick=(n, k) == (100, 320)))
    found += [
        _case("same bits", check_determinism, quick=True),
        _case("chain", check_chain, quick=True),
        _case("fresh", check_fresh, quick=True),
        _case("read_probe", check_read_probe, quick=True, sanitizer=True),
        _case("opcheck", check_opcheck, quick=True),
        _case("compile", check_compile, quick=True),
        # Last: should it fault, the device is lost to this process.
        _case("misaligned", check_misaligned, quick=True, sanitizer=True),
    ]
    return found
