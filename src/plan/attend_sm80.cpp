#include "plan/attend_sm80.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <iterator>

#include "core/error.hpp"

namespace fulmen {
namespace {

struct TileRow {
  bool split_keys;
  int head_dim;     // class of both head sizes
  int64_t rows;     // packed rows of a request up to
  int warps, warp_rows, step_keys, stages, blocks_per_sm;
  const char* reason;
  bool spares_registers = true;  // for variants that ask where a row stands
};

constexpr int64_t kAny = int64_t{1} << 62;
// The first row whose head size, rows and shared memory fit. Rows for 227 KB (Hopper), then 163 (A100) and 99 (others).
constexpr TileRow kTiles[] = {
    // decode: 16 rows, each warp a ring of its own. 64 KB and more in flight stream any HBM; four warps are enough, since
    // the memory takes longer for 64 keys than a quarter of what a warp takes to compute them.
    {true, 64, 16, 8, 16, 64, 2, 1, "16 rows; eight warps, because a key is only 256 bytes"},
    {true, 64, 16, 4, 16, 64, 2, 1, "16 rows; half the warps for less shared memory"},
    {true, 128, 16, 8, 16, 32, 2, 1, "16 rows; eight rings of 16 KB: more warps hide what a step waits for"},
    {true, 128, 16, 4, 16, 32, 2, 1, "16 rows; steps of 32 keys for less shared memory"},
    {true, 128, 16, 2, 16, 32, 2, 1, "16 rows; two warps for less shared memory"},
    {true, 256, 16, 4, 16, 32, 2, 1, "16 rows; steps of 32 keys keep a ring at 32 KB"},
    {true, 256, 16, 2, 16, 32, 2, 1, "16 rows; two warps for less shared memory"},
    // prefill: 32 rows a warp halve what ldmatrix reads per product; 16 where the output wouldn't fit the registers.
    {false, 64, 64, 4, 16, 64, 2, 3, "64 rows: half a tile would idle"},
    {false, 64, kAny, 4, 32, 64, 2, 2, "128 rows"},
    {false, 64, kAny, 4, 32, 64, 2, 1, "128 rows; one block for less shared memory"},
    {false, 128, 64, 4, 16, 64, 2, 2, "64 rows: half a tile would idle"},
    {false, 128, kAny, 4, 32, 64, 2, 2, "128 rows; two blocks hide each other's softmax", false},
    {false, 128, kAny, 4, 32, 32, 2, 2, "128 rows; tiles of 32 keys leave registers to the variants"},
    {false, 128, kAny, 4, 32, 32, 2, 1, "128 rows; tiles of 32 keys for less shared memory"},
    {false, 256, kAny, 8, 16, 64, 2, 1, "128 rows, 16 a warp: O alone takes 128 registers"},
    {false, 256, kAny, 8, 16, 32, 2, 1, "128 rows; tiles of 32 keys for less shared memory"},
    {false, 256, kAny, 4, 16, 16, 2, 1, "64 rows; tiles of 16 keys for less shared memory"},
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
          .variants = p.variants};
}

bool fits(const AttendSm80Config& config, const Target& target) {
  constexpr int kReserved = 1024;  // of each resident block
  return config.smem_bytes() <= target.smem_per_block &&
         config.blocks_per_sm * (config.smem_bytes() + kReserved) <= target.smem_per_sm;
}

}  // namespace

AttendChoice choose_attend_sm80(const AttendProblem& p, const Target& target) {
  const int head_dim = head_dim_class(std::max(p.head_dim_qk, p.head_dim_vo));
  for (const TileRow& row : kTiles) {
    if (row.head_dim != head_dim || p.packed_rows > row.rows) continue;
    if (p.variants.read_rows() && !row.spares_registers) continue;
    if (row.split_keys && p.num_levels > 1) continue;  // a shared segment's rows are those of many requests
    const AttendSm80Config config = config_of(row, p);
    if (fits(config, target)) return {config, p.num_sms * row.blocks_per_sm, row.reason};
  }
  fail(FULMEN_UNSUPPORTED, "attention: no tile for head size {} fits {} bytes of shared memory", head_dim,
       target.smem_per_block);
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
  shape.unit_log2 = kUnitLog2;
  for (int g = 0; g < shape.num_groups; ++g) {
    ScheduleGroup& group = shape.groups[g];
    group.tile_q = choice.config.tile_q();
    group.num_workers = choice.num_workers;
    group.cost_fixed = 1;  // a tile's rows are computed together, however few they are
    group.cost_per_row = 0;
  }
}

Unit attend_sm80_unit(const AttendSm80Config& config, std::string user_source) {
  Unit unit = make_unit<AttendSm80Params>("attend_sm80", {"kernels/attention/attend_sm80.cuh"}, "AttendSm80Config", config,
                                          "AttendSm80Params", "attend_sm80<kConfig>(params);");
  unit.user_source = std::move(user_source);
  return unit;
}

std::vector<Unit> attend_sm80_units(const Target& target, const fulmen_attention_spec& spec, int num_levels) {
  std::vector<Unit> units;
  AttendSm80Config last{};
  for (const int64_t rows : {16, 64, 128}) {
    const AttendProblem problem{.dtype = static_cast<DType>(spec.q_dtype), .o_dtype = static_cast<DType>(spec.o_dtype),
                                .head_dim_qk = spec.head_dim_qk, .head_dim_vo = spec.head_dim_vo, .packed_rows = rows,
                                .num_levels = num_levels, .num_sms = target.num_sms,
                                .variants = attend_variants(spec)};
    const AttendSm80Config config = choose_attend_sm80(problem, target).config;
    if (config != last) units.push_back(attend_sm80_unit(config, user_variant_text(spec)));
    last = config;
  }
  return units;
}

std::vector<Unit> attend_sm80_units(const Target& target) {
  std::vector<Unit> units;
  for (const int32_t dtype : {FULMEN_BF16, FULMEN_F16}) {
    for (const int head_dim : {64, 128, 256}) {
      fulmen_attention_spec spec{};
      spec.q_dtype = spec.kv_dtype = spec.o_dtype = dtype;
      spec.head_dim_qk = spec.head_dim_vo = head_dim;
      std::ranges::move(attend_sm80_units(target, spec, 1), std::back_inserter(units));
    }
  }
  return units;
}

// One thread per request up to the block's limit.
PlanConfig choose_plan(int64_t max_requests) {
  // Up to 512: 1024 threads have 64 registers each, which the 64-bit arithmetic of the schedule exceeds.
  int threads = 128;
  while (threads < 512 && threads < max_requests + 1) threads *= 2;
  return {.threads = threads};
}

std::vector<Unit> plan_units(const Target&) {
  std::vector<Unit> units;
  for (const int threads : {128, 256, 512}) units.push_back(plan_unit({.threads = threads}));
  return units;
}

Unit plan_unit(const PlanConfig& config) {
  return make_unit<PlanParams>("plan_attention", {"kernels/attention/plan.cuh"}, "PlanConfig", config, "PlanParams",
                               "plan_attention<kConfig>(params);");
}

}  // namespace fulmen
