// The built-in variants in the emulator: each alone and all together, so that every two of them are seen on and off together,
// on the shapes of the plain kernels (splits, several workers, ragged and paged keys, windows).
#include "kernels/attention_case.hpp"

namespace fulmen::attend_test {
namespace {

constexpr AttendVariants kAll{.soft_cap = true, .alibi = true, .sinks = true, .rope = true, .custom_mask = true};
constexpr AttendVariants kAllSums{.soft_cap = true, .alibi = true, .rope = true, .custom_mask = true, .no_softmax = true};

constexpr AttendSm80Config prefill(AttendVariants variants) {
  return config(DType::bf16, DType::bf16, 64, 4, 16, 64, 2, false, variants);
}
constexpr AttendSm80Config decode(AttendVariants variants) {
  return config(DType::bf16, DType::bf16, 64, 4, 16, 32, 3, true, variants);
}

const Kernel kPrefill[] = {
    kernel<prefill({.soft_cap = true})>("attend_sm80 prefill, soft cap"),
    kernel<prefill({.alibi = true})>("attend_sm80 prefill, ALiBi"),
    kernel<prefill({.sinks = true})>("attend_sm80 prefill, sinks"),
    kernel<prefill({.rope = true})>("attend_sm80 prefill, RoPE"),
    kernel<prefill({.custom_mask = true})>("attend_sm80 prefill, custom mask"),
    kernel<prefill({.no_softmax = true})>("attend_sm80 prefill, no softmax"),
    kernel<prefill(kAll)>("attend_sm80 prefill, all"),
    kernel<prefill(kAllSums)>("attend_sm80 prefill, all without softmax"),
    kernel<config(DType::f16, DType::f32, 128, 4, 32, 32, 2, false, kAll)>("attend_sm80 prefill f16 128, o f32, all"),
};
const Kernel kDecode[] = {
    kernel<decode({.soft_cap = true})>("attend_sm80 decode, soft cap"),
    kernel<decode({.alibi = true})>("attend_sm80 decode, ALiBi"),
    kernel<decode({.sinks = true})>("attend_sm80 decode, sinks"),
    kernel<decode({.rope = true})>("attend_sm80 decode, RoPE"),
    kernel<decode({.custom_mask = true})>("attend_sm80 decode, custom mask"),
    kernel<decode({.no_softmax = true})>("attend_sm80 decode, no softmax"),
    kernel<decode(kAll)>("attend_sm80 decode, all"),
    kernel<decode(kAllSums)>("attend_sm80 decode, all without softmax"),
    kernel<config(DType::f16, DType::f16, 256, 2, 16, 32, 2, true, kAll)>("attend_sm80 decode f16 256, all"),
};
const bool kAdded = add_attention_cases(kPrefill) && add_attention_cases(kDecode);

const Kernel& kPrefillRope = kPrefill[3];
const Kernel& kDecodeRope = kDecode[3];

TEST(AttendVariants, Prefill) {
  for (const Kernel& kernel : kPrefill) {
    for (const Case& c : kPrefillCases) check(c, kernel, num_seeds(1, 20));
  }
}
TEST(AttendVariants, Decode) {
  for (const Kernel& kernel : kDecode) {
    for (const Case& c : kDecodeCases) check(c, kernel, num_seeds(1, 20));
  }
}

// Pairs of neighbours, fewer rotated dims than the head has (an odd half too), heads below their class, far positions.
TEST(AttendVariants, Rotations) {
  for (const Kernel* kernel : {&kPrefillRope, &kDecodeRope}) {
    const bool decodes = kernel == &kDecodeRope;
    Case c = decodes ? kDecodeCases[1] : kPrefillCases[0];
    for (const bool interleaved : {false, true}) {
      for (const int rotary_dim : {0, 32, 22, 2}) {
        c.interleaved = interleaved;
        c.rotary_dim = rotary_dim;
        check(c, *kernel, 1);
      }
    }
    c.head_dim = 40;
    c.rotary_dim = 0;
    check(c, *kernel, 1);
    check({.name = "far", .qo_len = {2}, .kv_len = {5000}, .num_kv_heads = 1, .window_left = 70, .workers = 2}, *kernel, 1);
  }
}

// A mask that is too short makes its request's rows NaN and leaves a record; the others keep theirs.
TEST(AttendVariants, ShortMask) {
  for (const Kernel* kernel : {&kPrefill[4], &kDecode[4]}) {
    Case c = kernel == &kPrefill[4] ? kPrefillCases[0] : kDecodeCases[3];
    c.short_mask = true;
    const Outcome outcome = attend(c, *kernel, 1);
    ASSERT_TRUE(outcome.report.clean()) << outcome.report.text();
    EXPECT_LE(outcome.worst, 1.0);
    EXPECT_EQ(outcome.status.fault, kFaultKvLen);
    EXPECT_EQ(outcome.status.request, static_cast<int32_t>(c.qo_len.size()) - 1);
    EXPECT_EQ(outcome.status.value, outcome.status.limit + 1);
  }
}

}  // namespace
}  // namespace fulmen::attend_test
