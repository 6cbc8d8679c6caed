# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The vLLM plugin: W4A4 NVFP4 layers use these kernels for at most MAX_TOKENS tokens, and vLLM's own for more.

vLLM calls ``register`` (entry point group ``vllm.general_plugins``) in every process. On GPUs of capability 12.x, with
vLLM 0.32 or 0.33, it makes two things known to vLLM:

* Linear layers. For each kernel class in LINEAR_KERNELS a subclass that leaves loading weights to it, and at run time
  goes through one operator, ``sparkfleet_kernels::hybrid_linear``, which looks at the number of tokens. The operator
  hides that branch from Dynamo, which would otherwise compile for one number of tokens. The price: vLLM's compiler
  passes no longer see the quantization of the activations, so they cannot fuse it with what comes before.
  Each subclass goes into vLLM's list directly before its parent, and into the sets behind ``--linear-backend``. The
  public ``register_linear_kernel`` only appends, and what stands last in that list is never chosen; the order of
  preference among vLLM's kernels stays as it is. VLLM_DISABLED_KERNELS works with the names of both.
* Experts of ``--moe-backend cutlass``. A subclass of CutlassExpertsFp4, offered before it; vLLM takes the parent where
  the subclass says that it does not support a model. These have no registry: ``oracle.nvfp4.backend_to_kernel_cls`` is
  wrapped. (vLLM's automatic choice, FlashInfer's CUTLASS, keeps up before gate and is left alone.)

Both read the weights that vLLM's prefill kernels read: nothing is repacked and no weight is held twice. Activations
are not quantized on the way through these kernels, so the factor of a product is that of the weight alone.

All of that is private to vLLM. ``sparkfleet_kernels._hooks`` lists what is expected of it; where anything differs, one
line is logged and vLLM is left as it is. A layer whose weights are not what the kernels take stays with vLLM, too.

SPARKFLEET_KERNELS switches: ``on`` (the default), ``off``, and ``force``, which skips the look at the GPU's capability
(vLLM's own checks still decide what is used). In a cluster it has to be the same in every container.
"""

from __future__ import annotations

import functools
import logging
import os
import re
import sys
from typing import Any

from . import __version__, _hooks
from ._hooks import HOOKS, LAYER_ATTRIBUTES, LINEAR_KERNELS, Changes

VARIABLE = "SPARKFLEET_KERNELS"
MODES = ("on", "off", "force")
VERSIONS = ((0, 32), (0, 33))
#: The capability family that the kernels are made for: 12.x.
FAMILY = 120
#: The most tokens of one step that these kernels get; what vLLM's W4A4 kernels are made for, prefill, has more.
MAX_TOKENS = 8
MAX_EXPERTS = 512
MAX_TOPK = 32
#: What K of every product has to be a multiple of.
K_MULTIPLE = 64

# vLLM formats and shows only loggers below its own name.
logger = logging.getLogger("vllm.sparkfleet_kernels")

_changes: Changes | None = None
_library: Any = None
#: The kernel objects that serve more than MAX_TOKENS tokens, by the name of vLLM's class.
_upstream: dict[str, tuple[type[Any], Any]] = {}


def register() -> None:
    """Make the kernels known to vLLM, or log one line that says why not. Can be called again; never raises."""
    global _changes
    if _changes is not None:
        return
    mode = os.environ.get(VARIABLE, "on")
    if mode not in MODES:
        logger.warning("sparkfleet-kernels: %s=%s is none of %s; taken as off", VARIABLE, mode, ", ".join(MODES))
        return
    if mode == "off":
        return
    changes = Changes()
    try:
        if mode == "on" and not _on_family():
            logger.debug("sparkfleet-kernels: not used, no GPU of capability %d.x", FAMILY // 10)
            return
        if different := _different():
            more = f" (and {len(different) - 1} more)" if len(different) > 1 else ""
            _say_why(different[0] + more)
            return
        from . import ops  # noqa: F401 - loads the library

        define_operator()
        used = _install(changes)
    except Exception as error:
        changes.undo()
        _say_why(f"{type(error).__name__}: {error}")
        return
    _changes = changes
    logger.info(
        "sparkfleet-kernels %s: up to %d tokens go through %s and, with --moe-backend cutlass, %s",
        __version__,
        MAX_TOKENS,
        ", ".join(used[:-1]),
        used[-1],
    )


def unregister() -> None:
    """Take back what ``register`` did to vLLM. Layers that were made in between keep what they have."""
    global _changes
    if _changes is not None:
        _changes.undo()
        _changes = None


def _say_why(reason: str) -> None:
    logger.warning("sparkfleet-kernels %s: vLLM is left as it is: %s", __version__, " ".join(reason.split()))


def _on_family() -> bool:
    from vllm.platforms import current_platform

    return bool(current_platform.is_cuda() and current_platform.is_device_capability_family(FAMILY))


def _different() -> list[str]:
    """Return how this vLLM differs from what the plugin was written for."""
    import vllm

    wanted = " or ".join(".".join(map(str, version)) for version in VERSIONS)
    found = re.match(r"(\d+)\.(\d+)", vllm.__version__)
    if found is None or (int(found[1]), int(found[2])) not in VERSIONS:
        return [f"expected vLLM {wanted}, found {vllm.__version__}"]
    return _hooks.mismatches(HOOKS) or _copies()


def _copies() -> list[str]:
    """Return the modules that hold the wrapped function under a name of their own: a wrapper would not reach them."""
    oracle = sys.modules["vllm.model_executor.layers.fused_moe.oracle.nvfp4"]
    stock = oracle.backend_to_kernel_cls
    return [
        f"{oracle.__name__}:{stock.__name__}: expected to be used by its module only, found in {name}"
        for name, module in list(sys.modules.items())
        if module is not oracle
        and name.startswith("vllm.")
        and any(value is stock for value in list(getattr(module, "__dict__", {}).values()))
    ]


def _install(changes: Changes) -> list[str]:
    """Change vLLM; return the names of the classes that it now knows.

    :raises Exception: whatever goes wrong; the caller takes the changes back.
    """
    from vllm import envs
    from vllm.model_executor.kernels import linear
    from vllm.model_executor.layers.fused_moe.experts.cutlass_moe import CutlassExpertsFp4
    from vllm.model_executor.layers.fused_moe.oracle import nvfp4 as oracle
    from vllm.platforms import PlatformEnum

    kernels = linear._POSSIBLE_NVFP4_KERNELS[PlatformEnum.CUDA]
    names = []
    for module, name in LINEAR_KERNELS:
        base = getattr(sys.modules[module], name)
        hybrid = hybrid_linear_kernel(base)
        changes.insert_before(kernels, base, hybrid)
        for backend in linear._LINEAR_BACKEND_KERNEL_MAP.values():
            if base in backend:
                changes.add(backend, hybrid)
        names.append(hybrid.__name__)

    experts = hybrid_experts(CutlassExpertsFp4)
    stock = oracle.backend_to_kernel_cls

    @functools.wraps(stock)
    def backend_to_kernel_cls(backend: Any) -> list[Any]:
        found: list[Any] = stock(backend)
        return [experts, *found] if CutlassExpertsFp4 in found else found

    changes.assign(oracle, stock.__name__, backend_to_kernel_cls)
    # The operator is part of compiled graphs: without this, vLLM would load graphs that were compiled with the plugin
    # into processes without it, and the other way round. It also makes vLLM hand the variable to Ray's workers.
    changes.put(envs.environment_variables, VARIABLE, lambda: f"{os.environ.get(VARIABLE, 'on')} {__version__}")
    return [*names, experts.__name__]


@functools.cache
def _say_once(text: str) -> None:
    logger.info("sparkfleet-kernels: %s", text)


# --- linear layers ------------------------------------------------------------------------------------------------


class LayerView:
    """What vLLM's linear kernels read of a layer, as an object of its own: operators take tensors, not modules."""

    __slots__ = LAYER_ATTRIBUTES

    def __init__(self, **values: Any) -> None:
        for name in LAYER_ATTRIBUTES:
            setattr(self, name, values[name])


def define_operator() -> None:
    """Define ``torch.ops.sparkfleet_kernels.hybrid_linear``; the second call does nothing."""
    global _library
    if _library is not None:
        return
    import torch

    library = torch.library.Library("sparkfleet_kernels", "FRAGMENT")
    library.define(
        "hybrid_linear(Tensor x, Tensor weight, Tensor weight_scale, Tensor weight_global_scale, "
        "Tensor input_global_scale_inv, Tensor alpha, Tensor? bias, int output_size, int input_size, str upstream) "
        "-> Tensor"
    )
    for key in ("CUDA", "CPU"):
        library.impl("hybrid_linear", _hybrid_linear, key)
    torch.library.register_fake("sparkfleet_kernels::hybrid_linear", _fake_hybrid_linear, lib=library)
    _library = library


def _hybrid_linear(
    x: Any,
    weight: Any,
    weight_scale: Any,
    weight_global_scale: Any,
    input_global_scale_inv: Any,
    alpha: Any,
    bias: Any,
    output_size: int,
    input_size: int,
    upstream: str,
) -> Any:
    """Multiply by an NVFP4 weight in CUTLASS layout: W4A16 for at most MAX_TOKENS rows of x, else vLLM's W4A4.

    :param x: bfloat16 [..., K].
    :param weight: uint8 [N or more, K/2]; rows from N on are padding.
    :param weight_scale: float8_e4m3fn, swizzled.
    :param weight_global_scale: float32, 1 element: the factor of the weight.
    :param input_global_scale_inv: for vLLM's kernel, as it has it.
    :param alpha: likewise.
    :param bias: [N] of x's dtype, or None.
    :param output_size: N.
    :param input_size: K.
    :param upstream: name of vLLM's kernel class.
    :returns: [..., N] of x's dtype.
    """
    import torch

    if x.numel() > MAX_TOKENS * input_size:
        base, kernel = _upstream[upstream]
        layer = LayerView(
            weight=weight,
            weight_scale=weight_scale,
            input_global_scale_inv=input_global_scale_inv,
            alpha=alpha,
            output_size_per_partition=output_size,
            input_size_per_partition=input_size,
        )
        return base.apply_weights(kernel, layer, x, bias)
    y = torch.ops.sparkfleet_kernels.nvfp4_gemm_a16(
        _rows(x.reshape(-1, input_size)),
        weight[:output_size],
        weight_scale.view(torch.uint8),
        weight_global_scale.reshape(1),
    )
    if bias is not None:
        y = y + bias
    return y.view(*x.shape[:-1], output_size)


def _fake_hybrid_linear(
    x: Any,
    weight: Any,
    weight_scale: Any,
    weight_global_scale: Any,
    input_global_scale_inv: Any,
    alpha: Any,
    bias: Any,
    output_size: int,
    input_size: int,
    upstream: str,
) -> Any:
    return x.new_empty((*x.shape[:-1], output_size))


def _rows(x: Any) -> Any:
    """Return x as the kernels take it: contiguous and aligned. Parts of a larger tensor may be neither."""
    x = x.contiguous()
    return x.clone() if x.data_ptr() % 16 else x


def hybrid_linear_kernel(base: Any) -> Any:
    """Return a subclass of one of vLLM's W4A4 linear kernels that multiplies few tokens by W4A16."""

    class Hybrid(base):  # type: ignore[misc]
        def __init__(self, config: Any) -> None:
            super().__init__(config)
            _upstream[base.__name__] = (base, self)

        def input_quant_key(self) -> None:
            """Activations have to come unquantized: how many there are is not known where they are made."""
            return None

        @classmethod
        def is_supported(cls, compute_capability: int | None = None) -> tuple[bool, str | None]:
            from vllm import envs

            if base.__name__ in envs.VLLM_DISABLED_KERNELS:
                return False, f"{base.__name__}, which it needs, is disabled by environment variable"
            supported: tuple[bool, str | None] = super().is_supported(compute_capability)
            return supported

        def process_weights_after_loading(self, layer: Any) -> None:
            super().process_weights_after_loading(layer)
            reason = linear_reason(layer)
            if reason is not None:
                _say_once(f"a linear layer stays with {base.__name__}: {reason}")
            layer.sparkfleet_hybrid = reason is None

        def apply_weights(self, layer: Any, x: Any, bias: Any = None) -> Any:
            import torch

            if (
                not getattr(layer, "sparkfleet_hybrid", False)
                or x.dtype != torch.bfloat16
                or (bias is not None and bias.dtype != x.dtype)
            ):
                return base.apply_weights(self, layer, x, bias)
            return torch.ops.sparkfleet_kernels.hybrid_linear(
                x,
                layer.weight,
                layer.weight_scale,
                layer.weight_global_scale,
                layer.input_global_scale_inv,
                layer.alpha,
                bias,
                layer.output_size_per_partition,
                layer.input_size_per_partition,
                base.__name__,
            )

    Hybrid.__name__ = Hybrid.__qualname__ = f"Sparkfleet{base.__name__}"
    return Hybrid


def linear_reason(layer: Any) -> str | None:
    """Return why a loaded layer cannot use the kernels, or None if it can."""
    import torch

    if missing := [name for name in (*LAYER_ATTRIBUTES, "weight_global_scale") if not hasattr(layer, name)]:
        return f"it has no {', '.join(missing)}"
    n, k, scale = layer.output_size_per_partition, layer.input_size_per_partition, layer.weight_global_scale
    if scale.numel() != 1 or scale.dtype != torch.float32:
        return f"its weight_global_scale is {scale.dtype} {list(scale.shape)}, expected one float32"
    if k % K_MULTIPLE:
        return f"its input size {k} is no multiple of {K_MULTIPLE}"
    if reason := _matrix_reason(layer.weight, layer.weight_scale, n, k):
        return reason
    # So that a vLLM which keeps another factor in weight_global_scale gives no wrong numbers.
    if not _close(layer.alpha * layer.input_global_scale_inv, scale):
        return "its alpha is not the product of the global scales of weight and input"
    return None


def _matrix_reason(weight: Any, scale: Any, n: int, k: int) -> str | None:
    """Return why packed weights, perhaps one for each expert, and their scales are not as the kernels take them."""
    import torch

    if weight.dtype != torch.uint8 or weight.shape[-2] < n or weight.shape[-1] != k // 2 or not weight.is_contiguous():
        return f"its weight is {weight.dtype} {list(weight.shape)}, expected at least {n} x {k // 2} bytes"
    shape = (*weight.shape[:-2], -(-n // 128) * 128, k // 16)
    if scale.dtype != torch.float8_e4m3fn or tuple(scale.shape) != shape or not scale.is_contiguous():
        return f"its block scales are {scale.dtype} {list(scale.shape)}, expected {list(shape)}, swizzled"
    return None


def _close(one: Any, other: Any) -> bool:
    import torch

    one, other = one.detach().float().reshape(-1), other.detach().float().reshape(-1)
    return one.shape == other.shape and bool(torch.allclose(one, other, rtol=1e-4, atol=0.0))


# --- experts ------------------------------------------------------------------------------------------------------


def hybrid_experts(base: Any) -> Any:
    """Return a subclass of vLLM's CutlassExpertsFp4 that runs few tokens by W4A16."""

    class Hybrid(base):  # type: ignore[misc]
        @staticmethod
        def is_supported_config(
            kernel: Any, moe_config: Any, weight_key: Any, activation_key: Any, activation_format: Any
        ) -> tuple[bool, str | None]:
            supported, reason = base.is_supported_config(
                kernel, moe_config, weight_key, activation_key, activation_format
            )
            if supported:
                reason = config_reason(moe_config)
                if reason is not None:
                    _say_once(f"experts stay with {base.__name__}: {reason}")
            return supported and reason is None, reason

        @staticmethod
        def _supports_batch_invariance() -> bool:
            return False  # what a token gets depends on how many there are

        def process_weights_after_loading(self, layer: Any) -> None:
            alphas = [layer.w13_weight_scale_2.detach().clone(), layer.w2_weight_scale_2.detach().clone()]
            super().process_weights_after_loading(layer)
            self.sparkfleet_reason = loaded_reason(self, layer, *alphas)
            if self.sparkfleet_reason is not None:
                _say_once(f"experts stay with {base.__name__}: {self.sparkfleet_reason}")
                return
            # When vLLM loads weights anew it may make new experts and sets parameters and buffers of the layer aside;
            # CUDA graphs need the factors where they were.
            held = getattr(layer, "sparkfleet_alphas", None)
            if held is None:
                layer.sparkfleet_alphas = held = tuple(alphas)
            else:
                for old, new in zip(held, alphas, strict=True):
                    old.copy_(new)
            self.sparkfleet_alphas = held

        def apply(
            self,
            output: Any,
            hidden_states: Any,
            w1: Any,
            w2: Any,
            topk_weights: Any,
            topk_ids: Any,
            activation: Any,
            global_num_experts: int,
            expert_map: Any,
            a1q_scale: Any,
            a2_scale: Any,
            workspace13: Any,
            workspace2: Any,
            expert_tokens_meta: Any,
            apply_router_weight_on_input: bool,
        ) -> Any:
            if (
                call_reason(self, output, hidden_states, topk_ids, activation, expert_map, apply_router_weight_on_input)
                is not None
            ):
                return super().apply(
                    output,
                    hidden_states,
                    w1,
                    w2,
                    topk_weights,
                    topk_ids,
                    activation,
                    global_num_experts,
                    expert_map,
                    a1q_scale,
                    a2_scale,
                    workspace13,
                    workspace2,
                    expert_tokens_meta,
                    apply_router_weight_on_input,
                )
            import torch

            w13_alpha, w2_alpha = self.sparkfleet_alphas
            torch.ops.sparkfleet_kernels.nvfp4_moe_a16(
                _rows(hidden_states),
                w1,
                self.w1_scale.view(torch.uint8),
                w13_alpha,
                w2,
                self.w2_scale.view(torch.uint8),
                w2_alpha,
                topk_weights.to(torch.float32).contiguous(),
                topk_ids.to(torch.int32).contiguous(),
                expert_map,
                output,
            )
            return None

    Hybrid.__name__ = Hybrid.__qualname__ = f"Sparkfleet{base.__name__}"
    return Hybrid


def config_reason(config: Any) -> str | None:
    """Return why the experts of a model cannot use the kernels, or None if they can; ``config``: FusedMoEConfig."""
    import torch

    sizes = (config.hidden_dim, config.intermediate_size_per_partition)
    plain = config.swiglu_limit is None and config.swiglu_alpha in (None, 1) and config.swiglu_beta in (None, 0)
    checks = (
        (_is_silu(config.activation), f"their activation is {config.activation}"),
        (plain, "their SwiGLU is clamped or scaled"),
        (config.in_dtype == torch.bfloat16, f"their activations are {config.in_dtype}"),
        (not config.has_bias, "they have biases"),
        (not config.is_lora_enabled, "LoRA is enabled"),
        # It moves experts between ranks, and would not move the factors along.
        (not config.moe_parallel_config.enable_eplb, "expert load balancing is enabled"),
        (not any(size % K_MULTIPLE for size in sizes), f"their sizes {sizes} are no multiples of {K_MULTIPLE}"),
        (config.num_local_experts <= MAX_EXPERTS, f"there are {config.num_local_experts}"),
        (config.experts_per_token <= MAX_TOPK, f"a token has {config.experts_per_token}"),
    )
    return next((reason for holds, reason in checks if not holds), None)


def loaded_reason(experts: Any, layer: Any, w13_alpha: Any, w2_alpha: Any) -> str | None:
    """Return why loaded experts cannot use the kernels, or None if they can.

    :param w13_alpha: what ``layer.w13_weight_scale_2`` was before vLLM folded the input scales in.
    :param w2_alpha: likewise.
    """
    import torch

    w13, w2 = layer.w13_weight, layer.w2_weight
    if w13.dim() != 3 or w2.dim() != 3:
        return f"their weights are {list(w13.shape)} and {list(w2.shape)}"
    count, rows, hidden = w13.shape[0], w13.shape[1], w13.shape[2] * 2
    inner = w2.shape[2] * 2
    if rows != 2 * inner or w2.shape[:2] != (count, hidden) or hidden % K_MULTIPLE or inner % K_MULTIPLE:
        return f"their weights are {list(w13.shape)} and {list(w2.shape)}"
    if experts.w1_bias is not None or experts.w2_bias is not None:
        return "they have biases"
    config = experts.activation_config
    if config.clamp_limit is not None or config.alpha != 1 or config.beta != 0:
        return "their SwiGLU is clamped or scaled"
    for weight, scale, n, k in ((w13, experts.w1_scale, rows, hidden), (w2, experts.w2_scale, hidden, inner)):
        if reason := _matrix_reason(weight, scale, n, k):
            return reason
    for alpha, name in ((w13_alpha, "w13"), (w2_alpha, "w2")):
        if tuple(alpha.shape) != (count,) or alpha.dtype != torch.float32:
            return f"their {name}_weight_scale_2 is {alpha.dtype} {list(alpha.shape)}"
        # So that a vLLM which folds the input scales in elsewhere gives no wrong numbers.
        if not _close(getattr(layer, f"{name}_weight_scale_2"), alpha * getattr(layer, f"{name}_input_scale")):
            return f"their {name}_weight_scale_2 is not the product of the global scales of weight and input"
    return None


def call_reason(
    experts: Any,
    output: Any,
    hidden_states: Any,
    topk_ids: Any,
    activation: Any,
    expert_map: Any,
    apply_router_weight_on_input: bool,
) -> str | None:
    """Return why one call is for vLLM's kernels, or None if it is for these."""
    import torch

    if hidden_states.shape[0] > MAX_TOKENS:
        return "too many tokens"
    if getattr(experts, "sparkfleet_reason", "its weights are not loaded") is not None:
        return "the experts stay with vLLM"
    if not _is_silu(activation):
        return "another activation"
    if apply_router_weight_on_input:
        return "the router's weights belong to the input"
    if getattr(experts, "_lora_context", None) is not None:
        return "LoRA"
    if hidden_states.dtype != torch.bfloat16 or output.dtype != torch.bfloat16:
        return "not bfloat16"
    if (
        hidden_states.dim() != 2
        or output.shape != hidden_states.shape
        or not output.is_contiguous()
        or output.data_ptr() % 16
    ):
        return "the output is no plain matrix"
    if topk_ids.shape[1] > MAX_TOPK:
        return "too many experts for a token"
    if expert_map is not None and (expert_map.dtype != torch.int32 or expert_map.dim() != 1):
        return "the expert map is no int32 vector"
    return None


def _is_silu(activation: Any) -> bool:
    """Tell whether an activation is vLLM's gated SiLU."""
    return getattr(activation, "name", None) == "SILU"
