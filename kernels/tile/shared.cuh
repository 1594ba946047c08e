// Dynamic shared memory as bytes, aligned to 128.
#pragma once

#include <kernels/prelude/device.hpp>

#if !defined(FULMEN_DEVICE_CODE)
#include <new>  // objects in shared memory are constructed in place; NVRTC brings its own
#endif

namespace fulmen {

FULMEN_DEVICE unsigned char* dynamic_shared() { return dynamic_shared<unsigned char>(); }

}  // namespace fulmen
