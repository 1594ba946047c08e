// Conversions to the bit: all 16-bit inputs, and around every rounding boundary, against a
// plain search for the nearest value.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>

#include <kernels/math/convert.hpp>

namespace fulmen {
namespace {

// The value of a code by the definition of its format, in double.
double value_of(uint32_t code, int exponent_bits, int mantissa_bits, bool infinities) {
  const int bias = (1 << (exponent_bits - 1)) - 1, top = (1 << exponent_bits) - 1;
  const int field = static_cast<int>(code >> mantissa_bits) & top;
  const int fraction = static_cast<int>(code) & ((1 << mantissa_bits) - 1);
  const double sign = (code >> (exponent_bits + mantissa_bits) & 1) != 0 ? -1.0 : 1.0;
  if (infinities && field == top) return fraction == 0 ? sign * INFINITY : NAN;
  if (!infinities && field == top && fraction == (1 << mantissa_bits) - 1) return NAN;
  if (field == 0) return sign * std::ldexp(fraction, 1 - bias - mantissa_bits);
  return sign * std::ldexp(fraction + (1 << mantissa_bits), field - bias - mantissa_bits);
}

template <class T> uint32_t code_of(T x) { return x.bits; }

template <class T>
void check_format(int exponent_bits, int mantissa_bits, bool infinities, bool saturates) {
  const uint32_t sign = 1u << (exponent_bits + mantissa_bits);
  std::vector<std::pair<double, uint32_t>> finite;  // non-negative values in order
  for (uint32_t code = 0; code < sign; ++code) {
    T x;
    std::memset(&x, 0, sizeof x);
    x.bits = static_cast<decltype(x.bits)>(code);
    const double expected = value_of(code, exponent_bits, mantissa_bits, infinities);
    for (const uint32_t s : {0u, sign}) {
      x.bits = static_cast<decltype(x.bits)>(code | s);
      const float found = to_float(x);
      if (std::isnan(expected)) {
        ASSERT_TRUE(std::isnan(found)) << code;
        EXPECT_TRUE(std::isnan(to_float(from_float<T>(found))));
      } else {
        ASSERT_EQ(static_cast<double>(found), s != 0 ? -expected : expected) << code;
        ASSERT_EQ(std::signbit(found), s != 0) << code;
        if (std::isfinite(expected)) {
          ASSERT_EQ(code_of(from_float<T>(found)), code | s);
        }
      }
    }
    if (std::isfinite(expected)) finite.emplace_back(expected, code);
  }
  // Between two neighbours: nearest, ties to the even code; and one float on either side of the tie.
  for (size_t i = 0; i + 1 < finite.size(); ++i) {
    const float middle = static_cast<float>((finite[i].first + finite[i + 1].first) / 2);
    if (static_cast<double>(middle) != (finite[i].first + finite[i + 1].first) / 2) continue;  // below f32's own grid
    const uint32_t even = finite[i].second % 2 == 0 ? finite[i].second : finite[i + 1].second;
    for (const float s : {1.0f, -1.0f}) {
      const uint32_t sign_bit = s < 0 ? sign : 0;
      ASSERT_EQ(code_of(from_float<T>(s * middle)), even | sign_bit) << middle;
      ASSERT_EQ(code_of(from_float<T>(s * std::nextafter(middle, 0.0f))), finite[i].second | sign_bit) << middle;
      ASSERT_EQ(code_of(from_float<T>(s * std::nextafter(middle, INFINITY))), finite[i + 1].second | sign_bit) << middle;
    }
  }
  // Past the largest: it, up to half a step; then infinity, or it again.
  const double largest = finite.back().first, step = largest - finite[finite.size() - 2].first;
  const uint32_t over = saturates ? finite.back().second : finite.back().second + 1;
  const auto half = static_cast<float>(largest + step / 2);
  if (std::isfinite(half)) {
    EXPECT_EQ(code_of(from_float<T>(std::nextafter(half, 0.0f))), finite.back().second);
    EXPECT_EQ(code_of(from_float<T>(half)), over);
  }
  EXPECT_EQ(code_of(from_float<T>(INFINITY)), over);
  EXPECT_EQ(code_of(from_float<T>(-INFINITY)), over | sign);
  EXPECT_EQ(code_of(from_float<T>(std::numeric_limits<float>::max())), over);
  EXPECT_EQ(code_of(from_float<T>(std::numeric_limits<float>::quiet_NaN())), sign - 1);
  EXPECT_EQ(code_of(from_float<T>(-std::numeric_limits<float>::quiet_NaN())), sign - 1);
  EXPECT_EQ(code_of(from_float<T>(std::numeric_limits<float>::denorm_min())), 0u);
}

TEST(Convert, F16) { check_format<f16>(5, 10, true, false); }
TEST(Convert, Bf16) { check_format<bf16>(8, 7, true, false); }
TEST(Convert, F8E4M3) { check_format<f8_e4m3>(4, 3, false, true); }
TEST(Convert, F8E5M2) { check_format<f8_e5m2>(5, 2, true, true); }

TEST(Convert, Pairs) {
  EXPECT_EQ(pack2<bf16>(1.0f, -2.0f), 0xc0003f80u);
  EXPECT_EQ(pack2<f16>(1.0f, -2.0f), 0xc0003c00u);
  EXPECT_EQ(low_float<bf16>(0xc0003f80u), 1.0f);
  EXPECT_EQ(high_float<bf16>(0xc0003f80u), -2.0f);
  EXPECT_EQ(low_float<f16>(0xc0003c00u), 1.0f);
  EXPECT_EQ(high_float<f16>(0xc0003c00u), -2.0f);
}

}  // namespace
}  // namespace fulmen
