// Per-target inline code: include inside foreach_target, after highway.h. A vector value type with operators, so that
// the variants of kernels/variants are one source for device and CPU, and the functions they call.
#if defined(FULMEN_CPU_SIMD_MATH_INL_H) == defined(HWY_TARGET_TOGGLE)
#ifdef FULMEN_CPU_SIMD_MATH_INL_H
#undef FULMEN_CPU_SIMD_MATH_INL_H
#else
#define FULMEN_CPU_SIMD_MATH_INL_H
#endif

#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace fulmen::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using DF = hn::CappedTag<float, 16>;
using DI = hn::RebindToSigned<DF>;
using DU = hn::RebindToUnsigned<DF>;
using VF = hn::VFromD<DF>;
using VI = hn::VFromD<DI>;

struct Vec {
  VF v;
  HWY_INLINE Vec(VF x) : v(x) {}                       // NOLINT
  HWY_INLINE Vec(float x) : v(hn::Set(DF(), x)) {}     // NOLINT
  friend HWY_INLINE Vec operator+(Vec a, Vec b) { return hn::Add(a.v, b.v); }
  friend HWY_INLINE Vec operator-(Vec a, Vec b) { return hn::Sub(a.v, b.v); }
  friend HWY_INLINE Vec operator*(Vec a, Vec b) { return hn::Mul(a.v, b.v); }
  friend HWY_INLINE Vec operator/(Vec a, Vec b) { return hn::Div(a.v, b.v); }
};

// 2^x for x <= 0 or so; 0 below -126, and for -inf. exp2(0) = 1 exactly; NaN stays NaN.
// 2^f on [-1/2, 1/2] by a polynomial of degree 5, relative error 1e-7.
HWY_INLINE VF Exp2(VF x) {
  const DF d;
  const DI di;
#if HWY_TARGET == HWY_SCALAR
  x = hn::IfThenElse(hn::Lt(x, hn::Set(d, -127.0f)), hn::Set(d, -127.0f), x);  // plain code's Max drops a NaN
#else
  x = hn::Max(hn::Set(d, -127.0f), x);  // the order matters: x86 keeps the second operand's NaN
#endif
  const VI n = hn::NearestInt(x);
  const VF f = hn::Sub(x, hn::ConvertTo(d, n));
  VF p = hn::Set(d, 1.326472571e-3f);
  p = hn::MulAdd(p, f, hn::Set(d, 9.671514645e-3f));
  p = hn::MulAdd(p, f, hn::Set(d, 5.550733766e-2f));
  p = hn::MulAdd(p, f, hn::Set(d, 2.402224205e-1f));
  p = hn::MulAdd(p, f, hn::Set(d, 6.931469776e-1f));
  p = hn::MulAdd(p, f, hn::Set(d, 1.0f));
  const VF scale = hn::BitCast(d, hn::ShiftLeft<23>(hn::Add(n, hn::Set(di, 127))));
  return hn::Mul(p, scale);
}

// tanh: the odd series near 0, where 1 - 2 / (e^2x + 1) would cancel.
HWY_INLINE Vec tanh(Vec x) {
  const DF d;
  const VF a = hn::Abs(x.v);
  const VF e = Exp2(hn::Mul(a, hn::Set(d, -2.8853900817779268f)));  // e^-2a
  const VF one = hn::Set(d, 1.0f);
  const VF big = hn::Div(hn::Sub(one, e), hn::Add(one, e));
  const VF q = hn::Mul(a, a);
  VF p = hn::Set(d, 2.1869488e-2f);
  p = hn::MulAdd(p, q, hn::Set(d, -5.3968254e-2f));
  p = hn::MulAdd(p, q, hn::Set(d, 1.3333333e-1f));
  p = hn::MulAdd(p, q, hn::Set(d, -3.3333333e-1f));
  const VF small = hn::MulAdd(hn::Mul(p, q), a, a);
  const VF t = hn::IfThenElse(hn::Lt(a, hn::Set(d, 0.3f)), small, big);
  return hn::CopySignToAbs(t, x.v);
}

// Loads and stores of fp32, fp16 and bf16 as fp32 lanes, for tags D of 16 lanes or fewer.
template <class D>
HWY_INLINE hn::VFromD<D> LoadAs(D d, const float* p) {
  return hn::LoadU(d, p);
}
template <class D>
HWY_INLINE hn::VFromD<D> LoadAs(D d, const bf16* p) {
  const hn::RebindToUnsigned<D> du;
  const hn::Rebind<uint16_t, D> dh;
  const auto half = hn::LoadU(dh, reinterpret_cast<const uint16_t*>(p));
  return hn::BitCast(d, hn::ShiftLeft<16>(hn::PromoteTo(du, half)));
}
template <class D>
HWY_INLINE hn::VFromD<D> LoadAs(D d, const f16* p) {
  const hn::Rebind<hwy::float16_t, D> dh;
  return hn::PromoteTo(d, hn::LoadU(dh, reinterpret_cast<const hwy::float16_t*>(p)));
}
template <class D>
HWY_INLINE void StoreAs(D d, hn::VFromD<D> v, float* p) {
  hn::StoreU(v, d, p);
}
template <class D>
HWY_INLINE void StoreAs([[maybe_unused]] D d, hn::VFromD<D> v, bf16* p) {
  const hn::RebindToUnsigned<D> du;
  const hn::RebindToSigned<D> di;
  const hn::Rebind<uint16_t, D> dh;
  const auto bits = hn::BitCast(du, v);
  const auto odd = hn::And(hn::ShiftRight<16>(bits), hn::Set(du, 1));
  const auto rounded = hn::ShiftRight<16>(hn::Add(hn::Add(bits, hn::Set(du, 0x7fff)), odd));
  const auto nan = hn::RebindMask(du, hn::Ne(v, v));
  const auto result = hn::IfThenElse(nan, hn::Set(du, 0x7fc0), rounded);
  hn::StoreU(hn::DemoteTo(dh, hn::BitCast(di, result)), dh, reinterpret_cast<uint16_t*>(p));
}
template <class D>
HWY_INLINE void StoreAs([[maybe_unused]] D d, hn::VFromD<D> v, f16* p) {
  const hn::Rebind<hwy::float16_t, D> dh;
#if HWY_TARGET == HWY_SCALAR
  // Highway's plain code cuts digits off: round first, to nearest even, at the last digit that f16 keeps.
  const float x = hn::GetLane(v);
  if (x == x) {
    const float small = 6.103515625e-5f;  // 2^-14: below, digits end at 2^-24
    uint32_t bits = float_bits(x);
    bits = (bits + 0xfffu + ((bits >> 13) & 1u)) & ~0x1fffu;
    const bool subnormal = (x < 0 ? -x : x) < small;
    v = hn::Set(d, subnormal ? __builtin_nearbyintf(x * 16777216.0f) * 5.9604644775390625e-8f : bits_float(bits));
  }
#endif
  hn::StoreU(hn::DemoteTo(dh, v), dh, reinterpret_cast<hwy::float16_t*>(p));
}

}  // namespace fulmen::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif
