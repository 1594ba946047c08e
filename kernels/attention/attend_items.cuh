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
  int32_t begin = s.share_begin, end = s.share_end;
  if (s.last && s.valid) {
    const int32_t offset = s.key_end - s.num_rows;
    const int32_t first = token_of(group, t.row_begin);
    const int32_t last = token_of(group, t.row_begin + t.num_rows - 1);
    begin = max(begin, first_key(group, offset + first));
    end = min(end, key_limit(group, offset + last, s.key_end));
  }
  begin = max(begin, item.piece.unit_begin << params.shape.unit_log2);
  // The last unit's end may be beyond 2^31.
  if (item.piece.unit_end <= end >> params.shape.unit_log2) end = item.piece.unit_end << params.shape.unit_log2;
  item.key_begin = begin;
  item.key_end = max(begin, end);
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
  const int32_t token = token_of(group, packed);
  AttendRow r;
  r.token = s.row_begin + token;
  r.head = t.head * group.group_size + packed - token * group.group_size;
  if (r.token >= params.num_rows) return {-1, 0, 0, 0};
  int32_t position = s.key_end - s.num_rows + token, length = s.key_end;
  if (!s.last && (group.causal || group.window_left >= 0)) {
    // The row stands in a request that spans it on the last level.
    const int32_t level = params.shape.num_levels - 1;
    const int64_t* begins = plan.row_begin(level);
    const int32_t request = search_prefix(begins, plan.header->num_segments[level], r.token);
    length = static_cast<int32_t>(plan.key_end(level)[request]);
    position = length - static_cast<int32_t>(begins[request + 1] - r.token);
  }
  const int32_t lo = first_key(group, position), hi = s.last || group.causal ? key_limit(group, position, length) : s.key_end;
  r.lo = max(lo, item.key_begin);
  r.hi = min(hi, item.key_end);
  return r;
}

// Where a segment's keys lie, for one kv head. Places count 16-byte vectors from k.data and v.data, so that a copy needs
// one multiply-add for its address; the host has checked that 32 bits are enough.
constexpr uint32_t kNoPlace = 0xffffffffu;  // zeros instead: no key, or its page is not in the pool
struct KeyPlace {
  uint32_t k, v;
};

struct KeyMap {
  PageList k_list, v_list;
  int32_t key_begin;  // position of the segment's own first key
  int32_t level, segment;
  uint32_t k_head, v_head;  // in vectors

  FULMEN_FN void set_head(const AttendSm80Params& params, int32_t head) {
    k_head = static_cast<uint32_t>(head * params.k.stride_head >> 3);
    v_head = static_cast<uint32_t>(head * params.v.stride_head >> 3);
  }
};

// All but the head.
FULMEN_FN KeyMap make_key_map(const AttendSm80Params& params, const Segment& s) {
  KeyMap map;
  map.k_list = page_list(params.kv[s.level], s.index);
  map.v_list = params.v_shares_table ? map.k_list : page_list(params.v_table[s.level], s.index);
  map.key_begin = s.key_begin;
  map.level = s.level;
  map.segment = s.index;
  map.k_head = map.v_head = 0;
  return map;
}

// The table entries of one key's K and V as they were loaded (the low words of 64-bit ones): nothing depends on them
// until place_key, so that the loads are in flight meanwhile.
struct KeyPages {
  uint32_t k, v;
};

struct PagePosition {
  int32_t page, token;
};
FULMEN_FN PagePosition page_position(const AttendSm80Params& params, const KeyMap& map, int32_t position) {
  const int32_t key = position - map.key_begin;
  if (map.k_list.ragged) return {key, 0};
  if (params.page_log2 >= 0) {  // a division costs as much as all the rest
    const int32_t page = key >> params.page_log2;
    return {page, key - (page << params.page_log2)};
  }
  const uint32_t page_size = static_cast<uint32_t>(params.page_size);
  const int32_t page = static_cast<int32_t>(static_cast<uint32_t>(key) / page_size);
  return {page, key - page * static_cast<int32_t>(page_size)};
}

FULMEN_FN uint32_t load_entry(const PageList& list, int32_t page) {
  if (list.ragged) return static_cast<uint32_t>(list.first + page);
  if (page >= list.num_pages || !list.data) return 0;
  return static_cast<const uint32_t*>(list.data)[(list.first + page) << list.i64];
}
// Does the entry, whose low word is known, name a page of the pool?
FULMEN_FN bool entry_ok(const PageList& list, int32_t page, uint32_t low, int64_t num_pages) {
  if (page >= list.num_pages || (!list.ragged && !list.data)) return false;
  int32_t high = static_cast<int32_t>(low) >> 31;
  if (list.ragged) {
    high = static_cast<int32_t>((list.first + page) >> 32);
  } else if (list.i64) {
    high = static_cast<const int32_t*>(list.data)[2 * (list.first + page) + 1];
  }
  const int64_t id = static_cast<int64_t>(high) << 32 | low;
  return id >= 0 && id < num_pages;
}

// The map of a key that an ancestor of the segment holds: keys behind the last whole unit of a prefix.
FULMEN_FN KeyMap ancestor_map(const AttendSm80Params& params, const KeyMap& map, int32_t position) {
  const PlanView plan(params.shape, params.plan);
  int32_t level = map.level, segment = map.segment;
  while (level > 0 && position < plan.key_begin(level)[segment]) {
    segment = static_cast<int32_t>(plan.parent(level)[segment]);
    --level;
  }
  KeyMap above = map;
  above.k_list = page_list(params.kv[level], segment);
  above.v_list = params.v_shares_table ? above.k_list : page_list(params.v_table[level], segment);
  above.key_begin = static_cast<int32_t>(plan.key_begin(level)[segment]);
  return above;
}

FULMEN_FN KeyPages load_pages(const AttendSm80Params& params, const KeyMap& map, int32_t position) {
  const PagePosition at = page_position(params, map, position);
  KeyPages pages;
  pages.k = load_entry(map.k_list, at.page);
  pages.v = params.v_shares_table ? pages.k : load_entry(map.v_list, at.page);
  return pages;
}

// Strides of the pool in vectors. In a general kernel places count the pool's keys instead, of all heads.
template <bool kGeneral>
FULMEN_FN uint32_t place_in(const AttendSm80Params& params, const KvStorage& kv, uint32_t page, int32_t token, uint32_t head) {
  if constexpr (kGeneral) return page * static_cast<uint32_t>(params.page_size) + token;
  return page * static_cast<uint32_t>(kv.stride_page >> 3) + token * static_cast<uint32_t>(kv.stride_token >> 3) + head;
}
template <bool kGeneral>
FULMEN_FN KeyPlace place_key(const AttendSm80Params& params, const KeyMap& map, int32_t position, const KeyPages& pages) {
  const PagePosition at = page_position(params, map, position);
  if (!entry_ok(map.k_list, at.page, pages.k, params.k.num_pages)) return {kNoPlace, kNoPlace};
  if (!params.v_shares_table && !entry_ok(map.v_list, at.page, pages.v, params.v.num_pages)) return {kNoPlace, kNoPlace};
  return {place_in<kGeneral>(params, params.k, pages.k, at.token, map.k_head),
          place_in<kGeneral>(params, params.v, pages.v, at.token, map.v_head)};
}

// Are the key's K and V in the pool? Of keys whose entries are loaded and looked at already it is the ragged ones that
// may still reach beyond it.
FULMEN_FN bool key_in_pool(const AttendSm80Params& params, const KeyMap& map, int32_t position) {
  const PageList& k = map.k_list;
  const PageList& v = map.v_list;  // K's where they share a table
  const int64_t key = position - map.key_begin;
  return (!k.ragged || (key < k.num_pages && k.first + key < params.k.num_pages)) &&
         (!v.ragged || (key < v.num_pages && v.first + key < params.v.num_pages));
}
// From one key to the next in a group of keys that lie evenly.
FULMEN_FN uint32_t row_vectors(const KvStorage& kv, const KeyMap& map) {
  return static_cast<uint32_t>((map.k_list.ragged ? kv.stride_page : kv.stride_token) >> 3);
}

// Do all tables that the segment's items read begin at multiples of 8 keys?
FULMEN_FN bool segments_begin_at_eighths(const PlanView& plan, const Segment& s) {
  int32_t level = s.level, segment = s.index;
  bool even = s.key_begin % 8 == 0;
  while (even && level > 0 && plan.key_begin(level)[segment] > s.share_begin) {
    segment = static_cast<int32_t>(plan.parent(level)[segment]);
    --level;
    even = plan.key_begin(level)[segment] % 8 == 0;
  }
  return even;
}

// place_key of a key that may lie with an ancestor, whose pages load_pages did not look up.
template <bool kLevels, bool kGeneral>
FULMEN_FN KeyPlace place_any_key(const AttendSm80Params& params, const KeyMap& map, int32_t position, const KeyPages& pages) {
  if (!kLevels || position >= map.key_begin) return place_key<kGeneral>(params, map, position, pages);
  const KeyMap above = ancestor_map(params, map, position);
  return place_key<kGeneral>(params, above, position, load_pages(params, above, position));
}

// The first fault of a run stays in the plan's status record.
FULMEN_FN void report_fault(const AttendSm80Params& params, FaultCode fault, int32_t level, int32_t request, int64_t value,
                            int64_t limit) {
  StatusRecord& status = static_cast<PlanHeader*>(params.plan)->status;
  if (atomicCAS(&status.fault, static_cast<int32_t>(kFaultNone), static_cast<int32_t>(fault)) != kFaultNone) return;
  status.request = request;
  status.level = level;
  status.value = value;
  status.limit = limit;
}
FULMEN_FN void report_page_fault(const AttendSm80Params& params, const AttendItem& item, int32_t position) {
  report_fault(params, kFaultPage, item.piece.segment.level, item.piece.segment.index, position, params.k.num_pages);
}

}  // namespace fulmen
