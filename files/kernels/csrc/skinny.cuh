// Copyright (c) 2026, the sparkfleet.vllm authors
// GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
// SPDX-License-Identifier: GPL-3.0-or-later
// W4A16 skinny grouped product: bf16 rows of x against NVFP4 weights as the checkpoint holds them.
//
// The weights are the A operand of the MMA (16 rows by 16 along K), rows of x are its columns. K is permuted inside the MMA so that
// a lane reads 16 consecutive bytes of weights. A warp's tile is 16 rows: 8 consecutive m and, for each, m + 32 (one load brings
// the swizzled scales of both) or, with SwiGLU, the row of the other half. A group of `split` warps shares a tile and splits K; the
// parts are added in a fixed order, so results do not depend on timing. Groups are persistent, and each lane copies what it will
// read itself to shared memory a unit ahead, across tiles, so the ring needs neither registers nor barriers.
#pragma once

#include "launch.h"
#include "nvfp4.cuh"

namespace sparkfleet {

constexpr int kMaxPairs = 512;    // 16 tokens, 32 experts each
constexpr int kMaxExperts = 512;
constexpr int kStep = 128;        // values along K of one step
constexpr int kHeld = 4;          // 16-byte pieces of x that a thread can hold while it waits for the others' largest
constexpr int kUnit = 2 * kStep;  // of what is copied at once

// A row of x in shared memory: fp16, whole units, and 64 bytes that keep the rows out of each other's banks.
__host__ __device__ __forceinline__ uint32_t shared_row_bytes(int k) { return (k + kUnit - 1) / kUnit * 512 + 64; }

// The power of two that brings the largest magnitude of a row (bits of a bf16) into [2^14, 2^15).
__device__ __forceinline__ float raise_of(uint32_t largest) {
  const int exponent = static_cast<int>(largest >> 7);                 // biased by 127
  if (exponent == 0 || exponent == 255) return 1.f;                    // zero or smaller than any normal; infinity or NaN
  return __uint_as_float(static_cast<uint32_t>(min(254, max(1, 127 + 14 - (exponent - 127)))) << 23);
}

struct SkinnyShape {
  const __nv_bfloat16* x;
  const uint8_t* weight;
  const uint8_t* scale;
  const float* alpha;
  const int* ids;
  const int* expert_map;
  __nv_bfloat16* y;
  int pairs, pairs_per_row, x_rows, n, k, experts, map_size;
  size_t scale_stride;
  int split;                      // warps of a group
  int tiles;                      // of one expert
};

// (expert, up to 8 * NT of its pairs) for every expert that is asked for.
struct WorkList {
  int entries;
  uint16_t expert[kMaxPairs], begin[kMaxPairs], count[kMaxPairs], pair[kMaxPairs];
};

__device__ __forceinline__ int local_expert(const SkinnyShape& a, int pair) {
  int e = __ldg(a.ids + pair);
  if (a.expert_map != nullptr) e = static_cast<unsigned>(e) < static_cast<unsigned>(a.map_size) ? __ldg(a.expert_map + e) : -1;
  return static_cast<unsigned>(e) < static_cast<unsigned>(a.experts) ? e : -1;
}

// Experts in the order of their first pair, the pairs of one in their order: every block must come to the same list, since the
// tiles of an expert's blocks of columns are spread over them. scratch: kScratchBytes.
constexpr size_t kScratchBytes = 4096;
template <int COLUMNS>
__device__ void build_work_list(const SkinnyShape& a, WorkList& list, uint8_t* scratch) {
  const int tid = threadIdx.x, lane = tid & 31;
  if (a.pairs <= 32) {            // one warp without shared memory
    if (tid < 32) {
      const int e = lane >= a.pairs ? -1 : local_expert(a, lane);
      const unsigned same = __match_any_sync(0xffffffffu, e), below = (1u << lane) - 1;
      const bool owner = e >= 0 && (same & below) == 0;
      const int count = owner ? __popc(same) : 0, blocks = (count + COLUMNS - 1) / COLUMNS;
      int sum = count | (blocks << 16);
#pragma unroll
      for (int d = 1; d < 32; d <<= 1) {
        const int other = __shfl_up_sync(0xffffffffu, sum, d);
        if (lane >= d) sum += other;
      }
      const int begin = (sum & 0xffff) - count, entry = (sum >> 16) - blocks;
      for (int b = 0; b < blocks; ++b) {
        list.expert[entry + b] = static_cast<uint16_t>(e);
        list.begin[entry + b] = static_cast<uint16_t>(begin + b * COLUMNS);
        list.count[entry + b] = static_cast<uint16_t>(min(COLUMNS, count - b * COLUMNS));
      }
      const int base = __shfl_sync(0xffffffffu, begin, __ffs(same) - 1);
      if (e >= 0) list.pair[base + __popc(same & below)] = static_cast<uint16_t>(lane);
      if (lane == 31) list.entries = sum >> 16;
    }
    __syncthreads();
    return;
  }
  if (tid < 32) {
    auto* count = reinterpret_cast<uint16_t*>(scratch);         // [experts], later where its pairs begin
    auto* expert = reinterpret_cast<int16_t*>(scratch) + kMaxExperts;   // [pairs]
    auto* rank = reinterpret_cast<uint16_t*>(scratch) + 2 * kMaxExperts;
    for (int e = lane; e < a.experts; e += 32) count[e] = 0;
    __syncwarp();
    for (int p = lane; p < (a.pairs + 31) / 32 * 32; p += 32) {
      const int e = p < a.pairs ? local_expert(a, p) : -1;
      const unsigned same = __match_any_sync(0xffffffffu, e), below = (1u << lane) - 1;
      const int before = e >= 0 ? count[e] : 0;
      __syncwarp();
      if (e >= 0 && (same & below) == 0) count[e] = static_cast<uint16_t>(before + __popc(same));
      expert[p] = static_cast<int16_t>(e);
      rank[p] = static_cast<uint16_t>(before + __popc(same & below));
      __syncwarp();
    }
    int entries = 0, placed = 0;
    for (int p = lane; p < (a.pairs + 31) / 32 * 32; p += 32) {
      const int e = expert[p];
      const bool owner = e >= 0 && rank[p] == 0;
      const int mine = owner ? count[e] : 0, blocks = (mine + COLUMNS - 1) / COLUMNS;
      int sum = mine | (blocks << 16);
#pragma unroll
      for (int d = 1; d < 32; d <<= 1) {
        const int other = __shfl_up_sync(0xffffffffu, sum, d);
        if (lane >= d) sum += other;
      }
      const int begin = placed + (sum & 0xffff) - mine, entry = entries + (sum >> 16) - blocks;
      for (int b = 0; b < blocks; ++b) {
        list.expert[entry + b] = static_cast<uint16_t>(e);
        list.begin[entry + b] = static_cast<uint16_t>(begin + b * COLUMNS);
        list.count[entry + b] = static_cast<uint16_t>(min(COLUMNS, mine - b * COLUMNS));
      }
      if (owner) count[e] = static_cast<uint16_t>(begin);
      const int last = __shfl_sync(0xffffffffu, sum, 31);
      placed += last & 0xffff;
      entries += last >> 16;
    }
    __syncwarp();
    for (int p = lane; p < a.pairs; p += 32)
      if (expert[p] >= 0) list.pair[count[expert[p]] + rank[p]] = static_cast<uint16_t>(p);
    if (lane == 0) list.entries = entries;
  }
  __syncthreads();
}

// Eight values of a row as the MMA wants its columns: (0,4) (1,5) (2,6) (3,7).
__device__ __forceinline__ uint4 interleave(uint4 v) {
  return make_uint4(__byte_perm(v.x, v.z, 0x5410), __byte_perm(v.x, v.z, 0x7632), __byte_perm(v.y, v.w, 0x5410),
                    __byte_perm(v.y, v.w, 0x7632));
}

// interleave(), from bf16 to fp16 after a multiplication.
__device__ __forceinline__ uint4 interleave_half(uint4 v, float factor) {
  auto pair = [&](uint32_t low, uint32_t high, bool upper) {
    const float a = __uint_as_float(upper ? low & 0xffff0000u : low << 16) * factor;
    const float b = __uint_as_float(upper ? high & 0xffff0000u : high << 16) * factor;
    uint32_t r;
    asm("cvt.rn.f16x2.f32 %0, %2, %1;" : "=r"(r) : "f"(a), "f"(b));
    return r;
  };
  return make_uint4(pair(v.x, v.z, false), pair(v.x, v.z, true), pair(v.y, v.w, false), pair(v.y, v.w, true));
}

__device__ __forceinline__ uint32_t largest_magnitude(uint4 v) {   // of bf16, as the high half of a float's bits
  uint32_t m = 0;
  const uint32_t w[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) m = max(m, max(w[i] & 0x7fffu, (w[i] >> 16) & 0x7fffu));
  return m;
}

// Barriers in shared memory, by address.
__device__ __forceinline__ void start_barrier(uint32_t barrier, int arrivals) {
  asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}
__device__ __forceinline__ void arrive(uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared.b64 _, [%0];" ::"r"(barrier) : "memory");
}
__device__ __forceinline__ void await(uint32_t barrier, uint32_t parity) {
  uint32_t done = 0;
  while (done == 0)
    asm volatile("{.reg .pred p; mbarrier.try_wait.parity.shared.b64 p, [%1], %2; selp.u32 %0, 1, 0, p;}"
                 : "=r"(done)
                 : "r"(barrier), "r"(parity)
                 : "memory");
}

__device__ __forceinline__ void copy_16(uint32_t to, const void* from) {
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16;" ::"r"(to), "l"(from) : "memory");
}
__device__ __forceinline__ void copy_8(uint32_t to, const void* from) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 8;" ::"r"(to), "l"(from) : "memory");
}
__device__ __forceinline__ void copy_4(uint32_t to, const void* from) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(to), "l"(from) : "memory");
}
__device__ __forceinline__ void close_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
__device__ __forceinline__ void wait_copies_but_last() { asm volatile("cp.async.wait_group 1;" ::: "memory"); }
__device__ __forceinline__ void store_zero_8(uint32_t to) {
  asm volatile("st.shared.v2.u32 [%0], {%1, %1};" ::"r"(to), "r"(0) : "memory");
}
__device__ __forceinline__ uint4 shared_16(uint32_t address) {
  uint4 v;
  asm volatile("ld.shared.v4.u32 {%0,%1,%2,%3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "r"(address) : "memory");
  return v;
}
__device__ __forceinline__ uint2 shared_8(uint32_t address) {
  uint2 v;
  asm volatile("ld.shared.v2.u32 {%0,%1}, [%2];" : "=r"(v.x), "=r"(v.y) : "r"(address) : "memory");
  return v;
}

// A warp's ring has two stages. One holds a unit, two steps, for each lane: 2 x (two rows of weights, their scales).
constexpr int kStepBytes = 32 * (16 + 16 + 8);
constexpr int kStageBytes = 2 * kStepBytes;

// Two e4m3 scales (low 16 bits) as fp16x2.
__device__ __forceinline__ uint32_t scales_f16(uint32_t scales) {
  uint32_t r;
  asm("{.reg .b16 t; cvt.u16.u32 t, %1; cvt.rn.f16x2.e4m3x2 %0, t;}" : "=r"(r) : "r"(scales));
  return r;
}
__device__ __forceinline__ float2 halves(uint32_t h) {
  float2 r;
  asm("{.reg .b16 l, u; mov.b32 {l, u}, %2; cvt.f32.f16 %0, l; cvt.f32.f16 %1, u;}" : "=f"(r.x), "=f"(r.y) : "r"(h));
  return r;
}

// NT: blocks of 8 columns. ACT: SwiGLU of the two halves of N.
// GLOBAL_X false: x stands in shared memory as fp16, each row raised by a power of two so that its largest value is in
// [2^14, 2^15): what that rounds is 2^-39 of the largest value, far below the rounding of the fp32 sums.
// Dense, all pairs are of one expert. Otherwise a block has neighbouring tiles, which are of one expert or two, so that in the second
// product, where each pair has its own row of x, it stages few of them.
template <int NT, Kind KIND, bool SWIZZLED, bool GLOBAL_X>
__global__ void __launch_bounds__(NT == 1 ? 768 : 512, 1) skinny_kernel(const SkinnyShape a) {
  constexpr bool DENSE = KIND == Kind::dense, ACT = KIND == Kind::gate_up, OWN_ROWS = KIND == Kind::down;
  constexpr int kSums = NT * 4;                   // partial sums of a lane

  extern __shared__ __align__(16) uint8_t shared[];
  __shared__ WorkList list;
  __shared__ uint32_t largest[kMaxPairs];         // of each row of x: bits of the magnitude
  __shared__ uint64_t barriers[16][4];            // of a group: its two buffers of sums are full, are read
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = blockDim.x >> 5;
  const int g = lane >> 2, t = lane & 3;
  const int split = a.split, groups = warps / split, group = warp / split, part = warp % split;
  const int row_bytes = a.k >> 1, half = a.n >> 1, outputs = ACT ? half : a.n;
  const int units = (a.k + kUnit - 1) / kUnit;
  const int my_units = (units - part + split - 1) / split;    // of one tile; the launcher sees to at least 1
  // The rings [warps][2], partial sums [2][warps][kSums][32], x.
  const uint32_t ring = static_cast<uint32_t>(__cvta_generic_to_shared(shared)) + warp * (2 * kStageBytes) + lane * 16;
  const uint32_t other_stage = ring ^ (ring + kStageBytes);
  float* sums = reinterpret_cast<float*>(shared + warps * (2 * kStageBytes));
  uint8_t* x_bytes = reinterpret_cast<uint8_t*>(sums) + (split > 1 ? 2 * warps * kSums * 128 : 0);
  const uint32_t x_row_bytes = shared_row_bytes(a.k);

  const uint32_t barrier = static_cast<uint32_t>(__cvta_generic_to_shared(&barriers[group & 15][0]));
  if (split > 1 && group < groups && part == 0 && lane == 0) {
    start_barrier(barrier, 32 * split);
    start_barrier(barrier + 8, 32 * split);
    start_barrier(barrier + 16, 32);
    start_barrier(barrier + 24, 32);
  }
  // Staged rows of x: all of them, or those of the list's pairs from first_staged on.
  const int chunks = a.k >> 3;
  int staged = a.x_rows, first_staged = 0;
  auto staged_row = [&](int i) { return a.x + static_cast<size_t>(OWN_ROWS ? list.pair[first_staged + i] : i) * a.k; };
  uint4 held[kHeld];
  auto hold_x = [&]() {
    if constexpr (!GLOBAL_X) {
      const int all_chunks = staged * chunks;
#pragma unroll
      for (int i = 0; i < kHeld; ++i) {
        const int index = threadIdx.x + i * blockDim.x;
        held[i] = make_uint4(0, 0, 0, 0);
        if (all_chunks <= kHeld * static_cast<int>(blockDim.x) && index < all_chunks) {
          const int row = OWN_ROWS ? index / chunks : 0;        // a division that the others need not wait for
          held[i] = nvfp4::load_16(OWN_ROWS ? staged_row(row) + (index - row * chunks) * 8 : a.x + static_cast<size_t>(index) * 8);
        }
      }
    }
  };
  if constexpr (!GLOBAL_X)
    for (int row = threadIdx.x; row < a.x_rows; row += blockDim.x) largest[row] = 0;
  if constexpr (ACT) {            // the experts may come from the kernel before
    nvfp4::wait_for_previous();
    hold_x();
  }
  int begin, stride, end = 0;     // of this group's tiles, counted through all experts
  if constexpr (DENSE) {
    __syncthreads();
    // Neighbouring tiles go to different multiprocessors, so that few tiles use all of them.
    begin = group * gridDim.x + blockIdx.x;
    stride = gridDim.x * groups;
  } else {
    build_work_list<8 * NT>(a, list, shared);   // ends with a barrier of the block
    const int all = list.entries * a.tiles;
    const auto share = [&](unsigned block) { return static_cast<int>(static_cast<uint64_t>(block) * all / gridDim.x); };
    const int block_begin = share(blockIdx.x);
    begin = block_begin + group;
    stride = groups;
    end = share(blockIdx.x + 1);
    if constexpr (OWN_ROWS) {
      staged = 0;
      if (block_begin < end) {
        const int last = (end - 1) / a.tiles;
        first_staged = list.begin[block_begin / a.tiles];
        staged = list.begin[last] + list.count[last] - first_staged;
      }
    }
  }
  const int limit = DENSE ? a.tiles : end;
  if (group >= groups) begin = limit;             // warps that make no whole group have nothing to do

  // First row of a tile for this lane. Neighbouring tiles share sectors of the scales: the tiles of the same 8 rows of a block of
  // 128 follow each other, so that neighbouring groups have them at the same time.
  auto row_of = [&](int tile) {
    if constexpr (ACT)
      return (tile >> 4) * 128 + ((tile >> 2) & 3) * 8 + (tile & 3) * 32 + g;
    else
      return (tile >> 3) * 128 + ((tile >> 1) & 3) * 8 + (tile & 1) * 64 + g;
  };

  // --- copying ahead ---
  struct Place {
    int at, entry, tile;          // of all tiles; its place in the list, its number there. Dense, only `at` counts.
  };
  auto place_of_tile = [&](int at) { return DENSE ? Place{at, 0, at} : Place{at, at / a.tiles, at % a.tiles}; };
  auto advance = [&](Place& p) {
    p.at += stride;
    p.tile += stride;
    if constexpr (!DENSE) {
      while (p.tile >= a.tiles) {
        p.tile -= a.tiles;
        ++p.entry;
      }
    }
  };
  Place ahead = place_of_tile(begin);
  int ahead_unit = 0;
  const uint8_t *low = nullptr, *high = nullptr, *low_scale = nullptr, *high_scale = nullptr;
  auto locate = [&]() {
    const int expert = DENSE ? 0 : list.expert[ahead.entry];
    // A row past N is read as the last one; its sum is not stored.
    const int row = row_of(ahead.tile), first = min(row, outputs - 1);
    const int second = ACT ? first + half : min(row + 32, outputs - 1);
    const uint8_t* weight = a.weight + static_cast<size_t>(expert) * a.n * row_bytes + part * 128 + t * 16;
    low = weight + static_cast<size_t>(first) * row_bytes;
    high = weight + static_cast<size_t>(second) * row_bytes;
    const uint8_t* scales = a.scale + static_cast<size_t>(expert) * a.scale_stride;
    if constexpr (SWIZZLED) {
      // The layout is padded to 128 rows, so scales past N are there to be read.
      const int quad = part * 2048 + (t >> 1) * 512;
      low_scale = scales + nvfp4::swizzled_offset(row, 0, a.k >> 6) + quad;
      if constexpr (ACT) high_scale = scales + nvfp4::swizzled_offset(second, 0, a.k >> 6) + quad;
    } else {
      const int quad = part * 16 + (t >> 1) * 4;
      low_scale = scales + static_cast<size_t>(first) * (a.k >> 4) + quad;
      high_scale = scales + static_cast<size_t>(second) * (a.k >> 4) + quad;
    }
  };
  constexpr int kScaleStep = SWIZZLED ? 1024 : 8;
  auto next = [&]() {
    low += split * 128;
    high += split * 128;
    low_scale += split * (2 * kScaleStep);
    if (ACT || !SWIZZLED) high_scale += split * (2 * kScaleStep);
    if (++ahead_unit == my_units) {
      ahead_unit = 0;
      advance(ahead);
    }
  };
  const int last_unit = (a.k & (kUnit - 1)) != 0 ? (units - 1 - part) / split : my_units;   // of mine that may end beyond K
  const bool ends_beyond = last_unit * split + part == units - 1;
  const bool beyond_first = (units - 1) * kUnit + t * 32 >= a.k, beyond_second = (units - 1) * kUnit + kStep + t * 32 >= a.k;
  uint32_t to = ring;                             // of the next copy
  auto copy = [&]() {
    if (ahead.at < limit) {
      if (ahead_unit == 0) locate();
      const bool tail = ends_beyond && ahead_unit == last_unit;
#pragma unroll
      for (int s = 0; s < 2; ++s) {
        const uint32_t at = to + s * kStepBytes, at_scale = at + 1024 - lane * 8;
        // Beyond K x is zero, the weights may be what they are, and a scale of zero keeps a NaN out.
        if (tail && (s == 0 ? beyond_first : beyond_second)) {
          store_zero_8(at_scale);
          continue;
        }
        copy_16(at, low + s * 64);
        copy_16(at + 512, high + s * 64);
        if constexpr (SWIZZLED && !ACT) {
          copy_8(at_scale, low_scale + s * kScaleStep);
        } else {
          copy_4(at_scale, low_scale + s * kScaleStep);
          copy_4(at_scale + 4, high_scale + s * kScaleStep);
        }
      }
      next();
    }
    close_copies();
    to ^= other_stage;
  };

  if constexpr (!ACT) {
    // Weights never come from the previous kernel, but nobody forbids it: bring them to L2 only, which is coherent.
    if (ahead.at < limit) {
      locate();
      nvfp4::prefetch_l2(low);
      nvfp4::prefetch_l2(high);
      nvfp4::prefetch_l2(low_scale);
    }
    nvfp4::wait_for_previous();
    hold_x();
  }
  nvfp4::allow_next();
  copy();

  if constexpr (!GLOBAL_X) {
    // [row][step][chunk of 8][t], 16 bytes each; the rows are padded so that a warp reads without bank conflicts.
    auto place_of = [&](int row, int q) { return x_bytes + row * x_row_bytes + ((q >> 4) * 4 + (q & 3)) * 64 + ((q >> 2) & 3) * 16; };
    const int tail_chunks = units * (kUnit / 8) - chunks;       // zeros beyond K
    for (int i = threadIdx.x; i < staged * tail_chunks; i += blockDim.x)
      *reinterpret_cast<uint4*>(place_of(i / tail_chunks, chunks + i % tail_chunks)) = make_uint4(0, 0, 0, 0);
    const int all_chunks = staged * chunks;
    if (all_chunks <= kHeld * static_cast<int>(blockDim.x)) {
#pragma unroll
      for (int i = 0; i < kHeld; ++i) {
        const int index = threadIdx.x + i * blockDim.x;
        if (index - lane >= all_chunks) break;
        uint32_t m = largest_magnitude(held[i]);
        if ((chunks & 31) == 0) {                 // one row for the whole warp
          m = __reduce_max_sync(0xffffffffu, m);
          if (lane == 0) atomicMax(&largest[index / chunks], m);
        } else if (index < all_chunks) {
          atomicMax(&largest[index / chunks], m);
        }
      }
      __syncthreads();
#pragma unroll
      for (int i = 0; i < kHeld; ++i) {
        const int index = threadIdx.x + i * blockDim.x;
        if (index < all_chunks) {
          const int row = index / chunks;
          *reinterpret_cast<uint4*>(place_of(row, index - row * chunks)) = interleave_half(held[i], raise_of(largest[row]));
        }
      }
    } else {
      constexpr int kBatch = 4;                   // rows whose loads are under way together
      auto load_batch = [&](int base, int q, uint4 (&v)[kBatch]) {
#pragma unroll
        for (int r = 0; r < kBatch; ++r) {
          v[r] = make_uint4(0, 0, 0, 0);
          if (q < chunks && base + r < staged) v[r] = nvfp4::load_16(staged_row(base + r) + q * 8);
        }
      };
      for (int base = 0; base < staged; base += kBatch)
        for (int first = threadIdx.x & ~31u; first < chunks; first += blockDim.x) {
          uint4 v[kBatch];
          load_batch(base, first + lane, v);
#pragma unroll
          for (int r = 0; r < kBatch; ++r) {
            const uint32_t m = __reduce_max_sync(0xffffffffu, largest_magnitude(v[r]));
            if (lane == 0 && base + r < staged) atomicMax(&largest[base + r], m);
          }
        }
      __syncthreads();
      for (int base = 0; base < staged; base += kBatch)
        for (int q = threadIdx.x; q < chunks; q += blockDim.x) {
          uint4 v[kBatch];
          load_batch(base, q, v);
#pragma unroll
          for (int r = 0; r < kBatch; ++r)
            if (base + r < staged)
              *reinterpret_cast<uint4*>(place_of(base + r, q)) = interleave_half(v[r], raise_of(largest[base + r]));
        }
    }
    __syncthreads();
  }

  // --- computing ---
  uint32_t from = ring;
  int done = 0, turn = 0, known_entry = -1, columns = 0, first_pair = 0;
  float alpha = 0.f;
  uint32_t x_start[NT];                           // of this lane's column, in shared memory
  const __nv_bfloat16* x_row[NT];
  // Of the list's pairs: the number, and where its x is staged.
  auto pair_of = [&](int index) { return DENSE ? index : static_cast<int>(list.pair[index]); };
  auto stage_of = [&](int index) { return OWN_ROWS ? index - first_staged : ACT ? pair_of(index) / a.pairs_per_row : index; };
  for (Place p = place_of_tile(begin); p.at < limit; advance(p)) {
    if (p.entry != known_entry) {
      known_entry = p.entry;
      columns = DENSE ? a.pairs : list.count[p.entry];
      first_pair = DENSE ? 0 : list.begin[p.entry];
      alpha = __ldg(a.alpha + (DENSE ? 0 : list.expert[p.entry]));
#pragma unroll
      for (int c = 0; c < NT; ++c) {
        // Alone, a row fills all columns, each with another of its groups.
        const int column = columns == 1 && !GLOBAL_X ? 0 : c * 8 + g;
        const int index = first_pair + (column < columns ? column : 0);
        if constexpr (GLOBAL_X)
          x_row[c] = a.x + static_cast<size_t>(ACT ? pair_of(index) / a.pairs_per_row : pair_of(index)) * a.k + part * kUnit + t * 32;
        else
          x_start[c] = static_cast<uint32_t>(__cvta_generic_to_shared(x_bytes)) + stage_of(index) * x_row_bytes + part * 512 + t * 16;
      }
    }
    float sum[NT][4];
#pragma unroll
    for (int c = 0; c < NT; ++c)
#pragma unroll
      for (int i = 0; i < 4; ++i) sum[c][i] = 0.f;
    uint4 x[NT][4];                               // lanes that bring nothing keep their zeros
#pragma unroll
    for (int c = 0; c < NT; ++c)
#pragma unroll
      for (int j = 0; j < 4; ++j) x[c][j] = make_uint4(0, 0, 0, 0);

    const bool one = !GLOBAL_X && columns == 1;
    if (one) {
      // One row of x: the eight columns of the MMA hold its eight groups of a step, each column zero outside its group, and the
      // block scales multiply sums instead of weights.
      const bool brings = (g >> 1) == t, even = brings && (g & 1) == 0, odd = brings && (g & 1) == 1;
      uint32_t at = x_start[0];
      for (int unit = 0; unit < my_units; ++unit) {
        copy();
        wait_copies_but_last();
#pragma unroll
        for (int s = 0; s < 2; ++s) {
          if (even) {
            x[0][0] = shared_16(at + s * 256);
            x[0][1] = shared_16(at + s * 256 + 64);
          }
          if (odd) {
            x[0][2] = shared_16(at + s * 256 + 128);
            x[0][3] = shared_16(at + s * 256 + 192);
          }
          const uint4 wl = shared_16(from + s * kStepBytes), wh = shared_16(from + s * kStepBytes + 512);
          const uint2 scale = shared_8(from + s * kStepBytes + 1024 - lane * 8);
          const uint32_t words_low[4] = {wl.x, wl.y, wl.z, wl.w}, words_high[4] = {wh.x, wh.y, wh.z, wh.w};
          float of_groups[4] = {0.f, 0.f, 0.f, 0.f};
#pragma unroll
          for (int j = 0; j < 4; ++j) {
            uint32_t l[4], h[4];
            nvfp4::decode_e2m1_f16(words_low[j], l);
            nvfp4::decode_e2m1_f16(words_high[j], h);
            nvfp4::mma_f16(of_groups, l[0], h[0], l[1], h[1], x[0][j].x, x[0][j].y);
            nvfp4::mma_f16(of_groups, l[2], h[2], l[3], h[3], x[0][j].z, x[0][j].w);
          }
          // Columns 2t and 2t + 1 are the groups whose scales this lane has.
          const int shift = (t & 1) * 16;
          const float2 sl = halves(scales_f16(scale.x >> shift)), sh = halves(scales_f16(scale.y >> shift));
          sum[0][0] = fmaf(of_groups[0], sl.x, fmaf(of_groups[1], sl.y, sum[0][0]));
          sum[0][2] = fmaf(of_groups[2], sh.x, fmaf(of_groups[3], sh.y, sum[0][2]));
        }
        at += split * 512;
        from ^= other_stage;
      }
    } else {
      uint32_t at[NT];
      const __nv_bfloat16* row_at[NT];
#pragma unroll
      for (int c = 0; c < NT; ++c) {
        at[c] = GLOBAL_X ? 0 : x_start[c];
        row_at[c] = GLOBAL_X ? x_row[c] : nullptr;
      }
      for (int unit = 0; unit < my_units; ++unit) {
        copy();
        wait_copies_but_last();
#pragma unroll
        for (int s = 0; s < 2; ++s) {
#pragma unroll
          for (int c = 0; c < NT; ++c) {
            if (c * 8 + g >= columns) continue;
            if constexpr (GLOBAL_X) {
              const bool inside = !(ends_beyond && unit == last_unit && (s == 0 ? beyond_first : beyond_second));
#pragma unroll
              for (int j = 0; j < 4; ++j)
                x[c][j] = inside ? interleave(nvfp4::load_16(row_at[c] + s * kStep + j * 8)) : make_uint4(0, 0, 0, 0);
            } else {
#pragma unroll
              for (int j = 0; j < 4; ++j) x[c][j] = shared_16(at[c] + s * 256 + j * 64);
            }
          }
          const uint4 wl = shared_16(from + s * kStepBytes), wh = shared_16(from + s * kStepBytes + 512);
          const uint2 scale = shared_8(from + s * kStepBytes + 1024 - lane * 8);
          const uint32_t words_low[4] = {wl.x, wl.y, wl.z, wl.w}, words_high[4] = {wh.x, wh.y, wh.z, wh.w};
          const int shift = (t & 1) * 16;
          uint32_t scale_low[2], scale_high[2];
          if constexpr (GLOBAL_X) {
            nvfp4::scale_pair((scale.x >> shift) & 0xffffu, scale_low[0], scale_low[1]);
            nvfp4::scale_pair((scale.y >> shift) & 0xffffu, scale_high[0], scale_high[1]);
          } else {
            nvfp4::scale_pair_f16(scales_f16(scale.x >> shift), scale_low[0], scale_low[1]);
            nvfp4::scale_pair_f16(scales_f16(scale.y >> shift), scale_high[0], scale_high[1]);
          }
#pragma unroll
          for (int j = 0; j < 4; ++j) {
            uint32_t l[4], h[4];
            if constexpr (GLOBAL_X) {
              nvfp4::decode_e2m1_bf16(words_low[j], l);
              nvfp4::decode_e2m1_bf16(words_high[j], h);
            } else {
              nvfp4::decode_e2m1_f16(words_low[j], l);
              nvfp4::decode_e2m1_f16(words_high[j], h);
            }
#pragma unroll
            for (int i = 0; i < 4; ++i) {
              l[i] = GLOBAL_X ? nvfp4::multiply_bf16x2(l[i], scale_low[j >> 1]) : nvfp4::multiply_f16x2(l[i], scale_low[j >> 1]);
              h[i] = GLOBAL_X ? nvfp4::multiply_bf16x2(h[i], scale_high[j >> 1]) : nvfp4::multiply_f16x2(h[i], scale_high[j >> 1]);
            }
#pragma unroll
            for (int c = 0; c < NT; ++c) {
              if constexpr (GLOBAL_X) {
                nvfp4::mma_bf16(sum[c], l[0], h[0], l[1], h[1], x[c][j].x, x[c][j].y);
                nvfp4::mma_bf16(sum[c], l[2], h[2], l[3], h[3], x[c][j].z, x[c][j].w);
              } else {
                nvfp4::mma_f16(sum[c], l[0], h[0], l[1], h[1], x[c][j].x, x[c][j].y);
                nvfp4::mma_f16(sum[c], l[2], h[2], l[3], h[3], x[c][j].z, x[c][j].w);
              }
            }
          }
        }
#pragma unroll
        for (int c = 0; c < NT; ++c) {
          at[c] += split * 512;
          row_at[c] += split * kUnit;
        }
        from ^= other_stage;
      }
    }

    // --- the tile's results ---
    if (split > 1) {
      // Each warp leaves its part; one, in turn, adds them. Two buffers: nobody waits unless he is two tiles ahead of the adder.
      const int buffer = done & 1;
      const uint32_t full = barrier + buffer * 8, read = full + 16;
      if (done >= 2) await(read, (done >> 1 & 1) ^ 1);
      float* to_sums = sums + (buffer * warps + warp) * kSums * 32 + lane;
#pragma unroll
      for (int i = 0; i < kSums; ++i)
        if (!one || i == 0 || i == 2) to_sums[i * 32] = sum[i >> 2][i & 3];
      arrive(full);                               // every lane for what it wrote itself
      const bool mine = part == turn;
      if (mine) {
        await(full, done >> 1 & 1);
        const float* parts = sums + (buffer * warps + group * split) * kSums * 32 + lane;
#pragma unroll
        for (int i = 0; i < kSums; ++i)
          if (!one || i == 0 || i == 2) {
            float v = parts[i * 32];
            for (int w = 1; w < split; ++w) v += parts[(w * kSums + i) * 32];
            sum[i >> 2][i & 3] = v;
          }
        arrive(read);
      }
      ++done;
      if (++turn == split) turn = 0;
      if (!mine) continue;
    }
    if (one) {
      // Each quad has the two rows' sums in four parts, and only lane t = 0 has column 0.
#pragma unroll
      for (int d = 1; d < 4; d <<= 1) {
        sum[0][0] += __shfl_xor_sync(0xffffffffu, sum[0][0], d);
        sum[0][2] += __shfl_xor_sync(0xffffffffu, sum[0][2], d);
      }
    }
    const int row = row_of(p.tile);
#pragma unroll
    for (int c = 0; c < NT; ++c)
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int column = c * 8 + 2 * t + i;
        if (column >= columns) continue;
        const int pair = pair_of(first_pair + column);
        float factor = alpha;
        if constexpr (GLOBAL_X)
          factor *= nvfp4::kUndoTwoToMinus7;
        else
          factor *= (one ? nvfp4::kUndoOne : nvfp4::kUndoScaled) / raise_of(largest[stage_of(first_pair + column)]);
        const float first = sum[c][i] * factor, second = sum[c][i + 2] * factor;
        __nv_bfloat16* y = a.y + static_cast<size_t>(pair) * outputs + row;
        if constexpr (ACT) {
          if (row < outputs) y[0] = __float2bfloat16(nvfp4::silu(first) * second);
        } else {
          if (row < outputs) y[0] = __float2bfloat16(first);
          if (row + 32 < outputs) y[32] = __float2bfloat16(second);
        }
      }
  }
}

using SkinnyLaunch = int (*)(const SkinnyShape&, int blocks, int threads, size_t shared_bytes, cudaStream_t);

template <int NT, Kind KIND, bool SWIZZLED, bool GLOBAL_X>
int launch_instance(const SkinnyShape& shape, int blocks, int threads, size_t shared_bytes, cudaStream_t stream) {
  auto* kernel = skinny_kernel<NT, KIND, SWIZZLED, GLOBAL_X>;
  if (shared_bytes > 40 * 1024) {
    const cudaError_t error =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes));
    if (error != cudaSuccess) return static_cast<int>(error);
  }
  return nvfp4::launch_dependent(kernel, dim3(static_cast<unsigned>(blocks)), static_cast<unsigned>(threads), shared_bytes, stream,
                                 shape);
}

// columns: 8 or 16 rows of x at once; null where there is no such instance. Each kind is compiled in a file of its own, skinny_*.cu.
template <Kind KIND>
SkinnyLaunch skinny_instance(int columns, bool swizzled, bool global_x) {
  if (columns == 8 && swizzled && !global_x) return launch_instance<1, KIND, true, false>;
  if (columns == 8 && swizzled && global_x) return launch_instance<1, KIND, true, true>;
  if (columns == 8 && !swizzled && global_x) return launch_instance<1, KIND, false, true>;
  if (columns == 16 && swizzled && !global_x) return launch_instance<2, KIND, true, false>;
  if (columns == 16 && swizzled && global_x) return launch_instance<2, KIND, true, true>;
  if (columns == 16 && !swizzled && global_x) return launch_instance<2, KIND, false, true>;
  return nullptr;
}
extern template SkinnyLaunch skinny_instance<Kind::dense>(int, bool, bool);
extern template SkinnyLaunch skinny_instance<Kind::gate_up>(int, bool, bool);
extern template SkinnyLaunch skinny_instance<Kind::down>(int, bool, bool);

}  // namespace sparkfleet
