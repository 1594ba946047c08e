#include "cpu/ops.hpp"
#include "cpu/simd_targets.hpp"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/layer_norm.cpp"
#include <hwy/foreach_target.h>

#include "cpu/rows-inl.hpp"

HWY_BEFORE_NAMESPACE();
namespace fulmen::cpu::HWY_NAMESPACE {
namespace {

// Sum of (x - center)^power over a row in a fixed order, power 1 or 2; the tail's missing lanes add nothing.
template <int kPower, class T>
HWY_INLINE float SumOf(const T* x, size_t n, float center) {
  const FloatTag d;
  const size_t lanes = hn::Lanes(d);
  const auto c = hn::Set(d, center);
  Group sum{{hn::Zero(d), hn::Zero(d), hn::Zero(d), hn::Zero(d)}};
  size_t i = 0;
  for (; i + kGroup * lanes <= n; i += kGroup * lanes) {
    Group v = LoadGroup(d, x + i);
    FULMEN_EACH(j, kGroup) v.v[j] = hn::Sub(v.v[j], c);
    if (kPower == 2) FULMEN_EACH(j, kGroup) v.v[j] = hn::Mul(v.v[j], v.v[j]);
    FULMEN_EACH(j, kGroup) sum.v[j] = hn::Add(sum.v[j], v.v[j]);
  }
  for (; i < n; i += lanes) {
    const size_t rest = n - i < lanes ? n - i : lanes;
    const auto v = hn::Sub(LoadTail(d, x + i, rest, center), c);
    sum.v[1] = hn::Add(sum.v[1], kPower == 2 ? hn::Mul(v, v) : v);
  }
  return hn::GetLane(hn::SumOfLanes(d, hn::Add(hn::Add(sum.v[0], sum.v[1]), hn::Add(sum.v[2], sum.v[3]))));
}

template <bool kStream, class T, class W>
HWY_INLINE void LayerNormRow(const T* x, const W* weight, const W* bias, float eps, T* out, size_t n) {
  const FloatTag d;
  const size_t lanes = hn::Lanes(d);
  // Two passes: the variance as mean square minus squared mean would cancel.
  const float mean = SumOf<1>(x, n, 0.0f) / static_cast<float>(n);
  const float variance = SumOf<2>(x, n, mean) / static_cast<float>(n);
  const auto center = hn::Set(d, mean);
  const auto scale = hn::Set(d, 1.0f / __builtin_sqrtf(variance + eps));
  const Group zero{{hn::Zero(d), hn::Zero(d), hn::Zero(d), hn::Zero(d)}};
  size_t i = 0;
  for (; i + kGroup * lanes <= n; i += kGroup * lanes) {
    const Group w = LoadGroupLike<T>(d, weight + i);
    const Group b = bias != nullptr ? LoadGroupLike<T>(d, bias + i) : zero;
    Group v = LoadGroup(d, x + i);
    FULMEN_EACH(j, kGroup) v.v[j] = Fma(hn::Mul(hn::Sub(v.v[j], center), scale), w.v[j], b.v[j]);
    StoreGroup<kStream>(v, d, out + i);
  }
  for (; i < n; i += lanes) {
    const size_t rest = n - i < lanes ? n - i : lanes;
    const auto b = bias != nullptr ? LoadTail(d, bias + i, rest, 0.0f) : hn::Zero(d);
    const auto v = hn::Mul(hn::Sub(LoadTail(d, x + i, rest, 0.0f), center), scale);
    StoreTail(Fma(v, LoadTail(d, weight + i, rest, 0.0f), b), d, out + i, rest);
  }
}

template <class T, class W>
void LayerNormRowsOf(const LayerNormParams& p, int64_t first, int64_t last) {
  const bool stream =
      p.out != p.x && beyond_cache(2 * p.num_tokens * p.num_heads * p.hidden * dtype_bytes(p.dtype));
  const W* weight = static_cast<const W*>(p.weight);
  const W* bias = static_cast<const W*>(p.bias);
  const auto n = static_cast<size_t>(p.hidden);
  for (int64_t row = first; row < last; ++row) {
    const int64_t token = row / p.num_heads, head = row % p.num_heads;
    const T* x = static_cast<const T*>(p.x) + token * p.x_stride_token + head * p.x_stride_head;
    T* out = static_cast<T*>(p.out) + token * p.out_stride_token + head * p.out_stride_head;
    if (stream && MayStream(out)) {
      LayerNormRow<true>(x, weight, bias, p.eps, out, n);
    } else {
      LayerNormRow<false>(x, weight, bias, p.eps, out, n);
    }
  }
  if (stream) hwy::FlushStream();
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
