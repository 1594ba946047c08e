// 64-bit integer helpers that host and device compute alike.
#pragma once

#include <kernels/prelude/prelude.hpp>

namespace fulmen {

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
