// Copyright (c) 2026, the sparkfleet.vllm authors
// GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
// SPDX-License-Identifier: GPL-3.0-or-later
// bf16 to NVFP4 in groups of 16, optionally of SiLU(gate) * up. A thread takes whole groups; four neighbours write their scales
// as one word.
#include <algorithm>

#include "launch.h"
#include "nvfp4.cuh"

namespace sparkfleet {
namespace {

constexpr int kThreads = 256;

// Division by a constant of the launch, for dividends below 2^31.
struct Divisor {
  unsigned value, multiplier, shift;
};
Divisor divisor(unsigned value) {
  unsigned shift = 0;
  while ((1ull << shift) < value) ++shift;
  const unsigned long long multiplier = ((1ull << 32) * ((1ull << shift) - value)) / value + 1;
  return Divisor{value, static_cast<unsigned>(multiplier), shift};
}
__device__ __forceinline__ unsigned quotient(unsigned n, const Divisor& d) {
  return (__umulhi(n, d.multiplier) + n) >> d.shift;
}

struct QuantizeShape {
  const __nv_bfloat16* x;
  const float* global_scale;
  uint8_t* packed;
  uint8_t* scales;
  int m, k, groups, padded_groups;
  unsigned total;                 // groups of all rows, padding included
  Divisor per_row;
};

template <bool SWIZZLED, bool SILU_MUL, int UNROLL>
__global__ void __launch_bounds__(kThreads) quantize_kernel(const QuantizeShape a) {
  nvfp4::wait_for_previous();
  nvfp4::allow_next();
  const float global_scale = *a.global_scale;
  const unsigned stride = gridDim.x * kThreads;
  constexpr int kLoads = SILU_MUL ? 4 : 2;
  // The bound is rounded to a warp: its lanes exchange scales.
  for (unsigned base = blockIdx.x * kThreads + threadIdx.x; base - (threadIdx.x & 31) < a.total; base += stride * UNROLL) {
    uint4 in[UNROLL][kLoads];
    unsigned row[UNROLL], group[UNROLL];
    bool real[UNROLL];
#pragma unroll
    for (int u = 0; u < UNROLL; ++u) {
      const unsigned i = base + u * stride;
      row[u] = quotient(i, a.per_row);
      group[u] = i - row[u] * a.per_row.value;
      real[u] = i < a.total && row[u] < static_cast<unsigned>(a.m) && group[u] < static_cast<unsigned>(a.groups);
      if (real[u]) {
        const auto* p = reinterpret_cast<const uint4*>(a.x + static_cast<size_t>(row[u]) * (SILU_MUL ? 2 * a.k : a.k) + group[u] * 16);
        in[u][0] = nvfp4::load_16(p);
        in[u][1] = nvfp4::load_16(p + 1);
        if constexpr (SILU_MUL) {
          const auto* q = p + a.k / 8;
          in[u][2] = nvfp4::load_16(q);
          in[u][3] = nvfp4::load_16(q + 1);
        }
      }
    }
#pragma unroll
    for (int u = 0; u < UNROLL; ++u) {
      const unsigned i = base + u * stride;
      uint32_t byte = 0;
      if (real[u]) {
        float v[16];
        auto unpack = [](const uint4& r, float* out) {
          const uint32_t w[4] = {r.x, r.y, r.z, r.w};
#pragma unroll
          for (int j = 0; j < 4; ++j) {
            out[2 * j] = __uint_as_float(w[j] << 16);
            out[2 * j + 1] = __uint_as_float(w[j] & 0xffff0000u);
          }
        };
        unpack(in[u][0], v);
        unpack(in[u][1], v + 8);
        if constexpr (SILU_MUL) {
          float up[16];
          unpack(in[u][2], up);
          unpack(in[u][3], up + 8);
#pragma unroll
          for (int j = 0; j < 16; ++j) v[j] = v[j] / (1.f + expf(-v[j])) * up[j];   // what is rounded to four bits should be exact
        }
        float largest = 0.f;
#pragma unroll
        for (int j = 0; j < 16; ++j) largest = fmaxf(largest, fabsf(v[j]));
        const __nv_fp8_e4m3 scale(global_scale * (largest * (1.f / 6.f)));
        byte = scale.__x;
        const float decoded = static_cast<float>(scale);
        const float factor = decoded != 0.f ? global_scale / decoded : 0.f;
        uint32_t words[2] = {0, 0};
#pragma unroll
        for (int j = 0; j < 8; ++j)
          words[j >> 2] |= nvfp4::encode_e2m1x2(v[2 * j] * factor, v[2 * j + 1] * factor) << (8 * (j & 3));
        *reinterpret_cast<uint2*>(a.packed + static_cast<size_t>(row[u]) * (a.k >> 1) + group[u] * 8) = make_uint2(words[0], words[1]);
      }
      if constexpr (SWIZZLED) {
        // Rows are padded to multiples of four groups, so four lanes hold one word of the layout.
        uint32_t word = byte << (8 * (threadIdx.x & 3));
        word |= __shfl_xor_sync(0xffffffffu, word, 1);
        word |= __shfl_xor_sync(0xffffffffu, word, 2);
        if ((threadIdx.x & 3) == 0 && i < a.total)
          *reinterpret_cast<uint32_t*>(a.scales + nvfp4::swizzled_offset(row[u], group[u], a.padded_groups >> 2)) = word;
      } else if (real[u]) {
        a.scales[static_cast<size_t>(row[u]) * a.groups + group[u]] = static_cast<uint8_t>(byte);
      }
    }
  }
}

template <bool SWIZZLED, bool SILU_MUL>
int launch(const QuantizeShape& shape, int sms, cudaStream_t stream) {
  constexpr int kUnroll = SILU_MUL ? 1 : 2;
  const unsigned wanted = (shape.total + kThreads * kUnroll - 1) / (kThreads * kUnroll);
  const dim3 grid(std::min(wanted, static_cast<unsigned>(sms) * 8u * 4u));
  return nvfp4::launch_dependent(quantize_kernel<SWIZZLED, SILU_MUL, kUnroll>, grid, kThreads, 0, stream, shape);
}

}  // namespace

int launch_quantize(const __nv_bfloat16* x, const float* global_scale, uint8_t* packed, uint8_t* scales, int m, int k,
                    bool swizzled, bool silu_mul, int sms, cudaStream_t stream) {
  QuantizeShape shape{};
  shape.x = x;
  shape.global_scale = global_scale;
  shape.packed = packed;
  shape.scales = scales;
  shape.m = m;
  shape.k = k;
  shape.groups = k / nvfp4::kGroup;
  shape.padded_groups = swizzled ? (shape.groups + 3) / 4 * 4 : shape.groups;
  const int rows = swizzled ? (m + 127) / 128 * 128 : m;
  shape.total = static_cast<unsigned>(rows) * static_cast<unsigned>(shape.padded_groups);
  shape.per_row = divisor(static_cast<unsigned>(shape.padded_groups));
  if (swizzled) return silu_mul ? launch<true, true>(shape, sms, stream) : launch<true, false>(shape, sms, stream);
  return silu_mul ? launch<false, true>(shape, sms, stream) : launch<false, false>(shape, sms, stream);
}

}  // namespace sparkfleet
