// merge_states in the emulator against fp64: both access widths, empty parts that hold NaN, the result over a
// part.
#include <gtest/gtest.h>

#include <cmath>
#include <kernels/merge/merge_states.cuh>
#include <random>

#include "emulator/emulator.hpp"
#include "kernels/cases.hpp"
#include "kernels/seeds.hpp"

namespace fulmen {
namespace {

using emulator::Buffer;

enum class Form { plain, in_place, apart, without_lse, base2 };  // apart: part 0 lies elsewhere, with strides of its own

template <MergeStatesConfig kC>
void run_merge(int parts, int rows, int heads, int dim, Form form, uint64_t seed) {
  const bool in_place = form == Form::in_place, apart = form == Form::apart;
  const double unit_of_lse = form == Form::base2 ? std::log(2.0) : 1.0;
  using T = storage_t<kC.dtype>;
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal;
  const auto at = [&](int part, int row, int head) {
    return static_cast<size_t>((part * rows + row) * heads + head);
  };
  std::vector<T> o(static_cast<size_t>(parts * rows * heads * dim));
  std::vector<float> lse(static_cast<size_t>(parts * rows * heads));
  for (T& x : o) x = from_float<T>(normal(random));
  for (float& x : lse) x = 5.0f * normal(random);
  for (int part = 0; part < parts; ++part) {
    for (int row = 0; row < rows; ++row) {
      if (row != 0 && (row + part) % 3 != 0) continue;  // row 0 is empty everywhere
      for (int head = 0; head < heads; ++head) {
        lse[at(part, row, head)] = -infinity();
        for (int d = 0; d < dim; ++d)
          o[at(part, row, head) * static_cast<size_t>(dim) + static_cast<size_t>(d)] =
              from_float<T>(quiet_nan());
      }
    }
  }
  lse[at(0, 0, 0)] = quiet_nan();  // the other parts of this row are empty: NaN all the same
  auto part_o = in_place ? Buffer<T>::inout("part_o", o) : Buffer<T>::input("part_o", o);
  auto part_lse = in_place ? Buffer<float>::inout("part_lse", lse) : Buffer<float>::input("part_lse", lse);
  auto out = Buffer<T>::output("o", in_place ? 1 : static_cast<size_t>(rows * heads * dim));
  auto out_lse = Buffer<float>::output("lse", in_place ? 1 : static_cast<size_t>(rows * heads));
  MergeStatesParams p{};
  p.lse_unit = static_cast<float>(unit_of_lse), p.log_unit = static_cast<float>(1.0 / unit_of_lse);
  p.num_parts = parts, p.num_rows = rows, p.num_heads = heads, p.head_dim = dim;
  p.first = {part_o.data(), part_lse.data(), int64_t{heads} * dim, dim, heads, 1};
  p.second = p.first;
  p.o_stride_part = int64_t{rows} * heads * dim, p.lse_stride_part = int64_t{rows} * heads;
  if (parts > 1) {
    p.second.o = part_o.data() + p.o_stride_part;
    p.second.lse = part_lse.data() + p.lse_stride_part;
  }
  const int gap = 16;
  std::vector<T> first_o(static_cast<size_t>(rows * heads * (dim + gap)));
  std::vector<float> first_lse(static_cast<size_t>(rows * heads * 2), quiet_nan());
  for (int i = 0; i < rows * heads; ++i) {
    std::copy_n(o.begin() + i * dim, dim, first_o.begin() + i * (dim + gap));
    first_lse[static_cast<size_t>(2 * i)] = lse[static_cast<size_t>(i)];
  }
  auto apart_o = Buffer<T>::input("first.o", first_o);
  auto apart_lse = Buffer<float>::input("first.lse", first_lse);
  if (apart) p.first = {apart_o.data(), apart_lse.data(), int64_t{heads} * (dim + gap), dim + gap, 2 * heads, 2};
  T* result = in_place ? part_o.data() : out.data();
  p.o = result, p.o_stride_row = int64_t{heads} * dim, p.o_stride_head = dim;
  float* const result_lse = in_place ? part_lse.data() : out_lse.data();
  p.lse = form == Form::without_lse ? nullptr : result_lse, p.lse_stride_row = heads, p.lse_stride_head = 1;
  const auto report = emulator::launch(
      {.name = "merge_states", .grid = {2}, .block = {kC.threads}, .seed = seed, .overlapped = true},
      [](MergeStatesParams params) { merge_states<kC>(params); }, p);
  ASSERT_TRUE(report.clean()) << report.text();

  for (int row = 0; row < rows; ++row) {
    for (int head = 0; head < heads; ++head) {
      if (row == 0 && head == 0) {
        EXPECT_TRUE(form == Form::without_lse || std::isnan(result_lse[0]));
        for (int d = 0; d < dim; ++d) EXPECT_TRUE(std::isnan(to_float(result[d])));
        continue;
      }
      double top = -INFINITY, sum = 0.0;
      for (int part = 0; part < parts; ++part) top = std::fmax(top, lse[at(part, row, head)]);
      for (int part = 0; part < parts && std::isfinite(top); ++part)
        sum += std::exp((lse[at(part, row, head)] - top) * unit_of_lse);
      const float got = result_lse[row * heads + head];
      if (form == Form::without_lse) {
        EXPECT_EQ(float_bits(got), 0xffffffffu);
      } else if (!std::isfinite(top)) {
        EXPECT_EQ(got, -infinity());
      } else {
        EXPECT_NEAR(got, top + std::log(sum) / unit_of_lse, 2e-6 * (1.0 + std::fabs(top)));
      }
      for (int d = 0; d < dim; ++d) {
        double exact = 0.0;
        for (int part = 0; part < parts; ++part) {
          const double weight = std::isfinite(top) ? std::exp((lse[at(part, row, head)] - top) * unit_of_lse) / sum : 0.0;
          if (weight > 0.0)
            exact +=
                weight * to_float(o[at(part, row, head) * static_cast<size_t>(dim) + static_cast<size_t>(d)]);
        }
        const double unit = sizeof(T) == 4 ? 1e-6 : 0x1p-8;
        ASSERT_NEAR(to_float(result[static_cast<size_t>((row * heads + head) * dim + d)]), exact,
                    unit * std::fabs(exact) + 1e-6)
            << parts << " parts, row " << row << ", head " << head << ", element " << d;
      }
    }
  }
  EXPECT_TRUE(out_lse.guards_intact() && part_o.guards_intact() && out.guards_intact());
}

struct Case {
  const char* name;
  void (*run)(int parts, int rows, int heads, int dim, Form form, uint64_t seed);
  int parts, rows, heads, dim;
  Form form;
};
const Case kCases[] = {
    {"two parts", run_merge<MergeStatesConfig{DType::bf16, 16, 64}>, 2, 5, 3, 128, Form::plain},
    {"f16, long heads", run_merge<MergeStatesConfig{DType::f16, 16, 64}>, 7, 4, 2, 256, Form::apart},
    {"one element at a time", run_merge<MergeStatesConfig{DType::bf16, 2, 64}>, 3, 4, 2, 37, Form::without_lse},
    {"more parts than lanes", run_merge<MergeStatesConfig{DType::f32, 16, 64}>, 40, 3, 1, 64, Form::plain},
    {"one part", run_merge<MergeStatesConfig{DType::f32, 4, 32}>, 1, 3, 2, 5, Form::plain},
    {"over a part", run_merge<MergeStatesConfig{DType::bf16, 16, 64}>, 2, 4, 3, 64, Form::in_place},
    {"base 2", run_merge<MergeStatesConfig{DType::f16, 16, 64}>, 3, 4, 3, 64, Form::base2},
};
void check(const Case& c, uint64_t seed) { c.run(c.parts, c.rows, c.heads, c.dim, c.form, seed); }
const bool kAdded = add_cases("merge_states", kCases, check);

TEST(MergeStates, Cases) {
  for (const Case& c : kCases) {
    for (uint64_t seed = first_seed(); seed < first_seed() + num_seeds(3); ++seed) check(c, seed);
  }
}

}  // namespace
}  // namespace fulmen
