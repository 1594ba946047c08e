#include "cpu/ops.hpp"
#include "cpu/simd_targets.hpp"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/sample.cpp"
#include <hwy/foreach_target.h>

#include "cpu/distribution-inl.hpp"

HWY_BEFORE_NAMESPACE();
namespace fulmen::cpu::HWY_NAMESPACE {
namespace {

struct Drawn {
  int32_t token = -1;
  float logprob = quiet_nan();
};

// Of the words before the cut and of mass at least `floor`, the one that the draw picks. The others lose
// their mass.
HWY_INLINE int32_t DrawPrefix(const SampleParams& p, int64_t row, Words& words, const Cut& cut,
                              uint64_t floor) {
  int64_t ties = cut.ties;
  uint64_t kept = 0;
  for (size_t i = 0; i < words.n; ++i) {
    const uint32_t key = words.keys[i];
    bool stays = key > cut.key;
    if (__builtin_expect(key == cut.key, 0)) stays = ties-- > 0;
    const uint64_t mass = words.masses[i] >= floor && stays ? words.masses[i] : 0;
    words.masses[i] = mass;
    kept += mass;
  }
  uint64_t draw = draw_of(p, row, kept);
  constexpr size_t kStretch = 64;
  for (size_t begin = 0; begin < words.n; begin += kStretch) {
    const size_t end = std::min(begin + kStretch, words.n);
    uint64_t sum = 0;
    for (size_t i = begin; i < end; ++i) sum += words.masses[i];
    if (draw >= sum) {
      draw -= sum;
      continue;
    }
    for (size_t i = begin; i < end; ++i) {
      if (draw < words.masses[i]) return words.indices[i];
      draw -= words.masses[i];
    }
  }
  return -1;
}

template <class T>
HWY_INLINE Drawn DrawRow(const SampleParams& p, int64_t row, const T* x, const T* next, RowScratch& scratch) {
  const auto n = static_cast<size_t>(p.vocab);
  const RowFilter filter = row_filter(p.filter, row, p.vocab, p.input_is_probs);
  if (filter.bad) return {};
  scratch.reserve(n);
  Drawn drawn;
  if (filter.greedy && p.logprob == nullptr) {
    drawn.token = ArgmaxOf(x, n);
    return drawn;
  }
  const float max = BlockMaxima(x, n, p.input_is_probs, scratch.block_max.data(), scratch.lane_max.data());
  if (max != max) return {};
  if (filter.greedy) {
    size_t block = 0;
    while (scratch.block_max[block] < max) ++block;
    drawn.token =
        static_cast<int32_t>(block * kBlock + FindValue(x + block * kBlock, n - block * kBlock, max));
  }
  if (!(max > -infinity() && max < infinity())) return drawn;  // no distribution

  const Shape shape{max, filter.inverse_temperature, p.input_is_probs};
  const uint64_t most = mass_of(shape.Weight(max));
  if (most == 0) return drawn;
  const uint64_t floor = filter.min_p > 0.0f ? mass_share(filter.min_p, most) : 0;
  const bool ranked = filter.top_k > 0 || filter.top_p < 1.0f;
  const bool nucleus = filter.top_k == 0 && filter.top_p < 1.0f;
  const bool plain = !ranked && !filter.greedy && floor == 0;
  uint64_t total = 0;
  Cut cut;
  if (nucleus && !filter.greedy) {
    total = FindNucleus(x, n, shape, filter.top_p, next, scratch, cut);
  } else if (plain || (filter.top_p < 1.0f && filter.joint) || p.logprob != nullptr) {
    total = BlockMasses(x, n, shape, 0.0f, next, scratch);
  }
  const bool all_of_cut = cut.found && mass_of(shape.Weight(key_value(cut.key))) >= floor;
  if (filter.greedy) {
    // the word is known
  } else if (all_of_cut) {
    const Keep keep{key_value(cut.key), cut.ties, 0.0f};
    drawn.token = FindDraw(x, n, shape, keep, scratch, draw_of(p, row, cut.mass));
  } else if (ranked && !cut.found) {
    cut = KeptPrefix(x, n, shape, filter, total, next, scratch);
    if (cut.found) drawn.token = DrawPrefix(p, row, scratch.words, cut, floor);
  } else {  // min-p alone decides: whatever has the mass comes before a cut that hasn't
    const float weight_floor = mass_floor(floor);
    scratch.kept_ties.clear();
    const uint64_t kept = plain ? total : BlockMasses(x, n, shape, weight_floor, next, scratch);
    const Keep keep{-infinity(), static_cast<int64_t>(n), weight_floor};
    drawn.token = FindDraw(x, n, shape, keep, scratch, draw_of(p, row, kept));
  }
  if (p.logprob != nullptr && drawn.token >= 0) {
    const float value = hn::GetLane(LoadTail(FloatTag(), x + drawn.token, 1, 0.0f));
    const float log_weight = p.input_is_probs ? exact_log(value) : (value - max) * filter.inverse_temperature;
    drawn.logprob = log_weight - exact_log(mass_value(total));
  }
  return drawn;
}

void SampleRows(const SampleParams& p, int64_t first, int64_t last, int64_t num_threads) {
  RowScratch& scratch = RowScratch::of_thread();
  WithStorage(p.dtype, [&](auto* type) HWY_ATTR {
    using T = std::remove_const_t<std::remove_pointer_t<decltype(type)>>;
    const auto input_row = [&](int64_t row) -> const T* {
      const int64_t from = row < p.num_rows ? (p.row_ids != nullptr ? p.row_ids[row] : row) : -1;
      if (from < 0 || from >= p.num_input_rows) return nullptr;
      return static_cast<const T*>(p.input) + from * p.input_stride;
    };
    for (int64_t row = first; row < last; ++row) {
      const T* x = input_row(row);
      // The others take the rows between.
      const T* next = input_row(row + 1 < last ? row + 1 : row + num_threads);
      const Drawn drawn = x != nullptr ? DrawRow(p, row, x, next, scratch) : Drawn{};
      p.tokens[row] = drawn.token;
      if (p.logprob != nullptr) p.logprob[row] = drawn.logprob;
    }
  });
}

}  // namespace
}  // namespace fulmen::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace fulmen::cpu {

HWY_EXPORT(SampleRows);

void sample(const SampleParams& params, const Pool& pool) {
  for_rows(pool, params.num_rows, params.vocab, [&](int64_t first, int64_t last) {
    HWY_DYNAMIC_DISPATCH(SampleRows)(params, first, last, pool.num_threads());
  });
}

}  // namespace fulmen::cpu
#endif
