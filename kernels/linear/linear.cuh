// A linear layer for the few rows of a decode step: w crosses memory once, and that is all the time it should take.
//
// formula   y = f(s x w^T + bias) + residual, see linear.params.hpp
// grid      a block per 16 out_tiles rows of w (gated: half of them from each half, so that a thread has both of a pair)
// roles     the warps share k: chunk c of 32 elements is warp (c mod warps)'s. A lane holds 8 consecutive elements of a
//           chunk, of two rows of w a tile and of one of x, which is the fragment of two mma.sync whose k is a
//           permutation of the chunk: nothing passes through shared memory on its way to the matrix unit.
// registers two batches of w, one being multiplied while the other is on its way
// smem      the warps' partial sums and sums of squares, added in the order of the warps
// barriers  one, between the two
// order     the first two batches of w are asked for before the kernel ahead has ended: only x and residual are its work.
//           Every output is a sum in one fixed order that knows nothing of the other rows.
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

template <LinearConfig kC>
struct LinearSmem {
  float sums[kC.warps][8 * kC.row_tiles][kC.weight_rows()];
  float squares[kC.warps][8 * kC.row_tiles];
};

// A lane's 16 bytes of a row at its place in chunk c; zeros past the end of the row.
template <class T, bool kStreaming>
FULMEN_DEVICE ptx::Words4 load_chunk(const T* row, int c, int k) {
  const int at = c * kLinearChunk + 8 * (lane_index() & 3);
  if (at >= k) return {0, 0, 0, 0};
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

// What a warp knows of its part of the product.
template <LinearConfig kC>
struct LinearWarp {
  using T = storage_t<kC.dtype>;
  static constexpr int kRowsOfW = 2 * kC.out_tiles;
  struct Batch {
    ptx::Words4 w[kC.ahead][kRowsOfW];
    ptx::Words4 x[kC.ahead][kC.row_tiles];
  };

  const T* w_rows[kRowsOfW];
  const T* x_rows[kC.row_tiles];
  float sums[kC.row_tiles][kC.out_tiles][4];
  float squares[kC.row_tiles];
  int k;
  bool normed;

  FULMEN_DEVICE explicit LinearWarp(const LinearParams& p) : k(p.k), normed(p.rms_eps > 0.0f) {
    // Rows that don't exist stand for others, whose sums are then made twice and written once.
    const int group = lane_index() >> 2, width = kC.gated ? p.n / 2 : p.n;
    const int first = static_cast<int>(blockIdx.x) * kC.outputs();
#pragma unroll
    for (int h = 0; h < kRowsOfW; ++h) {
      // Rows group and group + 8 of tile h / 2; gated: the same output in either half.
      const int output = kC.gated ? first + 8 * (h / 2) + group : first + 8 * h + group;
      const int there = min(output, width - 1), row = kC.gated && h % 2 == 1 ? there + width : there;
      w_rows[h] = static_cast<const T*>(p.w) + row * p.w_stride;
    }
#pragma unroll
    for (int t = 0; t < kC.row_tiles; ++t) {
      x_rows[t] = static_cast<const T*>(p.x) + min(8 * t + group, p.num_rows - 1) * p.x_stride;
      squares[t] = 0.0f;
#pragma unroll
      for (int o = 0; o < kC.out_tiles; ++o) sums[t][o][0] = sums[t][o][1] = sums[t][o][2] = sums[t][o][3] = 0.0f;
    }
  }

  FULMEN_DEVICE void load(Batch& batch, int chunk) const {
#pragma unroll
    for (int i = 0; i < kC.ahead; ++i) {
#pragma unroll
      for (int h = 0; h < kRowsOfW; ++h) batch.w[i][h] = load_chunk<T, true>(w_rows[h], chunk + i * kC.warps, k);
    }
  }

  FULMEN_DEVICE void load_x(Batch& batch, int chunk) const {
#pragma unroll
    for (int i = 0; i < kC.ahead; ++i) {
#pragma unroll
      for (int t = 0; t < kC.row_tiles; ++t) batch.x[i][t] = load_chunk<T, false>(x_rows[t], chunk + i * kC.warps, k);
    }
  }

  FULMEN_DEVICE void multiply(const Batch& batch) {
#pragma unroll
    for (int i = 0; i < kC.ahead; ++i) {
#pragma unroll
      for (int o = 0; o < kC.out_tiles; ++o) {
        const ptx::Words4& low = batch.w[i][2 * o];
        const ptx::Words4& high = batch.w[i][2 * o + 1];
        const uint32_t first[4] = {low.x, high.x, low.y, high.y}, second[4] = {low.z, high.z, low.w, high.w};
#pragma unroll
        for (int t = 0; t < kC.row_tiles; ++t) {
          mma<kC.dtype>(sums[t][o], first, batch.x[i][t].x, batch.x[i][t].y);
          mma<kC.dtype>(sums[t][o], second, batch.x[i][t].z, batch.x[i][t].w);
        }
      }
      if (!normed) continue;
#pragma unroll
      for (int t = 0; t < kC.row_tiles; ++t) squares[t] = sum_of_squares<T>(batch.x[i][t], squares[t]);
    }
  }

  FULMEN_DEVICE void store(LinearSmem<kC>& smem) {
    const int lane = lane_index(), warp = warp_index(), group = lane >> 2;
#pragma unroll
    for (int t = 0; t < kC.row_tiles; ++t) {
#pragma unroll
      for (int o = 0; o < kC.out_tiles; ++o) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          smem.sums[warp][8 * t + 2 * (lane & 3) + (i & 1)][16 * o + group + 8 * (i >> 1)] = sums[t][o][i];
        }
      }
      float s = squares[t];
      s += shuffle_xor(s, 1);
      s += shuffle_xor(s, 2);
      if ((lane & 3) == 0) smem.squares[warp][8 * t + group] = s;
    }
  }
};

template <LinearConfig kC>
FULMEN_DEVICE float activate(float x) {
  return kC.activation == Activation::silu ? silu(x) : kC.activation == Activation::gelu ? gelu(x) : gelu_tanh(x);
}

template <LinearConfig kC>
FULMEN_DEVICE float sum_of_warps(const LinearSmem<kC>& smem, int r, int row) {
  float sum = 0.0f;
#pragma unroll
  for (int w = 0; w < kC.warps; ++w) sum += smem.sums[w][r][row];
  return sum;
}

template <LinearConfig kC>
FULMEN_DEVICE float row_scale(const LinearParams& p, const LinearSmem<kC>& smem, int r) {
  if (!(p.rms_eps > 0.0f)) return 1.0f;
  float squares = 0.0f;
#pragma unroll
  for (int w = 0; w < kC.warps; ++w) squares += smem.squares[w][r];
  return reciprocal_sqrt(fma(squares, reciprocal(static_cast<float>(p.k)), p.rms_eps));
}

template <LinearConfig kC>
FULMEN_DEVICE void linear(const LinearParams& p) {
  using T = storage_t<kC.dtype>;
  using Y = storage_t<kC.y_dtype>;
  constexpr int kOutputs = kC.outputs(), kPerThread = ceil_div(8 * kC.row_tiles * kOutputs, kC.num_threads());
  auto& smem = static_shared<LinearSmem<kC>>();
  ptx::griddep_launch_dependents();
  LinearWarp<kC> warp(p);
  typename LinearWarp<kC>::Batch even, odd;
  constexpr int kStep = kC.ahead * kC.warps;
  constexpr bool kXAhead = kC.row_tiles == 1;  // of two tiles both batches of x leave no registers
  const int chunks = ceil_div(p.k, kLinearChunk);
  int chunk = warp_index();
  warp.load(even, chunk);
  warp.load(odd, chunk + kStep);
  ptx::griddep_wait();
  if constexpr (kXAhead) {
    warp.load_x(even, chunk);
    warp.load_x(odd, chunk + kStep);
  }

  // This thread's outputs, and what is added to them: asked for here, needed at the end.
  const int width = kC.gated ? p.n / 2 : p.n;
  int rows[kPerThread], outputs[kPerThread];
  float residual[kPerThread];
#pragma unroll
  for (int j = 0; j < kPerThread; ++j) {
    const int i = static_cast<int>(threadIdx.x) + j * kC.num_threads();
    outputs[j] = static_cast<int>(blockIdx.x) * kOutputs + i % kOutputs;
    rows[j] = outputs[j] < width ? i / kOutputs : p.num_rows;
    residual[j] = p.residual == nullptr || rows[j] >= p.num_rows
                      ? 0.0f
                      : to_float(static_cast<const T*>(p.residual)[rows[j] * p.residual_stride + outputs[j]]);
  }

  for (; chunk < chunks; chunk += 2 * kStep) {
    if constexpr (!kXAhead) warp.load_x(even, chunk);
    warp.multiply(even);
    warp.load(even, chunk + 2 * kStep);
    if constexpr (kXAhead) warp.load_x(even, chunk + 2 * kStep);
    if constexpr (!kXAhead) warp.load_x(odd, chunk + kStep);
    warp.multiply(odd);
    warp.load(odd, chunk + 3 * kStep);
    if constexpr (kXAhead) warp.load_x(odd, chunk + 3 * kStep);
  }
  warp.store(smem);
  __syncthreads();

  const T* bias = static_cast<const T*>(p.bias);
#pragma unroll
  for (int j = 0; j < kPerThread; ++j) {
    const int r = rows[j], output = outputs[j], o = output - static_cast<int>(blockIdx.x) * kOutputs;
    if (r >= p.num_rows) continue;
    const float scale = row_scale<kC>(p, smem, r);
    float y = sum_of_warps<kC>(smem, r, kC.gated ? 16 * (o / 8) + o % 8 : o) * scale;
    if (bias != nullptr) y += to_float(bias[output]);
    if constexpr (kC.gated) {
      float up = sum_of_warps<kC>(smem, r, 16 * (o / 8) + 8 + o % 8) * scale;
      if (bias != nullptr) up += to_float(bias[output + width]);
      y = activate<kC>(y) * up;
    }
    static_cast<Y*>(p.y)[r * p.y_stride + output] = from_float<Y>(y + residual[j]);
  }
}

}  // namespace fulmen
