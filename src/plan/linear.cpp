#include "plan/linear.hpp"

namespace fulmen {
namespace {

// Two chunks a batch and two batches in flight are 4 KB of w for each of 16 warps on a multiprocessor: more than any HBM needs
// to stream. With three blocks (80 registers) two row tiles spill.
constexpr int kWarps = 8, kAhead = 2, kOutTiles = 1, kBlocksPerSm = 2;

LinearConfig config_of(DType dtype, DType y_dtype, bool gated, Activation activation, int row_tiles) {
  return {.dtype = dtype, .y_dtype = y_dtype, .gated = gated, .activation = gated ? activation : Activation::silu,
          .row_tiles = row_tiles, .out_tiles = kOutTiles, .ahead = kAhead, .warps = kWarps, .blocks_per_sm = kBlocksPerSm};
}

}  // namespace

LinearConfig choose_linear(const LinearParams& p) {
  return config_of(p.dtype, p.y_dtype, p.gated, p.activation, p.num_rows <= 8 ? 1 : 2);
}

int64_t linear_grid(const LinearConfig& config, const LinearParams& p) {
  const int width = config.gated ? p.n / 2 : p.n;
  return (width + config.outputs() - 1) / config.outputs();
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
