#pragma once

#include <kernels/prelude/prelude.hpp>

namespace fulmen {

// index[r] = the lowest index of row r's largest value; -1 for a row with NaN.
struct ArgmaxParams {
  const void* x;   // dtype [num_rows, n]
  int32_t* index;  // [num_rows]
  int64_t x_stride;
  int64_t num_rows;
  int32_t n;
  DType dtype;  // f32 | f16 | bf16
};

}  // namespace fulmen
