#include "engine/dequantize.hpp"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <stdexcept>

namespace fulmen::engine {
namespace {

/// The value of a binary16 number by its definition, in doubles.
double half_value(uint16_t half) {
  const int exponent = half >> 10 & 31;
  const int fraction = half & 1023;
  const double sign = half & 0x8000 ? -1 : 1;
  if (exponent == 31) return fraction ? std::nan("") : sign * INFINITY;
  return sign * (exponent ? std::ldexp(1024 + fraction, exponent - 25) : std::ldexp(fraction, -24));
}

TEST(Half, WidensEveryValue) {
  for (uint32_t half = 0; half < 65536; ++half) {
    const float wide = half_to_float(static_cast<uint16_t>(half));
    const double expected = half_value(static_cast<uint16_t>(half));
    if (std::isnan(expected)) {
      EXPECT_TRUE(std::isnan(wide)) << half;
    } else {
      ASSERT_EQ(static_cast<double>(wide), expected) << half;
      ASSERT_EQ(std::signbit(wide), half >= 0x8000) << half;
      ASSERT_EQ(float_to_half(wide), half);
    }
  }
}

/// Between two neighbours: below the middle the lower, above it the upper, in the middle the even one.
TEST(Half, NarrowsToNearestEven) {
  for (uint32_t low = 0; low < 0x7c00; ++low) {
    const double below = half_value(static_cast<uint16_t>(low));
    const double above = low + 1 == 0x7c00 ? 65536.0 : half_value(static_cast<uint16_t>(low + 1));
    const auto middle = static_cast<float>((below + above) / 2);  // exact: one more bit
    const auto even = static_cast<uint16_t>(low % 2 ? low + 1 : low);
    ASSERT_EQ(float_to_half(middle), even) << low;
    ASSERT_EQ(float_to_half(std::nextafter(middle, 0.0f)), low);
    ASSERT_EQ(float_to_half(std::nextafter(middle, 1e30f)), low + 1);
    ASSERT_EQ(float_to_half(-middle), even | 0x8000);
  }
  EXPECT_EQ(float_to_half(1e30f), 0x7c00);
  EXPECT_EQ(float_to_half(-INFINITY), 0xfc00);
  EXPECT_EQ(float_to_half(std::numeric_limits<float>::denorm_min()), 0);
  EXPECT_EQ(float_to_half(std::nanf("")) & 0x7fff, 0x7e00);
}

struct Stored {
  std::vector<std::byte> bytes;
  GgufTensor tensor;
};

Stored store(GgufDtype dtype, int64_t columns, int64_t rows, uint32_t seed) {
  const GgufBlock block = dtype_block(dtype);
  Stored out;
  out.bytes.resize(static_cast<size_t>(columns * rows / block.elements * block.bytes));
  std::mt19937 random(seed);
  for (std::byte& b : out.bytes) b = static_cast<std::byte>(random());
  if (dtype != GgufDtype::f32 && dtype != GgufDtype::bf16) {
    // Finite scales: no exponent of ones in any 16-bit word that can be one.
    const size_t step = block.elements == 1 ? 2 : static_cast<size_t>(block.bytes);
    for (size_t i = 0; i < out.bytes.size(); i += step) {
      out.bytes[i + 1] &= std::byte{0xbf};
      if (dtype == GgufDtype::q4_1) out.bytes[i + 3] &= std::byte{0xbf};
    }
  }
  out.tensor = {.name = "t", .dtype = dtype, .rank = 2, .dims = {columns, rows, 1, 1}, .data = out.bytes};
  return out;
}

/// One element by the format's definition.
float element(const GgufTensor& tensor, int64_t index) {
  const GgufBlock block = dtype_block(tensor.dtype);
  const auto* in =
      reinterpret_cast<const unsigned char*>(tensor.data.data()) + index / block.elements * block.bytes;
  const auto i = static_cast<int>(index % block.elements);
  const auto word = [&](int at) { return static_cast<uint16_t>(in[at] | in[at + 1] << 8); };
  const auto half = [&](int at) { return static_cast<float>(half_value(word(at))); };
  const auto nibble = [&](int at) { return i < 16 ? in[at + i] & 15 : in[at + i - 16] >> 4; };
  switch (tensor.dtype) {
    case GgufDtype::f32:
      return std::bit_cast<float>(static_cast<uint32_t>(word(0)) | static_cast<uint32_t>(word(2)) << 16);
    case GgufDtype::bf16:
      return std::bit_cast<float>(static_cast<uint32_t>(word(0)) << 16);
    case GgufDtype::f16:
      return half(0);
    case GgufDtype::q8_0:
      return half(0) * static_cast<float>(static_cast<signed char>(in[2 + i]));
    case GgufDtype::q4_0:
      return half(0) * static_cast<float>(nibble(2) - 8);
    case GgufDtype::q4_1:
      return half(0) * static_cast<float>(nibble(4)) + half(2);
  }
  return 0;
}

class Dequantize : public testing::TestWithParam<GgufDtype> {};

TEST_P(Dequantize, IsExact) {
  const bool blocks = dtype_block(GetParam()).elements > 1;
  for (const int64_t columns : {blocks ? 32 : 1, blocks ? 96 : 33, 64}) {
    const Stored stored = store(GetParam(), columns, 7, 5);
    const GgufTensor& tensor = stored.tensor;
    const int64_t first = 2, rows = 4, count = rows * columns;
    constexpr float kGuard = 123456.0f;
    std::vector<float> wide(static_cast<size_t>(count) + 1, kGuard);
    dequantize_to_float(tensor, first, rows, wide.data());
    std::vector<uint16_t> narrow(static_cast<size_t>(count) + 1, 0xbeef);
    const bool all_finite = dequantize_to_half(tensor, first, rows, narrow.data());
    bool expect_finite = true;
    for (int64_t i = 0; i < count; ++i) {
      const float expected = element(tensor, first * columns + i);
      const uint16_t half = float_to_half(expected);
      const float found = wide[static_cast<size_t>(i)];
      // Which NaN it is may change on its way.
      ASSERT_TRUE(std::isnan(expected) ? std::isnan(found)
                                       : found == expected && std::signbit(found) == std::signbit(expected))
          << i << ": " << found << ", expected " << expected;
      ASSERT_EQ(narrow[static_cast<size_t>(i)], half) << i;
      expect_finite &= (half & 0x7c00) != 0x7c00;
    }
    EXPECT_EQ(all_finite, expect_finite);
    EXPECT_EQ(wide.back(), kGuard);
    EXPECT_EQ(narrow.back(), 0xbeef);
  }
}

TEST_P(Dequantize, RefusesRowsOutside) {
  const Stored stored = store(GetParam(), 32, 3, 6);
  float out[32];
  EXPECT_NO_THROW(dequantize_to_float(stored.tensor, 3, 0, out));
  EXPECT_THROW(dequantize_to_float(stored.tensor, 3, 1, out), std::out_of_range);
  EXPECT_THROW(dequantize_to_float(stored.tensor, -1, 1, out), std::out_of_range);
  EXPECT_THROW(dequantize_to_float(stored.tensor, 0, std::numeric_limits<int64_t>::max(), out),
               std::out_of_range);
}

INSTANTIATE_TEST_SUITE_P(Formats, Dequantize,
                         testing::Values(GgufDtype::f32, GgufDtype::f16, GgufDtype::bf16, GgufDtype::q8_0,
                                         GgufDtype::q4_0, GgufDtype::q4_1),
                         [](const auto& info) { return std::string(dtype_name(info.param)); });

}  // namespace
}  // namespace fulmen::engine
