// cvt (sm_80; f8 from sm_89 on, integers before): number formats. What the instructions do is math/formats.hpp, which is also
// what every other compiler gets, so these functions may be called on the host.
#pragma once

#include <kernels/math/formats.hpp>
#include <kernels/prelude/prelude.hpp>

namespace fulmen::ptx {

FULMEN_FN uint16_t cvt_bf16(float x) {
#if defined(FULMEN_DEVICE_CODE)
  uint16_t bits;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(x));
  return bits;
#else
  return static_cast<uint16_t>(Bf16Format::narrow_bits(float_bits(x)));
#endif
}

FULMEN_FN uint16_t cvt_f16(float x) {
#if defined(FULMEN_DEVICE_CODE)
  uint16_t bits;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(x));
  return bits;
#else
  return static_cast<uint16_t>(F16Format::narrow_bits(float_bits(x)));
#endif
}

// Two fp32 values to two 16-bit ones in one register; `low` lands in the low half.
FULMEN_FN uint32_t cvt_bf16x2(float low, float high) {
#if defined(FULMEN_DEVICE_CODE)
  uint32_t r;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
  return r;
#else
  return Bf16Format::narrow_bits(float_bits(low)) | Bf16Format::narrow_bits(float_bits(high)) << 16;
#endif
}

FULMEN_FN uint32_t cvt_f16x2(float low, float high) {
#if defined(FULMEN_DEVICE_CODE)
  uint32_t r;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
  return r;
#else
  return F16Format::narrow_bits(float_bits(low)) | F16Format::narrow_bits(float_bits(high)) << 16;
#endif
}

FULMEN_FN float cvt_f16_to_f32(uint16_t bits) {
#if defined(FULMEN_DEVICE_CODE)
  float y;
  asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(bits));
  return y;
#else
  return bits_float(F16Format::widen_bits(bits));
#endif
}

FULMEN_FN float cvt_e4m3_to_f32(uint8_t bits) {
#if defined(FULMEN_DEVICE_CODE)
  // An e4m3 moved into f16's fields is 2^-8 of its value, subnormals included; only its NaN needs a test.
  const uint32_t magnitude = bits & 0x7fu;
  const float scaled = cvt_f16_to_f32(static_cast<uint16_t>((bits & 0x80u) << 8 | magnitude << 7)) * 256.0f;
  return magnitude == 0x7fu ? bits_float(0x7fffffffu) : scaled;
#else
  return bits_float(F8E4M3Format::widen_bits(bits));
#endif
}

FULMEN_FN uint8_t cvt_e4m3(float x) {
#if defined(FULMEN_DEVICE_CODE) && __CUDA_ARCH__ >= 890
  uint16_t pair;
  asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(pair) : "f"(0.0f), "f"(x));
  return static_cast<uint8_t>(pair);
#else
  return static_cast<uint8_t>(F8E4M3Format::narrow_bits(float_bits(x)));
#endif
}

FULMEN_FN uint8_t cvt_e5m2(float x) {
#if defined(FULMEN_DEVICE_CODE) && __CUDA_ARCH__ >= 890
  uint16_t pair;
  asm("cvt.rn.satfinite.e5m2x2.f32 %0, %1, %2;" : "=h"(pair) : "f"(0.0f), "f"(x));
  return static_cast<uint8_t>(pair);
#else
  return static_cast<uint8_t>(F8E5M2Format::narrow_bits(float_bits(x)));
#endif
}

}  // namespace fulmen::ptx
