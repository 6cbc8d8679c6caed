# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The benchmark without a GPU: what it counts, how it judges results, its course with made-up times, its figures."""

from __future__ import annotations

import copy
import random
import statistics
import sys
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

BENCH = Path(__file__).resolve().parents[1] / "bench"
sys.path.insert(0, str(BENCH))

import bench  # noqa: E402
import measure  # noqa: E402
import plot  # noqa: E402
import sweep  # noqa: E402
import tables  # noqa: E402
import work  # noqa: E402
from sparkfleet_kernels import reference  # noqa: E402

MIB = 1 << 20


# --- what is counted -------------------------------------------------------------------------------------------------


def test_bytes_of_a_linear_layer() -> None:
    # 2048 x 4096 codes of half a byte, one scale for 16, two bytes for each of 3 rows in and out.
    assert work.weight_bytes(2048, 4096) == 4194304 + 524288
    assert work.dense_bytes(2048, 4096, 3) == 4718592 + 3 * 2 * 4096 + 3 * 2 * 2048


def test_bytes_of_experts_count_only_those_that_were_asked_for() -> None:
    one = (2 * 768 * 2048 + 2048 * 768) * 9 // 16
    assert work.expert_bytes(2048, 768) == one
    assert work.moe_bytes(2048, 768, 2, 15.5) == 15.5 * one + 2 * 2 * 2048 * 2


def test_bytes_of_quantizing() -> None:
    assert work.quantize_bytes(3, 64, False) == 3 * (128 + 32 + 4)
    assert work.quantize_bytes(3, 64, True) == 3 * (256 + 32 + 4)


def test_operations() -> None:
    assert work.dense_flop(5, 7, 3) == 2 * 3 * 5 * 7
    assert work.moe_flop(8, 64, 32, 2) == 2 * (2 * 8) * (64 * 64 + 32 * 64)


@pytest.mark.parametrize(
    ("item", "l2", "most", "wanted"),
    [(10, 50, None, 20), (9, 50, None, 23), (1000, 50, None, 2), (1, 500, 128, 128), (1000, 50, 128, 2)],
)
def test_copies_are_four_times_the_cache(item: int, l2: int, most: int | None, wanted: int) -> None:
    assert work.copies(item, l2, most) == wanted


@pytest.mark.parametrize(
    ("item_us", "rotation", "least", "target", "wanted"),
    [(2.0, 90, 24, 1000, 540), (100.0, 2, 24, 1000, 24), (100.0, 5, 24, 1000, 25), (1.0, 3, 1, 0.5, 3)],
)
def test_launches_are_whole_rotations(item_us: float, rotation: int, least: int, target: float, wanted: int) -> None:
    assert work.launches(item_us, rotation, least, target) == wanted


SHAPES = [(*shape, rows) for shape in work.MOE for rows in work.ROWS]


@pytest.mark.parametrize(("experts", "topk", "h", "i", "rows"), SHAPES)
@pytest.mark.parametrize("l2_mib", [24, 50])
def test_routing_reads_nothing_again_while_it_may_be_cached(
    experts: int, topk: int, h: int, i: int, rows: int, l2_mib: int
) -> None:
    one = work.expert_bytes(h, i)
    copies = work.expert_copies(experts, one, l2_mib * MIB)
    launches = work.routing(random.Random(experts + rows), experts, topk, rows, 24, copies)
    assert len(launches) >= 24
    assert {launch.copy for launch in launches} == set(range(copies))
    last_read: dict[tuple[int, int], int] = {}
    passed = 0
    nearest = float("inf")
    for launch in launches * 3:  # a graph is replayed
        assert len(launch.ids) == rows
        assert all(len(set(ids)) == topk and min(ids) >= 0 and max(ids) < experts for ids in launch.ids)
        used = dict.fromkeys(expert for ids in launch.ids for expert in ids)  # in the order that the kernel takes
        assert launch.hit == len(used)
        for expert in used:
            if (launch.copy, expert) in last_read:
                nearest = min(nearest, passed - last_read[launch.copy, expert])
            passed += one
            last_read[launch.copy, expert] = passed
    # Half of the experts is what expert_copies counts on; a lap of one launch may have a few less by chance.
    assert nearest >= 0.9 * work.CACHE_FACTOR * l2_mib * MIB


def test_routing_shares_experts_as_chance_does() -> None:
    launches = work.routing(random.Random(7), 128, 8, 8, 2000)
    mean = statistics.mean(launch.hit for launch in launches)
    assert mean == pytest.approx(work.expected_hit(128, 8, 8), rel=0.01)
    assert work.expected_hit(128, 8, 1) == pytest.approx(8)
    # Two rows of two of four experts: 2, 3 or 4 distinct with 1, 4 and 1 sixths.
    assert work.expected_hit(4, 2, 2) == pytest.approx((2 + 4 * 3 + 4) / 6)


def test_sample_has_median_and_quartiles() -> None:
    sample = work.Sample.of([3.0, 1.0, 2.0, 5.0, 4.0])
    assert (sample.us, sample.low, sample.high, sample.replays) == (3.0, 2.0, 4.0, 5)
    assert work.Sample.of([2.0]) == work.Sample(2.0, 2.0, 2.0, 1)


@pytest.mark.parametrize("times", [[], [1.0, 0.0], [-1.0], [float("nan")]])
def test_sample_refuses_times_that_cannot_be(times: list[float]) -> None:
    with pytest.raises(ValueError, match="times must be positive"):
        work.Sample.of(times)


def test_rates_and_rounding() -> None:
    assert work.gb_per_s(3_000_000, 2.0) == 1500.0
    assert work.rounded(123456.7) == 123460.0
    assert work.rounded(0.00123456789) == 0.0012346
    assert work.rounded(0.0) == 0.0


def test_gap_compares_with_the_best_variant() -> None:
    point = {"n": 1, "k": 2, "m": 4, "us": {"1101": 10.0, "2104": 8.0}}
    gap = work.gap(point, 1101)
    assert (gap.best, gap.best_us, gap.us) == (2104, 8.0, 10.0)
    assert gap.loss == pytest.approx(0.25)
    assert work.gap(point, 2104).loss == 0
    with pytest.raises(ValueError, match="1x2 M=4: the sweep has no time for variant 7"):
        work.gap(point, 7)


def test_json_survives_and_has_a_line_for_each_row(tmp_path: Path) -> None:
    data = {"schema": work.SCHEMA, "probe": {"read": 1.5}, "dense": [{"n": 1}, {"n": 2}], "moe": []}
    text = work.dump(data)
    assert '\n  {"n": 1},\n  {"n": 2}\n' in text
    (tmp_path / "run.json").write_text(text)
    assert work.load(tmp_path / "run.json") == data
    (tmp_path / "old.json").write_text('{"schema": 0}')
    with pytest.raises(ValueError, match="schema 0"):
        work.load(tmp_path / "old.json")


# --- how results are judged ------------------------------------------------------------------------------------------


def test_rounding_to_bfloat16_is_right_and_one_wrong_element_is_not() -> None:
    want = torch.randn(16, 20000, dtype=torch.float64)
    got = want.bfloat16()
    assert measure.product_ok(measure.product_error(got, want, measure.DENSE_SLACK))
    # An element wrong by its own size disappears in the norm of so many.
    wrong = got.clone()
    wrong[3, 70] = float(want.abs().mean()) + float(wrong[3, 70])
    error = measure.product_error(wrong, want, measure.DENSE_SLACK)
    assert error[0] < measure.NORM_LIMIT and not measure.product_ok(error)
    wrong[3, 70] = float("nan")
    assert not measure.product_ok(measure.product_error(wrong, want, measure.DENSE_SLACK))
    assert not measure.product_ok(measure.product_error((want * 1.01).bfloat16(), want, measure.DENSE_SLACK))


def test_codes_and_scales_are_compared_by_steps() -> None:
    x = torch.randn(64, 256).bfloat16()
    want = reference.quantize(x, torch.tensor([300.0]))
    assert measure.quantize_error(want, want) == (0.0, 0.0, 0)
    one_code = want[0].clone()
    low = int(one_code[0, 0]) & 7
    one_code[0, 0] = (int(one_code[0, 0]) & 0xF8) | (low - 1 if low else 1)
    error = measure.quantize_error((one_code, want[1]), want)
    assert error[1] == pytest.approx(1 / x.numel()) and error[2] == 1 and measure.quantize_ok(error)
    flipped = want[0].clone()
    column = int((flipped[0] & 7).argmax())
    flipped[0, column] = int(flipped[0, column]) ^ 8  # the sign of one value
    assert not measure.quantize_ok(measure.quantize_error((flipped, want[1]), want))
    assert not measure.quantize_ok(measure.quantize_error((want[0], want[1] + 1), want))


# --- the course of a run ---------------------------------------------------------------------------------------------


class Operators:
    """The operators by way of the reference; ``wrong`` names variants whose results are not right."""

    DENSE, GATE_UP, DOWN = 0, 1, 2

    def __init__(self, wrong: tuple[int, ...] = (), rule: int = 1102) -> None:
        self.wrong = wrong
        self.rule = rule
        self.asked: list[tuple[int, ...]] = []

    def variants(self) -> list[int]:
        return [1101, 1102, 1104, 2216]

    def variant(self, *shape: int) -> int:
        self.asked.append(shape)
        return self.rule

    def result(self, op: str, value: Tensor, *variants: int) -> Tensor:
        if 2216 in variants:
            raise RuntimeError(f"{op}: variant 2216 cannot do this shape: more warps split K than it has steps of 128")
        return value.bfloat16() * (1.1 if set(variants) & set(self.wrong) else 1.0)

    def read_probe(self, x: Tensor, sink: Tensor) -> None:
        assert x.dtype == torch.uint8 and x.numel() % 16 == 0 and sink.dtype == torch.int32

    def nvfp4_gemm_a16(
        self, x: Tensor, weight: Tensor, weight_scale: Tensor, alpha: Tensor, swizzled: bool = True, variant: int = 0
    ) -> Tensor:
        value = reference.gemm_a16(x, weight, weight_scale, alpha, swizzled)
        return self.result("nvfp4_gemm_a16", value, variant)

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
        expert_map: Tensor | None = None,
        out: Tensor | None = None,
        swizzled: bool = True,
        variant13: int = 0,
        variant2: int = 0,
    ) -> Tensor:
        assert expert_map is None and out is not None and topk_ids.dtype == torch.int32
        value = reference.moe_a16(
            x, w13, w13_scale, w13_alpha, w2, w2_scale, w2_alpha, topk_weights, topk_ids, None, swizzled
        )
        return out.copy_(self.result("nvfp4_moe_a16", value, variant13, variant2))

    def nvfp4_quantize(
        self, x: Tensor, global_scale: Tensor, swizzled: bool = True, silu_mul: bool = False
    ) -> tuple[Tensor, Tensor]:
        packed, scales = reference.quantize(x, global_scale, swizzled, silu_mul)
        return (packed ^ 1 if 0 in self.wrong else packed), scales


class Timer:
    """Runs a few launches and makes times up: by a variant's number, a peer's name, or a microsecond."""

    def __init__(self) -> None:
        self.timed: list[tuple[list[Any], int, int, int]] = []

    def time(self, calls: Mapping[Any, measure.Call], launches: int, keep: int, replays: int) -> dict[Any, list[float]]:
        self.timed.append((list(calls), launches, keep, replays))
        for call in calls.values():
            for i in sorted({0, min(1, launches - 1), launches - 1}):
                call(i)
        known = {1101: 9.0, 1102: 8.4, 1104: 8.0, "peer": 2.0, "": 1.0, None: 1.0}
        return {name: [known[name] + 0.01 * replay for replay in range(replays)] for name in calls}


class Peer:
    """Other kernels, which cannot do experts."""

    name = "peer"

    def __init__(self, factor: float = 1.0) -> None:
        self.factor = factor

    def dense(self, problem: measure.Dense, timer: measure.Timer, launches: int) -> measure.Call | None:
        return lambda i: (reference.gemm_a16(*problem.arguments(i)) * self.factor).bfloat16()

    def moe(self, problem: measure.Moe, timer: measure.Timer, launches: int) -> measure.Call | None:
        return None

    def quantize(self, problem: measure.Quantize) -> measure.Call | None:
        return lambda i: reference.quantize(problem.xs[0], problem.global_scale, True, problem.silu_mul)


MACHINE = measure.Machine("Test", "9.0", 132, 20000, 232448, 1 << 33, "2.11", "13.0", "sha256:0")


def made(ops: Operators, peers: tuple[Peer, ...] = (), **changes: Any) -> tuple[bench.Bench, list[str]]:
    """Run the benchmark on small shapes; return it and what it said."""
    settings = bench.Settings(
        **{
            "dense": ((200, 128), (64, 192)),
            "moe": ((8, 2, 128, 64),),
            "quantize": ((3, 64), (130, 96)),
            "rows": (1, 3),
            "replays": 5,
            "probe_bytes": (4096, 8192),
            "curve_bytes": (1024, 4096),
            "product_size": 8,
            **changes,
        }
    )
    said: list[str] = []
    run = bench.Bench(ops, Timer(), MACHINE, settings, device="cpu", peers=peers, say=said.append)
    run.run()
    return run, said


def test_a_run_measures_every_shape_by_the_rule() -> None:
    ops = Operators()
    run, said = made(ops)
    data = run.data
    assert not run.failures
    assert [(row["n"], row["k"], row["m"]) for row in data["dense"]] == [
        (200, 128, 1),
        (200, 128, 3),
        (64, 192, 1),
        (64, 192, 3),
    ]
    row = data["dense"][1]
    assert row["us"] == 1.02 and row["variant"] == 1102  # the median of 1.00 to 1.04
    assert row["bytes"] == work.dense_bytes(200, 128, 3)
    assert row["gb_s"] == pytest.approx(row["bytes"] / 1.02 / 1e3, rel=1e-4)
    assert row["read_fraction"] == pytest.approx(row["gb_s"] / data["probe"]["read_gb_s"], rel=1e-3)
    assert row["copies"] * work.weight_bytes(200, 128) >= 4 * MACHINE.l2_bytes
    assert 0 < row["error"] < 3e-3
    assert (0, 200, 128, 3, 1, 132, 232448) in ops.asked
    assert (1, 128, 128, 3, 6, 132, 232448) in ops.asked and (2, 128, 64, 3, 6, 132, 232448) in ops.asked
    moe = data["moe"][1]
    assert 2 <= moe["hit"] <= 6
    assert moe["bytes"] == pytest.approx(work.moe_bytes(128, 64, 3, moe["hit"]), rel=1e-3)
    assert [(row["m"], row["silu_mul"]) for row in data["quantize"]] == [
        (3, False),
        (3, True),
        (130, False),
        (130, True),
    ]
    assert [row["cached"] for row in data["quantize"]] == [True, False, False, False]
    assert data["checks"] == {"count": 10, "failures": []}
    # The largest probe has twice the bytes in the same time.
    assert data["probe"]["read_gb_s"] == pytest.approx(8192 / 1.03 / 1e3, rel=1e-3)
    assert data["probe"]["copy_gb_s"] == pytest.approx(2 * 8192 / 1.03 / 1e3, rel=1e-3)
    assert sum("200x128" in line for line in said) == 2


def test_results_rotate_and_all_is_timed_after_its_check() -> None:
    run, _said = made(Operators(), only="dense")
    timed = [entry for entry in run.timer.timed if entry[0] == [""]]  # type: ignore[attr-defined]
    assert len(timed) == 4
    for (_calls, launches, keep, replays), row in zip(timed, run.data["dense"], strict=True):
        assert keep == row["copies"] and launches == row["launches"] and launches % keep == 0 and replays == 5


def test_a_wrong_kernel_is_never_timed() -> None:
    run, said = made(Operators(wrong=(0,)))
    assert run.data["dense"] == run.data["moe"] == run.data["quantize"] == []
    assert len(run.failures) == 10 and run.failures[0].startswith("dense 200x128 M=1: error")
    assert not any("" in entry[0] for entry in run.timer.timed)  # type: ignore[attr-defined]
    assert any(line.startswith("# WRONG: moe 8x2, 128, 64 M=3") for line in said)


def test_peers_are_timed_in_turns_and_checked() -> None:
    run, said = made(Operators(), peers=(Peer(),))
    assert all(row["peers"] == {"peer": 2.02} for row in run.data["dense"] + run.data["quantize"])
    assert all("peers" not in row for row in run.data["moe"])
    assert (["", "peer"], 5) in [(entry[0], entry[3]) for entry in run.timer.timed]  # type: ignore[attr-defined]
    assert any("times as long" in line for line in said)
    run, _said = made(Operators(), peers=(Peer(1.1),), only="dense")
    assert len(run.failures) == 4 and all("peers" not in row for row in run.data["dense"])


def test_a_sweep_times_what_is_right_and_the_fastest_more_often() -> None:
    run, said = made(Operators(wrong=(1104,)), sweep=True)
    points = run.data["sweep"]
    assert [point["kind"] for point in points] == ["dense"] * 4 + ["gate_up", "down"] * 2
    assert all(set(point["us"]) == {"1101", "1102"} for point in points)  # 1104 is wrong, 2216 refused
    assert len(run.failures) == 8 and all("variant 1104" in failure for failure in run.failures)
    assert points[0]["us"] == {"1101": 9.02, "1102": 8.42} and points[0]["contenders"] == [1101, 1102]
    gate_up, down = points[-2:]
    assert (gate_up["n"], gate_up["k"], gate_up["m"], gate_up["groups"]) == (128, 128, 3, 6)
    assert (down["n"], down["k"], down["groups"]) == (128, 64, 6)
    assert "quantize" not in run.data
    run, said = made(Operators(rule=1101), sweep=True, only="dense")
    assert {tuple(point["contenders"]) for point in run.data["sweep"]} == {(1101, 1102, 1104)}
    assert any("1101" in line and "12.5%" in line for line in said)


def test_contenders_are_close_or_the_rules() -> None:
    class Slow(Timer):
        def time(self, *arguments: Any, **more: Any) -> dict[Any, list[float]]:
            times = super().time(*arguments, **more)
            return {name: [us * (5 if name == 1101 else 1) for us in times[name]] for name in times}

    for rule, contenders in ((1102, [1102, 1104]), (1101, [1101, 1102, 1104])):
        run, _said = made(Operators(rule=rule), only="dense", shapes=("none",), sweep=True)
        run.timer = Slow()
        run.settings.shapes = ()
        run.sweep_dense()
        assert all(point["contenders"] == contenders for point in run.data["sweep"])


def test_a_rule_that_names_an_impossible_variant_fails_the_sweep() -> None:
    run, _said = made(Operators(rule=2216), sweep=True, only="dense")
    assert len(run.failures) == 4 and all("the rule's variant 2216" in failure for failure in run.failures)


def test_other_errors_of_an_operator_end_the_run() -> None:
    class Broken(Operators):
        def result(self, op: str, value: Tensor, *variants: int) -> Tensor:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    with pytest.raises(RuntimeError, match="illegal memory access"):
        made(Broken(), sweep=True, only="dense")

    class NotLaunched(Operators):
        def result(self, op: str, value: Tensor, *variants: int) -> Tensor:
            raise RuntimeError(f"{op}: launch failed: invalid argument")

    with pytest.raises(RuntimeError, match="launch failed"):
        made(NotLaunched(), sweep=True, only="dense")


def test_shapes_and_rows_can_be_picked() -> None:
    run, _said = made(Operators(), shapes=("64x192", "8,2,128,64"), rows=(2,))
    assert [(row["n"], row["m"]) for row in run.data["dense"]] == [(64, 2)]
    assert [row["m"] for row in run.data["moe"]] == [2] and run.data["quantize"] == []


@pytest.mark.parametrize(
    ("argv", "text"),
    [
        (["--sweep", "--only", "quantize"], "no variants"),
        (["--rows", "17"], "1 to 16"),
        (["--shape", "3x3"], "no shape 3x3"),
        (["--launches", "0"], "must be positive"),
    ],
)
def test_the_command_line_refuses(argv: list[str], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        bench.arguments(["--out", "x.json", *argv])
    assert text in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="it would run")
def test_without_a_gpu_it_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.main(["--out", str(tmp_path / "x.json")]) == 2
    assert "no CUDA device" in capsys.readouterr().err and not (tmp_path / "x.json").exists()


def test_graphs_take_turns_and_hold_what_rotates(monkeypatch: pytest.MonkeyPatch) -> None:
    """The timer against a CUDA of the test's own: a graph's replay takes 7 us for each launch."""
    clock = [0.0]
    log: list[str] = []

    class Graph:
        current: Any = None  # the graph that is being captured

        def __init__(self) -> None:
            self.launches: list[int] = []

        def capture_begin(self, pool: Any) -> None:
            assert pool == "pool"
            Graph.current = self

        def capture_end(self) -> None:
            Graph.current = None

        def replay(self) -> None:
            log.append(f"replay {len(self.launches)}")
            clock[0] += 0.007 * len(self.launches)

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            self.at = clock[0]

        def synchronize(self) -> None:
            pass

        def elapsed_time(self, other: Event) -> float:
            return other.at - self.at

    def spin(cycles: int) -> None:
        clock[0] += 1.0  # before the first event: not counted

    for name, value in {
        "Stream": lambda: "stream",
        "set_stream": lambda _: None,
        "graph_pool_handle": lambda: "pool",
        "CUDAGraph": Graph,
        "synchronize": lambda: None,
        "Event": Event,
        "_sleep": spin,
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(torch, "zeros", lambda *_, **__: None)
    timer = measure.GraphTimer()

    def call(i: int) -> int:
        if Graph.current is not None:
            Graph.current.launches.append(i)
        return i

    graph, held = timer.capture(call, 5, 3)
    assert graph.launches == [0, 1, 2, 3, 4] and held == [3, 4, 2]  # type: ignore[attr-defined]
    times = timer.time({"a": call, "b": call}, launches=4, keep=2, replays=3)
    assert log == ["replay 4"] * 8
    assert times == {"a": [pytest.approx(7.0)] * 3, "b": [pytest.approx(7.0)] * 3}


# --- tables ----------------------------------------------------------------------------------------------------------

RUN: dict[str, Any] = {
    "schema": work.SCHEMA,
    "date": "2026-01-02",
    "machine": {"gpu": "Test <1>", "sms": 48, "l2_bytes": 24 * MIB, "torch": "2.11.0", "shared_bytes": 101376},
    "probe": {
        "read_gb_s": 230.0,
        "copy_gb_s": 210.0,
        "launch_us": 2.25,
        "bf16_tflop_s": 90.0,
        "curve": [{"bytes": 1 << exponent, "us": 1.0, "gb_s": 200.0} for exponent in range(20, 31)],
    },
    "checks": {"count": 7, "failures": []},
    "dense": [
        {"n": 2048, "k": 4096, "m": 1, "us": 25.04, "bytes": 4730880, "gb_s": 188.9, "read_fraction": 0.8215},
        {"n": 2048, "k": 4096, "m": 8, "us": 123.4, "bytes": 4816896, "gb_s": 39.0, "read_fraction": 0.17},
        {"n": 64, "k": 4096, "m": 8, "us": 3.0, "bytes": 214016, "gb_s": 71.3, "read_fraction": 0.31},
    ],
    "moe": [
        {
            "experts": 128,
            "topk": 8,
            "h": 2048,
            "i": 768,
            "m": 2,
            "us": 200.0,
            "bytes": 41000000,
            "gb_s": 205.0,
            "read_fraction": 0.891,
        }
    ],
    "quantize": [
        {"m": 1, "k": 4096, "silu_mul": False, "us": 2.5, "bytes": 10496, "gb_s": 4.2, "copy_fraction": 0.02},
        {"m": 1, "k": 4096, "silu_mul": True, "us": 2.6, "bytes": 18688, "gb_s": 7.2, "copy_fraction": 0.03},
        {"m": 4096, "k": 4096, "silu_mul": False, "us": 250.0, "bytes": 42991616, "gb_s": 172, "copy_fraction": 0.819},
        {"m": 4096, "k": 4096, "silu_mul": True, "us": 400.0, "bytes": 76546048, "gb_s": 191, "copy_fraction": 0.911},
    ],
}
for _row in RUN["quantize"]:
    _row["cached"] = _row["m"] == 1
SWEEP: dict[str, Any] = {
    "schema": work.SCHEMA,
    "machine": RUN["machine"],
    "sweep": [
        {"kind": "dense", "n": 8, "k": 64, "m": 1, "groups": 1, "rule": 1, "us": {"1": 5.0, "2": 5.5}},
        {"kind": "dense", "n": 8, "k": 64, "m": 4, "groups": 1, "rule": 2, "us": {"1": 5.0, "2": 5.2}},
        {
            "kind": "down",
            "n": 64,
            "k": 32,
            "m": 2,
            "groups": 4,
            "experts": 8,
            "topk": 2,
            "h": 64,
            "i": 32,
            "rule": 3,
            "us": {"3": 7.0},
        },
    ],
}


def test_tables() -> None:
    assert tables.machine(RUN, SWEEP) == (
        "One Test <1> (48 multiprocessors, L2 cache 24 MiB, torch 2.11.0), 2026-01-02. In the same run: reading "
        "230 GB/s, copying 210 GB/s (read and written bytes), an empty launch 2.25 µs; 7 results compared with the "
        "float64 reference before they were timed, 0 wrong."
    )
    assert tables.dense(RUN, SWEEP).splitlines() == [
        "| N x K | M=1 | M=8 |",
        "| --- | ---: | ---: |",
        "| 2048 x 4096 | 25.0 µs, 82 % | 123 µs, 17 % |",
        "| 64 x 4096 |  | 3.0 µs, 31 % |",
    ]
    assert tables.moe(RUN, SWEEP).splitlines()[2] == "| 128, 8, 2048, 768 | 200 µs, 89 % |"
    assert tables.quantize(RUN, SWEEP).splitlines()[2:] == [
        "| 1 x 4096 | 2.5 µs | 2.6 µs |",
        "| 4096 x 4096 | 250 µs, 82 % | 400 µs, 91 % |",
    ]
    assert tables.rule(RUN, SWEEP).splitlines()[2:] == [
        "| dense | 2 | 4 | 2.0 % | 4.0 % | 8x64 M=4 |",
        "| down | 1 | 1 | 0.0 % | 0.0 % | 8 x 2, 64, 32 M=2 |",
    ]


def test_the_bound_of_one_launch_lies_between_the_measured_ones() -> None:
    curve = [{"bytes": 1000, "us": 2.0}, {"bytes": 2000, "us": 3.0}, {"bytes": 4000, "us": 4.0}]
    assert [tables.one_read(curve, moved) for moved in (10, 1000, 1500, 3000, 8000)] == [2.0, 2.0, 2.5, 3.5, 8.0]


def test_targets_and_the_prototype() -> None:
    row = {"n": 4096, "k": 4096, "m": 8, "us": 8.0, "bytes": 3000, "read_fraction": 0.25, "peers": {"proof": 10.0}}
    run = {**RUN, "dense": [{**row, "m": 2}, row], "moe": [], "quantize": []}
    run["probe"] = {**RUN["probe"], "read_gb_s": 2.0, "curve": [{"bytes": 1000, "us": 2.0}, {"bytes": 3000, "us": 3.0}]}
    assert tables.targets(run, SWEEP).splitlines()[2:] == ["| 4096 x 4096, M=8 | 42 % | 25 % | 50 % |"]
    assert "took, in the geometric mean, 1.25 times for linear layers (1.25 to 1.25)." in tables.prototype(run, SWEEP)


def test_a_document_is_filled_and_the_rest_is_left_alone() -> None:
    text = "before\n<!-- bench:moe -->\nold\n<!-- /bench -->\nmiddle\n<!-- bench:rule -->\n<!-- /bench -->\nafter\n"
    filled = tables.fill(text, RUN, SWEEP)
    assert filled == (
        f"before\n<!-- bench:moe -->\n{tables.moe(RUN, SWEEP)}\n<!-- /bench -->\nmiddle\n"
        f"<!-- bench:rule -->\n{tables.rule(RUN, SWEEP)}\n<!-- /bench -->\nafter\n"
    )
    assert tables.fill(filled, RUN, SWEEP) == filled


@pytest.mark.parametrize(
    "text",
    [
        "<!-- bench:nothing -->\n<!-- /bench -->",
        "<!-- bench:moe -->\nno end",
        "<!-- bench:moe -->\n<!-- bench:dense -->\n<!-- /bench -->",
        "no begin <!-- /bench -->",
    ],
)
def test_a_document_with_broken_markers_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="bench"):
        tables.fill(text, RUN, SWEEP)


def _recorded() -> tuple[dict[str, Any], dict[str, Any]]:
    try:
        return tables.recorded()
    except FileNotFoundError as error:
        pytest.skip(f"{error.filename} is not recorded yet")


def test_the_document_and_the_picture_show_the_recorded_runs() -> None:
    run, sweep_data = _recorded()
    text = plot.DOCUMENT.read_text(encoding="utf-8")
    missing = [name for name in tables.BLOCKS if text.count(f"<!-- bench:{name} -->") != 1]
    assert not missing, f"{plot.DOCUMENT} has to show these blocks once: {missing}"
    assert text == tables.fill(text, run, sweep_data), "run files/kernels/bench/plot.py"
    assert plot.PICTURE.read_text(encoding="utf-8") == plot.draw(run), "run files/kernels/bench/plot.py"
    assert f"images/{plot.PICTURE.name}" in text


def test_the_recorded_run_is_whole_and_right() -> None:
    run, sweep_data = _recorded()
    for data in (run, sweep_data):
        assert data["checks"]["failures"] == [] and data["seconds"] > 0
    assert {(row["n"], row["k"], row["m"]) for row in run["dense"]} == {
        (*shape, m) for shape in work.DENSE for m in work.ROWS
    }
    assert {(row["experts"], row["topk"], row["h"], row["i"], row["m"]) for row in run["moe"]} == {
        (*shape, m) for shape in work.MOE for m in work.ROWS
    }
    assert {(row["m"], row["k"], row["silu_mul"]) for row in run["quantize"]} == {
        (*shape, silu_mul) for shape in work.QUANTIZE for silu_mul in (False, True)
    }


# --- the picture -----------------------------------------------------------------------------------------------------

SVG = "{http://www.w3.org/2000/svg}"


def test_the_picture_shows_every_measurement() -> None:
    root = ET.fromstring(plot.draw(RUN))
    assert root.tag == f"{SVG}svg"
    groups = [(group.get("data-series"), len(list(group))) for group in root.iter(f"{SVG}g")]
    # Two panels; quantizing is in the second one, without what the cache served.
    products = [("dense M=1", 1), ("dense M=8", 2), ("moe M=2", 1)]
    assert groups == [*products, *products, ("quantize", 2)]
    texts = [element.text for element in root.iter(f"{SVG}text")]
    for wanted in (
        "arithmetic intensity, FLOP per byte moved",
        "TFLOP/s",
        "bytes that a call has to move, MB",
        "GB/s",
        "read probe 230 GB/s",
        "copy, read + written 210 GB/s",
        "bf16 product 90 TFLOP/s",
        "M=1",
        "M=2",
        "M=8",
        "dense (nvfp4_gemm_a16)",
        "experts (nvfp4_moe_a16)",
        "nvfp4_quantize",
    ):
        assert wanted in texts
    titles = [element.text or "" for element in root.iter(f"{SVG}title")]
    assert "Test <1>, 2026-01-02: NVFP4 kernels against what the memory gives" in titles
    assert sum("2048x4096 M=1: 25.0 µs, 189 GB/s, 82 % of the read probe" in title for title in titles) == 2


def test_measurements_are_where_their_values_are() -> None:
    first = plot.series(RUN, roofline=True)[0]
    flop = 2 * 2048 * 4096
    assert first.points[0].x == pytest.approx(flop / 4730880)
    assert first.points[0].y == pytest.approx(flop / 25.04e-6 / 1e12)
    first = plot.series(RUN, roofline=False)[0]
    assert first.points[0].x == pytest.approx(4.73088) and first.points[0].y == 188.9
    # In the drawing: every mark is inside its panel, and more bandwidth is higher up.
    root = ET.fromstring(plot.draw(RUN))
    circles = [(float(c.get("cx", 0)), float(c.get("cy", 0))) for c in root.iter(f"{SVG}circle")]
    right = [place for place in circles if place[0] > 600 and place[1] < 500]
    assert len(right) == 3 and all(640 <= x <= 1088 and 96 <= y <= 490 for x, y in right)
    assert right[0][1] < right[2][1] < right[1][1]  # 188.9, 71.3 and 39 GB/s


def test_axes() -> None:
    linear = plot.Axis(0, 100, 490, 90, log=False)
    assert (linear.at(0), linear.at(100), linear.at(25)) == (490, 90, 390)
    assert linear.ticks() == [0, 20, 40, 60, 80, 100]
    log = plot.Axis(1, 100, 0, 200, log=True)
    assert log.at(10) == pytest.approx(100)
    assert log.ticks() == pytest.approx([1, 2, 5, 10, 20, 50, 100])


def test_plot_writes_and_checks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    document, picture = tmp_path / "kernels.md", tmp_path / "images" / "kernels-roofline.svg"
    monkeypatch.setattr(plot, "DOCUMENT", document)
    monkeypatch.setattr(plot, "PICTURE", picture)
    monkeypatch.setattr(plot, "ROOT", tmp_path)
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    assert plot.main([]) == 2
    assert "not recorded yet" in capsys.readouterr().err
    (tmp_path / "bench-nvidia-h200.json").write_text(work.dump(RUN))
    (tmp_path / "sweep-nvidia-h200.json").write_text(work.dump(SWEEP))
    document.write_text("<!-- bench:dense -->\n<!-- /bench -->\n")
    assert plot.main(["--check"]) == 1
    assert not picture.exists()
    assert plot.main([]) == 0
    assert plot.main(["--check"]) == 0
    assert "25.0 µs" in document.read_text()
    document.write_text(document.read_text().replace("25.0", "24.0"))
    assert plot.main(["--check"]) == 1
    assert plot.main(["--run", str(tmp_path / "bench-nvidia-h200.json"), "--svg", str(tmp_path / "x.svg")]) == 0
    assert (tmp_path / "x.svg").read_text() == plot.draw(RUN)


# --- the rule against a sweep ----------------------------------------------------------------------------------------


def test_sweep_compares_the_rule_and_records_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Rule(Operators):
        def variant(self, *shape: int) -> int:
            kind, *_sizes, sms, shared_bytes = shape
            assert (sms, shared_bytes) == (48, 101376)
            return {0: 1, 2: 3}[kind]

    compared = list(sweep.compare(Rule(), SWEEP))
    assert [gap.variant for _point, gap in compared] == [1, 1, 3]
    assert [gap.loss for _point, gap in compared] == [0, 0, 0]
    bad = copy.deepcopy(SWEEP)
    bad["sweep"][1]["us"]["2"] = 4.7  # the rule loses 6 % there
    path = tmp_path / "sweep.json"
    import sparkfleet_kernels

    for data, status in ((SWEEP, 0), (bad, 1)):
        path.write_text(work.dump(data))
        monkeypatch.setitem(sys.modules, "sparkfleet_kernels.ops", Rule())
        monkeypatch.setattr(sparkfleet_kernels, "ops", Rule(), raising=False)
        assert sweep.main([str(path), "--write"]) == status
        assert [point["rule"] for point in work.load(path)["sweep"]] == [1, 1, 3]
