// Copyright (c) 2026, the sparkfleet.vllm authors
// GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
// SPDX-License-Identifier: GPL-3.0-or-later
// Which variant of the skinny product runs: a static rule, so that a serving process never measures anything.
#include <algorithm>

#include "launch.h"

namespace sparkfleet {
namespace {

constexpr int kSplits[] = {1, 2, 3, 4, 6, 8, 12, 16};
constexpr int kWarps[] = {8, 12, 16, 20, 24};

int ceil_div(long a, long b) { return static_cast<int>((a + b - 1) / b); }

// The estimate of a variant's time, in units of its own: tiles of the busiest group of warps * (units of 256 along K * unit +
// finishing a tile) + placing x + starting warps. It counts tiles, not bytes: where DRAM is slower than on the machine of the
// sweep, as on GB10, all variants come closer to each other.
struct Cost {
  double unit[5];                 // of a block of kWarps
  double global_x;                // factor of a unit whose x is read through L1
  double sum, sum_of_warp;        // adding the parts of warps that split K
  double no_sum;                  // finishing where one warp has all of K
  double place_x;                 // 4096 values of x into shared memory
  double warp;
  double evenness;                // 0: the busiest group counts, 1: the mean
};
struct Exception {
  int kind, n, k, rows, groups, sms, shared_bytes, variant;   // kind -1: none
};
#include "rule_table.h"

}  // namespace

bool parse_variant(int number, Variant& v) {
  v = Variant{number / 10000 == 1, number / 100 % 100, number % 100};
  bool split = false, warps = false;
  for (int s : kSplits) split |= s == v.split;
  for (int w : kWarps) warps |= w == v.warps;
  return number >= 0 && number < 20000 && split && warps && v.split <= v.warps;
}

int all_variants(int* out, int capacity) {
  int count = 0;
  for (int x = 0; x < 2; ++x)
    for (int w : kWarps)
      for (int s : kSplits) {
        if (s > w) continue;
        if (count < capacity) out[count] = x * 10000 + w * 100 + s;
        ++count;
      }
  return count;
}

const char* refuse_split(const Variant& v, int k, int tokens) {
  if (tokens > 8 && v.warps > 16) return "more than 16 warps have too few registers for more than 8 rows of x";
  if (v.split > v.warps) return "more warps split K than a block has";
  if (v.split > ceil_div(k, 256)) return "more warps split K than it has units of 256";
  if (v.split > 1 && v.warps / v.split > 16) return "more groups of warps than barriers";
  return nullptr;
}

int tiles_of(Kind kind, int n) { return kind == Kind::gate_up ? ceil_div(n, 256) * 16 : ceil_div(n, 128) * 8; }

// With no more pairs than multiprocessors a block's share of the tiles is at most one expert's, so that it touches two.
int staged_rows(int pairs, int tokens, int sms) { return std::min(pairs, (tokens > 8 ? 16 : 8) * (ceil_div(pairs, sms) + 1)); }

int choose_variant(Kind kind, int n, int k, int rows, int groups, int sms, int shared_bytes) {
  const int units = ceil_div(k, 256);
  const int x_rows = kind == Kind::down ? staged_rows(groups, rows, sms) : rows, sums = rows > 8 ? 8 : 4;
  const long tiles = static_cast<long>(tiles_of(kind, n)) * (kind == Kind::dense ? 1 : groups);
  int bucket = 0;
  while (bucket < 4 && rows > 1 << bucket) ++bucket;
  const Cost& cost = kCosts[kind == Kind::dense ? 0 : 1][bucket];
  for (const Exception& e : kExceptions)
    if (e.kind == static_cast<int>(kind) && e.n == n && e.k == k && e.rows == rows && e.groups == groups && e.sms == sms && e.shared_bytes == shared_bytes)
      return e.variant;
  double least = 0;
  int number = 0;
  for (int global_x = 0; global_x < 2; ++global_x)
    for (int w = 0; w < 5; ++w)
      for (int split : kSplits) {
        const int warps = kWarps[w], groups_of_warps = warps / split;
        if (refuse_split(Variant{global_x != 0, warps, split}, k, rows) != nullptr) continue;
        // The rings, the sums, x, and what is static (launch_skinny() counts exactly; this is no less).
        const long shared = warps * (5120L + (split > 1 ? 2 * sums * 128 : 0)) +
                            (global_x != 0 ? 0 : static_cast<long>(x_rows) * (units * 512L + 64)) + 7 * 1024;
        if (shared > shared_bytes) continue;
        const double share = static_cast<double>(tiles) / (static_cast<double>(sms) * groups_of_warps);
        const double most = static_cast<double>(ceil_div(tiles, static_cast<long>(sms) * groups_of_warps));
        const double busiest = std::max(1.0, most * (1 - cost.evenness) + share * cost.evenness);
        const double unit = cost.unit[w] * (global_x != 0 ? cost.global_x : 1);
        const double finish = split > 1 ? cost.sum + cost.sum_of_warp * split : cost.no_sum;
        const double place = global_x != 0 ? 0 : cost.place_x * x_rows * k / 4096;
        const double estimate = busiest * (ceil_div(units, split) * unit + finish) + place + cost.warp * warps;
        if (number == 0 || estimate < least) {
          least = estimate;
          number = global_x * 10000 + warps * 100 + split;
        }
      }
  return number;
}

}  // namespace sparkfleet

extern "C" {

__attribute__((visibility("default"))) int sparkfleet_kernels_variants(int* out, int capacity) {
  return sparkfleet::all_variants(out, capacity);
}

__attribute__((visibility("default"))) int sparkfleet_kernels_variant(int kind, int n, int k, int rows, int groups, int sms,
                                                                      int shared_bytes) {
  return sparkfleet::choose_variant(static_cast<sparkfleet::Kind>(kind), n, k, rows, groups, sms, shared_bytes);
}

}
