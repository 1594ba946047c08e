// Who computes what: the schedule of attention, as pure functions that the host, the device's plan kernel and every
// attention kernel read alike. Nothing is stored per work item.
//
//   level      the requests' keys are chains of segments: shared prefixes first (level 0 ...), a request's own keys
//              last. One level is the usual case. Positions count from the start of the chain.
//   unit       unit_keys keys at absolute multiples of unit_keys: a chunk of the canon, else a key block.
//   ownership  a segment's items own the units between its parent's share_end and its own. A last-level segment
//              (a request) ends at its length, others at the last whole unit: of a prefix only whole units are
//              shared, and the rest is read by each child, from its ancestor's table.
//   row        packed: (token in segment) * group_size + (head in group)
//   tile       (level, segment, kv head, tile_q packed rows). A segment of few rows and many keys may make one wide tile
//              of all its kv heads, rows of head after head: its keys are then read in the order in which they lie. A request's tile sees the units that causality and
//              window leave to its rows; one of another level sees all units of its segment. A tile of a request
//              that sees nothing has one unit of cost, because somebody must write its zeros.
//   cost       of a unit: cost_fixed + cost_per_row * rows of the tile. All tiles lie one after another on a line of
//              cost, ordered by (level, segment, head, tile); prefix sums per segment find any point of it.
//   share      worker w of W takes the units that begin in [w C / W, (w + 1) C / W) of the line (C: total cost), so
//              shares differ by less than a unit. A share cuts at most the tile at each of its ends.
//   piece      the part of a tile that one worker has: a run of units. A tile in one piece whose rows have no keys
//              on other levels is written straight to o. Every other piece leaves partial states: the nodes of the
//              canon tree (canon.hpp) that it covers, or one running state when the canon is off.
//   slot       a place for one partial state of tile_q rows. Worker w owns 2 P slots (P: nodes that a piece with one
//              end cut can leave): the first P for the piece that begins inside a tile, the others for the piece that
//              begins a tile. With several levels each tile has slots of its own too, for when it isn't split.
//
// Plan memory:  PlanHeader (its head is the status record) | arrays of int64, each max_requests + 1 long
//   per level            row_begin, key_begin, key_end (-1: the segment is faulty), parent (-1: none)
//   per group and level  cost_prefix, tile_prefix
#pragma once
#include <kernels/math/canon.hpp>
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

// ---------------------------------------------------------------------------------------------- plan memory

FULMEN_FN int64_t plan_header_bytes() { return round_up<int64_t>(sizeof(PlanHeader), 256); }
FULMEN_FN int64_t plan_array_stride(const ScheduleShape& shape) { return shape.max_requests + 1; }
FULMEN_FN int64_t plan_bytes(const ScheduleShape& shape) {
  const int64_t arrays = shape.num_levels * (4 + 2 * shape.num_groups);
  return round_up<int64_t>(plan_header_bytes() + arrays * plan_array_stride(shape) * 8, 256);
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

// ---------------------------------------------------------------------------------------------- segments and tiles

// A segment of plan memory. `share_begin` .. `share_end` are the keys that its items own.
struct Segment {
  int32_t level, index;
  int64_t row_begin;    // first query row (token)
  int32_t num_rows;     // tokens
  int64_t key_begin;    // position of the first key in the segment's own table
  int64_t key_end;      // length of the chain up to and with this segment
  int64_t share_begin, share_end;
  bool last;            // a request: its rows stand at positions key_end - num_rows + i
  bool valid;
};

FULMEN_FN int64_t whole_units(const ScheduleShape& shape, int64_t keys) {
  return (keys >> shape.unit_log2) << shape.unit_log2;
}

FULMEN_FN Segment load_segment(const ScheduleShape& shape, const PlanView& plan, int32_t level, int32_t index) {
  Segment s;
  s.level = level;
  s.index = index;
  s.row_begin = plan.row_begin(level)[index];
  s.num_rows = static_cast<int32_t>(plan.row_begin(level)[index + 1] - s.row_begin);
  s.key_begin = plan.key_begin(level)[index];
  s.key_end = plan.key_end(level)[index];
  s.valid = s.key_end >= 0;
  s.last = level == shape.num_levels - 1;
  s.share_begin = whole_units(shape, s.key_begin);
  s.share_end = s.last ? s.key_end : whole_units(shape, s.key_end);
  if (!s.valid) s.share_begin = s.share_end = 0;
  return s;
}

struct Tile {
  int32_t level, segment, head, index;  // head: the first one; index: of the tile in its (segment, head)
  int32_t num_heads;                    // 1, or all kv heads: a wide tile
  int32_t row_begin, num_rows;          // packed rows in the segment, of each head
  int32_t unit_begin, unit_end;         // may be empty; costs a unit even then
  int64_t unit_cost;
  int64_t cost_begin;                   // its place on the line

  FULMEN_FN int32_t cost_units() const { return unit_end > unit_begin ? unit_end - unit_begin : 1; }
  FULMEN_FN int64_t cost() const { return unit_cost * cost_units(); }
};

// Keys that a row of a request at position p may see: [first_key, key_limit). Custom masks come on top.
FULMEN_FN int64_t first_key(const ScheduleGroup& group, int64_t position) {
  return group.window_left >= 0 && position > group.window_left ? position - group.window_left : 0;
}
FULMEN_FN int64_t key_limit(const ScheduleGroup& group, int64_t position, int64_t length) {
  if (!group.causal) return length;
  return position < 0 ? 0 : position + 1 < length ? position + 1 : length;
}

// kv heads that stand in one tile of the segment.
FULMEN_FN int32_t tile_heads(const ScheduleGroup& group, const Segment& s) {
  const int64_t rows = static_cast<int64_t>(s.num_rows) * group.group_size * group.num_kv_heads;
  return group.wide_rows > 0 && rows <= group.wide_rows && s.share_end - s.share_begin >= group.wide_keys ? group.num_kv_heads : 1;
}
// Turns that the heads of a segment take on the line.
FULMEN_FN int32_t head_turns(const ScheduleGroup& group, const Segment& s) {
  return tile_heads(group, s) == 1 ? group.num_kv_heads : 1;
}

// Packed rows of a tile of the segment.
FULMEN_FN int32_t tile_rows(const ScheduleGroup& group, const Segment& s) {
  return s.last || group.shared_tile_q == 0 ? group.tile_q : group.shared_tile_q;
}

FULMEN_FN int32_t num_tiles(const ScheduleGroup& group, const Segment& s) {  // of one turn
  if (!s.last && s.share_end <= s.share_begin) return 0;
  return ceil_div(s.num_rows * group.group_size, tile_rows(group, s));
}

// All but cost_begin.
FULMEN_FN Tile make_tile(const ScheduleShape& shape, const ScheduleGroup& group, const Segment& s, int32_t head,
                         int32_t index) {
  Tile tile;
  tile.level = s.level;
  tile.segment = s.index;
  tile.head = head;
  tile.index = index;
  tile.num_heads = tile_heads(group, s);
  tile.row_begin = index * tile_rows(group, s);
  tile.num_rows = min(tile_rows(group, s), s.num_rows * group.group_size - tile.row_begin);
  tile.unit_cost = (group.cost_fixed + static_cast<int64_t>(group.cost_per_row) * tile.num_rows) * tile.num_heads;
  int64_t begin = s.share_begin, end = s.share_end;
  if (s.last && s.valid) {
    const int64_t offset = s.key_end - s.num_rows;
    const int64_t first = offset + tile.row_begin / group.group_size;
    const int64_t last = offset + (tile.row_begin + tile.num_rows - 1) / group.group_size;
    begin = max(begin, first_key(group, first));
    end = min(end, key_limit(group, last, s.key_end));
  }
  if (end < begin) end = begin;
  tile.unit_begin = static_cast<int32_t>(begin >> shape.unit_log2);
  tile.unit_end = static_cast<int32_t>((end + (static_cast<int64_t>(1) << shape.unit_log2) - 1) >> shape.unit_log2);
  if (end == begin) tile.unit_end = tile.unit_begin;
  tile.cost_begin = 0;
  return tile;
}

// Are other levels' states joined to this tile's?
FULMEN_FN bool has_other_levels(const Segment& s) { return s.valid && (!s.last || s.share_begin > 0); }

FULMEN_FN int64_t segment_head_cost(const ScheduleShape& shape, const ScheduleGroup& group, const Segment& s) {
  int64_t cost = 0;
  const int32_t tiles = num_tiles(group, s);
  for (int32_t t = 0; t < tiles; ++t) cost += make_tile(shape, group, s, 0, t).cost();
  return cost;
}

// ---------------------------------------------------------------------------------------------- plan

FULMEN_FN void record_fault(StatusRecord& record, int32_t fault, int32_t level, int32_t request, int64_t value,
                            int64_t limit) {
  if (record.fault != kFaultNone) return;
  record.request = request;
  record.level = level;
  record.value = value;
  record.limit = limit;
  record.fault = fault;
}

// An entry of qo_indptr that is out of bounds is dropped, a decreasing one raised: rows keep a single owner, and the
// segments whose bounds had to be changed are faulty. `running` is the largest good entry before this one.
FULMEN_FN int64_t repaired_row(const ScheduleShape& shape, int64_t entry, int64_t running) {
  return entry < running || entry > shape.max_rows ? running : entry;
}

// Length of a segment's own keys, or -1 with `value` and `limit` of the fault.
FULMEN_FN int64_t segment_length(const ScheduleLengths& lengths, int32_t level, int32_t s, int64_t max_kv_len,
                                 int64_t& value, int64_t& limit) {
  const LevelLengths& in = lengths.levels[level];
  limit = max_kv_len;
  if (in.kv_len) {
    value = load_index(in.kv_len, in.kv_len_i64, s);
  } else {
    const int64_t first = load_index(in.kv_page_indptr, in.kv_page_indptr_i64, s);
    const int64_t end = load_index(in.kv_page_indptr, in.kv_page_indptr_i64, s + 1);
    const int64_t pages = first < 0 || end < first ? -1 : end - first;  // no difference that overflows
    const int64_t last = load_index(in.last_page_len, in.last_page_len_i64, s);
    if (pages == 0) return 0;
    if (pages > 0 && (last < 1 || last > lengths.page_size)) {
      value = last;
      limit = lengths.page_size;
      return -1;
    }
    // Refused before the product can overflow.
    value = pages < 0 || pages > max_kv_len ? (pages < 0 ? pages : max_kv_len + 1)
                                            : (pages - 1) * lengths.page_size + last;
  }
  return value < 0 || value > max_kv_len ? -1 : value;
}

// Rows and keys of segment s of a level: writes key_begin, key_end, parent. row_begin of this level (repaired) and all
// of the level above must be there. Faults go to `record`.
FULMEN_FN void plan_segment(const ScheduleShape& shape, const ScheduleLengths& lengths, const PlanView& plan,
                            int32_t level, int32_t s, StatusRecord& record) {
  const LevelLengths& in = lengths.levels[level];
  const int64_t begin = plan.row_begin(level)[s], end = plan.row_begin(level)[s + 1];
  const int64_t given_begin = load_index(in.qo_indptr, in.qo_indptr_i64, s);
  const int64_t given_end = load_index(in.qo_indptr, in.qo_indptr_i64, s + 1);
  bool valid = true;
  if (given_begin != begin || given_end != end) {
    valid = false;
    record_fault(record, kFaultQoIndptr, level, s, given_begin != begin ? given_begin : given_end, shape.max_rows);
  } else if (level == shape.num_levels - 1 && end - begin > shape.max_qo_len) {
    valid = false;
    record_fault(record, kFaultQoIndptr, level, s, end - begin, shape.max_qo_len);
  }
  int64_t parent = -1, key_begin = 0;
  if (level > 0 && end > begin) {
    // The parent is the segment above that holds these rows; none where the level above doesn't span them.
    const int64_t* above = plan.row_begin(level - 1);
    const int32_t n = plan.header->num_segments[level - 1];
    if (n > 0 && begin >= above[0] && begin < above[n]) {
      parent = search_prefix(above, n, begin);
      key_begin = plan.key_end(level - 1)[parent];
      if (end > above[parent + 1]) {
        if (valid) record_fault(record, kFaultQoIndptr, level, s, end, above[parent + 1]);
        valid = false;
      }
      if (key_begin < 0) {  // recorded already, at the parent
        valid = false;
        key_begin = 0;
      }
    }
  }
  int64_t value = 0, limit = 0;
  const int64_t own = segment_length(lengths, level, s, shape.max_kv_len, value, limit);
  if (own < 0 || key_begin + own > shape.max_kv_len) {
    if (valid) record_fault(record, kFaultKvLen, level, s, own < 0 ? value : key_begin + own, limit);
    valid = false;
  }
  plan.key_begin(level)[s] = key_begin;
  plan.key_end(level)[s] = valid ? key_begin + own : -1;
  plan.parent(level)[s] = parent;
}

// The whole plan by one thread: the host's, and the model for the device's, which does the loops over s in parallel.
FULMEN_FN void plan_serial(const ScheduleShape& shape, const ScheduleLengths& lengths, void* memory) {
  const PlanView plan(shape, memory);
  PlanHeader& header = *plan.header;
  header.status = StatusRecord{0, 0, 0, 0, 0};
  header.num_levels = shape.num_levels;
  header.reserved = 0;
  for (int32_t level = 0; level < kMaxLevels; ++level) {
    header.num_segments[level] = level < shape.num_levels ? lengths.levels[level].num_segments : 0;
  }
  for (int32_t level = 0; level < shape.num_levels; ++level) {
    const LevelLengths& in = lengths.levels[level];
    int64_t running = 0;
    for (int32_t s = 0; s <= in.num_segments; ++s) {
      running = repaired_row(shape, load_index(in.qo_indptr, in.qo_indptr_i64, s), running);
      plan.row_begin(level)[s] = running;
    }
    for (int32_t s = 0; s < in.num_segments; ++s) plan_segment(shape, lengths, plan, level, s, header.status);
  }
  const int32_t last = shape.num_levels - 1;
  header.total_rows = plan.row_begin(last)[header.num_segments[last]];
  for (int32_t g = 0; g < shape.num_groups; ++g) {
    const ScheduleGroup& group = shape.groups[g];
    int64_t cost = 0, tiles = 0;
    for (int32_t level = 0; level < shape.num_levels; ++level) {
      header.level_cost[g][level] = cost;
      header.level_tiles[g][level] = tiles;
      int64_t level_cost = 0, level_tiles = 0;
      int64_t* cost_prefix = plan.cost_prefix(g, level);
      int64_t* tile_prefix = plan.tile_prefix(g, level);
      for (int32_t s = 0; s < header.num_segments[level]; ++s) {
        cost_prefix[s] = level_cost;
        tile_prefix[s] = level_tiles;
        const Segment segment = load_segment(shape, plan, level, s);
        level_cost += segment_head_cost(shape, group, segment) * head_turns(group, segment);
        level_tiles += static_cast<int64_t>(num_tiles(group, segment)) * head_turns(group, segment);
      }
      cost_prefix[header.num_segments[level]] = level_cost;
      tile_prefix[header.num_segments[level]] = level_tiles;
      cost += level_cost;
      tiles += level_tiles;
    }
    header.level_cost[g][shape.num_levels] = cost;
    header.level_tiles[g][shape.num_levels] = tiles;
  }
}

// ---------------------------------------------------------------------------------------------- shares

FULMEN_FN int64_t total_cost(const ScheduleShape& shape, const PlanView& plan, int32_t group) {
  return plan.header->level_cost[group][shape.num_levels];
}
// Where worker w's share begins. Products stay below 2^63: cost < 2^47 and at most 2^16 workers.
FULMEN_FN int64_t share_begin(int64_t total, int32_t workers, int32_t w) { return divide(total * w, workers); }
// The worker whose share holds this point of the line.
FULMEN_FN int32_t worker_of(int64_t total, int32_t workers, int64_t cost) {
  return static_cast<int32_t>(divide((cost + 1) * workers - 1, total));
}

// A run of units of one tile in one worker's hands.
struct Piece {
  Segment segment;
  Tile tile;
  int32_t unit_begin, unit_end;  // both tile.unit_begin where the tile is empty
  bool starts_tile, ends_tile;   // both: the tile is not split
};

// Walks the pieces of one worker in order, if wanted on some levels only:
//   PieceCursor c(shape, plan, g, w); while (c.next(piece)) ...
struct PieceCursor {
  const ScheduleShape& shape;
  const PlanView plan;  // by value: a cursor may live where the device's local memory can't be reached from
  int32_t group;
  int64_t position, end;  // on the line; position: where the next unit to take begins, or earlier
  int32_t level, segment, head, tile;
  int64_t tile_cost;      // where `tile` begins
  Segment current;
  int32_t tiles, turns;   // of the current segment: tiles per turn, turns of its heads
  bool spent = false;     // `tile` has been visited: the next piece is of the tile behind it, which is looked up only then

  FULMEN_FN PieceCursor(const ScheduleShape& shape_, const PlanView& plan_, int32_t group_, int32_t worker)
      : PieceCursor(shape_, plan_, group_, worker, 0, shape_.num_levels) {}
  FULMEN_FN PieceCursor(const ScheduleShape& shape_, const PlanView& plan_, int32_t group_, int32_t worker,
                        int32_t first_level, int32_t end_level)
      : shape(shape_), plan(plan_), group(group_) {
    const int64_t total = total_cost(shape, plan, group);
    const int32_t workers = shape.groups[group].num_workers;
    position = max(share_begin(total, workers, worker), plan.header->level_cost[group][first_level]);
    end = min(share_begin(total, workers, worker + 1), plan.header->level_cost[group][end_level]);
    if (position < end) seek();
  }

  // The next piece, or false when the share is done.
  FULMEN_FN bool next(Piece& piece) {
    while (position < end) {
      if (spent) advance();
      Tile& t = piece.tile;
      t = make_tile(shape, shape.groups[group], current, head, tile);
      t.cost_begin = tile_cost;
      piece.segment = current;
      const int64_t tile_end = tile_cost + t.cost();
      // Units that begin in [position, end).
      const int32_t units = t.cost_units();
      const int32_t from = position <= tile_cost
                               ? 0
                               : static_cast<int32_t>(divide(position - tile_cost + t.unit_cost - 1, t.unit_cost));
      const int32_t to =
          end >= tile_end ? units : static_cast<int32_t>(divide(end - tile_cost + t.unit_cost - 1, t.unit_cost));
      position = tile_end;
      spent = true;
      if (from >= to) continue;
      piece.starts_tile = from == 0;
      piece.ends_tile = to == units;
      piece.unit_begin = t.unit_begin + from;
      piece.unit_end = t.unit_end > t.unit_begin ? t.unit_begin + to : t.unit_begin;
      return true;
    }
    return false;
  }

 private:
  // Finds the tile that holds `position`.
  FULMEN_FN void seek() {
    const int64_t* levels = plan.header->level_cost[group];
    level = 0;
    while (position >= levels[level + 1]) ++level;
    const int64_t in_level = position - levels[level];
    const int64_t* prefix = plan.cost_prefix(group, level);
    segment = search_prefix(prefix, plan.header->num_segments[level], in_level);
    enter_segment();
    const int64_t in_segment = in_level - prefix[segment];
    const int64_t head_cost = divide(prefix[segment + 1] - prefix[segment], turns);
    head = static_cast<int32_t>(divide(in_segment, head_cost));
    tile_cost = levels[level] + prefix[segment] + head * head_cost;
    for (tile = 0;; ++tile) {
      const int64_t cost = make_tile(shape, shape.groups[group], current, head, tile).cost();
      if (position < tile_cost + cost) break;
      tile_cost += cost;
    }
  }
  FULMEN_FN void enter_segment() {
    current = load_segment(shape, plan, level, segment);
    tiles = num_tiles(shape.groups[group], current);
    turns = head_turns(shape.groups[group], current);
  }
  // To the tile that begins at `position`.
  FULMEN_FN void advance() {
    spent = false;
    tile_cost = position;
    if (++tile < tiles) return;
    tile = 0;
    if (++head < turns) return;
    head = 0;
    do {
      if (++segment == plan.header->num_segments[level]) {
        do {
          ++level;
        } while (plan.header->num_segments[level] == 0);
        segment = 0;
      }
      enter_segment();
    } while (tiles == 0);
  }
};

// ---------------------------------------------------------------------------------------------- partial states

// Where partial states lie. Counts are exact for the shape's limits, the largest over its groups.
struct SlotLayout {
  int32_t nodes_per_cut;    // P's factor: nodes that one cut end can leave
  int32_t nodes_per_piece;  // P
  int64_t worker_slots;
  int64_t tile_slots;       // per-tile slots, with several levels only
};

// Tiles of one level, all kv heads: at most `segments` of them have rows, and a segment's last tile may be ragged.
FULMEN_FN int64_t max_level_tiles(const ScheduleShape& shape, const ScheduleGroup& group) {
  const int64_t rows = shape.max_rows * group.group_size;
  const int64_t segments = min(shape.max_requests, shape.max_rows);
  // ceil(x / T) <= (x + T - g) / T for multiples x of g where g divides T; in general (x + T - 1) / T.
  const int64_t slack = group.tile_q % group.group_size == 0 ? group.group_size : 1;
  return divide(rows + segments * (group.tile_q - slack), group.tile_q) * group.num_kv_heads;
}

FULMEN_FN SlotLayout slot_layout(const ScheduleShape& shape) {
  SlotLayout layout;
  const int32_t max_units = static_cast<int32_t>(
      (shape.max_kv_len + (static_cast<int64_t>(1) << shape.unit_log2) - 1) >> shape.unit_log2);
  layout.nodes_per_cut = shape.canonical ? canon::max_nodes_per_cut(max_units) : 1;
  // Where other levels continue a tile's keys both its ends are cut.
  layout.nodes_per_piece = layout.nodes_per_cut * (shape.canonical && shape.num_levels > 1 ? 2 : 1);
  layout.worker_slots = layout.tile_slots = 0;
  for (int32_t g = 0; g < shape.num_groups; ++g) {
    const ScheduleGroup& group = shape.groups[g];
    layout.worker_slots =
        max(layout.worker_slots, static_cast<int64_t>(group.num_workers) * 2 * layout.nodes_per_piece);
    if (shape.num_levels > 1) {
      layout.tile_slots = max(layout.tile_slots,
                              max_level_tiles(shape, group) * shape.num_levels * layout.nodes_per_piece);
    }
  }
  return layout;
}
FULMEN_FN int64_t num_slots(const SlotLayout& layout) { return layout.worker_slots + layout.tile_slots; }

// Floats of one slot: o [tile_q, head_dim_vo rounded up to 16], then m [tile_q], then l [tile_q].
// m is the maximum in units of log2 (logits times log2 e); an empty row has m = -inf, l = 0, o = 0.
FULMEN_FN int64_t slot_floats(int32_t tile_q, int32_t head_dim_vo) {
  return static_cast<int64_t>(tile_q) * (round_up(head_dim_vo, 16) + 2);
}

FULMEN_FN int64_t tile_ordinal(const ScheduleShape& shape, const PlanView& plan, int32_t group, const Tile& tile,
                               int32_t tiles_per_head) {
  return max_level_tiles(shape, shape.groups[group]) * tile.level + plan.tile_prefix(group, tile.level)[tile.segment] +
         static_cast<int64_t>(tile.head) * tiles_per_head + tile.index;
}

// First slot of a piece that `worker` computes.
FULMEN_FN int64_t first_slot(const ScheduleShape& shape, const SlotLayout& layout, const PlanView& plan, int32_t group,
                             const Piece& piece, int32_t worker) {
  if (piece.starts_tile && piece.ends_tile) {
    return layout.worker_slots +
           tile_ordinal(shape, plan, group, piece.tile, num_tiles(shape.groups[group], piece.segment)) *
               layout.nodes_per_piece;
  }
  return (static_cast<int64_t>(worker) * 2 + (piece.starts_tile ? 1 : 0)) * layout.nodes_per_piece;
}

// The units between which the rows' states can't come from elsewhere: nodes may reach past a piece's end only here.
FULMEN_FN int32_t tree_first(const Segment& s, const Tile& tile) { return s.share_begin > 0 ? 0 : tile.unit_begin; }
FULMEN_FN int32_t tree_last(const Segment& s, const Tile& tile) { return s.last ? tile.unit_end : 0x7fffffff; }

// Does the piece go straight to o?
FULMEN_FN bool is_complete(const Piece& piece) {
  return piece.starts_tile && piece.ends_tile && !has_other_levels(piece.segment);
}

// The nodes of a piece in order: node i goes to slot first_slot + i. Without the canon there is one.
struct NodeCursor {
  int32_t begin, end, first, last;
  bool canonical;
  FULMEN_FN NodeCursor(const ScheduleShape& shape, const Piece& piece)
      : begin(piece.unit_begin), end(piece.unit_end), first(tree_first(piece.segment, piece.tile)),
        last(tree_last(piece.segment, piece.tile)), canonical(shape.canonical != 0) {}
  FULMEN_FN bool next(int32_t& node_begin, int32_t& node_end) {
    if (begin >= end) return false;
    node_begin = begin;
    node_end = canonical ? canon::node_end(begin, end, first, last) : end;
    begin = node_end;
    return true;
  }
};

// The pieces of a given tile (cost_begin set), in order of their keys.
struct TilePieces {
  Segment segment;
  Tile tile;
  int64_t total;
  int32_t workers, worker, last_worker;
  FULMEN_FN TilePieces(const ScheduleShape& shape, const PlanView& plan, int32_t group, const Segment& segment_,
                       const Tile& tile_)
      : segment(segment_), tile(tile_), total(total_cost(shape, plan, group)), workers(shape.groups[group].num_workers) {
    worker = worker_of(total, workers, tile.cost_begin);
    last_worker = worker_of(total, workers, tile.cost_begin + (tile.cost_units() - 1) * tile.unit_cost);
  }
  FULMEN_FN bool is_split() const { return last_worker > worker; }
  // Workers without a unit of the tile (shares smaller than a unit) are skipped.
  FULMEN_FN bool next(Piece& piece, int32_t& piece_worker) {
    while (worker <= last_worker) {
      const int64_t begin = share_begin(total, workers, worker), end = share_begin(total, workers, worker + 1);
      const int32_t units = tile.cost_units();
      const int32_t from =
          begin <= tile.cost_begin
              ? 0
              : static_cast<int32_t>(divide(begin - tile.cost_begin + tile.unit_cost - 1, tile.unit_cost));
      const int32_t to = end >= tile.cost_begin + tile.cost()
                             ? units
                             : static_cast<int32_t>(divide(end - tile.cost_begin + tile.unit_cost - 1, tile.unit_cost));
      piece_worker = worker++;
      if (from >= to) continue;
      piece.segment = segment;
      piece.tile = tile;
      piece.starts_tile = from == 0;
      piece.ends_tile = to == units;
      piece.unit_begin = tile.unit_begin + from;
      piece.unit_end = tile.unit_end > tile.unit_begin ? tile.unit_begin + to : tile.unit_begin;
      return true;
    }
    return false;
  }
};

// cost_begin of a tile. A request's tiles differ, so it is a sum over those before it.
FULMEN_FN int64_t tile_cost_begin(const ScheduleShape& shape, const PlanView& plan, int32_t group, const Segment& s,
                                  int32_t head, int32_t index) {
  const ScheduleGroup& g = shape.groups[group];
  const int64_t* prefix = plan.cost_prefix(group, s.level);
  const int64_t head_cost = divide(prefix[s.index + 1] - prefix[s.index], head_turns(g, s));
  int64_t cost = plan.header->level_cost[group][s.level] + prefix[s.index] + head * head_cost;
  if (!s.last) return cost + (index > 0 ? make_tile(shape, g, s, head, 0).cost() * index : 0);
  for (int32_t t = 0; t < index; ++t) cost += make_tile(shape, g, s, head, t).cost();
  return cost;
}

// The segment of another level that a segment's rows stand in, -1: none.
FULMEN_FN int32_t ancestor(const PlanView& plan, int32_t level, int32_t segment, int32_t above) {
  for (; level > above && segment >= 0; --level) segment = static_cast<int32_t>(plan.parent(level)[segment]);
  return segment;
}

// Tile number `ordinal` of a level, for whoever takes whole tiles by a counter: sections of heads, of a section the last tiles
// of all heads, the longest, first. The longest tile of one last head would keep everyone waiting; and tiles that start
// together read the same keys together, so that L2 need not hold all of a section's (docs/kernels/attend_sm80.md).
FULMEN_FN Tile tile_by_counter(const ScheduleShape& shape, const PlanView& plan, int32_t group, int32_t level,
                               int64_t ordinal, Segment& s) {
  constexpr int32_t kKeysAtOnce = 1 << 18;
  const ScheduleGroup& g = shape.groups[group];
  const int64_t* prefix = plan.tile_prefix(group, level);
  s = load_segment(shape, plan, level, search_prefix(prefix, plan.header->num_segments[level], ordinal));
  const int32_t in_segment = static_cast<int32_t>(ordinal - prefix[s.index]);
  const int32_t tiles = num_tiles(g, s);
  const int32_t at_once = max(1, kKeysAtOnce / static_cast<int32_t>(max<int64_t>(1, s.share_end - s.share_begin)));
  const int32_t sections = ceil_div(g.num_kv_heads, at_once), width = ceil_div(g.num_kv_heads, sections);
  const int32_t first = in_segment / (width * tiles) * width, heads = min(width, g.num_kv_heads - first);
  const int32_t in_section = in_segment - first * tiles, row = in_section / heads;
  return make_tile(shape, g, s, first + in_section - row * heads, tiles - 1 - row);
}
// Whole tiles by a counter, or equal shares? Whole tiles where there are so many that the last one of each worker
// costs little: no partial states then. Shares otherwise. With several levels always shares.
FULMEN_FN bool take_whole_tiles(const ScheduleShape& shape, const PlanView& plan, int32_t group) {
  return shape.num_levels == 1 &&
         plan.header->level_tiles[group][1] >= 4 * static_cast<int64_t>(shape.groups[group].num_workers);
}

}  // namespace fulmen
