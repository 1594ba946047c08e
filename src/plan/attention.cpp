#include "plan/attention.hpp"

#include <algorithm>
#include <limits>

#include "core/error.hpp"

namespace fulmen {
namespace {

// The CPU's numbers, each with its reason.
struct CpuTile {
  int32_t tile_q;            // 128: packing a key block costs what 8 rows cost; two such tiles of scores fit in L2
  int32_t cost_fixed;        // reading and packing a chunk, in rows: decode is bound by it
  int32_t cost_per_row;
  int32_t shares_per_thread; // more than one: a thread that is held up leaves shares to the others
  int32_t wide_keys;         // from here on a decoding request's heads are read together, as its pages lie in memory;
                             // shorter ones are left in single heads, so that there is work for every thread
};
constexpr CpuTile kCpuTile = {
    .tile_q = 128, .cost_fixed = 12, .cost_per_row = 1, .shares_per_thread = 4, .wide_keys = 512};

}  // namespace

void check_attention_limits(const fulmen_attention_limits& limits) {
  constexpr auto op = "attention_create: limits";
  constexpr int64_t k32 = std::numeric_limits<int32_t>::max();
  const auto check = [&](const char* name, int64_t value, int64_t low, int64_t high) {
    require(value >= low && value <= high, "{}.{}: expected {} to {}, found {}", op, name, low, high, value);
  };
  check("max_requests", limits.max_requests, 1, k32 - 1);
  check("max_rows", limits.max_rows, 1, k32 - 65536);
  check("max_qo_len", limits.max_qo_len, 0, limits.max_rows);
  check("max_kv_len", limits.max_kv_len, 1, k32 - 1024);  // room for a step of all warps
  check("num_levels", limits.num_levels, 0, FULMEN_MAX_LEVELS);
  check("num_groups", limits.num_groups, 1, FULMEN_MAX_GROUPS);
  check("num_sms", limits.num_sms, 0, 65535);
  for (int32_t g = 0; g < limits.num_groups; ++g) {
    const fulmen_attention_group& group = limits.groups[g];
    require(group.num_kv_heads > 0 && group.num_qo_heads > 0 && group.num_qo_heads % group.num_kv_heads == 0,
            "{}.groups[{}]: expected num_qo_heads to be a positive multiple of num_kv_heads, found {} and {}", op, g,
            group.num_qo_heads, group.num_kv_heads);
    require(limits.max_rows * (group.num_qo_heads / group.num_kv_heads) <= k32 - 65536,  // room to round up to a tile
            "{}.groups[{}]: expected max_rows * group size below 2^31, found {} * {}", op, g, limits.max_rows,
            group.num_qo_heads / group.num_kv_heads);
    // Bounds of the schedule's arithmetic (costs below 2^47) and of the memory's size, far beyond any machine's.
    const double units = static_cast<double>(limits.max_kv_len >> canon::kChunkLog2) + 1;
    const int64_t group_size = group.num_qo_heads / group.num_kv_heads;
    const double tiles = (static_cast<double>(limits.max_rows) * static_cast<double>(group_size) / 16 +
                          static_cast<double>(std::min(limits.max_requests, limits.max_rows))) * group.num_kv_heads;
    require(tiles * units < 0x1p39, "{}.groups[{}]: expected max_rows * num_qo_heads * max_kv_len below about 2^51, found {} * {} * {}",
            op, g, limits.max_rows, group.num_qo_heads, limits.max_kv_len);
    require(group.window_left >= -1, "{}.groups[{}].window_left: expected at least -1, found {}", op, g,
            group.window_left);
    require(group.causal == 0 || group.causal == 1, "{}.groups[{}].causal: expected 0 or 1, found {}", op, g,
            group.causal);
  }
}

ScheduleShape attention_shape(const fulmen_attention_spec& spec, const fulmen_attention_limits& limits) {
  check_attention_limits(limits);
  ScheduleShape shape{};
  shape.max_requests = limits.max_requests;
  shape.max_rows = limits.max_rows;
  shape.max_qo_len = limits.max_qo_len ? limits.max_qo_len : limits.max_rows;
  shape.max_kv_len = limits.max_kv_len;
  shape.num_levels = std::max(limits.num_levels, 1);
  shape.num_groups = limits.num_groups;
  shape.unit_log2 = canon::kChunkLog2;
  shape.canonical = spec.batch_invariant;
  for (int32_t g = 0; g < limits.num_groups; ++g) {
    const fulmen_attention_group& in = limits.groups[g];
    ScheduleGroup& out = shape.groups[g];
    out.num_kv_heads = in.num_kv_heads;
    out.group_size = in.num_qo_heads / in.num_kv_heads;
    out.causal = in.causal;
    out.window_left = in.window_left;
  }
  return shape;
}

ScheduleShape attention_shape_cpu(const fulmen_attention_spec& spec, const fulmen_attention_limits& limits,
                                  int32_t threads) {
  ScheduleShape shape = attention_shape(spec, limits);
  shape.canonical = 1;
  for (int32_t g = 0; g < shape.num_groups; ++g) {
    ScheduleGroup& group = shape.groups[g];
    group.tile_q = kCpuTile.tile_q;
    group.cost_fixed = kCpuTile.cost_fixed;
    group.cost_per_row = kCpuTile.cost_per_row;
    group.wide_rows = kCpuTile.tile_q;
    group.wide_keys = kCpuTile.wide_keys;
    group.num_workers = threads == 1 ? 1 : threads * kCpuTile.shares_per_thread;
  }
  return shape;
}

}  // namespace fulmen
