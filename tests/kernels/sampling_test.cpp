// Sampling, filter, argmax, softmax and top-k in the emulator: the words of the plain definition, boundary
// ties included.
#include "ops/reference/sampling.hpp"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <kernels/sampling/argmax.cuh>
#include <kernels/sampling/filter.cuh>
#include <kernels/sampling/sample.cuh>
#include <kernels/sampling/softmax.cuh>
#include <kernels/topk/top_k.cuh>
#include <random>

#include "emulator/emulator.hpp"

namespace fulmen {
namespace {

using emulator::Buffer;
using reference::Filters;

constexpr SamplingConfig kF32{.dtype = DType::f32, .vector_bytes = 16, .threads = 64, .cluster = 2, .held_bytes = 8192},
    kBf16{.dtype = DType::bf16, .vector_bytes = 2, .threads = 64, .cluster = 1, .held_bytes = 1024},
    kBf16Wide{.dtype = DType::bf16, .vector_bytes = 16, .threads = 128, .cluster = 4, .held_bytes = 2048},
    kArgmax{.dtype = DType::bf16, .vector_bytes = 16, .threads = 64, .cluster = 4, .held_bytes = 0};

// A cluster per row.
template <SamplingConfig kC>
emulator::Launch row_launch(const char* name, size_t rows) {
  return {.name = name, .grid = {static_cast<unsigned>(rows) * kC.cluster}, .block = {kC.threads}, .shared_bytes = kC.smem_bytes(), .cluster = kC.cluster};
}

std::vector<float> words(size_t rows, size_t n, int kind, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> v(rows * n);
  for (float& x : v) {
    x = 2.0f * normal(random);
    if (kind == 1) x = std::round(x);  // ties
    if (kind == 2) x = -3.0f;          // nothing but ties
    if (kind == 3 && random() % 3 != 0) x = -infinity();
    x = to_float(from_float<bf16>(x));  // the same row in both dtypes
  }
  for (size_t row = 0; kind == 3 && row < rows; ++row) v[row * n] = 1.0f;
  return v;
}

template <SamplingConfig kC>
Buffer<storage_t<kC.dtype>> as_input(const std::vector<float>& v) {
  std::vector<storage_t<kC.dtype>> stored;
  for (float x : v) stored.push_back(from_float<storage_t<kC.dtype>>(x));
  return Buffer<storage_t<kC.dtype>>::input("x", stored);
}
std::vector<double> row_of(const std::vector<float>& v, size_t row, size_t n) {
  return std::vector<double>(v.begin() + static_cast<std::ptrdiff_t>(row * n),
                             v.begin() + static_cast<std::ptrdiff_t>((row + 1) * n));
}

const std::vector<Filters> kFilters = {
    {},
    {.top_k = 3},
    {.top_p = 0.9f},
    {.min_p = 0.1f},
    {.temperature = 0.0f},
    {.temperature = 0.6f, .top_p = 0.8f, .min_p = 0.02f, .top_k = 20},
    {.temperature = 1.5f, .top_p = 0.5f, .top_k = 20, .joint = true},
    {.top_p = 0.0f},
    {.temperature = -1.0f},
    {.min_p = 2.0f},
};

template <SamplingConfig kC>
void run_sample(size_t n, int kind, bool is_probs) {
  const size_t rows = kFilters.size();
  auto values = words(rows, n, kind, n + static_cast<size_t>(kind));
  if (is_probs) {
    for (size_t row = 0; row < rows; ++row) {
      float sum = 0.0f;
      for (size_t i = 0; i < n; ++i) sum += values[row * n + i] = std::exp(values[row * n + i]);
      for (size_t i = 0; i < n; ++i) values[row * n + i] /= sum;
    }
  }
  for (const bool joint : {false, true}) {
    std::vector<float> temperatures, top_ps, min_ps;
    std::vector<int32_t> top_ks;
    for (const Filters& f : kFilters) {
      temperatures.push_back(f.temperature), top_ps.push_back(f.top_p), min_ps.push_back(f.min_p),
          top_ks.push_back(f.top_k);
    }
    auto x = as_input<kC>(values);
    auto t = Buffer<float>::input("temperatures", temperatures), tp = Buffer<float>::input("top_ps", top_ps);
    auto mp = Buffer<float>::input("min_ps", min_ps);
    auto tk = Buffer<int32_t>::input("top_ks", top_ks);
    auto tokens = Buffer<int32_t>::output("tokens", rows);
    auto logprob = Buffer<float>::output("logprob", rows);
    SampleParams p{};
    p.input = x.data(), p.tokens = tokens.data(), p.logprob = logprob.data();
    p.filter = {t.data(), tk.data(), tp.data(), mp.data(), 1.0f, 0, 1.0f, 0.0f, joint};
    p.seed = 99, p.offset = 7, p.input_stride = static_cast<int64_t>(n);
    p.num_input_rows = p.num_rows = static_cast<int64_t>(rows), p.vocab = static_cast<int32_t>(n),
    p.input_is_probs = is_probs;
    const auto report = emulator::launch(
        row_launch<kC>("sample", rows),
        [](SampleParams params) { sample<kC>(params); }, p);
    ASSERT_TRUE(report.clean()) << report.text();
    for (size_t row = 0; row < rows; ++row) {
      Filters f = kFilters[row];
      f.joint = joint, f.is_probs = is_probs;
      ASSERT_EQ(tokens[row], reference::sample(row_of(values, row, n), f, 99, 7, static_cast<uint32_t>(row)))
          << fmt::format("n {} kind {} probs {} joint {} row {}", n, kind, is_probs, joint, row);
    }
    EXPECT_TRUE(tokens.guards_intact() && logprob.guards_intact());
  }
}

TEST(Sample, TheWordsOfThePlainDefinition) {
  for (int kind = 0; kind < 4; ++kind) {
    run_sample<kF32>(1, kind, false);
    run_sample<kF32>(52, kind, false);
    run_sample<kBf16>(701, kind, false);
    run_sample<kBf16Wide>(704, kind, false);
    run_sample<kF32>(5000, kind, false);
  }
  run_sample<kF32>(700, 0, true);
  run_sample<kF32>(700, 1, true);
}

template <SamplingConfig kC>
void run_filter(size_t n, int kind, bool logits_out) {
  const size_t rows = kFilters.size();
  const auto values = words(rows, n, kind, 5);
  for (size_t row = 0; row < rows; ++row) {
    const Filters& f = kFilters[row];
    auto x = as_input<kC>(
        row == 0 ? values
                 : std::vector<float>(values.begin() + static_cast<std::ptrdiff_t>(row * n), values.end()));
    auto out = Buffer<float>::output("out", n);
    FilterOpParams p{};
    p.input = x.data(), p.output = out.data();
    p.filter = {nullptr, nullptr, nullptr, nullptr, f.temperature, f.top_k, f.top_p, f.min_p, f.joint};
    p.input_stride = p.output_stride = static_cast<int64_t>(n), p.num_rows = 1,
    p.vocab = static_cast<int32_t>(n);
    p.output_is_logits = logits_out;
    const auto report = emulator::launch(
        row_launch<kC>("filter", 1),
        [](FilterOpParams params) { filter<kC>(params); }, p);
    ASSERT_TRUE(report.clean()) << report.text();
    const auto v = row_of(values, row, n);
    if (reference::bad_filters(f)) {
      for (size_t i = 0; i < n; ++i) ASSERT_TRUE(std::isnan(out[i]));
      continue;
    }
    if (f.temperature == 0.0f) continue;
    const auto mass = reference::masses(v, f);
    const auto stays = reference::kept(v, mass, f);
    const double top = *std::max_element(v.begin(), v.end());
    double sum = 0.0;
    for (size_t i = 0; i < n; ++i)
      sum += stays[i] ? std::exp((v[i] - top) / static_cast<double>(f.temperature)) : 0.0;
    for (size_t i = 0; i < n; ++i) {
      if (logits_out) {
        ASSERT_EQ(out[i], stays[i] ? static_cast<float>(v[i]) : -infinity())
            << n << " " << kind << " " << row << " " << i;
      } else {
        const double exact =
            stays[i] ? std::exp((v[i] - top) / static_cast<double>(f.temperature)) / sum : 0.0;
        ASSERT_NEAR(out[i], exact, 1e-5 * exact + 1e-12) << n << " " << kind << " " << row << " " << i;
      }
    }
  }
}

TEST(Filter, TheWordsOfThePlainDefinition) {
  for (int kind = 0; kind < 4; ++kind) {
    run_filter<kF32>(600, kind, false);
    run_filter<kBf16>(300, kind, true);
  }
}

TEST(Argmax, LowestIndexAndNan) {
  const size_t rows = 4, n = 336;
  auto values = words(rows, n, 1, 3);
  values[2 * n + 17] = quiet_nan();
  for (size_t i = 0; i < n; ++i) values[3 * n + i] = -infinity();
  auto x = as_input<kArgmax>(values);
  auto index = Buffer<int32_t>::output("index", rows);
  ArgmaxParams p{};
  p.x = x.data(), p.index = index.data(), p.x_stride = n, p.num_rows = rows, p.n = n;
  const auto report = emulator::launch(
      row_launch<kArgmax>("argmax", rows), [](ArgmaxParams params) { argmax<kArgmax>(params); }, p);
  ASSERT_TRUE(report.clean()) << report.text();
  for (size_t row = 0; row < rows; ++row) {
    const auto v = row_of(values, row, n);
    const auto want = row == 2 ? -1 : static_cast<int>(std::max_element(v.begin(), v.end()) - v.begin());
    EXPECT_EQ(index[row], want) << row;
  }
}

TEST(Softmax, SumsToOneAndSparesNoBadRow) {
  const size_t rows = 3, n = 776;
  auto values = words(rows, n, 0, 4);
  values[n + 5] = quiet_nan();
  auto x = as_input<kF32>(values);
  auto probs = Buffer<float>::output("probs", rows * n);
  SoftmaxParams p{};
  p.logits = x.data(), p.probs = probs.data(), p.temperature = 0.7f, p.logits_stride = p.probs_stride = n;
  p.num_rows = rows, p.vocab = n;
  const auto report = emulator::launch(
      row_launch<kF32>("softmax", rows), [](SoftmaxParams params) { softmax<kF32>(params); },
      p);
  ASSERT_TRUE(report.clean()) << report.text();
  for (size_t row = 0; row < rows; ++row) {
    const auto v = row_of(values, row, n);
    const double top = *std::max_element(v.begin(), v.end());
    double sum = 0.0;
    for (double value : v) sum += std::exp((value - top) / static_cast<double>(0.7f));
    for (size_t i = 0; i < n; ++i) {
      const float got = probs[row * n + i];
      if (row == 1) {
        ASSERT_TRUE(std::isnan(got));
      } else {
        const double exact = std::exp((v[i] - top) / static_cast<double>(0.7f)) / sum;
        ASSERT_NEAR(got, exact, 3e-6 * exact + 1e-30) << row << " " << i;
      }
    }
  }
}

TEST(TopK, DescendingTiesByLowestIndex) {
  for (int kind = 0; kind < 4; ++kind) {
    for (const int k : {1, 7, 60, 300}) {
      const size_t rows = 2, n = 904;
      const auto values = words(rows, n, kind, 8);
      auto x = as_input<kBf16Wide>(values);
      const auto size = rows * static_cast<size_t>(k);
      auto top = Buffer<bf16>::output("values", size);
      auto indices = Buffer<int32_t>::output("indices", size);
      TopKParams p{};
      p.x = x.data(), p.values = top.data(), p.indices = indices.data(), p.x_stride = n;
      p.values_stride = p.indices_stride = k, p.num_rows = rows, p.n = n, p.k = k;
      const auto report = emulator::launch(
          row_launch<kBf16Wide>("top_k", rows), [](TopKParams params) { top_k<kBf16Wide>(params); }, p);
      ASSERT_TRUE(report.clean()) << report.text();
      for (size_t row = 0; row < rows; ++row) {
        std::vector<int32_t> ranking(n);
        std::iota(ranking.begin(), ranking.end(), 0);
        std::stable_sort(ranking.begin(), ranking.end(), [&](int32_t a, int32_t b) {
          return values[row * n + static_cast<size_t>(a)] > values[row * n + static_cast<size_t>(b)];
        });
        for (size_t i = 0; i < static_cast<size_t>(k); ++i) {
          ASSERT_EQ(indices[row * static_cast<size_t>(k) + i], ranking[i])
              << kind << " " << k << " " << row << " " << i;
        }
      }
    }
  }
}

}  // namespace
}  // namespace fulmen
