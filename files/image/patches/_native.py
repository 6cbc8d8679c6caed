# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Predicates and transforms for vLLM's CUDA sources and CMake files: each finds its place by an anchor."""

from __future__ import annotations

import re

from . import _edit
from ._core import NEEDED, NOT_APPLICABLE, REFUTED, UNKNOWN, UPSTREAMED, Finding, PatchError, Tree

GB10 = 121
CMAKE = "CMakeLists.txt"
UTILS = "cmake/utils.cmake"


def places(name: str) -> tuple[str, ...]:
    """Return where a CUDA source may be: it went to csrc/libtorch_stable and came back."""
    return (f"csrc/quantization/{name}", f"csrc/libtorch_stable/quantization/{name}")


SCALED_MM = places("w8a8/cutlass/scaled_mm_entry.cu")
FP4_MM = places("fp4/nvfp4_scaled_mm_entry.cu")
FP4_QUANT = places("fp4/nvfp4_quant_entry.cu")
FP4_MOE = places("fp4/nvfp4_blockwise_moe_kernel.cu")
FP4_UTILS = (*places("fp4/nvfp4_utils.cuh"), "csrc/libtorch_stable/nvfp4_utils.cuh", "csrc/nvfp4_utils.cuh")

FP8_CALL = re.compile(r"if \((version_num[^{}]*?)\) \{\s*cutlass_scaled_mm_sm120\(")
FP4_CALL = re.compile(r"if \((sm [^{}]*?)\) \{\s*cutlass_scaled_fp4_mm_sm120a\(")
MOE_CALL = re.compile(r"if \((version_num[^{}]*?)\) \{\s*run_fp4_blockwise_scaled_group_mm_sm120\(")
FAMILY = ">= 120 && {0} < 130"


def missing(paths: tuple[str, ...]) -> Finding:
    """Return the finding for a file that is at none of its known places."""
    return Finding(UNKNOWN, paths[0], "the file is at none of the places known for it")


# --- dispatchers that have to take capability 121 ------------------------------------------------------------------


def _dispatch(tree: Tree, paths: tuple[str, ...], anchor: re.Pattern[str]) -> Finding:
    """Look at the condition in front of a call of sm_120's kernels."""
    path = tree.first(paths)
    if path is None:
        return missing(paths)
    text = tree.read(path)
    found = list(anchor.finditer(text))
    if len(found) != 1:
        return Finding(UNKNOWN, path, f"the call of sm_120's kernels is there {len(found)} times instead of once")
    line, condition = _edit.line_of(text, found[0].start()), " ".join(found[0][1].split())
    state = UPSTREAMED if _edit.holds(condition, GB10) else NEEDED
    return Finding(state, path, f"line {line}: {condition} {'takes' if state == UPSTREAMED else 'leaves out'} 121")


def _widen(tree: Tree, found: Finding, anchor: re.Pattern[str]) -> None:
    """Let the condition take every capability of the family 12.x."""
    text = tree.read(found.file)
    match = _edit.only(found.file, anchor, text, "the call of sm_120's kernels")
    variable = match[1].split()[0]
    start, end = match.span(1)
    tree.change(found.file, f"{text[:start]}{variable} {FAMILY.format(variable)}{text[end:]}")


def fp8_dispatch(tree: Tree) -> Finding:
    """Needed where FP8's dispatcher has no way for capability 121."""
    return _dispatch(tree, SCALED_MM, FP8_CALL)


def widen_fp8_dispatch(tree: Tree, found: Finding) -> None:
    """Send capability 121 to sm_120's FP8 kernels."""
    _widen(tree, found, FP8_CALL)


def fp4_dispatch(tree: Tree) -> Finding:
    """Needed where NVFP4's dispatcher has no way for capability 121."""
    return _dispatch(tree, FP4_MM, FP4_CALL)


def widen_fp4_dispatch(tree: Tree, found: Finding) -> None:
    """Send capability 121 to sm_120's NVFP4 kernels."""
    _widen(tree, found, FP4_CALL)


def moe_dispatch(tree: Tree) -> Finding:
    """Needed where NVFP4's MoE has no way for capability 121."""
    return _dispatch(tree, FP4_MOE, MOE_CALL)


def widen_moe_dispatch(tree: Tree, found: Finding) -> None:
    """Send capability 121 to sm_120's NVFP4 MoE kernels."""
    _widen(tree, found, MOE_CALL)


# --- what CMake compiles -------------------------------------------------------------------------------------------


def _family(tree: Tree, variables: tuple[str, ...], define: str) -> Finding:
    """Look for the family 12.0f in a list of CMakeLists.txt, and for the define that switches its callers on."""
    text = tree.read(CMAKE)
    lists = [found for variable in variables for found in _edit.arch_lists(text, variable)]
    family = [line for line, archs in lists if archs == ["12.0f"]]
    flag = re.search(rf'list\(APPEND VLLM_GPU_FLAGS "-D{define}=1"\)', text)
    if not any(arch.startswith("12.") for _line, archs in lists for arch in archs):
        return Finding(UNKNOWN, CMAKE, f"no list of {' or '.join(variables)} has an architecture 12.x")
    if not family or flag is None:
        return Finding(NEEDED, CMAKE, f"no list 12.0f for CUDA 13, or no {define}")
    return Finding(UPSTREAMED, CMAKE, f"line {family[0]}: 12.0f with CUDA 13; line {_edit.line_of(text, flag.start())}")


def fp8_archs(tree: Tree) -> Finding:
    """Needed where CUDA 13 does not compile FP8's kernels for the family 12.x."""
    return _family(tree, ("SCALED_MM_ARCHS",), "ENABLE_SCALED_MM_SM120")


def fp4_archs(tree: Tree) -> Finding:
    """Needed where CUDA 13 does not compile NVFP4's kernels for the family 12.x, or not their callers."""
    found = _family(tree, ("FP4_SM120_ARCHS", "FP4_ARCHS"), "ENABLE_NVFP4_SM120")
    path = tree.first(FP4_QUANT)
    if path is None:
        return missing(FP4_QUANT)
    if found.state == UPSTREAMED and "ENABLE_NVFP4_SM120" not in tree.read(path):
        return Finding(NEEDED, path, "the quantizer's entry knows no ENABLE_NVFP4_SM120")
    return found


def dispatcher_flag(tree: Tree) -> Finding:
    """Needed where the define for sm_120 does not reach the file with FP8's dispatcher."""
    text = tree.read(CMAKE)
    define = re.search(r'list\(APPEND VLLM_GPU_FLAGS "-DENABLE_SCALED_MM_SM120=1"\)', text)
    entry = re.search(r'"csrc/\S*/scaled_mm_entry\.cu"', text)
    if entry is None:
        return Finding(UNKNOWN, CMAKE, "scaled_mm_entry.cu is not in the list of sources")
    lists: list[str] = re.findall(r"\((?:APPEND )?(VLLM_(?:STABLE_)?EXT_SRC)\s", text[: entry.start()])
    target = "_C_stable_libtorch" if lists and lists[-1] == "VLLM_STABLE_EXT_SRC" else "_C"
    # Only what is in the flags when the target is defined reaches it.
    flags = re.search(rf"define_extension_target\(\s*{target}\s[^)]*?COMPILE_FLAGS \$\{{VLLM_GPU_FLAGS\}}", text)
    if define is None or flags is None or flags.start() < define.start():
        return Finding(NEEDED, CMAKE, f"the define does not reach {target}")
    line = _edit.line_of(text, flags.end())
    return Finding(UPSTREAMED, CMAKE, f"line {line}: {target} gets the defines, and with it the dispatcher")


def arch_suffix(tree: Tree) -> Finding:
    """Needed where 12.1 is among the supported architectures, yet 12.1a loses its suffix on the way."""
    if not tree.exists(UTILS):
        return missing((UTILS,))
    text = tree.read(UTILS)
    keeps = re.search(r"\[0-9\]\[af\]\?", text)
    archs = _edit.supported(tree.read(CMAKE))
    if archs is None:
        return Finding(UNKNOWN, CMAKE, "no list of supported architectures")
    if keeps:
        return Finding(UPSTREAMED, UTILS, f"line {_edit.line_of(text, keeps.start())}: the suffix is kept")
    if "12.1" in archs[1]:
        return Finding(NEEDED, UTILS, f"12.1a becomes 12.1, which {CMAKE} line {archs[0]} lets through")
    return Finding(NOT_APPLICABLE, CMAKE, f"line {archs[0]}: 12.1 is not in the list, so 12.1a ends as 12.0f anyway")


# --- FP8's grouped GEMM --------------------------------------------------------------------------------------------

PROBE = re.compile(r"bool cutlass_group_gemm_supported\([^)]*\)\s*\{(.*?)\n\}", re.DOTALL)
PROBE_CONDITION = re.compile(r"if \((cuda_device_capability [^)]*)\)")


def group_gemm_probe(tree: Tree) -> Finding:
    """Needed where vLLM says that it has a grouped FP8 GEMM for 12.x, for which none is compiled."""
    path = tree.first(SCALED_MM)
    if path is None:
        return missing(SCALED_MM)
    text = tree.read(path)
    body = _edit.only(path, PROBE, text, "cutlass_group_gemm_supported")
    conditions = [match[1] for match in PROBE_CONDITION.finditer(body[1])]
    line = _edit.line_of(text, body.start())
    if not conditions or not any(_edit.holds(one, 100) for one in conditions):
        return Finding(UNKNOWN, path, f"line {line}: cutlass_group_gemm_supported does not know 10.0")
    if any(_edit.holds(one, GB10) for one in conditions):
        return Finding(NEEDED, path, f"line {line}: says yes for 121, and cutlass_moe_mm has nothing for it")
    return Finding(UPSTREAMED, path, f"line {line}: says no for 121")


def bound_group_gemm_probe(tree: Tree, found: Finding) -> None:
    """Let each condition hold for its own generation only: 9.x, and 10.x to 11.x."""
    text = tree.read(found.file)
    body = _edit.only(found.file, PROBE, text, "cutlass_group_gemm_supported")
    bounds = {"cuda_device_capability >= 100": 120, "cuda_device_capability >= 90": 100}
    new = body[1]
    for condition, bound in bounds.items():
        if new.count(f"({condition})") != 1:
            raise PatchError(f"{found.file}: ({condition}) is not once in cutlass_group_gemm_supported")
        new = new.replace(f"({condition})", f"({condition} && cuda_device_capability < {bound})")
    start, end = body.span(1)
    tree.change(found.file, text[:start] + new + text[end:])


# --- what a source must not carry ----------------------------------------------------------------------------------


def _clean(path: str) -> Finding:
    return Finding(REFUTED, path, "not in this source")


def supported_121(tree: Tree) -> Finding:
    """Carried where the list of supported architectures names 12.1."""
    archs = _edit.supported(tree.read(CMAKE))
    if archs is not None and "12.1" in archs[1]:
        return Finding(REFUTED, CMAKE, f"line {archs[0]}: 12.1 is in CUDA_SUPPORTED_ARCHS", carried=True)
    return _clean(CMAKE)


def software_e2m1(tree: Tree) -> Finding:
    """Carried where the quantizer's header has a way around the hardware's conversion for capability 121."""
    path = tree.first(FP4_UTILS)
    if path is None:
        return _clean("")
    text = tree.read(path)
    if match := re.search(r"__CUDA_ARCH__\s*==\s*1210", text):
        line = _edit.line_of(text, match.start())
        return Finding(REFUTED, path, f"line {line}: E2M1 in software for sm_121", carried=True)
    return _clean(path)


def moe_meta(tree: Tree) -> Finding:
    """Carried where the MoE kernel has a Meta registration."""
    path = tree.first(FP4_MOE)
    if path is not None and "cutlass_fp4_group_mm_meta" in tree.read(path):
        return Finding(REFUTED, path, "cutlass_fp4_group_mm_meta is registered", carried=True)
    return _clean(path or "")


FP8_PYTHON = (
    "vllm/model_executor/layers/quantization/kernels/scaled_mm/cutlass.py",
    "vllm/model_executor/kernels/linear/scaled_mm/cutlass.py",
)


def fp8_off(tree: Tree) -> Finding:
    """Carried where CUTLASS's FP8 refuses capability 121."""
    path = tree.first(FP8_PYTHON)
    if path is not None and re.search(r"compute_capability\s*==\s*121", tree.read(path)):
        return Finding(REFUTED, path, "capability 121 is refused", carried=True)
    return _clean(path or "")


def fp4_shim(tree: Tree) -> Finding:
    """Carried where a source of the FP4 kernels includes seed A's own FP4 types."""
    for path in (CMAKE, *FP4_UTILS, *FP4_MM, *FP4_QUANT, *FP4_MOE):
        if tree.exists(path) and re.search(r"nv_fp4_dummy\.h|nvfp4_types\.cuh", tree.read(path)):
            return Finding(REFUTED, path, "names the FP4 shim", carried=True)
    return _clean("")
