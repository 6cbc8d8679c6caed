# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Packing, number formats and the swizzled layout, each against something that was written another way."""

from __future__ import annotations

import itertools
import math
import struct

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sparkfleet_kernels import layout

#: The magnitudes of E2M1 by its definition: two exponent bits with bias 1, one mantissa bit, subnormals.
E2M1 = [
    (mantissa / 2 if exponent == 0 else (1 + mantissa / 2) * 2 ** (exponent - 1))
    for exponent, mantissa in itertools.product(range(4), range(2))
]

sizes = st.tuples(st.integers(0, 300), st.integers(1, 40))
settings.register_profile("kernels", deadline=None, max_examples=60)
settings.load_profile("kernels")


def e4m3(byte: int) -> float:
    """Decode an E4M3 byte by its definition: four exponent bits with bias 7, three mantissa bits, no infinity."""
    exponent, mantissa = byte >> 3 & 15, byte & 7
    if exponent == 15 and mantissa == 7:
        return math.nan
    size = mantissa / 8 * 2**-6 if exponent == 0 else (1 + mantissa / 8) * 2 ** (exponent - 7)
    return -size if byte & 0x80 else size


def nearest_code(value: float) -> int:
    """Round to E2M1 by looking at all sixteen values: the nearest; of two the one with an even code; NaN is +6."""
    if math.isnan(value):
        return 7
    size = min(abs(value), 6.0)
    best = min(abs(size - candidate) for candidate in E2M1)
    ties = [code for code in range(8) if abs(size - E2M1[code]) == best]
    code = next((code for code in ties if code % 2 == 0), ties[0])
    return code | (8 if math.copysign(1.0, value) < 0 else 0)


def swizzled_offset(row: int, group: int, groups: int) -> int:
    """Return the byte of a scale in the 128x4 layout, as index arithmetic (the kernels compute it like this)."""
    tiles = (groups + 3) >> 2
    tile = (row >> 7) * tiles + (group >> 2)
    return (tile << 9) + ((row & 31) << 4) + ((row >> 5 & 3) << 2) + (group & 3)


def test_e2m1_table() -> None:
    assert E2M1 == [0, 0.5, 1, 1.5, 2, 3, 4, 6]
    codes = torch.arange(16, dtype=torch.uint8)
    for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
        values = layout.decode_e2m1(codes, dtype)
        assert values.dtype == dtype
        assert values.tolist() == [*E2M1, *(-value for value in E2M1)]
        assert torch.signbit(values).tolist() == [False] * 8 + [True] * 8  # minus zero too
    assert layout.decode_e2m1(torch.tensor([0xF3], dtype=torch.uint8)).tolist() == [1.5]


def test_e2m1_encodes_a_dense_set() -> None:
    """Every bfloat16 there is, and every float32 step around each value and each midpoint."""
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(torch.bfloat16).float()
    midpoints = [(low + high) / 2 for low, high in itertools.pairwise(E2M1)]
    near = []
    for centre in [*E2M1, *midpoints, 7.0, 448.0]:
        bits = struct.unpack("<i", struct.pack("<f", centre))[0]
        near += [struct.unpack("<f", struct.pack("<i", max(bits + step, 0)))[0] for step in range(-40, 41)]
    values = torch.cat([every, torch.tensor(near), -torch.tensor(near)])
    expected = [nearest_code(value) for value in values.tolist()]
    assert layout.encode_e2m1(values).tolist() == expected
    assert layout.encode_e2m1(values.double()).tolist() == expected


def test_e2m1_ties_and_specials() -> None:
    values = [0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, 1e30, math.inf, math.nan, -math.nan, 0.0, -0.0, -0.25, -1e-30]
    codes = layout.encode_e2m1(torch.tensor(values))
    assert codes.tolist() == [0, 2, 2, 4, 4, 6, 6, 7, 7, 7, 7, 0, 8, 8, 8]
    assert layout.encode_e2m1(-torch.tensor(values[:9])).tolist() == [8, 10, 10, 12, 12, 14, 14, 15, 15]


@given(st.lists(st.floats(allow_nan=True, width=32), min_size=1, max_size=50))
def test_e2m1_encodes_any_float(values: list[float]) -> None:
    assert layout.encode_e2m1(torch.tensor(values)).tolist() == [nearest_code(value) for value in values]


def test_e4m3_table() -> None:
    got = layout.decode_e4m3(torch.arange(256, dtype=torch.int32).to(torch.uint8), torch.float64)
    for byte, value in enumerate(got.tolist()):
        assert value == e4m3(byte) or (math.isnan(value) and byte & 0x7F == 0x7F), f"{byte:#x}"
    assert torch.equal(
        got.nan_to_num(),
        layout.decode_e4m3(
            torch.arange(256, dtype=torch.int32).to(torch.uint8).view(torch.float8_e4m3fn), torch.float64
        ).nan_to_num(),
    )


def test_e4m3_rounds_to_nearest_even_and_saturates() -> None:
    table = [e4m3(byte) for byte in range(0x7F)]
    values, expected = [], []
    for code, (low, high) in enumerate(itertools.pairwise(table)):
        middle = (low + high) / 2
        values += [low, math.nextafter(middle, 0), middle, math.nextafter(middle, 1e9)]
        expected += [code, code, code if code % 2 == 0 else code + 1, code + 1]
    values += [448.0, 464.0, 480.0, 1e30, math.inf, math.nan, 0.0]
    expected += [0x7E, 0x7E, 0x7E, 0x7E, 0x7E, 0x7F, 0x00]
    # Doubles pass through float32 on their way, so what is nearer to a midpoint than that is a tie.
    exact = [struct.unpack("<f", struct.pack("<f", value))[0] == value for value in values]
    kept = [(value, code) for value, code, is_exact in zip(values, expected, exact, strict=True) if is_exact]
    assert len(kept) > 250
    assert layout.encode_e4m3(torch.tensor([value for value, _code in kept])).tolist() == [
        code for _value, code in kept
    ]


@given(sizes, st.randoms(use_true_random=False))
def test_pack_and_unpack(shape: tuple[int, int], random: object) -> None:
    rows, pairs = shape
    codes = torch.randint(0, 16, (rows, 2 * pairs), dtype=torch.uint8)
    packed = layout.pack_e2m1(codes)
    assert packed.shape == (rows, pairs)
    assert torch.equal(layout.unpack_e2m1(packed), codes)
    for row in range(min(rows, 3)):
        assert int(packed[row, 0]) == int(codes[row, 0]) | int(codes[row, 1]) << 4


def test_pack_refuses() -> None:
    with pytest.raises(ValueError, match="pack_e2m1"):
        layout.pack_e2m1(torch.zeros(2, 3, dtype=torch.uint8))
    with pytest.raises(ValueError, match="pack_e2m1"):
        layout.pack_e2m1(torch.zeros(2, 4))
    with pytest.raises(ValueError, match="unpack_e2m1"):
        layout.unpack_e2m1(torch.zeros(2, 4))


@given(sizes, st.sampled_from([(), (1,), (3,), (2, 2)]))
def test_swizzle(shape: tuple[int, int], lead: tuple[int, ...]) -> None:
    rows, groups = shape
    scales = torch.randint(1, 256, (*lead, rows, groups), dtype=torch.uint8)
    swizzled = layout.swizzle_scales(scales)
    assert swizzled.shape == (*lead, (rows + 127) // 128 * 128, (groups + 3) // 4 * 4)
    assert swizzled.is_contiguous()
    assert torch.equal(layout.unswizzle_scales(swizzled, rows, groups), scales)
    # Each scale is where the formula puts it, and everything else is zero.
    flat = swizzled.flatten(-2)
    expected = torch.zeros_like(flat)
    offsets = torch.tensor(
        [swizzled_offset(r, g, groups) for r in range(rows) for g in range(groups)], dtype=torch.int64
    )
    assert len(set(offsets.tolist())) == rows * groups
    expected[..., offsets] = scales.flatten(-2)
    assert torch.equal(flat, expected)


def test_swizzle_takes_float8_and_refuses() -> None:
    scales = torch.randint(0, 0x7F, (5, 3), dtype=torch.uint8)
    swizzled = layout.swizzle_scales(scales.view(torch.float8_e4m3fn))
    assert swizzled.dtype == torch.float8_e4m3fn
    assert torch.equal(swizzled.view(torch.uint8), layout.swizzle_scales(scales))
    with pytest.raises(ValueError, match="swizzle_scales"):
        layout.swizzle_scales(torch.zeros(4, 4))
    with pytest.raises(ValueError, match="swizzle_scales"):
        layout.swizzle_scales(torch.zeros(4, dtype=torch.uint8))
    with pytest.raises(ValueError, match="unswizzle_scales"):
        layout.unswizzle_scales(torch.zeros(128, 4, dtype=torch.uint8), 129, 4)


@pytest.mark.parametrize(
    ("rows", "groups", "swizzled", "expected"),
    [
        (1, 1, True, (128, 4)),
        (128, 4, True, (128, 4)),
        (129, 5, True, (256, 8)),
        (0, 4, True, (0, 4)),
        (129, 5, False, (129, 5)),
    ],
)
def test_scale_shape(rows: int, groups: int, swizzled: bool, expected: tuple[int, int]) -> None:
    assert layout.scale_shape(rows, groups, swizzled) == expected
