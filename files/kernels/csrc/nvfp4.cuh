// Copyright (c) 2026, the sparkfleet.vllm authors
// GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
// SPDX-License-Identifier: GPL-3.0-or-later
// NVFP4 on the device: E2M1 codes, E4M3 block scales, the swizzled scale layout, and the instructions that the kernels share.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp8.h>
#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

// The E2M1 conversions and the block-scaled MMA exist on sm_120f and sm_121a; plain sm_121 has neither.
#if defined(__CUDA_ARCH_FEAT_SM120_ALL) || defined(__CUDA_ARCH_FEAT_SM121_ALL) ||             \
    (defined(__CUDA_ARCH_FAMILY_SPECIFIC__) && __CUDA_ARCH_FAMILY_SPECIFIC__ == 1200) ||      \
    (defined(__CUDA_ARCH_SPECIFIC__) &&                                                       \
     (__CUDA_ARCH_SPECIFIC__ == 1200 || __CUDA_ARCH_SPECIFIC__ == 1210))
#define NVFP4_NATIVE 1
#else
#define NVFP4_NATIVE 0
#endif

namespace nvfp4 {

constexpr int kGroup = 16;                          // values along K that share one block scale
constexpr float kTwoTo119 = 6.64613997892457936e35f;

// --- E2M1 ------------------------------------------------------------------------------------------------------------

// Two values to one byte, the first in the low nibble: nearest even, saturating to 6, NaN to +6.
__device__ __forceinline__ uint32_t encode_e2m1x2(float low, float high) {
#if NVFP4_NATIVE
  uint32_t byte;
  asm("{.reg .b8 t; cvt.rn.satfinite.e2m1x2.f32 t, %2, %1; cvt.u32.u8 %0, t;}" : "=r"(byte) : "f"(low), "f"(high));
  return byte;
#else
  // The codes are piecewise linear in |v| with steps 0.5, 1 and 2, and the smallest of the three lines is the code.
  // Adding 2^23 rounds each to the nearest even integer, which then stands in the low mantissa bits.
  constexpr float kRound = 8388608.f;
  auto code = [](float v) {
    const float a = fabsf(v);
    float c = fminf(__fmaf_rn(a, 2.f, kRound), __fadd_rn(a, kRound + 2.f));
    c = fminf(fminf(c, __fmaf_rn(a, 0.5f, kRound + 4.f)), kRound + 7.f);
    return (__float_as_uint(c) & 7u) | (v == v ? (__float_as_uint(v) >> 28) & 8u : 0u);
  };
  return code(low) | (code(high) << 4);
#endif
}

// A word holds eight codes; pair I is (code I, code I + 4). The result is bf16x2 of value * 2^-126, exact for all sixteen codes
// (0.5 becomes a subnormal); scale_pair() carries the factor that undoes it.
template <int I>
__device__ __forceinline__ uint32_t decode_e2m1_pair(uint32_t word) {
  uint32_t magnitude, sign;
  if constexpr (I == 0) {
    magnitude = word << 6;
    sign = word << 12;
  } else if constexpr (I == 1) {
    magnitude = word << 2;
    sign = word << 8;
  } else if constexpr (I == 2) {
    magnitude = word >> 2;
    sign = word << 4;
  } else {
    magnitude = word >> 6;
    sign = word;
  }
  return (magnitude & 0x01C001C0u) | (sign & 0x80008000u);
}

__device__ __forceinline__ void decode_e2m1_bf16(uint32_t word, uint32_t (&pairs)[4]) {
  pairs[0] = decode_e2m1_pair<0>(word);
  pairs[1] = decode_e2m1_pair<1>(word);
  pairs[2] = decode_e2m1_pair<2>(word);
  pairs[3] = decode_e2m1_pair<3>(word);
}

// The same pairs as fp16x2 of value * 2^-14. The upper byte of an fp16 holds a whole code, so four are placed at once.
__device__ __forceinline__ void decode_e2m1_f16(uint32_t word, uint32_t (&pairs)[4]) {
  const uint32_t even = ((word << 1) & 0x0E0E0E0Eu) | ((word << 4) & 0x80808080u);   // codes 0, 2, 4, 6
  const uint32_t odd = ((word >> 3) & 0x0E0E0E0Eu) | (word & 0x80808080u);           // codes 1, 3, 5, 7
  pairs[0] = __byte_perm(even, 0, 0x2404);
  pairs[1] = __byte_perm(odd, 0, 0x2404);
  pairs[2] = even & 0xFF00FF00u;
  pairs[3] = odd & 0xFF00FF00u;
}

// --- E4M3 ------------------------------------------------------------------------------------------------------------

__device__ __forceinline__ float decode_e4m3(uint32_t byte) {
  __nv_fp8_e4m3 value;
  value.__x = static_cast<__nv_fp8_storage_t>(byte);
  return static_cast<float>(value);
}

// Two scales (low 16 bits) to two registers, each scale * 2^119 in both halves. With decode_e2m1_pair() the product is
// value * scale * 2^-7: at most six significant bits, so exact in bf16, and in range for every E4M3 scale.
__device__ __forceinline__ void scale_pair(uint32_t scales, uint32_t& first, uint32_t& second) {
  uint32_t half2;
  asm("{.reg .b16 t; cvt.u16.u32 t, %1; cvt.rn.f16x2.e4m3x2 %0, t;}" : "=r"(half2) : "r"(scales));
  float a, b;
  asm("{.reg .b16 l, u; mov.b32 {l, u}, %2; cvt.f32.f16 %0, l; cvt.f32.f16 %1, u;}" : "=f"(a), "=f"(b) : "r"(half2));
  uint32_t both;
  asm("cvt.rn.bf16x2.f32 %0, %2, %1;" : "=r"(both) : "f"(a * kTwoTo119), "f"(b * kTwoTo119));
  first = __byte_perm(both, both, 0x1010);
  second = __byte_perm(both, both, 0x3232);
}
constexpr float kUndoTwoToMinus7 = 128.f;

// The same for fp16: the decoded weights carry 2^-14, the scales 2^7; subnormal products are exact too, being multiples of 2^-17.
__device__ __forceinline__ void scale_pair_f16(uint32_t scales, uint32_t& first, uint32_t& second) {
  uint32_t raised;
  asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(raised) : "r"(scales), "r"(0x58005800u));   // 128, 128
  first = __byte_perm(raised, raised, 0x1010);
  second = __byte_perm(raised, raised, 0x3232);
}
constexpr float kUndoScaled = 128.f;              // 2^-14 * 2^7
constexpr float kUndoOne = 16384.f;               // 2^-14

__device__ __forceinline__ uint32_t multiply_f16x2(uint32_t a, uint32_t b) {
  uint32_t product;
  asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(product) : "r"(a), "r"(b));
  return product;
}
__device__ __forceinline__ uint32_t multiply_bf16x2(uint32_t a, uint32_t b) {
  uint32_t product;
  asm("mul.rn.bf16x2 %0, %1, %2;" : "=r"(product) : "r"(a), "r"(b));
  return product;
}

// --- layout ----------------------------------------------------------------------------------------------------------

// Byte of the scale of (row, group) in the 128x4 layout of CUTLASS and vLLM: [rows/128][groups/4][32][4][4].
__host__ __device__ __forceinline__ size_t swizzled_offset(int row, int group, int group_tiles) {
  return (static_cast<size_t>(row >> 7) * group_tiles + (group >> 2)) * 512 + (row & 31) * 16 + ((row >> 5) & 3) * 4 +
         (group & 3);
}

// --- instructions ----------------------------------------------------------------------------------------------------

__device__ __forceinline__ void mma_bf16(float (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0,
                                         uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

__device__ __forceinline__ void mma_f16(float (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0,
                                        uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// Weights pass once: keep them out of L1.
__device__ __forceinline__ uint4 load_stream(const void* address) {
  uint4 v;
  asm volatile("ld.global.nc.L1::no_allocate.L2::128B.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(address));
  return v;
}
// What an earlier kernel of the stream wrote, read after wait_for_previous(): volatile, so that it stays behind it.
__device__ __forceinline__ uint4 load_16(const void* address) {
  uint4 v;
  asm volatile("ld.global.v4.u32 {%0,%1,%2,%3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(address));
  return v;
}
__device__ __forceinline__ void prefetch_l2(const void* address) {
  asm volatile("prefetch.global.L2 [%0];" ::"l"(address));
}

// Programmatic dependent launch. The next kernel of the stream may start when every block has called allow_next(); it must call
// wait_for_previous() before it reads what this one wrote or writes anything.
__device__ __forceinline__ void wait_for_previous() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
__device__ __forceinline__ void allow_next() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// Launches a kernel that calls wait_for_previous(), so that it may start before the previous kernel of the stream has ended.
template <typename... Parameters, typename... Arguments>
int launch_dependent(void (*kernel)(Parameters...), dim3 grid, unsigned threads, size_t shared_bytes, cudaStream_t stream,
                     const Arguments&... arguments) {
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = 1;
  return static_cast<int>(cudaLaunchKernelEx(&config, kernel, arguments...));
}

__device__ __forceinline__ float silu(float v) { return v / (1.f + __expf(-v)); }

}  // namespace nvfp4
