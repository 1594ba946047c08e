// Sampling and filters at their edges: vocabularies of one and of 300,000 words, ties at the border of top-k and
// top-p, thresholds next to 0 and 1, temperatures next to 0, infinite and huge logits, bad parameters of single rows.
#include <algorithm>
#include <numeric>

#include "ops/tensors.hpp"

namespace {

using namespace testing_ops;

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kTiny = std::numeric_limits<float>::denorm_min();

fulmen_filter_params params(float temperature, int top_k = 0, float top_p = 1.0f, float min_p = 0.0f) {
  FULMEN_INIT(fulmen_filter_params, f);
  f.temperature = temperature, f.top_k = top_k, f.top_p = top_p, f.min_p = min_p;
  return f;
}

std::vector<double> filtered(const Context& context, Tensor& logits, const fulmen_filter_params& f) {
  Tensor out(FULMEN_F32, logits.shape());
  FULMEN_INIT(fulmen_filter_args, a);
  a.input = logits.view(), a.output = out.view(), a.filter = f;
  EXPECT_FULMEN_OK(fulmen_filter(context, &a, nullptr));
  out.expect_guards("filter");
  return out.values();
}

int32_t sampled(const Context& context, Tensor& logits, const fulmen_filter_params& f, uint64_t seed, float* logprob = nullptr) {
  Tensor token(FULMEN_I32, {logits.shape()[0]}), lp(FULMEN_F32, {logits.shape()[0]});
  FULMEN_INIT(fulmen_sample_args, a);
  a.input = logits.view(), a.tokens = token.view(), a.filter = f, a.seed = seed;
  if (logprob) a.logprob = lp.view();
  EXPECT_FULMEN_OK(fulmen_sample(context, &a, nullptr));
  token.expect_guards("tokens");
  if (logprob) *logprob = static_cast<float>(lp.get(0));
  return token.integer<int32_t>(0);
}

Tensor row_of(std::vector<double> values, int dtype = FULMEN_F32) {
  Tensor t(dtype, {1, static_cast<int64_t>(values.size())});
  for (size_t i = 0; i < values.size(); ++i) t.set(static_cast<int64_t>(i), values[i]);
  return t;
}

TEST(SamplingEdges, OneWord) {
  Context context(2);
  for (const double logit : {0.0, -1e30, 3e38, -3e38, 1e-42}) {
    Tensor row = row_of({logit});
    for (const auto& f : {params(1.0f), params(0.0f), params(kTiny), params(1.0f, 1, kTiny, 1.0f), params(1e30f, 5, 0.0f)}) {
      float logprob = 1.0f;
      EXPECT_EQ(sampled(context, row, f, 3, &logprob), 0) << logit;
      EXPECT_EQ(logprob, 0.0f) << logit;
      EXPECT_EQ(filtered(context, row, f), std::vector<double>{1.0}) << logit;
    }
  }
}

// All words are equal: what is kept are the lowest indices, exactly as many as the rules say.
TEST(SamplingEdges, TiesGoToTheLowestIndex) {
  Context context(3);
  for (const int dtype : {FULMEN_F32, FULMEN_F16, FULMEN_BF16}) {
    for (const int n : {2, 15, 16, 17, 255, 256, 257, 1000, 300000}) {
      Tensor row = row_of(std::vector<double>(static_cast<size_t>(n), 1.5), dtype);
      const auto expect_kept = [&](const fulmen_filter_params& f, int kept) {
        const auto p = filtered(context, row, f);
        for (int i = 0; i < n; ++i) {
          if (i < kept ? std::fabs(p[static_cast<size_t>(i)] * kept - 1.0) > 1e-6 : p[static_cast<size_t>(i)] != 0.0) {
            FAIL() << n << " words, kept should be " << kept << ", word " << i << " has " << p[static_cast<size_t>(i)] << " * " << kept;
          }
        }
        for (uint64_t seed = 0; seed < 20; ++seed) ASSERT_LT(sampled(context, row, f, seed), kept);
      };
      expect_kept(params(1.0f, 1), 1);
      expect_kept(params(1.0f, n - 1), n - 1);
      expect_kept(params(1.0f, n), n);
      expect_kept(params(1.0f, 0, 0.5f), (n + 1) / 2);
      expect_kept(params(1.0f, 0, 0.0f), 1);
      expect_kept(params(1.0f, 0, kTiny), 1);
      expect_kept(params(1.0f, 0, 1.0f - 0x1p-24f), n);  // one word less would be below, until n is 2^24
      expect_kept(params(1.0f, 0, 1.0f, 1.0f), n);
      if (n >= 8) expect_kept(params(1.0f, 8, 0.25f), 2);
    }
  }
}

// Half-precision logits of a large vocabulary have many equal values at any border.
TEST(SamplingEdges, LargeVocabularyAgainstSorting) {
  Context context(3);
  std::mt19937_64 random(11);
  for (const int dtype : {FULMEN_F32, FULMEN_F16, FULMEN_BF16}) {
    constexpr int n = 300000;
    Tensor row(dtype, {1, n});
    row.fill_normal(random, 2.5);
    const auto x = row.values();
    std::vector<int> order(n);
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return x[static_cast<size_t>(a)] > x[static_cast<size_t>(b)]; });
    struct Filter {
      float temperature;
      int top_k;
      float top_p, min_p;
    };
    for (const Filter& f : {Filter{1, 50, 1, 0}, Filter{1, 4097, 1, 0}, Filter{1, 299999, 1, 0}, Filter{1, 0, 0.9f, 0}, Filter{1, 0, 0.999f, 0}, Filter{1, 0, 1e-6f, 0},
                            Filter{0.3f, 1000, 0.95f, 0}, Filter{1.7f, 200000, 0.5f, 0}, Filter{1, 0, 1, 0.01f}, Filter{1, 0, 1 - 0x1p-24f, 0}, Filter{1e-3f, 0, 0.9f, 0}}) {
      const double top = x[static_cast<size_t>(order[0])];
      std::vector<double> w(n);
      for (int i = 0; i < n; ++i) w[static_cast<size_t>(i)] = std::exp((x[static_cast<size_t>(order[static_cast<size_t>(i)])] - top) / f.temperature);
      size_t kept = f.top_k > 0 ? static_cast<size_t>(f.top_k) : n;
      const double total = std::accumulate(w.begin(), w.begin() + static_cast<long>(kept), 0.0);
      double slack = 0.0;  // words that rounding of masses (2^-40 each) may move across the border
      if (f.top_p < 1.0f) {
        double sum = 0.0;
        size_t i = 0;
        while (i < kept && sum < f.top_p * total) sum += w[i++];
        kept = std::max<size_t>(i, 1);
        slack = 1 + n * 0x1p-40 * 2 / std::max(w[kept - 1], 1e-12) + total * 1e-7 / std::max(w[kept - 1], 1e-12);
      }
      while (f.min_p > 0 && kept > 1 && w[kept - 1] < f.min_p) --kept;
      const auto p = filtered(context, row, params(f.temperature, f.top_k, f.top_p, f.min_p));
      size_t found = 0;
      while (found < n && p[static_cast<size_t>(order[found])] > 0.0) ++found;
      for (size_t i = found; i < n; ++i) ASSERT_EQ(p[static_cast<size_t>(order[i])], 0.0) << "not a prefix of the ranking: word " << i;
      EXPECT_LE(std::fabs(static_cast<double>(found) - static_cast<double>(kept)), slack)
          << name_of(dtype) << ": k " << f.top_k << ", p " << f.top_p << ", min " << f.min_p << ", T " << f.temperature << ": kept " << found << ", should be " << kept;
      const double kept_total = std::accumulate(w.begin(), w.begin() + static_cast<long>(found), 0.0);
      for (size_t i = 0; i < found; ++i) {
        const double exact = w[i] / kept_total;
        ASSERT_NEAR(p[static_cast<size_t>(order[i])], exact, 2e-6 * exact + 1e-11) << "rank " << i;
      }
    }
  }
}

TEST(SamplingEdges, InfiniteHugeAndMissing) {
  Context context(2);
  Tensor only = row_of({-kInf, -kInf, -2.0, -kInf});
  EXPECT_EQ(filtered(context, only, params(1.0f, 3, 0.5f)), (std::vector<double>{0, 0, 1, 0}));
  EXPECT_EQ(sampled(context, only, params(1.0f), 1), 2);
  Tensor huge = row_of({-3e38, 3e38, 3e38, 0.0});
  EXPECT_EQ(filtered(context, huge, params(1.0f)), (std::vector<double>{0, 0.5, 0.5, 0}));
  EXPECT_EQ(filtered(context, huge, params(kTiny)), (std::vector<double>{0, 0.5, 0.5, 0}));
  EXPECT_EQ(sampled(context, huge, params(0.0f), 1), 1) << "the first of the largest";
  Tensor close = row_of({1.0, 1.0 + 1e-7, 0.5});
  EXPECT_EQ(filtered(context, close, params(kTiny)), (std::vector<double>{0, 1, 0}));
  EXPECT_EQ(sampled(context, close, params(1e-30f), 5), 1);
  for (const double bad : {static_cast<double>(kNan), static_cast<double>(kInf)}) {
    Tensor row = row_of({0.0, bad, 1.0});
    EXPECT_EQ(sampled(context, row, params(1.0f), 1), -1) << bad;
    for (const double p : filtered(context, row, params(1.0f))) EXPECT_TRUE(std::isnan(p)) << bad;
  }
  Tensor nothing = row_of({-kInf, -kInf});
  EXPECT_EQ(sampled(context, nothing, params(1.0f), 1), -1);
  Tensor denormal = row_of({1e-42, 2e-42, -1e-42});
  for (const double p : filtered(context, denormal, params(1.0f))) EXPECT_NEAR(p, 1.0 / 3, 1e-7);
}

// A row with bad parameters gives -1, its neighbours what they give alone.
TEST(SamplingEdges, BadParametersOfOneRow) {
  Context context(2);
  std::mt19937_64 random(2);
  constexpr int kRows = 12, kVocab = 700;
  Tensor logits(FULMEN_F32, {kRows, kVocab});
  logits.fill_normal(random, 2.0);
  Tensor t(FULMEN_F32, {kRows}), p(FULMEN_F32, {kRows}), m(FULMEN_F32, {kRows}), k(FULMEN_I32, {kRows}), seeds(FULMEN_U64, {kRows});
  const auto fill = [&](int i, double temperature, int top_k, double top_p, double min_p) {
    t.set(i, temperature), k.set_integer<int32_t>(i, top_k), p.set(i, top_p), m.set(i, min_p);
    seeds.set_integer<uint64_t>(i, static_cast<uint64_t>(i) + 100);
  };
  for (int i = 0; i < kRows; ++i) fill(i, 1.0, 20, 0.9, 0.0);
  const auto run = [&] {
    Tensor tokens(FULMEN_I32, {kRows}), logprob(FULMEN_F32, {kRows});
    FULMEN_INIT(fulmen_sample_args, a);
    a.input = logits.view(), a.tokens = tokens.view(), a.logprob = logprob.view(), a.seeds = seeds.view();
    a.filter = params(1.0f);
    a.filter.temperatures = t.view(), a.filter.top_ks = k.view(), a.filter.top_ps = p.view(), a.filter.min_ps = m.view();
    EXPECT_FULMEN_OK(fulmen_sample(context, &a, nullptr));
    std::vector<int32_t> out;
    for (int i = 0; i < kRows; ++i) {
      out.push_back(tokens.integer<int32_t>(i));
      EXPECT_EQ(out.back() < 0, std::isnan(logprob.get(i))) << "row " << i;
    }
    return out;
  };
  const auto good = run();
  fill(0, kNan, 20, 0.9, 0.0);
  fill(1, -1.0, 20, 0.9, 0.0);
  fill(2, kInf, 20, 0.9, 0.0);
  fill(3, 1.0, 20, kNan, 0.0);
  fill(4, 1.0, 20, -0.5, 0.0);
  fill(5, 1.0, 20, 0.9, kNan);
  fill(6, 1.0, 20, 0.9, 1.5);
  fill(7, 1.0, std::numeric_limits<int32_t>::min(), 0.9, -kInf);  // filters nothing
  fill(8, 1.0, std::numeric_limits<int32_t>::max(), kInf, 0.0);   // filters nothing
  const auto mixed = run();
  for (int i = 0; i < 7; ++i) EXPECT_EQ(mixed[static_cast<size_t>(i)], -1) << "row " << i;
  for (int i = 7; i < 9; ++i) EXPECT_GE(mixed[static_cast<size_t>(i)], 0) << "row " << i;
  for (int i = 9; i < kRows; ++i) EXPECT_EQ(mixed[static_cast<size_t>(i)], good[static_cast<size_t>(i)]) << "row " << i;
}

TEST(SamplingEdges, SoftmaxOfExtremes) {
  Context context(2);
  const auto softmax = [&](Tensor& row, float temperature) {
    Tensor out(FULMEN_F32, row.shape());
    FULMEN_INIT(fulmen_softmax_args, a);
    a.logits = row.view(), a.probs = out.view(), a.temperature = temperature;
    EXPECT_FULMEN_OK(fulmen_softmax(context, &a, nullptr));
    return out.values();
  };
  Tensor huge = row_of({3e38, -3e38, -kInf, 3e38});
  EXPECT_EQ(softmax(huge, 1.0f), (std::vector<double>{0.5, 0, 0, 0.5}));
  EXPECT_EQ(softmax(huge, kTiny), (std::vector<double>{0.5, 0, 0, 0.5}));
  Tensor flat(FULMEN_F32, {1, 300000});
  for (int64_t i = 0; i < 300000; ++i) flat.set(i, -7.0);
  for (const double p : softmax(flat, 2.0f)) ASSERT_NEAR(p * 300000, 1.0, 1e-6);
  // One large word and very many small ones, whose sum in fp32 would be lost.
  for (int64_t i = 1; i < 300000; ++i) flat.set(i, -7.0 - 18.0);
  double sum = 0.0;
  const auto p = softmax(flat, 1.0f);
  for (const double x : p) sum += x;
  EXPECT_NEAR(sum, 1.0, 1e-5);
  EXPECT_NEAR(p[0], 1.0 / (1.0 + 299999 * std::exp(-18.0)), 1e-6);
}

}  // namespace
