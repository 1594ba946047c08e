#include "cpu/ops.hpp"
#include "cpu/simd_targets.hpp"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/softmax.cpp"
#include <hwy/foreach_target.h>

#include "cpu/mass-inl.hpp"
#include "cpu/scan-inl.hpp"

HWY_BEFORE_NAMESPACE();
namespace fulmen::cpu::HWY_NAMESPACE {
namespace {

struct Exponent {
  FloatVec max, inverse_temperature;

  HWY_INLINE void operator()(FloatTag d, Group& x) const {
    const auto least = hn::Set(d, ExpConstants::kUnderflow);
    hn::Mask<FloatTag> below[kGroup];
    FULMEN_EACH(i, kGroup) x.v[i] = hn::Mul(hn::Sub(x.v[i], max), inverse_temperature);
    FULMEN_EACH(i, kGroup) below[i] = hn::Lt(x.v[i], least);
    ExpInRange(d, x.v);
    FULMEN_EACH(i, kGroup) x.v[i] = hn::IfThenZeroElse(below[i], x.v[i]);
  }
  // Of one vector; the others of its group idle.
  HWY_INLINE FloatVec operator()(FloatTag d, FloatVec x) const {
    Group g{{x, max, max, max}};
    operator()(d, g);
    return g.v[0];
  }
};

// Three passes: the second and third find the row in the cache. exp is computed twice rather than kept, so
// that the output is written once.
template <bool kStream, class T>
HWY_INLINE bool SoftmaxRow(const T* x, const T* next, float temperature, float* out, size_t n) {
  const FloatTag d;
  const size_t lanes = hn::Lanes(d);
  if (!(temperature > 0.0f && temperature < infinity())) return false;
  const float max = MaxOf(x, n);
  if (!(max > -infinity() && max < infinity())) return false;
  const Exponent exponent{hn::Set(d, max), hn::Set(d, inverse_temperature(temperature))};

  // Fixed point: in fp32 thousands of small terms would vanish beside a large one.
  MassSum sum;
  size_t i = 0;
  for (; i + kGroup * lanes <= n; i += kGroup * lanes) {
    // This pass computes while the memory idles: it fetches the row whose turn is next on this thread.
    if (next != nullptr) {
      for (size_t j = 0; j < kGroup * lanes; j += 64 / sizeof(T)) __builtin_prefetch(next + i + j, 0, 2);
    }
    Group e = LoadGroup(d, x + i);
    exponent(d, e);
    FULMEN_EACH(j, kGroup) sum.Add(d, e.v[j]);
  }
  for (; i < n; i += lanes) {
    const size_t rest = n - i < lanes ? n - i : lanes;
    sum.Add(d, exponent(d, LoadTail(d, x + i, rest, -infinity())));
  }
  const auto scale = hn::Set(d, 1.0f / mass_value(sum.Total()));

  for (i = 0; i + kGroup * lanes <= n; i += kGroup * lanes) {
    Group e;
    FULMEN_EACH(j, kGroup) e.v[j] = LoadFloats(d, x + i + j * lanes);
    exponent(d, e);
    FULMEN_EACH(j, kGroup) e.v[j] = hn::Mul(e.v[j], scale);
    StoreGroup<kStream>(e, d, out + i);
  }
  for (; i < n; i += lanes) {
    const size_t rest = n - i < lanes ? n - i : lanes;
    StoreTail(hn::Mul(exponent(d, LoadTail(d, x + i, rest, 0.0f)), scale), d, out + i, rest);
  }
  return true;
}

void SoftmaxRows(const SoftmaxParams& p, int64_t first, int64_t last, int64_t num_threads) {
  const bool stream = static_cast<const void*>(p.probs) != p.logits &&
                      beyond_cache(p.num_rows * p.vocab * (dtype_bytes(p.dtype) + int64_t{4}));
  WithStorage(p.dtype, [&](auto* type) HWY_ATTR {
    using T = std::remove_const_t<std::remove_pointer_t<decltype(type)>>;
    for (int64_t row = first; row < last; ++row) {
      const float temperature = p.temperatures != nullptr ? p.temperatures[row] : p.temperature;
      float* out = p.probs + row * p.probs_stride;
      const T* x = static_cast<const T*>(p.logits) + row * p.logits_stride;
      const int64_t after = row + 1 < last ? row + 1 : row + num_threads;
      const T* next =
          after < p.num_rows ? static_cast<const T*>(p.logits) + after * p.logits_stride : nullptr;
      const auto n = static_cast<size_t>(p.vocab);
      const bool good = stream && MayStream(out) ? SoftmaxRow<true>(x, next, temperature, out, n)
                                                 : SoftmaxRow<false>(x, next, temperature, out, n);
      if (good) continue;
      for (int32_t i = 0; i < p.vocab; ++i) out[i] = quiet_nan();
    }
  });
  if (stream) hwy::FlushStream();
}

}  // namespace
}  // namespace fulmen::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace fulmen::cpu {

HWY_EXPORT(SoftmaxRows);

void softmax(const SoftmaxParams& params, const Pool& pool) {
  for_rows(pool, params.num_rows, params.vocab, [&](int64_t first, int64_t last) {
    HWY_DYNAMIC_DISPATCH(SoftmaxRows)(params, first, last, pool.num_threads());
  });
}

}  // namespace fulmen::cpu
#endif
