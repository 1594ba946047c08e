// Rotary embedding of new queries and keys, and the keys' and values' way into the paged cache, in one pass: keys are
// read once, and between the two there is no launch.
//
// formula   as rope and append_kv; the cache gets the bits that the two in a row would give it
// grid      a block per token, tokens strided over the grid
// roles     as in rope; the values are moved as vectors of one head after another
#pragma once

#include <kernels/rope/rope.cuh>
#include <kernels/rope/rope_append.params.hpp>

namespace fulmen {

template <class T>
FULMEN_DEVICE T* cache_row(const KvStorage& cache, int64_t page, int64_t token) {
  return static_cast<T*>(const_cast<void*>(cache.data)) + page * cache.stride_page + token * cache.stride_token;
}

template <RopeConfig kC>
FULMEN_DEVICE void rope_append(const RopeAppendParams& p) {
  using T = storage_t<kC.dtype>;
  constexpr int kN = kC.vector();
  const RopeParams& r = p.rope;
  const AppendKvParams& a = p.append;
  ptx::griddep_launch_dependents();
  ptx::griddep_wait();
  for (int64_t t = blockIdx.x; t < r.num_tokens; t += gridDim.x) {
    const int64_t position = r.positions_are_i64 ? static_cast<const int64_t*>(r.positions)[t]
                                                 : static_cast<int64_t>(static_cast<const int32_t*>(r.positions)[t]);
    const int64_t slot = append_slot(a, t);
    int known = -1;
    Angles<kC.pairs()> angles{};
    turn_heads<kC>(r, static_cast<const T*>(r.q) + t * r.q_stride_token, static_cast<T*>(r.q_out) + t * r.q_out_stride_token,
                   r.q_stride_head, r.q_out_stride_head, r.num_q_heads, position, known, angles);
    if (slot < 0) continue;
    const int64_t page = divide(slot, a.page_size), token = slot - page * a.page_size;
    turn_heads<kC>(r, static_cast<const T*>(r.k) + t * r.k_stride_token, cache_row<T>(a.k_cache, page, token), r.k_stride_head,
                   a.k_cache.stride_head, r.num_k_heads, position, known, angles);
    const T* from = static_cast<const T*>(a.v) + t * a.v_stride_token;
    T* into = cache_row<T>(a.v_cache, page, token);
    const int per_head = a.head_dim_vo / kN;
    for (int u = static_cast<int>(threadIdx.x); u < a.num_kv_heads * per_head; u += kC.threads) {
      const int head = u / per_head, at = (u - head * per_head) * kN;
      const T* source = from + head * a.v_stride_head + at;
      T* target = into + head * a.v_cache.stride_head + at;
      if constexpr (kN == 1) {
        *target = *source;
      } else {
        ptx::store_16(target, ptx::load_16(source));
      }
    }
  }
}

}  // namespace fulmen
