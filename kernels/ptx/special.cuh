// Approximate functions of the MUFU unit, by name where an approximation is allowed (softmax; never sampling).
#pragma once

#include <kernels/prelude/prelude.hpp>

namespace fulmen::ptx {

// 2^x, relative error below 2^-22; results below 2^-126 are zero. ex2(-inf) = 0.
FULMEN_FN float ex2_approx(float x) {
#if defined(FULMEN_DEVICE_CODE)
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#endif
}

// log2(x), absolute error below 2^-22 for normal x.
FULMEN_FN float lg2_approx(float x) {
#if defined(FULMEN_DEVICE_CODE)
  float y;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#endif
}

}  // namespace fulmen::ptx
