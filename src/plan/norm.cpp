#include "plan/norm.hpp"

#include <algorithm>

#include "plan/alignment.hpp"

namespace fulmen {
namespace {

constexpr int kThreads[] = {32, 128, 256, 512, 1024};  // of the block that has a row

constexpr int kNarrowThreads = 256;                    // rows read one element at a time

// The fewest threads that hold the row with kNormHeld vectors each: all loads are in flight before the first is used. More threads with
// fewer vectors wait longer at the reduction (docs/kernels/norm.md).
int threads_for(int64_t vectors) {
  for (const int threads : kThreads) {
    if (threads * kNormHeld >= vectors) return threads;
  }
  return 1024;
}

NormConfig choose(DType dtype, DType weight_dtype, int64_t hidden, bool wide) {
  const int element = dtype_bytes(dtype), vector_bytes = wide ? 16 : element;
  return {.dtype = dtype, .weight_dtype = weight_dtype, .vector_bytes = vector_bytes,
          .threads = wide ? threads_for(hidden * element / vector_bytes) : kNarrowThreads};
}

std::vector<NormConfig> shipped() {
  std::vector<NormConfig> configs;
  const auto add = [&](DType dtype, DType weight_dtype) {
    for (const int threads : kThreads) {
      configs.push_back({.dtype = dtype, .weight_dtype = weight_dtype, .vector_bytes = 16, .threads = threads});
    }
    configs.push_back({.dtype = dtype, .weight_dtype = weight_dtype, .vector_bytes = dtype_bytes(dtype), .threads = kNarrowThreads});
  };
  for (const DType dtype : {DType::bf16, DType::f16}) {
    add(dtype, dtype);
    add(dtype, DType::f32);
  }
  add(DType::f32, DType::f32);
  return configs;
}

}  // namespace

NormConfig choose_rms_norm(const RmsNormParams& p) {
  const int element = dtype_bytes(p.dtype);
  const bool wide = is_aligned(p.x, {p.x_stride_token, p.x_stride_head, p.hidden}, element, 16) &&
                    is_aligned(p.residual, {p.residual_stride_token, p.residual_stride_head}, element, 16) &&
                    is_aligned(p.out, {p.out_stride_token, p.out_stride_head}, element, 16);
  return choose(p.dtype, p.weight_dtype, p.hidden, wide);
}

NormConfig choose_layer_norm(const LayerNormParams& p) {
  const int element = dtype_bytes(p.dtype);
  const bool wide = is_aligned(p.x, {p.x_stride_token, p.x_stride_head, p.hidden}, element, 16) &&
                    is_aligned(p.out, {p.out_stride_token, p.out_stride_head}, element, 16);
  return choose(p.dtype, p.weight_dtype, p.hidden, wide);
}

int64_t norm_grid(const NormConfig& config, int64_t rows, bool adds, const Target& target) {
  // Blocks that read a row ahead have several; else a block per row, so that the hardware evens them out. Short rows would spend their time
  // starting blocks.
  if (config.threads > 32 && (adds || config.threads > kNormPipelined)) return rows;
  return std::min<int64_t>(rows, static_cast<int64_t>(target.num_sms) * (config.threads == 32 ? 32 : config.min_blocks()));
}

Unit rms_norm_unit(const NormConfig& config) {
  return make_unit<RmsNormParams>("rms_norm", {"kernels/norm/rms_norm.cuh"}, "NormConfig", config, "RmsNormParams",
                                  "rms_norm<kConfig>(params);");
}

Unit layer_norm_unit(const NormConfig& config) {
  return make_unit<LayerNormParams>("layer_norm", {"kernels/norm/layer_norm.cuh"}, "NormConfig", config, "LayerNormParams",
                                    "layer_norm<kConfig>(params);");
}

std::vector<Unit> rms_norm_units(const Target&) {
  std::vector<Unit> units;
  for (const NormConfig& config : shipped()) units.push_back(rms_norm_unit(config));
  return units;
}

std::vector<Unit> layer_norm_units(const Target&) {
  std::vector<Unit> units;
  for (const NormConfig& config : shipped()) units.push_back(layer_norm_unit(config));
  return units;
}

}  // namespace fulmen
