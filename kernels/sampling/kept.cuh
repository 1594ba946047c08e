// What a filter keeps of a row, in index order: sums of its masses by range, and the word that a draw falls on.
#pragma once

#include <kernels/sampling/row.cuh>

namespace fulmen {

// What is kept: words above the cut, and of those equal to it the first `ties` in index order; each of weight >= floor.
struct Kept {
  float cut;      // -inf: every word
  int32_t ties;
  float floor;
};

struct KeptSum {
  uint64_t above;  // mass above the cut
  uint32_t equal;  // words at the cut
};

// Of a range, by a warp, in its every lane.
template <SamplingConfig kC>
FULMEN_DEVICE KeptSum sum_kept(const Row<kC>& row, Range range, const Shape& shape, const Kept& kept) {
  uint64_t above = 0;
  MassSum sum;
  uint32_t equal = 0;
  const bool all = kept.cut == -infinity() && kept.floor == 0.0f;  // ties play no part then
  const auto add = [&](const float(&w)[kC.group()]) {
    if constexpr (Row<kC>::kFewPerLane) {
      sum.add(w);
    } else {
      above += sum_of_masses(w);
    }
  };
  if (all) {
    row.template each<1, true>(range, [&](const int32_t(&)[kC.group()], const float(&f)[kC.group()]) {
      float w[kC.group()];
      shape.weights(f, w);
      add(w);
    });
  } else {
    row.each(range, [&](const int32_t(&)[kC.group()], const float(&f)[kC.group()]) {
      bool some = false;
#pragma unroll
      for (int k = 0; k < kC.group(); ++k) some |= f[k] >= kept.cut;
      if (!some) return;
      float w[kC.group()];
      shape.weights(f, w);
#pragma unroll
      for (int k = 0; k < kC.group(); ++k) {
        w[k] = f[k] > kept.cut && w[k] >= kept.floor ? w[k] : 0.0f;
        equal += f[k] == kept.cut;
      }
      add(w);
    });
  }
  above += sum.mass();
  return {warp_sum(above), warp_sum(equal)};
}

// Of this warp's wanted words, one at a time; without a floor.
template <SamplingConfig kC>
FULMEN_DEVICE KeptSum sum_wanted(const Row<kC>& row, const Shape& shape, const Kept& kept) {
  uint64_t above = 0;
  uint32_t equal = 0;
  row.each_wanted_word([&](float v) {
    above += v > kept.cut ? shape.mass(v) : 0;
    equal += v == kept.cut;
  });
  return {warp_sum(above), warp_sum(equal)};
}

// Of all words; also left in `total`, to be read behind the next barrier.
template <SamplingConfig kC>
FULMEN_DEVICE uint64_t total_mass(Row<kC>& row, const Shape& shape) {
  const auto slots = row.exchange({sum_kept(row, row.own(), shape, {-infinity(), 0, 0.0f}).above, 0, 0, 0});
  uint64_t sum = 0;
#pragma unroll
  for (int i = 0; i < Row<kC>::kPerLane; ++i) sum += slots.of[i].a;
  sum = warp_sum(sum);
  if (threadIdx.x == 0) row.s.total = sum;
  return sum;
}

// Which of a vector's words are kept, bit k for word k. `before`: ties in index order ahead of this vector of the warp; moves on.
template <int kN>
FULMEN_DEVICE uint32_t kept_words(const Shape& shape, const Kept& kept, const float (&f)[kN], uint32_t& before) {
  uint32_t above = 0, equal = 0;
#pragma unroll
  for (int k = 0; k < kN; ++k) {
    const bool heavy = kept.floor == 0.0f || shape.weight(f[k]) >= kept.floor;
    above |= static_cast<uint32_t>(f[k] > kept.cut && heavy) << k;
    equal |= static_cast<uint32_t>(f[k] == kept.cut) << k;
  }
  if (__any_sync(kFullMask, equal != 0) != 0) {
    const uint32_t own = static_cast<uint32_t>(__popc(equal)), ahead = before + warp_exclusive_sum(own);
    uint32_t place = ahead;
#pragma unroll
    for (int k = 0; k < kN; ++k) {
      if ((equal >> k & 1u) == 0) continue;
      const bool heavy = kept.floor == 0.0f || shape.weight(f[k]) >= kept.floor;
      if (place++ < static_cast<uint32_t>(kept.ties) && heavy) above |= 1u << k;
    }
    before = warp_broadcast(ahead + own, 31);
  }
  return above;
}

// Where in a list of ranges, in index order, a draw falls.
struct Place {
  uint32_t slot;    // kNowhere: the mass is less
  uint64_t draw;    // what is left of the draw there
  uint32_t before;  // ties ahead of that range
};
inline constexpr uint32_t kNowhere = 0xffffffffu;

// Slots hold {a: mass above the cut, c: words at the cut}. draw_of_total(mass of all kept) gives the draw.
template <int kPerLane, class Slots, class DrawOf>
FULMEN_DEVICE Place find_slot(const Slots& slots, const Shape& shape, const Kept& kept, uint64_t& total, DrawOf&& draw_of_total) {
  const float w = shape.weight(kept.cut);
  const uint64_t each = kept.ties > 0 && w >= kept.floor ? mass_of(w) : 0;
  uint32_t equal = 0;
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) equal += slots.of[i].c;
  const uint32_t first = warp_exclusive_sum(equal), limit = static_cast<uint32_t>(kept.ties);
  uint64_t masses[kPerLane], sum = 0;
  uint32_t ahead = first;
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) {
    const uint32_t used = ahead >= limit ? 0 : min(slots.of[i].c, limit - ahead);
    masses[i] = slots.of[i].a + each * used;
    sum += masses[i];
    ahead += slots.of[i].c;
  }
  uint64_t running = warp_exclusive_sum(sum);
  total = warp_broadcast(running + sum, 31);
  const uint64_t draw = draw_of_total(total);
  Place place{kNowhere, 0, 0};
  ahead = first;
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) {
    if (running <= draw && draw < running + masses[i]) {
      place = {static_cast<uint32_t>(lane_index() * kPerLane + i), draw - running, ahead};
    }
    running += masses[i];
    ahead += slots.of[i].c;
  }
  const uint32_t lanes = __ballot_sync(kFullMask, place.slot != kNowhere);
  if (lanes == 0) return {kNowhere, 0, 0};
  const int lane = __ffs(static_cast<int>(lanes)) - 1;
  return {warp_broadcast(place.slot, lane), warp_broadcast(place.draw, lane), warp_broadcast(place.before, lane)};
}

// The kept word of the range whose running mass first exceeds the draw; in one lane, -1 in the others.
template <SamplingConfig kC>
FULMEN_DEVICE int32_t find_word(const Row<kC>& row, Range range, const Shape& shape, const Kept& kept, uint64_t draw, uint32_t before,
                                float& value) {
  constexpr int kN = kC.vector();
  int32_t found = -1;
  row.each_together(range, [&](int32_t first, const float(&f)[kN]) {
    const uint32_t words = kept_words(shape, kept, f, before);
    const auto mass = [&](int k) { return (words >> k & 1u) != 0 ? shape.mass(f[k]) : 0; };
    uint64_t sum = 0;
#pragma unroll
    for (int k = 0; k < kN; ++k) sum += mass(k);
    uint64_t running = warp_exclusive_sum(sum);
    const uint64_t all = warp_broadcast(running + sum, 31);
    if (draw >= all) {
      draw -= all;
      return true;
    }
#pragma unroll
    for (int k = 0; k < kN; ++k) {
      const uint64_t own = mass(k);
      if (running <= draw && draw < running + own) {
        found = first + k;
        value = f[k];
      }
      running += own;
    }
    return false;
  });
  return found;
}

}  // namespace fulmen
