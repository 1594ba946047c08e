#include "engine/gemm.hpp"

#include <gtest/gtest.h>
#include <rapidcheck.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <random>

namespace fulmen::engine {
namespace {

struct Problem {
  int64_t outputs, cols, rows;
  std::vector<float> w, x, bias;  // w is exact in fp16

  Problem(int64_t outputs, int64_t cols, int64_t rows, uint32_t seed) : outputs(outputs), cols(cols), rows(rows) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    w.resize(static_cast<size_t>(outputs * cols));
    x.resize(static_cast<size_t>(rows * cols));
    bias.resize(static_cast<size_t>(outputs));
    std::vector<uint16_t> half(w.size());
    for (float& value : w) value = normal(random);
    convert_to_f16(w.data(), static_cast<int64_t>(w.size()), half.data());
    convert_from_f16(half.data(), static_cast<int64_t>(w.size()), w.data());
    for (float& value : x) value = normal(random);
    for (float& value : bias) value = normal(random);
  }

  PackedMatrix packed(Pool& pool) const {
    PackedMatrix matrix(outputs, cols);
    matrix.fill(pool, [&](int64_t n, float* out) { std::copy_n(w.data() + n * cols, cols, out); });
    return matrix;
  }

  // y lies in rows of `stride`, with guard values around it.
  std::vector<float> product(Pool& pool, const PackedMatrix& matrix, int64_t first, int64_t count, bool with_bias,
                             int64_t stride) const {
    std::vector<float> y(static_cast<size_t>(count * stride), kGuard);
    MatmulScratch scratch;
    matmul(pool, matrix, x.data() + first * cols, count, cols, with_bias ? bias.data() : nullptr, y.data(), stride,
           scratch);
    return y;
  }
  static constexpr float kGuard = 12345.0f;
};

void expect_correct(const Problem& p, Pool& pool) {
  const PackedMatrix matrix = p.packed(pool);
  const int64_t stride = p.outputs + 3;
  const std::vector<float> y = p.product(pool, matrix, 0, p.rows, true, stride);
  for (int64_t r = 0; r < p.rows; ++r) {
    for (int64_t n = 0; n < p.outputs; ++n) {
      double exact = p.bias[n], plain = 0, size = std::abs(p.bias[n]);
      float chain = 0;
      for (int64_t k = 0; k < p.cols; ++k) {
        const double term = double(p.x[r * p.cols + k]) * p.w[n * p.cols + k];
        exact += term;
        size += std::abs(term);
        chain = std::fma(p.x[r * p.cols + k], p.w[n * p.cols + k], chain);
      }
      plain = std::abs(double(chain) + p.bias[n] - exact);
      const double error = std::abs(y[r * stride + n] - exact);
      ASSERT_LE(error, 2 * plain + size * 1e-6) << "row " << r << " output " << n;
    }
    for (int64_t n = p.outputs; n < stride; ++n) ASSERT_EQ(y[r * stride + n], Problem::kGuard);
  }
}

TEST(Matmul, AgreesWithDoubles) {
  Pool pool(2);
  for (const int64_t outputs : {1, 31, 32, 33, 100})
    for (const int64_t cols : {1, 8, 63})
      for (const int64_t rows : {1, 2, 11, 12, 13, 25, 200}) expect_correct(Problem(outputs, cols, rows, 7), pool);
}

TEST(Matmul, AnyShape) {
  Pool pool(2);
  EXPECT_TRUE(rc::check([&] {
    expect_correct(Problem(*rc::gen::inRange(1, 150), *rc::gen::inRange(1, 90), *rc::gen::inRange(1, 60),
                           *rc::gen::arbitrary<uint32_t>()),
                   pool);
  }));
}

TEST(Matmul, NoRows) {
  Pool pool(1);
  const Problem p(40, 16, 1, 1);
  EXPECT_TRUE(p.product(pool, p.packed(pool), 0, 0, false, 40).empty());
}

// The promise that everything else rests on: a row's bits don't depend on its neighbours or on the threads.
TEST(Matmul, BitsOfARowDependOnNothingElse) {
  Pool one(1), three(3);
  const Problem p(200, 96, 70, 3);
  const PackedMatrix matrix = p.packed(one);
  const std::vector<float> all = p.product(three, matrix, 0, p.rows, false, p.outputs);
  for (const int64_t count : {1, 2, 5, 12, 13, 40}) {
    for (int64_t first = 0; first + count <= p.rows; first += count) {
      const std::vector<float> some = p.product(one, matrix, first, count, false, p.outputs);
      ASSERT_EQ(0, std::memcmp(some.data(), all.data() + first * p.outputs, some.size() * sizeof(float)))
          << count << " rows from " << first;
    }
  }
}

TEST(PackedMatrix, GivesItsRowsBack) {
  Pool pool(2);
  const Problem p(75, 40, 1, 5);
  const PackedMatrix matrix = p.packed(pool);
  std::vector<float> row(40);
  for (int64_t n = 0; n < 75; ++n) {
    matrix.read_row(n, row.data());
    EXPECT_EQ(0, std::memcmp(row.data(), p.w.data() + n * 40, 160)) << n;
  }
}

TEST(Convert, Bf16RoundsToEven) {
  const float in[] = {1.0f, 1.00390625f, 1.01171875f, -3.5f, 0.0f, INFINITY, std::nanf("")};
  uint16_t out[7];
  convert_to_bf16(in, 7, out);
  const uint16_t want[] = {0x3f80, 0x3f80, 0x3f82, 0xc060, 0x0000, 0x7f80, 0x7fc0};
  for (int i = 0; i < 7; ++i) EXPECT_EQ(out[i], want[i]) << i;
}

}  // namespace
}  // namespace fulmen::engine
