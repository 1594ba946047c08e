// bar: a block's sixteen barriers by number (0 is __syncthreads'), for some of its warps. `threads` counts all that take part, a
// multiple of 32; whole warps arrive.
#pragma once

#include <kernels/prelude/device.hpp>

namespace fulmen::ptx {

// Arrives and waits for the others; memory is ordered among all that took part.
FULMEN_FN void barrier_sync(int id, int threads) {
#if defined(FULMEN_DEVICE_CODE)
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
#else
  emulator::barrier_sync(id, threads);
#endif
}

// Arrives and goes on: what this thread wrote before is seen by those that wait.
FULMEN_FN void barrier_arrive(int id, int threads) {
#if defined(FULMEN_DEVICE_CODE)
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
#else
  emulator::barrier_arrive(id, threads);
#endif
}

}  // namespace fulmen::ptx
