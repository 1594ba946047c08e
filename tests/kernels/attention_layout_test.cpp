// attend_sm80 on tensors of any layout, in the emulator: addresses and strides that aren't whole 16 bytes, scales of any sign, K
// and V of different head sizes.
#include "kernels/attention_case.hpp"

namespace fulmen::attend_test {
namespace {

constexpr AttendVariants kNone{};
constexpr AttendVariants kAll{.soft_cap = true, .alibi = true, .sinks = true, .rope = true, .custom_mask = true};

const Kernel kPlainPrefill = kernel<config(DType::bf16, DType::bf16, 64, 4, 16, 64, 2, false)>("attend_sm80 prefill bf16 64");
const Kernel kPlainDecode = kernel<config(DType::bf16, DType::bf16, 64, 4, 16, 32, 2, true)>("attend_sm80 decode bf16 64");
const Kernel kPrefill[] = {
    kernel<config(DType::bf16, DType::bf16, 64, 4, 16, 64, 2, false, kNone, true)>("attend_sm80 general prefill bf16 64"),
    kernel<config(DType::f16, DType::f32, 128, 4, 32, 32, 2, false, kNone, true)>("attend_sm80 general prefill f16 128, o f32"),
    kernel<config(DType::f16, DType::f16, 64, 4, 16, 64, 2, false, kAll, true)>("attend_sm80 general prefill f16 64, all variants"),
};
const Kernel kDecode[] = {
    kernel<config(DType::bf16, DType::bf16, 64, 4, 16, 32, 2, true, kNone, true)>("attend_sm80 general decode bf16 64"),
    kernel<config(DType::f16, DType::f16, 128, 2, 16, 32, 2, true, kNone, true)>("attend_sm80 general decode f16 128"),
    kernel<config(DType::bf16, DType::bf16, 64, 4, 16, 32, 2, true, kAll, true)>("attend_sm80 general decode bf16 64, all variants"),
};

const bool kAdded = add_attention_cases(kPrefill) && add_attention_cases(kDecode);

TEST(AttendLayout, OddStridesPrefill) {
  for (const Kernel& kernel : kPrefill) {
    for (const Case& c : kPrefillCases) check(c, kernel, num_seeds(1, 20));
  }
}
TEST(AttendLayout, OddStridesDecode) {
  for (const Kernel& kernel : kDecode) {
    for (const Case& c : kDecodeCases) check(c, kernel, num_seeds(1, 20));
  }
}

TEST(AttendLayout, ScaleBelowZero) {
  for (Case c : {kPrefillCases[0], kPrefillCases[1], kPrefillCases[3]}) {
    c.sm_scale = -0.3f;
    check(c, kPrefill[0], 1);
  }
  for (Case c : {kDecodeCases[0], kDecodeCases[1], kDecodeCases[3]}) {
    c.sm_scale = -0.3f;
    check(c, kDecode[0], 1);
  }
}

// Every multiple of 8 in its class, and K and V apart.
TEST(AttendLayout, HeadSizes) {
  struct Dims {
    int qk, vo;
  };
  for (const auto [qk, vo] : {Dims{8, 8}, Dims{16, 64}, Dims{24, 8}, Dims{48, 32}, Dims{64, 40}, Dims{56, 64}}) {
    for (Case c : {kPrefillCases[0], kPrefillCases[1]}) {
      c.head_dim = qk, c.head_dim_vo = vo;
      check(c, kPlainPrefill, 1);
      check(c, kPrefill[0], 1);
    }
    for (Case c : {kDecodeCases[1], kDecodeCases[3]}) {
      c.head_dim = qk, c.head_dim_vo = vo;
      check(c, kPlainDecode, 1);
      check(c, kDecode[2], 1);
    }
  }
}

}  // namespace
}  // namespace fulmen::attend_test
