// rope_append in the emulator: the bits of rope and of a plain copy, by slot and by request, wide and one element at a time.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <random>

#include "emulator/emulator.hpp"
#include "kernels/cases.hpp"
#include "kernels/seeds.hpp"
#include <kernels/rope/rope_append.cuh>

namespace fulmen {
namespace {

using emulator::Attempt;
using emulator::Buffer;

constexpr RopeConfig kWide{.dtype = DType::bf16, .interleaved = false, .vector_bytes = 16, .threads = 64};
constexpr RopeConfig kPairs{.dtype = DType::bf16, .interleaved = true, .vector_bytes = 16, .threads = 64};
constexpr RopeConfig kNarrow{.dtype = DType::bf16, .interleaved = false, .vector_bytes = 2, .threads = 64};
template <RopeConfig kC> __attribute__((noinline)) void rope_kernel(const RopeParams& p) { rope<kC>(p); }
template <RopeConfig kC> __attribute__((noinline)) void append_kernel(const RopeAppendParams& p) { rope_append<kC>(p); }

struct Case {
  const char* name;
  RopeConfig config;
  void (*rope)(const RopeParams&);
  void (*append)(const RopeAppendParams&);
  int head_dim, rotary_dim, value_dim;
  bool by_slot;
  unsigned grid = 3;   // of 5 tokens
  bool table = false;  // of cosines and sines
};
const Case kCases[] = {
    {"halves by slot", kWide, rope_kernel<kWide>, append_kernel<kWide>, 64, 64, 64, true},
    {"pairs by request", kPairs, rope_kernel<kPairs>, append_kernel<kPairs>, 32, 32, 48, false},
    {"partial", kWide, rope_kernel<kWide>, append_kernel<kWide>, 48, 32, 16, true},
    {"one element", kNarrow, rope_kernel<kNarrow>, append_kernel<kNarrow>, 10, 6, 7, false},
    {"a unit a head, a block without a token", kWide, rope_kernel<kWide>, append_kernel<kWide>, 16, 16, 16, true, 6},
    {"a table", kPairs, rope_kernel<kPairs>, append_kernel<kPairs>, 32, 16, 32, true, 2, true},
    {"nothing turns", kWide, rope_kernel<kWide>, append_kernel<kWide>, 16, 0, 16, true, 3, true},
};

std::vector<bf16> draw(size_t n, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<bf16> v(n);
  for (bf16& x : v) x = from_float<bf16>(normal(random));
  return v;
}

Attempt run(const Case& c, uint64_t seed) {
  constexpr int kTokens = 5, kQ = 3, kK = 2, kPages = 7, kPage = 4;
  const auto d = static_cast<size_t>(c.head_dim), dv = static_cast<size_t>(c.value_dim);
  const auto q_values = draw(kTokens * kQ * d, 1), k_values = draw(kTokens * kK * d, 2), v_values = draw(kTokens * kK * dv, 3);
  auto q = Buffer<bf16>::input("q", q_values), k = Buffer<bf16>::input("k", k_values), v = Buffer<bf16>::input("v", v_values);
  auto q_out = Buffer<bf16>::output("q_out", q_values.size()), q_want = Buffer<bf16>::output("q_want", q_values.size());
  auto k_want = Buffer<bf16>::output("k_want", k_values.size());
  const std::vector<int64_t> places{0, -1, 30, 100, 9};
  auto positions_64 = Buffer<int64_t>::constant("positions", places);
  auto positions_32 = Buffer<int32_t>::constant("positions", std::vector<int32_t>(places.begin(), places.end()));
  constexpr size_t kGap = 16;  // elements between pages
  const size_t k_page = kPage * kK * d + kGap, v_page = kPage * kK * dv + kGap;
  const std::vector<bf16> before_k(kPages * k_page, bf16{0x7fff}), before_v(kPages * v_page, bf16{0x7fff});
  auto k_cache = Buffer<bf16>::inout("k_cache", before_k), v_cache = Buffer<bf16>::inout("v_cache", before_v);
  const std::vector<int64_t> slots{9, 27, 0, -1, 14};
  // Two requests of 2 and 3 tokens, with 6 and 3 keys: positions 4, 5 and 0, 1, 2.
  const std::vector<int64_t> slots_by_request{5 * 4, 5 * 4 + 1, 3 * 4, 3 * 4 + 1, 3 * 4 + 2};
  auto mapping = Buffer<int64_t>::constant("slot_mapping", slots);
  auto indptr = Buffer<int32_t>::constant("qo_indptr", {0, 2, 5}), lengths = Buffer<int32_t>::constant("kv_len", {6, 3});
  auto table = Buffer<int32_t>::constant("table", {2, 5, 3, 6});

  RopeAppendParams p{};
  RopeParams& r = p.rope;
  r.q = q.data(), r.k = k.data(), r.q_out = q_want.data(), r.k_out = k_want.data(), r.positions_are_i64 = c.by_slot;
  r.positions = c.by_slot ? static_cast<const void*>(positions_64.data()) : positions_32.data();
  r.q_stride_head = r.k_stride_head = r.q_out_stride_head = r.k_out_stride_head = c.head_dim;
  r.q_stride_token = r.q_out_stride_token = kQ * c.head_dim;
  r.k_stride_token = r.k_out_stride_token = kK * c.head_dim;
  r.num_tokens = kTokens, r.max_position = 128, r.num_q_heads = kQ, r.num_k_heads = kK;
  r.head_dim = c.head_dim, r.rotary_dim = c.rotary_dim, r.dtype = DType::bf16, r.interleaved = c.config.interleaved;
  r.frequencies.scale = 1;
  for (int i = 0; i < c.rotary_dim / 2; ++i) {
    r.frequencies.step[i] = static_cast<uint64_t>(std::ldexp(std::pow(10000.0, -2.0 * i / c.rotary_dim) / (2 * M_PI), 64));
  }
  std::vector<float> angles;
  for (int i = 0; i < r.max_position * c.rotary_dim; ++i) angles.push_back(std::cos(0.37f * static_cast<float>(i)));
  auto table_of_angles = Buffer<float>::constant("cos_sin", angles);
  if (c.table) r.cos_sin = table_of_angles.data(), r.cos_sin_stride = c.rotary_dim;
  Attempt attempt;
  attempt.report = emulator::launch({.name = "rope", .grid = {2}, .block = {64}, .seed = seed}, c.rope, r);
  if (!attempt.report.clean()) return attempt;

  AppendKvParams& a = p.append;
  a.v = v.data(), a.v_stride_token = kK * c.value_dim, a.v_stride_head = c.value_dim;
  a.k_cache = {k_cache.data(), static_cast<int64_t>(k_page), kK * c.head_dim, c.head_dim, kPages};
  a.v_cache = {v_cache.data(), static_cast<int64_t>(v_page), kK * c.value_dim, c.value_dim, kPages};
  a.num_tokens = kTokens, a.num_requests = 2, a.num_kv_heads = kK, a.head_dim_qk = c.head_dim, a.head_dim_vo = c.value_dim;
  a.page_size = kPage, a.dtype = DType::bf16;
  if (c.by_slot) {
    a.slot_mapping = mapping.data();
  } else {
    a.qo_indptr = indptr.data(), a.kv_len = lengths.data();
    a.table = {table.data(), nullptr, nullptr, 2, 2, 2, KvForm::table_2d, 0, 0, 0, 0};
  }
  r.q_out = q_out.data(), r.k_out = nullptr;
  attempt.report = emulator::launch({.name = "rope_append", .grid = {c.grid}, .block = {64}, .seed = seed, .overlapped = true}, c.append, p);
  if (!attempt.report.clean()) return attempt;
  std::vector<bf16> want_k = before_k, want_v = before_v;
  for (size_t t = 0; t < kTokens; ++t) {
    const int64_t slot = (c.by_slot ? slots : slots_by_request)[t];
    if (slot < 0) continue;
    const auto page = static_cast<size_t>(slot) / kPage, token = static_cast<size_t>(slot) % kPage;
    std::copy_n(k_want.data() + t * kK * d, kK * d, want_k.begin() + static_cast<long>(page * k_page + token * kK * d));
    std::copy_n(v_values.begin() + static_cast<long>(t * kK * dv), kK * dv, want_v.begin() + static_cast<long>(page * v_page + token * kK * dv));
  }
  const auto same = [](const bf16* found, const std::vector<bf16>& want) {
    bool all = true;
    for (size_t i = 0; i < want.size(); ++i) all = all && found[i].bits == want[i].bits;
    return all;
  };
  attempt.right = same(k_cache.data(), want_k) && same(v_cache.data(), want_v) &&
                  same(q_out.data(), std::vector<bf16>(q_want.data(), q_want.data() + q_values.size()));
  return attempt;
}

void check(const Case& c, uint64_t seed) {
  const Attempt attempt = run(c, seed);
  ASSERT_TRUE(attempt.report.clean()) << c.name << "\n" << attempt.report.text();
  ASSERT_TRUE(attempt.right) << c.name;
}
const bool kAdded = add_cases("rope_append", kCases, check);

TEST(RopeAppend, GivesTheBitsOfRopeAndAppend) {
  for (const Case& c : kCases) {
    for (uint64_t seed = first_seed(); seed < first_seed() + num_seeds(5); ++seed) check(c, seed);
  }
}

}  // namespace
}  // namespace fulmen
