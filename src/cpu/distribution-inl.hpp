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

  // exp((x - max) / T), or x: the word's mass as a float. Exact where it has a mass at all.
  HWY_INLINE FloatVec Weight(FloatTag d, FloatVec x) const {
    if (is_probs) return x;
    const auto scaled = hn::Mul(hn::Sub(x, hn::Set(d, max)), hn::Set(d, inverse_temperature));
    // Zero, not e^-87: a word of logit -inf has no probability at all.
    return hn::IfThenZeroElse(hn::Lt(scaled, hn::Set(d, ExpConstants::kUnderflow)), ExpInRange(d, scaled));
  }
  // About the value whose weight this is; only thresholds that are checked afterwards come from it.
  float ValueOf(float weight) const {
    return is_probs ? weight : max + exact_log(weight) / inverse_temperature;
  }
  HWY_INLINE float Weight(float x) const { return is_probs ? x : exact_exp((x - max) * inverse_temperature); }
};

// block_max[i] = largest of block i. Returns the largest of the row, NaN when the row isn't one: NaN in it,
// or as probabilities a value outside [0, 2].
template <class T>
HWY_INLINE float BlockMaxima(const T* x, size_t n, bool is_probs, float* block_max) {
  const FloatTag d;
  const size_t lanes = hn::Lanes(d);
  const auto lowest = hn::Set(d, -infinity());
  auto row_max = lowest;
  auto row_min = hn::Set(d, infinity());
  auto nan = hn::Zero(d);
  const float nothing = is_probs ? 0.0f : -infinity();
  for (size_t begin = 0, block = 0; begin < n; begin += kBlock, ++block) {
    const size_t end = begin + kBlock < n ? begin + kBlock : n;
    FloatVec top[2] = {lowest, lowest};
    const auto step = [&](FloatVec v, FloatVec& into) HWY_ATTR {
      into = hn::Max(into, v);
      row_min = hn::Min(row_min, v);
      nan = hn::IfThenElse(hn::IsNaN(v), v, nan);
    };
    size_t i = begin;
    for (; i + 2 * lanes <= end; i += 2 * lanes) {
      step(LoadFloats(d, x + i), top[0]);
      step(LoadFloats(d, x + i + lanes), top[1]);
    }
    for (; i < end; i += lanes) {
      const size_t rest = end - i;
      step(rest >= lanes ? LoadFloats(d, x + i) : LoadTail(d, x + i, rest, nothing), top[0]);
    }
    const auto here = hn::MaxOfLanes(d, hn::Max(top[0], top[1]));
    block_max[block] = hn::GetLane(here);
    row_max = hn::Max(row_max, here);
  }
  if (!hn::AllFalse(d, hn::IsNaN(nan))) return quiet_nan();
  const float max = hn::GetLane(row_max);
  if (is_probs && (hn::GetLane(hn::MinOfLanes(d, row_min)) < 0.0f || max > 2.0f)) return quiet_nan();
  return max;
}

// block_mass[i] = mass of block i's words of weight >= floor; returns their sum. This pass computes while the
// memory idles: it fetches `next`, the row whose turn is next on this thread (nullable).
template <class T>
HWY_INLINE uint64_t BlockMasses(const T* x, size_t n, const Shape& shape, float floor, const T* next,
                                uint64_t* block_mass) {
  const FloatTag d;
  const size_t lanes = hn::Lanes(d);
  const auto least = hn::Set(d, floor);
  uint64_t total = 0;
  for (size_t begin = 0, block = 0; begin < n; begin += kBlock, ++block) {
    const size_t end = begin + kBlock < n ? begin + kBlock : n;
    for (size_t i = begin; next != nullptr && i < end; i += 64 / sizeof(T))
      __builtin_prefetch(next + i, 0, 2);
    MassSum sum;
    const auto step = [&](FloatVec v) HWY_ATTR {
      const auto weight = shape.Weight(d, v);
      MassVec a, b = hn::Zero(MassTag());
      MassesOf(d, hn::IfThenElseZero(hn::Ge(weight, least), weight), a, b);
      sum.a = hn::Add(sum.a, a);
      sum.b = hn::Add(sum.b, b);
    };
    const float nothing = shape.is_probs ? 0.0f : -infinity();
    size_t i = begin;
    for (; i + lanes <= end; i += lanes) step(LoadFloats(d, x + i));
    if (i < end) step(LoadTail(d, x + i, end - i, nothing));
    block_mass[block] = sum.Total();
    total += block_mass[block];
  }
  return total;
}

// The word whose running mass (of words of weight >= floor, in index order) first exceeds draw.
template <class T>
HWY_INLINE int32_t FindDraw(const T* x, size_t n, const Shape& shape, float floor, const uint64_t* block_mass,
                            uint64_t draw) {
  const FloatTag d;
  size_t begin = 0, block = 0;
  for (; draw >= block_mass[block]; ++block, begin += kBlock) draw -= block_mass[block];
  const auto least = hn::Set(d, floor);
  const MassTag d64;
  for (size_t i = begin; i < n; i += hn::Lanes(d)) {
    const size_t rest = n - i < hn::Lanes(d) ? n - i : hn::Lanes(d);
    const auto v = rest == hn::Lanes(d) ? LoadFloats(d, x + i) : LoadTail(d, x + i, rest, 0.0f);
    const auto weight = shape.Weight(d, v);
    MassVec a, b = hn::Zero(d64);
    MassesOf(d, hn::IfThenElseZero(hn::Ge(weight, least), weight), a, b);
    HWY_ALIGN uint64_t masses[2 * HWY_MAX_BYTES / sizeof(uint64_t)];
    hn::StoreU(a, d64, masses);
    hn::StoreU(b, d64, masses + hn::Lanes(d64));
    for (size_t j = 0; j < rest; ++j) {
      if (draw < masses[j]) return static_cast<int32_t>(i + j);
      draw -= masses[j];
    }
  }
  return -1;
}

// Words with x >= threshold in index order: their values, indices.
template <class T>
HWY_INLINE size_t Collect(const T* x, size_t n, float threshold, const float* block_max, Words& words) {
  const FloatTag d;
  const hn::RebindToSigned<FloatTag> di32;
  const size_t lanes = hn::Lanes(d);
  const auto least = hn::Set(d, threshold);
  size_t found = 0;
  for (size_t begin = 0, block = 0; begin < n; begin += kBlock, ++block) {
    if (!(block_max[block] >= threshold)) continue;
    const size_t end = begin + kBlock < n ? begin + kBlock : n;
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
HWY_INLINE void Rank(const Shape& shape, bool with_mass, Words& words) {
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

// A value that at least k words aren't below: the k-th largest block maximum. Where there are too few blocks,
// an estimate from one word in 16 that the caller checks.
template <class T>
HWY_INLINE float ThresholdOfCount(const T* x, size_t n, const float* block_max, size_t num_blocks, int64_t k,
                                  std::vector<float>& scratch) {
  auto rank = static_cast<size_t>(k);
  if (rank <= num_blocks) {
    scratch.assign(block_max, block_max + num_blocks);
  } else {
    const FloatTag d;
    const size_t lanes = hn::Lanes(d);
    constexpr size_t kSample = 16;
    if (n < 4096 || rank > n / 4) return -infinity();
    scratch.clear();
    for (size_t i = 0; i + lanes <= n; i += lanes * kSample) {
      HWY_ALIGN float values[HWY_MAX_BYTES / sizeof(float)];
      hn::Store(LoadFloats(d, x + i), d, values);
      scratch.insert(scratch.end(), values, values + lanes);
    }
    const float expected = static_cast<float>(rank) / kSample;
    rank = static_cast<size_t>(expected + 4.0f * __builtin_sqrtf(expected)) + 4;
    if (rank > scratch.size()) return -infinity();
  }
  std::nth_element(scratch.begin(), scratch.begin() + static_cast<std::ptrdiff_t>(rank - 1), scratch.end(),
                   std::greater<float>());
  return scratch[rank - 1];
}

// A value such that the words below it have about `spare` mass or less, estimated from one word in 64; the
// caller checks what it got.
template <class T>
HWY_INLINE float ThresholdOfMass(const T* x, size_t n, const Shape& shape, uint64_t spare) {
  const FloatTag d;
  const size_t lanes = hn::Lanes(d);
  constexpr size_t kSample = 64;
  if (n < 4096) return -infinity();
  constexpr int kBinsLog2 = 2;  // per octave of weight
  constexpr uint32_t kLowest = (127u - kMassBits) << kBinsLog2;
  constexpr size_t kBins = (kMassBits + 2) << kBinsLog2;
  float tail[kBins] = {};
  for (size_t i = 0; i + lanes <= n; i += lanes * kSample) {
    HWY_ALIGN float weights[HWY_MAX_BYTES / sizeof(float)];
    hn::Store(shape.Weight(d, LoadFloats(d, x + i)), d, weights);
    for (size_t j = 0; j < lanes; ++j) {
      const uint32_t bin = float_bits(weights[j]) >> (23 - kBinsLog2);
      if (bin >= kLowest && bin < kLowest + kBins) tail[bin - kLowest] += weights[j];
    }
  }
  const float allowed = 0.9f * mass_value(spare) / kSample;
  float below = 0.0f;
  size_t bin = 0;
  while (bin + 1 < kBins && below + tail[bin] <= allowed) below += tail[bin++];
  const float weight = bits_float((kLowest + static_cast<uint32_t>(bin)) << (23 - kBinsLog2));
  return shape.ValueOf(min(weight, 0.5f * shape.Weight(shape.max)));
}

// Collects words into scratch.words until the ranking's prefix that the filters keep lies in them, and finds
// its end. total: mass of all words; needed for top-p unless top-k goes first.
template <class T>
HWY_INLINE Cut KeptPrefix(const T* x, size_t n, const Shape& shape, const RowFilter& filter, uint64_t total,
                          RowScratch& scratch) {
  const bool by_mass = filter.top_p < 1.0f;
  const bool mass_of_kept = by_mass && filter.top_k > 0 && !filter.joint;  // top-p judges what top-k left
  const uint64_t goal = by_mass && !mass_of_kept ? mass_share(filter.top_p, total) : 0;
  const size_t num_blocks = (n + kBlock - 1) / kBlock;

  // Thresholds from the cheapest and highest down; the first whose words reach a goal serves. A peaked row's
  // nucleus is a handful of words, found with the block maxima alone.
  constexpr int64_t kFewWords = 64;
  const auto of_count = [&](int64_t k) HWY_ATTR {
    return ThresholdOfCount(x, n, scratch.block_max.data(), num_blocks, k, scratch.floats);
  };
  float thresholds[4];
  int attempts = 0;
  const auto attempt = [&](float threshold) {
    if (attempts == 0 || threshold < thresholds[attempts - 1]) thresholds[attempts++] = threshold;
  };
  if (filter.top_k > 0) {
    attempt(of_count(filter.top_k));
  } else if (num_blocks >= kFewWords) {
    attempt(of_count(kFewWords));
  }
  Words& words = scratch.words;
  for (int i = 0;; ++i) {
    if (i == attempts) {
      // Estimates of the mass are made when they are needed; words lighter than an equal share of the spare
      // mass can't be.
      if (i <= 1 && goal > 0) {
        attempt(ThresholdOfMass(x, n, shape, total - goal));
        attempt(shape.ValueOf(0.99f * mass_value(total - goal) / static_cast<float>(n)));
      }
      if (i == attempts) attempt(-infinity());
    }
    const float threshold = thresholds[i];
    Collect(x, n, threshold, scratch.block_max.data(), words);
    Rank(shape, true, words);
    const uint32_t low = ordered_key(threshold), high = ordered_key(shape.max);
    Cut cut = select_prefix(words.keys.data(), words.masses.data(), words.n, low, high, filter.top_k, goal,
                            scratch.select);
    if (cut.found && mass_of_kept) {
      cut = select_prefix(words.keys.data(), words.masses.data(), words.n, low, high, 0,
                          mass_share(filter.top_p, cut.mass), scratch.select);
    }
    if (cut.found || threshold == -infinity()) return cut;
  }
}

}  // namespace fulmen::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif
