#pragma once

#include <kernels/prelude/prelude.hpp>

namespace fulmen {

// The k largest of each row, descending, equal values by lowest index. A row with NaN gives NaN and -1.
struct TopKParams {
  const void* x;     // dtype [num_rows, n]
  void* values;      // dtype [num_rows, k]
  int32_t* indices;  // [num_rows, k]
  int64_t x_stride, values_stride, indices_stride;
  int64_t num_rows;
  int32_t n, k;
  DType dtype;  // f32 | f16 | bf16
};

}  // namespace fulmen
