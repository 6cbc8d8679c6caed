// Copyright (c) 2026, the sparkfleet.vllm authors
// GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
// SPDX-License-Identifier: GPL-3.0-or-later
// W4A4 with the block-scaled FP4 MMA: native on sm_12x, elsewhere emulated with the same fragments and scale lanes. It exists to
// check the native path, not to be fast.
#include <type_traits>

#include "launch.h"
#include "nvfp4.cuh"

namespace sparkfleet {
namespace {

#if !NVFP4_NATIVE
__device__ __forceinline__ uint32_t twice_bf16(float v) {
  const __nv_bfloat162 pair = __float2bfloat162_rn(v);
  return *reinterpret_cast<const uint32_t*>(&pair);
}
#endif

// m16n8k64: a, b hold eight codes a register; the scales of rows g and g + 8 come from the quad's lanes 0 and 1, those of column g
// from lane 0 (PTX ISA: mma with block scaling, thread id 0).
__device__ __forceinline__ void mma_nvfp4(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], uint32_t a_scales,
                                          uint32_t b_scales) {
#if NVFP4_NATIVE
  const uint16_t zero = 0;
  asm("mma.sync.aligned.m16n8k64.row.col.kind::mxf4nvf4.block_scale.scale_vec::4X.f32.e2m1.e2m1.f32.ue4m3 "
      "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3}, {%10}, {%11,%12}, {%13}, {%14,%15};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "r"(a_scales), "h"(zero), "h"(zero), "r"(b_scales),
        "h"(zero), "h"(zero));
#else
  const int lane = threadIdx.x & 31, t = lane & 3;
  const uint32_t row0 = __shfl_sync(0xffffffffu, a_scales, lane & ~3), row8 = __shfl_sync(0xffffffffu, a_scales, (lane & ~3) | 1);
  const uint32_t column = __shfl_sync(0xffffffffu, b_scales, lane & ~3);
  // The group along K of a0, a1 and b0 is t / 2, of a2, a3 and b1 it is 2 + t / 2.
  auto scale = [&](uint32_t word, int upper) {
    return twice_bf16(nvfp4::decode_e4m3((word >> (8 * (upper * 2 + (t >> 1)))) & 255u) * nvfp4::kTwoTo119);
  };
  const uint32_t s0 = scale(row0, 0), s1 = scale(row8, 0), s2 = scale(row0, 1), s3 = scale(row8, 1);
  const uint32_t u0 = scale(column, 0), u1 = scale(column, 1);
  float d[4] = {0.f, 0.f, 0.f, 0.f};
  auto product = [&](auto pair) {
    constexpr int I = decltype(pair)::value;
    using nvfp4::decode_e2m1_pair;
    using nvfp4::multiply_bf16x2;
    nvfp4::mma_bf16(d, multiply_bf16x2(decode_e2m1_pair<I>(a[0]), s0), multiply_bf16x2(decode_e2m1_pair<I>(a[1]), s1),
                    multiply_bf16x2(decode_e2m1_pair<I>(a[2]), s2), multiply_bf16x2(decode_e2m1_pair<I>(a[3]), s3),
                    multiply_bf16x2(decode_e2m1_pair<I>(b[0]), u0), multiply_bf16x2(decode_e2m1_pair<I>(b[1]), u1));
  };
  product(std::integral_constant<int, 0>{});
  product(std::integral_constant<int, 1>{});
  product(std::integral_constant<int, 2>{});
  product(std::integral_constant<int, 3>{});
#pragma unroll
  for (int i = 0; i < 4; ++i) c[i] += d[i] * (nvfp4::kUndoTwoToMinus7 * nvfp4::kUndoTwoToMinus7);
#endif
}

// One warp: 16 rows of weights by 8 rows of x.
template <bool SWIZZLED>
__global__ void __launch_bounds__(32) gemm_a4_kernel(const uint8_t* x, const uint8_t* x_scale, const uint8_t* weight,
                                                     const uint8_t* weight_scale, const float* alpha, __nv_bfloat16* y, int m,
                                                     int n, int k) {
  const int lane = threadIdx.x, g = lane >> 2, t = lane & 3, n0 = blockIdx.x * 16, m0 = blockIdx.y * 8;
  const int row_bytes = k >> 1, groups = k >> 4;
  nvfp4::wait_for_previous();
  nvfp4::allow_next();
  auto word = [&](const uint8_t* scales, int row, int step) {
    const size_t offset = SWIZZLED ? nvfp4::swizzled_offset(row, step * 4, groups >> 2) : static_cast<size_t>(row) * groups + step * 4;
    return *reinterpret_cast<const uint32_t*>(scales + offset);
  };
  auto codes = [&](const uint8_t* matrix, int row, int step, int upper) {
    return *reinterpret_cast<const uint32_t*>(matrix + static_cast<size_t>(row) * row_bytes + step * 32 + t * 4 + upper * 16);
  };
  const int row_of_scales = n0 + g + (t & 1) * 8;
  float c[4] = {0.f, 0.f, 0.f, 0.f};
  for (int step = 0; step < k / 64; ++step) {
    uint32_t a[4] = {0, 0, 0, 0}, b[2] = {0, 0}, a_scales = 0, b_scales = 0;
    if (n0 + g < n) {
      a[0] = codes(weight, n0 + g, step, 0);
      a[2] = codes(weight, n0 + g, step, 1);
    }
    if (n0 + g + 8 < n) {
      a[1] = codes(weight, n0 + g + 8, step, 0);
      a[3] = codes(weight, n0 + g + 8, step, 1);
    }
    if (row_of_scales < n) a_scales = word(weight_scale, row_of_scales, step);
    if (m0 + g < m) {
      b[0] = codes(x, m0 + g, step, 0);
      b[1] = codes(x, m0 + g, step, 1);
      b_scales = word(x_scale, m0 + g, step);
    }
    mma_nvfp4(c, a, b, a_scales, b_scales);
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int token = m0 + 2 * t + (i & 1), row = n0 + g + (i >> 1) * 8;
    if (token < m && row < n) y[static_cast<size_t>(token) * n + row] = __float2bfloat16(c[i] * *alpha);
  }
}

}  // namespace

int launch_gemm_a4(const uint8_t* x, const uint8_t* x_scale, const uint8_t* weight, const uint8_t* weight_scale,
                   const float* alpha, __nv_bfloat16* y, int m, int n, int k, bool swizzled, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>((n + 15) / 16), static_cast<unsigned>((m + 7) / 8));
  if (swizzled)
    gemm_a4_kernel<true><<<grid, 32, 0, stream>>>(x, x_scale, weight, weight_scale, alpha, y, m, n, k);
  else
    gemm_a4_kernel<false><<<grid, 32, 0, stream>>>(x, x_scale, weight, weight_scale, alpha, y, m, n, k);
  return static_cast<int>(cudaGetLastError());
}

}  // namespace sparkfleet
