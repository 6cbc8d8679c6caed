# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The operators without a GPU: schemas, fakes, tracing, wrappers, the library's absence, and the checks themselves."""

from __future__ import annotations

import functools
import inspect
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import emulation
import pytest
import sparkfleet_kernels
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sparkfleet_kernels import _rules, checks, ops, reference, verify
from sparkfleet_kernels._run import Case, Figure, Run
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import ShapeEnv

settings.register_profile("kernels", deadline=None, max_examples=60)
settings.load_profile("kernels")

CPU = torch.device("cpu")
CUDA = torch.device("cuda")
#: The schemas that vLLM plugins and models are written against; they may not change unnoticed.
SCHEMAS = {
    "nvfp4_gemm_a16": "(Tensor x, Tensor weight, Tensor weight_scale, Tensor alpha, bool swizzled=True, "
    "int variant=0) -> Tensor",
    "nvfp4_moe_a16": "(Tensor x, Tensor w13, Tensor w13_scale, Tensor w13_alpha, Tensor w2, Tensor w2_scale, "
    "Tensor w2_alpha, Tensor topk_weights, Tensor topk_ids, Tensor? expert_map, Tensor(a!) out, bool swizzled=True, "
    "int variant13=0, int variant2=0) -> ()",
    "nvfp4_quantize": "(Tensor x, Tensor global_scale, bool swizzled=True, bool silu_mul=False) -> (Tensor, Tensor)",
    "nvfp4_gemm_a4": "(Tensor x, Tensor x_scale, Tensor weight, Tensor weight_scale, Tensor alpha, "
    "bool swizzled=True) -> Tensor",
    "read_probe": "(Tensor x, Tensor(a!) sink) -> ()",
}


@pytest.fixture
def emulated(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The operators run on CPU tensors, by their references."""
    monkeypatch.setattr(ops, "variants", lambda: list(emulation.VARIANTS))
    with emulation.Emulation():
        yield


def dense(m: int = 3, n: int = 100, k: int = 192, device: torch.device = CPU) -> tuple[Tensor, ...]:
    """Return arguments of nvfp4_gemm_a16."""
    rows = (n + 127) // 128 * 128
    return (
        torch.randn(m, k, device=device).bfloat16(),
        torch.randint(0, 256, (n, k // 2), dtype=torch.uint8, device=device),
        torch.randint(0, 0x50, (rows, k // 16), dtype=torch.uint8, device=device),
        torch.full((1,), 0.01, device=device),
    )


def raised_by(call: Callable[[], Any], operator: str) -> bool:
    """Whether RuntimeError (Dynamo and make_fx pass it on, some versions wrapped) names the operator."""
    try:
        call()
    except RuntimeError as error:
        return f"{operator}: " in str(error)
    return False


# --- schemas and exports ---


@pytest.mark.parametrize("name", SCHEMAS)
def test_schema(name: str) -> None:
    assert (
        str(getattr(torch.ops.sparkfleet_kernels, name).default._schema) == f"sparkfleet_kernels::{name}{SCHEMAS[name]}"
    )
    assert _rules.SCHEMAS[name] == SCHEMAS[name]


def test_there_is_no_other_operator() -> None:
    names = {
        name.split("::")[1].split(".")[0]
        for name in torch._C._dispatch_get_all_op_names()
        if "sparkfleet_kernels::" in name
    }
    # The vLLM plugin adds its own.
    assert {name for name in names if not name.startswith("hybrid")} == set(SCHEMAS)


@pytest.mark.parametrize("name", SCHEMAS)
def test_wrapper_has_the_arguments_of_its_operator(name: str) -> None:
    schema = getattr(torch.ops.sparkfleet_kernels, name).default._schema
    wanted = {argument.name: argument.default_value for argument in schema.arguments}
    got = {
        parameter.name: None if parameter.default is inspect.Parameter.empty else parameter.default
        for parameter in inspect.signature(getattr(ops, name)).parameters.values()
    }
    assert got == wanted
    assert list(got) == list(wanted)


@pytest.mark.library
def test_variants() -> None:
    numbers = ops.variants()
    assert numbers == sorted(set(numbers))
    assert all(number > 0 for number in numbers)


@pytest.mark.library
@given(
    kind=st.sampled_from([ops.DENSE, ops.GATE_UP, ops.DOWN]),
    n=st.integers(1, 200_000),
    k=st.integers(1, 512).map(lambda steps: 64 * steps),
    rows=st.integers(1, 16),
    top_k=st.integers(1, 32),
    device=st.sampled_from([(48, 101_376), (132, 232_448), (188, 101_376), (1, 49_152)]),
)
def test_the_rule_names_a_variant(kind: int, n: int, k: int, rows: int, top_k: int, device: tuple[int, int]) -> None:
    groups = 1 if kind == ops.DENSE else rows * top_k
    number = ops.variant(kind, 2 * n if kind == ops.GATE_UP else n, k, rows, groups, *device)
    assert number in ops.variants()
    assert number == ops.variant(kind, 2 * n if kind == ops.GATE_UP else n, k, rows, groups, *device)


@pytest.mark.library
def test_the_library_has_no_cpu_implementation() -> None:
    with pytest.raises(NotImplementedError, match="CPU"):
        ops.nvfp4_gemm_a16(*dense())


# --- fakes ---


@pytest.mark.parametrize("swizzled", [True, False])
@pytest.mark.parametrize("m", [0, 1, 16])
def test_fakes_of_cuda_tensors(m: int, swizzled: bool) -> None:
    """Shapes, dtypes and devices, without a GPU."""
    with FakeTensorMode():
        x, weight, scales, alpha = dense(m, device=CUDA)
        scales = scales if swizzled else scales.narrow(0, 0, 100)  # without CUDA a fake cannot be sliced
        for given_scales in (scales, scales.view(torch.float8_e4m3fn)):
            out = ops.nvfp4_gemm_a16(x, weight, given_scales, alpha, swizzled)
            assert (out.dtype, out.device.type, out.shape) == (torch.bfloat16, "cuda", (m, 100))
        packed, x_scales = ops.nvfp4_quantize(x, alpha, swizzled)
        assert (packed.dtype, packed.device.type, packed.shape) == (torch.uint8, "cuda", (m, 96))
        assert x_scales.shape == (((m + 127) // 128 * 128, 12) if swizzled else (m, 12))
        out = ops.nvfp4_gemm_a4(packed, x_scales, weight, scales, alpha, swizzled)
        assert (out.dtype, out.device.type, out.shape) == (torch.bfloat16, "cuda", (m, 100))
        halves = ops.nvfp4_quantize(torch.empty(m, 160, dtype=torch.bfloat16, device=CUDA), alpha, swizzled, True)
        assert halves[0].shape == (m, 40)
        assert halves[1].shape == (((m + 127) // 128 * 128, 8) if swizzled else (m, 5))


def test_fake_moe_returns_out() -> None:
    with FakeTensorMode():
        arguments = checks.good_arguments(CUDA)["nvfp4_moe_a16"]
        assert ops.nvfp4_moe_a16(**arguments) is arguments["out"]
        out = ops.nvfp4_moe_a16(**{name: value for name, value in arguments.items() if name != "out"})
        assert (out.dtype, out.device.type, out.shape) == (torch.bfloat16, "cuda", (3, 192))


WRONG = [(operator, label) for operator, label, _arguments in checks.wrong_arguments(CPU)]


def test_wrong_arguments_have_names_of_their_own() -> None:
    assert len(set(WRONG)) == len(WRONG)


@pytest.mark.parametrize("index", range(len(WRONG)), ids=[f"{operator}: {label}" for operator, label in WRONG])
def test_fakes_refuse(index: int) -> None:
    with FakeTensorMode():
        operator, _label, arguments = checks.wrong_arguments(CUDA)[index]
        with pytest.raises(RuntimeError, match=f"^{operator}: "):
            getattr(torch.ops.sparkfleet_kernels, operator)(**arguments)


def test_messages() -> None:
    """The texts say what is wanted and what there is."""
    x, weight, scales, alpha = dense()
    good = {"x": x, "weight": weight, "weight_scale": scales, "alpha": alpha}
    for changed, text in (
        ({"x": x[:, :96]}, "x must be contiguous, has strides [192, 1]"),
        ({"x": x[:, :96].contiguous()}, "K must be a multiple of 64, is 96"),
        ({"x": x.float()}, "x must be bfloat16, is float32"),
        ({"weight": weight[0]}, "weight must have 2 dimensions, has 1"),
        ({"weight": weight[:, :64].contiguous()}, "weight must be [100, 96], is [100, 64]"),
        ({"weight_scale": scales[:100]}, "weight_scale must be [128, 12], is [100, 12]"),
        ({"alpha": torch.ones(2)}, "alpha must have 1 element, has 2"),
        ({"x": torch.zeros(17, 192).bfloat16()}, "x must have at most 16 rows, has 17"),
        ({"alpha": alpha.to("meta")}, "alpha must be on cpu, is on meta"),
    ):
        with pytest.raises(RuntimeError) as caught:
            _rules.check_gemm_a16(**(good | changed))
        assert str(caught.value) == f"nvfp4_gemm_a16: {text}"


# --- tracing ---


def model(x: Tensor, weight: Tensor, scales: Tensor, alpha: Tensor, w2: Tensor, w2_scale: Tensor) -> Tensor:
    """Use every operator; x is [M, 192], weight [192, 96], w2 [1, 192, 32]."""
    y = ops.nvfp4_gemm_a16(x * 2, weight, scales.view(torch.float8_e4m3fn), alpha)
    packed, y_scales = ops.nvfp4_quantize(torch.cat([y, y], dim=1), alpha, silu_mul=True)
    y = y + ops.nvfp4_gemm_a4(packed, y_scales, weight, scales, alpha)
    w13, w13_scale = weight.narrow(0, 0, 128).unsqueeze(0), scales.narrow(0, 0, 128).unsqueeze(0)
    ids = torch.zeros(x.shape[0], 1, dtype=torch.int32, device=x.device)
    ones = torch.ones_like(ids, dtype=torch.float32)
    return y + ops.nvfp4_moe_a16(y, w13, w13_scale, alpha, w2, w2_scale, alpha, ones, ids)


def square(m: int, device: torch.device = CPU) -> tuple[Tensor, ...]:
    """Return arguments of model."""
    w2 = torch.randint(0, 256, (1, 192, 32), dtype=torch.uint8, device=device)
    w2_scale = torch.randint(0, 0x50, (1, 256, 4), dtype=torch.uint8, device=device)
    return *dense(m, n=192, k=192, device=device), w2, w2_scale


@pytest.mark.parametrize("tracing", ["fake", "symbolic"])
def test_traces_with_cuda_tensors(tracing: str) -> None:
    """make_fx on fake CUDA tensors, as a compiler sees the model on a machine with a GPU."""
    mode = FakeTensorMode(shape_env=ShapeEnv())
    with mode:
        arguments = square(3, CUDA)
    with mode:
        graph = make_fx(model, tracing_mode=tracing)(*arguments)
    called = {node.target for node in graph.graph.nodes if node.op == "call_function"}
    wanted = {getattr(torch.ops.sparkfleet_kernels, name).default for name in SCHEMAS if name != "read_probe"}
    assert wanted <= called


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_in_one_graph(emulated: None, backend: str, dynamic: bool) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend=backend, dynamic=dynamic)
    for m in (3, 5, 16) if dynamic else (3,):
        arguments = square(m)
        assert torch.equal(compiled(*arguments).view(torch.int16), model(*arguments).view(torch.int16))


def test_one_graph_serves_every_number_of_tokens(emulated: None) -> None:
    """The rule for M makes no guard: a dynamic M stays dynamic, and its limit is left to the operator."""
    torch._dynamo.reset()
    graphs = []

    def backend(graph: torch.fx.GraphModule, _inputs: list[Any]) -> Callable[..., Any]:
        graphs.append(graph)
        forward: Callable[..., Any] = graph.forward
        return forward

    compiled = torch.compile(ops.nvfp4_gemm_a16, fullgraph=True, backend=backend)
    for m in (4, 2, 16, 9):
        arguments = dense(m)
        torch._dynamo.mark_dynamic(arguments[0], 0)
        assert torch.equal(compiled(*arguments), ops.nvfp4_gemm_a16(*arguments))
    assert len(graphs) == 1
    with (
        torch._dynamo.config.patch(error_on_recompile=True),
        pytest.raises(RuntimeError, match=r"^nvfp4_gemm_a16: x must have at most 16 rows"),
    ):
        compiled(*dense(17))


def test_wrong_use_shows_while_tracing(emulated: None) -> None:
    torch._dynamo.reset()
    x, weight, scales, alpha = dense()
    compiled = torch.compile(ops.nvfp4_gemm_a16, fullgraph=True, backend="eager")
    for wrong in (
        (x.float(), weight, scales, alpha),
        (x[:, :96].contiguous(), weight, scales, alpha),
        (x, weight, scales[:100].contiguous(), alpha),
        (torch.zeros(17, 192).bfloat16(), weight, scales, alpha),
    ):
        assert raised_by(functools.partial(compiled, *wrong), "nvfp4_gemm_a16")


@pytest.mark.parametrize("operator", SCHEMAS)
def test_opcheck(emulated: None, operator: str) -> None:
    calls = [arguments for name, arguments in checks.opcheck_arguments(Run(CPU, 1)) if name == operator]
    assert calls
    for arguments in calls:
        outcome = torch.library.opcheck(
            getattr(torch.ops.sparkfleet_kernels, operator).default, arguments, test_utils=checks.OPCHECKS
        )
        assert set(outcome.values()) == {"SUCCESS"}


# --- the library's absence ---


def run_python(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run this Python with the package on its path."""
    root = Path(sparkfleet_kernels.__file__).resolve().parents[1]
    return subprocess.run(
        [sys.executable, *arguments],
        env=os.environ | {"PYTHONPATH": str(root)} | environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


IMPORTS = """
import os, sys
from sparkfleet_kernels import layout, reference
for library in sys.argv[1:]:
    os.environ["SPARKFLEET_KERNELS_LIBRARY"] = library
    try:
        import sparkfleet_kernels.ops
    except ImportError as error:
        print(type(error).__name__, error, sep=": ")
"""


def test_missing_and_unloadable_libraries_say_what_to_do(tmp_path: Path) -> None:
    missing, unloadable = tmp_path / "nowhere.so", tmp_path / "broken.so"
    unloadable.write_bytes(b"not a library")
    result = run_python("-c", IMPORTS, str(missing), str(unloadable))
    assert result.returncode == 0, result.stderr
    first, second = result.stdout.splitlines()
    assert first.startswith("LibraryMissingError: sparkfleet_kernels: ")
    assert f"{missing}, which SPARKFLEET_KERNELS_LIBRARY names, does not exist" in first
    assert "make kernels" in first
    assert second.startswith(f"LibraryMissingError: sparkfleet_kernels: {unloadable} cannot be loaded: ")


def test_missing_library_beside_the_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(ops.LIBRARY_VARIABLE, raising=False)
    monkeypatch.setattr(ops, "__file__", str(tmp_path / "ops.py"))
    with pytest.raises(ops.LibraryMissingError, match=f"{tmp_path}/{ops.LIBRARY_NAME} does not exist"):
        ops.library_path()
    (tmp_path / ops.LIBRARY_NAME).touch()
    assert ops.library_path() == tmp_path / ops.LIBRARY_NAME


def test_import_loads_neither_torch_nor_library() -> None:
    code = "import sparkfleet_kernels, sys; print('torch' in sys.modules, sparkfleet_kernels.__version__)"
    assert run_python("-c", code).stdout.split() == ["False", sparkfleet_kernels.__version__]


def test_verify_without_the_library_is_one_line(tmp_path: Path) -> None:
    missing = str(tmp_path / "nowhere.so")
    result = run_python("-m", "sparkfleet_kernels", "verify", SPARKFLEET_KERNELS_LIBRARY=missing)
    assert result.returncode == 1
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 1
    assert missing in result.stderr


@pytest.mark.library
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_verify_without_a_gpu(tmp_path: Path) -> None:
    path = tmp_path / "verify.json"
    result = run_python("-m", "sparkfleet_kernels", "verify", "--json", str(path))
    assert result.returncode == 0, result.stdout + result.stderr
    assert "no GPU here: numerics not run" in result.stdout.splitlines()
    report = json.loads(path.read_text())
    assert report["status"] == "not run"
    assert [check["name"] for check in report["checks"]] == ["layout", "reference", "fakes", "rule"]
    assert all(check["ok"] for check in report["checks"])
    # The library of the environment is the one that was loaded.
    assert Path(report["environment"]["library"]["path"]).stat().st_size == report["environment"]["library"]["bytes"]


# --- the checks: they pass what is right and find what is wrong ---

#: Small enough to be run by the references.
SMALL_CASES = (
    "layout",
    "reference",
    "fakes",
    "poison",
    "wrong arguments",
    "dense small",
    "experts small",
    "expert ids E 5 top-3 H 192 I 64",
    "quantize small",
    "quantize M 0 K 64",
    "native small",
    "native, quantized",
    "read_probe",
    "misaligned",
)


def case(name: str) -> Case:
    """Return a case by its name."""
    return {case.name: case for case in checks.cases()}[name]


def failures(name: str) -> list[Figure]:
    """Run a case on the CPU and return what failed."""
    return [figure for figure in verify.figures_of(case(name), CPU, 5) if not figure.ok]


def test_case_names_are_unique() -> None:
    names = [case.name for case in checks.cases()]
    assert len(set(names)) == len(names)
    assert all(case.gpu for case in checks.cases() if case.sanitizer)


@pytest.mark.parametrize("name", SMALL_CASES)
def test_references_pass(emulated: None, name: str) -> None:
    assert failures(name) == []


def wrong_row(*arguments: Any) -> Tensor:
    """Give one element the value of its neighbour."""
    out = emulation.gemm_a16(*arguments)
    if out.numel() > 1:
        out[-1, -1] = out[-1, -2]
    return out


def unwritten_row(*arguments: Any) -> Tensor:
    """Leave the last row of the weight out."""
    out = torch.empty(arguments[0].shape[0], arguments[1].shape[0], dtype=torch.bfloat16)
    out[:, :-1] = emulation.gemm_a16(*arguments)[:, :-1]
    return out


def truncated(*arguments: Any) -> Tensor:
    """Cut to bfloat16 instead of rounding."""
    _rules.check_gemm_a16(*arguments)
    exact = reference.gemm_a16(*arguments[:5]).float()
    return (exact.view(torch.int32) & -65536).view(torch.float32).bfloat16()


def flushed(x: Tensor, weight: Tensor, weight_scale: Tensor, *rest: Any) -> Tensor:
    """Take subnormal scales for zero, as one known kernel does."""
    zero = weight_scale & 0x78 == 0
    return emulation.gemm_a16(x, weight, torch.where(zero, 0, weight_scale), *rest)


def wrong_tie(x: Tensor, global_scale: Tensor, swizzled: bool = True, silu_mul: bool = False) -> tuple[Tensor, Tensor]:
    """Round one code of the last row to the wrong side."""
    packed, scales = emulation.quantize(x, global_scale, swizzled, silu_mul)
    if packed.numel():
        packed[-1, -1] ^= 1
    return packed, scales


def dirty_padding(*arguments: Any) -> tuple[Tensor, Tensor]:
    """Leave the last byte of the padding as it was."""
    packed, scales = emulation.quantize(*arguments)
    if scales.numel() and scales.shape[0] != packed.shape[0]:
        scales[-1, -1] = 255
    return packed, scales


def other_scale(*arguments: Any) -> tuple[Tensor, Tensor]:
    """Make the first scale one step larger."""
    packed, scales = emulation.quantize(*arguments)
    if scales.numel():
        scales[0, 0] += 1
    return packed, scales


def unordered(*arguments: Any) -> None:
    """Take the first slot's weight for every slot."""
    changed = list(arguments)
    changed[7] = changed[7][:, :1].expand_as(changed[7]).contiguous()
    emulation.moe_a16(*changed)


def not_skipped(*arguments: Any) -> None:
    """Take expert 0 for what is to be skipped."""
    changed = list(arguments)
    changed[8] = changed[8].clamp(min=0)
    emulation.moe_a16(*changed)


def unmapped(*arguments: Any) -> None:
    """Ignore the expert map."""
    changed = list(arguments)
    changed[9] = None
    emulation.moe_a16(*changed)


def swapped_halves(*arguments: Any) -> None:
    """Swap gate and up."""
    changed = list(arguments)
    changed[1] = changed[1].roll(changed[1].shape[1] // 2, dims=1)
    emulation.moe_a16(*changed)


def lenient(*arguments: Any) -> Tensor:
    """Check nothing."""
    try:
        return emulation.gemm_a16(*arguments)
    except RuntimeError:
        return torch.zeros(1)


def swapped_scales(x: Tensor, x_scale: Tensor, weight: Tensor, weight_scale: Tensor, *rest: Any) -> Tensor:
    """Read the scales of two neighbouring groups of the weight in the wrong order."""
    order = torch.arange(weight_scale.shape[1]).reshape(-1, 2).flip(1).flatten()
    return emulation.gemm_a4(x, x_scale, weight, weight_scale[:, order].contiguous(), *rest)


@pytest.mark.parametrize(
    ("name", "operator", "broken"),
    [
        ("dense small", "nvfp4_gemm_a16", wrong_row),
        ("dense small", "nvfp4_gemm_a16", unwritten_row),
        ("dense small", "nvfp4_gemm_a16", truncated),
        ("experts small", "nvfp4_moe_a16", unordered),
        ("experts small", "nvfp4_moe_a16", swapped_halves),
        ("expert ids E 5 top-3 H 192 I 64", "nvfp4_moe_a16", not_skipped),
        ("expert ids E 5 top-3 H 192 I 64", "nvfp4_moe_a16", unmapped),
        ("quantize small", "nvfp4_quantize", wrong_tie),
        ("quantize small", "nvfp4_quantize", dirty_padding),
        ("quantize small", "nvfp4_quantize", other_scale),
        ("native small", "nvfp4_gemm_a4", swapped_scales),
        ("wrong arguments", "nvfp4_gemm_a16", lenient),
    ],
)
def test_broken_operators_fail(
    monkeypatch: pytest.MonkeyPatch, name: str, operator: str, broken: Callable[..., Any]
) -> None:
    monkeypatch.setattr(ops, "variants", lambda: [])
    with emulation.Emulation(**{operator: broken}):
        assert failures(name)


def test_subnormal_scales_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """Among large scales a subnormal one is below every tolerance; this check sees it, as its values are exact."""
    monkeypatch.setattr(ops, "variants", lambda: [])
    for broken in (None, flushed):
        run = Run(CPU, 5)
        with emulation.Emulation(**({"nvfp4_gemm_a16": broken} if broken else {})):
            checks.check_dense_finite_codes(run, (16,))
        assert all(figure.ok for figure in run.figures()) == (broken is None)


def test_a_variant_that_is_wrong_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def second(*arguments: Any) -> Tensor:
        out = emulation.gemm_a16(*arguments)
        return out * 1.01 if len(arguments) > 5 and arguments[5] == emulation.VARIANTS[1] else out

    monkeypatch.setattr(ops, "variants", lambda: list(emulation.VARIANTS))
    with emulation.Emulation(nvfp4_gemm_a16=second):
        wrong = failures("dense small, long")
    assert wrong
    assert all(f"variant {emulation.VARIANTS[1]}" in figure.label for figure in wrong)


def test_nan_is_not_within_a_limit() -> None:
    assert not Figure("", math.nan, math.inf).ok
    assert Figure("", 1.0, 1.0).ok
    assert not Figure("", 1.0, 0.0).ok


def test_verify_reports_failure(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A figure above its limit and a case that raises: exit status 1, and both in the report."""

    def raises(run: Run) -> None:
        raise RuntimeError("no kernel image")

    def above(run: Run) -> None:
        run.add("good", 0.5, 1.0)
        run.add("bad", 2.0, 1.0)

    monkeypatch.setattr(verify, "cases", lambda: [Case("above", above, gpu=False), Case("raises", raises, gpu=False)])
    monkeypatch.setattr(verify, "no_gpu", lambda: verify.NO_GPU)
    monkeypatch.setattr(verify, "environment", lambda: {"torch": "0", "cuda": None, "device": None})
    path = tmp_path / "report.json"
    assert verify.main(["verify", "--json", str(path), "--seed", "3"]) == 1
    report = json.loads(path.read_text())
    assert report["status"] == "failed"
    assert report["seed"] == 3
    assert report["checks"][0]["failed"] == [{"label": "bad", "value": 2.0, "limit": 1.0}]
    assert report["checks"][1]["failed"][0]["label"] == "RuntimeError: no kernel image"
    printed = capsys.readouterr().out
    assert "bad: 2.0, limit 1.0" in printed
    assert "2 failed: above, raises" in printed


def test_verify_report_on_standard_output(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(verify, "cases", lambda: [Case("fine", lambda run: run.add("good", 0.5, 1.0), gpu=False)])
    monkeypatch.setattr(verify, "no_gpu", lambda: verify.NO_GPU)
    monkeypatch.setattr(verify, "environment", lambda: {"torch": "0", "cuda": None, "device": None})
    assert verify.main(["verify", "--json", "-"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["status"] == "not run"
    assert verify.NO_GPU in captured.err
