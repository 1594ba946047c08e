#pragma once

#include <kernels/prelude/prelude.hpp>

namespace fulmen {

enum class Activation : int32_t { silu = 0, gelu = 1, gelu_tanh = 2 };  // fulmen_activation's values

// out = act(x[:, :width]) * x[:, width:]
struct ActAndMulParams {
  const void* x;  // dtype [num_tokens, 2 width]
  void* out;      // dtype [num_tokens, width]
  int64_t x_stride, out_stride;
  int64_t num_tokens;
  int32_t width;
  DType dtype;  // f32 | f16 | bf16
  Activation activation;
};

}  // namespace fulmen
