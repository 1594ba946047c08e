// e^x in fp32 by fma alone: the same bits from every compiler and back end.
//
// e^x = 2^n e^r with n = rint(x log2 e), |r| <= ln2 / 2 and e^r = 1 + r + r^2 q(r), q a minimax polynomial of
// degree 4 (its own error is 2^-28). Largest error 1 ulp over the whole range (tests/unit/math_exp_test.cpp
// measures it). Below -87 the result is 0 (no subnormals), above 88.72283 it is infinity, NaN stays NaN, e^0
// = 1 exactly.
#pragma once

#include <kernels/prelude/prelude.hpp>

namespace fulmen {

struct ExpConstants {
  static constexpr float kLog2E = 0x1.715476p+0f;
  // Adding 1.5 * 2^23 leaves rint(x) in the low bits of the sum.
  static constexpr float kRound = 12582912.0f;
  // ln 2 in two parts; the first has 9 trailing zero bits, so that n * kLn2High is exact.
  static constexpr float kLn2High = 0x1.62e4p-1f;
  static constexpr float kLn2Low = 0x1.7f7d1cp-20f;
  static constexpr float kC2 = 0x1.fffffcp-2f, kC3 = 0x1.55548ap-3f, kC4 = 0x1.555916p-5f,
                         kC5 = 0x1.123fc6p-7f, kC6 = 0x1.6a1a76p-10f;
  static constexpr float kUnderflow = -87.0f, kOverflow = 88.72283f;
};

// Of -87 <= x <= 88.7.
FULMEN_FN float exp_in_range(float x) {
  using C = ExpConstants;
  const float shifted = fma(x, C::kLog2E, C::kRound);
  const float n = shifted - C::kRound;
  float r = fma(n, -C::kLn2High, x);
  r = fma(n, -C::kLn2Low, r);
  float q = fma(C::kC6, r, C::kC5);
  q = fma(q, r, C::kC4);
  q = fma(q, r, C::kC3);
  q = fma(q, r, C::kC2);
  const float p = fma(r * r, q, r) + 1.0f;
  return bits_float(float_bits(p) + (float_bits(shifted) << 23));
}

FULMEN_FN float exact_exp(float x) {
  using C = ExpConstants;
  const float y = exp_in_range(x);
  if (!(x >= C::kUnderflow)) return x < C::kUnderflow ? 0.0f : x;  // the last: NaN
  return x > C::kOverflow ? infinity() : y;
}

}  // namespace fulmen
