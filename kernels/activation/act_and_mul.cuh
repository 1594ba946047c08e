// Gated activation.
//
// formula   out = act(x[:, :width]) * x[:, width:]
// grid      a block per piece of a row (at most kActSpan vectors a thread, rows in even pieces), so that one token fills several
//           multiprocessors
// registers a thread's vectors as they are stored, all in flight before the first is used
#pragma once

#include <kernels/activation/act_and_mul.config.hpp>
#include <kernels/math/activation.hpp>
#include <kernels/ptx/griddep.cuh>
#include <kernels/ptx/special.cuh>
#include <kernels/tile/vectors.cuh>

namespace fulmen {

// g = act(g) * u.
template <Activation kActivation, int kN>
FULMEN_DEVICE void gate(float (&g)[kN], const float (&u)[kN]) {
  if constexpr (kActivation == Activation::gelu) {
#pragma unroll
    for (int i = 0; i < kN; ++i) g[i] = gelu(g[i]) * u[i];
  } else {
    float y[kN], largest = 0.0f;
#pragma unroll
    for (int i = 0; i < kN; ++i) {
      y[i] = kActivation == Activation::silu ? silu_exponent(g[i]) : gelu_tanh_exponent(g[i]);
      largest = ptx::max_number(largest, bits_float(float_bits(y[i]) & 0x7fffffffu));
    }
    if (largest <= kGateRange) {
#pragma unroll
      for (int i = 0; i < kN; ++i) g[i] = gate_in_range(g[i], y[i]) * u[i];
    } else {
#pragma unroll
      for (int i = 0; i < kN; ++i) g[i] = gate_of(g[i], y[i]) * u[i];
    }
  }
}

template <ActAndMulConfig kC>
FULMEN_DEVICE void act_and_mul(const ActAndMulParams& p) {
  using T = storage_t<kC.dtype>;
  constexpr int kN = kC.vector(), kLine = 128 / kC.vector_bytes;
  const int vectors = p.width / kN;
  const uint32_t pieces = static_cast<uint32_t>(ceil_div(vectors, kActSpan * kC.threads));
  const uint32_t items = static_cast<uint32_t>(p.num_tokens) * pieces;
  const int even = min(ceil_div(ceil_div(vectors, static_cast<int>(pieces)), kLine) * kLine, kActSpan * kC.threads);  // vectors of a piece
  const bool far = static_cast<int64_t>(p.num_tokens) * p.width > kFarBytes / static_cast<int>(sizeof(T));
  ptx::griddep_launch_dependents();
  ptx::griddep_wait();
  for (uint32_t item = blockIdx.x; item < items; item += gridDim.x) {
    const uint32_t token = item / pieces, piece = item - token * pieces;
    const T* gates = static_cast<const T*>(p.x) + token * p.x_stride;
    const T* ups = gates + p.width;
    T* out = static_cast<T*>(p.out) + token * p.out_stride;
    const int first = static_cast<int>(piece) * even + static_cast<int>(threadIdx.x), end = min(vectors, (static_cast<int>(piece) + 1) * even);
    Packed<T, kN> of_gate[kActSpan], of_up[kActSpan];
#pragma unroll
    for (int s = 0; s < kActSpan; ++s) {
      const int v = first + s * kC.threads;
      if (v < end) {
        of_gate[s] = load_packed<T, kN>(gates + v * kN, true);
        of_up[s] = load_packed<T, kN>(ups + v * kN, true);
      }
    }
#pragma unroll
    for (int s = 0; s < kActSpan; ++s) {
      const int v = first + s * kC.threads;
      if (v < end) {
        float g[kN], u[kN];
        unpack(of_gate[s], g);
        unpack(of_up[s], u);
        gate<kC.activation>(g, u);
        store_packed(out + v * kN, packed<T>(g), far);
      }
    }
  }
}

}  // namespace fulmen
