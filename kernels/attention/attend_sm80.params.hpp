// The call, and what the host has worked out for attend_sm80 once instead of every block.
#pragma once

#include <kernels/attention/attend_sm80.config.hpp>
#include <kernels/attention/attention.params.hpp>

namespace fulmen {

// The part of scratch behind the partial states. Zero between runs: whoever comes last puts the zero back.
struct AttendCounters {
  uint32_t next_tile;    // whole tiles: how many beyond the workers' first ones are taken
  uint32_t exits;        // workers that have taken their last tile
  uint32_t arrivals[1];  // [num_workers] units done of the tile that worker w has the first piece of; with several levels
                         // behind them [tiles of the last level] complete tiles that the tile's rows stand in
};

// Where partial states lie in scratch, in floats from its start.
//   slots   [worker][2 nodes] of slot_rows rows: pieces of split tiles (schedule.hpp)
//   places  several levels: [level][node] of each packed row of all heads, for when the row's tile is complete
//   stacks  canon: [worker][stack_depth] states that a fold has not joined yet
struct AttendScratch {
  int32_t slot_rows;
  int32_t nodes;
  int32_t stack_depth;
  int64_t places, place_rows;
  int64_t stacks, stack_floats;
  int64_t end;
};

FULMEN_FN AttendScratch attend_scratch(const ScheduleShape& shape, const AttendSm80Config& config, int32_t head_dim_vo) {
  const SlotLayout slots = slot_layout(shape);
  AttendScratch scratch;
  scratch.slot_rows = config.max_tile_q();
  scratch.nodes = slots.nodes_per_piece;
  scratch.stack_depth = config.canonical ? slots.nodes_per_cut + 2 : 0;
  scratch.places = slots.worker_slots * slot_floats(scratch.slot_rows, head_dim_vo);
  scratch.place_rows = 0;
  int64_t workers = 0;
  for (int32_t g = 0; g < shape.num_groups; ++g) {
    const ScheduleGroup& group = shape.groups[g];
    if (config.levels) scratch.place_rows = max(scratch.place_rows, shape.max_rows * group.group_size * group.num_kv_heads);
    workers = max(workers, static_cast<int64_t>(group.num_workers));
  }
  scratch.place_rows = round_up<int64_t>(scratch.place_rows, 4);  // 16-byte aligned
  scratch.stacks = scratch.places + shape.num_levels * scratch.nodes * scratch.place_rows * slot_floats(1, head_dim_vo);
  // A state as its threads hold it: registers of a prefill tile, quads of a decode tile, or a quad a thread.
  scratch.stack_floats = max(max(config.max_tile_q() * (config.head_dim_vo + 8), 16 * config.head_dim_vo * 3 / 2),
                             6 * config.num_threads());
  scratch.end = scratch.stacks + workers * scratch.stack_depth * scratch.stack_floats;
  return scratch;
}

FULMEN_FN int64_t attend_num_counters(const ScheduleShape& shape) {
  int64_t workers = 0, tiles = 0;
  for (int32_t g = 0; g < shape.num_groups; ++g) {
    workers = max(workers, static_cast<int64_t>(shape.groups[g].num_workers));
    if (shape.num_levels > 1) tiles = max(tiles, max_level_tiles(shape, shape.groups[g]));
  }
  return 2 + workers + tiles;
}

struct AttendSm80Params : AttentionParams {
  AttendScratch layout;
  AttendCounters* counters;
  int32_t page_log2;  // of page_size; -1: not a power of two
};

// -1: not a power of two.
FULMEN_FN int32_t exact_log2(int32_t x) {
  int32_t log2 = 0;
  while ((1 << log2) < x && log2 < 30) ++log2;
  return 1 << log2 == x ? log2 : -1;
}

static_assert(sizeof(AttendSm80Params) <= 4096, "kernel parameters are limited to 4 KiB");

}  // namespace fulmen
