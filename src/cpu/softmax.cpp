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
  HWY_INLINE FloatVec operator()(FloatTag d, FloatVec x) const {
    const auto scaled = hn::Mul(hn::Sub(x, max), inverse_temperature);
    return hn::IfThenZeroElse(hn::Lt(scaled, hn::Set(d, ExpConstants::kUnderflow)), ExpInRange(d, scaled));
  }
};

// Three passes: the second and third find the row in the cache. exp is computed twice rather than kept, so
// that the output is written once.
template <class T>
HWY_INLINE bool SoftmaxRow(const T* x, const T* next, float temperature, float* out, size_t n) {
  const FloatTag d;
  const size_t lanes = hn::Lanes(d);
  if (!(temperature > 0.0f && temperature < infinity())) return false;
  const float max = MaxOf(x, n);
  if (!(max > -infinity() && max < infinity())) return false;
  const Exponent exponent{hn::Set(d, max), hn::Set(d, inverse_temperature(temperature))};

  // Fixed point: in fp32 thousands of small terms would vanish beside a large one.
  MassSum sum;
  const auto add = [&](FloatVec v) HWY_ATTR {
    MassVec a, b = hn::Zero(MassTag());
    MassesOf(d, exponent(d, v), a, b);
    sum.a = hn::Add(sum.a, a);
    sum.b = hn::Add(sum.b, b);
  };
  size_t i = 0;
  for (; i + lanes <= n; i += lanes) {
    // This pass computes while the memory idles: it fetches the row whose turn is next on this thread.
    if (next != nullptr) __builtin_prefetch(next + i, 0, 2);
    add(LoadFloats(d, x + i));
  }
  if (i < n) add(LoadTail(d, x + i, n - i, -infinity()));
  const auto scale = hn::Set(d, 1.0f / mass_value(sum.Total()));

  for (i = 0; i + lanes <= n; i += lanes)
    StoreFloats(hn::Mul(exponent(d, LoadFloats(d, x + i)), scale), d, out + i);
  if (i < n) StoreTail(hn::Mul(exponent(d, LoadTail(d, x + i, n - i, 0.0f)), scale), d, out + i, n - i);
  return true;
}

void SoftmaxRows(const SoftmaxParams& p, int64_t first, int64_t last, int64_t num_threads) {
  WithStorage(p.dtype, [&](auto* type) HWY_ATTR {
    using T = std::remove_const_t<std::remove_pointer_t<decltype(type)>>;
    for (int64_t row = first; row < last; ++row) {
      const float temperature = p.temperatures != nullptr ? p.temperatures[row] : p.temperature;
      float* out = p.probs + row * p.probs_stride;
      const T* x = static_cast<const T*>(p.logits) + row * p.logits_stride;
      const int64_t after = row + 1 < last ? row + 1 : row + num_threads;
      const T* next =
          after < p.num_rows ? static_cast<const T*>(p.logits) + after * p.logits_stride : nullptr;
      if (SoftmaxRow(x, next, temperature, out, static_cast<size_t>(p.vocab))) continue;
      for (int32_t i = 0; i < p.vocab; ++i) out[i] = quiet_nan();
    }
  });
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
