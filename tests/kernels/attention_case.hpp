// One attention call for the emulator: builds tensors with the edges in them (NaN wherever no key lives, pages in random order,
// guard bands), runs plan and attend, and compares with plain fp64 attention. What the kernel's config says (variants,
// layout, types) decides what the problem is; a Case gives shapes and values.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <random>

#include "kernels/attention_kernels.hpp"
#include "kernels/cases.hpp"
#include "kernels/seeds.hpp"
#include <kernels/math/convert.hpp>

namespace fulmen::attend_test {

using emulator::Buffer;
using emulator::Report;

struct Case {
  const char* name;
  std::vector<int> qo_len, kv_len;
  int num_kv_heads = 2, group_size = 2;
  int head_dim = 0;    // 0: the kernel's class
  int page_size = 16;  // 0: ragged
  bool causal = true;
  int window_left = -1;
  int workers = 3;
  int head_dim_vo = 0;     // 0: head_dim
  float sm_scale = 0.0f;   // 0: 1 / sqrt(head_dim)
  float o_scale = 1.0f;
  bool base2 = false;      // the lse
  float soft_cap = 1.5f;   // where the kernel has it; so for the others
  float sink_step = 0.7f;  // from head to head
  int rotary_dim = 0;      // 0: head_dim
  bool interleaved = false;
  bool short_mask = false;  // the last request's mask is a byte too short
  double (*user_logit)(int key, int position, int head, double s) = nullptr;  // what a user's variant does; -inf: hidden
  std::vector<unsigned char> user_params = {};
};

constexpr AttendSm80Config config(DType dtype, DType o_dtype, int head_dim, int warps, int warp_rows, int step_keys, int stages,
                                  bool split_keys, AttendVariants variants = {}, bool general = false) {
  return {.dtype = dtype, .o_dtype = o_dtype, .head_dim_qk = head_dim, .head_dim_vo = head_dim, .warps = warps, .warp_rows = warp_rows,
          .step_keys = step_keys, .stages = stages, .blocks_per_sm = 1, .split_keys = split_keys, .levels = false,
          .variants = variants, .general = general};
}
using attention_test::kernel;
using attention_test::Kernel;
using attention_test::kPlan;
using attention_test::plan_kernel;

inline uint16_t narrow(DType type, float x) { return type == DType::bf16 ? from_float<bf16>(x).bits : from_float<f16>(x).bits; }
inline float wide(DType type, uint16_t bits) { return type == DType::bf16 ? to_float(bf16{bits}) : to_float(f16{bits}); }

struct Outcome {
  Report report;
  double worst = 0;  // error of o over what a plain evaluation in the same precision may err
  StatusRecord status{};
  bool all_nan = true;
};

// A 16-bit tensor in rows of one head each, wherever they lie.
struct Strides {
  int64_t row, head;
};

// The custom mask of all requests, each on a new byte. About two thirds are visible; row 0 of a request sees nothing.
struct Mask {
  std::vector<uint8_t> bits;
  std::vector<int32_t> indptr{0};

  static bool visible(int request, int row, int key) {
    const uint32_t hash = static_cast<uint32_t>((request * 131 + row) * 7919 + key) * 2654435761u;
    return row != 0 && (hash >> 16) % 3 != 0;
  }
  explicit Mask(const Case& c) {
    for (size_t r = 0; r < c.qo_len.size(); ++r) {
      const size_t first = bits.size();
      bits.resize(first + (static_cast<size_t>(c.qo_len[r]) * c.kv_len[r] + 7) / 8);
      for (int i = 0; i < c.qo_len[r]; ++i) {
        for (int j = 0; j < c.kv_len[r]; ++j) {
          const size_t bit = static_cast<size_t>(i) * c.kv_len[r] + j;
          if (visible(static_cast<int>(r), i, j)) bits[first + bit / 8] |= static_cast<uint8_t>(1 << bit % 8);
        }
      }
      if (c.short_mask && r + 1 == c.qo_len.size()) bits.pop_back();
      indptr.push_back(static_cast<int32_t>(bits.size()));
    }
  }
};

// A vector of one head, turned for a position and rounded again, as a RoPE of its own would leave it in memory.
inline std::vector<double> turned(const Case& c, DType type, std::vector<double> x, int position) {
  const int rotary = c.rotary_dim == 0 ? c.head_dim : c.rotary_dim;
  for (int i = 0; i < rotary / 2; ++i) {
    const double angle = position * std::pow(10000.0, -2.0 * i / rotary);
    double& a = x[static_cast<size_t>(c.interleaved ? 2 * i : i)];
    double& b = x[static_cast<size_t>(c.interleaved ? 2 * i + 1 : i + rotary / 2)];
    const double turned_a = a * std::cos(angle) - b * std::sin(angle), turned_b = b * std::cos(angle) + a * std::sin(angle);
    a = wide(type, narrow(type, static_cast<float>(turned_a)));
    b = wide(type, narrow(type, static_cast<float>(turned_b)));
  }
  return x;
}

inline Outcome attend(Case c, const Kernel& with, uint64_t seed, bool count = false) {
  const AttendSm80Config& config = with.config;
  const AttendVariants& variants = config.variants;
  const DType type = config.dtype;
  if (c.head_dim == 0) c.head_dim = config.head_dim_qk;
  std::mt19937 random(7);
  std::normal_distribution<float> normal;
  const auto batch = static_cast<int>(c.qo_len.size());
  const int vo_dim = c.head_dim_vo == 0 ? c.head_dim : c.head_dim_vo;
  const bool ragged = c.page_size == 0;
  const int page_size = std::max(1, c.page_size);
  std::vector<int32_t> qo_indptr{0}, kv_indptr{0};
  std::vector<std::vector<int>> pages(batch);
  int num_pages = 0;
  int max_pages = 1;
  for (int r = 0; r < batch; ++r) {
    qo_indptr.push_back(qo_indptr.back() + c.qo_len[r]);
    kv_indptr.push_back(kv_indptr.back() + c.kv_len[r]);
    const int n = (c.kv_len[r] + page_size - 1) / page_size;
    for (int i = 0; i < n; ++i) pages[r].push_back(num_pages++);
    max_pages = std::max(max_pages, n);
  }
  // Page ids in random order.
  std::vector<int> order(num_pages);
  for (int i = 0; i < num_pages; ++i) order[i] = i;
  if (!ragged) std::shuffle(order.begin(), order.end(), random);
  std::vector<int32_t> table(static_cast<size_t>(batch) * max_pages, 1 << 30);  // entries past the length are never used
  for (int r = 0; r < batch; ++r) {
    for (size_t i = 0; i < pages[r].size(); ++i) table[r * max_pages + i] = pages[r][i] = order[pages[r][i]];
  }
  const int rows = qo_indptr.back(), heads = c.num_kv_heads * c.group_size;
  // A general kernel meets odd strides and addresses; between the rows lies NaN.
  const int extra = config.general ? 3 : 0;
  const size_t offset = config.general ? 2 : 0;
  const auto strides = [&](int num_heads, int dim) { return Strides{num_heads * (dim + extra) + extra, dim + extra}; };
  const Strides q_at = strides(heads, c.head_dim), o_at = strides(heads, vo_dim);
  const Strides k_at = strides(c.num_kv_heads, c.head_dim), v_at = strides(c.num_kv_heads, vo_dim);
  constexpr uint16_t kNan = 0x7fff;
  const auto fill = [&](std::vector<uint16_t>& to, int64_t at, int dim) {
    for (int i = 0; i < dim; ++i) to[static_cast<size_t>(at + i)] = narrow(type, normal(random));
  };
  std::vector<uint16_t> q_values(static_cast<size_t>(rows * q_at.row), kNan);
  for (int row = 0; row < rows; ++row) {
    for (int h = 0; h < heads; ++h) fill(q_values, row * q_at.row + h * q_at.head, c.head_dim);
  }
  std::vector<uint16_t> k_values(static_cast<size_t>(std::max(1, num_pages) * page_size * k_at.row), kNan);
  std::vector<uint16_t> v_values(static_cast<size_t>(std::max(1, num_pages) * page_size * v_at.row), kNan);
  const auto slot = [&](int r, int j) { return static_cast<int64_t>(pages[r][j / page_size]) * page_size + j % page_size; };
  for (int r = 0; r < batch; ++r) {
    for (int t = 0; t < c.kv_len[r]; ++t) {
      for (int h = 0; h < c.num_kv_heads; ++h) {
        fill(k_values, slot(r, t) * k_at.row + h * k_at.head, c.head_dim);
        fill(v_values, slot(r, t) * v_at.row + h * v_at.head, vo_dim);
      }
    }
  }
  auto q = Buffer<uint16_t>::input("q", q_values, offset);
  auto k = Buffer<uint16_t>::input("k", k_values, offset);
  auto v = Buffer<uint16_t>::input("v", v_values, offset);
  const bool o_f32 = config.o_dtype == DType::f32;
  auto o = Buffer<uint16_t>::output("o", static_cast<size_t>(rows * o_at.row) * (o_f32 ? 2 : 1), o_f32 ? 2 * offset : offset);
  auto lse = Buffer<float>::output("lse", static_cast<size_t>(rows) * heads);
  auto indptr = Buffer<int32_t>::input("qo_indptr", qo_indptr);
  auto kv_len = Buffer<int32_t>::input("kv_len", std::vector<int32_t>(c.kv_len.begin(), c.kv_len.end()));
  auto block_table = Buffer<int32_t>::input("block_table", table);
  auto kv_rows = Buffer<int32_t>::input("kv_indptr", kv_indptr);
  std::vector<float> slope_values, sink_values;
  for (int h = 0; h < heads; ++h) {
    slope_values.push_back(0.05f * static_cast<float>(h + 1));
    sink_values.push_back(c.sink_step * static_cast<float>(h) - 0.5f);
  }
  auto slopes = Buffer<float>::input("alibi_slopes", slope_values);
  auto sinks = Buffer<float>::input("sinks", sink_values);
  const Mask mask(c);
  auto mask_bits = Buffer<uint8_t>::input("mask", mask.bits);
  auto mask_indptr = Buffer<int32_t>::input("mask_indptr", mask.indptr);

  AttendSm80Params params{};
  ScheduleShape& shape = params.shape;
  shape.max_requests = batch + 2;
  shape.max_rows = rows + 5;
  shape.max_qo_len = 1 << 12;
  shape.max_kv_len = 1 << 14;
  shape.num_levels = shape.num_groups = 1;
  shape.unit_log2 = 6;
  shape.canonical = 0;
  shape.groups[0] = {c.num_kv_heads, c.group_size, c.causal, c.window_left, config.tile_q(), c.workers, 1, 1, 0, 0};
  params.layout = attend_scratch(shape, config, vo_dim);
  auto plan = Buffer<char>::output("plan", static_cast<size_t>(plan_bytes(shape)));
  auto scratch = Buffer<float>::output("scratch", static_cast<size_t>(params.layout.end));
  auto counters = Buffer<uint32_t>::zeros("counters", 2 + c.workers);

  PlanParams planning{};
  planning.shape = shape;
  planning.lengths.num_levels = 1;
  planning.lengths.page_size = page_size;
  planning.lengths.levels[0] = {indptr.data(), kv_len.data(), nullptr, nullptr, batch, 0, 0, 0, 0};
  planning.plan = plan.data();
  Outcome outcome;
  outcome.report = emulator::launch({.name = "plan_attention", .grid = {1}, .block = {128}, .seed = seed}, plan_kernel, planning);
  if (!outcome.report.clean()) return outcome;

  params.q = q.data();
  params.o = o.data();
  params.lse = lse.data();
  params.k = {k.data(), page_size * k_at.row, ragged ? 0 : k_at.row, k_at.head, num_pages};
  params.v = {v.data(), page_size * v_at.row, ragged ? 0 : v_at.row, v_at.head, num_pages};
  params.kv[0] = {block_table.data(), nullptr, nullptr, max_pages, max_pages, batch, KvForm::table_2d, 0, 0, 0, 0};
  if (ragged) params.kv[0] = {nullptr, kv_rows.data(), nullptr, 0, 0, 0, KvForm::ragged, 0, 0, 0, 0};
  params.v_table[0] = params.kv[0];
  params.plan = plan.data();
  params.scratch = scratch.data();
  params.counters = reinterpret_cast<AttendCounters*>(counters.data());
  params.page_log2 = exact_log2(page_size);
  params.q_stride_row = q_at.row, params.q_stride_head = q_at.head;
  params.o_stride_row = o_at.row, params.o_stride_head = o_at.head;
  params.lse_stride_row = heads;
  params.lse_stride_head = 1;
  params.num_rows = rows;
  params.q_dtype = params.kv_dtype = type;
  params.o_dtype = config.o_dtype;
  params.head_dim_qk = c.head_dim;
  params.head_dim_vo = vo_dim;
  params.page_size = page_size;
  params.v_shares_table = 1;
  params.variant_bytes = static_cast<int32_t>(c.user_params.size());
  std::copy(c.user_params.begin(), c.user_params.end(), params.variant);
  params.o_scale = c.o_scale, params.lse_unit = c.base2 ? 1.0f : kLn2;
  params.sm_scale = c.sm_scale != 0.0f ? c.sm_scale : 1.0f / std::sqrt(static_cast<float>(c.head_dim));
  params.logits_soft_cap = c.soft_cap;
  params.alibi_slopes = slopes.data();
  params.sinks = sinks.data();
  params.mask = mask_bits.data();
  params.mask_bytes = static_cast<int64_t>(mask.bits.size());
  params.mask_indptr = mask_indptr.data();
  params.rotary_dim = c.rotary_dim == 0 ? c.head_dim : c.rotary_dim;
  params.rope_interleaved = c.interleaved;
  params.rope_scale = 1.0f;
  for (int i = 0; i < params.rotary_dim / 2; ++i) {
    params.rope_step[i] = static_cast<uint64_t>(std::pow(10000.0, -2.0 * i / params.rotary_dim) / (2 * M_PI) * 0x1p64);
  }

  outcome.report = emulator::launch({.name = with.name,
                                     .grid = {static_cast<unsigned>(c.workers)},
                                     .block = {static_cast<unsigned>(config.num_threads())},
                                     .shared_bytes = static_cast<size_t>(config.smem_bytes()),
                                     .seed = seed,
                                     .count = count,
                                     .overlapped = true},
                                    with.run, params);
  if (!outcome.report.clean()) return outcome;
  outcome.status = PlanView(shape, plan.data()).header->status;
  for (int i = 0; i < 2 + c.workers; ++i) EXPECT_EQ(counters[i], 0u) << "counter " << i << " isn't as the next run must find it";

  // fp64, row by row.
  const auto vector_at = [&](const Buffer<uint16_t>& from, int64_t at, int dim) {
    std::vector<double> x;
    for (int i = 0; i < dim; ++i) x.push_back(wide(type, from[static_cast<size_t>(at + i)]));
    return x;
  };
  const auto found_at = [&](int64_t at) {
    const auto i = static_cast<size_t>(at);
    return o_f32 ? bits_float(o[2 * i] | static_cast<uint32_t>(o[2 * i + 1]) << 16) : wide(type, o[i]);
  };
  const double step = type == DType::bf16 ? 0x1p-8 : 0x1p-11;
  for (int r = 0; r < batch; ++r) {
    std::vector<std::vector<double>> keys(static_cast<size_t>(c.kv_len[r] * c.num_kv_heads));
    for (int j = 0; j < c.kv_len[r]; ++j) {
      for (int h = 0; h < c.num_kv_heads; ++h) {
        auto key = vector_at(k, slot(r, j) * k_at.row + h * k_at.head, c.head_dim);
        keys[static_cast<size_t>(j * c.num_kv_heads + h)] = variants.rope ? turned(c, type, key, j) : key;
      }
    }
    for (int t = 0; t < c.qo_len[r]; ++t) {
      const int position = c.kv_len[r] - c.qo_len[r] + t;
      const int end = c.causal ? std::clamp(position + 1, 0, c.kv_len[r]) : c.kv_len[r];
      const int begin = c.window_left >= 0 ? std::max(0, position - c.window_left) : 0;
      for (int h = 0; h < heads; ++h) {
        const int64_t row = qo_indptr[r] + t;
        const int kv_head = h / c.group_size;
        std::vector<double> query = vector_at(q, row * q_at.row + h * q_at.head, c.head_dim);
        if (variants.rope) query = turned(c, type, query, position);
        const auto lse_at = static_cast<size_t>(row * heads + h);
        if (variants.custom_mask && c.short_mask && r + 1 == batch && end > begin) {
          EXPECT_TRUE(std::isnan(lse[lse_at])) << c.name << ": row " << row;
          for (int i = 0; i < vo_dim; ++i) EXPECT_TRUE(std::isnan(found_at(row * o_at.row + h * o_at.head + i))) << c.name << ": row " << row;
          continue;
        }
        std::vector<int> seen;
        std::vector<double> s;
        for (int j = begin; j < end; ++j) {
          if (variants.custom_mask && !Mask::visible(r, t, j)) continue;
          double x = 0;
          const std::vector<double>& key = keys[static_cast<size_t>(j * c.num_kv_heads + kv_head)];
          for (int i = 0; i < c.head_dim; ++i) x += query[i] * key[i];
          x *= params.sm_scale;
          if (variants.soft_cap) x = c.soft_cap * std::tanh(x / c.soft_cap);
          if (variants.alibi) x += slope_values[h] * (j - position);
          if (c.user_logit != nullptr) x = c.user_logit(j, position, h, x);
          if (x == -INFINITY) continue;
          seen.push_back(j);
          s.push_back(x);
        }
        double top = s.empty() ? 0.0 : *std::max_element(s.begin(), s.end());
        double sum = 1.0;
        if (!variants.no_softmax) {
          sum = 0.0;
          for (double x : s) sum += std::exp(x - top);
          if (variants.sinks && !s.empty()) sum += std::exp(sink_values[h] - top);
          const double expected_lse = s.empty() ? -INFINITY : (top + std::log(sum)) / (c.base2 ? std::log(2.0) : 1.0);
          const float found_lse = lse[lse_at];
          if (std::isnan(expected_lse)) {
            EXPECT_TRUE(std::isnan(found_lse)) << c.name;
          } else if (s.empty()) {
            EXPECT_EQ(found_lse, -INFINITY) << c.name << " row " << row;
          } else {
            EXPECT_NEAR(found_lse, expected_lse, variants.rope ? 4e-3 : 2e-5 * (1 + std::fabs(expected_lse))) << with.name << ", " << c.name << ": row " << row << " head " << h;
          }
        }
        for (int i = 0; i < vo_dim; ++i) {
          double expected = 0, weight = 0;
          for (size_t n = 0; n < s.size(); ++n) {
            const double p = c.o_scale * (variants.no_softmax ? s[n] : std::exp(s[n] - top) / sum);
            const double value = wide(type, v[static_cast<size_t>(slot(r, seen[n]) * v_at.row + kv_head * v_at.head + i)]);
            expected += p * value;
            weight += std::fabs(p * value);
          }
          const float found = found_at(row * o_at.row + h * o_at.head + i);
          // Rounding of o, and of each p; with RoPE a turned element may round to its neighbour.
          const double allowed = step * std::fabs(expected) + (variants.rope ? 2 : 1) * step * weight + 1e-5 * weight + 1e-30;
          outcome.all_nan = outcome.all_nan && std::isnan(found);
          const double error = std::fabs(found - expected);
          outcome.worst = std::max(outcome.worst, error <= 0 ? 0.0 : error / allowed);
          if (!(error <= allowed)) {
            outcome.worst = std::max(outcome.worst, 1e9);
          }
        }
      }
    }
  }
  // Nothing between the rows was written.
  for (int row = 0; row < rows && config.general; ++row) {
    for (int i = 0; i < extra; ++i) {
      EXPECT_EQ(o[static_cast<size_t>((row + 1) * o_at.row - 1 - i) * (o_f32 ? 2 : 1)], 0xffff) << c.name << ": padding of row " << row;
    }
  }
  EXPECT_TRUE(o.guards_intact());
  return outcome;
}

inline void check_seed(const Case& c, const Kernel& with, uint64_t seed) {
  const Outcome outcome = attend(c, with, seed);
  ASSERT_TRUE(outcome.report.clean()) << with.name << ", " << c.name << "\n" << outcome.report.text();
  ASSERT_LE(outcome.worst, 1.0) << with.name << ", " << c.name;
}
inline void check(const Case& c, const Kernel& with, uint64_t seeds = num_seeds(3)) {
  for (uint64_t seed = first_seed(); seed < first_seed() + seeds && !testing::Test::HasFailure(); ++seed) check_seed(c, with, seed);
}
inline const Case kPrefillCases[] = {
    {.name = "edges", .qo_len = {3, 0, 70, 1, 5}, .kv_len = {3, 40, 70, 65, 4}},
    {.name = "split", .qo_len = {20}, .kv_len = {300}, .workers = 4},
    {.name = "whole tiles", .qo_len = {33, 17, 40, 64, 30, 9, 80, 50, 20}, .kv_len = {33, 17, 40, 64, 30, 9, 80, 50, 20}, .workers = 1},
    {.name = "window", .qo_len = {40}, .kv_len = {130}, .window_left = 20},
    {.name = "group of 3, not causal", .qo_len = {7, 9}, .kv_len = {64, 0}, .num_kv_heads = 1, .group_size = 3, .causal = false},
    {.name = "page of 1", .qo_len = {6}, .kv_len = {70}, .page_size = 1},
    {.name = "window, not causal, ragged", .qo_len = {9, 20}, .kv_len = {100, 70}, .page_size = 0, .causal = false, .window_left = 30},
    {.name = "scaled, lse in base 2", .qo_len = {20, 3}, .kv_len = {200, 3}, .workers = 4, .o_scale = -0.375f, .base2 = true},
};
inline const Case kDecodeCases[] = {
    {.name = "ragged", .qo_len = {1, 1, 1, 1}, .kv_len = {1, 0, 64, 130}},
    {.name = "split", .qo_len = {1}, .kv_len = {900}, .num_kv_heads = 1, .group_size = 4, .workers = 5},
    {.name = "boundaries", .qo_len = {1, 1, 1}, .kv_len = {15, 16, 17}},
    {.name = "speculative", .qo_len = {4, 2}, .kv_len = {100, 2}, .group_size = 4},
    {.name = "window", .qo_len = {1, 1}, .kv_len = {500, 30}, .window_left = 100},
    {.name = "several turns of each warp's ring", .qo_len = {1}, .kv_len = {1100}, .num_kv_heads = 1, .workers = 1},
    {.name = "scaled, lse in base 2", .qo_len = {1, 1}, .kv_len = {700, 20}, .workers = 5, .o_scale = -0.375f, .base2 = true},
};

// The cases of a kernel, by its name.
inline bool add_attention_cases(const Kernel& with) {
  const auto run = [&with](const Case& c, uint64_t seed) { check_seed(c, with, seed); };
  return with.config.split_keys ? add_cases(with.name, kDecodeCases, run) : add_cases(with.name, kPrefillCases, run);
}
template <size_t kCount> bool add_attention_cases(const Kernel (&kernels)[kCount]) {
  return std::ranges::all_of(kernels, [](const Kernel& with) { return add_attention_cases(with); });
}

}  // namespace fulmen::attend_test
