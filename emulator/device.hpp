// The device as a kernel sees it: the names that NVRTC has built in. The build puts this file in front of every emulated unit.
#pragma once

#if !defined(FULMEN_EMULATOR)
#error "emulated units define FULMEN_EMULATOR"
#endif
#define FULMEN_EMULATOR_DEVICE 1

// Standard headers first: the markers below are names that they use for themselves.
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "emulator/instructions.hpp"

// ---- markers
#define __device__
#define __host__
#define __global__
#define __forceinline__ inline __attribute__((always_inline))
#define __grid_constant__
#define __launch_bounds__(...)
#define __align__(n) alignas(n)

#define threadIdx (::fulmen::emulator::thread_index())
#define blockIdx (::fulmen::emulator::block_index())
#define blockDim (::fulmen::emulator::block_size())
#define gridDim (::fulmen::emulator::grid_size())
#define warpSize 32

// ---- vector types
#define FULMEN_VECTOR(T, name, n2, n4)                                            \
  struct alignas(n2) name##2 {                                                    \
    T x, y;                                                                       \
  };                                                                              \
  struct name##3 {                                                                \
    T x, y, z;                                                                    \
  };                                                                              \
  struct alignas(n4) name##4 {                                                    \
    T x, y, z, w;                                                                 \
  };                                                                              \
  FULMEN_INLINED name##2 make_##name##2(T x, T y) { return {x, y}; }              \
  FULMEN_INLINED name##3 make_##name##3(T x, T y, T z) { return {x, y, z}; }      \
  FULMEN_INLINED name##4 make_##name##4(T x, T y, T z, T w) { return {x, y, z, w}; }
FULMEN_VECTOR(unsigned char, uchar, 2, 4)
FULMEN_VECTOR(short, short, 4, 8)
FULMEN_VECTOR(unsigned short, ushort, 4, 8)
FULMEN_VECTOR(int, int, 8, 16)
FULMEN_VECTOR(unsigned, uint, 8, 16)
FULMEN_VECTOR(float, float, 8, 16)
FULMEN_VECTOR(double, double, 16, 16)
#undef FULMEN_VECTOR
struct alignas(16) longlong2 {
  long long x, y;
};
struct alignas(16) ulonglong2 {
  unsigned long long x, y;
};

// ---- warps
FULMEN_INLINED void __syncwarp(unsigned mask = 0xffffffffu) { fulmen::emulator::warp_sync(mask); }
FULMEN_INLINED unsigned __activemask() { return fulmen::emulator::active_mask(); }
template <class T> FULMEN_INLINED T __shfl_sync(unsigned mask, T value, int lane, int width = 32) {
  using namespace fulmen::emulator;
  return narrow<T>(shuffle(Shuffle::index, mask, widen(value), static_cast<uint32_t>(lane), width));
}
template <class T> FULMEN_INLINED T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32) {
  using namespace fulmen::emulator;
  return narrow<T>(shuffle(Shuffle::up, mask, widen(value), delta, width));
}
template <class T> FULMEN_INLINED T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32) {
  using namespace fulmen::emulator;
  return narrow<T>(shuffle(Shuffle::down, mask, widen(value), delta, width));
}
template <class T> FULMEN_INLINED T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = 32) {
  using namespace fulmen::emulator;
  return narrow<T>(shuffle(Shuffle::exclusive_or, mask, widen(value), static_cast<uint32_t>(lane_mask), width));
}
FULMEN_INLINED unsigned __ballot_sync(unsigned mask, int predicate) {
  return fulmen::emulator::vote(fulmen::emulator::Vote::ballot, mask, predicate != 0);
}
FULMEN_INLINED int __any_sync(unsigned mask, int predicate) {
  return static_cast<int>(fulmen::emulator::vote(fulmen::emulator::Vote::any, mask, predicate != 0));
}
FULMEN_INLINED int __all_sync(unsigned mask, int predicate) {
  return static_cast<int>(fulmen::emulator::vote(fulmen::emulator::Vote::all, mask, predicate != 0));
}
FULMEN_INLINED unsigned __reduce_add_sync(unsigned mask, unsigned value) {
  return fulmen::emulator::vote(fulmen::emulator::Vote::add, mask, value);
}
FULMEN_INLINED int __reduce_add_sync(unsigned mask, int value) {
  return static_cast<int>(fulmen::emulator::vote(fulmen::emulator::Vote::add, mask, static_cast<uint32_t>(value)));
}
FULMEN_INLINED unsigned __reduce_min_sync(unsigned mask, unsigned value) {
  return fulmen::emulator::vote(fulmen::emulator::Vote::minimum, mask, value);
}
FULMEN_INLINED int __reduce_min_sync(unsigned mask, int value) {
  return static_cast<int>(fulmen::emulator::vote(fulmen::emulator::Vote::minimum_signed, mask, static_cast<uint32_t>(value)));
}
FULMEN_INLINED unsigned __reduce_max_sync(unsigned mask, unsigned value) {
  return fulmen::emulator::vote(fulmen::emulator::Vote::maximum, mask, value);
}
FULMEN_INLINED int __reduce_max_sync(unsigned mask, int value) {
  return static_cast<int>(fulmen::emulator::vote(fulmen::emulator::Vote::maximum_signed, mask, static_cast<uint32_t>(value)));
}
FULMEN_INLINED unsigned __reduce_and_sync(unsigned mask, unsigned value) {
  return fulmen::emulator::vote(fulmen::emulator::Vote::bit_and, mask, value);
}
FULMEN_INLINED unsigned __reduce_or_sync(unsigned mask, unsigned value) {
  return fulmen::emulator::vote(fulmen::emulator::Vote::bit_or, mask, value);
}
FULMEN_INLINED unsigned __reduce_xor_sync(unsigned mask, unsigned value) {
  return fulmen::emulator::vote(fulmen::emulator::Vote::bit_xor, mask, value);
}
template <class T> FULMEN_INLINED unsigned __match_any_sync(unsigned mask, T value) {
  static_assert(sizeof(T) == 4, "the emulator matches 32-bit values");
  return fulmen::emulator::vote(fulmen::emulator::Vote::match, mask, fulmen::emulator::bit_cast_to<uint32_t>(value));
}

// ---- blocks
FULMEN_INLINED void __syncthreads() { fulmen::emulator::block_sync(fulmen::emulator::BlockVote::none, 0); }
FULMEN_INLINED int __syncthreads_count(int predicate) {
  return fulmen::emulator::block_sync(fulmen::emulator::BlockVote::count, predicate);
}
FULMEN_INLINED int __syncthreads_or(int predicate) {
  return fulmen::emulator::block_sync(fulmen::emulator::BlockVote::any, predicate);
}
FULMEN_INLINED int __syncthreads_and(int predicate) {
  return fulmen::emulator::block_sync(fulmen::emulator::BlockVote::all, predicate);
}
FULMEN_INLINED void __threadfence() { fulmen::emulator::fence(fulmen::emulator::Scope::gpu); }
FULMEN_INLINED void __threadfence_block() { fulmen::emulator::fence(fulmen::emulator::Scope::block); }

// ---- atomics: relaxed, as CUDA's are
namespace fulmen::emulator {
template <class T> constexpr Number number_of() {
  if constexpr (__is_same(T, float)) {
    return Number::f32;
  } else if constexpr (__is_same(T, double)) {
    return Number::f64;
  } else if constexpr (sizeof(T) == 8) {
    return T(-1) < T(0) ? Number::s64 : Number::u64;
  } else if constexpr (sizeof(T) == 2) {
    return Number::u16;
  } else {
    static_assert(sizeof(T) == 4);
    return T(-1) < T(0) ? Number::s32 : Number::u32;
  }
}
template <class T> struct Same {
  using type = T;
};
}  // namespace fulmen::emulator
#define FULMEN_ATOMIC(name, operation)                                                                              \
  template <class T> FULMEN_INLINED T name(T* p, typename fulmen::emulator::Same<T>::type v) {                      \
    using namespace fulmen::emulator;                                                                               \
    return narrow<T>(atomic(p, Rmw::operation, number_of<T>(), widen(v), 0, Order::relaxed, Scope::gpu));           \
  }                                                                                                                 \
  template <class T> FULMEN_INLINED T name##_block(T* p, typename fulmen::emulator::Same<T>::type v) {              \
    using namespace fulmen::emulator;                                                                               \
    return narrow<T>(atomic(p, Rmw::operation, number_of<T>(), widen(v), 0, Order::relaxed, Scope::block));         \
  }
FULMEN_ATOMIC(atomicAdd, add)
FULMEN_ATOMIC(atomicExch, exchange)
FULMEN_ATOMIC(atomicMin, minimum)
FULMEN_ATOMIC(atomicMax, maximum)
FULMEN_ATOMIC(atomicAnd, bit_and)
FULMEN_ATOMIC(atomicOr, bit_or)
FULMEN_ATOMIC(atomicXor, bit_xor)
#undef FULMEN_ATOMIC
template <class T>
FULMEN_INLINED T atomicSub(T* p, typename fulmen::emulator::Same<T>::type v) {
  return atomicAdd(p, static_cast<T>(T(0) - v));
}
template <class T>
FULMEN_INLINED T atomicCAS(T* p, typename fulmen::emulator::Same<T>::type compare, typename fulmen::emulator::Same<T>::type v) {
  using namespace fulmen::emulator;
  return narrow<T>(atomic(p, Rmw::compare_exchange, number_of<T>(), widen(v), widen(compare), Order::relaxed, Scope::gpu));
}
template <class T> FULMEN_INLINED T __ldg(const T* p) { return *p; }
template <class T> FULMEN_INLINED T __ldcg(const T* p) { return *p; }
template <class T> FULMEN_INLINED T __ldcs(const T* p) { return *p; }
template <class T> FULMEN_INLINED void __stcs(T* p, T v) { *p = v; }
template <class T> FULMEN_INLINED void __stcg(T* p, T v) { *p = v; }

// ---- numbers
FULMEN_INLINED float __fmaf_rn(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
FULMEN_INLINED float __fadd_rn(float a, float b) { return a + b; }
FULMEN_INLINED float __fsub_rn(float a, float b) { return a - b; }
FULMEN_INLINED float __fmul_rn(float a, float b) { return a * b; }
FULMEN_INLINED float __fdiv_rn(float a, float b) { return a / b; }
FULMEN_INLINED float __fdividef(float a, float b) { return a / b; }
FULMEN_INLINED float __fsqrt_rn(float a) { return __builtin_sqrtf(a); }
FULMEN_INLINED float __frcp_rn(float a) { return 1.0f / a; }
FULMEN_INLINED double __dadd_rn(double a, double b) { return a + b; }
FULMEN_INLINED double __dmul_rn(double a, double b) { return a * b; }
FULMEN_INLINED double __fma_rn(double a, double b, double c) { return __builtin_fma(a, b, c); }
FULMEN_INLINED unsigned __float_as_uint(float x) { return fulmen::emulator::bit_cast_to<unsigned>(x); }
FULMEN_INLINED int __float_as_int(float x) { return fulmen::emulator::bit_cast_to<int>(x); }
FULMEN_INLINED float __uint_as_float(unsigned x) { return fulmen::emulator::bit_cast_to<float>(x); }
FULMEN_INLINED float __int_as_float(int x) { return fulmen::emulator::bit_cast_to<float>(x); }
FULMEN_INLINED long long __double_as_longlong(double x) { return fulmen::emulator::bit_cast_to<long long>(x); }
FULMEN_INLINED double __longlong_as_double(long long x) { return fulmen::emulator::bit_cast_to<double>(x); }
FULMEN_INLINED float __int2float_rn(int x) { return static_cast<float>(x); }
FULMEN_INLINED float __uint2float_rn(unsigned x) { return static_cast<float>(x); }
FULMEN_INLINED int __float2int_rn(float x) { return x != x ? 0 : x >= 2147483648.0f ? 2147483647 : x < -2147483648.0f ? -2147483647 - 1 : static_cast<int>(__builtin_nearbyintf(x)); }
FULMEN_INLINED int __float2int_rz(float x) { return x != x ? 0 : x >= 2147483648.0f ? 2147483647 : x < -2147483648.0f ? -2147483647 - 1 : static_cast<int>(x); }
FULMEN_INLINED int __float2int_rd(float x) { return __float2int_rz(__builtin_floorf(x)); }
FULMEN_INLINED int __popc(unsigned x) { return __builtin_popcount(x); }
FULMEN_INLINED int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
FULMEN_INLINED int __clz(int x) { return x == 0 ? 32 : __builtin_clz(static_cast<unsigned>(x)); }
FULMEN_INLINED int __clzll(long long x) { return x == 0 ? 64 : __builtin_clzll(static_cast<unsigned long long>(x)); }
FULMEN_INLINED int __ffs(int x) { return __builtin_ffs(x); }
FULMEN_INLINED int __ffsll(long long x) { return __builtin_ffsll(x); }
FULMEN_INLINED unsigned __brev(unsigned x) {
  unsigned y = 0;
  for (int i = 0; i < 32; ++i) y |= ((x >> i) & 1u) << (31 - i);
  return y;
}
FULMEN_INLINED unsigned __umulhi(unsigned a, unsigned b) { return static_cast<unsigned>((static_cast<uint64_t>(a) * b) >> 32); }
FULMEN_INLINED int __mulhi(int a, int b) { return static_cast<int>((static_cast<int64_t>(a) * b) >> 32); }
FULMEN_INLINED unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
  __extension__ typedef unsigned __int128 Wide;
  return static_cast<unsigned long long>((static_cast<Wide>(a) * b) >> 64);
}
FULMEN_INLINED unsigned __funnelshift_l(unsigned low, unsigned high, unsigned shift) {
  return static_cast<unsigned>((((static_cast<uint64_t>(high) << 32) | low) << (shift & 31u)) >> 32);
}
FULMEN_INLINED unsigned __funnelshift_r(unsigned low, unsigned high, unsigned shift) {
  return static_cast<unsigned>(((static_cast<uint64_t>(high) << 32) | low) >> (shift & 31u));
}
FULMEN_INLINED unsigned __byte_perm(unsigned low, unsigned high, unsigned selector) {
  const uint64_t bytes = (static_cast<uint64_t>(high) << 32) | low;
  unsigned out = 0;
  for (int i = 0; i < 4; ++i) {
    const unsigned pick = (selector >> (4 * i)) & 0xfu;
    unsigned byte = static_cast<unsigned>(bytes >> (8 * (pick & 7u))) & 0xffu;
    if ((pick & 8u) != 0) byte = (byte & 0x80u) != 0 ? 0xffu : 0u;
    out |= byte << (8 * i);
  }
  return out;
}
FULMEN_INLINED float __saturatef(float x) { return x != x || x < 0.0f ? 0.0f : x > 1.0f ? 1.0f : x; }
FULMEN_INLINED long long clock64() { return fulmen::emulator::clock_now(); }
FULMEN_INLINED void __nanosleep(unsigned) { fulmen::emulator::sleep_hint(); }
[[noreturn]] FULMEN_INLINED void __trap() { fulmen::emulator::trap(); }
