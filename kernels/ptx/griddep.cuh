// Programmatic dependent launch (sm_90): a kernel may start before the one ahead of it on the stream has ended. Nothing
// that the earlier kernel writes may be touched before wait(). On older targets both are nothing.
#pragma once

#include <kernels/prelude/device.hpp>

namespace fulmen::ptx {

FULMEN_FN void griddep_wait() {
#if defined(FULMEN_DEVICE_CODE)
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
#else
  emulator::griddep_wait();
#endif
}

FULMEN_FN void griddep_launch_dependents() {
#if defined(FULMEN_DEVICE_CODE)
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
#else
  emulator::griddep_launch_dependents();
#endif
}

}  // namespace fulmen::ptx
