// Copies new keys and values into the paged cache. Either by slot: token t goes to slot_mapping[t] = page * page_size
// + offset, negative slots are skipped. Or by request: tokens qo_indptr[r] .. qo_indptr[r + 1] go to the positions
// kv_len[r] - n .. kv_len[r] - 1 of request r's pages.
// Strides are in elements; the innermost dimension has stride 1.
#pragma once
#include <kernels/attention/attention.params.hpp>
#include <kernels/prelude/prelude.hpp>

namespace fulmen {

struct AppendKvParams {
  const void* k;  // dtype [num_tokens, num_kv_heads, head_dim_qk]
  const void* v;  // dtype [num_tokens, num_kv_heads, head_dim_vo]
  int64_t k_stride_token, k_stride_head, v_stride_token, v_stride_head;
  KvStorage k_cache, v_cache;  // data is written; [num_pages, page_size, num_kv_heads, head_dim]
  const int64_t* slot_mapping; // [num_tokens]; null: by request
  const void* qo_indptr;       // [num_requests + 1]
  const void* kv_len;          // [num_requests]; null: CSR pages and last_page_len
  const void* last_page_len;   // [num_requests]
  KvTable table;
  int64_t num_tokens;
  int32_t num_requests;
  int32_t num_kv_heads, head_dim_qk, head_dim_vo, page_size;
  DType dtype;
  int8_t qo_indptr_i64, kv_len_i64, last_page_len_i64, reserved;
};

// Length of request r with this call's tokens, -1 where it isn't sane.
FULMEN_FN int64_t append_length(const AppendKvParams& p, int32_t r) {
  if (p.kv_len) return load_index(p.kv_len, p.kv_len_i64, r);
  const int64_t begin = load_index(p.table.indptr, p.table.indptr_i64, r);
  const int64_t end = load_index(p.table.indptr, p.table.indptr_i64, r + 1);
  if (begin < 0 || end < begin || end > p.table.width) return -1;
  const int64_t pages = end - begin;
  const int64_t last = load_index(p.last_page_len, p.last_page_len_i64, r);
  if (pages == 0) return 0;
  return last < 1 || last > p.page_size ? -1 : (pages - 1) * p.page_size + last;
}

// Slot of token t, or -1: nothing is to be written (skipped, or out of bounds).
FULMEN_FN int64_t append_slot(const AppendKvParams& p, int64_t t) {
  if (p.slot_mapping) {
    const int64_t slot = p.slot_mapping[t];
    return slot < p.k_cache.num_pages * p.page_size ? slot : -1;
  }
  // The request that owns row t: the last one that begins at or before it.
  int32_t low = 0, high = p.num_requests;
  while (high - low > 1) {
    const int32_t middle = low + (high - low) / 2;
    if (load_index(p.qo_indptr, p.qo_indptr_i64, middle) <= t) {
      low = middle;
    } else {
      high = middle;
    }
  }
  const int64_t begin = load_index(p.qo_indptr, p.qo_indptr_i64, low);
  const int64_t end = load_index(p.qo_indptr, p.qo_indptr_i64, low + 1);
  if (begin < 0 || t < begin || t >= end) return -1;
  const int64_t length = append_length(p, low);
  if (length < 0) return -1;
  const int64_t position = length - end + t;
  if (position < 0) return -1;
  const int64_t page = divide(position, p.page_size);
  const int64_t id = page_id(page_list(p.table, low), page, p.k_cache.num_pages);
  return id < 0 ? -1 : id * p.page_size + (position - page * p.page_size);
}

}  // namespace fulmen
