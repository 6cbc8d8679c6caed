// Copyright (c) 2026, the sparkfleet.vllm authors
// GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
// SPDX-License-Identifier: GPL-3.0-or-later
// Launches the skinny product: which instance, how many blocks, how much shared memory.
#include <algorithm>

#include "skinny.cuh"

namespace sparkfleet {
namespace {

constexpr size_t kStaticBytes = sizeof(WorkList) + kMaxPairs * sizeof(uint32_t) + 512 + 64;

int columns_at_once(const SkinnyArgs& args) { return args.tokens > 8 ? 16 : 8; }

size_t shared_needed(Kind kind, const Variant& v, const SkinnyArgs& args, const Device& device) {
  const size_t sums = v.split > 1 ? 2u * v.warps * (columns_at_once(args) / 2) * 128 : 0;
  const int rows = kind == Kind::down ? staged_rows(args.pairs, args.tokens, device.sms) : args.x_rows;
  const size_t x = v.global_x ? 0 : static_cast<size_t>(rows) * shared_row_bytes(args.k);
  const size_t ring = static_cast<size_t>(v.warps) * 2 * kStageBytes;
  return std::max(ring + sums + x, kScratchBytes);
}

}  // namespace

const char* refuse_variant(Kind kind, const Variant& v, const SkinnyArgs& args, const Device& device) {
  if (const char* why = refuse_split(v, args.k, args.tokens)) return why;
  if (!args.swizzled && !v.global_x) return "linear scales go with x read through L1";
  if (shared_needed(kind, v, args, device) + kStaticBytes > static_cast<size_t>(device.shared_bytes)) return "not enough shared memory in a block";
  return nullptr;
}

int launch_skinny(Kind kind, const Variant& v, const SkinnyArgs& args, const Device& device, cudaStream_t stream) {
  SkinnyShape shape{};
  shape.x = args.x;
  shape.weight = args.weight;
  shape.scale = args.scale;
  shape.alpha = args.alpha;
  shape.ids = args.ids;
  shape.expert_map = args.expert_map;
  shape.y = args.y;
  shape.pairs = args.pairs;
  shape.pairs_per_row = args.pairs_per_row;
  shape.x_rows = args.x_rows;
  shape.n = args.n;
  shape.k = args.k;
  shape.experts = args.experts;
  shape.map_size = args.map_size;
  shape.scale_stride = args.scale_stride;
  shape.split = v.split;
  shape.tiles = tiles_of(kind, args.n);
  const int columns = columns_at_once(args);
  const SkinnyLaunch launch = (kind == Kind::dense     ? skinny_instance<Kind::dense>
                               : kind == Kind::gate_up ? skinny_instance<Kind::gate_up>
                                                       : skinny_instance<Kind::down>)(columns, args.swizzled, v.global_x);
  if (launch == nullptr) return static_cast<int>(cudaErrorInvalidValue);
  const long items = static_cast<long>(shape.tiles) * (args.ids == nullptr ? 1 : args.pairs);
  const long blocks = std::min<long>(device.sms, items);
  return launch(shape, static_cast<int>(blocks), v.warps * 32, shared_needed(kind, v, args, device), stream);
}

}  // namespace sparkfleet
