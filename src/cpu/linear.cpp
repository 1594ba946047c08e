#include "cpu/ops.hpp"
#include "cpu/simd_targets.hpp"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/linear.cpp"
#include <hwy/foreach_target.h>

#include <kernels/math/activation.hpp>
#include <kernels/math/convert.hpp>

#include <cmath>

#include "cpu/rows-inl.hpp"

HWY_BEFORE_NAMESPACE();
namespace fulmen::cpu::HWY_NAMESPACE {
namespace {

template <class T>
HWY_INLINE float Dot(const T* a, const T* b, size_t k) {
  const FloatTag d;
  const size_t lanes = hn::Lanes(d);
  auto sum0 = hn::Zero(d), sum1 = hn::Zero(d);
  size_t i = 0;
  for (; i + 2 * lanes <= k; i += 2 * lanes) {
    sum0 = Fma(LoadFloats(d, a + i), LoadFloats(d, b + i), sum0);
    sum1 = Fma(LoadFloats(d, a + i + lanes), LoadFloats(d, b + i + lanes), sum1);
  }
  for (; i < k; i += lanes) {
    const size_t rest = k - i < lanes ? k - i : lanes;
    const bool whole = rest == lanes;
    sum0 = Fma(whole ? LoadFloats(d, a + i) : LoadTail(d, a + i, rest, 0.0f),
               whole ? LoadFloats(d, b + i) : LoadTail(d, b + i, rest, 0.0f), sum0);
  }
  return hn::GetLane(hn::SumOfLanes(d, hn::Add(sum0, sum1)));
}

float Activate(Activation activation, float x) {
  return activation == Activation::silu ? silu(x) : activation == Activation::gelu ? gelu(x) : gelu_tanh(x);
}

// Outputs [first, last) of all rows: w is read once.
void LinearOutputs(const LinearParams& p, const float* scales, int64_t first, int64_t last) {
  WithStorage(p.dtype, [&](auto* type) HWY_ATTR {
    using T = std::remove_const_t<std::remove_pointer_t<decltype(type)>>;
    const auto k = static_cast<size_t>(p.k);
    const auto sum = [&](int64_t row, int64_t output) HWY_ATTR {
      const float s = scales[row] * Dot(static_cast<const T*>(p.x) + row * p.x_stride, static_cast<const T*>(p.w) + output * p.w_stride, k);
      return p.bias != nullptr ? s + to_float(static_cast<const T*>(p.bias)[output]) : s;
    };
    for (int64_t output = first; output < last; ++output) {
      for (int64_t row = 0; row < p.num_rows; ++row) {
        float y = sum(row, output);
        if (p.gated) y = Activate(p.activation, y) * sum(row, output + p.n / 2);
        if (p.residual != nullptr) y += to_float(static_cast<const T*>(p.residual)[row * p.residual_stride + output]);
        if (p.y_dtype == DType::f32) {
          static_cast<float*>(p.y)[row * p.y_stride + output] = y;
        } else {
          static_cast<T*>(p.y)[row * p.y_stride + output] = from_float<T>(y);
        }
      }
    }
  });
}

float RowScale(const LinearParams& p, int64_t row) {
  float scale = 1.0f;
  WithStorage(p.dtype, [&](auto* type) HWY_ATTR {
    using T = std::remove_const_t<std::remove_pointer_t<decltype(type)>>;
    const T* x = static_cast<const T*>(p.x) + row * p.x_stride;
    scale = 1.0f / std::sqrt(Dot(x, x, static_cast<size_t>(p.k)) / static_cast<float>(p.k) + p.rms_eps);
  });
  return scale;
}

}  // namespace
}  // namespace fulmen::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include <vector>

namespace fulmen::cpu {

HWY_EXPORT(LinearOutputs);
HWY_EXPORT(RowScale);

void linear(const LinearParams& p, const Pool& pool) {
  std::vector<float> scales(static_cast<size_t>(p.num_rows), 1.0f);
  for (int64_t row = 0; p.rms_eps > 0 && row < p.num_rows; ++row) {
    scales[static_cast<size_t>(row)] = HWY_DYNAMIC_DISPATCH(RowScale)(p, row);
  }
  for_rows(pool, p.gated ? p.n / 2 : p.n, static_cast<int64_t>(p.k) * (p.gated ? 2 : 1),
           [&](int64_t first, int64_t last) { HWY_DYNAMIC_DISPATCH(LinearOutputs)(p, scales.data(), first, last); });
}

}  // namespace fulmen::cpu
#endif
