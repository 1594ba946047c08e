// New keys and values into the paged cache.
//
// formula   k_cache[slot(t), h, :] = k[t, h, :], the same for v; slot(t) from slot_mapping or from the request's pages
// grid      one warp per token at a time, tokens strided over all warps
// roles     every lane moves kAtOnce vectors of K and of V per turn; their loads are in flight before the slot is looked up
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

// One token's heads of K or V, in vectors of one head after another.
template <AppendKvConfig kC>
struct AppendSide {
  using Vector = typename AppendVector<kC.vector_bytes>::type;
  int per_head, count;  // vectors

  FULMEN_FN AppendSide(int head_dim, int heads) : per_head(head_dim / kC.vector()), count(per_head * heads) {}

  // Bytes from the token's first to vector v, heads `stride` elements apart.
  FULMEN_FN int64_t at(int v, int64_t stride) const {
    const int head = v / per_head;
    return head * stride * kC.element_bytes + (v - head * per_head) * kC.vector_bytes;
  }
  FULMEN_FN void load(Vector& held, int v, const char* from, int64_t stride) const {
    if (v < count) held = *reinterpret_cast<const Vector*>(from + at(v, stride));
  }
  FULMEN_FN void store(const Vector& held, int v, char* into, int64_t stride) const {
    if (v < count) *reinterpret_cast<Vector*>(into + at(v, stride)) = held;
  }
};

template <AppendKvConfig kC>
FULMEN_FN void append_kv(const AppendKvParams& p) {
  const int lane = threadIdx.x % 32;
  const int64_t warps = static_cast<int64_t>(gridDim.x) * (kC.threads / 32);
  const AppendSide<kC> k(p.head_dim_qk, p.num_kv_heads), v(p.head_dim_vo, p.num_kv_heads);
  const auto place_of = [](const KvStorage& cache, int64_t page, int64_t token) {
    return static_cast<char*>(const_cast<void*>(cache.data)) + (page * cache.stride_page + token * cache.stride_token) * kC.element_bytes;
  };
  ptx::griddep_launch_dependents();
  ptx::griddep_wait();
  for (int64_t t = blockIdx.x * (kC.threads / 32) + threadIdx.x / 32; t < p.num_tokens; t += warps) {
    const char* k_from = static_cast<const char*>(p.k) + t * p.k_stride_token * kC.element_bytes;
    const char* v_from = static_cast<const char*>(p.v) + t * p.v_stride_token * kC.element_bytes;
    char *k_into = nullptr, *v_into = nullptr;
    constexpr int kAtOnce = 4;  // of K and of V
    for (int base = lane; base < max(k.count, v.count); base += 32 * kAtOnce) {
      typename AppendSide<kC>::Vector of_k[kAtOnce], of_v[kAtOnce];
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        k.load(of_k[i], base + 32 * i, k_from, p.k_stride_head);
        v.load(of_v[i], base + 32 * i, v_from, p.v_stride_head);
      }
      if (base == lane) {
        const int64_t slot = append_slot(p, t);
        if (slot < 0) break;
        const int64_t page = divide(slot, p.page_size), token = slot - page * p.page_size;
        k_into = place_of(p.k_cache, page, token);
        v_into = place_of(p.v_cache, page, token);
      }
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        k.store(of_k[i], base + 32 * i, k_into, p.k_cache.stride_head);
        v.store(of_v[i], base + 32 * i, v_into, p.v_cache.stride_head);
      }
    }
  }
}

}  // namespace fulmen
