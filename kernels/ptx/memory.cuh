// Loads, stores and atomics whose cache policy, order or scope matters.
#pragma once

#include <kernels/prelude/prelude.hpp>

namespace fulmen::ptx {

struct alignas(16) Words4 {
  uint32_t x, y, z, w;
};

// 16 bytes that are read once and not kept in L1.
FULMEN_FN Words4 load_streaming_16(const void* p) {
#if defined(FULMEN_DEVICE_CODE)
  Words4 v;
  asm volatile("ld.global.L1::no_allocate.v4.b32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(p)
               : "memory");
  return v;
#endif
}

FULMEN_FN void store_16(void* p, Words4 v) {
#if defined(FULMEN_DEVICE_CODE)
  asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(p), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w) : "memory");
#endif
}

// Adds and returns the old value; what this thread wrote (and saw) before is visible to whoever reads the result with
// acquire order, device-wide; and the other way round.
FULMEN_FN uint32_t atomic_add_acq_rel_gpu(uint32_t* p, uint32_t v) {
#if defined(FULMEN_DEVICE_CODE)
  uint32_t old;
  asm volatile("atom.acq_rel.gpu.global.add.u32 %0, [%1], %2;" : "=r"(old) : "l"(p), "r"(v) : "memory");
  return old;
#endif
}

FULMEN_FN uint32_t atomic_add_relaxed_gpu(uint32_t* p, uint32_t v) {
#if defined(FULMEN_DEVICE_CODE)
  uint32_t old;
  asm volatile("atom.relaxed.gpu.global.add.u32 %0, [%1], %2;" : "=r"(old) : "l"(p), "r"(v) : "memory");
  return old;
#endif
}

// The 32-bit address that shared-memory instructions take.
FULMEN_FN uint32_t shared_address(const void* p) {
#if defined(FULMEN_DEVICE_CODE)
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
#endif
}

}  // namespace fulmen::ptx
