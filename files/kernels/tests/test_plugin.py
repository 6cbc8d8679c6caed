# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The vLLM plugin against the Python tree of a real vLLM, without a GPU.

The layers are vLLM's own. The kernels behind them are not: this package's operators and vLLM's W4A4 operators are their
references, and vLLM is told that the CPU is a device with CUTLASS kernels.
"""

from __future__ import annotations

import dataclasses
import enum
import importlib
import itertools
import logging
import os
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import upstream
from emulation import Emulation
from sparkfleet_kernels import __version__, _hooks, layout, plugin
from sparkfleet_kernels import _rules as rules
from torch import Tensor

if not os.environ.get("SPARKFLEET_KERNELS_BUILT"):
    pytest.importorskip("vllm")

import vllm
from vllm import envs
from vllm.model_executor.kernels import linear
from vllm.model_executor.kernels.linear.nvfp4 import cutlass, flashinfer
from vllm.model_executor.layers.fused_moe.activation import MoEActivation
from vllm.model_executor.layers.fused_moe.config import FusedMoEConfig
from vllm.model_executor.layers.fused_moe.experts.cutlass_moe import CutlassExpertsFp4
from vllm.model_executor.layers.fused_moe.oracle import nvfp4 as oracle
from vllm.model_executor.layers.quantization.utils.quant_utils import kNvfp4Dynamic, kNvfp4Static
from vllm.platforms import PlatformEnum

CPU = torch.device("cpu")
CUDA_KERNELS: list[type[Any]] = linear._POSSIBLE_NVFP4_KERNELS[PlatformEnum.CUDA]
BASES = [getattr(importlib.import_module(module), name) for module, name in _hooks.LINEAR_KERNELS]
#: Larger than what the emulated kernels lose by rounding to bfloat16, and smaller than what 4-bit activations lose.
BFLOAT16, FOUR_BITS = 0.004, 0.3


class Log(logging.Handler):
    """Keeps the lines of the plugin's logger from INFO on."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


@pytest.fixture
def log() -> Iterator[list[str]]:
    handler = Log()
    plugin.logger.addHandler(handler)
    plugin.logger.setLevel(logging.INFO)
    plugin._say_once.cache_clear()
    yield handler.lines
    plugin.logger.setLevel(logging.NOTSET)
    plugin.logger.removeHandler(handler)


@pytest.fixture(autouse=True)
def unregistered() -> Iterator[None]:
    """No test leaves anything behind, even if it fails."""
    yield
    plugin.unregister()


@pytest.fixture
def force(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARKFLEET_KERNELS", "force")


@pytest.fixture
def registered(force: None) -> Iterator[None]:
    plugin.register()
    assert plugin._changes is not None
    yield
    plugin.unregister()


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with upstream.vllm_process(tmp_path_factory.mktemp("vllm"), CPU) as config:
        yield config


@pytest.fixture
def operators() -> Iterator[upstream.Operators]:
    with upstream.Operators() as found:
        yield found


class Calls:
    """CPU implementations of this package's operators that keep what they were called with."""

    def __init__(self) -> None:
        self.gemm: list[tuple[Any, ...]] = []
        self.moe: list[tuple[Any, ...]] = []

    def emulation(self) -> Emulation:
        from emulation import gemm_a16, moe_a16

        def gemm(*arguments: Any) -> Any:
            self.gemm.append(arguments)
            return gemm_a16(*arguments)

        def moe(*arguments: Any) -> None:
            self.moe.append(arguments)
            moe_a16(*arguments)

        return Emulation(nvfp4_gemm_a16=gemm, nvfp4_moe_a16=moe)


@pytest.fixture
def calls() -> Iterator[Calls]:
    found = Calls()
    with found.emulation():
        yield found


class CudaPlatform:
    """The platform as the choice of linear kernels sees it."""

    _enum = PlatformEnum.CUDA


@pytest.fixture
def like_cuda(monkeypatch: pytest.MonkeyPatch, operators: upstream.Operators) -> upstream.Operators:
    """Let vLLM choose CUTLASS kernels on this machine."""
    monkeypatch.setattr(linear, "current_platform", CudaPlatform())
    monkeypatch.setattr(cutlass, "cutlass_fp4_supported", lambda: True)
    monkeypatch.setattr(CutlassExpertsFp4, "_supports_current_device", staticmethod(lambda: True))
    monkeypatch.setattr(torch.Tensor, "cuda", lambda tensor, *_arguments, **_named: tensor)
    return operators


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(20261123)


names = (f"experts.{number}" for number in itertools.count())


def state() -> dict[str, Any]:
    """Return the identities of everything in vLLM that the plugin changes or relies on."""
    return {
        "kernels": [id(kernel) for kernel in CUDA_KERNELS],
        "backends": {name: {id(kernel) for kernel in kernels} for name, kernels in BACKENDS.items()},
        "variables": sorted(VARIABLES),
        "attributes": {str(hook): id(_current(hook)) for hook in HOOKS},
    }


def _current(hook: _hooks.Hook) -> Any:
    """Return what a hook names as it is stored, or None."""
    try:
        return vars(_owner(hook)).get(hook.attribute.split(".")[-1])
    except AttributeError:
        return None


HOOKS = _hooks.HOOKS
BACKENDS: dict[str, set[type[Any]]] = linear._LINEAR_BACKEND_KERNEL_MAP
VARIABLES: dict[str, Any] = envs.environment_variables


def _owner(hook: _hooks.Hook) -> Any:
    """Return the module or class whose dictionary has what a hook names."""
    owner: Any = importlib.import_module(hook.module)
    *path, last = hook.attribute.split(".")
    for part in path:
        owner = getattr(owner, part)
    return next((base for base in owner.__mro__ if last in vars(base)), owner) if path else owner


# --- what is expected of vLLM -------------------------------------------------------------------------------------


def test_version() -> None:
    assert tuple(map(int, vllm.__version__.split(".")[:2])) in plugin.VERSIONS


@pytest.mark.parametrize("hook", HOOKS, ids=str)
def test_hook_holds(hook: _hooks.Hook) -> None:
    assert _hooks.mismatch(hook) is None


def test_every_kernel_is_listed() -> None:
    assert all(base in CUDA_KERNELS for base in BASES)


def test_experts_are_named_in_one_place() -> None:
    """A wrapper of the function reaches a caller only through the attribute of its module."""
    holders = [
        name
        for name, module in sys.modules.items()
        if name.startswith("vllm.") and any(value is oracle.backend_to_kernel_cls for value in vars(module).values())
    ]
    assert holders == [oracle.__name__]
    assert plugin._copies() == []


# --- registering --------------------------------------------------------------------------------------------------


def test_force_registers(force: None, log: list[str]) -> None:
    before = state()
    plugin.register()
    try:
        positions = {kernel.__name__: position for position, kernel in enumerate(CUDA_KERNELS)}
        for base in BASES:
            hybrid = CUDA_KERNELS[positions[f"Sparkfleet{base.__name__}"]]
            assert issubclass(hybrid, base)
            assert CUDA_KERNELS[positions[hybrid.__name__] + 1] is base
            for kernels in BACKENDS.values():
                assert (hybrid in kernels) == (base in kernels)
        assert [kernel for kernel in CUDA_KERNELS if not kernel.__name__.startswith("Sparkfleet")] == [
            kernel for kernel in CUDA_KERNELS if id(kernel) in before["kernels"]
        ]
        ours, stock = oracle.backend_to_kernel_cls(oracle.NvFp4MoeBackend.VLLM_CUTLASS)
        assert stock is CutlassExpertsFp4
        assert issubclass(ours, stock)
        assert ours.__name__ == "SparkfleetCutlassExpertsFp4"
        assert envs.compile_factors()["SPARKFLEET_KERNELS"] == f"force {__version__}"
        assert len(log) == 1
        assert all(f"Sparkfleet{base.__name__}" in log[0] for base in BASES)
    finally:
        plugin.unregister()
    assert state() == before
    assert "SPARKFLEET_KERNELS" not in envs.compile_factors()


@pytest.mark.parametrize("backend", [backend for backend in oracle.NvFp4MoeBackend if backend.name != "VLLM_CUTLASS"])
def test_other_experts_stay(backend: Any, force: None) -> None:
    def found() -> Any:
        try:
            return oracle.backend_to_kernel_cls(backend)
        except ImportError as error:  # triton, flashinfer
            return str(error)

    before = found()
    plugin.register()
    try:
        assert found() == before
    finally:
        plugin.unregister()


def test_register_again(registered: None, log: list[str]) -> None:
    before = state()
    plugin.register()
    assert state() == before
    assert log == []


def test_off(monkeypatch: pytest.MonkeyPatch, log: list[str]) -> None:
    before = state()
    monkeypatch.setenv("SPARKFLEET_KERNELS", "off")
    plugin.register()
    assert state() == before
    assert log == []


@pytest.mark.parametrize("value", ["1", "", "ON", "forced"])
def test_unknown_mode(value: str, monkeypatch: pytest.MonkeyPatch, log: list[str]) -> None:
    before = state()
    monkeypatch.setenv("SPARKFLEET_KERNELS", value)
    plugin.register()
    assert state() == before
    assert log == [f"sparkfleet-kernels: SPARKFLEET_KERNELS={value} is none of on, off, force; taken as off"]


class Platform:
    """A platform of some capability."""

    def __init__(self, capability: int, cuda: bool = True) -> None:
        self.capability, self.cuda = capability, cuda

    def is_cuda(self) -> bool:
        return self.cuda

    def is_device_capability_family(self, capability: int) -> bool:
        return self.capability // 10 == capability // 10


@pytest.mark.parametrize(
    ("platform", "used"),
    [
        pytest.param(Platform(121), True, id="12.1"),
        pytest.param(Platform(120), True, id="12.0"),
        pytest.param(Platform(100), False, id="10.0"),
        pytest.param(Platform(90), False, id="9.0"),
        pytest.param(Platform(121, cuda=False), False, id="no CUDA"),
    ],
)
def test_on_looks_at_the_gpu(platform: Platform, used: bool, monkeypatch: pytest.MonkeyPatch, log: list[str]) -> None:
    before = state()
    monkeypatch.delenv("SPARKFLEET_KERNELS", raising=False)
    monkeypatch.setattr("vllm.platforms._current_platform", platform)
    plugin.register()
    assert (plugin._changes is not None) == used
    assert len(log) == used
    plugin.unregister()
    assert state() == before


@pytest.mark.parametrize("version", ["0.31.4", "0.34.0", "1.0.0", "0.3.2", "dev"])
def test_other_version(version: str, force: None, monkeypatch: pytest.MonkeyPatch, log: list[str]) -> None:
    before = state()
    monkeypatch.setattr(vllm, "__version__", version)
    plugin.register()
    assert state() == before
    assert log == [
        f"sparkfleet-kernels {__version__}: vLLM is left as it is: expected vLLM 0.32 or 0.33, found {version}"
    ]


@pytest.mark.parametrize("version", ["0.32.0", "0.32.1+cu130", "0.33.0", "0.33.1rc1"])
def test_known_version(version: str, force: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm, "__version__", version)
    plugin.register()
    assert plugin._changes is not None
    plugin.unregister()


# --- a vLLM that differs ------------------------------------------------------------------------------------------


class Empty:
    """Stands where a class was that had members."""


class Fewer(enum.Enum):
    """Stands where an enumeration was."""

    OTHER = 1


def reads_more(self: Any, layer: Any, x: Any, bias: Any = None) -> Any:
    return layer.weight, layer.another_scale


def reads_one_more(layer: Any) -> Any:
    return layer.another_scale


def folds_elsewhere(self: Any, layer: Any) -> None:
    layer.w13_weight_scale_2.data.mul_(layer.w13_input_scale)


def sets_nothing(self: Any, moe_config: Any, quant_config: Any) -> None:
    self.moe_config = moe_config


def renamed(*_arguments: Any) -> None:
    """Has other parameters."""


def _remove(hook: _hooks.Hook, monkeypatch: pytest.MonkeyPatch) -> None:
    name = hook.attribute.split(".")[-1]
    while name in vars(owner := _owner(hook)) and owner is not object:  # all parents have to lose it, too
        monkeypatch.delattr(owner, name)
        if not hook.inherited:
            break


def _replace(value: Any) -> Callable[[_hooks.Hook, pytest.MonkeyPatch], None]:
    def change(hook: _hooks.Hook, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(_owner(hook), hook.attribute.split(".")[-1], value)

    return change


def _without(member: str) -> Callable[[_hooks.Hook, pytest.MonkeyPatch], None]:
    def change(hook: _hooks.Hook, monkeypatch: pytest.MonkeyPatch) -> None:
        table = _hooks.resolve(hook)
        monkeypatch.delitem(table, next(key for key in table if getattr(key, "name", key) == member))

    return change


def breakages() -> Iterator[Any]:
    """Yield every way in which a row of the table can be broken: (row, how, what the line has to say)."""
    for hook in HOOKS:
        # Every class has some __init__.
        gone = "expected the parameters" if hook.inherited and "__init__" in str(hook) else "expected to be there"
        yield pytest.param(hook, _remove, gone, id=f"{hook}-removed")
        if hook.parameters is not None:
            yield pytest.param(hook, _replace(renamed), "expected the parameters", id=f"{hook}-renamed parameters")
        if hook.members and isinstance(_hooks.resolve(hook), dict):
            for member in hook.members:
                yield pytest.param(hook, _without(member), f"found no {member}", id=f"{hook}-without {member}")
        elif hook.members:
            value = Fewer if isinstance(_hooks.resolve(hook), enum.EnumMeta) else Empty
            yield pytest.param(hook, _replace(value), f"found no {hook.members[0]}", id=f"{hook}-members")
        if hook.may_read is not None:
            more = reads_one_more if hook.parameters == ("layer",) else reads_more
            yield pytest.param(hook, _replace(more), "found another_scale", id=f"{hook}-reads more")
        if hook.must_read:
            yield pytest.param(hook, _replace(folds_elsewhere), "found no w2_weight_scale_2", id=f"{hook}-reads less")
        if hook.sets:
            yield pytest.param(hook, _replace(sets_nothing), "found no activation_config", id=f"{hook}-sets less")


@pytest.mark.parametrize(("hook", "breakage", "says"), list(breakages()))
def test_difference_leaves_vllm(
    hook: _hooks.Hook,
    breakage: Callable[[_hooks.Hook, pytest.MonkeyPatch], None],
    says: str,
    force: None,
    monkeypatch: pytest.MonkeyPatch,
    log: list[str],
) -> None:
    with monkeypatch.context() as context:
        breakage(hook, context)
        before = state()
        plugin.register()
        assert state() == before
    assert plugin._changes is None
    assert len(log) == 1
    assert f"sparkfleet-kernels {__version__}: vLLM is left as it is: " in log[0]
    assert says in log[0]
    assert "\n" not in log[0]


def test_difference_names_row_and_count(force: None, monkeypatch: pytest.MonkeyPatch, log: list[str]) -> None:
    """The one line names the row, what was expected, what was found, and how many more there are."""
    monkeypatch.setattr(CutlassExpertsFp4, "apply", renamed)
    monkeypatch.delattr(oracle, "select_nvfp4_moe_backend")
    plugin.register()
    assert log == [
        f"sparkfleet-kernels {__version__}: vLLM is left as it is: "
        "vllm.model_executor.layers.fused_moe.oracle.nvfp4:select_nvfp4_moe_backend: expected to be there, found "
        "AttributeError: module 'vllm.model_executor.layers.fused_moe.oracle.nvfp4' has no attribute "
        "'select_nvfp4_moe_backend' (and 1 more)"
    ]


def test_import_error_is_one_line(force: None, monkeypatch: pytest.MonkeyPatch, log: list[str]) -> None:
    def broken(name: str) -> Any:
        raise ImportError(f"{name}:\n  no such\n  library")

    monkeypatch.setattr(_hooks.importlib, "import_module", broken)
    plugin.register()
    assert len(log) == 1
    assert log[0].endswith(
        f"expected to be there, found ImportError: {HOOKS[0].module}: no such library (and {len(HOOKS) - 1} more)"
    )


def test_copied_function_leaves_vllm(force: None, monkeypatch: pytest.MonkeyPatch, log: list[str]) -> None:
    from vllm.model_executor.layers.quantization import modelopt

    monkeypatch.setattr(modelopt, "by_name", oracle.backend_to_kernel_cls, raising=False)
    before = state()
    plugin.register()
    assert state() == before
    assert len(log) == 1
    assert "found in vllm.model_executor.layers.quantization.modelopt" in log[0]


def _unlisted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(linear._POSSIBLE_NVFP4_KERNELS, PlatformEnum.CUDA, CUDA_KERNELS[:2])


def _taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(envs.environment_variables, "SPARKFLEET_KERNELS", lambda: "")


def _no_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("sparkfleet_kernels.ops", raising=False)
    monkeypatch.setitem(sys.modules, "sparkfleet_kernels.ops", None)


def _no_operator(monkeypatch: pytest.MonkeyPatch) -> None:
    def define() -> None:
        raise RuntimeError("two\nlines")

    monkeypatch.setattr(plugin, "define_operator", define)


@pytest.mark.parametrize(
    ("breakage", "says"),
    [
        (_unlisted, "ValueError"),
        (_taken, "KeyError"),
        (_no_library, "Error: "),
        (_no_operator, "RuntimeError: two lines"),
    ],
)
def test_failure_is_undone(
    breakage: Callable[[pytest.MonkeyPatch], None],
    says: str,
    force: None,
    monkeypatch: pytest.MonkeyPatch,
    log: list[str],
) -> None:
    """Whatever happens between the first change and the last, all are taken back."""
    breakage(monkeypatch)
    before = state()
    listed = list(linear._POSSIBLE_NVFP4_KERNELS[PlatformEnum.CUDA])
    plugin.register()
    assert state() == before
    assert linear._POSSIBLE_NVFP4_KERNELS[PlatformEnum.CUDA] == listed
    assert plugin._changes is None
    assert len(log) == 1
    assert "vLLM is left as it is" in log[0]
    assert says in log[0]


# --- which linear kernel vLLM takes -------------------------------------------------------------------------------


def chosen(monkeypatch: pytest.MonkeyPatch, backend: str = "auto", **variables: str) -> str:
    """Return the name of the kernel class that vLLM chooses for a W4A4 layer."""
    monkeypatch.setattr(linear, "_get_linear_backend", lambda quantization: backend)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    return type(linear.init_nvfp4_linear_kernel()).__name__


def test_linear_kernel_is_chosen(like_cuda: Any, registered: None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert chosen(monkeypatch) == "SparkfleetCutlassNvFp4LinearKernel"


def test_linear_order_is_vllms(like_cuda: Any, registered: None, monkeypatch: pytest.MonkeyPatch) -> None:
    for base in BASES:
        monkeypatch.setattr(base, "is_supported", classmethod(lambda cls, compute_capability=None: (True, None)))
    assert chosen(monkeypatch) == "SparkfleetFlashInferCutlassNvFp4LinearKernel"


@pytest.mark.parametrize(
    ("backend", "name"),
    [
        ("cutlass", "SparkfleetCutlassNvFp4LinearKernel"),
        ("flashinfer_cutlass", "SparkfleetFlashInferCutlassNvFp4LinearKernel"),
        ("flashinfer_cudnn", "SparkfleetFlashInferCudnnNvFp4LinearKernel"),
        ("flashinfer_b12x", "SparkfleetFlashInferB12xNvFp4LinearKernel"),
        ("emulation", "EmulationNvFp4LinearKernel"),
    ],
)
def test_linear_backend(
    backend: str, name: str, like_cuda: Any, registered: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for base in BASES:
        monkeypatch.setattr(base, "is_supported", classmethod(lambda cls, compute_capability=None: (True, None)))
    assert chosen(monkeypatch, backend) == name


@pytest.mark.parametrize(
    ("disabled", "name"),
    [("SparkfleetCutlassNvFp4LinearKernel", "CutlassNvFp4LinearKernel"), ("CutlassNvFp4LinearKernel", None)],
)
def test_linear_disabled(
    disabled: str, name: str | None, like_cuda: Any, registered: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who disables vLLM's kernel disables ours, which would call it."""
    found = chosen(monkeypatch, VLLM_DISABLED_KERNELS=disabled)
    assert found == name if name else "Cutlass" not in found


def test_linear_batch_invariant(like_cuda: Any, registered: None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert chosen(monkeypatch, VLLM_BATCH_INVARIANT="1") == "CutlassNvFp4LinearKernel"


# --- linear layers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tokens", [0, 1, 2, 8, 9, 16])
@pytest.mark.parametrize("bias", [False, True], ids=["no bias", "bias"])
def test_linear_branch(
    tokens: int,
    bias: bool,
    process: Any,
    like_cuda: upstream.Operators,
    registered: None,
    calls: Calls,
    generator: torch.Generator,
) -> None:
    made = upstream.make_linear(200, 192, generator, CPU, bias)  # 200 rows are padded to 224, their scales to 256
    assert type(made.layer.quant_method.kernel).__name__ == "SparkfleetCutlassNvFp4LinearKernel"
    x = torch.randn(tokens, 192, generator=generator).bfloat16()
    y = made.layer(x)
    assert y.shape == (tokens, 200)
    assert y.dtype == torch.bfloat16
    if tokens > plugin.MAX_TOKENS:
        assert not calls.gemm
        assert like_cuda.calls == ["scaled_fp4_quant.out", "cutlass_scaled_fp4_mm"]
        kernel = made.layer.quant_method.kernel
        assert torch.equal(y, cutlass.CutlassNvFp4LinearKernel.apply_weights(kernel, made.layer, x, made.bias))
        assert BFLOAT16 < upstream.relative_error(y, made.exact(x)) < FOUR_BITS
        return
    assert not like_cuda.calls
    if tokens:
        assert upstream.relative_error(y, made.exact(x)) < BFLOAT16
    ((used_x, used_weight, used_scale, alpha, *_rest),) = calls.gemm
    assert torch.equal(used_x, x)
    # The same memory that vLLM's kernel reads, without its padding rows.
    assert used_weight.data_ptr() == made.layer.weight.data_ptr()
    assert used_weight.shape == (200, 96)
    assert used_scale.data_ptr() == made.layer.weight_scale.data_ptr()
    assert torch.equal(used_scale, layout.swizzle_scales(made.scale))
    assert float(alpha) == pytest.approx(float(made.alpha))


@pytest.mark.parametrize("base", BASES, ids=lambda base: base.__name__)
def test_linear_kernels(
    base: Any,
    process: Any,
    like_cuda: upstream.Operators,
    registered: None,
    calls: Calls,
    monkeypatch: pytest.MonkeyPatch,
    generator: torch.Generator,
) -> None:
    """Each wrapped kernel keeps the weights as the kernels take them, and reads nothing that it is not given."""

    def scaled_mm(
        a: Tensor, b: Tensor, a_scale: Tensor, b_scale: Tensor, alpha: Tensor, dtype: torch.dtype, backend: str
    ) -> Tensor:
        out = torch.empty(a.shape[0], b.shape[0], dtype=dtype)
        torch.ops._C.cutlass_scaled_fp4_mm(out, a, b, a_scale, b_scale, alpha)
        return out

    monkeypatch.setattr(flashinfer, "flashinfer_scaled_fp4_mm", scaled_mm)
    monkeypatch.setattr(base, "is_supported", classmethod(lambda cls, compute_capability=None: (True, None)))
    hybrid = next(kernel for kernel in CUDA_KERNELS if kernel.__name__ == f"Sparkfleet{base.__name__}")
    monkeypatch.setitem(linear._POSSIBLE_NVFP4_KERNELS, PlatformEnum.CUDA, [hybrid])
    made = upstream.make_linear(72, 128, generator, CPU)
    assert made.layer.sparkfleet_hybrid
    x = torch.randn(9, 128, generator=generator).bfloat16()
    few, many = made.layer(x[:8]), made.layer(x)
    assert len(calls.gemm) == 1
    assert like_cuda.calls[-1] == "cutlass_scaled_fp4_mm"
    assert upstream.relative_error(few, made.exact(x[:8])) < BFLOAT16
    assert BFLOAT16 < upstream.relative_error(many, made.exact(x)) < FOUR_BITS
    assert made.layer.quant_method.kernel.input_quant_key() is None


@pytest.mark.parametrize(("shape", "ours"), [((2, 4), True), ((3, 3), False), ((1, 1, 8), True), ((), True)], ids=str)
def test_linear_leading_sizes(
    shape: tuple[int, ...],
    ours: bool,
    process: Any,
    like_cuda: upstream.Operators,
    registered: None,
    calls: Calls,
    generator: torch.Generator,
) -> None:
    made = upstream.make_linear(64, 128, generator, CPU)
    x = torch.randn(*shape, 128, generator=generator).bfloat16()
    y = made.layer(x)
    assert y.shape == (*shape, 64)
    assert bool(calls.gemm) == ours
    assert upstream.relative_error(y, made.exact(x)) < (BFLOAT16 if ours else FOUR_BITS)


@pytest.mark.parametrize("start", [0, 3, 8])
@pytest.mark.parametrize("tokens", [1, 5])
def test_linear_part_of_a_tensor(
    start: int,
    tokens: int,
    process: Any,
    like_cuda: Any,
    registered: None,
    calls: Calls,
    generator: torch.Generator,
) -> None:
    """Columns of a wider tensor: not contiguous, or (one row) contiguous and not aligned."""
    made = upstream.make_linear(64, 128, generator, CPU)
    x = torch.randn(tokens, 160, generator=generator).bfloat16()[:, start : start + 128]
    y = made.layer(x)
    ((used, *_rest),) = calls.gemm
    assert used.is_contiguous()
    assert used.data_ptr() % 16 == 0
    assert upstream.relative_error(y, made.exact(x)) < BFLOAT16


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_linear_dtype(
    dtype: torch.dtype,
    process: Any,
    like_cuda: upstream.Operators,
    registered: None,
    calls: Calls,
    generator: torch.Generator,
) -> None:
    made = upstream.make_linear(64, 128, generator, CPU)
    y = made.layer(torch.randn(2, 128, generator=generator).to(dtype))
    assert y.dtype == dtype
    assert bool(calls.gemm) == (dtype == torch.bfloat16)
    assert bool(like_cuda.calls) == (dtype != torch.bfloat16)


@pytest.mark.parametrize("k", [96, 160, 64])
def test_linear_input_size(
    k: int,
    process: Any,
    like_cuda: upstream.Operators,
    registered: None,
    calls: Calls,
    log: list[str],
    generator: torch.Generator,
) -> None:
    made = upstream.make_linear(64, k, generator, CPU)
    made.layer(torch.randn(2, k, generator=generator).bfloat16())
    assert made.layer.sparkfleet_hybrid == bool(calls.gemm) == (k == 64)
    if k != 64:
        why = f"its input size {k} is no multiple of 64"
        assert log == [f"sparkfleet-kernels: a linear layer stays with CutlassNvFp4LinearKernel: {why}"]


def _set(name: str, change: Callable[[Any], Any]) -> Callable[[Any], None]:
    def apply(layer: Any) -> None:
        value = change(getattr(layer, name))
        setattr(layer, name, torch.nn.Parameter(value, requires_grad=False))

    return apply


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (_set("alpha", lambda value: value * 2), "not the product"),
        (_set("weight_global_scale", lambda value: value * 1.01), "not the product"),
        (_set("weight_global_scale", lambda value: 1 / value), "not the product"),
        (_set("weight_global_scale", lambda value: value.expand(2)), "weight_global_scale"),
        (_set("weight_global_scale", lambda value: value.double()), "weight_global_scale"),
        (_set("weight_scale", lambda value: value[:64]), "block scales"),
        (_set("weight_scale", lambda value: value.view(torch.uint8)), "block scales"),
        (_set("weight_scale", lambda value: value.T.contiguous().T), "block scales"),
        (_set("weight", lambda value: value[:32]), "weight"),
        (_set("weight", lambda value: value.view(torch.int8)), "weight"),
        (lambda layer: delattr(layer, "alpha"), "no alpha"),
    ],
)
def test_linear_reason(
    change: Callable[[Any], None],
    says: str,
    process: Any,
    like_cuda: Any,
    registered: None,
    generator: torch.Generator,
) -> None:
    """What a loaded layer must be like; the layer as it was loaded is."""
    made = upstream.make_linear(64, 128, generator, CPU)
    assert plugin.linear_reason(made.layer) is None
    change(made.layer)
    assert says in (plugin.linear_reason(made.layer) or "")


# --- the operator under torch.compile -----------------------------------------------------------------------------


def test_operator(process: Any, like_cuda: Any, registered: None, calls: Calls, generator: torch.Generator) -> None:
    made = upstream.make_linear(72, 128, generator, CPU, bias=True)  # padded to 96 rows
    layer = made.layer
    for tokens in (1, 8, 9):
        torch.library.opcheck(
            torch.ops.sparkfleet_kernels.hybrid_linear.default,
            (
                torch.randn(tokens, 128, generator=generator).bfloat16(),
                layer.weight.data,
                layer.weight_scale.data,
                layer.weight_global_scale.data,
                layer.input_global_scale_inv.data,
                layer.alpha.data,
                layer.bias.data,
                72,
                128,
                "CutlassNvFp4LinearKernel",
            ),
            # test_schema compares all arguments before and after, which torch cannot do for float8.
            test_utils=("test_faketensor", "test_aot_dispatch_dynamic", "test_autograd_registration"),
        )


def test_operator_is_traced_once(
    process: Any, like_cuda: upstream.Operators, registered: None, calls: Calls, generator: torch.Generator
) -> None:
    """One graph, without a break, for every number of tokens, and none that depends on the number."""
    made = upstream.make_linear(72, 128, generator, CPU, bias=True)
    graphs: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    compiled = torch.compile(lambda x: made.layer(x) * 2, fullgraph=True, backend=backend)
    for tokens in (3, 8, 9, 17):
        x = torch.randn(tokens, 128, generator=generator).bfloat16()
        torch._dynamo.mark_dynamic(x, 0)  # an error if the trace depends on it
        assert torch.equal(compiled(x), made.layer(x) * 2)
    assert len(graphs) == 1
    called = [node.target for node in graphs[0].graph.nodes if "sparkfleet" in str(node.target)]
    assert called == [torch.ops.sparkfleet_kernels.hybrid_linear]
    # Compiled and not: half of the calls each.
    assert len(calls.gemm) == like_cuda.calls.count("cutlass_scaled_fp4_mm") == 4


def test_operator_through_aot(
    process: Any, like_cuda: Any, registered: None, calls: Calls, generator: torch.Generator
) -> None:
    made = upstream.make_linear(72, 128, generator, CPU)
    torch._dynamo.reset()
    compiled = torch.compile(made.layer, fullgraph=True, backend="aot_eager", dynamic=True)
    for tokens in (3, 12):
        x = torch.randn(tokens, 128, generator=generator).bfloat16()
        assert torch.equal(compiled(x), made.layer(x))


def test_operator_needs_its_layer(registered: None, operators: Any) -> None:
    """More tokens than the kernels take, without a layer of that kernel in this process."""
    plugin.define_operator()
    x = torch.zeros(9, 64, dtype=torch.bfloat16)
    other = torch.zeros(1)
    with pytest.raises(KeyError, match="Nothing"):
        torch.ops.sparkfleet_kernels.hybrid_linear(x, other, other, other, other, other, None, 8, 64, "Nothing")


# --- which experts vLLM takes -------------------------------------------------------------------------------------

SIZES = (4, 2, 128, 64)  # experts, top-k, hidden size, intermediate size


@pytest.fixture
def experts(process: Any, like_cuda: Any, registered: None, generator: torch.Generator) -> upstream.Experts:
    return upstream.make_experts(*SIZES, generator, CPU, next(names))


def select(config: FusedMoEConfig) -> str:
    """Return the name of the experts class that vLLM chooses for W4A4 with --moe-backend cutlass."""
    backend, experts = oracle.select_nvfp4_moe_backend(config, kNvfp4Static, kNvfp4Dynamic)
    assert backend is oracle.NvFp4MoeBackend.VLLM_CUTLASS
    return experts.__name__


def test_experts_are_chosen(experts: upstream.Experts) -> None:
    assert type(experts.kernel).__name__ == "SparkfleetCutlassExpertsFp4"
    assert experts.kernel.sparkfleet_reason is None
    assert select(experts.routed.moe_config) == "SparkfleetCutlassExpertsFp4"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"activation": MoEActivation.GELU}, "activation is MoEActivation.GELU"),
        ({"activation": MoEActivation.SWIGLUOAI}, "activation"),
        ({"in_dtype": torch.float16}, "torch.float16"),
        ({"swiglu_limit": 7.0}, "clamped"),
        ({"swiglu_alpha": 1.702}, "clamped"),
        ({"swiglu_beta": 1.0}, "clamped"),
        ({"has_bias": True}, "biases"),
        ({"hidden_dim": 96}, "no multiples of 64"),
        ({"intermediate_size": 96}, "no multiples of 64"),
        ({"num_local_experts": 513}, "there are 513"),
        ({"experts_per_token": 33}, "a token has 33"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_experts_of_other_models_stay(
    changes: dict[str, Any], says: str, experts: upstream.Experts, log: list[str]
) -> None:
    assert select(dataclasses.replace(experts.routed.moe_config, **changes)) == "CutlassExpertsFp4"
    assert len(log) == 1
    assert log[0].startswith("sparkfleet-kernels: experts stay with CutlassExpertsFp4: ")
    assert says in log[0]


def test_experts_with_lora_stay(experts: upstream.Experts) -> None:
    """vLLM's own class refuses LoRA; should it ever not, ours still does."""
    config = dataclasses.replace(experts.routed.moe_config, is_lora_enabled=True)
    assert plugin.config_reason(config) == "LoRA is enabled"
    with pytest.raises(ValueError, match="LoRA"):
        select(config)


def test_experts_with_load_balancing_stay(experts: upstream.Experts) -> None:
    config = experts.routed.moe_config
    parallel = dataclasses.replace(config.moe_parallel_config, enable_eplb=True)
    assert select(dataclasses.replace(config, moe_parallel_config=parallel)) == "CutlassExpertsFp4"


def test_batch_invariant_experts_stay(experts: upstream.Experts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_BATCH_INVARIANT", "1")
    assert select(experts.routed.moe_config) == "CutlassExpertsFp4"


# --- experts ------------------------------------------------------------------------------------------------------


def forward(config: Any, made: upstream.Experts, x: Tensor, logits: Tensor) -> Tensor:
    """Run the whole layer of vLLM's: router, experts, reduction."""
    from vllm.forward_context import set_forward_context

    with set_forward_context(None, config, num_tokens=x.shape[0]):
        result = made.layer(x, logits)
    assert isinstance(result, Tensor)
    return result


@pytest.mark.parametrize("tokens", [1, 2, 8, 9, 16])
def test_experts_branch(
    tokens: int,
    process: Any,
    like_cuda: upstream.Operators,
    experts: upstream.Experts,
    calls: Calls,
    generator: torch.Generator,
) -> None:
    x = torch.randn(tokens, SIZES[2], generator=generator).bfloat16()
    logits = torch.randn(tokens, SIZES[0], generator=generator).bfloat16()
    y = forward(process, experts, x, logits)
    exact = experts.exact(x, *upstream.route(x, logits, SIZES[1], True))
    if tokens > plugin.MAX_TOKENS:
        assert not calls.moe
        assert like_cuda.calls.count("cutlass_fp4_group_mm") == 2
        assert BFLOAT16 < upstream.relative_error(y, exact) < FOUR_BITS
        return
    assert not like_cuda.calls
    assert upstream.relative_error(y, exact) < BFLOAT16
    ((_x, w13, w13_scale, w13_alpha, w2, w2_scale, w2_alpha, *_rest),) = calls.moe
    routed = experts.routed
    for used, held in (
        (w13, routed.w13_weight),
        (w13_scale, routed.w13_weight_scale),
        (w2, routed.w2_weight),
        (w2_scale, routed.w2_weight_scale),
    ):
        assert used.data_ptr() == held.data_ptr()
    assert torch.equal(w13_alpha, experts.w13[2])
    assert torch.equal(w2_alpha, experts.w2[2])


def test_experts_keep_the_weights_factors(experts: upstream.Experts) -> None:
    """vLLM folds the input scales into its own factors, as before; ours are the weights' alone, and not saved."""
    routed = experts.routed
    for kept, name, (_weight, _scale, alpha) in zip(
        routed.sparkfleet_alphas, ("w13", "w2"), (experts.w13, experts.w2), strict=True
    ):
        assert torch.equal(kept, alpha)
        folded = alpha * getattr(routed, f"{name}_input_scale")
        assert torch.allclose(getattr(routed, f"{name}_weight_scale_2"), folded)
    assert not [name for name in routed.state_dict() if "sparkfleet" in name]


def apply(
    made: upstream.Experts, x: Tensor, weights: Tensor, ids: Tensor, **changes: Any
) -> tuple[Tensor, dict[str, Any]]:
    """Call the experts object as vLLM's modular kernel does; return the output, poisoned before, and the arguments."""
    tokens, topk = ids.shape
    inner = made.routed.w2_weight.shape[2] * 2
    arguments: dict[str, Any] = {
        "output": torch.full_like(x, float("nan")),
        "hidden_states": x,
        "w1": made.routed.w13_weight,
        "w2": made.routed.w2_weight,
        "topk_weights": weights,
        "topk_ids": ids,
        "activation": MoEActivation.SILU,
        "global_num_experts": made.routed.w13_weight.shape[0],
        "expert_map": None,
        "a1q_scale": None,
        "a2_scale": None,
        "workspace13": torch.empty(tokens * topk * max(2 * inner, x.shape[1]), dtype=x.dtype),
        "workspace2": torch.empty(tokens * topk * inner, dtype=x.dtype),
        "expert_tokens_meta": None,
        "apply_router_weight_on_input": False,
    } | changes
    assert made.kernel.apply(**arguments) is None
    return arguments["output"], arguments


def inputs(generator: torch.Generator, tokens: int = 3, topk: int = SIZES[1]) -> tuple[Tensor, Tensor, Tensor]:
    """Return hidden states, top-k weights and ids."""
    x = torch.randn(tokens, SIZES[2], generator=generator).bfloat16()
    return x, *upstream.route(x, torch.randn(tokens, SIZES[0], generator=generator), topk, True)


@pytest.mark.parametrize("ids_dtype", [torch.int32, torch.int64])
def test_experts_apply(
    ids_dtype: torch.dtype, experts: upstream.Experts, calls: Calls, generator: torch.Generator
) -> None:
    x, weights, ids = inputs(generator)
    y, _arguments = apply(experts, x, weights, ids.to(ids_dtype))
    assert upstream.relative_error(y, experts.exact(x, weights, ids)) < BFLOAT16
    assert len(calls.moe) == 1


def test_experts_without_tokens(experts: upstream.Experts, calls: Calls, generator: torch.Generator) -> None:
    x, weights, ids = inputs(generator, tokens=0)
    y, _arguments = apply(experts, x, weights, ids)
    assert y.shape == (0, SIZES[2])
    assert len(calls.moe) == 1


def test_experts_of_another_rank(experts: upstream.Experts, calls: Calls, generator: torch.Generator) -> None:
    """Expert parallelism: twice as many experts in all, every other one here; others add nothing."""
    x, weights, _ids = inputs(generator)
    expert_map = torch.tensor([0, -1, 1, -1, 2, -1, 3, -1], dtype=torch.int32)
    ids = torch.tensor([[0, 1], [6, 4], [3, 7]], dtype=torch.int32)
    y, _arguments = apply(experts, x, weights, ids, expert_map=expert_map, global_num_experts=8)
    exact = experts.exact(x, weights, ids, expert_map)
    assert len(calls.moe) == 1
    assert upstream.relative_error(y, exact) < BFLOAT16
    assert not y[2].any()


def _lora(experts: Any, arguments: dict[str, Any]) -> None:
    experts._lora_context = object()


def _upstream(experts: Any, arguments: dict[str, Any]) -> None:
    experts.sparkfleet_reason = "some reason"


def _unloaded(experts: Any, arguments: dict[str, Any]) -> None:
    del experts.sparkfleet_reason


def _half(experts: Any, arguments: dict[str, Any]) -> None:
    for name in ("hidden_states", "output", "workspace13", "workspace2"):
        arguments[name] = arguments[name].half()


def _argument(**values: Any) -> Callable[[Any, dict[str, Any]], None]:
    return lambda experts, arguments: arguments.update(values)


def _strided(experts: Any, arguments: dict[str, Any]) -> None:
    arguments["output"] = torch.empty(3, 2 * SIZES[2], dtype=torch.bfloat16)[:, ::2]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_lora, "LoRA"),
        (_upstream, "the experts stay with vLLM"),
        (_unloaded, "the experts stay with vLLM"),
        (_half, "not bfloat16"),
        (_strided, "the output is no plain matrix"),
        (_argument(activation=MoEActivation.GELU), "another activation"),
        (_argument(apply_router_weight_on_input=True), "the router's weights belong to the input"),
        (_argument(expert_map=torch.arange(4)), "the expert map is no int32 vector"),
        (_argument(hidden_states=torch.zeros(9, SIZES[2]).bfloat16()), "too many tokens"),
        (_argument(topk_ids=torch.zeros(3, 33, dtype=torch.int32)), "too many experts for a token"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_call_stays_with_vllm(
    change: Callable[[Any, dict[str, Any]], None],
    reason: str,
    experts: upstream.Experts,
    calls: Calls,
    monkeypatch: pytest.MonkeyPatch,
    generator: torch.Generator,
) -> None:
    """vLLM's own method gets the call, with what it was called with."""
    x, weights, ids = inputs(generator)
    _y, arguments = apply(experts, x, weights, ids)
    calls.moe.clear()
    seen: list[dict[str, Any]] = []

    def stock(self: Any, *values: Any, **named: Any) -> None:
        seen.append(dict(zip(_hooks.APPLY_EXPERTS[1:], values, strict=False)) | named)

    monkeypatch.setattr(CutlassExpertsFp4, "apply", stock)
    kernel = experts.kernel
    change(kernel, arguments)
    keys = ("output", "hidden_states", "topk_ids", "activation", "expert_map", "apply_router_weight_on_input")
    assert plugin.call_reason(kernel, *(arguments[key] for key in keys)) == reason
    kernel.apply(**arguments)
    assert not calls.moe
    ((given),) = seen
    assert given.keys() == arguments.keys()
    assert all(given[name] is arguments[name] for name in arguments)


def test_vllm_gets_gelu(
    like_cuda: upstream.Operators,
    experts: upstream.Experts,
    calls: Calls,
    monkeypatch: pytest.MonkeyPatch,
    generator: torch.Generator,
) -> None:
    """The class gets only SiLU models, but the activation is an argument of the call."""
    x, weights, ids = inputs(generator)
    module = sys.modules[CutlassExpertsFp4.__module__]
    monkeypatch.setattr(module, "apply_moe_activation", lambda kind, out, x, **_named: out.copy_(x[:, : out.shape[1]]))
    apply(experts, x, weights, ids, activation=MoEActivation.GELU)
    assert not calls.moe
    assert like_cuda.calls.count("cutlass_fp4_group_mm") == 2


def _attribute(name: str, change: Callable[[Any], Any]) -> Callable[[Any, Any], None]:
    return lambda experts, layer: setattr(
        layer, name, torch.nn.Parameter(change(getattr(layer, name)), requires_grad=False)
    )


def _activation(**values: Any) -> Callable[[Any, Any], None]:
    def change(experts: Any, layer: Any) -> None:
        experts.activation_config = dataclasses.replace(experts.activation_config, **values)

    return change


def _quant(name: str, change: Callable[[Any], Any]) -> Callable[[Any, Any], None]:
    """Change a tensor of the experts' quantization config, which is what the class reads."""

    def apply(experts: Any, layer: Any) -> None:
        part = getattr(experts.quant_config, name)
        part.scale = change(part.scale)

    return apply


def _bias(experts: Any, layer: Any) -> None:
    experts.quant_config._w1.bias = torch.zeros(1)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (_attribute("w13_weight_scale_2", lambda value: value * 2), "w13_weight_scale_2 is not the product"),
        (_attribute("w2_weight_scale_2", lambda value: value / 2), "w2_weight_scale_2 is not the product"),
        (_attribute("w13_weight", lambda value: value[:, :96]), "weights"),
        (_attribute("w2_weight", lambda value: value[:, :, :16]), "weights"),
        (_attribute("w2_weight", lambda value: value[0]), "weights"),
        (_activation(clamp_limit=7.0), "clamped"),
        (_activation(alpha=1.7), "clamped"),
        (_activation(beta=1.0), "clamped"),
        (_quant("_w1", lambda value: value[:, :64]), "block scales"),
        (_quant("_w2", lambda value: value.view(torch.uint8)), "block scales"),
        (_bias, "biases"),
    ],
)
def test_experts_reason(change: Callable[[Any, Any], None], says: str, experts: upstream.Experts) -> None:
    """What loaded experts must be like; they are as they were loaded."""
    alphas = experts.w13[2], experts.w2[2]
    assert plugin.loaded_reason(experts.kernel, experts.routed, *alphas) is None
    change(experts.kernel, experts.routed)
    assert says in (plugin.loaded_reason(experts.kernel, experts.routed, *alphas) or "")


def test_experts_factors_of_another_shape(experts: upstream.Experts) -> None:
    alpha = experts.w2[2]
    assert "w13_weight_scale_2" in (
        plugin.loaded_reason(experts.kernel, experts.routed, experts.w13[2][:, None].expand(-1, 2), alpha) or ""
    )


def test_experts_loaded_anew(experts: upstream.Experts, calls: Calls, generator: torch.Generator) -> None:
    """vLLM's own layerwise reload, with other weights: it keeps all tensors where they are, for CUDA graphs."""
    from vllm.model_executor.model_loader.reload import layerwise, meta

    routed, before = experts.routed, experts.kernel
    info = layerwise.get_layerwise_info(routed)
    info.restore_metadata = meta.capture_layer_to_meta(
        upstream.checkpoint_experts(*SIZES, CPU, next(names)).routed_experts
    )
    held = [alpha.data_ptr() for alpha in routed.sparkfleet_alphas]
    w13 = routed.w13_weight.data_ptr()
    layerwise.initialize_layerwise_reload(routed)
    layerwise.materialize_layer(routed, info)
    fresh = upstream.fill_experts(experts.layer, generator)
    layerwise._layerwise_process(routed, info)
    assert routed.w13_weight.data_ptr() == w13
    assert [alpha.data_ptr() for alpha in routed.sparkfleet_alphas] == held
    assert experts.kernel is not before
    assert not torch.equal(fresh.w13[2], experts.w13[2])
    x, weights, ids = inputs(generator)
    exact = fresh.exact(x, weights, ids)
    _y, arguments = apply(fresh, x, weights, ids)
    for kernel in (before, fresh.kernel):  # what a graph has, and what is called without one
        output = torch.full_like(x, float("nan"))
        kernel.apply(**arguments | {"output": output})
        assert upstream.relative_error(output, exact) < BFLOAT16
    assert len(calls.moe) == 3


# --- as a plugin --------------------------------------------------------------------------------------------------


def entry_points() -> dict[str, str]:
    """Return the entry points of the group that vLLM reads, from this package's pyproject.toml."""
    project = tomllib.loads(Path(__file__).parents[1].joinpath("pyproject.toml").read_text())["project"]
    found: dict[str, str] = project["entry-points"]["vllm.general_plugins"]
    return found


@pytest.fixture
def distribution(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put a distribution with the package's entry points on the path: that of a checkout has none."""
    folder = tmp_path / f"sparkfleet_kernels-{__version__}.dist-info"
    folder.mkdir()
    folder.joinpath("METADATA").write_text(f"Metadata-Version: 2.1\nName: sparkfleet-kernels\nVersion: {__version__}\n")
    lines = [f"{name} = {value}" for name, value in entry_points().items()]
    folder.joinpath("entry_points.txt").write_text("\n".join(["[vllm.general_plugins]", *lines]))
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def test_entry_point() -> None:
    assert entry_points() == {"sparkfleet_kernels": "sparkfleet_kernels.plugin:register"}


@pytest.mark.parametrize(
    ("allowed", "found"), [(None, True), ("sparkfleet_kernels", True), ("other", False), ("", False)]
)
def test_vllm_finds_the_plugin(
    allowed: str | None, found: bool, distribution: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vllm.plugins import load_plugins_by_group

    if allowed is None:
        monkeypatch.delenv("VLLM_PLUGINS", raising=False)
    else:
        monkeypatch.setenv("VLLM_PLUGINS", allowed)
    plugins = load_plugins_by_group("vllm.general_plugins")
    assert (plugins.get("sparkfleet_kernels") is plugin.register) == found


def test_ray_workers_get_the_variable(registered: None) -> None:
    from vllm.ray.ray_env import get_env_vars_to_copy

    assert "SPARKFLEET_KERNELS" in get_env_vars_to_copy()


@pytest.mark.library
def test_vllm_loads_the_plugin(distribution: Path) -> None:
    """A process of its own, where vLLM calls all plugins of the group: twice, as other code may."""
    program = (
        "from vllm import plugins\n"
        "from vllm.config.logging import LoggingConfig\n"
        "from vllm.logger import configure_logging_if_needed\n"
        "configure_logging_if_needed(LoggingConfig())\n"
        "plugins.load_general_plugins()\n"
        "plugins.plugins_loaded = False\n"
        "plugins.load_general_plugins()\n"
        "from vllm.model_executor.kernels import linear\n"
        "names = [kernel.__name__ for kernels in linear._POSSIBLE_NVFP4_KERNELS.values() for kernel in kernels]\n"
        "print('found', *(name for name in names if name.startswith('Sparkfleet')))\n"
    )
    path = os.pathsep.join([str(distribution), str(Path(plugin.__file__).parents[1])])
    result = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"SPARKFLEET_KERNELS": "force", "PYTHONPATH": path, "VLLM_PLUGINS": "sparkfleet_kernels"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    found = next(line for line in result.stdout.splitlines() if line.startswith("found")).split()[1:]
    assert sorted(found) == sorted(f"Sparkfleet{base.__name__}" for base in BASES)
    said = [line for line in (result.stdout + result.stderr).splitlines() if "sparkfleet-kernels" in line]
    assert len(said) == 1, said
    assert "up to 8 tokens go through" in said[0]


def test_limits_are_the_operators() -> None:
    """The plugin asks for nothing that the operators refuse."""
    assert plugin.MAX_TOKENS <= rules.MAX_TOKENS
    assert plugin.MAX_EXPERTS == rules.MAX_EXPERTS
    assert plugin.MAX_TOPK == rules.MAX_TOP_K
    assert plugin.K_MULTIPLE == rules.K_MULTIPLE
