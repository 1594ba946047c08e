// The kernels of class sm80 for attention, run in the emulator: plan, then attend, on small problems with the edges in them
// (empty and one-token requests, ragged tails, page boundaries, split tiles), against plain fp64 attention.
#include "kernels/attention_case.hpp"

namespace fulmen::attend_test {
namespace {

const Kernel kPrefill = kernel<config(DType::bf16, DType::bf16, 64, 4, 16, 64, 2, false)>("attend_sm80 prefill bf16 64");
const Kernel kDecode = kernel<config(DType::bf16, DType::bf16, 64, 4, 16, 64, 3, true)>("attend_sm80 decode bf16 64");
// Wider heads, two 16-row tiles a warp, other types.
const Kernel kWidePrefill = kernel<config(DType::f16, DType::f16, 128, 4, 32, 64, 2, false)>("attend_sm80 prefill f16 128");
const Kernel kFloatPrefill = kernel<config(DType::bf16, DType::f32, 64, 4, 32, 64, 2, false)>("attend_sm80 prefill bf16 64, o f32");
const Kernel kWideDecode = kernel<config(DType::f16, DType::f16, 128, 2, 16, 32, 2, true)>("attend_sm80 decode f16 128");
const Kernel kLongHeadPrefill = kernel<config(DType::bf16, DType::bf16, 256, 4, 16, 16, 2, false)>("attend_sm80 prefill bf16 256, tiles of 16 keys");
const Kernel kLongHeadDecode = kernel<config(DType::bf16, DType::bf16, 256, 2, 16, 32, 2, true)>("attend_sm80 decode bf16 256");
const Kernel kShortStepDecode = kernel<config(DType::bf16, DType::bf16, 64, 8, 16, 32, 2, true)>("attend_sm80 decode bf16 64, 8 warps, steps of 32");

const bool kAdded = add_attention_cases(kPrefill) && add_attention_cases(kDecode) && add_attention_cases(kWidePrefill) && add_attention_cases(kFloatPrefill) &&
                    add_attention_cases(kLongHeadPrefill) && add_attention_cases(kWideDecode) && add_attention_cases(kLongHeadDecode) &&
                    add_attention_cases(kShortStepDecode);

TEST(AttendSm80, Prefill) {
  for (const Case& c : kPrefillCases) check(c, kPrefill);
}
TEST(AttendSm80, Decode) {
  for (const Case& c : kDecodeCases) check(c, kDecode);
}

TEST(AttendSm80, OtherConfigurations) {
  for (const Kernel* k : {&kWidePrefill, &kFloatPrefill, &kLongHeadPrefill}) {
    for (const Case& c : kPrefillCases) check(c, *k, num_seeds(1));
  }
  for (const Kernel* k : {&kWideDecode, &kLongHeadDecode, &kShortStepDecode}) {
    for (const Case& c : kDecodeCases) check(c, *k, num_seeds(1));
  }
}

// The true head size may be smaller than the class.
TEST(AttendSm80, HeadSizeBelowItsClass) {
  for (const int head_dim : {40, 56}) {
    Case c = kPrefillCases[0];
    c.head_dim = head_dim;
    const Outcome prefill = attend(c, kPrefill, 1);
    EXPECT_TRUE(prefill.report.clean()) << prefill.report.text();
    EXPECT_LE(prefill.worst, 1.0);
    Case d = kDecodeCases[0];
    d.head_dim = head_dim;
    const Outcome decode = attend(d, kDecode, 1);
    EXPECT_TRUE(decode.report.clean()) << decode.report.text();
    EXPECT_LE(decode.worst, 1.0);
  }
}

// More tiles than a warp has lanes: whoever takes whole tiles looks for a tile's request in two rounds.
TEST(AttendSm80, ManyRequests) {
  Case c{.name = "many requests", .num_kv_heads = 2, .group_size = 3, .causal = true, .workers = 3};
  for (int r = 0; r < 70; ++r) c.qo_len.push_back(r % 5 == 3 ? 0 : 1 + r % 23), c.kv_len.push_back(c.qo_len.back() + r % 7);
  check(c, kPrefill, num_seeds(1));
}

// The swizzle keeps ldmatrix free of bank conflicts, and K and V are read once per tile of rows.
TEST(AttendSm80, Traffic) {
  const Case c{.name = "traffic", .qo_len = {32}, .kv_len = {256}, .num_kv_heads = 1, .group_size = 2, .causal = false, .workers = 1};
  const Outcome outcome = attend(c, kPrefill, 1, true);
  ASSERT_TRUE(outcome.report.clean()) << outcome.report.text();
  const emulator::Counters& n = outcome.report.counters;
  const uint64_t least = 2 * 256 * 64 * 2 + 64 * 64 * 2;  // K and V, Q
  EXPECT_LE(n.global_read_bytes, least + least / 4);
  EXPECT_LE(n.shared_wavefronts, n.shared_ideal_wavefronts + n.shared_ideal_wavefronts / 5);
  EXPECT_EQ(n.matrix_instructions, 64u / 16 * (256 / 8) * (64 / 16) * 2);  // scores and output
}

}  // namespace
}  // namespace fulmen::attend_test
