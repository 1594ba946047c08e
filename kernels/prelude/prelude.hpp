// What every file of kernels/ may lean on: integer types, function markers, dtypes, exact scalar helpers.
// Read by three compilers: NVRTC (no include path, no standard headers), the host compiler for the CPU back end and
// the planner, and the host compiler for the emulator.
#pragma once

#if defined(__CUDACC_RTC__)
#define FULMEN_DEVICE_CODE 1
#define FULMEN_FN __device__ __forceinline__
using int8_t = signed char;
using uint8_t = unsigned char;
using int16_t = short;
using uint16_t = unsigned short;
using int32_t = int;
using uint32_t = unsigned int;
using int64_t = long long;
using uint64_t = unsigned long long;
using size_t = decltype(sizeof(0));
using uintptr_t = unsigned long long;
#else
#include <stddef.h>
#include <stdint.h>
#if defined(FULMEN_EMULATOR)
// Inlined as on the device, so that an address in the code tells the whole chain of calls in an emulator's report.
#define FULMEN_FN inline __attribute__((always_inline))
#else
#define FULMEN_FN inline
#endif
#endif

namespace fulmen {

// Values are those of fulmen_dtype in fulmen.h.
enum class DType : int32_t { f32 = 0, f16 = 1, bf16 = 2, f8_e4m3 = 3, f8_e5m2 = 4, i32 = 5, i64 = 6, u8 = 7, u32 = 8, u64 = 9 };

FULMEN_FN constexpr int dtype_bytes(DType t) {
  return t == DType::f32 || t == DType::i32 || t == DType::u32   ? 4
         : t == DType::f16 || t == DType::bf16                   ? 2
         : t == DType::i64 || t == DType::u64                    ? 8
                                                                 : 1;
}

// Storage types: bits only. Conversions stand in math/convert.hpp.
struct f16 {
  uint16_t bits;
};
struct bf16 {
  uint16_t bits;
};
struct f8_e4m3 {
  uint8_t bits;
};
struct f8_e5m2 {
  uint8_t bits;
};

template <DType> struct StorageOf;
template <> struct StorageOf<DType::f32> { using type = float; };
template <> struct StorageOf<DType::f16> { using type = f16; };
template <> struct StorageOf<DType::bf16> { using type = bf16; };
template <> struct StorageOf<DType::f8_e4m3> { using type = f8_e4m3; };
template <> struct StorageOf<DType::f8_e5m2> { using type = f8_e5m2; };
template <> struct StorageOf<DType::i32> { using type = int32_t; };
template <> struct StorageOf<DType::i64> { using type = int64_t; };
template <DType T> using storage_t = typename StorageOf<T>::type;

template <class T> FULMEN_FN constexpr T min(T a, T b) { return b < a ? b : a; }
template <class T> FULMEN_FN constexpr T max(T a, T b) { return a < b ? b : a; }
template <class T> FULMEN_FN constexpr T ceil_div(T a, T b) { return (a + b - 1) / b; }
template <class T> FULMEN_FN constexpr T round_up(T a, T b) { return ceil_div(a, b) * b; }

template <bool kFirst, class A, class B> struct ChooseOf { using type = A; };
template <class A, class B> struct ChooseOf<false, A, B> { using type = B; };
template <bool kFirst, class A, class B> using Choose = typename ChooseOf<kFirst, A, B>::type;

// One rounding, on every back end: the host's builtin is IEEE fma whether or not the CPU has the instruction.
FULMEN_FN float fma(float a, float b, float c) {
#if defined(FULMEN_DEVICE_CODE)
  return __fmaf_rn(a, b, c);
#else
  return __builtin_fmaf(a, b, c);
#endif
}

FULMEN_FN uint32_t float_bits(float x) {
#if defined(FULMEN_DEVICE_CODE)
  return __float_as_uint(x);
#else
  return __builtin_bit_cast(uint32_t, x);
#endif
}
FULMEN_FN float bits_float(uint32_t x) {
#if defined(FULMEN_DEVICE_CODE)
  return __uint_as_float(x);
#else
  return __builtin_bit_cast(float, x);
#endif
}

FULMEN_FN float infinity() { return bits_float(0x7f800000u); }
FULMEN_FN float quiet_nan() { return bits_float(0x7fc00000u); }

}  // namespace fulmen
