#include <fmt/format.h>

#include "ops/tensors.hpp"

namespace {
using namespace testing_ops;

TEST(Argmax, LowestIndexOfTheLargest) {
  std::mt19937_64 random(3);
  Context context;
  for (int64_t target : simd_targets()) {
    SimdTarget use(target);
    for (int dtype : {FULMEN_F32, FULMEN_F16, FULMEN_BF16}) {
      for (int64_t n : {1, 2, 15, 16, 17, 63, 64, 65, 4095, 4096, 4097, 49152, 50001}) {
        const int64_t rows = 5, pad = 3;
        Tensor x = Tensor(dtype, {rows, n}, {n + pad, 1}).fill_normal(random), index(FULMEN_I32, {rows});
        for (int64_t i = 0; i < n; ++i)
          x.set(n + i, -std::numeric_limits<double>::infinity());                   // row 1: all -inf
        for (int64_t i = 0; i < n; ++i) x.set(2 * n + i, i % 2 == 0 ? 0.0 : -0.0);  // row 2: ties
        if (n > 2) x.set(3 * n + n - 1, 100.0), x.set(3 * n + n / 2, 100.0);
        x.set(4 * n + n - 1, std::numeric_limits<double>::quiet_NaN());
        FULMEN_INIT(fulmen_argmax_args, args);
        args.x = x.view(), args.index = index.view();
        EXPECT_FULMEN_OK(fulmen_argmax(context, &args, nullptr));
        for (int64_t row = 0; row < rows; ++row) {
          int32_t want = 0;
          for (int64_t i = 0; i < n; ++i) {
            if (x.get(row * n + i) > x.get(row * n + want)) want = static_cast<int32_t>(i);
          }
          if (row == 4) want = -1;
          EXPECT_EQ(index.integer<int32_t>(row), want) << name_of(dtype) << " n " << n << " row " << row;
        }
        index.expect_guards("index");
      }
    }
  }
}

TEST(Argmax, EmptyBatchAndEmptyRows) {
  Context context;
  Tensor x(FULMEN_F32, {0, 10}), index(FULMEN_I32, {0});
  FULMEN_INIT(fulmen_argmax_args, args);
  args.x = x.view(), args.index = index.view();
  EXPECT_FULMEN_OK(fulmen_argmax(context, &args, nullptr));
  Tensor none(FULMEN_F32, {2, 0}, {1, 1}), two(FULMEN_I32, {2});
  args.x = none.view(), args.index = two.view();
  EXPECT_EQ(fulmen_argmax(context, &args, nullptr), FULMEN_INVALID_ARGUMENT);
}

}  // namespace
