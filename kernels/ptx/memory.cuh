// Loads, stores and atomics whose cache policy, order or scope matters.
// Emulated: cache policies change nothing but are counted like any access; orders and scopes feed the race detector, which knows
// release/acquire at block and device scope.
#pragma once

#include <kernels/prelude/device.hpp>

namespace fulmen::ptx {

struct alignas(16) Words4 {
  uint32_t x, y, z, w;
};

// 16 bytes; the address is a multiple of 16.
FULMEN_FN Words4 load_16(const void* p) {
#if defined(FULMEN_DEVICE_CODE)
  return *static_cast<const Words4*>(p);
#else
  Words4 v;
  emulator::load_vector(p, &v, 16);
  return v;
#endif
}

// The same the other way, in whatever memory p lies.
FULMEN_FN void put_16(void* p, Words4 v) {
#if defined(FULMEN_DEVICE_CODE)
  *static_cast<Words4*>(p) = v;
#else
  emulator::store_vector(p, &v, 16);
#endif
}

// 16 bytes that are read once and not kept in L1.
FULMEN_FN Words4 load_streaming_16(const void* p) {
#if defined(FULMEN_DEVICE_CODE)
  Words4 v;
  asm volatile("ld.global.L1::no_allocate.v4.b32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(p)
               : "memory");
  return v;
#else
  return load_16(p);
#endif
}

FULMEN_FN void store_16(void* p, Words4 v) {
#if defined(FULMEN_DEVICE_CODE)
  asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(p), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w) : "memory");
#else
  emulator::store_vector(p, &v, 16);
#endif
}

// Written once, read by nobody soon: evicted first.
FULMEN_FN void store_streaming_16(void* p, Words4 v) {
#if defined(FULMEN_DEVICE_CODE)
  asm volatile("st.global.cs.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(p), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w) : "memory");
#else
  emulator::store_vector(p, &v, 16);
#endif
}

// Asks for the line of `p` in L2; any address is allowed, nothing waits.
FULMEN_FN void prefetch_l2(const void* p) {
#if defined(FULMEN_DEVICE_CODE)
  asm volatile("prefetch.global.L2 [%0];" ::"l"(p));
#else
  emulator::prefetch(p);
#endif
}

// Adds and returns the old value; what this thread wrote (and saw) before is visible to whoever reads the result with
// acquire order, device-wide; and the other way round.
FULMEN_FN uint32_t atomic_add_acq_rel_gpu(uint32_t* p, uint32_t v) {
#if defined(FULMEN_DEVICE_CODE)
  uint32_t old;
  asm volatile("atom.acq_rel.gpu.global.add.u32 %0, [%1], %2;" : "=r"(old) : "l"(p), "r"(v) : "memory");
  return old;
#else
  return static_cast<uint32_t>(emulator::atomic_add_u32(p, v, emulator::Order::acq_rel, emulator::Scope::gpu));
#endif
}

FULMEN_FN uint32_t atomic_add_relaxed_gpu(uint32_t* p, uint32_t v) {
#if defined(FULMEN_DEVICE_CODE)
  uint32_t old;
  asm volatile("atom.relaxed.gpu.global.add.u32 %0, [%1], %2;" : "=r"(old) : "l"(p), "r"(v) : "memory");
  return old;
#else
  return static_cast<uint32_t>(emulator::atomic_add_u32(p, v, emulator::Order::relaxed, emulator::Scope::gpu));
#endif
}

FULMEN_FN void red_add_release_gpu(uint32_t* p, uint32_t v) {
#if defined(FULMEN_DEVICE_CODE)
  asm volatile("red.release.gpu.global.add.u32 [%0], %1;" ::"l"(p), "r"(v) : "memory");
#else
  emulator::atomic_add_u32(p, v, emulator::Order::release, emulator::Scope::gpu);
#endif
}

FULMEN_FN uint32_t load_acquire_gpu(const uint32_t* p) {
#if defined(FULMEN_DEVICE_CODE)
  uint32_t v;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(v) : "l"(p) : "memory");
  return v;
#else
  return emulator::atomic_load_u32(p, emulator::Order::acquire, emulator::Scope::gpu);
#endif
}

FULMEN_FN uint32_t load_relaxed_gpu(const uint32_t* p) {
#if defined(FULMEN_DEVICE_CODE)
  uint32_t v;
  asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(v) : "l"(p) : "memory");
  return v;
#else
  return emulator::atomic_load_u32(p, emulator::Order::relaxed, emulator::Scope::gpu);
#endif
}

FULMEN_FN void store_release_gpu(uint32_t* p, uint32_t v) {
#if defined(FULMEN_DEVICE_CODE)
  asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(p), "r"(v) : "memory");
#else
  emulator::atomic_store_u32(p, v, emulator::Order::release, emulator::Scope::gpu);
#endif
}

FULMEN_FN void fence_acq_rel_gpu() {
#if defined(FULMEN_DEVICE_CODE)
  asm volatile("fence.acq_rel.gpu;" ::: "memory");
#else
  emulator::fence(emulator::Scope::gpu);
#endif
}

FULMEN_FN void fence_acq_rel_cta() {
#if defined(FULMEN_DEVICE_CODE)
  asm volatile("fence.acq_rel.cta;" ::: "memory");
#else
  emulator::fence(emulator::Scope::block);
#endif
}

// The 32-bit address that shared-memory instructions take.
FULMEN_FN uint32_t shared_address(const void* p) {
#if defined(FULMEN_DEVICE_CODE)
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
#else
  return emulator::shared_address(p);
#endif
}

// The way back: dynamic shared memory by its 32-bit address. Sums of such addresses are cheaper than those of pointers.
FULMEN_FN void* shared_pointer(uint32_t address) {
#if defined(FULMEN_DEVICE_CODE)
  return __cvta_shared_to_generic(address);
#else
  unsigned char* base = static_cast<unsigned char*>(emulator::dynamic_shared_base());
  return base + (address - emulator::shared_address(base));
#endif
}

}  // namespace fulmen::ptx
