#include "plan/linear.hpp"

namespace fulmen {
namespace {

// Two chunks a batch and two batches in flight are 4 KB of w for each of 16 warps on a multiprocessor: more than any HBM needs
// to stream. With three blocks (80 registers) two row tiles spill. Measured beside others in
// docs/gpu-results/2026-11-25-H100-cdbf6b2.json, op linear.
constexpr int kAhead = 2, kOutTiles = 1;
struct Tile {
  int warps, blocks_per_sm;
};
constexpr Tile kStreaming{8, 2};
// Where there are fewer blocks than multiprocessors a block's own time is all there is: twice the warps have half the chunks.
constexpr Tile kLatency{16, 1};
constexpr int kFewOutputs = 2048, kLongRow = 1024;

Tile tile_of(const LinearParams& p) { return !p.gated && p.n <= kFewOutputs && p.k >= kLongRow ? kLatency : kStreaming; }

LinearConfig config_of(DType dtype, DType y_dtype, bool gated, Activation activation, int row_tiles, Tile tile) {
  return {.dtype = dtype, .y_dtype = y_dtype, .gated = gated, .activation = gated ? activation : Activation::silu,
          .row_tiles = row_tiles, .out_tiles = kOutTiles, .ahead = kAhead, .warps = tile.warps,
          .blocks_per_sm = tile.blocks_per_sm};
}

}  // namespace

LinearConfig choose_linear(const LinearParams& p) {
  return config_of(p.dtype, p.y_dtype, p.gated, p.activation, p.num_rows <= 8 ? 1 : 2, tile_of(p));
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
        for (const Tile tile : {kStreaming, kLatency}) {
          units.push_back(linear_unit(config_of(dtype, y_dtype, false, Activation::silu, row_tiles, tile)));
        }
      }
      for (const Activation activation : {Activation::silu, Activation::gelu, Activation::gelu_tanh}) {
        units.push_back(linear_unit(config_of(dtype, dtype, true, activation, row_tiles, kStreaming)));
      }
    }
  }
  return units;
}

}  // namespace fulmen
