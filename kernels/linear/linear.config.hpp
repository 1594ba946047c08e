// What changes the machine code of linear.
#pragma once

#include <kernels/activation/act_and_mul.config.hpp>
#include <kernels/linear/linear.params.hpp>

namespace fulmen {

struct LinearConfig {
  DType dtype, y_dtype;
  bool gated;
  Activation activation;  // silu where not gated
  int row_tiles;          // of 8 rows of x
  int out_tiles;          // of 16 rows of w
  int ahead;              // chunks in a batch; a warp has two batches of w in flight
  int warps;
  int blocks_per_sm;

  bool operator==(const LinearConfig&) const = default;
  template <class Visitor>
  constexpr void visit(Visitor&& field) const {
    field("dtype", dtype);
    field("y_dtype", y_dtype);
    field("gated", gated);
    field("activation", activation);
    field("row_tiles", row_tiles);
    field("out_tiles", out_tiles);
    field("ahead", ahead);
    field("warps", warps);
    field("blocks_per_sm", blocks_per_sm);
  }
  constexpr int num_threads() const { return 32 * warps; }
  constexpr int min_blocks() const { return blocks_per_sm; }
  constexpr int weight_rows() const { return 16 * out_tiles; }  // that a block multiplies by
  constexpr int outputs() const { return gated ? weight_rows() / 2 : weight_rows(); }
};

inline constexpr int kLinearMaxRows = 16;  // of x

}  // namespace fulmen
