// The k largest of each row, descending, equal values by lowest index. A row with NaN gives NaN and -1.
//
// grid      a cluster per row
// passes    fetch and maximum | bracket, rounds, finish (select.cuh) | count by warp | the k words, unordered, into the outputs | one block
//           reads them back and sorts them: in pairs where they are few, else by a bitonic network
// smem      RowShared, then the block's part of the row; for the sort k items in the place of both
#pragma once

#include <kernels/ptx/griddep.cuh>
#include <kernels/sampling/select.cuh>
#include <kernels/topk/top_k.params.hpp>

namespace fulmen {

// Ascending order of the first `size` items, a power of two.
template <int kThreads>
FULMEN_DEVICE void sort_items(uint64_t* items, int32_t size) {
#pragma unroll 1
  for (int32_t span = 2; span <= size; span <<= 1) {
#pragma unroll 1
    for (int32_t step = span >> 1; step > 0; step >>= 1) {
      __syncthreads();
#pragma unroll 1
      for (int32_t pair = static_cast<int32_t>(threadIdx.x); pair < size / 2; pair += kThreads) {
        const int32_t low = 2 * pair - (pair & (step - 1)), high = low + step;
        const uint64_t a = items[low], b = items[high];
        if ((a > b) == ((low & span) == 0)) {
          items[low] = b;
          items[high] = a;
        }
      }
    }
  }
  __syncthreads();
}

// What is above the k-th largest, or `listed` words of block 0's list among which the k largest are.
template <SamplingConfig kC>
FULMEN_DEVICE Kept largest_words(Row<kC>& row, const Shape& shape, int32_t k, float top, float lane_max, float lowest, uint32_t& listed) {
  const float range = top - lowest;
  const Distance distance{top, range > 0.0f && range < infinity() ? min(max(250.0f * reciprocal(range), 0x1p-60f), 0x1p+60f) : 1.0f, false};
  const uint32_t end = ordered_key(top) + 1;
  const Goal goal{k, 0};
  float words = 0.0f;
  estimate_counts(row, distance, lane_max);
  Bracket in = estimate(row, row.s.merged_count, distance, k, 1.0f, words);
  const bool few = words <= kFewWords;
  Counted counted{};
  if (few) {
    counted = count_words(row, shape, in, 0, false, false, true, false);
    const bool reached = goal.reached(counted.above, 0);
    if (reached && counted.above <= kRowList) {
      listed = counted.above;
      return {};
    }
    in = reached ? Bracket{in.low, end} : Bracket{kLowestKey, in.low};
    if (reached) counted = {};
  }
  const Cut cut = select(row, shape, in, end, few, counted, false, false, goal, [&](uint64_t) { return goal; });
  return {key_value(cut.key), cut.ties, 0.0f};
}

// Words above the cut, and the first ties, of this warp's range to the outputs from place `at` on.
template <SamplingConfig kC>
FULMEN_DEVICE void write_unordered(const Row<kC>& row, const Shape& shape, const Kept& kept, uint32_t before, uint32_t at, int32_t* indices) {
  constexpr int kN = kC.vector();
  row.each_together(row.own(), [&](int32_t first, const float(&f)[kN]) {
    uint32_t words = kept_words(shape, kept, f, before);
    if (__any_sync(kFullMask, words != 0) != 0) {
      const uint32_t own = static_cast<uint32_t>(__popc(words)), ahead = warp_exclusive_sum(own);
      uint32_t place = at + ahead;
#pragma unroll 1
      for (; words != 0; words &= words - 1) indices[place++] = first + __ffs(static_cast<int>(words)) - 1;
      at += warp_broadcast(ahead + own, 31);
    }
    return true;
  });
}

template <SamplingConfig kC>
FULMEN_DEVICE void top_k(const TopKParams& p) {
  using T = storage_t<kC.dtype>;
  constexpr int kPerLane = Row<kC>::kPerLane;
  ptx::griddep_launch_dependents();
  ptx::griddep_wait();
  const int64_t r = blockIdx.x / kC.cluster;
  Row<kC> row(static_cast<const T*>(p.x) + r * p.x_stride, p.n);
  row.fetch();
  float lane_max, lowest;
  const float top = row.largest(false, lane_max, lowest);
  T* values = static_cast<T*>(p.values) + r * p.values_stride;
  int32_t* indices = p.indices + r * p.indices_stride;
  if (top != top) {
    if (row.rank == 0) {
      for (int32_t i = static_cast<int32_t>(threadIdx.x); i < p.k; i += kC.threads) {
        values[i] = from_float<T>(quiet_nan());
        indices[i] = -1;
      }
    }
    return;
  }

  const Shape shape{0.0f, 1.0f, false};  // any: masses play no part
  uint32_t listed = 0;
  const Kept kept = p.k < p.n ? largest_words(row, shape, p.k, top, lane_max, lowest, listed) : Kept{-infinity(), p.n, 0.0f};
  if (listed > 0) {
    if (row.rank != 0) return;
    rank_list(row, shape, listed, false);
    for (int32_t i = static_cast<int32_t>(threadIdx.x); i < p.k; i += kC.threads) {
      const int32_t index = static_cast<int32_t>(static_cast<uint32_t>(row.s.ranked[i]));
      indices[i] = index;
      values[i] = row.x[index];
    }
    return;
  }

  uint32_t above = 0, equal = 0;
  row.each(row.own(), [&](const int32_t(&)[kC.group()], const float(&f)[kC.group()]) {
#pragma unroll
    for (int k = 0; k < kC.group(); ++k) above += f[k] > kept.cut, equal += f[k] == kept.cut;
  });
  const auto slots = row.exchange({0, 0, static_cast<uint32_t>(warp_reduce(static_cast<int32_t>(above), Sum{})),
                                   static_cast<uint32_t>(warp_reduce(static_cast<int32_t>(equal), Sum{}))});
  int32_t before_above = 0, before_equal = 0;
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) {
    if (static_cast<uint32_t>(lane_index() * kPerLane + i) < row.slot()) {
      before_above += static_cast<int32_t>(slots.of[i].c);
      before_equal += static_cast<int32_t>(slots.of[i].d);
    }
  }
  before_above = warp_reduce(before_above, Sum{});
  before_equal = warp_reduce(before_equal, Sum{});
  write_unordered(row, shape, kept, static_cast<uint32_t>(before_equal), static_cast<uint32_t>(before_above + min(before_equal, kept.ties)), indices);
  row.sync();  // the words have been written
  if (row.rank != 0) return;

  uint64_t* items = reinterpret_cast<uint64_t*>(&row.s);
  const bool few = p.k <= kRowList;
  int32_t size = 2;
  while (size < p.k) size <<= 1;
  for (int32_t i = static_cast<int32_t>(threadIdx.x); i < size; i += kC.threads) {
    const int32_t index = i < p.k ? indices[i] : 0;
    items[i] = i < p.k ? static_cast<uint64_t>(~ordered_key(to_float(row.x[index]))) << 32 | static_cast<uint32_t>(index) : ~uint64_t{0};
  }
  if (few) {
    __syncthreads();
  } else {
    sort_items<kC.threads>(items, size);
  }
  for (int32_t i = static_cast<int32_t>(threadIdx.x); i < p.k; i += kC.threads) {
    const uint64_t item = items[i];
    int32_t place = i;
    if (few) {
      place = 0;
#pragma unroll 1
      for (int32_t j = 0; j < p.k; ++j) place += items[j] < item;
    }
    const int32_t index = static_cast<int32_t>(static_cast<uint32_t>(item));
    indices[place] = index;
    values[place] = row.x[index];
  }
}

}  // namespace fulmen
