#include "cpu/ops.hpp"
#include "cpu/simd_targets.hpp"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/rms_norm.cpp"
#include <hwy/foreach_target.h>

#include "cpu/rows-inl.hpp"

HWY_BEFORE_NAMESPACE();
namespace fulmen::cpu::HWY_NAMESPACE {
namespace {

// residual += x, rounded; returns the sum of squares of what is normalised. Four partial sums in a fixed
// order.
template <class T>
HWY_INLINE float SumSquares(const T* x, T* residual, size_t n) {
  const FloatTag d;
  const size_t lanes = hn::Lanes(d);
  FloatVec sum[4] = {hn::Zero(d), hn::Zero(d), hn::Zero(d), hn::Zero(d)};
  const auto step = [&](size_t i, FloatVec& into) HWY_ATTR {
    auto v = LoadFloats(d, x + i);
    if (residual != nullptr) {
      v = hn::Add(v, LoadFloats(d, residual + i));
      StoreFloats(v, d, residual + i);
      v = RoundTo<T>(v, d);
    }
    into = Fma(v, v, into);
  };
  size_t i = 0;
  for (; i + 4 * lanes <= n; i += 4 * lanes) {
    step(i, sum[0]);
    step(i + lanes, sum[1]);
    step(i + 2 * lanes, sum[2]);
    step(i + 3 * lanes, sum[3]);
  }
  for (; i + lanes <= n; i += lanes) step(i, sum[0]);
  if (i < n) {
    auto v = LoadTail(d, x + i, n - i, 0.0f);
    if (residual != nullptr) {
      v = hn::Add(v, LoadTail(d, residual + i, n - i, 0.0f));
      StoreTail(v, d, residual + i, n - i);
      v = RoundTo<T>(v, d);
    }
    sum[1] = Fma(v, v, sum[1]);
  }
  const auto total = hn::Add(hn::Add(sum[0], sum[1]), hn::Add(sum[2], sum[3]));
  return hn::GetLane(hn::SumOfLanes(d, total));
}

template <class T, class W>
HWY_INLINE void Scale(const T* x, const W* weight, float weight_offset, float scale, T* out, size_t n) {
  const FloatTag d;
  const size_t lanes = hn::Lanes(d);
  const auto s = hn::Set(d, scale);
  const auto offset = hn::Set(d, weight_offset);
  size_t i = 0;
  for (; i + lanes <= n; i += lanes) {
    const auto w = hn::Add(LoadFloats(d, weight + i), offset);
    StoreFloats(hn::Mul(hn::Mul(LoadFloats(d, x + i), s), w), d, out + i);
  }
  if (i < n) {
    const auto w = hn::Add(LoadTail(d, weight + i, n - i, 0.0f), offset);
    StoreTail(hn::Mul(hn::Mul(LoadTail(d, x + i, n - i, 0.0f), s), w), d, out + i, n - i);
  }
}

template <class T, class W>
void RmsNormRowsOf(const RmsNormParams& p, int64_t first, int64_t last) {
  const auto n = static_cast<size_t>(p.hidden);
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
    Scale(residual != nullptr ? residual : x, static_cast<const W*>(p.weight), p.weight_offset, scale, out,
          n);
  }
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
