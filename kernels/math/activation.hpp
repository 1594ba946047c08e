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

FULMEN_FN float silu(float x) { return quotient(x, 1.0f + exact_exp(-x)); }

// 0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))); 1 + tanh(u) = 2 / (1 + exp(-2 u))
FULMEN_FN float gelu_tanh(float x) {
  using C = ActivationConstants;
  const float cubic = x * x * x;
  return quotient(x, 1.0f + exact_exp(-C::kGeluScale * fma(C::kGeluCubic, cubic, x)));
}

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
