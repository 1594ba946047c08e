// One row of logits or probabilities by a cluster of blocks: its words, its masses, and what its warps tell each other.
// The rules are those of rules.hpp, the masses those of mass.hpp: the words kept and drawn are the CPU's.
//
// split     a block has a contiguous part of the row, each of its warps a contiguous range of that: sums by warp are sums in
//           index order. Words are read from shared memory only. A part that fits into held_bytes is copied there once, else each warp
//           copies a window of its range at a time, in every pass (from L2, mostly)
// exchange  a warp writes its slot into the shared memory of every block of the cluster; behind a barrier of the cluster each finds the
//           slots of all in its own. Two sets of slots in turns, so that one barrier per exchange is enough
// barriers  one of the cluster before the first exchange: nobody writes to a block that hasn't started. What reaches into another block's shared
//           memory is followed by one too, so that a block may end after its last
#pragma once

#include <kernels/math/mass.hpp>
#include <kernels/math/radix.hpp>
#include <kernels/prelude/device.hpp>
#include <kernels/ptx/cluster.cuh>
#include <kernels/ptx/cp_async.cuh>
#include <kernels/ptx/special.cuh>
#include <kernels/sampling/rules.hpp>
#include <kernels/sampling/sampling.config.hpp>
#include <kernels/tile/reduce.cuh>
#include <kernels/tile/vectors.cuh>

namespace fulmen {

struct RowSlot {
  uint64_t a, b;
  uint32_t c, d;
};

// Parts of a mass that 32-bit counters add up: 14 bits of up to 2^18 words, or 11 of 2^21 where one block has the row.
constexpr int row_part_bits(int cluster) { return cluster == 1 ? 11 : 14; }
constexpr int row_parts(int cluster) { return cluster == 1 ? 4 : 3; }

template <int kCluster>
struct RowShared {
  RowSlot slots[2][kCluster * kRowWarps];
  uint32_t count[kRowBins];                     // this block's
  union {
    uint32_t parts[row_parts(kCluster)][kRowBins];
    uint64_t items[kRowList];                   // ~key << 32 | index, as they come; then the masses of `ranked`
  };
  union {
    uint64_t merged_mass[kRowBins];             // all blocks'
    uint64_t ranked[kRowList];                  // items in ascending order
  };
  uint32_t merged_count[kRowBins];
  RowSlot told;                                 // by a warp to its block
  uint64_t total;                               // mass of all words of the row, where somebody asked
  union {                                       // of every block
    uint64_t block_above[kCluster];             // mass that it has above a bin
    float block_largest[kCluster];              // its largest word, told with samples
  };
  uint32_t item_count;                          // block 0's counts
};
// From `count` to `merged_count`.
constexpr int row_bins_bytes(int cluster) { return (2 + row_parts(cluster)) * kRowBins * 4 + kRowList * 8; }
static_assert(sizeof(RowShared<1>) <= kRowShared && sizeof(RowShared<8>) <= kRowShared);

// A row as a distribution: logits are shifted by their maximum and scaled, probabilities taken as they are.
struct Shape {
  float max;
  float inverse_temperature;
  bool is_probs;

  // exp((x - max) / T), or x, exact where it has a mass at all; NaN weighs nothing.
  FULMEN_DEVICE float weight(float v) const {
    const float v_of_one[1] = {v};
    float w[1];
    weights(v_of_one, w);
    return w[0];
  }
  template <int kN>
  FULMEN_DEVICE void weights(const float (&v)[kN], float (&w)[kN]) const {
    if (is_probs) {
#pragma unroll
      for (int k = 0; k < kN; ++k) w[k] = v[k] > 0.0f ? v[k] : 0.0f;
    } else {
      // No branch between words, so that their chains of arithmetic overlap.
#pragma unroll
      for (int k = 0; k < kN; ++k) {
        const float scaled = (v[k] - max) * inverse_temperature;
        w[k] = exp_in_range(ptx::max_number(scaled, -64.0f));
      }
    }
  }
  // The same to the end of fp32's range: what is written.
  FULMEN_DEVICE float probability(float v) const { return is_probs ? v : exact_exp((v - max) * inverse_temperature); }
  FULMEN_DEVICE uint64_t mass(float v) const { return mass_of(weight(v)); }
};

FULMEN_DEVICE uint64_t joined_parts(uint32_t high, uint32_t low) { return (static_cast<uint64_t>(high) << 20) + low; }

// Mass of a few words of these weights.
template <int kN>
FULMEN_DEVICE uint64_t sum_of_masses(const float (&w)[kN]) {
  uint32_t high = 0, low = 0;
#pragma unroll
  for (int k = 0; k < kN; ++k) {
    const MassParts m = mass_parts(w[k]);
    high += m.high, low += m.low;
  }
  return joined_parts(high, low);
}

// Sum of the masses of so few words that 32 bits hold the sum of either part. What every part has too much is taken away at the end, which
// saves an addition a word.
struct MassSum {
  static constexpr uint32_t kHigh = 0x41000000u, kLow = 0x37000000u;  // 8 and 2^-17, see mass_parts
  uint32_t high = 0, low = 0, words = 0;
  template <int kN>
  FULMEN_DEVICE void add(const float (&w)[kN]) {
#pragma unroll
    for (int k = 0; k < kN; ++k) {
      const MassParts m = mass_parts(w[k]);
      high += m.high + kHigh, low += m.low + kLow;
    }
    words += kN;
  }
  FULMEN_DEVICE uint64_t mass() const { return joined_parts(high - words * kHigh, low - words * kLow); }
};

// Over the warp, in its every lane, by the unit that adds up 32 bits of all lanes.
FULMEN_DEVICE uint32_t warp_sum(uint32_t v) { return __reduce_add_sync(kFullMask, v); }
FULMEN_DEVICE uint64_t warp_sum(uint64_t v) {
  constexpr uint32_t kLow = (1u << 27) - 1;  // 32 of which 32 bits hold the sum
  const uint32_t low = warp_sum(static_cast<uint32_t>(v) & kLow), middle = warp_sum(static_cast<uint32_t>(v >> 27) & kLow);
  return low + (static_cast<uint64_t>(middle) << 27) + (static_cast<uint64_t>(warp_sum(static_cast<uint32_t>(v >> 54))) << 54);
}

// Of numbers; NaN gives anything. +0 for -0.
FULMEN_DEVICE float warp_largest(float v) { return key_value(__reduce_max_sync(kFullMask, ordered_key(v))); }
FULMEN_DEVICE float warp_smallest(float v) { return key_value(__reduce_min_sync(kFullMask, ordered_key(v))); }

// Sum of what lanes before this one hold.
template <class T>
FULMEN_DEVICE T warp_exclusive_sum(T v) {
  T sum = v;
#pragma unroll
  for (int d = 1; d < 32; d <<= 1) {
    T other;
    if constexpr (sizeof(T) == 8) {
      const uint32_t low = __shfl_up_sync(kFullMask, static_cast<uint32_t>(sum), d);
      other = static_cast<uint64_t>(__shfl_up_sync(kFullMask, static_cast<uint32_t>(sum >> 32), d)) << 32 | low;
    } else {
      other = __shfl_up_sync(kFullMask, sum, d);
    }
    if (lane_index() >= d) sum += other;
  }
  return sum - v;
}

template <class T>
FULMEN_DEVICE T warp_broadcast(T v, int lane) {
  if constexpr (sizeof(T) == 8) {
    const uint32_t low = __shfl_sync(kFullMask, static_cast<uint32_t>(v), lane);
    return static_cast<uint64_t>(__shfl_sync(kFullMask, static_cast<uint32_t>(v >> 32), lane)) << 32 | low;
  } else {
    return __shfl_sync(kFullMask, v, lane);
  }
}

// A range of vectors; a warp's where nothing else is said.
struct Range {
  int32_t begin, end;
};

template <SamplingConfig kC>
struct Row {
  using T = storage_t<kC.dtype>;
  static constexpr int kN = kC.vector(), kGroup = kC.group();
  static constexpr uint32_t kSlots = static_cast<uint32_t>(kC.cluster * kC.num_warps());  // in index order of their ranges

  using Shared = RowShared<kC.cluster>;

  Shared& s;
  const T* x;
  int32_t n;
  uint32_t rank;
  int32_t begin, end;  // vectors of this block
  uint32_t turn = 0;   // exchanges so far
  int32_t gathered = -1;  // vectors of gathered words of this warp that stand in the place of all; -1: all stand there
  bool whole = true;      // no word of the row has been overwritten

  FULMEN_DEVICE Row(const void* row, int32_t words)
      : s(shared_storage<Shared>()), x(static_cast<const T*>(row)), n(words), rank(kC.cluster == 1 ? 0 : ptx::cluster_rank()) {
    const int32_t vectors = ceil_div(n, kN), each = ceil_div(vectors, kC.cluster);
    begin = min(static_cast<int32_t>(rank) * each, vectors);
    end = min(begin + each, vectors);
  }
  FULMEN_DEVICE Range block() const { return {begin, end}; }
  FULMEN_DEVICE Range own() const { return part_of(block(), warp_index()); }
  // Warp `warp`'s share of a range, whole lines of 128 bytes.
  static FULMEN_DEVICE Range part_of(Range whole, int warp) {
    const int32_t each = round_up(ceil_div(whole.end - whole.begin, kC.num_warps()), 8);
    const int32_t begin = min(whole.begin + warp * each, whole.end);
    return {begin, min(begin + each, whole.end)};
  }
  FULMEN_DEVICE uint32_t slot() const { return rank * kC.num_warps() + static_cast<uint32_t>(warp_index()); }

  // ---- words
  using Vector = Packed<T, kN>;
  static constexpr int kCapacity = kC.held_bytes / static_cast<int>(sizeof(Vector)), kWindow = kCapacity / kC.num_warps() / 32 * 32;
  FULMEN_DEVICE Vector* held() const { return reinterpret_cast<Vector*>(reinterpret_cast<char*>(&s) + kRowShared); }
  // Of a lane's words: 32 bits hold the sum of either part of so many masses, each of at most 2.
  static constexpr bool kFewPerLane = kMaxCudaVocab / (kC.cluster * kC.threads) < 1 << 10;
  FULMEN_DEVICE bool resident() const { return end - begin <= kCapacity; }

  // Starts to copy vectors [from, to) to `into`, each lane those that it will read; NaN behind the row's end.
  template <int kAtOnce = 1>
  FULMEN_DEVICE void copy(int32_t from, int32_t to, Vector* into) const {
    const int32_t whole = min(to, n / kN);  // the row's last vector may be cut
    if constexpr (kN == 1) {
#pragma unroll 1
      for (int32_t v = from + lane_index(); v < whole; v += 32) into[v - from] = load_packed<T, kN>(x + v);  // as floats
    } else {
      const T* source = x + static_cast<int64_t>(from + lane_index()) * kN;
      uint32_t target = ptx::shared_address(into + lane_index());
#pragma unroll 1
      for (int32_t v = from + lane_index(); v < whole; v += 32 * kAtOnce) {
#pragma unroll
        for (int a = 0; a < kAtOnce; ++a) {
          if (v + 32 * a < whole) ptx::cp_async_16(target + 32 * a * static_cast<uint32_t>(sizeof(Vector)), source + 32 * a * kN, false);
        }
        source += 32 * kAtOnce * kN;
        target += 32 * kAtOnce * sizeof(Vector);
      }
      if (whole < to && (whole - from) % 32 == lane_index()) {
        float f[kN];
#pragma unroll
        for (int i = 0; i < kN; ++i) f[i] = whole * kN + i < n ? to_float(x[whole * kN + i]) : quiet_nan();
        into[whole - from] = packed<T>(f);
      }
    }
    ptx::cp_async_commit();
  }
  // Piece i of this warp's range: they arrive one after another.
  static constexpr int kPieces = 4;
  FULMEN_DEVICE Range piece(int i) const {
    const Range all = own();
    const int32_t each = round_up(ceil_div(all.end - all.begin, kPieces), 32);
    return {min(all.begin + i * each, all.end), min(all.begin + (i + 1) * each, all.end)};
  }
  FULMEN_DEVICE void fetch() const {
    arrive();
    if (threadIdx.x == 0) s.item_count = 0;
    if (!resident()) return;
#pragma unroll 1
    for (int i = 0; i < kPieces; ++i) copy<4>(piece(i).begin, piece(i).end, held() + (piece(i).begin - begin));
  }
  // Each lane sees what it has copied of piece i, and of those before.
  FULMEN_DEVICE void await_piece(int i) const {
    if (i == 0) ptx::cp_async_wait<3>();
    if (i == 1) ptx::cp_async_wait<2>();
    if (i == 2) ptx::cp_async_wait<1>();
    if (i == 3) ptx::cp_async_wait<0>();
  }
  // Behind await_blocks all blocks have started.
  FULMEN_DEVICE void arrive() const {
    if constexpr (kC.cluster > 1) ptx::cluster_arrive();
  }
  FULMEN_DEVICE void await_blocks() const {
    if constexpr (kC.cluster > 1) ptx::cluster_wait();
  }

  // Where vectors [from, to) lie, `to` cut to what lies there: those of the whole range, or this warp's window.
  FULMEN_DEVICE const Vector* window(int32_t from, int32_t& to) const {
    static_assert(kWindow > 0);
    int32_t place = from - begin;
    if (!resident()) {
      place = warp_index() * kWindow;
      to = min(to, from + kWindow);
      copy(from, to, held() + place);
      ptx::cp_async_wait<0>();
    }
    return held() + place;
  }

  // ---- gathered words
  // The words that are wanted again stand one after another in the place of what their warp has read, NaN behind them up to a whole vector. What
  // needs the words in index order, or others than those, copies the row again (restore).
  using Held = Choose<kN == 1, float, T>;
  FULMEN_DEVICE Held* held_words() const { return reinterpret_cast<Held*>(held() + (own().begin - begin)); }
  // body(value) for the words of wanted(), one at a time.
  template <class Body>
  FULMEN_DEVICE void each_wanted_word(Body&& body) const {
    const Range range = wanted();
    const Held* const words = held_words();
    const int32_t count = (range.end - range.begin) * kN;
#pragma unroll 1
    for (int32_t i = lane_index(); i < count; i += 32) body(to_float(words[i]));
  }
  FULMEN_DEVICE Range wanted() const { return {own().begin, gathered < 0 ? own().end : own().begin + gathered}; }
  FULMEN_DEVICE void restore(Range range) {
    gathered = -1;
    if (!resident()) return;
    __syncwarp();
    copy(range.begin, range.end, held() + (range.begin - begin));
    ptx::cp_async_wait<0>();
  }

  // Words g kGroup and on of a vector.
  static FULMEN_DEVICE void unpack_group(const Vector& vector, int g, float (&f)[kGroup]) {
    if constexpr (kN == kGroup) {
      unpack(vector, f);
    } else {
      const uint32_t a = g == 0 ? vector.words[0] : vector.words[2], b = g == 0 ? vector.words[1] : vector.words[3];
      f[0] = low_float<T>(a), f[1] = high_float<T>(a), f[2] = low_float<T>(b), f[3] = high_float<T>(b);
    }
  }

  // body(indices, values) for the words, kGroup at a time, of every kEvery-th vector of the range that falls to this lane; NaN for what isn't there.
  // kPairs: two vectors at a time.
  template <int kEvery = 1, bool kPairs = false, class Body>
  FULMEN_DEVICE void each(Range range, Body&& body) const {
#pragma unroll 1
    for (int32_t from = range.begin, to; from < range.end; from = to) {
      to = range.end;
      const Vector* const place = window(from, to);
      const int32_t end = to - from;
      constexpr bool kAhead = kN == kGroup && !kPairs;  // of two groups a load is hidden by the other
      int32_t v = lane_index();
      if constexpr (kPairs && kN == kGroup) {
#pragma unroll 1
        for (; v + 32 < end; v += 64) {
          const Vector pair[2] = {place[v], place[v + 32]};
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            float f[kGroup];
            int32_t at[kGroup];
            unpack_group(pair[i], 0, f);
#pragma unroll
            for (int k = 0; k < kGroup; ++k) at[k] = (from + v + 32 * i) * kN + k;
            body(at, f);
          }
        }
      }
      Vector ahead{};
      if (kAhead && v < end) ahead = place[v];
#pragma unroll 1
      while (v < end) {
        const Vector here = kAhead ? ahead : place[v];
        const int32_t first = (from + v) * kN;
        v += 32 * kEvery;
        if (kAhead && v < end) ahead = place[v];
#pragma unroll 1
        for (int g = 0; g < kN / kGroup; ++g) {
          float f[kGroup];
          int32_t at[kGroup];
          unpack_group(here, g, f);
#pragma unroll
          for (int k = 0; k < kGroup; ++k) at[k] = first + g * kGroup + k;
          body(at, f);
        }
      }
    }
  }
  // body(index of the first word, values) for 32 vectors at a time, all lanes together; NaN where a lane has none. Until body returns false.
  template <class Body>
  FULMEN_DEVICE void each_together(Range range, Body&& body) const {
#pragma unroll 1
    for (int32_t from = range.begin, to; from < range.end; from = to) {
      to = range.end;
      const Vector* const place = window(from, to);
#pragma unroll 1
      for (int32_t base = from; base < to; base += 32) {
        const int32_t v = base + lane_index();
        float f[kN];
#pragma unroll
        for (int k = 0; k < kN; ++k) f[k] = quiet_nan();
        if (v < to) unpack(place[v - from], f);
        if (!body(v * kN, f)) return;
      }
    }
  }

  // Vector v from device memory; `behind` behind the row's end.
  FULMEN_DEVICE void read(int32_t v, float (&f)[kN], float behind) const {
    if (v * kN + kN <= n) {
      load_floats(x + static_cast<int64_t>(v) * kN, f);
    } else {
#pragma unroll
      for (int i = 0; i < kN; ++i) f[i] = v * kN + i < n ? to_float(x[v * kN + i]) : behind;
    }
  }

  // ---- exchange
  static constexpr int kPerLane = ceil_div(static_cast<int>(kSlots), 32);
  struct Slots {
    RowSlot of[kPerLane];  // lane l: slots l kPerLane and on; zeros where there are none
  };

  FULMEN_DEVICE void sync() const {
    if constexpr (kC.cluster == 1) {
      __syncthreads();
    } else {
      ptx::cluster_sync();
    }
  }
  template <class U>
  FULMEN_DEVICE U* peer(U* p, uint32_t of) const {
    return kC.cluster == 1 ? p : ptx::cluster_peer(p, of);
  }

  // `mine` of each warp, the same in its every lane, to all. Orders everything before it before everything after it, in the whole cluster.
  FULMEN_DEVICE Slots exchange(const RowSlot& mine) {
    const uint32_t set = turn++ & 1;
    if (lane_index() < kC.cluster) *peer(&s.slots[set][slot()], static_cast<uint32_t>(lane_index())) = mine;
    sync();
    Slots slots{};
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) {
      const uint32_t at = static_cast<uint32_t>(lane_index() * kPerLane + i);
      if (at < kSlots) slots.of[i] = s.slots[set][at];
    }
    return slots;
  }

  // merge_bin(bin, block): each block adds up its share of the bins, a lane per bin and block, and that lane tells that block the sum.
  // Between barriers.
  template <class Merge>
  FULMEN_DEVICE void merge(Merge&& merge_bin) const {
    constexpr int kShare = kRowBins / kC.cluster;
#pragma unroll 1
    for (int i = static_cast<int>(threadIdx.x); i < kRowBins; i += kC.threads) {
      merge_bin(static_cast<int>(rank) * kShare + i / kC.cluster, static_cast<uint32_t>(i % kC.cluster));
    }
    sync();
  }
  // Over the lanes that have the blocks of one bin.
  template <class U>
  static FULMEN_DEVICE U sum_of_blocks(U v) {
#pragma unroll
    for (int mask = kC.cluster / 2; mask > 0; mask >>= 1) v += shuffle_xor(v, mask);
    return v;
  }

  // This lane's largest of a range that lies in shared memory, without words behind the row's end; NaN where one is NaN.
  FULMEN_DEVICE float largest_of(Range range) const {
    constexpr int kAtOnce = 4;
    const Vector* const place = held() + (range.begin - begin);
    const int32_t end = range.end - range.begin;
    float top[kAtOnce], none[kN];
#pragma unroll
    for (int a = 0; a < kAtOnce; ++a) top[a] = -infinity();
#pragma unroll
    for (int k = 0; k < kN; ++k) none[k] = -infinity();
    const Vector lowest = packed<T>(none);
    const auto look = [&](const Vector& vector, float& most) {
      float f[kN];
      unpack(vector, f);
#pragma unroll
      for (int k = 0; k < kN; ++k) most = ptx::max_nan(most, f[k]);
    };
#pragma unroll 1
    for (int32_t v = lane_index(); v < end; v += 32 * kAtOnce) {
      Vector at_once[kAtOnce];
#pragma unroll
      for (int a = 0; a < kAtOnce; ++a) at_once[a] = v + 32 * a < end ? place[v + 32 * a] : lowest;
#pragma unroll
      for (int a = 0; a < kAtOnce; ++a) look(at_once[a], top[a]);
    }
    return ptx::max_nan(ptx::max_nan(top[0], top[1]), ptx::max_nan(top[2], top[3]));
  }

  // The row's largest value, NaN when the row isn't one: NaN in it, or as probabilities a value outside [0, 2].
  // `lane_max` is this lane's own, `lowest` the smallest of those.
  FULMEN_DEVICE float largest(bool is_probs, float& lane_max, float& lowest) {
    return largest(is_probs, lane_max, lowest, [](float, float) {});
  }
  // before_exchange(lane's largest, warp's largest): what is told with it.
  template <class Before>
  FULMEN_DEVICE float largest(bool is_probs, float& lane_max, float& lowest, Before&& before_exchange) {
    float top = -infinity();
    bool bad = false;
#pragma unroll 1
    for (int i = 0; i < kPieces; ++i) {
      await_piece(i);
      const Range range = piece(i);
      if (!is_probs && resident() && range.end * kN <= n) {
        top = ptx::max_nan(top, largest_of(range));
        continue;
      }
      each(range, [&](const int32_t(&at)[kGroup], const float(&f)[kGroup]) {
#pragma unroll
        for (int k = 0; k < kGroup; ++k) {
          top = at[k] < n ? ptx::max_nan(top, f[k]) : top;
          bad |= is_probs && f[k] < 0.0f;
        }
      });
    }
    await_blocks();
    bad |= top != top || (is_probs && top > 2.0f);
    lane_max = top;
    const bool any_bad = __any_sync(kFullMask, bad) != 0;
    const bool idle = own().begin + lane_index() >= own().end;
    const float most = warp_largest(top), least = warp_smallest(idle ? infinity() : top);
    before_exchange(top, most);
    const Slots slots = exchange({0, any_bad, float_bits(most), float_bits(least)});
    float all = -infinity(), low = infinity();
    bool spoilt = false;
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) {
      if (static_cast<uint32_t>(lane_index() * kPerLane + i) >= kSlots) continue;
      all = max(all, bits_float(slots.of[i].c));
      low = min(low, bits_float(slots.of[i].d));
      spoilt |= slots.of[i].b != 0;
    }
    lowest = warp_smallest(low);
    all = warp_largest(all);
    return __any_sync(kFullMask, spoilt) != 0 ? quiet_nan() : all;
  }
};

}  // namespace fulmen
