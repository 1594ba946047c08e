// The schedule of a step, for all layers: plan_serial of schedule.hpp with its loops over segments in parallel.
//
// grid      one block; a thread has a segment of a span of as many as there are threads
// formula   row_begin = running maximum of qo_indptr without entries out of bounds; tile and cost prefixes = exclusive
//           sums over segments of what schedule.hpp says a segment costs; then where each worker starts
// smem      one value per warp for the scans | sums so far | cost prefix of the last span, for the workers' searches
// barriers  those of the scans; one behind each level, because children look up their parents; one before the searches
#pragma once

#include <kernels/attention/plan.config.hpp>
#include <kernels/prelude/device.hpp>
#include <kernels/ptx/griddep.cuh>

namespace fulmen {

template <PlanConfig kC>
struct PlanSmem {
  int64_t units[kC.threads / 32], tiles[kC.threads / 32];
  int64_t sum_units[kMaxGroups], sum_tiles[kMaxGroups];      // of all levels so far
  int64_t level_units[kMaxGroups], level_tiles[kMaxGroups];  // before this level
  Balance balance[kMaxGroups];
  unsigned long long first_fault;  // level and segment of the first fault, as one number
  int32_t rows[kC.threads / 32];
  int32_t last_row;  // the largest so far
  int64_t prefix[kC.threads + 1];
};

struct PlanSum {
  template <class T>
  FULMEN_FN static T join(T a, T b) {
    return a + b;
  }
};
struct PlanMax {
  template <class T>
  FULMEN_FN static T join(T a, T b) {
    return max(a, b);
  }
};

// Inclusive scan over a warp; the last lane's value to `warps`.
template <class Op, class T>
FULMEN_FN T scan_warp(T x, T* warps) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
  for (int d = 1; d < 32; d <<= 1) {
    const T other = __shfl_up_sync(0xffffffffu, x, d);
    if (lane >= d) x = Op::join(other, x);
  }
  if (lane == 31) warps[warp] = x;
  return x;
}
// What the warps before this one sum to, from 0; `total`: all of them.
template <class Op, int kWarps, class T>
FULMEN_FN T warps_before(const T* warps, T& total) {
  const int warp = threadIdx.x / 32;
  T before = 0, sum = 0;
#pragma unroll
  for (int w = 0; w < kWarps; ++w) {
    if (w == warp) before = sum;
    sum = Op::join(sum, warps[w]);
  }
  total = sum;
  return before;
}

// Rows and keys of a span's segment, number s of the level.
template <PlanConfig kC>
FULMEN_FN Segment plan_span(const PlanParams& params, const PlanView& plan, PlanSmem<kC>& smem, int32_t level, int32_t s,
                            StatusRecord& fault) {
  const ScheduleShape& shape = params.shape;
  const LevelLengths& in = params.lengths.levels[level];
  const int32_t n = in.num_segments;
  // All loads before the first use.
  const int64_t given_begin = load_index(in.qo_indptr, in.qo_indptr_i64, min(s, n));
  const int64_t given_end = load_index(in.qo_indptr, in.qo_indptr_i64, min(s + 1, n));
  OwnKeys own{0, 0, 0};
  if (s < n) own = own_keys(shape, params.lengths, level, s);
  const int32_t mine = static_cast<int32_t>(repaired_row(shape, given_begin, 0));
  const int32_t up_to_me = scan_warp<PlanMax>(mine, smem.rows), before = smem.last_row;
  __syncthreads();
  int32_t total;
  const int32_t begin = max(up_to_me, max(before, warps_before<PlanMax, kC.threads / 32>(smem.rows, total)));
  const int32_t end = max(begin, static_cast<int32_t>(repaired_row(shape, given_end, 0)));
  if (threadIdx.x == 0) smem.last_row = max(before, total);
  int64_t* rows = plan.row_begin(level);
  if (n == 0 && s == 0) rows[0] = plan.header->total_rows = begin;
  if (s >= n) return Segment{};
  rows[s] = begin;
  if (s == n - 1) rows[n] = plan.header->total_rows = end;  // the last level's stands in the end
  return plan_segment(shape, plan, level, s, {begin, end, given_begin, given_end}, own, fault);
}

// Prefix sums of a span in group g, within the level. `whole`: the span is all there is, so that the line can be dealt out at once.
template <PlanConfig kC>
FULMEN_FN void plan_sums(const PlanParams& params, const PlanView& plan, PlanSmem<kC>& smem, int32_t level, int32_t s, int32_t g,
                         bool whole, const Segment& segment) {
  const ScheduleGroup& group = params.shape.groups[g];
  const int32_t n = params.lengths.levels[level].num_segments;
  SegmentCost mine{0, 0, 0};
  if (s < n) mine = segment_cost(params.shape, group, segment);
  const int64_t units_end = scan_warp<PlanSum>(mine.units, smem.units), tiles_end = scan_warp<PlanSum>(mine.tiles, smem.tiles);
  const int64_t done_units = smem.sum_units[g], done_tiles = smem.sum_tiles[g];
  __syncthreads();
  int64_t all_units, all_tiles;
  int64_t units = warps_before<PlanSum, kC.threads / 32>(smem.units, all_units) + units_end;
  int64_t tiles = warps_before<PlanSum, kC.threads / 32>(smem.tiles, all_tiles) + tiles_end;
  int64_t gap = 0;
  if (whole) {
    const bool alike = __syncthreads_or(!is_average(mine, all_units, all_tiles)) == 0;
    const Balance by = balance(group, all_units, all_tiles, alike && all_tiles > 0 ? divide(all_units, all_tiles) : 0);
    gap = by.gap;
    if (threadIdx.x == 0) smem.balance[g] = by;
  } else {
    __syncthreads();  // all have read the sums
  }
  if (threadIdx.x == 0) {
    smem.sum_units[g] = done_units + all_units;
    smem.sum_tiles[g] = done_tiles + all_tiles;
  }
  // Sums of the level up to this segment's end, and begin.
  units += done_units - smem.level_units[g] + gap * tiles;
  tiles += done_tiles - smem.level_tiles[g];
  int64_t* cost_prefix = plan.cost_prefix(g, level);
  int64_t* tile_prefix = plan.tile_prefix(g, level);
  if (s < n) {
    cost_prefix[s + 1] = units;
    tile_prefix[s + 1] = tiles;
    smem.prefix[threadIdx.x + 1] = units;
  }
  if (s == 0) cost_prefix[0] = tile_prefix[0] = smem.prefix[0] = 0;
}

// The line of group g, all of whose sums are there, and where its workers start.
template <PlanConfig kC>
FULMEN_FN void plan_line(const PlanParams& params, const PlanView& plan, PlanSmem<kC>& smem, int32_t g, bool whole) {
  const ScheduleShape& shape = params.shape;
  const ScheduleGroup& group = shape.groups[g];
  const int32_t n = params.lengths.levels[0].num_segments;
  PlanHeader& header = *plan.header;
  const Balance by = whole ? smem.balance[g] : balance(group, smem.sum_units[g], smem.sum_tiles[g], 0);
  const int64_t total = smem.sum_units[g] + by.gap * smem.sum_tiles[g];
  if (threadIdx.x == 0) {
    header.level_cost[g][shape.num_levels] = total;
    header.level_tiles[g][shape.num_levels] = smem.sum_tiles[g];
    header.share[g] = by.share;
    header.gap[g] = by.gap;
  }
  if (shape.num_levels > 1) return;  // no gaps, no starts
  if (!whole && by.gap != 0) {
    for (int32_t s = threadIdx.x; s <= n; s += kC.threads) plan.cost_prefix(g, 0)[s] += by.gap * plan.tile_prefix(g, 0)[s];
    __syncthreads();
  }
  const int64_t* prefix = whole && g == shape.num_groups - 1 ? smem.prefix : plan.cost_prefix(g, 0);
#pragma unroll 1
  for (int32_t w = threadIdx.x; w < group.num_workers; w += kC.threads) {
    find_start(shape, plan, g, by, total, prefix, n, w, worker_start(shape, params.plan, g, w));
  }
}

template <PlanConfig kC>
FULMEN_FN void plan_attention(const PlanParams& params) {
  auto& smem = static_shared<PlanSmem<kC>>();
  const ScheduleShape& shape = params.shape;
  const PlanView plan(shape, params.plan);
  PlanHeader& header = *plan.header;
  if (threadIdx.x < kMaxGroups) smem.sum_units[threadIdx.x] = smem.sum_tiles[threadIdx.x] = 0;
  if (threadIdx.x == 0) smem.first_fault = ~0ull;
  ptx::griddep_launch_dependents();
  ptx::griddep_wait();
  if (threadIdx.x == 0) {
    header.num_levels = shape.num_levels;
    header.reserved = 0;
#pragma unroll
    for (int32_t level = 0; level < kMaxLevels; ++level)
      header.num_segments[level] = level < shape.num_levels ? params.lengths.levels[level].num_segments : 0;
  }
  StatusRecord mine{0, 0, 0, 0, 0};
  const bool whole = shape.num_levels == 1 && params.lengths.levels[0].num_segments <= kC.threads;
#pragma unroll 1
  for (int32_t level = 0; level < shape.num_levels; ++level) {
    __syncthreads();  // the level above is in plan memory
    if (static_cast<int32_t>(threadIdx.x) < shape.num_groups) {
      const int32_t g = threadIdx.x;
      header.level_cost[g][level] = smem.level_units[g] = smem.sum_units[g];
      header.level_tiles[g][level] = smem.level_tiles[g] = smem.sum_tiles[g];
    }
    if (threadIdx.x == 0) smem.last_row = 0;
    __syncthreads();
    int32_t s = threadIdx.x;
#pragma unroll 1
    do {
      const Segment segment = plan_span<kC>(params, plan, smem, level, s, mine);
#pragma unroll 1
      for (int32_t g = 0; g < shape.num_groups; ++g) plan_sums<kC>(params, plan, smem, level, s, g, whole, segment);
      s += kC.threads;
    } while (s - static_cast<int32_t>(threadIdx.x) < params.lengths.levels[level].num_segments);
  }
  const auto place = static_cast<unsigned long long>(mine.level) << 32 | static_cast<uint32_t>(mine.request);
  if (mine.fault != kFaultNone) atomicMin(&smem.first_fault, place);
  __syncthreads();
  if (mine.fault != kFaultNone ? smem.first_fault == place : threadIdx.x == 0 && smem.first_fault == ~0ull) {
    header.status = mine;
  }
#pragma unroll 1
  for (int32_t g = 0; g < shape.num_groups; ++g) plan_line<kC>(params, plan, smem, g, whole);
}

}  // namespace fulmen
