// Copyright (c) 2026, the sparkfleet.vllm authors
// GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
// SPDX-License-Identifier: GPL-3.0-or-later
// The last step of a mixture of experts: the weighted sum over a token's experts, in their order, so that it is deterministic.
#include "launch.h"
#include "nvfp4.cuh"

namespace sparkfleet {
namespace {

constexpr int kThreads = 128;
constexpr int kBatch = 8;

__global__ void __launch_bounds__(kThreads) topk_reduce_kernel(const __nv_bfloat16* z, const float* weights, const int* ids,
                                                               const int* expert_map, int map_size, int experts,
                                                               __nv_bfloat16* out, int topk, int n) {
  const int token = blockIdx.y, column = (blockIdx.x * kThreads + threadIdx.x) * 2;
  nvfp4::wait_for_previous();
  nvfp4::allow_next();
  if (column >= n) return;
  float low = 0.f, high = 0.f;
  for (int first = 0; first < topk; first += kBatch) {
    // All loads of a batch are under way together; the sum keeps the order.
    int expert[kBatch];
    float weight[kBatch];
    uint32_t value[kBatch];
#pragma unroll
    for (int j = 0; j < kBatch; ++j) {
      const int pair = token * topk + first + j;
      expert[j] = -1;
      weight[j] = 0.f;
      value[j] = 0;
      if (first + j < topk) {
        expert[j] = __ldg(ids + pair);
        weight[j] = weights[pair];
        value[j] = *reinterpret_cast<const uint32_t*>(z + static_cast<size_t>(pair) * n + column);
      }
    }
#pragma unroll
    for (int j = 0; j < kBatch; ++j) {
      int e = expert[j];
      if (expert_map != nullptr) e = static_cast<unsigned>(e) < static_cast<unsigned>(map_size) ? __ldg(expert_map + e) : -1;
      if (static_cast<unsigned>(e) >= static_cast<unsigned>(experts)) continue;   // its row of z was never written
      low += weight[j] * __uint_as_float(value[j] << 16);
      high += weight[j] * __uint_as_float(value[j] & 0xffff0000u);
    }
  }
  *reinterpret_cast<__nv_bfloat162*>(out + static_cast<size_t>(token) * n + column) = __floats2bfloat162_rn(low, high);
}

}  // namespace

int launch_topk_reduce(const __nv_bfloat16* z, const float* weights, const int* ids, const int* expert_map, int map_size,
                       int experts, __nv_bfloat16* out, int tokens, int topk, int n, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>((n / 2 + kThreads - 1) / kThreads), static_cast<unsigned>(tokens));
  return nvfp4::launch_dependent(topk_reduce_kernel, grid, kThreads, 0, stream, z, weights, ids, expert_map, map_size, experts, out,
                                 topk, n);
}

}  // namespace sparkfleet
