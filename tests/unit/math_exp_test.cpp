#include <gtest/gtest.h>

#include <cmath>

#include <kernels/math/exp.hpp>
#include <kernels/math/log.hpp>
#include <kernels/math/rotation.hpp>

namespace {
using namespace fulmen;

double in_ulps(float got, double exact) {
  const float near = std::fabs(static_cast<float>(exact));
  return std::fabs(got - exact) / (std::nextafter(near, INFINITY) - near);
}

TEST(Exp, OneUnitInTheLastPlace) {
  double worst = 0.0;
  for (uint32_t bits = 0; bits < 0x42b20000u; bits += 101) {
    for (uint32_t sign : {0u, 0x80000000u}) {
      const float x = bits_float(bits | sign);
      if (x < -87.0f || x > 88.72283f) continue;
      worst = std::max(worst, in_ulps(exact_exp(x), std::exp(static_cast<double>(x))));
    }
  }
  EXPECT_LT(worst, 1.0);
  EXPECT_GT(worst, 0.5);
}

TEST(Exp, Ends) {
  EXPECT_EQ(exact_exp(0.0f), 1.0f);
  EXPECT_EQ(exact_exp(-0.0f), 1.0f);
  EXPECT_EQ(exact_exp(-87.5f), 0.0f);
  EXPECT_EQ(exact_exp(-infinity()), 0.0f);
  EXPECT_EQ(exact_exp(infinity()), infinity());
  EXPECT_EQ(exact_exp(89.0f), infinity());
  EXPECT_TRUE(std::isnan(exact_exp(quiet_nan())));
}

TEST(Log, OneUnitInTheLastPlace) {
  double worst = 0.0;
  for (uint32_t bits = 1; bits < 0x7f800000u; bits += 257) {
    const float x = bits_float(bits);
    worst = std::max(worst, in_ulps(exact_log(x), std::log(static_cast<double>(x))));
  }
  EXPECT_LT(worst, 1.0);
  EXPECT_EQ(exact_log(1.0f), 0.0f);
  EXPECT_EQ(exact_log(0.0f), -infinity());
  EXPECT_EQ(exact_log(infinity()), infinity());
  EXPECT_TRUE(std::isnan(exact_log(-1.0f)));
  EXPECT_TRUE(std::isnan(exact_log(quiet_nan())));
}

TEST(Rotation, AllOfTheCircle) {
  double worst = 0.0;
  for (uint64_t turn = 0; turn < (uint64_t{1} << 32); turn += 4099) {
    const Rotation r = rotation_of(static_cast<uint32_t>(turn));
    const double angle = std::ldexp(static_cast<double>(turn), -32) * 2.0 * M_PI;
    worst = std::max({worst, std::fabs(r.cos - std::cos(angle)), std::fabs(r.sin - std::sin(angle))});
  }
  EXPECT_LT(worst, 0x1p-23);
  EXPECT_EQ(rotation_of(0).cos, 1.0f);
  EXPECT_EQ(rotation_of(0).sin, 0.0f);
  EXPECT_EQ(rotation_of(0x40000000u).sin, 1.0f);
  EXPECT_EQ(rotation_of(0x80000000u).cos, -1.0f);
  EXPECT_EQ(rotation_of(0xc0000000u).sin, -1.0f);
}

TEST(Rotation, LargePositionsLoseNothing) {
  const double frequency = std::pow(500000.0, -2.0 * 3 / 128) / (2.0 * M_PI);
  const auto step = static_cast<uint64_t>(std::ldexp(frequency, 64));
  for (uint32_t position : {1u, 1000u, 131071u, 1000003u}) {
    const double turns = static_cast<double>(position) * frequency;
    const double exact = turns - std::floor(turns);
    EXPECT_NEAR(std::ldexp(turn_of(position, step), -32), exact, 1e-9) << position;
  }
}

}  // namespace
