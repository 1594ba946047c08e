// The fp32 engine on every SIMD target that this machine can run, not only on the best one.
#include <hwy/targets.h>

#include "ops/attention_scene.hpp"

namespace {

using namespace testing_ops;

struct Case {
  const char* name;
  SceneOptions options;
};

const Case kCases[] = {
    {"plain", {.qo_heads = 6, .kv_heads = 2, .qk_dim = 64, .vo_dim = 64}},
    {"odd dims", {.qo_heads = 5, .kv_heads = 1, .qk_dim = 40, .vo_dim = 24, .odd_strides = true}},
    {"dims of 8", {.qo_heads = 2, .kv_heads = 2, .qk_dim = 8, .vo_dim = 8, .page_size = 3}},
    {"variants", {.qo_heads = 4, .kv_heads = 2, .window_left = 200, .soft_cap = 5.0f, .alibi = true, .sinks = true, .custom_mask = true}},
    {"RoPE", {.qk_dim = 32, .rope = true}},
    {"no softmax", {.no_softmax = true}},
    {"prefix", {.share_prefix = true}},
};

class AttentionTargets : public testing::TestWithParam<int64_t> {};

TEST_P(AttentionTargets, MatchReference) {
  const int64_t target = GetParam();
  hwy::SetSupportedTargetsForTest(0);
  if (target != HWY_SCALAR && (hwy::SupportedTargets() & target) == 0) GTEST_SKIP() << "not on this CPU";
  hwy::SetSupportedTargetsForTest(target);
  hwy::GetChosenTarget().Update(hwy::SupportedTargets());
  Context context(2);
  for (const Case& c : kCases) {
    for (const int dtype : {FULMEN_F32, FULMEN_F16}) {
      SceneOptions options = c.options;
      options.dtype = dtype;
      std::vector<Request> list(4);
      const int rows[] = {1, 9, 40, 2}, keys[] = {700, 65, 300, 600};
      for (int i = 0; i < 4; ++i) {
        Request& r = list[static_cast<size_t>(i)];
        r.id = i + 1, r.qo_len = rows[i], r.kv_len = keys[i];
        if (options.share_prefix && i != 1) r.prefix_id = i < 1 ? 1 : 2, r.prefix_len = i < 1 ? 512 : 260;
      }
      const std::string what = std::string(c.name) + ", " + name_of(dtype) + ", " + hwy::TargetName(target);
      SCOPED_TRACE(what);
      Scene scene(options, list);
      EXPECT_EQ(scene.run(context).fault, FULMEN_FAULT_NONE);
      scene.expect_close_to_reference(what);
    }
  }
  hwy::SetSupportedTargetsForTest(0);
  hwy::GetChosenTarget().Update(hwy::SupportedTargets());
}

INSTANTIATE_TEST_SUITE_P(Targets, AttentionTargets, testing::Values(HWY_SCALAR, HWY_AVX2, HWY_AVX3),
                         [](const auto& info) { return hwy::TargetName(info.param); });

}  // namespace
