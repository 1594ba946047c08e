// append_kv in the emulator: by slot and by request, aligned and not, against a plain loop.
#include <gtest/gtest.h>

#include <cstdlib>
#include <random>

#include "emulator/emulator.hpp"
#include <kernels/append_kv/append_kv.cuh>

namespace fulmen {
namespace {

using emulator::Buffer;
using emulator::Report;

constexpr AppendKvConfig kWide{.element_bytes = 2, .vector_bytes = 16, .threads = 64};
constexpr AppendKvConfig kNarrow{.element_bytes = 2, .vector_bytes = 2, .threads = 64};
__attribute__((noinline)) void wide_kernel(const AppendKvParams& p) { append_kv<kWide>(p); }
__attribute__((noinline)) void narrow_kernel(const AppendKvParams& p) { append_kv<kNarrow>(p); }

struct Case {
  const char* name;
  std::vector<int> new_tokens, kv_len;  // by request; kv_len with the new tokens
  bool by_slot;
  int heads, head_dim, page_size;
  bool wide;
  size_t offset_bytes;  // of k's rows off their alignment
};

const Case kCases[] = {
    {"slots", {5, 1, 3}, {5, 9, 40}, true, 2, 64, 16, true, 0},
    {"requests", {5, 0, 1, 3}, {5, 7, 16, 17}, false, 2, 64, 16, true, 0},
    {"odd address", {4, 2}, {6, 2}, false, 3, 40, 4, false, 2},
    {"page of 1", {3}, {3}, false, 1, 8, 1, true, 0},
    {"empty", {0, 0}, {3, 0}, false, 1, 64, 16, true, 0},
};

Report run(const Case& c, uint64_t seed) {
  std::mt19937 random(11);
  const int batch = static_cast<int>(c.new_tokens.size());
  std::vector<int32_t> indptr{0};
  int max_pages = 1, num_pages = 0;
  std::vector<int32_t> table;
  for (int r = 0; r < batch; ++r) {
    indptr.push_back(indptr.back() + c.new_tokens[r]);
    max_pages = std::max(max_pages, (c.kv_len[r] + c.page_size - 1) / c.page_size);
  }
  for (int i = 0; i < batch * max_pages; ++i) table.push_back(num_pages++);
  std::shuffle(table.begin(), table.end(), random);
  const int tokens = indptr.back();
  const int row = c.heads * c.head_dim;
  std::vector<uint16_t> k_values(static_cast<size_t>(tokens) * row + 1), v_values(k_values.size());
  for (auto* values : {&k_values, &v_values}) {
    for (uint16_t& x : *values) x = static_cast<uint16_t>(random());
  }
  const std::vector<uint16_t> before(static_cast<size_t>(num_pages) * c.page_size * row, 0x7fff);
  std::vector<uint16_t> k_expected = before, v_expected = before;
  std::vector<int64_t> slots;
  for (int r = 0; r < batch; ++r) {
    for (int i = 0; i < c.new_tokens[r]; ++i) {
      const int position = c.kv_len[r] - c.new_tokens[r] + i;
      int64_t slot = static_cast<int64_t>(table[r * max_pages + position / c.page_size]) * c.page_size + position % c.page_size;
      if (c.by_slot && i == 2) slot = -1;  // skipped
      slots.push_back(slot);
      if (slot < 0) continue;
      const size_t from = static_cast<size_t>(indptr[r] + i) * row;
      std::copy_n(k_values.begin() + static_cast<long>(from), row, k_expected.begin() + slot * row);
      std::copy_n(v_values.begin() + static_cast<long>(from), row, v_expected.begin() + slot * row);
    }
  }
  auto k = Buffer<uint16_t>::input("k", k_values, c.offset_bytes);
  auto v = Buffer<uint16_t>::input("v", v_values);
  auto k_cache = Buffer<uint16_t>::inout("k_cache", before);
  auto v_cache = Buffer<uint16_t>::inout("v_cache", before);
  auto qo = Buffer<int32_t>::input("qo_indptr", indptr);
  auto lengths = Buffer<int32_t>::input("kv_len", std::vector<int32_t>(c.kv_len.begin(), c.kv_len.end()));
  auto pages = Buffer<int32_t>::input("block_table", table);
  auto mapping = Buffer<int64_t>::input("slot_mapping", slots);

  AppendKvParams p{};
  p.k = k.data();
  p.v = v.data();
  p.k_stride_token = p.v_stride_token = row;
  p.k_stride_head = p.v_stride_head = c.head_dim;
  p.k_cache = {k_cache.data(), static_cast<int64_t>(c.page_size) * row, row, c.head_dim, num_pages};
  p.v_cache = {v_cache.data(), static_cast<int64_t>(c.page_size) * row, row, c.head_dim, num_pages};
  p.slot_mapping = c.by_slot ? mapping.data() : nullptr;
  p.qo_indptr = qo.data();
  p.kv_len = lengths.data();
  p.table = {pages.data(), nullptr, nullptr, max_pages, max_pages, batch, KvForm::table_2d, 0, 0, 0, 0};
  p.num_tokens = tokens;
  p.num_requests = batch;
  p.num_kv_heads = c.heads;
  p.head_dim_qk = p.head_dim_vo = c.head_dim;
  p.page_size = c.page_size;
  p.dtype = DType::bf16;
  Report report = emulator::launch({.name = "append_kv", .grid = {2}, .block = {64}, .seed = seed, .overlapped = true},
                                   c.wide ? wide_kernel : narrow_kernel, p);
  if (report.clean()) {
    EXPECT_EQ(k_cache.values(), k_expected) << c.name;
    EXPECT_EQ(v_cache.values(), v_expected) << c.name;
  }
  return report;
}

TEST(AppendKv, Cases) {
  const uint64_t seeds = std::getenv("FULMEN_TEST_FULL") != nullptr ? 50 : 10;
  for (const Case& c : kCases) {
    for (uint64_t seed = 1; seed <= seeds; ++seed) {
      const Report report = run(c, seed);
      ASSERT_TRUE(report.clean()) << c.name << "\n" << report.text();
    }
  }
}

// The emulator holds the kernel to what the host checks before it chooses 16-byte accesses.
TEST(AppendKv, WideAccessNeedsAlignment) {
  Case c = kCases[1];
  c.offset_bytes = 2;
  EXPECT_TRUE(run(c, 1).has(emulator::FaultKind::misaligned));
}

}  // namespace
}  // namespace fulmen
