#include "plan/linear.hpp"

namespace fulmen {
namespace {

constexpr int kWarps = 8;
// With 85 registers a thread: what two chunks of w in flight, the next two and x's fragments take. 48 KB of w in flight on a
// multiprocessor stream any HBM, and 3 x 132 blocks are one wave for the 384 of Llama-3-8B's q, k and v.
constexpr int kBlocksPerSm = 3;

LinearConfig config_of(DType dtype, DType y_dtype, bool gated, Activation activation, int row_tiles) {
  return {.dtype = dtype, .y_dtype = y_dtype, .gated = gated, .activation = gated ? activation : Activation::silu,
          .row_tiles = row_tiles, .warps = kWarps, .blocks_per_sm = kBlocksPerSm};
}

}  // namespace

LinearConfig choose_linear(const LinearParams& p) {
  return config_of(p.dtype, p.y_dtype, p.gated, p.activation, p.num_rows <= 8 ? 1 : 2);
}

int64_t linear_grid(const LinearConfig& config, const LinearParams& p) {
  const int outputs = config.gated ? kLinearOutputs / 2 : kLinearOutputs;
  const int width = config.gated ? p.n / 2 : p.n;
  return (width + outputs - 1) / outputs;
}

Unit linear_unit(const LinearConfig& config) {
  return make_unit<LinearParams>("linear", {"kernels/linear/linear.cuh"}, "LinearConfig", config, "LinearParams",
                                 "linear<kConfig>(params);");
}

std::vector<Unit> linear_units(const Target&) {
  std::vector<Unit> units;
  for (const DType dtype : {DType::bf16, DType::f16}) {
    for (const int row_tiles : {1, 2}) {
      for (const DType y_dtype : {dtype, DType::f32}) {
        units.push_back(linear_unit(config_of(dtype, y_dtype, false, Activation::silu, row_tiles)));
      }
      for (const Activation activation : {Activation::silu, Activation::gelu, Activation::gelu_tanh}) {
        units.push_back(linear_unit(config_of(dtype, dtype, true, activation, row_tiles)));
      }
    }
  }
  return units;
}

}  // namespace fulmen
