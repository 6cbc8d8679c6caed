// Copyright (c) 2026, the sparkfleet.vllm authors
// GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
// SPDX-License-Identifier: GPL-3.0-or-later
// What the bindings call: launchers that return a cudaError_t as int (0: launched), and the choice of a variant.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

namespace sparkfleet {

enum class Kind : int { dense = 0, gate_up = 1, down = 2 };

// One grouped skinny product: y[p] = alpha[e] * x[p / tokens_per_row] * w[e]^T with e = ids[p].
struct SkinnyArgs {
  const __nv_bfloat16* x;      // [x_rows, k]
  const uint8_t* weight;       // [experts, n, k/2]
  const uint8_t* scale;        // per expert scale_stride bytes
  const float* alpha;          // [experts]
  const int* ids;              // [pairs], null: dense, one expert
  const int* expert_map;       // [map_size] or null
  __nv_bfloat16* y;            // [pairs, n] or, with SwiGLU, [pairs, n/2]
  int pairs;                   // (token, expert) pairs; dense: tokens
  int pairs_per_row;           // pairs that share one row of x
  int x_rows;
  int tokens;                  // most pairs that one expert is expected to have
  int n, k, experts, map_size;
  size_t scale_stride;
  bool swizzled;
};

struct Device {
  int sms;
  int shared_bytes;            // most dynamic shared memory of one block (opt-in)
};

// A variant is X*10000 + W*100 + S.
//   X 0: x is staged in shared memory; 1: x is read through L1 beside the weights
//   W warps of a block; one block per SM
//   S warps that split K
struct Variant {
  bool global_x;
  int warps, split;
};
bool parse_variant(int number, Variant& variant);
int all_variants(int* out, int capacity);
// The static rule. rows: tokens; groups: (token, expert) pairs, 1 for dense.
int choose_variant(Kind kind, int n, int k, int rows, int groups, int sms, int shared_bytes);
// Why a variant cannot run on these arguments, or null.
const char* refuse_variant(Kind kind, const Variant& variant, const SkinnyArgs& args, const Device& device);
// The part of it that needs no more than K and the tokens; and the tiles of one expert. The rule asks both.
const char* refuse_split(const Variant& variant, int k, int tokens);
int tiles_of(Kind kind, int n);
// Rows of x that one block stages at most in the second product of experts, where each (token, expert) pair has its own.
int staged_rows(int pairs, int tokens, int sms);

int launch_skinny(Kind kind, const Variant& variant, const SkinnyArgs& args, const Device& device, cudaStream_t stream);
int launch_topk_reduce(const __nv_bfloat16* z, const float* weights, const int* ids, const int* expert_map, int map_size,
                       int experts, __nv_bfloat16* out, int tokens, int topk, int n, cudaStream_t stream);
int launch_quantize(const __nv_bfloat16* x, const float* global_scale, uint8_t* packed, uint8_t* scales, int m, int k,
                    bool swizzled, bool silu_mul, int sms, cudaStream_t stream);
int launch_gemm_a4(const uint8_t* x, const uint8_t* x_scale, const uint8_t* weight, const uint8_t* weight_scale,
                   const float* alpha, __nv_bfloat16* y, int m, int n, int k, bool swizzled, cudaStream_t stream);
int launch_read_probe(const void* x, size_t bytes, uint32_t* sink, int sms, cudaStream_t stream);

}  // namespace sparkfleet
