#pragma once

#include <kernels/prelude/prelude.hpp>

namespace fulmen {

// out = (x - mean) / sqrt(mean((x - mean)^2) + eps) * weight + bias. A row is (token, head); strides in
// elements.
struct LayerNormParams {
  const void* x;       // dtype [num_tokens, num_heads, hidden]
  const void* weight;  // weight_dtype [hidden]
  const void* bias;    // weight_dtype [hidden], nullable
  void* out;           // dtype [num_tokens, num_heads, hidden], may be x
  int64_t x_stride_token, x_stride_head;
  int64_t out_stride_token, out_stride_head;
  int64_t num_tokens;
  int32_t num_heads;
  int32_t hidden;
  DType dtype;         // f32 | f16 | bf16
  DType weight_dtype;  // dtype or f32
  float eps;
};

}  // namespace fulmen
