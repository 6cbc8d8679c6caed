# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a check of the operators works with: fresh data, poisoned memory, the figures and their limits."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .layout import swizzle_scales

#: Up to this many weights the reference is computed on the CPU: under compute-sanitizer only the operators run long.
SMALL = 1 << 17

NAN = float("nan")

#: The relative error of a single value that is rounded to bfloat16 is at most 2^-8. A norm over fewer values than this
#: may come near to that, above it is near the mean.
FEW = 4096
FEW_LIMIT = 2.0**-8 * 1.05


@dataclass(frozen=True)
class Figure:
    """One thing that was measured, and the most that it may be."""

    label: str
    value: float
    limit: float

    @property
    def ok(self) -> bool:
        """Whether the value is within the limit; NaN is not."""
        return self.value <= self.limit


@dataclass
class Run:
    """Data and figures of one case on one device.

    :param device: where the operators run.
    :param seed: of the random data.
    """

    device: torch.device
    seed: int
    pending: list[tuple[list[str], Tensor, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.generator = torch.Generator(device=self.device)
        self.generator.manual_seed(self.seed)

    # --- data ---

    def integers(self, low: int, high: int, *shape: int, dtype: torch.dtype = torch.uint8) -> Tensor:
        """Return random integers, low <= value < high."""
        return torch.randint(low, high, shape, generator=self.generator, device=self.device, dtype=dtype)

    def normal(self, *shape: int) -> Tensor:
        """Return normally distributed float32."""
        return torch.randn(*shape, generator=self.generator, device=self.device)

    def uniform(self, low: float, high: float, *shape: int) -> Tensor:
        """Return float32 between low and high."""
        return low + (high - low) * torch.rand(*shape, generator=self.generator, device=self.device)

    def codes(self, *shape: int) -> Tensor:
        """Return random packed bytes."""
        return self.integers(0, 256, *shape)

    def scales(self, *shape: int, signed: bool = True) -> Tensor:
        """Return random linear E4M3 scales: every finite code, subnormals and zeros among them."""
        scales = self.integers(0, 0x7F, *shape)
        return scales | (self.integers(0, 2, *shape) << 7) if signed else scales

    def common_scales(self, *shape: int) -> Tensor:
        """Return random linear E4M3 scales between 0.5 and 16."""
        return self.integers(0x30, 0x59, *shape)

    def one(self, value: float) -> Tensor:
        """Return one float32 on the device."""
        return torch.tensor([value], dtype=torch.float32, device=self.device)

    # --- figures ---

    def add(self, label: str, value: float | Tensor, limit: float = 0.0) -> None:
        """Note a figure."""
        self.pending.append(([label], torch.as_tensor(value, dtype=torch.float64).reshape(1), limit))

    def same(self, label: str, got: Tensor, wanted: Tensor) -> None:
        """Note how many elements are not those wanted; a NaN where one is wanted is right."""
        if got.shape != wanted.shape or got.dtype != wanted.dtype:
            self.add(f"{label}: {kind_of(got)} instead of {kind_of(wanted)}", NAN)
            return
        equal = (got == wanted) | (got.isnan() & wanted.isnan())
        self.add(f"{label}: differences", (~equal).sum())

    def same_bits(self, label: str, got: Tensor, wanted: Tensor) -> None:
        """Note how many bytes differ."""
        self.same(label, got.contiguous().view(torch.uint8), wanted.contiguous().view(torch.uint8))

    def compare(
        self, labels: Sequence[str], outs: Sequence[Tensor], wanted: Tensor, bound: Tensor, limit: float
    ) -> None:
        """Note how far several results of the same thing are off.

        :param wanted: float64; its device is where the comparison is made.
        :param bound: what each element may be off.
        :param limit: for the relative error in the norm.
        """
        good: list[tuple[str, Tensor]] = []
        for label, out in zip(labels, outs, strict=True):
            if out.shape == wanted.shape and out.dtype == torch.bfloat16:
                good.append((label, out))
            else:
                self.add(f"{label}: {kind_of(out)} instead of bfloat16 {list(wanted.shape)}", NAN)
        if not good or wanted.numel() == 0:
            for label, _out in good:
                self.add(f"{label}: empty", 0)
            return
        off = (torch.stack([out for _label, out in good]).to(wanted.device).double() - wanted).abs()
        size = off.flatten(1).norm(dim=1)
        error = torch.where(size == 0, 0.0, size / wanted.norm())
        element = torch.where(off == 0, 0.0, off / bound).flatten(1).amax(dim=1)
        limit = max(limit, FEW_LIMIT) if wanted.numel() < FEW else limit
        self.pending.append(([f"{label}: error" for label, _out in good], error, limit))
        self.pending.append(([f"{label}: element" for label, _out in good], element, 1.0))

    def figures(self) -> list[Figure]:
        """Return what was noted; waits for the device."""
        result = []
        for labels, values, limit in self.pending:
            result += [Figure(label, value, limit) for label, value in zip(labels, values.tolist(), strict=True)]
        self.pending.clear()
        return result

    # --- calls ---

    def call(self, variants: Sequence[int], operator: Callable[[int], Tensor]) -> tuple[list[int], list[Tensor]]:
        """Call with poisoned memory by the rule and with each variant; return the variants that fit and the results."""
        numbers, outs = [], []
        for number in (0, *variants):
            try:
                with poisoned():
                    outs.append(operator(number))
            except RuntimeError as error:
                if number == 0 or "variant" not in str(error):
                    raise
                continue
            numbers.append(number)
        return numbers, outs

    def reference_device(self, weights: int) -> torch.device:
        """Return where to compute the reference of something with this many weights."""
        return torch.device("cpu") if weights <= SMALL else self.device


@dataclass(frozen=True)
class Case:
    """Something to check.

    :param name: unique.
    :param run: makes the check on a Run.
    :param gpu: whether it needs the operators to run.
    :param quick: whether it belongs to the short list.
    :param sanitizer: whether it belongs to the few small ones for compute-sanitizer.
    """

    name: str
    run: Callable[[Run], None]
    gpu: bool = True
    quick: bool = False
    sanitizer: bool = False


@contextlib.contextmanager
def poisoned() -> Iterator[None]:
    """Let torch fill new memory with NaN, and with the largest value for integers, whoever asks for it."""
    settings: Any = torch.utils.deterministic
    deterministic, fill = torch.are_deterministic_algorithms_enabled(), settings.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    settings.fill_uninitialized_memory = True
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(deterministic)
        settings.fill_uninitialized_memory = fill


def kind_of(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


def stored(scales: Tensor, swizzled: bool) -> Tensor:
    """Return linear scales as they are handed over; what pads the swizzled layout is NaN, which no result may show."""
    if not swizzled:
        return scales.contiguous()
    padding = swizzle_scales(torch.ones_like(scales)) == 0
    swizzled_scales = swizzle_scales(scales)
    swizzled_scales[padding] = 0x7F
    return swizzled_scales
