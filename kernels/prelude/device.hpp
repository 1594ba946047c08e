// The one door to the device: what a kernel may use beyond plain C++ comes in here.
//   NVRTC      the compiler's own builtins (threadIdx, __syncthreads, __shfl_*_sync, atomics, vector types, ...).
//   emulator   the same names, supplied by emulator/device.hpp, which the build puts in front of every emulated unit
//              (-include), so that kernels/ includes nothing from outside. A name it lacks is a compile error.
// Everything that needs PTX stands in kernels/ptx.
#pragma once

#include <kernels/prelude/prelude.hpp>

#if defined(__CUDACC_RTC__)
#define FULMEN_DEVICE __device__ __forceinline__
#elif defined(FULMEN_EMULATOR)
#if !defined(FULMEN_EMULATOR_DEVICE)
#error "emulated units are compiled with -include emulator/device.hpp (see fulmen_emulated_sources in emulator/CMakeLists.txt)"
#endif
#define FULMEN_DEVICE inline __attribute__((always_inline))
#else
#error "device code: compiled by NVRTC or for the emulator only"
#endif

namespace fulmen {

constexpr int kWarpSize = 32;
constexpr uint32_t kFullMask = 0xffffffffu;

FULMEN_DEVICE int lane_index() { return static_cast<int>(threadIdx.x % kWarpSize); }
FULMEN_DEVICE int warp_index() { return static_cast<int>(threadIdx.x / kWarpSize); }

// The block's dynamic shared memory, 128-byte aligned: the launch gives its size. One struct or array per kernel lies here.
template <class T> FULMEN_DEVICE T* dynamic_shared() {
#if defined(FULMEN_EMULATOR)
  return static_cast<T*>(emulator::dynamic_shared_base());
#else
  extern __shared__ __align__(128) unsigned char fulmen_dynamic_shared[];
  return reinterpret_cast<T*>(fulmen_dynamic_shared);
#endif
}

template <class T> FULMEN_DEVICE T& shared_storage() { return *dynamic_shared<T>(); }

// Static shared memory: one T per block for each kTag.
template <class T, int kTag = 0> FULMEN_DEVICE T& static_shared() {
#if defined(FULMEN_EMULATOR)
  static char key;  // its address names this T and kTag
  return *static_cast<T*>(emulator::static_shared_base(&key, sizeof(T), alignof(T)));
#else
  __shared__ __align__(alignof(T)) unsigned char bytes[sizeof(T)];
  return *reinterpret_cast<T*>(bytes);
#endif
}

}  // namespace fulmen
