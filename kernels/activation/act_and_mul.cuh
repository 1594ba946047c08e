// Gated activation.
//
// formula   out = act(x[:, :width]) * x[:, width:]
// grid      a block per piece of a row (kActSpan vectors a thread), so that one token fills several multiprocessors
#pragma once

#include <kernels/activation/act_and_mul.config.hpp>
#include <kernels/math/activation.hpp>
#include <kernels/ptx/griddep.cuh>
#include <kernels/tile/vectors.cuh>

namespace fulmen {

template <ActAndMulConfig kC>
FULMEN_DEVICE void act_and_mul(const ActAndMulParams& p) {
  using T = storage_t<kC.dtype>;
  constexpr int kN = kC.vector();
  const int vectors = p.width / kN;
  const uint32_t pieces = static_cast<uint32_t>(ceil_div(vectors, kActSpan * kC.threads));
  const uint32_t items = static_cast<uint32_t>(p.num_tokens) * pieces;
  ptx::griddep_launch_dependents();
  ptx::griddep_wait();
  for (uint32_t item = blockIdx.x; item < items; item += gridDim.x) {
    const uint32_t token = item / pieces, piece = item - token * pieces;
    const T* gate = static_cast<const T*>(p.x) + token * p.x_stride;
    const T* up = gate + p.width;
    T* out = static_cast<T*>(p.out) + token * p.out_stride;
    const int first = static_cast<int>(piece) * kActSpan * kC.threads + static_cast<int>(threadIdx.x);
    float g[kActSpan][kN], u[kActSpan][kN];
#pragma unroll
    for (int s = 0; s < kActSpan; ++s) {
      const int v = first + s * kC.threads;
      if (v < vectors) {
        load_floats(gate + v * kN, g[s]);
        load_floats(up + v * kN, u[s]);
      }
    }
#pragma unroll
    for (int s = 0; s < kActSpan; ++s) {
      const int v = first + s * kC.threads;
      if (v < vectors) {
#pragma unroll
        for (int i = 0; i < kN; ++i) {
          const float x = g[s][i];
          g[s][i] = (kC.activation == Activation::silu ? silu(x) : kC.activation == Activation::gelu ? gelu(x) : gelu_tanh(x)) * u[s][i];
        }
        store_floats(out + v * kN, g[s]);
      }
    }
  }
}

}  // namespace fulmen
