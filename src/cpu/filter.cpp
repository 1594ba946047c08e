#include "cpu/ops.hpp"
#include "cpu/simd_targets.hpp"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/filter.cpp"
#include <hwy/foreach_target.h>

#include "cpu/distribution-inl.hpp"

HWY_BEFORE_NAMESPACE();
namespace fulmen::cpu::HWY_NAMESPACE {
namespace {

// Which words stay: before the cut in the ranking, and of weight at least floor.
struct Keep {
  float least;  // value at the cut
  int64_t ties;
  float floor;
};

// Calls write(i, values, kept) for every vector of the row; words equal to the value at the cut stay while
// ties last.
template <class T, class Write>
HWY_INLINE void ForKept(const T* x, size_t n, const Shape& shape, Keep keep, const Write& write) {
  const FloatTag d;
  const size_t lanes = hn::Lanes(d);
  const auto least = hn::Set(d, keep.least);
  const auto floor = hn::Set(d, keep.floor);
  for (size_t i = 0; i < n; i += lanes) {
    const size_t rest = n - i < lanes ? n - i : lanes;
    const auto v = rest == lanes ? LoadFloats(d, x + i) : LoadTail(d, x + i, rest, 0.0f);
    const auto weight = shape.Weight(d, v);
    auto kept = hn::Gt(v, least);
    const auto equal = hn::Eq(v, least);
    if (!hn::AllFalse(d, equal)) {
      HWY_ALIGN float flags[HWY_MAX_BYTES / sizeof(float)];
      hn::Store(hn::IfThenElseZero(equal, hn::Set(d, 1.0f)), d, flags);
      for (size_t j = 0; j < rest; ++j) {
        if (flags[j] != 0.0f && keep.ties-- <= 0) flags[j] = 0.0f;
      }
      kept = hn::Or(kept, hn::Gt(hn::Load(d, flags), hn::Zero(d)));
    }
    write(i, rest, v, weight, hn::And(kept, hn::Ge(weight, floor)));
  }
}

HWY_INLINE void Put(float* out, size_t i, size_t rest, FloatVec v) {
  const FloatTag d;
  if (rest == hn::Lanes(d)) {
    StoreFloats(v, d, out + i);
  } else {
    StoreTail(v, d, out + i, rest);
  }
}

template <class T>
HWY_INLINE bool FilterRow(const FilterOpParams& p, int64_t row, const T* x, float* out, RowScratch& scratch) {
  const FloatTag d;
  const auto n = static_cast<size_t>(p.vocab);
  const RowFilter filter = row_filter(p.filter, row, p.vocab, p.input_is_probs);
  if (filter.bad) return false;
  scratch.reserve(n);
  const float max = BlockMaxima(x, n, p.input_is_probs, scratch.block_max.data());
  if (!(max > -infinity() && max < infinity())) return false;
  const Shape shape{max, filter.inverse_temperature, p.input_is_probs};
  const uint64_t most = mass_of(shape.Weight(max));
  if (most == 0) return false;

  Keep keep{-infinity(), static_cast<int64_t>(n), 0.0f};
  if (filter.greedy) {
    keep = {max, 1, 0.0f};
  } else {
    if (filter.top_k > 0 || filter.top_p < 1.0f) {
      const bool needs_total = filter.top_p < 1.0f && (filter.top_k == 0 || filter.joint);
      const uint64_t total =
          needs_total ? BlockMasses<T>(x, n, shape, 0.0f, nullptr, scratch.block_mass.data()) : 0;
      const Cut cut = KeptPrefix(x, n, shape, filter, total, scratch);
      if (!cut.found) return false;
      keep.least = key_value(cut.key);
      keep.ties = cut.ties;
    }
    if (filter.min_p > 0.0f) keep.floor = mass_floor(mass_share(filter.min_p, most));
  }

  if (p.output_is_logits) {
    const auto outside = hn::Set(d, -infinity());
    ForKept(x, n, shape, keep, [&](size_t i, size_t rest, FloatVec v, FloatVec, auto kept) HWY_ATTR {
      Put(out, i, rest, hn::IfThenElse(kept, v, outside));
    });
    return true;
  }
  MassSum sum;
  ForKept(x, n, shape, keep, [&](size_t, size_t rest, FloatVec, FloatVec weight, auto kept) HWY_ATTR {
    MassVec a, b = hn::Zero(MassTag());
    MassesOf(d, hn::IfThenElseZero(hn::And(kept, hn::FirstN(d, rest)), weight), a, b);
    sum.a = hn::Add(sum.a, a);
    sum.b = hn::Add(sum.b, b);
  });
  const auto scale = hn::Set(d, 1.0f / mass_value(sum.Total()));
  ForKept(x, n, shape, keep, [&](size_t i, size_t rest, FloatVec, FloatVec weight, auto kept) HWY_ATTR {
    Put(out, i, rest, hn::IfThenElseZero(kept, hn::Mul(weight, scale)));
  });
  return true;
}

void FilterRows(const FilterOpParams& p, int64_t first, int64_t last) {
  RowScratch& scratch = RowScratch::of_thread();
  WithStorage(p.dtype, [&](auto* type) HWY_ATTR {
    using T = std::remove_const_t<std::remove_pointer_t<decltype(type)>>;
    for (int64_t row = first; row < last; ++row) {
      float* out = p.output + row * p.output_stride;
      if (!FilterRow(p, row, static_cast<const T*>(p.input) + row * p.input_stride, out, scratch)) {
        std::fill_n(out, p.vocab, quiet_nan());
      }
    }
  });
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
