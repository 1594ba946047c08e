// Rotary embedding of new queries and keys, and the keys' and values' way into the paged cache, in one pass: keys are
// read once, and between the two there is no launch.
//
// formula   as rope and append_kv; the cache gets the bits that the two in a row would give it
// grid      a block per token, tokens strided over the grid
// roles     a thread turns pairs() pairs of a head of q or k, or moves a vector of v: the units of all three stand in one
//           row, so that no part waits for another's loads
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
  const int per_head = r.rotary_dim / 2 / kC.pairs(), v_per_head = a.head_dim_vo / kN;
  struct Token {
    int64_t position, slot, page, place;
  };
  const auto token_of = [&](int64_t t) -> Token {
    const int64_t slot = append_slot(a, t), page = divide(max(slot, int64_t{0}), a.page_size);
    return {position_of(r, t), slot, page, slot - page * a.page_size};  // page and place: of a slot
  };
  ptx::griddep_launch_dependents();
  // Only q, k, v and the cache are the kernel ahead's work: where the first token goes, and its angles, are found meanwhile.
  const int head_units = max(per_head, 1), first_pair = static_cast<int>(threadIdx.x) % head_units * kC.pairs();
  Token first{};
  Angles<kC.pairs()> angles{};
  if (blockIdx.x < r.num_tokens) {
    first = token_of(blockIdx.x);
    if (static_cast<int>(threadIdx.x) < (r.num_q_heads + r.num_k_heads) * per_head) load_angles(r, first.position, first_pair, angles);
  }
  int known = first_pair;
  ptx::griddep_wait();
  for (int64_t t = blockIdx.x; t < r.num_tokens; t += gridDim.x) {
    const bool again = t != blockIdx.x;
    const Token at = again ? token_of(t) : first;
    if (again) known = -1;
    const int64_t slot = at.slot;
    const T* q = static_cast<const T*>(r.q) + t * r.q_stride_token;
    const T* k = static_cast<const T*>(r.k) + t * r.k_stride_token;
    const T* v = static_cast<const T*>(a.v) + t * a.v_stride_token;
    T* q_out = static_cast<T*>(r.q_out) + t * r.q_out_stride_token;
    T* k_out = cache_row<T>(a.k_cache, at.page, at.place);
    T* v_out = cache_row<T>(a.v_cache, at.page, at.place);
    const int q_units = r.num_q_heads * per_head, k_units = slot < 0 ? 0 : r.num_k_heads * per_head;
    const int v_units = slot < 0 ? 0 : a.num_kv_heads * v_per_head;
    for (int u = static_cast<int>(threadIdx.x); u < q_units + k_units + v_units; u += kC.threads) {
      if (u < q_units + k_units) {
        const bool of_q = u < q_units;
        const int unit = of_q ? u : u - q_units, head = unit / per_head, pair = (unit - head * per_head) * kC.pairs();
        if (pair != known) load_angles(r, at.position, pair, angles);
        known = pair;
        Pairs<kC, T> pairs;
        pairs.load(r, of_q ? q + head * r.q_stride_head : k + head * r.k_stride_head, pair);
        pairs.store_turned(r, of_q ? q_out + head * r.q_out_stride_head : k_out + head * a.k_cache.stride_head, pair, angles);
      } else {
        const int unit = u - q_units - k_units, head = unit / v_per_head, at = (unit - head * v_per_head) * kN;
        const T* from = v + head * a.v_stride_head + at;
        T* into = v_out + head * a.v_cache.stride_head + at;
        if constexpr (kN == 1) {
          *into = *from;
        } else {
          ptx::store_16(into, ptx::load_16(from));
        }
      }
    }
    copy_rest<kC>(r, q, q_out, r.q_stride_head, r.q_out_stride_head, r.num_q_heads);
    if (slot >= 0) copy_rest<kC>(r, k, k_out, r.k_stride_head, a.k_cache.stride_head, r.num_k_heads);
  }
}

}  // namespace fulmen
