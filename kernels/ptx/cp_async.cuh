// cp.async (sm_80): from global to shared memory past the registers. Completion is seen by the issuing thread after
// wait_group, by others after a barrier that follows it.
// Emulated: the bytes land at the wait and not before; until then the target is poison, and touching it is an error.
#pragma once

#include <kernels/prelude/device.hpp>

namespace fulmen::ptx {

// Copies 16 bytes; with `zero` set 16 zero bytes and reads nothing. Both addresses are 16-byte aligned.
FULMEN_FN void cp_async_16(uint32_t shared, const void* global, bool zero) {
#if defined(FULMEN_DEVICE_CODE)
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(shared), "l"(global), "r"(zero ? 0 : 16)
               : "memory");
#else
  emulator::copy_async(shared, global, 16, zero ? 0 : 16);
#endif
}

// The same where `active`; else nothing.
FULMEN_FN void cp_async_16_if(bool active, uint32_t shared, const void* global, bool zero) {
#if defined(FULMEN_DEVICE_CODE)
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.u32 p, %3, 0;\n@p cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;\n}" ::"r"(shared),
      "l"(global), "r"(zero ? 0 : 16), "r"(static_cast<uint32_t>(active))
      : "memory");
#else
  if (active) emulator::copy_async(shared, global, 16, zero ? 0 : 16);
#endif
}

// The address of the 16-byte vector number i from `base`: one multiply-add, which a compiler that knew it would take apart.
FULMEN_FN const void* vector_at(const void* base, uint32_t i) {
#if defined(FULMEN_DEVICE_CODE)
  const void* at;
  asm("mad.wide.u32 %0, %1, 16, %2;" : "=l"(at) : "r"(i), "l"(base));
  return at;
#else
  return static_cast<const char*>(base) + static_cast<uint64_t>(i) * 16;
#endif
}

// Copies the first `bytes` (0 to kBytes) and fills the rest of the kBytes = 4, 8 or 16 with zeros; both addresses are aligned to
// kBytes.
template <int kBytes> FULMEN_FN void cp_async_zfill(uint32_t shared, const void* global, int bytes) {
  static_assert(kBytes == 4 || kBytes == 8 || kBytes == 16);
#if defined(FULMEN_DEVICE_CODE)
  if constexpr (kBytes == 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared), "l"(global), "r"(bytes) : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(shared), "l"(global), "n"(kBytes), "r"(bytes)
                 : "memory");
  }
#else
  emulator::copy_async(shared, global, kBytes, bytes);
#endif
}

FULMEN_FN void cp_async_commit() {
#if defined(FULMEN_DEVICE_CODE)
  asm volatile("cp.async.commit_group;" ::: "memory");
#else
  emulator::copy_async_commit();
#endif
}

// Waits until at most kPending of this thread's newest groups are still in flight.
template <int kPending>
FULMEN_FN void cp_async_wait() {
#if defined(FULMEN_DEVICE_CODE)
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
#else
  emulator::copy_async_wait(kPending);
#endif
}

}  // namespace fulmen::ptx
