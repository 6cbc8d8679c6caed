# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Predicates and transforms for vLLM's Python files: each finds its place by the syntax tree."""

from __future__ import annotations

import ast

from . import _edit
from ._core import NEEDED, NOT_APPLICABLE, UNKNOWN, UPSTREAMED, Finding, PatchError, Tree

LAYERS = "vllm/model_executor/layers"
MODELS = "vllm/model_executor/models"

FLA_UTILS = (f"{LAYERS}/fla/ops/utils.py", "vllm/third_party/flash_linear_attention/ops/utils.py")
WEIGHTS = ("vllm/model_executor/model_loader/weight_utils.py",)
ROPE = (f"{MODELS}/minimax_m2.py", f"{LAYERS}/rotary_embedding/__init__.py")
NEXT_MTP = (f"{MODELS}/qwen3_next_mtp.py",)
NEXT = f"{MODELS}/qwen3_next.py"
FIVE_MTP = (f"{MODELS}/qwen3_5_mtp.py",)
QKVZ = (
    f"{LAYERS}/mamba/gdn/qwen_gdn_linear_attn.py",
    f"{LAYERS}/mamba/gdn_linear_attn.py",
    NEXT,
)
EMULATION = (
    "vllm/model_executor/kernels/linear/nvfp4/emulation.py",
    f"{LAYERS}/quantization/utils/nvfp4_utils.py",
    f"{LAYERS}/quantization/compressed_tensors/schemes/compressed_tensors_w4a4_nvfp4.py",
)
MOE_ORACLE = (f"{LAYERS}/fused_moe/oracle/nvfp4.py",)
MOE_BEFORE_ORACLE = f"{LAYERS}/quantization/utils/nvfp4_moe_support.py"


def missing(paths: tuple[str, ...]) -> Finding:
    """Return the finding for a file that is at none of its known places: nobody can say what the source needs."""
    return Finding(UNKNOWN, paths[0], "the file is at none of the places known for it")


def moved(path: str, what: str) -> Finding:
    """Return the finding for a file that lacks what the predicate looks for."""
    return Finding(UNKNOWN, path, f"{what} is not there once, as the catalogue knows it")


# --- Triton's allocator: flash linear attention must not take TMA by itself -----------------------------------------


def fla_tma(tree: Tree) -> Finding:
    """Needed where FLA's kernels use TMA descriptors on every device since sm_90 without anyone asking for it."""
    path = tree.first(FLA_UTILS)
    if path is None:
        return missing(FLA_UTILS)
    found = _edit.assignments(_edit.parse(path, tree.read(path)), "is_tma_supported")
    if len(found) != 1:
        return moved(path, "is_tma_supported")
    value = ast.unparse(found[0].value)
    if "FLA_USE_TMA" in value:
        return Finding(UPSTREAMED, path, f"line {found[0].lineno}: TMA only with FLA_USE_TMA=1")
    if "get_device_capability" not in value:
        return moved(path, "the capability in is_tma_supported")
    return Finding(NEEDED, path, f"line {found[0].lineno}: TMA on every device since sm_90, and no allocator is set")


def use_fla_tma_on_request(tree: Tree, found: Finding) -> None:
    """Ask for FLA_USE_TMA=1 before anything else in the expression."""
    text = tree.read(found.file)
    module = _edit.parse(found.file, text)
    value = _edit.assignments(module, "is_tma_supported")[0].value
    system = "os" if _edit.imports(module, "os") else '__import__("os")'
    old = ast.get_source_segment(text, value)
    new = f'{system}.environ.get("FLA_USE_TMA", "0") == "1" and ({old})'
    # The value may be in parentheses over several lines or not; a pair of our own holds for both.
    tree.change(found.file, _edit.replaced(found.file, text, value, f"({new})"))


# --- fastsafetensors on several nodes -------------------------------------------------------------------------------


def _weights(tree: Tree) -> tuple[str, ast.FunctionDef | None]:
    text = tree.read(WEIGHTS[0])
    return text, _edit.function(_edit.parse(WEIGHTS[0], text), "fastsafetensors_weights_iterator")


def fastsafetensors_device(tree: Tree) -> Finding:
    """Needed where the loader takes the rank in the whole group as the number of the GPU in its node."""
    if not tree.exists(WEIGHTS[0]):
        return missing(WEIGHTS)
    iterator = _weights(tree)[1]
    found = _edit.assignments(iterator, "device") if iterator else []
    if len(found) != 1:
        return moved(WEIGHTS[0], "device in fastsafetensors_weights_iterator")
    value = ast.unparse(found[0].value)
    if "current_device()" in value and "rank()" not in value:
        return Finding(UPSTREAMED, WEIGHTS[0], f"line {found[0].lineno}: the process's own device")
    if "pg.rank()" not in value:
        return moved(WEIGHTS[0], "the device's number in fastsafetensors_weights_iterator")
    return Finding(NEEDED, WEIGHTS[0], f"line {found[0].lineno}: cuda:<rank of all nodes>, and a Spark only has cuda:0")


def use_own_device(tree: Tree, found: Finding) -> None:
    """Load to the device that the worker has set for its process."""
    text, iterator = _weights(tree)
    assert iterator is not None
    value = _edit.assignments(iterator, "device")[0].value
    new = 'torch.device("cuda", torch.cuda.current_device())'
    tree.change(found.file, _edit.replaced(found.file, text, value, new))


def fastsafetensors_order(tree: Tree) -> Finding:
    """Needed where the files are dealt to the ranks in the order that each node's file system gives."""
    if not tree.exists(WEIGHTS[0]):
        return missing(WEIGHTS)
    iterator = _weights(tree)[1]
    if iterator is None:
        return moved(WEIGHTS[0], "fastsafetensors_weights_iterator")
    for one in _edit.assignments(iterator, "hf_weights_files"):
        if isinstance(one.value, ast.Call) and ast.unparse(one.value.func) == "sorted":
            return Finding(UPSTREAMED, WEIGHTS[0], f"line {one.lineno}: the files are sorted")
    found = _edit.assignments(iterator, "weight_files_sub_lists")
    if len(found) != 1:
        return moved(WEIGHTS[0], "weight_files_sub_lists in fastsafetensors_weights_iterator")
    return Finding(NEEDED, WEIGHTS[0], f"line {found[0].lineno}: dealt to the ranks in the order of the file system")


def sort_files(tree: Tree, found: Finding) -> None:
    """Sort before the files are dealt: they lie in one directory, so the names decide."""
    text, iterator = _weights(tree)
    assert iterator is not None
    before = _edit.assignments(iterator, "weight_files_sub_lists")[0]
    new = "hf_weights_files = sorted(hf_weights_files)"
    tree.change(found.file, _edit.inserted(found.file, text, before, new))


# --- MiniMax-M2's rotary embedding ----------------------------------------------------------------------------------


def minimax_rope(tree: Tree) -> Finding:
    """Needed where MiniMax-M2 hands over a scaled dimension that get_rope scales once more."""
    model, rope = ROPE
    if not tree.exists(model) or not tree.exists(rope):
        return missing(ROPE)
    given = _edit.calls(_edit.parse(model, tree.read(model)), "get_rope")
    taken = _edit.function(_edit.parse(rope, tree.read(rope)), "get_rope")
    if len(given) != 1 or taken is None:
        return moved(model, "get_rope")
    names = [argument.arg for argument in (*taken.args.args, *taken.args.kwonlyargs)]
    if "rotary_dim" in names and _edit.keyword(given[0], "rotary_dim"):
        return Finding(NEEDED, model, f"line {given[0].lineno}: rotary_dim is given and scaled again")
    if "rotary_dim" in names or "partial_rotary_factor" not in tree.read(model):
        return moved(model, "the factor of MiniMax-M2's rotary embedding")
    return Finding(UPSTREAMED, model, f"line {given[0].lineno}: get_rope knows only the factor, the model gives it")


# --- Qwen3-Next and Qwen3.5 in NVFP4 --------------------------------------------------------------------------------


def qkvz_prefix(tree: Tree) -> Finding:
    """Needed where create_qkvz_proj appends the layer's name to a prefix that ends in it already."""
    path = tree.first(QKVZ)
    if path is None:
        return missing(QKVZ)
    factory = _edit.function(_edit.parse(path, tree.read(path)), "create_qkvz_proj")
    if factory is None:
        if path == NEXT and "in_proj_qkvz" in tree.read(path):
            return Finding(NOT_APPLICABLE, path, "the projection is made in place; create_qkvz_proj is not there yet")
        return moved(path, "create_qkvz_proj")
    prefixes = _qkvz_prefixes(factory)
    if len(prefixes) != 1:
        return moved(path, "the prefix in create_qkvz_proj")
    if isinstance(prefixes[0], ast.Name):
        return Finding(UPSTREAMED, path, f"line {prefixes[0].lineno}: the prefix is handed on as it is")
    return Finding(NEEDED, path, f"line {prefixes[0].lineno}: the name is appended twice")


def _qkvz_prefixes(factory: ast.FunctionDef) -> list[ast.expr]:
    calls = [node for node in ast.walk(factory) if isinstance(node, ast.Call)]
    return [given.value for call in calls if (given := _edit.keyword(call, "prefix"))]


def keep_prefix(tree: Tree, found: Finding) -> None:
    """Hand the prefix on as it came."""
    text = tree.read(found.file)
    factory = _edit.function(_edit.parse(found.file, text), "create_qkvz_proj")
    assert factory is not None
    tree.change(found.file, _edit.replaced(found.file, text, _qkvz_prefixes(factory)[0], "prefix"))


def _mtp_quantization(tree: Tree, path: str) -> ast.expr | None:
    """Return what an MTP head's first layer is quantized by."""
    found = _edit.assignments(_edit.parse(path, tree.read(path)), "self.fc")
    if len(found) != 1 or not isinstance(found[0].value, ast.Call):
        return None
    given = _edit.keyword(found[0].value, "quant_config")
    return given.value if given else None


def _mtp(tree: Tree, path: str) -> Finding:
    value = _mtp_quantization(tree, path)
    if value is None:
        return moved(path, "quant_config of self.fc")
    if isinstance(value, ast.Name) and value.id == "quant_config":
        return Finding(NEEDED, path, f"line {value.lineno}: fc is made NVFP4; the checkpoint has it in BF16")
    return Finding(UPSTREAMED, path, f"line {value.lineno}: fc stays unquantized under NVFP4")


def next_mtp(tree: Tree) -> Finding:
    """Needed where Qwen3-Next's MTP head quantizes its fc like the rest."""
    return _mtp(tree, NEXT_MTP[0]) if tree.exists(NEXT_MTP[0]) else missing(NEXT_MTP)


def five_mtp(tree: Tree) -> Finding:
    """Needed where Qwen3.5's MTP head quantizes its fc like the rest."""
    if tree.exists(FIVE_MTP[0]):
        return _mtp(tree, FIVE_MTP[0])
    if not tree.exists(f"{MODELS}/qwen3_5.py"):
        return Finding(NOT_APPLICABLE, FIVE_MTP[0], "the model is not there yet")
    return missing(FIVE_MTP)


def leave_fc_unquantized(tree: Tree, found: Finding) -> None:
    """Quantize fc only where the checkpoint is no ModelOpt NVFP4 one."""
    value = _mtp_quantization(tree, found.file)
    assert value is not None
    new = 'None if quant_config is not None and quant_config.get_name() == "modelopt_fp4" else quant_config'
    tree.change(found.file, _edit.replaced(found.file, tree.read(found.file), value, f"({new})"))


# --- NVFP4's emulation and its MoE on FlashInfer --------------------------------------------------------------------


def emulation_scales(tree: Tree) -> Finding:
    """Needed where the emulation takes linear scales for swizzled ones and divides by a scale that multiplies."""
    _kernel, shared, scheme = EMULATION
    path = tree.first(EMULATION)
    if path is None:
        return missing(EMULATION)
    text = tree.read(path)
    if path == shared and "run_nvfp4_emulations" not in text and tree.exists(scheme):
        path, text = scheme, tree.read(scheme)
    found = _edit.calls(_edit.parse(path, text), "run_nvfp4_emulations")
    if len(found) != 1:
        return moved(path, "the call of run_nvfp4_emulations")
    line = found[0].lineno
    if path == scheme and "swizzle_blockscale(layer.weight_scale)" in text:
        return Finding(NOT_APPLICABLE, path, f"line {line}: the scheme swizzles the scales itself; not broken yet")
    swizzle, scale = _edit.keyword(found[0], "swizzle"), _edit.keyword(found[0], "weight_scale_swizzled")
    if swizzle is not None and ast.unparse(swizzle.value) == "False":
        return Finding(UPSTREAMED, path, f"line {line}: the scales are taken as linear")
    if scale is not None and ast.unparse(scale.value) == "swizzle_blockscale(weight_scale)":
        return Finding(UPSTREAMED, path, f"line {line}: the scales are swizzled first")
    if path != shared or scale is None or ast.unparse(scale.value) != "weight_scale":
        return moved(path, "the scales of run_nvfp4_emulations")
    return Finding(NEEDED, path, f"line {line}: linear scales are read as swizzled ones")


def give_emulation_its_scales(tree: Tree, found: Finding) -> None:
    """Hand over what run_nvfp4_emulations takes: swizzled block scales, and the global scale that divides."""
    for name, new in (
        ("weight_scale_swizzled", "swizzle_blockscale(weight_scale)"),
        ("weight_global_scale", "1.0 / weight_global_scale"),
    ):
        text = tree.read(found.file)
        given = _edit.keyword(_edit.calls(_edit.parse(found.file, text), "run_nvfp4_emulations")[0], name)
        if given is None or not _edit.function(_edit.parse(found.file, text), "swizzle_blockscale"):
            raise PatchError(f"{found.file}: no {name} in the call, or no swizzle_blockscale")
        tree.change(found.file, _edit.replaced(found.file, text, given.value, new))


def moe_class(tree: Tree) -> Finding:
    """Needed where choosing FlashInfer's NVFP4 MoE loses the class of the kernels that were found to fit."""
    path = MOE_ORACLE[0]
    if not tree.exists(path):
        if tree.exists(MOE_BEFORE_ORACLE):
            return Finding(
                NOT_APPLICABLE, MOE_BEFORE_ORACLE, "the choice is made elsewhere; the oracle is not there yet"
            )
        return missing(MOE_ORACLE)
    chooser = _edit.function(_edit.parse(path, tree.read(path)), "select_nvfp4_moe_backend")
    if chooser is None:
        return moved(path, "select_nvfp4_moe_backend")
    if chooser.returns is not None and "tuple" not in ast.unparse(chooser.returns):
        return Finding(NOT_APPLICABLE, path, f"line {chooser.lineno}: a backend is returned, and no class yet")
    lost = _lost_classes(chooser)
    if len(lost) > 1:
        return moved(path, "the return of FlashInfer's backends")
    if lost:
        return Finding(NEEDED, path, f"line {lost[0].lineno}: the class is found and None is returned")
    return Finding(UPSTREAMED, path, f"line {chooser.lineno}: every branch returns the class")


def _lost_classes(chooser: ast.FunctionDef) -> list[ast.expr]:
    """Return each None that a loop over backends returns beside the backend."""
    loops = [node for node in ast.walk(chooser) if isinstance(node, ast.For)]
    returns = [node.value for loop in loops for node in ast.walk(loop) if isinstance(node, ast.Return)]
    pairs = [value.elts for value in returns if isinstance(value, ast.Tuple) and len(value.elts) == 2]
    return [second for _first, second in pairs if isinstance(second, ast.Constant) and second.value is None]


def return_class(tree: Tree, found: Finding) -> None:
    """Return the class that the loop has in its hand."""
    text = tree.read(found.file)
    chooser = _edit.function(_edit.parse(found.file, text), "select_nvfp4_moe_backend")
    assert chooser is not None
    tree.change(found.file, _edit.replaced(found.file, text, _lost_classes(chooser)[0], "k_cls"))
