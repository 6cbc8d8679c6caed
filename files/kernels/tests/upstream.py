# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Stand-ins for vLLM's compiled W4A4 operators, and NVFP4 layers of real vLLM classes that use them.

A vLLM without its CUDA library has no ``torch.ops._C`` operators for NVFP4. ``Operators`` defines those that its
CUTLASS linear kernel and experts call, by the references of this package: same schemas, same layouts as far as one
operator hands them to the next, plain torch inside. All else that these layers consist of is vLLM's own Python.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from sparkfleet_kernels import layout, reference
from torch import Tensor

SCHEMAS = {
    "_C": {
        "cutlass_scaled_mm_supports_fp4": "(int cuda_device_capability) -> bool",
        "cutlass_scaled_mm_supports_fp8": "(int cuda_device_capability) -> bool",
        "cutlass_scaled_mm_supports_block_fp8": "(int cuda_device_capability) -> bool",
        "cutlass_group_gemm_supported": "(int cuda_device_capability) -> bool",
        "scaled_fp4_quant": "(Tensor input, Tensor input_scale, bool is_sf_swizzled_layout) -> (Tensor, Tensor)",
        "scaled_fp4_quant.out": (
            "(Tensor input, Tensor input_scale, bool is_sf_swizzled_layout, *, Tensor(a!) output, "
            "Tensor(b!) output_scale) -> ()"
        ),
        "cutlass_scaled_fp4_mm": (
            "(Tensor! out, Tensor a, Tensor b, Tensor block_scale_a, Tensor block_scale_b, Tensor alpha) -> ()"
        ),
        "get_cutlass_moe_mm_data": (
            "(Tensor topk_ids, Tensor! expert_offsets, Tensor! problem_sizes1, Tensor! problem_sizes2, "
            "Tensor! input_permutation, Tensor! output_permutation, int num_experts, int n, int k, "
            "Tensor? blockscale_offsets, bool is_gated) -> ()"
        ),
        "scaled_fp4_experts_quant": (
            "(Tensor! output, Tensor! output_scale, Tensor input, Tensor input_global_scale, "
            "Tensor input_offset_by_experts, Tensor output_scale_offset_by_experts) -> ()"
        ),
        "silu_and_mul_scaled_fp4_experts_quant": (
            "(Tensor! output, Tensor! output_scale, Tensor input, Tensor input_global_scale, "
            "Tensor input_offset_by_experts, Tensor output_scale_offset_by_experts) -> ()"
        ),
        "cutlass_fp4_group_mm": (
            "(Tensor! out, Tensor a, Tensor b, Tensor a_blockscale, Tensor b_blockscales, Tensor alphas, "
            "Tensor problem_sizes, Tensor expert_offsets, Tensor sf_offsets) -> ()"
        ),
    },
    "_moe_C": {"shuffle_rows": "(Tensor input_tensor, Tensor dst2src_map, Tensor! output_tensor) -> ()"},
}


def _quant_out(x: Tensor, scale: Tensor, swizzled: bool, *, output: Tensor, output_scale: Tensor) -> None:
    packed, scales = reference.quantize(x, scale, swizzled)
    output.zero_()
    output[:, : packed.shape[1]] = packed
    target = output_scale.view(torch.uint8)
    assert target.shape == scales.shape, "a stand-in for K padded beyond the scales' own padding was never needed"
    target.copy_(scales)


def _scaled_mm(out: Tensor, a: Tensor, b: Tensor, a_scale: Tensor, b_scale: Tensor, alpha: Tensor) -> None:
    out.copy_(reference.gemm_a4(a, a_scale.view(torch.uint8), b, b_scale.view(torch.uint8), alpha))


def _mm_data(
    topk_ids: Tensor,
    expert_offsets: Tensor,
    problem_sizes1: Tensor,
    problem_sizes2: Tensor,
    input_permutation: Tensor,
    output_permutation: Tensor,
    num_experts: int,
    n: int,
    k: int,
    blockscale_offsets: Tensor | None,
    is_gated: bool,
) -> None:
    flat = topk_ids.flatten().long()
    order = torch.argsort(flat, stable=True)
    input_permutation.copy_(order // topk_ids.shape[1])
    output_permutation[order] = torch.arange(len(order), device=order.device, dtype=output_permutation.dtype)
    counts = torch.bincount(flat, minlength=num_experts)
    assert blockscale_offsets is not None
    for offsets, sizes in ((expert_offsets, counts), (blockscale_offsets, (counts + 127) // 128 * 128)):
        offsets[0] = 0
        offsets[1:] = sizes.cumsum(0)
    for sizes, columns, depth in ((problem_sizes1, 2 * n if is_gated else n, k), (problem_sizes2, k, n)):
        sizes[:, 0], sizes[:, 1], sizes[:, 2] = counts, columns, depth


def _experts(offsets: Tensor, scale_offsets: Tensor) -> list[tuple[int, slice, slice]]:
    """Return (expert, its rows, its rows of block scales) for every expert that has rows."""
    starts, scales = offsets.tolist(), scale_offsets.tolist()
    found = []
    for expert, (start, stop) in enumerate(itertools.pairwise(starts)):
        if stop > start:
            rows = layout.scale_shape(stop - start, 4, True)[0]
            found.append((expert, slice(start, stop), slice(scales[expert], scales[expert] + rows)))
    return found


def _experts_quant(silu_mul: bool) -> Callable[..., None]:
    def quantize(out: Tensor, out_scale: Tensor, x: Tensor, factor: Tensor, offsets: Tensor, scale_at: Tensor) -> None:
        scales = out_scale.view(torch.uint8)
        for expert, rows, scale_rows in _experts(offsets, scale_at):
            out[rows], scales[scale_rows] = reference.quantize(x[rows], factor[expert], True, silu_mul)

    return quantize


def _group_mm(
    out: Tensor,
    a: Tensor,
    b: Tensor,
    a_scale: Tensor,
    b_scale: Tensor,
    alphas: Tensor,
    problem_sizes: Tensor,
    expert_offsets: Tensor,
    sf_offsets: Tensor,
) -> None:
    starts, counts = expert_offsets.tolist(), problem_sizes[:, 0].tolist()
    ends = torch.tensor([*starts, starts[-1] + counts[-1]])
    scales, weight_scales = a_scale.view(torch.uint8), b_scale.view(torch.uint8)
    for expert, rows, scale_rows in _experts(ends, sf_offsets):
        out[rows] = reference.gemm_a4(a[rows], scales[scale_rows], b[expert], weight_scales[expert], alphas[expert]).to(
            out.dtype
        )


def _shuffle(x: Tensor, order: Tensor, out: Tensor) -> None:
    out.copy_(x[order.long()])


IMPLEMENTATIONS: dict[str, Callable[..., Any]] = {
    "cutlass_scaled_mm_supports_fp4": lambda capability: True,
    # Asked when vLLM's modules are imported on a GPU.
    "cutlass_scaled_mm_supports_fp8": lambda capability: False,
    "cutlass_scaled_mm_supports_block_fp8": lambda capability: False,
    "cutlass_group_gemm_supported": lambda capability: False,
    "scaled_fp4_quant": reference.quantize,
    "scaled_fp4_quant.out": _quant_out,
    "cutlass_scaled_fp4_mm": _scaled_mm,
    "get_cutlass_moe_mm_data": _mm_data,
    "scaled_fp4_experts_quant": _experts_quant(False),
    "silu_and_mul_scaled_fp4_experts_quant": _experts_quant(True),
    "cutlass_fp4_group_mm": _group_mm,
    "shuffle_rows": _shuffle,
}


class Operators:
    """vLLM's W4A4 operators by their references, from entering to leaving.

    :ivar calls: the names of the operators that were called, in order.
    """

    def __enter__(self) -> Operators:
        self.calls: list[str] = []
        self.libraries = []
        for namespace, schemas in SCHEMAS.items():
            library = torch.library.Library(namespace, "FRAGMENT")
            self.libraries.append(library)
            for name, schema in schemas.items():
                library.define(name + schema)
                # Without a tensor among the arguments there is no device to dispatch by.
                key = "CompositeExplicitAutograd" if "Tensor" in schema else "CompositeImplicitAutograd"
                library.impl(name, self._recorded(name), key)
        return self

    def _recorded(self, name: str) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            if "support" not in name:
                self.calls.append(name)
            return IMPLEMENTATIONS[name](*arguments, **named)

        return call

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for library in self.libraries:
            library._destroy()


# --- layers of real vLLM classes -------------------------------------------------------------------------------------


def have_operators() -> bool:
    """Tell whether this vLLM has its own W4A4 operators."""
    import vllm._custom_ops  # noqa: F401 - loads what there is

    return hasattr(torch.ops._C, "cutlass_scaled_fp4_mm")


@contextmanager
def vllm_process(folder: Path, device: torch.device) -> Iterator[Any]:
    """Make this process one that vLLM's layers can be made in: a configuration, one rank, scratch memory.

    :param folder: an empty folder.
    :yields: the VllmConfig, with ``--moe-backend cutlass``.
    """
    from vllm.config import VllmConfig, set_current_vllm_config
    from vllm.distributed import parallel_state
    from vllm.platforms import current_platform

    config = VllmConfig()
    config.kernel_config.moe_backend = "cutlass"
    with ExitStack() as stack:
        stack.enter_context(set_current_vllm_config(config))
        stack.callback(parallel_state.destroy_distributed_environment)
        parallel_state.init_distributed_environment(1, 0, f"file://{folder / 'store'}", 0, "gloo")
        stack.callback(parallel_state.destroy_model_parallel)
        parallel_state.initialize_model_parallel(backend="gloo")
        if not current_platform.is_cpu():
            from vllm.v1.worker.workspace import init_workspace_manager, reset_workspace_manager

            init_workspace_manager(device)
            stack.callback(reset_workspace_manager)
        yield config


def random_weight(*shape: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return packed codes [..., N, K/2] and linear block scales [..., N, K/16] as uint8, between 1/2 and 16."""
    *lead, n, k = shape
    packed = torch.randint(0, 256, (*lead, n, k // 2), generator=generator, dtype=torch.uint8)
    return packed, layout.encode_e4m3(torch.exp2(torch.rand(*lead, n, k // 16, generator=generator) * 5 - 1))


def _fill(parameter: Tensor, values: Tensor | float) -> None:
    if isinstance(values, Tensor):
        parameter.data.view(values.dtype).copy_(values)
    else:
        parameter.data.fill_(values)


#: Largest activation that the layers' input scales are made for.
INPUT_AMAX = 5.0


@dataclass
class Linear:
    """A linear layer of vLLM's, and what it was loaded with."""

    layer: Any
    weight: Tensor
    scale: Tensor
    alpha: Tensor
    bias: Tensor | None

    def exact(self, x: Tensor) -> Tensor:
        """Return x @ weight.T + bias as float64, with x as it is."""
        flat = x.reshape(-1, x.shape[-1])
        y = reference.gemm_a16(flat, self.weight, self.scale, self.alpha, swizzled=False)
        return (y if self.bias is None else y + self.bias.double()).view(*x.shape[:-1], -1)


def _quantization() -> Any:
    from vllm.model_executor.layers.quantization.modelopt import ModelOptNvFp4Config

    return ModelOptNvFp4Config("NVFP4", True, None, [])


def make_linear(n: int, k: int, generator: torch.Generator, device: torch.device, bias: bool = False) -> Linear:
    """Make a ReplicatedLinear of a ModelOpt NVFP4 checkpoint, load random weights and process them."""
    from vllm.model_executor.layers.linear import ReplicatedLinear

    with device:
        layer = ReplicatedLinear(
            k, n, bias=bias, params_dtype=torch.bfloat16, quant_config=_quantization(), return_bias=False
        )
    weight, scale = (value.to(device) for value in random_weight(n, k, generator=generator))
    alpha = torch.tensor(0.011, device=device)
    _fill(layer.weight, weight)
    _fill(layer.weight_scale, scale)
    _fill(layer.weight_scale_2, float(alpha))
    _fill(layer.input_scale, INPUT_AMAX / (448 * 6))
    if bias:
        _fill(layer.bias, torch.randn(n, generator=generator).to(device, torch.bfloat16))
    layer.quant_method.process_weights_after_loading(layer)
    return Linear(layer, weight, scale, alpha, layer.bias)


@dataclass
class Experts:
    """A mixture of experts of vLLM's, and what it was loaded with."""

    layer: Any
    w13: tuple[Tensor, Tensor, Tensor]
    w2: tuple[Tensor, Tensor, Tensor]

    @property
    def routed(self) -> Any:
        """The part with the weights."""
        return self.layer.routed_experts

    @property
    def kernel(self) -> Any:
        """The experts object that vLLM chose."""
        return self.routed.quant_method.moe_kernel.fused_experts

    def exact(self, x: Tensor, weights: Tensor, ids: Tensor, expert_map: Tensor | None = None) -> Tensor:
        """Return what the experts make of x as float64, with activations as they are."""
        return reference.moe_a16(x, *self.w13, *self.w2, weights, ids, expert_map, swizzled=False)


def route(hidden_states: Tensor, gating_output: Tensor, topk: int, renormalize: bool) -> tuple[Tensor, Tensor]:
    """Return the weights and numbers of each token's experts: the largest of a softmax."""
    weights, ids = torch.topk(torch.softmax(gating_output.float(), dim=-1), topk)
    return weights, ids.to(torch.int32)


def checkpoint_experts(experts: int, topk: int, hidden: int, inner: int, device: torch.device, name: str) -> Any:
    """Return a mixture of experts of a ModelOpt NVFP4 checkpoint before its weights are loaded.

    :param name: the layer's name, of its own in this process.
    """
    from vllm.model_executor.layers.fused_moe import FusedMoEFactory

    with device:
        return FusedMoEFactory(
            num_experts=experts,
            top_k=topk,
            hidden_size=hidden,
            intermediate_size=inner,
            params_dtype=torch.bfloat16,
            quant_config=_quantization(),
            prefix=name,
            custom_routing_function=route,
        )


def fill_experts(layer: Any, generator: torch.Generator) -> Experts:
    """Load random weights into a layer that has its parameters as a checkpoint has them."""
    routed = layer.routed_experts
    loaded = []
    for prefix in ("w13", "w2"):
        parameter = getattr(routed, f"{prefix}_weight")
        experts, n, packed = parameter.shape
        weight, scale = (
            value.to(parameter.device) for value in random_weight(experts, n, packed * 2, generator=generator)
        )
        alpha = (0.002 + 0.004 * torch.rand(experts, generator=generator)).to(parameter.device)
        _fill(parameter, weight)
        _fill(getattr(routed, f"{prefix}_weight_scale"), scale)
        global_scale = getattr(routed, f"{prefix}_weight_scale_2")
        _fill(global_scale, alpha if global_scale.dim() == 1 else alpha[:, None].expand_as(global_scale))
        loaded.append((weight, scale, alpha))
    _fill(routed.w13_input_scale, INPUT_AMAX / (448 * 6))
    _fill(routed.w2_input_scale, 8 * INPUT_AMAX / (448 * 6))
    return Experts(layer, loaded[0], loaded[1])


def make_experts(
    experts: int, topk: int, hidden: int, inner: int, generator: torch.Generator, device: torch.device, name: str
) -> Experts:
    """Make a mixture of experts, load random weights and process them; arguments as ``checkpoint_experts`` has them."""
    made = fill_experts(checkpoint_experts(experts, topk, hidden, inner, device, name), generator)
    made.routed.quant_method.process_weights_after_loading(made.routed)
    return made


def relative_error(y: Tensor, exact: Tensor) -> float:
    """Return the norm of the difference over the norm of what is exact."""
    return float((y.double() - exact).norm() / exact.norm())
