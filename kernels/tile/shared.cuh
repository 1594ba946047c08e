// Dynamic shared memory, aligned to 128 bytes.
#pragma once

#include <kernels/prelude/prelude.hpp>

#if !defined(FULMEN_DEVICE_CODE)
#include <new>  // objects in shared memory are constructed in place; NVRTC brings its own
#endif

namespace fulmen {

#if defined(FULMEN_DEVICE_CODE)
FULMEN_FN unsigned char* dynamic_shared() {
  extern __shared__ __align__(128) unsigned char fulmen_dynamic_shared[];
  return fulmen_dynamic_shared;
}
#endif

}  // namespace fulmen
