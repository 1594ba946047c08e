// Operands for mma.sync m16n8k16 that can be made again anywhere from (seed, number): host and device read this file.
// Each number gives one instruction's operands, of a kind that searches for one trait of the matrix unit's additions.
#pragma once

#include <kernels/prelude/prelude.hpp>

namespace fulmen::vectors {

constexpr int kKinds = 8;
constexpr int kPerChunk = 512;  // instructions of one digest

FULMEN_FN uint64_t mix(uint64_t x) {
  x ^= x >> 30;
  x *= 0xbf58476d1ce4e5b9ull;
  x ^= x >> 27;
  x *= 0x94d049bb133111ebull;
  return x ^ (x >> 31);
}

FULMEN_FN uint64_t draw(uint64_t seed, uint64_t number, uint32_t place) {
  return mix(mix(seed + number * 0x9e3779b97f4a7c15ull) + place * 0xd1342543de82ef95ull);
}

struct Format {
  int exponent_bits, mantissa_bits;
};
FULMEN_FN Format format_of(DType type) {
  if (type == DType::bf16) return {8, 7};
  return {5, 10};
}

// A value with exponent in [low, high] (clamped to the format), random sign and fraction.
FULMEN_FN uint16_t value_between(Format f, uint64_t bits, int low, int high) {
  const int bias = (1 << (f.exponent_bits - 1)) - 1, top = (1 << f.exponent_bits) - 2;
  int exponent = low + static_cast<int>((bits >> 32) % static_cast<uint64_t>(high - low + 1)) + bias;
  exponent = exponent < 0 ? 0 : exponent > top ? top : exponent;
  const uint32_t fraction = static_cast<uint32_t>(bits) & ((1u << f.mantissa_bits) - 1);
  return static_cast<uint16_t>((bits >> 63) << 15 | static_cast<uint32_t>(exponent) << f.mantissa_bits | fraction);
}

FULMEN_FN uint16_t operand(DType type, int kind, uint64_t bits, bool zero) {
  const Format f = format_of(type);
  switch (kind) {
    case 0: return value_between(f, bits, -2, 2);
    case 1: return value_between(f, bits, -14, 14);
    case 2: return static_cast<uint16_t>(bits);                                                  // anything, NaN too
    case 3: return value_between(f, bits, -6, 6);                                                // cancels, see a_value
    case 4: return zero ? static_cast<uint16_t>((bits >> 63) << 15) : value_between(f, bits, -12, 0);
    case 5: return static_cast<uint16_t>((bits >> 63) << 15 | (bits & ((1u << f.mantissa_bits) - 1)));  // subnormal
    case 6: return value_between(f, bits, (bits >> 8 & 7) == 0 ? 10 : -12, (bits >> 8 & 7) == 0 ? 12 : -10);  // few large ones
    default: return value_between(f, bits & ~uint64_t{0x3ff}, 0, 3);                             // small dyadic numbers
  }
}

FULMEN_FN uint16_t b_value(DType type, uint64_t seed, uint64_t number, int k, int n) {
  const int kind = static_cast<int>(number % kKinds);
  if (kind == 5 && k % 2 == 1) return value_between(format_of(type), draw(seed, number, 1000u + 8 * k + n), 0, 12);
  if (kind == 3 && k % 2 == 1) {
    // The term before, negated, with its last bits changed now and then.
    const uint16_t before = operand(type, kind, draw(seed, number, 1000u + 8 * (k - 1) + n), false);
    return static_cast<uint16_t>(before ^ 0x8000u ^ ((draw(seed, number, 1000u + 8 * k + n) & 3) == 0 ? 1u : 0u));
  }
  const uint64_t bits = draw(seed, number, 1000u + 8 * k + n);
  return operand(type, kind, bits, (bits >> 20 & 1) != 0);
}
FULMEN_FN uint16_t a_value(DType type, uint64_t seed, uint64_t number, int m, int k) {
  const int kind = static_cast<int>(number % kKinds);
  if (kind == 3) k &= ~1;
  const uint64_t bits = draw(seed, number, 16 * m + k);
  return operand(type, kind, bits, (bits >> 20 & 1) != 0);
}
FULMEN_FN float c_value(uint64_t seed, uint64_t number, int m, int n) {
  const uint64_t bits = draw(seed, number, 2000u + 8 * m + n);
  const uint32_t fraction = static_cast<uint32_t>(bits) & 0x807fffffu;
  switch (number / kKinds % 4) {
    case 0: return 0.0f;
    case 1: return bits_float(fraction | (127u - 3 + (bits >> 40) % 7) << 23);
    case 2: return bits_float(fraction | (127u - 30 + (bits >> 40) % 60) << 23);
    default: return number % kKinds == 2 ? bits_float(static_cast<uint32_t>(bits >> 16)) : bits_float(fraction | (1u + (bits >> 40) % 40) << 23);
  }
}

// Order-free: the digest of a chunk is the sum over its results.
FULMEN_FN uint64_t digest_term(uint64_t number, int m, int n, float d) {
  return mix((number * 128 + static_cast<uint64_t>(8 * m + n)) << 32 ^ float_bits(d));
}

}  // namespace fulmen::vectors
