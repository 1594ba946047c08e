// Attention on drawn shapes against the fp64 reference. A failure prints the shape and rapidcheck's seed
// (RC_PARAMS="seed=..." repeats it).
#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include "ops/attention_scene.hpp"

namespace {

using namespace testing_ops;

int draw(int low, int high) { return *rc::gen::inRange(low, high + 1); }
bool flip(int one_in) { return draw(1, one_in) == 1; }

std::string fmt_shape(const SceneOptions& o, const std::vector<Request>& list) {
  std::string text = std::string(name_of(o.dtype)) + " heads " + std::to_string(o.qo_heads) + "/" +
                     std::to_string(o.kv_heads) + " dims " + std::to_string(o.qk_dim) + "/" + std::to_string(o.vo_dim) +
                     " page " + std::to_string(o.page_size) + " window " + std::to_string(o.window_left) +
                     (o.causal ? " causal" : "") + (o.soft_cap > 0 ? " soft cap" : "") + (o.alibi ? " alibi" : "") +
                     (o.sinks ? " sinks" : "") + (o.custom_mask ? " mask" : "") + (o.rope ? " rope" : "") + " (rows, keys):";
  for (const Request& r : list) text += " (" + std::to_string(r.qo_len) + ", " + std::to_string(r.kv_len) + ")";
  return text;
}

RC_GTEST_PROP(AttentionShapes, MatchReference, ()) {
  static Context context(3);
  SceneOptions o;
  o.dtype = *rc::gen::element(int{FULMEN_F32}, int{FULMEN_F16}, int{FULMEN_BF16});
  o.kv_heads = draw(1, 3);
  o.qo_heads = o.kv_heads * draw(1, 9);
  o.qk_dim = 8 * draw(1, 32);
  o.vo_dim = flip(2) ? o.qk_dim : 8 * draw(1, 32);
  o.page_size = *rc::gen::element(0, 1, 3, 16, 64);
  o.causal = !flip(4);
  o.window_left = flip(3) ? draw(0, 300) : -1;
  o.hnd = flip(2);
  o.csr = flip(2);
  o.index_i64 = flip(2);
  o.row_index = !o.csr && o.page_size > 0 && flip(2);
  o.pages_and_last = flip(3);
  o.odd_strides = flip(2);
  o.own_v_table = o.page_size > 0 && flip(3);
  o.share_prefix = flip(3);
  o.num_sms = draw(0, 3);
  if (flip(3)) o.soft_cap = 2.5f;
  o.alibi = flip(4);
  o.sinks = flip(4);
  o.custom_mask = flip(4);
  o.rope = flip(5);
  o.rope_interleaved = flip(2);
  o.rotary_dim = o.rope ? 2 * draw(1, o.qk_dim / 2) : 0;
  std::vector<Request> list;
  const int requests = draw(1, 5);
  for (int i = 0; i < requests; ++i) {
    Request r;
    r.id = i + 1;
    r.qo_len = flip(2) ? draw(0, 2) : draw(0, 24);
    r.kv_len = flip(8) ? draw(1000, 1700) : flip(2) ? draw(0, 130) : draw(0, 600);
    if (o.share_prefix) {
      // Neighbours with the same prefix have the same length of it.
      const bool joins = i > 0 && flip(2);
      r.prefix_id = joins ? list.back().prefix_id : i;
      r.prefix_len = joins ? list.back().prefix_len : std::min(r.kv_len, draw(0, 700));
      r.kv_len = std::max(r.kv_len, r.prefix_len);
    }
    list.push_back(r);
  }
  const std::string what = fmt_shape(o, list);
  RC_TAG(name_of(o.dtype));
  Scene scene(o, list);
  const auto record = scene.run(context);
  RC_ASSERT(record.fault == FULMEN_FAULT_NONE);
  scene.expect_close_to_reference(what);
  RC_ASSERT(!testing::Test::HasFailure());
}

}  // namespace
