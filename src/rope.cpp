#include <cstring>
#include <limits>

#include "cpu/ops.hpp"
#include "cuda/row_ops.hpp"
#include "entry.hpp"
#include "plan/rope_frequencies.hpp"
#include "rope_args.hpp"

using namespace fulmen;

namespace {

// An engine calls with the same few parameters in every layer of every step: the powers are worth keeping.
const RopeFrequencies& cached_frequencies(const char* op, const fulmen_rope_params& rope, int rotary_dim) {
  thread_local fulmen_rope_params key{};
  thread_local int key_dim = -1;
  thread_local RopeFrequencies value{};
  // NOLINTNEXTLINE(bugprone-suspicious-memory-comparison): equal but for padding or the sign of a zero means computing it again
  if (key_dim != rotary_dim || std::memcmp(&key, &rope, sizeof key) != 0) {
    value = rope_frequencies(op, rope, rotary_dim);
    key = rope;
    key_dim = rotary_dim;
  }
  return value;
}

}  // namespace

namespace fulmen {

RopeParams read_rope(const char* op, const fulmen_context& context, fulmen_rope_args args) {
  const bool has_k = present(args.k);
  if (!present(args.q_out)) args.q_out = args.q;
  if (!present(args.k_out)) args.k_out = args.k;

  Sym num_tokens{"num_tokens"}, num_q_heads{"num_q_heads"}, num_k_heads{"num_k_heads"},
      head_dim{"head_dim"};
  const auto check = [&](const char* name, const fulmen_tensor& t, Sym& heads) {
    Check(op, name, t)
        .present()
        .dtype(kFloatDtypes)
        .same_dtype("q", args.q)
        .dims({num_tokens, heads, head_dim});
    Check(op, name, t).rows().aligned();
    check_device(op, name, t, context);
  };
  check("q", args.q, num_q_heads);
  check("q_out", args.q_out, num_q_heads);
  if (has_k) {
    check("k", args.k, num_k_heads);
    check("k_out", args.k_out, num_k_heads);
  }
  Check(op, "q_out", args.q_out).distinct().apart_from("q", args.q, true);
  if (has_k) {
    Check(op, "k_out", args.k_out).distinct().apart_from("k", args.k, true).apart_from("q", args.q).apart_from("q_out", args.q_out);
    Check(op, "q_out", args.q_out).apart_from("k", args.k);
  }
  check_vector(op, "positions", args.positions, num_tokens, {FULMEN_I32, FULMEN_I64}, context);

  const bool has_table = present(args.cos_sin_cache);
  Sym max_position{"max_position"}, rotary{"rotary_dim"};
  if (has_table) {
    Check(op, "cos_sin_cache", args.cos_sin_cache)
        .present()
        .dtype({FULMEN_F32})
        .dims({max_position, rotary});
    Check(op, "cos_sin_cache", args.cos_sin_cache).rows().aligned();
    check_device(op, "cos_sin_cache", args.cos_sin_cache, context);
  } else {
    rotary.value = args.params.rotary_dim == 0 ? head_dim.value : args.params.rotary_dim;
    max_position.value = std::numeric_limits<int32_t>::max();
  }
  require(rotary >= 0 && rotary % 2 == 0 && rotary <= head_dim && rotary <= 2 * kMaxRotaryPairs,
          "{}: rotary_dim: expected an even number up to head_dim = {} and {}, found {}", op, head_dim.value,
          2 * kMaxRotaryPairs, rotary.value);

  RopeParams p{};
  if (!has_table) p.frequencies = cached_frequencies(op, args.params, static_cast<int>(rotary.value));
  p.q = args.q.data, p.q_out = args.q_out.data;
  p.k = has_k ? args.k.data : nullptr, p.k_out = has_k ? args.k_out.data : nullptr;
  p.positions = args.positions.data;
  p.positions_are_i64 = args.positions.dtype == FULMEN_I64;
  p.cos_sin = static_cast<const float*>(args.cos_sin_cache.data);
  p.cos_sin_stride = args.cos_sin_cache.stride[0];
  p.q_stride_token = args.q.stride[0], p.q_stride_head = args.q.stride[1];
  p.k_stride_token = args.k.stride[0], p.k_stride_head = args.k.stride[1];
  p.q_out_stride_token = args.q_out.stride[0], p.q_out_stride_head = args.q_out.stride[1];
  p.k_out_stride_token = args.k_out.stride[0], p.k_out_stride_head = args.k_out.stride[1];
  p.num_tokens = num_tokens;
  p.max_position = max_position;
  p.num_q_heads = checked_int32(op, "num_q_heads", num_q_heads);
  p.num_k_heads = has_k ? checked_int32(op, "num_k_heads", num_k_heads) : 0;
  p.head_dim = checked_int32(op, "head_dim", head_dim);
  p.rotary_dim = static_cast<int32_t>(rotary.value);
  p.dtype = static_cast<DType>(args.q.dtype);
  p.interleaved = args.params.interleaved != 0;
  return p;
}

}  // namespace fulmen

extern "C" fulmen_status fulmen_rope(fulmen_context* handle, const fulmen_rope_args* given, fulmen_stream stream) {
  return guard([&] {
    constexpr auto op = "rope";
    fulmen_context& context = deref(op, handle);
    const RopeParams p = read_rope(op, context, read_args(op, "args", given));
    if (p.num_tokens == 0 || p.head_dim == 0) return;
    if (!context.is_cpu()) return cuda::rope(p, context, stream);
    cpu::rope(p, context.pool);
  });
}

extern "C" fulmen_status fulmen_rope_append(fulmen_context* handle, const fulmen_rope_append_args* given,
                                            fulmen_stream stream) {
  return guard([&] {
    constexpr auto op = "rope_append";
    fulmen_context& context = deref(op, handle);
    const auto args = read_args(op, "args", given);
    Check(op, "k", args.k).present();
    FULMEN_INIT(fulmen_rope_args, rope);
    rope.q = args.q, rope.k = args.k, rope.q_out = args.q_out, rope.positions = args.positions;
    rope.cos_sin_cache = args.cos_sin_cache, rope.params = args.params;
    FULMEN_INIT(fulmen_append_kv_args, append);
    append.k = args.k, append.v = args.v, append.k_cache = args.k_cache, append.v_cache = args.v_cache;
    append.slot_mapping = args.slot_mapping, append.qo_indptr = args.qo_indptr, append.kv_len = args.kv_len;
    append.last_page_len = args.last_page_len, append.table = args.table;
    RopeAppendParams p{read_rope(op, context, rope), read_append_kv(op, context, append)};
    const fulmen_tensor& q_out = present(args.q_out) ? args.q_out : args.q;
    Check(op, "q_out", q_out).apart_from("v", args.v).apart_from("k_cache", args.k_cache).apart_from("v_cache", args.v_cache);
    p.rope.k_out = nullptr;
    if (p.rope.num_tokens == 0 || p.rope.head_dim == 0) return;
    if (!context.is_cpu()) return cuda::rope_append(p, context, stream);
    cpu::rope_append(p, context.pool);
  });
}
