// Reductions over a block, the result in every thread. The order is fixed: lanes by halves, then warps by index.
#pragma once

#include <kernels/prelude/device.hpp>

namespace fulmen {

FULMEN_DEVICE float shuffle_xor(float v, int mask) { return __shfl_xor_sync(kFullMask, v, mask); }
FULMEN_DEVICE int32_t shuffle_xor(int32_t v, int mask) { return __shfl_xor_sync(kFullMask, v, mask); }
FULMEN_DEVICE uint64_t shuffle_xor(uint64_t v, int mask) {
  const uint32_t low = __shfl_xor_sync(kFullMask, static_cast<uint32_t>(v), mask);
  const uint32_t high = __shfl_xor_sync(kFullMask, static_cast<uint32_t>(v >> 32), mask);
  return static_cast<uint64_t>(high) << 32 | low;
}

// The warp's index, in the form that tells the compiler that a warp shares it: without it collectives in code that
// depends on it become calls on older targets.
FULMEN_DEVICE int uniform_warp_index() { return __shfl_sync(kFullMask, warp_index(), 0); }

struct Sum {
  template <class T> FULMEN_DEVICE T operator()(T a, T b) const { return a + b; }
};
struct Largest {
  template <class T> FULMEN_DEVICE T operator()(T a, T b) const { return a < b ? b : a; }
};
struct Smallest {
  template <class T> FULMEN_DEVICE T operator()(T a, T b) const { return b < a ? b : a; }
};

template <class T, class Join>
FULMEN_DEVICE T warp_reduce(T v, Join join) {
#pragma unroll
  for (int mask = 16; mask > 0; mask >>= 1) v = join(v, shuffle_xor(v, mask));
  return v;
}

// `identity` stands for warps that don't exist. Every thread of the block takes part.
template <int kThreads, class T, class Join>
FULMEN_DEVICE T block_reduce(T v, T identity, Join join) {
  v = warp_reduce(v, join);
  if constexpr (kThreads == 32) return v;
  struct Slots {
    T of_warp[32];
  };
  Slots& shared = static_shared<Slots>();
  __syncthreads();  // an earlier reduction's readers are done
  if (lane_index() == 0) shared.of_warp[warp_index()] = v;
  __syncthreads();
  return warp_reduce(lane_index() < kThreads / 32 ? shared.of_warp[lane_index()] : identity, join);
}

template <int kThreads, class T>
FULMEN_DEVICE T block_sum(T v) {
  return block_reduce<kThreads>(v, T(0), Sum{});
}

}  // namespace fulmen
