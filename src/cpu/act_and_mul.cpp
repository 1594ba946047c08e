#include "cpu/ops.hpp"
#include "cpu/simd_targets.hpp"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/act_and_mul.cpp"
#include <hwy/foreach_target.h>

#include <kernels/math/activation.hpp>

#include "cpu/rows-inl.hpp"

HWY_BEFORE_NAMESPACE();
namespace fulmen::cpu::HWY_NAMESPACE {
namespace {

using Constants = ActivationConstants;

// exp(t) for gates, 1 or 2 ulp: past its range the gate is 0 or 1 anyway, and a NaN comes back through the product with x.
HWY_INLINE void GateExp(FloatTag d, Group& t) {
  const auto most = hn::Set(d, -ExpConstants::kUnderflow);
#if HWY_TARGET == HWY_AVX3
  constexpr int kSmallerMagnitude = 0b0010;  // of two, with the sign of the first
  FULMEN_EACH(i, kGroup) t.v[i] = FloatVec{_mm512_range_ps(t.v[i].raw, most.raw, kSmallerMagnitude)};
#else
  FULMEN_EACH(i, kGroup) t.v[i] = hn::Min(hn::Max(t.v[i], hn::Neg(most)), most);
#endif
  ExpInRange(d, t.v);
}

// x / (1 + e), 0 <= e <= exp(87): the CPU's approximation of 1 / (1 + e), refined once, is within 2 ulp.
HWY_INLINE FloatVec Gated([[maybe_unused]] FloatTag d, FloatVec x, FloatVec e) {
  const auto below = hn::Add(hn::Set(d, 1.0f), e);
#if HWY_TARGET == HWY_AVX3
  const auto r = FloatVec{_mm512_rcp14_ps(below.raw)};
  return hn::Mul(x, Fma(hn::NegMulAdd(below, r, hn::Set(d, 1.0f)), r, r));
#else
  return hn::Div(x, below);
#endif
}

// The vector forms of kernels/math/activation.hpp.
template <Activation kActivation>
HWY_INLINE Group Activate(FloatTag d, const Group& x) {
  Group t;
  const auto one = hn::Set(d, 1.0f);
  if constexpr (kActivation == Activation::silu) {
    FULMEN_EACH(i, kGroup) t.v[i] = hn::Neg(x.v[i]);
    GateExp(d, t);
    FULMEN_EACH(i, kGroup) t.v[i] = Gated(d, x.v[i], t.v[i]);
  } else if constexpr (kActivation == Activation::gelu_tanh) {
    const auto cubic = hn::Set(d, Constants::kGeluCubic), scale = hn::Set(d, -Constants::kGeluScale);
    FULMEN_EACH(i, kGroup) {
      t.v[i] = hn::Mul(scale, Fma(cubic, hn::Mul(hn::Mul(x.v[i], x.v[i]), x.v[i]), x.v[i]));
    }
    GateExp(d, t);
    FULMEN_EACH(i, kGroup) t.v[i] = Gated(d, x.v[i], t.v[i]);
  } else {
    Group h, tail;
    FULMEN_EACH(i, kGroup) t.v[i] = hn::Min(hn::Abs(x.v[i]), hn::Set(d, 16.0f));
    FULMEN_EACH(i, kGroup) h.v[i] = hn::Set(d, Constants::kPhi[7]);
#pragma GCC unroll 8
    for (int k = 6; k >= 0; --k) {
      FULMEN_EACH(i, kGroup) h.v[i] = Fma(h.v[i], t.v[i], hn::Set(d, Constants::kPhi[k]));
    }
    FULMEN_EACH(i, kGroup) tail.v[i] = hn::Mul(hn::Neg(t.v[i]), h.v[i]);
    GateExp(d, tail);
    FULMEN_EACH(i, kGroup) {
      const auto half = hn::Mul(hn::Set(d, 0.5f), tail.v[i]);
      const auto phi = hn::IfThenElse(hn::Lt(x.v[i], hn::Zero(d)), half, hn::Sub(one, half));
      t.v[i] = hn::IfThenElse(hn::IsNaN(x.v[i]), x.v[i], hn::Mul(x.v[i], phi));
    }
  }
  return t;
}

template <Activation kActivation>
HWY_INLINE Group ActAndMul(FloatTag d, const Group& gate, const Group& up) {
  Group y = Activate<kActivation>(d, gate);
  FULMEN_EACH(i, kGroup) y.v[i] = hn::Mul(y.v[i], up.v[i]);
  return y;
}

template <Activation kActivation, bool kStream, class T>
HWY_INLINE void Row(const T* x, T* out, size_t width) {
  const FloatTag d;
  const size_t lanes = hn::Lanes(d);
  const T* gate = x;
  const T* up = x + width;
  size_t i = 0;
  for (; i + kGroup * lanes <= width; i += kGroup * lanes) {
    const Group y = ActAndMul<kActivation>(d, LoadGroup(d, gate + i), LoadGroup(d, up + i));
    StoreGroup<kStream>(y, d, out + i);
  }
  for (; i < width; i += lanes) {
    const size_t rest = width - i < lanes ? width - i : lanes;
    const auto zero = hn::Zero(d);
    const Group a{{LoadTail(d, gate + i, rest, 0.0f), zero, zero, zero}};
    const Group b{{LoadTail(d, up + i, rest, 0.0f), zero, zero, zero}};
    StoreTail(ActAndMul<kActivation>(d, a, b).v[0], d, out + i, rest);
  }
}

template <Activation kActivation>
void Rows(const ActAndMulParams& p, int64_t first, int64_t last) {
  const bool stream = beyond_cache(3 * p.num_tokens * p.width * dtype_bytes(p.dtype));
  WithStorage(p.dtype, [&](auto* type) HWY_ATTR {
    using T = std::remove_const_t<std::remove_pointer_t<decltype(type)>>;
    for (int64_t row = first; row < last; ++row) {
      const T* x = static_cast<const T*>(p.x) + row * p.x_stride;
      T* out = static_cast<T*>(p.out) + row * p.out_stride;
      if (stream && MayStream(out)) {
        Row<kActivation, true>(x, out, static_cast<size_t>(p.width));
      } else {
        Row<kActivation, false>(x, out, static_cast<size_t>(p.width));
      }
    }
  });
  if (stream) hwy::FlushStream();
}

void ActAndMulRows(const ActAndMulParams& p, int64_t first, int64_t last) {
  if (p.activation == Activation::silu) return Rows<Activation::silu>(p, first, last);
  if (p.activation == Activation::gelu) return Rows<Activation::gelu>(p, first, last);
  return Rows<Activation::gelu_tanh>(p, first, last);
}

}  // namespace
}  // namespace fulmen::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace fulmen::cpu {

HWY_EXPORT(ActAndMulRows);

void act_and_mul(const ActAndMulParams& params, const Pool& pool) {
  for_rows(pool, params.num_tokens, params.width,
           [&](int64_t first, int64_t last) { HWY_DYNAMIC_DISPATCH(ActAndMulRows)(params, first, last); });
}

}  // namespace fulmen::cpu
#endif
