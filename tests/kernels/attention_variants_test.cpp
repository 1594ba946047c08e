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
    kernel<config(DType::bf16, DType::bf16, 128, 4, 32, 64, 2, false, {.rope = true})>("attend_sm80 prefill 128, RoPE"),
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
    kernel<config(DType::f16, DType::f16, 128, 2, 16, 32, 2, true, {.rope = true})>("attend_sm80 decode f16 128, RoPE"),
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
  for (const Kernel* kernel : {&kPrefillRope, &kDecodeRope, &kPrefill[9], &kDecode[9]}) {
    const bool decodes = kernel->config.split_keys;
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

// Sinks so far above and below all logits that a power of 2 of the distance overflows.
TEST(AttendVariants, FarSinks) {
  for (const float step : {-300.0f, 300.0f}) {
    Case prefill = kPrefillCases[1], decode = kDecodeCases[0];
    prefill.sink_step = decode.sink_step = step;
    check(prefill, kPrefill[2], 1);
    check(decode, kDecode[2], 1);
  }
}

// Words of masks whose every bit is set, those behind the last too: nothing from the end on may be seen, and no byte behind the last read.
struct MaskWords {
  const uint8_t* mask;
  uint64_t* words;
  int64_t end;
};
__attribute__((noinline)) void mask_words(const MaskWords& p) {
  for (int64_t bit = static_cast<int64_t>(threadIdx.x); bit < p.end + 16; bit += 32) p.words[bit] = CustomMask::word(p.mask, bit / 2, bit - bit / 2, p.end);
}
TEST(AttendVariants, WordsOfAMask) {
  for (int64_t end = 0; end < 200; ++end) {
    auto mask = Buffer<uint8_t>::input("mask", std::vector<uint8_t>(static_cast<size_t>(end + 7) / 8, 0xff));
    auto words = Buffer<uint64_t>::output("words", static_cast<size_t>(end + 16));
    const auto report = emulator::launch({.name = "mask_words", .grid = {1}, .block = {32}}, mask_words, MaskWords{mask.data(), words.data(), end});
    ASSERT_TRUE(report.clean()) << report.text();
    for (int64_t bit = 0; bit < end + 16; ++bit) {
      const int64_t left = std::clamp<int64_t>(end - bit, 0, 64);
      ASSERT_EQ(words[static_cast<size_t>(bit)], left == 64 ? ~uint64_t{0} : (uint64_t{1} << left) - 1) << "from bit " << bit << " of " << end;
    }
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
