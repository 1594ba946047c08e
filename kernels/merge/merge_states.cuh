// Partial attention states into one.
//
// formula   lse = ln sum_p exp(lse_p); o = sum_p exp(lse_p - lse) o_p, parts in index order; or with base 2 for e
// grid      a warp per (row, head), strided over all warps
// roles     the lanes share the parts' lse for maximum and sum, then each lane has vectors of the head
// note      o and lse may be a part's: a lane has read its vector of every part before it writes, and all have read every lse
#pragma once

#include <kernels/math/exp.hpp>
#include <kernels/math/log.hpp>
#include <kernels/math/reciprocal.hpp>
#include <kernels/merge/merge_states.config.hpp>
#include <kernels/ptx/griddep.cuh>
#include <kernels/tile/reduce.cuh>
#include <kernels/tile/vectors.cuh>

namespace fulmen {

struct LargestOrNan {
  FULMEN_DEVICE float operator()(float a, float b) const { return a > b || a != a ? a : b; }
};

struct MergedWeights {
  float top, unit, inverse_sum, lse;
  FULMEN_DEVICE float of(float part_lse) const { return exact_exp((part_lse - top) * unit) * inverse_sum; }
};

// By the whole warp. All parts empty: weights are 0 and lse is -inf.
FULMEN_DEVICE MergedWeights merged_weights(const MergeStatesParams& p, int64_t row, int64_t head) {
  float top = -infinity();
  for (int64_t part = lane_index(); part < p.num_parts; part += kWarpSize) {
    top = LargestOrNan{}(*merge_lse(p, part, row, head), top);
  }
  top = warp_reduce(top, LargestOrNan{});
  float sum = 0.0f;
  for (int64_t part = lane_index(); part < p.num_parts; part += kWarpSize) {
    const float lse = *merge_lse(p, part, row, head);
    sum += lse == -infinity() ? 0.0f : exact_exp((lse - top) * p.lse_unit);
  }
  sum = warp_reduce(sum, Sum{});
  if (top == -infinity()) return {0.0f, p.lse_unit, 0.0f, top};
  return {top, p.lse_unit, reciprocal(sum), fma(exact_log(sum), p.log_unit, top)};
}

template <MergeStatesConfig kC>
FULMEN_DEVICE void merge_states(const MergeStatesParams& p) {
  using T = storage_t<kC.dtype>;
  constexpr int kN = kC.vector(), kWarps = kC.threads / kWarpSize;
  const uint32_t heads = static_cast<uint32_t>(p.num_heads),
                 count = static_cast<uint32_t>(p.num_rows) * heads;
  // The shuffle tells the compiler that the lanes agree: else the reductions below would be calls.
  const uint32_t warp = blockIdx.x * kWarps + static_cast<uint32_t>(__shfl_sync(kFullMask, warp_index(), 0));
  ptx::griddep_launch_dependents();
  ptx::griddep_wait();
  for (uint32_t item = warp; item < count; item += gridDim.x * kWarps) {
    const uint32_t row = item / heads, head = item - row * heads;
    const MergedWeights weights = merged_weights(p, row, head);
    T* out = static_cast<T*>(p.o) + row * p.o_stride_row + head * p.o_stride_head;
    for (int i = lane_index() * kN; i < p.head_dim; i += kWarpSize * kN) {
      float sum[kN] = {};
      for (int64_t part = 0; part < p.num_parts; ++part) {
        const float weight = weights.of(*merge_lse(p, part, row, head));
        if (weight == 0.0f) continue;  // an empty part's o may hold anything
        const T* from =
            static_cast<const T*>(part == 0 ? p.first.o : p.second.o) + merge_offset(p, part, row, head);
        float v[kN];
        load_floats(from + i, v);
#pragma unroll
        for (int j = 0; j < kN; ++j) sum[j] = fma(v[j], weight, sum[j]);
      }
      store_floats(out + i, sum);
    }
    __syncwarp();
    if (p.lse != nullptr && lane_index() == 0)
      p.lse[row * p.lse_stride_row + head * p.lse_stride_head] = weights.lse;
  }
}

}  // namespace fulmen
