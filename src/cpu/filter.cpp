#include "cpu/ops.hpp"
#include "cpu/simd_targets.hpp"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/filter.cpp"
#include <hwy/foreach_target.h>

#include "cpu/distribution-inl.hpp"

HWY_BEFORE_NAMESPACE();
namespace fulmen::cpu::HWY_NAMESPACE {
namespace {

struct KeptGroup {
  Group values, weights;  // weights of words that don't stay are 0
  hn::Mask<FloatTag> stays[kGroup];
};

// Calls write(i, group) for every group of the row in index order; words equal to the value at the cut stay while
// ties last.
template <class T, class Write>
HWY_INLINE void ForKept(const T* x, size_t n, const Shape& shape, Keep keep, const Write& write) {
  const FloatTag d;
  const size_t lanes = hn::Lanes(d);
  const auto least = hn::Set(d, keep.least);
  const auto floor = hn::Set(d, keep.floor);
  for (size_t i = 0; i < n; i += kGroup * lanes) {
    KeptGroup g;
    bool any = false;
    FULMEN_EACH(j, kGroup) {
      const size_t at = i + j * lanes, rest = at >= n ? 0 : n - at < lanes ? n - at : lanes;
      g.values.v[j] = LoadTail(d, x + at, rest, 0.0f);
      g.stays[j] = hn::And(hn::Gt(g.values.v[j], least), hn::FirstN(d, rest));
      const auto equal = hn::And(hn::Eq(g.values.v[j], least), hn::FirstN(d, rest));
      if (__builtin_expect(!hn::AllFalse(d, equal), 0)) {
        HWY_ALIGN float flags[HWY_MAX_BYTES / sizeof(float)];
        hn::Store(hn::IfThenElseZero(equal, hn::Set(d, 1.0f)), d, flags);
        for (size_t l = 0; l < rest; ++l) {
          if (flags[l] != 0.0f && keep.ties-- <= 0) flags[l] = 0.0f;
        }
        g.stays[j] = hn::Or(g.stays[j], hn::Gt(hn::Load(d, flags), hn::Zero(d)));
      }
      any = any || !hn::AllFalse(d, g.stays[j]);
    }
    g.weights = g.values;
    if (any) shape.Weigh(d, g.weights);
    FULMEN_EACH(j, kGroup) {
      g.stays[j] = hn::And(g.stays[j], hn::Ge(g.weights.v[j], floor));
      g.weights.v[j] = hn::IfThenElseZero(g.stays[j], g.weights.v[j]);
    }
    write(i, g);
  }
}

template <bool kStream>
HWY_INLINE void Put(const Group& g, float* out, size_t i, size_t n) {
  const FloatTag d;
  const size_t lanes = hn::Lanes(d);
  if (i + kGroup * lanes <= n) return StoreGroup<kStream>(g, d, out + i);
  for (size_t j = 0; i < n; ++j, i += lanes) StoreTail(g.v[j], d, out + i, n - i < lanes ? n - i : lanes);
}

template <bool kStream, class T>
bool FilterRow(const FilterOpParams& p, int64_t row, const T* x, float* out, RowScratch& scratch) {
  const FloatTag d;
  const auto n = static_cast<size_t>(p.vocab);
  const RowFilter filter = row_filter(p.filter, row, p.vocab, p.input_is_probs);
  if (filter.bad) return false;
  scratch.reserve(n);
  const float max = BlockMaxima(x, n, p.input_is_probs, scratch.block_max.data(), scratch.lane_max.data());
  if (!(max > -infinity() && max < infinity())) return false;
  const Shape shape{max, filter.inverse_temperature, p.input_is_probs};
  const uint64_t most = mass_of(shape.Weight(max));
  if (most == 0) return false;

  Keep keep{-infinity(), static_cast<int64_t>(n), 0.0f};
  uint64_t kept = 0;  // mass of words that stay, where the filters tell
  if (filter.greedy) {
    keep = {max, 1, 0.0f};
  } else {
    if (filter.top_k > 0 || filter.top_p < 1.0f) {
      const T* const no_next = nullptr;
      uint64_t total = 0;
      Cut cut;
      if (filter.top_k == 0) {
        total = FindNucleus(x, n, shape, filter.top_p, no_next, scratch, cut);
      } else if (filter.top_p < 1.0f && filter.joint) {
        total = BlockMasses(x, n, shape, 0.0f, no_next, scratch);
      }
      if (!cut.found) cut = KeptPrefix(x, n, shape, filter, total, no_next, scratch);
      if (!cut.found) return false;
      kept = cut.mass;
      keep.least = key_value(cut.key);
      keep.ties = cut.ties;
    }
    if (filter.min_p > 0.0f) {
      keep.floor = mass_floor(mass_share(filter.min_p, most));
      kept = 0;
    }
  }

  if (p.output_is_logits) {
    const auto outside = hn::Set(d, -infinity());
    ForKept(x, n, shape, keep, [&](size_t i, KeptGroup& g) HWY_ATTR {
      FULMEN_EACH(j, kGroup) g.values.v[j] = hn::IfThenElse(g.stays[j], g.values.v[j], outside);
      Put<kStream>(g.values, out, i, n);
    });
    return true;
  }
  if (kept == 0) {
    MassSum sum;
    ForKept(x, n, shape, keep, [&](size_t, KeptGroup& g) HWY_ATTR {
      FULMEN_EACH(j, kGroup) sum.Add(d, g.weights.v[j]);
    });
    kept = sum.Total();
  }
  const auto scale = hn::Set(d, 1.0f / mass_value(kept));
  ForKept(x, n, shape, keep, [&](size_t i, KeptGroup& g) HWY_ATTR {
    FULMEN_EACH(j, kGroup) g.weights.v[j] = hn::Mul(g.weights.v[j], scale);
    Put<kStream>(g.weights, out, i, n);
  });
  return true;
}

void FilterRows(const FilterOpParams& p, int64_t first, int64_t last) {
  RowScratch& scratch = RowScratch::of_thread();
  const bool stream = static_cast<const void*>(p.output) != p.input &&
                      beyond_cache(p.num_rows * p.vocab * (dtype_bytes(p.dtype) + int64_t{4}));
  WithStorage(p.dtype, [&](auto* type) HWY_ATTR {
    using T = std::remove_const_t<std::remove_pointer_t<decltype(type)>>;
    for (int64_t row = first; row < last; ++row) {
      float* out = p.output + row * p.output_stride;
      const T* x = static_cast<const T*>(p.input) + row * p.input_stride;
      const bool good = stream && MayStream(out) ? FilterRow<true>(p, row, x, out, scratch)
                                                 : FilterRow<false>(p, row, x, out, scratch);
      if (!good) std::fill_n(out, p.vocab, quiet_nan());
    }
  });
  if (stream) hwy::FlushStream();
}

}  // namespace
}  // namespace fulmen::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace fulmen::cpu {

HWY_EXPORT(FilterRows);

void filter(const FilterOpParams& params, const Pool& pool) {
  for_rows(pool, params.num_rows, params.vocab,
           [&](int64_t first, int64_t last) { HWY_DYNAMIC_DISPATCH(FilterRows)(params, first, last); });
}

}  // namespace fulmen::cpu
#endif
