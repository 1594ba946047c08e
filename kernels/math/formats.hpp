// The narrow number formats, to the bit: what the conversion instructions do, written with integers.
// To nearest, ties to even. f8 saturates to the largest finite value (infinities too), as cvt.rn.satfinite does. NaN becomes
// the GPU's canonical NaN (bf16 and f16 0x7fff, f8 0x7f, f32 0x7fffffff), except that bf16 -> f32 keeps its bits.
#pragma once

#include <kernels/prelude/prelude.hpp>

namespace fulmen {

// A binary format narrower than f32. kInfinity: it has infinities (its top exponent is reserved).
template <int kExponentBits, int kMantissaBits, bool kInfinity, bool kSaturate> struct NarrowFormat {
  static constexpr int kBias = (1 << (kExponentBits - 1)) - 1;
  static constexpr uint32_t kSign = 1u << (kExponentBits + kMantissaBits);
  static constexpr uint32_t kNan = kSign - 1;
  // Largest finite magnitude: e4m3 uses its top exponent for numbers and gives only the last code to NaN.
  static constexpr uint32_t kMaxFinite = kInfinity ? (((1u << kExponentBits) - 1) << kMantissaBits) - 1 : kNan - 1;
  static constexpr uint32_t kOverflow = kSaturate ? kMaxFinite : kMaxFinite + 1;

  static FULMEN_FN uint32_t narrow_bits(uint32_t x) {
    const uint32_t sign = (x >> 31) != 0 ? kSign : 0u;
    const uint32_t magnitude = x & 0x7fffffffu;
    if (magnitude > 0x7f800000u) return kNan;
    const int exponent = static_cast<int>(magnitude >> 23) - 127;  // of the float; subnormal floats are below every format here
    // Bits of the significand that fall away: 23 - kMantissaBits, more when the result is subnormal.
    int drop = 23 - kMantissaBits;
    uint32_t result;
    if (exponent < 1 - kBias) {
      drop += 1 - kBias - exponent;
      if (drop > 25) return sign;  // under half of the smallest subnormal
      const uint32_t significand = (magnitude & 0x7fffffu) | (magnitude >= 0x800000u ? 0x800000u : 0u);
      result = round_shift(significand, drop);
    } else {
      // Exponent and fraction as one number, so that a carry out of the fraction raises the exponent.
      result = round_shift(magnitude - (static_cast<uint32_t>(127 - kBias) << 23), drop);
    }
    return sign | (result > kMaxFinite ? kOverflow : result);
  }

  static FULMEN_FN uint32_t widen_bits(uint32_t x) {
    const uint32_t sign = (x & kSign) != 0 ? 0x80000000u : 0u;
    const uint32_t magnitude = x & kNan;
    if (magnitude > kMaxFinite) return kInfinity && magnitude == kMaxFinite + 1 ? sign | 0x7f800000u : 0x7fffffffu;
    if (magnitude >= (1u << kMantissaBits)) {
      return sign | ((magnitude << (23 - kMantissaBits)) + (static_cast<uint32_t>(127 - kBias) << 23));
    }
    if (magnitude == 0) return sign;
    // Subnormal: a small integer times a power of two, exact in f32.
    const float scaled = static_cast<float>(magnitude) * bits_float(static_cast<uint32_t>(127 + 1 - kBias - kMantissaBits) << 23);
    return sign | float_bits(scaled);
  }

 private:
  static FULMEN_FN uint32_t round_shift(uint32_t value, int drop) {
    const uint32_t half = 1u << (drop - 1);
    const uint32_t rest = value & ((half << 1) - 1);
    const uint32_t kept = value >> drop;
    return kept + ((rest > half || (rest == half && (kept & 1u) != 0)) ? 1u : 0u);
  }
};

using F16Format = NarrowFormat<5, 10, true, false>;
using F8E4M3Format = NarrowFormat<4, 3, false, true>;
using F8E5M2Format = NarrowFormat<5, 2, true, true>;

// bf16 shares f32's exponent: its subnormals are f32's, and rounding is one addition.
struct Bf16Format {
  static FULMEN_FN uint32_t narrow_bits(uint32_t x) {
    if ((x & 0x7fffffffu) > 0x7f800000u) return 0x7fffu;
    return (x + 0x7fffu + ((x >> 16) & 1u)) >> 16;
  }
  static FULMEN_FN uint32_t widen_bits(uint32_t x) { return x << 16; }
};

}  // namespace fulmen
