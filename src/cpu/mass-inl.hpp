// Fixed-point masses of vectors of probabilities, with the bits of kernels/math/mass.hpp. Once per SIMD
// target.
#if defined(FULMEN_CPU_MASS_INL_HPP) == defined(HWY_TARGET_TOGGLE)
#ifdef FULMEN_CPU_MASS_INL_HPP
#undef FULMEN_CPU_MASS_INL_HPP
#else
#define FULMEN_CPU_MASS_INL_HPP
#endif

#include <kernels/math/mass.hpp>

#include "cpu/rows-inl.hpp"

HWY_BEFORE_NAMESPACE();
namespace fulmen::cpu::HWY_NAMESPACE {

using MassTag = hn::ScalableTag<uint64_t>;
using MassVec = hn::Vec<MassTag>;

// Masses of a vector of probabilities (or exponentials): lower lanes to a, upper lanes to b. Plain code: all
// to a.
HWY_INLINE void MassesOf([[maybe_unused]] FloatTag d, FloatVec e, MassVec& a, [[maybe_unused]] MassVec& b) {
#if HWY_TARGET == HWY_SCALAR
  a = hn::Set(MassTag(), mass_of(hn::GetLane(e)));
#elif HWY_TARGET == HWY_AVX3
  const auto scaled = hn::Mul(e, hn::Set(d, 0x1p+40f));  // exact; conversion cuts off the fraction
  const hn::Half<FloatTag> half;
  a = MassVec{_mm512_cvttps_epu64(hn::LowerHalf(half, scaled).raw)};
  b = MassVec{_mm512_cvttps_epu64(hn::UpperHalf(half, scaled).raw)};
#else
  const hn::RebindToUnsigned<FloatTag> d32;
  const hn::Half<decltype(d32)> half;
  const MassTag d64;
  const auto bits = hn::BitCast(d32, e);
  const auto mantissa = hn::Or(hn::And(bits, hn::Set(d32, 0x007fffffu)), hn::Set(d32, 0x00800000u));
  const auto shift = hn::Min(hn::Sub(hn::Set(d32, 128u), hn::ShiftRight<23>(bits)), hn::Set(d32, 63u));
  a = hn::Shr(hn::ShiftLeft<18>(hn::PromoteTo(d64, hn::LowerHalf(half, mantissa))),
              hn::PromoteTo(d64, hn::LowerHalf(half, shift)));
  b = hn::Shr(hn::ShiftLeft<18>(hn::PromoteTo(d64, hn::UpperHalf(half, mantissa))),
              hn::PromoteTo(d64, hn::UpperHalf(half, shift)));
#endif
}

struct MassSum {
  MassVec a, b;
  HWY_INLINE MassSum() : a(hn::Zero(MassTag())), b(hn::Zero(MassTag())) {}
  HWY_INLINE void Add(FloatTag d, FloatVec e) {
    MassVec lower, upper = hn::Zero(MassTag());
    MassesOf(d, e, lower, upper);
    a = hn::Add(a, lower);
    b = hn::Add(b, upper);
  }
  HWY_INLINE uint64_t Total() const { return hn::GetLane(hn::SumOfLanes(MassTag(), hn::Add(a, b))); }
};

// The masses where `first` to one sum, the others to another.
HWY_INLINE void AddApart(FloatTag d, FloatVec e, hn::Mask<FloatTag> first, MassSum& to, MassSum& other) {
#if HWY_TARGET == HWY_AVX3
  MassVec lower, upper;
  MassesOf(d, e, lower, upper);
  const auto low = static_cast<__mmask8>(first.raw), high = static_cast<__mmask8>(first.raw >> 8);
  to.a.raw = _mm512_mask_add_epi64(to.a.raw, low, to.a.raw, lower.raw);
  to.b.raw = _mm512_mask_add_epi64(to.b.raw, high, to.b.raw, upper.raw);
  other.a.raw = _mm512_mask_add_epi64(other.a.raw, static_cast<__mmask8>(~low), other.a.raw, lower.raw);
  other.b.raw = _mm512_mask_add_epi64(other.b.raw, static_cast<__mmask8>(~high), other.b.raw, upper.raw);
#else
  to.Add(d, hn::IfThenElseZero(first, e));
  other.Add(d, hn::IfThenZeroElse(first, e));
#endif
}

}  // namespace fulmen::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif
