// LayerNorm.
//
// formula   out = (x - mean) / sqrt(mean((x - mean)^2) + eps) weight + bias
// grid      a block per row (token, head), rows strided over the grid
// registers the row, as far as kNormHeld vectors a thread reach; the variance is summed around the mean, not as a
//           difference of squares, which would cancel
#pragma once

#include <kernels/math/reciprocal.hpp>
#include <kernels/norm/layer_norm.params.hpp>
#include <kernels/norm/norm.config.hpp>
#include <kernels/ptx/griddep.cuh>
#include <kernels/tile/reduce.cuh>
#include <kernels/tile/vectors.cuh>

namespace fulmen {

template <NormConfig kC>
FULMEN_DEVICE void layer_norm(const LayerNormParams& p) {
  using T = storage_t<kC.dtype>;
  using W = storage_t<kC.weight_dtype>;
  constexpr int kN = kC.vector(), kThreads = kC.threads;
  const W* weight = static_cast<const W*>(p.weight);
  const W* bias = static_cast<const W*>(p.bias);
  const int vectors = p.hidden / kN;
  const float inverse_hidden = reciprocal(static_cast<float>(p.hidden));
  const uint32_t rows = static_cast<uint32_t>(p.num_tokens * p.num_heads), heads = static_cast<uint32_t>(p.num_heads);
  ptx::griddep_launch_dependents();
  ptx::griddep_wait();

  for (uint32_t row = blockIdx.x; row < rows; row += gridDim.x) {
    const uint32_t token = row / heads, head = row - token * heads;
    const T* x = static_cast<const T*>(p.x) + token * p.x_stride_token + head * p.x_stride_head;
    T* out = static_cast<T*>(p.out) + token * p.out_stride_token + head * p.out_stride_head;
    float held[kNormHeld][kN];
    // body(v, values) for each of this thread's vectors, from registers or again from memory.
    const auto each = [&](bool first, auto&& body) {
#pragma unroll
      for (int h = 0; h < kNormHeld; ++h) {
        const int v = static_cast<int>(threadIdx.x) + h * kThreads;
        if (v < vectors) {
          if (first) load_floats(x + v * kN, held[h]);
          body(v, held[h]);
        }
      }
      for (int v = static_cast<int>(threadIdx.x) + kNormHeld * kThreads; v < vectors; v += kThreads) {
        float y[kN];
        load_floats(x + v * kN, y);
        body(v, y);
      }
    };
    float sum = 0.0f, squares = 0.0f;
    each(true, [&](int, const float(&y)[kN]) {
#pragma unroll
      for (int i = 0; i < kN; ++i) sum += y[i];
    });
    const float mean = block_sum<kThreads>(sum) * inverse_hidden;
    each(false, [&](int, const float(&y)[kN]) {
#pragma unroll
      for (int i = 0; i < kN; ++i) squares = fma(y[i] - mean, y[i] - mean, squares);
    });
    const float scale = reciprocal_sqrt(fma(block_sum<kThreads>(squares), inverse_hidden, p.eps));
    each(false, [&](int v, const float(&y)[kN]) {
      float result[kN];
#pragma unroll
      for (int i = 0; i < kN; ++i) {
        result[i] = fma((y[i] - mean) * scale, to_float(weight[v * kN + i]),
                        bias == nullptr ? 0.0f : to_float(bias[v * kN + i]));
      }
      store_floats(out + v * kN, result);
    });
  }
}

}  // namespace fulmen
