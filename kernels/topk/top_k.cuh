// The k largest of each row, descending, equal values by lowest index. A row with NaN gives NaN and -1.
//
// grid      a block per row; passes: maximum and minimum | bins | gather the top bins into shared memory and rank them.
//           Rows whose top bins don't fit are cut by bisection first
// smem      RowScratchShared; k is at most kListSize
#pragma once

#include <kernels/ptx/griddep.cuh>
#include <kernels/sampling/row.cuh>
#include <kernels/topk/top_k.params.hpp>

namespace fulmen {

// Exactly the k words of the cut, ranked, into the list.
template <SamplingConfig kC, class T>
FULMEN_DEVICE void gather_cut(RowScratchShared& s, const Kept<T>& kept, int32_t k) {
  sum_tiles<kC>(s, kept);
  if (threadIdx.x == 0) s.list_count = 0;
  __syncthreads();
  const int32_t tiles = ceil_div(kept.row.n, kTileWords);
  for (int32_t tile = uniform_warp_index(); tile < tiles; tile += kC.threads / 32) {
    each_of_tile(s, kept, tile, [&](int32_t i, float v, bool chosen, bool) {
      if (chosen) s.list[atomicAdd(&s.list_count, 1u)] = ranked_item(ordered_key(v), i);
      return true;
    });
  }
  __syncthreads();
  const int32_t size = padded_size(k);
  for (int32_t i = k + static_cast<int32_t>(threadIdx.x); i < size; i += kC.threads) s.list[i] = ~uint64_t{0};
  sort_list<kC.threads>(s.list, size);
}

template <SamplingConfig kC>
FULMEN_DEVICE void top_k(const TopKParams& p) {
  using T = storage_t<kC.dtype>;
  RowScratchShared& s = shared_storage<RowScratchShared>();
  ptx::griddep_launch_dependents();
  ptx::griddep_wait();
  for (int64_t r = blockIdx.x; r < p.num_rows; r += gridDim.x) {
    const T* x = static_cast<const T*>(p.x) + r * p.x_stride;
    T* values = static_cast<T*>(p.values) + r * p.values_stride;
    int32_t* indices = p.indices + r * p.indices_stride;
    const float max = row_max<kC>(x, p.n, false);
    float low = infinity();
    each_word<kC>(x, p.n, [&](int32_t, float v) { low = v < low && v > -infinity() ? v : low; });
    low = block_reduce<kC.threads>(low, infinity(), Smallest{});
    if (agreed(max != max)) {
      for (int32_t i = static_cast<int32_t>(threadIdx.x); i < p.k; i += kC.threads) {
        values[i] = from_float<T>(quiet_nan());
        indices[i] = -1;
      }
      continue;
    }
    // Masses play no part: the shape is any.
    const Row<T> row{x, p.n, 0.0f, 1.0f, false};
    const Goal goal{p.k, 0};
    int32_t listed = -1;
    const float range = max - low;
    if (agreed(max < infinity() && range > 0.0f && range < infinity())) {
      const Bins bins{max, quotient(static_cast<float>(kBinCount - 2), range), false};
      fill_bins<kC>(s, row, bins, false, 0);
      listed = gather_list<kC>(s, row, bins, goal, 0);
    }
    if (agreed(listed < 0)) {
      uint64_t unused = 0;
      const Cut cut = bisect<kC>(row, goal, unused);
      gather_cut<kC>(s, Kept<T>{row, cut.key, cut.ties, 0}, p.k);
    }
    for (int32_t i = static_cast<int32_t>(threadIdx.x); i < p.k; i += kC.threads) {
      const int32_t index = static_cast<int32_t>(static_cast<uint32_t>(s.list[i]));
      indices[i] = index;
      values[i] = x[index];
    }
    __syncthreads();
  }
}

}  // namespace fulmen
