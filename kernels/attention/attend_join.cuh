// Partial states of attend_sm80: where they lie in scratch, who finds that all of a tile or of a row are there, and how
// they are joined.
//
//   piece     of a tile that is split: goes to its worker's slots. Who finds that all units of the tile have arrived joins
//             them in order of keys, so that the bits don't depend on who it was.
//   tile      with several levels: its rows' states go to the rows' places on its level. Who finds that a tile of the last
//             level and all tiles of other levels that its rows stand in are complete joins the levels in order.
//   order     without the canon all states of a row are weighed by one maximum; with it they are folded along its tree.
#pragma once

#include <kernels/attention/attend_output.cuh>
#include <kernels/attention/attend_smem.cuh>
#include <kernels/ptx/memory.cuh>

namespace fulmen {

// ------------------------------------------------------------------------------------------------ places

// Partial states of consecutive packed rows: o [rows, stride], m [rows], l [rows]. The next node of the canon tree lies
// node_step floats further on.
struct Slot {
  float* o;  // null: straight to o and lse
  float* m;
  float* l;
  int64_t node_step;
  int64_t stride;

  FULMEN_FN bool exists() const { return o != nullptr; }
  FULMEN_FN Slot node(int32_t index) const {
    const int64_t step = index * node_step;
    return {o + step, m + step, l + step, node_step, stride};
  }
  FULMEN_FN Slot rows_from(int64_t row) const { return {o + row * stride, m + row, l + row, node_step, stride}; }
};

FULMEN_FN Slot slot_of_rows(float* base, int64_t rows, int64_t stride) {
  return {base, base + rows * stride, base + rows * stride + rows, rows * (stride + 2), stride};
}

// The first slot of a worker for a piece that begins a tile, or for one that begins inside a tile.
FULMEN_FN Slot worker_slot(const AttendSm80Params& params, int32_t worker, bool starts_tile) {
  const AttendScratch& at = params.layout;
  const int64_t stride = round_up(params.head_dim_vo, 16);
  const int64_t index = (static_cast<int64_t>(worker) * 2 + (starts_tile ? 1 : 0)) * at.nodes;
  return slot_of_rows(static_cast<float*>(params.scratch) + index * at.slot_rows * (stride + 2), at.slot_rows, stride);
}

// Places on a level from packed row `row` of a kv head on; rows count from the batch's first.
FULMEN_FN Slot row_places(const AttendSm80Params& params, int32_t level, int32_t head, int64_t row) {
  const AttendScratch& at = params.layout;
  const int64_t stride = round_up(params.head_dim_vo, 16);
  float* base = static_cast<float*>(params.scratch) + at.places + level * at.nodes * at.place_rows * (stride + 2);
  const int64_t head_rows = params.shape.max_rows * params.shape.groups[params.group].group_size;
  return slot_of_rows(base, at.place_rows, stride).rows_from(head * head_rows + row);
}
FULMEN_FN int64_t first_row(const AttendSm80Params& params, const Segment& s, const Tile& t) {
  return s.row_begin * params.shape.groups[params.group].group_size + t.row_begin;
}

template <AttendSm80Config kC>
FULMEN_FN Slot slot_of_piece(const AttendSm80Params& params, const AttendItem& item) {
  const Piece& piece = item.piece;
  if (is_complete(piece)) return {nullptr, nullptr, nullptr, 0, 0};
  if (kC.levels && piece.starts_tile && piece.ends_tile) {
    return row_places(params, piece.tile.level, piece.tile.head, first_row(params, piece.segment, piece.tile));
  }
  return worker_slot(params, blockIdx.x, piece.starts_tile);
}

// ------------------------------------------------------------------------------------------------ four columns

// Four columns of a row's state.
struct QuadState {
  float m, l;
  float4 o;

  static FULMEN_FN QuadState empty() { return {-infinity(), 0.0f, {0.0f, 0.0f, 0.0f, 0.0f}}; }
};

FULMEN_FN QuadState load_quad(const Slot& slot, int32_t row, int32_t column) {
  return {slot.m[row], slot.l[row], *reinterpret_cast<const float4*>(slot.o + row * slot.stride + column)};
}
FULMEN_FN void store_quad(const Slot& slot, int32_t row, int32_t column, const QuadState& q) {
  *reinterpret_cast<float4*>(slot.o + row * slot.stride + column) = q.o;
  if (column == 0) slot.m[row] = q.m, slot.l[row] = q.l;
}

// Adds 2^(part.m - base) times a part to sums.
FULMEN_FN void add_weighted(QuadState& sum, const QuadState& part, float base) {
  const float weight = ptx::ex2_approx(part.m - base);
  sum.l = fma(weight, part.l, sum.l);
  sum.o.x = fma(weight, part.o.x, sum.o.x);
  sum.o.y = fma(weight, part.o.y, sum.o.y);
  sum.o.z = fma(weight, part.o.z, sum.o.z);
  sum.o.w = fma(weight, part.o.w, sum.o.w);
}

// The canon's join of two neighbours.
FULMEN_FN canon::JoinFactors join_factors(float m_a, float m_b) {
  return canon::join_factors(m_a, m_b, [](float x) { return ptx::ex2_approx(x); });
}
FULMEN_FN float join_values(const canon::JoinFactors& by, float a, float b) { return fma(by.a, a, by.b * b); }
FULMEN_FN QuadState join_quads(const QuadState& a, const QuadState& b) {
  const canon::JoinFactors by = join_factors(a.m, b.m);
  return {by.m, join_values(by, a.l, b.l),
          {join_values(by, a.o.x, b.o.x), join_values(by, a.o.y, b.o.y), join_values(by, a.o.z, b.o.z),
           join_values(by, a.o.w, b.o.w)}};
}

FULMEN_FN float* stack_of_block(const AttendSm80Params& params) {
  const AttendScratch& at = params.layout;
  return static_cast<float*>(params.scratch) + at.stacks +
         static_cast<int64_t>(blockIdx.x) * at.stack_depth * at.stack_floats;
}

// A thread's own stack of such states, number `index` of `count` in the block.
struct QuadStack {
  float* o;
  float* ml;
  int64_t step;

  FULMEN_FN QuadStack(const AttendSm80Params& params, int32_t index, int32_t count)
      : o(stack_of_block(params) + 4 * index), ml(stack_of_block(params) + 4 * count + 2 * index),
        step(params.layout.stack_floats) {}
  FULMEN_FN QuadState load(int32_t depth) const {
    const float2 two = *reinterpret_cast<const float2*>(ml + depth * step);
    return {two.x, two.y, *reinterpret_cast<const float4*>(o + depth * step)};
  }
  FULMEN_FN void store(int32_t depth, const QuadState& q) const {
    *reinterpret_cast<float2*>(ml + depth * step) = float2{q.m, q.l};
    *reinterpret_cast<float4*>(o + depth * step) = q.o;
  }
};

// Folds consecutive runs of chunks along the canon's tree: the last state in registers, those before on the stack.
struct QuadFold {
  QuadStack stack;
  QuadState top;
  int32_t first, end, depth;

  FULMEN_FN QuadFold(const AttendSm80Params& params, int32_t threads)
      : stack(params, static_cast<int32_t>(threadIdx.x), threads), top(QuadState::empty()), first(0), end(0), depth(0) {}

  FULMEN_FN void push(int32_t run_begin, int32_t run_end, const QuadState& state) {
    if (depth == 0) {
      first = run_begin;
    } else {
      join_down_to(canon::fold_depth(first, end, run_begin));
      stack.store(depth - 1, top);
    }
    top = state;
    end = run_end;
    ++depth;
  }
  FULMEN_FN void join_down_to(int32_t left) {
#pragma unroll 1
    for (; depth > left; --depth) top = join_quads(stack.load(depth - 2), top);
  }
  FULMEN_FN QuadState finish() {
    join_down_to(1);
    depth = 0;
    return top;
  }
};

// A finished row's four columns.
template <AttendSm80Config kC>
FULMEN_FN void store_output_quad(const AttendSm80Params& params, const AttendRow& row, int32_t column, const QuadState& q) {
  if (row.token < 0) return;
  const RowEnd end = end_row<kC>(params, row.head, q.m, q.l);
  void* out = output_row<kC.o_dtype>(params, row);
  store_pair<kC>(out, column, finished<kC.canonical>(q.o.x * end.scale), finished<kC.canonical>(q.o.y * end.scale));
  store_pair<kC>(out, column + 2, finished<kC.canonical>(q.o.z * end.scale), finished<kC.canonical>(q.o.w * end.scale));
  if (column == 0) store_lse<kC>(params, row, end.m, end.l);
}

// ------------------------------------------------------------------------------------------------ pieces of a tile

// Says that this block's piece lies in its slot. True for all threads of the one block that came last. `share`: the plan's.
template <AttendSm80Config kC>
FULMEN_FN bool arrive(const AttendSm80Params& params, int64_t share, const AttendItem& item, const AttendSmem<kC>& smem) {
  __syncthreads();  // all of the block's stores to the slot, which the atomic then releases
  if (threadIdx.x == 0) {
    const Tile& tile = item.piece.tile;
    const int32_t first = item.piece.starts_tile ? static_cast<int32_t>(blockIdx.x) : worker_of(share, tile.cost_begin);
    uint32_t* counter = &params.counters->arrivals[first];
    const uint32_t units = max(1, item.piece.unit_end - item.piece.unit_begin);
    const bool last = ptx::atomic_add_acq_rel_gpu(counter, units) + units == static_cast<uint32_t>(tile.cost_units());
    if (last) *counter = 0;  // as the next run must find it
    smem.flags()[kFlagIsLast] = last;
  }
  __syncthreads();
  return smem.flags()[kFlagIsLast] != 0;
}

// A tile's piece as its joiner sees it. worker -1: a worker without a unit of the tile.
struct PieceEntry {
  int32_t worker;  // twice, plus one where the piece begins the tile

  FULMEN_FN Slot slot(const AttendSm80Params& params) const { return worker_slot(params, worker >> 1, (worker & 1) != 0); }
};
struct CanonPieceEntry : PieceEntry {
  int32_t unit_begin, unit_end;
};

// The tile's pieces, in order of keys, into smem.slots().
template <AttendSm80Config kC, class Entry>
FULMEN_FN int list_pieces(const AttendSm80Params& params, const PlanView& plan, const AttendItem& item,
                          const AttendSmem<kC>& smem) {
  const TilePieces all(params.shape, plan, params.group, item.piece.segment, item.piece.tile);
  const int count = all.last_worker - all.worker + 1;
  auto* entries = reinterpret_cast<Entry*>(smem.slots());
#pragma unroll 1
  for (int i = threadIdx.x; i < count; i += kC.num_threads()) {
    TilePieces one = all;
    one.worker = one.last_worker = all.worker + i;
    Piece piece;
    piece.unit_begin = 0;  // else ptxas carries the last one along and spills it
    int32_t worker = 0;
    const bool some = one.next(piece, worker);
    entries[i].worker = some ? worker * 2 + (piece.unit_begin == all.tile.unit_begin ? 1 : 0) : -1;
    if constexpr (kC.canonical) {
      entries[i].unit_begin = some ? piece.unit_begin : 0;
      entries[i].unit_end = some ? piece.unit_end : 0;
    }
  }
  __syncthreads();
  return count;
}

// Four columns of kRows rows of the tile, from all pieces; the tile's only state without the canon. Each state is a chain of
// loads from far away, so that those of kPieces pieces are all under way before the first is weighed.
template <AttendSm80Config kC, int kRows, int kPieces>
FULMEN_FN void sum_pieces(const AttendSm80Params& params, const AttendSmem<kC>& smem, int count, const int (&rows)[kRows],
                          const int (&columns)[kRows], QuadState (&sums)[kRows]) {
  const auto* entries = reinterpret_cast<const PieceEntry*>(smem.slots());
#pragma unroll
  for (int k = 0; k < kRows; ++k) sums[k] = QuadState::empty();
#pragma unroll 1
  for (int first = 0; first < count; first += kPieces) {
    QuadState part[kPieces][kRows];
#pragma unroll
    for (int p = 0; p < kPieces; ++p) {
      const bool exists = first + p < count && entries[min(first + p, count - 1)].worker >= 0;
      const Slot slot = entries[exists ? first + p : 0].slot(params);
#pragma unroll
      for (int k = 0; k < kRows; ++k) {
        part[p][k] = QuadState::empty();
        if (exists) part[p][k] = load_quad(slot, rows[k], columns[k]);
      }
    }
#pragma unroll
    for (int k = 0; k < kRows; ++k) {
      float m = sums[k].m;
#pragma unroll
      for (int p = 0; p < kPieces; ++p) m = fmaxf(m, part[p][k].m);
      const float base = m == -infinity() ? 0.0f : m;
      QuadState sum = QuadState::empty();
      sum.m = m;
      add_weighted(sum, sums[k], base);
#pragma unroll
      for (int p = 0; p < kPieces; ++p) add_weighted(sum, part[p][k], base);
      sums[k] = sum;
    }
  }
}

// The same by the canon: each node of the tile is folded from the nodes of its pieces. visit(index of the node, state)
template <AttendSm80Config kC, class Visit>
FULMEN_FN void fold_pieces(const AttendSm80Params& params, const AttendSmem<kC>& smem, const Piece& tile, int count, int row,
                           int column, Visit visit) {
  const auto* entries = reinterpret_cast<const CanonPieceEntry*>(smem.slots());
  const int32_t first = tree_first(tile.segment, tile.tile), last = tree_last(tile.segment, tile.tile);
  QuadFold fold(params, kC.num_threads());
  int32_t target_end = canon::node_end(tile.tile.unit_begin, tile.tile.unit_end, first, last), target = 0;
#pragma unroll 1
  for (int p = 0; p < count; ++p) {
    if (entries[p].worker < 0) continue;
    const Slot slot = entries[p].slot(params);
    int32_t begin = entries[p].unit_begin;
#pragma unroll 1
    for (int32_t node = 0; begin < entries[p].unit_end; ++node) {
      const int32_t end = canon::node_end(begin, entries[p].unit_end, first, last);
      fold.push(begin, end, load_quad(slot.node(node), row, column));
      begin = end;
      if (end != target_end) continue;
      visit(target++, fold.finish());
      if (end < tile.tile.unit_end) target_end = canon::node_end(end, tile.tile.unit_end, first, last);
    }
  }
}

// Joins the pieces of a tile: to o, or where other levels come in to its rows' places. A thread has four columns of a row.
template <AttendSm80Config kC>
FULMEN_FN void join_pieces(const AttendSm80Params& params, const PlanView& plan, const AttendItem& item,
                           const AttendSmem<kC>& smem) {
  using Entry = Choose<kC.canonical, CanonPieceEntry, PieceEntry>;
  static_assert(sizeof(Entry) * AttendSm80Config::kMaxWorkers <= kC.join_bytes(), "join_bytes");
  const int count = list_pieces<kC, Entry>(params, plan, item, smem);
  const Tile& tile = item.piece.tile;
  const bool done = !kC.levels || !has_other_levels(item.piece.segment);
  constexpr int kQuads = kC.head_dim_vo / 4;
  const int all = tile.num_rows * kQuads;
  const auto put = [&](int r, int column, int32_t node, const QuadState& state) {
    if (done) {
      if constexpr (kC.split_keys) {
        store_output_quad<kC>(params, make_row(params, plan, item, r), column, state);
      } else {
        store_output_quad<kC>(params, smem.rows()[r], column, state);
      }
    } else {
      const Slot places = row_places(params, tile.level, tile.head, first_row(params, item.piece.segment, tile));
      store_quad(places.node(node), r, column, state);
    }
  };
  // Decode tiles have few rows and many pieces, prefill tiles the reverse. A mixed kernel has this code twice.
  constexpr int kFew = kC.blocks_per_sm == 1 ? 2 : 4;  // on sm_80, which has the kernels of one block, four would spill
  constexpr int kRows = kC.canonical || kC.split_keys ? 1 : 4, kPieces = kC.mixed() ? kFew : kC.split_keys ? 8 : 2;
#pragma unroll 1
  for (int i = threadIdx.x; i < all; i += kRows * kC.num_threads()) {
    int rows[kRows], columns[kRows];
    bool there[kRows];
#pragma unroll
    for (int k = 0; k < kRows; ++k) {
      const int mine = min(i + k * kC.num_threads(), all - 1), column = 4 * (mine % kQuads);
      there[k] = i + k * kC.num_threads() < all && column < params.head_dim_vo;
      rows[k] = mine / kQuads;
      columns[k] = column < params.head_dim_vo ? column : 0;
    }
    if constexpr (kC.canonical) {
      if (!there[0]) continue;
      fold_pieces<kC>(params, smem, item.piece, count, rows[0], columns[0],
                      [&](int32_t node, const QuadState& state) { put(rows[0], columns[0], node, state); });
    } else {
      QuadState sums[kRows];
      sum_pieces<kC, kRows, kPieces>(params, smem, count, rows, columns, sums);
#pragma unroll
      for (int k = 0; k < kRows; ++k) {
        if (there[k]) put(rows[k], columns[k], 0, sums[k]);
      }
    }
  }
}

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
  const int32_t last_request = search_prefix(begins, requests, end);
#pragma unroll 1
  for (int32_t r = search_prefix(begins, requests, first) + threadIdx.x; r <= last_request; r += kC.num_threads()) {
    const Segment request = load_segment(params.shape, plan, last, r);
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

// Four columns of a row, from its places on all levels.
FULMEN_FN QuadState sum_levels(const AttendSm80Params& params, const ReadyTile& tile, int row, int column) {
  QuadState part[kMaxLevels];
  float m = -infinity();
#pragma unroll
  for (int level = 0; level < kMaxLevels; ++level) {
    part[level] = QuadState::empty();
    if ((tile.levels >> level & 1) == 0) continue;
    part[level] = load_quad(row_places(params, level, tile.head, tile.row), row, column);
    m = fmaxf(m, part[level].m);
  }
  QuadState sum = QuadState::empty();
  sum.m = m;
#pragma unroll
  for (int level = 0; level < kMaxLevels; ++level) add_weighted(sum, part[level], m == -infinity() ? 0.0f : m);
  return sum;
}

// The same by the canon.
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
  // A warp to each tile, two tiles at a time, because each is a chain of loads.
  constexpr int kBatch = kC.canonical ? 1 : 2;
  const int count = smem.flags()[kFlagReady], warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const auto* list = reinterpret_cast<const ReadyTile*>(smem.slots());
#pragma unroll 1
  for (int e = warp; e < count; e += kBatch * kC.warps) {
    int rows = 0;
#pragma unroll
    for (int k = 0; k < kBatch; ++k) rows = max(rows, static_cast<int>(list[min(e + k * kC.warps, count - 1)].num_rows));
    const int quads = ceil_div(params.head_dim_vo, 4);
#pragma unroll 1
    for (int i = lane; i < rows * quads; i += 32) {
      const int r = i / quads, column = 4 * (i - r * quads);
      QuadState sums[kBatch];
#pragma unroll
      for (int k = 0; k < kBatch; ++k) {
        const ReadyTile& tile = list[min(e + k * kC.warps, count - 1)];
        const int row = min(r, tile.num_rows - 1);  // one that is there
        if constexpr (kC.canonical) {
          sums[k] = fold_levels<kC>(params, plan, tile, row, column);
        } else {
          sums[k] = sum_levels(params, tile, row, column);
        }
      }
#pragma unroll
      for (int k = 0; k < kBatch; ++k) {
        if (e + k * kC.warps >= count) continue;
        const ReadyTile& tile = list[e + k * kC.warps];
        const int32_t packed = tile.row + r, token = packed / group.group_size;
        if (r >= tile.num_rows || token >= params.num_rows) continue;
        const AttendRow row{token, tile.head * group.group_size + packed - token * group.group_size, 0, 0};
        store_output_quad<kC>(params, row, column, sums[k]);
      }
    }
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
