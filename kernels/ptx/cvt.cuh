// Two fp32 values to two 16-bit ones in one register, round to nearest even; `low` lands in the low half.
#pragma once

#include <kernels/prelude/prelude.hpp>

namespace fulmen::ptx {

FULMEN_FN uint32_t cvt_bf16x2(float low, float high) {
#if defined(FULMEN_DEVICE_CODE)
  uint32_t r;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
  return r;
#endif
}

FULMEN_FN uint32_t cvt_f16x2(float low, float high) {
#if defined(FULMEN_DEVICE_CODE)
  uint32_t r;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
  return r;
#endif
}

}  // namespace fulmen::ptx
