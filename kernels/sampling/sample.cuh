// A word per row from the filtered distribution, exactly.
//
// formula   word = in index order the first whose running mass exceeds draw = mulhi(random bits, mass of the kept words)
// grid      a block per row, rows strided over the grid
// passes    maximum | bins (and total mass) | gather the top bins into shared memory and rank them there | draw. Rows whose
//           kept words don't fit the list are ranked by bisection; rows without ranking filters go from the maximum to
//           tile sums. Between passes a row lies in L2
// smem      RowScratchShared
#pragma once

#include <kernels/math/log.hpp>
#include <kernels/ptx/griddep.cuh>
#include <kernels/sampling/row.cuh>

namespace fulmen {

struct Drawn {
  int32_t token;
  float logprob;
};

// The lowest index of value `max`.
template <SamplingConfig kC, class T>
FULMEN_DEVICE int32_t find_value(const T* x, int32_t n, float max) {
  int32_t first = 0x7fffffff;
  each_word<kC>(x, n, [&](int32_t i, float v) {
    if (v == max && i < first) first = i;
  });
  return block_reduce<kC.threads>(first, 0x7fffffff, Smallest{});
}

// Among the first `listed` items of the ranked list, in index order.
template <SamplingConfig kC, class T>
FULMEN_DEVICE int32_t draw_from_list(RowScratchShared& s, const SampleParams& p, int64_t r, const Row<T>& row, int32_t listed,
                                     uint64_t floor) {
  const int32_t size = padded_size(listed);
  __syncthreads();
  for (int32_t i = static_cast<int32_t>(threadIdx.x); i < size; i += kC.threads) {
    s.list[i] = i < listed ? swapped_item(s.list[i]) : ~uint64_t{0};
  }
  sort_list<kC.threads>(s.list, size);
  const auto mass_of_item = [&](uint64_t item) {
    const uint64_t mass = row.mass(key_value(~static_cast<uint32_t>(item)));
    return mass >= floor ? mass : 0;
  };
  uint64_t kept = 0;
  find_in_list(s, listed, mass_of_item, [](int32_t, uint64_t) { return false; }, kept);
  const uint64_t draw = draw_of(p, r, kept);
  uint64_t unused;
  const int32_t at = find_in_list(s, listed, mass_of_item, [&](int32_t, uint64_t m) { return m > draw; }, unused);
  return at < 0 ? -1 : static_cast<int32_t>(s.list[at] >> 32);
}

template <SamplingConfig kC, class T>
FULMEN_DEVICE Drawn draw_row(RowScratchShared& s, const SampleParams& p, int64_t r, const T* x) {
  const Drawn nothing{-1, quiet_nan()};
  const RowFilter f = row_filter(p.filter, r, p.vocab, p.input_is_probs);
  if (agreed(f.bad)) return nothing;
  Drawn drawn = nothing;
  const float max = row_max<kC>(x, p.vocab, p.input_is_probs);
  if (agreed(max != max)) return nothing;
  if (agreed(f.greedy)) drawn.token = find_value<kC>(x, p.vocab, max);
  if (agreed(!(max > -infinity() && max < infinity()))) return drawn;

  const Row<T> row{x, p.vocab, max, f.inverse_temperature, p.input_is_probs};
  const uint64_t most = row.mass(max);
  if (agreed(most == 0)) return drawn;
  const bool ranked = agreed(f.top_k > 0 || f.top_p < 1.0f), wants_total = p.logprob != nullptr;
  const uint64_t floor = f.min_p > 0.0f ? mass_share(f.min_p, most) : 0;
  uint64_t total = 0;
  if (agreed(f.greedy)) {
    if (wants_total) total = total_mass<kC>(row);
  } else {
    Kept<T> kept{row, 0, 0x7fffffff, floor};
    bool listed = false;
    if (ranked) {
      const Cut cut = kept_prefix<kC>(s, row, f, wants_total, total);
      kept.key = cut.key;
      kept.ties = cut.ties;
      listed = agreed(cut.listed > 0);
      if (listed) drawn.token = draw_from_list<kC>(s, p, r, row, cut.listed, floor);
    }
    if (!listed) {
      const uint64_t mass = sum_tiles<kC>(s, kept);
      drawn.token = find_draw<kC>(s, kept, draw_of(p, r, mass));
      if (!ranked && wants_total) total = agreed(floor == 0) ? mass : total_mass<kC>(row);
    }
  }
  if (wants_total && drawn.token >= 0) {
    const float value = row.value(drawn.token);
    const float log_weight = p.input_is_probs ? exact_log(value) : (value - max) * f.inverse_temperature;
    drawn.logprob = log_weight - exact_log(mass_value(total));
  }
  return drawn;
}

template <SamplingConfig kC>
FULMEN_DEVICE void sample(const SampleParams& p) {
  using T = storage_t<kC.dtype>;
  RowScratchShared& s = shared_storage<RowScratchShared>();
  ptx::griddep_launch_dependents();
  ptx::griddep_wait();
  for (int64_t r = blockIdx.x; r < p.num_rows; r += gridDim.x) {
    const int64_t from = p.row_ids != nullptr ? p.row_ids[r] : r;
    Drawn drawn{-1, quiet_nan()};
    if (agreed(from >= 0 && from < p.num_input_rows)) drawn = draw_row<kC>(s, p, r, static_cast<const T*>(p.input) + from * p.input_stride);
    if (threadIdx.x == 0) {
      p.tokens[r] = drawn.token;
      if (p.logprob != nullptr) p.logprob[r] = drawn.logprob;
    }
  }
}

}  // namespace fulmen
