// The arithmetic steps that both tile classes of attend_sm80 share. A warp holds rows g and g + 8 of each 16-row tile
// in lanes 4g .. 4g + 3; element [j][i] of a score tile is key 8j + 2 (lane & 3) + (i & 1) of row g + 8 (i >> 1).
#pragma once

#include <kernels/prelude/prelude.hpp>
#include <kernels/ptx/special.cuh>
#include <kernels/tile/fragments.cuh>

namespace fulmen {

// The running state of one 16-row tile: m in units of log2, l per lane (summed over the quad at the end).
template <int kDim>
struct RowState {
  float o[kDim / 8][4];
  float m[2], l[2];

  FULMEN_FN void clear() {
#pragma unroll
    for (int j = 0; j < kDim / 8; ++j) {
#pragma unroll
      for (int i = 0; i < 4; ++i) o[j][i] = 0.0f;
    }
    m[0] = m[1] = -infinity();
    l[0] = l[1] = 0.0f;
  }
};

// Keys outside [lo, hi) of their row become `hidden`; lo and hi count from the tile's first key.
template <int kTiles>
FULMEN_FN void mask_scores(float (&s)[kTiles][4], const int (&lo)[2], const int (&hi)[2], int lane, float hidden) {
#pragma unroll
  for (int j = 0; j < kTiles; ++j) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int key = 8 * j + 2 * (lane & 3) + (i & 1);
      if (key < lo[i >> 1] || key >= hi[i >> 1]) s[j][i] = hidden;
    }
  }
}

FULMEN_FN float quad_max(float x) {
  x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 1));
  return fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 2));
}
FULMEN_FN float quad_sum(float x) {
  x += __shfl_xor_sync(0xffffffffu, x, 1);
  return x + __shfl_xor_sync(0xffffffffu, x, 2);
}

// Of the lane's scores, for each of its rows.
template <int kM, int kTiles>
FULMEN_FN void lane_maxima(float (&top)[kM][2], const float (&s)[kM][kTiles][4]) {
#pragma unroll
  for (int m = 0; m < kM; ++m) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float even = fmaxf(s[m][0][2 * h], s[m][0][2 * h + 1]), odd = fmaxf(s[m][1][2 * h], s[m][1][2 * h + 1]);
#pragma unroll
      for (int j = 2; j < kTiles; j += 2) {
        even = fmaxf(even, fmaxf(s[m][j][2 * h], s[m][j][2 * h + 1]));
        odd = fmaxf(odd, fmaxf(s[m][j + 1][2 * h], s[m][j + 1][2 * h + 1]));
      }
      top[m][h] = fmaxf(even, odd);
    }
  }
}

// s -> 2^(s scale_log2 - m), with the lanes' maxima `top`. The maximum m is left standing until it is exceeded by 2^kSlack: p
// stays below 2^kSlack, which costs no precision, and sums and outputs rarely have to shrink; only then do a row's lanes meet.
// All row tiles of a warp at once: their chains of latencies run side by side.
constexpr float kSlack = 8.0f;

template <int kM, int kTiles, int kDim>
FULMEN_FN void softmax_step(float (&s)[kM][kTiles][4], RowState<kDim> (&state)[kM], float (&top)[kM][2], float scale_log2) {
  bool grown = false;
#pragma unroll
  for (int m = 0; m < kM; ++m) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      top[m][h] *= scale_log2;
      grown = grown || top[m][h] > state[m].m[h] + kSlack;
    }
  }
  if (__any_sync(0xffffffffu, grown)) {
#pragma unroll
    for (int m = 0; m < kM; ++m) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const float all = quad_max(top[m][h]);
        const bool mine = all > state[m].m[h] + kSlack;
        const float alpha = mine ? ptx::ex2_approx(state[m].m[h] - all) : 1.0f;
        if (mine) state[m].m[h] = all;
        state[m].l[h] *= alpha;
#pragma unroll
        for (int j = 0; j < kDim / 8; ++j) state[m].o[j][2 * h] *= alpha, state[m].o[j][2 * h + 1] *= alpha;
      }
    }
  }
#pragma unroll
  for (int m = 0; m < kM; ++m) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const float base = state[m].m[h] == -infinity() ? 0.0f : state[m].m[h];  // no visible key yet: every p is 0, not NaN
      float sum[4];  // four chains: one would be as long as the exponentials
#pragma unroll
      for (int j = 0; j < kTiles; ++j) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          float& x = s[m][j][2 * h + i];
          x = ptx::ex2_approx(fma(x, scale_log2, -base));
          const int chain = (2 * j + i) & 3;
          sum[chain] = 2 * j + i < 4 ? (chain == 0 ? state[m].l[h] + x : x) : sum[chain] + x;
        }
      }
      state[m].l[h] = (sum[0] + sum[1]) + (sum[2] + sum[3]);
    }
  }
}

// p as the A operand of keys 16 kk .. 16 kk + 15: the accumulator's layout is the operand's.
template <DType kType, int kTiles>
FULMEN_FN void probabilities(uint32_t (&a)[4], const float (&s)[kTiles][4], int kk) {
  a[0] = pack<kType>(s[2 * kk][0], s[2 * kk][1]);
  a[1] = pack<kType>(s[2 * kk][2], s[2 * kk][3]);
  a[2] = pack<kType>(s[2 * kk + 1][0], s[2 * kk + 1][1]);
  a[3] = pack<kType>(s[2 * kk + 1][2], s[2 * kk + 1][3]);
}

}  // namespace fulmen
