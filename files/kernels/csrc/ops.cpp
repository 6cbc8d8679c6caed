// Copyright (c) 2026, the sparkfleet.vllm authors
// GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
// SPDX-License-Identifier: GPL-3.0-or-later
// torch operators over LibTorch's stable ABI: no Python and no torch C++ classes, so one library serves every Python and every
// torch from 2.11 on. Everything is checked here, before a launch; the fakes are in Python (ops.py).
#include <cuda_runtime.h>
#include <dlfcn.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <cstdint>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <tuple>

#include "launch.h"

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t kMaxRows = 16, kMaxExperts = 512, kMaxTopK = 32;

int64_t round_up(int64_t a, int64_t b) { return (a + b - 1) / b * b; }

// STD_TORCH_CHECK puts a path of the build machine before the message.
template <typename... Parts>
[[noreturn]] void refuse(const Parts&... parts) {
  std::ostringstream text;
  (text << ... << parts);
  throw std::runtime_error(text.str());
}
#define REQUIRE(condition, ...) \
  do {                          \
    if (!(condition)) refuse(__VA_ARGS__); \
  } while (false)

// libtorch_cuda has this function and a torch without CUDA does not, so it is looked up when it is needed.
cudaStream_t current_stream(int32_t device) {
  using Get = AOTITorchError (*)(int32_t, void**);
  static const Get get = [] {
    void* library = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD);
    void* symbol = dlsym(library != nullptr ? library : RTLD_DEFAULT, "aoti_torch_get_current_cuda_stream");
    return reinterpret_cast<Get>(symbol);
  }();
  REQUIRE(get != nullptr, "sparkfleet_kernels: this torch has no CUDA");
  void* stream = nullptr;
  REQUIRE(get(device, &stream) == 0, "sparkfleet_kernels: torch gave no CUDA stream");
  return static_cast<cudaStream_t>(stream);
}

sparkfleet::Device device_of(int32_t index) {
  constexpr int kDevices = 64;
  static sparkfleet::Device known[kDevices];
  static bool filled[kDevices];
  REQUIRE(index >= 0 && index < kDevices, "sparkfleet_kernels: device index ", index, " is out of range");
  if (!filled[index]) {           // two threads would write the same values
    sparkfleet::Device d{};
    cudaDeviceGetAttribute(&d.sms, cudaDevAttrMultiProcessorCount, index);
    cudaDeviceGetAttribute(&d.shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, index);
    REQUIRE(d.sms > 0, "sparkfleet_kernels: CUDA says nothing about device ", index);
    known[index] = d;
    filled[index] = true;
  }
  return known[index];
}

void check_launch(int error, const char* op) {
  REQUIRE(error == 0, op, ": launch failed: ", cudaGetErrorString(static_cast<cudaError_t>(error)));
}

const char* name_of(ScalarType type) {
  switch (type) {
    case ScalarType::BFloat16: return "bfloat16";
    case ScalarType::Byte: return "uint8";
    case ScalarType::Float: return "float32";
    default: return "int32";
  }
}

// One argument: dtype, dimensions, contiguity, 16-byte alignment, and the device of the first.
void check(const char* op, const char* name, const Tensor& t, ScalarType type, int64_t dim, const Tensor& like) {
  REQUIRE(t.is_cuda(), op, ": ", name, " must be on a CUDA device");
  REQUIRE(t.get_device_index() == like.get_device_index(), op, ": ", name, " must be on the same device as the others");
  REQUIRE(t.scalar_type() == type, op, ": ", name, " must be ", name_of(type));
  REQUIRE(t.dim() == dim, op, ": ", name, " must have ", dim, " dimensions, has ", t.dim());
  REQUIRE(t.is_contiguous(), op, ": ", name, " must be contiguous");
  const int64_t alignment = type == ScalarType::Int ? 4 : 16;
  REQUIRE(t.numel() == 0 || reinterpret_cast<uintptr_t>(t.const_data_ptr()) % alignment == 0, op, ": ", name,
          " must be aligned to ", alignment, " bytes");
}

void check_float(const char* op, const char* name, const Tensor& t, int64_t count, const Tensor& like) {
  REQUIRE(t.is_cuda(), op, ": ", name, " must be on a CUDA device");
  REQUIRE(t.get_device_index() == like.get_device_index(), op, ": ", name, " must be on the same device as the others");
  REQUIRE(t.scalar_type() == ScalarType::Float, op, ": ", name, " must be float32");
  REQUIRE(t.numel() == count && t.is_contiguous(), op, ": ", name, " must hold ", count, " values, has ", t.numel());
}

void check_shape(const char* op, const char* name, const Tensor& t, int64_t axis, int64_t want) {
  REQUIRE(t.size(axis) == want, op, ": ", name, " must have size ", want, " in dimension ", axis, ", has ", t.size(axis));
}

void check_k(const char* op, const char* name, int64_t k, int64_t multiple) {
  REQUIRE(k >= multiple && k % multiple == 0, op, ": ", name, " must be a multiple of ", multiple, ", is ", k);
}

void check_rows(const char* op, int64_t rows) {
  REQUIRE(rows <= kMaxRows, op, ": x has ", rows, " rows, at most ", kMaxRows, " are possible");
}

int64_t scale_rows(int64_t rows, bool swizzled) { return swizzled ? round_up(rows, 128) : rows; }

template <typename T>
const T* data(const Tensor& t) {
  return static_cast<const T*>(t.const_data_ptr());
}
template <typename T>
T* mutable_data(const Tensor& t) {
  return static_cast<T*>(const_cast<void*>(t.const_data_ptr()));
}

sparkfleet::Variant pick(const char* op, sparkfleet::Kind kind, int64_t number, const sparkfleet::SkinnyArgs& args, int64_t rows,
                         const sparkfleet::Device& device) {
  if (number == 0) {
    number = sparkfleet::choose_variant(kind, args.n, args.k, static_cast<int>(rows), args.ids == nullptr ? 1 : args.pairs,
                                        device.sms, device.shared_bytes);
    if (!args.swizzled && number < 10000) number += 10000;
  }
  sparkfleet::Variant variant{};
  REQUIRE(sparkfleet::parse_variant(static_cast<int>(number), variant), op, ": there is no variant ", number);
  const char* why = sparkfleet::refuse_variant(kind, variant, args, device);
  REQUIRE(why == nullptr, op, ": variant ", number, " cannot do this shape: ", why);
  return variant;
}

Tensor nvfp4_gemm_a16(const Tensor& x, const Tensor& weight, const Tensor& weight_scale, const Tensor& alpha, bool swizzled,
                      int64_t variant) {
  constexpr const char* op = "nvfp4_gemm_a16";
  check(op, "x", x, ScalarType::BFloat16, 2, x);
  check(op, "weight", weight, ScalarType::Byte, 2, x);
  check(op, "weight_scale", weight_scale, ScalarType::Byte, 2, x);
  check_float(op, "alpha", alpha, 1, x);
  const int64_t m = x.size(0), k = x.size(1), n = weight.size(0);
  check_k(op, "K", k, 64);
  check_rows(op, m);
  check_shape(op, "weight", weight, 1, k / 2);
  check_shape(op, "weight_scale", weight_scale, 0, scale_rows(n, swizzled));
  check_shape(op, "weight_scale", weight_scale, 1, k / 16);
  REQUIRE(n <= INT32_MAX / 2 && k <= INT32_MAX / 2, op, ": the weights are too large");
  torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  Tensor y = torch::stable::new_empty(x, {m, n}, ScalarType::BFloat16);
  if (m == 0 || n == 0) return y;
  sparkfleet::SkinnyArgs args{};
  args.x = data<__nv_bfloat16>(x);
  args.weight = data<uint8_t>(weight);
  args.scale = data<uint8_t>(weight_scale);
  args.alpha = data<float>(alpha);
  args.y = mutable_data<__nv_bfloat16>(y);
  args.pairs = args.x_rows = args.tokens = static_cast<int>(m);
  args.pairs_per_row = 1;
  args.n = static_cast<int>(n);
  args.k = static_cast<int>(k);
  args.experts = 1;
  args.swizzled = swizzled;
  const auto device = device_of(x.get_device_index());
  const auto chosen = pick(op, sparkfleet::Kind::dense, variant, args, m, device);
  check_launch(launch_skinny(sparkfleet::Kind::dense, chosen, args, device, current_stream(x.get_device_index())), op);
  return y;
}

void nvfp4_moe_a16(const Tensor& x, const Tensor& w13, const Tensor& w13_scale, const Tensor& w13_alpha, const Tensor& w2,
                   const Tensor& w2_scale, const Tensor& w2_alpha, const Tensor& topk_weights, const Tensor& topk_ids,
                   const std::optional<Tensor>& expert_map, const Tensor& out, bool swizzled, int64_t variant13, int64_t variant2) {
  constexpr const char* op = "nvfp4_moe_a16";
  check(op, "x", x, ScalarType::BFloat16, 2, x);
  check(op, "w13", w13, ScalarType::Byte, 3, x);
  check(op, "w13_scale", w13_scale, ScalarType::Byte, 3, x);
  check(op, "w2", w2, ScalarType::Byte, 3, x);
  check(op, "w2_scale", w2_scale, ScalarType::Byte, 3, x);
  check(op, "topk_ids", topk_ids, ScalarType::Int, 2, x);
  check(op, "out", out, ScalarType::BFloat16, 2, x);
  const int64_t m = x.size(0), h = x.size(1), experts = w13.size(0), n13 = w13.size(1), inner = n13 / 2, topk = topk_ids.size(1);
  check_k(op, "H", h, 64);
  REQUIRE(n13 % 2 == 0, op, ": w13 must hold gate and up rows, has ", n13);
  check_k(op, "I", inner, 64);
  check_rows(op, m);
  REQUIRE(experts >= 1 && experts <= kMaxExperts, op, ": ", experts, " experts, 1 to ", kMaxExperts, " are possible");
  REQUIRE(topk >= 1 && topk <= kMaxTopK, op, ": top-k is ", topk, ", 1 to ", kMaxTopK, " are possible");
  check_shape(op, "w13", w13, 2, h / 2);
  check_shape(op, "w2", w2, 0, experts);
  check_shape(op, "w2", w2, 1, h);
  check_shape(op, "w2", w2, 2, inner / 2);
  check_shape(op, "w13_scale", w13_scale, 0, experts);
  check_shape(op, "w13_scale", w13_scale, 1, scale_rows(n13, swizzled));
  check_shape(op, "w13_scale", w13_scale, 2, h / 16);
  check_shape(op, "w2_scale", w2_scale, 0, experts);
  check_shape(op, "w2_scale", w2_scale, 1, scale_rows(h, swizzled));
  check_shape(op, "w2_scale", w2_scale, 2, inner / 16);
  check_float(op, "w13_alpha", w13_alpha, experts, x);
  check_float(op, "w2_alpha", w2_alpha, experts, x);
  check_shape(op, "topk_ids", topk_ids, 0, m);
  REQUIRE(topk_weights.dim() == 2, op, ": topk_weights must have 2 dimensions, has ", topk_weights.dim());
  check_float(op, "topk_weights", topk_weights, m * topk, x);
  check_shape(op, "out", out, 0, m);
  check_shape(op, "out", out, 1, h);
  if (expert_map.has_value()) check(op, "expert_map", *expert_map, ScalarType::Int, 1, x);
  if (m == 0) return;
  torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  const int64_t pairs = m * topk;
  Tensor hidden = torch::stable::new_empty(x, {pairs, inner}, ScalarType::BFloat16);
  Tensor z = torch::stable::new_empty(x, {pairs, h}, ScalarType::BFloat16);
  const auto device = device_of(x.get_device_index());
  const auto stream = current_stream(x.get_device_index());

  sparkfleet::SkinnyArgs up{};
  up.x = data<__nv_bfloat16>(x);
  up.weight = data<uint8_t>(w13);
  up.scale = data<uint8_t>(w13_scale);
  up.alpha = data<float>(w13_alpha);
  up.ids = data<int>(topk_ids);
  up.expert_map = expert_map.has_value() ? data<int>(*expert_map) : nullptr;
  up.map_size = expert_map.has_value() ? static_cast<int>(expert_map->numel()) : 0;
  up.y = mutable_data<__nv_bfloat16>(hidden);
  up.pairs = static_cast<int>(pairs);
  up.pairs_per_row = static_cast<int>(topk);
  up.x_rows = up.tokens = static_cast<int>(m);
  up.n = static_cast<int>(n13);
  up.k = static_cast<int>(h);
  up.experts = static_cast<int>(experts);
  up.scale_stride = static_cast<size_t>(scale_rows(n13, swizzled) * (h / 16));
  up.swizzled = swizzled;
  sparkfleet::SkinnyArgs down = up;
  down.x = data<__nv_bfloat16>(hidden);
  down.weight = data<uint8_t>(w2);
  down.scale = data<uint8_t>(w2_scale);
  down.alpha = data<float>(w2_alpha);
  down.y = mutable_data<__nv_bfloat16>(z);
  down.pairs_per_row = 1;
  down.x_rows = static_cast<int>(pairs);
  down.n = static_cast<int>(h);
  down.k = static_cast<int>(inner);
  down.scale_stride = static_cast<size_t>(scale_rows(h, swizzled) * (inner / 16));

  const auto first = pick(op, sparkfleet::Kind::gate_up, variant13, up, m, device);
  const auto second = pick(op, sparkfleet::Kind::down, variant2, down, m, device);
  check_launch(launch_skinny(sparkfleet::Kind::gate_up, first, up, device, stream), op);
  check_launch(launch_skinny(sparkfleet::Kind::down, second, down, device, stream), op);
  check_launch(sparkfleet::launch_topk_reduce(data<__nv_bfloat16>(z), data<float>(topk_weights), up.ids, up.expert_map, up.map_size,
                                              up.experts, mutable_data<__nv_bfloat16>(out), static_cast<int>(m),
                                              static_cast<int>(topk), static_cast<int>(h), stream),
               op);
}

std::tuple<Tensor, Tensor> nvfp4_quantize(const Tensor& x, const Tensor& global_scale, bool swizzled, bool silu_mul) {
  constexpr const char* op = "nvfp4_quantize";
  check(op, "x", x, ScalarType::BFloat16, 2, x);
  check_float(op, "global_scale", global_scale, 1, x);
  REQUIRE(!silu_mul || x.size(1) % 2 == 0, op, ": x must hold gate and up columns, has ", x.size(1));
  const int64_t m = x.size(0), k = silu_mul ? x.size(1) / 2 : x.size(1), groups = k / 16;
  check_k(op, "K", k, 16);
  const int64_t rows = scale_rows(m, swizzled), columns = swizzled ? round_up(groups, 4) : groups;
  REQUIRE(rows * columns <= INT32_MAX / 2, op, ": x is too large");
  torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  Tensor packed = torch::stable::new_empty(x, {m, k / 2}, ScalarType::Byte);
  Tensor scales = torch::stable::new_empty(x, {rows, columns}, ScalarType::Byte);
  if (m == 0) return {packed, scales};
  check_launch(sparkfleet::launch_quantize(data<__nv_bfloat16>(x), data<float>(global_scale), mutable_data<uint8_t>(packed),
                                           mutable_data<uint8_t>(scales), static_cast<int>(m), static_cast<int>(k), swizzled,
                                           silu_mul, device_of(x.get_device_index()).sms, current_stream(x.get_device_index())),
               op);
  return {packed, scales};
}

Tensor nvfp4_gemm_a4(const Tensor& x, const Tensor& x_scale, const Tensor& weight, const Tensor& weight_scale, const Tensor& alpha,
                     bool swizzled) {
  constexpr const char* op = "nvfp4_gemm_a4";
  check(op, "x", x, ScalarType::Byte, 2, x);
  check(op, "x_scale", x_scale, ScalarType::Byte, 2, x);
  check(op, "weight", weight, ScalarType::Byte, 2, x);
  check(op, "weight_scale", weight_scale, ScalarType::Byte, 2, x);
  check_float(op, "alpha", alpha, 1, x);
  const int64_t m = x.size(0), k = x.size(1) * 2, n = weight.size(0);
  check_k(op, "K", k, 64);
  check_rows(op, m);
  check_shape(op, "weight", weight, 1, k / 2);
  check_shape(op, "weight_scale", weight_scale, 0, scale_rows(n, swizzled));
  check_shape(op, "weight_scale", weight_scale, 1, k / 16);
  check_shape(op, "x_scale", x_scale, 0, scale_rows(m, swizzled));
  check_shape(op, "x_scale", x_scale, 1, k / 16);
  torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  Tensor y = torch::stable::new_empty(x, {m, n}, ScalarType::BFloat16);
  if (m == 0 || n == 0) return y;
  check_launch(sparkfleet::launch_gemm_a4(data<uint8_t>(x), data<uint8_t>(x_scale), data<uint8_t>(weight), data<uint8_t>(weight_scale),
                                          data<float>(alpha), mutable_data<__nv_bfloat16>(y), static_cast<int>(m),
                                          static_cast<int>(n), static_cast<int>(k), swizzled, current_stream(x.get_device_index())),
               op);
  return y;
}

void read_probe(const Tensor& x, const Tensor& sink) {
  constexpr const char* op = "read_probe";
  check(op, "x", x, ScalarType::Byte, 1, x);
  REQUIRE(x.numel() % 16 == 0, op, ": x must be a multiple of 16 bytes");
  REQUIRE(sink.is_cuda() && sink.scalar_type() == ScalarType::Int && sink.numel() >= 1, op, ": sink must be one int32 on CUDA");
  torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  check_launch(sparkfleet::launch_read_probe(x.const_data_ptr(), static_cast<size_t>(x.numel()), mutable_data<uint32_t>(sink),
                                             device_of(x.get_device_index()).sms, current_stream(x.get_device_index())),
               op);
}

}  // namespace

STABLE_TORCH_LIBRARY(sparkfleet_kernels, m) {
  m.def("nvfp4_gemm_a16(Tensor x, Tensor weight, Tensor weight_scale, Tensor alpha, bool swizzled=True, int variant=0) -> Tensor");
  m.def(
      "nvfp4_moe_a16(Tensor x, Tensor w13, Tensor w13_scale, Tensor w13_alpha, Tensor w2, Tensor w2_scale, Tensor w2_alpha, "
      "Tensor topk_weights, Tensor topk_ids, Tensor? expert_map, Tensor(a!) out, bool swizzled=True, int variant13=0, "
      "int variant2=0) -> ()");
  m.def("nvfp4_quantize(Tensor x, Tensor global_scale, bool swizzled=True, bool silu_mul=False) -> (Tensor, Tensor)");
  m.def(
      "nvfp4_gemm_a4(Tensor x, Tensor x_scale, Tensor weight, Tensor weight_scale, Tensor alpha, bool swizzled=True) -> Tensor");
  m.def("read_probe(Tensor x, Tensor(a!) sink) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(sparkfleet_kernels, CUDA, m) {
  m.impl("nvfp4_gemm_a16", TORCH_BOX(&nvfp4_gemm_a16));
  m.impl("nvfp4_moe_a16", TORCH_BOX(&nvfp4_moe_a16));
  m.impl("nvfp4_quantize", TORCH_BOX(&nvfp4_quantize));
  m.impl("nvfp4_gemm_a4", TORCH_BOX(&nvfp4_gemm_a4));
  m.impl("read_probe", TORCH_BOX(&read_probe));
}
