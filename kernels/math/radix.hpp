// Floats as unsigned integers in the same order, for selection by radix descent.
#pragma once

#include <kernels/prelude/prelude.hpp>

namespace fulmen {

// a < b <=> ordered_key(a) < ordered_key(b); -0 and +0 have one key. NaN has no place: callers look for it
// first.
FULMEN_FN uint32_t ordered_key(float x) {
  const uint32_t bits = float_bits(x + 0.0f);  // -0 + 0 = +0
  return bits ^ ((bits >> 31) != 0 ? 0xffffffffu : 0x80000000u);
}

FULMEN_FN float key_value(uint32_t key) {
  return bits_float(key ^ ((key >> 31) != 0 ? 0x80000000u : 0xffffffffu));
}

}  // namespace fulmen
