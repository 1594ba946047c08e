// What a launch counts, on access patterns whose cost is known, and mutants of a small pipeline.
#include <gtest/gtest.h>

#include <numeric>

#include "emulator/emulator.hpp"
#include <kernels/prelude/device.hpp>
#include <kernels/ptx/cp_async.cuh>
#include <kernels/ptx/memory.cuh>

namespace fulmen {
namespace {

using emulator::Buffer;
using emulator::Counters;

Counters shared_pattern(int stride_words, int bytes) {
  const auto report = emulator::launch({.name = "pattern", .grid = {1}, .block = {32}, .shared_bytes = 32 * 128 * 4, .count = true},
                                       [](int stride, int width) {
                                         auto* s = dynamic_shared<uint32_t>() + threadIdx.x * static_cast<unsigned>(stride);
                                         if (width == 4) *s = 1;
                                         if (width == 16) ptx::store_16(s, {1, 2, 3, 4});
                                       },
                                       stride_words, bytes);
  EXPECT_TRUE(report.clean()) << report.text();
  return report.counters;
}

TEST(Counters, BankConflicts) {
  EXPECT_EQ(shared_pattern(1, 4).shared_wavefronts, 1u);
  EXPECT_EQ(shared_pattern(2, 4).shared_wavefronts, 2u);
  EXPECT_EQ(shared_pattern(32, 4).shared_wavefronts, 32u);
  EXPECT_EQ(shared_pattern(33, 4).shared_wavefronts, 1u);
  EXPECT_EQ(shared_pattern(4, 16).shared_wavefronts, 4u);   // a quarter of the warp at a time
  EXPECT_EQ(shared_pattern(32, 16).shared_wavefronts, 32u);  // rows of 128 bytes, not swizzled
  EXPECT_EQ(shared_pattern(32, 16).shared_ideal_wavefronts, 4u);
  EXPECT_EQ(shared_pattern(1, 4).shared_bytes, 128u);
}

TEST(Counters, GlobalSectors) {
  const auto sectors = [](int stride) {
    auto in = Buffer<float>::input("in", std::vector<float>(1024, 1.0f));
    auto out = Buffer<float>::output("out", 32);
    const auto report = emulator::launch({.name = "gather", .grid = {1}, .block = {32}, .count = true},
                                         [](const float* x, float* y, int s) { y[threadIdx.x] = x[threadIdx.x * static_cast<unsigned>(s)]; },
                                         static_cast<const float*>(in.data()), out.data(), stride);
    EXPECT_TRUE(report.clean()) << report.text();
    EXPECT_EQ(report.counters.global_read_bytes, 128u);
    EXPECT_EQ(report.counters.global_write_bytes, 128u);
    return report.counters.global_sectors;
  };
  EXPECT_EQ(sectors(1), 4u + 4u);
  EXPECT_EQ(sectors(2), 8u + 4u);
  EXPECT_EQ(sectors(32), 32u + 4u);
}

}  // namespace
}  // namespace fulmen
