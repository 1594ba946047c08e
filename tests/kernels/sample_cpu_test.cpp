// Sampling and argmax in the emulator against the CPU back end: the same words for the same seeds, whatever the filters, ties and
// masses at a boundary included.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <random>

#include "core/pool.hpp"
#include "cpu/ops.hpp"
#include "emulator/emulator.hpp"
#include "kernels/seeds.hpp"
#include <kernels/sampling/argmax.cuh>
#include <kernels/sampling/sample.cuh>

namespace fulmen {
namespace {

using emulator::Buffer;

constexpr SamplingConfig kWide{.dtype = DType::f32, .vector_bytes = 16, .threads = 64, .cluster = 2, .held_bytes = 16384};
constexpr SamplingConfig kNarrow{.dtype = DType::f32, .vector_bytes = 4, .threads = 64, .cluster = 1, .held_bytes = 512};
template <SamplingConfig kC> __attribute__((noinline)) void sample_kernel(const SampleParams& p) { sample<kC>(p); }
template <SamplingConfig kC> __attribute__((noinline)) void argmax_kernel(const ArgmaxParams& p) { argmax<kC>(p); }

struct Filters {
  const char* name;
  float temperature;
  int top_k;
  float top_p, min_p;
  bool joint;
};
const Filters kFilters[] = {
    {"none", 1.0f, 0, 1.0f, 0.0f, false},      {"greedy", 0.0f, 0, 1.0f, 0.0f, false},
    {"top-k", 0.8f, 20, 1.0f, 0.0f, false},    {"top-p", 1.0f, 0, 0.9f, 0.0f, false},
    {"min-p", 1.3f, 0, 1.0f, 0.05f, false},    {"all", 0.7f, 40, 0.95f, 0.02f, false},
    {"all, joint", 0.7f, 40, 0.5f, 0.02f, true}, {"one word", 1.0f, 1, 1.0f, 0.0f, false},
};

// Rows of several kinds: smooth, many ties, flat, one spike, minus infinities, NaN.
std::vector<float> logits(int rows, int stride, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0.0f, 3.0f);
  std::vector<float> x(static_cast<size_t>(rows) * stride);
  for (int r = 0; r < rows; ++r) {
    for (int i = 0; i < stride; ++i) {
      float& v = x[static_cast<size_t>(r) * stride + i];
      switch (r % 6) {
        case 0: v = normal(random); break;
        case 1: v = std::floor(normal(random)); break;
        case 2: v = 1.0f; break;
        case 3: v = i == r % stride ? 30.0f : normal(random); break;
        case 4: v = random() % 3 == 0 ? -INFINITY : normal(random); break;
        default: v = r % 30 == 5 && i == 7 ? NAN : std::ldexp(normal(random), -12); break;
      }
    }
  }
  return x;
}

emulator::Attempt attempt_sample(int rows, int vocab, const Filters& f, bool probs, bool wide, uint64_t seed) {
  const int stride = wide ? (vocab + 3) / 4 * 4 : vocab + 1;
  std::vector<float> values = logits(rows, stride, static_cast<uint32_t>(seed));
  if (probs) {
    for (int r = 0; r < rows; ++r) {
      float* row = &values[static_cast<size_t>(r) * stride];
      double sum = 0;
      for (int i = 0; i < vocab; ++i) sum += std::exp(static_cast<double>(row[i]) - 10);
      for (int i = 0; i < vocab; ++i) row[i] = static_cast<float>(std::exp(static_cast<double>(row[i]) - 10) / sum);
    }
  }
  auto input = Buffer<float>::input("input", values);
  auto tokens = Buffer<int32_t>::output("tokens", static_cast<size_t>(rows));
  auto logprob = Buffer<float>::output("logprob", static_cast<size_t>(rows));
  SampleParams p{};
  p.input = input.data();
  p.tokens = tokens.data();
  p.logprob = logprob.data();
  p.filter.temperature = f.temperature;
  p.filter.top_k = f.top_k;
  p.filter.top_p = f.top_p;
  p.filter.min_p = f.min_p;
  p.filter.joint = f.joint;
  p.seed = 1000 + seed;
  p.offset = 3;
  p.input_stride = stride;
  p.num_input_rows = p.num_rows = rows;
  p.vocab = vocab;
  p.dtype = DType::f32;
  p.input_is_probs = probs;
  const auto cluster = static_cast<unsigned>((wide ? kWide : kNarrow).cluster);
  emulator::Attempt attempt;
  attempt.report = emulator::launch({.name = "sample", .grid = {static_cast<unsigned>(rows) * cluster}, .block = {64}, .shared_bytes = static_cast<size_t>((wide ? kWide : kNarrow).smem_bytes()), .seed = seed, .cluster = cluster, .overlapped = true},
                                    wide ? sample_kernel<kWide> : sample_kernel<kNarrow>, p);
  if (!attempt.report.clean()) return attempt;
  std::vector<int32_t> expected(static_cast<size_t>(rows));
  std::vector<float> expected_logprob(static_cast<size_t>(rows));
  p.tokens = expected.data();
  p.logprob = expected_logprob.data();
  cpu::sample(p, Pool(1));
  for (size_t r = 0; r < expected.size(); ++r) {
    attempt.right &= tokens[r] == expected[r];
    attempt.right &= (float_bits(logprob[r]) & 0x7fffffffu) == (float_bits(expected_logprob[r]) & 0x7fffffffu);
    EXPECT_EQ(tokens[r], expected[r]) << f.name << " row " << r << " of " << vocab << " words";
    EXPECT_EQ(float_bits(logprob[r]) & 0x7fffffffu, float_bits(expected_logprob[r]) & 0x7fffffffu) << f.name << " row " << r;
  }
  return attempt;
}

void compare(int rows, int vocab, const Filters& f, bool probs, bool wide, uint64_t seed) {
  const emulator::Attempt attempt = attempt_sample(rows, vocab, f, probs, wide, seed);
  ASSERT_TRUE(attempt.report.clean()) << f.name << "\n" << attempt.report.text();
}

class SampleCpu : public testing::TestWithParam<Filters> {};
void PrintTo(const Filters& f, std::ostream* to) { *to << f.name; }

TEST_P(SampleCpu, SmallVocabulary) {
  for (uint64_t seed = 1; seed <= num_seeds(2); ++seed) {
    compare(30, 256, GetParam(), false, true, seed);
    compare(12, 131, GetParam(), false, false, seed);
    compare(12, 256, GetParam(), true, true, seed);
  }
}
TEST_P(SampleCpu, LargeVocabulary) { compare(kThorough ? 12 : 2, 20000, GetParam(), false, true, 5); }
INSTANTIATE_TEST_SUITE_P(Filters, SampleCpu, testing::ValuesIn(kFilters));

TEST(ArgmaxCpu, SameAsTheCpu) {
  for (uint64_t seed = 1; seed <= 5; ++seed) {
    for (const int n : {1, 31, 256, 1027}) {
      auto x = Buffer<float>::input("x", logits(12, n + 1, static_cast<uint32_t>(seed)));
      auto index = Buffer<int32_t>::output("index", 12);
      ArgmaxParams p{x.data(), index.data(), n + 1, 12, n, DType::f32};
      const auto report = emulator::launch({.name = "argmax", .grid = {12}, .block = {64}, .shared_bytes = kNarrow.smem_bytes(), .seed = seed, .overlapped = true}, argmax_kernel<kNarrow>, p);
      ASSERT_TRUE(report.clean()) << report.text();
      std::vector<int32_t> expected(12);
      p.index = expected.data();
      cpu::argmax(p, Pool(1));
      EXPECT_EQ(index.values(), expected);
    }
  }
}

}  // namespace
}  // namespace fulmen
