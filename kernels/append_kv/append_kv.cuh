// New keys and values into the paged cache.
//
// formula   k_cache[slot(t), h, :] = k[t, h, :], the same for v; slot(t) from slot_mapping or from the request's pages
// grid      one warp per token at a time, tokens strided over all warps
// roles     every lane moves one vector of K and of V per turn; the slot is looked up by the warp as a whole
// note      nothing is staged: rows are read once and written once, as wide as their alignment allows
#pragma once

#include <kernels/append_kv/append_kv.config.hpp>
#include <kernels/ptx/griddep.cuh>
#include <kernels/ptx/memory.cuh>

namespace fulmen {

template <int kBytes> struct AppendVector;
template <> struct AppendVector<2> { using type = uint16_t; };
template <> struct AppendVector<4> { using type = uint32_t; };
template <> struct AppendVector<16> { using type = ptx::Words4; };

// The heads of one token, all vectors of them, by one warp.
template <AppendKvConfig kC>
FULMEN_FN void append_rows(const AppendKvParams& p, const void* rows, int64_t stride_head, const KvStorage& cache,
                           int64_t to, int head_dim, int lane) {
  using Vector = typename AppendVector<kC.vector_bytes>::type;
  const int per_head = head_dim / kC.vector(), count = per_head * p.num_kv_heads;
  const char* from = static_cast<const char*>(rows);
  char* into = static_cast<char*>(const_cast<void*>(cache.data));
  constexpr int kAtOnce = 4;  // loads in flight before the first store
  for (int base = lane; base < count; base += 32 * kAtOnce) {
    Vector held[kAtOnce];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const int v = base + 32 * i, head = v / per_head;
      if (v < count)
        held[i] = *reinterpret_cast<const Vector*>(from + (head * stride_head + (v - head * per_head) * kC.vector()) *
                                                              kC.element_bytes);
    }
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const int v = base + 32 * i, head = v / per_head;
      if (v < count)
        *reinterpret_cast<Vector*>(into + (to + head * cache.stride_head + (v - head * per_head) * kC.vector()) *
                                              kC.element_bytes) = held[i];
    }
  }
}

template <AppendKvConfig kC>
FULMEN_FN void append_kv(const AppendKvParams& p) {
  const int lane = threadIdx.x % 32;
  const int64_t warps = static_cast<int64_t>(gridDim.x) * (kC.threads / 32);
  ptx::griddep_launch_dependents();
  ptx::griddep_wait();
  for (int64_t t = blockIdx.x * (kC.threads / 32) + threadIdx.x / 32; t < p.num_tokens; t += warps) {
    const int64_t slot = append_slot(p, t);
    if (slot < 0) continue;
    const int64_t page = divide(slot, p.page_size), token = slot - page * p.page_size;
    append_rows<kC>(p, static_cast<const char*>(p.k) + t * p.k_stride_token * kC.element_bytes, p.k_stride_head,
                    p.k_cache, page * p.k_cache.stride_page + token * p.k_cache.stride_token, p.head_dim_qk, lane);
    append_rows<kC>(p, static_cast<const char*>(p.v) + t * p.v_stride_token * kC.element_bytes, p.v_stride_head,
                    p.v_cache, page * p.v_cache.stride_page + token * p.v_cache.stride_token, p.head_dim_vo, lane);
  }
}

}  // namespace fulmen
