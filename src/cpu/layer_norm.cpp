#include "cpu/ops.hpp"
#include "cpu/simd_targets.hpp"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/layer_norm.cpp"
#include <hwy/foreach_target.h>

#include "cpu/rows-inl.hpp"

HWY_BEFORE_NAMESPACE();
namespace fulmen::cpu::HWY_NAMESPACE {
namespace {

// Sum of f(x) over a row in a fixed order; the tail's missing lanes add nothing.
template <class T, class F>
HWY_INLINE float SumOf(const T* x, size_t n, const F& f) {
  const FloatTag d;
  const size_t lanes = hn::Lanes(d);
  FloatVec sum[4] = {hn::Zero(d), hn::Zero(d), hn::Zero(d), hn::Zero(d)};
  size_t i = 0;
  for (; i + 4 * lanes <= n; i += 4 * lanes) {
    sum[0] = hn::Add(sum[0], f(LoadFloats(d, x + i)));
    sum[1] = hn::Add(sum[1], f(LoadFloats(d, x + i + lanes)));
    sum[2] = hn::Add(sum[2], f(LoadFloats(d, x + i + 2 * lanes)));
    sum[3] = hn::Add(sum[3], f(LoadFloats(d, x + i + 3 * lanes)));
  }
  for (; i + lanes <= n; i += lanes) sum[0] = hn::Add(sum[0], f(LoadFloats(d, x + i)));
  if (i < n) {
    const auto tail = f(LoadTail(d, x + i, n - i, 0.0f));
    sum[1] = hn::Add(sum[1], hn::IfThenElseZero(hn::FirstN(d, n - i), tail));
  }
  return hn::GetLane(hn::SumOfLanes(d, hn::Add(hn::Add(sum[0], sum[1]), hn::Add(sum[2], sum[3]))));
}

template <class T, class W>
HWY_INLINE void LayerNormRow(const T* x, const W* weight, const W* bias, float eps, T* out, size_t n) {
  const FloatTag d;
  const size_t lanes = hn::Lanes(d);
  // Two passes: the variance as mean square minus squared mean would cancel.
  const float mean = SumOf(x, n, [](FloatVec v) HWY_ATTR { return v; }) / static_cast<float>(n);
  const auto center = hn::Set(d, mean);
  const float variance = SumOf(x, n,
                               [&](FloatVec v) HWY_ATTR {
                                 const auto c = hn::Sub(v, center);
                                 return hn::Mul(c, c);
                               }) /
                         static_cast<float>(n);
  const auto scale = hn::Set(d, 1.0f / __builtin_sqrtf(variance + eps));
  size_t i = 0;
  for (; i + lanes <= n; i += lanes) {
    const auto b = bias != nullptr ? LoadFloats(d, bias + i) : hn::Zero(d);
    const auto v = hn::Mul(hn::Sub(LoadFloats(d, x + i), center), scale);
    StoreFloats(Fma(v, LoadFloats(d, weight + i), b), d, out + i);
  }
  if (i < n) {
    const auto b = bias != nullptr ? LoadTail(d, bias + i, n - i, 0.0f) : hn::Zero(d);
    const auto v = hn::Mul(hn::Sub(LoadTail(d, x + i, n - i, 0.0f), center), scale);
    StoreTail(Fma(v, LoadTail(d, weight + i, n - i, 0.0f), b), d, out + i, n - i);
  }
}

template <class T, class W>
void LayerNormRowsOf(const LayerNormParams& p, int64_t first, int64_t last) {
  for (int64_t row = first; row < last; ++row) {
    const int64_t token = row / p.num_heads, head = row % p.num_heads;
    LayerNormRow(static_cast<const T*>(p.x) + token * p.x_stride_token + head * p.x_stride_head,
                 static_cast<const W*>(p.weight), static_cast<const W*>(p.bias), p.eps,
                 static_cast<T*>(p.out) + token * p.out_stride_token + head * p.out_stride_head,
                 static_cast<size_t>(p.hidden));
  }
}

void LayerNormRows(const LayerNormParams& p, int64_t first, int64_t last) {
  WithStorage(p.dtype, [&](auto* type) {
    using T = std::remove_const_t<std::remove_pointer_t<decltype(type)>>;
    if (p.weight_dtype == DType::f32) {
      LayerNormRowsOf<T, float>(p, first, last);
    } else {
      LayerNormRowsOf<T, T>(p, first, last);
    }
  });
}

}  // namespace
}  // namespace fulmen::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace fulmen::cpu {

HWY_EXPORT(LayerNormRows);

void layer_norm(const LayerNormParams& params, const Pool& pool) {
  for_rows(pool, params.num_tokens * params.num_heads, params.hidden,
           [&](int64_t first, int64_t last) { HWY_DYNAMIC_DISPATCH(LayerNormRows)(params, first, last); });
}

}  // namespace fulmen::cpu
#endif
