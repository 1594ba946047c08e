#pragma once

#include <kernels/prelude/prelude.hpp>

namespace fulmen {

constexpr int kMaxRotaryPairs = 256;

// Frequencies of the rotated pairs, made on the host from theta and the scaling rule.
struct RopeFrequencies {
  uint64_t step[kMaxRotaryPairs];  // [rotary_dim / 2] fraction of a turn per position, times 2^64
  float scale;                     // of cos and sin (YaRN), else 1
};

// Pair d of a head turns by position * frequency[d]: (a, b) -> (a cos - b sin, b cos + a sin). Pairs are
// (d, d + rotary_dim / 2), interleaved: (2d, 2d + 1). Dims from rotary_dim on are copied. A token whose
// position is negative or not in the cache becomes NaN. Strides in elements.
struct RopeParams {
  const void* q;          // dtype [num_tokens, num_q_heads, head_dim]
  const void* k;          // dtype [num_tokens, num_k_heads, head_dim], nullable
  void* q_out;            // may be q
  void* k_out;            // may be k
  const void* positions;  // i32 or i64 [num_tokens]
  const float* cos_sin;   // f32 [max_position, rotary_dim], nullable: frequencies then
  int64_t q_stride_token, q_stride_head, k_stride_token, k_stride_head;
  int64_t q_out_stride_token, q_out_stride_head, k_out_stride_token, k_out_stride_head;
  int64_t cos_sin_stride;
  int64_t num_tokens;
  int64_t max_position;  // positions are below it
  int32_t num_q_heads, num_k_heads;
  int32_t head_dim, rotary_dim;
  DType dtype;  // f32 | f16 | bf16
  bool positions_are_i64;
  bool interleaved;
  RopeFrequencies frequencies;
};

}  // namespace fulmen
