// Natural logarithm in fp32 by fma alone: the same bits from every compiler and back end.
//
// x = 2^n m with m in [sqrt(1/2), sqrt(2)); ln m = f - f^2 / 2 + f^3 q(f), f = m - 1, q a minimax polynomial
// of degree 7. Largest error 1 ulp (tests/unit/math_log_test.cpp measures it). ln 0 = -inf, of negative
// numbers and NaN: NaN.
#pragma once

#include <kernels/prelude/prelude.hpp>

namespace fulmen {

FULMEN_FN float exact_log(float x) {
  if (!(x > 0.0f)) return x == 0.0f ? -infinity() : quiet_nan();
  if (x == infinity()) return x;
  int32_t n = 0;
  if (x < 0x1p-126f) {  // subnormal
    x = x * 0x1p+24f;
    n = -24;
  }
  // Subtracting the bits of sqrt(1/2) makes the exponent field count from there.
  const uint32_t offset = float_bits(x) - 0x3f3504f3u;
  n += static_cast<int32_t>(offset) >> 23;
  const float f = bits_float((offset & 0x007fffffu) + 0x3f3504f3u) - 1.0f;
  float q = fma(-0x1.41f448p-4f, f, 0x1.07cfaap-3f);
  q = fma(q, f, -0x1.0cdea4p-3f);
  q = fma(q, f, 0x1.226e66p-3f);
  q = fma(q, f, -0x1.5478c4p-3f);
  q = fma(q, f, 0x1.99a596p-3f);
  q = fma(q, f, -0x1.00021ep-2f);
  q = fma(q, f, 0x1.55554ap-2f);
  const float square = f * f;
  const float k = static_cast<float>(n);
  // From the smallest term up: n * ln2_low, the polynomial, -f^2 / 2, f, n * ln2_high (exact).
  float tail = fma(square * f, q, k * 0x1.7f7d1cp-20f);
  tail = fma(-0.5f, square, tail);
  return fma(k, 0x1.62e4p-1f, tail + f);
}

}  // namespace fulmen
