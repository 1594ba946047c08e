#include "ops/reference/sampling.hpp"

#include <fmt/format.h>

#include "ops/tensors.hpp"

namespace {
using namespace testing_ops;
using reference::Filters;

const double kInfinity = std::numeric_limits<double>::infinity();
const double kNan = std::numeric_limits<double>::quiet_NaN();

enum class Kind { normal, wide, ties, peaked, equal, masked, count };

void fill(Tensor& x, int64_t row, int64_t n, Kind kind, std::mt19937_64& random) {
  std::normal_distribution<double> normal;
  for (int64_t i = 0; i < n; ++i) {
    double v = normal(random);
    if (kind == Kind::wide) v *= 3.0;
    if (kind == Kind::ties) v = std::round(v * 2.0) / 2.0 * (random() % 2 ? 1.0 : -1.0);
    if (kind == Kind::peaked) v *= 0.5;
    if (kind == Kind::equal) v = -7.25;
    if (kind == Kind::masked && random() % 4 != 0) v = -kInfinity;
    x.set(row * n + i, v);
  }
  if (kind == Kind::peaked) x.set(row * n + static_cast<int64_t>(random() % static_cast<uint64_t>(n)), 14.0);
  if (kind == Kind::masked) x.set(row * n + n / 2, 1.0);
}

void to_probs(Tensor& x, int64_t row, int64_t n) {
  double sum = 0.0;
  for (int64_t i = 0; i < n; ++i) sum += std::exp(x.get(row * n + i));
  for (int64_t i = 0; i < n; ++i) x.set(row * n + i, std::exp(x.get(row * n + i)) / sum);
}

std::vector<double> row_of(Tensor& x, int64_t row, int64_t n) {
  std::vector<double> v(static_cast<size_t>(n));
  for (int64_t i = 0; i < n; ++i) v[static_cast<size_t>(i)] = x.get(row * n + i);
  return v;
}

// Parameters of each row in tensors, as an engine has them.
struct RowFilters {
  Tensor temperatures, top_ks, top_ps, min_ps;
  std::vector<Filters> rows;

  RowFilters(int64_t n, int64_t vocab, bool joint, bool is_probs, std::mt19937_64& random)
      : temperatures(FULMEN_F32, {n}),
        top_ks(FULMEN_I32, {n}),
        top_ps(FULMEN_F32, {n}),
        min_ps(FULMEN_F32, {n}) {
    const float ps[] = {1.0f, 0.9f, 0.5f, 0.999f, 0.0f, 0.1f, 1.5f};
    const float min_ps_[] = {0.0f, 0.0f, 0.05f, 0.5f, 1.0f, -1.0f, 1e-6f};
    const float temperatures_[] = {1.0f, 0.7f, 0.0f, 2.5f, 1e-3f, 1.0f};
    for (int64_t i = 0; i < n; ++i) {
      Filters f;
      f.joint = joint, f.is_probs = is_probs;
      f.top_p = ps[random() % 7], f.min_p = min_ps_[random() % 7],
      f.temperature = temperatures_[random() % 6];
      const int64_t ks[] = {0, -1, 1, 2, 5, 50, vocab - 1, vocab, vocab / 2};
      f.top_k = static_cast<int>(ks[random() % 9]);
      rows.push_back(f);
      temperatures.set(i, f.temperature), top_ks.set_integer<int32_t>(i, f.top_k);
      top_ps.set(i, f.top_p), min_ps.set(i, f.min_p);
    }
  }
  void put(fulmen_filter_params& to) {
    to.temperatures = temperatures.view(), to.top_ks = top_ks.view();
    to.top_ps = top_ps.view(), to.min_ps = min_ps.view();
    to.order = !rows.empty() && rows[0].joint ? FULMEN_FILTER_JOINT : FULMEN_FILTER_SEQUENTIAL;
  }
};

constexpr int64_t kVocabularies[] = {1, 2, 15, 17, 255, 256, 257, 1000, 5000, 20011};

TEST(Sample, DrawsTheWordOfThePlainDefinition) {
  std::mt19937_64 random(11);
  Context context;
  for (int64_t n : kVocabularies) {
    for (int kind = 0; kind < static_cast<int>(Kind::count); ++kind) {
      for (int form = 0; form < 8; ++form) {
        const bool joint = form & 1, is_probs = form >= 6;
        const int dtype = is_probs        ? FULMEN_F32
                          : form / 2 == 0 ? FULMEN_F32
                          : form / 2 == 1 ? FULMEN_F16
                                          : FULMEN_BF16;
        const int64_t rows = n > 4000 ? 4 : 9;
        Tensor x(dtype, {rows, n}, {n + 3, 1}), tokens(FULMEN_I32, {rows}), logprob(FULMEN_F32, {rows});
        for (int64_t row = 0; row < rows; ++row) {
          fill(x, row, n, static_cast<Kind>(kind), random);
          if (is_probs) to_probs(x, row, n);
        }
        RowFilters filters(rows, n, joint, is_probs, random);
        FULMEN_INIT(fulmen_sample_args, args);
        args.input = x.view(), args.input_is_probs = is_probs, args.tokens = tokens.view();
        args.logprob = form % 3 == 0 ? logprob.view() : fulmen_tensor{};
        filters.put(args.filter);
        args.seed = 42, args.offset = static_cast<uint64_t>(n);
        ASSERT_EQ(fulmen_sample(context, &args, nullptr), FULMEN_OK) << fulmen_last_error();
        for (int64_t row = 0; row < rows; ++row) {
          const auto values = row_of(x, row, n);
          const Filters& f = filters.rows[static_cast<size_t>(row)];
          const int want =
              reference::sample(values, f, 42, static_cast<uint64_t>(n), static_cast<uint32_t>(row));
          const int got = tokens.integer<int32_t>(row);
          ASSERT_EQ(got, want) << fmt::format(
              "vocab {} kind {} form {} row {}: temperature {} top_k {} top_p {} min_p {}", n, kind, form,
              row, f.temperature, f.top_k, f.top_p, f.min_p);
          if (form % 3 != 0 || got < 0) continue;
          double sum = 0.0;
          const double top = *std::max_element(values.begin(), values.end());
          const double t = is_probs || f.temperature == 0.0f ? 1.0 : f.temperature;
          for (double v : values) sum += is_probs ? v : std::exp((v - top) / t);
          const double v = values[static_cast<size_t>(got)];
          const double exact = (is_probs ? std::log(v) : (v - top) / t) - std::log(sum);
          EXPECT_NEAR(logprob.get(row), exact, 2e-6 * (1.0 + std::fabs(exact)))
              << n << " " << kind << " " << form;
        }
        tokens.expect_guards("tokens"), logprob.expect_guards("logprob");
      }
    }
  }
}

// Vocabularies that are searched by blocks, samples and brackets rather than ranked whole.
TEST(Sample, LargeVocabularies) {
  std::mt19937_64 random(12);
  Context context;
  const int64_t n = 70001, rows = 3;
  for (int64_t target : simd_targets()) {
    SimdTarget use(target);
    for (int kind = 0; kind < static_cast<int>(Kind::count); ++kind) {
      for (const Filters& f : {Filters{.top_p = 0.9f}, Filters{.top_p = 0.999f, .min_p = 1e-4f},
                               Filters{.temperature = 3.0f, .top_p = 0.5f}, Filters{.top_p = 0.97f, .is_probs = true},
                               Filters{.top_k = 3000}, Filters{.top_p = 0.8f, .top_k = 700, .joint = true}}) {
        Tensor x(FULMEN_F32, {rows, n}), tokens(FULMEN_I32, {rows});
        for (int64_t row = 0; row < rows; ++row) {
          fill(x, row, n, static_cast<Kind>(kind), random);
          if (f.is_probs) to_probs(x, row, n);
        }
        FULMEN_INIT(fulmen_sample_args, args);
        args.input = x.view(), args.input_is_probs = f.is_probs, args.tokens = tokens.view();
        args.filter.temperature = f.temperature, args.filter.top_k = f.top_k, args.filter.top_p = f.top_p;
        args.filter.min_p = f.min_p, args.filter.order = f.joint;
        args.seed = 7;
        ASSERT_EQ(fulmen_sample(context, &args, nullptr), FULMEN_OK) << fulmen_last_error();
        for (int64_t row = 0; row < rows; ++row) {
          ASSERT_EQ(tokens.integer<int32_t>(row), reference::sample(row_of(x, row, n), f, 7, 0, static_cast<uint32_t>(row)))
              << "kind " << kind << " top_k " << f.top_k << " top_p " << f.top_p << " row " << row;
        }
      }
    }
  }
}

TEST(Sample, BoundaryTies) {
  // 300 equal words: top-k and top-p must keep the lowest indices.
  const int64_t n = 300;
  Context context;
  Tensor x(FULMEN_F32, {1, n}), tokens(FULMEN_I32, {1}), out(FULMEN_F32, {1, n});
  for (int64_t i = 0; i < n; ++i) x.set(i, 0.0);
  for (int form = 0; form < 2; ++form) {
    FULMEN_INIT(fulmen_filter_args, args);
    args.input = x.view(), args.output = out.view(), args.filter.temperature = 1.0f, args.filter.top_p = 1.0f;
    if (form == 0) args.filter.top_k = 10;
    if (form == 1) args.filter.top_p = 0.25f;  // 75 words exactly
    EXPECT_FULMEN_OK(fulmen_filter(context, &args, nullptr));
    const int64_t kept = form == 0 ? 10 : 75;
    for (int64_t i = 0; i < n; ++i) {
      EXPECT_NEAR(out.get(i), i < kept ? 1.0 / static_cast<double>(kept) : 0.0, 1e-8) << form << " " << i;
    }
  }
}

TEST(Sample, FrequenciesFollowTheDistribution) {
  // Chi-square with 15 degrees of freedom: above 45 once in 10^4 runs of a right sampler; the seed is fixed.
  const int64_t n = 16, draws = 60000;
  Context context;
  std::mt19937_64 random(5);
  Tensor x = Tensor(FULMEN_F32, {1, n}).fill_normal(random), tokens(FULMEN_I32, {draws}),
         ids(FULMEN_I32, {draws});
  for (int64_t i = 0; i < draws; ++i) ids.set_integer<int32_t>(i, 0);
  FULMEN_INIT(fulmen_sample_args, args);
  args.input = x.view(), args.tokens = tokens.view(), args.row_ids = ids.view();
  args.filter.temperature = 0.8f, args.filter.top_p = 1.0f, args.seed = 7;
  EXPECT_FULMEN_OK(fulmen_sample(context, &args, nullptr));
  std::vector<double> seen(16), expected(16);
  double sum = 0.0, chi = 0.0;
  for (int64_t i = 0; i < draws; ++i) seen[static_cast<size_t>(tokens.integer<int32_t>(i))] += 1.0;
  for (size_t i = 0; i < 16; ++i) sum += expected[i] = std::exp(x.get(static_cast<int64_t>(i)) / 0.8);
  for (size_t i = 0; i < 16; ++i) {
    expected[i] *= static_cast<double>(draws) / sum;
    chi += (seen[i] - expected[i]) * (seen[i] - expected[i]) / expected[i];
  }
  EXPECT_LT(chi, 45.0);
  EXPECT_GT(chi, 1.0);
}

TEST(Sample, RowsKeepTheirWordsWhereverTheyStand) {
  const int64_t n = 3000, rows = 40;
  std::mt19937_64 random(6);
  Tensor x = Tensor(FULMEN_BF16, {rows, n}).fill_normal(random, 2.0), seeds(FULMEN_U64, {rows}),
         offsets(FULMEN_I64, {rows});
  Tensor ids(FULMEN_I32, {rows});
  std::vector<int64_t> order(static_cast<size_t>(rows));
  std::iota(order.begin(), order.end(), 0);
  std::vector<int32_t> first(static_cast<size_t>(rows));
  for (int round = 0; round < 4; ++round) {
    Context context(1 + round % 3);
    for (int64_t i = 0; i < rows; ++i) {
      const auto request = order[static_cast<size_t>(i)];
      seeds.set_integer<uint64_t>(i, 1000 + static_cast<uint64_t>(request));
      offsets.set_integer<int64_t>(i, 3 * request);
      ids.set_integer<int32_t>(i, static_cast<int32_t>(request));
    }
    Tensor tokens(FULMEN_I32, {rows});
    FULMEN_INIT(fulmen_sample_args, args);
    args.input = x.view(), args.tokens = tokens.view(), args.row_ids = ids.view();
    args.seeds = seeds.view(), args.offsets = offsets.view();
    args.filter.temperature = 1.0f, args.filter.top_k = 40, args.filter.top_p = 0.95f;
    EXPECT_FULMEN_OK(fulmen_sample(context, &args, nullptr));
    for (int64_t i = 0; i < rows; ++i) {
      const auto request = static_cast<size_t>(order[static_cast<size_t>(i)]);
      if (round == 0) first[request] = tokens.integer<int32_t>(i);
      EXPECT_EQ(tokens.integer<int32_t>(i), first[request]) << round << " " << request;
    }
    std::shuffle(order.begin(), order.end(), random);
  }
}

TEST(Sample, BadRowsHarmNobody) {
  const int64_t n = 500, rows = 10;
  Context context;
  std::mt19937_64 random(8);
  Tensor x = Tensor(FULMEN_F32, {rows, n}).fill_normal(random), tokens(FULMEN_I32, {rows}),
         good(FULMEN_I32, {rows});
  Tensor temperatures(FULMEN_F32, {rows}), top_ps(FULMEN_F32, {rows}), min_ps(FULMEN_F32, {rows}),
      ids(FULMEN_I32, {rows});
  for (int64_t i = 0; i < rows; ++i) {
    temperatures.set(i, 1.0), top_ps.set(i, 0.9), min_ps.set(i, 0.01);
    ids.set_integer<int32_t>(i, static_cast<int32_t>(i));
  }
  FULMEN_INIT(fulmen_sample_args, args);
  args.input = x.view(), args.tokens = good.view(), args.row_ids = ids.view();
  args.filter.temperatures = temperatures.view(), args.filter.top_ps = top_ps.view(),
  args.filter.min_ps = min_ps.view();
  EXPECT_FULMEN_OK(fulmen_sample(context, &args, nullptr));
  x.set(0 * n + 77, kNan);
  temperatures.set(1, -1.0), temperatures.set(2, kNan), top_ps.set(3, kNan), top_ps.set(4, -0.5),
      min_ps.set(5, 1.5);
  for (int64_t i = 0; i < n; ++i) x.set(6 * n + i, -kInfinity);
  x.set(7 * n + 3, kInfinity);
  ids.set_integer<int32_t>(8, 10);
  args.tokens = tokens.view();
  EXPECT_FULMEN_OK(fulmen_sample(context, &args, nullptr));
  for (int64_t i = 0; i < rows; ++i)
    EXPECT_EQ(tokens.integer<int32_t>(i), i < 9 ? -1 : good.integer<int32_t>(i)) << i;

  Tensor probs(FULMEN_F32, {3, 4}), three(FULMEN_I32, {3});
  const double values[] = {0.5, 0.5, -0.1, 0.1, 0, 0, 0, 0, 0.25, 0.25, 3.0, 0.25};
  for (int64_t i = 0; i < 12; ++i) probs.set(i, values[i]);
  FULMEN_INIT(fulmen_sample_args, from_probs);
  from_probs.input = probs.view(), from_probs.input_is_probs = 1, from_probs.tokens = three.view();
  from_probs.filter.top_p = 1.0f;
  EXPECT_FULMEN_OK(fulmen_sample(context, &from_probs, nullptr));
  for (int64_t i = 0; i < 3; ++i) EXPECT_EQ(three.integer<int32_t>(i), -1) << i;
  from_probs.filter.top_p = static_cast<float>(kNan);
  EXPECT_EQ(fulmen_sample(context, &from_probs, nullptr), FULMEN_INVALID_ARGUMENT);
}

TEST(Sample, EverySimdTargetDrawsTheSame) {
  const int64_t n = 5003, rows = 24;
  Context context;
  std::mt19937_64 random(9);
  Tensor x(FULMEN_F32, {rows, n}), out(FULMEN_F32, {rows, n});
  for (int64_t row = 0; row < rows; ++row) fill(x, row, n, static_cast<Kind>(row % 6), random);
  RowFilters filters(rows, n, false, false, random);
  std::vector<std::vector<unsigned char>> drawn, logprobs;
  for (int64_t target : simd_targets()) {
    SimdTarget use(target);
    Tensor tokens(FULMEN_I32, {rows}), logprob(FULMEN_F32, {rows});
    FULMEN_INIT(fulmen_sample_args, args);
    args.input = x.view(), args.tokens = tokens.view(), args.logprob = logprob.view();
    filters.put(args.filter);
    EXPECT_FULMEN_OK(fulmen_sample(context, &args, nullptr));
    drawn.push_back(tokens.bytes()), logprobs.push_back(logprob.bytes());
  }
  for (size_t i = 1; i < drawn.size(); ++i) {
    EXPECT_EQ(drawn[i], drawn[0]);
    EXPECT_EQ(logprobs[i], logprobs[0]);
  }
}

TEST(Filter, KeepsTheWordsOfThePlainDefinition) {
  std::mt19937_64 random(12);
  Context context;
  for (int64_t n : kVocabularies) {
    for (int kind = 0; kind < static_cast<int>(Kind::count); ++kind) {
      for (int form = 0; form < 6; ++form) {
        const bool joint = form & 1, is_probs = form >= 4, logits_out = form == 2 || form == 3;
        const int64_t rows = 5;
        Tensor x(FULMEN_F32, {rows, n}, {n + 1, 1}), out(FULMEN_F32, {rows, n}, {n + 2, 1});
        for (int64_t row = 0; row < rows; ++row) {
          fill(x, row, n, static_cast<Kind>(kind), random);
          if (is_probs) to_probs(x, row, n);
        }
        RowFilters filters(rows, n, joint, is_probs, random);
        FULMEN_INIT(fulmen_filter_args, args);
        args.input = x.view(), args.output = out.view();
        args.input_is_probs = is_probs, args.output_is_logits = logits_out;
        filters.put(args.filter);
        ASSERT_EQ(fulmen_filter(context, &args, nullptr), FULMEN_OK) << fulmen_last_error();
        for (int64_t row = 0; row < rows; ++row) {
          const Filters& f = filters.rows[static_cast<size_t>(row)];
          if (!is_probs && f.temperature == 0.0f) continue;  // below
          const auto values = row_of(x, row, n);
          const auto mass = reference::masses(values, f);
          const auto stays = reference::kept(values, mass, f);
          const double top = *std::max_element(values.begin(), values.end());
          double sum = 0.0;
          const auto weight = [&](size_t i) {
            return is_probs ? values[i] : std::exp((values[i] - top) / static_cast<double>(f.temperature));
          };
          for (size_t i = 0; i < values.size(); ++i) sum += stays[i] ? weight(i) : 0.0;
          for (size_t i = 0; i < values.size(); ++i) {
            const double got = out.get(row * n + static_cast<int64_t>(i));
            if (logits_out) {
              ASSERT_EQ(got, stays[i] ? values[i] : -kInfinity)
                  << n << " " << kind << " " << form << " " << row << " " << i;
            } else {
              const double exact = stays[i] ? weight(i) / sum : 0.0;
              ASSERT_NEAR(got, exact, 1e-5 * exact + 1e-12)
                  << n << " " << kind << " " << form << " " << row << " " << i;
            }
          }
        }
        out.expect_guards("filter"), x.expect_guards("filter");
      }
    }
  }
}

TEST(Filter, TemperatureZeroKeepsOneWordAndBadRowsAreNan) {
  Context context;
  Tensor x(FULMEN_F32, {3, 40}), temperatures(FULMEN_F32, {3});
  for (int64_t i = 0; i < 120; ++i) x.set(i, static_cast<double>(i % 13));
  temperatures.set(0, 0.0), temperatures.set(1, -1.0), temperatures.set(2, 1.0);
  FULMEN_INIT(fulmen_filter_args, args);
  args.input = x.view(), args.output = x.view(), args.filter.temperatures = temperatures.view(),
  args.filter.top_p = 1.0f;
  EXPECT_FULMEN_OK(fulmen_filter(context, &args, nullptr));
  double sum = 0.0;
  for (int64_t i = 0; i < 40; ++i) {
    EXPECT_EQ(x.get(i), i == 12 ? 1.0 : 0.0) << i;
    EXPECT_TRUE(std::isnan(x.get(40 + i)));
    sum += x.get(80 + i);
  }
  EXPECT_NEAR(sum, 1.0, 1e-6);
}

TEST(Softmax, MatchesReference) {
  std::mt19937_64 random(13);
  Context context;
  for (int dtype : {FULMEN_F32, FULMEN_F16, FULMEN_BF16}) {
    for (int64_t n : {1, 5, 64, 1003, 50257}) {
      const int64_t rows = 4;
      Tensor x = Tensor(dtype, {rows, n}, {n + 5, 1}).fill_normal(random, 4.0),
             probs(FULMEN_F32, {rows, n}, {n + 1, 1});
      Tensor temperatures(FULMEN_F32, {rows});
      const double t[] = {1.0, 0.25, 3.0, 1.0};
      for (int64_t i = 0; i < rows; ++i) temperatures.set(i, t[i]);
      for (int64_t i = 1; i < n; i += 2) x.set(3 * n + i, -kInfinity);
      FULMEN_INIT(fulmen_softmax_args, args);
      args.logits = x.view(), args.probs = probs.view(), args.temperatures = temperatures.view();
      EXPECT_FULMEN_OK(fulmen_softmax(context, &args, nullptr));
      for (int64_t row = 0; row < rows; ++row) {
        const auto v = row_of(x, row, n);
        const double top = *std::max_element(v.begin(), v.end());
        double sum = 0.0;
        for (double value : v) sum += std::exp((value - top) / t[row]);
        for (int64_t i = 0; i < n; ++i) {
          const double exact = std::exp((v[static_cast<size_t>(i)] - top) / t[row]) / sum;
          // The argument's rounding, 2^-24 of its size (twice with a temperature), and a few units more.
          const double argument = std::min((top - v[static_cast<size_t>(i)]) / t[row], 100.0);
          ASSERT_NEAR(probs.get(row * n + i), exact, exact * (1e-6 + 1.2e-7 * argument) + 1e-37)
              << name_of(dtype) << " " << n << " " << row << " " << i;
        }
      }
      probs.expect_guards("softmax");
    }
  }
  Tensor x(FULMEN_F32, {3, 20}), temperatures(FULMEN_F32, {3});
  for (int64_t i = 0; i < 60; ++i) x.set(i, 1.0);
  x.set(5, kNan);
  temperatures.set(0, 1.0), temperatures.set(1, 0.0), temperatures.set(2, 1.0);
  FULMEN_INIT(fulmen_softmax_args, args);
  args.logits = x.view(), args.probs = x.view(), args.temperatures = temperatures.view();
  EXPECT_FULMEN_OK(fulmen_softmax(context, &args, nullptr));
  for (int64_t i = 0; i < 40; ++i) EXPECT_TRUE(std::isnan(x.get(i)));
  for (int64_t i = 40; i < 60; ++i) EXPECT_NEAR(x.get(i), 0.05, 1e-8);
}

}  // namespace
