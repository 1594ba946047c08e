// Segments and their tiles: what of a step's rows and keys stands in one item of work (schedule.hpp says how they are dealt out).
#pragma once
#include <kernels/attention/plan_memory.hpp>
#include <kernels/math/integer.hpp>

namespace fulmen {

FULMEN_FN int32_t whole_units(const ScheduleShape& shape, int32_t keys) { return (keys >> shape.unit_log2) << shape.unit_log2; }

FULMEN_FN Segment make_segment(const ScheduleShape& shape, int32_t level, int32_t index, int32_t row_begin, int32_t row_end,
                               int32_t key_begin, int32_t key_end) {
  Segment s;
  s.level = level;
  s.index = index;
  s.row_begin = row_begin;
  s.num_rows = row_end - row_begin;
  s.key_begin = key_begin;
  s.key_end = key_end;
  s.valid = key_end >= 0;
  s.last = level == shape.num_levels - 1;
  s.share_begin = whole_units(shape, key_begin);
  s.share_end = s.last ? key_end : whole_units(shape, key_end);
  if (!s.valid) s.share_begin = s.share_end = 0;
  return s;
}
FULMEN_FN Segment load_segment(const ScheduleShape& shape, const PlanView& plan, int32_t level, int32_t index) {
  const int64_t* rows = plan.row_begin(level) + index;
  return make_segment(shape, level, index, static_cast<int32_t>(rows[0]), static_cast<int32_t>(rows[1]),
                      static_cast<int32_t>(plan.key_begin(level)[index]), static_cast<int32_t>(plan.key_end(level)[index]));
}

// Keys that a row of a request at position p may see: [first_key, key_limit). Custom masks come on top.
template <class T>
FULMEN_FN T first_key(const ScheduleGroup& group, T position) {
  return group.window_left >= 0 && position > group.window_left ? position - group.window_left : 0;
}
template <class T>
FULMEN_FN T key_limit(const ScheduleGroup& group, T position, T length) {
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

// The token of a packed row, counted as the row is.
FULMEN_FN int32_t token_of(const ScheduleGroup& group, int32_t row) { return divide_by_power(row, group.group_size); }

// Packed rows of a tile of the segment.
FULMEN_FN int32_t tile_rows(const ScheduleGroup& group, const Segment& s) {
  return s.last || group.shared_tile_q == 0 ? group.tile_q : group.shared_tile_q;
}

FULMEN_FN int32_t num_tiles(const ScheduleGroup& group, const Segment& s) {  // of one turn
  if (!s.last && s.share_end <= s.share_begin) return 0;
  const int32_t rows = tile_rows(group, s);
  return divide_by_power(s.num_rows * group.group_size + rows - 1, rows);
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
  tile.unit_cost = (group.cost_fixed + group.cost_per_row * tile.num_rows) * tile.num_heads;
  int32_t begin = s.share_begin, end = s.share_end;
  if (s.last && s.valid) {
    const int32_t offset = s.key_end - s.num_rows;
    const int32_t first = offset + token_of(group, tile.row_begin);
    const int32_t last = offset + token_of(group, tile.row_begin + tile.num_rows - 1);
    begin = max(begin, first_key(group, first));
    end = min(end, key_limit(group, last, s.key_end));
  }
  if (end < begin) end = begin;
  tile.unit_begin = begin >> shape.unit_log2;
  tile.unit_end = (end + (1 << shape.unit_log2) - 1) >> shape.unit_log2;
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

}  // namespace fulmen
