// append_kv in the emulator: by slot and by request, aligned and not, against a plain loop.
#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <random>

#include "emulator/emulator.hpp"
#include "kernels/cases.hpp"
#include "kernels/seeds.hpp"
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
  std::vector<int32_t> indptr;  // tokens of each request; the last entry and `rest` more tokens are there
  std::vector<int32_t> kv_len;  // with the new tokens; CSR form: length of the last page
  bool by_slot;
  int heads, head_dim, page_size;
  bool wide;
  size_t offset_bytes = 0;  // of k's rows off their alignment
  int rest = 0;
  std::vector<int32_t> page_indptr = {};  // CSR form
  int bad_entry = -1;                     // of the block table: no page of the pool
  int v_head_dim = 0;                     // 0: as K
};

const Case kCases[] = {
    {"slots", {0, 5, 6, 9}, {5, 9, 40}, true, 2, 64, 16, true},
    {"requests", {0, 5, 5, 6, 9}, {5, 7, 16, 17}, false, 2, 64, 16, true},
    {"odd address", {0, 4, 6}, {6, 2}, false, 3, 40, 4, false, 2},
    {"more vectors than a turn", {0, 2}, {2}, false, 9, 128, 4, true},
    {"a vector past a turn", {0, 2}, {2}, false, 5, 64, 4, true},
    {"longer V", {0, 2}, {2}, false, 9, 64, 4, true, 0, 0, {}, -1, 128},
    {"longer K", {0, 2}, {2}, false, 9, 128, 4, true, 0, 0, {}, -1, 64},
    {"page of 1", {0, 3}, {3}, false, 1, 8, 1, true},
    {"empty", {0, 0, 0}, {3, 0}, false, 1, 64, 16, true},
    {"pages and last page", {0, 3, 4, 5, 6}, {3, 1, 4, 4}, false, 1, 16, 4, true, 0, 0, {0, 2, 3, 3, 5}},
    // What is out of bounds is not written.
    {"tokens of no request", {2, 5, 6}, {4, 1}, false, 1, 16, 4, true, 0, 3},
    {"indptr below zero", {-2, 5, 6}, {4, 1}, false, 1, 16, 4, true},
    {"no page of the pool", {0, 3, 6}, {9, 6}, false, 1, 16, 4, true, 0, 0, {}, 1},
    {"pages beyond the table", {0, 3, 6}, {20, 6}, false, 1, 16, 4, true},
    {"length below the new tokens", {0, 3, 6}, {2, -1}, false, 1, 16, 4, true},
    {"last page out of bounds", {0, 3, 5, 6, 7}, {0, 5, 4, -1}, false, 1, 16, 4, true, 0, 0, {0, 2, 3, 4, 5}},
    {"falling page indptr", {0, 3, 4, 5, 6}, {3, 1, 4, 4}, false, 1, 16, 4, true, 0, 0, {0, 2, 1, 3, 99}},
    {"page indptr below zero", {0, 3, 4}, {3, 1}, false, 1, 16, 4, true, 0, 0, {-1, 2, 3}},
};

constexpr int kPagesEach = 3;  // of a request in the 2-D table

// Where token t belongs, -1: nowhere.
int64_t slot_of(const Case& c, const std::vector<int32_t>& table, int num_pages, int t) {
  const int batch = static_cast<int>(c.kv_len.size());
  int r = 0;
  while (r + 1 < batch && c.indptr[r + 1] <= t) ++r;
  if (c.indptr[r] < 0 || t < c.indptr[r] || t >= c.indptr[r + 1]) return -1;
  int64_t length = c.kv_len[r];
  int begin = r * kPagesEach, end = begin + kPagesEach;
  if (!c.page_indptr.empty()) {
    begin = c.page_indptr[r];
    end = c.page_indptr[r + 1];
    if (begin < 0 || end < begin || end > static_cast<int>(table.size())) return -1;
    const int last = c.kv_len[r];
    if (end > begin && (last < 1 || last > c.page_size)) return -1;
    length = end == begin ? 0 : (end - begin - 1) * c.page_size + last;
  }
  const int64_t position = length - c.indptr[r + 1] + t;
  if (length < 0 || position < 0 || begin + position / c.page_size >= end) return -1;
  const int id = table[begin + position / c.page_size];
  return id < 0 || id >= num_pages ? -1 : int64_t{id} * c.page_size + position % c.page_size;
}

Report run(const Case& c, uint64_t seed) {
  std::mt19937 random(11);
  const int batch = static_cast<int>(c.kv_len.size()), num_pages = batch * kPagesEach;
  std::vector<int32_t> table(static_cast<size_t>(num_pages));
  std::iota(table.begin(), table.end(), 0);
  std::shuffle(table.begin(), table.end(), random);
  if (c.bad_entry >= 0) table[c.bad_entry] = num_pages, table[c.bad_entry + kPagesEach] = -1;
  const int tokens = c.indptr.back() + c.rest;
  const int row = c.heads * c.head_dim, v_head_dim = c.v_head_dim != 0 ? c.v_head_dim : c.head_dim, v_row = c.heads * v_head_dim;
  std::vector<uint16_t> k_values(static_cast<size_t>(tokens) * row), v_values(static_cast<size_t>(tokens) * v_row);
  for (auto* values : {&k_values, &v_values}) {
    for (uint16_t& x : *values) x = static_cast<uint16_t>(random());
  }
  std::vector<uint16_t> k_expected(static_cast<size_t>(num_pages) * c.page_size * row, 0x7fff);
  std::vector<uint16_t> v_expected(static_cast<size_t>(num_pages) * c.page_size * v_row, 0x7fff);
  auto k_cache = Buffer<uint16_t>::inout("k_cache", k_expected);
  auto v_cache = Buffer<uint16_t>::inout("v_cache", v_expected);
  std::vector<int64_t> slots;
  for (int t = 0; t < tokens; ++t) {
    int64_t slot = slot_of(c, table, num_pages, t);
    if (c.by_slot && t == 2) slot = -1;  // skipped
    slots.push_back(c.by_slot && t == 1 ? num_pages * c.page_size : slot);  // past the pool
    if (slot < 0 || slots.back() != slot) continue;
    std::copy_n(k_values.begin() + t * row, row, k_expected.begin() + slot * row);
    std::copy_n(v_values.begin() + t * v_row, v_row, v_expected.begin() + slot * v_row);
  }
  auto k = Buffer<uint16_t>::input("k", k_values, c.offset_bytes);
  auto v = Buffer<uint16_t>::input("v", v_values);
  auto qo = Buffer<int32_t>::input("qo_indptr", c.indptr);
  auto lengths = Buffer<int32_t>::input("kv_len", c.kv_len);
  auto pages = Buffer<int32_t>::input("block_table", table);
  auto page_indptr = Buffer<int32_t>::input("page_indptr", c.page_indptr);
  auto mapping = Buffer<int64_t>::input("slot_mapping", slots);

  AppendKvParams p{};
  p.k = k.data();
  p.v = v.data();
  p.k_stride_token = row;
  p.v_stride_token = v_row;
  p.k_stride_head = c.head_dim;
  p.v_stride_head = v_head_dim;
  p.k_cache = {k_cache.data(), static_cast<int64_t>(c.page_size) * row, row, c.head_dim, num_pages};
  p.v_cache = {v_cache.data(), static_cast<int64_t>(c.page_size) * v_row, v_row, v_head_dim, num_pages};
  p.slot_mapping = c.by_slot ? mapping.data() : nullptr;
  p.qo_indptr = qo.data();
  if (c.page_indptr.empty()) {
    p.kv_len = lengths.data();
    p.table = {pages.data(), nullptr, nullptr, kPagesEach, kPagesEach, batch, KvForm::table_2d, 0, 0, 0, 0};
  } else {
    p.last_page_len = lengths.data();
    p.table = {pages.data(), page_indptr.data(), nullptr, 0, num_pages, 0, KvForm::csr, 0, 0, 0, 0};
  }
  p.num_tokens = tokens;
  p.num_requests = batch;
  p.num_kv_heads = c.heads;
  p.head_dim_qk = c.head_dim;
  p.head_dim_vo = v_head_dim;
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

void check(const Case& c, uint64_t seed) {
  const Report report = run(c, seed);
  ASSERT_TRUE(report.clean()) << c.name << "\n" << report.text();
}
const bool kAdded = add_cases("append_kv", kCases, check);

TEST(AppendKv, Cases) {
  for (const Case& c : kCases) {
    for (uint64_t seed = first_seed(); seed < first_seed() + num_seeds(10); ++seed) check(c, seed);
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
