#include <fmt/format.h>

#include "ops/tensors.hpp"

namespace {
using namespace testing_ops;

// Frequencies, plainly, in fp64.
std::vector<double> frequencies(const fulmen_rope_params& r, int rotary) {
  const double theta = r.theta == 0 ? 10000.0 : r.theta, factor = r.factor == 0 ? 1.0 : r.factor;
  std::vector<double> f(static_cast<size_t>(rotary / 2));
  const auto dim_of = [&](double turns) {
    return rotary * std::log(r.original_context / (turns * 2 * M_PI)) / (2 * std::log(theta));
  };
  for (int i = 0; i < rotary / 2; ++i) {
    double v = std::pow(theta, -2.0 * i / rotary);
    if (r.scaling == FULMEN_ROPE_LINEAR) v /= factor;
    if (r.scaling == FULMEN_ROPE_LLAMA31) {
      const double wave = 2 * M_PI / v, low = r.original_context / r.low_freq_factor,
                   high = r.original_context / r.high_freq_factor;
      if (wave > low) {
        v /= factor;
      } else if (wave >= high) {
        const double s =
            (r.original_context / wave - r.low_freq_factor) / (r.high_freq_factor - r.low_freq_factor);
        v = (1 - s) * v / factor + s * v;
      }
    }
    if (r.scaling == FULMEN_ROPE_YARN) {
      const double low = std::max(std::floor(dim_of(r.beta_fast == 0 ? 32.0 : r.beta_fast)), 0.0);
      const double high = std::min(std::ceil(dim_of(r.beta_slow == 0 ? 1.0 : r.beta_slow)), rotary - 1.0);
      const double keep = 1 - std::min(std::max((i - low) / (high - low), 0.0), 1.0);
      v = v / factor * (1 - keep) + v * keep;
    }
    f[static_cast<size_t>(i)] = v;
  }
  return f;
}

double scale_of(const fulmen_rope_params& r) {
  if (r.scaling != FULMEN_ROPE_YARN) return 1.0;
  return r.attention_factor != 0 ? r.attention_factor : 0.1 * std::log(static_cast<double>(r.factor)) + 1.0;
}

template <class F>
std::vector<F> rotate(const std::vector<double>& x, const std::vector<int64_t>& positions, size_t heads,
                      size_t head_dim, const fulmen_rope_params& r, int rotary) {
  const auto f = frequencies(r, rotary);
  std::vector<F> out(x.size());
  const size_t half = static_cast<size_t>(rotary / 2);
  for (size_t row = 0; row < x.size() / head_dim; ++row) {
    const auto position = static_cast<double>(positions[row / heads]);
    for (size_t d = 0; d < head_dim; ++d) out[row * head_dim + d] = static_cast<F>(x[row * head_dim + d]);
    for (size_t p = 0; p < half; ++p) {
      const size_t i = row * head_dim + (r.interleaved ? 2 * p : p), j = r.interleaved ? i + 1 : i + half;
      const F c = static_cast<F>(scale_of(r) * std::cos(position * f[p]));
      const F s = static_cast<F>(scale_of(r) * std::sin(position * f[p]));
      const F a = static_cast<F>(x[i]), b = static_cast<F>(x[j]);
      out[i] = a * c - b * s;
      out[j] = b * c + a * s;
    }
  }
  return out;
}

struct Case {
  const char* name;
  int64_t tokens, q_heads, k_heads, head_dim, pad;
  int rotary, interleaved, scaling;
  float theta, factor;
  bool in_place, wide_positions;
  int64_t largest_position;
};

constexpr Case kCases[] = {
    {"empty batch", 0, 2, 1, 64, 0, 0, 0, FULMEN_ROPE_NONE, 0, 0, false, false, 100},
    {"one token", 1, 9, 3, 64, 0, 0, 0, FULMEN_ROPE_NONE, 0, 0, true, false, 8192},
    {"neox", 13, 4, 2, 128, 0, 0, 0, FULMEN_ROPE_NONE, 500000.0f, 0, false, true, 100000},
    {"neighbours", 13, 4, 2, 128, 0, 0, 1, FULMEN_ROPE_NONE, 0, 0, false, true, 100000},
    {"partial", 5, 3, 1, 80, 3, 24, 0, FULMEN_ROPE_NONE, 0, 0, false, false, 5000},
    {"partial neighbours, ragged", 5, 3, 1, 75, 3, 26, 1, FULMEN_ROPE_NONE, 0, 0, true, false, 5000},
    {"ragged pairs", 5, 3, 1, 46, 1, 0, 0, FULMEN_ROPE_NONE, 0, 0, true, false, 5000},
    {"linear", 7, 2, 2, 64, 0, 0, 0, FULMEN_ROPE_LINEAR, 0, 4.0f, false, false, 30000},
    {"llama 3.1", 7, 2, 2, 128, 0, 0, 0, FULMEN_ROPE_LLAMA31, 500000.0f, 8.0f, false, false, 120000},
    {"yarn", 7, 2, 2, 128, 0, 0, 0, FULMEN_ROPE_YARN, 0, 4.0f, false, false, 30000},
    {"a million", 7, 2, 2, 128, 0, 0, 0, FULMEN_ROPE_NONE, 0, 0, false, true, 1000000},
    {"k absent", 200, 8, 0, 64, 0, 0, 0, FULMEN_ROPE_NONE, 0, 0, false, true, 1000},
};

TEST(Rope, MatchesReference) {
  std::mt19937_64 random(1);
  Context context;
  for (int64_t target : simd_targets()) {
    SimdTarget use(target);
    for (int dtype : {FULMEN_F32, FULMEN_F16, FULMEN_BF16}) {
      for (const Case& c : kCases) {
        for (bool table : {false, true}) {
          if (table && (c.largest_position > 8192)) continue;
          const std::string what = fmt::format("{} {} table {}", name_of(dtype), c.name, table);
          const int rotary = c.rotary == 0 ? static_cast<int>(c.head_dim) : c.rotary;
          const auto make = [&](int64_t heads) {
            const int64_t head = c.head_dim + c.pad;
            return Tensor(dtype, {c.tokens, heads, c.head_dim}, {heads * head + c.pad, head, 1});
          };
          Tensor q = make(c.q_heads).fill_normal(random), q_out = make(c.q_heads), k, k_out;
          if (c.k_heads > 0) k = make(c.k_heads).fill_normal(random), k_out = make(c.k_heads);
          Tensor positions(c.wide_positions ? FULMEN_I64 : FULMEN_I32, {c.tokens});
          std::vector<int64_t> position(static_cast<size_t>(c.tokens));
          for (int64_t i = 0; i < c.tokens; ++i) {
            position[static_cast<size_t>(i)] =
                static_cast<int64_t>(random() % static_cast<uint64_t>(c.largest_position));
            if (c.wide_positions) {
              positions.set_integer<int64_t>(i, position[static_cast<size_t>(i)]);
            } else {
              positions.set_integer<int32_t>(i, static_cast<int32_t>(position[static_cast<size_t>(i)]));
            }
          }
          FULMEN_INIT(fulmen_rope_args, args);
          args.params.rotary_dim = c.rotary, args.params.interleaved = c.interleaved,
          args.params.scaling = c.scaling;
          args.params.theta = c.theta, args.params.factor = c.factor;
          args.params.original_context = 8192;
          args.params.low_freq_factor = 1.0f, args.params.high_freq_factor = 4.0f;
          Tensor cache;
          if (table) {
            cache = Tensor(FULMEN_F32, {c.largest_position, rotary}, {rotary + c.pad, 1});
            const auto f = frequencies(args.params, rotary);
            for (int64_t t = 0; t < c.largest_position; ++t) {
              for (int i = 0; i < rotary / 2; ++i) {
                const double angle = static_cast<double>(t) * f[static_cast<size_t>(i)];
                cache.set(t * rotary + i, scale_of(args.params) * std::cos(angle));
                cache.set(t * rotary + rotary / 2 + i, scale_of(args.params) * std::sin(angle));
              }
            }
          }
          const auto size = [&](int64_t heads) { return static_cast<size_t>(heads); };
          const auto q_exact =
              rotate<double>(q.values(), position, size(c.q_heads), size(c.head_dim), args.params, rotary);
          const auto q_plain =
              rotate<float>(q.values(), position, size(c.q_heads), size(c.head_dim), args.params, rotary);
          std::vector<double> k_exact;
          std::vector<float> k_plain;
          if (c.k_heads > 0) {
            k_exact =
                rotate<double>(k.values(), position, size(c.k_heads), size(c.head_dim), args.params, rotary);
            k_plain =
                rotate<float>(k.values(), position, size(c.k_heads), size(c.head_dim), args.params, rotary);
          }
          args.q = q.view(), args.k = k.view(), args.positions = positions.view(),
          args.cos_sin_cache = cache.view();
          if (!c.in_place) args.q_out = q_out.view(), args.k_out = k_out.view();
          EXPECT_FULMEN_OK(fulmen_rope(context, &args, nullptr));
          expect_close(c.in_place ? q : q_out, q_exact, q_plain, what + " q");
          if (c.k_heads > 0) expect_close(c.in_place ? k : k_out, k_exact, k_plain, what + " k");
          q.expect_guards(what), q_out.expect_guards(what);
          if (c.k_heads > 0) k.expect_guards(what), k_out.expect_guards(what);
        }
      }
    }
  }
}

TEST(Rope, BadPositionsSpoilTheirTokenOnly) {
  std::mt19937_64 random(1);
  Context context;
  Tensor q = Tensor(FULMEN_BF16, {3, 2, 20}).fill_normal(random), good(FULMEN_BF16, {3, 2, 20}),
         bad(FULMEN_BF16, {3, 2, 20});
  Tensor positions(FULMEN_I32, {3});
  FULMEN_INIT(fulmen_rope_args, args);
  args.params.rotary_dim = 12;
  args.q = q.view(), args.positions = positions.view();
  for (int i = 0; i < 3; ++i) positions.set_integer<int32_t>(i, 7 + i);
  args.q_out = good.view();
  EXPECT_FULMEN_OK(fulmen_rope(context, &args, nullptr));
  positions.set_integer<int32_t>(1, -5);
  args.q_out = bad.view();
  EXPECT_FULMEN_OK(fulmen_rope(context, &args, nullptr));
  for (int64_t i = 0; i < 120; ++i) {
    if (i / 40 == 1) {
      EXPECT_TRUE(std::isnan(bad.get(i))) << i;
    } else {
      EXPECT_EQ(bad.get(i), good.get(i)) << i;
    }
  }
  bad.expect_guards("bad position");
}

TEST(Rope, RefusesWhatItCannotDo) {
  Context context;
  Tensor q(FULMEN_F32, {3, 2, 16}), positions(FULMEN_I32, {3});
  FULMEN_INIT(fulmen_rope_args, args);
  args.q = q.view(), args.positions = positions.view();
  args.params.rotary_dim = 15;
  EXPECT_EQ(fulmen_rope(context, &args, nullptr), FULMEN_INVALID_ARGUMENT);
  args.params.rotary_dim = 18;
  EXPECT_EQ(fulmen_rope(context, &args, nullptr), FULMEN_INVALID_ARGUMENT);
  args.params.rotary_dim = 16;
  args.params.scaling = FULMEN_ROPE_LLAMA31;  // without its context
  EXPECT_EQ(fulmen_rope(context, &args, nullptr), FULMEN_INVALID_ARGUMENT);
  args.params.scaling = FULMEN_ROPE_NONE;
  args.params.theta = -1.0f;
  EXPECT_EQ(fulmen_rope(context, &args, nullptr), FULMEN_INVALID_ARGUMENT);
}

}  // namespace
