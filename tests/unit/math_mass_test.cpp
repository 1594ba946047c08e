#include <gtest/gtest.h>

#include <cmath>
#include <kernels/math/mass.hpp>
#include <kernels/math/radix.hpp>
#include <kernels/math/random.hpp>
#include <random>

namespace {
using namespace fulmen;

// Known answers published with Random123 for philox4x32 with ten rounds.
TEST(Philox, KnownAnswers) {
  struct Answer {
    Philox counter;
    uint32_t key[2];
    Philox out;
  };
  const Answer answers[] = {
      {{{0, 0, 0, 0}}, {0, 0}, {{0x6627e8d5u, 0xe169c58du, 0xbc57ac4cu, 0x9b00dbd8u}}},
      {{{~0u, ~0u, ~0u, ~0u}}, {~0u, ~0u}, {{0x408f276du, 0x41c83b0eu, 0xa20bc7c6u, 0x6d5451fdu}}},
      {{{0x243f6a88u, 0x85a308d3u, 0x13198a2eu, 0x03707344u}},
       {0xa4093822u, 0x299f31d0u},
       {{0xd16cfe09u, 0x94fdccebu, 0x5001e420u, 0x24126ea1u}}},
  };
  for (const Answer& a : answers) {
    const Philox out = philox4x32(a.counter, a.key[0], a.key[1]);
    for (int i = 0; i < 4; ++i) EXPECT_EQ(out.x[i], a.out.x[i]) << i;
  }
  EXPECT_EQ(random_bits(0, 0, 0, 0), 0xe169c58d6627e8d5u);
  EXPECT_NE(random_bits(1, 0, 0, 0), random_bits(0, 1, 0, 0));
}

TEST(Mass, FloorOfTheProbability) {
  EXPECT_EQ(mass_of(1.0f), kUnitMass);
  EXPECT_EQ(mass_of(2.0f), 2 * kUnitMass);
  EXPECT_EQ(mass_of(0.0f), 0u);
  EXPECT_EQ(mass_of(0x1p-40f), 1u);
  EXPECT_EQ(mass_of(0x1.fffffep-41f), 0u);
  EXPECT_EQ(mass_of(0x1p-149f), 0u);
  std::mt19937_64 random(1);
  for (int i = 0; i < 200000; ++i) {
    const float p =
        std::exp2(-static_cast<float>(random() % 45)) * bits_float(0x3f800000u | (random() & 0x7fffffu));
    if (p > 2.0f) continue;
    ASSERT_EQ(mass_of(p), static_cast<uint64_t>(std::floor(std::ldexp(static_cast<double>(p), 40)))) << p;
  }
}

TEST(Mass, FloorsAndSharesAreExact) {
  std::mt19937_64 random(2);
  for (int i = 0; i < 200000; ++i) {
    const uint64_t mass = (random() >> (random() % 41)) >> 22;
    const float least = mass_floor(mass);
    ASSERT_GE(std::ldexp(static_cast<double>(least), 40), static_cast<double>(mass));
    if (mass == 0) continue;
    ASSERT_LT(std::ldexp(static_cast<double>(std::nextafter(least, 0.0f)), 40), static_cast<double>(mass));
  }
  EXPECT_EQ(mass_share(0.5f, 10), 5u);
  EXPECT_EQ(mass_share(0.5f, 11), 6u);
  EXPECT_EQ(mass_share(0.0f, 11), 1u);
  EXPECT_EQ(mass_share(1.0f, 11), 11u);
  EXPECT_EQ(mass_share(0x1.fffffep-1f, uint64_t{1} << 62), (uint64_t{1} << 62) - (uint64_t{1} << 38));
  EXPECT_EQ(fraction_bits(0x1.fffffep-1f), 0xffffff0000000000u);
  EXPECT_EQ(inverse_temperature(0x1p-149f), 0x1.fffffep+127f);
  EXPECT_EQ(inverse_temperature(0x1p-126f), 0x1p+126f);
  EXPECT_EQ(inverse_temperature(0x1.fffffep+127f), 0x1p-126f);
  EXPECT_EQ(inverse_temperature(3.0f), 1.0f / 3.0f);
}

TEST(Mass, LogitsFollowExp) {
  for (float d = 0.0f; d > -30.0f; d -= 0.013f) {
    const double exact = std::ldexp(std::exp(static_cast<double>(d)), 40);
    EXPECT_NEAR(static_cast<double>(logit_mass(d, 0.0f, 1.0f)), exact, 1.0 + exact * 0x1p-23);
  }
  EXPECT_EQ(logit_mass(-infinity(), 3.0f, 1.0f), 0u);
  EXPECT_EQ(logit_mass(3.0f, 3.0f, 1e30f), kUnitMass);
}

TEST(OrderedKey, KeepsTheOrder) {
  const float values[] = {-infinity(), -1e30f, -1.5f, -1.0f, -0x1p-149f, 0.0f,
                          0x1p-149f,   1.0f,   1.5f,  1e30f, infinity()};
  for (size_t i = 1; i < std::size(values); ++i)
    EXPECT_LT(ordered_key(values[i - 1]), ordered_key(values[i])) << i;
  EXPECT_EQ(ordered_key(-0.0f), ordered_key(0.0f));
  for (float v : values) EXPECT_EQ(key_value(ordered_key(v)), v);
}

}  // namespace
