#include <fmt/format.h>

#include <algorithm>
#include <numeric>

#include "ops/tensors.hpp"

namespace {
using namespace testing_ops;

TEST(TopK, DescendingTiesByLowestIndex) {
  std::mt19937_64 random(1);
  Context context;
  for (int dtype : {FULMEN_F32, FULMEN_F16, FULMEN_BF16}) {
    for (int64_t n : {1, 2, 17, 256, 257, 1000, 5000, 40000}) {
      for (int64_t k : {int64_t{1}, int64_t{2}, int64_t{50}, int64_t{64}, n / 2, n}) {
        if (k > n || k == 0) continue;
        const int64_t rows = 4;
        Tensor x = Tensor(dtype, {rows, n}, {n + 3, 1}).fill_normal(random, 2.0);
        Tensor values(dtype, {rows, k}, {k + 1, 1}), indices(FULMEN_I32, {rows, k}, {k + 2, 1});
        for (int64_t i = 0; i < n; ++i) x.set(n + i, std::round(x.get(n + i)));
        for (int64_t i = 0; i < n; ++i) x.set(2 * n + i, i % 2 ? 0.0 : -0.0);
        FULMEN_INIT(fulmen_top_k_args, args);
        args.x = x.view(), args.values = values.view(), args.indices = indices.view();
        ASSERT_EQ(fulmen_top_k(context, &args, nullptr), FULMEN_OK) << fulmen_last_error();
        for (int64_t row = 0; row < rows; ++row) {
          std::vector<int32_t> ranking(static_cast<size_t>(n));
          std::iota(ranking.begin(), ranking.end(), 0);
          std::stable_sort(ranking.begin(), ranking.end(),
                           [&](int32_t a, int32_t b) { return x.get(row * n + a) > x.get(row * n + b); });
          for (int64_t i = 0; i < k; ++i) {
            const int32_t want = ranking[static_cast<size_t>(i)];
            ASSERT_EQ(indices.integer<int32_t>(row * k + i), want)
                << fmt::format("{} n {} k {} row {} place {}", name_of(dtype), n, k, row, i);
            ASSERT_EQ(values.get(row * k + i), x.get(row * n + want));
          }
        }
        values.expect_guards("values"), indices.expect_guards("indices");
      }
    }
  }
}

TEST(TopK, NanRowsAndErrors) {
  Context context;
  Tensor x(FULMEN_BF16, {2, 9}), values(FULMEN_BF16, {2, 3}), indices(FULMEN_I32, {2, 3});
  for (int64_t i = 0; i < 18; ++i) x.set(i, static_cast<double>(i));
  x.set(4, std::numeric_limits<double>::quiet_NaN());
  FULMEN_INIT(fulmen_top_k_args, args);
  args.x = x.view(), args.values = values.view(), args.indices = indices.view();
  EXPECT_FULMEN_OK(fulmen_top_k(context, &args, nullptr));
  for (int64_t i = 0; i < 3; ++i) {
    EXPECT_EQ(indices.integer<int32_t>(i), -1);
    EXPECT_TRUE(std::isnan(values.get(i)));
    EXPECT_EQ(indices.integer<int32_t>(3 + i), static_cast<int32_t>(8 - i));
  }
  Tensor many(FULMEN_BF16, {2, 10}), many_indices(FULMEN_I32, {2, 10});
  args.values = many.view(), args.indices = many_indices.view();
  EXPECT_EQ(fulmen_top_k(context, &args, nullptr), FULMEN_INVALID_ARGUMENT);
}

}  // namespace
