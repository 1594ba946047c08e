// linear in the emulator against fp64: ragged ends of k, n and rows, gated, normed, in place, every dtype; and the same bits
// whatever the other rows are.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <random>

#include "emulator/emulator.hpp"
#include "kernels/cases.hpp"
#include "kernels/seeds.hpp"
#include <kernels/linear/linear.cuh>

namespace fulmen {
namespace {

using emulator::Attempt;
using emulator::Buffer;

constexpr LinearConfig config(DType dtype, DType y_dtype, bool gated, Activation activation, int row_tiles, int out_tiles = 1, int ahead = 2) {
  return {.dtype = dtype, .y_dtype = y_dtype, .gated = gated, .activation = activation, .row_tiles = row_tiles, .out_tiles = out_tiles,
          .ahead = ahead, .warps = 4, .blocks_per_sm = 1};
}
template <LinearConfig kC> __attribute__((noinline)) void kernel(const LinearParams& p) { linear<kC>(p); }

struct Case {
  const char* name;
  int rows, n, k;
  bool bias, residual, in_place, norm;
};
constexpr Case kPlain[] = {{"one row", 1, 16, 32, false, false, false, false}, {"ragged", 5, 21, 104, true, false, false, false},
                           {"normed", 8, 40, 256, true, false, false, true},   {"residual in place", 3, 24, 136, false, true, true, true},
                           {"many chunks", 2, 16, 1000, false, true, false, false}};
constexpr Case kGated[] = {{"gated", 3, 48, 96, false, false, false, true}, {"gated, ragged", 7, 26, 72, true, true, false, false}};
constexpr Case kWide[] = {{"two tiles", 13, 33, 200, true, true, false, true}, {"16 rows", 16, 16, 64, false, false, false, false}};

template <class T>
std::vector<T> draw(size_t n, uint32_t seed, float scale = 1.0f) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0, scale);
  std::vector<T> v(n);
  for (T& x : v) x = from_float<T>(normal(random));
  return v;
}

double act(Activation a, double x) {
  if (a == Activation::silu) return x / (1 + std::exp(-x));
  if (a == Activation::gelu) return x * 0.5 * std::erfc(-x / std::sqrt(2.0));
  return 0.5 * x * (1 + std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
}

// first_row: the rows that are there; the others are missing. -> the results of all rows.
template <LinearConfig kC>
Attempt run(const Case& c, uint64_t seed, std::vector<float>* results = nullptr) {
  using T = storage_t<kC.dtype>;
  using Y = storage_t<kC.y_dtype>;
  constexpr int kPad = 8;
  const int width = kC.gated ? c.n / 2 : c.n, x_row = c.k + kPad, y_row = width + 3;
  const auto x_values = draw<T>(static_cast<size_t>(16 * x_row), 1), w_values = draw<T>(static_cast<size_t>(c.n * x_row), 2, 0.2f);
  auto x = Buffer<T>::input("x", {x_values.begin(), x_values.begin() + c.rows * x_row});
  auto w = Buffer<T>::constant("w", w_values);
  const auto bias_values = draw<T>(static_cast<size_t>(c.n), 3), residual_values = draw<T>(static_cast<size_t>(c.rows * y_row), 4);
  auto bias = Buffer<T>::input("bias", bias_values);
  auto residual = c.in_place ? Buffer<T>::inout("residual", residual_values) : Buffer<T>::input("residual", residual_values);
  auto y = Buffer<Y>::output("y", static_cast<size_t>(c.rows * y_row));
  LinearParams p{};
  p.x = x.data(), p.w = w.data(), p.x_stride = p.w_stride = x_row;
  p.bias = c.bias ? bias.data() : nullptr;
  p.residual = c.residual ? residual.data() : nullptr, p.residual_stride = p.y_stride = y_row;
  p.y = c.in_place ? static_cast<void*>(residual.data()) : y.data();
  p.num_rows = c.rows, p.n = c.n, p.k = c.k;
  p.rms_eps = c.norm ? 1e-5f : 0.0f;
  p.dtype = kC.dtype, p.y_dtype = kC.y_dtype, p.gated = kC.gated, p.activation = kC.activation;
  Attempt attempt;
  const int outputs = kC.outputs();
  attempt.report = emulator::launch({.name = "linear", .grid = {static_cast<unsigned>((width + outputs - 1) / outputs)},
                                     .block = {static_cast<unsigned>(kC.num_threads())}, .seed = seed, .overlapped = true},
                                    kernel<kC>, p);
  for (int r = 0; r < c.rows && attempt.report.clean(); ++r) {
    double squares = 0;
    for (int i = 0; i < c.k; ++i) squares += std::pow(to_float(x_values[static_cast<size_t>(r * x_row + i)]), 2.0);
    const double scale = c.norm ? 1 / std::sqrt(squares / c.k + 1e-5) : 1;
    const auto sum = [&](int o) {
      double s = 0;
      for (int i = 0; i < c.k; ++i) {
        s += static_cast<double>(to_float(x_values[static_cast<size_t>(r * x_row + i)])) * to_float(w_values[static_cast<size_t>(o * x_row + i)]);
      }
      return s * scale + (c.bias ? to_float(bias_values[static_cast<size_t>(o)]) : 0);
    };
    for (int o = 0; o < width; ++o) {
      const size_t at = static_cast<size_t>(r * y_row + o);
      double expected = kC.gated ? act(kC.activation, sum(o)) * sum(o + width) : sum(o);
      if (c.residual) expected += to_float(residual_values[at]);
      const float found = c.in_place ? to_float(residual[at]) : to_float(y[at]);
      const double step = kC.y_dtype == DType::f32 ? 0x1p-20 : kC.dtype == DType::bf16 ? 0x1p-8 : 0x1p-11;
      attempt.right &= std::fabs(found - expected) <= step * std::fabs(expected) + 2e-5 * std::sqrt(static_cast<double>(c.k));
      if (results) results->push_back(found);
    }
  }
  return attempt;
}

template <LinearConfig kC>
void check(const Case& c, uint64_t seed) {
  const Attempt attempt = run<kC>(c, seed);
  ASSERT_TRUE(attempt.report.clean()) << c.name << "\n" << attempt.report.text();
  ASSERT_TRUE(attempt.right) << c.name;
}
template <LinearConfig kC, size_t kCount>
void check_all(const Case (&cases)[kCount]) {
  for (const Case& c : cases) {
    for (uint64_t seed = first_seed(); seed < first_seed() + num_seeds(3); ++seed) check<kC>(c, seed);
  }
}

constexpr LinearConfig kBf16 = config(DType::bf16, DType::bf16, false, Activation::silu, 1), kF16 = config(DType::f16, DType::f16, false, Activation::silu, 1),
                       kTwoTiles = config(DType::bf16, DType::bf16, false, Activation::silu, 2),
                       kWideBlock = config(DType::bf16, DType::bf16, false, Activation::silu, 2, 2, 1),
                       kGatedBf16 = config(DType::bf16, DType::bf16, true, Activation::silu, 1),
                       kGatedWideBlock = config(DType::bf16, DType::bf16, true, Activation::silu, 1, 2, 1);
constexpr LinearConfig kManyWarps{.dtype = DType::bf16, .y_dtype = DType::bf16, .gated = false, .activation = Activation::silu, .row_tiles = 2,
                                  .out_tiles = 1, .ahead = 2, .warps = 16, .blocks_per_sm = 1};

const bool kAdded = add_cases("linear", kPlain, check<kBf16>) && add_cases("linear f16", kPlain, check<kF16>) && add_cases("linear", kWide, check<kTwoTiles>) &&
                    add_cases("linear, wide blocks", kWide, check<kWideBlock>) && add_cases("linear, 16 warps", kWide, check<kManyWarps>) &&
                    add_cases("linear", kGated, check<kGatedBf16>) && add_cases("linear, wide blocks", kGated, check<kGatedWideBlock>);

TEST(Linear, Plain) {
  check_all<kBf16>(kPlain);
  check_all<kF16>(kPlain);
}
TEST(Linear, Wide) {
  check_all<kTwoTiles>(kWide);
  check_all<kWideBlock>(kWide);
  check_all<kManyWarps>(kWide);
}
TEST(Linear, FloatOutput) {
  constexpr Case kFloat[] = {{"f32", 4, 19, 264, true, false, false, true}};
  check_all<config(DType::f16, DType::f32, false, Activation::silu, 1)>(kFloat);
}
TEST(Linear, Gated) {
  check_all<kGatedBf16>(kGated);
  check_all<config(DType::f16, DType::f16, true, Activation::gelu, 1)>(kGated);
  check_all<config(DType::bf16, DType::bf16, true, Activation::gelu_tanh, 1)>(kGated);
  check_all<kGatedWideBlock>(kGated);
}

TEST(Linear, ARowsBitsDoNotDependOnTheOthers) {
  constexpr LinearConfig one = config(DType::bf16, DType::bf16, false, Activation::silu, 1);
  constexpr LinearConfig two = config(DType::bf16, DType::bf16, false, Activation::silu, 2);
  Case c{"", 16, 24, 328, true, false, false, true};
  std::vector<float> all;
  ASSERT_TRUE(run<two>(c, 1, &all).report.clean());
  for (const int rows : {1, 3, 8}) {
    c.rows = rows;
    std::vector<float> some;
    ASSERT_TRUE(run<one>(c, 2, &some).report.clean());
    EXPECT_TRUE(std::equal(some.begin(), some.end(), all.begin())) << rows << " rows";
  }
}

}  // namespace
}  // namespace fulmen
