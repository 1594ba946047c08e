#include "cpu/append_kv.hpp"

#include <algorithm>
#include <cstring>

namespace fulmen::cpu {
namespace {

// One token of K or V: num_kv_heads rows of `bytes` each.
void copy_token(const char* from, int64_t from_head, char* to, int64_t to_head, int32_t heads, int64_t bytes) {
  if (from_head == bytes && to_head == bytes) {
    std::memcpy(to, from, static_cast<size_t>(heads * bytes));
    return;
  }
  for (int32_t h = 0; h < heads; ++h) std::memcpy(to + h * to_head, from + h * from_head, static_cast<size_t>(bytes));
}

char* slot_address(const KvStorage& cache, int64_t page, int64_t offset, int64_t element) {
  return static_cast<char*>(const_cast<void*>(cache.data)) +
         (page * cache.stride_page + offset * cache.stride_token) * element;
}

}  // namespace

void append_kv(const AppendKvParams& p, const Pool& pool) {
  const int64_t element = dtype_bytes(p.dtype);
  const int64_t k_bytes = p.head_dim_qk * element, v_bytes = p.head_dim_vo * element;
  // About 256 KB a piece: enough to be worth a hand-over, few enough to share.
  const int64_t per_token = std::max<int64_t>(1, (k_bytes + v_bytes) * p.num_kv_heads);
  const int64_t fair = (p.num_tokens + pool.num_threads() - 1) / pool.num_threads();
  const int64_t step = std::max<int64_t>(1, std::min(fair, (int64_t{256} << 10) / per_token));
  pool.parallel_for((p.num_tokens + step - 1) / step, [&](int64_t piece) {
    const int64_t end = std::min(p.num_tokens, (piece + 1) * step);
    for (int64_t t = piece * step; t < end; ++t) {
      const int64_t slot = append_slot(p, t);
      if (slot < 0) continue;
      const int64_t page = slot / p.page_size, offset = slot - page * p.page_size;
      copy_token(static_cast<const char*>(p.k) + t * p.k_stride_token * element, p.k_stride_head * element,
                 slot_address(p.k_cache, page, offset, element), p.k_cache.stride_head * element, p.num_kv_heads,
                 k_bytes);
      copy_token(static_cast<const char*>(p.v) + t * p.v_stride_token * element, p.v_stride_head * element,
                 slot_address(p.v_cache, page, offset, element), p.v_cache.stride_head * element, p.num_kv_heads,
                 v_bytes);
    }
  });
}

}  // namespace fulmen::cpu
