// A word per row from the filtered distribution, exactly.
//
// formula   word = in index order the first whose running mass exceeds draw = mulhi(random bits, mass of the kept words)
// grid      a cluster per row
// passes    fetch and maximum | bracket, then a list or rounds (select.cuh; rows with top-k or top-p). A short prefix is listed, and block 0
//           draws from the list. Else: kept mass by warp | the warp's range
//           again, by the warps of one block | the word
// smem      RowShared, then the block's part of the row
// barriers  one of the cluster per exchange of sums
#pragma once

#include <kernels/math/log.hpp>
#include <kernels/ptx/griddep.cuh>
#include <kernels/sampling/prefix.cuh>

namespace fulmen {

// The lowest index of the largest value.
template <SamplingConfig kC>
FULMEN_DEVICE int32_t find_value(Row<kC>& row, float value) {
  uint32_t first = 0x7fffffffu;
  row.each(row.own(), [&](const int32_t(&at)[kC.group()], const float(&f)[kC.group()]) {
#pragma unroll
    for (int k = kC.group() - 1; k >= 0; --k) first = f[k] == value ? min(first, static_cast<uint32_t>(at[k])) : first;
  });
  const auto slots = row.exchange({0, 0, __reduce_min_sync(kFullMask, first), 0});
  first = 0x7fffffffu;
#pragma unroll
  for (int i = 0; i < Row<kC>::kPerLane; ++i) {
    if (static_cast<uint32_t>(lane_index() * Row<kC>::kPerLane + i) < Row<kC>::kSlots) first = min(first, slots.of[i].c);
  }
  return static_cast<int32_t>(__reduce_min_sync(kFullMask, first));
}

// Of the first `count` ranked items the one, in index order, whose running mass first exceeds the draw; in one thread, -1 in the others.
template <SamplingConfig kC>
FULMEN_DEVICE int32_t draw_from_list(Row<kC>& row, const SampleParams& p, int64_t r, uint32_t count, uint64_t floor, float& value) {
  auto& s = row.s;
  uint64_t all = 0;
  for (uint32_t i = static_cast<uint32_t>(lane_index()); i < count; i += 32) all += s.items[i] >= floor ? s.items[i] : 0;
  const uint64_t draw = draw_of(p, r, warp_reduce(all, Sum{}));
  int32_t token = -1;
  for (uint32_t i = threadIdx.x; i < count; i += kC.threads) {
    const uint64_t own = s.items[i];
    const uint32_t index = static_cast<uint32_t>(s.ranked[i]);
    if (own < floor) continue;
    uint64_t running = 0;
#pragma unroll 2
    for (uint32_t j = 0; j < count; ++j) {
      if (s.items[j] >= floor && static_cast<uint32_t>(s.ranked[j]) < index) running += s.items[j];
    }
    if (running <= draw && draw < running + own) {
      token = static_cast<int32_t>(index);
      value = key_value(~static_cast<uint32_t>(s.ranked[i] >> 32));
    }
  }
  return token;
}

// Which of this block's warps has the draw of a place in index order, by what each of them keeps.
template <SamplingConfig kC>
FULMEN_DEVICE Place find_warp(Row<kC>& row, const KeptSum& sum, const Shape& shape, const Kept& kept, const Place& from) {
  auto& s = row.s;
  __syncthreads();
  if (lane_index() == 0) s.items[warp_index()] = sum.above, s.count[warp_index()] = sum.equal;
  __syncthreads();
  struct {
    RowSlot of[1];
  } parts{};
  if (lane_index() < kC.num_warps()) parts.of[0] = {s.items[lane_index()], 0, s.count[lane_index()], 0};
  uint64_t mass = 0;
  const Kept rest{kept.cut, max(kept.ties - static_cast<int32_t>(from.before), 0), kept.floor};
  const Place place = find_slot<1>(parts, shape, rest, mass, [&](uint64_t) { return from.draw; });
  return {place.slot, place.draw, from.before + place.before};
}

// Writes the word of output row r. Every thread of the cluster comes to every exchange.
template <SamplingConfig kC>
FULMEN_DEVICE void draw_row(Row<kC>& row, const SampleParams& p, int64_t r) {
  const bool first_thread = row.rank == 0 && threadIdx.x == 0, wants_total = p.logprob != nullptr;
  const auto write = [&](int32_t token, float logprob) {
    p.tokens[r] = token;
    if (wants_total) p.logprob[r] = logprob;
  };
  const RowFilter f = row_filter(p.filter, r, p.vocab, p.input_is_probs);
  row.fetch();
  float lane_max, lowest;
  const bool quick = is_quick(row, f, p.input_is_probs);
  const bool samples = quick && f.top_p < 1.0f;
  if (samples) clear_sample(row);
  const float top = row.largest(p.input_is_probs, lane_max, lowest, [&](float of_lane, float of_warp) {
    if (samples) tell_sample(row, rounded(f.inverse_temperature), of_lane, of_warp);
  });
  const Shape shape{top, f.inverse_temperature, p.input_is_probs};
  const auto logprob_of = [&](float value) {
    const float log_weight = shape.is_probs ? exact_log(value) : (value - shape.max) * shape.inverse_temperature;
    return log_weight - exact_log(mass_value(row.s.total));
  };
  const bool weighable = top > -infinity() && top < infinity() && shape.mass(top) != 0;
  if (f.bad || top != top || (!f.greedy && !weighable)) {
    if (first_thread) write(-1, quiet_nan());
    return;
  }
  const bool ranked = !f.greedy && (f.top_k > 0 || f.top_p < 1.0f);
  if (wants_total && weighable && !ranked) total_mass(row, shape);
  if (f.greedy) {
    const int32_t token = find_value(row, top);
    if (first_thread) write(token, wants_total && weighable ? logprob_of(top) : quiet_nan());
    return;
  }

  const Prefix prefix = kept_by(row, shape, f, lane_max, lowest, wants_total, false, quick, [&](uint64_t all) { return draw_of(p, r, all); });
  if (prefix.listed > 0) {
    if (row.rank != 0) return;
    rank_list(row, shape, prefix.listed, true);
    Cut cut;
    const uint32_t count = listed_prefix(row.s, f, prefix, cut);
    const uint64_t floor = f.min_p > 0.0f ? mass_share(f.min_p, shape.mass(top)) : 0;
    float value = 0.0f;
    const int32_t token = draw_from_list(row, p, r, count, floor, value);
    if (token >= 0) write(token, wants_total ? logprob_of(value) : 0.0f);
    return;
  }
  const Kept kept = prefix.kept;
  uint64_t mass = 0;
  Place place = prefix.place;
  if (place.slot == kNowhere) {
    const KeptSum sum = sum_kept(row, row.wanted(), shape, kept);
    place = find_slot<Row<kC>::kPerLane>(row.exchange({sum.above, 0, sum.equal, 0}), shape, kept, mass, [&](uint64_t all) { return draw_of(p, r, all); });
    if (place.slot / kC.num_warps() != row.rank) return;
    place.slot %= kC.num_warps();
  } else {
    if (place.slot != row.rank) return;
    place = find_warp(row, sum_wanted(row, shape, kept), shape, kept, place);
  }

  // The warps of this block share the range that the draw falls in.
  const Range whole = Row<kC>::part_of(row.block(), static_cast<int>(place.slot));
  Range range = Row<kC>::part_of(whole, warp_index());
  if (!row.whole) row.restore(range);
  place = find_warp(row, sum_kept(row, range, shape, kept), shape, kept, place);
  if (place.slot != static_cast<uint32_t>(warp_index())) return;
  float value = 0.0f;
  const int32_t token = find_word(row, range, shape, kept, place.draw, place.before, value);
  if (token >= 0) write(token, wants_total ? logprob_of(value) : 0.0f);
}

template <SamplingConfig kC>
FULMEN_DEVICE void sample(const SampleParams& p) {
  ptx::griddep_launch_dependents();
  ptx::griddep_wait();
  const int64_t r = blockIdx.x / kC.cluster;
  const int64_t from = p.row_ids != nullptr ? p.row_ids[r] : r;
  if (from < 0 || from >= p.num_input_rows) {
    if (threadIdx.x == 0 && blockIdx.x % kC.cluster == 0) {
      p.tokens[r] = -1;
      if (p.logprob != nullptr) p.logprob[r] = quiet_nan();
    }
    return;
  }
  Row<kC> row(static_cast<const storage_t<kC.dtype>*>(p.input) + from * p.input_stride, p.vocab);
  draw_row(row, p, r);
}

}  // namespace fulmen
