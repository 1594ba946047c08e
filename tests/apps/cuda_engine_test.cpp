// What of the engine's GPU back end runs without a GPU: the block of a step, the search for cuBLASLt, the errors.
#include "engine/cublaslt.hpp"
#include "engine/device_step.hpp"

#include <gtest/gtest.h>

#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

namespace fulmen::engine {
namespace {

template <class T>
std::vector<T> read(const std::vector<char>& block, size_t offset, size_t count) {
  std::vector<T> values(count);
  std::memcpy(values.data(), block.data() + offset, count * sizeof(T));
  return values;
}

using Ints = std::vector<int32_t>;

struct TwoRequests {
  Ints tokens{7, 8}, positions{40, 3}, qo_indptr{0, 1, 2}, kv_len{41, 4}, page_indptr{0, 3, 4}, pages{5, 6, 9, 2};
  Ints sample_rows{1};
  std::vector<int64_t> slots{148, 35};
  std::vector<Sampling> sampling{{.temperature = 0.5f, .top_k = 3, .top_p = 0.9f, .min_p = 0.1f, .seed = 77}};
  Ints shared_qo, shared_len, shared_indptr, shared_pages;
  Step step() const {
    return {tokens, positions, slots, qo_indptr, kv_len, page_indptr, pages, sample_rows, sampling,
            shared_qo, shared_len, shared_indptr, shared_pages};
  }
};

TEST(DeviceStep, ArraysAreAlignedAndDoNotOverlap) {
  const DeviceStep layout(5, 3, 7);
  const std::vector<std::pair<size_t, size_t>> arrays = {
      {layout.slots, 40}, {layout.seeds, 24}, {layout.offsets, 24}, {layout.tokens, 20}, {layout.positions, 20},
      {layout.qo_indptr, 16}, {layout.kv_len, 12}, {layout.page_indptr, 16}, {layout.sample_rows, 12},
      {layout.temperatures, 12}, {layout.top_ks, 12}, {layout.top_ps, 12}, {layout.min_ps, 12}, {layout.pages, 28}};
  size_t end = 0;
  for (const auto& [at, bytes] : arrays) {
    EXPECT_EQ(at % 256, 0u);
    EXPECT_GE(at, end);
    end = at + bytes;
  }
  EXPECT_GE(layout.bytes(), end);
}

TEST(DeviceStep, MissingRequestsHaveNoRowsKeysOrSlots) {
  const DeviceStep layout(4, 4, 16);
  std::vector<char> block(layout.bytes(), '\x7f');
  const size_t used = layout.fill(block.data(), TwoRequests().step(), 4, 4, true);
  EXPECT_EQ(used, layout.pages + 4 * sizeof(int32_t));
  EXPECT_EQ(read<int32_t>(block, layout.tokens, 4), (Ints{7, 8, 0, 0}));
  EXPECT_EQ(read<int32_t>(block, layout.positions, 4), (Ints{40, 3, 0, 0}));
  EXPECT_EQ(read<int64_t>(block, layout.slots, 4), (std::vector<int64_t>{148, 35, -1, -1}));
  EXPECT_EQ(read<int32_t>(block, layout.qo_indptr, 5), (Ints{0, 1, 2, 2, 2}));
  EXPECT_EQ(read<int32_t>(block, layout.kv_len, 4), (Ints{41, 4, 0, 0}));
  EXPECT_EQ(read<int32_t>(block, layout.page_indptr, 5), (Ints{0, 3, 4, 4, 4}));
  EXPECT_EQ(read<int32_t>(block, layout.pages, 4), (Ints{5, 6, 9, 2}));
}

TEST(DeviceStep, SamplingStandsAtItsRowOrAtItsSample) {
  const DeviceStep layout(4, 4, 16);
  std::vector<char> block(layout.bytes(), '\x7f');
  layout.fill(block.data(), TwoRequests().step(), 4, 4, true);
  EXPECT_EQ(read<float>(block, layout.temperatures, 4), (std::vector<float>{0, 0.5f, 0, 0}));
  EXPECT_EQ(read<int32_t>(block, layout.top_ks, 4), (Ints{0, 3, 0, 0}));
  EXPECT_EQ(read<float>(block, layout.top_ps, 4), (std::vector<float>{1, 0.9f, 1, 1}));
  EXPECT_EQ(read<float>(block, layout.min_ps, 4), (std::vector<float>{0, 0.1f, 0, 0}));
  EXPECT_EQ(read<int64_t>(block, layout.seeds, 4), (std::vector<int64_t>{0, 77, 0, 0}));
  EXPECT_EQ(read<int64_t>(block, layout.offsets, 4), (std::vector<int64_t>{0, 3, 0, 0}));
  layout.fill(block.data(), TwoRequests().step(), 2, 2, false);
  EXPECT_EQ(read<int64_t>(block, layout.seeds, 2), (std::vector<int64_t>{77, 0}));
  EXPECT_EQ(read<int64_t>(block, layout.offsets, 2), (std::vector<int64_t>{3, 0}));
  EXPECT_EQ(read<int32_t>(block, layout.sample_rows, 2), (Ints{1, 0}));
}

TEST(DeviceStep, SharedBeginningsComeBeforeARequestsOwnPages) {
  TwoRequests r;
  r.shared_qo = {0, 2};
  r.shared_len = {32};
  r.shared_indptr = {0, 2};
  r.shared_pages = {11, 12};
  const DeviceStep layout(4, 4, 16);
  std::vector<char> block(layout.bytes());
  layout.fill(block.data(), r.step(), 2, 2, true);
  EXPECT_EQ(read<int32_t>(block, layout.kv_len, 2), (Ints{73, 36}));
  EXPECT_EQ(read<int32_t>(block, layout.page_indptr, 3), (Ints{0, 5, 8}));
  EXPECT_EQ(read<int32_t>(block, layout.pages, 8), (Ints{11, 12, 5, 6, 9, 11, 12, 2}));

  // A request between two segments belongs to the second one.
  r.shared_qo = {0, 1, 2};
  r.shared_len = {0, 32};
  r.shared_indptr = {0, 0, 2};
  layout.fill(block.data(), r.step(), 2, 2, true);
  EXPECT_EQ(read<int32_t>(block, layout.kv_len, 2), (Ints{41, 36}));
  EXPECT_EQ(read<int32_t>(block, layout.pages, 6), (Ints{5, 6, 9, 11, 12, 2}));
}

TEST(DeviceStep, WhatExceedsTheLimitsIsRefused) {
  std::vector<char> block(1 << 16);
  EXPECT_THROW(DeviceStep(1, 4, 16).fill(block.data(), TwoRequests().step(), 1, 4, true), std::invalid_argument);
  EXPECT_THROW(DeviceStep(4, 1, 16).fill(block.data(), TwoRequests().step(), 4, 1, true), std::invalid_argument);
  EXPECT_THROW(DeviceStep(4, 4, 3).fill(block.data(), TwoRequests().step(), 4, 4, true), std::invalid_argument);
  EXPECT_NO_THROW(DeviceStep(4, 4, 4).fill(block.data(), TwoRequests().step(), 4, 4, true));
}

std::string search_error(const char* chosen, int driver_major) {
  setenv("FULMEN_CUBLASLT", chosen, 1);
  std::string what;
  try {
    CublasLt found(driver_major);
    what = "found " + found.path();
  } catch (const std::exception& error) {
    what = error.what();
  }
  unsetenv("FULMEN_CUBLASLT");
  return what;
}

TEST(CublasLt, TheNamedFileComesFirst) {
  setenv("FULMEN_CUBLASLT", "/nowhere/libcublasLt.so", 1);
  const std::vector<std::string> candidates = CublasLt::candidates();
  unsetenv("FULMEN_CUBLASLT");
  ASSERT_FALSE(candidates.empty());
  EXPECT_EQ(candidates[0], "/nowhere/libcublasLt.so");
  EXPECT_NE(CublasLt::candidates()[0], candidates[0]);
}

// A driver of CUDA 0 makes every real cuBLASLt of the machine too new, so the search always fails.
TEST(CublasLt, EveryPlaceIsNamedWithItsReason) {
  std::string error = search_error("/nowhere/libcublasLt.so", 0);
  EXPECT_NE(error.find("/nowhere/libcublasLt.so (doesn't open)"), std::string::npos) << error;
  EXPECT_NE(error.find("libcublasLt.so.12 ("), std::string::npos) << error;
  error = search_error("lib/libcublasLt.so", 0);
  EXPECT_NE(error.find("FULMEN_CUBLASLT=lib/libcublasLt.so (not an absolute path)"), std::string::npos) << error;
  error = search_error("/lib/x86_64-linux-gnu/libc.so.6", 0);
  EXPECT_NE(error.find("libc.so.6 (is not cuBLASLt)"), std::string::npos) << error;
}

}  // namespace
}  // namespace fulmen::engine
