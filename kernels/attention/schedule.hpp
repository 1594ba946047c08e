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
//   tile       (level, segment, kv head, tile_q packed rows). A segment of few rows and many keys may make one wide tile of all
//              its kv heads, rows of head after head: its keys are then read in the order in which they lie. A request's tile sees
//              the units that causality and window leave to its rows; one of another level sees all units of its segment. A tile
//              of a request that sees nothing has one unit of cost, because somebody must write its zeros.
//   cost       of a unit: cost_fixed + cost_per_row * rows of the tile. All tiles lie one after another on a line of
//              cost, ordered by (level, segment, head, tile); prefix sums per segment find any point of it. Behind each
//              tile's units may be a gap, for what a tile costs beside them.
//   share      worker w takes the units that begin in [w S, (w + 1) S) of the line. S is a W-th of the total cost, rounded up, so
//              no worker has more than that and a unit. A share cuts at most the tile at each of its ends. Where all tiles
//              are alike, S and the gap are such that each is cut evenly, or none is, if that costs little (balance).
//   piece      the part of a tile that one worker has: a run of units. A tile in one piece whose rows have no keys
//              on other levels is written straight to o. Every other piece leaves partial states: the nodes of the
//              canon tree (canon.hpp) that it covers, or one running state when the canon is off.
//   slot       a place for one partial state of tile_q rows. Worker w owns 2 P slots (P: nodes that a piece with one
//              end cut can leave): the first P for the piece that begins inside a tile, the others for the piece that
//              begins a tile. With several levels each tile has slots of its own too, for when it isn't split.
#pragma once
#include <kernels/attention/plan_memory.hpp>
#include <kernels/attention/tiles.hpp>
#include <kernels/math/canon.hpp>

namespace fulmen {

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
struct OwnKeys {
  int64_t length, value, limit;
};
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

FULMEN_FN OwnKeys own_keys(const ScheduleShape& shape, const ScheduleLengths& lengths, int32_t level, int32_t s) {
  OwnKeys own{0, 0, 0};
  own.length = segment_length(lengths, level, s, shape.max_kv_len, own.value, own.limit);
  return own;
}

// The bounds of a segment's rows: repaired, and as they were given.
struct RowBounds {
  int32_t begin, end;
  int64_t given_begin, given_end;
};

// Segment s of a level; writes its keys and parent. All of the level above must be in plan memory. Faults go to `record`.
FULMEN_FN Segment plan_segment(const ScheduleShape& shape, const PlanView& plan, int32_t level, int32_t s, const RowBounds& rows,
                               const OwnKeys& own, StatusRecord& record) {
  bool valid = true;
  if (rows.given_begin != rows.begin || rows.given_end != rows.end) {
    valid = false;
    record_fault(record, kFaultQoIndptr, level, s, rows.given_begin != rows.begin ? rows.given_begin : rows.given_end, shape.max_rows);
  } else if (level == shape.num_levels - 1 && rows.end - rows.begin > shape.max_qo_len) {
    valid = false;
    record_fault(record, kFaultQoIndptr, level, s, rows.end - rows.begin, shape.max_qo_len);
  }
  int64_t parent = -1, key_begin = 0;
  if (level > 0 && rows.end > rows.begin) {
    // The parent is the segment above that holds these rows; none where the level above doesn't span them.
    const int64_t* above = plan.row_begin(level - 1);
    const int32_t n = plan.header->num_segments[level - 1];
    if (n > 0 && rows.begin >= above[0] && rows.begin < above[n]) {
      parent = search_prefix(above, n, rows.begin);
      key_begin = plan.key_end(level - 1)[parent];
      if (rows.end > above[parent + 1]) {
        if (valid) record_fault(record, kFaultQoIndptr, level, s, rows.end, above[parent + 1]);
        valid = false;
      }
      if (key_begin < 0) {  // recorded already, at the parent
        valid = false;
        key_begin = 0;
      }
    }
  }
  if (own.length < 0 || key_begin + own.length > shape.max_kv_len) {
    if (valid) record_fault(record, kFaultKvLen, level, s, own.length < 0 ? own.value : key_begin + own.length, own.limit);
    valid = false;
  }
  const int64_t key_end = valid ? key_begin + own.length : -1;
  plan.key_begin(level)[s] = key_begin;
  plan.key_end(level)[s] = key_end;
  plan.parent(level)[s] = parent;
  return make_segment(shape, level, s, rows.begin, rows.end, static_cast<int32_t>(key_begin), static_cast<int32_t>(key_end));
}

// How the line is dealt out: `units` is the cost of all tiles' units; `each` that of each tile where they are all alike, else 0.
struct Balance {
  int64_t share, gap;
};
FULMEN_FN Balance balance(const ScheduleGroup& group, int64_t units, int64_t tiles, int64_t each) {
  const int64_t workers = group.num_workers, unit = group.cost_fixed + group.cost_per_row;
  const int64_t equal = divide(units + workers - 1, workers);
  if (group.piece_units > 0 && each > 0) {
    // As many pieces of each tile as there are workers for it, or as many whole tiles for each worker as it takes. Worth up to
    // two units more than equal shares, because joining a piece costs as much, and up to a 32nd of them: a memory that is
    // busy doesn't miss the last workers, and workers that begin tiles at one time find shared pages in the cache.
    const int64_t pieces = divide(workers, tiles), whole = divide(tiles + workers - 1, workers);
    const int64_t least = pieces == 0 ? 0 : divide(each + unit * pieces - 1, unit * pieces) * unit;
    const int64_t piece = pieces == 0 ? whole * each : min(each, max(unit * group.piece_units, least));
    if (piece <= equal + 2 * unit + equal / 32) return {piece, pieces == 0 ? 0 : divide(each + piece - 1, piece) * piece - each};
  }
  const int64_t gap = tiles > workers ? group.tile_cost : 0;
  return {max(divide(units + gap * tiles + workers - 1, workers), unit * max(1, group.piece_units)), gap};
}

// What a segment adds to the sums over segments, and the cost of each of its tiles if it has one a head.
struct SegmentCost {
  int64_t units, tiles, each;
};
FULMEN_FN SegmentCost segment_cost(const ScheduleShape& shape, const ScheduleGroup& group, const Segment& s) {
  const int32_t tiles = num_tiles(group, s), turns = head_turns(group, s);
  const int64_t head = segment_head_cost(shape, group, s);
  return {head * turns, static_cast<int64_t>(tiles) * turns, tiles == 1 ? head : 0};
}
// Prefix sums and shares of a group, from the segments in plan memory.
FULMEN_FN void plan_group(const ScheduleShape& shape, const PlanView& plan, int32_t g) {
  PlanHeader& header = *plan.header;
  const ScheduleGroup& group = shape.groups[g];
  int64_t units = 0, tiles = 0, each = 0;
  bool alike = shape.num_levels == 1;
  for (int32_t level = 0; level < shape.num_levels; ++level) {
    const int32_t n = header.num_segments[level];
    header.level_cost[g][level] = units;
    header.level_tiles[g][level] = tiles;
    int64_t* cost_prefix = plan.cost_prefix(g, level);
    int64_t* tile_prefix = plan.tile_prefix(g, level);
    for (int32_t s = 0; s <= n; ++s) {
      cost_prefix[s] = units - header.level_cost[g][level];
      tile_prefix[s] = tiles - header.level_tiles[g][level];
      if (s == n) break;
      const SegmentCost cost = segment_cost(shape, group, load_segment(shape, plan, level, s));
      units += cost.units;
      tiles += cost.tiles;
      if (cost.tiles == 0) continue;
      if (each == 0) each = cost.each;
      alike = alike && cost.each > 0 && cost.each == each;
    }
  }
  header.level_cost[g][shape.num_levels] = units;
  header.level_tiles[g][shape.num_levels] = tiles;
  const Balance by = balance(group, units, tiles, alike ? each : 0);
  header.share[g] = by.share;
  header.gap[g] = by.gap;
  if (by.gap == 0) return;
  for (int32_t level = 0; level <= shape.num_levels; ++level) {
    header.level_cost[g][level] += by.gap * header.level_tiles[g][level];
    if (level == shape.num_levels) break;
    for (int32_t s = 0; s <= header.num_segments[level]; ++s) plan.cost_prefix(g, level)[s] += by.gap * plan.tile_prefix(g, level)[s];
  }
}

// The whole plan by one thread: the host's, and the model for the device's, which does the loops over s in parallel and also
// writes where each worker starts.
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
    int64_t given = load_index(in.qo_indptr, in.qo_indptr_i64, 0);
    int64_t running = repaired_row(shape, given, 0);
    plan.row_begin(level)[0] = running;
    for (int32_t s = 0; s < in.num_segments; ++s) {
      const int64_t next = load_index(in.qo_indptr, in.qo_indptr_i64, s + 1), end = repaired_row(shape, next, running);
      const RowBounds rows{static_cast<int32_t>(running), static_cast<int32_t>(end), given, next};
      plan_segment(shape, plan, level, s, rows, own_keys(shape, lengths, level, s), header.status);
      plan.row_begin(level)[s + 1] = end;
      running = end;
      given = next;
    }
  }
  const int32_t last = shape.num_levels - 1;
  header.total_rows = plan.row_begin(last)[header.num_segments[last]];
  for (int32_t g = 0; g < shape.num_groups; ++g) plan_group(shape, plan, g);
}

// ---------------------------------------------------------------------------------------------- shares

FULMEN_FN int64_t total_cost(const ScheduleShape& shape, const PlanView& plan, int32_t group) {
  return plan.header->level_cost[group][shape.num_levels];
}
// Where worker w's share begins. Products stay below 2^63: cost < 2^47 and at most 2^16 workers.
FULMEN_FN int64_t share_begin(int64_t total, int64_t share, int32_t w) { return min(total, share * w); }
// The worker whose share holds this point of the line.
FULMEN_FN int32_t worker_of(int64_t share, int64_t cost) { return static_cast<int32_t>(divide(cost, share)); }

// Walks the pieces of one worker in order, if wanted on some levels only:
//   PieceCursor c(shape, plan, g, w); while (c.next(piece)) ...
struct PieceCursor : CursorState {
  const ScheduleShape& shape;
  const PlanView plan;  // by value: a cursor may live where the device's local memory can't be reached from

  // Its state is still to be set.
  FULMEN_FN PieceCursor(const ScheduleShape& shape_, const PlanView& plan_) : shape(shape_), plan(plan_) {}
  FULMEN_FN PieceCursor(const ScheduleShape& shape_, const PlanView& plan_, int32_t group_, int32_t worker)
      : PieceCursor(shape_, plan_, group_, worker, 0, shape_.num_levels) {}
  FULMEN_FN PieceCursor(const ScheduleShape& shape_, const PlanView& plan_, int32_t group_, int32_t worker,
                        int32_t first_level, int32_t end_level)
      : shape(shape_), plan(plan_) {
    const PlanHeader& header = *plan.header;
    const int64_t* levels = header.level_cost[group_];
    const Balance by{header.share[group_], header.gap[group_]};
    if (!enter_share(group_, by, worker, levels[first_level], levels[end_level])) return;
    while (position >= levels[level + 1]) ++level;
    const int64_t* prefix = plan.cost_prefix(group, level);
    const int32_t found = search_prefix(prefix, header.num_segments[level], position - levels[level]);
    seek(load_segment(shape, plan, level, found), levels[level] + prefix[found], prefix[found + 1] - prefix[found]);
  }

  // The worker's share between two points of the line. False if it is empty.
  FULMEN_FN bool enter_share(int32_t group_, const Balance& by, int32_t worker, int64_t first, int64_t last) {
    group = group_;
    level = segment = head = tile = tiles = turns = 0;
    spent = 0;
    tile_cost = 0;
    current = Segment{};
    share = by.share;
    gap = by.gap;
    position = max(share * worker, first);
    end = min(share * (worker + 1), last);
    return position < end;
  }
  // To the tile that holds `position`, one of the segment that begins at `begin` of the line and costs so much.
  FULMEN_FN void seek(const Segment& found, int64_t begin, int64_t cost) {
    segment = found.index;
    enter_segment(found);
    const int64_t head_cost = divide(cost, turns);
    head = static_cast<int32_t>(divide(position - begin, head_cost));
    tile_cost = begin + head * head_cost;
    for (tile = 0;; ++tile) {
      const int64_t cost = cost_of(make_tile(shape, shape.groups[group], current, head, tile));
      if (position < tile_cost + cost) break;
      tile_cost += cost;
    }
  }
  // On the line, with the gap behind it.
  FULMEN_FN int64_t cost_of(const Tile& t) const { return t.cost() + gap; }

  // The next piece, or false when the share is done.
  FULMEN_FN bool next(Piece& piece) {
    while (position < end) {
      if (spent) advance();
      Tile& t = piece.tile;
      t = make_tile(shape, shape.groups[group], current, head, tile);
      t.cost_begin = tile_cost;
      piece.segment = current;
      const int32_t from = t.units_before(position), to = t.units_before(end);  // units that begin in [position, end)
      position = tile_cost + cost_of(t);
      spent = 1;
      if (from >= to) continue;
      piece.starts_tile = from == 0;
      piece.ends_tile = to == t.cost_units();
      piece.unit_begin = t.unit_begin + from;
      piece.unit_end = t.unit_end > t.unit_begin ? t.unit_begin + to : t.unit_begin;
      return true;
    }
    return false;
  }

 private:
  FULMEN_FN void enter_segment(const Segment& s) {
    current = s;
    tiles = num_tiles(shape.groups[group], current);
    turns = head_turns(shape.groups[group], current);
  }
  // To the tile that begins at `position`.
  FULMEN_FN void advance() {
    spent = 0;
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
      enter_segment(load_segment(shape, plan, level, segment));
    } while (tiles == 0);
  }
};

// Where a worker starts on the line of a group, whose end is `total`. `find` gives the segment that holds a point of the line, with
// its place and cost. One level only.
struct PlacedSegment {
  Segment segment;
  int64_t begin, cost;
};
template <class Find>
FULMEN_FN void find_start(const ScheduleShape& shape, const PlanView& plan, int32_t group, const Balance& by, int64_t total,
                          int32_t worker, WorkerStart& start, const Find& find) {
  PieceCursor cursor(shape, plan);
  Piece piece{};
  bool exists = false;
  if (cursor.enter_share(group, by, worker, 0, total)) {
    const PlacedSegment at = find(cursor.position);
    cursor.seek(at.segment, at.begin, at.cost);
    exists = cursor.next(piece);
  }
  start.piece = piece;
  start.cursor = cursor;
  start.exists = exists;
  start.reserved = 0;
}
// The same from plan memory alone.
FULMEN_FN void find_start(const ScheduleShape& shape, const PlanView& plan, int32_t group, int32_t worker, WorkerStart& start) {
  const PlanHeader& header = *plan.header;
  const int64_t* prefix = plan.cost_prefix(group, 0);
  find_start(shape, plan, group, {header.share[group], header.gap[group]}, total_cost(shape, plan, group), worker, start,
             [&](int64_t point) {
               const int32_t s = search_prefix(prefix, header.num_segments[0], point);
               return PlacedSegment{load_segment(shape, plan, 0, s), prefix[s], prefix[s + 1] - prefix[s]};
             });
}

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
  int64_t total, share;
  int32_t worker, last_worker;
  FULMEN_FN TilePieces(const ScheduleShape& shape, const PlanView& plan, int32_t group, const Segment& segment_,
                       const Tile& tile_)
      : segment(segment_), tile(tile_), total(total_cost(shape, plan, group)), share(plan.header->share[group]) {
    worker = worker_of(share, tile.cost_begin);
    last_worker = worker_of(share, tile.cost_begin + tile.cost() - tile.unit_cost);
  }
  FULMEN_FN bool is_split() const { return last_worker > worker; }
  // Workers without a unit of the tile (shares smaller than a unit) are skipped.
  FULMEN_FN bool next(Piece& piece, int32_t& piece_worker) {
    while (worker <= last_worker) {
      const int32_t from = tile.units_before(share_begin(total, share, worker));
      const int32_t to = tile.units_before(share_begin(total, share, worker + 1)), units = tile.cost_units();
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
  const int64_t gap = plan.header->gap[group];
  if (!s.last) return cost + (index > 0 ? (make_tile(shape, g, s, head, 0).cost() + gap) * index : 0);
  for (int32_t t = 0; t < index; ++t) cost += make_tile(shape, g, s, head, t).cost() + gap;
  return cost;
}

// The segment of another level that a segment's rows stand in, -1: none.
FULMEN_FN int32_t ancestor(const PlanView& plan, int32_t level, int32_t segment, int32_t above) {
  for (; level > above && segment >= 0; --level) segment = static_cast<int32_t>(plan.parent(level)[segment]);
  return segment;
}

// Tile number `in_segment` of a segment, for whoever takes whole tiles by a counter: sections of heads, of a section the last
// tiles of all heads, the longest, first. The longest tile of one last head would keep everyone waiting; and tiles that start
// together read the same keys together, so that L2 need not hold all of a section's (docs/kernels/attend_sm80.md).
FULMEN_FN Tile tile_by_counter(const ScheduleShape& shape, int32_t group, const Segment& s, int32_t in_segment) {
  constexpr int32_t kKeysAtOnce = 1 << 18;
  const ScheduleGroup& g = shape.groups[group];
  const int32_t tiles = num_tiles(g, s), keys = s.share_end - s.share_begin;
  int32_t first = 0, heads = g.num_kv_heads;
  if (static_cast<int64_t>(keys) * heads > kKeysAtOnce) {
    const int32_t at_once = max(1, kKeysAtOnce / keys);
    const int32_t width = ceil_div(heads, ceil_div(heads, at_once));
    first = in_segment / (width * tiles) * width;
    heads = min(width, heads - first);
  }
  const int32_t in_section = in_segment - first * tiles, row = divide_by_power(in_section, heads);
  return make_tile(shape, g, s, first + in_section - row * heads, tiles - 1 - row);
}
// Whole tiles by a counter, or equal shares? Whole tiles where there are so many that the last one of each worker
// costs little: no partial states then. Shares otherwise. With several levels always shares.
FULMEN_FN bool take_whole_tiles(const ScheduleShape& shape, const PlanView& plan, int32_t group) {
  return shape.num_levels == 1 &&
         plan.header->level_tiles[group][1] >= 4 * static_cast<int64_t>(shape.groups[group].num_workers);
}

}  // namespace fulmen
