// Five tokens go into a paged KV cache, then attend to it causally. All keys are equal and the value of token t
// is t: the row of token t is the mean of 0 .. t, which is t / 2.
#include <fulmen/fulmen.hpp>

#include <cstdio>
#include <cstdlib>
#include <vector>

int main() {
  constexpr int64_t tokens = 5, heads = 4, kv_heads = 2, dim = 64, pages = 3, page_size = 4;
  std::vector<float> q(tokens * heads * dim, 0.5f), k(tokens * kv_heads * dim, 0.5f), v(k.size()), o(q.size());
  for (size_t i = 0; i < v.size(); ++i) v[i] = static_cast<float>(i / (kv_heads * dim));
  std::vector<float> k_cache(pages * page_size * kv_heads * dim), v_cache(k_cache.size());
  const std::vector<int32_t> page_ids{2, 0}, qo_indptr{0, tokens}, kv_len{tokens};
  auto table = fulmen::make<fulmen_kv_table>();
  table.table = fulmen::tensor(page_ids.data(), {1, 2});
  // README begins
  auto context = fulmen::Context::cpu();

  auto append = fulmen::make<fulmen_append_kv_args>();
  append.k = fulmen::tensor(k.data(), {tokens, kv_heads, dim});
  append.v = fulmen::tensor(v.data(), {tokens, kv_heads, dim});
  append.k_cache = fulmen::tensor(k_cache.data(), {pages, page_size, kv_heads, dim});
  append.v_cache = fulmen::tensor(v_cache.data(), {pages, page_size, kv_heads, dim});
  append.qo_indptr = fulmen::tensor(qo_indptr.data(), {2});
  append.kv_len = fulmen::tensor(kv_len.data(), {1});
  append.table = table;
  fulmen::append_kv(context, append);

  auto spec = fulmen::make<fulmen_attention_spec>();  // what is compiled
  spec.q_dtype = spec.kv_dtype = spec.o_dtype = FULMEN_F32;
  spec.head_dim_qk = spec.head_dim_vo = dim;
  auto limits = fulmen::make<fulmen_attention_limits>();  // upper bounds
  limits.max_requests = 1, limits.max_rows = tokens, limits.max_kv_len = 64, limits.num_groups = 1;
  limits.groups[0] = {sizeof(fulmen_attention_group), heads, kv_heads, /*causal=*/1, /*window_left=*/-1};
  const fulmen::Attention attention(context, spec, limits);
  const auto sizes = attention.sizes();
  void* plan = std::aligned_alloc(256, sizes.plan_bytes);
  void* scratch = std::aligned_alloc(256, sizes.scratch_bytes);
  context.scratch_init(scratch, sizes.scratch_bytes);

  auto lengths = fulmen::make<fulmen_attention_lengths>();  // once a step, for all layers
  lengths.levels[0] = fulmen::make<fulmen_attention_level>();
  lengths.levels[0].qo_indptr = append.qo_indptr, lengths.levels[0].kv_len = append.kv_len;
  attention.plan(lengths, plan);

  auto layer = fulmen::make<fulmen_attention_tensors>();  // once a layer
  layer.page_size = page_size;
  layer.q = fulmen::tensor(q.data(), {tokens, heads, dim}), layer.o = fulmen::tensor(o.data(), {tokens, heads, dim});
  layer.k = append.k_cache, layer.v = append.v_cache, layer.kv[0] = table;
  attention.run(layer, plan, scratch);
  for (int64_t t = 0; t < tokens; ++t) std::printf("token %d: %.3f\n", static_cast<int>(t), o[t * heads * dim]);
  // README ends
  std::free(plan), std::free(scratch);
}
