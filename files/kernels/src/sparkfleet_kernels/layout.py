# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""NVFP4 data as the kernels read it: E2M1 codes, their packing, E4M3 block scales and the swizzled scale layout.

An NVFP4 matrix [rows, K] is two byte tensors and one float32 factor:

* packed codes, uint8 [rows, K/2]: two E2M1 codes a byte, the value of the even k in the low nibble;
* block scales, one E4M3 byte for 16 values along K. Linear: [rows, K/16]. Swizzled: [ceil128(rows), ceil4(K/16)], whose
  bytes lie as [rows/128][groups/4][32][4][4], the layout that CUTLASS and vLLM's ``swizzle_blockscale`` use; row r of a
  tile of 128 is at [r % 32][r // 32], and what pads the matrix is zero;
* a factor for the whole matrix, which the operators take as ``alpha`` (it multiplies the result).

Pure torch, on whatever device the arguments are; nothing here needs the library.
"""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor

#: Values along K that share a block scale.
GROUP = 16
#: What the 16 codes stand for; code 8 is minus zero.
E2M1_VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
#: Largest finite values of the two formats.
E2M1_MAX = 6.0
E4M3_MAX = 448.0
#: A tile of the swizzled layout: 128 rows by 4 groups in 512 bytes.
TILE_ROWS = 128
TILE_GROUPS = 4

#: int or torch.SymInt: a tensor's size, which under torch.compile may be a symbol.
Size = TypeVar("Size", bound=int)


def round_up(value: Size, multiple: int) -> Size:
    """Return the smallest multiple of ``multiple`` that is not below ``value`` (a symbolic size stays one)."""
    return (value + multiple - 1) // multiple * multiple  # type: ignore[return-value]


def scale_shape(rows: Size, groups: Size, swizzled: bool) -> tuple[Size, Size]:
    """Return the shape of the block scales of a matrix.

    :param rows: rows of the matrix.
    :param groups: groups of 16 values along K, K/16.
    :param swizzled: whether the scales are swizzled (padded to whole tiles) or linear.
    """
    return (round_up(rows, TILE_ROWS), round_up(groups, TILE_GROUPS)) if swizzled else (rows, groups)


def pack_e2m1(codes: Tensor) -> Tensor:
    """Pack codes two a byte, the first in the low nibble.

    :param codes: uint8 [..., K] of codes 0..15, K even; upper bits are ignored.
    :returns: uint8 [..., K/2].
    :raises ValueError: K is odd, or the dtype is not uint8.
    """
    if codes.dtype != torch.uint8 or codes.shape[-1] % 2:
        raise ValueError(f"pack_e2m1: codes must be uint8 [..., even], are {codes.dtype} {list(codes.shape)}")
    return (codes[..., 0::2] & 15) | (codes[..., 1::2] << 4)


def unpack_e2m1(packed: Tensor) -> Tensor:
    """Return the codes of packed bytes.

    :param packed: uint8 [..., K/2].
    :returns: uint8 [..., K] of codes 0..15.
    :raises ValueError: the dtype is not uint8.
    """
    if packed.dtype != torch.uint8:
        raise ValueError(f"unpack_e2m1: packed must be uint8, is {packed.dtype}")
    return torch.stack((packed & 15, packed >> 4), dim=-1).flatten(-2)


def encode_e2m1(values: Tensor) -> Tensor:
    """Round values to E2M1 codes: to nearest, ties to the even code, saturating at 6.

    As PTX ``cvt.rn.satfinite.e2m1x2`` does it: infinities become 6 with their sign, a NaN becomes +6 (code 7), and a
    negative value that rounds to zero becomes minus zero (code 8).

    :param values: a floating-point tensor of any shape.
    :returns: uint8 codes of the same shape.
    """
    size = values.abs()
    # Midpoints between neighbours. A tie goes to the even code: up where that is the upper one (>=), down elsewhere
    # (>).
    code = (
        (size > 0.25).to(torch.uint8)
        + (size >= 0.75)
        + (size > 1.25)
        + (size >= 1.75)
        + (size > 2.5)
        + (size >= 3.5)
        + (size > 5.0)
    )
    code = code | (torch.signbit(values).to(torch.uint8) << 3)
    return torch.where(torch.isnan(values), torch.full_like(code, 7), code)


def decode_e2m1(codes: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return the values of codes.

    :param codes: uint8 codes 0..15 of any shape; upper bits are ignored.
    :param dtype: floating-point dtype of the result; every dtype of 8 bits or more holds the values exactly.
    """
    return torch.tensor(E2M1_VALUES, dtype=dtype, device=codes.device)[(codes & 15).long()]


def encode_e4m3(values: Tensor) -> Tensor:
    """Round values to E4M3 bytes: to nearest even, saturating at 448; a NaN becomes a NaN byte.

    :param values: a floating-point tensor of any shape.
    :returns: uint8 of the same shape.
    """
    # Older versions of torch make NaN of what lies above 464. From float64 it goes through float32 anyway.
    return values.clamp(-E4M3_MAX, E4M3_MAX).float().to(torch.float8_e4m3fn).view(torch.uint8)


def decode_e4m3(scales: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return the values of E4M3 bytes; 0x7f and 0xff are NaN.

    :param scales: uint8 or float8_e4m3fn of any shape.
    :param dtype: floating-point dtype of the result.
    """
    return scales.view(torch.float8_e4m3fn).to(torch.float32).to(dtype)


def swizzle_scales(scales: Tensor) -> Tensor:
    """Bring linear block scales into the swizzled layout.

    :param scales: a one-byte dtype, [..., rows, groups], any rows and groups; leading sizes (experts) stay.
    :returns: the same dtype, [..., ceil128(rows), ceil4(groups)], contiguous; padding bytes are zero.
    :raises ValueError: the dtype has not one byte, or there are fewer than two dimensions.
    """
    if scales.element_size() != 1 or scales.dim() < 2:
        raise ValueError(f"swizzle_scales: one-byte [..., rows, groups] wanted, is {scales.dtype} {list(scales.shape)}")
    *lead, rows, groups = scales.shape
    padded_rows, padded_groups = scale_shape(rows, groups, True)
    padded = torch.zeros(*lead, padded_rows, padded_groups, dtype=torch.uint8, device=scales.device)
    padded[..., :rows, :groups] = scales.view(torch.uint8)
    # A row of a tile is 32 * high + low; memory wants low, high.
    tiles = padded.reshape(*lead, padded_rows // TILE_ROWS, 4, 32, padded_groups // TILE_GROUPS, TILE_GROUPS)
    order = [*range(len(lead)), *(len(lead) + axis for axis in (0, 3, 2, 1, 4))]
    return tiles.permute(order).reshape(*lead, padded_rows, padded_groups).view(scales.dtype)


def unswizzle_scales(swizzled: Tensor, rows: int, groups: int) -> Tensor:
    """Bring swizzled block scales back into rows and groups, without the padding.

    :param swizzled: a one-byte dtype, [..., ceil128(rows), ceil4(groups)].
    :param rows: rows of the matrix.
    :param groups: groups of 16 values along K.
    :returns: the same dtype, [..., rows, groups], contiguous.
    :raises ValueError: the shape does not belong to these rows and groups, or the dtype has not one byte.
    """
    padded_rows, padded_groups = scale_shape(rows, groups, True)
    if swizzled.element_size() != 1 or tuple(swizzled.shape[-2:]) != (padded_rows, padded_groups):
        raise ValueError(
            f"unswizzle_scales: {rows} rows of {groups} groups have one-byte [..., {padded_rows}, {padded_groups}], "
            f"is {swizzled.dtype} {list(swizzled.shape)}"
        )
    lead = swizzled.shape[:-2]
    tiles = swizzled.reshape(*lead, padded_rows // TILE_ROWS, padded_groups // TILE_GROUPS, 32, 4, TILE_GROUPS)
    order = [*range(len(lead)), *(len(lead) + axis for axis in (0, 3, 2, 1, 4))]
    linear = tiles.permute(order).reshape(*lead, padded_rows, padded_groups)
    return linear[..., :rows, :groups].contiguous()
