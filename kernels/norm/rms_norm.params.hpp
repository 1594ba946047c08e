#pragma once

#include <kernels/prelude/prelude.hpp>

namespace fulmen {

// out = x / sqrt(mean(x^2) + eps) * (weight + weight_offset); with residual: residual += x first, rounded to
// its dtype, and that is normalised. A row is (token, head); strides in elements.
struct RmsNormParams {
  const void* x;       // dtype [num_tokens, num_heads, hidden]
  const void* weight;  // weight_dtype [hidden]
  void* residual;      // dtype [num_tokens, num_heads, hidden], nullable
  void* out;           // dtype [num_tokens, num_heads, hidden], may be x
  int64_t x_stride_token, x_stride_head;
  int64_t residual_stride_token, residual_stride_head;
  int64_t out_stride_token, out_stride_head;
  int64_t num_tokens;
  int32_t num_heads;
  int32_t hidden;
  DType dtype;         // f32 | f16 | bf16
  DType weight_dtype;  // dtype or f32
  float eps;
  float weight_offset;
};

}  // namespace fulmen
