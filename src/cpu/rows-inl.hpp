// Loads and stores of rows as fp32 vectors, and exp, once per SIMD target. exp gives the bits of
// kernels/math/exp.hpp.
//
// Inner loops work on groups of four vectors, a step of the arithmetic at a time for all four: a chain of a dozen
// dependent operations on one vector would fill the CPU's window of waiting operations with few vectors in it.
#if defined(FULMEN_CPU_ROWS_INL_HPP) == defined(HWY_TARGET_TOGGLE)
#ifdef FULMEN_CPU_ROWS_INL_HPP
#undef FULMEN_CPU_ROWS_INL_HPP
#else
#define FULMEN_CPU_ROWS_INL_HPP
#endif

#include <hwy/cache_control.h>
#include <hwy/highway.h>

#include <kernels/math/convert.hpp>
#include <kernels/math/exp.hpp>
#include <kernels/prelude/prelude.hpp>
#include <type_traits>

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
  return hn::Set(d, to_float(*p));
#else
  const hn::Rebind<hwy::float16_t, FloatTag> d16;
  return hn::PromoteTo(d, hn::LoadU(d16, reinterpret_cast<const hwy::float16_t*>(p)));
#endif
}

HWY_INLINE void StoreFloats(FloatVec v, FloatTag d, float* p) { hn::StoreU(v, d, p); }
// The upper halves are the bf16 numbers, nearest even; a NaN stays one. The lower halves are of no use.
HWY_INLINE hn::Vec<hn::RebindToUnsigned<FloatTag>> RoundUpperHalf(FloatVec v) {
  const hn::RebindToUnsigned<FloatTag> d32;
  const auto bits = hn::BitCast(d32, v);
#if HWY_TARGET == HWY_AVX3
  const __m512i up = _mm512_add_epi32(bits.raw, _mm512_set1_epi32(0x7fff));
  const __mmask16 odd = _mm512_test_epi32_mask(bits.raw, _mm512_set1_epi32(0x10000));
  const __m512i even = _mm512_mask_add_epi32(up, odd, up, _mm512_set1_epi32(1));
  const __m512i nan_to_quiet_nan = _mm512_set1_epi32(0x22);  // others stay what `even` has
  return hn::BitCast(d32, FloatVec{_mm512_fixupimm_ps(_mm512_castsi512_ps(even), v.raw, nan_to_quiet_nan, 0)});
#else
  const auto odd = hn::And(hn::ShiftRight<16>(bits), hn::Set(d32, 1));
  const auto rounded = hn::Add(hn::Add(bits, hn::Set(d32, 0x7fff)), odd);
  return hn::IfThenElse(hn::RebindMask(d32, hn::IsNaN(v)), hn::Or(bits, hn::Set(d32, 0x400000)), rounded);
#endif
}
HWY_INLINE void StoreFloats(FloatVec v, [[maybe_unused]] FloatTag d, bf16* p) {
  const hn::Rebind<uint16_t, FloatTag> d16;
  const hn::RebindToSigned<FloatTag> di32;
  const auto out = hn::BitCast(di32, hn::ShiftRight<16>(RoundUpperHalf(v)));
  hn::StoreU(hn::DemoteTo(d16, out), d16, reinterpret_cast<uint16_t*>(p));
}
HWY_INLINE void StoreFloats(FloatVec v, [[maybe_unused]] FloatTag d, f16* p) {
#if HWY_TARGET == HWY_SCALAR
  *p = from_float<f16>(hn::GetLane(v));
#else
  const hn::Rebind<hwy::float16_t, FloatTag> d16;
  hn::StoreU(hn::DemoteTo(d16, v), d16, reinterpret_cast<hwy::float16_t*>(p));
#endif
}

// For i in [0, count): unrolled, so that an array of vectors stays in registers.
#undef FULMEN_EACH
#define FULMEN_EACH(i, count) _Pragma("GCC unroll 8") for (size_t i = 0; i < (count); ++i)

// Four vectors of a row, worked on together.
constexpr size_t kGroup = 4;
struct Group {
  FloatVec v[kGroup];
};

// The next 4 Lanes(d) elements, in an order of the storage type's own: StoreGroup has the same. A word of bf16 holds two
// neighbours, which a shift and a mask take apart.
HWY_INLINE Group LoadGroup(FloatTag d, const float* p) {
  const size_t lanes = hn::Lanes(d);
  return {{hn::LoadU(d, p), hn::LoadU(d, p + lanes), hn::LoadU(d, p + 2 * lanes), hn::LoadU(d, p + 3 * lanes)}};
}
HWY_INLINE Group LoadGroup(FloatTag d, const f16* p) {
  const size_t lanes = hn::Lanes(d);
  return {{LoadFloats(d, p), LoadFloats(d, p + lanes), LoadFloats(d, p + 2 * lanes), LoadFloats(d, p + 3 * lanes)}};
}
HWY_INLINE Group LoadGroup(FloatTag d, const bf16* p) {
#if HWY_TARGET == HWY_SCALAR
  return {{LoadFloats(d, p), LoadFloats(d, p + 1), LoadFloats(d, p + 2), LoadFloats(d, p + 3)}};
#else
  const hn::RebindToUnsigned<FloatTag> d32;
  const hn::Repartition<uint16_t, FloatTag> d16;
  const size_t lanes = hn::Lanes(d);
  const auto* words = reinterpret_cast<const uint16_t*>(p);
  const auto first = hn::BitCast(d32, hn::LoadU(d16, words)), second = hn::BitCast(d32, hn::LoadU(d16, words + 2 * lanes));
  const auto odd = hn::Set(d32, 0xffff0000u);
  return {{hn::BitCast(d, hn::ShiftLeft<16>(first)), hn::BitCast(d, hn::And(first, odd)),
           hn::BitCast(d, hn::ShiftLeft<16>(second)), hn::BitCast(d, hn::And(second, odd))}};
#endif
}

// A group in the order of T's groups: of T itself, or of fp32 beside it.
template <class T>
HWY_INLINE Group LoadGroupLike(FloatTag d, const T* p) {
  return LoadGroup(d, p);
}
template <class T>
  requires(sizeof(T) == 2)
HWY_INLINE Group LoadGroupLike(FloatTag d, const float* p) {
  Group g = LoadGroup(d, p);
#if HWY_TARGET != HWY_SCALAR
  if constexpr (std::is_same_v<T, bf16>) {
    const FloatVec a = g.v[0], b = g.v[2];
    g.v[0] = hn::ConcatEven(d, g.v[1], a), g.v[1] = hn::ConcatOdd(d, g.v[1], a);
    g.v[2] = hn::ConcatEven(d, g.v[3], b), g.v[3] = hn::ConcatOdd(d, g.v[3], b);
  }
#endif
  return g;
}

// Whether a row may be written past the caches: its stores must be whole and aligned.
template <class T>
HWY_INLINE bool MayStream(const T* p) {
  return HWY_TARGET != HWY_SCALAR && reinterpret_cast<uintptr_t>(p) % (hn::Lanes(FloatTag()) * sizeof(float)) == 0;
}

template <bool kStream, class D>
HWY_INLINE void StoreWords(hn::Vec<D> v, D d, hn::TFromD<D>* p) {
  if constexpr (kStream) {
    hn::Stream(v, d, p);
  } else {
    hn::StoreU(v, d, p);
  }
}
template <bool kStream>
HWY_INLINE void StoreGroup(const Group& g, FloatTag d, float* p) {
  const size_t lanes = hn::Lanes(d);
  FULMEN_EACH(i, kGroup) StoreWords<kStream>(g.v[i], d, p + i * lanes);
}
template <bool kStream>
HWY_INLINE void StoreGroup(const Group& g, FloatTag d, f16* p) {
#if HWY_TARGET == HWY_SCALAR
  FULMEN_EACH(i, kGroup) StoreFloats(g.v[i], d, p + i);
#else
  const hn::Rebind<hwy::float16_t, FloatTag> d16;
  const hn::Repartition<uint16_t, FloatTag> whole;
  const hn::Half<decltype(whole)> half;
  auto* words = reinterpret_cast<uint16_t*>(p);
  FULMEN_EACH(i, kGroup / 2) {
    const auto lower = hn::DemoteTo(d16, g.v[2 * i]), upper = hn::DemoteTo(d16, g.v[2 * i + 1]);
    StoreWords<kStream>(hn::Combine(whole, hn::BitCast(half, upper), hn::BitCast(half, lower)), whole,
                        words + 2 * i * hn::Lanes(d));
  }
#endif
}
template <bool kStream>
HWY_INLINE void StoreGroup(const Group& g, FloatTag d, bf16* p) {
#if HWY_TARGET == HWY_SCALAR
  FULMEN_EACH(i, kGroup) StoreFloats(g.v[i], d, p + i);
#else
  const hn::RebindToUnsigned<FloatTag> d32;
  const hn::Repartition<uint16_t, FloatTag> d16;
  auto* words = reinterpret_cast<uint16_t*>(p);
  FULMEN_EACH(i, kGroup / 2) {
    const auto even = RoundUpperHalf(g.v[2 * i]), odd = RoundUpperHalf(g.v[2 * i + 1]);
    const auto pairs = hn::Or(hn::ShiftRight<16>(even), hn::And(odd, hn::Set(d32, 0xffff0000u)));
    StoreWords<kStream>(hn::BitCast(d16, pairs), d16, words + 2 * i * hn::Lanes(d));
  }
#endif
}

// The last n <= Lanes(d) elements of a row; nothing past them is touched. The other lanes read `rest`.
template <class T>
HWY_INLINE FloatVec LoadTail(FloatTag d, const T* p, size_t n, float rest) {
  if (n == hn::Lanes(d)) return LoadFloats(d, p);
  HWY_ALIGN T buffer[HWY_MAX_BYTES / sizeof(float)] = {};
  for (size_t i = 0; i < n; ++i) buffer[i] = p[i];
  const auto v = LoadFloats(d, buffer);
  return hn::IfThenElse(hn::FirstN(d, n), v, hn::Set(d, rest));
}
template <class T>
HWY_INLINE float ValueAt(const T* p, size_t i) {
  return to_float(p[i]);
}
template <class T>
HWY_INLINE void StoreTail(FloatVec v, FloatTag d, T* p, size_t n) {
  if (n == hn::Lanes(d)) return StoreFloats(v, d, p);
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

// exact_exp without its guards, of kVectors vectors: x between kUnderflow and kOverflow.
template <size_t kVectors>
HWY_INLINE void ExpInRange(FloatTag d, FloatVec (&x)[kVectors]) {
  using C = ExpConstants;
  const hn::RebindToUnsigned<FloatTag> d32;
  const auto round = hn::Set(d, C::kRound);
  FloatVec shifted[kVectors], q[kVectors];
  FULMEN_EACH(i, kVectors) shifted[i] = Fma(x[i], hn::Set(d, C::kLog2E), round);
  FULMEN_EACH(i, kVectors) q[i] = hn::Sub(shifted[i], round);
  FULMEN_EACH(i, kVectors) x[i] = Fma(q[i], hn::Set(d, -C::kLn2High), x[i]);
  FULMEN_EACH(i, kVectors) x[i] = Fma(q[i], hn::Set(d, -C::kLn2Low), x[i]);
  FULMEN_EACH(i, kVectors) q[i] = Fma(hn::Set(d, C::kC6), x[i], hn::Set(d, C::kC5));
  FULMEN_EACH(i, kVectors) q[i] = Fma(q[i], x[i], hn::Set(d, C::kC4));
  FULMEN_EACH(i, kVectors) q[i] = Fma(q[i], x[i], hn::Set(d, C::kC3));
  FULMEN_EACH(i, kVectors) q[i] = Fma(q[i], x[i], hn::Set(d, C::kC2));
  FULMEN_EACH(i, kVectors) q[i] = hn::Add(Fma(hn::Mul(x[i], x[i]), q[i], x[i]), hn::Set(d, 1.0f));
  FULMEN_EACH(i, kVectors) x[i] = hn::BitCast(d, hn::Add(hn::BitCast(d32, q[i]), hn::ShiftLeft<23>(hn::BitCast(d32, shifted[i]))));
}
HWY_INLINE FloatVec ExpInRange(FloatTag d, FloatVec x) {
  FloatVec one[1] = {x};
  ExpInRange(d, one);
  return one[0];
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
