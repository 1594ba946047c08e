// Passes over one row of logits or probabilities: block maxima, masses, words above a threshold, and the
// prefix of the ranking that the filters keep. Once per SIMD target; masses have the bits of
// kernels/math/mass.hpp.
#if defined(FULMEN_CPU_DISTRIBUTION_INL_HPP) == defined(HWY_TARGET_TOGGLE)
#ifdef FULMEN_CPU_DISTRIBUTION_INL_HPP
#undef FULMEN_CPU_DISTRIBUTION_INL_HPP
#else
#define FULMEN_CPU_DISTRIBUTION_INL_HPP
#endif

#include <algorithm>
#include <bit>
#include <functional>
#include <kernels/math/log.hpp>
#include <kernels/math/mass.hpp>
#include <kernels/math/radix.hpp>
#include <kernels/sampling/rules.hpp>

#include "cpu/distribution.hpp"
#include "cpu/mass-inl.hpp"
#include "cpu/scan-inl.hpp"

HWY_BEFORE_NAMESPACE();
namespace fulmen::cpu::HWY_NAMESPACE {

// A row as a distribution: logits are shifted by their maximum and scaled, probabilities taken as they are.
struct Shape {
  float max;
  float inverse_temperature;
  bool is_probs;

  // exp((x - max) / T), or x: the words' masses as floats. Exact where they have a mass at all.
  HWY_INLINE void Weigh(FloatTag d, Group& x) const {
    if (is_probs) return;
    const auto shift = hn::Set(d, max), scale = hn::Set(d, inverse_temperature);
    hn::Mask<FloatTag> none[kGroup];
    FULMEN_EACH(i, kGroup) x.v[i] = hn::Mul(hn::Sub(x.v[i], shift), scale);
    // Zero, not e^-87: a word of logit -inf has no probability at all.
    FULMEN_EACH(i, kGroup) none[i] = hn::Lt(x.v[i], hn::Set(d, ExpConstants::kUnderflow));
    ExpInRange(d, x.v);
    FULMEN_EACH(i, kGroup) x.v[i] = hn::IfThenZeroElse(none[i], x.v[i]);
  }
  HWY_INLINE FloatVec Weight(FloatTag d, FloatVec x) const {
    if (is_probs) return x;
    const auto scaled = hn::Mul(hn::Sub(x, hn::Set(d, max)), hn::Set(d, inverse_temperature));
    return hn::IfThenZeroElse(hn::Lt(scaled, hn::Set(d, ExpConstants::kUnderflow)), ExpInRange(d, scaled));
  }
  // About the value whose weight this is; only thresholds that are checked afterwards come from it.
  float ValueOf(float weight) const {
    return is_probs ? weight : max + exact_log(weight) / inverse_temperature;
  }
  HWY_INLINE float Weight(float x) const { return is_probs ? x : exact_exp((x - max) * inverse_temperature); }
};

// block_max[i] = largest of block i, lane_max[i lanes + j] = largest of those that meet in lane j. Returns the largest
// of the row, NaN when the row isn't one: NaN in it, or as probabilities a value outside [0, 2].
template <class T>
HWY_NOINLINE float BlockMaxima(const T* x, size_t n, bool is_probs, float* block_max, float* lane_max) {
  const FloatTag d;
  const size_t lanes = hn::Lanes(d);
  const auto lowest = hn::Set(d, -infinity());
  auto row_max = lowest;
  auto row_min = hn::Set(d, infinity());
  auto nan = hn::Zero(d);
  const float nothing = is_probs ? 0.0f : -infinity();
  for (size_t begin = 0, block = 0; begin < n; begin += kBlock, ++block) {
    const size_t end = begin + kBlock < n ? begin + kBlock : n;
    Group top{{lowest, lowest, lowest, lowest}};
    size_t i = begin;
    for (; i + kGroup * lanes <= end; i += kGroup * lanes) {
      const Group v = LoadGroup(d, x + i);
      FULMEN_EACH(j, kGroup) {
        top.v[j] = hn::Max(top.v[j], v.v[j]);
        row_min = hn::Min(row_min, v.v[j]);
        nan = hn::IfThenElse(hn::IsNaN(v.v[j]), v.v[j], nan);
      }
    }
    for (; i < end; i += lanes) {
      const auto v = LoadTail(d, x + i, end - i < lanes ? end - i : lanes, nothing);
      top.v[0] = hn::Max(top.v[0], v);
      row_min = hn::Min(row_min, v);
      nan = hn::IfThenElse(hn::IsNaN(v), v, nan);
    }
    const auto by_lane = hn::Max(hn::Max(top.v[0], top.v[1]), hn::Max(top.v[2], top.v[3]));
    hn::StoreU(by_lane, d, lane_max + block * lanes);
    const auto here = hn::MaxOfLanes(d, by_lane);
    block_max[block] = hn::GetLane(here);
    row_max = hn::Max(row_max, here);
  }
  if (!hn::AllFalse(d, hn::IsNaN(nan))) return quiet_nan();
  const float max = hn::GetLane(row_max);
  if (is_probs && (hn::GetLane(hn::MinOfLanes(d, row_min)) < 0.0f || max > 2.0f)) return quiet_nan();
  return max;
}

// The mass of n words of weight >= floor.
template <class T>
HWY_INLINE uint64_t MassOfBlock(const T* x, size_t n, const Shape& shape, float floor) {
  const FloatTag d;
  const size_t lanes = hn::Lanes(d);
  const auto least = hn::Set(d, floor);
  MassSum sum;
  size_t i = 0;
  for (; i + kGroup * lanes <= n; i += kGroup * lanes) {
    Group w = LoadGroup(d, x + i);
    shape.Weigh(d, w);
    if (floor > 0.0f) FULMEN_EACH(j, kGroup) w.v[j] = hn::IfThenElseZero(hn::Ge(w.v[j], least), w.v[j]);
    FULMEN_EACH(j, kGroup) sum.Add(d, w.v[j]);
  }
  for (; i < n; i += lanes) {
    const auto v = LoadTail(d, x + i, n - i < lanes ? n - i : lanes, shape.is_probs ? 0.0f : -infinity());
    const auto weight = shape.Weight(d, v);
    sum.Add(d, hn::IfThenElseZero(hn::Ge(weight, least), weight));
  }
  return sum.Total();
}

// The passes that compute while the memory idles fetch `next`, the row whose turn is next on this thread (nullable).
template <class T>
HWY_INLINE void FetchBlock(const T* next, size_t begin, size_t end) {
  for (size_t i = begin; next != nullptr && i < end; i += 64 / sizeof(T)) __builtin_prefetch(next + i, 0, 2);
}

// block_mass[i] = mass of block i's words of weight >= floor; returns their sum.
template <class T>
HWY_NOINLINE uint64_t BlockMasses(const T* x, size_t n, const Shape& shape, float floor, const T* next,
                                RowScratch& scratch) {
  uint64_t total = 0;
  for (size_t begin = 0, block = 0; begin < n; begin += kBlock, ++block) {
    const size_t end = begin + kBlock < n ? begin + kBlock : n;
    FetchBlock(next, begin, end);
    const bool empty = floor > 0.0f && shape.Weight(scratch.block_max[block]) < floor;
    const uint64_t mass = empty ? 0 : MassOfBlock(x + begin, end - begin, shape, floor);
    scratch.block_mass[block] = mass;
    total += mass;
  }
  return total;
}

// Which words stay: value above `least`, the first `ties` in index order of those equal to it, and weight >= floor.
struct Keep {
  float least;
  int64_t ties;
  float floor;
};

// The word whose running mass (of words that stay, in index order) first exceeds draw.
template <class T>
HWY_NOINLINE int32_t FindDraw(const T* x, size_t n, const Shape& shape, Keep keep, const RowScratch& scratch,
                            uint64_t draw) {
  const FloatTag d;
  const size_t lanes = hn::Lanes(d);
  size_t begin = 0, block = 0;
  for (; draw >= scratch.block_mass[block]; ++block, begin += kBlock) draw -= scratch.block_mass[block];
  for (size_t i : scratch.kept_ties) keep.ties -= i < begin;
  const auto floor = hn::Set(d, keep.floor);
  const MassTag d64;
  for (size_t i = begin; i < n; i += lanes) {
    const size_t rest = n - i < lanes ? n - i : lanes;
    const auto v = LoadTail(d, x + i, rest, 0.0f);
    const auto weight = shape.Weight(d, v);
    MassVec a, b = hn::Zero(d64);
    MassesOf(d, hn::IfThenElseZero(hn::Ge(weight, floor), weight), a, b);
    HWY_ALIGN uint64_t masses[2 * HWY_MAX_BYTES / sizeof(uint64_t)];
    HWY_ALIGN float values[HWY_MAX_BYTES / sizeof(float)];
    hn::StoreU(a, d64, masses);
    hn::StoreU(b, d64, masses + hn::Lanes(d64));
    hn::Store(v, d, values);
    for (size_t j = 0; j < rest; ++j) {
      if (values[j] < keep.least || (values[j] == keep.least && keep.ties-- <= 0)) continue;
      if (draw < masses[j]) return static_cast<int32_t>(i + j);
      draw -= masses[j];
    }
  }
  return -1;
}

// Words with x >= threshold in index order: their values, indices.
template <class T>
HWY_NOINLINE size_t Collect(const T* x, size_t n, float threshold, const float* block_max, const T* next, Words& words) {
  const FloatTag d;
  const hn::RebindToSigned<FloatTag> di32;
  const size_t lanes = hn::Lanes(d);
  const auto least = hn::Set(d, threshold);
  size_t found = 0;
  for (size_t begin = 0, block = 0; begin < n; begin += kBlock, ++block) {
    const size_t end = begin + kBlock < n ? begin + kBlock : n;
    FetchBlock(next, begin, end);
    if (!(block_max[block] >= threshold)) continue;
    words.reserve(found + (end - begin) + lanes);
    float* values = words.values.data();
    int32_t* indices = words.indices.data();
    for (size_t i = begin; i < end; i += lanes) {
      const size_t rest = end - i;
      const auto v = rest >= lanes ? LoadFloats(d, x + i) : LoadTail(d, x + i, rest, 0.0f);
      auto keep = hn::Ge(v, least);
      if (rest < lanes) keep = hn::And(keep, hn::FirstN(d, rest));
      if (hn::AllFalse(d, keep)) continue;
      const auto index = hn::Iota(di32, static_cast<int32_t>(i));
      hn::StoreU(hn::Compress(v, keep), d, values + found);
      hn::StoreU(hn::Compress(index, hn::RebindMask(di32, keep)), di32, indices + found);
      found += hn::CountTrue(d, keep);
    }
  }
  return words.n = found;
}

// Keys, and masses where wanted, of collected words.
inline HWY_NOINLINE void Rank(const Shape& shape, bool with_mass, Words& words) {
  const FloatTag d;
  const hn::RebindToUnsigned<FloatTag> d32;
  const hn::RebindToSigned<FloatTag> di32;
  const size_t lanes = hn::Lanes(d);
  words.reserve_ranks(words.n + lanes);
  for (size_t i = 0; i < words.n; i += lanes) {
    const auto v = hn::LoadU(d, words.values.data() + i);
    const auto bits = hn::BitCast(di32, hn::Add(v, hn::Zero(d)));
    const auto flip = hn::Or(hn::ShiftRight<31>(bits), hn::Set(di32, static_cast<int32_t>(0x80000000u)));
    hn::StoreU(hn::BitCast(d32, hn::Xor(bits, flip)), d32, words.keys.data() + i);
    if (!with_mass) continue;
    const MassTag d64;
    MassVec a, b = hn::Zero(d64);
    MassesOf(d, shape.Weight(d, v), a, b);
    hn::StoreU(a, d64, words.masses.data() + i);
    if (lanes > 1) hn::StoreU(b, d64, words.masses.data() + i + hn::Lanes(d64));
  }
}

// A value that k of `count` values aren't below, near the k-th largest: the edge of a bin of [least, max]. -inf where
// so many aren't in that range.
inline HWY_NOINLINE float ThresholdOfMaxima(const float* values, size_t count, size_t k, float least, float max,
                                     RowScratch& scratch) {
  constexpr int kBinsLog2 = 10;
  const uint32_t low = ordered_key(least), high = ordered_key(max);
  const int shift = std::max(0, static_cast<int>(std::bit_width(high - low)) - kBinsLog2);
  scratch.counts.assign(size_t{1} << kBinsLog2, 0);
  for (size_t i = 0; i < count; ++i) ++scratch.counts[(std::max(ordered_key(values[i]), low) - low) >> shift];
  size_t bin = scratch.counts.size(), found = 0;
  while (bin > 0 && found < k) found += scratch.counts[--bin];
  return bin == 0 ? -infinity() : key_value(low + (static_cast<uint32_t>(bin) << shift));
}

// A value that at least k words aren't below: the k-th largest maximum of blocks, or of lanes of blocks. Where there are
// too few of these, an estimate from one word in 16 that the caller checks.
template <class T>
HWY_NOINLINE float ThresholdOfCount(const T* x, size_t n, float max, int64_t k, RowScratch& scratch) {
  const FloatTag d;
  const size_t lanes = hn::Lanes(d), num_blocks = (n + kBlock - 1) / kBlock;
  constexpr size_t kSmallestBlocks = 64;
  auto rank = static_cast<size_t>(k);
  auto& values = scratch.floats;
  if (num_blocks >= kSmallestBlocks && rank <= num_blocks * lanes / 4 * 3) {
    float least = scratch.block_max[0];
    for (size_t i = 1; i < num_blocks; ++i) least = min(least, scratch.block_max[i]);
    return rank <= num_blocks / 4
               ? ThresholdOfMaxima(scratch.block_max.data(), num_blocks, rank, least, max, scratch)
               : ThresholdOfMaxima(scratch.lane_max.data(), num_blocks * lanes, rank, least, max, scratch);
  }
  if (rank <= num_blocks) {
    values.assign(scratch.block_max.begin(), scratch.block_max.begin() + static_cast<std::ptrdiff_t>(num_blocks));
  } else {
    constexpr size_t kSample = 16;
    if (n < 4096 || rank > n / 4) return -infinity();
    values.clear();
    for (size_t i = 0; i + lanes <= n; i += lanes * kSample) {
      HWY_ALIGN float sample[HWY_MAX_BYTES / sizeof(float)];
      hn::Store(LoadFloats(d, x + i), d, sample);
      values.insert(values.end(), sample, sample + lanes);
    }
    const float expected = static_cast<float>(rank) / kSample;
    rank = static_cast<size_t>(expected + 4.0f * __builtin_sqrtf(expected)) + 4;
    if (rank > values.size()) return -infinity();
  }
  std::nth_element(values.begin(), values.begin() + static_cast<std::ptrdiff_t>(rank - 1), values.end(),
                   std::greater<float>());
  return values[rank - 1];
}

// Values between which top-p's cut very likely lies: words of [low, high) will be ranked, those above only summed.
struct Bracket {
  float low, high;
};

// From the words above `top`, which are looked at one by one, and a sample of the others: each block's first vector.
template <class T>
HWY_NOINLINE Bracket GuessBracket(const T* x, size_t n, const Shape& shape, float top_p, float top, RowScratch& scratch) {
  const FloatTag d;
  const size_t lanes = hn::Lanes(d);
  constexpr int kBinsLog2 = 4;  // bins per octave of weight
  constexpr uint32_t kLowest = (127u - kMassBits) << kBinsLog2;
  constexpr size_t kBins = (kMassBits + 2) << kBinsLog2;
  const auto edge_of = [](size_t bin) {
    return bits_float((kLowest + static_cast<uint32_t>(bin)) << (23 - kBinsLog2));
  };
  float head = 0.0f;
  Words& words = scratch.words;
  Collect<T>(x, n, top, scratch.block_max.data(), nullptr, words);
  for (size_t i = 0; i < words.n; ++i) head += shape.Weight(words.values[i]);

  constexpr size_t kIdle = 16;
  float bins[kBins + kIdle] = {};  // the last: words that don't count, spread so that they don't wait for one another
  const auto least_of_head = hn::Set(d, shape.Weight(top));
  HWY_ALIGN float weights[kGroup * HWY_MAX_BYTES / sizeof(float)];
  for (size_t begin = 0; begin + (kGroup - 1) * kBlock + lanes <= n; begin += kGroup * kBlock) {
    Group w;
    FULMEN_EACH(j, kGroup) w.v[j] = LoadFloats(d, x + begin + j * kBlock);
    shape.Weigh(d, w);
    FULMEN_EACH(j, kGroup) w.v[j] = hn::IfThenZeroElse(hn::Ge(w.v[j], least_of_head), w.v[j]);
    StoreGroup<false>(w, d, weights);
    for (size_t j = 0; j < kGroup * lanes; ++j) {
      const uint32_t bin = (float_bits(weights[j]) >> (23 - kBinsLog2)) - kLowest;
      bins[bin < kBins ? bin : kBins + j % kIdle] += weights[j];
    }
  }
  // One word in `rate` is in the sample. What an estimate of (mass above) - p * total is off by is the root of a sum of
  // squares, weighted by (1 - p)^2 above and p^2 below.
  const size_t rate_words = kBlock / lanes;
  const float rate = static_cast<float>(rate_words);
  float rest = 0.0f, squares = 0.0f;
  for (size_t bin = 0; bin < kBins; ++bin) rest += bins[bin], squares += bins[bin] * edge_of(bin);
  const float goal = top_p * (head + rate * rest);
  float above = 0.0f, squares_above = 0.0f;
  size_t high = kBins + 1, bin = kBins;  // edges
  for (;; --bin, above += bins[bin], squares_above += bins[bin] * edge_of(bin)) {
    const float q = 1.0f - top_p;
    const float variance = q * q * squares_above + top_p * top_p * (squares - squares_above);
    const float off = 3.0f * rate * __builtin_sqrtf(max(variance, 0.0f));
    const float mass = head + rate * above;
    if (mass < goal - off) high = bin;
    if (mass > goal + off || bin == 0) break;
  }
  const auto value_of = [&](size_t edge) {
    return edge == 0 ? -infinity() : edge > kBins ? infinity() : edge == kBins ? top : min(top, shape.ValueOf(edge_of(edge)));
  };
  return {value_of(bin), value_of(high)};
}

// Masses of all words (returned) and, by block, of those from bracket.high on; words of the bracket to scratch.words.
template <class T>
HWY_NOINLINE uint64_t BracketMasses(const T* x, size_t n, const Shape& shape, Bracket bracket, const T* next,
                                  RowScratch& scratch) {
  const FloatTag d;
  const hn::RebindToSigned<FloatTag> di32;
  const size_t lanes = hn::Lanes(d);
  const auto low = hn::Set(d, bracket.low), high = hn::Set(d, bracket.high);
  Words& words = scratch.words;
  words.n = 0;
  uint64_t total = 0;
  MassSum below;
  for (size_t begin = 0, block = 0; begin < n; begin += kBlock, ++block) {
    const size_t end = begin + kBlock < n ? begin + kBlock : n;
    FetchBlock(next, begin, end);
    scratch.block_mass[block] = 0;
    if (scratch.block_max[block] < bracket.low) {
      total += MassOfBlock(x + begin, end - begin, shape, 0.0f);
      continue;
    }
    words.reserve(words.n + kBlock + lanes);
    int32_t* indices = words.indices.data();
    size_t found = words.n;
    MassSum above;
    for (size_t i = begin; i < end; i += kGroup * lanes) {
      Group v;
      FULMEN_EACH(j, kGroup) {
        const size_t at = i + j * lanes;
        v.v[j] = at + lanes <= end ? LoadFloats(d, x + at)
                                   : LoadTail(d, x + at, at < end ? end - at : 0, shape.is_probs ? 0.0f : -infinity());
      }
      Group w = v;
      shape.Weigh(d, w);
      FULMEN_EACH(j, kGroup) {
        const auto keep = hn::Ge(v.v[j], high);
        AddApart(d, w.v[j], keep, above, below);
        auto ranked = hn::AndNot(keep, hn::Ge(v.v[j], low));
        const size_t at = i + j * lanes;
        if (at + lanes > end) ranked = hn::And(ranked, hn::FirstN(d, at < end ? end - at : 0));
        const auto index = hn::Iota(di32, static_cast<int32_t>(at));
        hn::StoreU(hn::Compress(index, hn::RebindMask(di32, ranked)), di32, indices + found);
        found += hn::CountTrue(d, ranked);
      }
    }
    words.n = found;
    scratch.block_mass[block] = above.Total();
    total += scratch.block_mass[block];
  }
  total += below.Total();
  for (size_t i = 0; i < words.n; ++i) words.values[i] = ValueAt(x, static_cast<size_t>(words.indices[i]));
  return total;
}

// Top-p among all words. Returns their mass; on success `cut` is set, and scratch.block_mass and kept_ties hold what
// FindDraw needs. The guess may fail: then the caller ranks as many words as it takes.
template <class T>
HWY_NOINLINE uint64_t FindNucleus(const T* x, size_t n, const Shape& shape, float top_p, const T* next,
                                RowScratch& scratch, Cut& cut) {
  constexpr int64_t kFewWords = 64;
  cut.found = false;
  if (n < 4 * kFewWords * kBlock) return BlockMasses(x, n, shape, 0.0f, next, scratch);
  const float top = ThresholdOfCount(x, n, shape.max, kFewWords, scratch);
  const Bracket bracket = GuessBracket(x, n, shape, top_p, top, scratch);
  const uint64_t total = BracketMasses(x, n, shape, bracket, next, scratch);
  uint64_t above = 0;
  for (size_t block = 0; block * kBlock < n; ++block) above += scratch.block_mass[block];
  const uint64_t goal = mass_share(top_p, total);
  if (above >= goal) return total;
  Words& words = scratch.words;
  Rank(shape, true, words);
  cut = select_prefix(words.keys.data(), words.masses.data(), words.n, ordered_key(bracket.low),
                      ordered_key(min(bracket.high, shape.max)), 0, goal - above, scratch.select);
  if (!cut.found) return total;
  cut.mass += above;
  int64_t ties = cut.ties;
  size_t block = 0;
  uint64_t sum = 0;
  const auto flush = [&] {
    scratch.block_mass[block] += sum;
    sum = 0;
  };
  for (size_t i = 0; i < words.n; ++i) {
    const auto index = static_cast<size_t>(words.indices[i]);
    if (index / kBlock != block) {
      flush();
      block = index / kBlock;
    }
    uint64_t mass = words.masses[i] & (uint64_t{0} - (words.keys[i] > cut.key));  // a branch would be guessed wrong
    if (__builtin_expect(words.keys[i] == cut.key && ties > 0, 0)) {
      --ties;
      mass = words.masses[i];
      scratch.kept_ties.push_back(index);
    }
    sum += mass;
  }
  flush();
  return total;
}

// Collects words into scratch.words until the ranking's prefix that the filters keep lies in them, and finds
// its end. total: mass of all words; needed for top-p unless top-k goes first.
template <class T>
HWY_NOINLINE Cut KeptPrefix(const T* x, size_t n, const Shape& shape, const RowFilter& filter, uint64_t total,
                            const T* next, RowScratch& scratch) {
  const bool by_mass = filter.top_p < 1.0f;
  const bool mass_of_kept = by_mass && filter.top_k > 0 && !filter.joint;  // top-p judges what top-k left
  const uint64_t goal = by_mass && !mass_of_kept ? mass_share(filter.top_p, total) : 0;

  // The first threshold whose words reach a goal serves.
  const float first = filter.top_k > 0 ? ThresholdOfCount(x, n, shape.max, filter.top_k, scratch)
                                       // What is lighter than an equal share of the spare mass isn't needed.
                                       : shape.ValueOf(0.99f * mass_value(total - goal) / static_cast<float>(n));
  Words& words = scratch.words;
  for (const float threshold : {first, -infinity()}) {
    Collect(x, n, threshold, scratch.block_max.data(), next, words);
    Rank(shape, true, words);
    const uint32_t low = ordered_key(threshold), high = ordered_key(shape.max);
    Cut cut = select_prefix(words.keys.data(), words.masses.data(), words.n, low, high, filter.top_k, goal,
                            scratch.select);
    if (cut.found && mass_of_kept) {
      cut = select_prefix(words.keys.data(), words.masses.data(), words.n, low, high, 0,
                          mass_share(filter.top_p, cut.mass), scratch.select);
    }
    if (cut.found) return cut;
  }
  return {};
}

}  // namespace fulmen::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif
