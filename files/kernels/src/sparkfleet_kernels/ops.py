# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The operators: loads the library, registers fake implementations, and has a documented function for each operator.

Importing this module loads ``libsparkfleet_kernels.so`` from beside it, or the file that SPARKFLEET_KERNELS_LIBRARY
names. The library has CUDA implementations only; the fakes make the operators work under torch.compile, also on a
machine without a GPU. Layouts are those of ``sparkfleet_kernels.layout``. Wrong arguments raise RuntimeError before
anything is launched, with a text such as ``nvfp4_gemm_a16: K must be a multiple of 64, is 96``.

Common to all: tensors are contiguous and on one CUDA device; work is queued on that device's current stream; no
operator has a derivative; results have the same bits on every run. Block scales may be uint8 or float8_e4m3fn, of the
same bytes.
"""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.library import register_fake

from . import _rules
from ._rules import NAMESPACE
from .layout import GROUP, scale_shape

#: What ``variant()`` takes as kind.
DENSE, GATE_UP, DOWN = 0, 1, 2

LIBRARY_NAME = "libsparkfleet_kernels.so"
LIBRARY_VARIABLE = "SPARKFLEET_KERNELS_LIBRARY"
#: The oldest torch whose stable ABI the library needs.
TORCH_MINIMUM = (2, 11)

__all__ = [
    "DENSE",
    "DOWN",
    "GATE_UP",
    "LibraryMissingError",
    "library_path",
    "nvfp4_gemm_a4",
    "nvfp4_gemm_a16",
    "nvfp4_moe_a16",
    "nvfp4_quantize",
    "read_probe",
    "variant",
    "variants",
]


class LibraryMissingError(ImportError):
    """The compiled library is not there or cannot be loaded; the text says where it was looked for and what to do."""


def library_path() -> Path:
    """Return the file that holds the operators.

    :raises LibraryMissingError: there is none.
    """
    named = os.environ.get(LIBRARY_VARIABLE)
    path = Path(named) if named else Path(__file__).resolve().with_name(LIBRARY_NAME)
    if path.is_file():
        return path
    which = f"{path}, which {LIBRARY_VARIABLE} names," if named else path
    raise LibraryMissingError(
        f"sparkfleet_kernels: {which} does not exist. Install the sparkfleet-kernels wheel of this machine's "
        f"architecture (`make kernels` builds it), or set {LIBRARY_VARIABLE} to the library"
    )


def _version(text: str) -> tuple[int, int]:
    major, minor = text.split(".")[:2]
    return int(major), int(minor)


def _load() -> None:
    """Load the library unless its operators are registered already.

    :raises LibraryMissingError: the library is not there or cannot be loaded.
    """
    if hasattr(getattr(torch.ops, NAMESPACE), "nvfp4_gemm_a16"):
        return
    path = library_path()
    if _version(torch.__version__) < TORCH_MINIMUM:
        wanted = ".".join(map(str, TORCH_MINIMUM))
        raise LibraryMissingError(f"sparkfleet_kernels: torch {wanted} or newer is needed, is {torch.__version__}")
    try:
        load: Callable[[str], None] = torch.ops.load_library
        load(str(path))
    except OSError as error:
        raise LibraryMissingError(f"sparkfleet_kernels: {path} cannot be loaded: {error}") from error


_load()


@functools.cache
def _exports() -> ctypes.CDLL:
    """Return the plain C functions of the library."""
    library = ctypes.CDLL(str(library_path()))
    library.sparkfleet_kernels_variants.argtypes = [ctypes.POINTER(ctypes.c_int), ctypes.c_int]
    library.sparkfleet_kernels_variants.restype = ctypes.c_int
    library.sparkfleet_kernels_variant.argtypes = [ctypes.c_int] * 7
    library.sparkfleet_kernels_variant.restype = ctypes.c_int
    return library


def variants() -> list[int]:
    """Return the numbers of all variants that ``variant`` of the a16 operators may name, ascending.

    Not every variant can run every shape; the operator says so by RuntimeError. Needs no GPU.
    """
    numbers = (ctypes.c_int * 1024)()
    count = _exports().sparkfleet_kernels_variants(numbers, len(numbers))
    if not 0 < count <= len(numbers):
        raise RuntimeError(f"sparkfleet_kernels_variants: {count} variants")
    return sorted(numbers[:count])


def variant(kind: int, n: int, k: int, rows: int, groups: int, sms: int, shared_bytes: int) -> int:
    """Return the variant that the static rule takes for a shape on a device. Needs no GPU.

    :param kind: DENSE (a linear layer), GATE_UP or DOWN (the two products of an expert).
    :param n: rows of the weight; for GATE_UP both halves, 2 * I.
    :param k: values along K.
    :param rows: tokens, M.
    :param groups: (token, expert) pairs, M * k; 1 for DENSE.
    :param sms: multiprocessors of the device.
    :param shared_bytes: shared memory that a block can opt in to, bytes.
    """
    return int(_exports().sparkfleet_kernels_variant(kind, n, k, rows, groups, sms, shared_bytes))


def _bytes(scales: Tensor) -> Tensor:
    """Return block scales as uint8: the operators take bytes, since torch's operator tests cannot compare float8."""
    return scales.view(torch.uint8) if scales.dtype == torch.float8_e4m3fn else scales


def nvfp4_gemm_a16(
    x: Tensor, weight: Tensor, weight_scale: Tensor, alpha: Tensor, swizzled: bool = True, variant: int = 0
) -> Tensor:
    """Multiply up to 16 rows of bfloat16 by an NVFP4 weight: alpha * x @ dequantize(weight).T.

    Products are exact and added in float32; exact for every E4M3 scale, subnormal, zero and negative ones included.

    :param x: bfloat16 [M, K], 0 <= M <= 16, K a multiple of 64.
    :param weight: uint8 [N, K/2], packed E2M1, any N.
    :param weight_scale: block scales, [ceil128(N), K/16] if swizzled, else [N, K/16].
    :param alpha: float32, 1 element, on the device: the weight's global factor.
    :param swizzled: layout of weight_scale.
    :param variant: 0: by the rule; else one of ``variants()``.
    :returns: bfloat16 [M, N].
    :raises RuntimeError: an argument is not as above, or the variant cannot run this shape.
    """
    result: Tensor = torch.ops.sparkfleet_kernels.nvfp4_gemm_a16(
        x, weight, _bytes(weight_scale), alpha, swizzled, variant
    )
    return result


def nvfp4_moe_a16(
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
    out: Tensor | None = None,
    swizzled: bool = True,
    variant13: int = 0,
    variant2: int = 0,
) -> Tensor:
    """Run the experts of up to 16 tokens: gate and up with SwiGLU, down, and the weighted sum over a token's experts.

    For token m and slot j with expert e: h = bf16(silu(g) * u), where g and u are w13_alpha[e] * x[m] @ gate.T and
    up.T; z_j = bf16(w2_alpha[e] * h @ w2[e].T); out[m] = bf16(sum of topk_weights[m, j] * z_j), j in order, in float32.
    A slot is skipped whose id is negative, is mapped to -1, or is no expert here; a token with no expert left gets
    zeros.

    :param x: bfloat16 [M, H], 0 <= M <= 16, H a multiple of 64.
    :param w13: uint8 [E, 2I, H/2], packed E2M1: I gate rows, then I up rows; I a multiple of 64, 1 <= E <= 512.
    :param w13_scale: block scales, [E, ceil128(2I), H/16] if swizzled, else [E, 2I, H/16].
    :param w13_alpha: float32 [E]: the global factors.
    :param w2: uint8 [E, H, I/2], packed E2M1.
    :param w2_scale: block scales, [E, ceil128(H), I/16 rounded up to 4] if swizzled, else [E, H, I/16].
    :param w2_alpha: float32 [E].
    :param topk_weights: float32 [M, k], 1 <= k <= 32.
    :param topk_ids: int32 [M, k]: expert numbers; the same expert may come twice.
    :param expert_map: int32 [global experts]: number here or -1, for expert parallelism; None: ids are numbers here.
    :param out: bfloat16 [M, H] to write to; None: a new tensor.
    :param swizzled: layout of both scales.
    :param variant13: variant of the first product; 0: by the rule.
    :param variant2: variant of the second product; 0: by the rule.
    :returns: bfloat16 [M, H], ``out`` where it is given.
    :raises RuntimeError: an argument is not as above, or a variant cannot run this shape.
    """
    if out is None:
        out = torch.empty_like(x)
    torch.ops.sparkfleet_kernels.nvfp4_moe_a16(
        x,
        w13,
        _bytes(w13_scale),
        w13_alpha,
        w2,
        _bytes(w2_scale),
        w2_alpha,
        topk_weights,
        topk_ids,
        expert_map,
        out,
        swizzled,
        variant13,
        variant2,
    )
    return out


def nvfp4_quantize(
    x: Tensor, global_scale: Tensor, swizzled: bool = True, silu_mul: bool = False
) -> tuple[Tensor, Tensor]:
    """Quantize bfloat16 rows to NVFP4, blocks of 16 along K, in vLLM's convention.

    scale = e4m3(global_scale * amax / 6) and code = e2m1(value * global_scale / scale), both to nearest even and
    saturating; a zero scale has zero codes. The kernel's arithmetic is float32, so a value within a few float32 steps
    of a midpoint may round to the other side of it than in exact arithmetic.

    :param x: bfloat16 [M, K], K a multiple of 16; with silu_mul [M, 2K], the gate and then the up columns.
    :param global_scale: float32, 1 element, on the device; multiplies. 448 * 6 / amax(x) uses the whole range.
    :param swizzled: layout of the scales.
    :param silu_mul: quantize silu(gate) * up instead of x.
    :returns: uint8 [M, K/2], and uint8 scales [ceil128(M), ceil4(K/16)] (padding zero) if swizzled, else [M, K/16].
    :raises RuntimeError: an argument is not as above.
    """
    result: tuple[Tensor, Tensor] = torch.ops.sparkfleet_kernels.nvfp4_quantize(x, global_scale, swizzled, silu_mul)
    return result


def nvfp4_gemm_a4(
    x: Tensor, x_scale: Tensor, weight: Tensor, weight_scale: Tensor, alpha: Tensor, swizzled: bool = True
) -> Tensor:
    """Multiply up to 16 NVFP4 rows by an NVFP4 weight: alpha * dequantize(x) @ dequantize(weight).T.

    Uses the block-scaled MMA of sm_12x, and elsewhere the same fragments through bfloat16: a check of the native path,
    not a fast kernel. The MMA's scales are unsigned: their sign bit must be 0.

    :param x: uint8 [M, K/2], packed E2M1, 0 <= M <= 16, K a multiple of 64.
    :param x_scale: block scales, [ceil128(M), K/16] if swizzled, else [M, K/16].
    :param weight: uint8 [N, K/2], packed E2M1, any N.
    :param weight_scale: block scales, [ceil128(N), K/16] if swizzled, else [N, K/16].
    :param alpha: float32, 1 element, on the device: the product of both global factors.
    :param swizzled: layout of both scales.
    :returns: bfloat16 [M, N].
    :raises RuntimeError: an argument is not as above.
    """
    result: Tensor = torch.ops.sparkfleet_kernels.nvfp4_gemm_a4(
        x, _bytes(x_scale), weight, _bytes(weight_scale), alpha, swizzled
    )
    return result


def read_probe(x: Tensor, sink: Tensor) -> None:
    """Read all of x and do nothing with it: what the device's memory gives at best, for the benchmark.

    :param x: uint8, one dimension, a multiple of 16 elements.
    :param sink: int32, at least 1 element: the kernel could write to it, so its reads cannot be left out.
    :raises RuntimeError: an argument is not as above.
    """
    torch.ops.sparkfleet_kernels.read_probe(x, sink)


def _fake_gemm_a16(
    x: Tensor, weight: Tensor, weight_scale: Tensor, alpha: Tensor, swizzled: bool = True, variant: int = 0
) -> Tensor:
    _rules.check_gemm_a16(x, weight, weight_scale, alpha, swizzled, variant)
    return x.new_empty((x.shape[0], weight.shape[0]))


def _fake_quantize(
    x: Tensor, global_scale: Tensor, swizzled: bool = True, silu_mul: bool = False
) -> tuple[Tensor, Tensor]:
    _rules.check_quantize(x, global_scale, swizzled, silu_mul)
    rows, columns = x.shape
    depth = columns // 2 if silu_mul else columns
    packed = x.new_empty((rows, depth // 2), dtype=torch.uint8)
    return packed, x.new_empty(scale_shape(rows, depth // GROUP, swizzled), dtype=torch.uint8)


def _fake_gemm_a4(
    x: Tensor, x_scale: Tensor, weight: Tensor, weight_scale: Tensor, alpha: Tensor, swizzled: bool = True
) -> Tensor:
    _rules.check_gemm_a4(x, x_scale, weight, weight_scale, alpha, swizzled)
    return x.new_empty((x.shape[0], weight.shape[0]), dtype=torch.bfloat16)


# moe_a16 and read_probe return nothing: checking the arguments is all there is to fake.
for _name, _fake in (
    ("nvfp4_gemm_a16", _fake_gemm_a16),
    ("nvfp4_moe_a16", _rules.check_moe_a16),
    ("nvfp4_quantize", _fake_quantize),
    ("nvfp4_gemm_a4", _fake_gemm_a4),
    ("read_probe", _rules.check_read_probe),
):
    register_fake(f"{NAMESPACE}::{_name}", _fake)
