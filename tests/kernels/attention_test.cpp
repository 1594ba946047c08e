// The kernels of class sm80 for attention, run in the emulator: plan, then attend, on small problems with the edges in them
// (empty and one-token requests, ragged tails, page boundaries, split tiles), against plain fp64 attention.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <random>

#include "emulator/emulator.hpp"
#include <kernels/attention/attend_sm80.cuh>
#include <kernels/attention/plan.cuh>
#include <kernels/math/convert.hpp>

namespace fulmen {
namespace {

using emulator::Buffer;
using emulator::Report;

struct Case {
  const char* name;
  std::vector<int> qo_len, kv_len;
  int num_kv_heads = 2, group_size = 2, head_dim = 64, page_size = 16;
  bool causal = true;
  int window_left = -1;
  int workers = 3;
};

constexpr AttendSm80Config config(DType dtype, DType o_dtype, int head_dim, int warps, int warp_rows, int step_keys, int stages, bool split_keys) {
  return {.dtype = dtype, .o_dtype = o_dtype, .head_dim_qk = head_dim, .head_dim_vo = head_dim, .warps = warps, .warp_rows = warp_rows,
          .step_keys = step_keys, .stages = stages, .blocks_per_sm = 1, .split_keys = split_keys, .levels = false};
}
constexpr PlanConfig kPlan{.threads = 128};
__attribute__((noinline)) void plan_kernel(const PlanParams& p) { plan_attention<kPlan>(p); }

// Kernels are functions of their own so that each is compiled once.
template <AttendSm80Config kC> __attribute__((noinline)) void attend_kernel(const AttendSm80Params& p) { attend_sm80<kC>(p); }
struct Kernel {
  const char* name;
  AttendSm80Config config;
  void (*run)(const AttendSm80Params&);
};
template <AttendSm80Config kC> constexpr Kernel kernel(const char* name) { return {name, kC, attend_kernel<kC>}; }
const Kernel kPrefill = kernel<config(DType::bf16, DType::bf16, 64, 4, 16, 64, 2, false)>("attend_sm80 prefill bf16 64");
const Kernel kDecode = kernel<config(DType::bf16, DType::bf16, 64, 4, 16, 64, 3, true)>("attend_sm80 decode bf16 64");
// Wider heads, two 16-row tiles a warp, other types.
const Kernel kWidePrefill = kernel<config(DType::f16, DType::f16, 128, 4, 32, 64, 2, false)>("attend_sm80 prefill f16 128");
const Kernel kFloatPrefill = kernel<config(DType::bf16, DType::f32, 64, 4, 32, 64, 2, false)>("attend_sm80 prefill bf16 64, o f32");
const Kernel kWideDecode = kernel<config(DType::f16, DType::f16, 128, 2, 16, 32, 2, true)>("attend_sm80 decode f16 128");
const Kernel kLongHeadPrefill = kernel<config(DType::bf16, DType::bf16, 256, 4, 16, 16, 2, false)>("attend_sm80 prefill bf16 256, tiles of 16 keys");
const Kernel kShortStepDecode = kernel<config(DType::bf16, DType::bf16, 64, 8, 16, 32, 2, true)>("attend_sm80 decode bf16 64, 8 warps, steps of 32");

uint16_t narrow(DType type, float x) { return type == DType::bf16 ? from_float<bf16>(x).bits : from_float<f16>(x).bits; }
float wide(DType type, uint16_t bits) { return type == DType::bf16 ? to_float(bf16{bits}) : to_float(f16{bits}); }

struct Outcome {
  Report report;
  double worst = 0;  // error of o over what a plain evaluation in the same precision may err
};

Outcome attend(const Case& c, const Kernel& with, uint64_t seed, emulator::Mutant mutant = {}, bool record_sites = false, bool count = false) {
  const AttendSm80Config& config = with.config;
  const DType type = config.dtype;
  std::mt19937 random(7);
  std::normal_distribution<float> normal;
  const auto batch = static_cast<int>(c.qo_len.size());
  std::vector<int32_t> qo_indptr{0};
  std::vector<std::vector<int>> pages(batch);
  int num_pages = 0;
  int max_pages = 1;
  for (int r = 0; r < batch; ++r) {
    qo_indptr.push_back(qo_indptr.back() + c.qo_len[r]);
    const int n = (c.kv_len[r] + c.page_size - 1) / c.page_size;
    for (int i = 0; i < n; ++i) pages[r].push_back(num_pages++);
    max_pages = std::max(max_pages, n);
  }
  // Page ids in random order.
  std::vector<int> order(num_pages);
  for (int i = 0; i < num_pages; ++i) order[i] = i;
  std::shuffle(order.begin(), order.end(), random);
  std::vector<int32_t> table(static_cast<size_t>(batch) * max_pages, 1 << 30);  // entries past the length are never used
  for (int r = 0; r < batch; ++r) {
    for (size_t i = 0; i < pages[r].size(); ++i) table[r * max_pages + i] = pages[r][i] = order[pages[r][i]];
  }
  const int rows = qo_indptr.back(), heads = c.num_kv_heads * c.group_size;
  auto draw = [&](size_t n) {
    std::vector<uint16_t> v(n);
    for (uint16_t& x : v) x = narrow(type, normal(random));
    return v;
  };
  const std::vector<uint16_t> q_values = draw(static_cast<size_t>(rows) * heads * c.head_dim);
  // The pool: NaN wherever no key lives.
  const size_t token_stride = static_cast<size_t>(c.num_kv_heads) * c.head_dim;
  std::vector<uint16_t> k_values(std::max(1, num_pages) * c.page_size * token_stride, uint16_t{0x7fff}), v_values = k_values;
  for (int r = 0; r < batch; ++r) {
    for (int t = 0; t < c.kv_len[r]; ++t) {
      const size_t at = (static_cast<size_t>(pages[r][t / c.page_size]) * c.page_size + t % c.page_size) * token_stride;
      for (size_t i = 0; i < token_stride; ++i) {
        k_values[at + i] = narrow(type, normal(random));
        v_values[at + i] = narrow(type, normal(random));
      }
    }
  }
  auto q = Buffer<uint16_t>::input("q", q_values);
  auto k = Buffer<uint16_t>::input("k", k_values);
  auto v = Buffer<uint16_t>::input("v", v_values);
  const bool o_f32 = config.o_dtype == DType::f32;
  auto o = Buffer<uint16_t>::output("o", static_cast<size_t>(rows) * heads * c.head_dim * (o_f32 ? 2 : 1));
  auto lse = Buffer<float>::output("lse", static_cast<size_t>(rows) * heads);
  auto indptr = Buffer<int32_t>::input("qo_indptr", qo_indptr);
  auto kv_len = Buffer<int32_t>::input("kv_len", std::vector<int32_t>(c.kv_len.begin(), c.kv_len.end()));
  auto block_table = Buffer<int32_t>::input("block_table", table);

  AttendSm80Params params{};
  ScheduleShape& shape = params.shape;
  shape.max_requests = batch + 2;
  shape.max_rows = rows + 5;
  shape.max_qo_len = 1 << 12;
  shape.max_kv_len = 1 << 14;
  shape.num_levels = shape.num_groups = 1;
  shape.unit_log2 = 6;
  shape.canonical = 0;
  shape.groups[0] = {c.num_kv_heads, c.group_size, c.causal, c.window_left, config.tile_q(), c.workers, 1, 1};
  params.slots = slot_layout(shape);
  auto plan = Buffer<char>::output("plan", static_cast<size_t>(plan_bytes(shape)));
  auto scratch = Buffer<float>::output("scratch", static_cast<size_t>(num_slots(params.slots) * slot_floats(config.tile_q(), c.head_dim)));
  auto counters = Buffer<uint32_t>::zeros("counters", 2 + c.workers);

  PlanParams planning{};
  planning.shape = shape;
  planning.lengths.num_levels = 1;
  planning.lengths.page_size = c.page_size;
  planning.lengths.levels[0] = {indptr.data(), kv_len.data(), nullptr, nullptr, batch, 0, 0, 0, 0};
  planning.plan = plan.data();
  Outcome outcome;
  outcome.report = emulator::launch({.name = "plan_attention", .grid = {1}, .block = {128}, .seed = seed}, plan_kernel, planning);
  if (!outcome.report.clean()) return outcome;

  params.q = q.data();
  params.o = o.data();
  params.lse = lse.data();
  const auto ts = static_cast<int64_t>(token_stride);
  params.k = {k.data(), c.page_size * ts, ts, c.head_dim, num_pages};
  params.v = {v.data(), c.page_size * ts, ts, c.head_dim, num_pages};
  params.kv[0] = {block_table.data(), nullptr, nullptr, max_pages, max_pages, batch, KvForm::table_2d, 0, 0, 0, 0};
  params.v_table[0] = params.kv[0];
  params.plan = plan.data();
  params.scratch = scratch.data();
  params.counters = reinterpret_cast<AttendCounters*>(counters.data());
  params.page_log2 = exact_log2(c.page_size);
  params.q_stride_row = params.o_stride_row = static_cast<int64_t>(heads) * c.head_dim;
  params.q_stride_head = params.o_stride_head = c.head_dim;
  params.lse_stride_row = heads;
  params.lse_stride_head = 1;
  params.num_rows = rows;
  params.q_dtype = params.kv_dtype = type;
  params.o_dtype = config.o_dtype;
  params.head_dim_qk = params.head_dim_vo = c.head_dim;
  params.page_size = c.page_size;
  params.v_shares_table = 1;
  params.sm_scale = 1.0f / std::sqrt(static_cast<float>(c.head_dim));

  outcome.report = emulator::launch({.name = with.name,
                                     .grid = {static_cast<unsigned>(c.workers)},
                                     .block = {static_cast<unsigned>(config.num_threads())},
                                     .shared_bytes = static_cast<size_t>(config.smem_bytes()),
                                     .seed = seed,
                                     .count = count,
                                     .overlapped = true,
                                     .record_sites = record_sites,
                                     .mutant = mutant},
                                    with.run, params);
  if (!outcome.report.clean()) return outcome;
  for (int i = 0; i < 2 + c.workers; ++i) EXPECT_EQ(counters[i], 0u) << "counter " << i << " isn't as the next run must find it";

  // fp64, row by row.
  for (int r = 0; r < batch; ++r) {
    for (int t = 0; t < c.qo_len[r]; ++t) {
      const int position = c.kv_len[r] - c.qo_len[r] + t;
      const int end = c.causal ? std::clamp(position + 1, 0, c.kv_len[r]) : c.kv_len[r];
      const int begin = c.window_left >= 0 ? std::max(0, position - c.window_left) : 0;
      for (int h = 0; h < heads; ++h) {
        const size_t row = static_cast<size_t>(qo_indptr[r] + t) * heads + h;
        std::vector<double> s;
        double top = -INFINITY;
        const auto place = [&](int j) {
          return (static_cast<size_t>(pages[r][j / c.page_size]) * c.page_size + j % c.page_size) * token_stride +
                 static_cast<size_t>(h / c.group_size) * c.head_dim;
        };
        for (int j = begin; j < end; ++j) {
          double dot = 0;
          for (int i = 0; i < c.head_dim; ++i) dot += static_cast<double>(wide(type, q[row * c.head_dim + i])) * wide(type, k[place(j) + i]);
          s.push_back(dot * params.sm_scale);
          top = std::max(top, s.back());
        }
        double sum = 0;
        for (double x : s) sum += std::exp(x - top);
        const double expected_lse = s.empty() ? -INFINITY : top + std::log(sum);
        if (s.empty()) {
          EXPECT_EQ(lse[row], -INFINITY);
        } else {
          EXPECT_NEAR(lse[row], expected_lse, 2e-3) << c.name << " row " << row;
        }
        for (int i = 0; i < c.head_dim; ++i) {
          double expected = 0, weight = 0;
          for (int j = begin; j < end; ++j) {
            const double p = std::exp(s[j - begin] - top) / sum;
            expected += p * wide(type, v[place(j) + i]);
            weight += p * std::fabs(wide(type, v[place(j) + i]));
          }
          // Rounding of o, and of each p.
          const double step = type == DType::bf16 ? 0x1p-8 : 0x1p-11;
          const double allowed = step * std::fabs(expected) + step * weight + 1e-5 * weight + 1e-30;
          const size_t at = row * c.head_dim + i;
          const float found = o_f32 ? bits_float(o[2 * at] | static_cast<uint32_t>(o[2 * at + 1]) << 16) : wide(type, o[at]);
          const double error = std::fabs(found - expected);
          outcome.worst = std::max(outcome.worst, error <= 0 ? 0.0 : error / allowed);
          if (!(error <= allowed)) {
            outcome.worst = std::max(outcome.worst, 1e9);
          }
        }
      }
    }
  }
  return outcome;
}

const Case kPrefillCases[] = {
    {.name = "edges", .qo_len = {3, 0, 70, 1, 5}, .kv_len = {3, 40, 70, 65, 4}},
    {.name = "split", .qo_len = {20}, .kv_len = {300}, .workers = 4},
    {.name = "whole tiles", .qo_len = {33, 17, 40, 64, 30, 9, 80, 50, 20}, .kv_len = {33, 17, 40, 64, 30, 9, 80, 50, 20}, .workers = 1},
    {.name = "window", .qo_len = {40}, .kv_len = {130}, .window_left = 20},
    {.name = "group of 3, not causal", .qo_len = {7, 9}, .kv_len = {64, 0}, .num_kv_heads = 1, .group_size = 3, .causal = false},
    {.name = "page of 1", .qo_len = {6}, .kv_len = {70}, .page_size = 1},
};
const Case kDecodeCases[] = {
    {.name = "ragged", .qo_len = {1, 1, 1, 1}, .kv_len = {1, 0, 64, 130}},
    {.name = "split", .qo_len = {1}, .kv_len = {900}, .num_kv_heads = 1, .group_size = 4, .workers = 5},
    {.name = "boundaries", .qo_len = {1, 1, 1}, .kv_len = {15, 16, 17}},
    {.name = "speculative", .qo_len = {4, 2}, .kv_len = {100, 2}, .group_size = 4},
    {.name = "window", .qo_len = {1, 1}, .kv_len = {500, 30}, .window_left = 100},
    {.name = "several turns of each warp's ring", .qo_len = {1}, .kv_len = {1100}, .num_kv_heads = 1, .workers = 1},
};

const bool kThorough = std::getenv("FULMEN_TEST_FULL") != nullptr;

void check(Case c, const Kernel& with, uint64_t seeds = kThorough ? 50 : 3) {
  c.head_dim = with.config.head_dim_qk;
  const char* given = std::getenv("FULMEN_TEST_SEED");
  const uint64_t first = given != nullptr ? std::strtoull(given, nullptr, 10) : 1;
  for (uint64_t seed = first; seed < first + seeds; ++seed) {
    const Outcome outcome = attend(c, with, seed);
    ASSERT_TRUE(outcome.report.clean()) << c.name << "\n" << outcome.report.text();
    ASSERT_LE(outcome.worst, 1.0) << c.name;
  }
}

TEST(AttendSm80, Prefill) {
  for (const Case& c : kPrefillCases) check(c, kPrefill);
}
TEST(AttendSm80, Decode) {
  for (const Case& c : kDecodeCases) check(c, kDecode);
}

TEST(AttendSm80, OtherConfigurations) {
  for (const Kernel* k : {&kWidePrefill, &kFloatPrefill, &kLongHeadPrefill}) {
    for (const Case& c : kPrefillCases) check(c, *k, kThorough ? 10 : 1);
  }
  for (const Kernel* k : {&kWideDecode, &kShortStepDecode}) {
    for (const Case& c : kDecodeCases) check(c, *k, kThorough ? 10 : 1);
  }
}

// The true head size may be smaller than the class.
TEST(AttendSm80, HeadSizeBelowItsClass) {
  for (const int head_dim : {40, 56}) {
    Case c = kPrefillCases[0];
    c.head_dim = head_dim;
    const Outcome prefill = attend(c, kPrefill, 1);
    EXPECT_TRUE(prefill.report.clean()) << prefill.report.text();
    EXPECT_LE(prefill.worst, 1.0);
    Case d = kDecodeCases[0];
    d.head_dim = head_dim;
    const Outcome decode = attend(d, kDecode, 1);
    EXPECT_TRUE(decode.report.clean()) << decode.report.text();
    EXPECT_LE(decode.worst, 1.0);
  }
}

// The swizzle keeps ldmatrix free of bank conflicts, and K and V are read once per tile of rows.
TEST(AttendSm80, Traffic) {
  const Case c{.name = "traffic", .qo_len = {32}, .kv_len = {256}, .num_kv_heads = 1, .group_size = 2, .causal = false, .workers = 1};
  const Outcome outcome = attend(c, kPrefill, 1, {}, false, true);
  ASSERT_TRUE(outcome.report.clean()) << outcome.report.text();
  const emulator::Counters& n = outcome.report.counters;
  const uint64_t least = 2 * 256 * 64 * 2 + 64 * 64 * 2;  // K and V, Q
  EXPECT_LE(n.global_read_bytes, least + least / 4);
  EXPECT_LE(n.shared_wavefronts, n.shared_ideal_wavefronts + n.shared_ideal_wavefronts / 5);
  EXPECT_EQ(n.matrix_instructions, 64u / 16 * (256 / 8) * (64 / 16) * 2);  // scores and output
}

// Every wait, fence, commit and barrier, removed or shifted, one at a time, over all cases until one notices.
struct Equivalent {
  const char* primitive;
  const char* function;  // that holds the call
  const char* why;
};
void check_mutants(const std::vector<Case>& cases, const Kernel& with, const std::vector<Equivalent>& equivalents) {
  const auto outcomes = emulator::run_mutants(
      [&](emulator::Mutant mutant, uint64_t seed) -> emulator::Attempt {
        emulator::Attempt attempt;
        std::vector<emulator::Site> sites;
        for (const Case& c : cases) {
          const Outcome outcome = attend(c, with, seed, mutant, true);
          if (sites.size() < outcome.report.sites.size()) sites.resize(outcome.report.sites.size());
          for (size_t i = 0; i < outcome.report.sites.size(); ++i) {
            if (outcome.report.sites[i].executions != 0) sites[i] = outcome.report.sites[i];
          }
          attempt.right = outcome.worst <= 1.0;
          attempt.report = outcome.report;
          if (!attempt.report.clean() || !attempt.right) break;
        }
        attempt.report.sites = sites;
        return attempt;
      },
      kThorough ? 20 : 3);
  EXPECT_GT(outcomes.size(), 10u);
  int caught = 0;
  for (const auto& outcome : outcomes) {
    caught += outcome.caught;
    if (outcome.caught) continue;
    const std::string innermost = outcome.site.where.substr(0, outcome.site.where.find(" <- "));
    bool excused = false;
    for (const Equivalent& e : equivalents) excused |= outcome.site.primitive == e.primitive && innermost.find(e.function) != std::string::npos;
    EXPECT_TRUE(excused) << emulator::mutant_table({outcome});
  }
  EXPECT_LE(outcomes.size() - static_cast<size_t>(caught), equivalents.size());
  std::printf("%d of %zu mutants caught, the others are equivalent\n", caught, outcomes.size());
}

TEST(AttendSm80, MutantsPrefill) {
  check_mutants({std::begin(kPrefillCases), std::end(kPrefillCases)}, kPrefill,
                {{"__syncwarp", "attend_prefill_item", "the view that lane 0 writes is first read behind the loop's __syncthreads"},
                 {"fence (gpu)", "arrive", "thread 0's acq_rel atomic behind the barrier gives away all that the block wrote"}});
}
TEST(AttendSm80, MutantsDecode) {
  check_mutants({std::begin(kDecodeCases), std::end(kDecodeCases)}, kDecode,
                {{"__syncwarp", "attend_decode", "only lane 0 uses the cursor before the __syncwarp of next_warp_item"},
                 {"__syncthreads", "attend_decode", "between two uses of slots() lie the barriers of join_warps and arrive"},
                 {"fence (gpu)", "arrive", "thread 0's acq_rel atomic behind the barrier gives away all that the block wrote"}});
}

}  // namespace
}  // namespace fulmen
