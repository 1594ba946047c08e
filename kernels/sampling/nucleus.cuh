// The draw from a nucleus too wide for a list, of a row that lies in shared memory: three exchanges of the cluster.
//
// sample    with the row's maximum each block tells its sample of words down to 15 in the exponent below its own, in bins that don't need to know
//           the row's: of 1/8, modulo 256. Blocks further than 15 below the row's are left out, so that no two words 32 apart share a bin
// bracket   the samples estimate where the prefix ends (select.cuh); the words from there up are gathered
// round     their counts and masses in 64 bins of the bracket are told to every block, which finds the goal's bin, and what each block has above
// list      the bin's words, up to 128, are told to every block and ranked: that is the cut, and the mass that each block keeps
//
// What isn't found in the bracket is left to select.cuh.
#pragma once

#include <kernels/sampling/select.cuh>

namespace fulmen {

inline constexpr int kQuickBins = 64, kQuickList = 128;
inline constexpr float kSampledBins = 120.0f;     // below a block's largest word, of 256
inline constexpr float kGatheredShare = 0.25f;  // of the row, at most: more are no gain
template <SamplingConfig kC>
inline constexpr int32_t kGatheredRow = 64 * kC.vector() * kC.cluster * kC.num_warps();  // words of a row, at least: columns of some length

// In the place of RowShared's bins and lists.
template <int kCluster>
struct QuickShared {
  union {
    uint32_t bins[1 + row_parts(kCluster)][kQuickBins];  // counts, and parts of masses
    uint32_t sample[kRowBins];
    uint64_t items[kQuickList];                          // ~key << 32 | block << 16 | number; then the masses of `ranked`
  };
  uint64_t mass[kCluster][kQuickBins];  // told by the blocks
  uint16_t count[kCluster][kQuickBins];
  uint64_t ranked[kQuickList];
};
// Told samples lie behind the list of select.cuh, which may be written while they are read.
template <int kCluster>
struct QuickSamples {
  uint32_t unused[kRowBins + 2 * kRowList];
  uint16_t of[kCluster][kRowBins];
};
template <SamplingConfig kC>
FULMEN_DEVICE QuickShared<kC.cluster>& quick_shared(Row<kC>& row) {
  static_assert(sizeof(QuickShared<kC.cluster>) <= row_bins_bytes(kC.cluster));
  return *reinterpret_cast<QuickShared<kC.cluster>*>(row.s.count);
}
template <SamplingConfig kC>
FULMEN_DEVICE QuickSamples<kC.cluster>& quick_samples(Row<kC>& row) {
  static_assert(sizeof(QuickSamples<kC.cluster>) <= row_bins_bytes(kC.cluster));
  return *reinterpret_cast<QuickSamples<kC.cluster>*>(row.s.count);
}

// Whether the row may be searched so. The same in every block.
template <SamplingConfig kC>
FULMEN_DEVICE bool is_quick(const Row<kC>& row, const RowFilter& f, bool is_probs) {
  const int32_t each = ceil_div(ceil_div(row.n, kC.vector()), kC.cluster);
  return !f.greedy && (f.top_k == 0 || f.top_p == 1.0f || f.joint) && !is_probs && row.n >= kGatheredRow<kC> && each <= Row<kC>::kCapacity &&
         each * kC.vector() < 1 << 16;
}

// Bins of a value's product with a scale, rounded; they are told apart by the low bits of a sum.
struct Rounded {
  float scale;
  FULMEN_DEVICE float sum(float v) const { return fma(v, scale, ExpConstants::kRound); }
  FULMEN_DEVICE uint32_t bin_of(float v) const { return float_bits(sum(v)) % kRowBins; }
};
FULMEN_DEVICE Rounded rounded(float inverse_temperature) { return {min(max(8.0f * inverse_temperature, 0x1p-60f), 0x1p+60f)}; }

template <SamplingConfig kC>
FULMEN_DEVICE void clear_sample(Row<kC>& row) {
#pragma unroll 1
  for (int b = static_cast<int>(threadIdx.x); b < kRowBins; b += kC.threads) quick_shared(row).sample[b] = 0;
}

// Each lane's largest word counts for itself, of the rest one vector in eight stands for all. Far below the block's largest there is nothing to count.
template <SamplingConfig kC>
FULMEN_DEVICE void tell_sample(Row<kC>& row, const Rounded& bins, float lane_max, float warp_max) {
  auto& sample = quick_shared(row).sample;
  const int32_t vectors = ceil_div(max(row.own().end - row.own().begin - lane_index(), 0), 32), sampled = ceil_div(vectors, 8);
  const uint32_t stands_for = sampled == 0 ? 0 : static_cast<uint32_t>((vectors + sampled - 1) / sampled);
  float* const maxima = reinterpret_cast<float*>(quick_shared(row).mass);
  if (lane_index() == 0) maxima[warp_index()] = warp_max;
  __syncthreads();
  const float block_max = warp_largest(lane_index() < kC.num_warps() ? maxima[lane_index()] : -infinity());
  const float least = block_max - kSampledBins * reciprocal(bins.scale);
  if (threadIdx.x < kC.cluster) *row.peer(&row.s.block_largest[row.rank], threadIdx.x) = block_max;
  if (lane_max >= least) atomicAdd(&sample[bins.bin_of(lane_max)], 1u);
  row.template each<8>(row.own(), [&](const int32_t(&)[kC.group()], const float(&f)[kC.group()]) {
#pragma unroll
    for (int k = 0; k < kC.group(); ++k) {
      if (f[k] >= least && f[k] < lane_max) atomicAdd(&sample[bins.bin_of(f[k])], stands_for);
    }
  });
  __syncthreads();
#pragma unroll 1
  for (int i = static_cast<int>(threadIdx.x); i < kRowBins / 2; i += kC.threads) {
    const uint32_t two = min(sample[2 * i], 0xffffu) | min(sample[2 * i + 1], 0xffffu) << 16;
    auto* const at = reinterpret_cast<uint32_t*>(&quick_samples(row).of[row.rank][2 * i]);
#pragma unroll
    for (uint32_t block = 0; block < static_cast<uint32_t>(kC.cluster); ++block) *row.peer(at, block) = two;
  }
}

// After the exchange: what estimate() of select.cuh says.
template <SamplingConfig kC>
FULMEN_DEVICE Bracket estimate_of_samples(Row<kC>& row, const Rounded& bins, float max, int32_t count, float top_p, float& listed) {
  auto& sample = quick_shared(row).sample;
  const uint32_t first = bins.bin_of(max), end = ordered_key(max) + 1;
  const float least = max - kSampledBins * reciprocal(bins.scale);
#pragma unroll 1
  for (int b = static_cast<int>(threadIdx.x); b < kRowBins; b += kC.threads) {
    uint32_t words = 0;
#pragma unroll
    for (int block = 0; block < kC.cluster; ++block) {
      if (row.s.block_largest[block] >= least) words += quick_samples(row).of[block][(first - static_cast<uint32_t>(b)) % kRowBins];
    }
    sample[b] = words;
  }
  __syncthreads();
  const float edge = bins.sum(max) - ExpConstants::kRound + 0.5f;
  const Bracket in = estimate(row, sample, Distance{edge * reciprocal(bins.scale), bins.scale, false}, count, top_p, listed);
  const uint32_t high = min(in.high, end);
  return {min(in.low, high - 1), high};
}

// Of this warp's words, which lie in shared memory, those of at least `least` are gathered. The mass of all, by lane.
// A lane first leaves its words one below the other in a column of what the warp has read; then the columns are joined. A column that
// could leave the warp's range spoils it: the row is restored.
template <SamplingConfig kC>
FULMEN_DEVICE uint64_t gather_words(Row<kC>& row, const Shape& shape, float least) {
  constexpr int kN = kC.vector(), kGroup = kC.group();
  using Held = typename Row<kC>::Held;
  using Vector = typename Row<kC>::Vector;
  const Range range = row.own();
  const Vector* const place = row.held() + (range.begin - row.begin);
  Held* const words = row.held_words();
  const int32_t end = range.end - range.begin, limit = end / 32 * kN - kN;
  Vector nothing{};
  for (uint32_t& bits : nothing.words) bits = ~0u;  // NaN
  int32_t next = lane_index();  // of this lane's column
  uint64_t total = 0;
  MassSum sum;
  const auto look = [&](const Vector& vector, float from) {
#pragma unroll 1
    for (int g = 0; g < kN / kGroup; ++g) {
      float f[kGroup];
      Row<kC>::unpack_group(vector, g, f);
      float w[kGroup];
      shape.weights(f, w);
      if constexpr (Row<kC>::kFewPerLane) {
        sum.add(w);
      } else {
        total += sum_of_masses(w);
      }
#pragma unroll
      for (int k = 0; k < kGroup; ++k) {
        if (f[k] >= from) {
          words[next] = from_float<Held>(f[k]);
          next += 32;
        }
      }
    }
  };
  // A lane has left at most what all have read.
  int32_t base = 0;
#pragma unroll 1
  for (; base + 64 <= end; base += 64) {
    const Vector first = place[base + lane_index()], second = place[base + 32 + lane_index()];
    __syncwarp();
    look(first, least);
    look(second, least);
  }
  bool fits = true;
#pragma unroll 1
  for (; base < end; base += 32) {
    const int32_t v = base + lane_index();
    const Vector here = v < end ? place[v] : nothing;
    __syncwarp();
    const bool has_room = next / 32 <= limit;
    fits = fits && has_room;
    look(here, has_room ? least : infinity());
  }
  const auto count = next / 32;  // of this lane
  total += sum.mass();
  row.whole = false;
  if (__all_sync(kFullMask, fits) == 0) {
    row.restore(range);
    return total;
  }
  __syncwarp();
  const auto rows = static_cast<int32_t>(__reduce_max_sync(kFullMask, static_cast<uint32_t>(count)));
  int32_t joined = 0;
#pragma unroll 1
  for (int32_t j = 0; j < rows; ++j) {
    Held word{};
    if (j < count) word = words[j * 32 + lane_index()];
    const uint32_t lanes = __ballot_sync(kFullMask, j < count);
    __syncwarp();
    if (j < count) words[joined + __popc(lanes & ((1u << lane_index()) - 1))] = word;
    joined += __popc(lanes);
  }
  if (lane_index() < round_up(joined, kN) - joined) words[joined + lane_index()] = from_float<Held>(quiet_nan());
  row.gathered = ceil_div(joined, kN);
  __syncwarp();
  return total;
}

// A bracket's keys in 64 bins, from above: by a product with a fraction, or a bin for each of the keys.
struct QuickRound {
  uint32_t top, width, factor;
  FULMEN_DEVICE explicit QuickRound(const Bracket& in)
      : top(in.high - 1), width(in.high - in.low),
        factor(width <= kQuickBins ? 0 : static_cast<uint32_t>(0x1.ffffep+37f * reciprocal(static_cast<float>(width)))) {}
  FULMEN_DEVICE bool holds(uint32_t key) const { return top - key < width; }
  FULMEN_DEVICE uint32_t bin_of(uint32_t key) const { return factor == 0 ? top - key : __umulhi(top - key, factor); }
  // Keys among which are those of a bin, fewer than all.
  FULMEN_DEVICE Bracket keys_of(uint32_t bin) const {
    const float each = 0x1p+32f * reciprocal(static_cast<float>(factor));
    const auto from = static_cast<uint32_t>(static_cast<float>(bin) * each * 0x1.fffff8p-1f);
    const auto to = static_cast<uint32_t>(static_cast<float>(bin + 1) * each * 0x1.000004p+0f) + 1;
    return {top + 1 - min(max(to, from + 1), width), top + 1 - from};
  }
};

// What a quick search finds: what is kept, and which block (place.slot) has the draw.
struct QuickDraw {
  Kept kept;
  Place place;
};

// What a round has told, for the block: in RowShared's `told`.
inline constexpr uint32_t kMissed = 0xffffffffu;  // for a bin

// By one warp, after the exchange of a round: the goal's bin, its words and what is above it (told); and of every block, in block_above.
template <SamplingConfig kC>
FULMEN_DEVICE void find_quick_bin(Row<kC>& row, const typename Row<kC>::Slots& slots, const Goal& goal, uint32_t above, uint64_t above_mass) {
  constexpr int kPerLane = Row<kC>::kPerLane, kEach = kQuickBins / 32;
  auto& s = row.s;
  auto& q = quick_shared(row);
  uint32_t counts[kEach]{}, all = 0;
  uint64_t masses[kEach]{}, all_mass = 0;
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
#pragma unroll
    for (int block = 0; block < kC.cluster; ++block) {
      counts[i] += q.count[block][lane_index() * kEach + i];
      masses[i] += q.mass[block][lane_index() * kEach + i];
    }
    all += counts[i];
    all_mass += masses[i];
  }
  uint32_t c = above + warp_exclusive_sum(all);
  uint64_t m = above_mass + warp_exclusive_sum(all_mass);
  const uint32_t lanes = __ballot_sync(kFullMask, goal.reached(c + all, m + all_mass));
  if (lanes == 0 || goal.reached(above, above_mass)) {
    if (lane_index() == 0) s.told = {0, 0, kMissed, 0};
    return;
  }
  int32_t bin = lane_index() * kEach;
  uint32_t inside = counts[0];
#pragma unroll
  for (int i = 0; i + 1 < kEach; ++i) {
    if (bin != lane_index() * kEach + i || goal.reached(c + counts[i], m + masses[i])) continue;
    c += counts[i], m += masses[i], ++bin;
    inside = counts[i + 1];
  }
  const int lane = __ffs(static_cast<int>(lanes)) - 1;
  bin = warp_broadcast(bin, lane);
  uint64_t of_block = 0;
#pragma unroll 1
  for (int block = 0; block < kC.cluster; ++block) {
    uint64_t part = 0;
#pragma unroll
    for (int i = 0; i < kEach; ++i) part += lane_index() * kEach + i < bin ? q.mass[block][lane_index() * kEach + i] : 0;
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) part += (lane_index() * kPerLane + i) / kC.num_warps() == block ? slots.of[i].b : 0;
    part = warp_sum(part);
    if (lane_index() == block) of_block = part;
  }
  if (lane_index() < kC.cluster) s.block_above[lane_index()] = of_block;
  const uint32_t ahead = warp_sum(lane_index() < static_cast<int>(row.rank) ? static_cast<uint32_t>(q.count[lane_index()][bin]) : 0);
  if (lane_index() == lane) s.told = {m, ahead, static_cast<uint32_t>(bin), c};
  if (lane_index() == lane) s.item_count = inside;
}

// By one warp: the block that has the draw; lane b says what block b keeps. Told, with the draw there.
template <SamplingConfig kC, class DrawOf>
FULMEN_DEVICE void find_block(Row<kC>& row, uint64_t mass, uint32_t key, uint32_t ties, uint32_t equal, DrawOf&& draw_of_total) {
  const uint64_t running = warp_exclusive_sum(mass);
  const uint32_t before = warp_exclusive_sum(equal);
  const uint64_t draw = draw_of_total(warp_broadcast(running + mass, 31));
  if (running <= draw && draw < running + mass) {
    row.s.told = {draw - running, static_cast<uint64_t>(key) << 32 | ties, static_cast<uint32_t>(lane_index()), before};
  }
}

// draw_of_total(mass of all kept) gives the draw. Whether it has been found; if not the row stands in its place.
template <SamplingConfig kC, class GoalOf, class DrawOf>
FULMEN_DEVICE bool quick_draw(Row<kC>& row, const Shape& any_shape, Bracket in, GoalOf&& goal_of, DrawOf&& draw_of_total, QuickDraw& found) {
  constexpr int kBits = row_part_bits(kC.cluster), kParts = row_parts(kC.cluster), kPerLane = Row<kC>::kPerLane;
  const Shape shape{any_shape.max, any_shape.inverse_temperature, false};
  auto& s = row.s;
  auto& q = quick_shared(row);
  row.arrive();  // samples have been read
  uint64_t total = gather_words(row, shape, key_value(in.low));
  row.await_blocks();
  Goal goal{};
  bool first = true;
#pragma unroll 1
  for (;;) {
    const QuickRound round(in);
#pragma unroll 1
    for (int i = static_cast<int>(threadIdx.x); i < (1 + kParts) * kQuickBins; i += kC.threads) q.bins[i / kQuickBins][i % kQuickBins] = 0;
    __syncthreads();
    uint32_t above = 0;
    uint64_t above_mass = 0;
    row.each_wanted_word([&](float v) {
      const uint32_t key = ordered_key(v);
      const MassParts parts = mass_parts(shape.weight(v));
      const uint64_t mass = joined_parts(parts.high, parts.low);
      const bool real = v == v;
      if (real && key > round.top) ++above, above_mass += mass;
      if (real && round.holds(key)) {
        const uint32_t b = round.bin_of(key);
        atomicAdd(&q.bins[0][b], 1u);
#pragma unroll
        for (int p = 0; p < kParts; ++p) atomicAdd(&q.bins[1 + p][b], static_cast<uint32_t>(mass >> (p * kBits)) & ((1u << kBits) - 1));
      }
    });
    __syncthreads();
#pragma unroll 1
    for (int b = static_cast<int>(threadIdx.x); b < kQuickBins; b += kC.threads) {
      uint64_t mass = 0;
#pragma unroll
      for (int p = 0; p < kParts; ++p) mass += static_cast<uint64_t>(q.bins[1 + p][b]) << (p * kBits);
#pragma unroll
      for (uint32_t block = 0; block < static_cast<uint32_t>(kC.cluster); ++block) {
        *row.peer(&q.mass[row.rank][b], block) = mass;
        *row.peer(&q.count[row.rank][b], block) = static_cast<uint16_t>(q.bins[0][b]);
      }
    }
    const auto slots = row.exchange({first ? warp_sum(total) : 0, warp_sum(above_mass), warp_sum(above), 0});
    if (warp_index() == 0) {
      uint64_t all = 0;
      above = 0, above_mass = 0;
#pragma unroll
      for (int i = 0; i < kPerLane; ++i) all += slots.of[i].a, above_mass += slots.of[i].b, above += slots.of[i].c;
      if (first) {
        total = warp_sum(all);
        goal = goal_of(total);
        if (lane_index() == 0) s.total = total;
      }
      find_quick_bin(row, slots, goal, warp_sum(above), warp_sum(above_mass));
    }
    first = false;
    __syncthreads();
    const uint32_t bin = s.told.c, inside = s.item_count, ahead = static_cast<uint32_t>(s.told.b);
    above = s.told.d;
    above_mass = s.told.a;
    __syncthreads();
    if (bin == kMissed) {
      row.restore(row.own());
      row.whole = true;
      return false;
    }
    const bool one_key = round.factor == 0;
    if (inside > kQuickList && !one_key) {
      in = round.keys_of(bin);
      row.sync();  // what has been told is read no more
      continue;
    }
    if (inside > kQuickList) {
      if (warp_index() == 0) {
        const uint32_t key = round.top - bin, equal = lane_index() < kC.cluster ? q.count[lane_index()][bin] : 0;
        const uint64_t each = shape.mass(key_value(key));
        const auto ties = static_cast<uint32_t>(ties_needed(goal, above, above_mass, static_cast<int32_t>(inside), each));
        const uint32_t before = warp_exclusive_sum(equal), used = before >= ties ? 0 : min(equal, ties - before);
        find_block(row, lane_index() < kC.cluster ? s.block_above[lane_index()] + each * used : 0, key, ties, equal, draw_of_total);
      }
    } else {
      if (threadIdx.x == 0) s.item_count = 0;
      __syncthreads();
      row.each_wanted_word([&](float v) {
        const uint32_t key = ordered_key(v);
        if (!(v == v && round.holds(key) && round.bin_of(key) == bin)) return;
        const uint32_t number = atomicAdd(&s.item_count, 1u);
#pragma unroll 1
        for (uint32_t block = 0; block < static_cast<uint32_t>(kC.cluster); ++block) {
          *row.peer(&q.items[ahead + number], block) = static_cast<uint64_t>(~key) << 32 | row.rank << 16 | number;
        }
      });
      row.sync();
      rank_in_pairs<kC.threads>(q.items, q.ranked, inside);
      __syncthreads();
      if (warp_index() == 0) {
        uint32_t count = 0;
#pragma unroll 1
        for (uint32_t i = static_cast<uint32_t>(lane_index()); i - static_cast<uint32_t>(lane_index()) < inside; i += 32) {
          const uint64_t own = i < inside ? shape.mass(key_value(~static_cast<uint32_t>(q.ranked[i] >> 32))) : 0;
          if (i < inside) q.items[i] = own;
          if (count > 0) continue;
          const uint64_t with = above_mass + warp_exclusive_sum(own) + own;
          const uint32_t lanes = __ballot_sync(kFullMask, i < inside && goal.reached(static_cast<int64_t>(above) + i + 1, with));
          above_mass = warp_broadcast(with, 31);
          if (lanes != 0) count = i - static_cast<uint32_t>(lane_index()) + static_cast<uint32_t>(__ffs(static_cast<int>(lanes)));
        }
        __syncwarp();
        const uint32_t last = static_cast<uint32_t>(q.ranked[count - 1] >> 32);
        uint32_t ties = 0, equal = 0;
        uint64_t mass = 0;
#pragma unroll 1
        for (int block = 0; block < kC.cluster; ++block) {
          uint64_t part = 0;
          uint32_t same = 0;  // words of the last key << 16 | those of them that are kept
#pragma unroll 1
          for (uint32_t i = static_cast<uint32_t>(lane_index()); i < inside; i += 32) {
            const uint64_t item = q.ranked[i];
            if (static_cast<uint32_t>(item) >> 16 != static_cast<uint32_t>(block)) continue;
            if (i < count) part += q.items[i];
            if (static_cast<uint32_t>(item >> 32) == last) same += i < count ? 0x10001u : 0x10000u;
          }
          part = warp_sum(part);
          same = warp_sum(same);
          ties += same & 0xffffu;
          if (lane_index() == block) mass = s.block_above[block] + part, equal = same >> 16;
        }
        find_block(row, mass, ~last, ties, equal, draw_of_total);
      }
    }
    __syncthreads();
    found = {{key_value(static_cast<uint32_t>(s.told.b >> 32)), static_cast<int32_t>(static_cast<uint32_t>(s.told.b)), 0.0f}, {s.told.c, s.told.a, s.told.d}};
    return true;
  }
}

}  // namespace fulmen
