// linear on the CPU against fp64.
#include <fmt/format.h>

#include "ops/reference/rows.hpp"
#include "ops/tensors.hpp"

namespace {
using namespace testing_ops;

struct Case {
  const char* name;
  int64_t rows, n, k, pad;
  bool bias, residual, in_place, gated, norm, f32;
};

constexpr Case kCases[] = {
    {"empty batch", 0, 16, 32, 0, false, false, false, false, false, false},
    {"one output", 1, 1, 1, 0, true, false, false, false, false, false},
    {"ragged", 3, 21, 77, 5, true, true, false, false, false, false},
    {"f32 result", 2, 30, 100, 0, false, false, false, false, true, true},
    {"residual in place", 5, 40, 256, 3, false, true, true, false, true, false},
    {"gated", 4, 46, 130, 1, true, true, false, true, true, false},
    {"many rows", 40, 12, 33, 0, false, false, false, false, true, false},
    {"nothing to add up", 2, 5, 0, 1, true, false, false, false, false, false},
};

template <class F>
std::vector<F> linear(const Case& c, Tensor& x, Tensor& w, Tensor& bias, Tensor& residual, int activation, double eps) {
  const int64_t width = c.gated ? c.n / 2 : c.n;
  std::vector<F> y;
  for (int64_t r = 0; r < c.rows; ++r) {
    F squares = 0;
    for (int64_t i = 0; i < c.k; ++i) squares += static_cast<F>(x.get(r * c.k + i)) * static_cast<F>(x.get(r * c.k + i));
    const F scale = c.norm ? 1 / std::sqrt(squares / static_cast<F>(c.k) + static_cast<F>(eps)) : F(1);
    const auto sum = [&](int64_t o) {
      F s = 0;
      for (int64_t i = 0; i < c.k; ++i) s += static_cast<F>(x.get(r * c.k + i)) * static_cast<F>(w.get(o * c.k + i));
      return scale * s + (c.bias ? static_cast<F>(bias.get(o)) : F(0));
    };
    for (int64_t o = 0; o < width; ++o) {
      F value = sum(o);
      if (c.gated) {
        const std::vector<double> pair{static_cast<double>(value), static_cast<double>(sum(o + width))};
        value = reference::act_and_mul<F>(pair, 1, static_cast<reference::Gate>(activation))[0];
      }
      y.push_back(c.residual ? value + static_cast<F>(residual.get(r * width + o)) : value);
    }
  }
  return y;
}

TEST(Linear, MatchesReference) {
  std::mt19937_64 random(1);
  Context context;
  for (int64_t target : simd_targets()) {
    SimdTarget use(target);
    for (int dtype : {FULMEN_F16, FULMEN_BF16}) {
      for (const Case& c : kCases) {
        for (int activation : {FULMEN_SILU, FULMEN_GELU, FULMEN_GELU_TANH}) {
          if (!c.gated && activation != FULMEN_SILU) continue;
          const std::string what = fmt::format("{} {} activation {}", name_of(dtype), c.name, activation);
          const int64_t width = c.gated ? c.n / 2 : c.n;
          Tensor x(dtype, {c.rows, c.k}, {c.k + c.pad, 1}), w(dtype, {c.n, c.k}, {c.k + c.pad + 1, 1}), bias(dtype, {c.n});
          Tensor residual(dtype, {c.rows, width}, {width + c.pad, 1});
          Tensor y(c.f32 ? FULMEN_F32 : dtype, {c.rows, width}, {width + c.pad, 1});
          x.fill_normal(random), w.fill_normal(random, 0.3), bias.fill_normal(random), residual.fill_normal(random);
          const auto exact = linear<double>(c, x, w, bias, residual, activation, 1e-5);
          const auto plain = linear<float>(c, x, w, bias, residual, activation, 1e-5);
          FULMEN_INIT(fulmen_linear_args, args);
          args.x = x.view(), args.w = w.view(), args.y = (c.in_place ? residual : y).view();
          if (c.bias) args.bias = bias.view();
          if (c.residual) args.residual = residual.view();
          args.gated = c.gated, args.activation = activation, args.rms_eps = c.norm ? 1e-5f : 0.0f;
          EXPECT_FULMEN_OK(fulmen_linear(context, &args, nullptr));
          expect_close(c.in_place ? residual : y, exact, plain, what);
          x.expect_guards(what), w.expect_guards(what), y.expect_guards(what), residual.expect_guards(what);
        }
      }
    }
  }
}

TEST(Linear, ErrorsNameTheArgument) {
  Context context(1);
  Tensor x(FULMEN_BF16, {2, 16}), w(FULMEN_BF16, {8, 16}), y(FULMEN_BF16, {2, 8}), wrong(FULMEN_F16, {2, 8}), f32(FULMEN_F32, {2, 16});
  FULMEN_INIT(fulmen_linear_args, good);
  good.x = x.view(), good.w = w.view(), good.y = y.view();
  const auto refused = [&](const fulmen_linear_args& args, const char* text) {
    EXPECT_EQ(fulmen_linear(context, &args, nullptr), FULMEN_INVALID_ARGUMENT);
    EXPECT_NE(std::string(fulmen_last_error()).find(text), std::string::npos) << fulmen_last_error();
  };
  fulmen_linear_args args = good;
  args.x = f32.view();
  refused(args, "x: expected f16 | bf16");
  args = good, args.y = wrong.view();
  refused(args, "y: expected bf16 | f32");
  args = good, args.gated = 1;
  refused(args, "y: expected [num_rows = 2, 4]");
  args = good, args.residual = x.view();
  refused(args, "residual: expected [num_rows = 2, 8]");
  args = good, args.rms_eps = -1.0f;
  refused(args, "rms_eps");
  args = good, args.y.data = x.view().data;
  refused(args, "y: expected memory apart from x's");
}

}  // namespace
