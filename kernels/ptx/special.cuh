// Approximate functions of the MUFU unit, by name where an approximation is allowed (softmax; never sampling).
// Emulated: the correctly rounded result moved by a pseudo-random error within the documented bound, so that no test leans on
// digits that the unit does not give; arguments and results below 2^-126 are flushed as .ftz says.
#pragma once

#include <kernels/prelude/device.hpp>

namespace fulmen::ptx {

// 2^x, relative error below 2^-22; results below 2^-126 are zero. ex2(-inf) = 0.
FULMEN_FN float ex2_approx(float x) {
#if defined(FULMEN_DEVICE_CODE)
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return emulator::approximate(emulator::Approximation::ex2, x);
#endif
}

// log2(x), absolute error below 2^-22 for normal x.
FULMEN_FN float lg2_approx(float x) {
#if defined(FULMEN_DEVICE_CODE)
  float y;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return emulator::approximate(emulator::Approximation::lg2, x);
#endif
}

// 1 / x, at most 1 ulp off.
FULMEN_FN float rcp_approx(float x) {
#if defined(FULMEN_DEVICE_CODE)
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return emulator::approximate(emulator::Approximation::rcp, x);
#endif
}

// 1 / sqrt(x), relative error below 2^-22.9.
FULMEN_FN float rsqrt_approx(float x) {
#if defined(FULMEN_DEVICE_CODE)
  float y;
  asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return emulator::approximate(emulator::Approximation::rsqrt, x);
#endif
}

// tanh(x), relative error below 2^-11.
FULMEN_FN float tanh_approx(float x) {
#if defined(FULMEN_DEVICE_CODE)
  float y;
  asm("tanh.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return emulator::approximate(emulator::Approximation::tanh, x);
#endif
}

// The larger; NaN where either is NaN. Not an approximation.
FULMEN_FN float max_nan(float a, float b) {
#if defined(FULMEN_DEVICE_CODE)
  float y;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(y) : "f"(a), "f"(b));
  return y;
#else
  return a != a || a > b ? a : b;
#endif
}

// The larger; of a number and NaN the number. Not an approximation.
FULMEN_FN float max_number(float a, float b) {
#if defined(FULMEN_DEVICE_CODE)
  float y;
  asm("max.f32 %0, %1, %2;" : "=f"(y) : "f"(a), "f"(b));
  return y;
#else
  return a > b || b != b ? a : b;
#endif
}

// x, of which the compiler knows nothing: what follows from it is computed where it is used, instead of being kept in registers
// (or spilled from them) all along a loop.
template <class T> FULMEN_FN T unknown(T x) {
  static_assert(sizeof(T) == 4, "a register");
#if defined(FULMEN_DEVICE_CODE)
  asm volatile("mov.b32 %0, %1;" : "=r"(x) : "r"(x));
#endif
  return x;
}

}  // namespace fulmen::ptx
