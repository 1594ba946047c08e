// The levels of a row, and what becomes of a finished piece.
//
//   tile      with several levels its rows' states go to the rows' places on its level. Who finds that a tile of the last level
//             and all tiles of other levels that its rows stand in are complete joins the levels in order.
#pragma once

#include <kernels/attention/attend_pieces.cuh>

namespace fulmen {

// ------------------------------------------------------------------------------------------------ levels of a row

// A tile of the last level all of whose states are in its rows' places.
struct ReadyTile {
  int32_t request, row;  // packed row from the batch's first
  int16_t head, num_rows;
  int32_t levels;        // a bit for each that has keys of the rows

  static constexpr int kMax = 256;
};

// Tells a tile of the last level that one of the tiles its rows stand in is complete.
template <AttendSm80Config kC>
FULMEN_FN void arrive_at_rows(const AttendSm80Params& params, const PlanView& plan, const Segment& request, int32_t head,
                              int32_t index, const AttendSmem<kC>& smem) {
  const ScheduleGroup& group = params.shape.groups[params.group];
  const int32_t last = params.shape.num_levels - 1;
  const Tile tile = make_tile(params.shape, group, request, head, index);
  uint32_t expected = 1;
  int32_t levels = 1 << last;
#pragma unroll 1
  for (int32_t level = last, s = request.index; level > 0; --level) {
    s = static_cast<int32_t>(plan.parent(level)[s]);
    if (s < 0) break;
    const Segment above = load_segment(params.shape, plan, level - 1, s);
    if (num_tiles(group, above) == 0) continue;
    const int32_t row = static_cast<int32_t>(request.row_begin - above.row_begin) * group.group_size + tile.row_begin;
    const int32_t tile_q = tile_rows(group, above);
    expected += (row + tile.num_rows - 1) / tile_q - row / tile_q + 1;
    levels |= 1 << (level - 1);
  }
  const int64_t ordinal = plan.tile_prefix(params.group, last)[request.index] +
                          static_cast<int64_t>(head) * num_tiles(group, request) + index;
  uint32_t* counter = &params.counters->arrivals[group.num_workers + ordinal];
  if (ptx::atomic_add_acq_rel_gpu(counter, 1) + 1 != expected) return;
  *counter = 0;  // as the next run must find it
  const int32_t at = atomicAdd(smem.flags() + kFlagReady, 1);
  reinterpret_cast<ReadyTile*>(smem.slots())[at] = {request.index, static_cast<int32_t>(first_row(params, request, tile)),
                                                    static_cast<int16_t>(head), static_cast<int16_t>(tile.num_rows), levels};
}

// All tiles of the last level that stand on a tile's rows.
template <AttendSm80Config kC>
FULMEN_FN void arrive_at_all_rows(const AttendSm80Params& params, const PlanView& plan, const Segment& s, const Tile& t,
                                  const AttendSmem<kC>& smem) {
  const ScheduleGroup& group = params.shape.groups[params.group];
  const int32_t last = params.shape.num_levels - 1, requests = plan.header->num_segments[last];
  if (s.last) {
    if (threadIdx.x == 0) arrive_at_rows<kC>(params, plan, s, t.head, t.index, smem);
    return;
  }
  if (requests == 0) return;
  const int64_t* begins = plan.row_begin(last);
  const int64_t first = s.row_begin + t.row_begin / group.group_size;
  const int64_t end = s.row_begin + (t.row_begin + t.num_rows - 1) / group.group_size;
  // Of few requests each thread looks at its own, because a search is a chain of loads.
  const bool search = requests > 2 * kC.num_threads();
  const int32_t begin_request = search ? search_prefix(begins, requests, first) : 0;
  const int32_t last_request = search ? search_prefix(begins, requests, end) : requests - 1;
#pragma unroll 1
  for (int32_t r = begin_request + static_cast<int32_t>(threadIdx.x); r <= last_request; r += kC.num_threads()) {
    const Segment request = load_segment(params.shape, plan, last, r);
    if (request.row_begin > end || request.row_begin + request.num_rows <= first) continue;
    if (!has_other_levels(request) || ancestor(plan, last, r, s.level) != s.index) continue;
    // The tile's rows, counted from the request's first.
    const int32_t offset = static_cast<int32_t>(request.row_begin - s.row_begin) * group.group_size;
    const int32_t begin = max(0, t.row_begin - offset);
    const int32_t stop = min(request.num_rows * group.group_size, t.row_begin + t.num_rows - offset);
#pragma unroll 1
    for (int32_t index = begin / group.tile_q; index * group.tile_q < stop; ++index) {
      arrive_at_rows<kC>(params, plan, request, t.head, index, smem);
    }
  }
}

// Four columns of kRows rows, each from its places on all levels, whose loads are under way side by side. Rows count from the
// first kv head's first; `levels` has a bit for each that has keys of the row.
template <int kRows>
FULMEN_FN void sum_levels(const AttendSm80Params& params, const int32_t (&levels)[kRows], const int64_t (&rows)[kRows],
                          const int (&columns)[kRows], QuadState (&sums)[kRows]) {
  const Slot first = row_places(params, 0, 0, 0);
  const int64_t level_floats = first.node_step * params.layout.nodes;
#pragma unroll
  for (int k = 0; k < kRows; ++k) sums[k] = QuadState::empty();
#pragma unroll 1
  for (int32_t level = 0; level < params.shape.num_levels; ++level) {
    const Slot places = first.at(level * level_floats);
    QuadState part[kRows];
#pragma unroll
    for (int k = 0; k < kRows; ++k) {
      part[k] = QuadState::empty();
      if ((levels[k] >> level & 1) == 0) continue;
      part[k] = {places.m[rows[k]], places.l[rows[k]],
                 *reinterpret_cast<const float4*>(places.o + rows[k] * places.stride + columns[k])};
    }
#pragma unroll
    for (int k = 0; k < kRows; ++k) {
      QuadState both = QuadState::empty();
      both.m = fmaxf(sums[k].m, part[k].m);
      const float base = both.m == -infinity() ? 0.0f : both.m;
      add_weighted(both, sums[k], base);
      add_weighted(both, part[k], base);
      sums[k] = both;
    }
  }
}

// The same of one row by the canon.
template <AttendSm80Config kC>
FULMEN_FN QuadState fold_levels(const AttendSm80Params& params, const PlanView& plan, const ReadyTile& tile, int row,
                                int column) {
  const ScheduleGroup& group = params.shape.groups[params.group];
  const int32_t last_level = params.shape.num_levels - 1;
  QuadFold fold(params, kC.num_threads());
#pragma unroll 1
  for (int32_t level = 0; level <= last_level; ++level) {
    if ((tile.levels >> level & 1) == 0) continue;
    const Segment s = load_segment(params.shape, plan, level, ancestor(plan, last_level, tile.request, level));
    const int32_t index = s.last ? static_cast<int32_t>(tile.row - s.row_begin * group.group_size) / group.tile_q : 0;
    const Tile t = make_tile(params.shape, group, s, tile.head, index);  // on other levels all see the same keys
    const Slot places = row_places(params, level, tile.head, tile.row);
    int32_t begin = t.unit_begin;
#pragma unroll 1
    for (int32_t node = 0; begin < t.unit_end; ++node) {
      const int32_t end = canon::node_end(begin, t.unit_end, tree_first(s, t), tree_last(s, t));
      fold.push(begin, end, load_quad(places.node(node), row, column));
      begin = end;
    }
  }
  return fold.finish();
}

// Arrivals go between these two: behind the first all of the block's states are there for who comes last, the second joins the
// levels of the tiles for which this block was it.
template <AttendSm80Config kC>
FULMEN_FN void begin_arrivals(const AttendSmem<kC>& smem) {
  __threadfence();
  if (threadIdx.x == 0) smem.flags()[kFlagReady] = 0;
  __syncthreads();
}
template <AttendSm80Config kC>
FULMEN_FN void join_ready_tiles(const AttendSm80Params& params, const PlanView& plan, const AttendSmem<kC>& smem) {
  static_assert(sizeof(ReadyTile) * ReadyTile::kMax <= kC.join_bytes(), "join_bytes");
  const ScheduleGroup& group = params.shape.groups[params.group];
  __syncthreads();
  // Rows of all tiles side by side, several to a thread, because each is a chain of loads.
  constexpr int kRows = kC.canonical ? 1 : 4, kQuads = kC.head_dim_vo / 4;
  const auto* list = reinterpret_cast<const ReadyTile*>(smem.slots());
  const int64_t most_rows = static_cast<int64_t>(params.shape.max_qo_len) * group.group_size;
  const int tile_rows = static_cast<int>(min(static_cast<int64_t>(group.tile_q), most_rows));
  const int64_t head_rows = params.shape.max_rows * group.group_size;
  const int all = smem.flags()[kFlagReady] * tile_rows * kQuads;
#pragma unroll 1
  for (int i = threadIdx.x; i < all; i += kRows * kC.num_threads()) {
    QuadState sums[kRows];
    AttendRow rows[kRows];
    int columns[kRows], tiles[kRows];
    int32_t levels[kRows];
    int64_t places[kRows];
#pragma unroll
    for (int k = 0; k < kRows; ++k) {
      const int mine = i + k * kC.num_threads(), row = min(mine, all - 1) / kQuads;
      tiles[k] = row / tile_rows;
      const ReadyTile& tile = list[tiles[k]];
      const int32_t packed = tile.row + row - tiles[k] * tile_rows, token = packed / group.group_size;
      columns[k] = 4 * (mine % kQuads);
      const bool there = mine < all && packed - tile.row < tile.num_rows && token < params.num_rows &&
                         columns[k] < params.head_dim_vo;
      rows[k] = {there ? token : -1, tile.head * group.group_size + packed - token * group.group_size, 0, 0};
      levels[k] = there ? tile.levels : 0;
      places[k] = tile.head * head_rows + packed;
    }
    if constexpr (kC.canonical) {
      if (rows[0].token >= 0) {
        const ReadyTile& tile = list[tiles[0]];
        sums[0] = fold_levels<kC>(params, plan, tile, static_cast<int>(places[0] - tile.head * head_rows - tile.row), columns[0]);
      }
    } else {
      sum_levels(params, levels, places, columns, sums);
    }
#pragma unroll
    for (int k = 0; k < kRows; ++k) store_output_quad<kC>(params, rows[k], columns[k], sums[k]);
  }
  __syncthreads();  // the list is free again
}

// After the states of a complete tile went to its rows' places.
template <AttendSm80Config kC>
FULMEN_FN void finish_tile(const AttendSm80Params& params, const PlanView& plan, const AttendItem& item,
                           const AttendSmem<kC>& smem) {
  static_assert(kC.tile_q() <= ReadyTile::kMax, "each row may belong to a tile of its own");
  begin_arrivals<kC>(smem);
  arrive_at_all_rows<kC>(params, plan, item.piece.segment, item.piece.tile, smem);
  join_ready_tiles<kC>(params, plan, smem);
}

// The tiles of the last level that a decode block has completed: `count` from number `first` on (only at the ends of its share
// may others complete one). It tells of them all at the end, a thread each: an arrival is a chain of loads that would
// hold up every item.
struct OwnTiles {
  int64_t first = 0;
  int32_t count = 0;

  FULMEN_FN void add(const AttendSm80Params& params, const PlanView& plan, const AttendItem& item) {
    const Segment& s = item.piece.segment;
    if (count == 0) {
      if (!has_other_levels(s)) return;
      const Tile& t = item.piece.tile;
      first = plan.tile_prefix(params.group, t.level)[s.index] +
              static_cast<int64_t>(t.head) * num_tiles(params.shape.groups[params.group], s) + t.index;
    }
    ++count;  // those without other levels too: numbers have no gaps
  }
};
template <AttendSm80Config kC>
FULMEN_FN void finish_own_tiles(const AttendSm80Params& params, const PlanView& plan, const OwnTiles& own,
                                const AttendSmem<kC>& smem) {
  static_assert(kC.num_threads() <= ReadyTile::kMax, "a tile a thread");
  const ScheduleGroup& group = params.shape.groups[params.group];
  const int32_t last = params.shape.num_levels - 1;
  const int64_t* prefix = plan.tile_prefix(params.group, last);
#pragma unroll 1
  for (int32_t base = 0; base < own.count; base += kC.num_threads()) {
    begin_arrivals<kC>(smem);
    const int32_t mine = base + static_cast<int32_t>(threadIdx.x);
    if (mine < own.count) {
      const int64_t ordinal = own.first + mine;
      const int32_t index = search_prefix(prefix, plan.header->num_segments[last], ordinal);
      const Segment request = load_segment(params.shape, plan, last, index);
      if (has_other_levels(request)) {
        const int32_t tiles = num_tiles(group, request), in_request = static_cast<int32_t>(ordinal - prefix[index]);
        arrive_at_rows<kC>(params, plan, request, in_request / tiles, in_request % tiles, smem);
      }
    }
    join_ready_tiles<kC>(params, plan, smem);
  }
}

// ------------------------------------------------------------------------------------------------ a piece is done

// After the states of a piece went to a slot: is the tile complete, by this block's doing?
template <AttendSm80Config kC>
FULMEN_FN bool complete_tile(const AttendSm80Params& params, const PlanView& plan, const AttendItem& item,
                             const AttendSmem<kC>& smem) {
  if (item.piece.starts_tile && item.piece.ends_tile) return true;
  if (!arrive<kC>(params, plan.header->share[params.group], item, smem)) return false;
  join_pieces<kC>(params, plan, item, smem);  // barriers lie between this use of slots() and the next
  return true;
}

template <AttendSm80Config kC>
FULMEN_FN void finish_piece(const AttendSm80Params& params, const PlanView& plan, const AttendItem& item,
                            const AttendSmem<kC>& smem) {
  if (!complete_tile<kC>(params, plan, item, smem)) return;
  if constexpr (kC.levels) {
    if (has_other_levels(item.piece.segment)) finish_tile<kC>(params, plan, item, smem);
  }
}

}  // namespace fulmen
