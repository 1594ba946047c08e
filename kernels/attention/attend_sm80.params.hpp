// The call, and what the host has worked out for attend_sm80 once instead of every block.
#pragma once

#include <kernels/attention/attention.params.hpp>

namespace fulmen {

// The part of scratch behind the partial slots. Zero between runs: whoever comes last puts the zero back.
struct AttendCounters {
  uint32_t next_tile;    // whole tiles: how many beyond the workers' first ones are taken
  uint32_t exits;        // workers that have taken their last tile
  uint32_t arrivals[1];  // [num_workers] units done of the tile that worker w has the first piece of
};

struct AttendSm80Params : AttentionParams {
  SlotLayout slots;
  AttendCounters* counters;
};

static_assert(sizeof(AttendSm80Params) <= 4096, "kernel parameters are limited to 4 KiB");

}  // namespace fulmen
