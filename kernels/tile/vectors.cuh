// Rows of elements read and written as floats, 16 bytes or one element at a time.
#pragma once

#include <kernels/math/convert.hpp>
#include <kernels/prelude/device.hpp>
#include <kernels/ptx/memory.cuh>
#include <kernels/ptx/special.cuh>

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

// kN elements as they are stored: 16 bytes of them, or one, which is held as a float.
template <class T, int kN>
struct Packed {
  uint32_t words[kN == 1 ? 1 : 4];
};

// once: the vector is read once, and not kept in L1.
template <class T, int kN>
FULMEN_DEVICE Packed<T, kN> load_packed(const T* p, bool once = false) {
  if constexpr (kN == 1) {
    return {{float_bits(to_float(*p))}};
  } else {
    const ptx::Words4 w = once ? ptx::load_streaming_16(p) : ptx::load_16(p);
    return {{w.x, w.y, w.z, w.w}};
  }
}

// Outputs of more than half of L2 don't wait there for their reader: they are stored so that they leave it first.
inline constexpr int64_t kFarBytes = int64_t{24} << 20;

// far: nobody reads the vector soon, so that it is the first to leave L2.
template <class T, int kN>
FULMEN_DEVICE void store_packed(T* p, const Packed<T, kN>& v, bool far = false) {
  if constexpr (kN == 1) {
    *p = from_float<T>(bits_float(v.words[0]));
  } else {
    const ptx::Words4 w{v.words[0], v.words[1], v.words[2], v.words[3]};
    if (far) {
      ptx::store_streaming_16(p, w);
    } else {
      ptx::store_16(p, w);
    }
  }
}

// The same vector, of which the compiler knows nothing: it is unpacked where it is used, and not kept as floats.
template <class T, int kN>
FULMEN_DEVICE Packed<T, kN> unknown(Packed<T, kN> v) {
#pragma unroll
  for (uint32_t& word : v.words) word = ptx::unknown(word);
  return v;
}

template <class T, int kN>
FULMEN_DEVICE void unpack(const Packed<T, kN>& v, float (&f)[kN]) {
  if constexpr (kN == 1) {
    f[0] = bits_float(v.words[0]);
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if constexpr (sizeof(T) == 4) {
        f[i] = bits_float(v.words[i]);
      } else {
        f[2 * i] = low_float<T>(v.words[i]);
        f[2 * i + 1] = high_float<T>(v.words[i]);
      }
    }
  }
}

template <class T, int kN>
FULMEN_DEVICE Packed<T, kN> packed(const float (&f)[kN]) {
  Packed<T, kN> v;
  if constexpr (kN == 1) {
    v.words[0] = float_bits(to_float(from_float<T>(f[0])));
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if constexpr (sizeof(T) == 4) {
        v.words[i] = float_bits(f[i]);
      } else {
        v.words[i] = pack2<T>(f[2 * i], f[2 * i + 1]);
      }
    }
  }
  return v;
}

}  // namespace fulmen
