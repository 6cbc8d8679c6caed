# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""All entries: every fix that the two projects before this one carry for GB10, with its fate.

Seed A is Avarok-Cybersecurity/dgx-vllm, seed B eugr/spark-vllm-docker. "Measured" means that somebody of this project
ran it; threads are third-party words.
"""

from __future__ import annotations

from . import _native, _python
from ._core import Patch

_PTXAS = (
    "Measured with nvcc 13.0: ptxas takes cvt.rn.satfinite.e2m1x2 and the block-scaled MMA for sm_121a, sm_121f and"
    " sm_120f, and refuses both only for plain sm_121."
)

PATCHES: tuple[Patch, ...] = (
    # --- compiled code ---------------------------------------------------------------------------------------------
    Patch(
        id="fp8-dispatch",
        title="FP8 GEMM: capability 121 goes to sm_120's kernels",
        why="A dispatcher that compares with 120 exactly says that no kernel was compiled for GB10.",
        origin="seed A: scaled_mm_entry.cu (v115), fix_capability_121_v112.py",
        range="before 0.13.0",
        paths=_native.SCALED_MM,
        native=True,
        inspect=_native.fp8_dispatch,
        transform=_native.widen_fp8_dispatch,
    ),
    Patch(
        id="fp8-archs",
        title="FP8 GEMM: CUDA 13 compiles it for the family 12.0f",
        why="Without an architecture 12.x in the list, sm_120's FP8 kernels are left out of the build.",
        origin="seed A: fix_cmake_sm120_archs_v113(_corrected)",
        range="before 0.13.0",
        paths=(_native.CMAKE,),
        native=True,
        inspect=_native.fp8_archs,
    ),
    Patch(
        id="fp8-dispatcher-flag",
        title="FP8 GEMM: the dispatcher is compiled with ENABLE_SCALED_MM_SM120",
        why="Kernels without the define in their caller are in the library and never called.",
        origin="seed A: fix_dispatcher_flag_v115.sh, fix_dispatcher_v2.sh",
        range="before 0.13.0",
        paths=(_native.CMAKE,),
        native=True,
        inspect=_native.dispatcher_flag,
    ),
    Patch(
        id="fp8-group-gemm-probe",
        title="FP8 MoE: no claim of a grouped CUTLASS GEMM for 12.x",
        why="cutlass_group_gemm_supported says yes for every capability from 10.0 on, and cutlass_moe_mm has 9.x and"
        " 10.x only: since 0.14.1 an FP8 MoE on GB10 asks, chooses it, and ends with NotImplementedError."
        " Seed A wrote a kernel for the hole and never wired it in; the honest answer is enough.",
        origin="seed A: the hole that grouped_mm_gb10_native_v109.cu was written for",
        range="to 0.20.2, mended by 0.27.1",
        paths=_native.SCALED_MM,
        native=True,
        inspect=_native.group_gemm_probe,
        transform=_native.bound_group_gemm_probe,
    ),
    Patch(
        id="nvfp4-archs",
        title="NVFP4: quantizer, GEMM and MoE are compiled for the family 12.0f",
        why="Activations are quantized and multiplied by kernels that the build may leave out.",
        origin="seed A: nvfp4_quant_entry.cu (v115), vllm_patch.diff",
        range="before 0.13.0",
        paths=(_native.CMAKE, *_native.FP4_QUANT),
        native=True,
        inspect=_native.fp4_archs,
    ),
    Patch(
        id="nvfp4-dispatch",
        title="NVFP4 GEMM: capability 121 goes to sm_120's kernels",
        why="As for FP8: without it the dense layers of an NVFP4 model find no kernel.",
        origin="seed A: nvfp4_scaled_mm_entry.cu (v115)",
        range="before 0.13.0",
        paths=_native.FP4_MM,
        native=True,
        inspect=_native.fp4_dispatch,
        transform=_native.widen_fp4_dispatch,
    ),
    Patch(
        id="nvfp4-moe-dispatch",
        title="NVFP4 MoE: capability 121 goes to sm_120's kernels",
        why="The grouped GEMM of an NVFP4 MoE has a way of its own to its kernels.",
        origin="seed A: nvfp4_blockwise_moe_kernel.cu",
        range="before 0.13.0",
        paths=_native.FP4_MOE,
        native=True,
        inspect=_native.moe_dispatch,
        transform=_native.widen_moe_dispatch,
    ),
    Patch(
        id="arch-suffix",
        title="CMake: 12.1a keeps its suffix",
        why="A build for plain sm_121 has neither E2M1 conversion nor block-scaled MMA; this one mistake is behind most"
        " of seed A's fixes. It needs 12.1 in CUDA_SUPPORTED_ARCHS, and the releases that lose the suffix have it not.",
        origin="seed A: vllm_patch.diff, the Dockerfile's edits of CMakeLists.txt; upstream PR 37725",
        range="none of the six versions",
        paths=(_native.UTILS, _native.CMAKE),
        native=True,
        inspect=_native.arch_suffix,
    ),
    # --- Python ----------------------------------------------------------------------------------------------------
    Patch(
        id="fla-tma-on-request",
        title="Flash linear attention takes TMA only when asked",
        why="FLA's kernels use TMA descriptors on every device since sm_90. Those need memory from an allocator that"
        ' nobody has set, so Qwen3-Next and its like end with "no allocator was set" on GB10.',
        origin="seed A: triton_allocator.patch (optional), fixed where it comes from; upstream issue 33857",
        range="to 0.16.0, mended by 0.20.2",
        paths=_python.FLA_UTILS,
        inspect=_python.fla_tma,
        transform=_python.use_fla_tma_on_request,
    ),
    Patch(
        id="fastsafetensors-device",
        title="fastsafetensors loads to the process's own GPU",
        why="The number of the GPU is the rank among all nodes: the second Spark asks for cuda:1, which it has not.",
        origin="seed B: fastsafetensors.patch (cluster use); fastsafetensors issue 36",
        range="to 0.16.0, mended by 0.20.2",
        paths=_python.WEIGHTS,
        inspect=_python.fastsafetensors_device,
        transform=_python.use_own_device,
    ),
    Patch(
        id="fastsafetensors-order",
        title="fastsafetensors deals the files in one order on all nodes",
        why="Each rank takes its files by their place in a list that the node's file system ordered; where the orders"
        " differ, ranks broadcast different tensors and NCCL ends on a size mismatch.",
        origin="seed B: fastsafetensors.patch, its later form; upstream PR 34190",
        range="to 0.16.0, mended by 0.20.2",
        paths=_python.WEIGHTS,
        inspect=_python.fastsafetensors_order,
        transform=_python.sort_files,
    ),
    Patch(
        id="minimax-m2-rope",
        title="MiniMax-M2: the rotary dimension is scaled once",
        why="For some days of December 2025 get_rope scaled a dimension that the model had scaled; output was garbage.",
        origin="seed B: the MiniMax-M2 patch of 2025-12-11; upstream PRs 30384 and 30389",
        range="commits between 0.12.0 and 0.13.0",
        paths=_python.ROPE,
        inspect=_python.minimax_rope,
    ),
    Patch(
        id="qwen3-next-qkvz-prefix",
        title="Qwen3-Next: create_qkvz_proj keeps its prefix",
        why="With the name in the prefix twice no pattern of the checkpoint's ignore list fits, and loading fails.",
        origin="seed A: fix_qwen3_next_prefix.py",
        range="commits between 0.16.0 and 0.20.2",
        paths=_python.QKVZ,
        inspect=_python.qkvz_prefix,
        transform=_python.keep_prefix,
    ),
    Patch(
        id="qwen3-next-mtp-fc",
        title="Qwen3-Next: the MTP head's fc stays unquantized in NVFP4 checkpoints",
        why="The checkpoint has it in BF16, its exclude list names mtp.layers.0* only, and shapes do not fit.",
        origin="seed A: fix_mtp_nvfp4_exclusion.py",
        range="to 0.20.2, mended by 0.27.1",
        paths=_python.NEXT_MTP,
        inspect=_python.next_mtp,
        transform=_python.leave_fc_unquantized,
    ),
    Patch(
        id="qwen3-5-mtp-fc",
        title="Qwen3.5: the same for its MTP head",
        why="As for Qwen3-Next; upstream mended this one first.",
        origin="seed A: fix_mtp_nvfp4_exclusion.py; upstream PR 38832",
        range="commits between 0.16.0 and 0.20.2",
        paths=(*_python.FIVE_MTP, f"{_python.MODELS}/qwen3_5.py"),
        inspect=_python.five_mtp,
        transform=_python.leave_fc_unquantized,
    ),
    Patch(
        id="nvfp4-emulation-scales",
        title="NVFP4's emulation reads the scales as they are",
        why="The layer's block scales are linear and its global scale multiplies; the emulation takes them for swizzled"
        " and divides. Every NVFP4 model answers garbage with VLLM_USE_NVFP4_CT_EMULATIONS=1. Measured with 0.16.0's"
        " own functions on a 256 x 256 layer: relative error 9749 without the patch, 0.09 with it, which is FP4's.",
        origin="seed A: fix_nvfp4_emulation_backend.py",
        range="0.16.0, mended by 0.20.2",
        paths=_python.EMULATION,
        inspect=_python.emulation_scales,
        transform=_python.give_emulation_its_scales,
    ),
    Patch(
        id="nvfp4-moe-class",
        title="NVFP4 MoE on FlashInfer keeps the kernels' class",
        why="With VLLM_USE_FLASHINFER_MOE_FP4=1 and no backend named, the loop finds a class and returns None; the"
        " model ends in an assertion while it loads.",
        origin="seed A: fix_flashinfer_nvfp4_moe_backend.py",
        range="0.16.0, mended by 0.20.2",
        paths=(*_python.MOE_ORACLE, _python.MOE_BEFORE_ORACLE),
        inspect=_python.moe_class,
        transform=_python.return_class,
    ),
    # --- refuted: never applied, and a source that carries one is refused where that can be seen ---------------------
    Patch(
        id="supported-archs-121",
        title="12.1 in CUDA_SUPPORTED_ARCHS",
        why="Meant to make vLLM's CMake know GB10.",
        origin="seed A: vllm_patch.diff, the Dockerfile's sed",
        range="none",
        paths=(_native.CMAKE,),
        native=True,
        inspect=_native.supported_121,
        refuted="It breaks what it wants to mend. Measured with vLLM's own CMake functions: with 12.1 in the list,"
        " TORCH_CUDA_ARCH_LIST=12.1a gives no NVFP4 kernels at all up to 0.16.0, and 12.1 gives plain sm_121 since;"
        " without it both give 12.0f, which runs on GB10.",
    ),
    Patch(
        id="fp4-shim",
        title="Own FP4 types (nv_fp4_dummy.h)",
        why="Meant for CUDA headers without __nv_fp4_e2m1.",
        origin="seed A: nv_fp4_dummy.h (v75)",
        range="none",
        paths=(_native.CMAKE, *_native.FP4_UTILS, *_native.FP4_MM, *_native.FP4_QUANT, *_native.FP4_MOE),
        native=True,
        inspect=_native.fp4_shim,
        refuted="It is wrong: code 1 decodes to 0.25, E2M1 says 0.5 (read in nv_fp4_dummy.h lines 71 and 270), and its"
        " __nv_fp4_e2m3 is no 4-bit type. CUDA 13.0 has cuda_fp4.h; measured, it decodes 0 0.5 1 1.5 2 3 4 6.",
    ),
    Patch(
        id="cccl-fp4",
        title="The shim included into CCCL's headers",
        why="Meant for CCCL's references to __nv_fp4_e2m1.",
        origin="seed A: patch_cccl_fp4.sh",
        range="none",
        target="CUDA's headers",
        refuted="CCCL of CUDA 13.0 declares __nv_fp4_e2m1 itself, and the shim is wrong (fp4-shim).",
    ),
    Patch(
        id="cuda-fp4-extension",
        title="Own CUTLASS FP4 extension (cutlass_nvfp4)",
        why="Meant as FP4 kernels beside vLLM's.",
        origin="seed A: cutlass_nvfp4/, integrate_cuda_fp4_extension.sh",
        range="none",
        refuted="Nothing in vLLM calls it, its types repeat the shim's mistake (nvfp4_types.cuh lines 81 and 261), and"
        " vLLM has the kernels.",
    ),
    Patch(
        id="flashinfer-fp4-types",
        title="The shim included into FlashInfer's headers",
        why="Meant for FlashInfer's JIT.",
        origin="seed A: patch_flashinfer_fp4.sh",
        range="none",
        target="FlashInfer",
        refuted="FlashInfer includes cuda_fp4.h itself (vec_dtypes.cuh line 24 in 0.7.2), and the shim is wrong.",
    ),
    Patch(
        id="flashinfer-software-e2m1",
        title="E2M1 conversion in software in FlashInfer",
        why="Meant for an instruction that GB10 was thought to lack.",
        origin="seed A: fix_flashinfer_e2m1_sm121.py",
        range="none",
        target="FlashInfer",
        refuted=f"GB10 has the instruction. {_PTXAS} The patch makes every quantization slow.",
    ),
    Patch(
        id="software-e2m1",
        title="E2M1 conversion in software in vLLM",
        why="Meant for an instruction that GB10 was thought to lack.",
        origin="seed A: patch_nvfp4_utils_sw_e2m1.py, gb10_nvfp4_software_quant.py, patch_nvfp4_quant_gb10.py",
        range="none",
        paths=_native.FP4_UTILS,
        native=True,
        inspect=_native.software_e2m1,
        refuted=f"GB10 has the instruction. {_PTXAS} Upstream closed two such changes unmerged (35947, cutlass 3120).",
    ),
    Patch(
        id="plain-sm121-nvfp4",
        title="NVFP4 sources compiled for 12.1 by hand, or replaced by stubs",
        why="Meant to get NVFP4 into a build for sm_121.",
        origin="seed A: cmake_patch_gb10_nvfp4_v5/v6, nvfp4_stubs.cu",
        range="none",
        refuted=f"It follows from supported-archs-121 and needs software-e2m1. {_PTXAS} A list of 12.1a or 12.0f gives"
        " 12.0f kernels in all six versions.",
    ),
    Patch(
        id="sm121-fp8-kernels",
        title="Own FP8 kernels for sm_121",
        why="Meant as tiles for 48 SMs.",
        origin="seed A: integrate_gb10_sm121.sh, scaled_mm_sm121*, scaled_mm_blockwise_sm121*, scaled_mm_c3x_sm121.cu",
        range="none",
        refuted="Their entry calls sm_100's kernels, not the new ones (its own notes); sm_120's are for 12.0f.",
    ),
    Patch(
        id="fp8-grouped-mm-v109",
        title="Own grouped GEMM for GB10 (v109)",
        why="Meant for MoE; announced with 1.7 to 2.2 times.",
        origin="seed A: grouped_mm_gb10_native_v109.cu, integrate_gb10_native_v109.sh",
        range="none",
        refuted="It is FP8 and not FP4 (static_assert, line 47), prints five lines at each call, and its dispatcher's"
        " patch goes to a temporary file that nothing applies. What it was for is fp8-group-gemm-probe.",
    ),
    Patch(
        id="fp8-cutlass-off",
        title="CUTLASS's FP8 switched off for capability 121",
        why="Meant for a build without sm_120's kernels.",
        origin="seed A: integrate_sm121_fp8_fix(_v2).sh",
        range="none",
        paths=_native.FP8_PYTHON,
        inspect=_native.fp8_off,
        refuted="The kernels are there. Who wants another one says so at run time:"
        " VLLM_DISABLED_KERNELS=CutlassFP8ScaledMMLinearKernel.",
    ),
    Patch(
        id="nvfp4-moe-meta",
        title="Meta registration of cutlass_fp4_group_mm",
        why="Meant for torch.compile.",
        origin="seed A: nvfp4_blockwise_moe_kernel.cu (v118), and v116, v126 before it",
        range="none",
        paths=_native.FP4_MOE,
        native=True,
        inspect=_native.moe_meta,
        refuted="An op that only writes to its arguments needs none (measured: it compiles with fullgraph). The message"
        " that it was for, \"Could not run ... from the 'CUDA' backend\", means that the CUDA kernel was not compiled.",
    ),
    Patch(
        id="nvfp4-compile-off",
        title="torch.compile switched off for NVFP4",
        why="Meant for the same message.",
        origin="seed A: v117, fix_disable_compilation_nvfp4_v134.py; dropped by its v22",
        range="none",
        refuted="It hides that the kernel is missing (nvfp4-moe-meta) and costs what compilation brings.",
    ),
    Patch(
        id="nvcc-flags",
        title="-arch=sm_121a for every file, ENABLE_TCGEN05_HARDWARE, another ptxas for Triton",
        why="Meant to reach tcgen05.",
        origin="seed A: NVCC_PREPEND_FLAGS, TRITON_PTXAS_PATH in the Dockerfile",
        range="none",
        target="the environment",
        refuted="NVCC_PREPEND_FLAGS overrides what each file is compiled for; tcgen05 does not exist on sm_12x"
        " (measured: ptxas refuses it); Triton brings a ptxas that knows sm_121a.",
    ),
    Patch(
        id="moe-config-gb10",
        title="Tuned Triton configuration E=512,N=512 for GB10",
        why="Announced with 65.7 % more throughput.",
        origin="seed A: E=512,N=512,device_name=NVIDIA_GB10,dtype=fp8_w8a8.json",
        range="none",
        refuted="It is data and no fix: VLLM_TUNED_CONFIG_FOLDER names a directory of such files in all six versions."
        " 0.32.0 has the block-scaled ones for E=256 and E=512.",
    ),
    Patch(
        id="triton-null-allocator",
        title="Triton allocates memory by itself where no allocator is set",
        why='Meant for "no allocator was set".',
        origin="seed A: triton_allocator.patch",
        range="none",
        target="Triton",
        refuted="The kernels should not ask for it (fla-tma-on-request). vLLM's other users of descriptors set an"
        " allocator first, and Triton stays as its authors built it.",
    ),
)
