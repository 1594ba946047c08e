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

// ---- mutants of a ring of two stages

__attribute__((noinline)) void ring_kernel(const float* x, float* y, int rounds) {
  float* s = dynamic_shared<float>();
  const int mine = 4 * static_cast<int>(threadIdx.x);
  const auto issue = [&](int round) {
    if (round < rounds) ptx::cp_async_16(ptx::shared_address(s + round % 2 * 256 + mine), x + 256 * round + mine, false);
    ptx::cp_async_commit();
  };
  issue(0);
  float sum = 0;
  for (int round = 0; round < rounds; ++round) {
    issue(round + 1);
    ptx::cp_async_wait<1>();
    __syncthreads();  // the stage has landed for all
    sum += s[round % 2 * 256 + 255 - mine];
    __syncthreads();  // all have read it
  }
  y[threadIdx.x] = sum;
}

TEST(Mutants, RingOfTwoStages) {
  const auto outcomes = emulator::run_mutants(
      [](emulator::Mutant mutant, uint64_t seed) -> emulator::Attempt {
        std::vector<float> values(1024);
        std::iota(values.begin(), values.end(), 0.0f);
        auto in = Buffer<float>::input("in", values);
        auto out = Buffer<float>::output("out", 64);
        emulator::Attempt attempt;
        attempt.report = emulator::launch({.name = "ring", .grid = {1}, .block = {64}, .shared_bytes = 2048, .seed = seed, .record_sites = true, .mutant = mutant},
                                          ring_kernel, static_cast<const float*>(in.data()), out.data(), 4);
        for (int i = 0; i < 64 && attempt.report.clean(); ++i) {
          float sum = 0;
          for (int round = 0; round < 4; ++round) sum += values[round * 256 + 255 - 4 * i];
          attempt.right &= out[i] == sum;
        }
        return attempt;
      },
      10);
  // Two commits (the first and the loop's), a wait (removed, shifted), two barriers.
  EXPECT_GE(outcomes.size(), 5u);
  for (const auto& outcome : outcomes) EXPECT_TRUE(outcome.caught) << emulator::mutant_table({outcome});
}

}  // namespace
}  // namespace fulmen
