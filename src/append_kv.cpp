#include <kernels/append_kv/append_kv.params.hpp>

#include "attention_args.hpp"
#include "cpu/append_kv.hpp"
#include "cuda/ops.hpp"
#include "entry.hpp"
#include "rope_args.hpp"

using namespace fulmen;

namespace fulmen {

AppendKvParams read_append_kv(const char* op, const fulmen_context& context, const fulmen_append_kv_args& args) {
  Sym num_tokens{"num_tokens"}, heads{"num_kv_heads"}, qk{"head_dim_qk"}, vo{"head_dim_vo"}, pages{"num_pages"},
      page_size{"page_size"};
  Check(op, "k", args.k).present().dtype(kFloatDtypes).dims({num_tokens, heads, qk}).rows().aligned();
  Check(op, "v", args.v).present().same_dtype("k", args.k).dims({num_tokens, heads, vo}).rows().aligned();
  Check(op, "k_cache", args.k_cache).present().same_dtype("k", args.k).dims({pages, page_size, heads, qk}).rows().aligned();
  Check(op, "v_cache", args.v_cache).present().same_dtype("k", args.k).dims({pages, page_size, heads, vo}).rows().aligned();
  check_device(op, "k", args.k, context);
  check_device(op, "v", args.v, context);
  check_device(op, "k_cache", args.k_cache, context);
  check_device(op, "v_cache", args.v_cache, context);
  require(page_size >= 1, "{}: k_cache: expected page_size of at least 1, found {}", op, page_size.value);
  Check(op, "k_cache", args.k_cache).distinct().apart_from("k", args.k).apart_from("v", args.v);
  Check(op, "v_cache", args.v_cache).distinct().apart_from("k", args.k).apart_from("v", args.v).apart_from("k_cache", args.k_cache);

  AppendKvParams p{};
  p.dtype = static_cast<DType>(args.k.dtype);
  p.num_tokens = num_tokens;
  p.num_kv_heads = checked_int32(op, "num_kv_heads", heads);
  p.head_dim_qk = checked_int32(op, "head_dim_qk", qk);
  p.head_dim_vo = checked_int32(op, "head_dim_vo", vo);
  p.page_size = checked_int32(op, "page_size", page_size);
  p.k = args.k.data, p.k_stride_token = args.k.stride[0], p.k_stride_head = args.k.stride[1];
  p.v = args.v.data, p.v_stride_token = args.v.stride[0], p.v_stride_head = args.v.stride[1];
  const auto storage = [](const fulmen_tensor& t) {
    return KvStorage{t.data, t.stride[0], t.stride[1], t.stride[2], t.shape[0]};
  };
  p.k_cache = storage(args.k_cache);
  p.v_cache = storage(args.v_cache);

  const bool by_slot = present(args.slot_mapping);
  if (by_slot) {
    check_vector(op, "slot_mapping", args.slot_mapping, num_tokens, {FULMEN_I64}, context);
    require(!present(args.qo_indptr), "{}: slot_mapping: expected slots or requests (qo_indptr), found both", op);
    p.slot_mapping = static_cast<const int64_t*>(args.slot_mapping.data);
  } else if (num_tokens > 0) {
    require(present(args.qo_indptr), "{}: slot_mapping: expected slots, or requests (qo_indptr), found neither", op);
    Sym entries{"num_requests + 1"};
    check_vector(op, "qo_indptr", args.qo_indptr, entries, {FULMEN_I32, FULMEN_I64}, context);
    require(entries >= 2, "{}: qo_indptr: expected at least 2 entries for {} tokens, found {}", op, num_tokens.value,
            entries.value);
    p.num_requests = checked_int32(op, "num_requests", entries - 1);
    p.qo_indptr = args.qo_indptr.data;
    p.qo_indptr_i64 = args.qo_indptr.dtype == FULMEN_I64;
    p.table = read_kv_table(op, "table", context, args.table, false);
    const int64_t rows = p.table.form == KvForm::csr ? args.table.indptr.shape[0] - 1
                         : p.table.row_index         ? args.table.row_index.shape[0]
                                                     : p.table.table_rows;
    require(rows >= p.num_requests, "{}: table: expected entries for {} requests, found {}", op, p.num_requests, rows);
    if (present(args.kv_len)) {
      check_vector(op, "kv_len", args.kv_len, p.num_requests, {FULMEN_I32, FULMEN_I64}, context);
      p.kv_len = args.kv_len.data;
      p.kv_len_i64 = args.kv_len.dtype == FULMEN_I64;
    } else {
      require(p.table.form == KvForm::csr, "{}: kv_len: expected lengths, or a CSR table with last_page_len, found neither", op);
      check_vector(op, "last_page_len", args.last_page_len, p.num_requests, {FULMEN_I32, FULMEN_I64}, context);
      p.last_page_len = args.last_page_len.data;
      p.last_page_len_i64 = args.last_page_len.dtype == FULMEN_I64;
    }
  }
  return p;
}

}  // namespace fulmen

extern "C" fulmen_status fulmen_append_kv(fulmen_context* handle, const fulmen_append_kv_args* given, fulmen_stream stream) {
  return guard([&] {
    constexpr auto op = "append_kv";
    fulmen_context& context = deref(op, handle);
    const AppendKvParams p = read_append_kv(op, context, read_args(op, "args", given));
    if (!context.is_cpu()) return cuda::append_kv(p, context, stream);
    cpu::append_kv(p, context.pool);
  });
}
