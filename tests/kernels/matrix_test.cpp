// ldmatrix and mma.sync: their layouts against plain matrix multiplication, the matrix unit's additions by hand-made sums.
#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "emulator/emulator.hpp"
#include "emulator/matrix.hpp"
#include <kernels/math/convert.hpp>
#include <kernels/prelude/device.hpp>
#include <kernels/ptx/ldmatrix.cuh>
#include <kernels/ptx/memory.cuh>
#include <kernels/ptx/mma.cuh>
#include <kernels/ptx/stmatrix.cuh>

namespace fulmen {
namespace {

using emulator::Buffer;

template <class T> std::vector<T> small_integers(size_t n, uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<T> v(n);
  for (T& x : v) x = from_float<T>(static_cast<float>(static_cast<int>(random() % 17) - 8));
  return v;
}

struct MultiplyParams {
  const void* a;  // [16, 16]
  const void* b;  // kTranspose ? [16, 8] : [8, 16] (n major)
  float* c;       // [16, 8]
};

// One warp: both operands through shared memory and ldmatrix, as attention does it.
template <class T, bool kTranspose> FULMEN_DEVICE void multiply(const MultiplyParams& p) {
  T* s = dynamic_shared<T>();
  const int lane = lane_index();
  const T* a = static_cast<const T*>(p.a);
  const T* b = static_cast<const T*>(p.b);
  for (int i = lane; i < 256; i += 32) s[i] = a[i];
  for (int i = lane; i < 128; i += 32) s[256 + i] = b[i];
  __syncwarp();
  uint32_t af[4], bf[2];
  ptx::ldmatrix_x4(af, ptx::shared_address(s + (lane % 16) * 16 + lane / 16 * 8));
  if constexpr (kTranspose) {
    ptx::ldmatrix_x2_trans(bf, ptx::shared_address(s + 256 + (lane % 16) * 8));
  } else {
    ptx::ldmatrix_x2(bf, ptx::shared_address(s + 256 + (lane % 8) * 16 + lane / 8 % 2 * 8));
  }
  float d[4] = {0, 0, 0, 0};
  if constexpr (__is_same(T, bf16)) {
    ptx::mma_m16n8k16_bf16(d, af, bf[0], bf[1]);
  } else {
    ptx::mma_m16n8k16_f16(d, af, bf[0], bf[1]);
  }
  for (int i = 0; i < 4; ++i) p.c[(lane / 4 + 8 * (i / 2)) * 8 + 2 * (lane % 4) + i % 2] = d[i];
}

template <class T, bool kTranspose> void check_layout() {
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    auto a = Buffer<T>::input("a", small_integers<T>(256, static_cast<uint32_t>(seed)));
    auto b = Buffer<T>::input("b", small_integers<T>(128, static_cast<uint32_t>(seed + 1000)));
    auto c = Buffer<float>::output("c", 128);
    const MultiplyParams params{a.data(), b.data(), c.data()};
    const auto report = emulator::launch({.name = "multiply", .grid = {1}, .block = {32}, .shared_bytes = 768, .seed = seed},
                                         [](const MultiplyParams& p) { multiply<T, kTranspose>(p); }, params);
    ASSERT_TRUE(report.clean()) << report.text();
    EXPECT_EQ(report.counters.matrix_instructions, 1u);
    for (int i = 0; i < 16; ++i) {
      for (int j = 0; j < 8; ++j) {
        float expected = 0;
        for (int k = 0; k < 16; ++k) expected += to_float(a[i * 16 + k]) * to_float(kTranspose ? b[k * 8 + j] : b[j * 16 + k]);
        ASSERT_EQ(c[i * 8 + j], expected) << i << ", " << j;
      }
    }
  }
}

TEST(Matrix, LayoutBf16) { check_layout<bf16, false>(); }
TEST(Matrix, LayoutF16) { check_layout<f16, false>(); }
TEST(Matrix, LayoutTransposed) { check_layout<bf16, true>(); }

// ---- the unit's arithmetic

// One dot product of 16 terms into c.
template <class T>
float dot(const emulator::MatrixModel& model, const std::vector<float>& a, const std::vector<float>& b, float c) {
  uint16_t left[16 * 16] = {}, right[8 * 16] = {};
  for (size_t k = 0; k < a.size(); ++k) {
    left[k] = from_float<T>(a[k]).bits;
    right[k] = from_float<T>(b[k]).bits;
  }
  float out[16 * 8] = {};
  out[0] = c;
  emulator::multiply_add(model, __is_same(T, bf16) ? DType::bf16 : DType::f16, 16, 8, 16, left, right, out);
  return out[0];
}

const emulator::MatrixModel& hopper() { return emulator::kMatrixModels[1]; }
const emulator::MatrixModel& ampere() { return emulator::kMatrixModels[0]; }

// Four matrices to shared memory, each row at an address of its own, read back by plain loads.
template <bool kTranspose> void check_stmatrix() {
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    auto out = Buffer<uint16_t>::output("out", 256);
    const auto report = emulator::launch({.name = "stmatrix", .grid = {1}, .block = {32}, .shared_bytes = 512, .seed = seed},
                                         [](uint16_t* to) {
                                           uint16_t* s = dynamic_shared<uint16_t>();
                                           const int lane = lane_index(), at = lane / 4, pair = 2 * (lane % 4);
                                           uint32_t r[4];
                                           for (int i = 0; i < 4; ++i) {
                                             const int step = kTranspose ? 8 : 1, low = kTranspose ? 8 * pair + at : 8 * at + pair;
                                             r[i] = static_cast<uint32_t>(64 * i + low) | static_cast<uint32_t>(64 * i + low + step) << 16;
                                           }
                                           const uint32_t row = ptx::shared_address(s + 8 * (31 - lane));  // rows in reverse
                                           if constexpr (kTranspose) {
                                             ptx::stmatrix_x4_trans(row, r);
                                           } else {
                                             ptx::stmatrix_x4(row, r);
                                           }
                                           __syncwarp();
                                           for (int i = lane; i < 256; i += 32) to[i] = s[i];
                                         },
                                         out.data());
    ASSERT_TRUE(report.clean()) << report.text();
    for (int i = 0; i < 256; ++i) EXPECT_EQ(out[8 * (31 - i / 8) + i % 8], i);
  }
}
TEST(Matrix, StoreLayout) { check_stmatrix<false>(); }
TEST(Matrix, StoreLayoutTransposed) { check_stmatrix<true>(); }

TEST(Matrix, ResultIsCutTowardZero) {
  // 1 + 2^-24 and 1 + 3 * 2^-25 lie between 1 and its neighbour; so do their negatives.
  EXPECT_EQ((dot<f16>(hopper(), {1, 0x1p-12f}, {1, 0x1p-12f}, 0)), 1.0f);
  EXPECT_EQ((dot<f16>(hopper(), {1, 0x1.8p-12f}, {1, 0x1.4p-12f}, 0)), 1.0f);
  EXPECT_EQ((dot<f16>(hopper(), {-1, 0x1.8p-12f}, {1, -0x1.4p-12f}, 0)), -1.0f);
  EXPECT_EQ((dot<f16>(hopper(), {1, 0x1p-12f}, {1, 0x1p-11f}, 0)), 1.0f + 0x1p-23f);
}

TEST(Matrix, BitsBelowTheLargestExponent) {
  // The large terms cancel; what is left of a small one is what was kept while they were there.
  const auto kept = [](const emulator::MatrixModel& m, float small) { return dot<bf16>(m, {1, -1, small}, {1, 1, 1}, 0); };
  EXPECT_EQ(kept(hopper(), 0x1p-25f), 0x1p-25f);
  EXPECT_EQ(kept(hopper(), 0x1p-26f), 0.0f);
  EXPECT_EQ(kept(ampere(), 0x1p-24f), 0x1p-24f);
  EXPECT_EQ(kept(ampere(), 0x1p-25f), 0.0f);
  EXPECT_EQ(kept(hopper(), -0x1.8p-25f), -0x1p-25f);  // cut, not floored
  EXPECT_EQ((dot<bf16>(hopper(), {-1}, {1}, 1.0f + 0x1p-23f)), 0x1p-23f);
}

TEST(Matrix, StepsOfAnInstruction) {
  // Eight small terms after a large one: Ampere adds them in a second step, when the large ones have cancelled.
  std::vector<float> a(16, 0.0f), b(16, 1.0f);
  a[0] = 1;
  a[1] = -1;
  a[8] = 0x1p-30f;
  EXPECT_EQ(dot<bf16>(ampere(), a, b, 0), 0x1p-30f);
  EXPECT_EQ(dot<bf16>(hopper(), a, b, 0), 0.0f);
}

TEST(Matrix, ExactWhereItFits) {
  std::mt19937 random(3);
  for (int n = 0; n < 2000; ++n) {
    std::vector<float> a(16), b(16);
    double sum = static_cast<double>(random() % 1000);
    const auto c = static_cast<float>(sum);
    for (int k = 0; k < 16; ++k) {
      a[k] = static_cast<float>(static_cast<int>(random() % 255) - 127);
      b[k] = static_cast<float>(static_cast<int>(random() % 15) - 7);
      sum += static_cast<double>(a[k]) * b[k];
    }
    EXPECT_EQ(dot<bf16>(hopper(), a, b, c), static_cast<float>(sum));
    EXPECT_EQ(dot<f16>(ampere(), a, b, c), static_cast<float>(sum));
  }
}

TEST(Matrix, Special) {
  const float inf = INFINITY;
  EXPECT_EQ((dot<bf16>(hopper(), {inf, 1}, {2, 1}, 0)), inf);
  EXPECT_EQ((dot<bf16>(hopper(), {inf, 1}, {-2, 1}, 5)), -inf);
  EXPECT_TRUE(std::isnan(dot<bf16>(hopper(), {inf, -inf}, {1, 1}, 0)));
  EXPECT_TRUE(std::isnan(dot<bf16>(hopper(), {inf}, {0}, 0)));
  EXPECT_EQ(float_bits(dot<f16>(hopper(), {NAN}, {1}, 0)), 0x7fffffffu);
  EXPECT_EQ((dot<bf16>(hopper(), {1}, {1}, -inf)), -inf);
  EXPECT_EQ((dot<bf16>(hopper(), {0x1p127f}, {2}, 0x1.fffffep127f)), inf);
  // Subnormal inputs and results count.
  EXPECT_EQ((dot<f16>(hopper(), {0x1p-24f}, {0x1p-24f}, 0)), 0x1p-48f);
  EXPECT_EQ((dot<bf16>(hopper(), {0x1p-100f}, {0x1p-40f}, 0)), 0x1p-140f);
}

}  // namespace
}  // namespace fulmen
