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
    field("warps", warps);
    field("blocks_per_sm", blocks_per_sm);
  }
  constexpr int num_threads() const { return 32 * warps; }
  constexpr int min_blocks() const { return blocks_per_sm; }
};

inline constexpr int kLinearOutputs = 16;  // rows of w that a block multiplies by
inline constexpr int kLinearMaxRows = 16;  // of x

}  // namespace fulmen
