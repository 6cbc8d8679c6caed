# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""CPU implementations of the operators by their references, so that what uses the operators can be tested without a
GPU.

``define()`` also defines the operators where no library does; then fakes, wrappers and checks can be tested on a
checkout where nothing was built. ``Emulation`` gives them CPU implementations as long as it is open; a test may replace
one by a broken one, to see that the checks find it.
"""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Any

import torch
from sparkfleet_kernels import _rules, layout, reference
from torch import Tensor

#: Variant numbers that the emulation takes, beside 0; others are refused, as the library does where one does not fit.
VARIANTS = (11, 12)

_defined: list[torch.library.Library] = []


def define() -> None:
    """Define the operators, unless a library has."""
    if hasattr(getattr(torch.ops, _rules.NAMESPACE), "nvfp4_gemm_a16"):
        return
    library = torch.library.Library(_rules.NAMESPACE, "DEF")
    for name, schema in _rules.SCHEMAS.items():
        library.define(name + schema)
    _defined.append(library)


def _variant(operator: str, *numbers: int) -> None:
    for number in numbers:
        if number and number not in VARIANTS:
            raise RuntimeError(f"{operator}: variant {number} does not fit")


def gemm_a16(
    x: Tensor, weight: Tensor, weight_scale: Tensor, alpha: Tensor, swizzled: bool = True, variant: int = 0
) -> Tensor:
    """Emulate nvfp4_gemm_a16."""
    _rules.check_gemm_a16(x, weight, weight_scale, alpha, swizzled, variant)
    _variant("nvfp4_gemm_a16", variant)
    return reference.gemm_a16(x, weight, weight_scale, alpha, swizzled).bfloat16()


def moe_a16(*arguments: Any) -> None:
    """Emulate nvfp4_moe_a16; torch leaves out trailing arguments that have their default."""
    _rules.check_moe_a16(*arguments)
    options = [True, 0, 0]
    options[: len(arguments) - 11] = arguments[11:]
    _variant("nvfp4_moe_a16", *options[1:])
    result: Callable[..., Tensor] = reference.moe_a16
    arguments[10].copy_(result(*arguments[:10], swizzled=options[0]))


def quantize(x: Tensor, global_scale: Tensor, swizzled: bool = True, silu_mul: bool = False) -> tuple[Tensor, Tensor]:
    """Emulate nvfp4_quantize, in float32 as the library does it."""
    _rules.check_quantize(x, global_scale, swizzled, silu_mul)
    values = reference.quantize_input(x, silu_mul).float()
    blocks = values.reshape(len(values), values.shape[1] // layout.GROUP, layout.GROUP)
    scales = layout.encode_e4m3(global_scale * (blocks.abs().amax(dim=-1) * (1 / 6)))
    decoded = layout.decode_e4m3(scales)
    factor = torch.where(decoded == 0, 0.0, global_scale / decoded)
    packed = layout.pack_e2m1(layout.encode_e2m1(blocks * factor.unsqueeze(-1)).reshape(values.shape))
    return packed, layout.swizzle_scales(scales) if swizzled else scales


def gemm_a4(
    x: Tensor, x_scale: Tensor, weight: Tensor, weight_scale: Tensor, alpha: Tensor, swizzled: bool = True
) -> Tensor:
    """Emulate nvfp4_gemm_a4."""
    _rules.check_gemm_a4(x, x_scale, weight, weight_scale, alpha, swizzled)
    return reference.gemm_a4(x, x_scale, weight, weight_scale, alpha, swizzled).bfloat16()


def read_probe(x: Tensor, sink: Tensor) -> None:
    """Emulate read_probe."""
    _rules.check_read_probe(x, sink)


IMPLEMENTATIONS: dict[str, Callable[..., Any]] = {
    "nvfp4_gemm_a16": gemm_a16,
    "nvfp4_moe_a16": moe_a16,
    "nvfp4_quantize": quantize,
    "nvfp4_gemm_a4": gemm_a4,
    "read_probe": read_probe,
}


class Emulation:
    """The operators' CPU implementations, from entering to leaving.

    :param replaced: operator -> implementation to use instead of the reference's.
    """

    def __init__(self, **replaced: Callable[..., Any]) -> None:
        self.implementations = IMPLEMENTATIONS | replaced

    def __enter__(self) -> None:
        self.library = torch.library.Library(_rules.NAMESPACE, "IMPL", "CPU")
        for name, implementation in self.implementations.items():
            self.library.impl(name, implementation)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.library._destroy()
