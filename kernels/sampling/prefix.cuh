// What the filters keep of a row: the prefix of its ranking that top-k and top-p allow, and min-p's floor.
#pragma once

#include <kernels/math/log.hpp>
#include <kernels/sampling/nucleus.cuh>

namespace fulmen {

struct Prefix {
  Kept kept;
  // Where the prefix is short its words, and some more, are listed (by every block or block 0) and nothing is known of them yet:
  uint32_t listed;  // how many; 0: `kept` says what the filters keep
  Goal goal;        // of the first filter in turn
  Place place;      // which block has the draw, where that is known; else of slot kNowhere
};

// A value such that it and all smaller ones weigh less than `floor`, 0 or at least 2^-40; -inf where none is found. It saves the weighing.
FULMEN_DEVICE float cut_below(const Shape& shape, float floor) {
  if (floor == 0.0f) return -infinity();
  if (shape.is_probs) return bits_float(float_bits(floor) - 1);
  // Weights follow exp to 1 ulp, so that a distance of 2^-12 in the exponent tells them apart; it is met by what the weights are computed from.
  const float log_floor = exact_log(floor), cut = shape.max + (log_floor - 0x1p-11f) * reciprocal(shape.inverse_temperature);
  return (cut - shape.max) * shape.inverse_temperature <= log_floor - 0x1p-12f ? cut : -infinity();
}

// quick: the row is_quick, and its samples have been told where it has a nucleus; draw_of_total(mass) says what is drawn.
// wants_total: the mass of all words is left in the shared `total` by rows that are ranked. everyone: lists are for every block, and the row
// stands in its place afterwards.
template <SamplingConfig kC, class DrawOf>
FULMEN_DEVICE Prefix kept_by(Row<kC>& row, const Shape& shape, const RowFilter& f, float lane_max, float lowest, bool wants_total, bool everyone,
                             bool quick, DrawOf&& draw_of_total) {
  constexpr Place kUnknown{kNowhere, 0, 0};
  const auto floor = [&] { return f.min_p > 0.0f ? mass_floor(mass_share(f.min_p, shape.mass(shape.max))) : 0.0f; };
  const bool nucleus = f.top_p < 1.0f;
  if (f.top_k == 0 && !nucleus) return {{cut_below(shape, floor()), 0, floor()}, 0, {}, kUnknown};
  const bool sequential = f.top_k > 0 && nucleus && !f.joint;  // top-p judges what top-k left
  const bool by_mass = nucleus && !sequential;
  const auto goal_of = [&](uint64_t total) { return Goal{f.top_k, by_mass ? mass_share(f.top_p, total) : 0}; };
  const float range = shape.max - lowest;
  const float scale = by_mass || !(range > 0.0f) ? 8.0f * shape.inverse_temperature : 250.0f * reciprocal(range);
  const Distance distance{shape.max, min(max(scale, 0x1p-60f), 0x1p+60f), shape.is_probs};
  const uint32_t end = ordered_key(shape.max) + 1;
  float words = 0.0f;
  Bracket in;
  if (quick && nucleus) {
    in = estimate_of_samples(row, rounded(shape.inverse_temperature), shape.max, f.top_k, f.top_p, words);
  } else {
    estimate_counts(row, distance, lane_max);
    in = estimate(row, row.s.merged_count, distance, f.top_k, by_mass ? f.top_p : 1.0f, words);
  }
  const bool few = words <= kFewWords;
  Counted counted{};
  Goal goal{};
  if (few) {
    counted = count_words(row, shape, in, 0, nucleus, by_mass || wants_total, true, everyone);
    if (threadIdx.x == 0) row.s.total = counted.total;
    goal = goal_of(counted.total);
    const bool reached = goal.reached(counted.above, counted.above_mass);
    if (reached && counted.above <= kRowList) return {{0.0f, 0, floor()}, counted.above, goal, kUnknown};
    in = reached ? Bracket{in.low, end} : Bracket{kLowestKey, in.low};
    if (reached) counted = {};
  }
  if (quick && !few && words <= kGatheredShare * static_cast<float>(row.n)) {
    QuickDraw draw;
    if (quick_draw(row, shape, in, goal_of, draw_of_total, draw)) return {{draw.kept.cut, draw.kept.ties, floor()}, 0, goal, f.min_p > 0.0f ? kUnknown : draw.place};
    in = {kLowestKey, end};
  }
  Cut cut = select(row, shape, in, end, few, counted, nucleus, by_mass || wants_total, goal, goal_of);
  if (sequential) {  // within the first prefix
    cut = select(row, shape, {cut.key, end}, end, true, {}, true, false, {0, mass_share(f.top_p, cut.mass)}, goal_of);
  }
  return {{key_value(cut.key), cut.ties, floor()}, 0, {}, kUnknown};
}

// How many of a listed prefix's ranked words stay, and the cut behind them. After rank_list.
template <class Shared>
FULMEN_DEVICE uint32_t listed_prefix(const Shared& s, const RowFilter& f, const Prefix& prefix, Cut& cut) {
  uint64_t mass = 0;
  uint32_t count = ranked_prefix(s, prefix.listed, prefix.goal, 0, mass);
  if (f.top_k > 0 && f.top_p < 1.0f && !f.joint) {
    const Goal second{0, mass_share(f.top_p, mass)};
    mass = 0;
    count = ranked_prefix(s, count, second, 0, mass);
  }
  cut = cut_behind(s, count, mass);
  return count;
}

}  // namespace fulmen
