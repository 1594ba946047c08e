// Rows of elements read and written as floats, 16 bytes or one element at a time.
#pragma once

#include <kernels/math/convert.hpp>
#include <kernels/prelude/device.hpp>
#include <kernels/ptx/memory.cuh>

namespace fulmen {

// kN consecutive elements: 16 bytes of them (the address is a multiple of 16), or one.
template <class T, int kN>
FULMEN_DEVICE void load_floats(const T* p, float (&f)[kN]) {
  if constexpr (kN == 1) {
    f[0] = to_float(*p);
  } else {
    static_assert(kN * sizeof(T) == 16, "16 bytes or one element");
    const ptx::Words4 w = ptx::load_16(p);
    const uint32_t words[4] = {w.x, w.y, w.z, w.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if constexpr (sizeof(T) == 4) {
        f[i] = bits_float(words[i]);
      } else {
        f[2 * i] = low_float<T>(words[i]);
        f[2 * i + 1] = high_float<T>(words[i]);
      }
    }
  }
}

template <class T, int kN>
FULMEN_DEVICE void store_floats(T* p, const float (&f)[kN]) {
  if constexpr (kN == 1) {
    *p = from_float<T>(f[0]);
  } else {
    uint32_t words[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if constexpr (sizeof(T) == 4) {
        words[i] = float_bits(f[i]);
      } else {
        words[i] = pack2<T>(f[2 * i], f[2 * i + 1]);
      }
    }
    ptx::store_16(p, {words[0], words[1], words[2], words[3]});
  }
}

}  // namespace fulmen
