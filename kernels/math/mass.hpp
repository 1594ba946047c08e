// Probability masses as unsigned 64-bit fixed point: sums don't depend on their order, so a draw made by one
// thread, by many or by a GPU picks the same word.
//
//   mass(p)          = floor(p 2^40)                  of a probability 0 <= p <= 2
//   mass of logit x  = mass(exp((x - max) / T))       the largest logit of a row has mass 2^40 exactly
//
// A row has at most kMaxVocab words, so that a sum of masses stays below 2^64.
#pragma once

#include <kernels/math/exp.hpp>
#include <kernels/math/integer.hpp>
#include <kernels/math/reciprocal.hpp>
#include <kernels/prelude/prelude.hpp>

namespace fulmen {

constexpr int kMassBits = 40;
constexpr uint64_t kUnitMass = uint64_t{1} << kMassBits;
constexpr int64_t kMaxVocab = int64_t{1} << 22;

FULMEN_FN uint64_t mass_of(float p) {
  const uint32_t bits = float_bits(p);
  // p = mantissa 2^(exponent - 150), so p 2^40 = (mantissa << 18) 2^(exponent - 128). Subnormals have no
  // mass: the hidden bit they lack doesn't matter.
  const uint64_t mantissa = (bits & 0x007fffffu) | 0x00800000u;
  const uint32_t exponent = bits >> 23;
  const uint32_t shift = 128u - exponent;
  return shift > 63u ? 0 : (mantissa << 18) >> shift;
}

// The same in two parts of 20 bits and what is above, by additions alone: mass = high 2^20 + low. 0 <= p <= 2.
struct MassParts {
  uint32_t high, low;
};
FULMEN_FN MassParts mass_parts(float p) {
#if defined(FULMEN_DEVICE_CODE)
  // Adding 2^3, whose last bit is 2^-20, and rounding toward zero leaves floor(p 2^20) in the low bits of the sum.
  const float high = __fadd_rz(p, 8.0f);
  const float rest = p - (high - 8.0f);  // exact
  const float low = __fadd_rz(rest, 0x1p-17f);
  return {float_bits(high) - float_bits(8.0f), float_bits(low) - float_bits(0x1p-17f)};
#else
  const auto high = static_cast<uint32_t>(p * 0x1p20f);
  return {high, static_cast<uint32_t>((p - static_cast<float>(high) * 0x1p-20f) * 0x1p40f)};
#endif
}

// 1 / T to the nearest, kept between the smallest and the largest normal number so that 0 / T is 0 and x / T isn't.
FULMEN_FN float inverse_temperature(float temperature) {
  if (temperature < 0x1p-126f) return 0x1.fffffep+127f;
  if (temperature > 0x1p+126f) return 0x1p-126f;
  return reciprocal(temperature);
}

// x is not NaN and max is finite and at least x; x = -inf has mass 0.
FULMEN_FN uint64_t logit_mass(float x, float max, float inverse_temperature) {
  return mass_of(exact_exp((x - max) * inverse_temperature));
}

// The least e with mass_of(e) >= mass: e 2^40 >= mass, mass rounded up to fp32's 24 bits.
FULMEN_FN float mass_floor(uint64_t mass) {
  int shift = 0;
  while ((mass >> shift) >= (uint64_t{1} << 24)) ++shift;
  uint64_t top = mass >> shift;
  if ((top << shift) != mass) ++top;
  return static_cast<float>(static_cast<uint32_t>(top)) * bits_float((127u + shift - kMassBits) << 23);
}

// mass 2^-40, rounded to nearest
FULMEN_FN float mass_value(uint64_t mass) {
#if defined(FULMEN_DEVICE_CODE)
  return __ull2float_rn(mass) * 0x1p-40f;
#else
  return static_cast<float>(mass) * 0x1p-40f;
#endif
}

// A fraction 0 <= p < 1 as 64-bit fixed point (rounded down below 2^-40), for products with masses.
FULMEN_FN uint64_t fraction_bits(float p) {
  const uint32_t bits = float_bits(p);
  const uint32_t exponent = bits >> 23;
  if (exponent < 64u) return 0;  // below 2^-63
  const uint64_t mantissa = (bits & 0x007fffffu) | 0x00800000u;
  // p = mantissa 2^(exponent - 150), so p 2^64 = mantissa 2^(exponent - 86)
  return exponent >= 86u ? mantissa << (exponent - 86u) : mantissa >> (86u - exponent);
}

// ceil(p mass), at least 1: what a nucleus must reach, or a word must have. p >= 1: all of it.
FULMEN_FN uint64_t mass_share(float p, uint64_t mass) {
  if (p >= 1.0f) return mass;
  const uint64_t share = mul_high_up(fraction_bits(p), mass);
  return share == 0 ? 1 : share;
}

}  // namespace fulmen
