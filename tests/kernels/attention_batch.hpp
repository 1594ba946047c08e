// Batches for the attention kernels in the emulator whose keys and rows have names: the same key has the same values in
// whatever segment it stands, the same row the same query, so that one problem can be posed in many ways and the bits compared.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>

#include "kernels/attention_kernels.hpp"
#include <kernels/math/convert.hpp>

namespace fulmen::attention_test {

using emulator::Buffer;
using emulator::Report;

// bf16, head size 64, four warps.
constexpr AttendSm80Config small_config(bool split_keys, bool levels, bool canonical, int warp_rows = 16, int step_keys = 64,
                                        AttendVariants variants = {}) {
  const bool mixed = split_keys && levels;
  return {.dtype = DType::bf16, .o_dtype = DType::bf16, .head_dim_qk = 64, .head_dim_vo = 64, .warps = 4, .warp_rows = warp_rows,
          .step_keys = step_keys, .stages = 2, .blocks_per_sm = 1, .split_keys = split_keys, .levels = levels,
          .canonical = canonical, .shared_warp_rows = mixed ? 16 : 0, .shared_step_keys = mixed ? 64 : 0,
          .variants = variants};
}
constexpr AttendSm80Config small_config(bool split_keys, bool levels, bool canonical, AttendVariants variants) {
  return small_config(split_keys, levels, canonical, 16, 64, variants);
}

struct Level {
  std::vector<int> rows;               // of each segment
  std::vector<std::vector<int>> keys;  // names, of each segment
};

struct Batch {
  std::vector<Level> levels;   // the last one holds the requests
  std::vector<int> row_names;  // of all rows
  int num_kv_heads = 2, group_size = 2, page_size = 16;
  bool causal = true;
  int window_left = -1;
  int workers = 3;
  int dim = 64;  // the head size

  int num_rows() const { return static_cast<int>(row_names.size()); }
  int heads() const { return num_kv_heads * group_size; }
};

inline std::vector<int> names(int first, int count) {
  std::vector<int> v(static_cast<size_t>(count));
  for (int i = 0; i < count; ++i) v[static_cast<size_t>(i)] = first + i;
  return v;
}

enum Kind : uint64_t { kQuery = 1, kKey = 2, kValue = 3 };
// Roughly normal, a function of its arguments.
inline uint16_t value(Kind kind, int name, int head, int dim) {
  uint64_t x = kind * 0x9e3779b97f4a7c15ull + static_cast<uint64_t>(name) * 0xbf58476d1ce4e5b9ull +
               static_cast<uint64_t>(head * 1024 + dim) * 0x94d049bb133111ebull;
  x ^= x >> 31, x *= 0xd6e8feb86659fd93ull, x ^= x >> 29, x *= 0xd6e8feb86659fd93ull, x ^= x >> 32;
  float sum = -6.0f;
  for (int i = 0; i < 12; ++i, x = x * 6364136223846793005ull + 1442695040888963407ull) sum += static_cast<float>(x >> 40) * 0x1p-24f;
  return from_float<bf16>(sum).bits;
}

// What the variants do, where a kernel has them.
constexpr float kSoftCap = 1.5f;
constexpr float slope_of(int head) { return 0.05f * static_cast<float>(head + 1); }
constexpr float sink_of(int head) { return 0.7f * static_cast<float>(head) - 0.5f; }
constexpr bool mask_shows(int row_name, int key_name) {
  return ((static_cast<uint32_t>(row_name) * 7919u + static_cast<uint32_t>(key_name)) * 2654435761u >> 16) % 3 != 0;
}
// A head of the tensor, turned for its position and rounded, as a RoPE of its own would leave it in memory.
inline std::vector<double> head_of(Kind kind, int name, int head, int position, bool rope, int dim) {
  std::vector<double> x;
  for (int i = 0; i < dim; ++i) x.push_back(to_float(bf16{value(kind, name, head, i)}));
  for (int i = 0; rope && i < dim / 2; ++i) {
    const double angle = position * std::pow(10000.0, -2.0 * i / dim), a = x[i], b = x[i + dim / 2];
    x[i] = to_float(from_float<bf16>(static_cast<float>(a * std::cos(angle) - b * std::sin(angle))));
    x[i + dim / 2] = to_float(from_float<bf16>(static_cast<float>(b * std::cos(angle) + a * std::sin(angle))));
  }
  return x;
}

struct Result {
  Report report;
  std::vector<uint16_t> o;  // [rows, heads, dim]
  std::vector<float> lse;   // [rows, heads]
  double worst = 0;         // error over what a plain evaluation in the same precision may err
};

// Names of all keys of each request, in order.
inline std::vector<std::vector<int>> chains(const Batch& b) {
  const Level& last = b.levels.back();
  std::vector<std::vector<int>> all;
  int row = 0;
  for (size_t r = 0; r < last.rows.size(); ++r) {
    std::vector<int> keys;
    for (const Level& level : b.levels) {
      int begin = 0;
      for (size_t s = 0; s < level.rows.size(); begin += level.rows[s++]) {
        const bool holds = &level == &last ? s == r : last.rows[r] > 0 && row >= begin && row < begin + level.rows[s];
        if (holds) keys.insert(keys.end(), level.keys[s].begin(), level.keys[s].end());
      }
    }
    all.push_back(keys);
    row += last.rows[r];
  }
  return all;
}

inline void compare(const Batch& b, const AttendVariants& variants, Result& result) {
  const auto all = chains(b);
  int row = 0;
  for (size_t r = 0; r < all.size(); ++r) {
    const int length = static_cast<int>(all[r].size()), rows = b.levels.back().rows[r];
    std::vector<std::vector<double>> keys;  // by position, then head
    for (int j = 0; rows > 0 && j < length; ++j) {
      for (int h = 0; h < b.num_kv_heads; ++h) keys.push_back(head_of(kKey, all[r][j], h, j, variants.rope, b.dim));
    }
    for (int t = 0; t < rows; ++t, ++row) {
      const int position = length - rows + t;
      const int end = b.causal ? std::clamp(position + 1, 0, length) : length;
      const int begin = b.window_left >= 0 ? std::max(0, position - b.window_left) : 0;
      for (int h = 0; h < b.heads(); ++h) {
        const size_t at = static_cast<size_t>(row) * b.heads() + h;
        const int kv_head = h / b.group_size;
        const std::vector<double> query = head_of(kQuery, b.row_names[row], h, position, variants.rope, b.dim);
        std::vector<double> s;
        std::vector<int> seen;
        for (int j = begin; j < end; ++j) {
          if (variants.custom_mask && !mask_shows(b.row_names[row], all[r][j])) continue;
          const std::vector<double>& key = keys[static_cast<size_t>(j) * b.num_kv_heads + kv_head];
          double x = 0;
          for (int i = 0; i < b.dim; ++i) x += query[i] * key[i];
          x /= std::sqrt(static_cast<double>(b.dim));
          if (variants.soft_cap) x = kSoftCap * std::tanh(x / kSoftCap);
          if (variants.alibi) x += slope_of(h) * (j - position);
          s.push_back(x);
          seen.push_back(j);
        }
        const double top = s.empty() ? -INFINITY : *std::max_element(s.begin(), s.end());
        double sum = 0;
        for (double x : s) sum += std::exp(x - top);
        if (variants.sinks && !s.empty()) sum += std::exp(sink_of(h) - top);
        if (s.empty()) {
          EXPECT_EQ(result.lse[at], -INFINITY) << "row " << row;
        } else {
          EXPECT_NEAR(result.lse[at], top + std::log(sum), variants.rope ? 4e-3 : 2e-3) << "row " << row << " head " << h;
        }
        for (int i = 0; i < b.dim; ++i) {
          double expected = 0, weight = 0;
          for (size_t n = 0; n < s.size(); ++n) {
            const double x = to_float(bf16{value(kValue, all[r][seen[n]], kv_head, i)});
            const double p = std::exp(s[n] - top) / sum;
            expected += p * x;
            weight += p * std::fabs(x);
          }
          // Rounding of o, and of each p; with RoPE a turned element may round to its neighbour.
          const double allowed = 0x1p-8 * std::fabs(expected) + (variants.rope ? 2 : 1) * 0x1p-8 * weight + 1e-5 * weight + 1e-30;
          const double error = std::fabs(to_float(bf16{result.o[at * b.dim + i]}) - expected);
          result.worst = std::max(result.worst, error <= allowed ? error / allowed : 1e9);
        }
      }
    }
  }
}

// The mask of each request over all its keys, each on a new byte.
struct Mask {
  std::vector<uint8_t> bits;
  std::vector<int32_t> indptr{0};

  explicit Mask(const Batch& b) {
    const auto all = chains(b);
    int row = 0;
    for (size_t r = 0; r < all.size(); ++r) {
      const size_t first = bits.size(), rows = static_cast<size_t>(b.levels.back().rows[r]);
      bits.resize(first + (rows * all[r].size() + 7) / 8);
      for (size_t t = 0; t < rows; ++t, ++row) {
        for (size_t j = 0; j < all[r].size(); ++j) {
          const size_t bit = t * all[r].size() + j;
          if (mask_shows(b.row_names[row], all[r][j])) bits[first + bit / 8] |= static_cast<uint8_t>(1 << bit % 8);
        }
      }
      indptr.push_back(static_cast<int32_t>(bits.size()));
    }
  }
};

struct Run {
  uint64_t seed = 1;
  int runs = 1;  // on the same scratch; all must give the same bits
  bool reference = true;
};

inline Result attend(const Batch& b, const Kernel& with, const Run& how = {}) {
  const AttendSm80Config& config = with.config;
  const int rows = b.num_rows(), heads = b.heads(), num_levels = static_cast<int>(b.levels.size());
  std::mt19937 random(5);
  // Pages of all levels in one pool, in random order.
  int num_pages = 0;
  for (const Level& level : b.levels) {
    for (const auto& keys : level.keys) num_pages += (static_cast<int>(keys.size()) + b.page_size - 1) / b.page_size;
  }
  std::vector<int> order = names(0, num_pages);
  std::shuffle(order.begin(), order.end(), random);
  const size_t token = static_cast<size_t>(b.num_kv_heads) * b.dim;
  std::vector<uint16_t> k_values(std::max(1, num_pages) * b.page_size * token, uint16_t{0x7fff}), v_values = k_values;
  std::vector<std::vector<int32_t>> tables, indptrs, lengths;
  std::vector<int> widths;
  int used = 0;
  for (const Level& level : b.levels) {
    size_t width = 1;
    for (const auto& keys : level.keys) width = std::max(width, (keys.size() + b.page_size - 1) / b.page_size);
    std::vector<int32_t> table(level.keys.size() * width, 1 << 30), indptr{0}, length;  // entries past the length are never used
    for (size_t s = 0; s < level.keys.size(); ++s) {
      const auto& keys = level.keys[s];
      indptr.push_back(indptr.back() + level.rows[s]);
      length.push_back(static_cast<int32_t>(keys.size()));
      for (size_t j = 0; j < keys.size(); ++j) {
        if (j % b.page_size == 0) table[s * width + j / b.page_size] = order[used++];
        const size_t at = (static_cast<size_t>(order[used - 1]) * b.page_size + j % b.page_size) * token;
        for (int h = 0; h < b.num_kv_heads; ++h) {
          for (int i = 0; i < b.dim; ++i) {
            k_values[at + h * b.dim + i] = value(kKey, keys[j], h, i);
            v_values[at + h * b.dim + i] = value(kValue, keys[j], h, i);
          }
        }
      }
    }
    tables.push_back(table), indptrs.push_back(indptr), lengths.push_back(length), widths.push_back(static_cast<int>(width));
  }
  std::vector<uint16_t> q_values;
  for (int name : b.row_names) {
    for (int h = 0; h < heads; ++h) {
      for (int i = 0; i < b.dim; ++i) q_values.push_back(value(kQuery, name, h, i));
    }
  }
  auto q = Buffer<uint16_t>::input("q", q_values);
  auto k = Buffer<uint16_t>::input("k", k_values);
  auto v = Buffer<uint16_t>::input("v", v_values);

  AttendSm80Params params{};
  ScheduleShape& shape = params.shape;
  size_t most_segments = 0;
  for (const Level& level : b.levels) most_segments = std::max(most_segments, level.rows.size());
  shape.max_requests = static_cast<int64_t>(most_segments) + 1;
  shape.max_rows = rows + 3;
  shape.max_qo_len = 1 << 12;
  shape.max_kv_len = 1 << 14;
  shape.num_levels = num_levels;
  shape.num_groups = 1;
  shape.unit_log2 = config.canonical ? canon::kChunkLog2 : 6;
  shape.canonical = config.canonical;
  ScheduleGroup& group = shape.groups[0];
  group.num_kv_heads = b.num_kv_heads, group.group_size = b.group_size, group.causal = b.causal, group.window_left = b.window_left;
  group.tile_q = config.tile_q(), group.num_workers = b.workers, group.cost_fixed = 1;
  if (config.mixed()) group.shared_tile_q = config.shared().tile_q();
  params.layout = attend_scratch(shape, config, b.dim);
  auto plan = Buffer<char>::output("plan", static_cast<size_t>(plan_bytes(shape)));
  auto scratch = Buffer<float>::output("scratch", static_cast<size_t>(params.layout.end));
  const auto num_counters = static_cast<size_t>(attend_num_counters(shape));
  auto counters = Buffer<uint32_t>::zeros("counters", num_counters);

  std::vector<Buffer<int32_t>> arrays;
  arrays.reserve(3 * b.levels.size());
  PlanParams planning{};
  planning.shape = shape;
  planning.lengths.num_levels = num_levels;
  planning.lengths.page_size = b.page_size;
  planning.plan = plan.data();
  const auto array = [&](const char* name, const std::vector<int32_t>& values) {
    arrays.push_back(Buffer<int32_t>::input(name, values));
    return arrays.back().data();
  };
  for (int l = 0; l < num_levels; ++l) {
    LevelLengths& in = planning.lengths.levels[l];
    in.qo_indptr = array("qo_indptr", indptrs[l]);
    in.kv_len = array("kv_len", lengths[l]);
    in.num_segments = static_cast<int32_t>(lengths[l].size());
    const auto segments = static_cast<int64_t>(lengths[l].size());
    params.kv[l] = {array("block_table", tables[l]), nullptr, nullptr, widths[l], widths[l], segments, KvForm::table_2d, 0, 0, 0, 0};
    params.v_table[l] = params.kv[l];
  }
  Result result;
  result.report = emulator::launch({.name = "plan_attention", .grid = {1}, .block = {128}, .seed = how.seed}, plan_kernel, planning);
  if (!result.report.clean()) return result;

  const auto ts = static_cast<int64_t>(token);
  params.q = q.data();
  params.k = {k.data(), b.page_size * ts, ts, b.dim, num_pages};
  params.v = {v.data(), b.page_size * ts, ts, b.dim, num_pages};
  params.plan = plan.data();
  params.scratch = scratch.data();
  params.counters = reinterpret_cast<AttendCounters*>(counters.data());
  params.q_stride_row = params.o_stride_row = static_cast<int64_t>(heads) * b.dim;
  params.q_stride_head = params.o_stride_head = b.dim;
  params.lse_stride_row = heads;
  params.lse_stride_head = 1;
  params.num_rows = rows;
  params.q_dtype = params.kv_dtype = params.o_dtype = DType::bf16;
  params.head_dim_qk = params.head_dim_vo = b.dim;
  params.page_size = b.page_size;
  params.page_log2 = exact_log2(b.page_size);
  params.v_shares_table = 1;
  params.o_scale = 1.0f, params.lse_unit = kLn2;
  params.sm_scale = 1.0f / std::sqrt(static_cast<float>(b.dim));
  std::vector<float> slope_values, sink_values;
  for (int h = 0; h < heads; ++h) slope_values.push_back(slope_of(h)), sink_values.push_back(sink_of(h));
  auto slopes = Buffer<float>::input("alibi_slopes", slope_values), sinks = Buffer<float>::input("sinks", sink_values);
  const Mask mask(b);
  auto mask_bits = Buffer<uint8_t>::input("mask", mask.bits);
  auto mask_indptr = Buffer<int32_t>::input("mask_indptr", mask.indptr);
  params.logits_soft_cap = kSoftCap;
  params.alibi_slopes = slopes.data();
  params.sinks = sinks.data();
  params.mask = mask_bits.data();
  params.mask_bytes = static_cast<int64_t>(mask.bits.size());
  params.mask_indptr = mask_indptr.data();
  params.rotary_dim = b.dim;
  params.rope_scale = 1.0f;
  for (int i = 0; i < b.dim / 2; ++i) params.rope_step[i] = static_cast<uint64_t>(std::pow(10000.0, -2.0 * i / b.dim) / (2 * M_PI) * 0x1p64);
  for (int run = 0; run < how.runs; ++run) {
    auto o = Buffer<uint16_t>::output("o", static_cast<size_t>(rows) * heads * b.dim);
    auto lse = Buffer<float>::output("lse", static_cast<size_t>(rows) * heads);
    params.o = o.data();
    params.lse = lse.data();
    result.report = emulator::launch({.name = with.name,
                                      .grid = {static_cast<unsigned>(b.workers)},
                                      .block = {static_cast<unsigned>(config.num_threads())},
                                      .shared_bytes = static_cast<size_t>(config.smem_bytes()),
                                      .seed = how.seed + static_cast<uint64_t>(run),
                                      .overlapped = true},
                                     with.run, params);
    if (!result.report.clean()) return result;
    for (size_t i = 0; i < num_counters; ++i) {
      if (counters[i] != 0) result.worst = 1e9, ADD_FAILURE() << "counter " << i << " isn't as the next run must find it";
    }
    const std::vector<uint16_t> bits(o.data(), o.data() + static_cast<size_t>(rows) * heads * b.dim);
    const std::vector<float> sums(lse.data(), lse.data() + static_cast<size_t>(rows) * heads);
    if (run > 0 && (bits != result.o || sums != result.lse)) result.worst = 1e9, ADD_FAILURE() << "run " << run << " gave other bits";
    result.o = bits;
    result.lse = sums;
  }
  if (how.reference) compare(b, config.variants, result);
  return result;
}

}  // namespace fulmen::attention_test
