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
