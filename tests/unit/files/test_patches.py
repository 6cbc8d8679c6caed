# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The patch catalogue on small trees written for these tests; tests/patches has vLLM's real sources."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

CHECKOUT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(CHECKOUT / "files" / "image"))
sys.path.insert(0, str(CHECKOUT / "docs"))

import patch_table  # noqa: E402
from patches import __main__ as command  # noqa: E402
from patches import _core, _edit, _native, _python, catalogue  # noqa: E402

CMAKE = """
set(CUDA_SUPPORTED_ARCHS "9.0;12.0")
set(VLLM_EXT_SRC "csrc/a.cu")
list(APPEND VLLM_EXT_SRC
  "csrc/quantization/w8a8/cutlass/scaled_mm_entry.cu")
cuda_archs_loose_intersection(SCALED_MM_ARCHS "12.0f" "${CUDA_ARCHS}")
list(APPEND VLLM_GPU_FLAGS "-DENABLE_SCALED_MM_SM120=1")
cuda_archs_loose_intersection(FP4_ARCHS "12.0f" "${CUDA_ARCHS}")
list(APPEND VLLM_GPU_FLAGS "-DENABLE_NVFP4_SM120=1")
define_extension_target(
  _C
  COMPILE_FLAGS ${VLLM_GPU_FLAGS})
"""
SCALED_MM = """
void cutlass_scaled_mm() {
  if (version_num >= 120) {
    cutlass_scaled_mm_sm120();
  }
}
bool cutlass_group_gemm_supported(int64_t cuda_device_capability) {
  if (cuda_device_capability >= 100 && cuda_device_capability < 120) {
    return true;
  }
  return false;
}
"""
WEIGHTS = """
import os
import torch

def fastsafetensors_weights_iterator(hf_weights_files, pg):
    device = torch.device(f"cuda:{current_platform.current_device()}")
    hf_weights_files = sorted(hf_weights_files)
    weight_files_sub_lists = [hf_weights_files[i : i + pg.size()] for i in range(0, len(hf_weights_files), pg.size())]
    return device, weight_files_sub_lists
"""
MTP = """
class Predictor:
    def __init__(self, quant_config):
        fc_quant = None
        self.fc = Linear(8, quant_config=fc_quant, prefix="fc")
"""
ORACLE = """
def select_nvfp4_moe_backend(backends) -> tuple[str, type | None]:
    for backend in backends:
        k_cls = backends[backend]
        if k_cls:
            return backend, k_cls
    raise NotImplementedError
"""
HEALTHY: dict[str, str] = {
    "vllm/__init__.py": "",
    _native.CMAKE: CMAKE,
    _native.UTILS: 'string(REGEX REPLACE "([0-9]+)([0-9][af]?)" "" OUT IN)\n',
    _native.SCALED_MM[0]: SCALED_MM,
    _native.FP4_MM[0]: "if (sm >= 120 && sm < 130) {\n  cutlass_scaled_fp4_mm_sm120a(D);\n}\n",
    _native.FP4_QUANT[0]: "#if ENABLE_NVFP4_SM120\n",
    _native.FP4_MOE[0]: "if (version_num >= 120 &&\n  version_num < 130) {\n"
    "  run_fp4_blockwise_scaled_group_mm_sm120(D);\n}\n",
    _python.FLA_UTILS[0]: 'import os\nis_tma_supported = os.getenv("FLA_USE_TMA") == "1"\n',
    _python.WEIGHTS[0]: WEIGHTS,
    _python.ROPE[0]: 'rope["partial_rotary_factor"] = 0.5\nemb = get_rope(64, rope)\n',
    _python.ROPE[1]: "def get_rope(head_size, rope_parameters): ...\n",
    _python.QKVZ[0]: "def create_qkvz_proj(size, prefix):\n    return Linear(size, prefix=prefix)\n",
    _python.NEXT_MTP[0]: MTP,
    _python.FIVE_MTP[0]: MTP,
    _python.EMULATION[0]: "out = run_nvfp4_emulations(x=x, weight_scale_swizzled=scale, swizzle=False)\n",
    _python.MOE_ORACLE[0]: ORACLE,
}


def tree(root: Path, changes: Mapping[str, str | None] | None = None) -> Path:
    """Write the tree that needs nothing, with other files where a test gives them; None leaves one out."""
    for path, text in {**HEALTHY, **(changes or {})}.items():
        if text is not None:
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_text(text, encoding="utf-8")
    return root


def texts(root: Path) -> dict[str, str]:
    """Return every file of a tree."""
    return {str(path.relative_to(root)): path.read_text("utf-8") for path in root.rglob("*") if path.is_file()}


def apply(root: Path, *skip: str) -> list[str]:
    """Apply what is needed; return the ids."""
    return [patch.id for patch in _core.apply(catalogue.PATCHES, _core.Tree(root), skip).applied]


def state(root: Path, name: str) -> str:
    """Return an entry's state in a tree."""
    entries = _core.status(catalogue.PATCHES, _core.Tree(root))
    return next(one.finding.state for one in entries if one.patch.id == name)


def execute(root: Path, path: str, **given: Any) -> dict[str, Any]:
    """Run a tree's Python file with what its imports would bring; return its names."""
    text = "\n".join(line for line in (root / path).read_text("utf-8").splitlines() if line != "import torch")
    names = dict(given)
    exec(compile(text, path, "exec"), names)
    return names


# --- the catalogue -------------------------------------------------------------------------------------------------


def test_ids_are_unique_and_every_entry_says_all() -> None:
    assert len({patch.id for patch in catalogue.PATCHES}) == len(catalogue.PATCHES)
    for patch in catalogue.PATCHES:
        assert patch.title and patch.why and patch.origin and patch.range, patch.id
        assert bool(patch.refuted) != bool(patch.inspect and not patch.refuted), patch.id
        assert not (patch.refuted and patch.transform), patch.id
        assert not patch.inspect or patch.paths, patch.id


def test_a_healthy_source_needs_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = texts(tree(tmp_path))
    assert apply(tmp_path) == []
    assert texts(tmp_path) == before
    assert command.main(["status", "--source", str(tmp_path)]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("0 needed, 17 upstreamed, 16 refuted")


def test_of_an_installed_vllm_only_the_python_files_count(tmp_path: Path) -> None:
    installed = {path: None for path in HEALTHY if path.startswith(("csrc", "cmake", "CMake"))}
    root = tree(tmp_path, {**installed, _python.NEXT_MTP[0]: MTP.replace("=fc_quant", "=quant_config")})
    assert state(root, "nvfp4-archs") == _core.NOT_APPLICABLE
    assert apply(root) == ["qwen3-next-mtp-fc"]


def test_a_directory_without_vllm_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["status", "--source", str(tmp_path)]) == 1
    assert capsys.readouterr().err == (
        f"patches: {tmp_path}: no vllm/__init__.py; give the root of vLLM's source or a site-packages directory\n"
    )


# --- each transform ------------------------------------------------------------------------------------------------

BROKEN: dict[str, tuple[str, str]] = {
    "fp8-dispatch": (_native.SCALED_MM[0], SCALED_MM.replace("version_num >= 120", "version_num == 120")),
    "nvfp4-dispatch": (_native.FP4_MM[0], "if (sm == 120) {\n  cutlass_scaled_fp4_mm_sm120a(D);\n}\n"),
    "nvfp4-moe-dispatch": (
        _native.FP4_MOE[0],
        "if (version_num == 120) {\n  run_fp4_blockwise_scaled_group_mm_sm120(D);\n}\n",
    ),
    "fp8-group-gemm-probe": (
        _native.SCALED_MM[0],
        SCALED_MM.replace(
            "if (cuda_device_capability >= 100 && cuda_device_capability < 120) {\n    return true;",
            "if (cuda_device_capability >= 100) {\n    return true;\n  }\n  if (cuda_device_capability >= 90) {\n"
            "    return true;",
        ),
    ),
    "fla-tma-on-request": (
        _python.FLA_UTILS[0],
        "import os\nis_tma_supported = (get_device_capability() >= 9) and (\n    nvidia\n    or amd\n)\n",
    ),
    "fastsafetensors-device": (
        _python.WEIGHTS[0],
        WEIGHTS.replace("{current_platform.current_device()}", "{pg.rank()}"),
    ),
    "fastsafetensors-order": (
        _python.WEIGHTS[0],
        WEIGHTS.replace("    hf_weights_files = sorted(hf_weights_files)\n", ""),
    ),
    "qwen3-next-qkvz-prefix": (
        _python.QKVZ[0],
        'def create_qkvz_proj(size, prefix):\n    return Linear(size, prefix=f"{prefix}.in_proj_qkvz")\n',
    ),
    "qwen3-next-mtp-fc": (_python.NEXT_MTP[0], MTP.replace("=fc_quant", "=quant_config")),
    "qwen3-5-mtp-fc": (_python.FIVE_MTP[0], MTP.replace("=fc_quant", "=quant_config")),
    "nvfp4-emulation-scales": (
        _python.EMULATION[1],
        "def swizzle_blockscale(scale):\n    return ('swizzled', scale)\n\n"
        "def apply(weight_scale, weight_global_scale):\n"
        "    return run_nvfp4_emulations(\n        weight_scale_swizzled=weight_scale,\n"
        "        weight_global_scale=weight_global_scale,\n    )\n",
    ),
    "nvfp4-moe-class": (_python.MOE_ORACLE[0], ORACLE.replace("return backend, k_cls", "return backend, None")),
}


def broken(root: Path, name: str) -> Path:
    """Write a tree with one entry's fault."""
    path, text = BROKEN[name]
    assert text != HEALTHY.get(path), f"the excerpt of {name} has no fault"
    first: dict[str, str | None] = {_python.EMULATION[0]: None} if path == _python.EMULATION[1] else {}
    return tree(root, {**first, path: text})


def test_every_transform_has_an_excerpt() -> None:
    assert set(BROKEN) == {patch.id for patch in catalogue.PATCHES if patch.transform}


@pytest.mark.parametrize("name", BROKEN)
def test_a_needed_patch_is_applied_once(name: str, tmp_path: Path) -> None:
    root = broken(tmp_path, name)
    before = texts(root)
    assert state(root, name) == _core.NEEDED
    assert apply(root) == [name]
    after = texts(root)
    assert {path for path in after if after[path] != before[path]} == {BROKEN[name][0]}
    assert state(root, name) == _core.UPSTREAMED
    assert apply(root) == []
    assert texts(root) == after


def weights(root: Path, files: list[str], rank: int) -> Any:
    """Run the iterator of a tree as one of two ranks, each with one GPU."""
    torch = SimpleNamespace(
        device=lambda *words: ":".join(map(str, words)), cuda=SimpleNamespace(current_device=lambda: 0)
    )
    group = SimpleNamespace(rank=lambda: rank, size=lambda: 2)
    platform = SimpleNamespace(current_device=lambda: 0)
    names = execute(root, _python.WEIGHTS[0], torch=torch, current_platform=platform)
    return names["fastsafetensors_weights_iterator"](files, group)


def test_fastsafetensors_takes_the_one_gpu_of_the_second_node(tmp_path: Path) -> None:
    root = broken(tmp_path, "fastsafetensors-device")
    assert weights(root, [], 1)[0] == "cuda:1"
    apply(root)
    assert weights(root, [], 1)[0] == "cuda:0"


def test_fastsafetensors_deals_the_same_files_on_each_node(tmp_path: Path) -> None:
    root = broken(tmp_path, "fastsafetensors-order")
    here, there = ["/models/b", "/models/a", "/models/c"], ["/mnt/c", "/mnt/b", "/mnt/a"]

    def dealt(files: list[str]) -> list[list[str]]:
        return [[os.path.basename(path) for path in part] for part in weights(root, files, 0)[1]]

    assert dealt(here) != dealt(there)
    apply(root)
    assert dealt(here) == dealt(there) == [["a", "b"], ["c"]]


def test_both_patches_of_one_file_are_applied(tmp_path: Path) -> None:
    text = BROKEN["fastsafetensors-order"][1].replace("{current_platform.current_device()}", "{pg.rank()}")
    root = tree(tmp_path, {_python.WEIGHTS[0]: text})
    assert apply(root) == ["fastsafetensors-device", "fastsafetensors-order"]
    assert weights(root, ["/m/b", "/m/a"], 1) == ("cuda:0", [["/m/a", "/m/b"]])


def test_tma_is_off_until_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = broken(tmp_path, "fla-tma-on-request")

    def tma(nvidia: bool) -> bool:
        given = {"get_device_capability": lambda: 12, "nvidia": nvidia, "amd": False}
        return bool(execute(root, _python.FLA_UTILS[0], **given)["is_tma_supported"])

    monkeypatch.delenv("FLA_USE_TMA", raising=False)
    assert tma(True)
    apply(root)
    assert not tma(True)
    monkeypatch.setenv("FLA_USE_TMA", "1")
    assert tma(True) and not tma(False)


@pytest.mark.parametrize("name", ["qwen3-next-mtp-fc", "qwen3-5-mtp-fc"])
def test_fc_is_unquantized_only_under_nvfp4(name: str, tmp_path: Path) -> None:
    root = broken(tmp_path, name)
    apply(root)
    names = execute(root, BROKEN[name][0], Linear=lambda size, quant_config, prefix: quant_config)
    nvfp4, fp8 = (SimpleNamespace(get_name=lambda name=name: name) for name in ("modelopt_fp4", "fp8"))
    assert [names["Predictor"](given).fc for given in (None, fp8, nvfp4)] == [None, fp8, None]


def test_the_emulation_gets_swizzled_scales_and_what_divides(tmp_path: Path) -> None:
    root = broken(tmp_path, "nvfp4-emulation-scales")
    apply(root)
    names = execute(root, _python.EMULATION[1], run_nvfp4_emulations=lambda **given: given)
    assert names["apply"]("s", 4.0) == {"weight_scale_swizzled": ("swizzled", "s"), "weight_global_scale": 0.25}


def test_the_class_that_fits_is_returned(tmp_path: Path) -> None:
    root = broken(tmp_path, "nvfp4-moe-class")
    apply(root)
    chosen = execute(root, _python.MOE_ORACLE[0])["select_nvfp4_moe_backend"]({"a": None, "b": int})
    assert chosen == ("b", int)


def test_the_prefix_is_handed_on(tmp_path: Path) -> None:
    root = broken(tmp_path, "qwen3-next-qkvz-prefix")
    apply(root)
    names = execute(root, _python.QKVZ[0], Linear=lambda size, prefix: prefix)
    assert names["create_qkvz_proj"](8, "layers.0.in_proj_qkvz") == "layers.0.in_proj_qkvz"


def test_the_probe_says_yes_for_9_and_10_and_no_for_12(tmp_path: Path) -> None:
    root = broken(tmp_path, "fp8-group-gemm-probe")
    apply(root)
    text = (root / _native.SCALED_MM[0]).read_text()
    conditions = _native.PROBE_CONDITION.findall(text)
    assert [any(_edit.holds(one, sm) for one in conditions) for sm in (89, 90, 100, 103, 120, 121)] == [
        False, True, True, True, False, False,
    ]  # fmt: skip


# --- what stops a build --------------------------------------------------------------------------------------------


def refused(root: Path, *skip: str) -> str:
    """Return the line that ``apply`` ends with; the tree has to be as it was."""
    before = texts(root)
    with pytest.raises(_core.PatchError) as caught:
        apply(root, *skip)
    assert texts(root) == before
    assert "\n" not in str(caught.value)
    return str(caught.value)


CARRIED: dict[str, tuple[str, str]] = {
    "supported-archs-121": (_native.CMAKE, CMAKE.replace('"9.0;12.0"', '"9.0;12.0;12.1"')),
    "software-e2m1": (_native.FP4_UTILS[0], "#if __CUDA_ARCH__ == 1210\n"),
    "nvfp4-moe-meta": (_native.FP4_MOE[0], HEALTHY[_native.FP4_MOE[0]] + "void cutlass_fp4_group_mm_meta() {}\n"),
    "fp8-cutlass-off": (_native.FP8_PYTHON[0], "if compute_capability == 121:\n    return False\n"),
    "fp4-shim": (_native.FP4_QUANT[0], '#include "nv_fp4_dummy.h"\n#if ENABLE_NVFP4_SM120\n'),
}


@pytest.mark.parametrize("name", CARRIED)
def test_a_source_that_carries_a_refuted_fix_is_refused(name: str, tmp_path: Path) -> None:
    path, text = CARRIED[name]
    message = refused(tree(tmp_path, {path: text}))
    assert message.startswith(f"{path}: {name}: ")
    assert "take it out of the source" in message


@pytest.mark.parametrize("name", [patch.id for patch in catalogue.PATCHES if not patch.refuted])
def test_a_file_that_moved_stops_the_build(name: str, tmp_path: Path) -> None:
    patch = next(one for one in catalogue.PATCHES if one.id == name)
    if patch.paths == (_native.CMAKE,):
        return  # without it there is no source
    gone: dict[str, str | None] = {path: None for path in patch.paths if path != _native.CMAKE}
    # The model itself is there, or its MTP head would be none to look for.
    gone |= {f"{_python.MODELS}/qwen3_5.py": "", "vllm/model_executor/moved.py": ""}
    root = tree(tmp_path, gone)
    assert state(root, name) == _core.UNKNOWN
    assert "at none of the places known for it" in refused(root)


def test_an_unknown_entry_can_be_skipped_by_its_name(tmp_path: Path) -> None:
    root = tree(tmp_path, {_python.QKVZ[0]: None, **dict([BROKEN["qwen3-next-mtp-fc"]])})
    assert "qwen3-next-qkvz-prefix" in refused(root)
    assert "no entry is called qkvz" in refused(root, "qkvz")
    assert apply(root, "qwen3-next-qkvz-prefix") == ["qwen3-next-mtp-fc"]


def test_what_is_needed_without_a_transform_stops_the_build(tmp_path: Path) -> None:
    root = tree(tmp_path, {_native.CMAKE: CMAKE.replace('FP4_ARCHS "12.0f"', 'FP4_ARCHS "12.0a"')})
    assert "nvfp4-archs is needed and the catalogue only knows it as upstreamed" in refused(root)


@pytest.mark.parametrize("change", ["two", "other"])
def test_an_anchor_that_is_not_there_once_stops_the_build(change: str, tmp_path: Path) -> None:
    text = HEALTHY[_native.FP4_MM[0]]
    root = tree(tmp_path, {_native.FP4_MM[0]: text * 2 if change == "two" else text.replace("sm120a", "family")})
    assert state(root, "nvfp4-dispatch") == _core.UNKNOWN
    refused(root)


def test_a_transform_that_does_not_mend_stops_the_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def comment(tree: _core.Tree, found: _core.Finding) -> None:
        tree.change(found.file, tree.read(found.file) + "# patched\n")

    patch = next(one for one in catalogue.PATCHES if one.id == "qwen3-next-mtp-fc")
    monkeypatch.setattr(catalogue, "PATCHES", (_changed(patch, comment),))
    assert "after its transform it is needed" in refused(broken(tmp_path, "qwen3-next-mtp-fc"))


def _changed(patch: _core.Patch, transform: Callable[[_core.Tree, _core.Finding], None]) -> _core.Patch:
    return _core.Patch(
        patch.id,
        patch.title,
        patch.why,
        patch.origin,
        patch.range,
        patch.paths,
        inspect=patch.inspect,
        transform=transform,
    )


def test_a_write_that_fails_leaves_the_tree_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tree(tmp_path, dict([BROKEN["qwen3-next-mtp-fc"], BROKEN["nvfp4-moe-class"]]))
    before = texts(root)
    real, seen = os.replace, []

    def second_fails(source: Any, target: Any) -> None:
        seen.append(target)
        if len(seen) == 2:
            raise OSError(28, "No space left on device", str(target))
        real(source, target)

    monkeypatch.setattr(os, "replace", second_fails)
    with pytest.raises(_core.PatchError, match=r"No space left on device.*nothing was changed"):
        apply(root)
    assert len(seen) > 2
    assert texts(root) == before


# --- report, hash, page --------------------------------------------------------------------------------------------


def report(root: Path, into: Path) -> dict[str, Any]:
    """Apply by the command line; return the report."""
    assert command.main(["apply", "--source", str(root), "--report", str(into)]) == 0
    return dict(json.loads(into.read_text()))


def test_the_report_has_the_hash_of_what_was_applied(tmp_path: Path) -> None:
    one = report(broken(tmp_path / "a", "qwen3-next-mtp-fc"), tmp_path / "a.json")
    two = report(broken(tmp_path / "b", "nvfp4-moe-class"), tmp_path / "b.json")
    none = report(tree(tmp_path / "c"), tmp_path / "c.json")
    assert (one["kind"], one["applied"], one["skipped"]) == ("source", ["qwen3-next-mtp-fc"], [])
    assert len({one["sha256"], two["sha256"], none["sha256"]}) == 3
    assert none["sha256"] == hashlib.sha256().hexdigest()
    assert {entry["id"] for entry in none["entries"]} == {patch.id for patch in catalogue.PATCHES}
    assert one["sha256"] == report(broken(tmp_path / "d", "qwen3-next-mtp-fc"), tmp_path / "d.json")["sha256"]


def test_the_page_is_current(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert patch_table.main(["--check"]) == 0
    page = tmp_path / "patches.md"
    page.write_text(patch_table.PAGE.read_text().replace("**needed**", "upstreamed", 1))
    assert patch_table.main(["--check"], page) == 1
    assert "run: python docs/patch_table.py" in capsys.readouterr().err
    assert patch_table.main([], page) == 0
    assert page.read_text() == patch_table.PAGE.read_text()


def test_the_list_of_entries(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["table"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(catalogue.PATCHES)
