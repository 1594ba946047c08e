// Attention through the C ABI against the fp64 reference: one table of cases, edge rows included.
#include "ops/attention_scene.hpp"

namespace {

using namespace testing_ops;

struct Case {
  const char* name;
  SceneOptions options;
  std::vector<Request> requests;
};

Request request(int qo_len, int kv_len) {
  Request r;
  r.qo_len = qo_len, r.kv_len = kv_len;
  return r;
}
Request with_prefix(int qo_len, int kv_len, int prefix_id, int prefix_len) {
  Request r = request(qo_len, kv_len);
  r.prefix_id = prefix_id, r.prefix_len = prefix_len;
  return r;
}
std::vector<Request> numbered(std::vector<Request> list) {
  for (size_t i = 0; i < list.size(); ++i) list[i].id = static_cast<int>(i) + 1;
  return list;
}

const std::vector<Request> kMixture = {request(1, 300), request(5, 5), request(0, 20), request(1, 1), request(33, 290)};
const std::vector<Request> kShort = {request(1, 70), request(9, 9), request(3, 40)};

std::vector<Case> cases() {
  return {
      {"empty batch", {}, {}},
      {"one token", {}, {request(1, 1)}},
      {"no rows", {}, {request(0, 5), request(0, 0)}},
      {"no keys", {}, {request(2, 0), request(1, 3)}},
      {"mixture", {.qo_heads = 6, .kv_heads = 2, .qk_dim = 64, .vo_dim = 64}, kMixture},
      {"page boundary", {}, {request(1, 15), request(1, 16), request(1, 17)}},
      {"block and chunk boundary", {}, {request(1, 63), request(1, 64), request(1, 65), request(2, 255), request(2, 256), request(2, 257)}},
      {"more rows than keys", {}, {request(20, 7), request(3, 1)}},
      {"more rows than keys, not causal", {.causal = false}, {request(20, 7), request(3, 1)}},
      {"not causal", {.qo_heads = 4, .kv_heads = 4, .qk_dim = 32, .vo_dim = 32, .causal = false}, kMixture},
      {"page of one", {.page_size = 1}, kMixture},
      {"page of 7, HND", {.page_size = 7, .hnd = true}, kMixture},
      {"ragged", {.page_size = 0}, kMixture},
      {"odd strides", {.odd_strides = true}, kMixture},
      {"CSR i64", {.csr = true, .index_i64 = true}, kMixture},
      {"CSR, pages and last", {.csr = true, .pages_and_last = true}, kMixture},
      {"2-D, pages and last, i64", {.index_i64 = true, .pages_and_last = true}, kMixture},
      {"row_index", {.row_index = true, .odd_strides = true}, kMixture},
      {"V has a table of its own", {.own_v_table = true}, kMixture},
      {"head dims 8 and 8", {.qk_dim = 8, .vo_dim = 8}, kMixture},
      {"head dims 40 and 24", {.qk_dim = 40, .vo_dim = 24}, kMixture},
      {"head dims 192 and 128", {.qk_dim = 192, .vo_dim = 128}, kShort},
      {"head dims 256 and 256", {.qk_dim = 256, .vo_dim = 256}, kShort},
      {"head dims 128 and 200", {.qk_dim = 128, .vo_dim = 200}, kShort},
      {"MQA, many heads", {.qo_heads = 71, .kv_heads = 1, .qk_dim = 64, .vo_dim = 64}, {request(1, 130), request(4, 67)}},
      {"group of 5", {.qo_heads = 10, .kv_heads = 2}, {request(60, 60), request(1, 600)}},
      {"window", {.window_left = 10}, {request(1, 300), request(40, 333), request(5, 5)}},
      {"window of nothing but itself", {.window_left = 0}, {request(30, 30), request(1, 700)}},
      {"window, not causal", {.causal = false, .window_left = 20}, {request(30, 100)}},
      {"long window over chunks", {.window_left = 300}, {request(10, 1000), request(1, 777)}},
      {"large logits", {.k_scale = 60.0}, kMixture},
      {"scale", {.scale = 0.7f}, kMixture},
      {"soft cap", {.soft_cap = 3.0f}, kMixture},
      {"ALiBi", {.qo_heads = 4, .kv_heads = 2, .alibi = true}, kMixture},
      {"sinks", {.qo_heads = 4, .kv_heads = 2, .sinks = true}, kMixture},
      {"RoPE", {.qk_dim = 64, .vo_dim = 64, .rope = true}, kMixture},
      {"RoPE, interleaved, partial", {.qk_dim = 40, .rope = true, .rope_interleaved = true, .rotary_dim = 24}, kMixture},
      {"custom mask", {.custom_mask = true}, kMixture},
      {"custom mask, not causal", {.causal = false, .custom_mask = true}, {request(7, 500), request(1, 3), request(2, 0), request(3, 64)}},
      {"no softmax", {.no_softmax = true}, kMixture},
      {"everything", {.qo_heads = 4, .kv_heads = 2, .window_left = 200, .soft_cap = 5.0f, .alibi = true, .sinks = true, .custom_mask = true}, kMixture},
      {"without lse", {.lse = false}, kMixture},
      {"shared prefix", {.share_prefix = true},
       {with_prefix(1, 600, 1, 520), with_prefix(1, 521, 1, 520), with_prefix(3, 900, 1, 520), request(2, 50), with_prefix(1, 300, 2, 256)}},
      {"shared prefix below a chunk", {.share_prefix = true}, {with_prefix(1, 300, 1, 200), with_prefix(2, 210, 1, 200)}},
      {"shared prefix, rows inside it", {.share_prefix = true}, {with_prefix(400, 560, 1, 512), with_prefix(1, 512, 1, 512)}},
      {"shared prefix, many rows and variants", {.qo_heads = 12, .kv_heads = 2, .window_left = 400, .soft_cap = 5.0f, .alibi = true, .sinks = true, .custom_mask = true, .share_prefix = true},
       {with_prefix(30, 600, 1, 520), with_prefix(20, 540, 1, 520), with_prefix(1, 900, 3, 777)}},
      {"many splits", {}, {request(1, 5000), request(1, 10), request(2, 3000)}},
  };
}

class Attention : public testing::TestWithParam<int> {};

TEST_P(Attention, MatchesReference) {
  const int dtype = GetParam();
  Context context(3);
  for (Case& c : cases()) {
    c.options.dtype = dtype;
    SCOPED_TRACE(std::string(c.name) + ", " + name_of(dtype));
    Scene scene(c.options, numbered(c.requests));
    const auto record = scene.run(context);
    EXPECT_EQ(record.fault, FULMEN_FAULT_NONE);
    scene.expect_close_to_reference(c.name);
    if (testing::Test::HasFatalFailure()) return;
  }
}

TEST_P(Attention, WritesF32FromAnyDtype) {
  Context context(2);
  SceneOptions options;
  options.dtype = GetParam();
  options.o_dtype = FULMEN_F32;
  Scene scene(options, numbered(kMixture));
  scene.run(context);
  scene.expect_close_to_reference("f32 output");
}

INSTANTIATE_TEST_SUITE_P(Dtypes, Attention, testing::Values(FULMEN_F32, FULMEN_F16, FULMEN_BF16),
                         [](const auto& info) { return name_of(info.param); });

}  // namespace
