# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How the benchmark measures and judges: graphs of launches, the problems that it times, and errors of results."""

from __future__ import annotations

import hashlib
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
import work
from sparkfleet_kernels import layout
from torch import Tensor

#: Launch number i of what is measured; returns what it computed.
Call = Callable[[int], Any]

#: Much of torch.cuda has no types; read through it where they are missing.
CUDA: Any = torch.cuda
#: Clock cycles, some 0.2 ms, for which the device is kept busy while the host starts a graph.
SPIN_CYCLES = 400_000
#: Largest relative error (norm), and what an element may differ by, in units of the result's root mean square, on top
#: of its rounding to bfloat16: float32 accumulation, and for experts a rounding of h or z that went the other way.
NORM_LIMIT = 4e-3
DENSE_SLACK, MOE_SLACK = 2e-3, 2e-2
#: Fraction of scale bytes and of codes that may differ by one step: float32 on a midpoint.
SCALE_LIMIT, CODE_LIMIT = 1e-3, 5e-3


class Operators(Protocol):
    """What is measured: ``sparkfleet_kernels.ops``."""

    DENSE: int
    GATE_UP: int
    DOWN: int

    def variants(self) -> list[int]: ...

    def variant(self, kind: int, n: int, k: int, rows: int, groups: int, sms: int, shared_bytes: int) -> int: ...

    def read_probe(self, x: Tensor, sink: Tensor) -> None: ...

    def nvfp4_gemm_a16(
        self, x: Tensor, weight: Tensor, weight_scale: Tensor, alpha: Tensor, swizzled: bool = ..., variant: int = ...
    ) -> Tensor: ...

    def nvfp4_moe_a16(
        self,
        x: Tensor,
        w13: Tensor,
        w13_scale: Tensor,
        w13_alpha: Tensor,
        w2: Tensor,
        w2_scale: Tensor,
        w2_alpha: Tensor,
        topk_weights: Tensor,
        topk_ids: Tensor,
        expert_map: Tensor | None = ...,
        out: Tensor | None = ...,
        swizzled: bool = ...,
        variant13: int = ...,
        variant2: int = ...,
    ) -> Tensor: ...

    def nvfp4_quantize(
        self, x: Tensor, global_scale: Tensor, swizzled: bool = ..., silu_mul: bool = ...
    ) -> tuple[Tensor, Tensor]: ...


class Timer(Protocol):
    """Times launches; the tests have one that needs no GPU."""

    def time(self, calls: Mapping[Any, Call], launches: int, keep: int, replays: int) -> dict[Any, list[float]]:
        """Return microseconds for one launch of every call, ``replays`` of them."""


class GraphTimer:
    """Times CUDA graphs, each of many launches, in turns, so that a drift of the clocks meets every call alike.

    All graphs take their memory from one pool. What the last ``keep`` launches returned stays alive, so that results
    rotate like inputs.
    """

    def __init__(self) -> None:
        self.stream = CUDA.Stream()
        CUDA.set_stream(self.stream)
        self.pool = CUDA.graph_pool_handle()
        # A pool without a graph is gone for good.
        self.anchor = self.capture(lambda _: torch.zeros(16, device="cuda"), 1, 1)

    def capture(self, call: Call, launches: int, keep: int) -> tuple[torch.cuda.CUDAGraph, list[Any]]:
        """Return a graph of these launches and what holds its results."""
        call(0)  # loads the kernels, which a capture may not
        torch.cuda.synchronize()
        held: list[Any] = [None] * keep
        graph = torch.cuda.CUDAGraph()
        graph.capture_begin(pool=self.pool)
        try:
            for i in range(launches):
                held[i % keep] = None
                held[i % keep] = call(i)
        finally:
            graph.capture_end()
        return graph, held

    def time(self, calls: Mapping[Any, Call], launches: int, keep: int, replays: int) -> dict[Any, list[float]]:
        graphs = {name: self.capture(call, launches, keep) for name, call in calls.items()}
        begin = CUDA.Event(enable_timing=True)
        end = CUDA.Event(enable_timing=True)
        times: dict[Any, list[float]] = {name: [] for name in graphs}
        for replay in range(-1, replays):  # the first one warms up
            for name, (graph, _kept) in graphs.items():
                # Without it, the time that the host takes to start the graph would count.
                CUDA._sleep(SPIN_CYCLES)
                begin.record()
                graph.replay()
                end.record()
                end.synchronize()
                if replay >= 0:
                    times[name].append(begin.elapsed_time(end) * 1e3 / launches)
        return times


@dataclass
class Dense:
    """One linear layer: x [m, k] and, for every copy, a weight [n, k] with swizzled scales."""

    n: int
    k: int
    m: int
    x: Tensor
    weights: Tensor
    scales: Tensor
    alpha: Tensor

    def arguments(self, i: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return what launch i takes."""
        copy = i % len(self.weights)
        return self.x, self.weights[copy], self.scales[copy], self.alpha


@dataclass
class Moe:
    """One mixture of experts: every launch has its own routing and reads one of the copies of the weights."""

    experts: int
    topk: int
    h: int
    i: int
    m: int
    x: Tensor
    w13: Tensor
    w13_scale: Tensor
    w13_alpha: Tensor
    w2: Tensor
    w2_scale: Tensor
    w2_alpha: Tensor
    topk_weights: Tensor
    ids: Tensor
    launches: list[work.Launch]
    out: Tensor

    @property
    def hit(self) -> float:
        """Distinct experts of a launch, mean."""
        return statistics.mean(launch.hit for launch in self.launches)

    def arguments(self, i: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Return what launch i takes, up to its routing."""
        i %= len(self.launches)
        copy = self.launches[i].copy
        return (
            self.x,
            self.w13[copy],
            self.w13_scale[copy],
            self.w13_alpha,
            self.w2[copy],
            self.w2_scale[copy],
            self.w2_alpha,
            self.topk_weights,
            self.ids[i],
        )


@dataclass
class Quantize:
    """Rows to quantize: one x [m, k], or [m, 2k] with silu_mul, for every copy."""

    m: int
    k: int
    silu_mul: bool
    xs: Tensor
    global_scale: Tensor


@dataclass
class Work:
    """One point of the run, whatever its kind."""

    name: str
    #: Reference of launch 0, float64, and what an element may differ by: see ``product_error``.
    want: Tensor
    slack: float
    #: Bytes of every tensor that the operator allocates.
    scratch: Sequence[int]
    #: Bytes that a launch has to move.
    moved: float
    launches: int
    #: Results that rotate.
    keep: int


class Peer(Protocol):
    """Other kernels for the same work, timed in turns with ours; None: they cannot do this shape.

    A call returns what the operator would, and is checked like it before it is timed.
    """

    name: str

    def dense(self, problem: Dense, timer: Timer, launches: int) -> Call | None: ...
    def moe(self, problem: Moe, timer: Timer, launches: int) -> Call | None: ...
    def quantize(self, problem: Quantize) -> Call | None: ...


def product_error(got: Tensor, want: Tensor, slack: float) -> tuple[float, float]:
    """Compare a bfloat16 result with the float64 reference.

    :param slack: what an element may differ by beyond rounding to bfloat16, times the root mean square of ``want``.
    :returns: relative error in the norm, and the worst element's difference over what it may differ by; NaN where a
        NaN is.
    """
    difference = (got.double() - want).abs()
    allowed = want.abs() * 2.0**-8 + slack * want.square().mean().sqrt()
    return float(difference.norm() / want.norm()), float((difference / allowed).max())


def product_ok(error: tuple[float, float]) -> bool:
    """Judge what ``product_error`` returned; a NaN is wrong."""
    return error[0] <= NORM_LIMIT and error[1] <= 1


def quantize_error(got: tuple[Tensor, Tensor], want: tuple[Tensor, Tensor]) -> tuple[float, float, int]:
    """Compare codes and scales with the reference's.

    :returns: fraction of scale bytes that differ, fraction of codes that differ, and the largest step between two
        codes or scale bytes (their magnitudes count up with the value, so 1 is the neighbour).
    """
    codes = [layout.unpack_e2m1(packed).to(torch.int16) for packed in (got[0], want[0])]
    scales = [scale.to(torch.int16) for scale in (got[1], want[1])]
    # Minus zero is a neighbour of zero's neighbours on both sides: compare signed values of sign and magnitude.
    signed = [(code & 7) * (1 - (code >> 3) * 2) for code in codes]
    step = max(int((a - b).abs().max()) if a.numel() else 0 for a, b in (signed, scales))
    different = [float((a != b).double().mean()) if a.numel() else 0.0 for a, b in (scales, codes)]
    return different[0], different[1], step


def quantize_ok(error: tuple[float, float, int]) -> bool:
    """Judge what ``quantize_error`` returned."""
    return error[0] <= SCALE_LIMIT and error[1] <= CODE_LIMIT and error[2] <= 1


@dataclass
class Machine:
    """The device and the software, as the JSON names them; bytes in bytes."""

    gpu: str
    capability: str
    sms: int
    l2_bytes: int
    shared_bytes: int
    memory_bytes: int
    torch: str
    cuda: str
    library: str

    @classmethod
    def here(cls, library: Path) -> Machine:
        """Describe the current CUDA device."""
        device = CUDA.get_device_properties(torch.cuda.current_device())
        return cls(
            gpu=device.name,
            capability=f"{device.major}.{device.minor}",
            sms=device.multi_processor_count,
            l2_bytes=device.L2_cache_size,
            shared_bytes=device.shared_memory_per_block_optin,
            memory_bytes=device.total_memory,
            torch=torch.__version__,
            cuda=str(torch.version.cuda),
            library="sha256:" + hashlib.sha256(library.read_bytes()).hexdigest(),
        )
