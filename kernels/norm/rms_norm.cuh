// RMSNorm, with the residual's sum in front of it.
//
// formula   residual += x (rounded to its dtype); y = residual, or x; out = y / sqrt(mean(y^2) + eps) (weight + offset)
// grid      a block per row (token, head), rows strided over the grid
// registers the row, as far as kNormHeld vectors a thread reach: it crosses memory once
// barriers  those of the one reduction
#pragma once

#include <kernels/math/reciprocal.hpp>
#include <kernels/norm/norm.config.hpp>
#include <kernels/norm/rms_norm.params.hpp>
#include <kernels/ptx/griddep.cuh>
#include <kernels/tile/reduce.cuh>
#include <kernels/tile/vectors.cuh>

namespace fulmen {

template <class T, class W, int kN>
FULMEN_DEVICE void write_normalised(T* out, const W* weight, const float (&y)[kN], float scale, float offset) {
  float result[kN];
#pragma unroll
  for (int i = 0; i < kN; ++i) result[i] = y[i] * scale * (to_float(weight[i]) + offset);
  store_floats(out, result);
}

// y of one vector: x, or the new residual, which is stored.
template <class T, int kN>
FULMEN_DEVICE void load_summed(const T* x, T* residual, float (&y)[kN]) {
  load_floats(x, y);
  if (residual == nullptr) return;
  float r[kN];
  load_floats(residual, r);
#pragma unroll
  for (int i = 0; i < kN; ++i) y[i] = to_float(from_float<T>(y[i] + r[i]));
  store_floats(residual, y);
}

template <NormConfig kC>
FULMEN_DEVICE void rms_norm(const RmsNormParams& p) {
  using T = storage_t<kC.dtype>;
  using W = storage_t<kC.weight_dtype>;
  constexpr int kN = kC.vector(), kThreads = kC.threads;
  const W* weight = static_cast<const W*>(p.weight);
  const int vectors = p.hidden / kN;
  const float inverse_hidden = reciprocal(static_cast<float>(p.hidden));
  const uint32_t rows = static_cast<uint32_t>(p.num_tokens * p.num_heads), heads = static_cast<uint32_t>(p.num_heads);
  ptx::griddep_launch_dependents();
  ptx::griddep_wait();

  for (uint32_t row = blockIdx.x; row < rows; row += gridDim.x) {
    const uint32_t token = row / heads, head = row - token * heads;
    const T* x = static_cast<const T*>(p.x) + token * p.x_stride_token + head * p.x_stride_head;
    T* residual = p.residual == nullptr ? nullptr
                                        : static_cast<T*>(p.residual) + token * p.residual_stride_token +
                                              head * p.residual_stride_head;
    T* out = static_cast<T*>(p.out) + token * p.out_stride_token + head * p.out_stride_head;

    float held[kNormHeld][kN];
    float squares = 0.0f;
#pragma unroll
    for (int h = 0; h < kNormHeld; ++h) {
      const int v = static_cast<int>(threadIdx.x) + h * kThreads;
      if (v < vectors) {
        load_summed(x + v * kN, residual == nullptr ? nullptr : residual + v * kN, held[h]);
#pragma unroll
        for (int i = 0; i < kN; ++i) squares = fma(held[h][i], held[h][i], squares);
      }
    }
    for (int v = static_cast<int>(threadIdx.x) + kNormHeld * kThreads; v < vectors; v += kThreads) {
      float y[kN];
      load_summed(x + v * kN, residual == nullptr ? nullptr : residual + v * kN, y);
#pragma unroll
      for (int i = 0; i < kN; ++i) squares = fma(y[i], y[i], squares);
    }

    const float scale = reciprocal_sqrt(fma(block_sum<kThreads>(squares), inverse_hidden, p.eps));

#pragma unroll
    for (int h = 0; h < kNormHeld; ++h) {
      const int v = static_cast<int>(threadIdx.x) + h * kThreads;
      if (v < vectors) write_normalised(out + v * kN, weight + v * kN, held[h], scale, p.weight_offset);
    }
    for (int v = static_cast<int>(threadIdx.x) + kNormHeld * kThreads; v < vectors; v += kThreads) {
      float y[kN];
      load_floats((residual == nullptr ? x : residual) + v * kN, y);
      write_normalised(out + v * kN, weight + v * kN, y, scale, p.weight_offset);
    }
  }
}

}  // namespace fulmen
