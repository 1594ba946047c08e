// Loads and stores of rows as fp32 vectors, and exp, once per SIMD target. exp gives the bits of
// kernels/math/exp.hpp.
#if defined(FULMEN_CPU_ROWS_INL_HPP) == defined(HWY_TARGET_TOGGLE)
#ifdef FULMEN_CPU_ROWS_INL_HPP
#undef FULMEN_CPU_ROWS_INL_HPP
#else
#define FULMEN_CPU_ROWS_INL_HPP
#endif

#include <hwy/highway.h>

#include <kernels/math/exp.hpp>
#include <kernels/prelude/prelude.hpp>

#include "cpu/half.hpp"

HWY_BEFORE_NAMESPACE();
namespace fulmen::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using FloatTag = hn::ScalableTag<float>;
using FloatVec = hn::Vec<FloatTag>;

// One rounding on every target; plain code has no vector fma.
HWY_INLINE FloatVec Fma(FloatVec a, FloatVec b, FloatVec c) {
#if HWY_TARGET == HWY_SCALAR
  return hn::Set(FloatTag(), __builtin_fmaf(hn::GetLane(a), hn::GetLane(b), hn::GetLane(c)));
#else
  return hn::MulAdd(a, b, c);
#endif
}

HWY_INLINE FloatVec LoadFloats(FloatTag d, const float* p) { return hn::LoadU(d, p); }
HWY_INLINE FloatVec LoadFloats(FloatTag d, const bf16* p) {
  const hn::Rebind<uint16_t, FloatTag> d16;
  const hn::RebindToUnsigned<FloatTag> d32;
  const auto bits = hn::LoadU(d16, reinterpret_cast<const uint16_t*>(p));
  return hn::BitCast(d, hn::ShiftLeft<16>(hn::PromoteTo(d32, bits)));
}
HWY_INLINE FloatVec LoadFloats(FloatTag d, const f16* p) {
#if HWY_TARGET == HWY_SCALAR
  return hn::Set(d, half_to_float(p->bits));
#else
  const hn::Rebind<hwy::float16_t, FloatTag> d16;
  return hn::PromoteTo(d, hn::LoadU(d16, reinterpret_cast<const hwy::float16_t*>(p)));
#endif
}

HWY_INLINE void StoreFloats(FloatVec v, FloatTag d, float* p) { hn::StoreU(v, d, p); }
HWY_INLINE void StoreFloats(FloatVec v, [[maybe_unused]] FloatTag d, bf16* p) {
  const hn::Rebind<uint16_t, FloatTag> d16;
  const hn::RebindToUnsigned<FloatTag> d32;
  const hn::RebindToSigned<FloatTag> di32;
  const auto bits = hn::BitCast(d32, v);
  const auto odd = hn::And(hn::ShiftRight<16>(bits), hn::Set(d32, 1));
  const auto rounded = hn::ShiftRight<16>(hn::Add(bits, hn::Add(odd, hn::Set(d32, 0x7fff))));
  const auto nan = hn::Or(hn::ShiftRight<16>(bits), hn::Set(d32, 0x40));
  const auto out = hn::IfThenElse(hn::RebindMask(d32, hn::IsNaN(v)), nan, rounded);
  hn::StoreU(hn::DemoteTo(d16, hn::BitCast(di32, out)), d16, reinterpret_cast<uint16_t*>(p));
}
HWY_INLINE void StoreFloats(FloatVec v, [[maybe_unused]] FloatTag d, f16* p) {
#if HWY_TARGET == HWY_SCALAR
  p->bits = float_to_half(hn::GetLane(v));
#else
  const hn::Rebind<hwy::float16_t, FloatTag> d16;
  hn::StoreU(hn::DemoteTo(d16, v), d16, reinterpret_cast<hwy::float16_t*>(p));
#endif
}

// The last n < Lanes(d) elements of a row; nothing past them is touched. The other lanes read `rest`.
template <class T>
HWY_INLINE FloatVec LoadTail(FloatTag d, const T* p, size_t n, float rest) {
  HWY_ALIGN T buffer[HWY_MAX_BYTES / sizeof(float)] = {};
  for (size_t i = 0; i < n; ++i) buffer[i] = p[i];
  const auto v = LoadFloats(d, buffer);
  return hn::IfThenElse(hn::FirstN(d, n), v, hn::Set(d, rest));
}
template <class T>
HWY_INLINE void StoreTail(FloatVec v, FloatTag d, T* p, size_t n) {
  HWY_ALIGN T buffer[HWY_MAX_BYTES / sizeof(float)];
  StoreFloats(v, d, buffer);
  for (size_t i = 0; i < n; ++i) p[i] = buffer[i];
}

// A value as it reads back after storing it.
template <class T>
HWY_INLINE FloatVec RoundTo(FloatVec v, FloatTag d) {
  if constexpr (sizeof(T) == sizeof(float)) {
    return v;
  } else {
    HWY_ALIGN T buffer[HWY_MAX_BYTES / sizeof(float)];
    StoreFloats(v, d, buffer);
    return LoadFloats(d, buffer);
  }
}

// exact_exp without its guards: x between kUnderflow and kOverflow.
HWY_INLINE FloatVec ExpInRange(FloatTag d, FloatVec x) {
  using C = ExpConstants;
  const hn::RebindToUnsigned<FloatTag> d32;
  const auto shifted = Fma(x, hn::Set(d, C::kLog2E), hn::Set(d, C::kRound));
  const auto n = hn::Sub(shifted, hn::Set(d, C::kRound));
  auto r = Fma(n, hn::Set(d, -C::kLn2High), x);
  r = Fma(n, hn::Set(d, -C::kLn2Low), r);
  auto q = Fma(hn::Set(d, C::kC6), r, hn::Set(d, C::kC5));
  q = Fma(q, r, hn::Set(d, C::kC4));
  q = Fma(q, r, hn::Set(d, C::kC3));
  q = Fma(q, r, hn::Set(d, C::kC2));
  const auto p = hn::Add(Fma(hn::Mul(r, r), q, r), hn::Set(d, 1.0f));
  return hn::BitCast(d, hn::Add(hn::BitCast(d32, p), hn::ShiftLeft<23>(hn::BitCast(d32, shifted))));
}

HWY_INLINE FloatVec Exp(FloatTag d, FloatVec x) {
  using C = ExpConstants;
  auto y = ExpInRange(d, x);
  y = hn::IfThenElse(hn::Gt(x, hn::Set(d, C::kOverflow)), hn::Set(d, infinity()), y);
  y = hn::IfThenZeroElse(hn::Lt(x, hn::Set(d, C::kUnderflow)), y);
  return hn::IfThenElse(hn::IsNaN(x), x, y);
}

// Calls with a null pointer to the storage type of dtype.
template <class Body>
HWY_INLINE void WithStorage(DType dtype, const Body& body) {
  if (dtype == DType::f32) return body(static_cast<const float*>(nullptr));
  if (dtype == DType::f16) return body(static_cast<const f16*>(nullptr));
  return body(static_cast<const bf16*>(nullptr));
}

}  // namespace fulmen::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif
