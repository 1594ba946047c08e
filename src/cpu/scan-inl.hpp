// Scans of a row: maximum with NaN detection, first occurrence. Once per SIMD target.
#if defined(FULMEN_CPU_SCAN_INL_HPP) == defined(HWY_TARGET_TOGGLE)
#ifdef FULMEN_CPU_SCAN_INL_HPP
#undef FULMEN_CPU_SCAN_INL_HPP
#else
#define FULMEN_CPU_SCAN_INL_HPP
#endif

#include "cpu/rows-inl.hpp"

HWY_BEFORE_NAMESPACE();
namespace fulmen::cpu::HWY_NAMESPACE {

// The largest of n values; NaN if there is one. n > 0.
template <class T>
HWY_INLINE float MaxOf(const T* x, size_t n) {
  const FloatTag d;
  const size_t lanes = hn::Lanes(d);
  const auto lowest = hn::Set(d, -infinity());
  FloatVec top[4] = {lowest, lowest, lowest, lowest};
  // Max may drop a NaN, so they are kept apart.
  auto nan = hn::Zero(d);
  const auto step = [&](FloatVec v, FloatVec& into) HWY_ATTR {
    into = hn::Max(into, v);
    nan = hn::IfThenElse(hn::IsNaN(v), v, nan);
  };
  size_t i = 0;
  for (; i + 4 * lanes <= n; i += 4 * lanes) {
    step(LoadFloats(d, x + i), top[0]);
    step(LoadFloats(d, x + i + lanes), top[1]);
    step(LoadFloats(d, x + i + 2 * lanes), top[2]);
    step(LoadFloats(d, x + i + 3 * lanes), top[3]);
  }
  for (; i + lanes <= n; i += lanes) step(LoadFloats(d, x + i), top[0]);
  if (i < n) step(LoadTail(d, x + i, n - i, -infinity()), top[1]);
  if (!hn::AllFalse(d, hn::IsNaN(nan))) return quiet_nan();
  return hn::GetLane(hn::MaxOfLanes(d, hn::Max(hn::Max(top[0], top[1]), hn::Max(top[2], top[3]))));
}

// The lowest index i with x[i] == value, n if there is none.
template <class T>
HWY_INLINE size_t FindValue(const T* x, size_t n, float value) {
  const FloatTag d;
  const size_t lanes = hn::Lanes(d);
  const auto wanted = hn::Set(d, value);
  size_t i = 0;
  for (; i + lanes <= n; i += lanes) {
    const auto at = hn::FindFirstTrue(d, hn::Eq(LoadFloats(d, x + i), wanted));
    if (at >= 0) return i + static_cast<size_t>(at);
  }
  if (i < n) {
    const auto equal = hn::And(hn::FirstN(d, n - i), hn::Eq(LoadTail(d, x + i, n - i, 0.0f), wanted));
    const auto at = hn::FindFirstTrue(d, equal);
    if (at >= 0) return i + static_cast<size_t>(at);
  }
  return n;
}

// The lowest index of the largest value, -1 with a NaN in the row. Only a block that raises the maximum is
// looked at twice. n > 0.
template <class T>
HWY_INLINE int32_t ArgmaxOf(const T* x, size_t n) {
  constexpr size_t kBlock = 4096;
  float top = -infinity();
  size_t block = 0;
  for (size_t i = 0; i < n; i += kBlock) {
    const float here = MaxOf(x + i, n - i < kBlock ? n - i : kBlock);
    if (here != here) return -1;
    if (here > top) {
      top = here;
      block = i;
    }
  }
  return static_cast<int32_t>(block + FindValue(x + block, n - block, top));
}

}  // namespace fulmen::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif
