#include "cpu/ops.hpp"
#include "cpu/simd_targets.hpp"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/rms_norm.cpp"
#include <hwy/foreach_target.h>

#include "cpu/rows-inl.hpp"

HWY_BEFORE_NAMESPACE();
namespace fulmen::cpu::HWY_NAMESPACE {
namespace {

// residual += x, rounded; returns the sum of squares of what is normalised. Four partial sums in a fixed order.
template <class T>
HWY_INLINE float SumSquares(const T* x, T* residual, size_t n) {
  const FloatTag d;
  const size_t lanes = hn::Lanes(d);
  Group sum{{hn::Zero(d), hn::Zero(d), hn::Zero(d), hn::Zero(d)}};
  size_t i = 0;
  for (; i + kGroup * lanes <= n; i += kGroup * lanes) {
    Group v = LoadGroup(d, x + i);
    if (residual != nullptr) {
      const Group r = LoadGroup(d, residual + i);
      FULMEN_EACH(j, kGroup) v.v[j] = hn::Add(v.v[j], r.v[j]);
      StoreGroup<false>(v, d, residual + i);
      FULMEN_EACH(j, kGroup) v.v[j] = RoundTo<T>(v.v[j], d);
    }
    FULMEN_EACH(j, kGroup) sum.v[j] = Fma(v.v[j], v.v[j], sum.v[j]);
  }
  for (; i < n; i += lanes) {
    const size_t rest = n - i < lanes ? n - i : lanes;
    auto v = LoadTail(d, x + i, rest, 0.0f);
    if (residual != nullptr) {
      v = hn::Add(v, LoadTail(d, residual + i, rest, 0.0f));
      StoreTail(v, d, residual + i, rest);
      v = RoundTo<T>(v, d);
    }
    sum.v[1] = Fma(v, v, sum.v[1]);
  }
  const auto total = hn::Add(hn::Add(sum.v[0], sum.v[1]), hn::Add(sum.v[2], sum.v[3]));
  return hn::GetLane(hn::SumOfLanes(d, total));
}

// Weights are fp32, or of x's type: then a group of theirs has the order of x's.
template <bool kStream, class T, class W>
HWY_INLINE void Scale(const T* x, const W* weight, float weight_offset, float scale, T* out, size_t n) {
  const FloatTag d;
  const size_t lanes = hn::Lanes(d);
  const auto s = hn::Set(d, scale);
  const auto offset = hn::Set(d, weight_offset);
  size_t i = 0;
  for (; i + kGroup * lanes <= n; i += kGroup * lanes) {
    const Group w = LoadGroupLike<T>(d, weight + i);
    Group v = LoadGroup(d, x + i);
    FULMEN_EACH(j, kGroup) v.v[j] = hn::Mul(hn::Mul(v.v[j], s), hn::Add(w.v[j], offset));
    StoreGroup<kStream>(v, d, out + i);
  }
  for (; i < n; i += lanes) {
    const size_t rest = n - i < lanes ? n - i : lanes;
    const auto w = hn::Add(LoadTail(d, weight + i, rest, 0.0f), offset);
    StoreTail(hn::Mul(hn::Mul(LoadTail(d, x + i, rest, 0.0f), s), w), d, out + i, rest);
  }
}

template <class T, class W>
void RmsNormRowsOf(const RmsNormParams& p, int64_t first, int64_t last) {
  const auto n = static_cast<size_t>(p.hidden);
  // In place the line is in the cache already.
  const bool stream = p.out != p.x && p.out != p.residual &&
                      beyond_cache(2 * p.num_tokens * p.num_heads * p.hidden * dtype_bytes(p.dtype));
  for (int64_t row = first; row < last; ++row) {
    const int64_t token = row / p.num_heads, head = row % p.num_heads;
    const T* x = static_cast<const T*>(p.x) + token * p.x_stride_token + head * p.x_stride_head;
    T* residual = nullptr;
    if (p.residual != nullptr) {
      residual =
          static_cast<T*>(p.residual) + token * p.residual_stride_token + head * p.residual_stride_head;
    }
    T* out = static_cast<T*>(p.out) + token * p.out_stride_token + head * p.out_stride_head;
    const float mean = SumSquares(x, residual, n) / static_cast<float>(p.hidden);
    const float scale = 1.0f / __builtin_sqrtf(mean + p.eps);
    const T* from = residual != nullptr ? residual : x;
    const W* weight = static_cast<const W*>(p.weight);
    if (stream && MayStream(out)) {
      Scale<true>(from, weight, p.weight_offset, scale, out, n);
    } else {
      Scale<false>(from, weight, p.weight_offset, scale, out, n);
    }
  }
  if (stream) hwy::FlushStream();
}

void RmsNormRows(const RmsNormParams& p, int64_t first, int64_t last) {
  WithStorage(p.dtype, [&](auto* type) {
    using T = std::remove_const_t<std::remove_pointer_t<decltype(type)>>;
    if (p.weight_dtype == DType::f32) {
      RmsNormRowsOf<T, float>(p, first, last);
    } else {
      RmsNormRowsOf<T, T>(p, first, last);
    }
  });
}

}  // namespace
}  // namespace fulmen::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace fulmen::cpu {

HWY_EXPORT(RmsNormRows);

void rms_norm(const RmsNormParams& params, const Pool& pool) {
  for_rows(pool, params.num_tokens * params.num_heads, params.hidden,
           [&](int64_t first, int64_t last) { HWY_DYNAMIC_DISPATCH(RmsNormRows)(params, first, last); });
}

}  // namespace fulmen::cpu
#endif
