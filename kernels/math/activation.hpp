// The gates of gated activations.
#pragma once

#include <kernels/math/exp.hpp>
#include <kernels/math/reciprocal.hpp>
#include <kernels/prelude/prelude.hpp>

namespace fulmen {

struct ActivationConstants {
  static constexpr float kGeluCubic = 0.044715f;
  static constexpr float kGeluScale = 1.5957691216057308f;  // 2 sqrt(2 / pi)
  // Phi(-t) = exp(-t h(t)) / 2 for t >= 0; minimax on [0, 6], absolute error of Phi below 2^-26; beyond 6 it
  // tends to 0.
  static constexpr float kPhi[8] = {0x1.98846cp-1f,  0x1.45f024p-2f,  0x1.2a164ap-5f,   -0x1.40dd2p-8f,
                                    0x1.8e1eacp-14f, 0x1.0ea2e2p-13f, -0x1.c9ec54p-16f, 0x1.07bcbep-19f};
};

// SiLU and GELU with tanh are x / (1 + e^y). 0.5 x (1 + tanh(u)) with u = sqrt(2 / pi) (x + 0.044715 x^3):
// 1 + tanh(u) = 2 / (1 + exp(-2 u))
FULMEN_FN float silu_exponent(float x) { return -x; }
FULMEN_FN float gelu_tanh_exponent(float x) {
  using C = ActivationConstants;
  const float cubic = x * x * x;
  return -C::kGeluScale * fma(C::kGeluCubic, cubic, x);
}

FULMEN_FN float gate_of(float x, float y) { return quotient(x, 1.0f + exact_exp(y)); }

// The same bits without a branch, of |y| up to kGateRange: e^y is in range and 1 + e^y has a normal reciprocal.
inline constexpr float kGateRange = 87.0f;
FULMEN_FN float gate_in_range(float x, float y) {
  const float d = 1.0f + exp_in_range(y);
#if defined(FULMEN_DEVICE_CODE)
  const float unit = ptx::rcp_approx(d), r = fma(fma(-d, unit, 1.0f), unit, unit), q = x * r;
  return fma(fma(-d, q, x), r, q);
#else
  return x / d;
#endif
}

FULMEN_FN float silu(float x) { return gate_of(x, silu_exponent(x)); }
FULMEN_FN float gelu_tanh(float x) { return gate_of(x, gelu_tanh_exponent(x)); }

// x Phi(x), Phi the normal distribution's function
FULMEN_FN float gelu(float x) {
  using C = ActivationConstants;
  const float t = min(x < 0.0f ? -x : x, 16.0f);
  float h = C::kPhi[7];
  h = fma(h, t, C::kPhi[6]);
  h = fma(h, t, C::kPhi[5]);
  h = fma(h, t, C::kPhi[4]);
  h = fma(h, t, C::kPhi[3]);
  h = fma(h, t, C::kPhi[2]);
  h = fma(h, t, C::kPhi[1]);
  h = fma(h, t, C::kPhi[0]);
  const float tail = 0.5f * exact_exp(-t * h);
  return x * (x < 0.0f ? tail : 1.0f - tail);
}

}  // namespace fulmen
