// 1 / x, a / b and 1 / sqrt(x) without the slow paths that the device's own operators call.
#pragma once

#include <kernels/prelude/prelude.hpp>
#if defined(FULMEN_DEVICE_CODE)
#include <kernels/ptx/special.cuh>
#endif

namespace fulmen {

// Rounded to nearest on the host; on the device too for 2^-126 <= |x| <= 2^126 (one Newton step by fma), and the
// unit's approximation outside.
FULMEN_FN float reciprocal(float x) {
#if defined(FULMEN_DEVICE_CODE)
  const float r = ptx::rcp_approx(x);
  const float error = fma(-x, r, 1.0f);
  return error > -0.5f && error < 0.5f ? fma(r, error, r) : r;
#else
  return 1.0f / x;
#endif
}

// a / b, at most 1 ulp off on the device.
FULMEN_FN float quotient(float a, float b) {
#if defined(FULMEN_DEVICE_CODE)
  const float r = reciprocal(b), q = a * r, rest = fma(-b, q, a);
  const float refined = fma(rest, r, q);
  return refined == refined ? refined : q;  // infinities leave NaN in the rest
#else
  return a / b;
#endif
}

#if defined(FULMEN_DEVICE_CODE)
FULMEN_FN float reciprocal_sqrt(float x) {
  const float r = ptx::rsqrt_approx(x);
  return r * fma(-0.5f * x * r, r, 1.5f);
}
#elif defined(FULMEN_EMULATOR)
FULMEN_FN float reciprocal_sqrt(float x) { return 1.0f / __builtin_sqrtf(x); }
#endif

}  // namespace fulmen
