// The prefix of a row's ranking (descending value, equal values by index) that reaches a goal, exactly, by a cluster.
//
// bracket   the largest word of every lane, and one word in eight of the others, counted in 256 bins below the row's maximum: an
//           estimate of where the prefix ends. It only saves work: what it says is checked
// round     the words in the bracket are counted and weighed in 256 bins of their keys, those above it in registers; the bin in which
//           the goal is reached is the next bracket. A bracket that misses the end moves up or down
// finish    the few words of the last bin are ranked in pairs; or they have one key, and the number of ties is computed
// list      where the bracket says that the prefix is short, its words and a few more are listed without a round
//
// Counts and masses are integers: nothing depends on the order in which words come.
#pragma once

#include <kernels/sampling/kept.cuh>

namespace fulmen {

// All keys above `key`, and of those equal to it the first `ties` in index order.
struct Cut {
  uint32_t key;
  int32_t ties;
  uint64_t mass;  // of the prefix, where masses were asked for
};

// What a prefix must reach: count words (0: no such goal) or mass (0: no such goal), whichever comes first.
struct Goal {
  int32_t count;
  uint64_t mass;
  FULMEN_DEVICE bool reached(int64_t c, uint64_t m) const { return (count > 0 && c >= count) || (mass > 0 && m >= mass); }
};

// Keys [low, high).
struct Bracket {
  uint32_t low, high;
};

inline constexpr uint32_t kLowestKey = 0x007fffffu;  // of -inf
inline constexpr int kBinsPerLane = kRowBins / 32;
inline constexpr float kFewWords = 0.7f * kRowList;  // by estimate: they fit into the list

// Distance from the row's maximum in bins: per e-fold of weight, or of the range of the lanes' maxima where masses play no part.
struct Distance {
  float max, scale;
  bool by_key;  // probabilities: eight bins per octave
  FULMEN_DEVICE int32_t bin_of(float v) const {
    if (by_key) {
      const uint32_t d = (ordered_key(max) - ordered_key(v)) >> 20;
      return d < kRowBins ? static_cast<int32_t>(d) : kRowBins - 1;
    }
    const float d = (max - v) * scale;
    return d < static_cast<float>(kRowBins - 1) ? static_cast<int32_t>(d) : kRowBins - 1;
  }
  // About the key at which bin b begins, from above.
  FULMEN_DEVICE uint32_t edge(int32_t b) const {
    const uint32_t top = ordered_key(max);
    if (b <= 0) return top + 1;
    if (b >= kRowBins) return kLowestKey;
    if (by_key) return top - kLowestKey > static_cast<uint32_t>(b) << 20 ? top - (static_cast<uint32_t>(b) << 20) : kLowestKey;
    const float v = max - static_cast<float>(b) * reciprocal(scale);
    return v > -infinity() ? ordered_key(v) : kLowestKey;
  }
};

// Words per bin, about: lanes' maxima count for themselves, of the rest one vector in eight stands for all.
template <SamplingConfig kC>
FULMEN_DEVICE void estimate_counts(Row<kC>& row, const Distance& distance, float lane_max) {
  auto& s = row.s;
  for (int b = static_cast<int>(threadIdx.x); b < kRowBins; b += kC.threads) s.count[b] = 0;
  __syncthreads();
  const int32_t vectors = ceil_div(max(row.own().end - row.own().begin - lane_index(), 0), 32), sampled = ceil_div(vectors, 8);
  const uint32_t stands_for = sampled == 0 ? 0 : static_cast<uint32_t>((vectors + sampled - 1) / sampled);
  if (vectors > 0) atomicAdd(&s.count[distance.bin_of(lane_max)], 1u);
  row.template each<8>(row.own(), [&](const int32_t(&)[kC.group()], const float(&f)[kC.group()]) {
#pragma unroll
    for (int k = 0; k < kC.group(); ++k) {
      if (f[k] < lane_max) atomicAdd(&s.count[distance.bin_of(f[k])], stands_for);
    }
  });
  row.sync();
  row.merge([&](int b, uint32_t block) {
    const uint32_t words = static_cast<uint32_t>(row.sum_of_blocks(static_cast<int32_t>(row.peer(&s.count[b], block)[0])));
    *row.peer(&s.merged_count[b], block) = words;
  });
}

// listed: about how many words lie above the bracket's lower end.
// Around where the goal is reached: `count` words or the share `top_p` of all mass, whichever comes first; 0 and 1: no such goal. By one warp.
FULMEN_DEVICE Bracket estimate_by_warp(const uint32_t* counts, const Distance& distance, int32_t count, float top_p, float& listed) {
  const float per_bin = distance.by_key ? -0.0866434f : -0.125f;  // log of a bin's step, ln 2 / 8 or 1 / 8; below, the step
  const auto count_of = [&](int b) { return static_cast<float>(counts[b]); };
  const int first = lane_index() * kBinsPerLane;
  const float ratio = distance.by_key ? 0.917004f : 0.882497f, first_weight = exp_in_range((static_cast<float>(first) + 0.5f) * per_bin);
  float own_count = 0.0f, own_mass = 0.0f, weight = first_weight;
#pragma unroll 1
  for (int b = first; b < first + kBinsPerLane; ++b, weight *= ratio) {
    own_count += count_of(b);
    own_mass += count_of(b) * weight;
  }
  float words = own_count, mass = own_mass;
#pragma unroll
  for (int d = 1; d < 32; d <<= 1) {
    const float c = __shfl_up_sync(kFullMask, words, d), m = __shfl_up_sync(kFullMask, mass, d);
    if (lane_index() >= d) words += c, mass += m;
  }
  const float all = __shfl_sync(kFullMask, mass, 31), spare = (1.0f - top_p) * all;
  words -= own_count;
  mass -= own_mass;
  // The first bin with which the goal is surely reached; the first with which it may be.
  const float wanted = static_cast<float>(count), margin = 0.25f * wanted + 64.0f;
  int32_t surely = kRowBins, maybe = kRowBins;
  listed = infinity();
  weight = first_weight;
#pragma unroll 1
  for (int b = first; b < first + kBinsPerLane; ++b, weight *= ratio) {
    words += count_of(b);
    mass += count_of(b) * weight;
    const bool sure = (count > 0 && words >= wanted + margin) || (top_p < 1.0f && all - mass <= 0.6f * spare && words >= 32.0f);
    const bool possible = (count > 0 && words >= wanted - margin) || (top_p < 1.0f && all - mass <= 1.5f * spare);
    if (sure && surely == kRowBins) {
      surely = b;
      listed = words;
    }
    if (possible && maybe == kRowBins) maybe = b;
  }
  surely = static_cast<int32_t>(__reduce_min_sync(kFullMask, static_cast<uint32_t>(surely)));
  maybe = static_cast<int32_t>(__reduce_min_sync(kFullMask, static_cast<uint32_t>(maybe)));
  listed = warp_reduce(listed, Smallest{});
  const uint32_t high = distance.edge(min(maybe, surely));
  return {min(distance.edge(surely + 1), high - 1), high};
}
// For the block, of bins in its shared memory.
template <SamplingConfig kC>
FULMEN_DEVICE Bracket estimate(Row<kC>& row, const uint32_t* counts, const Distance& distance, int32_t count, float top_p, float& listed) {
  auto& told = row.s.told;
  if (warp_index() == 0) {
    const Bracket in = estimate_by_warp(counts, distance, count, top_p, listed);
    if (lane_index() == 0) told.a = in.low, told.b = in.high, told.c = float_bits(listed);
  }
  __syncthreads();
  listed = bits_float(told.c);
  return {static_cast<uint32_t>(told.a), static_cast<uint32_t>(told.b)};
}

// The bins of one round, of all blocks: what lies above the goal's bin, and what is in it.
struct Found {
  int32_t bin;    // -1: the goal isn't reached in the bracket
  uint32_t above, inside;
  uint64_t above_mass;
};

// A word for the list of block 0, or of every block. What doesn't fit is left out.
template <SamplingConfig kC>
FULMEN_DEVICE void list_word(Row<kC>& row, uint32_t key, int32_t index, bool everyone) {
  const uint32_t place = atomicAdd(row.peer(&row.s.item_count, 0), 1u);
  if (place >= kRowList) return;
#pragma unroll 1
  for (uint32_t block = 0; block < static_cast<uint32_t>(everyone ? kC.cluster : 1); ++block) {
    *row.peer(&row.s.items[place], block) = static_cast<uint64_t>(~key) << 32 | static_cast<uint32_t>(index);
  }
}

// What a round has counted so far: words above its bracket, and their mass; the mass of all words where it is asked for.
struct Counted {
  uint32_t above;
  uint64_t above_mass, total;
};

// A pass over the row: words of the bracket into the bins, or with `list` words above its lower end into the list; sums, by an exchange.
template <SamplingConfig kC>
FULMEN_DEVICE Counted count_words(Row<kC>& row, const Shape& shape, const Bracket& in, int shift, bool weigh, bool weigh_all, bool list, bool everyone) {
  auto& s = row.s;
  if (!list) {
    for (int b = static_cast<int>(threadIdx.x); b < kRowBins; b += kC.threads) {
      s.count[b] = 0;
      for (int p = 0; p < row_parts(kC.cluster); ++p) s.parts[p][b] = 0;
    }
    if (threadIdx.x == 0) s.item_count = 0;
    __syncthreads();
  }
  constexpr int kBits = row_part_bits(kC.cluster);
  const uint32_t top = (list ? in.low : in.high) - 1, width = list ? 0 : in.high - in.low;
  uint64_t above_mass = 0, total = 0;
  uint32_t above = 0;
  row.each(row.own(), [&](const int32_t(&at)[kC.group()], const float(&f)[kC.group()]) {
    constexpr int kN = kC.group();
    uint32_t high = 0, low = 0, high_above = 0, low_above = 0, inside = 0, over = 0;
    MassParts masses[kN];
#pragma unroll
    for (int k = 0; k < kN; ++k) {
      const uint32_t key = ordered_key(f[k]);
      const bool real = f[k] == f[k];
      inside |= static_cast<uint32_t>(real && top - key < width) << k;
      over |= static_cast<uint32_t>(real && key > top) << k;
      masses[k] = {0, 0};
    }
    if (weigh || weigh_all) {
      float w[kN];
      shape.weights(f, w);
#pragma unroll
      for (int k = 0; k < kN; ++k) {
        masses[k] = mass_parts(w[k]);
        high += masses[k].high, low += masses[k].low;
        high_above += (over >> k & 1u) != 0 ? masses[k].high : 0;
        low_above += (over >> k & 1u) != 0 ? masses[k].low : 0;
      }
    }
    above += static_cast<uint32_t>(__popc(over));
    if (inside != 0) {
#pragma unroll
      for (int k = 0; k < kN; ++k) {
        if ((inside >> k & 1u) == 0) continue;
        const uint32_t b = (top - ordered_key(f[k])) >> shift;
        atomicAdd(&s.count[b], 1u);
        if (!weigh) continue;
        const uint64_t mass = joined_parts(masses[k].high, masses[k].low);
#pragma unroll
        for (int p = 0; p < row_parts(kC.cluster); ++p) atomicAdd(&s.parts[p][b], static_cast<uint32_t>(mass >> (p * kBits)) & ((1u << kBits) - 1));
      }
    }
    if (list && over != 0) {
#pragma unroll
      for (int k = 0; k < kN; ++k) {
        if ((over >> k & 1u) != 0) list_word(row, ordered_key(f[k]), at[k], everyone);
      }
    }
    total += weigh_all ? joined_parts(high, low) : 0;
    above_mass += joined_parts(high_above, low_above);
  });
  const auto slots = row.exchange({warp_sum(total), warp_sum(above_mass), warp_sum(above), 0});
  Counted counted{};
#pragma unroll
  for (int i = 0; i < Row<kC>::kPerLane; ++i) {
    counted.total += slots.of[i].a, counted.above_mass += slots.of[i].b, counted.above += slots.of[i].c;
  }
  return {warp_sum(counted.above), warp_sum(counted.above_mass), warp_sum(counted.total)};
}

// After an exchange.
template <SamplingConfig kC>
FULMEN_DEVICE void merge_bins(Row<kC>& row) {
  auto& s = row.s;
  row.merge([&](int b, uint32_t block) {
    const auto* other = row.peer(&s, block);
    uint64_t mass = 0;
#pragma unroll
    for (int p = 0; p < row_parts(kC.cluster); ++p) mass += static_cast<uint64_t>(other->parts[p][b]) << (p * row_part_bits(kC.cluster));
    const auto count = static_cast<uint32_t>(row.sum_of_blocks(static_cast<int32_t>(other->count[b])));
    mass = row.sum_of_blocks(mass);
    auto* to = row.peer(&s, block);
    to->merged_count[b] = count;
    to->merged_mass[b] = mass;
  });
}

// By one warp.
template <class Shared>
FULMEN_DEVICE Found find_bin_by_warp(const Shared& s, const Goal& goal, uint32_t above, uint64_t above_mass) {
  uint32_t counts = 0;
  uint64_t masses = 0;
#pragma unroll 1
  for (int i = 0; i < kBinsPerLane; ++i) {
    counts += s.merged_count[lane_index() * kBinsPerLane + i];
    masses += s.merged_mass[lane_index() * kBinsPerLane + i];
  }
  uint32_t c = above + warp_exclusive_sum(counts);
  uint64_t m = above_mass + warp_exclusive_sum(masses);
  Found found{-1, c + counts, 0, m + masses};
  const uint32_t lanes = __ballot_sync(kFullMask, goal.reached(c + counts, m + masses));
  if (lanes == 0) return {-1, warp_broadcast(found.above, 31), 0, warp_broadcast(found.above_mass, 31)};
#pragma unroll 1
  for (int i = 0; i < kBinsPerLane; ++i) {
    const int b = lane_index() * kBinsPerLane + i;
    const uint32_t inside = s.merged_count[b];
    const uint64_t mass = s.merged_mass[b];
    if (goal.reached(c + inside, m + mass)) {
      found = {b, c, inside, m};
      break;
    }
    c += inside;
    m += mass;
  }
  const int lane = __ffs(static_cast<int>(lanes)) - 1;
  return {warp_broadcast(found.bin, lane), warp_broadcast(found.above, lane), warp_broadcast(found.inside, lane), warp_broadcast(found.above_mass, lane)};
}

// For the block.
template <class Shared>
FULMEN_DEVICE Found find_bin(Shared& s, const Goal& goal, uint32_t above, uint64_t above_mass) {
  if (warp_index() == 0) {
    const Found found = find_bin_by_warp(s, goal, above, above_mass);
    if (lane_index() == 0) s.told = {static_cast<uint64_t>(static_cast<uint32_t>(found.bin)), found.above_mass, found.above, found.inside};
  }
  __syncthreads();
  return {static_cast<int32_t>(static_cast<uint32_t>(s.told.a)), s.told.c, s.told.d, s.told.b};
}

// Of `inside` words of one key: how many until the goal is reached. It is reached with all of them.
FULMEN_DEVICE int32_t ties_needed(const Goal& goal, int64_t above, uint64_t above_mass, int32_t inside, uint64_t mass) {
  int32_t low = 1, high = inside;
  while (low < high) {
    const int32_t middle = (low + high) / 2;
    if (goal.reached(above + middle, above_mass + mass * static_cast<uint64_t>(middle))) {
      high = middle;
    } else {
      low = middle + 1;
    }
  }
  return low;
}

// Each of n different items to its place in ascending order. Behind a barrier; the places are there behind the next one.
template <int kThreads>
FULMEN_DEVICE void rank_in_pairs(const uint64_t* items, uint64_t* ranked, uint32_t n) {
  for (uint32_t i = threadIdx.x; i < n; i += kThreads) {
    const uint64_t own = items[i];
    uint32_t rank = 0;
#pragma unroll 4
    for (uint32_t j = 0; j < n; ++j) rank += items[j] < own;
    ranked[rank] = own;
  }
}

// Ranks the first n items, and weighs them.
template <SamplingConfig kC>
FULMEN_DEVICE void rank_list(Row<kC>& row, const Shape& shape, uint32_t n, bool weigh) {
  auto& s = row.s;
  __syncthreads();
  rank_in_pairs<kC.threads>(s.items, s.ranked, n);
  __syncthreads();
  for (uint32_t i = threadIdx.x; i < n; i += kC.threads) {
    s.items[i] = weigh ? shape.mass(key_value(~static_cast<uint32_t>(s.ranked[i] >> 32))) : 0;
  }
  __syncthreads();
}

// How many of the ranked items until the goal is reached, and the mass up to there with what lies above them. By every warp for itself; 0: never.
template <class Shared>
FULMEN_DEVICE uint32_t ranked_prefix(const Shared& s, uint32_t n, const Goal& goal, uint32_t above, uint64_t& mass) {
#pragma unroll 1
  for (uint32_t base = 0; base < n; base += 32) {
    const uint32_t i = base + static_cast<uint32_t>(lane_index());
    const uint64_t own = i < n ? s.items[i] : 0, with = mass + warp_exclusive_sum(own) + own;
    const uint32_t lanes = __ballot_sync(kFullMask, i < n && goal.reached(static_cast<int64_t>(above) + i + 1, with));
    const int lane = lanes != 0 ? __ffs(static_cast<int>(lanes)) - 1 : 31;
    mass = warp_broadcast(with, lane);
    if (lanes != 0) return base + static_cast<uint32_t>(lane) + 1;
  }
  return 0;
}

// The cut behind the first `count` ranked items.
template <class Shared>
FULMEN_DEVICE Cut cut_behind(const Shared& s, uint32_t count, uint64_t mass) {
  const uint32_t key = static_cast<uint32_t>(s.ranked[count - 1] >> 32);
  int32_t ties = 0;
  for (uint32_t i = static_cast<uint32_t>(lane_index()); i < count; i += 32) ties += static_cast<uint32_t>(s.ranked[i] >> 32) == key;
  return {~key, warp_reduce(ties, Sum{}), mass};
}

// The last bracket's words, at most kRowList of them, ranked by every block.
template <SamplingConfig kC>
FULMEN_DEVICE Cut finish(Row<kC>& row, const Shape& shape, const Goal& goal, const Bracket& in, const Found& at, bool weigh) {
  row.each(row.own(), [&](const int32_t(&index)[kC.group()], const float(&f)[kC.group()]) {
#pragma unroll
    for (int k = 0; k < kC.group(); ++k) {
      const uint32_t key = ordered_key(f[k]);
      if (key - in.low < in.high - in.low && f[k] == f[k]) list_word(row, key, index[k], true);
    }
  });
  row.sync();
  rank_list(row, shape, at.inside, weigh);
  uint64_t mass = at.above_mass;
  const uint32_t count = ranked_prefix(row.s, at.inside, goal, at.above, mass);
  const Cut cut = cut_behind(row.s, count, mass);
  __syncthreads();  // the list is read no more
  return cut;
}

// The prefix that ends in or near a bracket, of whose words above (and their mass) is known; or nothing is, and the first round counts them:
// then goal_of(total mass of the row) is asked behind it. `end`: a key above the row's maximum. weigh_all: the first round weighs all
// words and leaves the sum in `total`.
template <SamplingConfig kC, class GoalOf>
FULMEN_DEVICE Cut select(Row<kC>& row, const Shape& shape, Bracket in, uint32_t end, bool known, Counted counted, bool weigh, bool weigh_all,
                         Goal goal, GoalOf&& goal_of) {
  uint32_t above = counted.above;
  uint64_t above_mass = counted.above_mass;
#pragma unroll 1
  for (;;) {
    const uint32_t width = in.high - in.low;
    int shift = 0;
    while ((width - 1) >> shift >= kRowBins) ++shift;
    counted = count_words(row, shape, in, shift, weigh, weigh_all && !known, false, false);
    if (!known) {
      if (weigh_all && threadIdx.x == 0) row.s.total = counted.total;
      above = counted.above;
      above_mass = counted.above_mass;
      goal = goal_of(counted.total);
      known = true;
    }
    if (goal.reached(above, above_mass)) {  // the bracket lies too low
      in = {in.high, end};
      above = 0;
      above_mass = 0;
      continue;
    }
    merge_bins(row);
    const Found found = find_bin(row.s, goal, above, above_mass);
    above = found.above;
    above_mass = found.above_mass;
    if (found.bin < 0) {  // too high
      in = {kLowestKey, in.low};
      continue;
    }
    const uint32_t top = in.high - (static_cast<uint32_t>(found.bin) << shift);
    in = {top - in.low > 1u << shift ? top - (1u << shift) : in.low, top};
    if (in.high - in.low == 1) {
      const uint64_t mass = weigh ? shape.mass(key_value(in.low)) : 0;
      const int32_t ties = ties_needed(goal, above, above_mass, static_cast<int32_t>(found.inside), mass);
      return {in.low, ties, above_mass + mass * static_cast<uint64_t>(ties)};
    }
    if (found.inside <= kRowList) return finish(row, shape, goal, in, found, weigh);
  }
}

}  // namespace fulmen
