// The lowest index of each row's largest value; -1 for a row with NaN.
//
// grid      a block per row, rows strided over the grid; one pass
#pragma once

#include <kernels/ptx/griddep.cuh>
#include <kernels/sampling/argmax.params.hpp>
#include <kernels/sampling/row.cuh>

namespace fulmen {

template <SamplingConfig kC>
FULMEN_DEVICE void argmax(const ArgmaxParams& p) {
  using T = storage_t<kC.dtype>;
  ptx::griddep_launch_dependents();
  ptx::griddep_wait();
  for (int64_t r = blockIdx.x; r < p.num_rows; r += gridDim.x) {
    const T* x = static_cast<const T*>(p.x) + r * p.x_stride;
    uint64_t best = 0;  // key << 32 | ~index: the largest is the answer
    int32_t bad = 0;
    each_word<kC>(x, p.n, [&](int32_t i, float v) {
      const uint64_t item = static_cast<uint64_t>(ordered_key(v)) << 32 | ~static_cast<uint32_t>(i);
      best = item > best ? item : best;
      bad |= v != v;
    });
    best = block_reduce<kC.threads>(best, uint64_t{0}, Largest{});
    bad = block_sum<kC.threads>(bad);
    if (threadIdx.x == 0) p.index[r] = bad != 0 ? -1 : static_cast<int32_t>(~static_cast<uint32_t>(best));
  }
}

}  // namespace fulmen
