// One row of logits or probabilities by one block: its shape, its masses, and the prefix of the ranking that filters
// keep. The rules are those of rules.hpp, the masses those of mass.hpp: the words kept and drawn are the CPU's.
#pragma once

#include <kernels/math/mass.hpp>
#include <kernels/math/radix.hpp>
#include <kernels/prelude/device.hpp>
#include <kernels/sampling/rules.hpp>
#include <kernels/sampling/sampling.config.hpp>
#include <kernels/tile/reduce.cuh>
#include <kernels/tile/vectors.cuh>

namespace fulmen {

template <class T>
struct Row {
  const T* x;
  int32_t n;
  float max;
  float inverse_temperature;
  bool is_probs;

  // exp((x - max) / T), or x.
  FULMEN_DEVICE float weight(float v) const { return is_probs ? v : exact_exp((v - max) * inverse_temperature); }
  FULMEN_DEVICE uint64_t mass(float v) const { return mass_of(weight(v)); }
  FULMEN_DEVICE float value(int32_t i) const { return to_float(x[i]); }
};

// A condition that all threads of the block share, in the form that tells the compiler so: without it collectives under
// the condition become calls on older targets.
FULMEN_DEVICE bool agreed(bool condition) { return __syncthreads_or(condition) != 0; }

// body(index, value) for every word, in an order that nobody may rely on.
template <SamplingConfig kC, class T, class Body>
FULMEN_DEVICE void each_word(const T* x, int32_t n, Body&& body) {
  constexpr int kN = kC.vector(), kAtOnce = kN == 8 ? 1 : 2;  // vectors in flight: 8 words, as the body is long
  const int32_t vectors = n / kN;
  int32_t v = static_cast<int32_t>(threadIdx.x);
  for (; v + (kAtOnce - 1) * kC.threads < vectors; v += kAtOnce * kC.threads) {
    float f[kAtOnce][kN];
#pragma unroll
    for (int a = 0; a < kAtOnce; ++a) load_floats(x + static_cast<int64_t>(v + a * kC.threads) * kN, f[a]);
#pragma unroll
    for (int a = 0; a < kAtOnce; ++a) {
#pragma unroll
      for (int i = 0; i < kN; ++i) body((v + a * kC.threads) * kN + i, f[a][i]);
    }
  }
  for (; v < vectors; v += kC.threads) {
    float f[kN];
    load_floats(x + static_cast<int64_t>(v) * kN, f);
#pragma unroll
    for (int i = 0; i < kN; ++i) body(v * kN + i, f[i]);
  }
  if constexpr (kN > 1) {
    const int32_t i = vectors * kN + static_cast<int32_t>(threadIdx.x);
    if (i < n) body(i, to_float(x[i]));
  }
}

// The largest value; NaN when the row isn't one: NaN in it, or as probabilities a value outside [0, 2].
template <SamplingConfig kC, class T>
FULMEN_DEVICE float row_max(const T* x, int32_t n, bool is_probs) {
  float top = -infinity();
  int32_t bad = 0;
  each_word<kC>(x, n, [&](int32_t, float v) {
    top = v > top ? v : top;
    bad |= v != v || (is_probs && (v < 0.0f || v > 2.0f));
  });
  const float all = block_reduce<kC.threads>(top, -infinity(), Largest{});
  return __syncthreads_or(bad) != 0 ? quiet_nan() : all;
}

template <SamplingConfig kC, class T>
FULMEN_DEVICE uint64_t total_mass(const Row<T>& row) {
  uint64_t sum = 0;
  each_word<kC>(row.x, row.n, [&](int32_t, float v) { sum += row.mass(v); });
  return block_sum<kC.threads>(sum);
}

// ---------------------------------------------------------------------------------------------- ranking

// A prefix of the ranking: all keys above `key`, and of those equal to it the first `ties` in index order.
struct Cut {
  uint32_t key;
  int32_t ties;
  int32_t listed;  // words of the prefix that lie ranked in the list; 0: it was found by bisection
};

// What a prefix must reach: count words (0: no such goal) or mass (0: no such goal), whichever comes first.
struct Goal {
  int32_t count;
  uint64_t mass;
  FULMEN_DEVICE bool reached(int64_t c, uint64_t m) const {
    return (count > 0 && c >= count) || (mass > 0 && m >= mass);
  }
};

// Bins by distance from the top. Monotone in the value, so that a bin's words rank before those of later bins.
struct Bins {
  float max, scale;
  bool by_key;  // probabilities: bins of equal ratio, which their bits give
  FULMEN_DEVICE int32_t of(float v) const {
    if (by_key) {
      const uint32_t distance = (ordered_key(max) - ordered_key(v)) >> 18;
      return distance < kBinCount - 1 ? static_cast<int32_t>(distance) : kBinCount - 1;
    }
    const float distance = (max - v) * scale;
    return distance < static_cast<float>(kBinCount - 1) ? static_cast<int32_t>(distance) : kBinCount - 1;
  }
};

// Ascending order of the first `size` items, a power of two.
template <int kThreads>
FULMEN_DEVICE void sort_list(uint64_t* items, int32_t size) {
  for (int32_t span = 2; span <= size; span <<= 1) {
    for (int32_t step = span >> 1; step > 0; step >>= 1) {
      __syncthreads();
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

FULMEN_DEVICE int32_t padded_size(int32_t count) {
  int32_t size = 2;
  while (size < count) size <<= 1;
  return size;
}

FULMEN_DEVICE uint64_t ranked_item(uint32_t key, int32_t index) {
  return static_cast<uint64_t>(~key) << 32 | static_cast<uint32_t>(index);
}
FULMEN_DEVICE uint64_t swapped_item(uint64_t item) { return item << 32 | item >> 32; }
FULMEN_DEVICE uint32_t ranked_key(uint64_t item) { return ~static_cast<uint32_t>(item >> 32); }

// Sum of what lanes before this one hold.
FULMEN_DEVICE uint64_t warp_exclusive_sum(uint64_t v) {
  uint64_t sum = v;
#pragma unroll
  for (int d = 1; d < 32; d <<= 1) {
    const uint32_t low = __shfl_up_sync(kFullMask, static_cast<uint32_t>(sum), d);
    const uint32_t high = __shfl_up_sync(kFullMask, static_cast<uint32_t>(sum >> 32), d);
    if (lane_index() >= d) sum += static_cast<uint64_t>(high) << 32 | low;
  }
  return sum - v;
}

// Position of the first item at which done(position, mass of the items up to and with it) holds, -1: none; in `mass`
// that mass. By the first warp, for all threads.
template <class MassOf, class Done>
FULMEN_DEVICE int32_t find_in_list(RowScratchShared& s, int32_t count, MassOf&& mass_of_item, Done&& done, uint64_t& mass) {
  __syncthreads();
  if (uniform_warp_index() == 0) {
    uint64_t before = 0;
    int32_t found = -1;
    uint64_t found_mass = 0;
    for (int32_t base = 0; base < count && found < 0; base += 32) {
      const int32_t i = base + lane_index();
      const uint64_t own = i < count ? mass_of_item(s.list[i]) : 0;
      const uint64_t with = before + warp_exclusive_sum(own) + own;
      const uint32_t hits = __ballot_sync(kFullMask, i < count && done(i, with));
      const int source = hits != 0 ? __ffs(static_cast<int>(hits)) - 1 : 31;
      const uint32_t low = __shfl_sync(kFullMask, static_cast<uint32_t>(with), source);
      const uint32_t high = __shfl_sync(kFullMask, static_cast<uint32_t>(with >> 32), source);
      before = static_cast<uint64_t>(high) << 32 | low;
      if (hits != 0) {
        found = base + source;
        found_mass = before;
      }
    }
    if (lane_index() == 0) {
      s.result = found;
      s.result_mass = found < 0 ? before : found_mass;
    }
  }
  __syncthreads();
  mass = s.result_mass;
  return s.result;
}

// Histograms of the bins; returns the row's total mass where it is asked for.
template <SamplingConfig kC, class T>
FULMEN_DEVICE uint64_t fill_bins(RowScratchShared& s, const Row<T>& row, const Bins& bins, bool with_mass, int shift) {
  for (int b = static_cast<int>(threadIdx.x); b < kBinCount; b += kC.threads) s.count[b] = s.mass[b] = 0;
  if (threadIdx.x == 0) s.list_count = 0;
  __syncthreads();
  uint64_t sum = 0;
  each_word<kC>(row.x, row.n, [&](int32_t, float v) {
    const uint64_t mass = with_mass ? row.mass(v) : 0;
    sum += mass;
    const int32_t bin = bins.of(v);
    if (bin < kBinCount - 1) {
      atomicAdd(&s.count[bin], 1u);
      const uint32_t part = static_cast<uint32_t>(mass >> shift);
      if (part != 0) atomicAdd(&s.mass[bin], part);
    }
  });
  return block_sum<kC.threads>(sum);
}

// Words of the bins up to the one that surely reaches the goal, unordered, into the list. Returns how many, or -1 where
// no bin surely does or the list is too small.
template <SamplingConfig kC, class T>
FULMEN_DEVICE int32_t gather_list(RowScratchShared& s, const Row<T>& row, const Bins& bins, const Goal& goal, int shift) {
  if (uniform_warp_index() == 0) {
    constexpr int kEach = kBinCount / 32;
    uint64_t count = 0, mass = 0;
    for (int i = 0; i < kEach; ++i) {
      count += s.count[lane_index() * kEach + i];
      mass += s.mass[lane_index() * kEach + i];
    }
    uint64_t count_before = warp_exclusive_sum(count), mass_before = warp_exclusive_sum(mass);
    // Parts were rounded down, so a sum of parts above goal >> shift is a mass of at least goal.
    const auto reached = [&](uint64_t c, uint64_t m) {
      return (goal.count > 0 && c >= static_cast<uint64_t>(goal.count)) || (goal.mass > 0 && m > (goal.mass >> shift));
    };
    const bool here = !reached(count_before, mass_before) && reached(count_before + count, mass_before + mass);
    const uint32_t lanes = __ballot_sync(kFullMask, here);
    if (here) {
      for (int i = 0; i < kEach; ++i) {
        count_before += s.count[lane_index() * kEach + i];
        mass_before += s.mass[lane_index() * kEach + i];
        if (reached(count_before, mass_before)) {
          s.result_bin = lane_index() * kEach + i;
          s.result = count_before <= kListSize ? static_cast<int32_t>(count_before) : -1;
          break;
        }
      }
    }
    if (lanes == 0 && lane_index() == 0) s.result = -1;
  }
  __syncthreads();
  const int32_t count = s.result, last = s.result_bin;
  if (agreed(count < 0)) return -1;
  each_word<kC>(row.x, row.n, [&](int32_t i, float v) {
    if (bins.of(v) <= last) s.list[atomicAdd(&s.list_count, 1u)] = ranked_item(ordered_key(v), i);
  });
  __syncthreads();
  const int32_t size = padded_size(count);
  for (int32_t i = count + static_cast<int32_t>(threadIdx.x); i < size; i += kC.threads) s.list[i] = ~uint64_t{0};
  sort_list<kC.threads>(s.list, size);
  return count;
}

// The same prefix without a list: the key is found bit by bit, each time by a pass over the row.
template <SamplingConfig kC, class T>
FULMEN_DEVICE Cut bisect(const Row<T>& row, const Goal& goal, uint64_t& mass_of_prefix) {
  const auto at_or_above = [&](uint32_t key, int32_t& count, uint64_t& mass) {
    int32_t c = 0;
    uint64_t m = 0;
    each_word<kC>(row.x, row.n, [&](int32_t, float v) {
      if (ordered_key(v) >= key) {
        ++c;
        if (goal.mass > 0) m += row.mass(v);
      }
    });
    count = block_sum<kC.threads>(c);
    mass = block_sum<kC.threads>(m);
  };
  uint32_t key = 0;
  int32_t count;
  uint64_t mass;
  for (uint32_t bit = 0x80000000u; bit != 0; bit >>= 1) {
    at_or_above(key | bit, count, mass);
    if (goal.reached(count, mass)) key |= bit;
  }
  int32_t above = 0;
  uint64_t above_mass = 0;
  if (agreed(key != 0xffffffffu)) at_or_above(key + 1, above, above_mass);
  at_or_above(key, count, mass);
  // Words of one key have one mass: the number of ties is a quotient, found bit by bit.
  const int32_t equal = count - above;
  const uint64_t each = goal.mass > 0 ? row.mass(key_value(key)) : 0;
  int32_t missing = 0;
  for (int32_t bit = 1 << 22; bit != 0; bit >>= 1) {
    const int32_t more = missing | bit;
    if (more < equal && !goal.reached(above + more, above_mass + each * static_cast<uint64_t>(more))) missing = more;
  }
  const int32_t ties = equal > 0 ? missing + 1 : 0;
  mass_of_prefix = above_mass + each * static_cast<uint64_t>(ties);
  return {key, ties, 0};
}

// The prefix that top-k and top-p keep. `total`: the mass of all words, used where the filter judges by it.
template <SamplingConfig kC, class T>
FULMEN_DEVICE Cut kept_prefix(RowScratchShared& s, const Row<T>& row, const RowFilter& f, bool wants_total, uint64_t& total) {
  const bool nucleus = f.top_p < 1.0f, sequential = nucleus && f.top_k > 0 && !f.joint;
  // Logits below max - 28 T have no mass; the bins reach that far.
  const Bins bins{row.max, row.inverse_temperature * (static_cast<float>(kBinCount - 1) / 28.0f), row.is_probs};
  int shift = kMassBits - 31;
  for (int32_t words = row.n; words > 1; words >>= 1) ++shift;  // n masses of 2^40 stay below 2^32 when shifted
  const bool by_mass = nucleus && !sequential;
  const uint64_t sum = fill_bins<kC>(s, row, bins, by_mass || wants_total, shift);
  if (by_mass || wants_total) total = sum;
  const Goal first{f.top_k, by_mass ? mass_share(f.top_p, total) : 0};

  const int32_t listed = gather_list<kC>(s, row, bins, first, shift);
  const auto item_mass = [&](uint64_t item) { return row.mass(key_value(ranked_key(item))); };
  if (agreed(listed >= 0)) {
    uint64_t mass = 0;
    int32_t last = find_in_list(s, listed, item_mass, [&](int32_t i, uint64_t m) { return first.reached(i + 1, m); }, mass);
    if (agreed(sequential)) {
      const uint64_t share = mass_share(f.top_p, mass);
      last = find_in_list(s, last + 1, item_mass, [&](int32_t, uint64_t m) { return m >= share; }, mass);
    }
    const uint32_t key = ranked_key(s.list[last]);
    int32_t ties = 0;
    for (int32_t i = static_cast<int32_t>(threadIdx.x); i <= last; i += kC.threads) ties += ranked_key(s.list[i]) == key;
    return {key, block_sum<kC.threads>(ties), last + 1};
  }
  uint64_t mass = 0;
  Cut cut = bisect<kC>(row, first, mass);
  if (agreed(sequential)) {
    // The mass of the first k words, then the shorter prefix among them.
    uint64_t above = 0;
    each_word<kC>(row.x, row.n, [&](int32_t, float v) {
      if (ordered_key(v) > cut.key) above += row.mass(v);
    });
    mass = block_sum<kC.threads>(above) + row.mass(key_value(cut.key)) * static_cast<uint64_t>(cut.ties);
    cut = bisect<kC>(row, Goal{0, mass_share(f.top_p, mass)}, mass);
  }
  return cut;
}

// ---------------------------------------------------------------------------------------------- index order

// What of a word's tile is kept: words above the cut's key, and ties, each of mass at least `floor`.
template <class T>
struct Kept {
  Row<T> row;
  uint32_t key;      // 0 with all ties: every word
  int32_t ties;
  uint64_t floor;
};

// Mass above the cut and ties of every tile; then, by thread 0, ties before each tile. Returns the mass of all kept.
template <SamplingConfig kC, class T>
FULMEN_DEVICE uint64_t sum_tiles(RowScratchShared& s, const Kept<T>& kept) {
  const int32_t tiles = ceil_div(kept.row.n, kTileWords);
  __syncthreads();
  // All warps take the same turns, also those whose tile lies past the end.
  for (int32_t first = 0; first < tiles; first += kC.threads / 32) {
    const int32_t tile = first + warp_index();
    uint64_t above = 0;
    int32_t equal = 0;
    for (int32_t i = tile * kTileWords + lane_index(); i < min(kept.row.n, (tile + 1) * kTileWords); i += 32) {
      const float v = kept.row.value(i);
      const uint32_t key = ordered_key(v);
      const uint64_t mass = kept.row.mass(v);
      if (key > kept.key && mass >= kept.floor) above += mass;
      equal += key == kept.key;
    }
    above = warp_reduce(above, Sum{});
    equal = warp_reduce(equal, Sum{});
    if (lane_index() == 0 && tile < tiles) {
      s.tile_mass[tile] = above;
      s.tile_ties[tile] = static_cast<uint32_t>(equal);
    }
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    const uint64_t own = kept.row.mass(key_value(kept.key));
    const uint64_t each = own >= kept.floor ? own : 0;
    uint64_t total = 0;
    uint32_t before = 0;
    for (int32_t tile = 0; tile < tiles; ++tile) {
      const uint32_t equal = s.tile_ties[tile], limit = static_cast<uint32_t>(kept.ties);
      const uint32_t used = before >= limit ? 0 : equal < limit - before ? equal : limit - before;
      total += s.tile_mass[tile] + each * used;
      s.tile_mass[tile] = total;  // now: the mass up to and with this tile
      s.tile_ties[tile] = before;
      before += equal;
    }
    s.result_mass = total;
  }
  __syncthreads();
  return s.result_mass;
}

// body(index, value, kept) for 32 words of a tile at a time, by one warp; ties are counted in index order.
template <class T, class Body>
FULMEN_DEVICE void each_of_tile(const RowScratchShared& s, const Kept<T>& kept, int32_t tile, Body&& body) {
  uint32_t ties = s.tile_ties[tile];
  for (int32_t base = tile * kTileWords; base < min(kept.row.n, (tile + 1) * kTileWords); base += 32) {
    const int32_t i = base + lane_index();
    const bool inside = i < kept.row.n;
    const float v = inside ? kept.row.value(i) : 0.0f;
    const uint32_t key = ordered_key(v);
    const uint32_t equal = __ballot_sync(kFullMask, inside && key == kept.key);
    const uint32_t place = ties + static_cast<uint32_t>(__popc(equal & ((1u << lane_index()) - 1u)));
    const bool chosen = inside && (key > kept.key || (key == kept.key && place < static_cast<uint32_t>(kept.ties))) &&
                        (kept.floor == 0 || kept.row.mass(v) >= kept.floor);
    ties += static_cast<uint32_t>(__popc(equal));
    if (!body(i, v, chosen, inside)) return;
  }
}

// The kept word, in index order, whose running mass first exceeds `draw`. After sum_tiles.
template <SamplingConfig kC, class T>
FULMEN_DEVICE int32_t find_draw(RowScratchShared& s, const Kept<T>& kept, uint64_t draw) {
  __syncthreads();
  if (uniform_warp_index() == 0) {
    const int32_t tiles = ceil_div(kept.row.n, kTileWords);
    int32_t low = 0, high = tiles - 1;  // the first tile whose running mass exceeds draw
    while (low < high) {
      const int32_t middle = (low + high) / 2;
      if (s.tile_mass[middle] > draw) {
        high = middle;
      } else {
        low = middle + 1;
      }
    }
    uint64_t before = low == 0 ? 0 : s.tile_mass[low - 1];
    int32_t found = -1;
    each_of_tile(s, kept, low, [&](int32_t i, float v, bool chosen, bool) {
      const uint64_t own = chosen ? kept.row.mass(v) : 0;
      const uint64_t with = before + warp_exclusive_sum(own) + own;
      const uint32_t hits = __ballot_sync(kFullMask, chosen && with > draw);
      const uint32_t low_word = __shfl_sync(kFullMask, static_cast<uint32_t>(with), 31);
      const uint32_t high_word = __shfl_sync(kFullMask, static_cast<uint32_t>(with >> 32), 31);
      before = static_cast<uint64_t>(high_word) << 32 | low_word;
      if (hits == 0) return true;
      found = __shfl_sync(kFullMask, i, __ffs(static_cast<int>(hits)) - 1);
      return false;
    });
    if (lane_index() == 0) s.result = found;
  }
  __syncthreads();
  return s.result;
}

}  // namespace fulmen
