// What the schedule of attention is made from and where its plan lies: shapes and limits, lengths, plan memory.
//
// Plan memory:  PlanHeader (its head is the status record) | arrays of int64, each max_requests + 1 long
//   per level            row_begin, key_begin, key_end (-1: the segment is faulty), parent (-1: none)
//   per group and level  cost_prefix, tile_prefix
//   | per group and worker, with one level: WorkerStart
#pragma once
#include <kernels/prelude/prelude.hpp>

namespace fulmen {

inline constexpr int32_t kMaxLevels = 4;
inline constexpr int32_t kMaxGroups = 8;

// ---------------------------------------------------------------------------------------------- what is fixed

// Layers that share heads, causality and window; tile and costs are the kernel's.
struct ScheduleGroup {
  int32_t num_kv_heads, group_size;
  int32_t causal;
  int32_t window_left;  // -1: unlimited
  int32_t tile_q;       // packed rows of a tile
  int32_t num_workers;
  int32_t cost_fixed, cost_per_row;  // of a unit; the sum must be positive
  int32_t wide_rows, wide_keys;      // wide tiles: at most so many rows in all heads (<= tile_q; 0: never), at least so many keys
  int32_t shared_tile_q;             // packed rows of a tile of another level than the last; 0: tile_q
  int32_t tile_cost;                 // of a tile beside its units, where workers have several
  int32_t piece_units;               // the least of a piece; tiles that are all alike are cut evenly. 0: one unit, and never evenly
};

// Limits and configuration: known when the handle is made, passed to every kernel by value.
struct ScheduleShape {
  int64_t max_requests;  // per level
  int64_t max_rows;      // max_rows * group_size < 2^31
  int64_t max_qo_len;
  int64_t max_kv_len;    // < 2^31
  int32_t num_levels, num_groups;
  int32_t unit_log2;     // of keys
  int32_t canonical;     // partial states are the nodes of the canon tree
  ScheduleGroup groups[kMaxGroups];
};

enum FaultCode : int32_t { kFaultNone = 0, kFaultQoIndptr = 1, kFaultKvLen = 2, kFaultPage = 3, kFaultPosition = 4 };

// The same bytes as fulmen_status_record.
struct StatusRecord {
  int32_t fault, request;
  int64_t value, limit, level;
};

struct PlanHeader {
  StatusRecord status;
  int32_t num_levels;
  int32_t num_segments[kMaxLevels];
  int32_t reserved;
  int64_t total_rows;                                  // rows 0 .. total_rows - 1 exist
  int64_t level_cost[kMaxGroups][kMaxLevels + 1];      // prefix over levels; [num_levels]: total
  int64_t level_tiles[kMaxGroups][kMaxLevels + 1];
  int64_t share[kMaxGroups];                           // cost of a worker's share
  int64_t gap[kMaxGroups];                             // cost of a tile beside its units
};

// Lengths as the caller gave them. Index tensors are i32, or i64 where *_i64.
struct LevelLengths {
  const void* qo_indptr;
  const void* kv_len;          // null: pages and last_page_len
  const void* kv_page_indptr;
  const void* last_page_len;
  int32_t num_segments;
  int8_t qo_indptr_i64, kv_len_i64, kv_page_indptr_i64, last_page_len_i64;
};
struct ScheduleLengths {
  int32_t num_levels;
  int32_t page_size;
  LevelLengths levels[kMaxLevels];
};

// ---------------------------------------------------------------------------------------------- arithmetic

FULMEN_FN int64_t load_index(const void* data, bool is_i64, int64_t i) {
  return is_i64 ? static_cast<const int64_t*>(data)[i] : static_cast<int64_t>(static_cast<const int32_t*>(data)[i]);
}

// floor(a / b) for 0 <= a, 0 < b. On the device a 64-bit division would be a call of a subroutine.
FULMEN_FN int64_t divide(int64_t a, int64_t b) {
#if defined(FULMEN_DEVICE_CODE)
  if ((a | b) >> 32 == 0) return static_cast<uint32_t>(a) / static_cast<uint32_t>(b);  // nearly always
  const float inverse = __fdividef(1.0f, static_cast<float>(b));
  int64_t quotient = 0, rest = a;
  for (int32_t i = 0; i < 4; ++i) {  // each round leaves an error 2^-20 times smaller
    const int64_t step = static_cast<int64_t>(static_cast<float>(rest) * inverse);
    quotient += step;
    rest -= step * b;
  }
  // At most two too many or too few are left. (As loops the compiler would take these for a division and call one.)
  for (int32_t i = 0; i < 2; ++i) {
    const int64_t low = rest < 0 ? 1 : 0, high = rest >= b ? 1 : 0;
    quotient += high - low;
    rest += low != 0 ? b : high != 0 ? -b : 0;
  }
  return quotient;
#else
  return a / b;
#endif
}

// The largest i in [0, n) with prefix[i] <= x, for an ascending array with prefix[0] <= x.
FULMEN_FN int32_t search_prefix(const int64_t* prefix, int32_t n, int64_t x) {
  int32_t low = 0, high = n;
  while (high - low > 1) {
    const int32_t middle = low + (high - low) / 2;
    if (prefix[middle] <= x) {
      low = middle;
    } else {
      high = middle;
    }
  }
  return low;
}

// ---------------------------------------------------------------------------------------------- segments, tiles, pieces

// A segment of plan memory. `share_begin` .. `share_end` are the keys that its items own. Records are whole words without padding,
// because kernels copy them as such.
struct Segment {
  int32_t level, index;
  int32_t row_begin;    // first query row (token)
  int32_t num_rows;     // tokens
  int32_t key_begin;    // position of the first key in the segment's own table
  int32_t key_end;      // length of the chain up to and with this segment
  int32_t share_begin, share_end;
  int32_t last;         // a request: its rows stand at positions key_end - num_rows + i
  int32_t valid;
};

struct Tile {
  int32_t level, segment, head, index;  // head: the first one; index: of the tile in its (segment, head)
  int32_t num_heads;                    // 1, or all kv heads: a wide tile
  int32_t row_begin, num_rows;          // packed rows in the segment, of each head
  int32_t unit_begin, unit_end;         // may be empty; costs a unit even then
  int32_t unit_cost;
  int64_t cost_begin;                   // its place on the line

  FULMEN_FN int32_t cost_units() const { return unit_end > unit_begin ? unit_end - unit_begin : 1; }
  FULMEN_FN int64_t cost() const { return static_cast<int64_t>(unit_cost) * cost_units(); }  // of its units
  // Units that begin before a point of the line.
  FULMEN_FN int32_t units_before(int64_t point) const {
    if (point <= cost_begin) return 0;
    if (point >= cost_begin + cost()) return cost_units();
    return static_cast<int32_t>(divide(point - cost_begin + unit_cost - 1, unit_cost));
  }
};

// A run of units of one tile in one worker's hands.
struct Piece {
  Segment segment;
  Tile tile;
  int32_t unit_begin, unit_end;    // both tile.unit_begin where the tile is empty
  int32_t starts_tile, ends_tile;  // both: the tile is not split
};

// Where a worker's walk along the line stands (PieceCursor).
struct CursorState {
  int64_t position, end;  // on the line; position: where the next unit to take begins, or earlier
  int64_t tile_cost;      // where `tile` begins
  int64_t share, gap;     // the header's
  int32_t group;
  int32_t level, segment, head, tile;
  int32_t tiles, turns;   // of the current segment: tiles per turn, turns of its heads
  int32_t spent;          // `tile` has been visited: the next piece is of the tile behind it, which is looked up only then
  Segment current;
};

// A worker's first piece and the cursor behind it, for kernels that have no time to search.
struct alignas(16) WorkerStart {
  Piece piece;
  CursorState cursor;
  int32_t exists;
  int32_t reserved;
};
static_assert(sizeof(Piece) == 104 && sizeof(CursorState) == 112 && sizeof(WorkerStart) == 224, "no padding");

// ---------------------------------------------------------------------------------------------- plan memory

FULMEN_FN int64_t plan_header_bytes() { return round_up<int64_t>(sizeof(PlanHeader), 256); }
FULMEN_FN int64_t plan_array_stride(const ScheduleShape& shape) { return shape.max_requests + 1; }
FULMEN_FN int64_t plan_starts_offset(const ScheduleShape& shape) {
  const int64_t arrays = shape.num_levels * (4 + 2 * shape.num_groups);
  return round_up<int64_t>(plan_header_bytes() + arrays * plan_array_stride(shape) * 8, 256);
}
// Workers of the groups before one.
FULMEN_FN int64_t workers_before(const ScheduleShape& shape, int32_t group) {
  int64_t workers = 0;
  for (int32_t g = 0; g < group; ++g) workers += shape.groups[g].num_workers;
  return workers;
}
FULMEN_FN int64_t plan_bytes(const ScheduleShape& shape) {
  const int64_t starts = shape.num_levels == 1 ? workers_before(shape, shape.num_groups) : 0;
  return round_up<int64_t>(plan_starts_offset(shape) + starts * static_cast<int64_t>(sizeof(WorkerStart)), 256);
}
FULMEN_FN WorkerStart& worker_start(const ScheduleShape& shape, void* memory, int32_t group, int32_t worker) {
  char* starts = static_cast<char*>(memory) + plan_starts_offset(shape);
  return reinterpret_cast<WorkerStart*>(starts)[workers_before(shape, group) + worker];
}

// Typed access to plan memory.
struct PlanView {
  PlanHeader* header;
  int64_t* arrays;
  int64_t stride;
  int32_t num_levels;

  FULMEN_FN PlanView(const ScheduleShape& shape, const void* memory)
      : header(static_cast<PlanHeader*>(const_cast<void*>(memory))),
        arrays(reinterpret_cast<int64_t*>(static_cast<char*>(const_cast<void*>(memory)) + plan_header_bytes())),
        stride(plan_array_stride(shape)),
        num_levels(shape.num_levels) {}

  FULMEN_FN int64_t* row_begin(int32_t level) const { return arrays + (level * 4 + 0) * stride; }
  FULMEN_FN int64_t* key_begin(int32_t level) const { return arrays + (level * 4 + 1) * stride; }
  FULMEN_FN int64_t* key_end(int32_t level) const { return arrays + (level * 4 + 2) * stride; }
  FULMEN_FN int64_t* parent(int32_t level) const { return arrays + (level * 4 + 3) * stride; }
  FULMEN_FN int64_t* cost_prefix(int32_t group, int32_t level) const {
    return arrays + (num_levels * 4 + (group * num_levels + level) * 2 + 0) * stride;
  }
  FULMEN_FN int64_t* tile_prefix(int32_t group, int32_t level) const {
    return arrays + (num_levels * 4 + (group * num_levels + level) * 2 + 1) * stride;
  }
};

}  // namespace fulmen
