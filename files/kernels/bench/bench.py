# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Times the operators on this machine's GPU beside what its memory gives, and writes JSON.

    python files/kernels/bench/bench.py --out FILE.json            every shape, variants by the rule
    python files/kernels/bench/bench.py --out FILE.json --sweep    every variant of every shape

Needs a CUDA device, the package (PYTHONPATH=files/kernels/src in a checkout) and its library (beside the package, or
named by SPARKFLEET_KERNELS_LIBRARY). README.md says how the figures come about. Exit status: 0, or 1 if a result
differed from the reference; such an operator is not timed.
"""

from __future__ import annotations

import argparse
import functools
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import work
from measure import (
    DENSE_SLACK,
    MOE_SLACK,
    Call,
    Dense,
    GraphTimer,
    Machine,
    Moe,
    Operators,
    Peer,
    Quantize,
    Timer,
    Work,
    product_error,
    product_ok,
    quantize_error,
    quantize_ok,
)
from sparkfleet_kernels import layout, reference
from torch import Tensor
from work import Sample

GIB = 1 << 30
#: Read sizes for the probe's rate, and for the curve of what one launch that reads so much can reach.
PROBE_BYTES = (GIB // 2, GIB, 2 * GIB)
CURVE_BYTES = tuple(1 << exponent for exponent in range(20, 31))
#: About how long one graph runs, microseconds, so that starting it does not count.
TARGET_US, SWEEP_TARGET_US = 1000.0, 400.0
#: Variants of a sweep within this of the fastest are timed again, more often.
CONTENDER = 1.15
FIRST_REPLAYS = 3
#: Rows of a weight that the reference takes at once (a multiple of a swizzle tile), and rows of x when quantizing.
REFERENCE_ROWS = 8192


@dataclass
class Settings:
    """What to run and how long."""

    sweep: bool = False
    only: str | None = None
    shapes: Sequence[str] = ()
    rows: Sequence[int] = work.ROWS
    least_launches: int = 24
    replays: int = 15
    seed: int = 0
    dense: Sequence[tuple[int, int]] = work.DENSE
    moe: Sequence[tuple[int, int, int, int]] = work.MOE
    quantize: Sequence[tuple[int, int]] = work.QUANTIZE
    probe_bytes: Sequence[int] = PROBE_BYTES
    curve_bytes: Sequence[int] = CURVE_BYTES
    product_size: int = 8192

    def wants(self, kind: str, shape: str) -> bool:
        """Say whether a shape of a kind is to be measured."""
        return self.only in (None, kind) and (not self.shapes or shape.replace(" ", "") in self.shapes)


@dataclass
class Bench:
    """One run. ``data`` is what the JSON will hold; ``failures`` names every result that was wrong."""

    ops: Operators
    timer: Timer
    machine: Machine
    settings: Settings
    device: str = "cuda"
    peers: Sequence[Peer] = ()
    say: Callable[[str], None] = print
    data: dict[str, Any] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    checks: int = 0

    def __post_init__(self) -> None:
        self.random = random.Random(self.settings.seed)
        torch.manual_seed(self.settings.seed)
        self.data.update(
            schema=work.SCHEMA,
            date=datetime.now(UTC).strftime("%Y-%m-%d"),
            machine=asdict(self.machine),
            settings={
                "seed": self.settings.seed,
                "replays": self.settings.replays,
                "least_launches": self.settings.least_launches,
                "cache_factor": work.CACHE_FACTOR,
            },
        )

    # --- the run -----------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Measure everything that the settings ask for."""
        began = time.monotonic()
        self.probe()
        parts = (
            (("dense", self.sweep_dense), ("moe", self.sweep_moe))
            if self.settings.sweep
            else (("dense", self.dense), ("moe", self.moe), ("quantize", self.quantize))
        )
        for kind, part in parts:
            if self.settings.only in (None, kind):
                part_began = time.monotonic()
                part()
                self.say(f"# {kind}: {time.monotonic() - part_began:.0f} s")
        self.probe_again()
        self.data["checks"] = {"count": self.checks, "failures": self.failures}
        self.data["seconds"] = round(time.monotonic() - began, 1)
        self.say(f"# {self.checks} checks, {len(self.failures)} failures; {self.data['seconds']} s in all")
        for failure in self.failures:
            self.say(f"# WRONG: {failure}")

    def sample(self, calls: Mapping[Any, Call], launches: int, keep: int, replays: int) -> dict[Any, Sample]:
        """Time calls; see ``Timer.time``."""
        return {name: Sample.of(times) for name, times in self.timer.time(calls, launches, keep, replays).items()}

    def one(self, call: Call, launches: int, keep: int = 1, replays: int = 7) -> float:
        """Time one call, microseconds."""
        return self.sample({None: call}, launches, keep, replays)[None].us

    def launches(self, moved_bytes: float, rotation: int) -> int:
        """Return how many launches a graph holds that move so many bytes each."""
        target = SWEEP_TARGET_US if self.settings.sweep else TARGET_US
        item_us = self.launch_us + moved_bytes / (self.read_gb_per_s * 1e3)
        return work.launches(item_us, rotation, self.settings.least_launches, target)

    # --- what the machine gives --------------------------------------------------------------------------------------

    def probe(self) -> None:
        """Measure the ceilings: reading, copying, a bfloat16 product, an empty launch, and reading little at once."""
        largest = max(*self.settings.probe_bytes, *self.settings.curve_bytes)
        self.buffer = torch.randint(0, 256, (largest,), dtype=torch.uint8, device=self.device)
        self.sink = torch.zeros(4, dtype=torch.int32, device=self.device)
        target = torch.empty_like(self.buffer)
        read = {size: work.gb_per_s(size, self.one(self.reading(size), 4)) for size in self.settings.probe_bytes}
        copied = {size: self.copy_rate(target, size) for size in self.settings.probe_bytes}
        self.read_gb_per_s, self.copy_gb_per_s = max(read.values()), max(copied.values())
        self.launch_us = self.one(self.reading(16), 100)
        curve = []
        for size in self.settings.curve_bytes:
            rotation = min(largest // size, work.copies(size, self.machine.l2_bytes))
            us = self.one(self.reading(size), self.launches(size, rotation))
            curve.append({"bytes": size, "us": work.rounded(us), "gb_s": work.rounded(work.gb_per_s(size, us))})
        del target
        size = self.settings.product_size
        a, b, c = (torch.randn(size, size, device=self.device).bfloat16() for _operand in range(3))
        product_us = self.one(lambda _: torch.mm(a, b, out=c), 6)
        self.data["probe"] = {
            "read_gb_s": work.rounded(self.read_gb_per_s),
            "read_by_bytes": {str(size): work.rounded(rate) for size, rate in read.items()},
            "copy_gb_s": work.rounded(self.copy_gb_per_s),
            "copy_by_bytes": {str(size): work.rounded(rate) for size, rate in copied.items()},
            "launch_us": work.rounded(self.launch_us),
            "bf16_tflop_s": work.rounded(2 * size**3 / product_us / 1e6),
            "curve": curve,
        }
        self.say(
            f"# {self.machine.gpu}, {self.machine.sms} SMs, L2 {self.machine.l2_bytes / 2**20:.0f} MiB, "
            f"torch {self.machine.torch}: read {self.read_gb_per_s:.0f} GB/s, copy {self.copy_gb_per_s:.0f} GB/s "
            f"(read + written), empty launch {self.launch_us:.2f} us, bf16 {self.data['probe']['bf16_tflop_s']:.0f} "
            "TFLOP/s"
        )

    def reading(self, size: int) -> Call:
        """Return a call that reads the next ``size`` bytes of the buffer."""
        parts = len(self.buffer) // size

        def call(i: int) -> None:
            begin = i % parts * size
            self.ops.read_probe(self.buffer[begin : begin + size], self.sink)

        return call

    def copy_rate(self, target: Tensor, size: int) -> float:
        """Return the rate of a copy of ``size`` bytes, read and written bytes counted, GB/s."""
        parts = len(self.buffer) // size

        def call(i: int) -> None:
            part = slice(i % parts * size, (i % parts + 1) * size)
            target[part].copy_(self.buffer[part])

        return work.gb_per_s(2 * size, self.one(call, 4))

    def probe_again(self) -> None:
        """Measure reading once more: how much the machine drifted over the run."""
        size = min(self.settings.probe_bytes[-1], GIB)
        rate = work.gb_per_s(size, self.one(self.reading(size), 4))
        self.data["probe"]["read_gb_s_at_end"] = work.rounded(rate)
        self.say(f"# read at the end: {rate:.0f} GB/s, {100 * (rate / self.read_gb_per_s - 1):+.1f} %")

    # --- checks ------------------------------------------------------------------------------------------------------

    def poison(self, *sizes: int) -> None:
        """Leave memory behind, of these sizes in bytes, where the next allocations may come to lie: all NaN."""
        held = [torch.full((max(size, 1),), 0xFF, dtype=torch.uint8, device=self.device) for size in sizes]
        del held

    def check(self, what: str, error: tuple[float, ...], ok: bool) -> bool:
        """Count a check; remember and name what was wrong."""
        self.checks += 1
        if not ok:
            self.failures.append(f"{what}: error {', '.join(f'{part:.3g}' for part in error)}")
        return ok

    def check_product(self, item: Work, name: str, call: Call) -> float | None:
        """Run launch 0 and compare it; return its relative error, or None if it is wrong."""
        self.poison(*item.scratch)
        error = product_error(call(0), item.want, item.slack)
        return error[0] if self.check(f"{item.name} {name}".rstrip(), error, product_ok(error)) else None

    def refusal(self, op: str, error: RuntimeError) -> None:
        """Pass if the operator refused a variant for this shape; anything else goes on."""
        text = str(error)
        if f"{op}:" not in text or "launch failed" in text:
            raise error

    # --- linear layers -----------------------------------------------------------------------------------------------

    def dense_problems(self) -> Iterable[tuple[Dense, Tensor]]:
        """Yield every linear layer with the reference's result of launch 0."""
        for n, k in self.settings.dense:
            if not self.settings.wants("dense", f"{n}x{k}"):
                continue
            most = max(self.settings.rows)
            count = work.copies(work.weight_bytes(n, k), self.machine.l2_bytes)
            weights = torch.randint(0, 256, (count, n, k // 2), dtype=torch.uint8, device=self.device)
            scales = layout.swizzle_scales(self.scales(count, n, k))
            x = torch.randn(most, k, device=self.device).bfloat16()
            alpha = torch.full((1,), 0.01, device=self.device)
            # Whole tiles of the swizzled scales lie together, so a part of the rows is a part of the scales.
            parts = [
                reference.gemm_a16(
                    x, weights[0, row : row + REFERENCE_ROWS], scales[0, row : row + REFERENCE_ROWS], alpha
                )
                for row in range(0, n, REFERENCE_ROWS)
            ]
            want = torch.cat(parts, dim=1)
            del parts
            for m in self.settings.rows:
                yield Dense(n, k, m, x[:m], weights, scales, alpha), want[:m]
            del weights, scales, x, want
            self.free()

    def dense_call(self, problem: Dense, variant: int = 0) -> Call:
        """Return the call of the operator."""
        return lambda i: self.ops.nvfp4_gemm_a16(*problem.arguments(i), True, variant)

    def dense_work(self, problem: Dense, want: Tensor, launches: int) -> Work:
        """Describe a linear layer to ``check_product`` and ``measure``."""
        n, k, m = problem.n, problem.k, problem.m
        return Work(
            name=f"dense {n}x{k} M={m}",
            want=want,
            slack=DENSE_SLACK,
            scratch=(want.numel() * 2,),
            moved=work.dense_bytes(n, k, m),
            launches=launches,
            keep=len(problem.weights),
        )

    def scales(self, *shape: int) -> Tensor:
        """Return random E4M3 scales of 0.5 to 15 for matrices [..., rows, k]."""
        *lead, k = shape
        return torch.randint(0x30, 0x58, (*lead, k // 16), dtype=torch.uint8, device=self.device)

    def free(self) -> None:
        """Give memory back between shapes."""
        if self.device == "cuda":
            torch.cuda.empty_cache()

    def dense(self) -> None:
        """Time linear layers with the rule's variants."""
        rows = self.data.setdefault("dense", [])
        self.say(
            f"# dense\n{'N x K':>12} {'M':>3} {'us':>8} {'GB/s':>6} {'% read':>6} {'variant':>7}{self.peer_head()}"
        )
        for problem, want in self.dense_problems():
            n, k, m = problem.n, problem.k, problem.m
            shape = {"n": n, "k": k, "m": m}
            launches = self.launches(work.dense_bytes(n, k, m), len(problem.weights))
            calls = {"": self.dense_call(problem)}
            for peer in self.peers:
                if (call := peer.dense(problem, self.timer, launches)) is not None:
                    calls[peer.name] = call
            chosen = self.ops.variant(self.ops.DENSE, n, k, m, 1, self.machine.sms, self.machine.shared_bytes)
            extra = {"variant": chosen, "copies": len(problem.weights)}
            row = self.measure(self.dense_work(problem, want, launches), shape, calls, extra)
            if row is None:
                continue
            rows.append(row)
            self.say(
                f"{f'{n}x{k}':>12} {m:>3} {row['us']:8.2f} {row['gb_s']:6.0f} {100 * row['read_fraction']:6.1f} "
                f"{chosen:>7}{self.peer_cells(row)}"
            )
        self.peer_summary(rows)

    def measure(
        self,
        item: Work,
        shape: dict[str, Any],
        calls: dict[str, Call],
        extra: dict[str, Any],
    ) -> dict[str, Any] | None:
        """Check and time ours ("") and the peers' calls; return the row of the JSON, or None if ours is wrong."""
        errors = {name: self.check_product(item, name, call) for name, call in calls.items()}
        if errors[""] is None:
            return None
        right = {name: call for name, call in calls.items() if errors[name] is not None}
        samples = self.sample(right, item.launches, item.keep, self.settings.replays)
        row = {
            **shape,
            **self.timing(samples, item.moved, item.launches),
            **extra,
            "error": work.rounded(errors[""], 3),
        }
        row["read_fraction"] = work.rounded(row["gb_s"] / self.read_gb_per_s, 4)
        return row

    def timing(self, samples: Mapping[str, Sample], moved: float, launches: int) -> dict[str, Any]:
        """Return the part of a row that every kind has."""
        ours = samples[""]
        row = {
            "us": work.rounded(ours.us),
            "us_low": work.rounded(ours.low),
            "us_high": work.rounded(ours.high),
            "launches": launches,
            "bytes": round(moved),
            "gb_s": work.rounded(work.gb_per_s(moved, ours.us)),
        }
        peers = {name: work.rounded(sample.us) for name, sample in samples.items() if name}
        return {**row, "peers": peers} if peers else row

    def peer_head(self) -> str:
        return "".join(f" {peer.name + ' us':>12} {'ratio':>5}" for peer in self.peers)

    def peer_cells(self, row: dict[str, Any]) -> str:
        """Return a peer's time and how often ours fits into it, for every peer."""
        cells = ""
        for peer in self.peers:
            us = row.get("peers", {}).get(peer.name)
            cells += f" {'-':>12} {'':>5}" if us is None else f" {us:12.2f} {us / row['us']:5.2f}"
        return cells

    def peer_summary(self, rows: list[dict[str, Any]]) -> None:
        for peer in self.peers:
            ratios = [row["peers"][peer.name] / row["us"] for row in rows if peer.name in row.get("peers", {})]
            if ratios:
                self.say(f"# {peer.name} takes {statistics.geometric_mean(ratios):.3f} times as long (geometric mean)")

    def sweep_dense(self) -> None:
        """Time every variant of linear layers."""
        self.sweep_head("N x K")
        for problem, want in self.dense_problems():
            n, k, m = problem.n, problem.k, problem.m
            launches = self.launches(work.dense_bytes(n, k, m), len(problem.weights))
            self.sweep_point(
                "nvfp4_gemm_a16",
                self.dense_work(problem, want, launches),
                {"kind": "dense", "n": n, "k": k, "m": m, "groups": 1},
                functools.partial(self.dense_call, problem),
            )

    def sweep_head(self, shape: str) -> None:
        self.data.setdefault("sweep", [])
        self.say(f"# sweep\n{shape + ', M':>36} {'rule':>6} {'us':>8} {'best':>6} {'us':>8} {'loss':>6}  variants")

    def sweep_point(self, op: str, item: Work, point: dict[str, Any], call_of: Callable[[int], Call]) -> None:
        """Time every variant at one point: all of them a few times, then the fastest and the rule's more often."""
        name = work.describe(point)
        kind = {"dense": self.ops.DENSE, "gate_up": self.ops.GATE_UP, "down": self.ops.DOWN}[point["kind"]]
        chosen = self.ops.variant(
            kind, point["n"], point["k"], point["m"], point["groups"], self.machine.sms, self.machine.shared_bytes
        )
        calls = {}
        for variant in self.ops.variants():
            call = call_of(variant)
            try:
                right = self.check_product(item, f"variant {variant}", call) is not None
            except RuntimeError as error:
                self.refusal(op, error)
                continue
            if right:
                calls[variant] = call
        if not calls:
            self.failures.append(f"sweep {name}: no variant is right")
            return
        first = self.sample(calls, item.launches, item.keep, FIRST_REPLAYS)
        fastest = min(sample.us for sample in first.values())
        last = {v: call for v, call in calls.items() if first[v].us <= CONTENDER * fastest or v == chosen}
        times = {**first, **self.sample(last, item.launches, item.keep, self.settings.replays)}
        point = {
            **point,
            "rule": chosen,
            "launches": item.launches,
            "contenders": sorted(last),
            "us": {str(variant): work.rounded(times[variant].us) for variant in sorted(times)},
        }
        self.data["sweep"].append(point)
        if chosen not in times:
            self.failures.append(f"sweep {name}: the rule's variant {chosen} cannot run or is wrong")
            return
        gap = work.gap(point, chosen)
        self.say(
            f"{name:>36} {chosen:>6} {gap.us:8.2f} {gap.best:>6} {gap.best_us:8.2f} {100 * gap.loss:5.1f}% "
            f"{len(times):>9}"
        )

    # --- mixtures of experts -----------------------------------------------------------------------------------------

    def moe_problems(self) -> Iterable[tuple[Moe, Tensor]]:
        """Yield every mixture of experts with the reference's result of launch 0."""
        for experts, topk, h, i in self.settings.moe:
            if not self.settings.wants("moe", f"{experts},{topk},{h},{i}"):
                continue
            one = work.expert_bytes(h, i)
            count = work.expert_copies(experts, one, self.machine.l2_bytes)
            w13 = torch.randint(0, 256, (count, experts, 2 * i, h // 2), dtype=torch.uint8, device=self.device)
            w2 = torch.randint(0, 256, (count, experts, h, i // 2), dtype=torch.uint8, device=self.device)
            w13_scale = layout.swizzle_scales(self.scales(count, experts, 2 * i, h))
            w2_scale = layout.swizzle_scales(self.scales(count, experts, h, i))
            w13_alpha = torch.full((experts,), 2e-3, device=self.device)
            w2_alpha = torch.full((experts,), 1e-2, device=self.device)
            for m in self.settings.rows:
                hit = work.expected_hit(experts, topk, m)
                least = self.launches(work.moe_bytes(h, i, m, hit), 1)
                launches = work.routing(self.random, experts, topk, m, least, count)
                problem = Moe(
                    experts=experts,
                    topk=topk,
                    h=h,
                    i=i,
                    m=m,
                    x=torch.randn(m, h, device=self.device).bfloat16(),
                    w13=w13,
                    w13_scale=w13_scale,
                    w13_alpha=w13_alpha,
                    w2=w2,
                    w2_scale=w2_scale,
                    w2_alpha=w2_alpha,
                    topk_weights=torch.rand(m, topk, device=self.device),
                    ids=torch.tensor([launch.ids for launch in launches], dtype=torch.int32, device=self.device),
                    launches=launches,
                    out=torch.empty(m, h, dtype=torch.bfloat16, device=self.device),
                )
                yield problem, reference.moe_a16(*problem.arguments(0))
                del problem
            del w13, w2, w13_scale, w2_scale
            self.free()

    def moe_call(self, problem: Moe, variant13: int = 0, variant2: int = 0) -> Call:
        """Return the call of the operator; its first launch writes over NaN."""
        problem.out.fill_(float("nan"))
        return lambda i: self.ops.nvfp4_moe_a16(*problem.arguments(i), None, problem.out, True, variant13, variant2)

    def moe_work(self, problem: Moe, want: Tensor) -> Work:
        """Describe a mixture of experts to ``check_product`` and ``measure``."""
        p = problem
        pairs = p.m * p.topk
        return Work(
            name=f"moe {p.experts}x{p.topk}, {p.h}, {p.i} M={p.m}",
            want=want,
            slack=MOE_SLACK,
            scratch=(pairs * p.i * 2, pairs * p.h * 2),
            moved=work.moe_bytes(p.h, p.i, p.m, p.hit),
            launches=len(p.launches),
            keep=1,
        )

    def moe(self) -> None:
        """Time mixtures of experts with the rule's variants."""
        rows = self.data.setdefault("moe", [])
        self.say(
            f"# moe\n{'experts x k, H, I':>21} {'M':>3} {'hit':>5} {'us':>8} {'GB/s':>6} {'% read':>6} "
            f"{'variants':>13}{self.peer_head()}"
        )
        for problem, want in self.moe_problems():
            p = problem
            shape = {"experts": p.experts, "topk": p.topk, "h": p.h, "i": p.i, "m": p.m}
            calls = {"": self.moe_call(p)}
            for peer in self.peers:
                if (call := peer.moe(p, self.timer, len(p.launches))) is not None:
                    calls[peer.name] = call
            device = self.machine.sms, self.machine.shared_bytes
            extra = {
                "hit": work.rounded(p.hit),
                "variant13": self.ops.variant(self.ops.GATE_UP, 2 * p.i, p.h, p.m, p.m * p.topk, *device),
                "variant2": self.ops.variant(self.ops.DOWN, p.h, p.i, p.m, p.m * p.topk, *device),
                "copies": len(p.w13),
            }
            row = self.measure(self.moe_work(p, want), shape, calls, extra)
            if row is None:
                continue
            rows.append(row)
            variants = f"{row['variant13']} {row['variant2']}"
            self.say(
                f"{f'{p.experts}x{p.topk}, {p.h}, {p.i}':>21} {p.m:>3} {p.hit:5.1f} {row['us']:8.2f} "
                f"{row['gb_s']:6.0f} {100 * row['read_fraction']:6.1f} {variants:>13}{self.peer_cells(row)}"
            )
        self.peer_summary(rows)

    def sweep_moe(self) -> None:
        """Time every variant of one product of the experts while the other has the rule's."""
        self.sweep_head("experts x k, H, I")
        for problem, want in self.moe_problems():
            p = problem
            shape = {"experts": p.experts, "topk": p.topk, "h": p.h, "i": p.i, "m": p.m, "groups": p.m * p.topk}
            first = functools.partial(self.moe_call, p)
            second = functools.partial(self.moe_call, p, 0)
            for kind, n, k, call_of in (("gate_up", 2 * p.i, p.h, first), ("down", p.h, p.i, second)):
                self.sweep_point(
                    "nvfp4_moe_a16",
                    self.moe_work(p, want),
                    {"kind": kind, "n": n, "k": k, **shape, "hit": work.rounded(p.hit)},
                    call_of,
                )

    # --- quantizing --------------------------------------------------------------------------------------------------

    def quantize_call(self, problem: Quantize) -> Call:
        """Return the call of the operator."""
        p = problem
        return lambda i: self.ops.nvfp4_quantize(p.xs[i % len(p.xs)], p.global_scale, True, p.silu_mul)

    def quantize(self) -> None:
        """Time quantizing, into swizzled scales, of x and of silu(gate) * up."""
        rows = self.data.setdefault("quantize", [])
        self.say(f"# quantize\n{'M x K':>18} {'us':>8} {'GB/s':>6} {'% copy':>6}{self.peer_head()}")
        for m, k in self.settings.quantize:
            for silu_mul in (False, True):
                shape = {"m": m, "k": k, "silu_mul": silu_mul}
                if not self.settings.wants("quantize", f"{m}x{k}"):
                    continue
                moved = work.quantize_bytes(m, k, silu_mul)
                count = work.copies(moved, self.machine.l2_bytes, work.MAX_COPIES)
                columns = 2 * k if silu_mul else k
                xs = torch.randn(count, m, columns, device=self.device, dtype=torch.bfloat16)
                largest = reference.quantize_input(xs[0, :REFERENCE_ROWS], silu_mul).abs().max()
                # Not just 448 * 6 / largest: it puts many values on a midpoint, where float32 rounds as it likes.
                factor = (self.random.uniform(0.9, 1) * 448 * 6 / largest).float().reshape(1)
                problem = Quantize(m, k, silu_mul, xs, factor)
                calls = {"": self.quantize_call(problem)}
                for peer in self.peers:
                    if (call := peer.quantize(problem)) is not None:
                        calls[peer.name] = call
                want = reference.quantize(xs[0], problem.global_scale, True, silu_mul)
                right, error = {}, (0.0, 0.0, 0)
                for name, call in calls.items():
                    self.poison(m * k // 2, want[1].numel())
                    this = quantize_error(call(0), want)
                    if self.check(f"quantize {work.describe(shape)} {name}".rstrip(), this, quantize_ok(this)):
                        right[name] = call
                        error = error if name else this
                del want
                if "" not in right:
                    continue
                launches = self.launches(moved, count)
                samples = self.sample(right, launches, count, self.settings.replays)
                row = {
                    **shape,
                    **self.timing(samples, moved, launches),
                    "copies": count,
                    # What the copies hold may be less than the cache passes: as in a model, where x was just written.
                    "cached": count * moved < work.CACHE_FACTOR * self.machine.l2_bytes,
                    "differ": [work.rounded(part, 3) for part in error[:2]],
                }
                row["copy_fraction"] = work.rounded(row["gb_s"] / self.copy_gb_per_s, 4)
                rows.append(row)
                self.say(
                    f"{work.describe(shape):>18} {row['us']:8.2f} {row['gb_s']:6.0f} {100 * row['copy_fraction']:6.1f}"
                    f"{self.peer_cells(row)}"
                )
                del xs, problem, calls, right
                self.free()
        self.peer_summary(rows)


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="where the JSON goes")
    parser.add_argument("--sweep", action="store_true", help="every variant of the products instead of the rule's")
    parser.add_argument("--only", choices=("dense", "moe", "quantize"), help="one kind of work")
    parser.add_argument(
        "--shape",
        action="append",
        default=[],
        metavar="SHAPE",
        help="one shape, such as 4096x12288 or 128,8,2048,768; may be given more than once",
    )
    parser.add_argument("--rows", type=int, nargs="+", default=list(work.ROWS), metavar="M", help="rows of x")
    parser.add_argument("--launches", type=int, default=24, metavar="COUNT", help="launches of one graph at least")
    parser.add_argument(
        "--replays", type=int, default=15, metavar="COUNT", help="replays of a graph; times are medians"
    )
    parser.add_argument("--seed", type=int, help="of the random data; otherwise a new one")
    parsed = parser.parse_args(argv)
    if parsed.sweep and parsed.only == "quantize":
        parser.error("quantize has no variants to sweep")
    if not all(1 <= rows <= 16 for rows in parsed.rows):
        parser.error("--rows: the operators take 1 to 16 rows")
    known = {f"{n}x{k}" for n, k in work.DENSE + work.QUANTIZE} | {",".join(map(str, shape)) for shape in work.MOE}
    if unknown := sorted({shape.replace(" ", "") for shape in parsed.shape} - known):
        parser.error(f"--shape: no shape {', '.join(unknown)}; there are {', '.join(sorted(known))}")
    if parsed.launches < 1 or parsed.replays < 1:
        parser.error("--launches and --replays must be positive")
    return parsed


def main(argv: Sequence[str] | None = None, peers: Sequence[Peer] = ()) -> int:
    """Run the benchmark; return the exit status."""
    parsed = arguments(argv)
    if not torch.cuda.is_available():
        print("bench: torch finds no CUDA device", file=sys.stderr)
        return 2
    from sparkfleet_kernels import ops

    seed = random.SystemRandom().getrandbits(31) if parsed.seed is None else parsed.seed
    settings = Settings(
        sweep=parsed.sweep,
        only=parsed.only,
        shapes=[shape.replace(" ", "") for shape in parsed.shape],
        rows=sorted(set(parsed.rows)),
        least_launches=parsed.launches,
        replays=parsed.replays,
        seed=seed,
    )
    bench = Bench(ops, GraphTimer(), Machine.here(ops.library_path()), settings, peers=peers, say=_say)
    try:
        bench.run()
    finally:
        # What was measured before an error is worth keeping; a run that lacks "seconds" was cut short.
        parsed.out.parent.mkdir(parents=True, exist_ok=True)
        parsed.out.write_text(work.dump(bench.data), encoding="utf-8")
    return 1 if bench.failures else 0


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
