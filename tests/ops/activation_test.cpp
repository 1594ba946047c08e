#include <fmt/format.h>

#include "ops/reference/rows.hpp"
#include "ops/tensors.hpp"

namespace {
using namespace testing_ops;

struct Case {
  const char* name;
  int64_t tokens, width, pad;
  double scale;
};

constexpr Case kCases[] = {
    {"empty batch", 0, 64, 0, 1.0},  {"one value", 1, 1, 0, 1.0},    {"ragged tail", 5, 77, 0, 2.0},
    {"odd strides", 9, 130, 5, 1.0}, {"one token", 1, 1536, 0, 1.0}, {"large values", 3, 300, 1, 40.0},
    {"many", 50, 2000, 0, 3.0},
};

TEST(ActAndMul, MatchesReference) {
  std::mt19937_64 random(1);
  Context context;
  for (int64_t target : simd_targets()) {
    SimdTarget use(target);
    for (int dtype : {FULMEN_F32, FULMEN_F16, FULMEN_BF16}) {
      for (int kind : {FULMEN_SILU, FULMEN_GELU, FULMEN_GELU_TANH}) {
        for (const Case& c : kCases) {
          const std::string what = fmt::format("{} activation {} {}", name_of(dtype), kind, c.name);
          Tensor x =
              Tensor(dtype, {c.tokens, 2 * c.width}, {2 * c.width + c.pad, 1}).fill_normal(random, c.scale);
          Tensor out(dtype, {c.tokens, c.width}, {c.width + c.pad, 1});
          const auto gate = static_cast<reference::Gate>(kind);
          const auto exact = reference::act_and_mul<double>(x.values(), static_cast<size_t>(c.width), gate);
          const auto plain = reference::act_and_mul<float>(x.values(), static_cast<size_t>(c.width), gate);
          FULMEN_INIT(fulmen_act_and_mul_args, args);
          args.x = x.view(), args.out = out.view(), args.activation = kind;
          EXPECT_FULMEN_OK(fulmen_act_and_mul(context, &args, nullptr));
          expect_close(out, exact, plain, what);
          x.expect_guards(what), out.expect_guards(what);
        }
      }
    }
  }
}

TEST(ActAndMul, SpecialValues) {
  Context context;
  const double inf = std::numeric_limits<double>::infinity(), nan = std::numeric_limits<double>::quiet_NaN();
  Tensor x(FULMEN_F32, {1, 8}), out(FULMEN_F32, {1, 4});
  for (int kind : {FULMEN_SILU, FULMEN_GELU, FULMEN_GELU_TANH}) {
    const double values[8] = {nan, inf, 0.0, 1e30, 1.0, 2.0, 3.0, 1.0};
    for (int i = 0; i < 8; ++i) x.set(i, values[i]);
    FULMEN_INIT(fulmen_act_and_mul_args, args);
    args.x = x.view(), args.out = out.view(), args.activation = kind;
    EXPECT_FULMEN_OK(fulmen_act_and_mul(context, &args, nullptr));
    EXPECT_TRUE(std::isnan(out.get(0)));
    EXPECT_EQ(out.get(1), inf);
    EXPECT_EQ(out.get(2), 0.0);
    EXPECT_EQ(out.get(3), static_cast<double>(1e30f));
  }
  FULMEN_INIT(fulmen_act_and_mul_args, args);
  args.x = x.view(), args.out = out.view(), args.activation = 3;
  EXPECT_EQ(fulmen_act_and_mul(context, &args, nullptr), FULMEN_INVALID_ARGUMENT);
}

}  // namespace
