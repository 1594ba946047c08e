#pragma once

#include <kernels/activation/act_and_mul.params.hpp>
#include <kernels/prelude/prelude.hpp>

namespace fulmen {

// y = f(s x w^T + bias) + residual, s = 1 / sqrt(mean(x^2) + eps) per row where rms_eps > 0, else 1; f: with `gated` the
// first half of the outputs, activated, times the second half. Strides in elements; sums in fp32.
struct LinearParams {
  const void* x;         // dtype [num_rows, k]
  const void* w;         // dtype [n, k]
  const void* bias;      // dtype [n], nullable
  const void* residual;  // dtype [num_rows, width], nullable; may be y
  void* y;               // dtype or f32 [num_rows, width]; width = n, gated: n / 2
  int64_t x_stride, w_stride, residual_stride, y_stride;
  int32_t num_rows;
  int32_t n, k;
  float rms_eps;
  DType dtype;           // f16 | bf16
  DType y_dtype;         // dtype | f32
  Activation activation; // where gated
  bool gated;
};

}  // namespace fulmen
