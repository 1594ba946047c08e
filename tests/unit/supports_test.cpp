#include <gtest/gtest.h>

#include <string>

#include "fulmen/fulmen.hpp"

namespace {

fulmen_op_spec spec(fulmen_op op, fulmen_dtype dtype) {
  auto s = fulmen::make<fulmen_op_spec>();
  s.op = op;
  s.dtype = dtype;
  return s;
}

TEST(Supports, EveryOpHasANameAndRunsInBf16OnTheCpu) {
  for (int op = 0; op < FULMEN_OP_COUNT; ++op) {
    EXPECT_STRNE(fulmen_op_name(static_cast<fulmen_op>(op)), "unknown op");
    if (op == FULMEN_OP_ATTENTION) continue;
    auto s = spec(static_cast<fulmen_op>(op), FULMEN_BF16);
    EXPECT_EQ(fulmen_supports("cpu", &s), FULMEN_OK) << fulmen_last_error();
  }
}

TEST(Supports, SaysWhatIsMissing) {
  auto s = spec(FULMEN_OP_ROPE, FULMEN_I32);
  EXPECT_EQ(fulmen_supports("cpu", &s), FULMEN_UNSUPPORTED);
  EXPECT_STREQ(fulmen_last_error(), "rope: dtype: expected f32 | f16 | bf16 on cpu, found i32");
  EXPECT_EQ(fulmen_supports("tpu", &s), FULMEN_INVALID_ARGUMENT);
  EXPECT_STREQ(fulmen_last_error(), "target: expected \"cpu\", \"cuda\" or \"sm_XX\", found \"tpu\"");
}

TEST(Supports, JudgesAnAttentionSpec) {
  auto attention = fulmen::make<fulmen_attention_spec>();
  attention.q_dtype = attention.kv_dtype = attention.o_dtype = FULMEN_BF16;
  attention.head_dim_qk = attention.head_dim_vo = 128;
  auto s = spec(FULMEN_OP_ATTENTION, FULMEN_BF16);
  EXPECT_EQ(fulmen_supports("cpu", &s), FULMEN_INVALID_ARGUMENT) << "a spec is needed";
  s.attention = &attention;
  EXPECT_EQ(fulmen_supports("cpu", &s), FULMEN_OK) << fulmen_last_error();
  attention.head_dim_vo = 260;
  EXPECT_EQ(fulmen_supports("cpu", &s), FULMEN_UNSUPPORTED);
  EXPECT_STREQ(fulmen_last_error(), "attention: head_dim_vo: expected a multiple of 8 from 8 to 256, found 260");
  attention.head_dim_vo = 128;
  auto limits = fulmen::make<fulmen_attention_limits>();
  limits.num_groups = 1;
  limits.groups[0].num_qo_heads = 5;
  limits.groups[0].num_kv_heads = 2;
  s.limits = &limits;
  EXPECT_EQ(fulmen_supports("cpu", &s), FULMEN_UNSUPPORTED);
}

TEST(Supports, EveryVariantOnAGpuAndUsersOnlyThere) {
  auto attention = fulmen::make<fulmen_attention_spec>();
  attention.q_dtype = attention.kv_dtype = attention.o_dtype = FULMEN_F16;
  attention.head_dim_qk = 72, attention.head_dim_vo = 40;
  auto s = spec(FULMEN_OP_ATTENTION, FULMEN_F16);
  s.attention = &attention;
  for (attention.features = 0; attention.features < FULMEN_ATTENTION_NO_SOFTMAX << 1; ++attention.features) {
    EXPECT_EQ(fulmen_supports("sm_80", &s), FULMEN_OK) << fulmen_last_error();
  }
  attention.features = 0;
  attention.variant_source = "struct Mine { struct Params {}; };";
  for (const char* name : {static_cast<const char*>(nullptr), "", "2nd", "Mine{}; struct Other"}) {
    attention.variant_name = name;
    EXPECT_EQ(fulmen_supports("sm_80", &s), FULMEN_UNSUPPORTED);
    EXPECT_NE(std::string(fulmen_last_error()).find("variant_name: expected the name of the struct"), std::string::npos) << fulmen_last_error();
  }
  attention.variant_name = "Mine_2";
  EXPECT_EQ(fulmen_supports("sm_80", &s), FULMEN_OK) << fulmen_last_error();
  EXPECT_EQ(fulmen_supports("cpu", &s), FULMEN_UNSUPPORTED);
}

}  // namespace

TEST(Explain, NamesScheduleAndSizes) {
  auto attention = fulmen::make<fulmen_attention_spec>();
  attention.q_dtype = attention.kv_dtype = attention.o_dtype = FULMEN_BF16;
  attention.head_dim_qk = attention.head_dim_vo = 128;
  auto limits = fulmen::make<fulmen_attention_limits>();
  limits.max_requests = limits.max_rows = 8;
  limits.max_kv_len = 4096;
  limits.num_groups = 1;
  limits.groups[0].struct_size = sizeof limits.groups[0];
  limits.groups[0].num_qo_heads = 32;
  limits.groups[0].num_kv_heads = 8;
  limits.groups[0].window_left = -1;
  auto s = fulmen::make<fulmen_op_spec>();
  s.op = FULMEN_OP_ATTENTION;
  s.attention = &attention;
  s.limits = &limits;
  const std::string text = fulmen::explain("cpu", s);
  EXPECT_NE(text.find("\"supported\": true"), std::string::npos) << text;
  EXPECT_NE(text.find("\"plan_bytes\""), std::string::npos) << text;
  EXPECT_NE(text.find("\"kv_bytes_at_the_limits\": 134217728"), std::string::npos) << text;
  attention.head_dim_qk = 12;
  EXPECT_NE(fulmen::explain("cpu", s).find("\"missing\": \"head_dim_qk"), std::string::npos);
}
