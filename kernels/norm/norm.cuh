// A row minus its mean (layer norm) or as it is (RMSNorm), over the root of its mean square.
//
// formula   y = x, or the new residual: residual += x, rounded to its dtype
//           RMSNorm:   out = y / sqrt(mean(y^2) + eps) (weight + offset)
//           LayerNorm: out = (y - mean) / sqrt(mean((y - mean)^2) + eps) weight + bias
// grid      a block per row (token, head), rows strided over the grid
// registers the row as it is stored, as far as kNormHeld vectors a thread reach: it crosses memory once; all of a thread's loads are in flight
//           before it uses the first. Longer rows are read again. The variance is summed around the mean, not as a difference of
//           squares, which would cancel
// barriers  those of the reductions
#pragma once

#include <kernels/math/reciprocal.hpp>
#include <kernels/norm/norm.config.hpp>
#include <kernels/ptx/griddep.cuh>
#include <kernels/tile/reduce.cuh>
#include <kernels/tile/vectors.cuh>

namespace fulmen {

template <class T, class W>
struct NormRow {
  const T* x;
  T* residual;      // nullable
  T* out;
  const W* weight;
  const W* bias;    // nullable
  int vectors;
  float inverse_hidden, eps, weight_offset;
  bool far;         // the outputs of all rows don't fit into L2: nobody will find them there
};

template <NormConfig kC, bool kCentred, class T, class W>
FULMEN_DEVICE void normalise(const NormRow<T, W>& row) {
  constexpr int kN = kC.vector(), kThreads = kC.threads;
  const int first = static_cast<int>(threadIdx.x);
  Packed<T, kN> held[kNormHeld], added[kNormHeld];
#pragma unroll
  for (int h = 0; h < kNormHeld; ++h) {
    const int v = first + h * kThreads;
    if (v < row.vectors) {
      held[h] = load_packed<T, kN>(row.x + v * kN, true);
      if (row.residual != nullptr) added[h] = load_packed<T, kN>(row.residual + v * kN, true);
    }
  }
  const auto add = [&](Packed<T, kN>& y, const Packed<T, kN>& r, int v) {
    float f[kN], g[kN];
    unpack(y, f);
    unpack(r, g);
#pragma unroll
    for (int i = 0; i < kN; ++i) f[i] += g[i];
    y = packed<T>(f);
    store_packed(row.residual + v * kN, y, row.far);
  };
  // body(v, y) for each of this thread's vectors, from registers or again from memory; the first time the residual is made.
  const auto each = [&](bool again, auto&& body) {
    float y[kN];
#pragma unroll
    for (int h = 0; h < kNormHeld; ++h) {
      const int v = first + h * kThreads;
      if (v < row.vectors) {
        if (!again && row.residual != nullptr) add(held[h], added[h], v);
        unpack(held[h], y);
        body(v, y);
      }
    }
#pragma unroll 1
    for (int v = first + kNormHeld * kThreads; v < row.vectors; v += kThreads) {
      Packed<T, kN> long_row = load_packed<T, kN>((again && row.residual != nullptr ? row.residual : row.x) + v * kN);
      if (!again && row.residual != nullptr) add(long_row, load_packed<T, kN>(row.residual + v * kN), v);
      unpack(long_row, y);
      body(v, y);
    }
  };
  float mean = 0.0f, squares = 0.0f;
  if constexpr (kCentred) {
    float sum = 0.0f;
    each(false, [&](int, const float(&y)[kN]) {
#pragma unroll
      for (int i = 0; i < kN; ++i) sum += y[i];
    });
    mean = block_sum<kThreads>(sum) * row.inverse_hidden;
  }
  each(kCentred, [&](int, const float(&y)[kN]) {
#pragma unroll
    for (int i = 0; i < kN; ++i) squares = fma(y[i] - mean, y[i] - mean, squares);
  });
  const float scale = reciprocal_sqrt(fma(block_sum<kThreads>(squares), row.inverse_hidden, row.eps));
  each(true, [&](int v, const float(&y)[kN]) {
    float result[kN];
#pragma unroll
    for (int i = 0; i < kN; ++i) {
      const float w = to_float(row.weight[v * kN + i]);
      if constexpr (kCentred) {
        result[i] = fma((y[i] - mean) * scale, w, row.bias == nullptr ? 0.0f : to_float(row.bias[v * kN + i]));
      } else {
        result[i] = y[i] * scale * (w + row.weight_offset);
      }
    }
    store_packed(row.out + v * kN, packed<T>(result), row.far);
  });
}

// Rows of either op: what LayerNormParams lacks is null or zero.
template <NormConfig kC, bool kCentred, class Params>
FULMEN_DEVICE void norm(const Params& p) {
  using T = storage_t<kC.dtype>;
  using W = storage_t<kC.weight_dtype>;
  NormRow<T, W> row{};
  row.weight = static_cast<const W*>(p.weight);
  row.vectors = p.hidden / kC.vector();
  row.inverse_hidden = reciprocal(static_cast<float>(p.hidden));
  row.eps = p.eps;
  row.far = p.num_tokens * p.num_heads * p.hidden > kNormFarBytes / static_cast<int>(sizeof(T));
  if constexpr (kCentred) {
    row.bias = static_cast<const W*>(p.bias);
  } else {
    row.weight_offset = p.weight_offset;
  }
  const uint32_t rows = static_cast<uint32_t>(p.num_tokens * p.num_heads), heads = static_cast<uint32_t>(p.num_heads);
  ptx::griddep_launch_dependents();
  ptx::griddep_wait();
  for (uint32_t at = blockIdx.x; at < rows; at += gridDim.x) {
    const uint32_t token = at / heads, head = at - token * heads;
    row.x = static_cast<const T*>(p.x) + token * p.x_stride_token + head * p.x_stride_head;
    row.out = static_cast<T*>(p.out) + token * p.out_stride_token + head * p.out_stride_head;
    if constexpr (!kCentred) {
      if (p.residual != nullptr) {
        row.residual = static_cast<T*>(p.residual) + token * p.residual_stride_token + head * p.residual_stride_head;
      }
    }
    normalise<kC, kCentred>(row);
  }
}

}  // namespace fulmen
