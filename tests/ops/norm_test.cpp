#include <fmt/format.h>

#include "ops/reference/rows.hpp"
#include "ops/tensors.hpp"

namespace {
using namespace testing_ops;

struct Case {
  const char* name;
  int64_t tokens, heads, hidden;  // heads 0: two dimensions
  int64_t pad;                    // elements between rows
  bool residual, in_place;
  float weight_offset;
  double scale;
};

constexpr Case kCases[] = {
    {"empty batch", 0, 0, 64, 0, false, false, 0.0f, 1.0},
    {"one value", 3, 0, 1, 0, false, false, 0.0f, 1.0},
    {"one token", 1, 0, 576, 0, true, true, 0.0f, 1.0},
    {"ragged tail", 5, 0, 173, 0, false, false, 0.0f, 3.0},
    {"odd strides", 7, 0, 130, 3, true, false, 0.0f, 1.0},
    {"gemma", 4, 0, 256, 0, true, false, 1.0f, 1.0},
    {"heads", 6, 5, 64, 1, false, true, 0.0f, 1.0},
    {"large", 40, 0, 4096, 0, true, false, 0.0f, 30.0},
    {"tiny values", 2, 0, 100, 0, false, false, 0.0f, 1e-3},
};

Tensor rows(int dtype, const Case& c) {
  if (c.heads == 0) return Tensor(dtype, {c.tokens, c.hidden}, {c.hidden + c.pad, 1});
  const int64_t head = c.hidden + c.pad;
  return Tensor(dtype, {c.tokens, c.heads, c.hidden}, {c.heads * head + c.pad, head, 1});
}

TEST(RmsNorm, MatchesReference) {
  std::mt19937_64 random(1);
  Context context;
  for (int64_t target : simd_targets()) {
    SimdTarget use(target);
    for (int dtype : {FULMEN_F32, FULMEN_F16, FULMEN_BF16}) {
      for (int weight_dtype : {dtype, static_cast<int>(FULMEN_F32)}) {
        for (const Case& c : kCases) {
          const std::string what = fmt::format("{} {}", name_of(dtype), c.name);
          Tensor x = rows(dtype, c).fill_normal(random, c.scale), out = rows(dtype, c);
          Tensor weight = Tensor(weight_dtype, {c.hidden}).fill_normal(random, 0.3, 1.0);
          Tensor residual;
          auto normalised = x.values();
          if (c.residual) {
            residual = rows(dtype, c).fill_normal(random, c.scale);
            for (size_t i = 0; i < normalised.size(); ++i) {
              normalised[i] = round_to(dtype, normalised[i] + residual.get(static_cast<int64_t>(i)));
            }
          }
          const auto exact = reference::rms_norm<double>(normalised, weight.values(), 1e-6f, c.weight_offset);
          const auto plain = reference::rms_norm<float>(normalised, weight.values(), 1e-6f, c.weight_offset);
          FULMEN_INIT(fulmen_rms_norm_args, args);
          args.x = x.view();
          args.weight = weight.view();
          args.residual = residual.view();
          args.out = c.in_place ? x.view() : out.view();
          args.eps = 1e-6f;
          args.weight_offset = c.weight_offset;
          EXPECT_FULMEN_OK(fulmen_rms_norm(context, &args, nullptr));
          expect_close(c.in_place ? x : out, exact, plain, what);
          for (size_t i = 0; c.residual && i < normalised.size(); ++i) {
            ASSERT_EQ(residual.get(static_cast<int64_t>(i)), normalised[i]) << what;
          }
          x.expect_guards(what), out.expect_guards(what), weight.expect_guards(what);
          if (c.residual) residual.expect_guards(what);
        }
      }
    }
  }
}

TEST(LayerNorm, MatchesReference) {
  std::mt19937_64 random(1);
  Context context;
  for (int64_t target : simd_targets()) {
    SimdTarget use(target);
    for (int dtype : {FULMEN_F32, FULMEN_F16, FULMEN_BF16}) {
      for (int weight_dtype : {dtype, static_cast<int>(FULMEN_F32)}) {
        for (const Case& c : kCases) {
          const std::string what = fmt::format("{} {}", name_of(dtype), c.name);
          const double mean = c.residual ? 5.0 : 0.0;  // a mean that a one-pass variance would lose
          Tensor x = rows(dtype, c).fill_normal(random, c.scale, mean), out = rows(dtype, c), bias;
          Tensor weight = Tensor(weight_dtype, {c.hidden}).fill_normal(random, 0.3, 1.0);
          if (!c.in_place) bias = Tensor(weight_dtype, {c.hidden}).fill_normal(random);
          const auto b = c.in_place ? std::vector<double>{} : bias.values();
          const auto exact = reference::layer_norm<double>(x.values(), weight.values(), b, 1e-5f);
          const auto plain = reference::layer_norm<float>(x.values(), weight.values(), b, 1e-5f);
          FULMEN_INIT(fulmen_layer_norm_args, args);
          args.x = x.view(), args.weight = weight.view(), args.bias = bias.view();
          args.out = c.in_place ? x.view() : out.view();
          args.eps = 1e-5f;
          EXPECT_FULMEN_OK(fulmen_layer_norm(context, &args, nullptr));
          expect_close(c.in_place ? x : out, exact, plain, what);
          x.expect_guards(what), out.expect_guards(what), weight.expect_guards(what);
        }
      }
    }
  }
}

TEST(RmsNorm, SameBitsForAnyThreadsAndRowGrouping) {
  std::mt19937_64 random(2);
  const Case c{"", 100, 0, 1000, 0, false, false, 0.0f, 1.0};
  Tensor x = rows(FULMEN_BF16, c).fill_normal(random),
         weight = Tensor(FULMEN_BF16, {c.hidden}).fill_normal(random);
  std::vector<unsigned char> first;
  for (int threads : {1, 2, 3}) {
    Context context(threads);
    Tensor out = rows(FULMEN_BF16, c);
    FULMEN_INIT(fulmen_rms_norm_args, args);
    args.x = x.view(), args.weight = weight.view(), args.out = out.view(), args.eps = 1e-5f;
    EXPECT_FULMEN_OK(fulmen_rms_norm(context, &args, nullptr));
    if (first.empty()) first = out.bytes();
    EXPECT_EQ(first, out.bytes()) << threads;
    // one row at a time
    Tensor alone = rows(FULMEN_BF16, c);
    for (int64_t row = 0; row < c.tokens; ++row) {
      args.x = x.view(), args.out = alone.view();
      args.x.data = x.at(row * c.hidden), args.out.data = alone.at(row * c.hidden);
      args.x.shape[0] = args.out.shape[0] = 1;
      EXPECT_FULMEN_OK(fulmen_rms_norm(context, &args, nullptr));
    }
    EXPECT_EQ(first, alone.bytes());
  }
}

TEST(RmsNorm, NamesWhatIsWrong) {
  Context context;
  Tensor x(FULMEN_F16, {3, 8}), weight(FULMEN_F16, {7}), out(FULMEN_F16, {3, 8});
  FULMEN_INIT(fulmen_rms_norm_args, args);
  args.x = x.view(), args.weight = weight.view(), args.out = out.view();
  EXPECT_EQ(fulmen_rms_norm(context, &args, nullptr), FULMEN_INVALID_ARGUMENT);
  EXPECT_STREQ(fulmen_last_error(), "rms_norm: weight: expected [hidden = 8], found [7]");
  args.weight = fulmen_tensor{};
  EXPECT_EQ(fulmen_rms_norm(context, &args, nullptr), FULMEN_INVALID_ARGUMENT);
  EXPECT_EQ(fulmen_rms_norm(context, nullptr, nullptr), FULMEN_INVALID_ARGUMENT);
  EXPECT_EQ(fulmen_rms_norm(nullptr, &args, nullptr), FULMEN_INVALID_ARGUMENT);
  Tensor good(FULMEN_F16, {8});
  args.weight = good.view();
  args.x.stride[1] = 2;
  EXPECT_EQ(fulmen_rms_norm(context, &args, nullptr), FULMEN_INVALID_ARGUMENT);
  args.x = x.view();
  args.x.device = FULMEN_CUDA;
  EXPECT_EQ(fulmen_rms_norm(context, &args, nullptr), FULMEN_INVALID_ARGUMENT);
}

// Sums halfway between two fp16 or bf16 numbers go to the even one on every target; subnormal ones are kept.
TEST(RmsNorm, ResidualRoundsToNearestEven) {
  Context context;
  for (int64_t target : simd_targets()) {
    SimdTarget use(target);
    for (int dtype : {FULMEN_F16, FULMEN_BF16}) {
      const int64_t n = 256;
      const int digits = dtype == FULMEN_F16 ? 10 : 7;
      Tensor x(dtype, {1, n}), residual(dtype, {1, n}), weight(FULMEN_F32, {n});
      std::vector<double> expected(static_cast<size_t>(n));
      for (int64_t i = 0; i < n; ++i) {
        // m ulp + half an ulp, m counted in units of the last digit; every fourth is subnormal in fp16, exact.
        const int exponent = i % 4 == 3 && dtype == FULMEN_F16 ? -14 : static_cast<int>(i % 5) - 2;
        const double ulp = std::ldexp(1.0, exponent - digits);
        const double m = exponent == -14 ? static_cast<double>(i) : std::ldexp(1.0, digits) + static_cast<double>(i % 100);
        const double sign = i % 2 == 0 ? 1.0 : -1.0;
        const double half = exponent == -14 ? 0.0 : ulp / 2;  // half a subnormal ulp is no fp16 number
        x.set(i, sign * m * ulp), residual.set(i, sign * half), weight.set(i, 1.0);
        const double even = std::fmod(m, 2.0) == 0.0 ? m : m + 1.0;
        expected[static_cast<size_t>(i)] = sign * (half == 0.0 ? m : even) * ulp;
      }
      FULMEN_INIT(fulmen_rms_norm_args, args);
      args.x = x.view(), args.out = x.view(), args.residual = residual.view(), args.weight = weight.view(), args.eps = 1e-6f;
      EXPECT_FULMEN_OK(fulmen_rms_norm(context, &args, nullptr));
      for (int64_t i = 0; i < n; ++i) {
        EXPECT_EQ(residual.get(i), expected[static_cast<size_t>(i)]) << name_of(dtype) << " target " << target << " " << i;
      }
    }
  }
}

}  // namespace
