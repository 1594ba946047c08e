// What an item of the schedule looks like to a kernel of class sm80: its rows, its keys, and where their pages lie.
#pragma once

#include <kernels/attention/attend_sm80.params.hpp>
#include <kernels/prelude/prelude.hpp>
#include <kernels/ptx/memory.cuh>

namespace fulmen {

// One piece: rows of one kv head of one segment against positions [key_begin, key_end).
struct AttendItem {
  Piece piece;
  int32_t key_begin, key_end;
};

FULMEN_FN void bound_keys(const AttendSm80Params& params, AttendItem& item) {
  const ScheduleGroup& group = params.shape.groups[params.group];
  const Segment& s = item.piece.segment;
  const Tile& t = item.piece.tile;
  int64_t begin = s.share_begin, end = s.share_end;
  if (s.last && s.valid) {
    const int64_t offset = s.key_end - s.num_rows;
    const int32_t first = t.row_begin / group.group_size;
    const int32_t last = (t.row_begin + t.num_rows - 1) / group.group_size;
    begin = max(begin, first_key(group, offset + first));
    end = min(end, key_limit(group, offset + last, s.key_end));
  }
  begin = max(begin, static_cast<int64_t>(item.piece.unit_begin) << params.shape.unit_log2);
  end = min(end, static_cast<int64_t>(item.piece.unit_end) << params.shape.unit_log2);
  item.key_begin = static_cast<int32_t>(begin);
  item.key_end = static_cast<int32_t>(max(begin, end));
}

// Where packed row `row` of the tile lies and what it sees. token < 0: no such row.
struct AttendRow {
  int32_t token, head;
  int32_t lo, hi;  // visible positions
};

FULMEN_FN AttendRow make_row(const AttendSm80Params& params, const PlanView& plan, const AttendItem& item, int32_t row) {
  const ScheduleGroup& group = params.shape.groups[params.group];
  const Segment& s = item.piece.segment;
  const Tile& t = item.piece.tile;
  if (row >= t.num_rows) return {-1, 0, 0, 0};
  const int32_t packed = t.row_begin + row;
  const int32_t token = packed / group.group_size;
  AttendRow r;
  r.token = static_cast<int32_t>(s.row_begin) + token;
  r.head = t.head * group.group_size + packed - token * group.group_size;
  if (r.token >= params.num_rows) return {-1, 0, 0, 0};
  int64_t position = s.key_end - s.num_rows + token, length = s.key_end;
  if (!s.last && (group.causal || group.window_left >= 0)) {
    // The row stands in a request that spans it on the last level.
    const int32_t level = params.shape.num_levels - 1;
    const int64_t* begins = plan.row_begin(level);
    const int32_t request = search_prefix(begins, plan.header->num_segments[level], r.token);
    length = plan.key_end(level)[request];
    position = length - (begins[request + 1] - r.token);
  }
  const int64_t lo = first_key(group, position), hi = s.last || group.causal ? key_limit(group, position, length) : s.key_end;
  r.lo = static_cast<int32_t>(max(lo, static_cast<int64_t>(item.key_begin)));
  r.hi = static_cast<int32_t>(min(hi, static_cast<int64_t>(item.key_end)));
  return r;
}

// Where a segment's keys lie, for one kv head. Offsets are in elements from k.data and v.data.
struct KeyPlace {
  int64_t k, v;  // negative: the page is not in the pool
};

struct KeyMap {
  PageList k_list, v_list;
  int32_t key_begin;  // position of the segment's own first key
  int32_t level, segment;
  int64_t k_head, v_head;
};

FULMEN_FN KeyMap make_key_map(const AttendSm80Params& params, const Segment& s, int32_t head) {
  KeyMap map;
  map.k_list = page_list(params.kv[s.level], s.index);
  map.v_list = params.v_shares_table ? map.k_list : page_list(params.v_table[s.level], s.index);
  map.key_begin = static_cast<int32_t>(s.key_begin);
  map.level = s.level;
  map.segment = s.index;
  map.k_head = head * params.k.stride_head;
  map.v_head = head * params.v.stride_head;
  return map;
}

// The page ids of one key: loaded early, turned into offsets when they have arrived.
struct KeyPages {
  int32_t k, v;   // -1: not a page of the pool
  int32_t token;  // in its page
};

FULMEN_FN KeyPages load_pages(const AttendSm80Params& params, const KeyMap& map, int32_t key) {
  const uint32_t page_size = map.k_list.ragged ? 1u : static_cast<uint32_t>(params.page_size);
  const uint32_t page = static_cast<uint32_t>(key) / page_size;
  KeyPages pages;
  pages.token = static_cast<int32_t>(static_cast<uint32_t>(key) - page * page_size);
  pages.k = static_cast<int32_t>(page_id(map.k_list, page, params.k.num_pages));
  pages.v = params.v_shares_table ? pages.k : static_cast<int32_t>(page_id(map.v_list, page, params.v.num_pages));
  return pages;
}

// A position before the segment's own keys belongs to an ancestor (less than a unit of them does).
template <bool kLevels>
FULMEN_FN KeyPages load_pages_at(const AttendSm80Params& params, const PlanView& plan, const KeyMap& map,
                                 int32_t position) {
  if constexpr (kLevels) {
    if (position < map.key_begin) {
      int32_t level = map.level, index = map.segment;
      int64_t begin = map.key_begin;
      while (position < begin && level > 0) {
        index = static_cast<int32_t>(plan.parent(level)[index]);
        --level;
        begin = plan.key_begin(level)[index];
      }
      KeyMap above;
      above.k_list = page_list(params.kv[level], index);
      above.v_list = params.v_shares_table ? above.k_list : page_list(params.v_table[level], index);
      return load_pages(params, above, position - static_cast<int32_t>(begin));
    }
  }
  return load_pages(params, map, position - map.key_begin);
}

FULMEN_FN KeyPlace place_key(const AttendSm80Params& params, const KeyMap& map, const KeyPages& pages) {
  if (pages.k < 0 || pages.v < 0) return {-1, -1};
  return {pages.k * params.k.stride_page + pages.token * params.k.stride_token + map.k_head,
          pages.v * params.v.stride_page + pages.token * params.v.stride_token + map.v_head};
}

// The first fault of a run stays in the plan's status record.
FULMEN_FN void report_page_fault(const AttendSm80Params& params, const AttendItem& item, int32_t position) {
  StatusRecord& status = static_cast<PlanHeader*>(params.plan)->status;
  if (atomicCAS(&status.fault, static_cast<int32_t>(kFaultNone), static_cast<int32_t>(kFaultPage)) != kFaultNone) return;
  status.request = item.piece.segment.index;
  status.level = item.piece.segment.level;
  status.value = position;
  status.limit = params.k.num_pages;
}

}  // namespace fulmen
