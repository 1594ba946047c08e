// Dynamic shared memory, aligned to 128 bytes.
#pragma once

#include <kernels/prelude/prelude.hpp>

#if defined(FULMEN_DEVICE_CODE)
// Objects that live in shared memory are constructed there.
FULMEN_FN void* operator new(size_t, void* place) noexcept { return place; }
#else
#include <new>
#endif

namespace fulmen {

#if defined(FULMEN_DEVICE_CODE)
FULMEN_FN unsigned char* dynamic_shared() {
  extern __shared__ __align__(128) unsigned char fulmen_dynamic_shared[];
  return fulmen_dynamic_shared;
}
#endif

}  // namespace fulmen
