// The schedule of a step, for all layers: plan_serial of schedule.hpp with its loops over segments in parallel.
//
// grid      one block
// formula   row_begin = running maximum of qo_indptr without entries out of bounds; tile and cost prefixes = exclusive
//           sums over segments of what schedule.hpp says a segment costs
// smem      one value per warp for the scans | the first fault
// barriers  __syncthreads between the passes: each reads what the one before wrote to plan memory
#pragma once

#include <kernels/attention/plan.config.hpp>
#include <kernels/prelude/device.hpp>
#include <kernels/ptx/griddep.cuh>

namespace fulmen {

template <int kThreads>
struct PlanSmem {
  int64_t warps[kThreads / 32];
  unsigned long long first_fault;  // level and segment of the first fault, as one number
};

struct PlanSum {
  FULMEN_FN static int64_t join(int64_t a, int64_t b) { return a + b; }
};
struct PlanMax {
  FULMEN_FN static int64_t join(int64_t a, int64_t b) { return max(a, b); }
};

// Inclusive scan over the block; `total` is the last thread's value.
template <class Op, int kThreads>
FULMEN_FN int64_t scan_block(int64_t x, PlanSmem<kThreads>& smem, int64_t& total) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
  for (int d = 1; d < 32; d <<= 1) {
    const int64_t other = __shfl_up_sync(0xffffffffu, x, d);
    if (lane >= d) x = Op::join(other, x);
  }
  __syncthreads();  // the last scan's values have been read
  if (lane == 31) smem.warps[warp] = x;
  __syncthreads();
  int64_t before = 0;
  total = smem.warps[0];
  for (int w = 1; w < kThreads / 32; ++w) {
    if (w == warp) before = total;
    total = Op::join(total, smem.warps[w]);
  }
  return warp > 0 ? Op::join(before, x) : x;
}

template <PlanConfig kC>
FULMEN_FN void plan_rows(const PlanParams& params, const PlanView& plan, PlanSmem<kC.threads>& smem, int32_t level) {
  const LevelLengths& in = params.lengths.levels[level];
  int64_t carry = 0;
  for (int32_t base = 0; base <= in.num_segments; base += kC.threads) {
    const int32_t s = base + static_cast<int32_t>(threadIdx.x);
    int64_t entry = 0;
    if (s <= in.num_segments) entry = repaired_row(params.shape, load_index(in.qo_indptr, in.qo_indptr_i64, s), 0);
    int64_t total;
    const int64_t running = max(carry, scan_block<PlanMax, kC.threads>(entry, smem, total));
    if (s <= in.num_segments) plan.row_begin(level)[s] = running;
    carry = max(carry, total);
  }
}

template <PlanConfig kC>
FULMEN_FN void plan_prefixes(const PlanParams& params, const PlanView& plan, PlanSmem<kC.threads>& smem, int32_t g) {
  const ScheduleShape& shape = params.shape;
  const ScheduleGroup& group = shape.groups[g];
  int64_t cost = 0, tiles = 0;
  for (int32_t level = 0; level < shape.num_levels; ++level) {
    const int32_t n = params.lengths.levels[level].num_segments;
    int64_t level_cost = 0, level_tiles = 0;
    for (int32_t base = 0; base < n; base += kC.threads) {
      const int32_t s = base + static_cast<int32_t>(threadIdx.x);
      int64_t my_cost = 0, my_tiles = 0;
      if (s < n) {
        const Segment segment = load_segment(shape, plan, level, s);
        my_cost = segment_head_cost(shape, group, segment) * group.num_kv_heads;
        my_tiles = static_cast<int64_t>(num_tiles(group, segment)) * group.num_kv_heads;
      }
      int64_t total_cost, total_tiles;
      const int64_t cost_end = scan_block<PlanSum, kC.threads>(my_cost, smem, total_cost);
      const int64_t tiles_end = scan_block<PlanSum, kC.threads>(my_tiles, smem, total_tiles);
      if (s < n) {
        plan.cost_prefix(g, level)[s] = level_cost + cost_end - my_cost;
        plan.tile_prefix(g, level)[s] = level_tiles + tiles_end - my_tiles;
      }
      level_cost += total_cost;
      level_tiles += total_tiles;
    }
    if (threadIdx.x == 0) {
      plan.cost_prefix(g, level)[n] = level_cost;
      plan.tile_prefix(g, level)[n] = level_tiles;
      plan.header->level_cost[g][level] = cost;
      plan.header->level_tiles[g][level] = tiles;
    }
    cost += level_cost;
    tiles += level_tiles;
  }
  if (threadIdx.x == 0) {
    plan.header->level_cost[g][shape.num_levels] = cost;
    plan.header->level_tiles[g][shape.num_levels] = tiles;
  }
}

template <PlanConfig kC>
FULMEN_FN void plan_attention(const PlanParams& params) {
  auto& smem = static_shared<PlanSmem<kC.threads>>();
  const ScheduleShape& shape = params.shape;
  const PlanView plan(shape, params.plan);
  PlanHeader& header = *plan.header;
  ptx::griddep_launch_dependents();
  ptx::griddep_wait();
  if (threadIdx.x == 0) {
    smem.first_fault = ~0ull;
    header.num_levels = shape.num_levels;
    header.reserved = 0;
    for (int32_t level = 0; level < kMaxLevels; ++level)
      header.num_segments[level] = level < shape.num_levels ? params.lengths.levels[level].num_segments : 0;
  }
  StatusRecord mine{0, 0, 0, 0, 0};
  for (int32_t level = 0; level < shape.num_levels; ++level) {
    plan_rows<kC>(params, plan, smem, level);
    __syncthreads();
    for (int32_t s = threadIdx.x; s < params.lengths.levels[level].num_segments; s += kC.threads)
      plan_segment(shape, params.lengths, plan, level, s, mine);
    __syncthreads();
  }
  const auto place = static_cast<unsigned long long>(mine.level) << 32 | static_cast<uint32_t>(mine.request);
  if (mine.fault != kFaultNone) atomicMin(&smem.first_fault, place);
  for (int32_t g = 0; g < shape.num_groups; ++g) plan_prefixes<kC>(params, plan, smem, g);
  __syncthreads();
  if (mine.fault != kFaultNone ? smem.first_fault == place : threadIdx.x == 0 && smem.first_fault == ~0ull) {
    header.status = mine;
  }
  if (threadIdx.x == 0) {
    const int32_t last = shape.num_levels - 1;
    header.total_rows = plan.row_begin(last)[params.lengths.levels[last].num_segments];
  }
}

}  // namespace fulmen
