// fp16 for machines without F16C: nearest even, subnormals, infinities and NaN as the instructions have them.
#pragma once

#include <kernels/prelude/prelude.hpp>

namespace fulmen::cpu {

inline float half_to_float(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000u) << 16;
  const uint32_t rest = static_cast<uint32_t>(half & 0x7fffu) << 13;
  if (rest >= 0x0f800000u) {  // infinity, NaN (quiet)
    return bits_float(sign | 0x7f800000u | (rest & 0x007fffffu) | (rest > 0x0f800000u ? 0x00400000u : 0u));
  }
  return bits_float(sign | float_bits(bits_float(rest) * 0x1p+112f));  // exact, subnormals too
}

inline uint16_t float_to_half(float x) {
  const uint32_t bits = float_bits(x);
  const auto sign = static_cast<uint16_t>((bits >> 16) & 0x8000u);
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return static_cast<uint16_t>(sign | 0x7e00u | ((magnitude >> 13) & 0x1ffu));
  if (magnitude >= 0x477ff000u) return sign | 0x7c00u;  // 65520 and more round to infinity
  if (magnitude < 0x38800000u) {  // subnormal: adding 1/2 leaves the rounded bits at the bottom
    return static_cast<uint16_t>(sign | (float_bits(bits_float(magnitude) + 0.5f) - 0x3f000000u));
  }
  const uint32_t odd = (magnitude >> 13) & 1u;
  return static_cast<uint16_t>(sign | ((magnitude - 0x38000000u + 0xfffu + odd) >> 13));
}

}  // namespace fulmen::cpu
