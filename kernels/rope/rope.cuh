// Rotary embedding of q and k.
//
// formula   (a, b) -> (a cos - b sin, b cos + a sin) for pair d at angle position * frequency[d], or from the table
// grid      a block per token, tokens strided over the grid
// roles     a thread turns pairs() neighbouring pairs of one head at a time; while its pairs stay the same from head to
//           head, their angles do too and are not computed again
#pragma once

#include <kernels/math/rotation.hpp>
#include <kernels/ptx/griddep.cuh>
#include <kernels/rope/rope.config.hpp>
#include <kernels/tile/vectors.cuh>

namespace fulmen {

template <int kPairs>
struct Angles {
  float cos[kPairs], sin[kPairs];
};

template <int kPairs>
FULMEN_DEVICE void load_angles(const RopeParams& p, int64_t position, int pair, Angles<kPairs>& angles) {
  const bool valid = position >= 0 && position < p.max_position;
#pragma unroll
  for (int i = 0; i < kPairs; ++i) {
    if (!valid) {
      angles.cos[i] = angles.sin[i] = quiet_nan();
    } else if (p.cos_sin != nullptr) {
      const float* row = p.cos_sin + position * p.cos_sin_stride;
      angles.cos[i] = row[pair + i];
      angles.sin[i] = row[p.rotary_dim / 2 + pair + i];
    } else {
      const Rotation r = rotation_of(turn_of(static_cast<uint32_t>(position), p.frequencies.step[pair + i]));
      angles.cos[i] = r.cos * p.frequencies.scale;
      angles.sin[i] = r.sin * p.frequencies.scale;
    }
  }
}

template <RopeConfig kC, class T>
FULMEN_DEVICE void turn_pairs(const RopeParams& p, const T* in, T* out, int pair, const Angles<kC.pairs()>& angles) {
  constexpr int kN = kC.vector(), kPairs = kC.pairs();
  if constexpr (kC.interleaved && kN > 1) {
    float x[kN];
    load_floats(in + 2 * pair, x);
#pragma unroll
    for (int i = 0; i < kPairs; ++i) {
      const float a = x[2 * i], b = x[2 * i + 1];
      x[2 * i] = fma(a, angles.cos[i], -(b * angles.sin[i]));
      x[2 * i + 1] = fma(b, angles.cos[i], a * angles.sin[i]);
    }
    store_floats(out + 2 * pair, x);
  } else {
    const int first = kC.interleaved ? 2 * pair : pair, second = kC.interleaved ? 2 * pair + 1 : pair + p.rotary_dim / 2;
    float a[kN], b[kN];
    load_floats(in + first, a);
    load_floats(in + second, b);
    float turned_a[kN], turned_b[kN];
#pragma unroll
    for (int i = 0; i < kN; ++i) {
      turned_a[i] = fma(a[i], angles.cos[i], -(b[i] * angles.sin[i]));
      turned_b[i] = fma(b[i], angles.cos[i], a[i] * angles.sin[i]);
    }
    store_floats(out + first, turned_a);
    store_floats(out + second, turned_b);
  }
}

// Heads of q (or k) of one token. `known` is the pair whose angles `angles` holds.
template <RopeConfig kC, class T>
FULMEN_DEVICE void turn_heads(const RopeParams& p, const T* in, T* out, int64_t in_stride, int64_t out_stride, int heads,
                              int64_t position, int& known, Angles<kC.pairs()>& angles) {
  const int units = p.rotary_dim / 2 / kC.pairs();
  for (int u = static_cast<int>(threadIdx.x); u < heads * units; u += kC.threads) {
    const int head = u / units, pair = (u - head * units) * kC.pairs();
    if (pair != known) {
      load_angles(p, position, pair, angles);
      known = pair;
    }
    turn_pairs<kC>(p, in + head * in_stride, out + head * out_stride, pair, angles);
  }
  const int rest = p.head_dim - p.rotary_dim;
  if (rest == 0 || in == out) return;
  for (int u = static_cast<int>(threadIdx.x); u < heads * rest; u += kC.threads) {
    const int head = u / rest, d = p.rotary_dim + u - head * rest;
    out[head * out_stride + d] = in[head * in_stride + d];
  }
}

template <RopeConfig kC>
FULMEN_DEVICE void rope(const RopeParams& p) {
  using T = storage_t<kC.dtype>;
  ptx::griddep_launch_dependents();
  ptx::griddep_wait();
  for (int64_t t = blockIdx.x; t < p.num_tokens; t += gridDim.x) {
    const int64_t position = p.positions_are_i64 ? static_cast<const int64_t*>(p.positions)[t]
                                                 : static_cast<int64_t>(static_cast<const int32_t*>(p.positions)[t]);
    int known = -1;
    Angles<kC.pairs()> angles{};
    turn_heads<kC>(p, static_cast<const T*>(p.q) + t * p.q_stride_token, static_cast<T*>(p.q_out) + t * p.q_out_stride_token,
                   p.q_stride_head, p.q_out_stride_head, p.num_q_heads, position, known, angles);
    if (p.k != nullptr) {
      turn_heads<kC>(p, static_cast<const T*>(p.k) + t * p.k_stride_token, static_cast<T*>(p.k_out) + t * p.k_out_stride_token,
                     p.k_stride_head, p.k_out_stride_head, p.num_k_heads, position, known, angles);
    }
  }
}

}  // namespace fulmen
