# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the vLLM plugin touches or relies on in vLLM, as one table, and how it is checked and changed.

Most of these names are no public interface of vLLM, so every one is looked at before anything is changed: that it is
there, what parameters it takes, what members it has, and which attributes of a layer it uses. ``Changes`` keeps what is
needed to take every change back.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import textwrap
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

_LINEAR = "vllm.model_executor.kernels.linear"
_MOE = "vllm.model_executor.layers.fused_moe"

#: The W4A4 linear kernels whose weights stay as the checkpoint has them, with swizzled block scales: (module, class).
#: FlashInfer's TRT-LLM, b12x, FBGEMM and Marlin kernels reorder weights or scales in ways of their own.
LINEAR_KERNELS = (
    (f"{_LINEAR}.nvfp4.flashinfer", "FlashInferCutlassNvFp4LinearKernel"),
    (f"{_LINEAR}.nvfp4.flashinfer", "FlashInferB12xNvFp4LinearKernel"),
    (f"{_LINEAR}.nvfp4.flashinfer", "FlashInferCudnnNvFp4LinearKernel"),
    (f"{_LINEAR}.nvfp4.cutlass", "CutlassNvFp4LinearKernel"),
)

#: All that upstream's linear kernels may read of a layer when they multiply; the hybrid operator hands over just these.
LAYER_ATTRIBUTES = (
    "weight",
    "weight_scale",
    "input_global_scale_inv",
    "alpha",
    "output_size_per_partition",
    "input_size_per_partition",
)

#: The parameters of CutlassExpertsFp4.apply, in order.
APPLY_EXPERTS = (
    "self",
    "output",
    "hidden_states",
    "w1",
    "w2",
    "topk_weights",
    "topk_ids",
    "activation",
    "global_num_experts",
    "expert_map",
    "a1q_scale",
    "a2_scale",
    "workspace13",
    "workspace2",
    "expert_tokens_meta",
    "apply_router_weight_on_input",
)


@dataclass(frozen=True)
class Hook:
    """One name in vLLM and what must hold for it; a field that is None is not looked at.

    :ivar module: the module that has the name.
    :ivar attribute: the name in it; dots lead into classes.
    :ivar parameters: the names of its parameters, all of them and in this order.
    :ivar members: keys, enumeration members, fields or attributes that it must have.
    :ivar may_read: attributes of its parameter ``layer`` that its source may use; any other is a mismatch.
    :ivar must_read: attributes of its parameter ``layer`` that its source must use.
    :ivar sets: attributes of its parameter ``self`` that its source must set.
    :ivar inherited: whether a class may have it from a parent; else it must have it itself.
    """

    module: str
    attribute: str
    parameters: tuple[str, ...] | None = None
    members: tuple[str, ...] = ()
    may_read: tuple[str, ...] | None = None
    must_read: tuple[str, ...] = ()
    sets: tuple[str, ...] = ()
    inherited: bool = False

    def __str__(self) -> str:
        return f"{self.module}:{self.attribute}"


def _linear_hooks(module: str, name: str) -> tuple[Hook, ...]:
    return (
        Hook(module, f"{name}.__init__", ("self", "config"), inherited=True),
        Hook(module, f"{name}.input_quant_key", ("self",), inherited=True),
        Hook(module, f"{name}.is_supported", ("compute_capability",)),
        Hook(module, f"{name}.process_weights_after_loading", ("self", "layer")),
        Hook(module, f"{name}.apply_weights", ("self", "layer", "x", "bias"), may_read=LAYER_ATTRIBUTES),
    )


HOOKS: tuple[Hook, ...] = (
    # What is written to: the lists that linear kernels are chosen from, the function that names experts, and the
    # variables that the keys of vLLM's compile cache are made of.
    Hook(_LINEAR, "_POSSIBLE_NVFP4_KERNELS", members=("CUDA",)),
    Hook(_LINEAR, "_LINEAR_BACKEND_KERNEL_MAP", members=("cutlass", "flashinfer_cutlass")),
    Hook(f"{_MOE}.oracle.nvfp4", "backend_to_kernel_cls", ("backend",)),
    Hook("vllm.envs", "environment_variables", members=("VLLM_DISABLED_KERNELS", "VLLM_BATCH_INVARIANT")),
    # What has to go through those.
    Hook(_LINEAR, "init_nvfp4_linear_kernel", ("use_a16",)),
    Hook(f"{_MOE}.oracle.nvfp4", "select_nvfp4_moe_backend", ("config", "weight_key", "activation_key")),
    Hook("vllm.envs", "compile_factors", ()),
    # What is subclassed, called or read.
    *(hook for kernel in LINEAR_KERNELS for hook in _linear_hooks(*kernel)),
    Hook(
        "vllm.model_executor.layers.quantization.utils.nvfp4_utils",
        "nvfp4_weight_padding_bytes",
        ("layer",),
        may_read=LAYER_ATTRIBUTES,
    ),
    Hook(f"{_MOE}.oracle.nvfp4", "NvFp4MoeBackend", members=("VLLM_CUTLASS",)),
    Hook(
        f"{_MOE}.experts.cutlass_moe",
        "CutlassExpertsFp4",
        members=("w1_scale", "w2_scale", "w1_bias", "w2_bias", "_supports_batch_invariance"),
    ),
    Hook(f"{_MOE}.experts.cutlass_moe", "CutlassExpertsFp4.apply", APPLY_EXPERTS),
    # Where the input scales are folded into w13/w2_weight_scale_2: the factors of the weights alone are taken before.
    Hook(
        f"{_MOE}.experts.cutlass_moe",
        "CutlassExpertsFp4.process_weights_after_loading",
        ("self", "layer"),
        must_read=("w13_weight_scale_2", "w13_input_scale", "w2_weight_scale_2", "w2_input_scale"),
    ),
    Hook(
        f"{_MOE}.experts.cutlass_moe",
        "CutlassExpertsFp4.is_supported_config",
        ("cls", "moe_config", "weight_key", "activation_key", "activation_format"),
        inherited=True,
    ),
    Hook(f"{_MOE}.modular_kernel", "FusedMoEExperts.__init__", sets=("activation_config",)),
    Hook(f"{_MOE}.activation", "MoEActivation", members=("SILU",)),
    Hook(f"{_MOE}.activation", "ApplyMoEActivationConfig", members=("clamp_limit", "alpha", "beta")),
    Hook(
        f"{_MOE}.config",
        "FusedMoEConfig",
        members=(
            "activation",
            "experts_per_token",
            "has_bias",
            "hidden_dim",
            "in_dtype",
            "intermediate_size_per_partition",
            "is_lora_enabled",
            "moe_parallel_config",
            "num_local_experts",
            "swiglu_alpha",
            "swiglu_beta",
            "swiglu_limit",
        ),
    ),
    Hook(f"{_MOE}.config", "FusedMoEParallelConfig", members=("enable_eplb",)),
)


def resolve(hook: Hook) -> Any:
    """Return what a hook names.

    :raises ImportError: its module cannot be imported.
    :raises AttributeError: the name is not there, or only a parent class has it.
    """
    value: Any = importlib.import_module(hook.module)
    for part in hook.attribute.split("."):
        owner, value = value, getattr(value, part)
    if isinstance(owner, type) and not hook.inherited and part not in vars(owner):
        raise AttributeError(f"{owner.__name__} has no {part} of its own")
    return value


def mismatch(hook: Hook) -> str | None:
    """Return how vLLM differs from what a hook expects ("NAME: expected this, found that"), or None if it does not."""
    try:
        value = resolve(hook)
    except Exception as error:  # an import can raise anything
        return f"{hook}: expected to be there, found {type(error).__name__}: {error}"
    try:
        difference = _difference(hook, value)
    except (OSError, SyntaxError, TypeError, ValueError) as error:
        return f"{hook}: expected a function with its source, found {type(error).__name__}: {error}"
    return None if difference is None else f"{hook}: {difference}"


def _difference(hook: Hook, value: Any) -> str | None:
    if hook.parameters is not None:
        found = tuple(inspect.signature(value).parameters)
        if found != hook.parameters:
            return f"expected the parameters ({', '.join(hook.parameters)}), found ({', '.join(found)})"
    if missing := [member for member in hook.members if not _has(value, member)]:
        return f"expected {', '.join(hook.members)}, found no {', '.join(missing)}"
    if hook.may_read is not None:
        found_names = attributes_of(value, "layer")
        if more := sorted(found_names - set(hook.may_read)):
            return f"expected to read only {', '.join(hook.may_read)} of a layer, found {', '.join(more)}"
    for parameter, wanted, what in (("layer", hook.must_read, "use"), ("self", hook.sets, "set")):
        if wanted:
            found_names = attributes_of(value, parameter, stored=what == "set")
            if less := [name for name in wanted if name not in found_names]:
                return f"expected to {what} {', '.join(wanted)} of {parameter}, found no {', '.join(less)}"
    return None


def _has(value: Any, member: str) -> bool:
    if isinstance(value, Mapping):
        return any(getattr(key, "name", key) == member for key in value)
    return member in getattr(value, "__dataclass_fields__", ()) or hasattr(value, member)


def attributes_of(function: Callable[..., Any], parameter: str, stored: bool = False) -> set[str]:
    """Return the names of the attributes that a function's source uses of one of its parameters.

    :param stored: only attributes that are assigned to.
    :raises OSError: the source is not there.
    """
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    return {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == parameter
        and (not stored or isinstance(node.ctx, ast.Store))
    }


def mismatches(hooks: Iterable[Hook] = HOOKS) -> list[str]:
    """Return every way in which vLLM differs from the table."""
    return [text for text in map(mismatch, hooks) if text is not None]


class Changes:
    """Changes to objects of vLLM, each with the way back."""

    def __init__(self) -> None:
        self._undo: list[Callable[[], None]] = []

    def insert_before(self, items: list[Any], anchor: Any, new: Any) -> None:
        """Put ``new`` into a list directly before ``anchor``.

        :raises ValueError: anchor is not in the list.
        """
        items.insert(items.index(anchor), new)
        self._undo.append(lambda: items.remove(new))

    def add(self, items: set[Any], new: Any) -> None:
        """Add to a set what is not in it."""
        items.add(new)
        self._undo.append(lambda: items.discard(new))

    def put(self, items: dict[str, Any], key: str, value: Any) -> None:
        """Add a key to a dictionary.

        :raises KeyError: it is there already.
        """
        if key in items:
            raise KeyError(key)
        items[key] = value
        self._undo.append(lambda: items.pop(key, None))

    def assign(self, owner: Any, name: str, value: Any) -> None:
        """Replace an attribute."""
        before = getattr(owner, name)
        setattr(owner, name, value)
        self._undo.append(lambda: setattr(owner, name, before))

    def undo(self) -> None:
        """Take back all changes, the last first."""
        while self._undo:
            self._undo.pop()()
