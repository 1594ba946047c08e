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
#include "kernels/cases.hpp"
#include "kernels/seeds.hpp"

namespace fulmen {
namespace {

using emulator::Buffer;
using reference::Filters;

constexpr SamplingConfig kF32{.dtype = DType::f32, .vector_bytes = 16, .threads = 64, .cluster = 2, .held_bytes = 8192},
    kBf16{.dtype = DType::bf16, .vector_bytes = 2, .threads = 64, .cluster = 1, .held_bytes = 1024},
    kBf16Wide{.dtype = DType::bf16, .vector_bytes = 16, .threads = 128, .cluster = 4, .held_bytes = 2048},
    kArgmax{.dtype = DType::bf16, .vector_bytes = 16, .threads = 64, .cluster = 4, .held_bytes = 0},
    kOneWarpBf16{.dtype = DType::bf16, .vector_bytes = 16, .threads = 32, .cluster = 1, .held_bytes = 1024},
    kManySlots{.dtype = DType::f32, .vector_bytes = 16, .threads = 256, .cluster = 8, .held_bytes = 4096},  // two for each lane
    kOneWarp{.dtype = DType::f32, .vector_bytes = 16, .threads = 32, .cluster = 1, .held_bytes = 8192},
    kOneWarpWindows{.dtype = DType::f32, .vector_bytes = 16, .threads = 32, .cluster = 1, .held_bytes = 1024},
    kNarrowF32{.dtype = DType::f32, .vector_bytes = 4, .threads = 64, .cluster = 2, .held_bytes = 8192},
    kFull{.dtype = DType::bf16, .vector_bytes = 16, .threads = 128, .cluster = 1, .held_bytes = 16384 - kRowShared};  // 2048 items to sort fill it

// A cluster per row.
template <SamplingConfig kC>
emulator::Launch row_launch(const char* name, size_t rows, uint64_t seed) {
  return {.name = name, .grid = {static_cast<unsigned>(rows) * kC.cluster}, .block = {kC.threads}, .shared_bytes = kC.smem_bytes(), .seed = seed,
          .cluster = kC.cluster, .overlapped = true};
}

enum Kind { kSmooth, kTies, kFlat, kMinusInfinity, kSampleTooHigh, kSampleTooLow, kNothing, kInfinite, kNan, kFarApart, kVeryFarApart,
            kFewValues, kNegative, kTooLarge, kTwo };

// Two of them lie to the estimate of select.cuh, which looks at one vector in eight of a warp of kOneWarp: all that is large is what it
// looks at, or nearly all of it is what it doesn't look at.
std::vector<float> words(size_t rows, size_t n, int kind, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> v(rows * n);
  for (float& x : v) {
    x = 2.0f * normal(random);
    if (kind == kTies) x = std::round(x);
    if (kind == kFewValues) x = std::round(0.35f * x);
    if (kind == kFarApart) x *= 8.0f;  // most have no mass
    if (kind == kVeryFarApart) x *= 400.0f;
    if (kind == kFlat) x = -3.0f;
    if (kind == kMinusInfinity && random() % 3 != 0) x = -infinity();
    if (kind == kSampleTooHigh || kind == kSampleTooLow) {
      const size_t vector = static_cast<size_t>(&x - v.data()) % n / 4;
      const bool looked_at = vector / 32 % 8 == 0;
      bool large = looked_at;
      if (kind == kSampleTooLow) large = vector % 32 != 5 && (!looked_at || random() % 25 == 0);  // lane 5 widens the bins
      x = static_cast<float>(random() % 4096) / 4096.0f + (large ? 4.0f : -1.0f);
      continue;
    }
    x = to_float(from_float<bf16>(x));  // the same row in both dtypes
  }
  for (size_t row = 0; kind == kMinusInfinity && row < rows; ++row) v[row * n] = 1.0f;
  for (size_t row = 0; kind == kInfinite && row < rows; ++row) v[row * n + n / 2] = infinity();
  for (size_t row = 0; kind == kNan && row < rows; ++row) v[row * n + n - 1] = quiet_nan();
  if (kind == kNothing) std::fill(v.begin(), v.end(), -infinity());
  return v;
}
// The same as probabilities; nothing at all has no mass, infinity is none, and of the last three kinds only a 2 may be one.
std::vector<float> probabilities(size_t rows, size_t n, int kind, uint64_t seed) {
  auto v = words(rows, n, kind, seed);
  for (size_t row = 0; row < rows; ++row) {
    float sum = 0.0f;
    for (size_t i = 0; i < n; ++i) sum += v[row * n + i] = std::exp(v[row * n + i]);
    for (size_t i = 0; i < n && sum > 0.0f && sum < infinity(); ++i) v[row * n + i] /= sum;
    if (kind >= kNegative) v[row * n + n / 2] = kind == kNegative ? -0.25f : kind == kTooLarge ? 2.5f : 2.0f;
  }
  return v;
}

// Rows begin at multiples of 16 bytes, with NaN and words larger than theirs between them.
constexpr size_t stride_of(size_t n) { return n / 8 * 8 + 8; }

template <SamplingConfig kC>
Buffer<storage_t<kC.dtype>> as_input(const std::vector<float>& v, size_t n) {
  using T = storage_t<kC.dtype>;
  const size_t rows = v.size() / n, stride = stride_of(n);
  std::vector<T> stored(rows * stride);
  for (size_t i = 0; i < stored.size(); ++i) stored[i] = from_float<T>(i % 2 == 0 ? 30000.0f : quiet_nan());
  for (size_t i = 0; i < rows * n; ++i) stored[i / n * stride + i % n] = from_float<T>(v[i]);
  return Buffer<T>::input("x", stored);
}
std::vector<double> row_of(const std::vector<float>& v, size_t row, size_t n) {
  return std::vector<double>(v.begin() + static_cast<std::ptrdiff_t>(row * n),
                             v.begin() + static_cast<std::ptrdiff_t>((row + 1) * n));
}

const std::vector<Filters> kFilters = {
    {},
    {.top_k = 3},
    {.top_k = 80},
    {.top_p = 0.9f},
    {.min_p = 0.1f},
    {.temperature = 0.0f},
    {.temperature = 0.6f, .top_p = 0.8f, .min_p = 0.02f, .top_k = 20},
    {.temperature = 1.5f, .top_p = 0.5f, .top_k = 20, .joint = true},
    {.top_p = 0.0f},
    {.temperature = -1.0f},
    {.min_p = 2.0f},
};
// Ends of the parameters' ranges; floors above words of a list and of a cut; prefixes that are too long for a list.
const std::vector<Filters> kMoreFilters = {
    {.temperature = infinity()},
    {.top_p = -0.5f},
    {.top_p = 1.5f, .top_k = 20},
    {.min_p = 1.0f},
    {.min_p = 1.0f, .top_k = 20},
    {.min_p = -0.5f, .top_k = -3},
    {.min_p = 0.5f, .top_k = 20},
    {.temperature = 3.0f, .min_p = 0.5f, .top_k = 300},
    {.min_p = 0.001f, .top_k = 250},
    {.top_k = 250},
    {.temperature = 3.0f, .top_p = 0.3f},
    {.top_p = 0.7f, .top_k = 250},
    {.temperature = 0.0f, .top_p = 0.5f, .top_k = 20},
};

// Of the word among all words, whatever the filters.
void expect_logprob(const std::vector<double>& v, const Filters& f, int token, float found) {
  const double top = *std::max_element(v.begin(), v.end()), temperature = f.temperature > 0.0f ? static_cast<double>(f.temperature) : 1.0;
  if (token < 0 || !std::isfinite(top)) {
    EXPECT_TRUE(std::isnan(found));
    return;
  }
  double sum = 0.0;
  for (double x : v) sum += f.is_probs ? x : std::exp((x - top) / temperature);
  const double value = v[static_cast<size_t>(token)];
  const double expected = (f.is_probs ? std::log(value) : (value - top) / temperature) - std::log(sum);
  EXPECT_NEAR(found, expected, 1e-5 * (1.0 + std::fabs(expected)));
}

template <SamplingConfig kC>
void run_sample(size_t n, int kind, bool is_probs, uint64_t seed, const std::vector<Filters>& filters = kFilters) {
  const size_t rows = filters.size();
  const auto values = (is_probs ? probabilities : words)(rows, n, kind, n + static_cast<size_t>(kind));
  for (const bool joint : {false, true}) {
    std::vector<float> temperatures, top_ps, min_ps;
    std::vector<int32_t> top_ks;
    for (const Filters& f : filters) {
      temperatures.push_back(f.temperature), top_ps.push_back(f.top_p), min_ps.push_back(f.min_p),
          top_ks.push_back(f.top_k);
    }
    auto x = as_input<kC>(values, n);
    auto t = Buffer<float>::input("temperatures", temperatures), tp = Buffer<float>::input("top_ps", top_ps);
    auto mp = Buffer<float>::input("min_ps", min_ps);
    auto tk = Buffer<int32_t>::input("top_ks", top_ks);
    // What is never written looks like a bad row's.
    auto tokens = Buffer<int32_t>::inout("tokens", std::vector<int32_t>(rows, 7));
    auto logprob = Buffer<float>::inout("logprob", std::vector<float>(rows, 7.0f));
    SampleParams p{};
    p.input = x.data(), p.tokens = tokens.data(), p.logprob = joint ? nullptr : logprob.data();
    p.filter = {t.data(), tk.data(), tp.data(), mp.data(), 1.0f, 0, 1.0f, 0.0f, joint};
    p.seed = 99, p.offset = 7, p.input_stride = static_cast<int64_t>(stride_of(n));
    p.num_input_rows = p.num_rows = static_cast<int64_t>(rows), p.vocab = static_cast<int32_t>(n),
    p.input_is_probs = is_probs;
    const auto report = emulator::launch(
        row_launch<kC>("sample", rows, seed),
        [](SampleParams params) { sample<kC>(params); }, p);
    ASSERT_TRUE(report.clean()) << report.text();
    for (size_t row = 0; row < rows; ++row) {
      Filters f = filters[row];
      f.joint = joint, f.is_probs = is_probs;
      ASSERT_EQ(tokens[row], reference::sample(row_of(values, row, n), f, 99, 7, static_cast<uint32_t>(row)))
          << fmt::format("n {} kind {} probs {} joint {} row {}", n, kind, is_probs, joint, row);
      if (!joint) expect_logprob(row_of(values, row, n), f, tokens[row], logprob[row]);
    }
    EXPECT_TRUE(tokens.guards_intact() && logprob.guards_intact());
  }
}

// Rows of the output that take theirs from anywhere, or from outside.
void run_row_ids(uint64_t seed) {
  constexpr size_t kRows = 5, n = 300;
  const auto values = words(3, n, kSmooth, 21);
  const std::vector<int32_t> ids{2, -1, 0, 3, 2};
  auto x = as_input<kF32>(values, n);
  auto row_ids = Buffer<int32_t>::input("row_ids", ids);
  for (const bool wants_logprob : {true, false}) {
    auto tokens = Buffer<int32_t>::inout("tokens", std::vector<int32_t>(kRows, 7));
    auto logprob = Buffer<float>::inout("logprob", std::vector<float>(kRows, 7.0f));
    SampleParams p{};
    p.input = x.data(), p.tokens = tokens.data(), p.logprob = wants_logprob ? logprob.data() : nullptr, p.row_ids = row_ids.data();
    p.filter = {nullptr, nullptr, nullptr, nullptr, 1.0f, 0, 1.0f, 0.0f, false};
    p.seed = 5, p.offset = 1, p.input_stride = stride_of(n), p.num_input_rows = 3, p.num_rows = kRows, p.vocab = n;
    const auto report =
        emulator::launch(row_launch<kF32>("sample", kRows, seed), [](SampleParams params) { sample<kF32>(params); }, p);
    ASSERT_TRUE(report.clean()) << report.text();
    for (size_t row = 0; row < kRows; ++row) {
      if (ids[row] < 0 || ids[row] >= 3) {
        EXPECT_EQ(tokens[row], -1);
        EXPECT_TRUE(!wants_logprob || std::isnan(logprob[row]));
        continue;
      }
      const auto v = row_of(values, static_cast<size_t>(ids[row]), n);
      EXPECT_EQ(tokens[row], reference::sample(v, {}, 5, 1, static_cast<uint32_t>(row))) << row;
    }
  }
}

// Words of few units of mass, one in `every` of any at all, so that many draws fall on the sums where a word, a turn of a warp or a warp's
// range begins. Each row has a seed.
template <SamplingConfig kC>
void run_units(size_t n, size_t every, int top_k, uint64_t seed) {
  const size_t rows = 100;
  std::mt19937_64 random(n + static_cast<size_t>(top_k));
  std::vector<float> values(rows * n);
  for (size_t i = 0; i < n; ++i) values[i] = random() % every == 0 ? static_cast<float>(1 + random() % 4) * 0x1p-40f : 0.0f;
  values[0] = 4.0f * 0x1p-40f;
  for (size_t i = n; i < rows * n; ++i) values[i] = values[i % n];
  std::vector<uint64_t> row_seeds, row_offsets;
  for (size_t row = 0; row < rows; ++row) row_seeds.push_back(random()), row_offsets.push_back(row);
  auto x = as_input<kC>(values, n);
  auto seeds = Buffer<uint64_t>::input("seeds", row_seeds), offsets = Buffer<uint64_t>::input("offsets", row_offsets);
  auto tokens = Buffer<int32_t>::output("tokens", rows);
  SampleParams p{};
  p.input = x.data(), p.tokens = tokens.data(), p.seeds = seeds.data(), p.offsets = offsets.data();
  p.filter = {nullptr, nullptr, nullptr, nullptr, 1.0f, top_k, 1.0f, 0.0f, false};
  p.input_stride = static_cast<int64_t>(stride_of(n)), p.vocab = static_cast<int32_t>(n);
  p.num_input_rows = p.num_rows = static_cast<int64_t>(rows), p.input_is_probs = true;
  const auto report = emulator::launch(row_launch<kC>("sample", rows, seed), [](SampleParams params) { sample<kC>(params); }, p);
  ASSERT_TRUE(report.clean()) << report.text();
  for (size_t row = 0; row < rows; ++row) {
    const Filters f{.top_k = top_k, .is_probs = true};
    ASSERT_EQ(tokens[row], reference::sample(row_of(values, row, n), f, row_seeds[row], row_offsets[row], 0)) << row;
  }
}

struct RowCase {
  const char* name;
  void (*run)(uint64_t seed);
  friend void PrintTo(const RowCase& c, std::ostream* to) { *to << c.name; }
};
void check_row_case(const RowCase& c, uint64_t seed) { c.run(seed); }
// Each case is a test of its own.
class RowTest : public testing::TestWithParam<RowCase> {
 protected:
  void run(uint64_t usual_seeds) {
    SCOPED_TRACE(GetParam().name);
    for (uint64_t seed = first_seed(); seed < first_seed() + num_seeds(usual_seeds, 10); ++seed) GetParam().run(seed);
  }
};

const RowCase kSampleCases[] = {
    {"one word", [](uint64_t s) { run_sample<kF32>(1, kSmooth, false, s); }},
    {"one word, flat", [](uint64_t s) { run_sample<kF32>(1, kFlat, false, s); }},
    {"few words", [](uint64_t s) { run_sample<kF32>(52, kSmooth, false, s); }},
    {"few words, ties", [](uint64_t s) { run_sample<kF32>(52, kTies, false, s); }},
    {"few words, flat", [](uint64_t s) { run_sample<kF32>(52, kFlat, false, s); }},
    {"few words, minus infinity", [](uint64_t s) { run_sample<kF32>(52, kMinusInfinity, false, s); }},
    {"bf16, one element at a time", [](uint64_t s) { run_sample<kBf16>(701, kSmooth, false, s); }},
    {"bf16, one element at a time, ties", [](uint64_t s) { run_sample<kBf16>(701, kTies, false, s); }},
    {"bf16, one element at a time, minus infinity", [](uint64_t s) { run_sample<kBf16>(701, kMinusInfinity, false, s); }},
    {"bf16, cluster of 4", [](uint64_t s) { run_sample<kBf16Wide>(704, kSmooth, false, s); }},
    {"bf16, cluster of 4, ties", [](uint64_t s) { run_sample<kBf16Wide>(704, kTies, false, s); }},
    {"bf16, cluster of 4, flat", [](uint64_t s) { run_sample<kBf16Wide>(704, kFlat, false, s); }},
    {"f32, one element at a time", [](uint64_t s) { run_sample<kNarrowF32>(333, kTies, false, s); }},
    {"windows", [](uint64_t s) { run_sample<kF32>(5000, kSmooth, false, s); }},
    {"windows, ties", [](uint64_t s) { run_sample<kF32>(5000, kTies, false, s); }},
    {"windows, flat", [](uint64_t s) { run_sample<kF32>(5000, kFlat, false, s); }},
    {"windows, minus infinity", [](uint64_t s) { run_sample<kF32>(5000, kMinusInfinity, false, s); }},
    {"probabilities", [](uint64_t s) { run_sample<kF32>(701, kSmooth, true, s); }},
    {"probabilities, ties", [](uint64_t s) { run_sample<kF32>(701, kTies, true, s); }},
    {"estimate too high", [](uint64_t s) { run_sample<kOneWarp>(2048, kSampleTooHigh, false, s); }},
    {"estimate too low", [](uint64_t s) { run_sample<kOneWarp>(2048, kSampleTooLow, false, s); }},
    {"rows by id", run_row_ids},
    {"nothing but minus infinity", [](uint64_t s) { run_sample<kF32>(70, kNothing, false, s); }},
    {"infinity", [](uint64_t s) { run_sample<kF32>(70, kInfinite, false, s); }},
    {"NaN", [](uint64_t s) { run_sample<kF32>(71, kNan, false, s); }},
    {"probabilities, all zero", [](uint64_t s) { run_sample<kF32>(70, kNothing, true, s); }},
    {"probabilities, infinity", [](uint64_t s) { run_sample<kF32>(70, kInfinite, true, s); }},
    {"64 warps", [](uint64_t s) { run_sample<kManySlots>(3000, kTies, false, s); }},
    {"64 warps, two of a block with words", [](uint64_t s) { run_sample<kManySlots>(300, kTies, false, s); }},
    {"more filters", [](uint64_t s) { run_sample<kF32>(701, kSmooth, false, s, kMoreFilters); }},
    {"more filters, ties", [](uint64_t s) { run_sample<kBf16Wide>(701, kTies, false, s, kMoreFilters); }},
    {"more filters, flat", [](uint64_t s) { run_sample<kF32>(701, kFlat, false, s, kMoreFilters); }},
    {"words at the floor",
     [](uint64_t s) { run_sample<kF32>(200, kFewValues, false, s, std::vector<Filters>(8, {.min_p = 1.0f, .top_k = 20})); }},
    {"more filters, probabilities", [](uint64_t s) { run_sample<kF32>(701, kTies, true, s, kMoreFilters); }},
    {"gathered words", [](uint64_t s) { run_sample<kF32>(4001, kSmooth, false, s, kMoreFilters); }},
    {"gathered words, bf16", [](uint64_t s) { run_sample<kBf16Wide>(4001, kSmooth, false, s, kMoreFilters); }},
    {"estimate too high, windows", [](uint64_t s) { run_sample<kOneWarpWindows>(2048, kSampleTooHigh, false, s); }},
    {"estimate too low, windows", [](uint64_t s) { run_sample<kOneWarpWindows>(2048, kSampleTooLow, false, s); }},
    {"probabilities, one negative", [](uint64_t s) { run_sample<kF32>(70, kNegative, true, s); }},
    {"probabilities, one too large", [](uint64_t s) { run_sample<kF32>(70, kTooLarge, true, s); }},
    {"probabilities, one of 2", [](uint64_t s) { run_sample<kF32>(70, kTwo, true, s); }},
    {"units of mass", [](uint64_t s) { run_units<kF32>(160, 8, 0, s); }},
    {"units of mass, listed", [](uint64_t s) { run_units<kF32>(160, 2, 8, s); }},
    {"units of mass, one warp", [](uint64_t s) { run_units<kOneWarp>(500, 40, 0, s); }},
};
class Sample : public RowTest {};
TEST_P(Sample, TheWordsOfThePlainDefinition) { run(1); }
INSTANTIATE_TEST_SUITE_P(Cases, Sample, testing::ValuesIn(kSampleCases));

// What stands behind a row's end weighs nothing, nor what isn't a probability.
struct Weights {
  const float* values;  // [4]
  float* of_logits;
  float* of_probs;
};
__attribute__((noinline)) void weigh(const Weights& p) {
  if (threadIdx.x >= 4) return;
  p.of_logits[threadIdx.x] = Shape{0.5f, 1.0f, false}.weight(p.values[threadIdx.x]);
  p.of_probs[threadIdx.x] = Shape{0.5f, 1.0f, true}.weight(p.values[threadIdx.x]);
}
TEST(Weights, OfNothing) {
  auto values = Buffer<float>::input("values", {quiet_nan(), -infinity(), -0.25f, 0.5f});
  auto of_logits = Buffer<float>::output("of_logits", 4), of_probs = Buffer<float>::output("of_probs", 4);
  const Weights weights{values.data(), of_logits.data(), of_probs.data()};
  const auto report = emulator::launch({.name = "weigh", .grid = {1}, .block = {32}}, weigh, weights);
  ASSERT_TRUE(report.clean()) << report.text();
  for (size_t i = 0; i < 3; ++i) EXPECT_EQ(of_probs[i], 0.0f) << i;
  EXPECT_EQ(of_probs[3], 0.5f);
  for (size_t i = 0; i < 2; ++i) EXPECT_EQ(mass_of(of_logits[i]), 0u) << i;
  EXPECT_EQ(of_logits[3], 1.0f);
}

// What the filters leave of a row, as the kernel writes it; empty: no distribution.
std::vector<double> filtered(const std::vector<double>& v, const Filters& f, bool logits_out) {
  if (reference::bad_filters(f)) return {};
  const bool greedy = !f.is_probs && f.temperature == 0.0f;
  Filters weighing = f;
  if (greedy) weighing.temperature = 1.0f;
  const auto mass = reference::masses(v, weighing);
  if (mass.empty()) return {};
  const double top = *std::max_element(v.begin(), v.end());
  auto stays = reference::kept(v, mass, f);
  if (greedy) {
    stays.assign(v.size(), false);
    stays[static_cast<size_t>(std::max_element(v.begin(), v.end()) - v.begin())] = true;
  }
  std::vector<double> out(v.size(), logits_out ? -INFINITY : 0.0);
  double sum = 0.0;
  for (size_t i = 0; i < v.size(); ++i) {
    if (!stays[i]) continue;
    out[i] = logits_out || f.is_probs ? v[i] : std::exp((v[i] - top) / static_cast<double>(weighing.temperature));
    sum += out[i];
  }
  for (double& x : out) x = logits_out ? x : x / sum;
  return out;
}

struct FilterHow {
  bool logits_out = false, is_probs = false;
  size_t out_offset = 0;  // bytes
  bool more = false;      // filters
};
template <SamplingConfig kC>
void run_filter(size_t n, int kind, FilterHow how, uint64_t seed) {
  const auto& filters = how.more ? kMoreFilters : kFilters;
  const auto values = (how.is_probs ? probabilities : words)(filters.size(), n, kind, 5);
  for (size_t row = 0; row < filters.size(); ++row) {
    Filters f = filters[row];
    f.is_probs = how.is_probs;
    auto x = as_input<kC>({values.begin() + static_cast<std::ptrdiff_t>(row * n), values.begin() + static_cast<std::ptrdiff_t>((row + 1) * n)}, n);
    auto out = Buffer<float>::inout("out", std::vector<float>(n, 7.0f), how.out_offset);
    FilterOpParams p{};
    p.input = x.data(), p.output = out.data();
    p.filter = {nullptr, nullptr, nullptr, nullptr, f.temperature, f.top_k, f.top_p, f.min_p, f.joint};
    p.input_stride = static_cast<int64_t>(stride_of(n)), p.output_stride = static_cast<int64_t>(n), p.num_rows = 1;
    p.vocab = static_cast<int32_t>(n);
    p.input_is_probs = how.is_probs, p.output_is_logits = how.logits_out;
    const auto report = emulator::launch(row_launch<kC>("filter", 1, seed), [](FilterOpParams params) { filter<kC>(params); }, p);
    ASSERT_TRUE(report.clean()) << report.text();
    const auto expected = filtered(row_of(values, row, n), f, how.logits_out);
    for (size_t i = 0; i < n; ++i) {
      if (expected.empty()) {
        ASSERT_TRUE(std::isnan(out[i])) << row << " " << i;
      } else if (how.logits_out) {
        ASSERT_EQ(out[i], static_cast<float>(expected[i])) << row << " " << i;
      } else {
        ASSERT_NEAR(out[i], expected[i], 1e-5 * expected[i] + 1e-12) << row << " " << i;
      }
    }
  }
}

const RowCase kFilterCases[] = {
    {"probabilities", [](uint64_t s) { run_filter<kF32>(600, kSmooth, {}, s); }},
    {"probabilities, ties", [](uint64_t s) { run_filter<kF32>(600, kTies, {}, s); }},
    {"probabilities, flat", [](uint64_t s) { run_filter<kF32>(600, kFlat, {}, s); }},
    {"probabilities, minus infinity", [](uint64_t s) { run_filter<kF32>(600, kMinusInfinity, {}, s); }},
    {"logits, one element at a time", [](uint64_t s) { run_filter<kBf16>(300, kSmooth, {.logits_out = true}, s); }},
    {"logits, one element at a time, ties", [](uint64_t s) { run_filter<kBf16>(300, kTies, {.logits_out = true}, s); }},
    {"logits, one element at a time, minus infinity", [](uint64_t s) { run_filter<kBf16>(300, kMinusInfinity, {.logits_out = true}, s); }},
    {"nothing but minus infinity", [](uint64_t s) { run_filter<kF32>(70, kNothing, {}, s); }},
    {"infinity", [](uint64_t s) { run_filter<kF32>(70, kInfinite, {.logits_out = true}, s); }},
    {"NaN", [](uint64_t s) { run_filter<kF32>(71, kNan, {}, s); }},
    {"of probabilities", [](uint64_t s) { run_filter<kF32>(301, kSmooth, {.is_probs = true}, s); }},
    {"of probabilities, ties", [](uint64_t s) { run_filter<kOneWarp>(301, kTies, {.is_probs = true}, s); }},
    {"of probabilities, all zero", [](uint64_t s) { run_filter<kF32>(30, kNothing, {.is_probs = true}, s); }},
    {"output off its alignment", [](uint64_t s) { run_filter<kF32>(90, kSmooth, {.out_offset = 4}, s); }},
    {"words without mass", [](uint64_t s) { run_filter<kF32>(200, kFarApart, {.logits_out = true}, s); }},
    {"cluster of 4, ties", [](uint64_t s) { run_filter<kBf16Wide>(707, kTies, {}, s); }},
    {"estimate too high", [](uint64_t s) { run_filter<kOneWarp>(2048, kSampleTooHigh, {}, s); }},
    {"estimate too low", [](uint64_t s) { run_filter<kOneWarp>(2048, kSampleTooLow, {.logits_out = true}, s); }},
    {"nearly all words without mass", [](uint64_t s) { run_filter<kF32>(100, kVeryFarApart, {.logits_out = true}, s); }},
    {"more filters", [](uint64_t s) { run_filter<kF32>(701, kSmooth, {.logits_out = true, .more = true}, s); }},
    {"more filters, ties", [](uint64_t s) { run_filter<kBf16Wide>(701, kTies, {.logits_out = true, .more = true}, s); }},
    {"more filters, words without mass",
     [](uint64_t s) { run_filter<kF32>(701, kVeryFarApart, {.logits_out = true, .more = true}, s); }},
    {"more filters, of probabilities", [](uint64_t s) { run_filter<kF32>(701, kTies, {.is_probs = true, .more = true}, s); }},
};
class Filter : public RowTest {};
TEST_P(Filter, TheWordsOfThePlainDefinition) { run(1); }
INSTANTIATE_TEST_SUITE_P(Cases, Filter, testing::ValuesIn(kFilterCases));

template <SamplingConfig kC>
void run_argmax(size_t n, uint64_t seed) {
  const size_t rows = 6;
  auto values = words(rows, n, kTies, 3);
  values[2 * n + 17] = quiet_nan();
  for (size_t i = 0; i < n; ++i) values[3 * n + i] = -infinity();
  values[4 * n + n - 1] = 1000.0f;
  // With one element at a time the lane that has this word ends right at its warp's end. What locals hold at first is larger.
  for (size_t i = 0; i < n; ++i) values[5 * n + i] = i == 8 ? -0x1.8p127f : -infinity();
  auto x = as_input<kC>(values, n);
  auto index = Buffer<int32_t>::output("index", rows);
  ArgmaxParams p{};
  p.x = x.data(), p.index = index.data(), p.x_stride = static_cast<int64_t>(stride_of(n)), p.num_rows = rows, p.n = static_cast<int32_t>(n);
  const auto report = emulator::launch(row_launch<kC>("argmax", rows, seed), [](ArgmaxParams params) { argmax<kC>(params); }, p);
  ASSERT_TRUE(report.clean()) << report.text();
  for (size_t row = 0; row < rows; ++row) {
    const auto v = row_of(values, row, n);
    const auto want = row == 2 ? -1 : static_cast<int>(std::max_element(v.begin(), v.end()) - v.begin());
    EXPECT_EQ(index[row], want) << row;
  }
}

const RowCase kArgmaxCases[] = {{"cluster of 4", [](uint64_t s) { run_argmax<kArgmax>(336, s); }},
                                {"several turns of a warp, ragged", [](uint64_t s) { run_argmax<kOneWarpBf16>(1109, s); }},
                                {"one element at a time", [](uint64_t s) { run_argmax<kBf16>(200, s); }},
                                {"64 warps", [](uint64_t s) { run_argmax<kManySlots>(2500, s); }}};
class Argmax : public RowTest {};
TEST_P(Argmax, LowestIndexAndNan) { run(3); }
INSTANTIATE_TEST_SUITE_P(Cases, Argmax, testing::ValuesIn(kArgmaxCases));

void run_softmax(bool by_row, uint64_t seed) {
  const size_t rows = 8, n = 777;
  auto values = words(rows, n, kSmooth, 4);
  values[n + 5] = quiet_nan();
  values[3 * n + 6] = infinity();
  std::fill_n(values.begin() + 4 * n, n, -infinity());
  const std::vector<float> row_temperatures{0.7f, 0.7f, 1.3f, 1.0f, 1.0f, infinity(), 0.0f, -1.0f};
  auto x = as_input<kF32>(values, n);
  auto probs = Buffer<float>::inout("probs", std::vector<float>(rows * n, 7.0f));
  auto temperatures = Buffer<float>::input("temperatures", row_temperatures);
  SoftmaxParams p{};
  p.logits = x.data(), p.probs = probs.data(), p.temperature = 0.7f, p.logits_stride = stride_of(n), p.probs_stride = n;
  p.num_rows = rows, p.vocab = n, p.temperatures = by_row ? temperatures.data() : nullptr;
  const auto report = emulator::launch(
      row_launch<kF32>("softmax", rows, seed), [](SoftmaxParams params) { softmax<kF32>(params); },
      p);
  ASSERT_TRUE(report.clean()) << report.text();
  for (size_t row = 0; row < rows; ++row) {
    const auto v = row_of(values, row, n);
    const double top = *std::max_element(v.begin(), v.end()), temperature = by_row ? row_temperatures[row] : 0.7f;
    double sum = 0.0;
    for (double value : v) sum += std::exp((value - top) / temperature);
    for (size_t i = 0; i < n; ++i) {
      const float got = probs[row * n + i];
      if (row == 1 || row == 3 || row == 4 || (by_row && row > 4)) {
        ASSERT_TRUE(std::isnan(got)) << row << " " << i;
      } else {
        const double exact = std::exp((v[i] - top) / temperature) / sum;
        ASSERT_NEAR(got, exact, 3e-6 * exact + 1e-30) << row << " " << i;
      }
    }
  }
}

const RowCase kSoftmaxCases[] = {{"rows that have none", [](uint64_t s) { run_softmax(true, s); }},
                                 {"one temperature", [](uint64_t s) { run_softmax(false, s); }}};
class Softmax : public RowTest {};
TEST_P(Softmax, SumsToOneAndSparesNoBadRow) { run(3); }
INSTANTIATE_TEST_SUITE_P(Cases, Softmax, testing::ValuesIn(kSoftmaxCases));

// The second row has a NaN.
template <SamplingConfig kC>
void run_top_k(size_t n, int k, int kind, uint64_t seed) {
  using T = storage_t<kC.dtype>;
  const size_t rows = 2;
  auto values = words(rows, n, kind, 8);
  values[n + n / 2] = quiet_nan();
  auto x = as_input<kC>(values, n);
  const auto size = rows * static_cast<size_t>(k);
  // Of what is never written the second row's results must not have the bits.
  auto top = Buffer<T>::inout("values", std::vector<T>(size, from_float<T>(7.0f)));
  auto indices = Buffer<int32_t>::inout("indices", std::vector<int32_t>(size, 7));
  TopKParams p{};
  p.x = x.data(), p.values = top.data(), p.indices = indices.data(), p.x_stride = static_cast<int64_t>(stride_of(n));
  p.values_stride = p.indices_stride = k, p.num_rows = rows, p.n = static_cast<int32_t>(n), p.k = k;
  const auto report = emulator::launch(row_launch<kC>("top_k", rows, seed), [](TopKParams params) { top_k<kC>(params); }, p);
  ASSERT_TRUE(report.clean()) << report.text();
  std::vector<int32_t> ranking(n);
  std::iota(ranking.begin(), ranking.end(), 0);
  std::stable_sort(ranking.begin(), ranking.end(), [&](int32_t a, int32_t b) { return values[static_cast<size_t>(a)] > values[static_cast<size_t>(b)]; });
  for (size_t i = 0; i < static_cast<size_t>(k); ++i) {
    ASSERT_EQ(indices[i], ranking[i]) << i;
    ASSERT_EQ(to_float(top[i]), values[static_cast<size_t>(ranking[i])]) << i;
    ASSERT_EQ(indices[static_cast<size_t>(k) + i], -1) << i;
    ASSERT_TRUE(std::isnan(to_float(top[static_cast<size_t>(k) + i]))) << i;
  }
  EXPECT_TRUE(top.guards_intact() && indices.guards_intact());
}

const RowCase kTopKCases[] = {
    {"1 of 904", [](uint64_t s) { run_top_k<kBf16Wide>(904, 1, kSmooth, s); }},
    {"7 of 904, ties", [](uint64_t s) { run_top_k<kBf16Wide>(904, 7, kTies, s); }},
    {"64 of 904", [](uint64_t s) { run_top_k<kBf16Wide>(904, 64, kSmooth, s); }},
    {"60 of 904, flat", [](uint64_t s) { run_top_k<kBf16Wide>(904, 60, kFlat, s); }},
    {"256 of 904, ties", [](uint64_t s) { run_top_k<kBf16Wide>(904, 256, kTies, s); }},
    {"300 of 904", [](uint64_t s) { run_top_k<kBf16Wide>(904, 300, kSmooth, s); }},
    {"300 of 904, minus infinity", [](uint64_t s) { run_top_k<kBf16Wide>(904, 300, kMinusInfinity, s); }},
    {"60 of 904, minus infinity", [](uint64_t s) { run_top_k<kBf16Wide>(904, 60, kMinusInfinity, s); }},
    {"2048 of 2100 fill shared memory", [](uint64_t s) { run_top_k<kFull>(2100, 2048, kTies, s); }},
    {"60 of 904, very far apart", [](uint64_t s) { run_top_k<kBf16Wide>(904, 60, kVeryFarApart, s); }},
    {"88 of 904, the list is nearly full", [](uint64_t s) { run_top_k<kBf16Wide>(904, 88, kSmooth, s); }},
    {"all of 40", [](uint64_t s) { run_top_k<kBf16>(40, 40, kTies, s); }},
    {"20, estimate too high", [](uint64_t s) { run_top_k<kOneWarp>(2048, 20, kSampleTooHigh, s); }},
    {"80, estimate too high", [](uint64_t s) { run_top_k<kOneWarp>(2048, 80, kSampleTooHigh, s); }},
    {"20, estimate too low", [](uint64_t s) { run_top_k<kOneWarp>(2048, 20, kSampleTooLow, s); }},
    {"64 warps", [](uint64_t s) { run_top_k<kManySlots>(2500, 70, kTies, s); }},
    {"few of many in windows", [](uint64_t s) { run_top_k<kF32>(5000, 20, kSmooth, s); }},
};
class TopK : public RowTest {};
TEST_P(TopK, DescendingTiesByLowestIndex) { run(1); }
INSTANTIATE_TEST_SUITE_P(Cases, TopK, testing::ValuesIn(kTopKCases));

const bool kAdded = add_cases("sample", kSampleCases, check_row_case) && add_cases("filter", kFilterCases, check_row_case) &&
                    add_cases("argmax", kArgmaxCases, check_row_case) && add_cases("softmax", kSoftmaxCases, check_row_case) &&
                    add_cases("top_k", kTopKCases, check_row_case);

}  // namespace
}  // namespace fulmen
