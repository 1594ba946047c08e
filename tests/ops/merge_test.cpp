// merge_states and merge_state against fp64.
#include "ops/tensors.hpp"

namespace {

using namespace testing_ops;

class Merge : public testing::TestWithParam<int> {};

struct Exact {
  std::vector<double> o, lse;
  std::vector<float> plain;
};

Exact merge(Tensor& part_o, Tensor& part_lse) {
  const int64_t parts = part_o.shape()[0], rows = part_o.shape()[1] * part_o.shape()[2], dim = part_o.shape()[3];
  Exact out;
  for (int64_t r = 0; r < rows; ++r) {
    double top = -INFINITY, sum = 0.0;
    for (int64_t p = 0; p < parts; ++p) top = std::max(top, part_lse.get(p * rows + r));
    for (int64_t p = 0; p < parts; ++p) sum += top == -INFINITY ? 0.0 : std::exp(part_lse.get(p * rows + r) - top);
    out.lse.push_back(top == -INFINITY ? top : top + std::log(sum));
    for (int64_t d = 0; d < dim; ++d) {
      double x = 0.0;
      float plain = 0.0f;
      for (int64_t p = 0; p < parts; ++p) {
        const double l = part_lse.get(p * rows + r);
        if (l == -INFINITY) continue;
        const double v = part_o.get((p * rows + r) * dim + d);
        x += std::exp(l - top) / sum * v;
        plain += std::exp(static_cast<float>(l - top)) / static_cast<float>(sum) * static_cast<float>(v);
      }
      out.o.push_back(x);
      out.plain.push_back(plain);
    }
  }
  return out;
}

TEST_P(Merge, StatesMatchFp64) {
  const int dtype = GetParam();
  Context context(2);
  std::mt19937_64 random(5);
  for (const int64_t parts : {1, 2, 3, 9}) {
    for (const int64_t dim : {8, 40, 128}) {
      const int64_t rows = 5, heads = 3;
      Tensor part_o(dtype, {parts, rows, heads, dim}, {rows * heads * (dim + 3) + 7, heads * (dim + 3), dim + 3, 1});
      Tensor part_lse(FULMEN_F32, {parts, rows, heads});
      Tensor o(dtype, {rows, heads, dim}, {heads * (dim + 1) + 1, dim + 1, 1}), lse(FULMEN_F32, {rows, heads});
      part_o.fill_normal(random);
      part_lse.fill_normal(random, 4.0);
      // Row 1: an empty part whose o is poison; row 2: all parts empty.
      for (int64_t p = 0; p < parts; ++p) {
        for (int64_t h = 0; h < heads; ++h) {
          for (const int64_t row : {int64_t{1}, int64_t{2}}) {
            if (row == 1 && p != 0) continue;
            part_lse.set((p * rows + row) * heads + h, -INFINITY);
            for (int64_t d = 0; d < dim; ++d) part_o.set(((p * rows + row) * heads + h) * dim + d, NAN);
          }
        }
      }
      FULMEN_INIT(fulmen_merge_states_args, args);
      args.part_o = part_o.view(), args.part_lse = part_lse.view(), args.o = o.view(), args.lse = lse.view();
      EXPECT_FULMEN_OK(fulmen_merge_states(context, &args, nullptr));
      const Exact exact = merge(part_o, part_lse);
      const std::string what = std::to_string(parts) + " parts, dim " + std::to_string(dim);
      expect_close(o, exact.o, exact.plain, what);
      for (int64_t i = 0; i < rows * heads; ++i) {
        const double want = exact.lse[static_cast<size_t>(i)];
        if (std::isfinite(want)) {
          EXPECT_NEAR(lse.get(i), want, 1e-5) << what << " row " << i;
        } else {
          EXPECT_EQ(lse.get(i), want) << what << " row " << i;
        }
      }
      o.expect_guards(what);
      lse.expect_guards(what);
    }
  }
}

TEST_P(Merge, TwoStatesInPlaceGiveTheBitsOfMergeStates) {
  const int dtype = GetParam();
  Context context(2);
  std::mt19937_64 random(6);
  const int64_t rows = 4, heads = 2, dim = 24;
  Tensor part_o(dtype, {2, rows, heads, dim}), part_lse(FULMEN_F32, {2, rows, heads}), o(dtype, {rows, heads, dim});
  part_o.fill_normal(random);
  part_lse.fill_normal(random);
  FULMEN_INIT(fulmen_merge_states_args, args);
  args.part_o = part_o.view(), args.part_lse = part_lse.view(), args.o = o.view();
  EXPECT_FULMEN_OK(fulmen_merge_states(context, &args, nullptr));
  Tensor a(dtype, {rows, heads, dim}), b(dtype, {rows, heads, dim}), la(FULMEN_F32, {rows, heads}), lb(FULMEN_F32, {rows, heads});
  for (int64_t i = 0; i < a.size(); ++i) a.set(i, part_o.get(i)), b.set(i, part_o.get(a.size() + i));
  for (int64_t i = 0; i < la.size(); ++i) la.set(i, part_lse.get(i)), lb.set(i, part_lse.get(la.size() + i));
  FULMEN_INIT(fulmen_merge_state_args, two);
  two.o_a = a.view(), two.lse_a = la.view(), two.o_b = b.view(), two.lse_b = lb.view(), two.o = a.view(), two.lse = la.view();
  EXPECT_FULMEN_OK(fulmen_merge_state(context, &two, nullptr));
  for (int64_t i = 0; i < a.size(); ++i) ASSERT_EQ(a.get(i), o.get(i)) << i;
}

TEST(MergeErrors, NameTheArgument) {
  Context context(1);
  Tensor part_o(FULMEN_F32, {2, 3, 1, 8}), part_lse(FULMEN_F32, {2, 4, 1}), o(FULMEN_F32, {3, 1, 8});
  FULMEN_INIT(fulmen_merge_states_args, args);
  args.part_o = part_o.view(), args.part_lse = part_lse.view(), args.o = o.view();
  EXPECT_EQ(fulmen_merge_states(context, &args, nullptr), FULMEN_INVALID_ARGUMENT);
  EXPECT_NE(std::string(fulmen_last_error()).find("part_lse"), std::string::npos) << fulmen_last_error();
}

INSTANTIATE_TEST_SUITE_P(Dtypes, Merge, testing::Values(FULMEN_F32, FULMEN_F16, FULMEN_BF16),
                         [](const auto& info) { return name_of(info.param); });

}  // namespace
