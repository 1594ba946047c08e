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

// One token's heads of K or V: where they come from and go to, in vectors of one head after another.
template <AppendKvConfig kC>
struct AppendSide {
  using Vector = typename AppendVector<kC.vector_bytes>::type;
  const char* from;
  char* into;
  int64_t from_head, into_head;  // bytes between heads
  int per_head, count;           // vectors

  FULMEN_FN AppendSide(const void* rows, int64_t row, int64_t row_head, const KvStorage& cache, int64_t place, int head_dim,
                       int heads)
      : from(static_cast<const char*>(rows) + row * kC.element_bytes),
        into(static_cast<char*>(const_cast<void*>(cache.data)) + place * kC.element_bytes),
        from_head(row_head * kC.element_bytes),
        into_head(cache.stride_head * kC.element_bytes),
        per_head(head_dim / kC.vector()),
        count(per_head * heads) {}

  FULMEN_FN void load(Vector& held, int v) const {
    const int head = v / per_head;
    if (v < count) held = *reinterpret_cast<const Vector*>(from + head * from_head + (v - head * per_head) * kC.vector_bytes);
  }
  FULMEN_FN void store(const Vector& held, int v) const {
    const int head = v / per_head;
    if (v < count) *reinterpret_cast<Vector*>(into + head * into_head + (v - head * per_head) * kC.vector_bytes) = held;
  }
};

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
    const AppendSide<kC> k(p.k, t * p.k_stride_token, p.k_stride_head, p.k_cache,
                           page * p.k_cache.stride_page + token * p.k_cache.stride_token, p.head_dim_qk, p.num_kv_heads);
    const AppendSide<kC> v(p.v, t * p.v_stride_token, p.v_stride_head, p.v_cache,
                           page * p.v_cache.stride_page + token * p.v_cache.stride_token, p.head_dim_vo, p.num_kv_heads);
    constexpr int kAtOnce = 4;  // of K and of V: loads in flight before the first store
    for (int base = lane; base < max(k.count, v.count); base += 32 * kAtOnce) {
      typename AppendSide<kC>::Vector of_k[kAtOnce], of_v[kAtOnce];
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) k.load(of_k[i], base + 32 * i), v.load(of_v[i], base + 32 * i);
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) k.store(of_k[i], base + 32 * i), v.store(of_v[i], base + 32 * i);
    }
  }
}

}  // namespace fulmen
