// The lowest index of each row's largest value; -1 for a row with NaN.
//
// grid      a cluster per row; one pass, behind which a lane reads the vector of its largest word again
#pragma once

#include <kernels/ptx/griddep.cuh>
#include <kernels/sampling/argmax.params.hpp>
#include <kernels/sampling/row.cuh>

namespace fulmen {

template <SamplingConfig kC>
FULMEN_DEVICE void argmax(const ArgmaxParams& p) {
  constexpr int kN = kC.vector(), kAtOnce = 4;  // vectors in flight
  ptx::griddep_launch_dependents();
  ptx::griddep_wait();
  const int64_t r = blockIdx.x / kC.cluster;
  Row<kC> row(static_cast<const storage_t<kC.dtype>*>(p.x) + r * p.x_stride, p.n);
  row.arrive();
  const Range range = row.own();
  // A lane meets its words in ascending order: the first vector with the largest has the lowest index.
  float top = -infinity();
  int32_t at = range.begin + lane_index();
  bool bad = false;
#pragma unroll 1
  for (int32_t v = range.begin + lane_index(); v < range.end; v += 32 * kAtOnce) {
    float f[kAtOnce][kN];
#pragma unroll
    for (int a = 0; a < kAtOnce; ++a) {
      if (v + 32 * a < range.end) row.read(v + 32 * a, f[a], -infinity());
    }
#pragma unroll
    for (int a = 0; a < kAtOnce; ++a) {
      if (v + 32 * a >= range.end) continue;
      float most = f[a][0];
#pragma unroll
      for (int k = 1; k < kN; ++k) most = ptx::max_nan(most, f[a][k]);
      bad |= most != most;
      if (most > top) top = most, at = v + 32 * a;
    }
  }
  uint64_t best = 0;  // key << 32 | ~index: the largest is the answer
  if (at < range.end) {
    float f[kN];
    row.read(at, f, -infinity());
    int32_t first = kN - 1;
#pragma unroll
    for (int k = kN - 2; k >= 0; --k) first = f[k] == top ? k : first;
    best = static_cast<uint64_t>(ordered_key(top)) << 32 | ~static_cast<uint32_t>(at * kN + first);
  }
  row.await_blocks();
  const uint32_t any_bad = __any_sync(kFullMask, bad) != 0;
  const auto slots = row.exchange({warp_reduce(best, Largest{}), any_bad, 0, 0});
  best = 0;
  uint64_t spoilt = 0;
#pragma unroll
  for (int i = 0; i < Row<kC>::kPerLane; ++i) best = max(best, slots.of[i].a), spoilt |= slots.of[i].b;
  best = warp_reduce(best, Largest{});
  const bool any_spoilt = __any_sync(kFullMask, spoilt != 0) != 0;
  if (row.rank == 0 && threadIdx.x == 0) p.index[r] = any_spoilt ? -1 : static_cast<int32_t>(~static_cast<uint32_t>(best));
}

}  // namespace fulmen
