// Pieces of a split tile: where their states lie in scratch, who finds that all of a tile are there, and how they are joined.
//
//   piece     goes to its worker's slots. Who finds that all units of the tile have arrived joins them in order of keys, so that
//             the bits don't depend on who it was.
//   order     without the canon all states of a row are weighed by one maximum; with it they are folded along its tree.
#pragma once

#include <kernels/attention/attend_output.cuh>
#include <kernels/attention/attend_smem.cuh>
#include <kernels/ptx/cp_async.cuh>
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
  FULMEN_FN Slot at(int64_t floats) const { return {o + floats, m + floats, l + floats, node_step, stride}; }
  FULMEN_FN Slot node(int32_t index) const { return at(index * node_step); }
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

// Four columns of a decode tile's row, from all pieces; the tile's only state without the canon. Each state is a chain of loads
// from far away, so that those of kPieces pieces are all under way before the first is weighed.
template <int kPieces>
FULMEN_FN QuadState sum_pieces(const AttendSm80Params& params, const PieceEntry* entries, int count, int row, int column) {
  QuadState all = QuadState::empty();
#pragma unroll 1
  for (int first = 0; first < count; first += kPieces) {
    QuadState part[kPieces];
#pragma unroll
    for (int p = 0; p < kPieces; ++p) {
      const bool exists = first + p < count && entries[min(first + p, count - 1)].worker >= 0;
      part[p] = QuadState::empty();
      if (exists) part[p] = load_quad(entries[first + p].slot(params), row, column);
    }
    float m = all.m;
#pragma unroll
    for (int p = 0; p < kPieces; ++p) m = fmaxf(m, part[p].m);
    const float base = m == -infinity() ? 0.0f : m;
    QuadState sum = QuadState::empty();
    sum.m = m;
    add_weighted(sum, all, base);
#pragma unroll
    for (int p = 0; p < kPieces; ++p) add_weighted(sum, part[p], base);
    all = sum;
  }
  return all;
}

// The same of all rows of a prefill tile, as many at a time as there is room for weights where Q was: first the weights of the
// pieces' rows, then the states stream past, each thread's through places of its own in the ring. Few warps are left by then, so
// that what counts is how few instructions a state takes. put(row, column, state)
template <AttendSm80Config kC, class Put>
FULMEN_FN void stream_pieces(const AttendSm80Params& params, const AttendSmem<kC>& smem, int count, int num_rows, const Put& put) {
  constexpr int kThreads = kC.num_threads(), kQuads = kC.head_dim_vo / 4, kRows = kThreads / kQuads;
  constexpr int kPieces = 4, kGroup = 2 * kPieces;                                     // a group of copies: of two rows
  constexpr int kSlots = kC.ring_bytes() / (16 * kThreads), kGroups = kSlots / kGroup;  // of a thread
  static_assert(kQuads <= kThreads && kGroups >= 2 && kSlots % kGroup == 0, "rows side by side, groups in flight");
  constexpr uint32_t kStep = 16 * kThreads, kNone = ~0u;
  const int thread = static_cast<int>(threadIdx.x), warp = thread / 32, lane = thread % 32;
  const int beside = thread / kQuads, column = 4 * (thread % kQuads);
  const Slot origin = worker_slot(params, 0, false);  // the first of all; their floats are below 2^32
  const auto slot_floats = static_cast<uint32_t>(origin.node_step * params.layout.nodes);
  // Where each piece's slot begins; as many as make whole groups.
  const int padded = round_up(count, kPieces);
  auto* offsets = reinterpret_cast<uint32_t*>(smem.slots());
#pragma unroll 1
  for (int p = thread; p < padded; p += kThreads) {
    const int32_t index = p < count ? reinterpret_cast<const PieceEntry*>(smem.slots())[p].worker : -1;
    offsets[p] = index < 0 ? kNone : static_cast<uint32_t>(index) * slot_floats;
  }
  __syncthreads();
  int at_once = min(num_rows, kC.q_bytes() / 4 / (padded + 2));
  if (at_once > kRows) at_once -= at_once % kRows;
#pragma unroll 1
  for (int first = 0; first < num_rows; first += at_once) {
    const int rows = min(at_once, num_rows - first);
    float* weights = reinterpret_cast<float*>(smem.q());  // [padded, rows]
    float* row_m = weights + padded * rows;
    float* row_l = row_m + rows;
    float* sums = reinterpret_cast<float*>(smem.ring());  // l as weights
#pragma unroll 1
    for (int p = warp; p < padded; p += kC.warps) {
      const uint32_t offset = offsets[p];
      const Slot slot = origin.at(offset == kNone ? 0 : offset);
#pragma unroll 4
      for (int r = lane; r < rows; r += 32) {
        weights[p * rows + r] = offset == kNone ? -infinity() : slot.m[first + r];
        sums[p * rows + r] = offset == kNone ? 0.0f : slot.l[first + r];
      }
    }
    __syncthreads();
#pragma unroll 1
    for (int r = thread; r < rows; r += kThreads) {
      float m = -infinity(), l = 0.0f;
#pragma unroll 4
      for (int p = 0; p < padded; ++p) m = fmaxf(m, weights[p * rows + r]);
      const float base = m == -infinity() ? 0.0f : m;
#pragma unroll 4
      for (int p = 0; p < padded; ++p) {
        const float weight = ptx::ex2_approx(weights[p * rows + r] - base);
        weights[p * rows + r] = weight;
        l = fma(weight, sums[p * rows + r], l);
      }
      row_m[r] = m;
      row_l[r] = l;
    }
    __syncthreads();
    const bool idle = column >= params.head_dim_vo || beside >= rows;
    const uint32_t to = ptx::shared_address(smem.ring()) + 16 * thread;
    const float* from = origin.o + (first + beside) * origin.stride + column;
    const int64_t next_rows = kRows * origin.stride;
    int copy_row = idle ? rows : beside, copy_piece = 0, copy_slot = 0;
    const auto copy_group = [&] {
      if (copy_row < rows) {
        const bool two = copy_row + kRows < rows;
        const ptx::Words4 four = ptx::load_16(offsets + copy_piece);
        const uint32_t at[kPieces] = {four.x, four.y, four.z, four.w};
#pragma unroll
        for (int k = 0; k < kPieces; ++k) {
          const bool none = at[k] == kNone;
          const float* state = from + (none ? 0 : at[k]);
          ptx::cp_async_16(to + (copy_slot + 2 * k) * kStep, state, none);
          ptx::cp_async_16(to + (copy_slot + 2 * k + 1) * kStep, two ? state + next_rows : state, none);
        }
        copy_piece += kPieces;
        if (copy_piece == padded) copy_piece = 0, copy_row += 2 * kRows, from += 2 * next_rows;
        copy_slot = copy_slot + kGroup == kSlots ? 0 : copy_slot + kGroup;
      }
      ptx::cp_async_commit();
    };
#pragma unroll 1
    for (int g = 0; g < kGroups - 1; ++g) copy_group();
    int slot = 0;
#pragma unroll 1
    for (int row = idle ? rows : beside; row < rows; row += 2 * kRows) {
      const int second = min(row + kRows, rows - 1);
      const float* weight = weights + row;
      float4 o[2] = {{0.0f, 0.0f, 0.0f, 0.0f}, {0.0f, 0.0f, 0.0f, 0.0f}};
#pragma unroll 1
      for (int p = 0; p < padded; p += kPieces) {
        copy_group();
        ptx::cp_async_wait<kGroups - 1>();
        const unsigned char* states = smem.ring() + 16 * thread + slot * kStep;
#pragma unroll
        for (int k = 0; k < kPieces; ++k) {
#pragma unroll
          for (int h = 0; h < 2; ++h) {
            const ptx::Words4 part = ptx::load_16(states + (2 * k + h) * kStep);
            const float by = weight[h == 0 ? 0 : second - row];
            o[h].x = fma(by, bits_float(part.x), o[h].x), o[h].y = fma(by, bits_float(part.y), o[h].y);
            o[h].z = fma(by, bits_float(part.z), o[h].z), o[h].w = fma(by, bits_float(part.w), o[h].w);
          }
          weight += rows;
        }
        slot = slot + kGroup == kSlots ? 0 : slot + kGroup;
      }
      put(first + row, column, QuadState{row_m[row], row_l[row], o[0]});
      if (row + kRows < rows) put(first + second, column, QuadState{row_m[second], row_l[second], o[1]});
    }
    ptx::cp_async_wait<0>();
    __syncthreads();  // weights and ring are free
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
  const auto places = [&] { return row_places(params, tile.level, tile.head, first_row(params, item.piece.segment, tile)); };
  if constexpr (!kC.canonical && !kC.split_keys) {
    const Slot to = places();
    stream_pieces<kC>(params, smem, count, tile.num_rows, [&](int row, int column, const QuadState& state) {
      if (done) {
        store_output_quad<kC>(params, smem.rows()[row], column, state);
      } else {
        store_quad(to, row, column, state);
      }
    });
  } else {
    constexpr int kFew = kC.blocks_per_sm == 1 ? 2 : 4;  // on sm_80, which has the kernels of one block, four would spill
    constexpr int kQuads = kC.head_dim_vo / 4;
#pragma unroll 1
    for (int i = threadIdx.x; i < tile.num_rows * kQuads; i += kC.num_threads()) {
      const int row = i / kQuads, column = 4 * (i % kQuads);
      if (column >= params.head_dim_vo) continue;
      const auto put = [&](int32_t node, const QuadState& state) {
        if (!done) {
          store_quad(places().node(node), row, column, state);
        } else if constexpr (kC.split_keys) {
          store_output_quad<kC>(params, make_row(params, plan, item, row), column, state);
        } else {
          store_output_quad<kC>(params, smem.rows()[row], column, state);
        }
      };
      if constexpr (kC.canonical) {
        fold_pieces<kC>(params, smem, item.piece, count, row, column, put);
      } else {
        put(0, sum_pieces<kFew>(params, reinterpret_cast<const PieceEntry*>(smem.slots()), count, row, column));
      }
    }
  }
}

}  // namespace fulmen
