// The schedule of a step, for all layers: plan_serial of schedule.hpp with its loops over segments in parallel.
//
// grid      one block; a thread has a run of segments of a span of as many runs as there are threads
// formula   row_begin = running maximum of qo_indptr without entries out of bounds; tile and cost prefixes = exclusive
//           sums over segments of what schedule.hpp says a segment costs; then where each worker starts
// smem      one value per warp for the scans | sums so far | the span's rows, keys and cost prefix, for the workers' searches
// barriers  one a scan, whose values per warp lie in two places in turn; one behind each level, because children look up their
//           parents; one before the searches
#pragma once

#include <kernels/attention/plan.config.hpp>
#include <kernels/prelude/device.hpp>
#include <kernels/ptx/griddep.cuh>

namespace fulmen {

// What segments add up to. The cost of a tile: 0 where one of the segments has several a head.
struct PlanSums {
  int64_t units, tiles;
  uint32_t least_tile, most_tile;

  static FULMEN_FN PlanSums empty() { return {0, 0, ~0u, 0}; }
  FULMEN_FN void add(const PlanSums& other) {
    units += other.units;
    tiles += other.tiles;
    least_tile = min(least_tile, other.least_tile);
    most_tile = max(most_tile, other.most_tile);
  }
  FULMEN_FN void add(const SegmentCost& cost) {
    if (cost.tiles > 0) add(PlanSums{cost.units, cost.tiles, static_cast<uint32_t>(cost.each), static_cast<uint32_t>(cost.each)});
  }
  // What each tile costs if they are all alike, else 0.
  FULMEN_FN int64_t each() const { return least_tile == most_tile ? least_tile : 0; }
};

template <PlanConfig kC>
struct PlanSmem {
  static constexpr int kWarps = kC.threads / 32;
  PlanSums warps[2][kWarps];
  PlanSums sums[kMaxGroups];  // of all levels so far
  int64_t level_units[kMaxGroups], level_tiles[kMaxGroups];  // before this level
  int64_t prefix[kC.threads + 1];                            // cost up to each thread's run, in the group at work
  unsigned long long first_fault;                            // level and segment of the first fault, as one number
  int32_t warp_rows[2][kWarps];
  int32_t last_row[2];                                       // the largest before the span
  int32_t rows[kC.threads][(kC.each + 1) | 1];               // where each segment's begin, and where the run's end
  int32_t keys[kC.threads][kC.each | 1];                     // own ones, -1 if they are out of bounds; later where they end
};

FULMEN_FN int32_t inclusive_max(int32_t x) {
#pragma unroll
  for (int d = 1; d < 32; d <<= 1) {
    const int32_t other = __shfl_up_sync(0xffffffffu, x, d);
    if (static_cast<int>(threadIdx.x % 32) >= d) x = max(x, other);
  }
  return x;
}

// The sums of all threads before this one; `all`: of the block. One barrier; `warps` is free again after the next one.
template <int kWarps>
FULMEN_FN PlanSums scan_sums(const PlanSums& mine, PlanSums* warps, PlanSums& all) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  PlanSums up_to_me = mine;
#pragma unroll
  for (int d = 1; d < 32; d <<= 1) {
    const int64_t units = __shfl_up_sync(0xffffffffu, up_to_me.units, d), tiles = __shfl_up_sync(0xffffffffu, up_to_me.tiles, d);
    if (lane >= d) up_to_me.units += units, up_to_me.tiles += tiles;
  }
  up_to_me.least_tile = __reduce_min_sync(0xffffffffu, mine.least_tile);
  up_to_me.most_tile = __reduce_max_sync(0xffffffffu, mine.most_tile);
  if (lane == 31) warps[warp] = up_to_me;
  __syncthreads();
  all = PlanSums::empty();
  PlanSums before = all;
#pragma unroll
  for (int w = 0; w < kWarps; ++w) {
    if (w == warp) before = all;
    all.add(warps[w]);
  }
  before.units += up_to_me.units - mine.units;
  before.tiles += up_to_me.tiles - mine.tiles;
  return before;
}

// Rows and keys of a thread's segments, from number `first` of the level on: to shared and plan memory. `turn` counts spans.
template <PlanConfig kC>
FULMEN_FN void plan_span(const PlanParams& params, const PlanView& plan, PlanSmem<kC>& smem, int32_t level, int32_t first,
                         int turn, StatusRecord& fault) {
  const ScheduleShape& shape = params.shape;
  const LevelLengths& in = params.lengths.levels[level];
  const int32_t n = in.num_segments;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  int64_t given[kC.each + 1];
  int32_t length[kC.each];
  // All loads before the first use.
#pragma unroll
  for (int i = 0; i <= kC.each; ++i) given[i] = load_index(in.qo_indptr, in.qo_indptr_i64, min(first + i, n));
#pragma unroll
  for (int i = 0; i < kC.each; ++i) length[i] = first + i < n ? static_cast<int32_t>(own_keys(shape, params.lengths, level, first + i).length) : 0;
  int32_t largest = 0;
#pragma unroll
  for (int i = 0; i < kC.each; ++i) largest = max(largest, static_cast<int32_t>(repaired_row(shape, given[i], 0)));
  const int32_t up_to_me = inclusive_max(largest);
  if (lane == 31) smem.warp_rows[turn & 1][warp] = up_to_me;
  int32_t row = __shfl_up_sync(0xffffffffu, up_to_me, 1);
  if (lane == 0) row = 0;
  __syncthreads();
  int32_t before = smem.last_row[turn & 1];
  row = max(row, before);
#pragma unroll
  for (int w = 0; w < kC.threads / 32; ++w) {
    if (w == warp) row = max(row, before);
    before = max(before, smem.warp_rows[turn & 1][w]);
  }
  if (threadIdx.x == 0) smem.last_row[(turn + 1) & 1] = before;
  uint32_t repaired = 0;  // a bit for each bound
  int32_t* run = smem.rows[threadIdx.x];
  int32_t* keys = smem.keys[threadIdx.x];
#pragma unroll
  for (int i = 0; i <= kC.each; ++i) {
    row = max(row, static_cast<int32_t>(repaired_row(shape, given[i], 0)));
    if (row != given[i]) repaired |= 1u << i;
    run[i] = row;
    if (i < kC.each) keys[i] = length[i];
  }
  int64_t* rows = plan.row_begin(level);
  if (n == 0 && first == 0) rows[0] = plan.header->total_rows = run[0];
#pragma unroll 1
  for (int i = 0; i < kC.each && first + i < n; ++i) {
    const int32_t s = first + i;
    RowBounds bounds{run[i], run[i + 1], run[i], run[i + 1]};
    OwnKeys own{keys[i], 0, 0};
    if ((repaired >> i & 3) != 0) {
      bounds.given_begin = load_index(in.qo_indptr, in.qo_indptr_i64, s);
      bounds.given_end = load_index(in.qo_indptr, in.qo_indptr_i64, s + 1);
    }
    if (own.length < 0) own = own_keys(shape, params.lengths, level, s);
    rows[s] = bounds.begin;
    if (s == n - 1) rows[n] = plan.header->total_rows = bounds.end;  // the last level's stands in the end
    keys[i] = plan_segment(shape, plan, level, s, bounds, own, fault).key_end;
  }
}

// Segment s of the level as plan_span has left it: number i of a thread's run.
template <PlanConfig kC>
FULMEN_FN Segment span_segment(const ScheduleShape& shape, const PlanView& plan, const PlanSmem<kC>& smem, int32_t level, int32_t s,
                               int thread, int i) {
  const int32_t key_begin = level == 0 ? 0 : static_cast<int32_t>(plan.key_begin(level)[s]);
  return make_segment(shape, level, s, smem.rows[thread][i], smem.rows[thread][i + 1], key_begin, smem.keys[thread][i]);
}

// Where each worker of group g starts. `whole`: all segments are in shared memory.
template <PlanConfig kC>
FULMEN_FN void plan_starts(const PlanParams& params, const PlanView& plan, const PlanSmem<kC>& smem, int32_t g, const Balance& by,
                           int64_t total, bool whole) {
  const ScheduleShape& shape = params.shape;
  const int32_t n = params.lengths.levels[0].num_segments;
  const int64_t* prefix = plan.cost_prefix(g, 0);
#pragma unroll 1
  for (int32_t w = threadIdx.x; w < shape.groups[g].num_workers; w += kC.threads) {
    WorkerStart& start = worker_start(shape, params.plan, g, w);
    if (!whole) {
      find_start(shape, plan, g, w, start);
      continue;
    }
    find_start(shape, plan, g, by, total, w, start, [&](int64_t point) {
      const int32_t run = search_prefix(smem.prefix, kC.threads, point);
      int32_t s = run * kC.each;
      int64_t begin = smem.prefix[run], end = smem.prefix[run + 1];
      if constexpr (kC.each > 1) {
        s += search_prefix(prefix + s, min(kC.each, n - s), point);
        begin = prefix[s], end = prefix[s + 1];
      }
      return PlacedSegment{span_segment<kC>(shape, plan, smem, 0, s, run, s - run * kC.each), begin, end - begin};
    });
  }
}

// The line of group g, all of whose sums are there.
template <PlanConfig kC>
FULMEN_FN void plan_line(const PlanParams& params, const PlanView& plan, const PlanSmem<kC>& smem, int32_t g, const PlanSums& all,
                         const Balance& by, bool whole) {
  const ScheduleShape& shape = params.shape;
  PlanHeader& header = *plan.header;
  const int64_t total = all.units + by.gap * all.tiles;
  if (threadIdx.x == 0) {
    header.level_cost[g][shape.num_levels] = total;
    header.level_tiles[g][shape.num_levels] = all.tiles;
    header.share[g] = by.share;
    header.gap[g] = by.gap;
  }
  if (shape.num_levels > 1) return;  // no gaps, no starts
  if (!whole && by.gap != 0) {
    const int32_t n = params.lengths.levels[0].num_segments;
    for (int32_t s = threadIdx.x; s <= n; s += kC.threads) plan.cost_prefix(g, 0)[s] += by.gap * plan.tile_prefix(g, 0)[s];
  }
  __syncthreads();  // prefixes and the header are there
  plan_starts<kC>(params, plan, smem, g, by, total, whole);
}

// Prefix sums of a span in group g, within the level. `whole`: the span is all there is, so that the line is dealt out at once.
template <PlanConfig kC>
FULMEN_FN void plan_sums(const PlanParams& params, const PlanView& plan, PlanSmem<kC>& smem, int32_t level, int32_t first, int turn,
                         int32_t g, bool whole) {
  const ScheduleShape& shape = params.shape;
  const ScheduleGroup& group = shape.groups[g];
  const int32_t n = params.lengths.levels[level].num_segments;
  int64_t* cost_prefix = plan.cost_prefix(g, level);
  int64_t* tile_prefix = plan.tile_prefix(g, level);
  PlanSums mine = PlanSums::empty();
#pragma unroll 1
  for (int i = 0; i < kC.each && first + i < n; ++i) {
    const int32_t s = first + i;
    mine.add(segment_cost(shape, group, span_segment<kC>(shape, plan, smem, level, s, threadIdx.x, i)));
    if constexpr (kC.each > 1) cost_prefix[s + 1] = mine.units, tile_prefix[s + 1] = mine.tiles;  // of the run
  }
  PlanSums done = smem.sums[g], all;
  PlanSums before = scan_sums<kC.threads / 32>(mine, smem.warps[turn & 1], all);
  before.units += done.units - smem.level_units[g];
  before.tiles += done.tiles - smem.level_tiles[g];
  done.add(all);
  Balance by{0, 0};
  if (whole) by = balance(group, done.units, done.tiles, done.each());
  if (threadIdx.x == 0) smem.sums[g] = done;
  int64_t cost[kC.each], tiles[kC.each];  // of the run, up to each segment's end
#pragma unroll
  for (int i = 0; i < kC.each; ++i) {
    cost[i] = mine.units, tiles[i] = mine.tiles;
    if (kC.each > 1 && first + i < n) cost[i] = cost_prefix[first + i + 1], tiles[i] = tile_prefix[first + i + 1];
  }
  if (first == 0) cost_prefix[0] = tile_prefix[0] = 0;
#pragma unroll
  for (int i = 0; i < kC.each; ++i) {
    if (first + i >= n) break;
    tile_prefix[first + i + 1] = before.tiles + tiles[i];
    cost_prefix[first + i + 1] = before.units + cost[i] + by.gap * (before.tiles + tiles[i]);
  }
  if (!whole) return;
  smem.prefix[threadIdx.x] = before.units + by.gap * before.tiles;
  if (threadIdx.x == kC.threads - 1) smem.prefix[kC.threads] = done.units + by.gap * done.tiles;
  plan_line<kC>(params, plan, smem, g, done, by, true);
}

template <PlanConfig kC>
FULMEN_FN void plan_attention(const PlanParams& params) {
  auto& smem = static_shared<PlanSmem<kC>>();
  const ScheduleShape& shape = params.shape;
  const PlanView plan(shape, params.plan);
  PlanHeader& header = *plan.header;
  if (threadIdx.x < kMaxGroups) smem.sums[threadIdx.x] = PlanSums::empty();
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
  const bool whole = shape.num_levels == 1 && params.lengths.levels[0].num_segments <= kC.span();
  int turn = 0, scans = 0;
#pragma unroll 1
  for (int32_t level = 0; level < shape.num_levels; ++level) {
    __syncthreads();  // the level above is in plan memory
    if (static_cast<int32_t>(threadIdx.x) < shape.num_groups) {
      const int32_t g = threadIdx.x;
      header.level_cost[g][level] = smem.level_units[g] = smem.sums[g].units;
      header.level_tiles[g][level] = smem.level_tiles[g] = smem.sums[g].tiles;
    }
    if (threadIdx.x == 0) smem.last_row[turn & 1] = 0;
    int32_t first = static_cast<int32_t>(threadIdx.x) * kC.each;
#pragma unroll 1
    do {
      plan_span<kC>(params, plan, smem, level, first, turn++, mine);
#pragma unroll 1
      for (int32_t g = 0; g < shape.num_groups; ++g) plan_sums<kC>(params, plan, smem, level, first, scans++, g, whole);
      first += kC.span();
    } while (first - static_cast<int32_t>(threadIdx.x) * kC.each < params.lengths.levels[level].num_segments);
  }
  const auto place = static_cast<unsigned long long>(mine.level) << 32 | static_cast<uint32_t>(mine.request);
  if (mine.fault != kFaultNone) atomicMin(&smem.first_fault, place);
  __syncthreads();
  if (mine.fault != kFaultNone ? smem.first_fault == place : threadIdx.x == 0 && smem.first_fault == ~0ull) {
    header.status = mine;
  }
  if (whole) return;
#pragma unroll 1
  for (int32_t g = 0; g < shape.num_groups; ++g) {
    const PlanSums& all = smem.sums[g];
    plan_line<kC>(params, plan, smem, g, all, balance(shape.groups[g], all.units, all.tiles, shape.num_levels == 1 ? all.each() : 0), false);
  }
}

}  // namespace fulmen
