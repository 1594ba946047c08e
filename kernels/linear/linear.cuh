// A linear layer for the few rows of a decode step: w crosses memory once, and that is all the time it should take.
//
// formula   y = f(s x w^T + bias) + residual, see linear.params.hpp
// grid      a block per 16 outputs (rows of w; gated: 8 of each half, so that a thread has both of a pair)
// roles     the warps share k: chunk c of 32 elements is warp (c mod warps)'s. A lane holds 8 consecutive elements of a
//           chunk, of two rows of w and of one of x, which is the fragment of two mma.sync whose k is a permutation of
//           the chunk: nothing passes through shared memory on its way to the matrix unit.
// smem      the warps' partial sums and sums of squares, added in the order of the warps
// barriers  one, between the two
// order     the first chunks of w are asked for before the kernel ahead has ended: only x is its work. Every output is
//           a sum in one fixed order that knows nothing of the other rows.
#pragma once

#include <kernels/linear/linear.config.hpp>
#include <kernels/math/activation.hpp>
#include <kernels/math/reciprocal.hpp>
#include <kernels/ptx/griddep.cuh>
#include <kernels/tile/fragments.cuh>
#include <kernels/tile/reduce.cuh>
#include <kernels/tile/vectors.cuh>

namespace fulmen {

inline constexpr int kLinearChunk = 32;  // elements of k
inline constexpr int kLinearAhead = 2;   // chunks of a warp in flight at a time

template <LinearConfig kC>
struct LinearSmem {
  float sums[kC.warps][8 * kC.row_tiles][kLinearOutputs];
  float squares[kC.warps][8 * kC.row_tiles];
};

// A lane's 16 bytes of a row at its place in chunk c; zeros past the end of the row or for a row that doesn't exist.
template <class T, bool kStreaming>
FULMEN_DEVICE ptx::Words4 load_chunk(const T* row, int c, int k) {
  const int at = c * kLinearChunk + 8 * (lane_index() & 3);
  if (row == nullptr || at >= k) return {0, 0, 0, 0};
  return kStreaming ? ptx::load_streaming_16(row + at) : ptx::load_16(row + at);
}

template <class T>
FULMEN_DEVICE float sum_of_squares(ptx::Words4 v, float sum) {
  const uint32_t words[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float low = low_float<T>(words[i]), high = high_float<T>(words[i]);
    sum = fma(low, low, sum);
    sum = fma(high, high, sum);
  }
  return sum;
}

// Row of w behind row i of the block's 16, or null.
template <LinearConfig kC, class T>
FULMEN_DEVICE const T* weight_row(const LinearParams& p, int i) {
  const int width = kC.gated ? p.n / 2 : p.n;
  const int first = static_cast<int>(blockIdx.x) * (kC.gated ? kLinearOutputs / 2 : kLinearOutputs);
  const int output = kC.gated ? first + (i & 7) : first + i;
  if (output >= width) return nullptr;
  return static_cast<const T*>(p.w) + (kC.gated && i >= 8 ? output + width : output) * p.w_stride;
}

template <LinearConfig kC>
FULMEN_DEVICE float activate(float x) {
  return kC.activation == Activation::silu ? silu(x) : kC.activation == Activation::gelu ? gelu(x) : gelu_tanh(x);
}

template <LinearConfig kC>
FULMEN_DEVICE void multiply_chunks(const LinearParams& p, LinearSmem<kC>& smem) {
  using T = storage_t<kC.dtype>;
  const int lane = lane_index(), warp = warp_index(), group = lane >> 2;
  const int chunks = ceil_div(p.k, kLinearChunk);
  const T* w_rows[2] = {weight_row<kC, T>(p, group), weight_row<kC, T>(p, group + 8)};
  const T* x_rows[kC.row_tiles];
#pragma unroll
  for (int t = 0; t < kC.row_tiles; ++t) {
    const int row = 8 * t + group;
    x_rows[t] = row < p.num_rows ? static_cast<const T*>(p.x) + row * p.x_stride : nullptr;
  }

  ptx::Words4 w[kLinearAhead][2];
  const auto load_weights = [&](int base) {
#pragma unroll
    for (int i = 0; i < kLinearAhead; ++i) {
#pragma unroll
      for (int h = 0; h < 2; ++h) w[i][h] = load_chunk<T, true>(w_rows[h], base + i * kC.warps, p.k);
    }
  };
  load_weights(warp);
  ptx::griddep_wait();

  float sums[kC.row_tiles][4], squares[kC.row_tiles];
#pragma unroll
  for (int t = 0; t < kC.row_tiles; ++t) {
    sums[t][0] = sums[t][1] = sums[t][2] = sums[t][3] = squares[t] = 0.0f;
  }
  for (int base = warp; base < chunks; base += kLinearAhead * kC.warps) {
    ptx::Words4 x[kLinearAhead][kC.row_tiles], now[kLinearAhead][2];
#pragma unroll
    for (int i = 0; i < kLinearAhead; ++i) {
#pragma unroll
      for (int t = 0; t < kC.row_tiles; ++t) x[i][t] = load_chunk<T, false>(x_rows[t], base + i * kC.warps, p.k);
      now[i][0] = w[i][0];
      now[i][1] = w[i][1];
    }
    load_weights(base + kLinearAhead * kC.warps);
#pragma unroll
    for (int i = 0; i < kLinearAhead; ++i) {
      const uint32_t first[4] = {now[i][0].x, now[i][1].x, now[i][0].y, now[i][1].y};
      const uint32_t second[4] = {now[i][0].z, now[i][1].z, now[i][0].w, now[i][1].w};
#pragma unroll
      for (int t = 0; t < kC.row_tiles; ++t) {
        mma<kC.dtype>(sums[t], first, x[i][t].x, x[i][t].y);
        mma<kC.dtype>(sums[t], second, x[i][t].z, x[i][t].w);
        if (p.rms_eps > 0.0f) squares[t] = sum_of_squares<T>(x[i][t], squares[t]);
      }
    }
  }
#pragma unroll
  for (int t = 0; t < kC.row_tiles; ++t) {
#pragma unroll
    for (int i = 0; i < 4; ++i) smem.sums[warp][8 * t + 2 * (lane & 3) + (i & 1)][group + 8 * (i >> 1)] = sums[t][i];
    float s = squares[t];
    s += shuffle_xor(s, 1);
    s += shuffle_xor(s, 2);
    if ((lane & 3) == 0) smem.squares[warp][8 * t + group] = s;
  }
}

// The sum over the warps of output o of row r, scaled, with its bias.
template <LinearConfig kC>
FULMEN_DEVICE float finished_sum(const LinearParams& p, const LinearSmem<kC>& smem, int r, int o, int output, float scale) {
  using T = storage_t<kC.dtype>;
  float sum = 0.0f;
#pragma unroll
  for (int w = 0; w < kC.warps; ++w) sum += smem.sums[w][r][o];
  sum *= scale;
  return p.bias != nullptr ? sum + to_float(static_cast<const T*>(p.bias)[output]) : sum;
}

template <LinearConfig kC>
FULMEN_DEVICE void linear(const LinearParams& p) {
  using T = storage_t<kC.dtype>;
  using Y = storage_t<kC.y_dtype>;
  constexpr int kOutputs = kC.gated ? kLinearOutputs / 2 : kLinearOutputs;
  auto& smem = static_shared<LinearSmem<kC>>();
  ptx::griddep_launch_dependents();
  multiply_chunks<kC>(p, smem);
  __syncthreads();
  const int width = kC.gated ? p.n / 2 : p.n;
  for (int i = static_cast<int>(threadIdx.x); i < 8 * kC.row_tiles * kOutputs; i += kC.num_threads()) {
    const int r = i / kOutputs, o = i % kOutputs, output = static_cast<int>(blockIdx.x) * kOutputs + o;
    if (r >= p.num_rows || output >= width) continue;
    float scale = 1.0f;
    if (p.rms_eps > 0.0f) {
      float squares = 0.0f;
#pragma unroll
      for (int w = 0; w < kC.warps; ++w) squares += smem.squares[w][r];
      scale = reciprocal_sqrt(fma(squares, reciprocal(static_cast<float>(p.k)), p.rms_eps));
    }
    float y = finished_sum<kC>(p, smem, r, o, output, scale);
    if constexpr (kC.gated) y = activate<kC>(y) * finished_sum<kC>(p, smem, r, o + 8, output + width, scale);
    if (p.residual != nullptr) y += to_float(static_cast<const T*>(p.residual)[r * p.residual_stride + output]);
    static_cast<Y*>(p.y)[r * p.y_stride + output] = from_float<Y>(y);
  }
}

}  // namespace fulmen
