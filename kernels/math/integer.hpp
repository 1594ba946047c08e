// Integer helpers that host and device compute alike.
#pragma once

#include <kernels/prelude/prelude.hpp>

namespace fulmen {

// Position of the highest set bit; x > 0.
FULMEN_FN int32_t log2_floor(uint32_t x) {
#if defined(FULMEN_DEVICE_CODE)
  return 31 - __clz(static_cast<int32_t>(x));
#else
  return 31 - __builtin_clz(x);
#endif
}

// floor(a / b) for 0 <= a, 0 < b, where b is nearly always a power of two.
FULMEN_FN int32_t divide_by_power(int32_t a, int32_t b) {
  return (b & (b - 1)) == 0 ? a >> log2_floor(static_cast<uint32_t>(b)) : a / b;
}

// High and low halves of the 128-bit product.
FULMEN_FN uint64_t mul_high(uint64_t a, uint64_t b) {
#if defined(FULMEN_DEVICE_CODE)
  return __umul64hi(a, b);
#else
  return static_cast<uint64_t>((static_cast<unsigned __int128>(a) * b) >> 64);
#endif
}

// ceil(a * b / 2^64)
FULMEN_FN uint64_t mul_high_up(uint64_t a, uint64_t b) { return mul_high(a, b) + (a * b != 0 ? 1u : 0u); }

}  // namespace fulmen
