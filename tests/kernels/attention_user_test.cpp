// A user's variant in the emulator: its functions stand where the generated unit puts them.
#include "kernels/attention_case.hpp"

namespace fulmen {

// Keys of the other colour are hidden; the logit bends.
struct Checkers {
  struct Params {
    float bend;
    int32_t width;
  };
  static FULMEN_FN float logit(const Params& p, const VariantAt& at, float s) { return s + p.bend * s * s * static_cast<float>(at.qo_head); }
  static FULMEN_FN bool visible(const Params& p, const VariantAt& at) { return ((at.key / p.width + at.position) & 1) == 0; }
};
template <> struct UserVariant<true> : Checkers {};

namespace attend_test {
namespace {

constexpr Checkers::Params kParams{.bend = 0.1f, .width = 3};
double reference(int key, int position, int head, double s) {
  return (key / kParams.width + position) % 2 == 0 ? s + static_cast<double>(kParams.bend) * s * s * head : -INFINITY;
}
Case with_params(Case c) {
  const auto* bytes = reinterpret_cast<const unsigned char*>(&kParams);
  c.user_logit = reference;
  c.user_params.assign(bytes, bytes + sizeof kParams);
  return c;
}

const Kernel kPrefill[] = {
    kernel<config(DType::bf16, DType::bf16, 64, 4, 16, 64, 2, false, {.user = true})>("attend_sm80 prefill, a user's variant"),
    kernel<config(DType::bf16, DType::bf16, 64, 4, 16, 64, 2, false, {.soft_cap = true, .sinks = true, .rope = true, .user = true})>(
        "attend_sm80 prefill, a user's variant and others"),
};
const Kernel kDecode[] = {
    kernel<config(DType::bf16, DType::bf16, 64, 4, 16, 32, 2, true, {.user = true})>("attend_sm80 decode, a user's variant"),
    kernel<config(DType::bf16, DType::bf16, 64, 4, 16, 32, 2, true, {.alibi = true, .custom_mask = true, .user = true})>(
        "attend_sm80 decode, a user's variant and others"),
};

TEST(AttendUserVariant, Prefill) {
  for (const Kernel& kernel : kPrefill) {
    for (const Case& c : kPrefillCases) check(with_params(c), kernel, 1);
  }
}
TEST(AttendUserVariant, Decode) {
  for (const Kernel& kernel : kDecode) {
    for (const Case& c : kDecodeCases) check(with_params(c), kernel, 1);
  }
}

// Params of another size can't be the variant's: no number comes out.
TEST(AttendUserVariant, ParamsOfAnotherSize) {
  for (const Kernel* kernel : {&kPrefill[0], &kDecode[0]}) {
    Case c{.name = "short params", .qo_len = {1}, .kv_len = {40}};
    c.user_params.resize(4);
    c.user_logit = [](int, int, int, double) { return std::nan(""); };
    const Outcome outcome = attend(c, *kernel, 1);
    ASSERT_TRUE(outcome.report.clean()) << outcome.report.text();
    EXPECT_TRUE(outcome.all_nan);
  }
}

}  // namespace
}  // namespace attend_test
}  // namespace fulmen
