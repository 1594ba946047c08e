// Norms, rotary embedding and gated activations in the emulator against fp64: rows shorter than a block and longer than its
// registers hold, strides with gaps, in place, one element at a time.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <random>

#include "emulator/emulator.hpp"
#include "kernels/cases.hpp"
#include "kernels/seeds.hpp"
#include <kernels/activation/act_and_mul.cuh>
#include <kernels/norm/layer_norm.cuh>
#include <kernels/norm/rms_norm.cuh>
#include <kernels/rope/rope.cuh>

namespace fulmen {
namespace {

using emulator::Attempt;
using emulator::Buffer;

std::vector<bf16> draw(size_t n, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<bf16> v(n);
  for (bf16& x : v) x = from_float<bf16>(normal(random));
  return v;
}

// bf16 results: one rounding, and the arithmetic before it.
void expect_close(float found, double expected, double scale) {
  EXPECT_LE(std::fabs(found - expected), 0x1p-8 * std::fabs(expected) + 0x1p-20 * scale) << "expected " << expected << ", found " << found;
}

constexpr NormConfig kWide{.dtype = DType::bf16, .weight_dtype = DType::bf16, .vector_bytes = 16, .threads = 64};
constexpr NormConfig kNarrow{.dtype = DType::bf16, .weight_dtype = DType::bf16, .vector_bytes = 2, .threads = 128};
constexpr NormConfig kWarp{.dtype = DType::bf16, .weight_dtype = DType::bf16, .vector_bytes = 16, .threads = 32};
template <NormConfig kC> __attribute__((noinline)) void rms_kernel(const RmsNormParams& p) { rms_norm<kC>(p); }
template <NormConfig kC> __attribute__((noinline)) void layer_kernel(const LayerNormParams& p) { layer_norm<kC>(p); }

struct NormCase {
  const char* name;
  int tokens, heads, hidden;
  bool residual, in_place;
  int gap;  // elements between rows
  int config;
};
const NormCase kNormCases[] = {
    {"short rows", 5, 2, 40, false, false, 8, 0},     {"residual", 3, 1, 256, true, false, 0, 0},
    {"longer than registers", 2, 1, 2560, true, false, 8, 0}, {"one element at a time", 3, 2, 37, false, false, 1, 1},
    {"in place", 4, 1, 64, false, true, 0, 0},        {"one warp", 4, 2, 64, true, false, 0, 2},
    {"one element, longer", 1, 1, 700, true, false, 0, 1},    {"longer, without residual", 2, 1, 2560, false, false, 0, 0},
};
unsigned threads_of(int config) { return static_cast<unsigned>(config == 0 ? kWide.threads : config == 1 ? kNarrow.threads : kWarp.threads); }

Attempt run_rms(const NormCase& c, uint64_t seed) {
  const int row = c.hidden + c.gap, rows = c.tokens * c.heads;
  const std::vector<bf16> x_values = draw(static_cast<size_t>(rows) * row, 1), r_values = draw(x_values.size(), 2);
  auto x = c.in_place ? Buffer<bf16>::inout("x", x_values) : Buffer<bf16>::input("x", x_values);
  auto residual = Buffer<bf16>::inout("residual", r_values);
  auto weight = Buffer<bf16>::input("weight", draw(static_cast<size_t>(c.hidden), 3));
  auto out = Buffer<bf16>::output("out", x_values.size());
  bf16* result = c.in_place ? x.data() : out.data();
  RmsNormParams p{};
  p.x = x.data();
  p.weight = weight.data();
  p.residual = c.residual ? residual.data() : nullptr;
  p.out = result;
  p.x_stride_token = p.residual_stride_token = p.out_stride_token = static_cast<int64_t>(c.heads) * row;
  p.x_stride_head = p.residual_stride_head = p.out_stride_head = row;
  p.num_tokens = c.tokens;
  p.num_heads = c.heads;
  p.hidden = c.hidden;
  p.dtype = p.weight_dtype = DType::bf16;
  p.eps = 1e-5f;
  p.weight_offset = 0.5f;
  Attempt attempt;
  attempt.report = emulator::launch({.name = "rms_norm", .grid = {3}, .block = {threads_of(c.config)}, .seed = seed, .overlapped = true},
                                    c.config == 0 ? rms_kernel<kWide> : c.config == 1 ? rms_kernel<kNarrow> : rms_kernel<kWarp>, p);
  for (int r = 0; r < rows && attempt.report.clean(); ++r) {
    double squares = 0;
    std::vector<double> y(static_cast<size_t>(c.hidden));
    for (int i = 0; i < c.hidden; ++i) {
      const size_t at = static_cast<size_t>(r) * row + i;
      float v = to_float(x_values[at]);
      if (c.residual) {
        const bf16 sum = from_float<bf16>(v + to_float(r_values[at]));
        attempt.right &= residual[at].bits == sum.bits;
        v = to_float(sum);
      }
      y[static_cast<size_t>(i)] = v;
      squares += y[static_cast<size_t>(i)] * y[static_cast<size_t>(i)];
    }
    for (int i = 0; i < c.hidden; ++i) {
      const double expected = y[static_cast<size_t>(i)] / std::sqrt(squares / c.hidden + 1e-5) * (to_float(weight[static_cast<size_t>(i)]) + 0.5);
      const double error = std::fabs(to_float(result[static_cast<size_t>(r) * row + i]) - expected);
      attempt.right &= error <= 0x1p-8 * std::fabs(expected) + 1e-6;
    }
    for (int i = c.hidden; i < row && !c.in_place; ++i) attempt.right &= result[static_cast<size_t>(r) * row + i].bits == 0xffff;
  }
  return attempt;
}

void check_rms(const NormCase& c, uint64_t seed) {
  const Attempt attempt = run_rms(c, seed);
  ASSERT_TRUE(attempt.report.clean()) << c.name << "\n" << attempt.report.text();
  ASSERT_TRUE(attempt.right) << c.name;
}

void check_layer(const NormCase& c, uint64_t seed) {
  const int row = c.hidden + c.gap, rows = c.tokens * c.heads;
  const std::vector<bf16> x_values = draw(static_cast<size_t>(rows) * row, 4);
  auto x = Buffer<bf16>::input("x", x_values);
  auto weight = Buffer<bf16>::input("weight", draw(static_cast<size_t>(c.hidden), 5));
  auto bias = Buffer<bf16>::input("bias", draw(static_cast<size_t>(c.hidden), 6));
  auto out = Buffer<bf16>::output("out", x_values.size());
  LayerNormParams p{};
  p.x = x.data();
  p.weight = weight.data();
  p.bias = c.in_place ? nullptr : bias.data();
  p.out = out.data();
  p.x_stride_token = p.out_stride_token = static_cast<int64_t>(c.heads) * row;
  p.x_stride_head = p.out_stride_head = row;
  p.num_tokens = c.tokens;
  p.num_heads = c.heads;
  p.hidden = c.hidden;
  p.dtype = p.weight_dtype = DType::bf16;
  p.eps = 1e-5f;
  const auto report = emulator::launch({.name = "layer_norm", .grid = {2}, .block = {threads_of(c.config)}, .seed = seed, .overlapped = true},
                                       c.config == 0 ? layer_kernel<kWide> : c.config == 1 ? layer_kernel<kNarrow> : layer_kernel<kWarp>, p);
  ASSERT_TRUE(report.clean()) << c.name << "\n" << report.text();
  for (int r = 0; r < rows; ++r) {
    double mean = 0, variance = 0;
    for (int i = 0; i < c.hidden; ++i) mean += to_float(x[static_cast<size_t>(r) * row + i]);
    mean /= c.hidden;
    for (int i = 0; i < c.hidden; ++i) variance += std::pow(to_float(x[static_cast<size_t>(r) * row + i]) - mean, 2);
    for (int i = 0; i < c.hidden; ++i) {
      const double normal = (to_float(x[static_cast<size_t>(r) * row + i]) - mean) / std::sqrt(variance / c.hidden + 1e-5);
      expect_close(to_float(out[static_cast<size_t>(r) * row + i]), normal * to_float(weight[static_cast<size_t>(i)]) + (p.bias != nullptr ? to_float(bias[static_cast<size_t>(i)]) : 0.0f), 8);
    }
  }
}

constexpr RopeConfig kRopeWide{.dtype = DType::bf16, .interleaved = false, .vector_bytes = 16, .threads = 64};
constexpr RopeConfig kRopePairs{.dtype = DType::bf16, .interleaved = true, .vector_bytes = 16, .threads = 64};
constexpr RopeConfig kRopeNarrow{.dtype = DType::bf16, .interleaved = false, .vector_bytes = 2, .threads = 64};
constexpr RopeConfig kRopeNarrowPairs{.dtype = DType::bf16, .interleaved = true, .vector_bytes = 2, .threads = 64};
template <RopeConfig kC> __attribute__((noinline)) void rope_kernel(const RopeParams& p) { rope<kC>(p); }

struct RopeCase {
  const char* name;
  int rotary_dim, head_dim;
  bool in_place, table;
  bool wide_positions, without_k;
  RopeConfig config;
  void (*run)(const RopeParams&);
};
const RopeCase kRopeCases[] = {
    {"halves", 64, 64, false, false, false, false, kRopeWide, rope_kernel<kRopeWide>},
    {"pairs", 64, 64, true, false, true, false, kRopePairs, rope_kernel<kRopePairs>},
    {"partial", 32, 48, false, false, false, true, kRopeWide, rope_kernel<kRopeWide>},
    {"table", 32, 32, true, true, false, false, kRopePairs, rope_kernel<kRopePairs>},
    {"narrow", 6, 9, false, false, false, false, kRopeNarrow, rope_kernel<kRopeNarrow>},
    {"narrow pairs", 6, 9, false, false, false, false, kRopeNarrowPairs, rope_kernel<kRopeNarrowPairs>},
    {"several turns of a thread", 112, 112, true, false, false, false, kRopeNarrow, rope_kernel<kRopeNarrow>},
};
void check_rope(const RopeCase& c, uint64_t seed) {
  constexpr int kTokens = 4, kQ = 3, kK = 2;
  const std::vector<bf16> q_values = draw(static_cast<size_t>(kTokens * kQ * c.head_dim), 7), k_values = draw(static_cast<size_t>(kTokens * kK * c.head_dim), 8);
  auto q = c.in_place ? Buffer<bf16>::inout("q", q_values) : Buffer<bf16>::input("q", q_values);
  auto k = c.in_place ? Buffer<bf16>::inout("k", k_values) : Buffer<bf16>::input("k", k_values);
  auto q_out = Buffer<bf16>::output("q_out", q_values.size());
  auto k_out = Buffer<bf16>::output("k_out", k_values.size());
  const std::vector<int64_t> places = {0, 127, -1, 128};  // the last two are out of bounds
  auto positions = Buffer<int32_t>::input("positions", std::vector<int32_t>(places.begin(), places.end()));
  auto positions_64 = Buffer<int64_t>::input("positions", places);
  std::vector<double> turns(static_cast<size_t>(c.rotary_dim) / 2);
  for (size_t d = 0; d < turns.size(); ++d) turns[d] = std::pow(10000.0, -2.0 * static_cast<double>(d) / c.rotary_dim) / (2 * M_PI);
  std::vector<float> cache;  // its frequencies are half of those that the kernel would compute
  for (int position = 0; position < 128; ++position) {
    for (double t : turns) cache.push_back(static_cast<float>(std::cos(M_PI * t * position)));
    for (double t : turns) cache.push_back(static_cast<float>(std::sin(M_PI * t * position)));
  }
  auto table = Buffer<float>::input("cos_sin", cache);
  RopeParams p{};
  p.q = q.data();
  p.k = c.without_k ? nullptr : k.data();
  p.q_out = c.in_place ? q.data() : q_out.data();
  p.k_out = c.in_place ? k.data() : k_out.data();
  p.positions = c.wide_positions ? static_cast<const void*>(positions_64.data()) : positions.data();
  p.positions_are_i64 = c.wide_positions;
  p.cos_sin = c.table ? table.data() : nullptr;
  p.cos_sin_stride = c.rotary_dim;
  p.q_stride_head = p.k_stride_head = p.q_out_stride_head = p.k_out_stride_head = c.head_dim;
  p.q_stride_token = p.q_out_stride_token = kQ * c.head_dim;
  p.k_stride_token = p.k_out_stride_token = kK * c.head_dim;
  p.num_tokens = kTokens;
  p.max_position = 128;
  p.num_q_heads = kQ;
  p.num_k_heads = kK;
  p.head_dim = c.head_dim;
  p.rotary_dim = c.rotary_dim;
  p.dtype = DType::bf16;
  p.interleaved = c.config.interleaved;
  p.frequencies.scale = 1;
  for (size_t d = 0; d < turns.size(); ++d) p.frequencies.step[d] = static_cast<uint64_t>(std::ldexp(turns[d], 64));
  const auto report = emulator::launch({.name = "rope", .grid = {3}, .block = {64}, .seed = seed, .overlapped = true}, c.run, p);
  ASSERT_TRUE(report.clean()) << c.name << "\n" << report.text();
  for (const bool of_q : {true, false}) {
    if (!of_q && c.without_k) continue;
    const std::vector<bf16>& in = of_q ? q_values : k_values;
    const bf16* out = static_cast<const bf16*>(of_q ? p.q_out : p.k_out);
    const int heads = of_q ? kQ : kK;
    for (int t = 0; t < kTokens; ++t) {
      for (int h = 0; h < heads; ++h) {
        const size_t row = static_cast<size_t>(t * heads + h) * c.head_dim;
        for (int d = 0; d < c.head_dim; ++d) {
          const float found = to_float(out[row + d]);
          if (d >= c.rotary_dim) {
            EXPECT_EQ(out[row + d].bits, in[row + d].bits) << c.name;
            continue;
          }
          if (places[static_cast<size_t>(t)] < 0 || places[static_cast<size_t>(t)] >= p.max_position) {
            EXPECT_TRUE(std::isnan(found)) << c.name;
            continue;
          }
          const int half = c.rotary_dim / 2;
          const int pair = c.config.interleaved ? d / 2 : d % half;
          const bool second = c.config.interleaved ? d % 2 != 0 : d >= half;
          const double a = to_float(in[row + (c.config.interleaved ? 2 * pair : pair)]), b = to_float(in[row + (c.config.interleaved ? 2 * pair + 1 : pair + half)]);
          const double angle = (c.table ? M_PI : 2 * M_PI) * turns[static_cast<size_t>(pair)] * positions[t];
          expect_close(found, second ? b * std::cos(angle) + a * std::sin(angle) : a * std::cos(angle) - b * std::sin(angle), 4);
        }
      }
    }
  }
}

constexpr ActAndMulConfig kSilu{.dtype = DType::bf16, .activation = Activation::silu, .vector_bytes = 16, .threads = 64};
constexpr ActAndMulConfig kGelu{.dtype = DType::bf16, .activation = Activation::gelu, .vector_bytes = 2, .threads = 64};
constexpr ActAndMulConfig kGeluTanh{.dtype = DType::bf16, .activation = Activation::gelu_tanh, .vector_bytes = 16, .threads = 64};
template <ActAndMulConfig kC> __attribute__((noinline)) void act_kernel(const ActAndMulParams& p) { act_and_mul<kC>(p); }

struct ActCase {
  const char* name;
  int width;
  Activation activation;
  void (*run)(const ActAndMulParams&);
};
const ActCase kActCases[] = {
    {"silu", 1104, Activation::silu, act_kernel<kSilu>},
    {"gelu, one element at a time", 77, Activation::gelu, act_kernel<kGelu>},
    {"gelu by tanh", 64, Activation::gelu_tanh, act_kernel<kGeluTanh>},
};
void check_act(const ActCase& c, uint64_t seed) {
  constexpr int kTokens = 3;
  auto x = Buffer<bf16>::input("x", draw(static_cast<size_t>(kTokens) * 2 * c.width, 9));
  auto out = Buffer<bf16>::output("out", static_cast<size_t>(kTokens) * c.width);
  ActAndMulParams p{};
  p.x = x.data();
  p.out = out.data();
  p.x_stride = 2 * c.width;
  p.out_stride = c.width;
  p.num_tokens = kTokens;
  p.width = c.width;
  p.dtype = DType::bf16;
  p.activation = c.activation;
  const auto report = emulator::launch({.name = "act_and_mul", .grid = {2}, .block = {64}, .seed = seed, .overlapped = true}, c.run, p);
  ASSERT_TRUE(report.clean()) << report.text();
  for (int t = 0; t < kTokens; ++t) {
    for (int i = 0; i < c.width; ++i) {
      const double g = to_float(x[static_cast<size_t>(2 * t) * c.width + i]), u = to_float(x[static_cast<size_t>(2 * t + 1) * c.width + i]);
      const double act = c.activation == Activation::silu   ? g / (1 + std::exp(-g))
                         : c.activation == Activation::gelu ? 0.5 * g * (1 + std::erf(g / std::sqrt(2.0)))
                                                            : 0.5 * g * (1 + std::tanh(std::sqrt(2 / M_PI) * (g + 0.044715 * g * g * g)));
      expect_close(to_float(out[static_cast<size_t>(t) * c.width + i]), act * u, 16);
    }
  }
}

const bool kAdded = add_cases("rms_norm", kNormCases, check_rms) && add_cases("layer_norm", kNormCases, check_layer) &&
                    add_cases("rope", kRopeCases, check_rope) && add_cases("act_and_mul", kActCases, check_act);

template <class Table, class Check> void check_all(const Table& table, Check check) {
  for (const auto& c : table) {
    for (uint64_t seed = first_seed(); seed < first_seed() + num_seeds(5); ++seed) check(c, seed);
  }
}
TEST(RmsNorm, Cases) { check_all(kNormCases, check_rms); }
TEST(LayerNorm, Cases) { check_all(kNormCases, check_layer); }
TEST(Rope, Cases) { check_all(kRopeCases, check_rope); }
TEST(ActAndMul, Cases) { check_all(kActCases, check_act); }

}  // namespace
}  // namespace fulmen
