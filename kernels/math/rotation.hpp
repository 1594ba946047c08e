// Angles of rotary embeddings. A frequency is a 64-bit fixed-point fraction of a turn per position, so that
// position * frequency is exact modulo one turn: the angle of position 10^6 is as good as that of position 1.
#pragma once

#include <kernels/prelude/prelude.hpp>

namespace fulmen {

struct RotationConstants {
  static constexpr float kTurn = 0x1p-32f;
  // sin(2 pi x) = x s(x^2), cos(2 pi x) = c(x^2) on |x| <= 1/8; minimax, error below 2^-27.
  static constexpr float kS0 = 0x1.921fb6p+2f, kS1 = -0x1.4abbbap+5f, kS2 = 0x1.465ec6p+6f,
                         kS3 = -0x1.2d9bb8p+6f;
  static constexpr float kC1 = -0x1.3bd3ccp+4f, kC2 = 0x1.03c1dcp+6f, kC3 = -0x1.55c57cp+6f,
                         kC4 = 0x1.d9c364p+5f;
};

struct Rotation {
  float cos, sin;
};

// The high 32 bits of the fraction of a turn that `position` steps make; negative ones turn back.
FULMEN_FN uint32_t turn_of(int32_t position, uint64_t step) {
  return static_cast<uint32_t>((step * static_cast<uint64_t>(static_cast<int64_t>(position))) >> 32);
}

FULMEN_FN Rotation rotation_of(uint32_t turn) {
  using C = RotationConstants;
  // Nearest quarter turn, and what is left: a signed fraction in [-1/8, 1/8).
  const uint32_t quarter = (turn + 0x20000000u) >> 30;
  const float x = static_cast<float>(static_cast<int32_t>(turn - (quarter << 30))) * C::kTurn;
  const float z = x * x;
  float s = fma(C::kS3, z, C::kS2);
  s = fma(s, z, C::kS1);
  s = fma(s, z, C::kS0) * x;
  float c = fma(C::kC4, z, C::kC3);
  c = fma(c, z, C::kC2);
  c = fma(c, z, C::kC1);
  c = fma(c, z, 1.0f);
  const bool swap = (quarter & 1u) != 0;
  const float cos = swap ? s : c, sin = swap ? c : s;
  // cos is negative in quarters 1 and 2, sin in 2 and 3
  return {((quarter + 1u) & 2u) != 0 ? -cos : cos, (quarter & 2u) != 0 ? -sin : sin};
}

}  // namespace fulmen
