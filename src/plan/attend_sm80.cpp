#include "plan/attend_sm80.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <iterator>
#include <optional>

#include "core/error.hpp"

namespace fulmen {
namespace {

enum class Order : uint8_t { any, free, canon };  // of arithmetic: canon has steps of 64 keys

struct TileRow {
  bool split_keys;
  int head_dim;     // class of both head sizes
  int64_t rows;     // packed rows of a request up to
  int warps, warp_rows, step_keys, stages, blocks_per_sm;
  const char* reason;
  Order order = Order::any;
  bool spares_registers = true;  // for variants whose scores ask where a row stands
  int shared_warp_rows = 0, shared_step_keys = 0;  // several levels, decode: of the tiles of shared segments
};

constexpr int64_t kAny = int64_t{1} << 62;
// The first row whose head size, rows and shared memory fit. Rows for 227 KB (Hopper), then 163 (A100) and 99 (others).
constexpr TileRow kTiles[] = {
    // decode: 16 rows, each warp a ring of its own. 64 KB and more in flight stream any HBM; four warps are enough, since
    // the memory takes longer for 64 keys than a quarter of what a warp takes to compute them.
    {true, 64, 16, 8, 16, 64, 2, 1, "16 rows; eight warps, because a key is only 256 bytes"},
    {true, 64, 16, 4, 16, 64, 2, 1, "16 rows; half the warps for less shared memory"},
    {true, 128, 16, 8, 16, 32, 2, 1, "16 rows; eight rings of 16 KB: more warps hide what a step waits for", Order::free},
    {true, 128, 16, 4, 16, 32, 2, 1, "16 rows; steps of 32 keys for less shared memory", Order::free},
    {true, 128, 16, 2, 16, 32, 2, 1, "16 rows; two warps for less shared memory", Order::free},
    {true, 128, 16, 4, 16, 64, 2, 1, "16 rows; whole key blocks", Order::canon},
    {true, 128, 16, 2, 16, 64, 2, 1, "16 rows; whole key blocks, two warps for less shared memory", Order::canon},
    {true, 256, 16, 4, 16, 32, 2, 1, "16 rows; steps of 32 keys keep a ring at 32 KB", Order::free},
    {true, 256, 16, 2, 16, 32, 2, 1, "16 rows; two warps for less shared memory", Order::free},
    {true, 256, 16, 2, 16, 64, 2, 1, "16 rows; whole key blocks, rings of 64 KB", Order::canon},
    // prefill: 32 rows a warp halve what ldmatrix reads per product; 16 where the output wouldn't fit the registers.
    {false, 64, 64, 4, 16, 64, 2, 3, "64 rows: half a tile would idle"},
    {false, 64, kAny, 4, 32, 64, 2, 2, "128 rows"},
    {false, 64, kAny, 4, 32, 64, 2, 1, "128 rows; one block for less shared memory"},
    {false, 128, 64, 4, 16, 64, 2, 2, "64 rows: half a tile would idle"},
    {false, 128, kAny, 4, 32, 64, 2, 2, "128 rows; two blocks hide each other's softmax", Order::free, false},
    {false, 128, kAny, 4, 32, 32, 2, 2, "128 rows; tiles of 32 keys leave registers to the variants"},
    {false, 128, kAny, 4, 16, 64, 2, 2, "64 rows; whole key blocks, and the stack of states needs registers", Order::canon},
    {false, 128, kAny, 4, 16, 64, 2, 1, "64 rows; whole key blocks, one block for less shared memory", Order::canon},
    {false, 128, kAny, 4, 32, 32, 2, 1, "128 rows; tiles of 32 keys for less shared memory"},
    {false, 256, kAny, 8, 16, 64, 2, 1, "128 rows, 16 a warp: O alone takes 128 registers", Order::free},
    {false, 256, kAny, 8, 16, 64, 2, 1, "128 rows, 16 a warp; whole key blocks", Order::canon},
    {false, 256, kAny, 8, 16, 32, 2, 1, "128 rows; tiles of 32 keys for less shared memory", Order::free},
    {false, 256, kAny, 4, 16, 16, 2, 1, "64 rows; tiles of 16 keys for less shared memory", Order::free},
    {true, 256, kAny, 1, 16, 64, 2, 1, "16 rows a tile, however many; whole key blocks, one ring for less shared memory", Order::canon},
};

// Several levels and requests of at most 16 packed rows: decode tiles for their own keys, prefill tiles for shared ones.
// Two blocks of 128 rows hide each other's latencies; 256 rows read a prefix half as often, but take 2% longer at best.
constexpr TileRow kMixedTiles[] = {
    {true, 64, 16, 4, 16, 64, 2, 2, "16 rows, 128 of shared segments", Order::free, true, 32, 64},
    {true, 64, 16, 4, 16, 64, 2, 1, "16 rows, 128 of shared segments, for less shared memory", Order::free, true, 32, 64},
    {true, 128, 16, 4, 16, 32, 2, 2, "16 rows, 128 of shared segments", Order::free, false, 32, 64},
    {true, 128, 16, 4, 16, 32, 2, 2, "16 rows, 128 of shared segments; steps of 32 keys leave registers to the variants",
     Order::free, true, 32, 32},
    {true, 128, 16, 4, 16, 32, 2, 1, "16 rows, 128 of shared segments, for less shared memory", Order::free, true, 32, 32},
    {true, 128, 16, 2, 16, 32, 2, 1, "16 rows, 64 of shared segments, for less shared memory", Order::free, true, 32, 32},
};

int head_dim_class(int head_dim) { return head_dim <= 64 ? 64 : head_dim <= 128 ? 128 : 256; }

AttendSm80Config config_of(const TileRow& row, const AttendProblem& p) {
  return {.dtype = p.dtype,
          .o_dtype = p.o_dtype,
          .head_dim_qk = row.head_dim,
          .head_dim_vo = row.head_dim,
          .warps = row.warps,
          .warp_rows = row.warp_rows,
          .step_keys = row.step_keys,
          .stages = row.stages,
          .blocks_per_sm = row.blocks_per_sm,
          .split_keys = row.split_keys,
          .levels = p.num_levels > 1,
          .canonical = p.canonical,
          .shared_warp_rows = row.shared_warp_rows,
          .shared_step_keys = row.shared_step_keys,
          .variants = p.variants};
}

bool suits(const TileRow& row, const AttendProblem& p) {
  if (row.order != Order::any && p.canonical != (row.order == Order::canon)) return false;
  if (p.variants.score_rows() && !row.spares_registers) return false;
  if (p.canonical && row.step_keys != canon::kKeyBlock) return false;
  return row.head_dim == head_dim_class(std::max(p.head_dim_qk, p.head_dim_vo)) && p.packed_rows <= row.rows;
}

bool fits(const AttendSm80Config& config, const Target& target) {
  constexpr int kReserved = 1024;  // of each resident block
  return config.smem_bytes() <= target.smem_per_block &&
         config.blocks_per_sm * (config.smem_bytes() + kReserved) <= target.smem_per_sm;
}

}  // namespace

std::optional<AttendChoice> find_attend_sm80(const AttendProblem& p, const Target& target) {
  const auto try_row = [&](const TileRow& row) -> std::optional<AttendChoice> {
    if (!suits(row, p)) return {};
    const AttendSm80Config config = config_of(row, p);
    if (!fits(config, target)) return {};
    return AttendChoice{config, std::min(p.num_sms * row.blocks_per_sm, AttendSm80Config::kMaxWorkers), row.reason};
  };
  if (p.num_levels > 1) {
    for (const TileRow& row : kMixedTiles) {
      if (const auto choice = try_row(row)) return choice;
    }
  }
  for (const TileRow& row : kTiles) {
    if (row.split_keys && p.num_levels > 1) continue;  // a shared segment's rows are those of many requests
    if (const auto choice = try_row(row)) return choice;
  }
  return {};
}

namespace {

std::string no_tile(const AttendProblem& p, const Target& target) {
  return fmt::format("no tile for head size {}{}{} fits {} bytes of shared memory", std::max(p.head_dim_qk, p.head_dim_vo),
                     p.canonical ? " in batch-invariant mode" : "", p.num_levels > 1 ? " with several levels" : "",
                     target.smem_per_block);
}

}  // namespace

AttendChoice choose_attend_sm80(const AttendProblem& p, const Target& target) {
  if (const auto choice = find_attend_sm80(p, target)) return *choice;
  fail(FULMEN_UNSUPPORTED, "attention: {}", no_tile(p, target));
}

AttendProblem attend_problem(const fulmen_attention_spec& spec, const ScheduleShape& shape, int num_sms) {
  int64_t packed_rows = 1;
  for (int g = 0; g < shape.num_groups; ++g) {
    packed_rows = std::max(packed_rows, std::min(shape.max_qo_len, shape.max_rows) * shape.groups[g].group_size);
  }
  return {.dtype = static_cast<DType>(spec.q_dtype),
          .o_dtype = static_cast<DType>(spec.o_dtype),
          .head_dim_qk = spec.head_dim_qk,
          .head_dim_vo = spec.head_dim_vo,
          .packed_rows = packed_rows,
          .num_levels = shape.num_levels,
          .canonical = shape.canonical != 0,
          .num_sms = num_sms,
          .variants = attend_variants(spec)};
}

AttendVariants attend_variants(const fulmen_attention_spec& spec) {
  const uint32_t features = spec.features;
  return {.soft_cap = (features & kSoftCap) != 0,
          .alibi = (features & kAlibi) != 0,
          .sinks = (features & kSinks) != 0,
          .rope = (features & kRope) != 0,
          .custom_mask = (features & kCustomMask) != 0,
          .no_softmax = (features & kNoSoftmax) != 0,
          .user = spec.variant_source != nullptr};
}

std::string user_variant_text(const fulmen_attention_spec& spec) {
  if (spec.variant_source == nullptr) return {};
  return fmt::format("#pragma once\nnamespace fulmen {{\n#line 1 \"{0}\"\n{1}\n"
                     "template <> struct UserVariant<true> : {0} {{}};\n}}  // namespace fulmen\n",
                     spec.variant_name, spec.variant_source);
}

void apply_choice(const AttendChoice& choice, ScheduleShape& shape) {
  constexpr int kUnitLog2 = 6;  // a K/V tile
  const AttendSm80Config& config = choice.config;
  shape.unit_log2 = config.canonical ? canon::kChunkLog2 : kUnitLog2;
  for (int g = 0; g < shape.num_groups; ++g) {
    ScheduleGroup& group = shape.groups[g];
    group.tile_q = config.tile_q();
    group.num_workers = choice.num_workers;
    group.cost_fixed = 1;  // a tile's rows are computed together, however few they are
    group.cost_per_row = 0;
    if (config.split_keys && !config.levels) {
      // What a decode tile costs beside its keys: its rows, and joining the warps. A worker with many short tiles takes as long as
      // those with long ones when each counts for 192 keys more (H200; with 64 it ends 12% later, with 256 it is the same).
      group.tile_cost = 3;
      group.cost_fixed = config.canonical ? canon::kChunkKeys / canon::kKeyBlock : 1;
      group.piece_units = config.canonical ? 1 : 2;
    }
    if (config.mixed()) {
      // Own keys are bound by memory, shared ones by the matrix units. Measured on an H100: see docs/kernels/attend_sm80.md.
      group.shared_tile_q = config.shared().tile_q();
      group.cost_fixed = 300;
      group.piece_units = 4;  // joining a small batch's pieces takes longer than they do
      group.cost_per_row = 1;
    }
  }
}

Unit attend_sm80_unit(const AttendSm80Config& config, std::string user_source) {
  Unit unit = make_unit<AttendSm80Params>("attend_sm80", {"kernels/attention/attend_sm80.cuh"}, "AttendSm80Config", config,
                                          "AttendSm80Params", "attend_sm80<kConfig>(params);");
  unit.user_source = std::move(user_source);
  return unit;
}

namespace {

AttendProblem problem_of(const Target& target, const fulmen_attention_spec& spec, int num_levels) {
  return {.dtype = static_cast<DType>(spec.q_dtype), .o_dtype = static_cast<DType>(spec.o_dtype),
          .head_dim_qk = spec.head_dim_qk, .head_dim_vo = spec.head_dim_vo, .packed_rows = kAny,
          .num_levels = num_levels, .canonical = spec.batch_invariant != 0, .num_sms = target.num_sms,
          .variants = attend_variants(spec)};
}

}  // namespace

std::string missing_tile(const Target& target, const fulmen_attention_spec& spec, int num_levels) {
  const AttendProblem problem = problem_of(target, spec, num_levels);
  return find_attend_sm80(problem, target) ? "" : no_tile(problem, target);
}

std::vector<Unit> attend_sm80_units(const Target& target, const fulmen_attention_spec& spec, int num_levels) {
  std::vector<AttendSm80Config> configs;
  AttendProblem problem = problem_of(target, spec, num_levels);
  for (const int64_t rows : {16, 64, 128}) {
    problem.packed_rows = rows;
    const auto choice = find_attend_sm80(problem, target);
    if (choice && std::ranges::find(configs, choice->config) == configs.end()) configs.push_back(choice->config);
  }
  std::vector<Unit> units;
  units.reserve(configs.size());
  for (const AttendSm80Config& config : configs) units.push_back(attend_sm80_unit(config, user_variant_text(spec)));
  return units;
}

std::vector<Unit> attend_sm80_units(const Target& target) {
  std::vector<Unit> units;
  for (const int32_t dtype : {FULMEN_BF16, FULMEN_F16}) {
    for (const int head_dim : {64, 128, 256}) {
      for (const int num_levels : {1, 2}) {
        fulmen_attention_spec spec{};
        spec.q_dtype = spec.kv_dtype = spec.o_dtype = dtype;
        spec.head_dim_qk = spec.head_dim_vo = head_dim;
        std::ranges::move(attend_sm80_units(target, spec, num_levels), std::back_inserter(units));
        spec.batch_invariant = 1;
        std::ranges::move(attend_sm80_units(target, spec, num_levels), std::back_inserter(units));
      }
    }
  }
  return units;
}

// One thread per request up to the block's limit, then runs of eight a thread: a span has barriers of its own.
PlanConfig choose_plan(int64_t max_requests) {
  // Up to 512: 1024 threads have 64 registers each, which the 64-bit arithmetic of the schedule exceeds.
  int threads = 128;
  while (threads < 512 && threads < max_requests) threads *= 2;
  return {.threads = threads, .each = max_requests > threads ? 8 : 1};
}

std::vector<Unit> plan_units(const Target&) {
  std::vector<Unit> units;
  for (const int64_t requests : {128, 256, 512, 4096}) units.push_back(plan_unit(choose_plan(requests)));
  return units;
}

Unit plan_unit(const PlanConfig& config) {
  return make_unit<PlanParams>("plan_attention", {"kernels/attention/plan.cuh"}, "PlanConfig", config, "PlanParams",
                               "plan_attention<kConfig>(params);");
}

}  // namespace fulmen
