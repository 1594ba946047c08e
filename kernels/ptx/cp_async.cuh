// cp.async (sm_80): 16 bytes from global to shared memory past the registers. Completion is seen by the issuing
// thread after wait_group, by others after a barrier that follows it.
#pragma once

#include <kernels/prelude/prelude.hpp>

namespace fulmen::ptx {

// Copies 16 bytes; with `zero` set 16 zero bytes and reads nothing. Both addresses are 16-byte aligned.
FULMEN_FN void cp_async_16(uint32_t shared, const void* global, bool zero) {
#if defined(FULMEN_DEVICE_CODE)
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(shared), "l"(global), "r"(zero ? 0 : 16)
               : "memory");
#endif
}

FULMEN_FN void cp_async_commit() {
#if defined(FULMEN_DEVICE_CODE)
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Waits until at most kPending of this thread's newest groups are still in flight.
template <int kPending>
FULMEN_FN void cp_async_wait() {
#if defined(FULMEN_DEVICE_CODE)
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
#endif
}

}  // namespace fulmen::ptx
