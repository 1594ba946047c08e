// Rotary embedding of q and k.
//
// formula   (a, b) -> (a cos - b sin, b cos + a sin) for pair d at angle position * frequency[d], or from the table
// grid      a block per token, tokens strided over the grid
// roles     a thread turns pairs() neighbouring pairs of a head, kAtOnce such units at a time, loaded before the first is turned; heads of q
//           come first, then those of k. While its pairs stay the same from head to head, their angles do too and aren't
//           computed again
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

// The values of pairs() pairs: neighbours, or two vectors half a rotary part apart.
template <RopeConfig kC, class T>
struct Pairs {
  static constexpr int kN = kC.vector(), kPairs = kC.pairs();
  static constexpr bool kTogether = kC.interleaved && kN > 1;
  Packed<T, kN> first, second;

  static FULMEN_DEVICE int first_of(int pair) { return kC.interleaved ? 2 * pair : pair; }
  static FULMEN_DEVICE int second_of(const RopeParams& p, int pair) { return kC.interleaved ? 2 * pair + 1 : pair + p.rotary_dim / 2; }

  FULMEN_DEVICE void load(const RopeParams& p, const T* in, int pair) {
    first = load_packed<T, kN>(in + first_of(pair));
    if constexpr (!kTogether) second = load_packed<T, kN>(in + second_of(p, pair));
  }
  FULMEN_DEVICE void store_turned(const RopeParams& p, T* out, int pair, const Angles<kPairs>& angles) const {
    float x[kN], y[kN];
    unpack(first, x);
    if constexpr (kTogether) {
#pragma unroll
      for (int i = 0; i < kPairs; ++i) {
        const float a = x[2 * i], b = x[2 * i + 1];
        x[2 * i] = fma(a, angles.cos[i], -(b * angles.sin[i]));
        x[2 * i + 1] = fma(b, angles.cos[i], a * angles.sin[i]);
      }
    } else {
      unpack(second, y);
#pragma unroll
      for (int i = 0; i < kN; ++i) {
        const float a = x[i], b = y[i];
        x[i] = fma(a, angles.cos[i], -(b * angles.sin[i]));
        y[i] = fma(b, angles.cos[i], a * angles.sin[i]);
      }
      store_packed(out + second_of(p, pair), packed<T>(y));
    }
    store_packed(out + first_of(pair), packed<T>(x));
  }
};

// The dims that aren't rotated.
template <RopeConfig kC, class T>
FULMEN_DEVICE void copy_rest(const RopeParams& p, const T* in, T* out, int64_t in_stride, int64_t out_stride, int heads) {
  const int rest = p.head_dim - p.rotary_dim;
  if (rest == 0 || in == out) return;
  for (int u = static_cast<int>(threadIdx.x); u < heads * rest; u += kC.threads) {
    const int head = u / rest, d = p.rotary_dim + u - head * rest;
    out[head * out_stride + d] = in[head * in_stride + d];
  }
}

// The heads of one token. k is null where no keys are turned.
template <RopeConfig kC, class T>
FULMEN_DEVICE void turn_token(const RopeParams& p, int64_t position, const T* q, T* q_out, const T* k, T* k_out, int64_t k_out_stride_head) {
  constexpr int kAtOnce = 3;
  const int units = p.rotary_dim / 2 / kC.pairs(), count = (p.num_q_heads + (k != nullptr ? p.num_k_heads : 0)) * units;
  int known = -1;
  Angles<kC.pairs()> angles{};
  for (int base = static_cast<int>(threadIdx.x); base < count; base += kC.threads * kAtOnce) {
    Pairs<kC, T> pairs[kAtOnce];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const int u = base + i * kC.threads, head = u / units, pair = (u - head * units) * kC.pairs();
      if (u >= count) continue;
      pairs[i].load(p, head < p.num_q_heads ? q + head * p.q_stride_head : k + (head - p.num_q_heads) * p.k_stride_head, pair);
    }
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const int u = base + i * kC.threads, head = u / units, pair = (u - head * units) * kC.pairs();
      if (u >= count) continue;
      if (pair != known) {
        load_angles(p, position, pair, angles);
        known = pair;
      }
      pairs[i].store_turned(p, head < p.num_q_heads ? q_out + head * p.q_out_stride_head : k_out + (head - p.num_q_heads) * k_out_stride_head,
                            pair, angles);
    }
  }
  copy_rest<kC>(p, q, q_out, p.q_stride_head, p.q_out_stride_head, p.num_q_heads);
  if (k != nullptr) copy_rest<kC>(p, k, k_out, p.k_stride_head, k_out_stride_head, p.num_k_heads);
}

FULMEN_DEVICE int64_t position_of(const RopeParams& p, int64_t token) {
  return p.positions_are_i64 ? static_cast<const int64_t*>(p.positions)[token]
                             : static_cast<int64_t>(static_cast<const int32_t*>(p.positions)[token]);
}

template <RopeConfig kC>
FULMEN_DEVICE void rope(const RopeParams& p) {
  using T = storage_t<kC.dtype>;
  ptx::griddep_launch_dependents();
  ptx::griddep_wait();
  for (int64_t t = blockIdx.x; t < p.num_tokens; t += gridDim.x) {
    turn_token<kC>(p, position_of(p, t), static_cast<const T*>(p.q) + t * p.q_stride_token, static_cast<T*>(p.q_out) + t * p.q_out_stride_token,
                   p.k == nullptr ? nullptr : static_cast<const T*>(p.k) + t * p.k_stride_token,
                   static_cast<T*>(p.k_out) + t * p.k_out_stride_token, p.k_out_stride_head);
  }
}

}  // namespace fulmen
